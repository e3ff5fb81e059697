//! Places where a test may kill the process, fail a call or hold it up.
//!
//! `CORACLE_FAIL=<point>=kill|error|sleep[@n]` arms one point; `@n` lets it pass n times first. The names are the
//! contract between the code and the loop test, which goes through all of `POINTS`. Unarmed, a point costs one atomic
//! load.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Every point there is. There is no table of messages: what an agent is to do follows from the records. `outbox_written`
/// is when records with orders for an agent are durable and nobody has been told, `outbox_sent` when the orders are
/// handed to its connection, `ack_recorded` when what it reported is durable and it does not know.
pub const POINTS: [&str; 13] = [
    "req_authed",
    "txn_begun",
    "row_written",
    "audit_written",
    "before_commit",
    "after_commit",
    "reply_ready",
    "outbox_written",
    "outbox_sent",
    "ack_recorded",
    "lease_taken",
    "lease_lost",
    "migrate_step",
];

/// How long `sleep` holds a call up: long enough for a second client to act.
const SLEEP: Duration = Duration::from_millis(300);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    Kill,
    Error,
    Sleep,
}

struct Armed {
    point: String,
    effect: Effect,
    after: u64,
    passed: AtomicU64,
}

/// The failure that an armed point makes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("failpoint {0}")]
pub struct Failed(pub &'static str);

fn parse(text: &str) -> Option<Armed> {
    let (point, effect) = text.split_once('=')?;
    let (effect, after) = effect.split_once('@').unwrap_or((effect, "0"));
    let effect = match effect {
        "kill" => Effect::Kill,
        "error" => Effect::Error,
        "sleep" => Effect::Sleep,
        _ => return None,
    };
    let known = POINTS.contains(&point);
    known.then_some(Armed { point: point.to_owned(), effect, after: after.parse().ok()?, passed: AtomicU64::new(0) })
}

#[expect(clippy::disallowed_methods, reason = "the one variable of this crate, for tests that kill it")]
fn armed() -> Option<&'static Armed> {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    ARMED.get_or_init(|| std::env::var("CORACLE_FAIL").ok().as_deref().and_then(parse)).as_ref()
}

/// Passes a point.
pub fn hit(point: &'static str) -> Result<(), Failed> {
    let Some(armed) = armed().filter(|armed| armed.point == point) else { return Ok(()) };
    if armed.passed.fetch_add(1, Ordering::Relaxed) < armed.after {
        return Ok(());
    }
    match armed.effect {
        Effect::Kill => {
            // As kill -9 would: no destructor, no flush.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            Err(Failed(point))
        }
        Effect::Error if armed.passed.load(Ordering::Relaxed) == armed.after + 1 => Err(Failed(point)),
        Effect::Error => Ok(()),
        Effect::Sleep => {
            std::thread::sleep(SLEEP);
            Ok(())
        }
    }
}
