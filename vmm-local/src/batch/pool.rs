//! Machines that take job after job, and the jobs that wait for them.

use std::collections::VecDeque;
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::jobs::Job;
use super::result::{Collector, JobResult};
use super::worker::{conclude, Worker};
use crate::backend::Backend;
use crate::cancel::Cancel;
use crate::session::{Deadlines, Outcome};

/// For how long one machine is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Jobs that it takes at most.
    pub(super) jobs: u32,
    /// Older than this it takes no other job.
    pub(super) age: Duration,
}

/// What all machines of a batch have in common.
#[derive(Debug)]
pub(super) struct Pool<'a> {
    pub(super) backend: &'a dyn Backend,
    pub(super) deadlines: Deadlines,
    pub(super) cancel: &'a Cancel,
    pub(super) machines: usize,
    pub(super) bounds: Bounds,
}

impl Pool<'_> {
    /// Runs all jobs; `done` is told of each as it ends, once. Jobs that were never begun because
    /// the caller cancelled are not told of.
    pub(super) fn run(&self, jobs: &[Job], mut done: impl FnMut(JobResult)) {
        let queue = Queue::new(jobs.len(), self.machines);
        let (tx, rx) = mpsc::channel();
        std::thread::scope(|scope| {
            for number in 0..self.machines {
                let (tx, queue) = (tx.clone(), &queue);
                scope.spawn(move || self.work(number, jobs, queue, &tx));
            }
            drop(tx);
            rx.iter().for_each(&mut done);
        });
    }

    /// One machine's share: the next job that waits, again and again.
    fn work(&self, number: usize, jobs: &[Job], queue: &Queue, results: &Sender<JobResult>) {
        let mut worker = Worker::new(self, number);
        while let Some(mut next) = queue.take(self.cancel) {
            let Some(job) = jobs.get(next.index) else { break };
            let result = match worker.grade(job, &mut next.lost, queue) {
                Ok(result) => result,
                Err(_) if self.cancel.is_cancelled() => break,
                // Others may have machines, and take this job and those that still wait.
                Err(_) if queue.retire(&mut next) => break,
                Err(fault) => conclude(job, Outcome::of(fault), &Collector::default(), next.lost),
            };
            if results.send(result).is_err() {
                break;
            }
        }
    }
}

/// A job that waits for a machine.
#[derive(Debug, Default)]
struct Waiting {
    index: usize,
    /// What a machine that was lost under it said, or did not.
    lost: Option<String>,
}

/// The jobs that wait, in their order, and how many workers there are to take them.
#[derive(Debug)]
pub(super) struct Queue(Mutex<(VecDeque<Waiting>, usize)>);

impl Queue {
    fn new(jobs: usize, workers: usize) -> Queue {
        let waiting = (0..jobs).map(|index| Waiting { index, lost: None });
        Queue(Mutex::new((waiting.collect(), workers)))
    }

    fn lock(&self) -> MutexGuard<'_, (VecDeque<Waiting>, usize)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; none, and the worker has left.
    fn take(&self, cancel: &Cancel) -> Option<Waiting> {
        let (waiting, workers) = &mut *self.lock();
        let next = if cancel.is_cancelled() { None } else { waiting.pop_front() };
        *workers -= usize::from(next.is_none());
        next
    }

    /// Gives a job back, to be the next, and leaves; false, and nothing is done, if nobody would be left to take it.
    fn retire(&self, job: &mut Waiting) -> bool {
        let (waiting, workers) = &mut *self.lock();
        if *workers < 2 {
            return false;
        }
        waiting.push_front(std::mem::take(job));
        *workers -= 1;
        true
    }

