//! The process that answers the kernel: threads that read one request at a time.

use std::fs::File;
use std::io::Result;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fuse_backend_rs::abi::fuse_abi::Opcode;
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{FuseBuf, FuseDevWriter, Reader, Writer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::thread::sched_yield;

use super::account::{BLOCK_BYTES, Limits};
use super::filesystem::begin_thread;
use super::filter::Filter;
use super::passthrough::{Passthrough, REPEATED};
use super::quick::{Done, Request};
use super::teller::Teller;
use super::turns::{LOOK, Pace, Turns};
use super::usage::{Phase, Usage};

/// More than one, so that a thread that waits for the disk keeps nobody else, and what is deleted is given back while a
/// full disk is looked at again.
const THREADS: usize = 3;
/// What one READ or WRITE carries at most: few round trips, and every thread has a buffer of that size.
pub const MAX_DATA_BYTES: u32 = 256 * 1024;
/// A request is a header, a name or two and at most MAX_DATA_BYTES of data.
const HEADER_BYTES: usize = 4096;
/// How much of its buffer a thread has from the beginning: the kernel gives the asker EIO for a request that it could not
/// copy because the thread was killed and a page had yet to be made (`__get_user_pages` of mm/gup.c).
const PRESENT_BYTES: usize = 32 * 1024;
const PAGE_BYTES: usize = 4096;
/// FUSE_UNIQUE_RESEND of linux/fuse.h (Linux 6.9).
const UNIQUE_RESEND: u64 = 1 << 63;
/// How long a change of the usage may wait until it is written down.
const USAGE_PAUSE: Duration = Duration::from_millis(300);
/// Where the shared state says that the kernel can send requests again.
pub const STATE_RESEND: u64 = 0;

/// Is what a server is given.
#[derive(Debug)]
pub struct Serving<'a> {
    pub device: BorrowedFd<'a>,
    pub root: OwnedFd,
    pub volumes: Vec<OwnedFd>,
    pub limits: Limits,
    /// Memory that outlives a server.
    pub state: File,
    pub usage: File,
    pub takeovers: u32,
    pub first_namespace: bool,
    pub filter: &'a Filter,
    pub teller: &'a Teller,
}

/// Ends the whole server when a thread panics: the guard starts another one, where the others would wait for ever.
struct NoPanic;

impl Drop for NoPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// Serves until the filesystem is unmounted.
pub fn serve(serving: Serving<'_>) -> Result<()> {
    let Serving { device, root, volumes, limits, state, usage, takeovers, first_namespace, filter, teller } = serving;
    let kind = (takeovers > 0, first_namespace);
    let filesystem = Arc::new(Passthrough::new((root, volumes), limits, state, kind, Turns::new(THREADS))?);
    let server = Server::new(filesystem.clone());
    if takeovers > 0 {
        let mut space = [0; HEADER_BYTES];
        let writer = FuseDevWriter::<()>::new(device.as_raw_fd(), &mut space).map_err(std::io::Error::other)?;
        server.notify_resend(writer).map_err(std::io::Error::other)?;
    }
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let waker = std::thread::current();
        for _ in 0..THREADS {
            let (server, filesystem, done, waker) = (&server, &*filesystem, &done, waker.clone());
            scope.spawn(move || {
                let _guard = NoPanic;
                let ready = begin_thread().and_then(|()| filter.install());
                let result = ready.and_then(|()| answer(server, filesystem, device));
                done.fetch_add(1, Ordering::Release);
                waker.unpark();
                result
            });
        }
        // Without it the kernel is answered all the same: every thread that reads what it sends is confined.
        let _ = filter.install();
        let is_done = || done.load(Ordering::Acquire) == THREADS;
        let tell = || {
            if filesystem.parting.tell(teller).is_err() {
                // It was killed. The guard replaces both.
                std::process::abort();
            }
        };
        while !is_done() {
            tell();
            if filesystem.dirty.swap(false, Ordering::Relaxed) {
                write_usage(&filesystem, &usage, takeovers, Phase::Serving);
                let begin = Instant::now();
                while !is_done() && begin.elapsed() < USAGE_PAUSE {
                    std::thread::park_timeout(USAGE_PAUSE.saturating_sub(begin.elapsed()));
                    tell();
                }
            } else {
                std::thread::park();
            }
        }
    });
    write_usage(&filesystem, &usage, takeovers, Phase::Ended);
    Ok(())
}

