//! A job document: refused in one sentence, or options that read back, whose figures are in the range that
//! plans count on, and whose texts have the form of their option.
#![no_main]

use autodriver_protocol::job::{Bind, EnvVar, Input, Output, DOCUMENT_MAX};
use autodriver_protocol::units::{Size, Time, SIZE_MAX, TIME_MAX};
use autodriver_protocol::Options;
use libfuzzer_sys::fuzz_target;

fn check_figures(options: &Options) {
    let o = options;
    let sizes = [
        o.memory,
        o.disk,
        o.output,
        o.fsize,
        o.stack,
        o.core,
        o.address_space,
        o.data,
        o.memlock,
        o.msgqueue,
    ];
    for size in sizes.into_iter().flatten() {
        assert!(size.0 <= SIZE_MAX);
        assert_eq!(size.to_string().parse::<Size>(), Ok(size), "as people write it");
    }
    // What a tmpfs and a cgroup are made with.
    let all = sizes.into_iter().flatten().try_fold(0_u64, |sum, size| sum.checked_add(size.0));
    assert!(all.is_some_and(|sum| i64::try_from(sum).is_ok()), "sums of limits overflow");
    let times = [o.wall, o.cpu, o.idle, o.grace];
    for time in times.into_iter().flatten() {
        assert!(time.0 <= TIME_MAX);
        let told: Time = time.to_string().parse().expect("as people write it");
        assert!(time.0.abs_diff(told.0).as_millis() <= 1, "{time} for {time:?}");
    }
    let deadline =
        times.into_iter().flatten().try_fold(std::time::Instant::now(), |at, time| at.checked_add(time.0));
    assert!(deadline.is_some(), "sums of deadlines overflow");
}

fn check_texts(options: &Options) {
    for EnvVar(name, value) in &options.env {
        assert!(
            !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0'),
            "{name:?}={value:?}"
        );
    }
    for Bind { src, dest, .. } in &options.bind {
        assert!(src.starts_with('/') && dest.starts_with('/') && !src.contains('\0') && !dest.contains('\0'));
    }
    for Input { src, dest } in &options.inputs {
        assert!(!src.is_empty() && !src.contains('\0') && !dest.iter().any(|dest| dest.contains('\0')));
    }
    for Output { glob, dest } in &options.outputs {
        assert!(![glob, dest].iter().any(|text| text.is_empty() || text.contains('\0')));
    }
}

fuzz_target!(|data: &[u8]| {
    let options = match Options::from_json(data) {
        Ok(options) => options,
        Err(error) => {
            let sentence = error.to_string();
            assert!(
                sentence.starts_with("job document") && !sentence.chars().any(char::is_control),
                "{sentence:?}"
            );
            return;
        }
    };
    assert!(data.len() <= DOCUMENT_MAX && data.trim_ascii_start().starts_with(b"{"));
    let written = serde_json::to_vec(&options).expect("a document is written");
    assert_eq!(Options::from_json(&written).expect("what was written is read"), options);
    let all = options.clone().over(Options::defaults());
    assert_eq!(all.clone().over(Options::defaults()), all, "defaults stand in once");
    assert_eq!(options.clone().over(options.clone()), options, "options over themselves are the same");
    assert!(!all.command.is_empty() && all.wall.is_some() && all.memory.is_some() && all.disk.is_some());
    check_figures(&all);
    check_texts(&options);
});
