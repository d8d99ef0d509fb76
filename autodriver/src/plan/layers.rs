//! Which layers a job gets on this machine, by what, and why not more: pure.

use autodriver_protocol::report::{LayerReport, LayerState};
use autodriver_protocol::Layer;

use crate::facts::{Facts, Hierarchy, Lacking, Namespaces};

const AS_ROOT: &str = "run autodriver as root";

/// Why something cannot be had, and what to do about it.
struct Why {
    reason: String,
    remedy: String,
}

impl Why {
    fn new(reason: impl Into<String>, remedy: impl Into<String>) -> Why {
        Why { reason: reason.into(), remedy: remedy.into() }
    }
}

fn report(name: Layer, state: LayerState) -> LayerReport {
    LayerReport { name, state, by: None, reason: None, remedy: None }
}

fn enforced(layer: Layer, by: impl Into<String>) -> LayerReport {
    LayerReport { by: Some(by.into()), ..report(layer, LayerState::Enforced) }
}

fn instead(layer: Layer, why: Why, by: impl Into<String>) -> LayerReport {
    LayerReport { state: LayerState::Substituted, by: Some(by.into()), ..absent(layer, why) }
}

fn absent(layer: Layer, why: Why) -> LayerReport {
    LayerReport { reason: Some(why.reason), remedy: Some(why.remedy), ..report(layer, LayerState::Absent) }
}

/// Every layer, in the order of the report; `skip` says which are left out.
pub fn layers(facts: &Facts, skip: &impl Fn(Layer) -> bool) -> Vec<LayerReport> {
    let machine = Machine { facts, skip };
    Layer::ALL.into_iter().map(|layer| machine.layer(layer)).collect()
}

struct Machine<'a, F> {
    facts: &'a Facts,
    skip: &'a F,
}

