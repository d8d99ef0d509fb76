//! Machines that take job after job. A machine that fails, or is poisoned, is replaced.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};

use super::jobs::Job;
use super::result::{Collector, JobResult};
use crate::backend::{Backend, Name};
use crate::cancel::Cancel;
use crate::session::{perform, Assignment, Connection, Deadlines, Fault, Outcome, Step, Verdict};
use crate::text;

/// How often in a row a machine may fail to come up before its remaining jobs are given up.
const ATTEMPTS: u32 = 3;

/// What all machines of a batch have in common.
#[derive(Debug)]
pub(super) struct Pool<'a> {
    pub(super) backend: &'a dyn Backend,
    pub(super) deadlines: Deadlines,
    pub(super) cancel: &'a Cancel,
    pub(super) machines: usize,
}

impl Pool<'_> {
    /// Runs all jobs; `done` is told of each as it ends. Jobs that were never begun because
    /// the caller cancelled are not told of.
    pub(super) fn run(&self, jobs: &[Job], mut done: impl FnMut(JobResult)) {
        let next = AtomicUsize::new(0);
        let (tx, rx) = mpsc::channel();
        std::thread::scope(|scope| {
            for number in 0..self.machines {
                let (tx, next) = (tx.clone(), &next);
                scope.spawn(move || self.work(number, jobs, next, &tx));
            }
            drop(tx);
            rx.iter().for_each(&mut done);
        });
    }

    /// One machine's share: the next job that nobody has begun, again and again.
    fn work(&self, number: usize, jobs: &[Job], next: &AtomicUsize, results: &Sender<JobResult>) {
        let mut worker = Worker { pool: self, number, machine: None, failures: 0 };
        while !self.cancel.is_cancelled() {
            let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            let result = worker.grade(job);
            if results.send(result).is_err() {
                break;
            }
        }
        worker.discard();
    }
}

struct Worker<'a> {
    pool: &'a Pool<'a>,
    number: usize,
    machine: Option<(Name, Connection)>,
    failures: u32,
}

