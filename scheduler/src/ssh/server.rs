//! The server's side of one connection: algorithms, bounds, who is let in, and which channels there are.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Algorithm, Certificate, EcdsaCurve, HashAlg, PrivateKey, PublicKey};
use russh::server::{Auth, ChannelOpenHandle, Config, Handler, Msg, PublicKeyOffer, VerifiedPublicKey};
use russh::{
    Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet, Preferred, Pty, SshId, cipher, compression, kex, mac,
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::channel::{Inputs, Next, Outputs, stuck};
use super::program::{self, Setup, Wanted};
use super::{COPY, Happened, Place, Session};

/// A login takes no longer (sshd's LoginGraceTime is two minutes; here no password is typed).
const LOGIN_GRACE: Duration = Duration::from_secs(30);
/// Keys that may be tried, as sshd's MaxAuthTries.
const TRIES: usize = 6;
/// How long every refusal takes, whoever and whatever it is about.
const REFUSAL: Duration = Duration::from_millis(200);
/// Channels of one connection at once: terminals, copies, and a browser's worth of forwarded connections.
const CHANNELS: usize = 64;
/// Requests and pieces of data before a channel's program begins; the library stands still at 100 that nobody takes.
const REQUESTS: usize = 64;
/// Bytes of a variable, a user's name and a terminal's kind: longer ones are no honest ones.
const WORD_BYTES: usize = 256;
/// A dead peer is noticed after three of these.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long a connection inside the instance may take to be made.
const DIAL: Duration = Duration::from_secs(10);
/// Keys that are tried against a proven one: the scheduler's own bound.
const KEYS: usize = 64;

/// Runs when a session begins without a command: the login shell that the image has.
const SHELL: &str = "command -v bash >/dev/null 2>&1 && exec bash -l; exec sh -l";

/// Says why a connection was not served to its end.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Nobody logged in.
    #[error("nobody has logged in within {} seconds", LOGIN_GRACE.as_secs())]
    Grace,
    /// The runtime does not start.
    #[error("cannot start the runtime of a session")]
    Runtime(#[source] std::io::Error),
    /// The protocol was broken, or the connection was.
    #[error("the SSH connection has ended")]
    Ssh(#[from] russh::Error),
}

fn config(key: PrivateKey, certificate: Certificate) -> Config {
    Config {
        server_id: SshId::Standard(Cow::Borrowed("SSH-2.0-coracle")),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: REFUSAL,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![key],
        certificates: vec![certificate],
        max_auth_attempts: TRIES,
        inactivity_timeout: None,
        keepalive_interval: Some(KEEPALIVE),
        preferred: preferred(),
        ..Config::default()
    }
}

/// What is spoken (S28): no CBC, no SHA-1, no group that is chosen by a peer, strict key exchange (CVE-2023-48795).
pub(super) fn preferred() -> Preferred {
    const KEX: &[kex::Name] = &[
        kex::MLKEM768X25519_SHA256,
        kex::CURVE25519,
        kex::CURVE25519_PRE_RFC_8731,
        kex::EXTENSION_SUPPORT_AS_CLIENT,
        kex::EXTENSION_SUPPORT_AS_SERVER,
        kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
        kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
    ];
    const CIPHERS: &[cipher::Name] = &[cipher::AES_256_GCM, cipher::CHACHA20_POLY1305];
    const MACS: &[mac::Name] = &[mac::HMAC_SHA512_ETM, mac::HMAC_SHA256_ETM];
    const KEYS: &[Algorithm] = &[
        Algorithm::Ed25519,
        Algorithm::SkEd25519,
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
        // People's keys only, and by SHA-2 (RFC 8332).
        Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
        Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
    ];
    Preferred {
        kex: Cow::Borrowed(KEX),
        key: Cow::Borrowed(KEYS),
        host_key_certificates: Cow::Borrowed(&[]),
        cipher: Cow::Borrowed(CIPHERS),
        mac: Cow::Borrowed(MACS),
        compression: Cow::Borrowed(&[compression::NONE]),
    }
}

/// Serves one connection on a socket, for callers that know no async runtime.
pub fn serve_socket(
    socket: UnixStream,
    session: Session,
    host: (PrivateKey, Certificate),
    place: Arc<dyn Place>,
) -> Result<(), ServeError> {
    // One thread: children end with the thread that started them (prctl(2), PR_SET_PDEATHSIG).
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ServeError::Runtime)?;
    runtime.block_on(async {
        socket.set_nonblocking(true).map_err(ServeError::Runtime)?;
        let socket = tokio::net::UnixStream::from_std(socket).map_err(ServeError::Runtime)?;
        serve(socket, session, host, place).await
    })
}

/// Serves one connection until it ends.
pub async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    session: Session,
    host: (PrivateKey, Certificate),
    place: Arc<dyn Place>,
) -> Result<(), ServeError> {
    let entered = Arc::new(Notify::new());
    let connection = Connection {
        // What cannot be read admits nobody.
        keys: session.keys.iter().take(KEYS).filter_map(|line| PublicKey::from_openssh(line).ok()).collect(),
        session,
        place,
        entered: Arc::clone(&entered),
        proven: None,
        channels: BTreeMap::new(),
        running: Arc::new(()),
    };
    let begin = russh::server::run_stream(Arc::new(config(host.0, host.1)), stream, connection);
    let grace = tokio::time::sleep(LOGIN_GRACE);
    tokio::pin!(grace);
    let mut running = tokio::select! {
        running = begin => running?,
        () = &mut grace => return Err(ServeError::Grace),
    };
    tokio::select! {
        ended = &mut running => return Ok(ended?),
        () = &mut grace => return Err(ServeError::Grace),
        () = entered.notified() => {}
    }
    Ok(running.await?)
}

