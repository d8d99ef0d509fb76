//! Machines that are kept: made once, used by one at a time, gone when destroyed.

use std::fs;
use std::path::Path;
use std::time::Duration;

use autodriver_protocol::Options;

use super::{state, Machines, Product, Vmm, VmmError};
use crate::backend::{BackendOptions, Name};
use crate::cancel::Cancel;
use crate::session::Deadlines;

/// Machines whose autodriver is a program that says nothing and leaves.
fn machines(root: &Path) -> Machines {
    let options = BackendOptions { autodriver: Some("/bin/true".into()), ..BackendOptions::default() };
    Machines::new(root.to_owned(), options, Deadlines::default(), Cancel::new().unwrap())
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

#[test]
fn a_machine_is_made_once_and_destroyed_for_good() {
    let root = tempfile::tempdir().unwrap();
    let vmm = machines(root.path());
    assert!(vmm.get_vms().unwrap().is_empty());
    vmm.initialize_vm(&name("b")).unwrap();
    vmm.initialize_vm(&name("a")).unwrap();
    assert!(matches!(vmm.initialize_vm(&name("a")), Err(VmmError::Exists(_))));
    assert_eq!(vmm.get_vms().unwrap(), [name("a"), name("b")]);
    vmm.destroy_vm(&name("a")).unwrap();
    vmm.destroy_vm(&name("a")).unwrap();
    assert_eq!(vmm.get_vms().unwrap(), [name("b")]);
    let left: Vec<_> = fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["b"]);
}

#[test]
fn a_machine_that_was_never_made_is_named() {
    let root = tempfile::tempdir().unwrap();
    let vmm = machines(root.path());
    let error = vmm.wait_vm(&name("x"), Duration::ZERO).unwrap_err().to_string();
    assert!(error.contains("no machine 'x'") && error.contains("vm initialize x"), "{error}");
    let outcome = vmm.run_job(&name("x"), Options::default(), &mut |_, _| Ok(()));
    assert_eq!(outcome.verdict.exit_code(), 125);
    assert!(outcome.verdict.line().contains("no machine 'x'"));
}

#[test]
fn a_machine_without_its_autodriver_is_not_made() {
    let root = tempfile::tempdir().unwrap();
    let options = BackendOptions { autodriver: Some("/nowhere/at/all".into()), ..BackendOptions::default() };
    let vmm = Machines::new(root.path().to_owned(), options, Deadlines::default(), Cancel::new().unwrap());
    assert!(matches!(vmm.initialize_vm(&name("x")), Err(VmmError::Backend(_))));
    assert!(vmm.get_vms().unwrap().is_empty());
}

#[test]
fn a_machine_in_use_is_no_one_else_s() {
    let root = tempfile::tempdir().unwrap();
    let vmm = machines(root.path());
    vmm.initialize_vm(&name("x")).unwrap();
    let held = state::hold(root.path(), &name("x")).unwrap();
    assert!(matches!(vmm.copy_in(&name("x"), &[]), Err(VmmError::InUse(_))));
    // But for a look at what its job has printed so far.
    assert!(matches!(vmm.partial_output(&name("x"), 4), Err(VmmError::Nothing { .. })));
    fs::write(held.feedback(), "so far").unwrap();
    assert_eq!(vmm.partial_output(&name("x"), 4).unwrap(), b"so f");
    assert!(matches!(vmm.partial_output(&name("y"), 4), Err(VmmError::Unknown(_))));
    drop(held);
    vmm.copy_in(&name("x"), &[]).unwrap();
}

#[test]
fn a_machine_that_is_still_being_made_is_in_use() {
    let root = tempfile::tempdir().unwrap();
    let held = state::create(root.path(), &name("x"), &BackendOptions::default()).unwrap();
    assert!(matches!(machines(root.path()).copy_in(&name("x"), &[]), Err(VmmError::InUse(_))));
    assert!(matches!(
        state::create(root.path(), &name("x"), &BackendOptions::default()),
        Err(VmmError::Exists(_))
    ));
    drop(held);
    machines(root.path()).copy_in(&name("x"), &[]).unwrap();
}

#[test]
fn only_the_process_that_holds_a_machine_is_signalled() {
    let root = tempfile::tempdir().unwrap();
    let held = state::create(root.path(), &name("x"), &BackendOptions::default()).unwrap();
    let lock = fs::File::open(root.path().join("x/lock")).unwrap();
    let me = nix::unistd::getpid().as_raw();
    assert!(state::holds(me, &lock) && !state::holds(1, &lock));
    drop(held);
    assert!(!state::holds(me, &lock));
}

#[test]
fn what_is_copied_in_is_flat_or_where_it_is_told() {
    let root = tempfile::tempdir().unwrap();
    let source = tempfile::tempdir().unwrap();
    let path = |name: &str| source.path().join(name).to_string_lossy().into_owned();
    fs::create_dir(path("tree")).unwrap();
    fs::write(path("tree/leaf"), "l").unwrap();
    fs::write(path("handin"), "h").unwrap();
    let vmm = machines(root.path());
    vmm.initialize_vm(&name("x")).unwrap();
    let inputs = ["handin", "handin:sub/", "handin:Makefile", "tree", "tree:t"];
    let inputs: Vec<_> = inputs.iter().map(|text| path(text).parse().unwrap()).collect();
    vmm.copy_in(&name("x"), &inputs).unwrap();
    for (file, content) in
        [("handin", "h"), ("sub/handin", "h"), ("Makefile", "h"), ("leaf", "l"), ("t/leaf", "l")]
    {
        assert_eq!(fs::read_to_string(root.path().join("x/in").join(file)).unwrap(), content, "{file}");
    }
    for wrong in ["absent", "handin:../out", "handin:/etc/x"] {
        let input = path(wrong).parse().unwrap();
        assert!(matches!(vmm.copy_in(&name("x"), &[input]), Err(VmmError::Fault(_))), "{wrong}");
    }
}

#[test]
fn a_machine_that_never_answers_leaves_a_fault_and_a_report() {
    let root = tempfile::tempdir().unwrap();
    let vmm = machines(root.path());
    vmm.initialize_vm(&name("x")).unwrap();
    let dest = root.path().join("copy");
    assert!(matches!(vmm.copy_out(&name("x"), Product::Report, &dest), Err(VmmError::Nothing { .. })));
    let error = vmm.wait_vm(&name("x"), Duration::ZERO).unwrap_err().to_string();
    assert!(error.starts_with("connect: "), "{error}");
    let outcome = vmm.run_job(&name("x"), Options::default(), &mut |_, _| Ok(()));
    assert!(outcome.verdict.line().contains("ended where the signature was expected"));
    vmm.copy_out(&name("x"), Product::Report, &dest).unwrap();
    assert!(fs::read_to_string(&dest).unwrap().contains("setup-failed"));
}
