//! SSH sessions of instances: one hidden child of the agent each, and its own hidden children inside.
//!
//! A session hears of its instance on standard input and speaks on standard output, a socket that the agent made;
//! nothing listens, so nobody else reaches it. Programs are `coracle exec`, files are served in the instance's ids
//! below its root, and a forwarded connection is made by a child in the instance's network, which hands it over.
//! All of them end with the session, a program by SIGHUP: what a killed agent leaves behind is nothing else.

use std::ffi::OsString;
use std::io::{IoSlice, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use coracle_scheduler::agent::EngineStream;
use coracle_scheduler::model::{InstanceId, StreamKind, StreamOrder};
use coracle_scheduler::ssh::{self, Asked, Authority, Happened, Place, Session};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{DumpableBehavior, Pid, Signal, getppid, set_dumpable_behavior, set_parent_process_death_signal};
use rustix::thread::{
    ThreadNameSpaceType, move_into_thread_name_spaces, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use serde::{Deserialize, Serialize};

use super::{container_name, sftp};
use crate::engine::containers::{self, Container, Status};
use crate::engine::transfer::{self, Purpose, with_root};
use crate::engine::user::ProcessUser;
use crate::engine::{Engine, EngineError, events, exec};

/// The hidden first argument of a session.
pub const SESSION_ARGUMENT: &str = "__ssh-session";
/// Of a program in the instance.
pub const PROGRAM_ARGUMENT: &str = "__ssh-program";
/// Of a file server.
pub const FILES_ARGUMENT: &str = "__ssh-files";
/// Of a copy.
pub const COPY_ARGUMENT: &str = "__ssh-copy";
/// Of what makes a connection.
pub const DIAL_ARGUMENT: &str = "__ssh-dial";

/// The fact by which a provider tells the public key of its authority.
pub const AUTHORITY_FACT: &str = "ssh_authority";

/// What a session is told: 64 keys of 8 KiB and some words.
const ORDER_BYTES_MAX: u64 = 1 << 20;
/// How long a connection inside an instance may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes of a command in the record; a longer one is cut.
const RECORDED_BYTES: usize = 512;

/// Says why a session or a child of one has ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("cannot understand what this session is for")]
    Order(#[from] serde_json::Error),
    #[error("cannot use the streams of this session")]
    Stream(#[from] std::io::Error),
    #[error(transparent)]
    Key(#[from] ssh::AuthorityError),
    #[error(transparent)]
    Serve(#[from] ssh::ServeError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("not started by a session")]
    Foreign,
    #[error("{0} is no address of the instance")]
    NotInside(String),
    #[error("the instance has no network of its own")]
    HostNetwork,
}

/// What a session is for.
#[derive(Serialize, Deserialize)]
struct Order {
    root: PathBuf,
    keys: PathBuf,
    container: String,
    session: Session,
}

/// Where host keys are kept.
pub fn keys_folder(provider: &Path) -> PathBuf {
    provider.join("ssh")
}

/// Forgets the host key of an instance of which nothing is here any more.
pub fn forget_host(provider: &Path, instance: InstanceId) {
    ssh::forget_host(&keys_folder(provider), &instance.to_string());
}

/// Starts a session for a stream.
pub fn start(root: &Path, provider: &Path, order: &StreamOrder) -> std::io::Result<EngineStream> {
    let (keys, exact) = match &order.kind {
        StreamKind::Exec { key, .. } => (vec![key.clone()], true),
        _ => (order.keys.clone(), false),
    };
    if keys.is_empty() {
        return Err(std::io::Error::other("its owner has no SSH key; coracle pool keys add registers one"));
    }
    let session =
        Session { name: order.name.clone(), host: order.instance.to_string(), asker: order.asker.clone(), keys, exact };
    let container = container_name((order.instance, order.epoch));
    let order = Order { root: root.to_owned(), keys: keys_folder(provider), container, session };
    let mut told = std::fs::File::from(rustix::fs::memfd_create("ssh-order", rustix::fs::MemfdFlags::CLOEXEC)?);
    told.write_all(&serde_json::to_vec(&order)?)?;
    told.rewind()?;
    let (socket, far) = UnixStream::pair()?;
    let mut command = own(SESSION_ARGUMENT);
    command.process_group(0).stdin(told).stdout(std::os::fd::OwnedFd::from(far)).stderr(Stdio::null());
    Ok(EngineStream { socket, child: command.spawn()? })
}

/// This very program, also after its file was replaced by a newer one.
fn own(argument: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("coracle").arg(argument);
    command
}

/// Serves one session; the streams are what [`start`] made.
pub fn session() -> Result<(), SessionError> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(std::io::Error::from)?;
    let mut text = Vec::new();
    std::io::stdin().take(ORDER_BYTES_MAX).read_to_end(&mut text)?;
    let order: Order = serde_json::from_slice(&text)?;
    // Keys are in this process's memory.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(std::io::Error::from)?;
    let socket = UnixStream::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    // Whoever runs this by hand has no socket here.
    socket.peer_addr()?;
    // The socket's one descriptor: no child may hold the connection open.
    let null = fs_err::OpenOptions::new().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null).map_err(std::io::Error::from)?;
    let host = Authority::open(&order.keys)?.host(&order.session.host)?;
    let place = Inside { root: order.root, container: order.container };
    Ok(ssh::serve_socket(socket, order.session, host, Arc::new(place))?)
}

/// The instance behind a session.
struct Inside {
    root: PathBuf,
    container: String,
}

impl Inside {
    fn child(&self, argument: &str) -> Command {
        let mut command = own(argument);
        command.arg(std::process::id().to_string()).arg(&self.root).arg(&self.container);
        command
    }
}

impl Place for Inside {
    fn program(&self, asked: &Asked) -> Command {
        let mut command = own(PROGRAM_ARGUMENT);
        command.arg(std::process::id().to_string()).arg(if asked.terminal { "terminal" } else { "streams" });
        command.arg("--root").arg(&self.root).args(["exec", "--interactive", "--detach-keys="]);
        command.args(asked.terminal.then_some("--tty"));
        command.args(asked.user.iter().map(|user| format!("--user={user}")));
        command.args(asked.env.iter().map(|(name, value)| format!("--env={name}={value}")));
        command.arg(&self.container).args(&asked.words);
        command
    }

    fn files(&self, user: Option<&str>) -> Command {
        let mut command = self.child(FILES_ARGUMENT);
        command.args(user);
        command
    }

    fn copy(&self, order: &str) -> Command {
        let mut command = self.child(COPY_ARGUMENT);
        command.arg(order);
        command
    }

    fn dial(&self, host: &str, port: u16) -> Command {
        let mut command = self.child(DIAL_ARGUMENT);
        command.arg(host).arg(port.to_string());
        command
    }

    fn happened(&self, happened: &Happened) {
        let Ok(container) = containers::find(&self.root, &self.container) else { return };
        let what: String = happened.what.chars().take(RECORDED_BYTES).collect();
        let mut more = vec![("asker", happened.asker.clone()), ("login", happened.login.clone())];
        more.extend([("key", happened.key.clone()), ("what", what)]);
        more.extend(happened.exit.map(|code| ("exitCode", code.to_string())));
        if let Some((from, to)) = happened.bytes {
            more.extend([("bytesIn", from.to_string()), ("bytesOut", to.to_string())]);
        }
        let more: Vec<(&str, &str)> = more.iter().map(|(name, value)| (*name, value.as_str())).collect();
        events::emit_container(&self.root, &container.record, happened.action, &more);
    }
}

/// Dies with the session from now on; refuses to work for anybody else.
fn follow(parent: Option<&OsString>, signal: Signal) -> Result<(), SessionError> {
    set_parent_process_death_signal(Some(signal)).map_err(std::io::Error::from)?;
    let told = parent.and_then(|text| text.to_str()?.parse().ok()).and_then(Pid::from_raw);
    if told.is_none() || told != getppid() {
        return Err(SessionError::Foreign);
    }
    Ok(())
}

/// Prepares a program of a session; gives the command line that is to be run.
pub fn program(args: &[OsString]) -> Result<Vec<OsString>, SessionError> {
    // Killed, it could not take note of the end of what it started, and the instance could not end.
    follow(args.first(), Signal::HUP)?;
    if args.get(1).is_some_and(|word| word == "terminal") {
        // Done already where the program runs itself again from a sealed copy; then the second time says EPERM.
        let _ = rustix::process::setsid();
        let _ = rustix::process::ioctl_tiocsctty(std::io::stdin());
    }
    let words = args.get(2..).ok_or(SessionError::Foreign)?;
    Ok(std::iter::once("coracle".into()).chain(words.iter().cloned()).collect())
}

fn found(args: &[OsString]) -> Result<(Engine, Container), SessionError> {
    follow(args.first(), Signal::KILL)?;
    let [_, root, name, ..] = args else { return Err(SessionError::Foreign) };
    let engine = Engine::open(Some(PathBuf::from(root)))?;
    let container = containers::find(engine.root(), &name.to_string_lossy())?;
    Ok((engine, container))
}

fn running(args: &[OsString]) -> Result<(Engine, Container), SessionError> {
    let (engine, container) = found(args)?;
    let name = container.record.called().to_owned();
    if container.status() != Status::Running {
        return Err(EngineError::NotRunning(name).into());
    }
    Ok((engine, container))
}

/// Serves files until the client ends.
pub fn files(args: &[OsString]) -> Result<(), SessionError> {
    let (engine, container) = running(args)?;
    let user = args.get(3).map(|user| user.to_string_lossy().into_owned());
    let (user, directory) = exec::stands(&container, user.as_deref())?;
    let serve = |root: &crate::engine::transfer::Root| {
        become_user(&user).map_err(EngineError::Supervise)?;
        let root = root.fd.try_clone().map_err(EngineError::Supervise)?;
        let files = sftp::Files { root, directory: directory.as_os_str().as_bytes().to_vec() };
        sftp::serve(files, std::io::stdin().lock(), std::io::stdout().lock()).map_err(EngineError::Supervise)
    };
    with_root(&engine, &container, Purpose::Write, serve, || ())?;
    Ok(())
}

/// Copies between the standard streams and an instance, which may stand still; gives how much was left out, unless
/// nobody wants to know.
pub fn copy(args: &[OsString]) -> Result<u64, SessionError> {
    let (engine, container) = found(args)?;
    let order = args.get(3).ok_or(SessionError::Foreign)?;
    let order: transfer::FarOrder = serde_json::from_slice(order.as_bytes())?;
    let copied = transfer::far(&engine, &container, &order)?;
    Ok(if order.quiet { 0 } else { copied.left_out })
}

/// Takes on a user of the instance; who was root of the namespace is so no more, unless it is root.
fn become_user(user: &ProcessUser) -> std::io::Result<()> {
    let groups: Vec<Gid> = user.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    match set_thread_groups(&groups) {
        // A namespace of one id may not change them, and has none.
        Err(Errno::PERM) if groups.is_empty() => {}
        set => set?,
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// Connects inside the instance and hands the socket over.
pub fn dial(args: &[OsString]) -> Result<(), SessionError> {
    let (_, container) = running(args)?;
    let (Some(host), Some(port)) = (args.get(3), args.get(4)) else { return Err(SessionError::Foreign) };
    let host = String::from_utf8_lossy(&host.clone().into_vec()).into_owned();
    let port = port.to_str().and_then(|port| port.parse().ok()).ok_or(SessionError::Foreign)?;
    join_network(&container)?;
    let socket = connect(&host, port)?;
    let fds = [socket.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(std::io::stdout(), &[IoSlice::new(b"s")], &mut ancillary, SendFlags::NOSIGNAL)
        .map_err(std::io::Error::from)?;
    Ok(())
}

/// Goes where the instance's network is; one that is the host's is not entered.
fn join_network(container: &Container) -> Result<(), SessionError> {
    let gone = || EngineError::NotRunning(container.record.called().to_owned());
    let init = container.init().ok_or_else(gone)?;
    let pidfd = init.open().map_err(EngineError::from)?.ok_or_else(gone)?;
    let differs = |kind: &str| -> std::io::Result<bool> {
        let of = |whose: &str| rustix::fs::stat(format!("/proc/{whose}/ns/{kind}"));
        let (theirs, own) = (of(&init.pid.to_string())?, of("self")?);
        Ok((theirs.st_dev, theirs.st_ino) != (own.st_dev, own.st_ino))
    };
    if !differs("net")? {
        return Err(SessionError::HostNetwork);
    }
    let mut kinds = ThreadNameSpaceType::NETWORK;
    if differs("user")? {
        kinds |= ThreadNameSpaceType::USER;
    }
    // Whoever is root in there could look at this process otherwise (A03).
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(std::io::Error::from)?;
    move_into_thread_name_spaces(pidfd.as_fd(), kinds).map_err(std::io::Error::from)?;
    Ok(())
}

/// Connects to an address that the instance itself has.
fn connect(host: &str, port: u16) -> Result<TcpStream, SessionError> {
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let addresses = match host.parse::<IpAddr>() {
        Ok(address) => vec![address],
        Err(_) if host == "localhost" => loopback.to_vec(),
        Err(_) => return Err(SessionError::NotInside(host.to_owned())),
    };
    let mut last = SessionError::NotInside(host.to_owned());
    for address in addresses {
        // Only an own address can be bound to (ip(7)); 0.0.0.0 can as well, and would mean this host.
        let own = !address.is_unspecified() && !address.is_multicast() && UdpSocket::bind((address, 0)).is_ok();
        if own {
            match TcpStream::connect_timeout(&SocketAddr::new(address, port), CONNECT) {
                Ok(socket) => return Ok(socket),
                Err(error) => last = error.into(),
            }
        }
    }
    Err(last)
}