/// The person behind a connection, after he has proven it.
#[derive(Clone, Debug)]
struct Proven {
    login: String,
    fingerprint: String,
}

struct Waiting {
    channel: Channel<Msg>,
    setup: Setup,
}

struct Connection {
    session: Session,
    keys: Vec<PublicKey>,
    place: Arc<dyn Place>,
    entered: Arc<Notify>,
    proven: Option<Proven>,
    /// Channels whose program has not begun, with what came on them; `None` once it has.
    channels: BTreeMap<ChannelId, (Option<Waiting>, usize)>,
    /// Cloned into every channel that is open or being opened.
    running: Arc<()>,
}

impl Connection {
    /// Tells whether a key may log in under a name. The same work for every key and every name.
    fn admits(&self, login: &str, key: &KeyData, algorithm: &Algorithm) -> bool {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let named =
            !login.is_empty() && login.len() <= WORD_BYTES && login.bytes().all(plain) && !login.starts_with('-');
        let known = self.keys.iter().filter(|own| own.key_data() == key).count();
        // A signature of an RSA key over SHA-1, which is what the name ssh-rsa means, proves nothing.
        let sound = !matches!(algorithm, Algorithm::Rsa { hash: None });
        named && sound && known > 0
    }

    fn user(&self) -> Option<String> {
        let login = self.proven.as_ref().map(|proven| proven.login.clone());
        login.filter(|login| *login != self.session.name)
    }

    fn happened(&self, action: &'static str, what: String) -> Happened {
        let (login, key) = self.proven.clone().map(|proven| (proven.login, proven.fingerprint)).unwrap_or_default();
        Happened { action, asker: self.session.asker.clone(), login, key, what, bytes: None, exit: None }
    }

    fn has_room(&self) -> bool {
        // Before anybody has logged in there are no channels; the library sees to that too.
        self.proven.is_some() && Arc::strong_count(&self.running) <= CHANNELS
    }

    /// Counts what comes before a program begins; who sends much before it asks for one is cut off.
    fn count(&mut self, id: ChannelId) -> Result<Option<&mut Setup>, russh::Error> {
        let Some((waiting, count)) = self.channels.get_mut(&id) else { return Ok(None) };
        let Some(waiting) = waiting else { return Ok(None) };
        *count += 1;
        if *count > REQUESTS {
            return Err(russh::Error::Inconsistent);
        }
        Ok(Some(&mut waiting.setup))
    }

    /// Begins a channel's one program.
    fn begin(&mut self, id: ChannelId, wanted: Wanted, what: String) -> bool {
        let Some(waiting) = self.channels.get_mut(&id).and_then(|(waiting, _)| waiting.take()) else { return false };
        let who = self.happened("ssh_begin", what);
        self.place.happened(&who);
        let (place, user, running) = (Arc::clone(&self.place), self.user(), Arc::clone(&self.running));
        tokio::spawn(async move {
            program::run(waiting.channel, place, wanted, waiting.setup, user, who).await;
            drop(running);
        });
        true
    }
}

