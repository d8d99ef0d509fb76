//! The machine's processes, read from /proc.

use std::fmt;
use std::time::{Duration, Instant};

/// One process of the machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its number outside every box.
    pub pid: i32,
    /// Its parent.
    pub parent: i32,
    /// Its real uid.
    pub uid: u32,
    /// Its short name.
    pub name: String,
    /// `R`, `S`, `Z` and so on.
    pub state: char,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} '{}' of uid {}", self.pid, self.name, self.uid)
    }
}

pub(crate) fn read(pid: i32) -> Option<Process> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat).into_owned();
    // The name may hold anything, parentheses included; the last one ends it.
    let (start, end) = (stat.find('(')?, stat.rfind(')')?);
    let mut fields = stat[end + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let status = std::fs::read(format!("/proc/{pid}/status")).ok()?;
    let status = String::from_utf8_lossy(&status).into_owned();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?;
    let name = stat[start + 1..end].escape_default().to_string();
    Some(Process { pid, parent, uid: uid.parse().ok()?, name, state })
}

/// Every process but kernel threads.
pub fn processes() -> Vec<Process> {
    const KTHREADD: i32 = 2;
    let entries = std::fs::read_dir("/proc").expect("/proc can be listed");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != KTHREADD).filter_map(read).filter(|one| one.parent != KTHREADD).collect()
}

/// The children of a process, their children, and so on.
pub fn descendants(of: i32) -> Vec<Process> {
    below(&processes(), of)
}

/// Those of its descendants that are in a listing.
pub(crate) fn below(all: &[Process], of: i32) -> Vec<Process> {
    let mut found: Vec<Process> = Vec::new();
    let mut parents = vec![of];
    while let Some(parent) = parents.pop() {
        for child in all.iter().filter(|one| one.parent == parent) {
            parents.push(child.pid);
            found.push(child.clone());
        }
    }
    found
}

/// Asks again and again, for at most `limit`, until there is an answer.
pub fn wait_until<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        let answer = ask();
        if answer.is_some() || Instant::now() > end {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
