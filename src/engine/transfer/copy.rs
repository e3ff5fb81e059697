//! `cp`: files from the host into a container, out of one, or as an archive through a pipe.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;

use coracle_images::limits::Limits;
use coracle_images::pack::{PackOptions, Style, pack};
use coracle_images::unpack::{ExtractOptions, TOP, extract};
use coracle_images::{Ownership, UnpackReport};
use rustix::pipe::{PipeFlags, pipe_with};

use super::ends::{Asked, Base};
use super::{Copied, Purpose, Root, TransferError, with_root};
use crate::engine::containers::{self, Container};
use crate::engine::{Engine, EngineError};

/// What goes through the pipe at once.
const BUFFER_BYTES: usize = 128 << 10;
/// Without `-a` a copy on the host never runs with more rights than its caller's other programs: a
/// setuid bit from a container would let everybody be the caller.
const PLAIN_MODE: u32 = 0o1777;
const FULL_MODE: u32 = 0o7777;

/// Is one of the two paths of `cp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyEnd {
    /// `-`: an archive on standard input or output.
    Stream,
    Host(Vec<u8>),
    Container {
        container: String,
        path: Vec<u8>,
    },
}

impl CopyEnd {
    /// Reads an argument as docker does: `CONTAINER:PATH`, unless it begins like a path.
    pub fn parse(text: &str) -> Self {
        match text.split_once(':') {
            _ if text == "-" => Self::Stream,
            Some((container, path)) if !text.starts_with(['/', '.']) && !container.is_empty() => {
                Self::Container { container: container.to_owned(), path: path.as_bytes().to_vec() }
            }
            _ => Self::Host(text.as_bytes().to_vec()),
        }
    }
}

/// Is what `cp` can be told.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyOptions {
    /// Keep owners.
    pub archive: bool,
    /// Follow a link that is the source.
    pub follow: bool,
}

/// Names the side that is not a container.
enum Side {
    Stream,
    Host(Asked),
}

/// Copies.
pub fn copy(engine: &Engine, from: CopyEnd, to: CopyEnd, options: CopyOptions) -> Result<Copied, EngineError> {
    let side = |end| match end {
        CopyEnd::Stream => Ok(Side::Stream),
        CopyEnd::Host(path) => Ok(Side::Host(Asked::parse(&path))),
        CopyEnd::Container { .. } => Err(TransferError::Ends),
    };
    match (from, to) {
        (CopyEnd::Container { container, path }, to) => {
            let container = containers::find(engine.root(), &container)?;
            out_of(engine, &container, &Asked::parse(&path), &side(to)?, options)
        }
        (from, CopyEnd::Container { container, path }) => {
            let container = containers::find(engine.root(), &container)?;
            into(engine, &container, &side(from)?, &Asked::parse(&path), options)
        }
        _ => Err(TransferError::Ends.into()),
    }
}

/// An end of a pipe that exists in two processes and belongs to one of them.
struct End(Mutex<Option<OwnedFd>>);

impl End {
    fn new(fd: OwnedFd) -> Self {
        Self(Mutex::new(Some(fd)))
    }

    /// Takes the end, in the process that it belongs to.
    fn take(&self) -> Result<File, TransferError> {
        let mut slot = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        slot.take().map(File::from).ok_or_else(|| TransferError::Pipe(std::io::ErrorKind::NotFound.into()))
    }

    /// Closes the end, in the other one.
    fn close(&self) {
        drop(self.take());
    }
}

fn pipe() -> Result<(End, End), TransferError> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| TransferError::Pipe(errno.into()))?;
    Ok((End::new(reader), End::new(writer)))
}

fn out_of(
    engine: &Engine,
    container: &Container,
    asked: &Asked,
    to: &Side,
    options: CopyOptions,
) -> Result<Copied, EngineError> {
    let Side::Host(target) = to else {
        let top = asked.name().unwrap_or_default().to_vec();
        let work = |root: &Root| {
            let output = std::io::stdout().as_fd().try_clone_to_owned().map_err(TransferError::Pipe)?;
            Ok(give(Base::Container(root), asked, &top, None, options.follow, File::from(output))?)
        };
        return with_root(engine, container, Purpose::Read, work, || ()).map(|(copied, ())| copied);
    };
    let (reader, writer) = pipe()?;
    let work = |root: &Root| {
        reader.close();
        Ok(give(Base::Container(root), asked, TOP, None, options.follow, writer.take()?)?)
    };
    let beside = || -> Result<Copied, TransferError> {
        writer.close();
        host_takes(reader.take()?, asked, target, options)
    };
    let (given, taken) = both(with_root(engine, container, Purpose::Read, work, beside))?;
    Ok(Copied { entries: taken.entries, left_out: given.left_out + taken.left_out })
}

