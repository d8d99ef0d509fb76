//! Section F of the catalogue: cheating the grade.

use std::fs::OpenOptions;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use autodriver_protocol::frame::encode;
use autodriver_protocol::Cause::WallLimit;
use autodriver_protocol::Layer::{Identity, Landlock, Seccomp};
use autodriver_protocol::{Kind, GUEST_SIGNATURE};
use nix::errno::Errno;
use nix::sys::memfd::{memfd_create, MFdFlags};
use nix::sys::signal::{kill, raise, Signal};
use nix::sys::socket::{sendmsg, socketpair, AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType};
use nix::time::{clock_gettime, clock_settime, ClockId};
use nix::unistd::{getpid, getppid, Pid};

use crate::probes::daemon;
use crate::row::{attack, attack_on_driver, Attack, Ends, Usage};
use crate::tools::{
    any, broke, child, end_of, held, ignore, ignore_signals, raw, refused, say, sleep_ms, spin, Attempt, Role,
};

const NO_CHANNEL: &str =
    "the report comes from the driver by a channel that no descriptor of the job leads to";
const ACCOUNT: &str = "accounts are taken from whatever the machine has, whichever layers are left out; the attack is seen to work where no cgroup tells the driver, as in the environment user";
const KILLED: Ends = Ends::Signal(libc::SIGKILL);

pub(crate) const ATTACKS: &[Attack] = &[
    Attack {
        ends: KILLED,
        ..attack_on_driver(
            "forge-status-line",
            "prints what the driver would say of an honest job, and dies",
            forges_words,
            NO_CHANNEL,
        )
    },
    Attack {
        options: r#"{"wall": "1s"}"#,
        ends: Ends::By(&[WallLimit]),
        ..attack_on_driver(
            "forge-autoresult",
            "prints a score as last line, and keeps the grader from printing its own",
            forges_score,
            "that the job did not end by itself stands beside the score; what counts is the caller's to say",
        )
    },
    Attack {
        ends: KILLED,
        ..attack_on_driver(
            "forge-frames",
            "prints frames of the protocol, a report among them, and dies",
            forges_frames,
            NO_CHANNEL,
        )
    },
    attack(
        "forge-frames-elsewhere",
        "looks for descriptors and devices that lead to the driver or its caller",
        finds_channels,
        &[Landlock, Identity],
    ),
    attack_on_driver(
        "rewrite-stdout-file",
        "takes back what it has printed",
        rewrites,
        "output is a pipe by construction",
    ),
    attack_on_driver(
        "nonblock-shared",
        "makes its pipes small and non-blocking, which may be the driver's too",
        unblocks,
        "no open file description of the job's is the driver's by construction",
    ),
    Attack {
        ends: KILLED,
        ..attack_on_driver("signal-as-zero", "dies by a signal, which has no exit status", dies, NO_CHANNEL)
    },
    Attack {
        ends: KILLED,
        ..attack_on_driver(
            "kill-grader",
            "kills its parent, the grader, and ends well itself",
            kills_parent,
            NO_CHANNEL,
        )
    },
    Attack {
        ends: KILLED,
        ..attack_on_driver(
            "fake-exit-through-init",
            "sends every signal to init and to its parent, and dies",
            signals_init,
            NO_CHANNEL,
        )
    },
    attack_on_driver(
        "fake-exit-through-init-orphan",
        "has init reap an orphan that died of a signal without a name",
        leaves_orphan_of_signal,
        "it is init that must know such a signal",
    ),
    attack("timer-tricks", "sets the clock", sets_clock, &[Identity, Seccomp]),
    Attack {
        options: r#"{"wall": "120s"}"#,
        shows: Usage { cpu: Duration::from_millis(800), memory: 0 },
        ..attack_on_driver(
            "hide-cpu",
            "has 900 ms of CPU time in children of 3 ms that nobody waits for",
            hides_cpu,
            ACCOUNT,
        )
    },
    Attack {
        shows: Usage { cpu: Duration::ZERO, memory: 40 << 20 },
        ..attack_on_driver(
            "hide-memory",
            "has 48 MB in a memfd that is under way in a socket",
            hides_memory,
            ACCOUNT,
        )
    },
    attack_on_driver(
        "report-injection",
        "prints every byte there is, escapes and false UTF-8 among them",
        prints_all_bytes,
        "output is bytes by construction",
    ),
];

