//! Is this backend fit to grade on? Every attack of the corpus is run on it, one after another.
//!
//! An attack holds when its job ended as it must, when nothing it printed says that it succeeded,
//! and when the machine is as it was: the restoration that the guest reports, and what a witness -
//! an innocent job right after it - sees, which must be what the first witness saw. The guest is
//! believed no more than for any other job; whether layers hold that it only claims to have is what
//! the attacks are for.
//!
//! A channel between jobs that is known to be open is tried as well, and shown as `open`: it neither
//! holds nor fails. Where something closes it after all, it holds.

mod trial;
mod judge;
mod show;

use std::fmt;

use attacks::Attack;
use autodriver_protocol::Layer;

use crate::backend::BackendOptions;
use crate::cancel::Cancel;
use crate::session::Deadlines;
use judge::Judgement;
use trial::Bench;

/// Exit status when an attack was not stopped.
const EXIT_NOT_FIT: u8 = 1;
/// Exit status when the caller cancelled.
const EXIT_CANCELLED: u8 = 130;

/// What is to be tried.
#[derive(Clone, Debug, clap::Args)]
pub struct ConformanceOptions {
    /// Print one JSON object instead of the table
    #[arg(long)]
    pub json: bool,
    /// Run each attack without the layers that stop it, too: it must succeed. Only on machines
    /// that are thrown away afterwards
    #[arg(long)]
    pub controls: bool,
    /// Run nothing, and name the attacks
    #[arg(long)]
    pub list: bool,
    /// Require less than the minimum of each job, as --require of run does
    #[arg(long, value_name = "LAYER,...", value_delimiter = ',')]
    pub require: Vec<autodriver_protocol::layer::Requirement>,
    /// The attacks (default: all)
    #[arg(value_name = "ATTACK")]
    pub names: Vec<String>,
}

/// Why nothing could be tried: one sentence.
#[derive(Debug)]
pub struct ConformanceError(String);

impl fmt::Display for ConformanceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConformanceError {}

/// What became of one attack.
#[derive(Debug)]
struct Tried {
    attack: &'static Attack,
    judgement: Judgement,
    controls: Vec<Controlled>,
}

/// What became of one control.
#[derive(Debug)]
struct Controlled {
    /// The one layer, of those that stop the attack, that was in force; none: it must succeed.
    alone: Option<Layer>,
    judgement: Judgement,
}

impl Controlled {
    fn is_as_it_must_be(&self) -> bool {
        match self.alone {
            Some(_) => self.judgement.stopped,
            None => self.judgement.succeeded,
        }
    }
}

impl Tried {
    fn is_well(&self) -> bool {
        (self.judgement.holds() || self.judgement.open)
            && self.controls.iter().all(Controlled::is_as_it_must_be)
    }
}

/// Runs the corpus and shows what held. The exit status: 0 when everything did, 130 when cancelled,
/// else 1.
///
/// # Errors
/// An attack that is not in the corpus, a machine that cannot be had.
pub fn run(
    backend: &BackendOptions,
    deadlines: Deadlines,
    options: &ConformanceOptions,
) -> Result<u8, ConformanceError> {
    let attacks = chosen(&options.names)?;
    if options.list {
        show::list(&attacks);
        return Ok(0);
    }
    let cancel =
        Cancel::on_signals().map_err(|error| ConformanceError(format!("cannot handle signals: {error}")))?;
    let backend = backend.build();
    let mut bench = Bench::new(&*backend, deadlines, &cancel, &options.require)?;
    let mut tried = Vec::new();
    for attack in attacks {
        if cancel.is_cancelled() {
            break;
        }
        let judgement = bench.try_out(attack);
        let controls = if options.controls { bench.controls(attack) } else { Vec::new() };
        tried.push(Tried { attack, judgement, controls });
    }
    let destroyed = bench.finish();
    show::results(&tried, options).map_err(|error| ConformanceError(format!("cannot write: {error}")))?;
    destroyed?;
    Ok(match (cancel.is_cancelled(), tried.iter().all(Tried::is_well)) {
        (true, _) => EXIT_CANCELLED,
        (false, true) => 0,
        (false, false) => EXIT_NOT_FIT,
    })
}

fn chosen(names: &[String]) -> Result<Vec<&'static Attack>, ConformanceError> {
    if names.is_empty() {
        return Ok(attacks::all().collect());
    }
    let find = |name: &String| {
        attacks::all().find(|attack| attack.name == name).ok_or_else(|| {
            ConformanceError(format!("there is no attack '{}'; --list names them", name.escape_debug()))
        })
    };
    names.iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attack_that_is_not_there_is_named() {
        let error = chosen(&["cpu-spin".to_owned(), "rm\n".to_owned()]).unwrap_err().to_string();
        assert_eq!(error, "there is no attack 'rm\\n'; --list names them");
        assert_eq!(chosen(&["cpu-spin".to_owned()]).unwrap()[0].name, "cpu-spin");
    }
}
