//! Jobs that do anything at all: what is asked is only that they end, with a verdict, and leave nothing.

use std::time::Duration;

use autodriver_protocol::report::RestoreState;
use autodriver_protocol::Cause;

use crate::{job, Job, Outcome};

/// A job that makes random system calls for `time`, in whole seconds, within tight limits.
pub fn storm(seed: u64, time: Duration) -> Job {
    let seconds = time.as_secs().max(1);
    let limited = job(["storm".to_owned(), seed.to_string(), seconds.to_string()]);
    let wall = format!("{}s", seconds + 5);
    [
        ("--wall", wall.as_str()),
        ("--memory", "256M"),
        ("--disk", "32M"),
        ("--pids", "64"),
        ("--output", "64K"),
    ]
    .into_iter()
    .fold(limited, |job, (name, value)| job.opt(name, value))
}

impl Outcome {
    /// Fails unless the job had its sandbox, got a verdict, and left nothing behind.
    #[track_caller]
    pub fn expect_any_verdict(self) -> Outcome {
        let cause = self.cause();
        assert!(!matches!(cause, Cause::SetupFailed | Cause::InternalError), "{self}");
        assert_eq!(self.report().restore.state, RestoreState::Restored, "{self}");
        self
    }

    /// The system calls that a [`storm`] has made; none, where it was ended before it could say.
    pub fn calls(&self) -> Option<u64> {
        let text = String::from_utf8_lossy(&self.stdout);
        text.lines().find_map(|line| line.strip_prefix("ok ")?.parse().ok())
    }
}
