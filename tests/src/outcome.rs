//! What a finished `autodriver run` left behind for its caller.

use std::fmt;
use std::time::Duration;

use autodriver_protocol::report::{LayerReport, LayerState, RestoreState, StreamReport};
use autodriver_protocol::{Cause, Layer, Report};

/// Exit status, streams and report of one `autodriver run`.
#[derive(Debug)]
pub struct Outcome {
    /// The driver's exit status; negative: the signal that killed the driver.
    pub status: i32,
    /// What came on the driver's stdout.
    pub stdout: Vec<u8>,
    /// What came on the driver's stderr.
    pub stderr: Vec<u8>,
    /// The JSON report, if one was written.
    pub report: Option<Report>,
    /// From start to end of the driver.
    pub took: Duration,
    /// The driver's largest resident set, in KiB.
    pub driver_peak_kib: u64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "exit status {} after {:?}", self.status, self.took)?;
        for (name, bytes) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            let text = String::from_utf8_lossy(bytes);
            let short: String = text.chars().take(2000).collect();
            writeln!(f, "--- {name}, {} bytes ---\n{short}", bytes.len())?;
        }
        let report = self.report.as_ref().map(serde_json::to_string);
        match report {
            Some(Ok(text)) => writeln!(f, "--- report ---\n{text}"),
            Some(Err(error)) => writeln!(f, "--- report --- {error}"),
            None => writeln!(f, "--- no report ---"),
        }
    }
}

impl Outcome {
    /// Stdout as text, without the last line break.
    #[track_caller]
    pub fn text(&self) -> &str {
        let text = std::str::from_utf8(&self.stdout);
        text.unwrap_or_else(|_| panic!("stdout is not UTF-8: {self}")).trim_end_matches('\n')
    }

    /// Stderr as text, without the last line break.
    #[track_caller]
    pub fn complaint(&self) -> &str {
        let text = std::str::from_utf8(&self.stderr);
        text.unwrap_or_else(|_| panic!("stderr is not UTF-8: {self}")).trim_end_matches('\n')
    }

    /// The report, which must be there.
    #[track_caller]
    pub fn report(&self) -> &Report {
        self.report.as_ref().unwrap_or_else(|| panic!("a report was expected: {self}"))
    }

    /// Why the job ended.
    #[track_caller]
    pub fn cause(&self) -> Cause {
        self.report().cause
    }

    /// Whether the job ran into this limit.
    #[track_caller]
    pub fn hit(&self, limit: &str) -> bool {
        self.report().limits_hit.iter().any(|hit| hit == limit)
    }

    /// CPU time of the whole tree.
    #[track_caller]
    pub fn cpu(&self) -> Duration {
        let usage = &self.report().usage;
        let parts = usage.cpu_user_us.zip(usage.cpu_system_us);
        let (user, system) = parts.unwrap_or_else(|| panic!("CPU time is unknown: {self}"));
        Duration::from_micros(user + system)
    }

    /// Counts of the one stream both of the job's streams went to.
    #[track_caller]
    pub fn combined(&self) -> StreamReport {
        self.report().output.combined.unwrap_or_else(|| panic!("no combined stream: {self}"))
    }

    /// One layer of the report.
    #[track_caller]
    pub fn layer(&self, layer: Layer) -> &LayerReport {
        let found = self.report().layers.iter().find(|one| one.name == layer);
        found.unwrap_or_else(|| panic!("layer {layer} is not in the report: {self}"))
    }

    /// Whether a layer holds, by its own means or by a substitute. One that is neither must say why.
    #[track_caller]
    pub fn holds(&self, layer: Layer) -> bool {
        let report = self.layer(layer);
        match report.state {
            LayerState::Enforced | LayerState::Substituted => true,
            LayerState::Absent => {
                assert!(report.reason.is_some() && report.remedy.is_some(), "{layer} says no why: {self}");
                false
            }
            LayerState::Skipped => panic!("nobody asked to skip {layer}: {self}"),
        }
    }

    /// The version of Landlock that is in force: older kernels restrict less, and the tests
    /// expect exactly that less of them.
    #[track_caller]
    pub fn landlock_abi(&self) -> u32 {
        let by = self.layer(Layer::Landlock).by.as_deref().and_then(|by| by.strip_prefix("ABI "));
        by.and_then(|abi| abi.parse().ok()).unwrap_or_else(|| panic!("Landlock is not in force: {self}"))
    }

    /// Fails unless the job exited with `code` by itself and the machine was put back.
    #[track_caller]
    pub fn expect_exit(self, code: i32) -> Outcome {
        let report = self.report();
        let exited = report.cause == Cause::Exited && report.exit_code == Some(code);
        assert!(exited && self.status == code, "the job should have exited with {code}: {self}");
        self.expect_restored()
    }

    /// Fails unless the job exited with 0 having met no limit.
    #[track_caller]
    pub fn expect_clean(self) -> Outcome {
        assert!(self.report().limits_hit.is_empty(), "the job should have met no limit: {self}");
        self.expect_exit(0)
    }

    /// Fails unless the job was ended by this limit, and exit status and report say so.
    #[track_caller]
    pub fn expect_limit(self, cause: Cause, limit: &str) -> Outcome {
        let ended = self.cause() == cause && self.status == 124;
        assert!(ended, "{} with exit status 124 was expected: {self}", cause.name());
        assert!(self.hit(limit), "limits_hit should name {limit}: {self}");
        self.expect_restored()
    }

    /// Fails unless the job was started: a sandbox that could not be set up refuses everything.
    #[track_caller]
    pub fn expect_started(self) -> Outcome {
        let started = ![Cause::SetupFailed, Cause::InternalError].contains(&self.cause());
        assert!(started, "the job should have been started: {self}");
        self
    }

    /// Fails unless the report says that the machine was put back.
    #[track_caller]
    pub fn expect_restored(self) -> Outcome {
        let restore = &self.report().restore;
        let restored = restore.state == RestoreState::Restored && restore.leftovers.is_empty();
        assert!(restored, "the machine was not put back: {self}");
        self
    }

    /// Fails unless the driver refused: exit status 125, nothing on stdout, and on stderr one
    /// sentence with each of `words`.
    #[track_caller]
    pub fn expect_refusal(self, words: &[&str]) -> Outcome {
        assert!(self.status == 125, "exit status 125 was expected: {self}");
        assert!(self.stdout.is_empty(), "nothing should be on stdout: {self}");
        let sentence = self.complaint();
        assert!(!sentence.is_empty(), "one sentence should be on stderr: {self}");
        assert!(sentence.lines().count() == 1, "one sentence should be on stderr, not more: {self}");
        for word in words {
            assert!(sentence.contains(word), "the sentence should name {word}: {self}");
        }
        self
    }
}
