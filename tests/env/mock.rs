//! A registry that lies: serves images made by the test, answers as the test says, remembers what was asked.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::image::Image;

/// A request's header block larger than this is not from coracle.
const HEADER_BYTES_MAX: u64 = 1 << 20;

/// What was asked.
#[derive(Clone, Debug)]
pub struct Request {
    /// GET, HEAD, …
    pub method: String,
    /// Path with query, as sent.
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
}

/// What is answered.
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Header lines.
    pub headers: Vec<(String, String)>,
    /// Body; not sent for HEAD.
    pub body: Vec<u8>,
}

impl Response {
    /// Answers with a body.
    pub fn new(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: vec![("Content-Type".into(), content_type.into())], body: body.into() }
    }

    /// Adds a header line.
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Answers 404 the way registries do.
    pub fn not_found() -> Self {
        Self::new(404, "application/json", r#"{"errors":[{"code":"NOT_FOUND","message":"not found"}]}"#)
    }
}

type Answer = dyn Fn(&Request) -> Option<Response> + Send + Sync;

/// A registry that runs until it is dropped.
pub struct Mock {
    address: String,
    seen: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Mock {
    /// Serves images by repository name (any tag, and by digest).
    pub fn serving(images: &[(&str, Image)]) -> Self {
        Self::with(images, |_| None)
    }

    /// Serves images, but asks `first` for its own answer before.
    pub fn with(
        images: &[(&str, Image)],
        first: impl Fn(&Request) -> Option<Response> + Send + Sync + 'static,
    ) -> Self {
        let images: BTreeMap<String, Image> =
            images.iter().map(|(name, image)| ((*name).to_owned(), image.clone())).collect();
        Self::start(move |request| first(request).or_else(|| serve(&images, request)))
    }

    /// Answers by a function; what it does not know is 404.
    pub fn start(answer: impl Fn(&Request) -> Option<Response> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (log, stopping) = (Arc::clone(&seen), Arc::clone(&stop));
        let answer: Arc<Answer> = Arc::new(answer);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                // A client that goes away in the middle is the test's own doing.
                std::thread::spawn(move || drop(converse(&stream, &log, answer.as_ref())));
            }
        });
        Self { address, seen, stop, thread: Some(thread) }
    }

    /// Gives `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Gives a full image name here.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}:latest", self.address)
    }

    /// Gives everything that was asked so far.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// Gives the Authorization headers that came.
    pub fn credentials(&self) -> Vec<String> {
        self.seen().iter().filter_map(|request| request.headers.get("authorization").cloned()).collect()
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(&self.address));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn converse(stream: &TcpStream, log: &Mutex<Vec<Request>>, answer: &Answer) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.take(HEADER_BYTES_MAX));
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return Ok(());
    };
    let mut request = Request { method: method.into(), path: path.into(), headers: BTreeMap::new() };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        request.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    // A body that is not read would be answered by a reset connection.
    let length = request.headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    reader.get_mut().set_limit(length);
    std::io::copy(&mut reader.take(length), &mut std::io::sink())?;
    log.lock().unwrap().push(request.clone());
    let response = answer(&request).unwrap_or_else(Response::not_found);
    let mut writer = stream;
    write!(writer, "HTTP/1.1 {} Whatever\r\nConnection: close\r\n", response.status)?;
    if !response.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
        write!(writer, "Content-Length: {}\r\n", response.body.len())?;
    }
    for (name, value) in &response.headers {
        write!(writer, "{name}: {value}\r\n")?;
    }
    writer.write_all(b"\r\n")?;
    if request.method != "HEAD" {
        writer.write_all(&response.body)?;
    }
    writer.flush()?;
    stream.shutdown(std::net::Shutdown::Write)
}

/// Answers `/v2/NAME/manifests/…` and `/v2/NAME/blobs/…` like an honest registry.
fn serve(images: &BTreeMap<String, Image>, request: &Request) -> Option<Response> {
    let path = request.path.strip_prefix("/v2/")?;
    if path.is_empty() {
        return Some(Response::new(200, "application/json", "{}"));
    }
    if let Some((name, _)) = path.split_once("/manifests/") {
        let image = images.get(name)?;
        let digest = super::image::digest(&image.manifest);
        let response = Response::new(200, &image.media_type, image.manifest.clone());
        return Some(response.header("Docker-Content-Digest", digest));
    }
    let (name, digest) = path.split_once("/blobs/")?;
    let blob = images.get(name)?.blobs.get(digest)?;
    Some(Response::new(200, "application/octet-stream", blob.clone()))
}
