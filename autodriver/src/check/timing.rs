//! What makes the times of two runs of the same job differ on this machine. Each finding is a
//! fact, its consequence and a remedy; a file that is not there says nothing.

use std::fs;

use serde::Serialize;

/// One thing that an operator may want to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is so.
    pub fact: String,
    /// What it does to times.
    pub consequence: &'static str,
    /// How to change it.
    pub remedy: &'static str,
}

/// From the text of a file to a finding; `processors` is how many jobs may use.
type Look = fn(&str, u64) -> Option<Finding>;

/// Each file, and what is looked for in it.
const FILES: [(&str, Look); 9] = [
    ("/proc/swaps", swap),
    ("/sys/devices/system/cpu/intel_pstate/no_turbo", no_turbo),
    ("/sys/devices/system/cpu/cpufreq/boost", boost),
    ("/sys/kernel/mm/transparent_hugepage/enabled", huge_pages),
    ("/sys/devices/system/cpu/smt/active", smt),
    ("/proc/sys/kernel/randomize_va_space", aslr),
    ("/proc/loadavg", load),
    ("/proc/stat", steal),
    ("/proc/sys/kernel/core_pattern", core_pattern),
];

/// Looks at the machine.
pub fn look(processors: u64) -> Vec<Finding> {
    let in_file = |(path, look): (&str, Look)| look(&fs::read_to_string(path).ok()?, processors);
    governor(&governors()).into_iter().chain(FILES.into_iter().filter_map(in_file)).collect()
}

/// The governor of each processor, one a line.
fn governors() -> String {
    let entries = fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten();
    let read = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("cpufreq/scaling_governor")).ok();
    entries.filter_map(read).collect()
}

fn governor(text: &str) -> Option<Finding> {
    let mut others: Vec<&str> = text.lines().filter(|name| *name != "performance").collect();
    others.sort_unstable();
    others.dedup();
    (!others.is_empty()).then(|| Finding {
        fact: format!("the cpufreq governor is {}", others.join(" and ")),
        consequence: "a processor that was idle starts a job slowly",
        remedy: "write performance to /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
    })
}

fn swap(text: &str, _: u64) -> Option<Finding> {
    let areas: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    (!areas.is_empty()).then(|| Finding {
        fact: format!("swap is on ({})", areas.join(" ")),
        consequence: "a machine short of memory makes jobs wait for the disk",
        remedy: "swapoff -a, and take it out of /etc/fstab",
    })
}

/// Intel's own driver says it the other way round.
fn no_turbo(text: &str, _: u64) -> Option<Finding> {
    (text.trim() == "0").then(|| turbo("write 1 to /sys/devices/system/cpu/intel_pstate/no_turbo"))
}

fn boost(text: &str, _: u64) -> Option<Finding> {
    (text.trim() == "1").then(|| turbo("write 0 to /sys/devices/system/cpu/cpufreq/boost"))
}

fn turbo(remedy: &'static str) -> Finding {
    Finding {
        fact: "turbo frequencies are on".to_owned(),
        consequence: "the clock depends on heat and on what the other processors do",
        remedy,
    }
}

fn huge_pages(text: &str, _: u64) -> Option<Finding> {
    text.contains("[always]").then(|| Finding {
        fact: "transparent huge pages are given always".to_owned(),
        consequence: "whether a job gets them depends on how fragmented memory is",
        remedy: "write madvise to /sys/kernel/mm/transparent_hugepage/enabled",
    })
}

fn smt(text: &str, _: u64) -> Option<Finding> {
    (text.trim() == "1").then(|| Finding {
        fact: "processors are threads that share a core (SMT)".to_owned(),
        consequence: "a job is slower while its core's other thread is busy",
        remedy: "write off to /sys/devices/system/cpu/smt/control",
    })
}

fn aslr(text: &str, _: u64) -> Option<Finding> {
    (text.trim() != "0").then(|| Finding {
        fact: "addresses are randomized (ASLR)".to_owned(),
        consequence: "caches collide differently in each run",
        remedy: "start what is measured with setarch -R, which a job may do",
    })
}

