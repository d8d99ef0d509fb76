//! One machine at a time, and the jobs that it takes. A machine that is lost, poisoned or spent is replaced.

use std::fs;
use std::time::Instant;

use super::jobs::{Job, REPORT};
use super::pool::{Bounds, Pool, Queue};
use super::result::{Collector, JobResult};
use crate::backend::Name;
use crate::session::{perform, Assignment, Connection, Fault, Outcome, Step, Verdict};
use crate::text;

/// How many machines in a row may fail to come up.
const FAILURES_MAX: u32 = 3;

/// A machine, and its use so far.
pub(super) struct Machine {
    name: Name,
    connection: Connection,
    made: Instant,
    jobs: u32,
}

impl Machine {
    fn is_spent(&self, bounds: Bounds) -> bool {
        self.jobs >= bounds.jobs || self.made.elapsed() >= bounds.age
    }
}

impl Pool<'_> {
    fn make(&self, name: &str) -> Result<Machine, Fault> {
        let Pool { backend, deadlines, cancel, .. } = *self;
        let failed = |error| Fault::here(Step::Connect, &error);
        let name: Name = name.parse().map_err(failed)?;
        backend.create(&name).map_err(failed)?;
        match Connection::reach(backend, &name, deadlines, cancel) {
            Ok(connection) => Ok(Machine { name, connection, made: Instant::now(), jobs: 0 }),
            Err(fault) => {
                // The fault that matters is the first.
                let _ = backend.destroy(&name);
                Err(fault)
            }
        }
    }

    fn destroy(&self, machine: Machine) {
        drop(machine.connection);
        // A machine that cannot be destroyed does not change any verdict.
        let _ = self.backend.destroy(&machine.name);
    }
}

/// Takes jobs, one after the other. Its machines go when it does.
pub(super) struct Worker<'a> {
    pool: &'a Pool<'a>,
    number: usize,
    /// Machines asked for so far.
    asked: u32,
    machine: Option<Machine>,
    /// Made ahead, to follow a machine that is in its last job.
    spare: Option<Machine>,
    /// Why no more machines are asked for.
    failure: Option<Fault>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(pool: &'a Pool<'a>, number: usize) -> Worker<'a> {
        Worker { pool, number, asked: 0, machine: None, spare: None, failure: None }
    }

    /// What became of a job. If a machine was lost under it, which `lost` tells of, it begins once more.
    ///
    /// # Errors
    /// There is no machine to be had.
    pub(super) fn grade(
        &mut self,
        job: &Job,
        lost: &mut Option<String>,
        queue: &Queue,
    ) -> Result<JobResult, Fault> {
        let assignment = match &job.assignment {
            Ok(assignment) => assignment,
            Err(fault) => return Ok(JobResult::new(job, Outcome::of(fault.clone()), None)),
        };
        loop {
            let (keep, split) = (job.keep.as_deref(), assignment.document.split);
            let mut collector = match Collector::new(keep, split, job.tail.as_ref()) {
                Ok(collector) => collector,
                Err(error) => {
                    let fault = Fault::here(Step::Prepare, &format!("--out: {error}"));
                    return Ok(JobResult::new(job, Outcome::of(fault), None));
                }
            };
            let outcome = self.run(assignment, &mut collector, queue)?;
            if lost.is_some() || !outcome.machine_is_lost || self.pool.cancel.is_cancelled() {
                return Ok(conclude(job, outcome, &collector, lost.take()));
            }
            *lost = Some(outcome.verdict.line());
        }
    }

    /// Runs a job; once more if the machine was one that had gone while it was idle.
    fn run(
        &mut self,
        assignment: &Assignment,
        collector: &mut Collector,
        queue: &Queue,
    ) -> Result<Outcome, Fault> {
        let was_idle = self.machine.is_some();
        let outcome = self.attempt(assignment, collector, queue)?;
        match &outcome.verdict {
            Verdict::Fault(Fault { step: Step::Open, lost: true, .. }) if was_idle => {
                self.attempt(assignment, collector, queue)
            }
            _ => Ok(outcome),
        }
    }

    fn attempt(
        &mut self,
        assignment: &Assignment,
        collector: &mut Collector,
        queue: &Queue,
    ) -> Result<Outcome, Fault> {
        let mut machine = self.machine()?;
        machine.jobs += 1;
        let is_last = machine.jobs >= self.pool.bounds.jobs && queue.has_more();
        let next = is_last.then(|| self.next_name());
        let pool = self.pool;
        let (outcome, spare) = std::thread::scope(|scope| {
            let maker = next.map(|name| scope.spawn(move || pool.make(&name)));
            let sink = &mut |stream, bytes: &[u8]| collector.take(stream, bytes);
            let outcome = perform(&mut machine.connection, assignment, sink);
            // One that did not come up is asked for again when it is needed.
            (outcome, maker.and_then(|maker| maker.join().ok()?.ok()))
        });
        self.spare = spare;
        match outcome.machine_is_sound {
            true => self.machine = Some(machine),
            false => pool.destroy(machine),
        }
        Ok(outcome)
    }

    /// A machine that can take a job: the one at hand, the one made ahead, or a new one.
    fn machine(&mut self) -> Result<Machine, Fault> {
        match self.machine.take() {
            Some(spent) if spent.is_spent(self.pool.bounds) => self.pool.destroy(spent),
            Some(machine) => return Ok(machine),
            None => {}
        }
        if let Some(spare) = self.spare.take() {
            return Ok(spare);
        }
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let mut failures = 0;
        loop {
            let name = self.next_name();
            match self.pool.make(&name) {
                Err(_) if failures + 1 < FAILURES_MAX && !self.pool.cancel.is_cancelled() => failures += 1,
                made => return made.inspect_err(|fault| self.failure = Some(fault.clone())),
            }
        }
    }

    fn next_name(&mut self) -> String {
        self.asked += 1;
        format!("batch-{}-{}-{}", std::process::id(), self.number, self.asked)
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        [self.machine.take(), self.spare.take()]
            .into_iter()
            .flatten()
            .for_each(|machine| self.pool.destroy(machine));
    }
}

/// The result, with its report beside the output, and a note of a machine that was `lost` under the job before.
pub(super) fn conclude(
    job: &Job,
    mut outcome: Outcome,
    collector: &Collector,
    lost: Option<String>,
) -> JobResult {
    if let Some(keep) = &job.keep {
        let text = text::json(&outcome.verdict.to_report()).unwrap_or_default();
        if let Err(error) = fs::write(keep.join(REPORT), text) {
            outcome.notes.push(format!("cannot keep the report: {error}"));
        }
    }
    outcome.notes.extend(lost.map(|why| format!("begun again, since a machine was lost under it: {why}")));
    JobResult::new(job, outcome, collector.scores())
}
