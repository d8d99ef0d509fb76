//! The explanation for reading: sections with headings, one thing a line.

use autodriver_protocol::report::LayerState;
use autodriver_protocol::units::Size;

use super::Explained;
use crate::cli::columns;
use crate::sandbox::describe::{Identity, Range, Root, Sandbox};
use crate::sandbox::seccomp::Described;

/// Columns of a line of many words.
const WIDTH: usize = 110;

/// All of it.
pub(super) fn render(explained: &Explained) -> String {
    let sandbox = &explained.sandbox;
    let sections = [
        ("command", command(sandbox)),
        ("limits", limits(explained)),
        ("identity", identity(&sandbox.identity)),
        ("namespaces", namespaces(sandbox)),
        ("file system", sandbox.root.as_ref().map_or("  the machine's own\n".to_owned(), root)),
        ("cgroup", cgroup(sandbox)),
        ("resource limits (soft, hard)", rlimits(sandbox)),
        ("landlock", landlock(sandbox)),
        ("system calls", sandbox.seccomp.as_ref().map_or("  not filtered\n".to_owned(), seccomp)),
        ("environment", sandbox.process.env.iter().map(|variable| format!("  {variable}\n")).collect()),
        ("layers", layers(explained)),
    ];
    let bpf = sandbox.seccomp.as_ref().and_then(|filter| filter.bpf.as_ref());
    let bpf =
        bpf.map(|lines| ("system calls, as BPF", lines.iter().map(|line| format!("{line}\n")).collect()));
    let text = |(heading, body): (&str, String)| format!("{heading}\n{body}");
    sections.into_iter().chain(bpf).map(text).collect::<Vec<_>>().join("\n")
}

fn pairs<const N: usize>(rows: [(&str, String); N]) -> String {
    columns("  ", &rows.map(|(name, value)| vec![name.to_owned(), value]))
}

fn list(words: &[impl AsRef<str>]) -> String {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    if words.is_empty() {
        "none".to_owned()
    } else {
        words.join(" ")
    }
}

fn command(sandbox: &Sandbox) -> String {
    let process = &sandbox.process;
    let argv: Vec<String> = process.argv.iter().map(|word| format!("'{}'", word.escape_debug())).collect();
    pairs([
        ("execute", argv.join(" ")),
        ("in", process.cwd.clone()),
        ("standard input", process.stdin.clone()),
        ("umask, nice, oom_score_adj", {
            format!("{}, {}, {}", process.umask, process.nice, process.oom_score_adj)
        }),
    ])
}

fn limits(explained: &Explained) -> String {
    let (limits, storage) = (&explained.limits, &explained.sandbox.storage);
    let time = |time: &Option<_>| time.as_ref().map_or("none".to_owned(), ToString::to_string);
    let on_output = if limits.on_output == Default::default() { "rest elided" } else { "then killed" };
    pairs([
        ("wall, cpu, idle", format!("{}, {}, {}", limits.wall, time(&limits.cpu), time(&limits.idle))),
        ("SIGKILL after SIGTERM", limits.grace.to_string()),
        ("memory", Size(limits.memory).to_string()),
        ("processes", limits.pids.to_string()),
        (
            "storage",
            match (storage.bytes, storage.inodes) {
                (Some(bytes), Some(inodes)) => {
                    let sampled = if storage.sampled { ", sampled" } else { "" };
                    format!("{}, {inodes} files{sampled}", Size(bytes))
                }
                _ => "none".to_owned(),
            },
        ),
        ("output", format!("{}, {on_output}", Size(limits.output))),
    ])
}

fn identity(identity: &Identity) -> String {
    let Range { first, last } = identity.uid;
    let uid = match &identity.groups {
        None => format!("{first}, the driver's"),
        Some(_) if first == last => format!("{first} ({})", identity.name),
        Some(_) => format!("one of {first}-{last}, of this job alone ({})", identity.name),
    };
    let the_drivers = || "the driver's".to_owned();
    let capabilities = identity.capabilities.as_ref().map_or_else(the_drivers, |sets| {
        let sets = sets.iter().map(|(name, set)| format!("{name}: {}", list(set)));
        sets.collect::<Vec<_>>().join(", ")
    });
    let groups = |groups: &Vec<u32>| list(&groups.iter().map(u32::to_string).collect::<Vec<_>>());
    pairs([
        ("uid and gid", uid),
        ("groups", identity.groups.as_ref().map_or_else(the_drivers, groups)),
        ("capabilities", capabilities),
        ("securebits", identity.securebits.as_ref().map_or_else(the_drivers, |bits| list(bits))),
        ("no_new_privs", u8::from(identity.no_new_privs).to_string()),
    ])
}

fn namespaces(sandbox: &Sandbox) -> String {
    pairs([
        ("its own", list(&sandbox.namespaces)),
        ("host name", sandbox.hostname.clone().unwrap_or_else(|| "the machine's".to_owned())),
        ("network", sandbox.network.to_owned()),
    ])
}