const HOSTILE_GUEST: &str =
    "the guest is the attacker: e2e hostile_guest, and vmm-local's unit tests of sessions";

/// Rows of the section that are no attack on the sandbox, and those where guest or host is the attacker.
pub(crate) const ELSEWHERE: &[(&str, &str)] = &[
    ("overwrite-results", "grader and hand-in are one job with one uid; a course that wants two runs two jobs, the second on the files of the first"),
    ("same-process-tamper", "as overwrite-results: inside one process nothing can be kept apart"),
    ("makefile-precedence", "what command grades is the course's: `make -f`, or a command of its own; GNUmakefile is make's to prefer"),
    ("config-hijack", "environment and home are built from scratch (exactly so: e2e options_files, env-inherit); what a tool reads in the job directory is the course's"),
    ("guest-noise-first", HOSTILE_GUEST),
    ("malformed-frame", HOSTILE_GUEST),
    ("giant-length", HOSTILE_GUEST),
    ("dies-mid-transfer", HOSTILE_GUEST),
    ("never-answers", HOSTILE_GUEST),
    ("guest-flood", HOSTILE_GUEST),
    ("name-traversal-out", HOSTILE_GUEST),
    ("reorder-replay", HOSTILE_GUEST),
    ("guest-lies", HOSTILE_GUEST),
    ("dirty-guest-reuse", HOSTILE_GUEST),
    ("pipe-deadlock", HOSTILE_GUEST),
    ("host-vmm-killed", "the driver sees the end of its input: e2e protocol_errors"),
    ("driver-killed", "e2e restore_killed, and scripts/test-faults at every system call"),
    ("host-disk-full", "a file is complete or not there: unit tests of vmm-local's fetch and batch"),
];

fn die() -> Attempt {
    ignore(raise(Signal::SIGKILL));
    broke("outlived SIGKILL")
}

fn dies(_: Role) -> Attempt {
    die()
}

fn forges_words(_: Role) -> Attempt {
    for line in [
        "Autodriver: Job exited with status 0",
        "autodriver: exited 0",
        "vmm-local: exited 0, wall 1 ms",
        r#"{"version":1,"cause":"exited","exit_code":0}"#,
        r#"{"scores": {"p1": 100}}"#,
    ] {
        say(line);
        ignore(writeln!(io::stderr(), "{line}"));
    }
    die()
}

