//! Talking to others: families of sockets, the network, sockets that have a name, terminals.

use std::fs::{self, OpenOptions, Permissions};
use std::mem::ManuallyDrop;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::setsid;

use crate::probes::{arg, at, call, each, in_child, opens, HIGH};
use crate::tools::{any, broke, held, ignore, pause_for_ever, refused, say, Attempt, Role};

/// Where a neighbour listens.
const PORT: u16 = 47_001;
const NAME: &str = "autodriver-attack";
const PATH: &str = "/tmp/autodriver-attack-socket";

const RAW: u64 = arg(libc::SOCK_RAW);

/// Families without which a job can do, each with a type and a protocol.
pub(super) fn opens_families(_: Role) -> Attempt {
    let families = [
        ("AF_NETLINK of udev", libc::AF_NETLINK, libc::SOCK_RAW, 15),
        ("AF_NETLINK of audit", libc::AF_NETLINK, libc::SOCK_RAW, 9),
        ("AF_NETLINK of netfilter", libc::AF_NETLINK, libc::SOCK_RAW, 12),
        ("AF_ALG", libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
        ("AF_TIPC", libc::AF_TIPC, libc::SOCK_STREAM, 0),
        ("AF_RDS", libc::AF_RDS, libc::SOCK_SEQPACKET, 0),
        ("AF_CAN", libc::AF_CAN, libc::SOCK_RAW, 1),
        ("AF_BLUETOOTH", libc::AF_BLUETOOTH, libc::SOCK_RAW, 1),
        ("AF_XDP", libc::AF_XDP, libc::SOCK_RAW, 0),
    ];
    each(families.map(|(name, family, kind, protocol)| {
        refused(call(libc::SYS_socket, [arg(family), arg(kind), protocol, 0, 0]), name)
    }))
}

pub(super) fn opens_family_high_bits(_: Role) -> Attempt {
    let udev = [HIGH | arg(libc::AF_NETLINK), HIGH | RAW, HIGH | 15, 0, 0];
    refused(call(libc::SYS_socket, udev), "AF_NETLINK of udev")
}

pub(super) fn opens_packet(_: Role) -> Attempt {
    refused(call(libc::SYS_socket, [arg(libc::AF_PACKET), RAW, 0x0300, 0, 0]), "sees every packet")
}

pub(super) fn opens_raw(_: Role) -> Attempt {
    const ICMP: u64 = 1;
    refused(call(libc::SYS_socket, [arg(libc::AF_INET), RAW, ICMP, 0, 0]), "sends packets of any kind")
}

pub(super) fn opens_vsock(_: Role) -> Attempt {
    refused(
        call(libc::SYS_socket, [arg(libc::AF_VSOCK), arg(libc::SOCK_STREAM), 0, 0, 0]),
        "has a socket to the host",
    )
}

/// A service of the machine's loopback interface, which is a neighbour's here.
pub(super) fn connects_to_loopback(role: Role) -> Attempt {
    match role {
        Role::Accomplice => stays(TcpListener::bind(("127.0.0.1", PORT))),
        Role::Attacker => {
            refused(TcpStream::connect(("127.0.0.1", PORT)), "reached a service of a neighbour")
        }
    }
}

pub(super) fn sends_to_loopback(role: Role) -> Attempt {
    match role {
        Role::Accomplice => match UdpSocket::bind(("127.0.0.1", PORT)) {
            Ok(socket) => {
                say(crate::READY);
                ignore(socket.set_read_timeout(Some(Duration::from_secs(10))));
                refused(socket.recv(&mut [0; 8]), "heard from a neighbour")
            }
            Err(error) => held(error),
        },
        Role::Attacker => match UdpSocket::bind("127.0.0.1:0") {
            // Sent it can always be; the neighbour says whether it arrives.
            Ok(socket) => held(format_args!("sent {:?}", socket.send_to(b"hello", ("127.0.0.1", PORT)))),
            Err(error) => held(error),
        },
    }
}

/// Connecting a datagram socket sends nothing, and fails where there is no way.
pub(super) fn looks_for_a_way(_: Role) -> Attempt {
    let places = ["169.254.169.254:53", "8.8.8.8:53", "10.0.2.2:53", "[2001:4860:4860::8888]:53"];
    any(places.map(|place| {
        let own = if place.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let connected = UdpSocket::bind(own).and_then(|socket| socket.connect(place));
        refused(connected, &format!("there is a way to {place}"))
    }))
}

/// Abstract names belong to the network namespace, and have no mode.
pub(super) fn connects_to_abstract(role: Role) -> Attempt {
    let address = match SocketAddr::from_abstract_name(NAME) {
        Ok(address) => address,
        Err(error) => return held(error),
    };
    match role {
        Role::Accomplice => stays(UnixListener::bind_addr(&address)),
        Role::Attacker => {
            refused(UnixStream::connect_addr(&address), "reached a neighbour's abstract socket")
        }
    }
}

/// A daemon that lets everybody talk to it.
pub(super) fn connects_to_path(role: Role) -> Attempt {
    match role {
        Role::Accomplice => {
            ignore(fs::remove_file(PATH));
            let listener = UnixListener::bind(PATH);
            ignore(fs::set_permissions(PATH, Permissions::from_mode(0o777)));
            stays(listener)
        }
        Role::Attacker => {
            let connected = UnixStream::connect(PATH);
            ignore(fs::remove_file(PATH));
            refused(connected, "reached a neighbour's socket by its path")
        }
    }
}

fn stays<T>(listener: std::io::Result<T>) -> Attempt {
    match listener {
        Ok(_listener) => {
            say(crate::READY);
            pause_for_ever()
        }
        Err(error) => held(error),
    }
}

/// Whatever daemon the machine has.
pub(super) fn connects_to_daemons(_: Role) -> Attempt {
    let places = ["/run", "/var/run", "/tmp", "/var/tmp", "/dev", "/var/lib"];
    let sockets = places.iter().flat_map(|place| sockets(Path::new(place), 3));
    any(sockets.map(|path| {
        let datagram = || UnixDatagram::unbound().and_then(|socket| socket.connect(&path));
        let connected = UnixStream::connect(&path).map(drop).or_else(|_| datagram());
        refused(connected, &format!("reached {}", path.display()))
    }))
}

fn sockets(place: &Path, depth: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_socket() => found.push(entry.path()),
            Ok(kind) if kind.is_dir() && depth > 0 => found.extend(sockets(&entry.path(), depth - 1)),
            _ => {}
        }
    }
    found
}

