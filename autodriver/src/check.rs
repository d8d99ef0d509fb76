//! `autodriver check`: what this machine can enforce, why not, and what an operator can do about
//! it; and what makes times differ from run to run here. Runs nothing and changes nothing.

mod timing;

use autodriver_protocol::report::LayerReport;
use autodriver_protocol::Requirement;
use serde::Serialize;

use crate::cli::{columns, print};
use crate::facts;
use crate::plan::{standing, Refusal};
use timing::Finding;

/// The version of the JSON form.
const VERSION: u32 = 1;

/// Everything that is known.
#[derive(Debug, Serialize)]
struct Checked {
    version: u32,
    layers: Vec<LayerReport>,
    timing: Vec<Finding>,
    met: bool,
}

/// Looks and says it on stdout; the exit status, or the sentence that goes with 125.
pub fn main(json: bool, require: Vec<Requirement>) -> Result<u8, String> {
    let facts = facts::probe().map_err(|fault| fault.to_string())?;
    let (layers, requirement) = standing(require, &facts);
    let timing = timing::look(facts.processors);
    let checked = Checked { version: VERSION, layers, timing, met: requirement.is_ok() };
    let text = match json {
        true => serde_json::to_string(&checked).map_err(|error| error.to_string())? + "\n",
        false => text(&checked),
    };
    print(&text)?;
    match requirement {
        Ok(()) => Ok(0),
        Err(Refusal(sentence)) => Err(sentence),
    }
}

fn text(checked: &Checked) -> String {
    let mut text = table(&checked.layers);
    text.push('\n');
    if checked.timing.is_empty() {
        text.push_str("timing: nothing found that makes it differ from run to run\n");
    }
    for Finding { fact, consequence, remedy } in &checked.timing {
        text.push_str(&format!("timing: {fact}: {consequence}; {remedy}\n"));
    }
    text
}

/// The layers in columns, each as wide as its widest cell; a dash for an empty cell before another.
fn table(layers: &[LayerReport]) -> String {
    let row = |layer: &LayerReport| {
        let more = [&layer.by, &layer.reason, &layer.remedy];
        let filled = more.iter().rposition(|cell| cell.is_some()).map_or(0, |last| last + 1);
        let more = more.into_iter().take(filled).map(|cell| cell.clone().unwrap_or_else(|| "-".to_owned()));
        [layer.name.to_string(), layer.state.name().to_owned()].into_iter().chain(more).collect()
    };
    let header = ["layer", "state", "by", "reason", "remedy"].map(str::to_owned).to_vec();
    columns("", &[header].into_iter().chain(layers.iter().map(row)).collect::<Vec<Vec<String>>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{Facts, Hierarchy};

    #[test]
    fn columns_are_aligned_and_every_layer_has_a_line() {
        let facts = Facts { landlock_abi: 0, hierarchy: Hierarchy::None, ..Facts::full() };
        let (layers, met) = standing(Vec::new(), &facts);
        assert_eq!(met, Ok(()));
        let text = table(&layers);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 1 + autodriver_protocol::Layer::ALL.len());
        let at = lines[0].find("state").unwrap();
        assert!(lines.iter().skip(1).all(|line| line[at..].starts_with(['e', 'a', 's'])), "{text}");
        let memory = lines.iter().find(|line| line.starts_with("memory")).unwrap();
        assert_eq!(
            memory.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>(),
            [
                "memory",
                "substituted",
                "sampled by the driver",
                "no cgroup hierarchy with this controller is mounted",
                "mount cgroup2 at /sys/fs/cgroup"
            ]
        );
    }

    #[test]
    fn requirement_that_is_not_met_is_a_sentence() {
        let facts = Facts { landlock_abi: 0, hierarchy: Hierarchy::None, ..Facts::full() };
        let (_, met) = standing(vec![Requirement::All], &facts);
        let Err(Refusal(sentence)) = met else { panic!("met") };
        assert!(sentence.contains("memory") && sentence.contains("landlock"), "{sentence}");
    }
}
