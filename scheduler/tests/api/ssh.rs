//! The SSH server of a session against clients that break the protocol: each harms its own connection only (S27, A87).

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coracle_scheduler::ssh::{Asked, Authority, Happened, Place, ServeError, Session, one_time_key, serve};
use russh::client::{Config, Handle, Handler, connect_stream};
use russh::keys::{Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{ChannelMsg, Preferred};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::JoinHandle;

/// Everything here takes far less; a server that hangs is a failure.
const PATIENCE: Duration = Duration::from_secs(60);
/// Keys that one connection may try.
const TRIES: usize = 6;
/// Channels that one connection may have.
const CHANNELS: usize = 64;
/// SSH_MSG_KEXINIT, SSH_MSG_KEX_ECDH_INIT and SSH_MSG_NEWKEYS (RFC 4250, RFC 5656).
const KEXINIT: u8 = 20;
const ECDH_INIT: u8 = 30;
const NEWKEYS: u8 = 21;

/// An instance in which every program is cat.
#[derive(Default)]
struct Cats(Mutex<Vec<Happened>>);

impl Place for Cats {
    fn program(&self, _: &Asked) -> Command {
        Command::new("/bin/cat")
    }
    fn files(&self, _: Option<&str>) -> Command {
        Command::new("/bin/cat")
    }
    fn copy(&self, _: &str) -> Command {
        Command::new("/bin/cat")
    }
    fn dial(&self, _: &str, _: u16) -> Command {
        Command::new("/bin/false")
    }
    fn happened(&self, happened: &Happened) {
        self.0.lock().expect("as it should be").push(happened.clone());
    }
}

struct Anyone;

impl Handler for Anyone {
    type Error = russh::Error;
    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

/// A session that serves one connection.
struct Served {
    place: Arc<Cats>,
    server: JoinHandle<Result<(), ServeError>>,
}

impl Served {
    /// Serves the keys given; the other end is the client's.
    fn new(keys: &[&PrivateKey]) -> (Self, DuplexStream) {
        let folder = tempfile::tempdir().expect("as it should be");
        let host = Authority::open(folder.path()).expect("as it should be").host("instance").expect("as it should be");
        let keys = keys.iter().map(|key| key.public_key().to_openssh().expect("as it should be")).collect();
        let session = Session { name: "web".into(), host: "instance".into(), asker: "ann".into(), keys, exact: false };
        let place = Arc::new(Cats::default());
        let (near, far) = duplex(1 << 16);
        let server = tokio::spawn(serve(near, session, host, Arc::clone(&place) as Arc<dyn Place>));
        (Self { place, server }, far)
    }

    /// Waits for the end, which is no panic and let nobody in.
    async fn refuses(self, what: &str) {
        let ended = tokio::time::timeout(PATIENCE, self.server).await;
        let ended = ended.unwrap_or_else(|_| panic!("{what}: it goes on")).expect("no panic");
        drop(ended);
        assert!(self.place.0.lock().expect("as it should be").is_empty(), "{what}: something happened");
    }
}

async fn client(stream: DuplexStream) -> Handle<Anyone> {
    let preferred = Preferred { host_key_certificates: vec![Algorithm::Ed25519].into(), ..Preferred::default() };
    connect_stream(Arc::new(Config { preferred, ..Config::default() }), stream, Anyone).await.expect("as it should be")
}

async fn tries(handle: &mut Handle<Anyone>, login: &str, key: &PrivateKey) -> Option<bool> {
    let key = PrivateKeyWithHashAlg::new(Arc::new(key.clone()), None);
    let outcome = tokio::time::timeout(PATIENCE, handle.authenticate_publickey(login, key)).await.expect("an answer");
    outcome.ok().map(|result| result.success())
}

/// Puts a payload into a packet without a cipher (RFC 4253, 6).
fn packet(payload: &[u8]) -> Vec<u8> {
    let padding = 16 - (payload.len() + 5) % 8;
    let length = u32::try_from(payload.len() + padding + 1).expect("as it should be");
    let mut packet = length.to_be_bytes().to_vec();
    packet.push(u8::try_from(padding).expect("as it should be"));
    packet.extend_from_slice(payload);
    packet.extend(std::iter::repeat_n(0, padding));
    packet
}

fn string(text: &[u8]) -> Vec<u8> {
    [&u32::try_from(text.len()).expect("as it should be").to_be_bytes(), text].concat()
}

fn kexinit() -> Vec<u8> {
    let mut payload = vec![KEXINIT];
    payload.extend([7; 16]);
    let lists: [&str; 10] = [
        "curve25519-sha256,kex-strict-c-v00@openssh.com",
        "ssh-ed25519-cert-v01@openssh.com,ssh-ed25519",
        "aes256-gcm@openssh.com",
        "aes256-gcm@openssh.com",
        "hmac-sha2-256-etm@openssh.com",
        "hmac-sha2-256-etm@openssh.com",
        "none",
        "none",
        "",
        "",
    ];
    lists.iter().for_each(|list| payload.extend(string(list.as_bytes())));
    payload.extend([0; 5]);
    packet(&payload)
}

/// Sends bytes and reads what comes until the end; a server that has hung up takes no more.
async fn speak(mut stream: DuplexStream, pieces: Vec<Vec<u8>>) -> Vec<u8> {
    let mut heard = Vec::new();
    let talk = async {
        for piece in pieces {
            if stream.write_all(&piece).await.is_err() {
                break;
            }
        }
        let _ = stream.read_to_end(&mut heard).await;
    };
    tokio::time::timeout(PATIENCE, talk).await.expect("it hangs up");
    heard
}

/// Tells whether a server went on to keys: its packets before that have no cipher.
fn agreed(mut heard: &[u8]) -> bool {
    let line = heard.iter().position(|byte| *byte == b'\n').map_or(heard.len(), |at| at + 1);
    heard = &heard[line..];
    while let Some((length, rest)) = heard.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        if rest.get(1) == Some(&NEWKEYS) {
            return true;
        }
        heard = rest.get(length..).unwrap_or_default();
    }
    false
}

#[tokio::test]
async fn s27_what_breaks_the_protocol_before_a_login_ends_the_connection() {
    let hello = || b"SSH-2.0-x\r\n".to_vec();
    let share = |share: &[u8]| packet(&[&[ECDH_INIT][..], &string(share)].concat());
    let long = |length: u32| [&length.to_be_bytes()[..], &[0; 4096]].concat();
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("a banner without an end", vec![vec![b'x'; 1 << 20]; 8]),
        ("lines without end before the banner", vec![b"no banner\r\n".repeat(1 << 16); 8]),
        ("a packet of 4 GiB", vec![hello(), long(u32::MAX)]),
        ("a packet of 300 KiB", vec![hello(), long(300 << 10), vec![0; 300 << 10]]),
        ("a packet of nothing", vec![hello(), long(0)]),
        ("padding longer than its packet", vec![hello(), [&8_u32.to_be_bytes()[..], &[255; 8]].concat()]),
        ("a share of zeros", vec![hello(), kexinit(), share(&[0; 32])]),
        ("a share of low order", vec![hello(), kexinit(), share(&[&[1][..], &[0; 31]].concat())]),
        ("a short share", vec![hello(), kexinit(), share(&[9; 5])]),
        ("a long share", vec![hello(), kexinit(), share(&[9; 4096])]),
        ("no share", vec![hello(), kexinit(), packet(&[ECDH_INIT])]),
        (
            "a word to be ignored amid strict keys",
            vec![hello(), kexinit(), packet(&[&[2][..], &string(b"x")].concat())],
        ),
        ("a login before keys", vec![hello(), packet(&[&[5][..], &string(b"ssh-userauth")].concat())]),
        ("the end at once", vec![]),
    ];
    let key = one_time_key().expect("as it should be");
    for (what, pieces) in cases {
        let (served, mut far) = Served::new(&[&key]);
        if pieces.is_empty() {
            far.shutdown().await.expect("as it should be");
        }
        let heard = speak(far, pieces).await;
        assert!(!agreed(&heard), "{what}: keys were agreed upon");
        served.refuses(what).await;
    }
}

