//! Every refusal and every degradation, without root.

use super::*;
use crate::facts::{Hierarchy, Lacking};

fn full() -> Facts {
    Facts::full()
}

fn no_namespaces(reason: &str, remedy: &str) -> Namespaces {
    Namespaces::Refused { reason: reason.into(), remedy: remedy.into() }
}

/// A container of docker without any option.
fn docker() -> Facts {
    Facts {
        namespaces: no_namespaces("no CAP_SYS_ADMIN", "docker run --cap-add SYS_ADMIN"),
        hierarchy: Hierarchy::None,
        lacking: Lacking::Writable,
        clone3: false,
        ..full()
    }
}

/// An ordinary user, with user namespaces.
fn user() -> Facts {
    Facts {
        uid: 1000,
        own_uids: Err("no CAP_SETUID".into()),
        namespaces: Namespaces::User,
        hierarchy: Hierarchy::None,
        lacking: Lacking::Delegation,
        ..full()
    }
}

/// As `user`, without them.
fn bare() -> Facts {
    Facts { namespaces: no_namespaces("EPERM", "sysctl user.max_user_namespaces=15000"), ..user() }
}

/// The states of all layers, a letter each, in order: enforced, substituted, absent, skipped.
fn states(options: Options, facts: &Facts) -> String {
    let letter = |layer: &LayerReport| match layer.state {
        LayerState::Enforced => 'E',
        LayerState::Substituted => 'S',
        LayerState::Absent => 'A',
        LayerState::Skipped => '-',
    };
    plan(options, facts).unwrap().layers.iter().map(letter).collect()
}

#[test]
fn every_environment_has_its_states() {
    // identity no-new-privs process-tree, six namespaces, memory pids cpu disk, rlimits landlock seccomp
    assert_eq!(states(Options::default(), &full()), "EEEEEEEEEEEEEEEE");
    assert_eq!(states(Options::default(), &docker()), "EESSSSSSSSSSSEEE");
    assert_eq!(states(Options::default(), &user()), "SEEEEEEEESSSEEEE");
    assert_eq!(states(Options::default(), &Facts { landlock_abi: 0, ..docker() }), "EESSASSSSSSSSEAE");
    let without = vec![(Layer::NetworkNamespace, "ENOSPC".to_owned())];
    assert_eq!(states(Options::default(), &Facts { without, ..full() }), "EEEEESEEEEEEEEEE");
    let seccomp = Options { require: vec![Requirement::One(Layer::Seccomp)], ..Options::default() };
    assert_eq!(states(seccomp, &bare()), "AESSSSSSSSSSSEEE");
}

#[test]
fn the_minimum_is_content_with_a_substitute_and_all_is_not() {
    assert!(plan(Options::default(), &docker()).is_ok());
    let all = Options { require: vec![Requirement::All], ..Options::default() };
    let text = refused(all, &docker());
    for word in ["process-tree: no cgroup", "docker run --cap-add", "read-only", "cpu:"] {
        assert!(text.contains(word), "{text}");
    }
    let one = Options { require: vec![Requirement::One(Layer::Memory)], ..Options::default() };
    assert!(refused(one, &docker()).contains("memory: /sys/fs/cgroup is mounted read-only"));
    let text = refused(Options::default(), &bare());
    assert!(text.contains("identity: not root") && text.contains("max_user_namespaces"), "{text}");
}

#[test]
fn substitutes_are_named() {
    let made = plan(Options::default(), &docker()).unwrap();
    let by = |layer: Layer| made.layers.iter().find(|one| one.name == layer).unwrap().by.clone().unwrap();
    assert_eq!(by(Layer::ProcessTree), "subreaper, sweep by uid");
    assert_eq!(by(Layer::PidNamespace), "Landlock signal scope, another uid");
    assert_eq!(by(Layer::NetworkNamespace), "seccomp on socket families, Landlock TCP");
    assert!(made.layers.iter().all(|one| one.state == LayerState::Enforced || one.remedy.is_some()));
}

#[test]
fn a_network_namespace_without_loopback_says_so() {
    let made = plan(Options::default(), &Facts { loopback: false, ..full() }).unwrap();
    let network = made.layers.iter().find(|one| one.name == Layer::NetworkNamespace).unwrap();
    assert_eq!(network.state, LayerState::Enforced);
    assert!(network.reason.as_ref().unwrap().contains("loopback") && !made.loopback);
}

#[test]
fn what_needs_a_namespace_is_refused_where_there_is_none() {
    for (options, word) in [
        (Options { root: Some("/x".into()), ..Options::default() }, "--root and --bind need"),
        (Options { hostname: Some("x".into()), ..Options::default() }, "--hostname x: needs"),
    ] {
        let text = refused(options, &docker());
        assert!(text.contains(word) && text.contains("autodriver check"), "{text}");
    }
    let other = Options { user: Some("ann".into()), ..Options::default() };
    assert!(refused(other, &user()).contains("--user ann: a job cannot have another uid here"));
}

