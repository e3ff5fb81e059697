//! What a halted instance has written, on its way to another provider: two hidden children of two agents.
//!
//! The giver writes the writable layer as a layer of an image, then each volume as an archive, in sections of pieces
//! with their lengths, and a word at the end. The taker has made a container of the same image that was never started
//! and fills it; only when the last word was read and everything is on the disk it leaves a mark, and nothing else says
//! that the data is here. Each of the two holds its container's lock and works below it with the container's ids.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use coracle_images::limits::Limits;
use coracle_images::pack::{PackOptions, Style, pack};
use coracle_images::unpack::{Destination, ExtractOptions, TOP, UnpackOptions, extract, unpack_layer};
use coracle_images::{Ownership, UnpackError, remove_tree};
use coracle_scheduler::agent::EngineStream;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, fchmod, fstat, openat, statat, syncfs};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use super::{Key, container_name};
use crate::engine::container::{self, ContainerDir};
use crate::engine::containers::{self, Container, Status};
use crate::engine::transfer::{TransferError, export};
use crate::engine::{Engine, EngineError, elsewhere};
use crate::report;

/// The hidden first argument of who gives.
pub const GIVE_ARGUMENT: &str = "__pool-give";
/// Of who takes.
pub const TAKE_ARGUMENT: &str = "__pool-take";

/// Of what is written; another one is refused.
const VERSION: u32 = 1;
/// Bytes of a piece: as much as the streams move at once.
const PIECE_BYTES: usize = 64 << 10;
/// In the place of a length: everything was said.
const WHOLE: u32 = u32::MAX;
/// In the place of a length: a reason follows, and nothing else.
const FAILED: u32 = u32::MAX - 1;
/// Bytes of a head or a reason that are read.
const TEXT_BYTES_MAX: u64 = 64 << 10;
/// Mode bits of an archive that are taken over: all.
const MODE_BITS: u32 = 0o7777;