// ioctl_tty(2); of what type they are differs among C libraries.
const TIOCSTI: u64 = 0x5412;
const TIOCSCTTY: u64 = 0x540e;

/// Types into a terminal, which is its own.
pub(super) fn types(_: Role) -> Attempt {
    types_by(TIOCSTI)
}

pub(super) fn types_high_bits(_: Role) -> Attempt {
    types_by(HIGH | TIOCSTI)
}

fn types_by(request: u64) -> Attempt {
    let typed = in_child(|| {
        setsid()?;
        // Where it is closed, its session is ended.
        let terminal = ManuallyDrop::new(terminal()?);
        let fd = arg(terminal.1.as_raw_fd());
        call(libc::SYS_ioctl, [fd, TIOCSCTTY, 0, 0, 0])?;
        call(libc::SYS_ioctl, [fd, request, at(&b'x'), 0, 0])
    });
    refused(typed, "typed into a terminal")
}

/// Both ends of a new terminal.
fn terminal() -> nix::Result<(fs::File, OwnedFd)> {
    const UNLOCK: u64 = 0x4004_5431;
    const PEER: u64 = 0x5441;
    let master = OpenOptions::new().read(true).write(true).open("/dev/ptmx").map_err(|_| Errno::EACCES)?;
    let fd = arg(master.as_raw_fd());
    call(libc::SYS_ioctl, [fd, UNLOCK, at(&0_i32), 0, 0])?;
    let flags = arg(libc::O_RDWR | libc::O_NOCTTY);
    let peer = call(libc::SYS_ioctl, [fd, PEER, flags, 0, 0])?;
    let peer = i32::try_from(peer).map_err(|_| Errno::EBADF)?;
    // SAFETY: the descriptor is new, and nobody else's.
    Ok((master, unsafe { OwnedFd::from_raw_fd(peer) }))
}

/// TIOCLINUX, TIOCCONS and TIOCSETD of no terminal: only a filter has more to say to that.
pub(super) fn calls_consoles(_: Role) -> Attempt {
    each([0x541c, 0x541d, 0x5423, HIGH | 0x541c].map(|request| {
        match call(libc::SYS_ioctl, [u64::MAX, request, 0, 0, 0]) {
            Err(Errno::EBADF) => broke(format_args!("ioctl {request:#x} was looked at")),
            other => held(format_args!("{other:?}")),
        }
    }))
}

/// The terminal of whoever started the driver.
pub(super) fn has_terminal(_: Role) -> Attempt {
    for fd in 0..3 {
        // SAFETY: isatty(3) takes any number.
        if unsafe { libc::isatty(fd) } == 1 {
            return broke(format_args!("descriptor {fd} is a terminal"));
        }
    }
    opens("/dev/tty", OpenOptions::new().read(true).write(true))
}
