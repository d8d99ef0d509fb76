//! Files outside the job, and removal.

use std::fs::{self, File};
use std::os::unix::fs::symlink;

use nix::unistd::setsid;

use crate::probes::exchange;
use crate::tools::{any, child, end_of, held, ignore, ignore_signals, refused, Attempt, Role};

/// Where files wait for somebody: for the next user of a home, for cron, for who reads mail or crashes.
const PLACES: [&str; 16] = [
    "/run/lock",
    "/var/lock",
    "/var/mail",
    "/var/crash",
    "/var/spool/cron",
    "/var/spool/cron/crontabs",
    "/var/cache",
    "/dev/mqueue",
    "/home",
    "/root",
    "/root/.ssh",
    "/etc",
    "/etc/cron.d",
    "/usr/local/bin",
    "/opt",
    "/",
];

pub(super) fn drops(_: Role) -> Attempt {
    let drop = |place: &str| {
        let path = format!("{place}/attack-dropping");
        let dropped = refused(File::create_new(&path), &format!("leaves {path}"));
        ignore(fs::remove_file(path));
        dropped
    };
    any(PLACES.map(drop))
}

/// Hard links to what is not the job's, for who changes owners or modes of all that a job has.
pub(super) fn links_others(_: Role) -> Attempt {
    let files = ["/etc/hostname", "/etc/hosts", "/etc/profile", "/usr/bin/env", "/bin/busybox", "/init"];
    let places = [".", "/tmp", "/var/tmp", "/dev/shm", "/etc", "/usr/bin", "/bin", ""];
    let pairs = files.iter().flat_map(|file| places.iter().map(move |place| (file, place)));
    any(pairs.map(|(file, place)| {
        let path = format!("{place}/.attack-link");
        let made = refused(fs::hard_link(file, &path), &format!("has a link to {file} in '{place}'"));
        ignore(fs::remove_file(path));
        made
    }))
}

/// While the tree is removed, a directory in it is a link to the machine's, now and then.
pub(super) fn swaps_while_removed(_: Role) -> Attempt {
    let made = fs::create_dir_all("tree/folder")
        .and_then(|()| {
            (0..500).try_for_each(|number| File::create(format!("tree/folder/{number}")).map(drop))
        })
        .and_then(|()| symlink("/etc", "other"));
    if let Err(error) = made {
        return held(error);
    }
    let daemon = child(|| {
        ignore(setsid());
        ignore(child(|| {
            ignore_signals();
            let begin = std::time::Instant::now();
            while begin.elapsed().as_secs() < 5 {
                ignore(exchange(c"tree/folder", c"other"));
            }
        }));
    });
    match daemon.and_then(end_of) {
        Ok(_) => held("left a process that swaps"),
        Err(error) => held(error),
    }
}