fn root(root: &Root) -> String {
    let mounts = root.mounts.iter().map(|mount| {
        let source = match mount.kind {
            "bind" => mount.source.clone(),
            "tmpfs" => format!("storage:{}", mount.source),
            kind => kind.to_owned(),
        };
        let flags = mount.flags.iter().map(|flag| (*flag).to_owned());
        let mut flags: Vec<String> = flags.chain(mount.options.iter().cloned()).collect();
        if mount.recursive {
            flags.push("and below".to_owned());
        }
        vec![mount.target.clone(), source, flags.join(",")]
    });
    let links: Vec<String> = root.links.iter().map(|link| format!("{}->{}", link.at, link.to)).collect();
    let mut text = columns("  ", &mounts.collect::<Vec<_>>());
    text += &wrapped("links:", links.iter().map(String::as_str));
    text += &wrapped("empty:", root.empty.iter().map(String::as_str));
    text += &wrapped("in /dev:", root.devices.iter().copied());
    text
}

fn cgroup(sandbox: &Sandbox) -> String {
    let mut text = String::new();
    for directory in &sandbox.cgroup {
        text += &format!("  {}\n", directory.path);
        let row = |file: &crate::sandbox::describe::Written| {
            let note = if file.may_be_missing { "where the kernel has it" } else { "" };
            vec![file.file.to_owned(), file.value.to_string(), note.to_owned()]
        };
        text += &columns("    ", &directory.files.iter().map(row).collect::<Vec<_>>());
    }
    if text.is_empty() {
        text.push_str("  none\n");
    }
    text
}

fn rlimits(sandbox: &Sandbox) -> String {
    let row = |row: &crate::sandbox::describe::Rlimit| {
        vec![row.name.to_owned(), row.soft.to_string(), row.hard.to_string()]
    };
    columns("  ", &sandbox.rlimits.iter().map(row).collect::<Vec<_>>())
}

fn landlock(sandbox: &Sandbox) -> String {
    let Some(rules) = &sandbox.landlock else { return "  none\n".to_owned() };
    let all = rules.handled_fs.len();
    let rows = rules.rules.iter().map(|rule| {
        let rights = if rule.allow.len() == all { "everything".to_owned() } else { rule.allow.join(",") };
        vec![rule.path.clone(), rights]
    });
    let mut text = format!("  ABI {}; refused, but for the rules below:\n", rules.abi);
    text += &wrapped("files:", rules.handled_fs.iter().map(String::as_str));
    text += &wrapped("network:", rules.handled_net.iter().map(String::as_str));
    text += &wrapped("to outside the job:", rules.scoped.iter().map(String::as_str));
    text + &columns("  ", &rows.collect::<Vec<_>>())
}

fn seccomp(filter: &Described) -> String {
    let mut text = format!(
        "  of {}; any other ABI kills the process; {} instructions of BPF\n",
        filter.abis.join(" and "),
        filter.instructions
    );
    let mut answers: Vec<&str> = Vec::new();
    for row in filter.rows.iter().filter(|row| row.condition.is_empty()) {
        if !answers.contains(&row.answer) {
            answers.push(row.answer);
        }
    }
    for answer in answers {
        let rows = filter.rows.iter().filter(|row| row.condition.is_empty() && row.answer == answer);
        text += &wrapped(&format!("{answer}:"), rows.map(|row| row.name));
    }
    text += &format!("  {}: every other number\n", filter.default);
    let row = |row: &crate::sandbox::seccomp::Row| {
        vec![row.name.to_owned(), format!("{} {}", row.answer, row.condition), format!("({})", row.reason)]
    };
    let conditional = filter.rows.iter().filter(|row| !row.condition.is_empty());
    for row in conditional.map(row) {
        text += &format!("  {}\n", row.join("  "));
    }
    text
}

fn layers(explained: &Explained) -> String {
    let weaker = explained.layers.iter().filter(|layer| layer.state != LayerState::Enforced);
    let row = |layer: &autodriver_protocol::report::LayerReport| {
        let reason = layer.reason.clone().unwrap_or_default();
        vec![layer.name.to_string(), layer.state.name().to_owned(), reason]
    };
    let rows: Vec<Vec<String>> = weaker.map(row).collect();
    if rows.is_empty() {
        return "  all enforced\n".to_owned();
    }
    columns("  ", &rows)
}

/// `heading` and words, in lines; nothing without words.
fn wrapped<'a>(heading: &str, words: impl Iterator<Item = &'a str>) -> String {
    let mut lines = vec![format!("  {heading}")];
    for word in words {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= WIDTH => *line += &format!(" {word}"),
            _ => lines.push(format!("    {word}")),
        }
    }
    match lines.as_slice() {
        [alone] if alone.len() == heading.len() + 2 => String::new(),
        lines => lines.join("\n") + "\n",
    }
}