/// A job needs a processor to itself.
fn load(text: &str, processors: u64) -> Option<Finding> {
    let load: f64 = text.split_whitespace().next()?.parse().ok()?;
    // Small and not negative.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let busy = load.round() as u64;
    (busy >= processors).then(|| Finding {
        fact: format!("the load of the last minute is {load} on {processors} processors"),
        consequence: "a job waits for its turn",
        remedy: "stop what else runs here, or run fewer jobs at once",
    })
}

/// Since boot, of the time that was not idle (proc_stat(5)).
fn steal(text: &str, _: u64) -> Option<Finding> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = ticks[..] else { return None };
    let wanted = user + nice + system + irq + softirq + steal;
    // In thousandths; less than one in a hundred is no news.
    let share = (steal * 1000).checked_div(wanted)?;
    (share >= 10).then(|| Finding {
        fact: format!("the hypervisor kept {}.{} % of the processor time to itself", share / 10, share % 10),
        consequence: "a job stands still while other machines run",
        remedy: "give this machine processors of its own",
    })
}

/// A limit of 1 keeps the program from being run (core(5)); that is what a job has by default.
fn core_pattern(text: &str, _: u64) -> Option<Finding> {
    let program = text.trim().strip_prefix('|')?.split_whitespace().next()?;
    Some(Finding {
        fact: format!("core dumps are piped to {program}"),
        consequence: "with --core, each crash of a job starts it, as root and beside the other jobs",
        remedy: "sysctl kernel.core_pattern=core, or no --core",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWAPS: &str = "Filename\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
    const STAT: &str = "intr 5\ncpu0 1 2 3\n";

    #[test]
    fn facts_are_found_in_the_files_that_say_so_and_in_no_other() {
        let one_area = [SWAPS, "/dev/sda2 partition 8 0 -2\n"].concat();
        let rows: [(Look, &str, Option<&str>); 24] = [
            (swap, SWAPS, None),
            (swap, "", None),
            (swap, &one_area, Some("swap is on (/dev/sda2)")),
            (no_turbo, "0\n", Some("turbo")),
            (no_turbo, "1\n", None),
            (boost, "1\n", Some("turbo")),
            (boost, "0\n", None),
            (huge_pages, "[always] madvise never\n", Some("always")),
            (huge_pages, "always [madvise] never\n", None),
            (huge_pages, "always madvise [never]\n", None),
            (smt, "1\n", Some("SMT")),
            (smt, "0\n", None),
            (aslr, "2\n", Some("ASLR")),
            (aslr, "0\n", None),
            (load, "1.60 0.10 0.05 1/99 7\n", Some("is 1.6 on 2 processors")),
            (load, "1.40 9.00 9.00 1/99 7\n", None),
            (load, "", None),
            (steal, "cpu  10 0 10 900 0 0 0 1 0 0\n", Some("kept 4.7 %")),
            (steal, "cpu  1000 0 0 900 0 0 0 1 0 0\n", None),
            (steal, "cpu  0 0 0 0 0 0 0 0 0 0\n", None),
            (steal, STAT, None),
            (core_pattern, "|/usr/share/apport/apport -p%p\n", Some("piped to /usr/share/apport/apport")),
            (core_pattern, "core\n", None),
            (core_pattern, "|\n", None),
        ];
        for (look, text, expected) in rows {
            let found = look(text, 2).map(|finding| finding.fact);
            match expected {
                Some(words) => assert!(found.as_ref().is_some_and(|fact| fact.contains(words)), "{found:?}"),
                None => assert_eq!(found, None, "{text:?}"),
            }
        }
    }

    #[test]
    fn governors_other_than_performance_are_named_once() {
        assert_eq!(governor(""), None);
        assert_eq!(governor("performance\nperformance\n"), None);
        let found = governor("powersave\nperformance\nondemand\npowersave\n").unwrap();
        assert_eq!(found.fact, "the cpufreq governor is ondemand and powersave");
    }
}
