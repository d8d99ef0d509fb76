//! The network and other ways to talk: interfaces, TCP, UDP, Unix sockets.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::time::Duration;
use std::{fs, io, thread};

use crate::answer::{errno_of, Answer};

pub(crate) fn attempt(words: &[&str]) -> Option<Answer> {
    let result = match words {
        ["interfaces"] => interfaces(),
        ["tcp", address] => tcp(address).map(|()| String::new()),
        ["udp", address] => udp(address).map(|()| String::new()),
        ["tcp-loopback", host] => tcp_loopback(host),
        ["udp-loopback"] => udp_loopback(),
        ["unix", path] => UnixStream::connect(path).map(|_| String::new()),
        ["unix-loopback", path] => UnixAddr::from_pathname(path).and_then(|address| unix_loopback(&address)),
        ["abstract", name] => UnixAddr::from_abstract_name(name)
            .and_then(|a| UnixStream::connect_addr(&a))
            .map(|_| String::new()),
        ["abstract-loopback", name] => {
            UnixAddr::from_abstract_name(name).and_then(|address| unix_loopback(&address))
        }
        _ => return None,
    };
    Some(result.map_err(|error| errno_of(&error)))
}

fn interfaces() -> io::Result<String> {
    let table = fs::read_to_string("/proc/net/dev")?;
    let names = table.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
    Ok(names.collect::<Vec<_>>().join(" "))
}

fn parsed(address: &str) -> SocketAddr {
    address.parse().expect("ADDRESS:PORT")
}

fn tcp(address: &str) -> io::Result<()> {
    TcpStream::connect_timeout(&parsed(address), Duration::from_secs(20)).map(drop)
}

fn udp(address: &str) -> io::Result<()> {
    let own = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    UdpSocket::bind(own)?.send_to(b"hello", parsed(address)).map(drop)
}

/// A server and a client in this process.
fn tcp_loopback(host: &str) -> io::Result<String> {
    let listener = TcpListener::bind(format!("{host}:0"))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    echo(client, server)
}

fn unix_loopback(address: &UnixAddr) -> io::Result<String> {
    let listener = UnixListener::bind_addr(address)?;
    let client = UnixStream::connect_addr(address)?;
    let (server, _) = listener.accept()?;
    echo(client, server)
}

fn echo(mut client: impl Write, mut server: impl Read + Send + 'static) -> io::Result<String> {
    let reader = thread::spawn(move || {
        let mut text = String::new();
        server.read_to_string(&mut text).map(|_| text)
    });
    client.write_all(b"hello")?;
    drop(client);
    reader.join().expect("the reading thread")
}

fn udp_loopback() -> io::Result<String> {
    let (one, two) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
    one.send_to(b"hello", two.local_addr()?)?;
    let mut buffer = [0; 16];
    let count = two.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
}
