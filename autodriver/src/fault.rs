//! Faults of the sandbox as data: which step, on which object, which errno. They become sentences
//! here, in the driver, which holds the plan; a child only ever sends numbers.

use std::fmt;

pub use autodriver_protocol::archive::{errno_name, errno_of};
use autodriver_protocol::report::FaultReport;
use autodriver_protocol::Cause;
use nix::errno::Errno;

/// What was being done, in the order in which it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Step {
    /// Reading the request.
    Request,
    /// Leasing a uid.
    Uid,
    /// Making the job's storage.
    Storage,
    /// Copying files in or out.
    Transfer,
    /// Making and limiting the cgroup.
    Cgroup,
    /// Creating init with its namespaces.
    Namespaces,
    /// init: the file system that the job sees.
    Mounts,
    /// init: loopback and host name.
    Network,
    /// init: giving up its privileges.
    Init,
    /// job: entering its cgroup.
    Attach,
    /// job: session, signals, standard streams.
    Session,
    /// job: setrlimit(2).
    Rlimits,
    /// job: uid, gid, groups, capabilities, no_new_privs.
    Privileges,
    /// job: Landlock rules.
    Landlock,
    /// job: close-on-exec.
    Descriptors,
    /// job: the system-call filter.
    Seccomp,
    /// job: what the kernel says of it.
    ReadBack,
    /// job: working directory and execve(2).
    Exec,
    /// Following the job.
    Supervise,
    /// Putting the machine back.
    Restore,
}

impl Step {
    const ALL: [Step; 20] = [
        Step::Request,
        Step::Uid,
        Step::Storage,
        Step::Transfer,
        Step::Cgroup,
        Step::Namespaces,
        Step::Mounts,
        Step::Network,
        Step::Init,
        Step::Attach,
        Step::Session,
        Step::Rlimits,
        Step::Privileges,
        Step::Landlock,
        Step::Descriptors,
        Step::Seccomp,
        Step::ReadBack,
        Step::Exec,
        Step::Supervise,
        Step::Restore,
    ];

    /// The step with this number, as it crosses the report pipe.
    pub fn from_number(number: u8) -> Option<Step> {
        Step::ALL.into_iter().find(|step| *step as u8 == number)
    }

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Step::Request => "request",
            Step::Uid => "uid",
            Step::Storage => "storage",
            Step::Transfer => "transfer",
            Step::Cgroup => "cgroup",
            Step::Namespaces => "namespaces",
            Step::Init => "init",
            Step::Attach => "attach",
            Step::Session => "session",
            Step::Mounts => "mounts",
            Step::Network => "network",
            Step::Rlimits => "rlimits",
            Step::Privileges => "privileges",
            Step::Landlock => "landlock",
            Step::Descriptors => "descriptors",
            Step::Seccomp => "seccomp",
            Step::ReadBack => "read-back",
            Step::Exec => "exec",
            Step::Supervise => "supervise",
            Step::Restore => "restore",
        }
    }
}

/// A fault: never a verdict on the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What was being done.
    pub step: Step,
    /// The act and its object, for example `mount /proc`; reads well after `cannot`.
    pub object: String,
    /// Why it failed; `None` when no system call did.
    pub errno: Option<Errno>,
    /// Said instead of the errno's text, when that says too little.
    pub because: Option<String>,
}

impl Fault {
    /// A system call failed.
    pub fn new(step: Step, object: impl Into<String>, errno: Errno) -> Fault {
        Fault { step, object: object.into(), errno: Some(errno), because: None }
    }

    /// Something was refused without asking the kernel.
    pub fn refused(step: Step, object: impl Into<String>, because: impl Into<String>) -> Fault {
        Fault { step, object: object.into(), errno: None, because: Some(because.into()) }
    }

    /// What a report says that ends with it.
    pub fn cause(&self) -> Cause {
        match self.step {
            Step::Supervise => Cause::InternalError,
            _ => Cause::SetupFailed,
        }
    }

    /// What an operator can do about it, where that is known.
    fn remedy(&self) -> Option<&'static str> {
        let errno = self.errno?;
        Some(match (self.step, errno) {
            (Step::Uid, Errno::EROFS) => "autodriver needs a writable /run",
            (Step::Uid, Errno::EACCES | Errno::EPERM) => "run autodriver as root",
            (Step::Cgroup, Errno::EROFS) => "mount the cgroup file system writable for this container",
            (Step::Cgroup, Errno::EACCES | Errno::EPERM) => "run as root, or delegate a cgroup",
            (Step::Cgroup, Errno::EBUSY) => {
                "the cgroup that autodriver runs in has processes of its own; start it from a leaf"
            }
            (Step::Storage | Step::Mounts | Step::Namespaces, Errno::EPERM) => {
                "is CAP_SYS_ADMIN available, and does a seccomp profile of the container allow unshare and mount?"
            }
            (Step::Storage | Step::Mounts, Errno::ENOSYS) => "Linux 5.12 or newer is needed",
            (Step::Mounts, Errno::EINVAL) => {
                "is / a mount point here? in a chroot, bind the directory on itself first (mount --bind DIR DIR)"
            }
            (Step::Namespaces, Errno::ENOSPC | Errno::EUSERS) => {
                "raise user.max_{pid,mnt,net,ipc,uts,cgroup}_namespaces"
            }
            (Step::Namespaces | Step::Init, Errno::EAGAIN) => "raise pids.max or RLIMIT_NPROC of the driver",
            (_, Errno::ENOMEM) => "the machine, or the driver's cgroup, is out of memory",
            (Step::Storage | Step::Transfer, Errno::ENOSPC) => "give the job more with --disk or --inodes",
            (Step::Rlimits, Errno::EPERM) => {
                "only CAP_SYS_RESOURCE raises the driver's own hard limit (ulimit -H): ask for no more, or start it with more"
            }
            (Step::Exec, Errno::ENOENT) => "is the program in the image, and its interpreter too?",
            (Step::Exec, Errno::EACCES) => "is it executable (chmod +x), and its directory too?",
            (_, Errno::EMFILE | Errno::ENFILE) => "raise RLIMIT_NOFILE of the driver",
            _ => return None,
        })
    }

    /// As it stands in the report.
    pub fn report(&self) -> FaultReport {
        FaultReport {
            step: self.step.name().to_owned(),
            object: self.object.clone(),
            errno: self.errno.map(errno_name).unwrap_or_default(),
            message: self.to_string(),
            remedy: self.remedy().map(str::to_owned),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: ", self.object)?;
        match (self.errno, &self.because) {
            (Some(errno), None) => write!(f, "{} ({})", errno_name(errno), errno.desc())?,
            (Some(errno), Some(because)) => write!(f, "{} ({because})", errno_name(errno))?,
            (None, because) => f.write_str(because.as_deref().unwrap_or("refused"))?,
        }
        match self.remedy() {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_names_act_object_errno_and_remedy() {
        let fault = Fault::new(Step::Mounts, "mount /proc", Errno::EPERM);
        let text = fault.to_string();
        assert!(text.starts_with("cannot mount /proc: EPERM (") && text.contains("CAP_SYS_ADMIN"), "{text}");
        assert_eq!(fault.report().errno, "EPERM");
    }

    #[test]
    fn steps_are_numbered_in_their_order() {
        for (number, step) in Step::ALL.into_iter().enumerate() {
            assert_eq!(step as usize, number);
            assert_eq!(Step::from_number(step as u8), Some(step));
        }
    }
}
