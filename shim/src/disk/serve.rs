//! The process that answers the kernel: threads that read one request at a time.

use std::fs::File;
use std::io::Result;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fuse_backend_rs::api::server::{MAX_BUFFER_SIZE, Server};
use fuse_backend_rs::transport::{FuseBuf, FuseDevWriter, Reader, Writer};
use rustix::io::Errno;

use super::account::{BLOCK_BYTES, Limits};
use super::filesystem::begin_thread;
use super::passthrough::{Passthrough, REPEATED};
use super::usage::{Phase, Usage};

/// Two, so that a thread that waits for the disk keeps nobody else, and what is deleted is given back
/// while a full disk is looked at again. More gave nothing on two processors.
const THREADS: usize = 2;
/// A request is a header, a name or two and at most MAX_BUFFER_SIZE of data.
const HEADER_BYTES: usize = 4096;
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
}

/// Serves until the filesystem is unmounted.
pub fn serve(serving: Serving<'_>) -> Result<()> {
    let Serving { device, root, volumes, limits, state, usage, takeovers } = serving;
    let passthrough = Passthrough::new((root, volumes), limits, state, takeovers > 0, |passthrough, resend| {
        // Without it a server that dies cannot be replaced, which is what happens then.
        let _ = passthrough.state.write_all_at(&[u8::from(resend)], STATE_RESEND);
    })?;
    let filesystem = Arc::new(passthrough);
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
            let (server, done, waker) = (&server, &done, waker.clone());
            scope.spawn(move || {
                let result = begin_thread().and_then(|()| answer(server, device));
                done.fetch_add(1, Ordering::Release);
                waker.unpark();
                result
            });
        }
        let is_done = || done.load(Ordering::Acquire) == THREADS;
        while !is_done() {
            if filesystem.dirty.swap(false, Ordering::Relaxed) {
                write_usage(&filesystem, &usage, takeovers, Phase::Serving);
                let begin = Instant::now();
                while !is_done() && begin.elapsed() < USAGE_PAUSE {
                    std::thread::park_timeout(USAGE_PAUSE.saturating_sub(begin.elapsed()));
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
fn answer(server: &Server<Arc<Passthrough>>, device: BorrowedFd<'_>) -> Result<()> {
    let mut request = vec![0; MAX_BUFFER_SIZE as usize + HEADER_BYTES];
    let mut reply = vec![0; MAX_BUFFER_SIZE as usize + HEADER_BYTES];
    loop {
        let length = match rustix::io::read(device, &mut request[..]) {
            Ok(length) => length,
            // The request was interrupted before we had it, or the kernel has to be asked again.
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => continue,
            Err(Errno::NODEV) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let unique = request[8..16].try_into().map_or(0, u64::from_ne_bytes);
        REPEATED.set(unique & UNIQUE_RESEND != 0);
        let reader = Reader::<()>::from_fuse_buffer(FuseBuf::new(&mut request[..length]));
        let writer = FuseDevWriter::new(device.as_raw_fd(), &mut reply);
        let (Ok(reader), Ok(writer)) = (reader, writer) else { return Err(Errno::INVAL.into()) };
        // A request whose asker was killed meanwhile takes no answer.
        let _ = server.handle_message(reader, Writer::FuseDev(writer), None, None);
    }
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
