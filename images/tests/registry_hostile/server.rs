//! An HTTP/1.1 server that does exactly what a test says, over plain TCP or TLS, and remembers what
//! it was asked. It is written by hand because it must be able to misbehave on every byte.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// One request as it arrived.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub method: String,
    /// Path and query.
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn authorization(&self) -> Option<&str> {
        self.header("authorization")
    }
}

/// What to answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub manner: Manner,
}

/// How to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// With a Content-Length that is right.
    Proper,
    /// With another Content-Length.
    Length(u64),
    /// Reset the connection after so many bytes of the body.
    Cut(usize),
    /// Without a length; the end of the connection is the end of the body, after so many bytes.
    Unmarked(usize),
    /// One byte each so many milliseconds.
    Drip(u64),
    /// Stop talking after so many bytes of the body, and keep the connection.
    Stall(usize),
    /// Reset before any answer.
    Reset,
    /// Never answer.
    Silent,
    /// Repeat the body without end, in chunks.
    Endless,
}

impl Reply {
    pub fn new(status: u16) -> Reply {
        Reply { status, headers: Vec::new(), body: Vec::new(), manner: Manner::Proper }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Reply {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Reply {
        self.body = body.into();
        self
    }

    pub fn manner(mut self, manner: Manner) -> Reply {
        self.manner = manner;
        self
    }

    pub fn redirect(status: u16, location: impl Into<String>) -> Reply {
        Reply::new(status).header("Location", location)
    }
}

type Handler = dyn Fn(&Seen) -> Reply + Send + Sync;

/// A running server; it stops when dropped.
pub struct Server {
    pub port: u16,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    handler: Box<Handler>,
    tls: Option<Arc<ServerConfig>>,
    seen: Mutex<Vec<Seen>>,
    stop: AtomicBool,
    connections: AtomicUsize,
    busy: AtomicUsize,
    busiest: AtomicUsize,
}

impl Server {
    pub fn plain(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Server {
        Server::start(Box::new(handler), None)
    }

    pub fn tls(identity: &Identity, handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Server {
        Server::start(Box::new(handler), Some(identity.config.clone()))
    }

    fn start(handler: Box<Handler>, tls: Option<Arc<ServerConfig>>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback port");
        let port = listener.local_addr().expect("address").port();
        let shared = Arc::new(Shared {
            handler,
            tls,
            seen: Mutex::default(),
            stop: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            busiest: AtomicUsize::new(0),
        });
        let accepting = shared.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.stop.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                accepting.connections.fetch_add(1, Ordering::Relaxed);
                let shared = accepting.clone();
                // A connection that breaks is what many tests are about.
                std::thread::spawn(move || drop(shared.serve(stream)));
            }
        });
        Server { port, shared, thread: Some(thread) }
    }

    /// Everything that was asked so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("log").clone()
    }

    /// Requests whose path contains `part`.
    pub fn seen_at(&self, part: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.path.contains(part)).collect()
    }

    pub fn forget(&self) {
        self.shared.seen.lock().expect("log").clear();
    }

    /// How many connections were made, whatever came of them.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// The largest number of requests that were answered at the same time.
    pub fn busiest(&self) -> usize {
        self.shared.busiest.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], self.port)), Duration::from_secs(1));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.set_nodelay(true)?;
        let mut first = [0];
        if stream.peek(&mut first)? == 0 {
            return Ok(());
        }
        let raw = stream.try_clone()?;
        const TLS_HANDSHAKE: u8 = 22;
        match (&self.tls, first[0] == TLS_HANDSHAKE) {
            (Some(config), _) => {
                let session = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
                self.converse(StreamOwned::new(session, stream), &raw)
            }
            // What a plain server does with a handshake: it hangs up.
            (None, true) => raw.shutdown(Shutdown::Both),
            (None, false) => self.converse(stream, &raw),
        }
    }

    fn converse(&self, stream: impl Read + Write, raw: &TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream);
        loop {
            let Some(seen) = read_request(&mut reader)? else { return Ok(()) };
            self.seen.lock().expect("log").push(seen.clone());
            let busy = self.busy.fetch_add(1, Ordering::SeqCst) + 1;
            self.busiest.fetch_max(busy, Ordering::SeqCst);
            let reply = (self.handler)(&seen);
            let outcome = answer(reader.get_mut(), raw, &seen, &reply, &self.stop);
            self.busy.fetch_sub(1, Ordering::SeqCst);
            if !outcome? {
                return raw.shutdown(Shutdown::Both);
            }
        }
    }
}

fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Seen>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let mut seen = Seen {
        method: words.next().unwrap_or_default().to_owned(),
        path: words.next().unwrap_or_default().to_owned(),
        ..Seen::default()
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or(io::ErrorKind::InvalidData)?;
        seen.headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let length = seen.header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    seen.body = String::from_utf8_lossy(&body).into_owned();
    Ok(Some(seen))
}

/// Writes the reply; false when the connection must not be used again.
fn answer(stream: &mut impl Write, raw: &TcpStream, seen: &Seen, reply: &Reply, stop: &AtomicBool) -> io::Result<bool> {
    let mut head = format!("HTTP/1.1 {} Whatever\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let body: &[u8] = if seen.method == "HEAD" { &[] } else { &reply.body };
    match reply.manner {
        Manner::Reset => {
            reset(raw)?;
            return Ok(false);
        }
        Manner::Silent => {
            wait_for(stop);
            return Ok(false);
        }
        Manner::Endless => head += "Transfer-Encoding: chunked\r\n",
        Manner::Unmarked(_) => head += "Connection: close\r\n",
        Manner::Length(length) => head += &format!("Content-Length: {length}\r\n"),
        _ => head += &format!("Content-Length: {}\r\n", reply.body.len()),
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    match reply.manner {
        Manner::Cut(at) => {
            stream.write_all(&body[..at.min(body.len())])?;
            stream.flush()?;
            reset(raw)?;
            return Ok(false);
        }
        Manner::Unmarked(at) => {
            stream.write_all(&body[..at.min(body.len())])?;
            stream.flush()?;
            return Ok(false);
        }
        Manner::Stall(at) => {
            stream.write_all(&body[..at.min(body.len())])?;
            stream.flush()?;
            wait_for(stop);
            return Ok(false);
        }
        Manner::Drip(milliseconds) => {
            for byte in body {
                stream.write_all(&[*byte])?;
                stream.flush()?;
                std::thread::sleep(Duration::from_millis(milliseconds));
            }
        }
        Manner::Endless => loop {
            let chunk = if body.is_empty() { b" ".repeat(64 << 10) } else { body.to_vec() };
            stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes())?;
            stream.write_all(&chunk)?;
            stream.write_all(b"\r\n")?;
        },
        _ => stream.write_all(body)?,
    }
    stream.flush()?;
    Ok(matches!(reply.manner, Manner::Proper))
}

fn wait_for(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Makes the kernel send a reset, after what was written has had its chance to arrive.
fn reset(stream: &TcpStream) -> io::Result<()> {
    let linger = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
    linger.map_err(io::Error::from)
}

/// A certificate authority and a server certificate that it signed.
pub struct Identity {
    pub authority_pem: String,
    config: Arc<ServerConfig>,
}

impl Identity {
    /// Makes a certificate for `names`.
    pub fn new(names: &[&str]) -> Identity {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).expect("authority");
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority_key = rcgen::KeyPair::generate().expect("key");
        let authority = parameters.self_signed(&authority_key).expect("authority");
        let issuer = rcgen::Issuer::new(parameters, authority_key);
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = rcgen::KeyPair::generate().expect("key");
        let parameters = rcgen::CertificateParams::new(names).expect("names");
        let certificate = parameters.signed_by(&key, &issuer).expect("certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .expect("server certificate");
        Identity { authority_pem: authority.pem(), config: Arc::new(config) }
    }
}