/// Says why data could not be given or taken.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error("not started by an agent")]
    Foreign,
    #[error("the connection to the other provider has ended")]
    Cut(#[source] std::io::Error),
    #[error("the other provider: {0}")]
    Other(String),
    #[error("what comes is of an unknown kind")]
    Head(#[from] serde_json::Error),
    #[error("its data is in a form of another version")]
    Version,
    #[error("its image is another one here: {0} instead of {1}")]
    Image(String, String),
    #[error("its files have owners, and this provider has one id only")]
    Owners,
    #[error("it has other volumes here")]
    Volumes,
    #[error("it does not stand still")]
    Moves,
    #[error("cannot {op} {path}")]
    Io { op: &'static str, path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Container(#[from] container::ContainerError),
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Comes first.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    version: u32,
    image: String,
    /// Everything belongs to one id.
    single: bool,
    /// Where the volumes are mounted, in the order in which they come.
    volumes: Vec<PathBuf>,
}

fn folder(provider: &Path) -> PathBuf {
    provider.join("moves")
}

/// Tells how a taker has ended, if one has: its mark outlives it.
pub fn outcome(provider: &Path, key: Key) -> Option<Result<(), String>> {
    let text = fs_err::read(folder(provider).join(container_name(key))).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Takes the mark away.
pub fn forget(provider: &Path, key: Key) {
    let _ = fs_err::remove_file(folder(provider).join(container_name(key)));
}

fn child(argument: &str, root: &Path, container: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("coracle").arg(argument).arg(std::process::id().to_string()).arg(root).arg(container);
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Starts a giver.
pub fn give(root: &Path, container: &str) -> std::io::Result<EngineStream> {
    let (socket, far) = UnixStream::pair()?;
    let mut command = child(GIVE_ARGUMENT, root, container);
    command.stdout(OwnedFd::from(far));
    Ok(EngineStream { socket, child: command.spawn()? })
}

/// Starts a taker.
pub fn take(root: &Path, provider: &Path, key: Key) -> std::io::Result<EngineStream> {
    let marks = folder(provider);
    fs_err::create_dir_all(&marks)?;
    let (socket, far) = UnixStream::pair()?;
    let mut command = child(TAKE_ARGUMENT, root, &container_name(key));
    command.arg(marks).stdin(OwnedFd::from(far));
    Ok(EngineStream { socket, child: command.spawn()? })
}

/// Opens the container that a child is about, and holds it: it neither runs nor starts nor goes away meanwhile.
fn open(args: &[OsString]) -> Result<(Container, ContainerDir), MoveError> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|_| MoveError::Foreign)?;
    let [parent, root, name, ..] = args else { return Err(MoveError::Foreign) };
    let told = parent.to_str().and_then(|text| text.parse().ok()).and_then(rustix::process::Pid::from_raw);
    if told.is_none() || told != getppid() {
        return Err(MoveError::Foreign);
    }
    let engine = Engine::open(Some(PathBuf::from(root)))?;
    let container = containers::find(engine.root(), &name.to_string_lossy())?;
    let still = matches!(container.status(), Status::Created | Status::Exited);
    let lock = ContainerDir::take(engine.root(), &container.record)?.filter(|_| still).ok_or(MoveError::Moves)?;
    Ok((container, lock))
}

/// Lists the volumes that are the container's own, by where they are mounted.
fn volumes(container: &Container) -> Vec<(PathBuf, PathBuf)> {
    let own = container.record.mounts.iter().filter(|mount| mount.kind == "volume");
    let mut found: Vec<_> = own.filter_map(|mount| Some((mount.destination.clone(), mount.source.clone()?))).collect();
    found.sort();
    found
}

fn directory(path: &Path) -> Result<OwnedFd, MoveError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = openat(CWD, path, flags, Mode::empty());
    opened.map_err(|errno| MoveError::Io { op: "open", path: path.to_owned(), source: errno.into() })
}

/// Gives everything; a reason why not goes the same way.
pub fn giver(args: &[OsString]) -> Result<(), MoveError> {
    let out = File::from(std::io::stdout().as_fd().try_clone_to_owned().map_err(MoveError::Cut)?);
    let given = open(args).and_then(|(container, _lock)| give_all(&container, &out));
    // Whoever gave before may not have ended yet: another try does better then.
    if let Err(error) = &given
        && !matches!(error, MoveError::Moves)
    {
        let text = report::one_line(&report::chain(error));
        let _ = (&out).write_all(&FAILED.to_be_bytes()).and_then(|()| (&out).write_all(text.as_bytes()));
    }
    given
}

fn give_all(container: &Container, out: &File) -> Result<(), MoveError> {
    let (_, upper) = export::layers(container).map_err(EngineError::from)?;
    let volumes = volumes(container);
    let head = Head {
        version: VERSION,
        image: container.record.image_id.clone(),
        single: container.record.idmap.is_single(),
        volumes: volumes.iter().map(|(destination, _)| destination.clone()).collect(),
    };
    let mut section = Section::new(out);
    section.write_all(&serde_json::to_vec(&head)?).and_then(|()| section.end()).map_err(MoveError::Cut)?;
    let stubs = export::mount_points(container);
    let again = directory(upper)?;
    let leave_out = |path: &[u8]| {
        let absolute = [b"/", path].concat();
        statat(&again, path, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| export::is_stub(&stubs, &absolute, &stat))
    };
    let layer = PackOptions { name: b"", style: Style::Layer, cross_mounts: false, owner: None, leave_out: &leave_out };
    give_tree(container, upper, &layer, out)?;
    let plain = PackOptions { name: TOP, style: Style::Plain, leave_out: &|_| false, ..layer };
    for (_, data) in &volumes {
        give_tree(container, data, &plain, out)?;
    }
    (&*out).write_all(&WHOLE.to_be_bytes()).map_err(MoveError::Cut)
}

fn give_tree(container: &Container, tree: &Path, options: &PackOptions<'_>, out: &File) -> Result<(), MoveError> {
    Ok(elsewhere::call(&container.record.idmap, || {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = || tree.display().to_string();
        let opened = openat(CWD, tree, flags, Mode::empty());
        let top = opened.map_err(|errno| TransferError::Io { op: "open", path: path(), source: errno.into() })?;
        let mut section = BufWriter::with_capacity(PIECE_BYTES, Section::new(out));
        pack(top, options, &mut section).map_err(TransferError::from)?;
        let ended = section.flush().and_then(|()| section.get_mut().end());
        Ok(ended.map_err(TransferError::Pipe)?)
    })?)
}

/// Takes everything, and leaves a mark that says so, or why it never will. Without a mark it is tried again.
pub fn taker(args: &[OsString]) -> Result<(), MoveError> {
    let from = File::from(std::io::stdin().as_fd().try_clone_to_owned().map_err(MoveError::Cut)?);
    let taken = open(args).and_then(|(container, _lock)| take_all(&container, &from));
    let outcome = match &taken {
        Ok(()) => Ok(()),
        Err(error) if is_cut(error) => return taken,
        Err(error) => Err(report::one_line(&report::chain(error))),
    };
    let [_, _, name, marks, ..] = args else { return Err(MoveError::Foreign) };
    container::publish_json(Path::new(marks), &name.to_string_lossy(), &outcome, true)?;
    taken
}

/// Tells whether another try may do better.
fn is_cut(error: &MoveError) -> bool {
    let mut link: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(this) = link {
        if this.to_string() == CUT {
            return true;
        }
        link = this.source();
    }
    matches!(error, MoveError::Cut(_) | MoveError::Foreign | MoveError::Moves)
}

fn take_all(container: &Container, from: &File) -> Result<(), MoveError> {
    let mut text = Vec::new();
    Pieces::new(from).take(TEXT_BYTES_MAX).read_to_end(&mut text).map_err(other)?;
    let head: Head = serde_json::from_slice(&text)?;
    let (own, single) = (volumes(container), container.record.idmap.is_single());
    if head.version != VERSION {
        return Err(MoveError::Version);
    }
    if head.image != container.record.image_id {
        return Err(MoveError::Image(container.record.image_id.clone(), head.image));
    }
    if single && !head.single {
        return Err(MoveError::Owners);
    }
    if !own.iter().map(|(destination, _)| destination).eq(&head.volumes) {
        return Err(MoveError::Volumes);
    }
    let (_, upper) = export::layers(container).map_err(EngineError::from)?;
    let ownership = if single { Ownership::Squash } else { Ownership::Keep };
    elsewhere::call(&container.record.idmap, || taken(|| take_layer(upper, ownership, from)))?;
    for (_, data) in &own {
        elsewhere::call(&container.record.idmap, || taken(|| take_volume(data, ownership, from)))?;
    }
    let mut last = [0; 4];
    (&*from).read_exact(&mut last).map_err(MoveError::Cut)?;
    if u32::from_be_bytes(last) != WHOLE {
        return Err(other(failed(from, u32::from_be_bytes(last))));
    }
    let paths = std::iter::once(upper).chain(own.iter().map(|(_, data)| data));
    for path in paths {
        syncfs(directory(path)?).map_err(|errno| MoveError::Io {
            op: "sync",
            path: path.clone(),
            source: errno.into(),
        })?;
    }
    Ok(())
}

/// Puts an error into the words that cross a process.
fn taken(work: impl FnOnce() -> Result<(), MoveError>) -> Result<(), EngineError> {
    work().map_err(|error| EngineError::Supervise(std::io::Error::other(report::chain(&error))))
}

/// Empties a directory: an earlier try may have left something.
fn clear(path: &Path) -> Result<(), MoveError> {
    let failed = |source| MoveError::Io { op: "empty", path: path.to_owned(), source };
    for entry in fs_err::read_dir(path).map_err(failed)? {
        remove_tree(&entry.map_err(failed)?.path()).map_err(failed)?;
    }
    Ok(())
}

fn take_layer(upper: &Path, ownership: Ownership, from: &File) -> Result<(), MoveError> {
    clear(upper)?;
    let root = directory(upper)?;
    let failed =
        |errno: rustix::io::Errno| MoveError::Io { op: "examine", path: upper.to_owned(), source: errno.into() };
    // An archive does not list its top, which is the container's own root.
    let mode = fstat(&root).map_err(failed)?.st_mode;
    let options = UnpackOptions { ownership, limits: &Limits::default() };
    let mut pieces = Pieces::new(from);
    unpack_layer(BufReader::with_capacity(PIECE_BYTES, &mut pieces), directory(upper)?, &options)?;
    std::io::copy(&mut pieces, &mut std::io::sink()).map_err(other)?;
    fchmod(&root, Mode::from_raw_mode(mode & MODE_BITS)).map_err(failed)
}

fn take_volume(data: &Path, ownership: Ownership, from: &File) -> Result<(), MoveError> {
    clear(data)?;
    let (Some(parent), Some(name)) = (data.parent(), data.file_name()) else { return Err(MoveError::Volumes) };
    let options = ExtractOptions { ownership, mode_mask: MODE_BITS, limits: &Limits::default() };
    let choose = |_| -> Result<Destination, MoveError> {
        Ok(Destination { directory: directory(parent)?, name: Some(name.as_encoded_bytes().to_vec()) })
    };
    let mut pieces = Pieces::new(from);
    extract(BufReader::with_capacity(PIECE_BYTES, &mut pieces), choose, &options)?;
    std::io::copy(&mut pieces, &mut std::io::sink()).map_err(other)?;
    Ok(())
}

/// What a reader says when the stream ends too soon.
const CUT: &str = "the data has ended too soon";

fn cut() -> std::io::Error {
    std::io::Error::new(ErrorKind::UnexpectedEof, CUT)
}

fn other(error: std::io::Error) -> MoveError {
    match error.to_string() {
        text if text == CUT => MoveError::Cut(error),
        text => MoveError::Other(text),
    }
}

/// Reads why the other side gave up.
fn failed(mut from: &File, word: u32) -> std::io::Error {
    let mut text = String::new();
    if word == FAILED && Read::by_ref(&mut from).take(TEXT_BYTES_MAX).read_to_string(&mut text).is_ok() {
        return std::io::Error::other(report::one_line(&text));
    }
    cut()
}

/// Writes pieces with their lengths; an empty one is the end of the section.
struct Section<'a> {
    out: &'a File,
}

