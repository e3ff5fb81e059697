//! The mirror against a registry in memory that does as the test says.

use std::sync::atomic::AtomicBool;
use std::sync::{Condvar, mpsc};

use super::*;

#[derive(Default)]
struct Far {
    blob: Vec<u8>,
    manifest: Vec<u8>,
    asked: Mutex<Vec<String>>,
    silent: AtomicBool,
    lies: AtomicBool,
    limited: AtomicBool,
    breaks: AtomicBool,
    gate: (Mutex<bool>, Condvar),
}

/// Waits in the middle of a blob until the gate opens.
struct Slow(Arc<Far>, std::io::Cursor<Vec<u8>>, usize);

impl Read for Slow {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.1.position() >= self.2 as u64 {
            if self.0.breaks.load(Ordering::SeqCst) {
                return Err(std::io::ErrorKind::ConnectionReset.into());
            }
            let open = self.0.gate.0.lock().unwrap();
            drop(self.0.gate.1.wait_while(open, |open| !*open).unwrap());
            self.2 = usize::MAX;
        }
        let some = buffer.len().min(1000);
        self.1.read(&mut buffer[..some])
    }
}

impl Far {
    fn new() -> Self {
        let blob = (0..50_000_u32).flat_map(u32::to_le_bytes).collect();
        Self { blob, manifest: br#"{"schemaVersion":2,"manifests":[]}"#.to_vec(), ..Self::default() }
    }

    fn open_gate(&self) {
        *self.gate.0.lock().unwrap() = true;
        self.gate.1.notify_all();
    }

    fn answer(&self, what: String) -> Result<(), MirrorError> {
        self.asked.lock().unwrap().push(what);
        if self.limited.load(Ordering::SeqCst) {
            return Err(MirrorError::Limited { retry_after_s: Some(77) });
        }
        if self.silent.load(Ordering::SeqCst) { Err(MirrorError::Silent("gone".to_owned())) } else { Ok(()) }
    }

    fn count(&self, start: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| asked.starts_with(start)).count()
    }

    fn sent(&self) -> Vec<u8> {
        let flip = u8::from(self.lies.load(Ordering::SeqCst));
        self.blob.iter().map(|byte| byte ^ flip).collect()
    }
}

struct Way(Arc<Far>);

impl Upstream for Way {
    fn resolve(&self, _at: &Repository, tag: &str) -> Result<Option<String>, MirrorError> {
        self.0.answer(format!("resolve {tag}"))?;
        Ok(Some(Content::of(&self.0.manifest).to_string()))
    }

    fn manifest(&self, _at: &Repository, reference: &str) -> Result<Vec<u8>, MirrorError> {
        self.0.answer(format!("manifest {reference}"))?;
        Ok(self.0.manifest.clone())
    }

    fn blob(&self, _at: &Repository, digest: &str) -> Result<Source, MirrorError> {
        self.0.answer(format!("blob {digest}"))?;
        let sent = self.0.sent();
        let size = sent.len();
        Ok((size as u64, Box::new(Slow(Arc::clone(&self.0), std::io::Cursor::new(sent), size / 2))))
    }

    fn rest(&self, _at: &Repository, digest: &str, size: u64, offset: u64) -> Result<Source, MirrorError> {
        self.0.answer(format!("rest {digest} {offset}"))?;
        let rest = self.0.sent().split_off(usize::try_from(offset).unwrap());
        self.0.breaks.store(false, Ordering::SeqCst);
        Ok((size, Box::new(Slow(Arc::clone(&self.0), std::io::Cursor::new(rest), usize::MAX))))
    }
}

/// Opens the gate at the end, so that a test that fails does not wait behind it for ever.
struct Opens(Arc<Far>);

impl Drop for Opens {
    fn drop(&mut self) {
        self.0.open_gate();
    }
}

struct Bench {
    far: Arc<Far>,
    mirror: Arc<Mirror>,
    folder: tempfile::TempDir,
    _opens: Opens,
}

