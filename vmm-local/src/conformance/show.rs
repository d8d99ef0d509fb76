//! The results, for people and for programs.

use std::collections::BTreeMap;
use std::io::{self, Write};

use attacks::{Attack, Control};
use autodriver_protocol::report::LayerState;
use autodriver_protocol::Layer;
use serde_json::{json, Value};

use super::{ConformanceOptions, Controlled, Tried};
use crate::text;

/// Most characters of a verdict in the table.
const VERDICT_MAX: usize = 60;

/// Every attack with its layers.
pub(super) fn list(attacks: &[&'static Attack]) {
    let rows = attacks.iter().map(|attack| [attack.name.to_owned(), by(attack), attack.does.to_owned()]);
    // Whoever closed stdout wants no list.
    let _ = io::stdout().write_all(text::table(&rows.collect::<Vec<_>>()).as_bytes());
}

pub(super) fn results(tried: &[Tried], options: &ConformanceOptions) -> io::Result<()> {
    let text = match options.json {
        true => format!("{}\n", document(tried)),
        false => table(tried, options.controls),
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

fn table(tried: &[Tried], controls: bool) -> String {
    let mut header = vec!["attack", "layer", "verdict", "aftermath"];
    header.extend(controls.then_some("control"));
    let mut rows = vec![header.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for one in tried {
        let clean = if one.judgement.aftermath.is_empty() { "clean" } else { "NOT CLEAN" };
        let word = match &one.judgement {
            judgement if judgement.open => "open: ",
            judgement if judgement.stopped && judgement.wrong.is_empty() => "",
            _ => "BROKE ",
        };
        let verdict = text::shortened(&format!("{word}{}", one.judgement.verdict), VERDICT_MAX);
        let mut row = vec![one.attack.name.to_owned(), in_force(one), verdict, clean.to_owned()];
        row.extend(controls.then(|| control(one)));
        rows.push(row);
    }
    let mut text = text::table(&rows);
    for line in tried.iter().flat_map(explanations) {
        text += &format!("{line}\n");
    }
    text + &summary(tried)
}

/// What is not as it must be with one attack, a line each.
fn explanations(one: &Tried) -> Vec<String> {
    let name = one.attack.name;
    let line = |what: &String| format!("{name}: {what}");
    let mut lines: Vec<String> =
        one.judgement.wrong.iter().chain(&one.judgement.aftermath).map(line).collect();
    for control in one.controls.iter().filter(|control| !control.is_as_it_must_be()) {
        let why = control.judgement.wrong.iter().chain(&control.judgement.aftermath).cloned();
        let why = why.chain([control.judgement.verdict.clone()]).collect::<Vec<_>>().join("; ");
        lines.push(match control.alone {
            Some(layer) => format!("{name}: control: {layer} alone does not stop it: {why}"),
            None => format!("{name}: control: it does not succeed either: {why}"),
        });
    }
    lines
}

/// The figures: how many, by what, and how many controls.
fn summary(tried: &[Tried]) -> String {
    let held = tried.iter().filter(|one| one.judgement.holds()).count();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for one in tried.iter().filter(|one| one.judgement.holds()) {
        for layer in one.attack.stopped_by {
            *counts.entry(layer.name()).or_default() += 1;
        }
        if one.attack.stopped_by.is_empty() {
            *counts.entry(by_none(one.attack)).or_default() += 1;
        }
    }
    let counts: Vec<String> = counts.iter().map(|(layer, count)| format!("{layer} {count}")).collect();
    let mut text = format!("{} attacks tried, {held} held: {}\n", tried.len(), counts.join(", "));
    let open = tried.iter().filter(|one| one.judgement.open).count();
    if open > 0 {
        text += &format!("{open} channels are known to be open; --json says why\n");
    }
    let controls = || tried.iter().flat_map(|one| &one.controls);
    if controls().next().is_some() {
        let well = |alone: bool| {
            let of_kind = controls().filter(move |control| control.alone.is_some() == alone);
            let (well, all): (Vec<_>, Vec<_>) = of_kind.partition(|control| control.is_as_it_must_be());
            (well.len(), well.len() + all.len())
        };
        let ((succeeded, all), (alone, of)) = (well(false), well(true));
        text +=
            &format!("{succeeded} of {all} controls succeeded; one layer alone held in {alone} of {of}\n");
    }
    let no_control =
        |one: &&Tried| one.attack.open.is_none() && matches!(one.attack.control, Control::None(_));
    let without = tried.iter().filter(no_control).count();
    if without > 0 && controls().next().is_some() {
        text += &format!("{without} attacks have no layer to leave out; --json says why\n");
    }
    let failed = tried.iter().filter(|one| !one.is_well()).count();
    text + &format!("{} passed, {failed} failed\n", tried.len() - failed)
}

fn by(attack: &Attack) -> String {
    match attack.stopped_by {
        [] => by_none(attack).to_owned(),
        layers => layers.iter().map(|layer| layer.name()).collect::<Vec<_>>().join(", "),
    }
}

/// What stops an attack that no layer does.
fn by_none(attack: &Attack) -> &'static str {
    match attack.open {
        Some(_) => "none",
        None => "driver",
    }
}

/// The layers that stop it, each with its state where it is not enforced.
fn in_force(one: &Tried) -> String {
    let state = |layer: &Layer| {
        let report = one.judgement.layers.iter().find(|report| report.name == *layer);
        match report.map(|report| report.state) {
            None | Some(LayerState::Enforced) => layer.name().to_owned(),
            Some(state) => format!("{layer} ({})", format!("{state:?}").to_lowercase()),
        }
    };
    match one.attack.stopped_by {
        [] => by_none(one.attack).to_owned(),
        layers => layers.iter().map(state).collect::<Vec<_>>().join(", "),
    }
}

fn control(one: &Tried) -> String {
    match one.controls.iter().filter(|control| !control.is_as_it_must_be()).count() {
        _ if one.controls.is_empty() => "-".to_owned(),
        0 => "succeeded".to_owned(),
        _ => "NOT AS IT MUST BE".to_owned(),
    }
}

fn document(tried: &[Tried]) -> Value {
    let failed = tried.iter().filter(|one| !one.is_well()).count();
    let attacks: Vec<Value> = tried.iter().map(row).collect();
    let open = tried.iter().filter(|one| one.judgement.open).count();
    json!({"version": 1, "tried": tried.len(), "open": open, "failed": failed, "attacks": attacks})
}

fn row(one: &Tried) -> Value {
    let mut row = json!({
        "attack": one.attack.name,
        "does": one.attack.does,
        "stopped_by": one.attack.stopped_by,
        "layers": one.judgement.layers,
        "held": one.judgement.holds(),
        "open": one.judgement.open,
        "verdict": one.judgement.verdict,
        "wrong": one.judgement.wrong,
        "aftermath": one.judgement.aftermath,
    });
    if let Some(why) = one.attack.open {
        row["known_open"] = json!(why);
    }
    match one.attack.control {
        Control::None(_) if one.attack.open.is_some() => {}
        Control::None(why) => row["no_control"] = json!(why),
        _ if one.controls.is_empty() => {}
        _ => row["controls"] = one.controls.iter().map(controlled).collect(),
    }
    row
}

fn controlled(control: &Controlled) -> Value {
    json!({
        "alone": control.alone,
        "as_it_must_be": control.is_as_it_must_be(),
        "verdict": control.judgement.verdict,
        "wrong": control.judgement.wrong,
        "aftermath": control.judgement.aftermath,
    })
}