impl Worker<'_> {
    fn grade(&mut self, job: &Job) -> JobResult {
        let failed = |fault| JobResult::new(job, Outcome::of(fault), None);
        let assignment = match &job.assignment {
            Ok(assignment) => assignment,
            Err(fault) => return failed(fault.clone()),
        };
        let mut collector = match Collector::new(job.keep.as_deref(), assignment.document.split) {
            Ok(collector) => collector,
            Err(error) => return failed(Fault::here(Step::Prepare, &format!("--out: {error}"))),
        };
        let mut outcome = self.run(assignment, &mut collector);
        if let Some(keep) = &job.keep {
            let text = text::json(&outcome.verdict.to_report()).unwrap_or_default();
            if let Err(error) = fs::write(keep.join("report.json"), text) {
                outcome.notes.push(format!("cannot keep the report: {error}"));
            }
        }
        JobResult::new(job, outcome, collector.scores())
    }

    fn run(&mut self, assignment: &Assignment, collector: &mut Collector) -> Outcome {
        let used = self.machine.is_some();
        let outcome = self.attempt(assignment, collector);
        match &outcome.verdict {
            // It went while it was idle: this job has not begun, so it can begin elsewhere.
            Verdict::Fault(Fault { step: Step::Open, lost: true, .. }) if used => {
                self.attempt(assignment, collector)
            }
            _ => outcome,
        }
    }

    fn attempt(&mut self, assignment: &Assignment, collector: &mut Collector) -> Outcome {
        let connection = match self.connection() {
            Ok(connection) => connection,
            Err(fault) => return Outcome::of(fault),
        };
        let outcome = perform(connection, assignment, &mut |stream, bytes| collector.take(stream, bytes));
        if !outcome.machine_is_sound {
            self.discard();
        }
        outcome
    }

    fn connection(&mut self) -> Result<&mut Connection, Fault> {
        if self.machine.is_none() && self.failures >= ATTEMPTS {
            let why = format!("not run: {ATTEMPTS} machines in a row could not be reached");
            return Err(Fault::here(Step::Connect, &why));
        }
        let machine = match self.machine.take() {
            Some(machine) => machine,
            None => self.make().inspect_err(|_| self.failures += 1)?,
        };
        self.failures = 0;
        Ok(&mut self.machine.insert(machine).1)
    }

    fn make(&self) -> Result<(Name, Connection), Fault> {
        let Pool { backend, deadlines, cancel, .. } = *self.pool;
        let name = format!("batch-{}-{}", std::process::id(), self.number);
        let name: Name = name.parse().map_err(|error| Fault::here(Step::Connect, &error))?;
        backend.create(&name).map_err(|error| Fault::here(Step::Connect, &error))?;
        match Connection::reach(backend, &name, deadlines, cancel) {
            Ok(connection) => Ok((name, connection)),
            Err(fault) => {
                // The fault that matters is the first.
                let _ = backend.destroy(&name);
                Err(fault)
            }
        }
    }

    fn discard(&mut self) {
        if let Some((name, connection)) = self.machine.take() {
            drop(connection);
            // A machine that cannot be destroyed does not change any verdict.
            let _ = self.pool.backend.destroy(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{BackendError, Peer};
    use crate::session::fake::{deadlines, Guest};
    use autodriver_protocol::{Cause, Kind};
    use std::collections::HashSet;
    use std::io;
    use std::sync::Mutex;

    /// Machines of this process: each connection is a thread that follows the script.
    #[derive(Debug)]
    struct Fakes {
        script: fn(&mut Guest) -> io::Result<()>,
        made: Mutex<HashSet<String>>,
        connections: AtomicUsize,
    }

    impl Fakes {
        fn new(script: fn(&mut Guest) -> io::Result<()>) -> Fakes {
            Fakes { script, made: Mutex::default(), connections: AtomicUsize::new(0) }
        }
    }

    impl Backend for Fakes {
        fn create(&self, machine: &Name) -> Result<(), BackendError> {
            assert!(self.made.lock().unwrap().insert(machine.to_string()), "made twice");
            Ok(())
        }

        fn connect(&self, _machine: &Name) -> Result<Peer, BackendError> {
            self.connections.fetch_add(1, Ordering::Relaxed);
            let (mut guest, peer) = Guest::and_peer();
            let script = self.script;
            std::thread::spawn(move || script(&mut guest).ok());
            Ok(peer)
        }

        fn destroy(&self, machine: &Name) -> Result<(), BackendError> {
            self.made.lock().unwrap().remove(machine.as_ref().to_str().unwrap());
            Ok(())
        }
    }

    fn results(backend: &Fakes, machines: usize, jobs: usize, cancel: &Cancel) -> Vec<JobResult> {
        let directory = tempfile::tempdir().unwrap();
        for number in 0..jobs {
            let job = directory.path().join(format!("job-{number:03}"));
            fs::create_dir(&job).unwrap();
            fs::write(job.join("Makefile"), "all:").unwrap();
        }
        let jobs = super::super::jobs::find(directory.path(), None).unwrap();
        let pool = Pool { backend, deadlines: deadlines(), cancel, machines };
        let mut results = Vec::new();
        pool.run(&jobs, |result| results.push(result));
        assert!(backend.made.lock().unwrap().is_empty(), "every machine was destroyed");
        results
    }

    /// Job after job, until the host leaves.
    fn sound(guest: &mut Guest) -> io::Result<()> {
        guest.greet()?;
        (1..).try_for_each(|job| one(guest, job))
    }

    /// One job, then gone.
    fn brittle(guest: &mut Guest) -> io::Result<()> {
        guest.greet()?;
        one(guest, 1)
    }

    /// One job, then gone when the next one has begun.
    fn treacherous(guest: &mut Guest) -> io::Result<()> {
        brittle(guest)?;
        guest.until(Kind::Open)?;
        guest.send(Kind::Opened, 2, b"")?;
        guest.until(Kind::Put).map(drop)
    }

    fn one(guest: &mut Guest, job: u32) -> io::Result<()> {
        guest.until(Kind::Open)?;
        guest.send(Kind::Opened, job, b"")?;
        while guest.next()? != (Kind::Put, Vec::new()) {}
        guest.send(Kind::PutDone, job, br#"{"entries": 1, "bytes": 4}"#)?;
        guest.until(Kind::Run)?;
        guest.send(Kind::Started, job, b"")?;
        guest.send(Kind::Output, job, b"{\"scores\": {\"p\": 1}}\n")?;
        guest.report(job, Cause::Exited)?;
        guest.close(job)
    }

    #[test]
    fn every_job_ends_once_on_one_connection_each_machine() {
        let (backend, cancel) = (Fakes::new(sound), Cancel::new().unwrap());
        let results = results(&backend, 3, 40, &cancel);
        let seen: HashSet<usize> = results.iter().map(|result| result.index).collect();
        assert_eq!((results.len(), seen.len()), (40, 40));
        assert!(results.iter().all(|result| result.is_well() && result.scores.is_some()));
        assert!(backend.connections.load(Ordering::Relaxed) <= 3);
    }

    #[test]
    fn a_machine_that_is_lost_costs_one_job_and_is_replaced() {
        let (backend, cancel) = (Fakes::new(treacherous), Cancel::new().unwrap());
        let results = results(&backend, 1, 6, &cancel);
        let well: Vec<bool> = results.iter().map(JobResult::is_well).collect();
        assert_eq!(well, [true, false, true, false, true, false]);
    }

    #[test]
    fn a_machine_that_goes_between_jobs_costs_none() {
        let (backend, cancel) = (Fakes::new(brittle), Cancel::new().unwrap());
        assert!(results(&backend, 2, 6, &cancel).iter().all(JobResult::is_well));
        assert_eq!(backend.connections.load(Ordering::Relaxed), 6);
    }

    #[test]
    fn machines_that_never_come_up_are_given_up_and_every_job_is_told_so() {
        let (backend, cancel) = (Fakes::new(|_| Ok(())), Cancel::new().unwrap());
        let results = results(&backend, 1, 9, &cancel);
        assert_eq!(results.len(), 9);
        assert!(results.iter().all(|result| result.outcome.verdict.exit_code() == 125));
        assert_eq!(backend.connections.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_cancelled_batch_begins_nothing_more() {
        let (backend, cancel) = (Fakes::new(sound), Cancel::new().unwrap());
        cancel.cancel();
        assert!(results(&backend, 2, 5, &cancel).is_empty());
    }
}
