//! Section E of the catalogue: files on their way in and out, and what is removed.

mod places;
mod results;

use autodriver_protocol::Layer::{Identity, Landlock, MountNamespace, Rlimits};

use crate::row::{attack, attack_on_driver, Attack, Control};
use crate::tools::{Attempt, Role};

const COPIED_BY: &str =
    "who copies has the job's uid and root directory, and opens without following a link or \
                         waiting, by construction";
const ENDED_FIRST: &str =
    "who would do it has been ended before anything is copied or removed (daemon-double-fork \
                           is the control of that), and neither follows a link";
const RESTORED_BY: &str = "the storage is the job's own, and removed whatever is in it";
const WRITTEN_BY: &str = "who writes results on the host gives them modes, owner and time of its own";

/// A job whose results, all that is called `result*`, are copied out.
const fn copied(
    name: &'static str,
    does: &'static str,
    program: fn(Role) -> Attempt,
    why: &'static str,
) -> Attack {
    Attack { out: Some("result*"), ..attack_on_driver(name, does, program, why) }
}

pub(crate) const ATTACKS: &[Attack] = &[
    copied("out-symlink", "leaves links where its results are looked for", results::links, COPIED_BY),
    copied(
        "out-symlink-parent",
        "leaves links where directories of results are looked for",
        results::linked_parents,
        COPIED_BY,
    ),
    copied(
        "out-swap-race",
        "leaves a process that swaps results for links while they are copied",
        results::swaps,
        ENDED_FIRST,
    ),
    copied("out-fifo", "leaves a FIFO and a socket among its results", results::no_files, COPIED_BY),
    Attack {
        out: Some("result*"),
        ..attack("out-sparse", "leaves a result of a terabyte", results::is_sparse, &[Rlimits])
    },
    copied(
        "out-shrink-grow",
        "leaves a process that changes the length of a result while it is copied",
        results::breathes,
        ENDED_FIRST,
    ),
    copied("out-many", "leaves 3000 results with long names", results::many, COPIED_BY),
    copied(
        "deep-dir",
        "leaves 1000 directories in each other, deeper than a path can name",
        results::deep,
        RESTORED_BY,
    ),
    copied("path-max-names", "leaves results with every kind of name", results::odd_names, COPIED_BY),
    copied("hostile-modes", "closes its files and directories to everybody", results::closed, RESTORED_BY),
    attack(
        "chown-through-link",
        "makes a hard link to a file of the machine",
        places::links_others,
        &[MountNamespace, Identity, Landlock],
    ),
    attack_on_driver(
        "rm-race",
        "leaves a process that swaps a directory for a link while it is removed",
        places::swaps_while_removed,
        ENDED_FIRST,
    ),
    copied(
        "plant-at-known-path",
        "has files and links by the names that a driver uses",
        results::plants,
        COPIED_BY,
    ),
    copied("out-special-modes", "leaves results that are setuid or from 2099", results::special, WRITTEN_BY),
    Attack {
        // Its uid may write to some of the places on some machines only.
        control: Control::LeaveOut(&[Identity]),
        ..attack(
            "outside-droppings",
            "leaves files where others find them",
            places::drops,
            &[MountNamespace, Landlock],
        )
    },
];

/// Rows of the catalogue that are not here, and why.
pub(crate) const ELSEWHERE: &[(&str, &str)] = &[
    (
        "in-tar-traversal",
        "no job makes the archive of its inputs: autodriver-protocol, archive::tests::nothing_is_written_outside \
         and a_link_is_never_written_through",
    ),
    (
        "in-archive-bomb",
        "no job makes the archive of its inputs, which is never compressed: autodriver-protocol, \
         archive::tests::limits_and_lies_about_sizes_end_the_transfer",
    ),
];
