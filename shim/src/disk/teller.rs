//! Tells the kernel to let go of names, in a process of its own.
//!
//! FUSE_NOTIFY_INVAL_ENTRY waits for whoever has the directory. That may be somebody whom the server has yet to answer,
//! and no signal ends that wait: a server that waited itself could not die of a SIGKILL, nobody would take its place,
//! and nobody would ever be answered.

use std::ffi::CStr;
use std::io::{Error, ErrorKind, PipeReader, PipeWriter, Read, Result, Write};
use std::os::fd::BorrowedFd;

use coracle_runtime::fork::{Forked, fork};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::filter::Filter;
use super::parting::Record;

/// How it is called in /proc.
const PROCESS_NAME: &CStr = c"disk-teller";
/// FUSE_NOTIFY_INVAL_ENTRY of linux/fuse.h.
const NOTIFY_INVAL_ENTRY: u32 = 3;

/// Is the process and the two pipes to it; a record is less than PIPE_BUF, so it goes through them whole.
#[derive(Debug)]
pub struct Teller {
    ask: PipeWriter,
    told: PipeReader,
    process: Forked,
}

impl Teller {
    /// Starts it; the caller is single-threaded. It ends with the caller, or when nobody can ask it any more.
    pub fn start(device: BorrowedFd<'_>, filter: &Filter) -> Result<Self> {
        let (asked, ask) = std::io::pipe()?;
        let (told, tell) = std::io::pipe()?;
        let mut others = Some((ask, told));
        let process = fork(|| {
            // Open here they would keep it from ending.
            drop(others.take());
            i32::from(serve(device, filter, asked, tell).is_err())
        })?;
        let (ask, told) = others.ok_or(ErrorKind::BrokenPipe)?;
        Ok(Self { ask, told, process })
    }

    /// Has the kernel told of one name, and waits until it was. What another server asked for is answered as well.
    pub fn tell(&self, record: &Record, mut heard: impl FnMut(&Record)) -> Result<()> {
        (&self.ask).write_all(record.bytes())?;
        loop {
            let mut answer = Record::default();
            (&self.told).read_exact(answer.bytes_mut())?;
            heard(&answer);
            if answer == *record {
                return Ok(());
            }
        }
    }

    /// Says whether it was killed.
    pub fn is_gone(&self) -> bool {
        let mut process = [PollFd::new(&self.process.pidfd, PollFlags::IN)];
        poll(&mut process, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Ends it, once the filesystem has ended.
    pub fn finish(self) -> Result<()> {
        let Self { ask, told, process } = self;
        drop((ask, told));
        process.wait().map(drop)
    }
}

fn serve(device: BorrowedFd<'_>, filter: &Filter, asked: PipeReader, tell: PipeWriter) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::thread::set_name(PROCESS_NAME)?;
    filter.install()?;
    answer(device, asked, tell)
}

fn answer(device: BorrowedFd<'_>, mut asked: PipeReader, mut tell: PipeWriter) -> Result<()> {
    let (mut record, mut last) = (Record::default(), Record::default());
    loop {
        match asked.read_exact(record.bytes_mut()) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        let (parent, name) = record.name().ok_or_else(|| Error::from(ErrorKind::InvalidData))?;
        // A server that was killed before it heard of it is followed by one that asks again.
        if record != last {
            // A name that the kernel has forgotten meanwhile is what was wanted.
            let _ = rustix::io::write(device, &message(parent, name));
            last.clone_from(&record);
        }
        tell.write_all(record.bytes())?;
    }
}

/// Gives `struct fuse_out_header`, `struct fuse_notify_inval_entry_out` and the name.
fn message(parent: u64, name: &CStr) -> Vec<u8> {
    const HEADERS_BYTES: usize = 32;
    let word = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_ne_bytes();
    let (bytes, length) = (name.to_bytes_with_nul(), name.to_bytes().len());
    [
        &word(HEADERS_BYTES + bytes.len())[..],
        &NOTIFY_INVAL_ENTRY.to_ne_bytes(),
        &0_u64.to_ne_bytes(),
        &parent.to_ne_bytes(),
        &word(length),
        &0_u32.to_ne_bytes(),
        bytes,
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn who_asks_again_is_answered_and_the_kernel_is_told_once() {
        let (mut device, told_of) = std::io::pipe().unwrap();
        let (asked, mut ask) = std::io::pipe().unwrap();
        let (mut told, tell) = std::io::pipe().unwrap();
        let (one, again) = (Record::new(7, c"name"), Record::new(7, c"name"));
        for record in [&one, &one, &again] {
            ask.write_all(record.bytes()).unwrap();
        }
        drop(ask);
        answer(told_of.as_fd(), asked, tell).unwrap();
        drop(told_of);
        let mut answers = Vec::new();
        told.read_to_end(&mut answers).unwrap();
        assert_eq!(answers, [one.bytes(), one.bytes(), again.bytes()].concat());
        let mut messages = Vec::new();
        device.read_to_end(&mut messages).unwrap();
        assert_eq!(messages, message(7, c"name").repeat(2));
    }

    #[test]
    fn the_message_is_as_the_kernel_wants_it() {
        let message = message(7, c"name");
        assert_eq!(message.len(), 16 + 16 + 5);
        assert_eq!(
            (&message[..4], &message[24..28], &message[32..]),
            (&[37, 0, 0, 0][..], &[4, 0, 0, 0][..], &b"name\0"[..])
        );
    }
}