    /// Whether a job waits.
    pub(super) fn has_more(&self) -> bool {
        !self.lock().0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{BackendError, Name, Peer};
    use crate::session::fake::{deadlines, Guest};
    use autodriver_protocol::{Cause, Kind};
    use std::collections::HashSet;
    use std::fs;
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Machines of this process: each connection is a thread that follows the script.
    #[derive(Debug)]
    struct Fakes {
        script: fn(&mut Guest) -> io::Result<()>,
        made: Mutex<HashSet<String>>,
        connections: AtomicUsize,
        /// Names of machines that cannot be made start with this.
        broken: Option<String>,
    }

    impl Fakes {
        fn new(script: fn(&mut Guest) -> io::Result<()>) -> Fakes {
            Fakes { script, made: Mutex::default(), connections: AtomicUsize::new(0), broken: None }
        }
    }

    impl Backend for Fakes {
        fn create(&self, machine: &Name) -> Result<(), BackendError> {
            if self.broken.as_ref().is_some_and(|broken| machine.to_string().starts_with(broken)) {
                return Err(BackendError("no node".to_owned()));
            }
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

    const UNBOUNDED: Bounds = Bounds { jobs: u32::MAX, age: Duration::MAX };

    fn results(backend: &Fakes, machines: usize, jobs: usize, cancel: &Cancel) -> Vec<JobResult> {
        results_within(UNBOUNDED, backend, machines, jobs, cancel)
    }

    fn results_within(
        bounds: Bounds,
        backend: &Fakes,
        machines: usize,
        jobs: usize,
        cancel: &Cancel,
    ) -> Vec<JobResult> {
        let directory = tempfile::tempdir().unwrap();
        for number in 0..jobs {
            let job = directory.path().join(format!("job-{number:03}"));
            fs::create_dir(&job).unwrap();
            fs::write(job.join("Makefile"), "all:").unwrap();
        }
        let jobs = super::super::jobs::find(directory.path(), None).unwrap();
        let pool = Pool { backend, deadlines: deadlines(), cancel, machines, bounds };
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

    /// Gone in the middle of its first job.
    fn fatal(guest: &mut Guest) -> io::Result<()> {
        guest.greet()?;
        guest.until(Kind::Open)?;
        guest.send(Kind::Opened, 1, b"")?;
        guest.until(Kind::Put).map(drop)
    }

    /// Gone after the report of its first job.
    fn unclosed(guest: &mut Guest) -> io::Result<()> {
        guest.greet()?;
        until_reported(guest, 1)?;
        guest.until(Kind::Close).map(drop)
    }

    fn one(guest: &mut Guest, job: u32) -> io::Result<()> {
        until_reported(guest, job)?;
        guest.close(job)
    }

    fn until_reported(guest: &mut Guest, job: u32) -> io::Result<()> {
        guest.until(Kind::Open)?;
        guest.send(Kind::Opened, job, b"")?;
        while guest.next()? != (Kind::Put, Vec::new()) {}
        guest.send(Kind::PutDone, job, br#"{"entries": 1, "bytes": 4}"#)?;
        guest.until(Kind::Run)?;
        guest.send(Kind::Started, job, b"")?;
        guest.send(Kind::Output, job, b"{\"scores\": {\"p\": 1}}\n")?;
        guest.report(job, Cause::Exited)
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

    /// How often it was begun, as its notes say.
    fn was_begun_twice(result: &JobResult) -> bool {
        result.outcome.notes.iter().any(|note| note.starts_with("begun again"))
    }

    #[test]
    fn a_job_whose_machine_is_lost_is_begun_once_more_elsewhere_and_says_so() {
        let (backend, cancel) = (Fakes::new(treacherous), Cancel::new().unwrap());
        let results = results(&backend, 1, 6, &cancel);
        assert_eq!(results.len(), 6);
        assert!(results.iter().all(JobResult::is_well));
        let twice: Vec<bool> = results.iter().map(was_begun_twice).collect();
        assert_eq!(twice, [false, true, true, true, true, true]);
        assert_eq!(backend.connections.load(Ordering::Relaxed), 6);
    }

    #[test]
    fn a_job_that_loses_every_machine_is_begun_twice_and_no_more() {
        let (backend, cancel) = (Fakes::new(fatal), Cancel::new().unwrap());
        let results = results(&backend, 1, 3, &cancel);
        assert!(results.iter().all(|result| !result.is_well() && was_begun_twice(result)));
        assert_eq!((results.len(), backend.connections.load(Ordering::Relaxed)), (3, 6));
    }

    #[test]
    fn a_job_that_nobody_can_close_is_begun_once_more() {
        let (backend, cancel) = (Fakes::new(unclosed), Cancel::new().unwrap());
        let results = results(&backend, 1, 1, &cancel);
        assert!(!results[0].is_well() && was_begun_twice(&results[0]), "{results:?}");
    }

    #[test]
    fn a_machine_takes_so_many_jobs_and_its_successor_is_made_ahead() {
        let (backend, cancel) = (Fakes::new(sound), Cancel::new().unwrap());
        let bounds = Bounds { jobs: 4, ..UNBOUNDED };
        let results = results_within(bounds, &backend, 1, 12, &cancel);
        assert!(results.iter().all(JobResult::is_well));
        assert_eq!(backend.connections.load(Ordering::Relaxed), 3, "none after the last job");
    }

    #[test]
    fn a_machine_that_is_too_old_takes_no_other_job() {
        let (backend, cancel) = (Fakes::new(sound), Cancel::new().unwrap());
        let bounds = Bounds { age: Duration::ZERO, ..UNBOUNDED };
        let results = results_within(bounds, &backend, 1, 5, &cancel);
        assert!(results.iter().all(JobResult::is_well));
        assert_eq!(backend.connections.load(Ordering::Relaxed), 5);
    }

    #[test]
    fn a_worker_without_machines_leaves_the_jobs_to_those_that_have_some() {
        let broken = Some(format!("batch-{}-0-", std::process::id()));
        let (backend, cancel) = (Fakes { broken, ..Fakes::new(sound) }, Cancel::new().unwrap());
        let results = results(&backend, 2, 20, &cancel);
        assert_eq!(results.len(), 20);
        assert!(results.iter().all(JobResult::is_well));
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