fn into(
    engine: &Engine,
    container: &Container,
    from: &Side,
    target: &Asked,
    options: CopyOptions,
) -> Result<Copied, EngineError> {
    let Side::Host(source) = from else {
        let work = |root: &Root| Ok(takes_archive(root, container, std::io::stdin().lock(), target)?);
        return with_root(engine, container, Purpose::Write, work, || ()).map(|(copied, ())| copied);
    };
    // What is not there is said before anything is made.
    drop(Base::Host.source(source, options.follow)?);
    let (reader, writer) = pipe()?;
    let work = |root: &Root| {
        writer.close();
        Ok(takes(root, container, reader.take()?, source, target)?)
    };
    let beside = || -> Result<Copied, TransferError> {
        reader.close();
        host_gives(writer.take()?, source, options)
    };
    let (taken, given) = both(with_root(engine, container, Purpose::Write, work, beside))?;
    Ok(Copied { entries: taken.entries, left_out: given.left_out + taken.left_out })
}

/// Writes what is copied on the host from an archive; `asked` is what it was in the container.
pub(super) fn host_takes(
    from: File,
    asked: &Asked,
    target: &Asked,
    options: CopyOptions,
) -> Result<Copied, TransferError> {
    let ownership = if options.archive { Ownership::Keep } else { Ownership::Squash };
    let mode_mask = if options.archive { FULL_MODE } else { PLAIN_MODE };
    let extract_options = ExtractOptions { ownership, mode_mask, limits: &Limits::default() };
    let choose = |kind| Base::Host.destination(target, kind, asked.name(), asked.contents);
    Ok(copied(extract(BufReader::with_capacity(BUFFER_BYTES, from), choose, &extract_options)?))
}

/// Gives a path of the host as an archive.
pub(super) fn host_gives(to: File, source: &Asked, options: CopyOptions) -> Result<Copied, TransferError> {
    // Docker gives what comes in to root, unless told to keep the numbers.
    let owner = (!options.archive).then_some((0, 0));
    give(Base::Host, source, TOP, owner, options.follow, to)
}

fn inside_options<'a>(container: &Container, limits: &'a Limits) -> ExtractOptions<'a> {
    let single = container.record.idmap.is_single();
    ExtractOptions { ownership: if single { Ownership::Squash } else { Ownership::Keep }, mode_mask: FULL_MODE, limits }
}

/// Writes an archive into a container; `source` is what it was on the host.
pub(super) fn takes(
    root: &Root,
    container: &Container,
    from: impl Read,
    source: &Asked,
    target: &Asked,
) -> Result<Copied, TransferError> {
    let choose = |kind| Base::Container(root).destination(target, kind, source.name(), source.contents);
    let stream = BufReader::with_capacity(BUFFER_BYTES, from);
    Ok(copied(extract::<TransferError>(stream, choose, &inside_options(container, &Limits::default()))?))
}

/// Writes an archive with names of its own into a directory of a container.
pub(super) fn takes_archive(
    root: &Root,
    container: &Container,
    from: impl Read,
    target: &Asked,
) -> Result<Copied, TransferError> {
    // Even an empty archive needs a place.
    Base::Container(root).directory(target)?;
    let choose = |_| Base::Container(root).directory(target);
    let stream = BufReader::with_capacity(BUFFER_BYTES, from);
    Ok(copied(extract::<TransferError>(stream, choose, &inside_options(container, &Limits::default()))?))
}

/// Of two failures, the one that is not about the pipe to the other.
fn both<T>(outcome: Result<(T, Result<T, TransferError>), EngineError>) -> Result<(T, T), EngineError> {
    match outcome {
        Ok((theirs, Ok(ours))) => Ok((theirs, ours)),
        Ok((_, Err(ours))) => Err(ours.into()),
        Err(theirs) => Err(theirs),
    }
}

/// Writes what a path means as an archive.
pub(super) fn give(
    base: Base<'_>,
    asked: &Asked,
    name: &[u8],
    owner: Option<(u32, u32)>,
    follow: bool,
    out: impl Write,
) -> Result<Copied, TransferError> {
    let top = base.source(asked, follow)?;
    let options = PackOptions { name, style: Style::Plain, cross_mounts: true, owner, leave_out: &|_| false };
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, out);
    let report = pack(top, &options, &mut out)?;
    Ok(Copied { entries: report.entries, left_out: report.sockets })
}

fn copied(report: UnpackReport) -> Copied {
    Copied { entries: report.entries, left_out: report.devices_skipped }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_as_docker_reads_them() {
        let inside =
            |container: &str, path: &str| CopyEnd::Container { container: container.into(), path: path.into() };
        assert_eq!(CopyEnd::parse("web:/etc"), inside("web", "/etc"));
        assert_eq!(CopyEnd::parse("web:"), inside("web", ""));
        assert_eq!(CopyEnd::parse("./web:/etc"), CopyEnd::Host(b"./web:/etc".to_vec()));
        assert_eq!(CopyEnd::parse("/a:b"), CopyEnd::Host(b"/a:b".to_vec()));
        assert_eq!(CopyEnd::parse("file"), CopyEnd::Host(b"file".to_vec()));
        assert_eq!(CopyEnd::parse("-"), CopyEnd::Stream);
    }
}