fn answer(session: &mut russh::server::Session, id: ChannelId, well: bool) -> Result<(), russh::Error> {
    if well { session.channel_success(id) } else { session.channel_failure(id) }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey_offered(&mut self, user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, Self::Error> {
        // Nothing is kept of an offer.
        Ok(if self.admits(user, offer.public_key.key_data(), offer.algorithm) { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        if !self.admits(user, key.public_key.key_data(), key.algorithm) {
            return Ok(Auth::reject());
        }
        let fingerprint = key.public_key.fingerprint(HashAlg::Sha256).to_string();
        self.proven = Some(Proven { login: user.to_owned(), fingerprint });
        Ok(Auth::Accept)
    }

    async fn auth_succeeded(&mut self, _: &mut russh::server::Session) -> Result<(), Self::Error> {
        self.place.happened(&self.happened("ssh_login", String::new()));
        self.entered.notify_one();
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        // A channel that waits for its program counts as well.
        let waiting = self.channels.values().filter(|(waiting, _)| waiting.is_some()).count();
        if !self.has_room() || waiting >= CHANNELS {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        self.channels.insert(channel.id(), (Some(Waiting { channel, setup: Setup::default() }), 0));
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        let port = u16::try_from(port).ok().filter(|port| *port > 0);
        let Some(port) = port.filter(|_| self.has_room() && host.len() <= WORD_BYTES) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        self.place.happened(&self.happened("ssh_forward", format!("{host} port {port}")));
        let (place, running, host) = (Arc::clone(&self.place), Arc::clone(&self.running), host.to_owned());
        tokio::spawn(async move {
            match tokio::time::timeout(DIAL, dial(place.as_ref(), &host, port)).await {
                Ok(Ok(socket)) => {
                    reply.accept().await;
                    forward(channel, socket).await;
                }
                _ => reply.reject(ChannelOpenFailure::ConnectFailed).await,
            }
            drop(running);
        });
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        kind: &str,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        // The modes are the instance's own affair: its terminal starts out as every terminal does.
        let plain = kind.len() <= WORD_BYTES && kind.bytes().all(|byte| byte.is_ascii_graphic());
        let setup = self.count(id)?.filter(|_| plain);
        let well = setup.is_some();
        if let Some(setup) = setup {
            setup.terminal = Some((kind.to_owned(), columns, rows));
        }
        answer(session, id, well)
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        let known =
            name == "LANG" || name.strip_prefix("LC_").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_uppercase()));
        let plain = known && name.len() <= WORD_BYTES && value.len() <= WORD_BYTES && !value.contains('\0');
        let setup = self.count(id)?.filter(|_| plain);
        let well = setup.is_some();
        if let Some(setup) = setup {
            setup.env.push((name.to_owned(), value.to_owned()));
        }
        answer(session, id, well)
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut russh::server::Session) -> Result<(), Self::Error> {
        let words = ["sh", "-c", SHELL].map(str::to_owned).to_vec();
        let well = self.begin(id, Wanted::Words(words), "shell".to_owned());
        answer(session, id, well)
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        data: &[u8],
        session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        let line = std::str::from_utf8(data).ok().filter(|line| !line.contains('\0'));
        let words = line.and_then(|line| match self.session.exact {
            true => serde_json::from_str(line).ok(),
            false => Some(["sh", "-c", line].map(str::to_owned).to_vec()),
        });
        let well = words.is_some_and(|words| self.begin(id, Wanted::Words(words), line.unwrap_or_default().to_owned()));
        answer(session, id, well)
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        let well = match name.strip_prefix(COPY).filter(|_| self.session.exact) {
            Some(order) => self.begin(id, Wanted::Copy(order.to_owned()), name.to_owned()),
            None => name == "sftp" && self.begin(id, Wanted::Files, name.to_owned()),
        };
        answer(session, id, well)
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        self.count(id)?;
        answer(session, id, false)
    }

    async fn agent_request(&mut self, id: ChannelId, _: &mut russh::server::Session) -> Result<bool, Self::Error> {
        self.count(id)?;
        Ok(false)
    }

    async fn data(&mut self, id: ChannelId, _: &[u8], _: &mut russh::server::Session) -> Result<(), Self::Error> {
        self.count(id).map(drop)
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        if let Some((_, now, lines)) = self.count(id)?.and_then(|setup| setup.terminal.as_mut()) {
            (*now, *lines) = (columns, rows);
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut russh::server::Session) -> Result<(), Self::Error> {
        self.channels.remove(&id);
        Ok(())
    }
}

/// Has a child connect inside the instance, and takes the socket that it sends.
async fn dial(place: &dyn Place, host: &str, port: u16) -> std::io::Result<TcpStream> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let ours = tokio::net::UnixStream::from_std(ours)?;
    let mut command = tokio::process::Command::from(place.dial(host, port));
    command.stdin(Stdio::null()).stdout(OwnedFd::from(theirs)).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn()?;
    // This process's copy of the child's end goes, so that its end is heard.
    drop(command);
    let receive = || {
        let mut byte = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(&ours, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        if got.bytes == 0 || got.flags.contains(ReturnFlags::CTRUNC) {
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        }
        let sent = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut sent) => sent.next(),
            _ => None,
        });
        sent.ok_or_else(|| std::io::ErrorKind::ConnectionRefused.into())
    };
    let socket = ours.async_io(Interest::READABLE, receive).await?;
    child.wait().await?;
    let socket = std::net::TcpStream::from(socket);
    socket.set_nonblocking(true)?;
    TcpStream::from_std(socket)
}

/// Carries a forwarded connection until either side has ended it.
async fn forward(channel: Channel<Msg>, socket: TcpStream) {
    let (mut reader, writer) = channel.split();
    let _ = socket.set_nodelay(true);
    let (from, to) = socket.into_split();
    let mut outputs = Outputs::default();
    let gauge = Arc::clone(&outputs.gauge);
    outputs.add(from, &writer, None);
    let mut inputs = Inputs::new(to);
    loop {
        tokio::select! {
            message = reader.wait(), if inputs.has_room(&gauge) => {
                if matches!(inputs.take(message), Next::Stop) {
                    break;
                }
            }
            () = inputs.write() => {}
            () = stuck(&gauge) => {}
            over = outputs.one_ended() => if over { break },
        }
    }
    let _ = writer.eof().await;
    let _ = writer.close().await;
}
