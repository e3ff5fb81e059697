//! One fetch for everybody who asks: a file that grows, and readers that follow it.
//!
//! The last byte is held back until all of them were verified, so nobody ever has a whole blob that is another one.
//! What comes from the disk is verified on its way in the same manner.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::name::{Content, Hash, Repository};
use super::places::Place;
use super::{Mirror, MirrorError, count, shelf};

/// Bytes that are fetched at once.
const PIECE_BYTES: usize = 64 * 1024;
/// How often a download that broke is gone on with.
const BREAKS_MAX: u32 = 4;
/// Pieces that wait for their reader.
const PIECES_WAITING: usize = 2;
/// A fetch that lacks no more than this goes on to its end without listeners: an agent that lost its connection comes
/// back, and finds it whole instead of causing it anew.
const FINISHED_ANYWAY_BYTES: u64 = 4 << 20;
/// How long a reader may take nothing.
const READER_MAX: Duration = Duration::from_secs(60);

/// A piece of content, or why there is no more of it.
pub type Piece = Result<Vec<u8>, std::io::Error>;

/// A file that grows to a size that is known.
#[derive(Clone, Debug)]
pub struct Begun {
    file: Arc<std::fs::File>,
    size_bytes: u64,
}

/// How far a fetch is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    begun: Option<Begun>,
    written: u64,
    ended: Option<Result<(), MirrorError>>,
}

/// A fetch on its way.
#[derive(Debug)]
pub struct Flight(watch::Sender<Progress>);

impl Flight {
    /// Waits until a fetch has begun or failed.
    pub async fn begun(progress: &mut watch::Receiver<Progress>) -> Result<Begun, MirrorError> {
        let seen = progress.wait_for(|progress| progress.begun.is_some() || progress.ended.is_some()).await;
        let Ok(seen) = seen else { return Err(MirrorError::Busy) };
        match (&seen.begun, &seen.ended) {
            (_, Some(Err(error))) => Err(error.clone()),
            (Some(begun), _) => Ok(begun.clone()),
            (None, _) => Err(MirrorError::Busy),
        }
    }

    /// Waits until nobody listens. Somebody may come again: [`Flights::give_up`] decides.
    pub async fn deserted(&self) {
        self.0.closed().await;
    }

    /// Tells everybody that it is there already.
    pub fn is_there(&self, file: std::fs::File, size_bytes: u64) {
        let begun = Begun { file: Arc::new(file), size_bytes };
        self.0.send_modify(|progress| progress.begun = Some(begun));
        self.land(Ok(()));
    }

    /// Tells everybody how it ended.
    pub fn land(&self, outcome: Result<(), MirrorError>) {
        self.0.send_modify(|progress| progress.ended = Some(outcome));
    }
}

/// The fetches on their way.
#[derive(Debug, Default)]
pub struct Flights(Mutex<BTreeMap<Content, Arc<Flight>>>);

impl Flights {
    /// Listens to the fetch of something; gives the fetch too when it is a new one, which the caller has to do.
    pub fn join(&self, content: &Content) -> (watch::Receiver<Progress>, Option<Arc<Flight>>) {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(content) {
            return (flight.0.subscribe(), None);
        }
        let (sender, listener) = watch::channel(Progress::default());
        let flight = Arc::new(Flight(sender));
        flights.insert(content.clone(), Arc::clone(&flight));
        (listener, Some(flight))
    }

    /// Ends a fetch to which nobody listens; tells whether that is so. The next asker begins anew.
    pub fn give_up(&self, content: &Content, flight: &Flight) -> bool {
        // Whoever joins holds the lock.
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let deserted = flight.0.receiver_count() == 0;
        if deserted {
            flights.remove(content);
        }
        deserted
    }

    /// Lets the next asker begin anew, unless one has done so after this fetch was given up.
    pub fn land(&self, content: &Content, flight: &Arc<Flight>) {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if flights.get(content).is_some_and(|known| Arc::ptr_eq(known, flight)) {
            flights.remove(content);
        }
    }
}

/// Fetches a blob into the shelf, on a thread that may wait.
pub fn fly(mirror: &Mirror, at: &Repository, content: &Content, flight: &Flight) -> Result<(), MirrorError> {
    let Mirror { shelf, upstream, counts, flights, .. } = mirror;
    let digest = content.to_string();
    let disk = |error: std::io::Error| MirrorError::Disk(error.to_string());
    let (size_bytes, mut source) = upstream.blob(at, &digest)?;
    let room = shelf.reserve(size_bytes).ok_or(MirrorError::TooLarge(size_bytes))?;
    let incoming = shelf.begin().map_err(disk)?;
    let begun = Begun { file: Arc::clone(&incoming.file), size_bytes };
    flight.0.send_modify(|progress| progress.begun = Some(begun));
    let (mut hash, mut written, mut breaks) = (content.hash(), 0u64, 0);
    let mut buffer = vec![0; PIECE_BYTES];
    while written < size_bytes {
        if size_bytes - written > FINISHED_ANYWAY_BYTES
            && flight.0.receiver_count() == 0
            && flights.give_up(content, flight)
        {
            return Err(MirrorError::Deserted);
        }
        let read = match source.read(&mut buffer) {
            Ok(read) if read > 0 => read,
            broken => {
                breaks += 1;
                let why = broken.map_or_else(|error| error.to_string(), |_| "the download broke off".to_owned());
                if breaks > BREAKS_MAX {
                    return Err(MirrorError::Silent(why));
                }
                (_, source) = upstream.rest(at, &digest, size_bytes, written)?;
                continue;
            }
        };
        let piece = buffer.get(..read).unwrap_or_default();
        written += read as u64;
        if written > size_bytes {
            return Err(MirrorError::Unusable(format!("{digest} is longer than it was announced")));
        }
        (&*incoming.file).write_all(piece).map_err(disk)?;
        hash.update(piece);
        count(&counts.fetched_bytes, read as u64);
        flight.0.send_modify(|progress| progress.written = written);
    }
    let came = hash.finish();
    if came != *content {
        return Err(MirrorError::Unusable(format!("{digest} came with other content ({came})")));
    }
    shelf.publish(incoming, content, room).map_err(disk)
}

