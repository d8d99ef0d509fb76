//! The kernel takes the filters and does what they say.
//!
//! A filter belongs to a thread and to what it starts. Each test loads one in
//! a thread of its own, which ends with the test and takes the filter along.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::thread;

use nix::errno::Errno;
use nix::sched::{unshare, CloneFlags};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::signal::Signal;
use nix::sys::socket::{socket, AddressFamily, SockFlag, SockType};
use nix::sys::wait::waitpid;
use nix::unistd::{self, write};
use seccompiler::sock_filter;

use super::super::{init_filter, install, job_filter};

/// Runs `body` in a thread that has loaded `filter`.
fn under<T: Send>(filter: &'static [sock_filter], body: impl FnOnce() -> T + Send) -> T {
    let thread = || {
        set_no_new_privs().expect("no_new_privs");
        install(filter).expect("the kernel takes the filter");
        body()
    };
    thread::scope(|scope| scope.spawn(thread).join().expect("the thread lives"))
}

/// Makes a raw system call in a new process; its result, negative for errors.
fn raw(call: &str) -> Result<i32, ExitStatus> {
    let script = format!("$r = syscall({call}); exit($r < 0 ? $! + 0 : 0)");
    let status = Command::new("perl").args(["-e", &script]).status().expect("perl runs under the filter");
    status.code().ok_or(status)
}

#[test]
fn job_calls_get_their_answers() {
    for abi32 in [false, true] {
        under(job_filter(abi32), || {
            let stream = |family| socket(family, SockType::Stream, SockFlag::empty(), None);
            assert!(stream(AddressFamily::Unix).is_ok());
            assert!(stream(AddressFamily::Inet).is_ok());
            assert_eq!(stream(AddressFamily::Vsock).map(drop), Err(Errno::EAFNOSUPPORT));
            assert_eq!(unshare(CloneFlags::CLONE_NEWUSER), Err(Errno::EPERM), "no user namespace");
            assert_eq!(unistd::chroot("/"), Err(Errno::EPERM));
        });
    }
}

#[test]
fn job_processes_and_threads_start_although_clone3_does_not_exist() {
    under(job_filter(false), || {
        assert_eq!(raw("39"), Ok(0), "getpid works");
        // The number of clone3 is the same in all ABIs.
        assert_eq!(raw("435, 0, 0"), Ok(Errno::ENOSYS as i32));
        assert_eq!(raw("600, 0, 0"), Ok(Errno::ENOSYS as i32), "unknown");
        assert_eq!(raw("0x40000000 | 39"), Ok(Errno::ENOSYS as i32), "x32");
        let child = thread::spawn(|| 7);
        assert_eq!(child.join().expect("a thread starts and ends"), 7);
    });
}

#[test]
fn a_second_filter_cannot_take_the_first_one_back() {
    under(job_filter(false), || {
        install(job_filter(false)).expect("a job may load filters");
        assert_eq!(unshare(CloneFlags::CLONE_NEWUSER), Err(Errno::EPERM));
    });
}

/// In the environment of a process that is to load the filter of init.
const VICTIM: &str = "AUTODRIVER_TEST_LOADS_THE_FILTER_OF_INIT";

/// The process that dies is this test again, in a process of its own.
#[test]
fn init_dies_of_a_call_it_has_no_reason_to_make() {
    if std::env::var_os(VICTIM).is_some() {
        under(init_filter(), || {
            let waited = waitpid(None, None);
            let written = write(io::stdout(), b"init may wait and write");
            if (waited, written) == (Err(Errno::ECHILD), Ok(23)) {
                unistd::getppid();
            }
        });
        unreachable!("a thread cannot even end under this filter");
    }
    let name = concat!(module_path!(), "::init_dies_of_a_call_it_has_no_reason_to_make");
    let (_, name) = name.split_once("::").expect("a crate and a path");
    let output = Command::new(std::env::current_exe().expect("the test binary"))
        .args(["--exact", name, "--nocapture"])
        .env(VICTIM, "1")
        .output()
        .expect("the test binary runs");
    assert_eq!(output.status.signal(), Some(Signal::SIGSYS as i32));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.ends_with("init may wait and write"), "{said}");
}

#[test]
fn errors_carry_the_errno_of_the_kernel() {
    let result = thread::spawn(|| {
        set_no_new_privs().expect("no_new_privs");
        let endless = sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x7fff_0000 };
        (install(&[]), install(&vec![endless; 5000]))
    });
    let (empty, long) = result.join().expect("the thread lives");
    assert_eq!(empty, Err(Errno::EINVAL));
    assert_eq!(long, Err(Errno::EINVAL));
}
