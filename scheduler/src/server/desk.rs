//! The one thread that owns the state and the store.
//!
//! Requests queue up while a commit runs and share the next one: group commit without a timer. Nothing leaves before
//! it is durable, reads included, so that nobody sees what a crash could take back. When the store refuses a batch
//! the memory is ahead of the disk; the state is then read again from the store and everybody in the batch is told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::clock::Clock;
use super::known::Known;
use super::log::Log;
use crate::core::{Action, Answer, Event, Options, Refusal, State, step};
use crate::failpoint;
use crate::model::{Notice, ProviderId};
use crate::store::{Batch, Store, StoreError};

/// Events that share one commit: enough to fill it, few enough that the first does not wait long.
const BATCH: usize = 128;
/// Requests that may wait for the desk; more are told to come back.
const QUEUE: usize = 4096;
/// Notices kept for streams; a stream that is further behind reads the store.
const RING: usize = 4096;
/// Tries to read the store again after it refused a batch.
const RELOADS: usize = 20;
/// Wait between them.
const RELOAD_PAUSE: Duration = Duration::from_millis(200);
/// Between two lines of the log about a store that fails: every agent asks again and again.
const COMPLAINT_MS: u64 = 1000;
/// Longest sleep without a timer.
const IDLE: Duration = Duration::from_secs(1);

/// Why the desk gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeskError {
    /// The request is refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Too many requests wait already.
    #[error("the scheduler is busy")]
    Busy,
    /// The store failed; whether the request took effect is decided by asking again with its idempotency key.
    #[error("the scheduler cannot write its log")]
    Unavailable,
}

/// What the desk lets everybody see without queueing.
#[derive(Debug)]
pub struct Shared {
    /// Wakes an agent's waiting sync.
    wakes: Mutex<BTreeMap<ProviderId, Arc<Notify>>>,
    /// The newest notices.
    ring: RwLock<VecDeque<Notice>>,
    /// The number of the newest notice.
    newest: watch::Sender<u64>,
    /// Tokens that were found good.
    pub known: Known,
    /// Why the desk must not be opened again by itself.
    lost: Mutex<Option<StoreError>>,
    /// Whether this scheduler leads and its store works.
    pub ready: std::sync::atomic::AtomicBool,
    /// Commits and their rows, for the metrics.
    pub commits: std::sync::atomic::AtomicU64,
    /// Steps, for the metrics.
    pub steps: std::sync::atomic::AtomicU64,
}

impl Shared {
    /// Returns what wakes a provider's waiting sync.
    pub fn wake(&self, provider: ProviderId) -> Arc<Notify> {
        let mut wakes = self.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(wakes.entry(provider).or_default())
    }

    /// Takes out why the desk must not be opened again by itself, if there is such a reason.
    pub fn lost(&self) -> Option<StoreError> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Follows the number of the newest notice.
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Returns notices after a number; `None` when the ring does not reach back so far.
    pub fn notices(&self, after: u64, most: usize) -> Option<Vec<Notice>> {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        match ring.front() {
            Some(oldest) if oldest.seq > after + 1 => None,
            None if *self.newest.borrow() > after => None,
            _ => Some(ring.iter().filter(|notice| notice.seq > after).take(most).cloned().collect()),
        }
    }
}

type Reply = Box<dyn FnOnce(Result<Answer, DeskError>, &State) + Send>;
type Look = Box<dyn FnOnce(&mut State, &mut dyn Store, u64) + Send>;

enum Work {
    Event(Box<dyn FnOnce(u64) -> Event + Send>, Reply),
    Look(Look),
}

/// A way to the desk.
#[derive(Clone)]
pub struct Desk {
    sender: mpsc::Sender<Work>,
    /// What can be seen without queueing.
    pub shared: Arc<Shared>,
}

impl Desk {
    /// Reads the store and starts the thread.
    pub fn open(
        mut store: Box<dyn Store>,
        options: Options,
        clock: Clock,
        log: Log,
    ) -> Result<(Self, std::thread::JoinHandle<()>), StoreError> {
        let options = Options { leader: store.lead()?, ..options };
        let state = State::load(options, seed(), clock.now_ms(), store.load()?);
        let shared = Arc::new(Shared {
            wakes: Mutex::default(),
            ring: RwLock::default(),
            newest: watch::Sender::new(state.meta.notice),
            known: Known::default(),
            lost: Mutex::default(),
            ready: true.into(),
            commits: 0.into(),
            steps: 0.into(),
        });
        let (sender, receiver) = mpsc::channel(QUEUE);
        let durable = (state.meta.audit, state.meta.notice);
        let mut thread = Thread {
            state,
            store,
            clock,
            shared: Arc::clone(&shared),
            ticket: 0,
            options,
            durable,
            served_ms: clock.now_ms(),
            log,
            complained_ms: 0,
        };
        let spawned = std::thread::Builder::new().name("desk".to_owned()).spawn(move || thread.run(receiver));
        let spawned =
            spawned.map_err(|source| StoreError::File { op: "start the thread for", path: "desk".into(), source })?;
        Ok((Self { sender, shared }, spawned))
    }

