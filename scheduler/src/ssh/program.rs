//! One program of a session: its streams or its terminal, the window's size, signals, and its end.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use russh::server::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, Sig};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncWrite;
use tokio::process::{Child, Command};

use super::channel::{Inputs, Next, Outputs, Writer, stuck};
use super::terminal::Terminal;
use super::{Asked, Happened, Place};

/// After a program's end its streams may be held by others, as by `sleep 100 &`: so long without a byte is the end.
const LINGER: Duration = Duration::from_millis(300);
/// How long a program may take to end when its person has gone.
const HANG_UP: Duration = Duration::from_secs(5);
/// `VEOF` as a terminal starts out: what a person types for the end of the input.
const END_OF_INPUT: &[u8] = &[4];
/// `VINTR` and `VQUIT` likewise.
const INTERRUPT: &[u8] = &[3];
const QUIT: &[u8] = &[28];
/// Exit code of what could not be started, as sshd gives it.
const EXIT_BROKEN: u32 = 255;
/// Standard error among the kinds of extended data (RFC 4254, 5.2).
const STDERR: u32 = 1;

/// What a person asked for before the program begins.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Kind, columns and rows of a terminal.
    pub terminal: Option<(String, u32, u32)>,
    /// Variables.
    pub env: Vec<(String, String)>,
}

/// What is to run.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// A program.
    Words(Vec<String>),
    /// The SFTP subsystem.
    Files,
    /// A copy by `pool cp`.
    Copy(String),
}

/// Runs a program on a channel until either ends; what happened is written down before the person hears of it.
pub async fn run(
    channel: Channel<Msg>,
    place: Arc<dyn Place>,
    wanted: Wanted,
    setup: Setup,
    user: Option<String>,
    who: Happened,
) {
    let (reader, writer) = channel.split();
    let mut ended = who;
    ended.action = "ssh_end";
    let command = match wanted {
        Wanted::Files => place.files(user.as_deref()),
        Wanted::Copy(order) => place.copy(&order),
        Wanted::Words(words) => {
            let mut env = setup.env.clone();
            env.extend(setup.terminal.as_ref().map(|(kind, ..)| ("TERM".to_owned(), kind.clone())));
            place.program(&Asked { user, words, env, terminal: setup.terminal.is_some() })
        }
    };
    let (code, bytes) = match start(Command::from(command), reader, &writer, setup.terminal.as_ref()).await {
        Ok(outcome) => outcome,
        Err(error) => {
            let said = format!("cannot start: {error}\r\n");
            let _ = writer.extended_data_bytes(STDERR, said.into_bytes()).await;
            (Some(EXIT_BROKEN), (0, 0))
        }
    };
    (ended.exit, ended.bytes) = (code, Some(bytes));
    place.happened(&ended);
    if let Some(code) = code {
        let _ = writer.exit_status(code).await;
    }
    let _ = writer.eof().await;
    let _ = writer.close().await;
}

type Outcome = (Option<u32>, (u64, u64));

async fn start(
    mut command: Command,
    reader: ChannelReadHalf,
    writer: &Writer,
    terminal: Option<&(String, u32, u32)>,
) -> std::io::Result<Outcome> {
    let mut outputs = Outputs::default();
    if let Some((_, columns, rows)) = terminal {
        let (outer, inner) = Terminal::open(*columns, *rows)?;
        command.stdin(inner.try_clone()?).stdout(inner.try_clone()?).stderr(inner);
        let child = command.spawn()?;
        // This process's copies of the inner side go, so that the program's end is the end of the stream.
        drop(command);
        let (from, to) = outer.streams()?;
        outputs.add(from, writer, None);
        return Ok(converse(child, reader, outputs, to, Some(outer)).await);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(std::io::ErrorKind::BrokenPipe.into());
    };
    outputs.add(stdout, writer, None);
    outputs.add(stderr, writer, Some(STDERR));
    Ok(converse(child, reader, outputs, stdin, None).await)
}

/// Moves bytes until the program has ended and everything it wrote was taken, or the person has gone.
async fn converse(
    mut child: Child,
    mut reader: ChannelReadHalf,
    mut outputs: Outputs,
    input: impl AsyncWrite + Unpin,
    terminal: Option<Terminal>,
) -> Outcome {
    let gauge = Arc::clone(&outputs.gauge);
    let mut inputs = Inputs::new(input);
    let mut code = None;
    let mut seen = 0;
    loop {
        tokio::select! {
            message = reader.wait(), if inputs.has_room(&gauge) => match inputs.take(message) {
                Next::Go => {}
                Next::Stop => break,
                Next::Other(message) => act(&message, &child, terminal.as_ref(), &mut inputs),
            },
            () = inputs.write() => {}
            () = stuck(&gauge) => {}
            status = child.wait(), if code.is_none() => code = Some(status.map_or(EXIT_BROKEN, exit_code)),
            _ = outputs.one_ended() => {}
            () = tokio::time::sleep(LINGER), if code.is_some() && !gauge.is_stuck() => {
                if std::mem::replace(&mut seen, gauge.bytes()) == gauge.bytes() {
                    break;
                }
            }
        }
        if code.is_some() && outputs.is_over() {
            break;
        }
    }
    if code.is_none() {
        hang_up(&mut child).await;
    }
    (code, (inputs.bytes, gauge.bytes()))
}

/// Ends a program whose person has gone. It is asked first, because it has to take note of the end of what it started
/// in the instance, which could not end otherwise (pid_namespaces(7)); the end of the session asks in the same way.
async fn hang_up(child: &mut Child) {
    send(child, Signal::HUP);
    if tokio::time::timeout(HANG_UP, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

fn send(child: &Child, signal: Signal) {
    // Not reaped yet, or there is no number: so it is the child's own.
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

fn exit_code(status: std::process::ExitStatus) -> u32 {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u32::try_from(code).ok()).unwrap_or(EXIT_BROKEN)
}

fn act<W: AsyncWrite + Unpin>(
    message: &ChannelMsg,
    child: &Child,
    terminal: Option<&Terminal>,
    inputs: &mut Inputs<W>,
) {
    match (message, terminal) {
        (ChannelMsg::Eof, Some(_)) => inputs.put(END_OF_INPUT),
        (ChannelMsg::WindowChange { col_width, row_height, .. }, Some(terminal)) => {
            terminal.resize(*col_width, *row_height);
        }
        (ChannelMsg::Signal { signal: Sig::INT }, Some(_)) => inputs.put(INTERRUPT),
        (ChannelMsg::Signal { signal: Sig::QUIT }, Some(_)) => inputs.put(QUIT),
        (ChannelMsg::Signal { signal }, _) => {
            if let Some(signal) = named(signal) {
                send(child, signal);
            }
        }
        _ => {}
    }
}

/// The signals of RFC 4254, 6.10, that a person sends to a program; KILL would only reach what stands before it.
fn named(signal: &Sig) -> Option<Signal> {
    Some(match signal {
        Sig::HUP => Signal::HUP,
        Sig::INT => Signal::INT,
        Sig::QUIT => Signal::QUIT,
        Sig::TERM => Signal::TERM,
        Sig::USR1 => Signal::USR1,
        Sig::Custom(name) if name == "USR2" => Signal::USR2,
        _ => return None,
    })
}
