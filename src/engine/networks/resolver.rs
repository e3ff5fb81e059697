//! The name server of one network: sockets inside the network, questions about the rest of the world
//! from the host's own network.
//!
//! Bounds: so many questions on their way, so many connections, so long for each. What is over them is
//! dropped, which DNS clients expect.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::names::{self, Directory, Member, Verdict};
use crate::engine::files::nameservers;

/// Questions that wait for a server outside.
const PENDING_MAX: usize = 256;
/// Connections at once.
const STREAMS_MAX: usize = 32;
/// Questions on one connection.
const QUESTIONS_MAX: usize = 64;
/// How long one server outside may take, and how often the question goes on to the next.
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);
const SERVERS_MAX: usize = 3;
/// How long a connection may be silent.
const STREAM_TIMEOUT: Duration = Duration::from_secs(5);
const PORT: u16 = 53;
/// What fits into one datagram.
const PACKET_BYTES_MAX: usize = 4096;

/// Is what the name server knows, shared with whoever changes it.
pub trait Knowledge: Send + Sync + 'static {
    /// The members of this network at this moment.
    fn members(&self) -> Vec<Member>;
    /// The members of a container's other networks.
    fn others(&self, container: &str) -> Vec<Member>;
    /// Whether an address is one of this network's.
    fn owns(&self, ip: IpAddr) -> bool;
}

/// Is the sockets of a name server.
pub struct Sockets {
    datagrams: Vec<UdpSocket>,
    streams: Vec<TcpListener>,
}

impl Sockets {
    /// Opens them in the network namespace of the calling thread.
    pub fn open(ips: &[IpAddr]) -> std::io::Result<Self> {
        let mut sockets = Self { datagrams: Vec::new(), streams: Vec::new() };
        for ip in ips {
            let datagrams = UdpSocket::bind((*ip, PORT))?;
            datagrams.set_nonblocking(true)?;
            sockets.datagrams.push(datagrams);
            sockets.streams.push(TcpListener::bind((*ip, PORT))?);
        }
        Ok(sockets)
    }
}

/// Serves until the process ends; the calling process is in the host's network.
pub fn serve(sockets: Sockets, knowledge: &Arc<impl Knowledge>) -> std::io::Result<()> {
    let live = Arc::new(AtomicUsize::new(0));
    for listener in sockets.streams {
        let (knowledge, live) = (Arc::clone(knowledge), Arc::clone(&live));
        std::thread::Builder::new().name("names-tcp".to_owned()).spawn(move || accept(&listener, &knowledge, &live))?;
    }
    let knowledge = Arc::clone(knowledge);
    let mut datagrams = Datagrams { sockets: sockets.datagrams, pending: Vec::new() };
    std::thread::Builder::new().name("names-udp".to_owned()).spawn(move || {
        loop {
            datagrams.turn(&*knowledge);
        }
    })?;
    Ok(())
}

fn decide(packet: &[u8], from: IpAddr, stream: bool, knowledge: &impl Knowledge) -> Verdict {
    let members = knowledge.members();
    let others = |container: &str| knowledge.others(container);
    let owns = |ip: IpAddr| knowledge.owns(ip);
    names::decide(packet, from, stream, &Directory { members: &members, others: &others, owns: &owns })
}

/// Names the servers outside for one question.
fn servers(wanted: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut servers = wanted;
    if servers.is_empty() {
        servers = nameservers(&fs_err::read_to_string("/etc/resolv.conf").unwrap_or_default());
    }
    servers.truncate(SERVERS_MAX);
    servers
}

/// Is a question that waits for an answer from outside.
struct Pending {
    /// Connected to one server; nobody else's answer reaches it.
    socket: UdpSocket,
    asker: SocketAddr,
    /// Which of our sockets it asked.
    place: usize,
    question: Vec<u8>,
    left: Vec<IpAddr>,
    until: Instant,
}

struct Datagrams {
    sockets: Vec<UdpSocket>,
    pending: Vec<Pending>,
}

impl Datagrams {
    /// Waits for something to happen and does what is due.
    fn turn(&mut self, knowledge: &impl Knowledge) {
        let fds: Vec<BorrowedFd<'_>> =
            self.sockets.iter().map(AsFd::as_fd).chain(self.pending.iter().map(|one| one.socket.as_fd())).collect();
        let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        let now = Instant::now();
        let first = self.pending.iter().map(|one| one.until.saturating_duration_since(now)).min();
        let timeout = first.and_then(|first| Timespec::try_from(first).ok());
        if poll(&mut polled, timeout.as_ref()).is_err() {
            return;
        }
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        let (asked, answered) = ready.split_at(self.sockets.len());
        let answered = answered.to_vec();
        let asked: Vec<usize> = asked.iter().enumerate().filter(|(_, ready)| **ready).map(|(place, _)| place).collect();
        self.pass_answers(&answered);
        for place in asked {
            self.take_questions(place, knowledge);
        }
    }