fn forges_score(_: Role) -> Attempt {
    say(r#"{"scores": {"p1": 100}}"#);
    ignore_signals();
    sleep_ms(10_000);
    broke("slept on")
}

fn frames() -> Vec<u8> {
    let mut bytes = GUEST_SIGNATURE.to_vec();
    let report: &[u8] = br#"{"version":1,"cause":"exited","exit_code":0}"#;
    for (kind, job, payload) in [
        (Kind::Report, 1, report),
        (Kind::Closed, 1, br#"{"restore": {"state": "restored", "leftovers": []}}"#),
        (Kind::Error, 0, br#"{"message": "the end"}"#),
    ] {
        bytes.extend(encode(kind, job, payload));
    }
    bytes
}

fn forges_frames(_: Role) -> Attempt {
    let frames = frames();
    ignore(io::stdout().write_all(&frames).and_then(|()| io::stdout().flush()));
    ignore(io::stderr().write_all(&frames));
    ignore(writeln!(io::stdout()));
    die()
}

fn finds_channels(_: Role) -> Attempt {
    let others = [1, getppid().as_raw()].into_iter().filter(|pid| *pid > 0 && *pid != getpid().as_raw());
    let descriptors = others.flat_map(|pid| (0..16).map(move |fd| format!("/proc/{pid}/fd/{fd}")));
    let devices = [
        "console",
        "tty",
        "tty0",
        "ttyS0",
        "hvc0",
        "hvc1",
        "vport0p1",
        "vport1p1",
        "vport2p1",
        "virtio-ports",
    ];
    let paths: Vec<String> = descriptors.chain(devices.map(|name| format!("/dev/{name}"))).collect();
    let open = |path: &String| {
        let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
        refused(OpenOptions::new().write(true).custom_flags(flags).open(path), path)
    };
    let leaked =
        (3..4096).filter(|fd| nix::fcntl::fcntl(borrowed(*fd), nix::fcntl::FcntlArg::F_GETFD).is_ok());
    let leaked: Vec<RawFd> = leaked.collect();
    any(leaked.iter().map(|fd| broke(format_args!("has descriptor {fd}"))).chain(paths.iter().map(open)))
}

/// A number that may or may not be a descriptor, to ask the kernel about.
fn borrowed(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: it is only passed to F_GETFD, which a number that is no descriptor fails.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

fn rewrites(_: Role) -> Attempt {
    say("the first line");
    let stdout = io::stdout();
    let fd = stdout.as_raw_fd();
    // SAFETY: lseek and ftruncate take a descriptor and numbers.
    let moved = unsafe { [libc::lseek(fd, 0, libc::SEEK_SET), i64::from(libc::ftruncate(fd, 0))] };
    let moves = moved.map(|result| refused(Errno::result(result), "could rewrite its output"));
    any(moves)
}

fn unblocks(_: Role) -> Attempt {
    for fd in 0..3 {
        // SAFETY: both commands take an integer.
        unsafe {
            libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK | libc::O_ASYNC);
            libc::fcntl(fd, libc::F_SETPIPE_SZ, 4096);
        }
    }
    let line = [b'x'; 4096];
    for _ in 0..512 {
        while io::stdout().write(&line).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            sleep_ms(1);
        }
    }
    // The end must come out whole.
    // SAFETY: as above.
    unsafe { libc::fcntl(1, libc::F_SETFL, 0) };
    say("");
    held("all was taken")
}

fn kills_parent(_: Role) -> Attempt {
    let grader = getpid();
    ignore(child(|| ignore(kill(grader, Signal::SIGKILL))));
    sleep_ms(10_000);
    broke("the grader lived on")
}

fn signals_init(_: Role) -> Attempt {
    for target in [1, getppid().as_raw()].into_iter().filter(|pid| *pid > 0) {
        for signal in 1..=64 {
            // SAFETY: kill(2) takes two numbers.
            unsafe { libc::kill(target, signal) };
        }
        ignore(nix::sys::ptrace::attach(Pid::from_raw(target)));
    }
    die()
}

/// A real-time signal, which is in few lists.
fn leaves_orphan_of_signal(_: Role) -> Attempt {
    let orphan = daemon(|| {
        sleep_ms(50);
        // SAFETY: raise(3) takes a number.
        unsafe { libc::raise(libc::SIGRTMIN() + 6) };
    });
    if let Err(error) = orphan {
        return held(error);
    }
    sleep_ms(300);
    held("its own end is still its own")
}

fn sets_clock(_: Role) -> Attempt {
    let clock = ClockId::CLOCK_REALTIME;
    let set = clock_gettime(clock).and_then(|now| clock_settime(clock, now));
    // SAFETY: a null time and a null zone change nothing, where they are allowed.
    let zone = raw(unsafe { libc::syscall(libc::SYS_settimeofday, 0, 0) });
    any([refused(set, "set the clock to what it is"), refused(zone, "settimeofday")])
}

fn hides_cpu(_: Role) -> Attempt {
    const EACH: Duration = Duration::from_millis(3);
    ignore_signals();
    for _ in 0..300 {
        match child(|| spin(EACH)) {
            // With SIGCHLD ignored this waits for all children, and fails.
            Ok(pid) => ignore(end_of(pid)),
            Err(error) => return broke(format_args!("could not even try: {error}")),
        }
    }
    held("the report must show 800 of its 900 ms")
}

fn hides_memory(_: Role) -> Attempt {
    match send_memory() {
        Ok(()) => held("the report must show 40 of its 48 MB"),
        Err(error) => broke(format_args!("could not even try: {error}")),
    }
}

/// A quarter at a time: no look at descriptors meets much of it.
fn send_memory() -> nix::Result<()> {
    let pair = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty())?;
    let chunk = vec![1; 1 << 20];
    for _ in 0..4 {
        let memory = memfd_create(c"x", MFdFlags::empty())?;
        for _ in 0..12 {
            nix::unistd::write(&memory, &chunk)?;
        }
        let descriptors = [memory.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        sendmsg::<()>(pair.0.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None)?;
    }
    // Long enough for a look, on a busy machine as well.
    sleep_ms(1000);
    Ok(())
}

fn prints_all_bytes(_: Role) -> Attempt {
    let bytes: Vec<u8> = (0..=255).cycle().take(4096).collect();
    ignore(io::stdout().write_all(&bytes));
    ignore(io::stdout().write_all("\n\x1b]0;title\x07\x1b[2J\u{202e}\u{2066}<script>\n".as_bytes()));
    held("all was taken")
}
