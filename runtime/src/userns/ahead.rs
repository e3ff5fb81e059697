//! Namespaces that are made, and their ids mapped, while their container is still being prepared.
//!
//! newuidmap and newgidmap take a fifth of a start and a network namespace another part of it, and nothing has to be
//! known for them but the ids. A launch that does not get them makes its own.

use std::os::fd::OwnedFd;

use super::make;
use crate::failure::LaunchFailure;
use crate::fork::{Forked, fork};
use crate::idmap::{IdMap, needs_helpers};
use crate::launch::channel::{self, Message};
use crate::launch::{close_in_child, open_namespace};
use crate::sys::CloneFlags;

/// Is a user namespace on its way, and a network that belongs to it where that was asked for. It can be handed to a
/// copy of the process that began it.
#[derive(Debug)]
pub struct Ahead {
    map: IdMap,
    network: bool,
    answer: OwnedFd,
}

/// Is what was made.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) user: OwnedFd,
    pub(crate) network: Option<OwnedFd>,
}

/// Is the process that makes it. It ends by itself, and is waited for where this is dropped.
#[derive(Debug)]
pub struct Maker(Forked);

impl Ahead {
    /// Begins where the helpers are needed; the caller is single-threaded.
    pub fn begin(map: &IdMap, network: bool) -> Option<(Self, Maker)> {
        if !needs_helpers(map) {
            return None;
        }
        let (answer, tell) = channel::pair().ok()?;
        let made = fork(|| {
            close_in_child(&answer);
            let flags = if network { CloneFlags::USER.with(CloneFlags::NET) } else { CloneFlags::USER };
            let kinds: &[&str] = if network { &["user", "net"] } else { &["user"] };
            let opened = make(map, flags, |pid| kinds.iter().map(|kind| open_namespace(pid, kind)).collect());
            let messages: Vec<Message> = match opened {
                Ok(namespaces) => Vec::into_iter(namespaces).map(Message::Namespace).collect(),
                Err(failure) => vec![Message::Failure(failure)],
            };
            i32::from(messages.iter().any(|message| channel::send(&tell, message).is_err()))
        });
        let maker = Maker(made.ok()?);
        Some((Self { map: map.clone(), network, answer }, maker))
    }

    /// Its descriptor, for whoever keeps only a few.
    pub fn channel(&self) -> &OwnedFd {
        &self.answer
    }

    /// Waits for what was begun, at most as long as for the helpers; None where that has another map or its maker
    /// was killed.
    pub(crate) fn take(self, map: &IdMap) -> Result<Option<Made>, LaunchFailure> {
        if self.map != *map {
            return Ok(None);
        }
        let Some(user) = self.receive()? else { return Ok(None) };
        let network = if self.network { self.receive()? } else { None };
        Ok(Some(Made { user, network }))
    }

    fn receive(&self) -> Result<Option<OwnedFd>, LaunchFailure> {
        match channel::receive(&self.answer) {
            Ok(Some(Message::Namespace(namespace))) => Ok(Some(namespace)),
            Ok(Some(Message::Failure(failure))) => Err(failure),
            _ => Ok(None),
        }
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        // How it ended is said by what was sent.
        let _ = self.0.wait();
    }
}
