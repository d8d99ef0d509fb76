//! The network, System V IPC, the host name and the cgroup tree: the job has its own.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use autodriver_protocol::report::LayerState;
use autodriver_protocol::Layer;
use e2e::{job, shell};

#[track_caller]
fn expect(words: &[&str], line: &str) {
    let outcome = job(words).run().expect_clean();
    assert_eq!(outcome.text(), line, "{words:?}");
}

#[test]
fn only_loopback_is_there() {
    expect(&["interfaces"], "ok lo");
}

#[test]
fn loopback_works() {
    expect(&["tcp-loopback", "127.0.0.1"], "ok hello");
    expect(&["udp-loopback"], "ok hello");
}

#[test]
fn nothing_outside_can_be_reached() {
    expect(&["tcp", "192.0.2.1:80"], "errno ENETUNREACH");
    expect(&["udp", "192.0.2.1:53"], "errno ENETUNREACH");
    expect(&["tcp", "169.254.169.254:80"], "errno ENETUNREACH");
}

#[test]
fn servers_of_the_machine_cannot_be_reached() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a server");
    let address = listener.local_addr().expect("its address").to_string();
    expect(&["tcp", &address], "errno ECONNREFUSED");
    let outcome = job(["tcp", &address]).opt("--net", "host").run().expect_clean();
    assert_eq!(outcome.text(), "ok", "the twin: with the machine's network it answers");
    assert_eq!(outcome.layer(Layer::NetworkNamespace).state, LayerState::Skipped);
}

#[test]
fn without_the_namespace_landlock_refuses_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a server");
    let address = listener.local_addr().expect("its address").to_string();
    let outcome = job(["tcp", &address]).opt("--skip", "network-namespace").run().expect_clean();
    let expected = if outcome.landlock_abi() >= 4 { "errno EACCES" } else { "ok" };
    assert_eq!(outcome.text(), expected, "{outcome}");
}

#[test]
fn abstract_sockets_of_the_machine_cannot_be_reached() {
    let name = format!("e2e-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let _listener = UnixListener::bind_addr(&address).expect("a server");
    expect(&["abstract", &name], "errno ECONNREFUSED");
    // With the machine's network the name is visible; Landlock's scope refuses it.
    let outcome = job(["abstract", &name]).opt("--net", "host").run().expect_clean();
    let expected = if outcome.landlock_abi() >= 6 { "errno EPERM" } else { "ok" };
    assert_eq!(outcome.text(), expected, "{outcome}");
    let twin = job(["abstract", &name]).opt("--net", "host").opt("--skip", "landlock").run().expect_clean();
    assert_eq!(twin.text(), "ok");
}

#[test]
fn abstract_sockets_and_paths_of_ones_own_work() {
    expect(&["abstract-loopback", "own"], "ok hello");
    expect(&["unix-loopback", "/tmp/socket"], "ok hello");
    expect(&["unix-loopback", "socket"], "ok hello");
}

#[test]
fn segments_of_the_machine_are_invisible() {
    const KEY: libc::key_t = 0x0e2e_0001;
    // SAFETY: shmget takes numbers only; the segment is removed below.
    let id = unsafe { libc::shmget(KEY, 4096, libc::IPC_CREAT | 0o666) };
    assert!(id >= 0, "a segment on the machine");
    let listed = || std::fs::read_to_string("/proc/sysvipc/shm").expect("the table").lines().count();
    let before = listed();
    // The filter refuses the calls; without it, the namespace holds none of the machine's objects.
    let script = "wc -l < /proc/sysvipc/shm";
    let outcome = shell(script).opt("--skip", "seccomp").run().expect_clean();
    let twin = shell(script).opt("--skip", "ipc-namespace").run().expect_clean();
    let after = listed();
    // SAFETY: as above; IPC_RMID reads no buffer.
    unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
    assert_eq!(before, after);
    assert_eq!(outcome.text().trim(), "1", "only the heading: {outcome}");
    assert_eq!(twin.text().trim(), before.to_string(), "the twin sees the machine's: {twin}");
}

#[test]
fn host_name_is_the_jobs_own() {
    expect(&["hostname"], "ok job");
    let outcome = job(["hostname"]).opt("--hostname", "grader-7").run().expect_clean();
    assert_eq!(outcome.text(), "ok grader-7");
    let own = nix::unistd::gethostname().expect("a name").to_string_lossy().into_owned();
    let outcome = job(["hostname"]).opt("--skip", "uts-namespace").run().expect_clean();
    assert_eq!(outcome.text(), format!("ok {own}"));
}

#[test]
fn cgroup_tree_of_the_machine_is_out_of_sight() {
    let outcome = shell("cat /proc/self/cgroup").run().expect_clean();
    let wrong: Vec<&str> = outcome.text().lines().filter(|line| !line.ends_with(":/")).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    let twin = shell("cat /proc/self/cgroup").opt("--skip", "cgroup-namespace").run().expect_clean();
    assert!(twin.text().contains("autodriver"), "the twin sees where it is: {twin}");
}
