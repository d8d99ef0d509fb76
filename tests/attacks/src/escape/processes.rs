//! Other processes: their memory, their files, their descriptors.

use std::fs::{self, OpenOptions};
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{raise, Signal};
use nix::sys::uio::{process_vm_readv, RemoteIoVec};
use nix::sys::wait::WaitStatus;
use nix::unistd::{getppid, Pid};

use crate::probes::{arg, call, each, opens, others};
use crate::tools::{
    broke, child, end_of, held, leave, pause_for_ever, put_down, raw, refused, say, Attempt, Role,
};

/// Another job, which is looked for.
fn is_there() -> ! {
    say(crate::READY);
    pause_for_ever()
}

/// Looks for a process that it may look into: of another job, of the driver, of the machine.
pub(super) fn looks_into_others(role: Role) -> Attempt {
    if role == Role::Accomplice {
        is_there();
    }
    for pid in others() {
        if reads_memory(pid) {
            return broke(format_args!("may read the memory of process {pid}"));
        }
        if opens_memory(pid) {
            return broke(format_args!("may write to the memory of process {pid}"));
        }
    }
    held("no process can be looked into")
}

/// Threads of the kernel have no memory, and their file is open to root whatever else is refused.
fn opens_memory(pid: Pid) -> bool {
    let opened = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"));
    opened.is_ok_and(|file| !matches!(file.read_at(&mut [0], 0x1000), Ok(0)))
}

/// An address that is not there is an answer too: the question was let through.
fn reads_memory(pid: Pid) -> bool {
    let mut byte = [0];
    let there = RemoteIoVec { base: 0x1000, len: 1 };
    let read = process_vm_readv(pid, &mut [IoSliceMut::new(&mut byte)], &[there]);
    matches!(read, Ok(_) | Err(Errno::EFAULT))
}

/// Takes a descriptor out of another process: the driver's end of a pipe, say.
pub(super) fn takes_descriptors(role: Role) -> Attempt {
    if role == Role::Accomplice {
        is_there();
    }
    for pid in others().chain([getppid()]) {
        let Ok(pidfd) = call(libc::SYS_pidfd_open, [arg(pid.as_raw()), 0, 0, 0, 0]) else { continue };
        let Ok(pidfd) = i32::try_from(pidfd) else { continue };
        let taken = call(libc::SYS_pidfd_getfd, [arg(pidfd), 1, 0, 0, 0]);
        // A process that has none of this number: the question was let through.
        if matches!(taken, Ok(_) | Err(Errno::EBADF)) {
            return broke(format_args!("may take descriptors of process {pid}"));
        }
        crate::tools::ignore(nix::unistd::close(pidfd));
    }
    held("no process gives descriptors away")
}

/// The end of the tracer is the end of the tracing.
pub(super) fn traces_parent(_: Role) -> Attempt {
    let parent = getppid();
    each([
        refused(ptrace::seize(parent, Options::empty()), "traces its parent"),
        refused(
            OpenOptions::new().write(true).open(format!("/proc/{parent}/mem")),
            "opened its parent's memory",
        ),
        match reads_memory(parent) {
            true => broke("may read its parent's memory"),
            false => held("its parent's memory cannot be read"),
        },
    ])
}

/// The filter sees one call, and the kernel would do another if it were asked before the tracer.
pub(super) fn changes_number(_: Role) -> Attempt {
    let newuser = [arg(libc::CLONE_NEWUSER), 0, 0, 0, 0];
    let traced = child(|| {
        let stopped = ptrace::traceme().and_then(|()| raise(Signal::SIGSTOP));
        // Nobody's parent is process 0 of the job's PID namespace: 0 is the answer of unshare(2).
        let unshared = stopped.and_then(|()| call(libc::SYS_getppid, newuser));
        leave(if unshared == Ok(0) { 0 } else { 1 })
    });
    match traced.and_then(|traced| swap_number(traced).inspect_err(|_| put_down(&[traced]))) {
        Ok(WaitStatus::Exited(_, 0)) => broke("made a call that the filter has not seen"),
        Ok(other) => held(format_args!("{other:?}")),
        Err(error) => held(error),
    }
}

#[allow(clippy::cast_sign_loss)]
fn swap_number(traced: Pid) -> nix::Result<WaitStatus> {
    end_of(traced)?;
    loop {
        ptrace::syscall(traced, None)?;
        if let ended @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..)) = end_of(traced)? {
            return Ok(ended);
        }
        let mut registers = ptrace::getregs(traced)?;
        if registers.orig_rax == libc::SYS_getppid as u64 {
            registers.orig_rax = libc::SYS_unshare as u64;
            ptrace::setregs(traced, registers)?;
            ptrace::cont(traced, None)?;
            return end_of(traced);
        }
    }
}

/// What /proc leads to: another root, another directory, what is mapped and open.
pub(super) fn walks_through_proc(_: Role) -> Attempt {
    let parent = format!("/proc/{}", getppid());
    let link =
        |name: &str| refused(fs::metadata(format!("{parent}/{name}")), &format!("followed {parent}/{name}"));
    let list = |name: &str| {
        let entries =
            fs::read_dir(format!("{parent}/{name}")).and_then(|mut entries| entries.next().transpose());
        refused(entries, &format!("listed {parent}/{name}"))
    };
    each([
        link("root"),
        link("cwd"),
        list("fd"),
        list("map_files"),
        opens(format!("{parent}/environ"), OpenOptions::new().read(true)),
        opens(format!("{parent}/ns/mnt"), OpenOptions::new().read(true)),
    ])
}

/// The driver's program, which is the next driver's too. It is in use now, so that it cannot be opened for
/// writing: whoever holds it open like this waits until it is not.
pub(super) fn overwrites_program(_: Role) -> Attempt {
    let program = format!("/proc/{}/exe", getppid());
    let opened = OpenOptions::new().read(true).open(&program);
    let Ok(file) = opened else { return refused(opened, "") };
    use std::os::fd::AsRawFd;
    let again = std::ffi::CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
    // SAFETY: the path is a C string that lives until the call returns.
    let may_write = raw(unsafe { libc::access(again.as_ptr(), libc::W_OK) }.into());
    refused(may_write, "may write to the driver's program")
}