    /// Applies an event and waits until its outcome is durable.
    pub async fn submit(&self, event: impl FnOnce(u64) -> Event + Send + 'static) -> Result<Answer, DeskError> {
        self.submit_then(event, |answer, _| answer).await?
    }

    /// Applies an event and, when its outcome is durable, looks at it in the same turn: who queues once waits for one
    /// commit.
    pub async fn submit_then<T: Send + 'static>(
        &self,
        event: impl FnOnce(u64) -> Event + Send + 'static,
        then: impl FnOnce(Result<Answer, DeskError>, &State) -> T + Send + 'static,
    ) -> Result<T, DeskError> {
        let (reply, answer) = oneshot::channel();
        let reply: Reply = Box::new(move |outcome, state| drop(reply.send(then(outcome, state))));
        self.sender.try_send(Work::Event(Box::new(event), reply)).map_err(busy)?;
        answer.await.map_err(|_| DeskError::Unavailable)
    }

    /// Looks at what is durable.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut State, &mut dyn Store, u64) -> T + Send + 'static,
    ) -> Result<T, DeskError> {
        let (reply, answer) = oneshot::channel();
        let work: Look = Box::new(move |state, store, now| drop(reply.send(look(state, store, now))));
        self.sender.try_send(Work::Look(work)).map_err(busy)?;
        answer.await.map_err(|_| DeskError::Unavailable)
    }

    /// Waits until the desk has closed: another scheduler leads, or the store is gone for good.
    pub async fn closed(&self) {
        self.sender.closed().await;
    }
}

fn busy<T>(error: mpsc::error::TrySendError<T>) -> DeskError {
    match error {
        mpsc::error::TrySendError::Full(_) => DeskError::Busy,
        mpsc::error::TrySendError::Closed(_) => DeskError::Unavailable,
    }
}

fn seed() -> [u8; 32] {
    let mut seed = [0; 32];
    // Without entropy no id is safe; better no scheduler than a guessable one.
    getrandom::fill(&mut seed).unwrap_or_else(|error| panic!("the kernel gives no random bytes: {error}"));
    seed
}

struct Thread {
    state: State,
    store: Box<dyn Store>,
    clock: Clock,
    shared: Arc<Shared>,
    ticket: u64,
    options: Options,
    /// Audit rows and notices of the last commit.
    durable: (u64, u64),
    /// When the last turn ended in which everybody could be heard.
    served_ms: u64,
    log: Log,
    /// When the store was last complained of.
    complained_ms: u64,
}

