//! The jobs of an attack: the attacker, an accomplice before or beside it, the witness after.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use attacks::{Attack, Control, Form, Role};
use autodriver_protocol::job::{EnvVar, Input, Output};
use autodriver_protocol::layer::Requirement;
use autodriver_protocol::{Layer, Options};

use super::judge::{Evidence, Judgement};
use super::{ConformanceError, Controlled};
use crate::backend::{Backend, Name};
use crate::cancel::Cancel;
use crate::session::{perform, Assignment, Connection, Deadlines, Fault, Outcome, Step};

/// This program, which the job runs as a copy.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// Its name in the job directory.
const PROGRAM: &str = "attack";
/// The end of what a job prints that is kept: more than any attack says of itself.
const OUTPUT_KEPT: usize = 256 << 10;
/// How long an accomplice may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// A machine that is attacked.
pub(super) struct Bench<'a> {
    backend: &'a dyn Backend,
    machine: Name,
    deadlines: Deadlines,
    cancel: &'a Cancel,
    require: &'a [Requirement],
    connection: Option<Connection>,
    /// What the first witness saw.
    before: String,
}

/// One job's end, and the end of its output.
#[derive(Debug)]
pub(super) struct Played {
    pub(super) outcome: Outcome,
    pub(super) output: String,
}

