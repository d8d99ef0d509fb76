//! What is written into the files of a job's cgroup, as a table: the driver writes it, and
//! `autodriver explain` shows it.

use std::fmt::Display;
use std::path::PathBuf;

use autodriver_protocol::Layer;

use super::{directory_name, places, Place};
use crate::facts::Hierarchy;
use crate::plan::Plan;

/// What the kernel shall enforce; `None` leaves the layer out.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of memory without swap: the job's memory and its storage together.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

impl Limits {
    /// Those of a job. Files in the storage are charged to it as memory (see `supervise::limits`);
    /// where nothing limits those, `half_memory` of the machine stands for them.
    pub fn of(plan: &Plan, half_memory: u64) -> Limits {
        let (disk, _) = plan.storage_limit();
        let files = if disk == 0 { half_memory } else { disk };
        Limits {
            memory: plan.enforces(Layer::Memory).then(|| plan.memory + files),
            pids: plan.enforces(Layer::Pids).then_some(plan.pids),
        }
    }
}

/// One file of the job's cgroup, and what is written to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The file.
    pub file: &'static str,
    /// What is written.
    pub value: u64,
    /// Some files exist only with certain kernel options.
    pub may_be_missing: bool,
}

/// What is written into a directory with these controllers, in order.
pub(super) fn settings(place: &Place, limits: Limits, v2: bool) -> Vec<Setting> {
    let setting = |file, value, may_be_missing| Setting { file, value, may_be_missing };
    let memory = limits.memory.filter(|_| place.memory).map(|bytes| match v2 {
        true => vec![
            setting("memory.max", bytes, false),
            // Absent where the kernel has no swap.
            setting("memory.swap.max", 0, true),
            setting("memory.oom.group", 1, false),
        ],
        false => vec![
            setting("memory.limit_in_bytes", bytes, false),
            // Absent unless swap accounting is on; then swappiness alone keeps swap away.
            setting("memory.memsw.limit_in_bytes", bytes, true),
            setting("memory.swappiness", 0, true),
        ],
    });
    let pids = limits.pids.filter(|_| place.pids).map(|pids| setting("pids.max", pids, false));
    memory.into_iter().flatten().chain(pids).collect()
}

/// Every directory that a job would have, and what is written there; `uid` stands in its name.
pub fn preview(
    hierarchy: &Hierarchy,
    uid: impl Display,
    limits: Limits,
) -> impl Iterator<Item = (PathBuf, Vec<Setting>)> {
    let (name, v2) = (directory_name(uid), matches!(hierarchy, Hierarchy::V2(_)));
    places(hierarchy).into_iter().map(move |place| (place.path.join(&name), settings(&place, limits, v2)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::V1;

    const LIMITS: Limits = Limits { memory: Some(64 << 20), pids: Some(7) };

    fn shown(hierarchy: &Hierarchy, limits: Limits) -> Vec<String> {
        let line = |(path, settings): (PathBuf, Vec<Setting>)| {
            let files = settings.iter().map(|one| format!(" {}={}", one.file, one.value)).collect::<String>();
            format!("{}:{files}", path.display())
        };
        preview(hierarchy, 5, limits).map(line).collect()
    }

    #[test]
    fn with_v2_one_directory_has_it_all() {
        let v2 = Hierarchy::V2("/cg".into());
        let all = "memory.max=67108864 memory.swap.max=0 memory.oom.group=1 pids.max=7";
        assert_eq!(shown(&v2, LIMITS), [format!("/cg/autodriver-5: {all}")]);
        assert_eq!(shown(&v2, Limits { memory: None, pids: None }), ["/cg/autodriver-5:"]);
    }

    #[test]
    fn with_v1_each_directory_has_its_own() {
        let at = |path: &str| Some(path.into());
        let places = V1 { memory: at("/m"), pids: at("/p"), cpu: at("/c"), cpuacct: at("/c") };
        let memory =
            "memory.limit_in_bytes=67108864 memory.memsw.limit_in_bytes=67108864 memory.swappiness=0";
        let lines = [
            format!("/m/autodriver-5: {memory}"),
            "/p/autodriver-5: pids.max=7".to_owned(),
            "/c/autodriver-5:".to_owned(),
        ];
        assert_eq!(shown(&Hierarchy::V1(places), LIMITS), lines);
        assert!(shown(&Hierarchy::None, LIMITS).is_empty());
    }
}
