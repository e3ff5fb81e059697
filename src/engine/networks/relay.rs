//! Published ports of a container behind a gate, for callers on this host's own loopback: pasta brings
//! those to the gate's loopback, and from there they go on to the container.
//!
//! Everybody else's connections pasta sends as packets, with their own addresses.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::engine::ports::{PortMapping, Protocol};

/// Connections at once.
const STREAMS_MAX: usize = 512;
/// Callers of one datagram port at once.
const PEERS_MAX: usize = 64;
/// How long an answer to a datagram is waited for.
const PEER_TIMEOUT: Duration = Duration::from_secs(30);
const BUFFER_BYTES: usize = 64 << 10;

/// Serves ports in the gate until the process ends.
pub fn serve(gate: &Arc<OwnedFd>, ports: &[PortMapping], container: IpAddr) -> std::io::Result<()> {
    // As pasta passes them on: to the loopback of the caller's own family.
    let loopbacks: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    for (port, own) in ports.iter().flat_map(|port| loopbacks.map(|own| (*port, own))) {
        let gate = Arc::clone(gate);
        let (own, target) = (SocketAddr::new(own, port.container), SocketAddr::new(container, port.container));
        std::thread::Builder::new().name("relay".to_owned()).spawn(move || {
            use std::os::fd::AsFd;
            // In the gate from now on; threads that it starts are there, too.
            if move_into_link_name_space(gate.as_fd(), Some(LinkNameSpaceType::Network)).is_err() {
                return;
            }
            match port.protocol {
                Protocol::Tcp => drop(TcpListener::bind(own).map(|listener| streams(&listener, target))),
                Protocol::Udp => drop(UdpSocket::bind(own).map(|socket| datagrams(&Arc::new(socket), target))),
            }
        })?;
    }
    Ok(())
}

fn streams(listener: &TcpListener, target: SocketAddr) {
    /// The kernel has no descriptor or memory for us just now.
    const PAUSE: Duration = Duration::from_millis(100);
    let live = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((near, _)) = listener.accept() else {
            std::thread::sleep(PAUSE);
            continue;
        };
        if live.fetch_add(1, Ordering::SeqCst) >= STREAMS_MAX {
            live.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let count = Arc::clone(&live);
        let started = std::thread::Builder::new().spawn(move || {
            // Whoever hangs up ends only its own connection.
            let _ = join(&near, target);
            count.fetch_sub(1, Ordering::SeqCst);
        });
        if started.is_err() {
            live.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn join(near: &TcpStream, target: SocketAddr) -> std::io::Result<()> {
    let far = TcpStream::connect(target)?;
    let (near_too, far_too) = (near.try_clone()?, far.try_clone()?);
    let back = std::thread::Builder::new().spawn(move || pass(far_too, near_too))?;
    pass(near.try_clone()?, far);
    let _ = back.join();
    Ok(())
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn datagrams(socket: &Arc<UdpSocket>, target: SocketAddr) {
    let mut peers: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok((count, peer)) = socket.recv_from(&mut buffer) {
        peers.retain(|_, far| Arc::strong_count(far) > 1);
        let far = match peers.get(&peer) {
            Some(far) => Arc::clone(far),
            None if peers.len() >= PEERS_MAX => continue,
            None => match answerer(socket, peer, target) {
                Ok(far) => Arc::clone(peers.entry(peer).or_insert(far)),
                Err(_) => continue,
            },
        };
        let _ = far.send(&buffer[..count]);
    }
}

/// Makes a socket for one caller, whose answers go back to it until there is none for a while.
fn answerer(socket: &Arc<UdpSocket>, peer: SocketAddr, target: SocketAddr) -> std::io::Result<Arc<UdpSocket>> {
    let far = Arc::new(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?);
    far.connect(target)?;
    far.set_read_timeout(Some(PEER_TIMEOUT))?;
    let (near, back) = (Arc::clone(socket), Arc::clone(&far));
    std::thread::Builder::new().spawn(move || {
        let mut buffer = vec![0; BUFFER_BYTES];
        while let Ok(count) = back.recv(&mut buffer) {
            let _ = near.send_to(&buffer[..count], peer);
        }
    })?;
    Ok(far)
}
