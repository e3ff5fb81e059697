//! A user namespace that is made, and its ids mapped, while its container is still being prepared.
//!
//! newuidmap and newgidmap take a third of a start, and nothing has to be known for them but the ids. The namespace is
//! there long before they have ended, so a launch can clone into it meanwhile. One that does not get it makes its own.

use std::os::fd::OwnedFd;

use super::make;
use crate::failure::{LaunchFailure, Stage};
use crate::fork::{Forked, fork};
use crate::idmap::{self, IdMap, needs_helpers};
use crate::launch::channel::{self, Message};
use crate::launch::fault::Fault;
use crate::launch::{close_in_child, open_namespace};

/// Is a user namespace on its way. It can be handed to a copy of the process that began it.
#[derive(Debug)]
pub struct Ahead {
    map: IdMap,
    answer: OwnedFd,
}

/// Is a user namespace that is there; its ids are on their way.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) user: OwnedFd,
    answer: OwnedFd,
}

/// Is the process that makes it. It ends by itself, and is waited for where this is dropped.
#[derive(Debug)]
pub struct Maker(Forked);

impl Ahead {
    /// Begins where the helpers are needed; the caller is single-threaded.
    pub fn begin(map: &IdMap) -> Option<(Self, Maker)> {
        if !needs_helpers(map) {
            return None;
        }
        let (answer, tell) = channel::pair().ok()?;
        let made = fork(|| {
            close_in_child(&answer);
            let told = |message| channel::send(&tell, &message).fault(Stage::Ids, "tell", "launcher");
            let made = make(|pid| {
                told(Message::Namespace(open_namespace(pid, "user")?))?;
                idmap::write(pid, map)?;
                told(Message::Mapped)
            });
            // Nobody may be there to hear it.
            i32::from(made.is_err_and(|failure| told(Message::Failure(failure)).is_err()))
        });
        let maker = Maker(made.ok()?);
        Some((Self { map: map.clone(), answer }, maker))
    }

    /// Its descriptor, for whoever keeps only a few.
    pub fn channel(&self) -> &OwnedFd {
        &self.answer
    }

    /// Waits for the namespace; None where it has another map or its maker was killed.
    pub(crate) fn take(self, map: &IdMap) -> Result<Option<Made>, LaunchFailure> {
        if self.map != *map {
            return Ok(None);
        }
        match channel::receive(&self.answer) {
            Ok(Some(Message::Namespace(user))) => Ok(Some(Made { user, answer: self.answer })),
            Ok(Some(Message::Failure(failure))) => Err(failure),
            _ => Ok(None),
        }
    }
}

impl Made {
    /// Waits for the ids, at most as long as for the helpers. Those of a maker that was killed are mapped from here, by
    /// way of a process in the namespace.
    pub(crate) fn wait_for_ids(&self, pid: i32, map: &IdMap) -> Result<(), LaunchFailure> {
        match channel::receive(&self.answer) {
            Ok(Some(Message::Mapped)) => Ok(()),
            Ok(Some(Message::Failure(failure))) => Err(failure),
            _ => idmap::complete(pid, map),
        }
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        // How it ended is said by what was sent.
        let _ = self.0.wait();
    }
}