impl<'a> Section<'a> {
    fn new(out: &'a File) -> Self {
        Self { out }
    }

    fn end(&mut self) -> std::io::Result<()> {
        self.out.write_all(&0_u32.to_be_bytes())
    }
}

impl Write for Section<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE_BYTES)];
        if let Ok(length @ 1..) = u32::try_from(piece.len()) {
            self.out.write_all(&length.to_be_bytes())?;
            self.out.write_all(piece)?;
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Reads one section; reads no byte of what comes after it.
struct Pieces<'a> {
    from: &'a File,
    left: usize,
    over: bool,
}

impl<'a> Pieces<'a> {
    fn new(from: &'a File) -> Self {
        Self { from, left: 0, over: false }
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.over || into.is_empty() {
            return Ok(0);
        }
        if self.left == 0 {
            let mut length = [0; 4];
            self.from.read_exact(&mut length).map_err(|_| cut())?;
            match u32::from_be_bytes(length) {
                0 => {
                    self.over = true;
                    return Ok(0);
                }
                length if length as usize > PIECE_BYTES => return Err(failed(self.from, length)),
                length => self.left = length as usize,
            }
        }
        let most = into.len().min(self.left);
        match self.from.read(&mut into[..most])? {
            0 => Err(cut()),
            count => {
                self.left -= count;
                Ok(count)
            }
        }
    }
}
