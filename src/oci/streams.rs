//! What goes between a container and its caller: terminals, descriptors, the file with the pid.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::error::OciError;

/// The first descriptor behind the standard streams.
const FIRST_PRESERVED: RawFd = 3;

/// sockaddr_un has room for this many bytes of a path, with the ending NUL (unix(7)).
const SOCKET_PATH_BYTES: usize = 108;

/// Gives the numbers of the descriptors that `--preserve-fds` names. Callers give a number that
/// covers theirs, so gaps are fine; but one that names no open descriptor at all is an error.
/// `listeners` more come from systemd's socket activation.
pub fn preserved(count: u32, listeners: u32) -> Result<Vec<RawFd>, OciError> {
    let last = FIRST_PRESERVED.saturating_add_unsigned(count.saturating_add(listeners));
    let numbers: Vec<RawFd> = (FIRST_PRESERVED..last).filter(|number| is_inherited(*number)).collect();
    if count > 0 && numbers.is_empty() {
        return Err(OciError::PreservedFd(FIRST_PRESERVED));
    }
    Ok(numbers)
}

/// Whether a descriptor is the caller's: our own all close on execve, and never get through.
fn is_inherited(number: RawFd) -> bool {
    const CLOSE_ON_EXEC: u32 = OFlags::CLOEXEC.bits();
    let text = fs_err::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
    let flags = text.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
    flags.is_some_and(|flags| flags & CLOSE_ON_EXEC == 0)
}

/// Checks that a terminal has somebody to go to (C18).
pub fn check_console(terminal: bool, watched: bool, socket: Option<&Path>) -> Result<(), OciError> {
    match (terminal, watched, socket) {
        (true, false, None) => Err(OciError::TerminalUnwatched),
        (false, _, Some(_)) | (_, true, Some(_)) => Err(OciError::ConsoleSocketIdle),
        _ => Ok(()),
    }
}

/// Connects to the socket that waits for a terminal.
///
/// Before the container is made, so that a wrong path costs nothing.
pub fn connect_console(path: &Path) -> Result<UnixStream, OciError> {
    let failed = |error: std::io::Error| OciError::file("connect to", path, &error);
    if path.as_os_str().len() < SOCKET_PATH_BYTES {
        return UnixStream::connect(path).map_err(failed);
    }
    // A long path is reached through its directory.
    let directory = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default();
    let handle = rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| failed(errno.into()))?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&handle);
    UnixStream::connect(Path::new(&format!("/proc/self/fd/{number}")).join(name)).map_err(failed)
}

/// Sends the master side of a terminal, with a name as runc does.
pub fn send_console(socket: &UnixStream, path: &Path, master: &OwnedFd) -> Result<(), OciError> {
    let fds: [BorrowedFd<'_>; 1] = [master.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let name = std::io::IoSlice::new(b"/dev/ptmx");
    sendmsg(socket, &[name], &mut control, SendFlags::NOSIGNAL)
        .map_err(|errno| OciError::file("send a terminal to", path, &errno.into()))?;
    Ok(())
}

/// Writes a pid where a caller waits for it; the file appears whole.
pub fn write_pid(path: &Path, pid: i32) -> Result<(), OciError> {
    let failed = |error: std::io::Error| OciError::file("write", path, &error);
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    let draft = path.with_file_name(name);
    // create_new: nothing that is already there is followed or overwritten.
    let _ = fs_err::remove_file(&draft);
    let mut file = fs_err::OpenOptions::new().write(true).create_new(true).open(&draft).map_err(failed)?;
    file.write_all(pid.to_string().as_bytes()).map_err(failed)?;
    fs_err::rename(&draft, path).map_err(failed)
}
