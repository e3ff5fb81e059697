//! `pool cp`: the two halves of a copy whose container is on another machine.
//!
//! The half beside the container reads an order that came from the other one and works on its standard streams; the
//! half beside the person has the person's rights and Docker's rules about the person's path. An archive is between.

use std::fs::File;
use std::io::{PipeReader, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use super::copy::{CopyEnd, CopyOptions, give, host_gives, host_takes, takes, takes_archive};
use super::ends::{Asked, Base};
use super::{Copied, Purpose, Root, TransferError, with_root};
use crate::engine::containers::Container;
use crate::engine::{Engine, EngineError};
use coracle_images::unpack::TOP;

/// Says to the half beside the container what is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FarOrder {
    /// The path in the container, as the person wrote it.
    path: String,
    way: Way,
    /// Follow a link that is the source.
    follow: bool,
    /// Say nothing about what was left out.
    pub quiet: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Way {
    /// Out of the container; `named` for an archive that keeps the name.
    Out { named: bool },
    /// Into it, from this path of the person's.
    Into { source: String },
    /// Into it, from an archive with names of its own.
    IntoDirectory,
}

/// Does the container's half.
pub fn far(engine: &Engine, container: &Container, order: &FarOrder) -> Result<Copied, EngineError> {
    let asked = Asked::parse(order.path.as_bytes());
    let purpose = if matches!(order.way, Way::Out { .. }) { Purpose::Read } else { Purpose::Write };
    let work = |root: &Root| match &order.way {
        Way::Out { named } => {
            let output = std::io::stdout().as_fd().try_clone_to_owned().map_err(TransferError::Pipe)?;
            let top = if *named { asked.name().unwrap_or_default() } else { TOP };
            Ok(give(Base::Container(root), &asked, top, None, order.follow, File::from(output))?)
        }
        Way::Into { source } => {
            Ok(takes(root, container, std::io::stdin().lock(), &Asked::parse(source.as_bytes()), &asked)?)
        }
        Way::IntoDirectory => Ok(takes_archive(root, container, std::io::stdin().lock(), &asked)?),
    };
    with_root(engine, container, purpose, work, || ()).map(|(copied, ())| copied)
}

/// Is the person's half, and what the other is told.
pub struct FarCopy {
    pub order: FarOrder,
    /// What goes to the other half; nothing means standard input.
    pub input: Option<File>,
    /// Where that goes which comes from it; nothing means standard output.
    pub output: Option<File>,
    own: Option<JoinHandle<Result<Copied, TransferError>>>,
}

impl FarCopy {
    /// Begins the person's half; what is not there is said before anything is asked for.
    pub fn begin(from: &CopyEnd, to: &CopyEnd, options: CopyOptions, quiet: bool) -> Result<Self, TransferError> {
        let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        let order = |path: &[u8], way| FarOrder { path: text(path), way, follow: options.follow, quiet };
        let half = |order| Self { order, input: None, output: None, own: None };
        match (from, to) {
            (CopyEnd::Container { path, .. }, CopyEnd::Stream) => Ok(half(order(path, Way::Out { named: true }))),
            (CopyEnd::Stream, CopyEnd::Container { path, .. }) => Ok(half(order(path, Way::IntoDirectory))),
            (CopyEnd::Container { path, .. }, CopyEnd::Host(target)) => {
                let (reader, writer): (PipeReader, PipeWriter) = std::io::pipe().map_err(TransferError::Pipe)?;
                let (asked, target) = (Asked::parse(path), Asked::parse(target));
                let own =
                    std::thread::spawn(move || host_takes(File::from(OwnedFd::from(reader)), &asked, &target, options));
                let output = Some(File::from(OwnedFd::from(writer)));
                Ok(Self { output, own: Some(own), ..half(order(path, Way::Out { named: false })) })
            }
            (CopyEnd::Host(source), CopyEnd::Container { path, .. }) => {
                let asked = Asked::parse(source);
                drop(Base::Host.source(&asked, options.follow)?);
                let (reader, writer) = std::io::pipe().map_err(TransferError::Pipe)?;
                let own = std::thread::spawn(move || host_gives(File::from(OwnedFd::from(writer)), &asked, options));
                let input = Some(File::from(OwnedFd::from(reader)));
                Ok(Self { input, own: Some(own), ..half(order(path, Way::Into { source: text(source) })) })
            }
            _ => Err(TransferError::Ends),
        }
    }

    /// Waits for the person's half, after the ends of the pipe were closed.
    pub fn end(self) -> Result<Copied, TransferError> {
        drop((self.input, self.output));
        let ended = self.own.map(|own| own.join().unwrap_or(Err(TransferError::Ends)));
        ended.unwrap_or(Ok(Copied::default()))
    }
}