#[tokio::test]
async fn s27_noise_panics_nothing() {
    let key = one_time_key().expect("as it should be");
    let mut seed: u64 = 0x5eed_0027;
    let mut noise = |count: usize| -> Vec<u8> {
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed.to_le_bytes()[3]
        };
        (0..count).map(|_| next()).collect()
    };
    for round in 0..60 {
        let (served, far) = Served::new(&[&key]);
        let mut exchange = kexinit();
        let at = 5 + usize::from(noise(1)[0]) % (exchange.len() - 5);
        exchange[at] ^= noise(1)[0] | 1;
        let pieces = match round % 3 {
            0 => vec![b"SSH-2.0-x\r\n".to_vec(), noise(4096)],
            1 => vec![b"SSH-2.0-x\r\n".to_vec(), exchange, packet(&noise(200))],
            _ => vec![b"SSH-2.0-x\r\n".to_vec(), kexinit(), packet(&noise(64)), noise(512)],
        };
        let mut far = far;
        for piece in pieces {
            if far.write_all(&piece).await.is_err() {
                break;
            }
        }
        let _ = far.shutdown().await;
        let mut heard = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, far.read_to_end(&mut heard)).await.expect("it hangs up");
        served.refuses("noise").await;
    }
}

#[tokio::test]
async fn s27_six_keys_are_tried_and_no_more() {
    let good = one_time_key().expect("as it should be");
    let (served, far) = Served::new(&[&good]);
    let mut handle = client(far).await;
    for _ in 0..TRIES {
        let other = one_time_key().expect("as it should be");
        if tries(&mut handle, "web", &other).await.is_none() {
            break;
        }
    }
    assert_ne!(tries(&mut handle, "web", &good).await, Some(true), "the right one came too late");
    drop(handle);
    served.refuses("many keys").await;
}