    fn pass_answers(&mut self, answered: &[bool]) {
        let now = Instant::now();
        let pending = std::mem::take(&mut self.pending);
        for (place, mut one) in pending.into_iter().enumerate() {
            let mut packet = [0; PACKET_BYTES_MAX];
            let failed = match answered.get(place) {
                Some(true) => match one.socket.recv(&mut packet) {
                    // Its number tells the question; the port and the server are the socket's.
                    Ok(size) if size > 2 && packet[..2] == one.question[..2] => {
                        let _ = self.sockets[one.place].send_to(&packet[..size], one.asker);
                        continue;
                    }
                    Ok(_) => false,
                    Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
                },
                _ => now >= one.until,
            };
            if !failed {
                self.pending.push(one);
                continue;
            }
            match ask_next(&mut one) {
                true => self.pending.push(one),
                false => {
                    if let Some(answer) = names::failed(&one.question) {
                        let _ = self.sockets[one.place].send_to(&answer, one.asker);
                    }
                }
            }
        }
    }

    fn take_questions(&mut self, place: usize, knowledge: &impl Knowledge) {
        let mut packet = [0; PACKET_BYTES_MAX];
        // So many in a row; then answers get their turn.
        for _ in 0..PENDING_MAX {
            let Ok((size, asker)) = self.sockets[place].recv_from(&mut packet) else { return };
            match decide(&packet[..size], asker.ip(), false, knowledge) {
                Verdict::Answer(answer) => drop(self.sockets[place].send_to(&answer, asker)),
                Verdict::Drop => {}
                Verdict::Forward(wanted) => {
                    if self.pending.len() >= PENDING_MAX {
                        continue;
                    }
                    if let Some(one) = Pending::new(packet[..size].to_vec(), asker, place, servers(wanted)) {
                        self.pending.push(one);
                    } else if let Some(answer) = names::failed(&packet[..size]) {
                        let _ = self.sockets[place].send_to(&answer, asker);
                    }
                }
            }
        }
    }
}

impl Pending {
    fn new(question: Vec<u8>, asker: SocketAddr, place: usize, left: Vec<IpAddr>) -> Option<Self> {
        // Replaced at once by one that is connected.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        let mut one = Self { socket, asker, place, question, left, until: Instant::now() };
        ask_next(&mut one).then_some(one)
    }
}

/// Asks the next server; false when there is none left.
fn ask_next(one: &mut Pending) -> bool {
    while !one.left.is_empty() {
        let server = one.left.remove(0);
        if let Ok(socket) = sent(&one.question, server) {
            (one.socket, one.until) = (socket, Instant::now() + SERVER_TIMEOUT);
            return true;
        }
    }
    false
}

fn sent(question: &[u8], server: IpAddr) -> std::io::Result<UdpSocket> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect((server, PORT))?;
    socket.send(question)?;
    Ok(socket)
}

fn accept(listener: &TcpListener, knowledge: &Arc<impl Knowledge>, live: &Arc<AtomicUsize>) {
    /// The kernel has no descriptor or memory for us just now.
    const PAUSE: Duration = Duration::from_millis(100);
    loop {
        let Ok((stream, from)) = listener.accept() else {
            std::thread::sleep(PAUSE);
            continue;
        };
        if live.fetch_add(1, Ordering::SeqCst) >= STREAMS_MAX {
            live.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let (knowledge, count) = (Arc::clone(knowledge), Arc::clone(live));
        let started = std::thread::Builder::new().name("names".to_owned()).spawn(move || {
            // Whoever hangs up or says nonsense ends only its own connection.
            let _ = converse(stream, from.ip(), &*knowledge);
            count.fetch_sub(1, Ordering::SeqCst);
        });
        if started.is_err() {
            live.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn converse(mut stream: TcpStream, from: IpAddr, knowledge: &impl Knowledge) -> std::io::Result<()> {
    stream.set_read_timeout(Some(STREAM_TIMEOUT))?;
    stream.set_write_timeout(Some(STREAM_TIMEOUT))?;
    for _ in 0..QUESTIONS_MAX {
        let question = read_message(&mut stream)?;
        let answer = match decide(&question, from, true, knowledge) {
            Verdict::Answer(answer) => answer,
            Verdict::Drop => return Ok(()),
            Verdict::Forward(wanted) => {
                let mut answers = servers(wanted).into_iter().filter_map(|server| relay(&question, server).ok());
                match answers.next().or_else(|| names::failed(&question)) {
                    Some(answer) => answer,
                    None => return Ok(()),
                }
            }
        };
        write_message(&mut stream, &answer)?;
    }
    Ok(())
}

fn relay(question: &[u8], server: IpAddr) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(server, PORT), SERVER_TIMEOUT)?;
    stream.set_read_timeout(Some(SERVER_TIMEOUT))?;
    stream.set_write_timeout(Some(SERVER_TIMEOUT))?;
    write_message(&mut stream, question)?;
    read_message(&mut stream)
}

fn read_message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut size = [0; 2];
    stream.read_exact(&mut size)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(size))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn write_message(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    let size = u16::try_from(message.len()).map_err(std::io::Error::other)?;
    let mut bytes = size.to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    stream.write_all(&bytes)
}

/// Keeps a value that several threads look at.
#[derive(Default)]
pub struct Shared<T>(Mutex<T>);

impl<T> Shared<T> {
    pub fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
