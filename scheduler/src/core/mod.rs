//! The pure core: `step(state, now, event) -> actions`.
//!
//! Plain data, no clock, no I/O, no threads, no hash maps: the same events give the same actions, in the server and in
//! the simulator. What must be durable leaves as [`Action::Write`]; a driver commits those before it lets any other
//! action of the step out. Cost: a placement looks at a number of providers that grows with the logarithm of the pool
//! (`index`); only an instance that nothing matches makes the core look at all of them, once per shape.

mod ask;
pub mod check;
mod consumption;
mod drain;
mod explain;
mod gang;
mod halt;
mod index;
mod instance;
mod job;
pub mod ledger;
mod live;
mod loss;
mod moving;
mod place;
mod preempt;
mod provider;
mod queue;
mod random;
mod request;
mod service;
mod state;
mod tenant;
mod timer;
mod volume;

use crate::model::{Actor, Audit, Explanation, Hello, HelloReply, Key, Notice, ProviderId, Record, Sync, SyncReply};

pub use loss::MOVES_PER_HOUR;
pub use place::candidates_wanted;
pub use request::{Request, Wish};
pub use state::{Options, State};
pub use timer::Timer;

/// Something that happened outside.
#[derive(Clone, Debug)]
pub enum Event {
    /// Time passed.
    Tick,
    /// Somebody asks for something.
    Request {
        /// Comes back with the answer.
        ticket: u64,
        /// What.
        request: Box<Request>,
    },
    /// An agent opens a session.
    Hello {
        /// Comes back with the answer.
        ticket: u64,
        /// Who.
        provider: ProviderId,
        /// What it says.
        hello: Box<Hello>,
    },
    /// An agent reports.
    Sync {
        /// Comes back with the answer.
        ticket: u64,
        /// Who.
        provider: ProviderId,
        /// What it says.
        sync: Box<Sync>,
    },
}

/// Something to do outside.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make a record durable.
    Write(Key, Box<Record>),
    /// Remove a record.
    Erase(Key),
    /// Append to the audit log, in the same transaction.
    Audit(Box<Audit>),
    /// Append to the event log, in the same transaction.
    Notice(Box<Notice>),
    /// Answer a request, after the transaction.
    Answer(u64, Box<Result<Answer, Refusal>>),
    /// A provider has commands to fetch, after the transaction.
    Wake(ProviderId),
}

/// What is answered to a request that was granted.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The object now is, or already was by an idempotency key.
    Object(Key),
    /// It is gone.
    Gone,
    /// What would happen.
    Plan(Explanation),
    /// A session is open.
    Hello(HelloReply),
    /// The report is taken.
    Sync(SyncReply),
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is none, or none that the actor may know of.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// The actor may see it and may not do that.
    #[error("this token may not do that")]
    Forbidden,
    /// The request contradicts the state.
    #[error("{0}")]
    Conflict(String),
    /// The request makes no sense.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// The reason.
        reason: String,
    },
    /// The group has its share already.
    #[error("quota: {0}")]
    Quota(String),
    /// The pool has as many of these as it can hold.
    #[error("the pool holds at most {0}")]
    Full(&'static str),
    /// The idempotency key was used for something else.
    #[error("this idempotency key was used for a different request")]
    KeyReused,
    /// The session is not the provider's newest, or the scheduler does not know it: say hello first.
    #[error("this session is over, say hello again")]
    HelloNeeded,
    /// The incarnation was seen before: a replay, or two machines with one identity.
    #[error("incarnation {0} is not above the last one: a replay, or two agents with one identity")]
    Duplicate(u64),
    /// No common protocol version.
    #[error("this scheduler speaks protocols {0} to {1}")]
    Protocol(u32, u32),
}

impl From<crate::model::SpecError> for Refusal {
    fn from(error: crate::model::SpecError) -> Self {
        Self::Invalid { field: error.field, reason: error.reason }
    }
}

/// Applies one event. The same state, time and event always give the same actions.
pub fn step(state: &mut State, now_ms: u64, event: Event) -> Vec<Action> {
    // Time never goes back, whatever the driver's clock does (F17).
    let now = now_ms.max(state.meta.now_ms).max(state.live.now_ms);
    state.live.now_ms = now;
    match event {
        Event::Tick => {}
        Event::Request { ticket, request } => {
            let outcome = request::handle(state, now, *request);
            state.answer(ticket, outcome);
        }
        Event::Hello { ticket, provider, hello } => {
            let outcome = provider::hello(state, now, provider, *hello);
            state.answer(ticket, outcome);
        }
        Event::Sync { ticket, provider, sync } => {
            let outcome = provider::sync(state, now, provider, *sync);
            state.answer(ticket, outcome);
        }
    }
    timer::run(state, now);
    queue::schedule(state, now);
    state.drain(now)
}

/// Returns the commands of a provider's session after `applied`.
pub fn commands_after(state: &State, provider: ProviderId, applied: u64) -> Vec<crate::model::NumberedCommand> {
    provider::commands_after(state, provider, applied)
}

/// Tells who shows a token with this hash, if it is valid now.
pub fn authenticate(state: &State, now_ms: u64, hash: &str) -> Option<Actor> {
    tenant::authenticate(state, now_ms.max(state.live.now_ms), hash)
}
