//! A TCP proxy that slows the way back down and counts it, so that a kill lands inside a download.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How much is passed on between two pauses.
const PIECE_BYTES: usize = 64 << 10;

pub struct Proxy {
    pub port: u16,
    sent_bytes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Proxy {
    /// Listens before the port `to`, pausing after each piece.
    pub fn start(to: u16, pause: Duration) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("port");
        let port = listener.local_addr().expect("address").port();
        let (sent_bytes, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, stopping) = (sent_bytes.clone(), stop.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if stopping.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                let (Ok(from_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) else { continue };
                std::thread::spawn(move || pass(from_client, to_server, Duration::ZERO, &AtomicU64::new(0)));
                let counter = counter.clone();
                std::thread::spawn(move || pass(server, client, pause, &counter));
            }
        });
        Proxy { port, sent_bytes, stop }
    }

    /// How much went back to clients.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, pause: Duration, counter: &AtomicU64) {
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
        counter.fetch_add(length as u64, Ordering::Relaxed);
        std::thread::sleep(pause);
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