#[tokio::test]
async fn s27_channels_are_bounded_and_come_back() {
    let key = one_time_key().expect("as it should be");
    let (served, far) = Served::new(&[&key]);
    let mut handle = client(far).await;
    assert_eq!(tries(&mut handle, "web", &key).await, Some(true));
    let (mut open, mut refused) = (Vec::new(), 0);
    for _ in 0..CHANNELS * 2 {
        match tokio::time::timeout(PATIENCE, handle.channel_open_session()).await.expect("an answer") {
            Ok(channel) => open.push(channel),
            Err(_) => refused += 1,
        }
    }
    assert_eq!((open.len(), refused), (CHANNELS, CHANNELS));
    // One of them works and echoes what it gets.
    let mut channel = open.pop().expect("as it should be");
    channel.exec(false, "anything").await.expect("as it should be");
    channel.data(&b"here\n"[..]).await.expect("as it should be");
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains("here") {
        match tokio::time::timeout(PATIENCE, channel.wait()).await.expect("an answer") {
            Some(ChannelMsg::Data { data }) => heard.extend_from_slice(&data),
            Some(_) => {}
            None => panic!("no echo"),
        }
    }
    open.push(channel);
    // What was closed is free again, and what was refused was never counted.
    for channel in open {
        channel.close().await.expect("as it should be");
    }
    let mut again = Vec::new();
    let fill = async {
        while again.len() < CHANNELS {
            match handle.channel_open_session().await {
                Ok(channel) => again.push(channel),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, fill).await.expect("all of them come back");
    drop((again, handle));
    tokio::time::timeout(PATIENCE, served.server).await.expect("it ends with its client").expect("no panic").ok();
}

#[tokio::test]
async fn a87_s25_what_counts_is_the_key_that_was_proven_under_the_name_that_was_given_with_it() {
    let (good, other) = (one_time_key().expect("as it should be"), one_time_key().expect("as it should be"));
    let (served, far) = Served::new(&[&good]);
    let mut handle = client(far).await;
    // A registered key under a name that nobody may have, then a good name with a key that nobody registered: neither
    // lends the other what it has.
    assert_eq!(tries(&mut handle, "-x", &good).await, Some(false));
    assert_eq!(tries(&mut handle, "web", &other).await, Some(false));
    assert!(tokio::time::timeout(PATIENCE, handle.channel_open_session()).await.expect("an answer").is_err());
    drop(handle);
    served.refuses("nothing proven").await;

    // Refused first and proven then: the record names what was proven.
    let (served, far) = Served::new(&[&good]);
    let mut handle = client(far).await;
    assert_eq!(tries(&mut handle, "root", &other).await, Some(false));
    assert_eq!(tries(&mut handle, "web", &good).await, Some(true));
    let happened = served.place.0.lock().expect("as it should be").clone();
    let fingerprint = good.public_key().fingerprint(HashAlg::Sha256).to_string();
    assert_eq!(happened.len(), 1, "{happened:?}");
    let login = &happened[0];
    assert_eq!((login.action, login.login.as_str(), login.key.as_str()), ("ssh_login", "web", fingerprint.as_str()));
}