/// Answers one request after the other until the filesystem is gone.
fn answer(server: &Server<Arc<Passthrough>>, filesystem: &Passthrough, device: BorrowedFd<'_>) -> Result<()> {
    let turns = &filesystem.turns;
    // What is never touched is no memory: only large requests fill it.
    let mut buffer = vec![0; MAX_DATA_BYTES as usize + HEADER_BYTES];
    for page in buffer[..PRESENT_BYTES].chunks_mut(PAGE_BYTES) {
        page[0] = 1;
    }
    std::hint::black_box(&mut buffer);
    let mut pace = Pace::default();
    let mut begin = Instant::now();
    while turns.join() {
        loop {
            let at_once = pace.is_quick() && look(device, begin);
            let length = match rustix::io::read(device, &mut buffer[..]) {
                Ok(length) => length,
                // The request was interrupted before we had it, or the kernel has to be asked again.
                Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => continue,
                Err(error) => {
                    turns.end();
                    return if error == Errno::NODEV { Ok(()) } else { Err(error.into()) };
                }
            };
            let got = Instant::now();
            let waited = if at_once { Duration::ZERO } else { got.duration_since(begin) };
            let needed = turns.note(&mut pace, waited);
            let request = Request { device, buffer: &mut buffer, length };
            REPEATED.set(request.unique() & UNIQUE_RESEND != 0);
            if is_slow(&request, &mut pace) {
                turns.away(|| answer_one(server, filesystem, request));
            } else {
                answer_one(server, filesystem, request);
            }
            begin = Instant::now();
            pace.note_work(begin.duration_since(got));
            if !needed {
                turns.leave();
                break;
            }
        }
    }
    Ok(())
}

/// Looks for a request before it is slept for; whoever else wants the processor gets it. Says whether one was there at
/// once.
fn look(device: BorrowedFd<'_>, begin: Instant) -> bool {
    let mut device = [PollFd::from_borrowed_fd(device, PollFlags::IN)];
    let mut at_once = true;
    loop {
        let nothing = poll(&mut device, Some(&Timespec::default())) == Ok(0);
        if !nothing || begin.elapsed() >= LOOK {
            return at_once && !nothing;
        }
        at_once = false;
        sched_yield();
    }
}

/// Answers one request. One whose asker was killed meanwhile takes no answer.
fn answer_one(server: &Server<Arc<Passthrough>>, filesystem: &Passthrough, mut request: Request<'_>) {
    if request.answer(filesystem) == Done::Answered {
        return;
    }
    let Request { device, buffer, length } = request;
    let (request, reply) = buffer.split_at_mut(length);
    let reader = Reader::<()>::from_fuse_buffer(FuseBuf::new(request));
    let writer = FuseDevWriter::new(device.as_raw_fd(), reply);
    if let (Ok(reader), Ok(writer)) = (reader, writer) {
        let _ = server.handle_message(reader, Writer::FuseDev(writer), None, None);
    }
}

/// Says whether a request may have to wait for the disk.
fn is_slow(request: &Request<'_>, pace: &mut Pace) -> bool {
    const ALWAYS: [u32; 3] = [Opcode::Fsync as u32, Opcode::Fsyncdir as u32, Opcode::Fallocate as u32];
    const AT_TIMES: [u32; 2] = [Opcode::Read as u32, Opcode::Write as u32];
    let opcode = request.opcode();
    ALWAYS.contains(&opcode) || (AT_TIMES.contains(&opcode) && pace.is_slow())
}

fn write_usage(filesystem: &Passthrough, file: &File, takeovers: u32, phase: Phase) {
    let (limits, counts) = (filesystem.account.limits, filesystem.account.counts());
    let usage = Usage {
        phase,
        limit_bytes: limits.blocks * BLOCK_BYTES,
        used_bytes: counts.used * BLOCK_BYTES,
        limit_inodes: limits.inodes,
        used_inodes: counts.inodes,
        takeovers,
    };
    // Reports show the last one that could be written.
    let _ = usage.write(file);
}