impl<'a> Bench<'a> {
    /// Makes the machine, and asks the first witness.
    pub(super) fn new(
        backend: &'a dyn Backend,
        deadlines: Deadlines,
        cancel: &'a Cancel,
        require: &'a [Requirement],
    ) -> Result<Bench<'a>, ConformanceError> {
        let machine = format!("conformance-{}", std::process::id());
        let machine: Name = machine.parse().map_err(|error| ConformanceError(format!("{error}")))?;
        backend.create(&machine).map_err(|error| ConformanceError(error.to_string()))?;
        let mut bench =
            Bench { backend, machine, deadlines, cancel, require, connection: None, before: String::new() };
        match bench.witness() {
            Ok(seen) => bench.before = seen,
            Err(why) => {
                bench.finish()?;
                return Err(ConformanceError(format!("an innocent job cannot be run here: {why}")));
            }
        }
        Ok(bench)
    }

    /// Destroys the machine.
    pub(super) fn finish(&mut self) -> Result<(), ConformanceError> {
        self.connection = None;
        self.backend.destroy(&self.machine).map_err(|error| ConformanceError(error.to_string()))
    }

    /// Runs an attack with every layer, and looks at what it did.
    pub(super) fn try_out(&mut self, attack: &'static Attack) -> Judgement {
        self.judge(attack, attack.options, Vec::new())
    }

    /// The controls of an attack: without anything that stops it, then with one layer at a time.
    pub(super) fn controls(&mut self, attack: &'static Attack) -> Vec<Controlled> {
        if let Control::With(options) = attack.control {
            return vec![Controlled { alone: None, judgement: self.judge(attack, options, Vec::new()) }];
        }
        let one_by_one = attack.stopped_by.iter().filter(|_| attack.stopped_by.len() > 1).copied().map(Some);
        let variants = std::iter::once(None).chain(one_by_one);
        let variants = variants.filter_map(|alone| Some((alone, attack.left_out(alone)?)));
        let judge = |(alone, skip)| {
            let judgement = self.judge(attack, attack.options, skip);
            Controlled { alone, judgement }
        };
        variants.map(judge).collect()
    }

    /// Runs an attack with the document `options` and without the layers in `skip`.
    fn judge(&mut self, attack: &'static Attack, options: &str, skip: Vec<Layer>) -> Judgement {
        let fetched = match tempfile::tempdir() {
            Ok(folder) => folder,
            Err(error) => {
                return Judgement::impossible(&format!("no directory for what is copied out: {error}"))
            }
        };
        let base = match Options::from_json(options.as_bytes()) {
            Ok(options) => Options { skip, ..options },
            Err(error) => return Judgement::impossible(&error.to_string()),
        };
        let dest = fetched.path().to_string_lossy().into_owned();
        let outputs = attack.out.map(|glob| Output { glob: glob.to_owned(), dest }).into_iter().collect();
        let accomplice = self.program(attack.name, Role::Accomplice).over(base.clone());
        let attacker = Options { outputs, ..self.program(attack.name, Role::Attacker).over(base) };
        let (first, second) = match attack.form {
            Form::Alone => (None, self.play(attacker)),
            Form::After => (Some(self.play(accomplice)), self.play(attacker)),
            Form::Beside => self.play_beside(accomplice, attacker),
        };
        let after = self.witness();
        let evidence = Evidence {
            attack,
            accomplice: first.as_ref(),
            attacker: &second,
            before: &self.before,
            after: after.as_deref(),
            fetched: fetched.path(),
        };
        evidence.judge()
    }

    /// A copy of this program that makes the attempt `name`.
    fn program(&self, name: &str, role: Role) -> Options {
        let role = match role {
            Role::Attacker => "attacker",
            Role::Accomplice => "accomplice",
        };
        Options {
            command: [&format!("./{PROGRAM}"), "attack", name].map(str::to_owned).to_vec(),
            inputs: vec![Input { src: OWN_PROGRAM.to_owned(), dest: Some(PROGRAM.to_owned()) }],
            env: vec![EnvVar(attacks::ROLE.to_owned(), role.to_owned())],
            require: self.require.to_vec(),
            ..Options::default()
        }
    }

    /// What an innocent job sees, or why there is none.
    fn witness(&mut self) -> Result<String, String> {
        let played = self.play(self.program(attacks::WITNESS, Role::Attacker));
        match played.outcome.verdict.exit_code() {
            0 => Ok(played.output),
            _ => Err(played.outcome.verdict.line()),
        }
    }

    /// One job on the machine's first connection, which is made anew if it is over.
    fn play(&mut self, options: Options) -> Played {
        let connection = match self.connection.take().filter(|connection| !connection.is_over()) {
            Some(connection) => Ok(connection),
            None => Connection::reach(self.backend, &self.machine, self.deadlines, self.cancel),
        };
        match connection {
            Ok(connection) => play_on(self.connection.insert(connection), options, &mut |_| ()),
            Err(fault) => Played { outcome: Outcome::of(fault), output: String::new() },
        }
    }

    /// The accomplice on a connection of its own; the attacker once it is ready, or has ended.
    fn play_beside(&mut self, accomplice: Options, attacker: Options) -> (Option<Played>, Played) {
        let enough = match Cancel::new() {
            Ok(cancel) => cancel,
            Err(error) => return (None, Played::failed(&format!("no pipe: {error}"))),
        };
        let (backend, machine, deadlines) = (self.backend, self.machine.clone(), self.deadlines);
        thread::scope(|scope| {
            let (tell, ready) = mpsc::channel();
            let beside = scope.spawn(|| {
                let tell = tell; // dropped at its end, which is as good as a word
                match Connection::reach(backend, &machine, deadlines, &enough) {
                    Ok(mut connection) => play_on(&mut connection, accomplice, &mut |output| {
                        if output.lines().any(|line| line == attacks::READY) {
                            // The attacker may have begun long ago.
                            let _ = tell.send(());
                        }
                    }),
                    Err(fault) => Played { outcome: Outcome::of(fault), output: String::new() },
                }
            });
            let _ = ready.recv_timeout(READY_WITHIN);
            let second = self.play(attacker);
            enough.cancel();
            let first = beside.join().unwrap_or_else(|_| Played::failed("its thread panicked"));
            (Some(first), second)
        })
    }
}

impl Played {
    fn failed(why: &str) -> Played {
        Played { outcome: Outcome::of(Fault::here(Step::Prepare, &why)), output: String::new() }
    }
}

/// One job on a connection; `heard` is told of all the kept output whenever there is more.
fn play_on(connection: &mut Connection, options: Options, heard: &mut dyn FnMut(&str)) -> Played {
    let assignment = match Assignment::new(options) {
        Ok(assignment) => assignment,
        Err(fault) => return Played { outcome: Outcome::of(fault), output: String::new() },
    };
    let mut output = Vec::new();
    let outcome = perform(connection, &assignment, &mut |_, bytes| {
        output.extend_from_slice(bytes);
        if output.len() > 2 * OUTPUT_KEPT {
            output.drain(..output.len() - OUTPUT_KEPT);
        }
        heard(&String::from_utf8_lossy(&output));
        Ok(())
    });
    Played { outcome, output: String::from_utf8_lossy(&output).into_owned() }
}
