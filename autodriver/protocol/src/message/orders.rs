//! Any order of frames against a second account of what may come when: told from the history of a job, not
//! from a table of phases.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::Phase;
use crate::frame::{Direction, Kind};

/// Whether `kind` may come after `history`, which holds only what was accepted.
fn may_come(history: &[Kind], kind: Kind) -> bool {
    let closing = history.contains(&Kind::Close);
    match kind.direction() {
        Direction::FromHost if closing => false,
        Direction::FromHost => match kind {
            Kind::Cancel | Kind::Close => true,
            Kind::Put => matches!(unanswered(history), None | Some(Kind::Put)),
            Kind::Run | Kind::Get => unanswered(history).is_none(),
            // Of the connection, or asked before there is a job.
            _ => false,
        },
        Direction::FromGuest if closing => !matches!(kind, Kind::GuestHello | Kind::Opened | Kind::Pong),
        Direction::FromGuest => match (unanswered(history), kind) {
            (_, Kind::Error) => true,
            (None, kind) => kind == Kind::Opened,
            (Some(Kind::Put), kind) => kind == Kind::PutDone,
            (Some(Kind::Get), kind) => matches!(kind, Kind::Data | Kind::GetDone),
            (Some(_), kind) => {
                matches!(kind, Kind::Started | Kind::Output | Kind::Stdout | Kind::Stderr | Kind::Report)
            }
        },
    }
}

/// The request that the guest still owes an answer.
fn unanswered(history: &[Kind]) -> Option<Kind> {
    let asked = history.iter().rposition(|kind| matches!(kind, Kind::Put | Kind::Run | Kind::Get))?;
    let answers = [Kind::PutDone, Kind::Report, Kind::GetDone, Kind::Error];
    let answered = history[asked..].iter().any(|kind| answers.contains(kind));
    (!answered).then_some(history[asked])
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn exactly_what_may_come_is_accepted_in_any_order(kinds in vec(select(Kind::ALL), 0..60)) {
        let (mut phase, mut history) = (Phase::Idle, Vec::new());
        for kind in kinds {
            let step = match kind.direction() {
                Direction::FromHost => phase.request(kind),
                Direction::FromGuest => phase.answer(kind),
            };
            prop_assert_eq!(step.is_ok(), may_come(&history, kind), "{:?} after {:?}", kind, history);
            if let Ok(next) = step {
                phase = next;
                history.push(kind);
            }
        }
    }

    #[test]
    fn no_kind_travels_the_wrong_way(kinds in vec(select(Kind::ALL), 0..20), last in select(Kind::ALL)) {
        let mut phase = Phase::Idle;
        for kind in kinds {
            phase = phase.request(kind).or_else(|_| phase.answer(kind)).unwrap_or(phase);
        }
        match last.direction() {
            Direction::FromHost => prop_assert!(phase.answer(last).is_err()),
            Direction::FromGuest => prop_assert!(phase.request(last).is_err()),
        }
    }
}