impl<F: Fn(Layer) -> bool> Machine<'_, F> {
    fn layer(&self, layer: Layer) -> LayerReport {
        if (self.skip)(layer) {
            let reason = match layer {
                Layer::NetworkNamespace => "asked for by --net host or --skip",
                _ => "asked for by --skip",
            };
            return LayerReport { reason: Some(reason.to_owned()), ..report(layer, LayerState::Skipped) };
        }
        match layer {
            Layer::Identity => self.identity(),
            Layer::NoNewPrivs | Layer::Rlimits | Layer::Seccomp => report(layer, LayerState::Enforced),
            Layer::ProcessTree => self.process_tree(),
            Layer::PidNamespace
            | Layer::MountNamespace
            | Layer::NetworkNamespace
            | Layer::IpcNamespace
            | Layer::UtsNamespace
            | Layer::CgroupNamespace => match self.namespace(layer) {
                Ok(()) if layer == Layer::NetworkNamespace && !self.facts.loopback => LayerReport {
                    reason: Some("its loopback interface stays down: no CAP_NET_ADMIN".to_owned()),
                    remedy: Some("docker run --cap-add NET_ADMIN".to_owned()),
                    ..report(layer, LayerState::Enforced)
                },
                Ok(()) => report(layer, LayerState::Enforced),
                Err(why) => self.without_namespace(layer, why),
            },
            Layer::Memory | Layer::Pids | Layer::Cpu => self.controller(layer),
            Layer::Disk => match self.namespace(Layer::MountNamespace) {
                Ok(()) => enforced(layer, "tmpfs of that size"),
                Err(why) => instead(layer, why, "RLIMIT_FSIZE, sampled by the driver"),
            },
            Layer::Landlock => self.landlock(),
        }
    }

    fn identity(&self) -> LayerReport {
        let layer = Layer::Identity;
        let Err(reason) = &self.facts.own_uids else { return report(layer, LayerState::Enforced) };
        if self.facts.uid == 0 {
            return absent(layer, Why::new(reason, "give the container back the capabilities it lacks"));
        }
        match &self.facts.namespaces {
            Namespaces::Refused { remedy, .. } => {
                absent(layer, Why::new("not root: the job has the caller's own uid", remedy))
            }
            _ => {
                let reason = "not root: the job has the caller's own uid and groups, and no capability";
                instead(layer, Why::new(reason, AS_ROOT), "user namespace")
            }
        }
    }

    fn process_tree(&self) -> LayerReport {
        let layer = Layer::ProcessTree;
        let why = match self.namespace(Layer::PidNamespace) {
            Ok(()) if !(self.skip)(Layer::PidNamespace) => return enforced(layer, "pid namespace"),
            Ok(()) => Why::new("no pid namespace (--skip), and no cgroup", "leave out --skip"),
            Err(why) => Why::new(format!("no cgroup, and no pid namespace: {}", why.reason), why.remedy),
        };
        match &self.facts.hierarchy {
            Hierarchy::V2(_) => enforced(layer, "cgroup.kill"),
            Hierarchy::V1(_) => enforced(layer, "cgroup v1, killed until empty"),
            Hierarchy::None if self.has_own_uid() => instead(layer, why, "subreaper, sweep by uid"),
            Hierarchy::None => instead(layer, why, "subreaper, sweep of its descendants"),
        }
    }

    fn has_own_uid(&self) -> bool {
        self.facts.own_uids.is_ok() && !(self.skip)(Layer::Identity)
    }

    /// Landlock's ABI version, as far as the job is given Landlock.
    fn landlock_abi(&self) -> i32 {
        if (self.skip)(Layer::Landlock) {
            0
        } else {
            self.facts.landlock_abi
        }
    }

    fn namespace(&self, layer: Layer) -> Result<(), Why> {
        if let Namespaces::Refused { reason, remedy } = &self.facts.namespaces {
            return Err(Why::new(reason, remedy));
        }
        match self.facts.without.iter().find(|(without, _)| *without == layer) {
            Some((_, reason)) => Err(Why::new(reason, "raise user.max_{net,ipc,uts}_namespaces")),
            None => Ok(()),
        }
    }

    fn without_namespace(&self, layer: Layer, why: Why) -> LayerReport {
        let abi = self.landlock_abi();
        let seccomp = !(self.skip)(Layer::Seccomp);
        let means: Vec<&str> = match layer {
            Layer::PidNamespace => [(abi >= 6, "Landlock signal scope"), (self.has_own_uid(), "another uid")]
                .into_iter()
                .filter_map(|(there, means)| there.then_some(means))
                .collect(),
            Layer::MountNamespace if abi > 0 => vec!["Landlock path rules"],
            Layer::NetworkNamespace if seccomp && abi >= 4 => {
                vec!["seccomp on socket families", "Landlock TCP"]
            }
            Layer::NetworkNamespace if seccomp => vec!["seccomp on socket families"],
            Layer::IpcNamespace if seccomp && self.has_own_uid() => {
                vec!["seccomp on System V objects and POSIX queues", "sweep by uid"]
            }
            Layer::IpcNamespace if seccomp => vec!["seccomp on System V objects and POSIX queues"],
            Layer::UtsNamespace | Layer::CgroupNamespace => vec!["read-only view"],
            _ => Vec::new(),
        };
        match means.as_slice() {
            [] => absent(layer, why),
            means => instead(layer, why, means.join(", ")),
        }
    }

    fn controller(&self, layer: Layer) -> LayerReport {
        let there = match &self.facts.hierarchy {
            Hierarchy::V2(_) => return enforced(layer, "cgroup v2"),
            Hierarchy::V1(v1) => match layer {
                Layer::Memory => v1.memory.is_some(),
                Layer::Pids => v1.pids.is_some(),
                _ => v1.cpu.is_some() && v1.cpuacct.is_some(),
            },
            Hierarchy::None => false,
        };
        if there {
            return enforced(layer, "cgroup v1");
        }
        let why = match self.facts.lacking {
            Lacking::Mount => Why::new(
                "no cgroup hierarchy with this controller is mounted",
                "mount cgroup2 at /sys/fs/cgroup",
            ),
            Lacking::Writable => Why::new(
                "/sys/fs/cgroup is mounted read-only",
                "docker run --cgroupns host -v /sys/fs/cgroup:/sys/fs/cgroup:rw",
            ),
            Lacking::Occupied => Why::new(
                "other processes are in the cgroup that is delegated",
                "start autodriver as the only process of the container or scope",
            ),
            Lacking::Delegation => Why::new(
                "no cgroup is delegated to this user",
                "systemd-run --user --scope -p Delegate=yes autodriver ...",
            ),
        };
        let enclosing = &self.facts.enclosing;
        let by = match (layer, &self.facts.namespaces) {
            (Layer::Memory, _) if enclosing.memory.is_some() => {
                "sampled by the driver, account of its own cgroup"
            }
            (Layer::Memory, _) => "sampled by the driver",
            (Layer::Pids, _) if self.has_own_uid() => "RLIMIT_NPROC of its uid",
            (Layer::Pids, Namespaces::User) => "RLIMIT_NPROC in its user namespace",
            (Layer::Pids, _) => "RLIMIT_NPROC, counted with the caller's other processes",
            _ if enclosing.cpu.is_some() => "RLIMIT_CPU, sampled by the driver, account of its own cgroup",
            _ => "RLIMIT_CPU, sampled by the driver",
        };
        instead(layer, why, by)
    }

    fn landlock(&self) -> LayerReport {
        let abi = self.facts.landlock_abi;
        if abi <= 0 {
            let remedy = "boot with lsm=landlock,... on Linux 5.13 or newer";
            return absent(Layer::Landlock, Why::new("the kernel has no Landlock", remedy));
        }
        let missing = [(4, "TCP ports"), (5, "device calls"), (6, "abstract sockets and signals")];
        let missing: Vec<&str> =
            missing.into_iter().filter(|(needs, _)| abi < *needs).map(|(_, what)| what).collect();
        let reason = (!missing.is_empty()).then(|| format!("without {}", missing.join(", ")));
        let remedy = reason.is_some().then(|| "Linux 6.12 or newer".to_owned());
        LayerReport { reason, remedy, ..enforced(Layer::Landlock, format!("ABI {abi}")) }
    }
}