impl Thread {
    fn run(&mut self, mut receiver: mpsc::Receiver<Work>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let Ok(runtime) = runtime else { return };
        loop {
            let sleep = self.sleep();
            let first = runtime.block_on(async { tokio::time::timeout(sleep, receiver.recv()).await });
            let mut work = Vec::new();
            match first {
                Ok(None) => return self.store.give_up_lead(),
                Ok(Some(first)) => work.push(first),
                Err(_) => {}
            }
            while work.len() < BATCH
                && let Ok(next) = receiver.try_recv()
            {
                work.push(next);
            }
            if let Err(error) = self.serve(work) {
                if matches!(error, StoreError::WentBack { .. }) {
                    *self.shared.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
                self.shared.ready.store(false, std::sync::atomic::Ordering::Relaxed);
                return self.shared.known.clear();
            }
        }
    }

    fn sleep(&self) -> Duration {
        let due = self.state.next_timer_ms().map(|due| due.saturating_sub(self.clock.now_ms()));
        due.map_or(IDLE, Duration::from_millis).min(IDLE)
    }

    fn serve(&mut self, work: Vec<Work>) -> Result<(), StoreError> {
        // A reader must not learn from a leader that was deposed while it slept.
        match self.store.keep_lead() {
            Ok(()) => {}
            Err(error @ StoreError::Deposed(_)) => return Err(error),
            Err(error) => {
                self.complain(&error);
                return Ok(());
            }
        }
        if self.stood_still() {
            // As after a restart: nobody was silent towards somebody who did not listen.
            self.reload_soon()?;
        }
        let (mut batch, mut later) = (Batch::default(), Vec::new());
        let (mut replies, mut looks) = (BTreeMap::new(), Vec::new());
        for work in work {
            match work {
                Work::Event(event, reply) => {
                    self.ticket += 1;
                    replies.insert(self.ticket, reply);
                    self.step(event(self.ticket), &mut batch, &mut later);
                }
                Work::Look(look) => looks.push(look),
            }
        }
        if self.state.next_timer_ms().is_none_or(|due| due <= self.clock.now_ms()) {
            self.step(Event::Tick, &mut batch, &mut later);
        }
        if !batch.is_empty() {
            match self.store.commit(&batch) {
                Ok(()) => {
                    self.durable = (self.state.meta.audit, self.state.meta.notice);
                    self.shared.commits.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
                Err(error @ StoreError::Deposed(_)) => return Err(error),
                Err(error) => {
                    self.complain(&error);
                    self.reload_soon()?;
                    replies.into_values().for_each(|reply| reply(Err(DeskError::Unavailable), &self.state));
                    return Ok(());
                }
            }
        }
        // Before anybody hears that a token is gone.
        self.shared.known.forget(batch.records.keys());
        self.publish(batch.notices);
        let _ = failpoint::hit("reply_ready");
        if later.iter().any(|action| matches!(action, Action::Wake(_))) {
            let _ = failpoint::hit("outbox_written");
        }
        for action in later {
            match action {
                Action::Answer(ticket, answer) => {
                    if let Some(reply) = replies.remove(&ticket) {
                        reply((*answer).map_err(DeskError::Refused), &self.state);
                    }
                }
                Action::Wake(provider) => self.shared.wake(provider).notify_one(),
                _ => {}
            }
        }
        let now = self.clock.now_ms();
        looks.into_iter().for_each(|look| look(&mut self.state, &mut *self.store, now));
        self.served_ms = now;
        Ok(())
    }

    /// Tells whether this process did not run, or its store did not answer, for so long that agents may have spoken in
    /// vain: half of what they may be silent.
    fn stood_still(&self) -> bool {
        let idle_ms = u64::try_from(IDLE.as_millis()).unwrap_or(u64::MAX);
        self.clock.now_ms() > self.served_ms + idle_ms + self.state.term_ms() / 2
    }

    /// Tells the operator what clients are not told: why the log cannot be written.
    fn complain(&mut self, error: &StoreError) {
        let now = self.clock.now_ms();
        if now < self.complained_ms + COMPLAINT_MS {
            return;
        }
        self.complained_ms = now;
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(error) = source {
            reason.push_str(": ");
            reason.push_str(&error.to_string());
            source = error.source();
        }
        self.log.line("error", "store-failed", now, serde_json::json!({ "reason": reason }));
    }

    fn step(&mut self, event: Event, batch: &mut Batch, later: &mut Vec<Action>) {
        self.shared.steps.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let actions = step(&mut self.state, self.clock.now_ms(), event);
        later.extend(batch.absorb(actions));
    }

    /// Throws away what could not be written, and what may or may not have been: the store knows. A store that does
    /// not know what it has acknowledged is another one, such as a standby that was promoted late (F37).
    fn reload_soon(&mut self) -> Result<(), StoreError> {
        let mut last = None;
        for _ in 0..RELOADS {
            match self.store.keep_lead().and_then(|()| self.store.load()) {
                Ok(records) => {
                    let state = State::load(self.options, seed(), self.clock.now_ms(), records);
                    let (found, known) = ((state.meta.audit, state.meta.notice), self.durable);
                    if found.0 < known.0 || found.1 < known.1 {
                        return Err(StoreError::WentBack { found: found.1, known: known.1 });
                    }
                    self.state = state;
                    self.served_ms = self.clock.now_ms();
                    self.shared.known.clear();
                    return Ok(());
                }
                Err(error @ StoreError::Deposed(_)) => return Err(error),
                Err(error) => last = Some(error),
            }
            std::thread::sleep(RELOAD_PAUSE);
        }
        last.map_or(Ok(()), Err)
    }

    fn publish(&self, notices: Vec<Notice>) {
        let Some(newest) = notices.last().map(|notice| notice.seq) else { return };
        let mut ring = self.shared.ring.write().unwrap_or_else(PoisonError::into_inner);
        ring.extend(notices);
        let surplus = ring.len().saturating_sub(RING);
        ring.drain(..surplus);
        drop(ring);
        self.shared.newest.send_replace(newest);
    }
}
