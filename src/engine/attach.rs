//! A command at a container that has a shim: waits for its start, or moves bytes until it ends.

use coracle_shim::attach::{AttachOptions, Outcome, Session};
use coracle_shim::client::{Client, ClientError};
use coracle_shim::protocol::{FRAME_BYTES_MAX, Output, Request};

use super::container::short_id;
use super::containers::{self, Container, Status};
use super::record::UNKNOWN_EXIT_CODE;
use super::{Elsewhere, Engine, EngineError};

/// Waits until the container's program runs.
pub fn wait_for_start(client: &Client, id: &str) -> Result<(), EngineError> {
    let mut buffer = [0; FRAME_BYTES_MAX];
    loop {
        match client.receive(&mut buffer)? {
            Some(Output::Started) => return Ok(()),
            Some(Output::Failed(text)) => return Err(failure(text)),
            Some(_) => {}
            None => return Err(EngineError::ShimLost(short_id(id).to_owned())),
        }
    }
}

/// Moves bytes until the container ends; None when the person has left it.
pub fn follow(client: Client, options: AttachOptions, id: &str) -> Result<Option<i32>, EngineError> {
    let session = Session::new(client, options).map_err(EngineError::Supervise)?;
    match session.run()? {
        Outcome::Exited(code) => Ok(Some(code)),
        Outcome::Failed(text) => Err(failure(&text)),
        Outcome::Detached => Ok(None),
        Outcome::Lost => Err(EngineError::ShimLost(short_id(id).to_owned())),
    }
}

/// Attaches to a container that runs; gives its exit code, None when the person has left it.
pub fn attach(engine: &Engine, wanted: &str, mut options: AttachOptions) -> Result<Option<i32>, EngineError> {
    let container = containers::find(engine.root(), wanted)?;
    match container.status() {
        Status::Running => {}
        Status::Paused => return Err(EngineError::ContainerPaused(wanted.to_owned())),
        Status::Restarting => return Err(EngineError::Restarting(wanted.to_owned())),
        _ => return Err(EngineError::NotRunning(wanted.to_owned())),
    }
    if container.is_foreground() {
        return Err(EngineError::InForeground(wanted.to_owned()));
    }
    options.terminal = container.record.tty;
    options.stdin &= container.record.open_stdin;
    options.pass_signals &= !options.terminal;
    if options.terminal && options.stdin {
        super::run::require_terminal()?;
    }
    let client = Client::connect(&container.socket())?;
    client.send(Request::Attach { stdin: options.stdin })?;
    match follow(client, options, container.id()) {
        // It ended in this moment, which its record tells.
        Err(EngineError::ShimLost(_) | EngineError::Shim(ClientError::Lost(_))) => {
            Ok(Some(recorded_code(engine, &container)))
        }
        other => other,
    }
}

fn recorded_code(engine: &Engine, container: &Container) -> i32 {
    let now = Container::read(engine.root(), container.id()).ok().flatten();
    now.and_then(|now| now.exit).map_or(UNKNOWN_EXIT_CODE, |exit| exit.exit_code)
}

/// Takes an error that the shim put into words.
fn failure(text: &[u8]) -> EngineError {
    let unclear = || Elsewhere { message: "the container could not be started".into(), hints: vec![], exit_code: None };
    EngineError::Elsewhere(serde_json::from_slice(text).unwrap_or_else(|_| unclear()))
}
