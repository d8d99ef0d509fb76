//! What a process hands on across execve(2): each act sets up a part of it.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sched::{sched_setaffinity, CpuSet};
use nix::sys::personality::{self, Persona};
use nix::sys::resource::{setrlimit, Resource};
use nix::sys::signal::{raise, SigSet, Signal};
use nix::sys::stat::{umask, Mode};
use nix::unistd::{chdir, mkdir, Pid};

/// What is executed, and with which environment.
pub(crate) struct Call {
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
}

/// Variables that have made loaders, C libraries, shells and make do what the caller wanted.
const ENVIRONMENT: [&str; 20] = [
    "LD_PRELOAD=/home/autolab/evil.so",
    "LD_LIBRARY_PATH=/home/autolab",
    "LD_AUDIT=/home/autolab/evil.so",
    "LD_DEBUG=all",
    "GCONV_PATH=/home/autolab",
    "LOCPATH=/home/autolab",
    "NLSPATH=/home/autolab/%N",
    "MALLOC_CHECK_=3",
    "MALLOC_PERTURB_=165",
    "GLIBC_TUNABLES=glibc.malloc.check=3",
    "TMPDIR=/home/autolab",
    "HOME=/home/autolab",
    "PATH=/home/autolab:.",
    "POSIXLY_CORRECT=1",
    "ARGP_HELP_FMT=rmargin=20",
    "TZ=:/etc/shadow",
    "RUST_BACKTRACE=full",
    "MAKEFLAGS=-n",
    "MAKEFILES=/home/autolab/evil.mk",
    "BASH_ENV=/home/autolab/evil.sh",
];

impl Call {
    /// Does one.
    pub(crate) fn act(&mut self, act: &str) -> Result<(), String> {
        let (name, value) = act.split_once('=').unwrap_or((act, ""));
        let done = match name {
            "close" => close(value),
            "open-many" => open_many(),
            "environment" => {
                let variables = ENVIRONMENT.iter().filter_map(|variable| CString::new(*variable).ok());
                self.environment.extend(variables);
                Ok(())
            }
            "argv" => {
                self.arguments =
                    CString::new(value).ok().filter(|word| !word.is_empty()).into_iter().collect();
                Ok(())
            }
            "cd" => chdir(value),
            "lost-directory" => lose_directory(),
            "umask" => {
                umask(Mode::from_bits_truncate(0o777));
                Ok(())
            }
            "limit" => limit(value),
            "block-signals" => SigSet::all().thread_set_mask(),
            "ignore-signals" => {
                // SAFETY: no handler is installed.
                (1..65).for_each(|signal| unsafe {
                    libc::signal(signal, libc::SIG_IGN);
                });
                Ok(())
            }
            "pending-signals" => pending_signals(),
            "timers" => timers(),
            "nice" => nice(),
            "one-processor" => one_processor(),
            "personality" => set_personality(),
            "traced" => traced(),
            "nonblocking-stdout" => nonblocking_stdout(),
            _ => return Err("no such act".into()),
        };
        done.map_err(|errno| errno.to_string())
    }
}

fn close(numbers: &str) -> Result<(), Errno> {
    let numbers = numbers.split(',').filter_map(|number| number.parse().ok());
    // SAFETY: nothing of this program is used through them any more.
    numbers.for_each(|number: i32| unsafe {
        libc::close(number);
    });
    Ok(())
}

/// Descriptors of many numbers, without close-on-exec.
fn open_many() -> Result<(), Errno> {
    let file = File::open("/etc/passwd").map_err(|_| Errno::EIO)?;
    for number in (3..100).chain([255, 1000]) {
        // SAFETY: nothing else has these numbers.
        Errno::result(unsafe { libc::dup2(file.as_raw_fd(), number) })?;
    }
    std::mem::drop(std::os::fd::OwnedFd::from(file));
    Ok(())
}

fn lose_directory() -> Result<(), Errno> {
    let place = format!("/tmp/lost-{}", std::process::id());
    mkdir(place.as_str(), Mode::S_IRWXU)?;
    chdir(place.as_str())?;
    std::fs::remove_dir(place).map_err(|_| Errno::EIO)
}

