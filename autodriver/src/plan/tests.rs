//! Every refusal and every degradation, without root.

use super::*;
use autodriver_protocol::Requirement;

fn full() -> Facts {
    Facts {
        root: true,
        sys_admin: true,
        hierarchy: Hierarchy::V2("/sys/fs/cgroup".into()),
        landlock_abi: 7,
        half_memory: 1 << 30,
        processors: 2,
    }
}

fn refused(options: Options, facts: &Facts) -> String {
    plan(options, facts).unwrap_err().0
}

#[test]
fn as_root_with_cgroups_every_layer_is_enforced() {
    let options = Options { require: vec![Requirement::All], ..Options::default() };
    let plan = plan(options, &full()).unwrap();
    assert!(Layer::ALL.into_iter().all(|layer| plan.applies(layer)));
    assert_eq!(plan.argv, [c"make".to_owned()]);
    assert_eq!(plan.wall, Duration::from_secs(60));
}

#[test]
fn what_is_missing_is_named_with_reason_and_remedy() {
    let facts = Facts { landlock_abi: 0, hierarchy: Hierarchy::None, ..full() };
    let all = Options { require: vec![Requirement::All], ..Options::default() };
    let text = refused(all, &facts);
    for word in ["memory: no cgroup", "pids:", "landlock: the kernel has no Landlock: boot with lsm="] {
        assert!(text.contains(word), "{text}");
    }
    assert!(plan(Options::default(), &facts).is_ok(), "the minimum does not need them");
}

#[test]
fn an_old_landlock_says_what_it_does_not_cover() {
    let made = plan(Options::default(), &Facts { landlock_abi: 2, ..full() }).unwrap();
    let landlock = made.layers.iter().find(|layer| layer.name == Layer::Landlock).unwrap();
    assert_eq!(landlock.state, LayerState::Enforced);
    assert!(landlock.reason.as_ref().unwrap().contains("TCP ports, device calls, abstract"));
}

#[test]
fn without_root_the_minimum_is_refused() {
    let facts = Facts { root: false, sys_admin: false, ..full() };
    assert!(refused(Options::default(), &facts).contains("identity: not root"));
}

#[test]
fn a_skipped_layer_is_reported_and_may_not_be_required_by_name() {
    let skip = Options { skip: vec![Layer::Landlock], ..Options::default() };
    let made = plan(skip.clone(), &full()).unwrap();
    assert!(!made.applies(Layer::Landlock));
    let both = Options { require: vec![Requirement::One(Layer::Landlock)], ..skip };
    assert!(refused(both, &full()).contains("landlock"));
}

#[test]
fn layers_that_stand_on_each_other_are_skipped_together() {
    let skip = |layers: &[Layer]| Options { skip: layers.to_vec(), ..Options::default() };
    assert!(refused(skip(&[Layer::NoNewPrivs]), &full()).contains("--skip seccomp"));
    assert!(refused(skip(&[Layer::ProcessTree]), &full()).contains("--skip pid-namespace"));
    let text = refused(Options { root: Some("/x".into()), ..skip(&[Layer::MountNamespace]) }, &full());
    assert!(text.contains("--root"));
}

#[test]
fn nonsense_is_refused_by_name() {
    for (options, word) in [
        (Options { pids: Some(0), ..Options::default() }, "--pids 0"),
        (Options { inodes: Some(u64::MAX), ..Options::default() }, "--inodes"),
        (Options { wall: Some("0s".parse().unwrap()), ..Options::default() }, "--wall"),
        (Options { memory: Some("1K".parse().unwrap()), ..Options::default() }, "--memory 1024"),
        (Options { user: Some("0".into()), ..Options::default() }, "never runs as root"),
        (Options { user: Some("root".into()), ..Options::default() }, "never runs as root"),
        (Options { root: Some("x".into()), ..Options::default() }, "absolute"),
        (Options { hostname: Some("x".repeat(65)), ..Options::default() }, "--hostname"),
        (Options { command: vec![String::new()], ..Options::default() }, "empty"),
    ] {
        let text = refused(options, &full());
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn a_core_limit_of_zero_is_set_as_one_byte() {
    let plan = plan(Options::default(), &full()).unwrap();
    let core = plan.rlimits.iter().find(|row| row.name == "RLIMIT_CORE").unwrap();
    assert_eq!((core.soft, core.hard), (1, 1));
}

#[test]
fn the_readme_has_the_table_of_layers() {
    let readme = include_str!("../../../README.md");
    let header = "| layer | what it takes from the job |\n| --- | --- |\n";
    let rows = Layer::ALL.map(|layer| format!("| `{layer}` | {} |\n", layer.takes()));
    assert!(readme.contains(&format!("{header}{}\n", rows.concat())), "README.md and the layers differ");
}
