//! A person's side of a session, for `pool exec`: a key for this one stream, and a host that proves itself.

use std::borrow::Cow;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use russh::client::{Config, Handle, Handler, Msg, connect_stream};
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{Channel, ChannelMsg, Preferred};
use rustix::termios::tcgetwinsize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};

use super::COPY;
use super::server::preferred;

/// The host proves itself, and takes the key, within this time.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that are read from the caller at once.
const PIECE_BYTES: usize = 32 * 1024;
/// Exit code where the far side tells none: the connection was lost.
const EXIT_LOST: u32 = 255;

/// Says why a program was not run, or its end is not known.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The key of the provider's authority cannot be read.
    #[error("cannot read the SSH authority of the provider")]
    Authority(#[source] russh::keys::ssh_key::Error),
    /// The connection failed; among the reasons is a host that could not prove itself.
    #[error("cannot speak with the instance")]
    Ssh(#[from] russh::Error),
    /// The key was not taken.
    #[error("the provider does not take the key of this stream")]
    Refused,
    /// An older agent.
    #[error("the provider copies no files")]
    NoCopies,
    /// Nothing came.
    #[error("the provider does not answer")]
    Silent,
    /// The caller's own streams.
    #[error("cannot use the terminal")]
    Own(#[from] std::io::Error),
    /// The words cannot be sent.
    #[error("cannot send the command")]
    Words(#[from] serde_json::Error),
}

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Request {
    /// The name to log in by.
    pub login: String,
    /// The instance's id, to which the host's certificate must be made out.
    pub host: String,
    /// The public key of the authority that the certificate must come from, in OpenSSH's one-line form.
    pub authority: String,
    /// Program and arguments; those of a copy are its one order.
    pub words: Vec<String>,
    /// The words are no program's but a copy's.
    pub copy: bool,
    /// Read the caller's standard input.
    pub interactive: bool,
    /// Kind of the terminal, when there is to be one.
    pub terminal: Option<String>,
}

/// Takes the place of the caller's standard input and output.
#[derive(Debug, Default)]
pub struct Ends {
    /// What is sent.
    pub input: Option<File>,
    /// Where that goes which comes.
    pub output: Option<File>,
}

struct Judge {
    authority: PublicKey,
    host: String,
}

impl Handler for Judge {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        // The key itself is nobody's word: only the certificate counts.
        let Some(certificate) = shown.certificate() else { return Ok(false) };
        let trusted = self.authority.fingerprint(HashAlg::Sha256);
        Ok(certificate.validate([&trusted]).is_ok()
            && certificate.cert_type() == CertType::Host
            && certificate.valid_principals() == [self.host.clone()]
            && certificate.critical_options().is_empty())
    }
}

/// Runs a program through a stream; gives its exit code. The caller has made its terminal raw where there is one.
pub async fn run(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    key: PrivateKey,
    request: &Request,
    ends: Ends,
) -> Result<u32, ClientError> {
    let authority = PublicKey::from_openssh(&request.authority).map_err(ClientError::Authority)?;
    let judge = Judge { authority, host: request.host.clone() };
    let preferred = Preferred { host_key_certificates: Cow::Borrowed(&[Algorithm::Ed25519]), ..preferred() };
    let config = Arc::new(Config { preferred, ..Config::default() });
    let enter = async {
        let mut handle: Handle<Judge> = connect_stream(config, stream, judge).await?;
        let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
        if !handle.authenticate_publickey(request.login.clone(), key).await?.success() {
            return Err(ClientError::Refused);
        }
        let channel = handle.channel_open_session().await?;
        Ok((handle, channel))
    };
    let (_handle, channel) = tokio::time::timeout(PATIENCE, enter).await.map_err(|_| ClientError::Silent)??;
    if let Some(kind) = &request.terminal {
        let (columns, rows) = size();
        channel.request_pty(false, kind, columns, rows, 0, 0, &[]).await?;
    }
    match request.copy {
        true => channel.request_subsystem(true, format!("{COPY}{}", request.words.concat())).await?,
        false => channel.exec(false, serde_json::to_string(&request.words)?).await?,
    }
    let own_input = || -> Box<dyn AsyncRead + Unpin> { Box::new(tokio::io::stdin()) };
    let input = ends.input.map_or_else(own_input, |file| Box::new(tokio::fs::File::from_std(file)));
    let own_output = || -> Box<dyn AsyncWrite + Unpin> { Box::new(tokio::io::stdout()) };
    let output = ends.output.map_or_else(own_output, |file| Box::new(tokio::fs::File::from_std(file)));
    converse(channel, request, input, output).await
}

/// Gives columns and rows of the caller's terminal.
fn size() -> (u32, u32) {
    tcgetwinsize(std::io::stdin().as_fd()).map_or((80, 24), |size| (size.ws_col.into(), size.ws_row.into()))
}

async fn converse(
    channel: Channel<Msg>,
    request: &Request,
    mut input: Box<dyn AsyncRead + Unpin>,
    mut output: Box<dyn AsyncWrite + Unpin>,
) -> Result<u32, ClientError> {
    let (mut reader, writer) = channel.split();
    let mut errors = tokio::io::stderr();
    let mut resized = signal(SignalKind::window_change())?;
    let typed = async {
        if request.interactive {
            let mut buffer = vec![0; PIECE_BYTES];
            let mut to = writer.make_writer();
            while let Ok(count @ 1..) = input.read(&mut buffer).await {
                to.write_all(&buffer[..count]).await?;
            }
        }
        writer.eof().await?;
        // What comes from the far side ends the conversation.
        std::future::pending::<Result<(), ClientError>>().await
    };
    tokio::pin!(typed);
    let mut code = EXIT_LOST;
    let mut typing = true;
    loop {
        tokio::select! {
            message = reader.wait() => match message {
                Some(ChannelMsg::Data { data }) => {
                    output.write_all(&data).await?;
                    output.flush().await?;
                }
                Some(ChannelMsg::ExtendedData { data, .. }) => {
                    errors.write_all(&data).await?;
                    errors.flush().await?;
                }
                Some(ChannelMsg::Failure) if request.copy => return Err(ClientError::NoCopies),
                Some(ChannelMsg::ExitStatus { exit_status }) => code = exit_status,
                None | Some(ChannelMsg::Close) => return Ok(code),
                Some(_) => {}
            },
            // The far side takes no more input: what it says still counts.
            _ = &mut typed, if typing => typing = false,
            _ = resized.recv(), if request.terminal.is_some() => {
                let (columns, rows) = size();
                let _ = writer.window_change(columns, rows, 0, 0).await;
            }
        }
    }
}