/// `NAME:SOFT:HARD`; what is not given stays.
fn limit(value: &str) -> Result<(), Errno> {
    let parts: Vec<&str> = value.split(':').collect();
    let [name, soft, hard] = parts[..] else { return Err(Errno::EINVAL) };
    let resource = match name {
        "fsize" => Resource::RLIMIT_FSIZE,
        "nofile" => Resource::RLIMIT_NOFILE,
        "cpu" => Resource::RLIMIT_CPU,
        "core" => Resource::RLIMIT_CORE,
        "as" => Resource::RLIMIT_AS,
        "data" => Resource::RLIMIT_DATA,
        "stack" => Resource::RLIMIT_STACK,
        "nproc" => Resource::RLIMIT_NPROC,
        "sigpending" => Resource::RLIMIT_SIGPENDING,
        "memlock" => Resource::RLIMIT_MEMLOCK,
        _ => return Err(Errno::EINVAL),
    };
    let now = nix::sys::resource::getrlimit(resource)?;
    setrlimit(resource, soft.parse().unwrap_or(now.0), hard.parse().unwrap_or(now.1))
}

fn pending_signals() -> Result<(), Errno> {
    SigSet::all().thread_set_mask()?;
    for signal in [Signal::SIGTERM, Signal::SIGALRM, Signal::SIGINT, Signal::SIGCHLD, Signal::SIGTSTP] {
        raise(signal)?;
    }
    Ok(())
}

/// One of each kind, which ends a process that does not expect it.
fn timers() -> Result<(), Errno> {
    let soon = libc::timeval { tv_sec: 0, tv_usec: 300_000 };
    let timer = libc::itimerval { it_interval: soon, it_value: soon };
    for which in [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF] {
        // SAFETY: the timer outlives the call.
        Errno::result(unsafe { libc::setitimer(which, &raw const timer, std::ptr::null_mut()) })?;
    }
    // SAFETY: both are plain values of the kernel's; a null event means SIGALRM.
    let mut posix: libc::timer_t = unsafe { std::mem::zeroed() };
    // SAFETY: as above; the kernel stores the timer in `posix`.
    let made = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, std::ptr::null_mut(), &raw mut posix) };
    Errno::result(made)?;
    let soon = libc::timespec { tv_sec: 0, tv_nsec: 300_000_000 };
    let spec = libc::itimerspec { it_interval: soon, it_value: soon };
    // SAFETY: the timer was made above, and the times outlive the call.
    Errno::result(unsafe { libc::timer_settime(posix, 0, &raw const spec, std::ptr::null_mut()) }).map(drop)
}

fn set_personality() -> Result<(), Errno> {
    // nix does not have it for musl.
    let uname26 = Persona::from_bits_retain(0x002_0000);
    let more = Persona::ADDR_NO_RANDOMIZE | Persona::READ_IMPLIES_EXEC;
    // A container's filter lets only some through.
    personality::set(uname26 | more).or_else(|_| personality::set(uname26)).map(drop)
}

fn nice() -> Result<(), Errno> {
    let priority: libc::c_int = 0;
    // SAFETY: plain numbers, and a parameter that outlives the call, which musl's own function does not make.
    unsafe {
        Errno::result(libc::setpriority(libc::PRIO_PROCESS, 0, 19))?;
        let call = libc::SYS_sched_setscheduler;
        Errno::result(libc::syscall(call, 0, libc::SCHED_IDLE, &raw const priority)).map(drop)
    }
}

fn one_processor() -> Result<(), Errno> {
    let mut one = CpuSet::new();
    one.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &one)
}

/// Goes on in a child that this process, an ordinary user's, traces: it lets it go on whatever stops it, and ends
/// as it ends.
fn traced() -> Result<(), Errno> {
    use nix::sys::ptrace;
    use nix::sys::wait::{waitpid, WaitStatus};
    // SAFETY: one thread; the child goes on as this process would have.
    let child = match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => return ptrace::traceme(),
        nix::unistd::ForkResult::Parent { child } => child,
    };
    loop {
        let status = match waitpid(child, None)? {
            WaitStatus::Exited(_, status) => status,
            WaitStatus::Stopped(..) => {
                ptrace::cont(child, None)?;
                continue;
            }
            _ => 97,
        };
        // SAFETY: ends this process, of which nothing is to be written any more.
        unsafe { libc::_exit(status) }
    }
}

fn nonblocking_stdout() -> Result<(), Errno> {
    use nix::fcntl::{fcntl, FcntlArg, OFlag};
    fcntl(std::io::stdout(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)
}