/// Content to give to somebody.
pub struct Body {
    mirror: Arc<Mirror>,
    at: Repository,
    content: Content,
    begun: Begun,
    /// How far it is; absent for what is on the disk already.
    coming: Option<watch::Receiver<Progress>>,
    /// Given back with it.
    _place: Place,
}

impl Body {
    pub(super) fn kept(
        mirror: Arc<Mirror>,
        at: Repository,
        content: Content,
        file: Arc<std::fs::File>,
        size_bytes: u64,
        place: Place,
    ) -> Self {
        Self { mirror, at, content, begun: Begun { file, size_bytes }, coming: None, _place: place }
    }

    pub(super) fn coming(
        mirror: Arc<Mirror>,
        at: Repository,
        content: Content,
        begun: Begun,
        coming: watch::Receiver<Progress>,
        place: Place,
    ) -> Self {
        Self { mirror, at, content, begun, coming: Some(coming), _place: place }
    }

    /// How many bytes there are in all.
    pub fn size_bytes(&self) -> u64 {
        self.begun.size_bytes
    }

    /// Gives the bytes from one to before another, as they come.
    pub fn pieces(self, from: u64, to: u64) -> mpsc::Receiver<Piece> {
        let (sender, receiver) = mpsc::channel(PIECES_WAITING);
        tokio::spawn(async move {
            let given = match self.coming.clone() {
                Some(coming) => self.give_coming(coming, from, to, &sender).await,
                None => self.give_kept(from, to, &sender).await,
            };
            if let Err(error) = given {
                let _ = sender.send(Err(error)).await;
            }
        });
        receiver
    }

    async fn read(&self, at: u64, end: u64) -> Piece {
        let file = Arc::clone(&self.begun.file);
        tokio::task::spawn_blocking(move || shelf::piece(&file, at, end)).await.map_err(std::io::Error::other)?
    }

    async fn send(&self, sender: &mpsc::Sender<Piece>, piece: Vec<u8>) -> Result<(), std::io::Error> {
        self.mirror.counts.served_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        let sent = tokio::time::timeout(READER_MAX, sender.send(Ok(piece))).await;
        let gone = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        sent.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?.map_err(gone)
    }

    /// Reads all of a file from its beginning, because only all of it can be verified.
    async fn give_kept(&self, from: u64, to: u64, sender: &mpsc::Sender<Piece>) -> Result<(), std::io::Error> {
        let (mut hash, mut at): (Option<Hash>, u64) = (Some(self.content.hash()), 0);
        while at < to {
            let piece = self.read(at, self.begun.size_bytes).await;
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => return Err(self.damaged(&error.to_string()).await),
            };
            let end = at + piece.len() as u64;
            if let Some(hash) = &mut hash {
                hash.update(&piece);
            }
            if end == self.begun.size_bytes
                && let Some(hash) = hash.take()
                && hash.finish() != self.content
            {
                return Err(self.damaged("the file is something else by now").await);
            }
            let cut = |place: u64| usize::try_from(place.clamp(at, end) - at).unwrap_or(0);
            let wanted = piece.get(cut(from)..cut(to)).unwrap_or_default();
            if !wanted.is_empty() {
                self.send(sender, wanted.to_vec()).await?;
            }
            at = end;
        }
        Ok(())
    }

    async fn damaged(&self, reason: &str) -> std::io::Error {
        let (mirror, content) = (Arc::clone(&self.mirror), self.content.clone());
        // To end a large file takes a while.
        let _ = tokio::task::spawn_blocking(move || mirror.shelf.remove(&content)).await;
        count(&self.mirror.counts.damaged, 1);
        self.mirror.say("mirror-damaged", &self.at, &self.content.to_string(), reason);
        std::io::Error::other("the mirror's copy is damaged")
    }

    /// Follows a file that grows.
    async fn give_coming(
        &self,
        mut coming: watch::Receiver<Progress>,
        from: u64,
        to: u64,
        sender: &mpsc::Sender<Piece>,
    ) -> Result<(), std::io::Error> {
        let mut at = from;
        while at < to {
            // All but the last byte may go before everything was verified.
            let last = self.begun.size_bytes - 1;
            let ready = {
                let seen = tokio::select! {
                    seen = coming.wait_for(|seen| seen.ended.is_some() || seen.written.min(last) > at) => seen,
                    // Who has hung up listens no longer.
                    () = sender.closed() => return Ok(()),
                };
                let seen = seen.map_err(|_| std::io::Error::other("the fetch was given up"))?;
                match &seen.ended {
                    Some(Ok(())) => self.begun.size_bytes,
                    Some(Err(error)) => return Err(std::io::Error::other(error.clone())),
                    None => seen.written.min(last),
                }
            };
            let piece = self.read(at, ready.min(to)).await?;
            at += piece.len() as u64;
            self.send(sender, piece).await?;
        }
        Ok(())
    }
}