impl Bench {
    fn new(cap_bytes: u64) -> Self {
        Self::with(Far::new(), cap_bytes)
    }

    fn with(far: Far, cap_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let far = Arc::new(far);
        let mirror = Self::open(&folder, &far, cap_bytes).unwrap();
        Self { _opens: Opens(Arc::clone(&far)), far, mirror, folder }
    }

    fn open(folder: &tempfile::TempDir, far: &Arc<Far>, cap_bytes: u64) -> Result<Arc<Mirror>, ShelfError> {
        let options = MirrorOptions {
            folder: folder.path().to_owned(),
            cap_bytes,
            registries: vec!["docker.io".to_owned()],
            log: Log::default(),
        };
        Mirror::open(options, Arc::new(Way(Arc::clone(far))))
    }

    fn content(&self) -> Content {
        Content::of(&self.far.blob)
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("blobs/sha256").join(self.content().hex())
    }

    async fn begin(&self, asker: u128) -> Result<Body, MirrorError> {
        self.mirror.blob(at(), self.content(), ProviderId::new(asker)).await
    }

    async fn pull(&self, asker: u128) -> Result<Vec<u8>, String> {
        let body = self.begin(asker).await.map_err(|error| error.to_string())?;
        let size = body.size_bytes();
        all(body.pieces(0, size)).await
    }

    fn nothing_half(&self) {
        assert_eq!(fs_err::read_dir(self.folder.path().join("incoming")).unwrap().count(), 0);
    }
}

fn at() -> Repository {
    Repository { registry: "docker.io".to_owned(), name: "library/x".to_owned() }
}