#[test]
fn a_file_grows_no_further_than_a_disk_limit_that_is_sampled() {
    let options = || Options { disk: Some("10M".parse().unwrap()), ..Options::default() };
    let fsize = |facts: &Facts| {
        let rlimits = plan(options(), facts).unwrap().rlimits;
        rlimits.iter().find(|row| row.name == "RLIMIT_FSIZE").unwrap().hard
    };
    assert_eq!((fsize(&full()), fsize(&docker())), (100 << 20, 10 << 20));
}

fn refused(options: Options, facts: &Facts) -> String {
    plan(options, facts).unwrap_err().0
}

#[test]
fn as_root_with_cgroups_every_layer_is_enforced() {
    let options = Options { require: vec![Requirement::All], ..Options::default() };
    let plan = plan(options, &full()).unwrap();
    assert!(Layer::ALL.into_iter().all(|layer| plan.applies(layer)));
    assert_eq!(plan.argv, [c"make".to_owned()]);
    assert_eq!(plan.wall, Duration::from_secs(60));
}

#[test]
fn what_is_missing_is_named_with_reason_and_remedy() {
    let facts = Facts { landlock_abi: 0, hierarchy: Hierarchy::None, ..full() };
    let all = Options { require: vec![Requirement::All], ..Options::default() };
    let text = refused(all, &facts);
    for word in
        ["memory: no cgroup", "pids: no cgroup", "landlock: the kernel has no Landlock: boot with lsm="]
    {
        assert!(text.contains(word), "{text}");
    }
    assert!(plan(Options::default(), &facts).is_ok(), "the minimum does not need them");
}

#[test]
fn an_old_landlock_says_what_it_does_not_cover() {
    let made = plan(Options::default(), &Facts { landlock_abi: 2, ..full() }).unwrap();
    let landlock = made.layers.iter().find(|layer| layer.name == Layer::Landlock).unwrap();
    assert_eq!(landlock.state, LayerState::Enforced);
    assert!(landlock.reason.as_ref().unwrap().contains("TCP ports, device calls, abstract"));
}

#[test]
fn without_root_the_minimum_is_refused() {
    assert!(refused(Options::default(), &bare()).contains("identity: not root"));
}

#[test]
fn a_skipped_layer_is_reported_and_may_not_be_required_by_name() {
    let skip = Options { skip: vec![Layer::Landlock], ..Options::default() };
    let made = plan(skip.clone(), &full()).unwrap();
    assert!(!made.applies(Layer::Landlock));
    let both = Options { require: vec![Requirement::One(Layer::Landlock)], ..skip };
    assert!(refused(both, &full()).contains("landlock"));
}

#[test]
fn layers_that_stand_on_each_other_are_skipped_together() {
    let skip = |layers: &[Layer]| Options { skip: layers.to_vec(), ..Options::default() };
    assert!(refused(skip(&[Layer::NoNewPrivs]), &full()).contains("--skip seccomp"));
    assert!(refused(skip(&[Layer::ProcessTree]), &full()).contains("--skip pid-namespace"));
    let text = refused(Options { root: Some("/x".into()), ..skip(&[Layer::MountNamespace]) }, &full());
    assert!(text.contains("--root"));
}

#[test]
fn nonsense_is_refused_by_name() {
    for (options, word) in [
        (Options { pids: Some(0), ..Options::default() }, "--pids 0"),
        (Options { inodes: Some(u64::MAX), ..Options::default() }, "--inodes"),
        (Options { wall: Some("0s".parse().unwrap()), ..Options::default() }, "--wall"),
        (Options { memory: Some("1K".parse().unwrap()), ..Options::default() }, "--memory 1024"),
        (Options { user: Some("0".into()), ..Options::default() }, "never runs as root"),
        (Options { user: Some("root".into()), ..Options::default() }, "never runs as root"),
        (Options { root: Some("x".into()), ..Options::default() }, "absolute"),
        (Options { hostname: Some("x".repeat(65)), ..Options::default() }, "--hostname"),
        (Options { command: vec![String::new()], ..Options::default() }, "empty"),
    ] {
        let text = refused(options, &full());
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn a_core_limit_of_zero_is_set_as_one_byte() {
    let plan = plan(Options::default(), &full()).unwrap();
    let core = plan.rlimits.iter().find(|row| row.name == "RLIMIT_CORE").unwrap();
    assert_eq!((core.soft, core.hard), (1, 1));
}

#[test]
fn the_readme_has_the_table_of_layers() {
    let readme = include_str!("../../../README.md");
    let header = "| layer | what it takes from the job |\n| --- | --- |\n";
    let rows = Layer::ALL.map(|layer| format!("| `{layer}` | {} |\n", layer.takes()));
    assert!(readme.contains(&format!("{header}{}\n", rows.concat())), "README.md and the layers differ");
}