async fn all(mut pieces: tokio::sync::mpsc::Receiver<Piece>) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.recv().await {
        bytes.extend(piece.map_err(|error| error.to_string())?);
    }
    Ok(bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_askers_cause_one_fetch_and_hear_it_as_it_comes() {
    let bench = Arc::new(Bench::new(1 << 20));
    let (sender, begun) = mpsc::channel();
    let askers: Vec<_> = (0..50)
        .map(|asker| {
            let (bench, sender) = (Arc::clone(&bench), sender.clone());
            tokio::spawn(async move {
                let body = bench.begin(asker).await.unwrap();
                let size = body.size_bytes();
                let mut pieces = body.pieces(0, size);
                let first = pieces.recv().await.unwrap().unwrap();
                sender.send(()).unwrap();
                let rest = all(pieces).await.unwrap();
                [first, rest].concat()
            })
        })
        .collect();
    // Everybody has heard the beginning while the registry has not sent the end.
    let (bench, heard) = tokio::task::spawn_blocking(move || {
        (0..50).for_each(|_| begun.recv().unwrap());
        (bench, ())
    })
    .await
    .unwrap();
    let () = heard;
    assert!(!bench.file().exists(), "half a blob has no name");
    bench.far.open_gate();
    for asker in askers {
        assert!(asker.await.unwrap() == bench.far.blob);
    }
    assert_eq!(bench.far.count("blob"), 1);
    assert_eq!(bench.mirror.counts.shared.load(Ordering::Relaxed), 49);
    assert!(bench.pull(1).await.unwrap() == bench.far.blob);
    assert_eq!(bench.far.count("blob"), 1);
    bench.nothing_half();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_ever_gets_the_last_byte_of_something_else() {
    let bench = Bench::new(1 << 20);
    bench.far.open_gate();
    bench.far.lies.store(true, Ordering::SeqCst);
    let error = bench.pull(1).await.unwrap_err();
    assert!(error.contains("other content"), "{error}");
    assert!(!bench.file().exists());
    bench.nothing_half();
    bench.far.lies.store(false, Ordering::SeqCst);
    assert!(bench.pull(1).await.unwrap() == bench.far.blob);
    // What rots on the disk is found when it is read, goes, and is fetched again.
    let mut rotten = bench.far.blob.clone();
    *rotten.last_mut().unwrap() ^= 1;
    fs_err::write(bench.file(), &rotten).unwrap();
    let error = bench.pull(1).await.unwrap_err();
    assert!(error.contains("damaged"), "{error}");
    assert!(bench.pull(1).await.unwrap() == bench.far.blob);
    fs_err::write(bench.file(), b"short").unwrap();
    assert!(bench.pull(1).await.is_err());
    assert!(bench.pull(1).await.unwrap() == bench.far.blob);
    assert_eq!(bench.mirror.counts.damaged.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_that_breaks_is_gone_on_with_and_a_part_is_given() {
    let bench = Bench::new(1 << 20);
    bench.far.breaks.store(true, Ordering::SeqCst);
    let body = bench.begin(1).await.unwrap();
    assert!(all(body.pieces(1000, 150_001)).await.unwrap() == bench.far.blob[1000..150_001]);
    assert_eq!(bench.far.count("rest"), 1);
    let kept = bench.begin(1).await.unwrap();
    assert!(all(kept.pieces(199_999, 200_000)).await.unwrap() == bench.far.blob[199_999..]);
    assert_eq!(bench.far.count("blob"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_room_is_read_to_its_end_and_what_is_too_large_is_refused() {
    let bench = Bench::new(210_000);
    bench.far.open_gate();
    bench.pull(1).await.unwrap();
    let body = bench.begin(1).await.unwrap();
    let size = body.size_bytes();
    bench.mirror.shelf.add(&Content::of(&[7; 20_000]), &[7; 20_000]).unwrap();
    assert!(!bench.file().exists(), "it made room");
    assert!(all(body.pieces(0, size)).await.unwrap() == bench.far.blob);
    let small = Bench::new(1000);
    small.far.open_gate();
    assert_eq!(small.pull(1).await.unwrap_err(), MirrorError::TooLarge(200_000).to_string());
    small.nothing_half();
}

#[tokio::test]
async fn one_agent_does_not_take_every_place() {
    let bench = Bench::new(1 << 20);
    bench.far.open_gate();
    bench.pull(1).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..SERVED_TO_ONE_MAX {
        held.push(bench.begin(1).await.unwrap());
    }
    assert_eq!(bench.begin(1).await.err(), Some(MirrorError::Busy));
    assert!(bench.begin(2).await.is_ok());
    held.pop();
    assert!(bench.begin(1).await.is_ok());
}

#[tokio::test]
async fn a_tag_is_what_it_was_while_its_registry_is_silent() {
    let bench = Bench::new(1 << 20);
    let tag = || Wanted::Tag("1".to_owned());
    let first = bench.mirror.manifest(at(), tag()).await.unwrap();
    assert_eq!((first.stale, first.media_type.as_str()), (false, MEDIA_TYPES[0]));
    bench.mirror.manifest(at(), tag()).await.unwrap();
    assert_eq!((bench.far.count("resolve"), bench.far.count("manifest")), (1, 1), "it is fresh for a while");
    // A week later the registry is gone.
    bench.mirror.tags.age("docker.io/library/x:1");
    bench.far.silent.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        let stale = bench.mirror.manifest(at(), tag()).await.unwrap();
        assert!(stale.stale && stale.bytes == first.bytes);
    }
    assert_eq!(bench.far.count("resolve"), 2, "it is not asked by everybody");
    let by_digest = bench.mirror.manifest(at(), Wanted::Content(first.content.clone())).await.unwrap();
    assert!(!by_digest.stale, "what has a digest needs no registry");
    // Another scheduler's memory is the same, and what was never asked for is not known.
    let Bench { far, mirror, folder, .. } = bench;
    drop(mirror);
    let mirror = Bench::open(&folder, &far, 1 << 20).unwrap();
    mirror.tags.age("docker.io/library/x:1");
    assert!(mirror.manifest(at(), tag()).await.unwrap().stale);
    let unknown = mirror.manifest(at(), Wanted::Tag("2".to_owned())).await;
    assert_eq!(unknown.err(), Some(MirrorError::Silent("gone".to_owned())));
    far.silent.store(false, Ordering::SeqCst);
    far.limited.store(true, Ordering::SeqCst);
    let limited = mirror.manifest(at(), Wanted::Tag("3".to_owned())).await;
    assert_eq!(limited.err(), Some(MirrorError::Limited { retry_after_s: Some(77) }));
}

#[tokio::test]
async fn a_manifest_of_another_kind_or_digest_is_not_kept() {
    let bench = Bench::new(1 << 20);
    let other = Content::of(b"something else");
    assert!(matches!(bench.mirror.manifest(at(), Wanted::Content(other)).await, Err(MirrorError::Unusable(_))));
    assert_eq!(bench.mirror.held().0, 0);
    assert!(media_type(br#"{"mediaType":"text/html"}"#).is_err());
    assert!(media_type(b"<html>").is_err());
    assert_eq!(media_type(b"{}").unwrap(), MEDIA_TYPES[1]);
}

/// Waits until something is so.
async fn until(so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !so() {
        assert!(Instant::now() < deadline, "it never came to be so");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_is_asked_for_as_a_manifest_stays() {
    let bench = Bench::with(Far { blob: vec![7; 5 << 20], ..Far::new() }, 1 << 30);
    bench.far.open_gate();
    bench.pull(1).await.unwrap();
    let asked = bench.mirror.manifest(at(), Wanted::Content(bench.content())).await;
    assert_eq!(asked.err(), Some(MirrorError::NotThere("manifest")));
    assert!(bench.file().exists() && bench.mirror.shelf.has(&bench.content()));
    assert_eq!((bench.mirror.counts.damaged.load(Ordering::Relaxed), bench.far.count("manifest")), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_nobody_waits_for_is_given_up_unless_it_is_nearly_done() {
    for (bytes, goes_on) in [(12 << 20, false), (200_000, true)] {
        let bench = Bench::with(Far { blob: vec![7; bytes], ..Far::new() }, 1 << 30);
        let body = bench.begin(1).await.unwrap();
        // It waits for what has not come yet when it hangs up, and another has come and gone.
        let pieces = body.pieces(bytes as u64 - 1, bytes as u64);
        drop(bench.begin(2).await.unwrap());
        drop(pieces);
        until(|| bench.mirror.served.available_permits() == SERVED_MAX).await;
        bench.far.open_gate();
        until(|| bench.mirror.fetches.available_permits() == FETCHES_MAX).await;
        assert_eq!(bench.file().exists(), goes_on, "{bytes}");
        bench.nothing_half();
        assert!(bench.pull(1).await.unwrap() == bench.far.blob);
        assert_eq!(bench.far.count("blob"), if goes_on { 1 } else { 2 });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_agent_does_not_take_every_fetch_and_layers_do_not_keep_tags_waiting() {
    let bench = Bench::new(1 << 30);
    let other = |number: u8| Content::of(&[number; 3]);
    let begin = async |number: u8, asker: u128| {
        let begun = bench.mirror.blob(at(), other(number), ProviderId::new(asker));
        tokio::time::timeout(Duration::from_millis(300), begun).await.map(|begun| begun.unwrap())
    };
    let mut held = Vec::new();
    for number in 0..3 {
        held.push(begin(number, 1).await.unwrap());
    }
    // The fourth waits for its turn, and has hung up before it comes.
    assert!(begin(3, 1).await.is_err());
    for number in 4..9 {
        held.push(begin(number, 1 + u128::from(number) / 3).await.unwrap());
    }
    assert_eq!(bench.mirror.fetches.available_permits(), 0);
    assert!(bench.mirror.manifest(at(), Wanted::Tag("1".to_owned())).await.is_ok());
    bench.far.open_gate();
    until(|| bench.mirror.fetches.available_permits() == FETCHES_MAX).await;
    assert_eq!((bench.far.count("blob"), bench.far.count(&format!("blob {}", other(3)))), (8, 0));
}
