//! Which of the server's threads wait for requests.
//!
//! One is the rule. The kernel wakes waiting threads in turn, so with two each would find its caches, its buffer and
//! its processor cold, for every request of a container that asks for one thing after the other. A thread that goes
//! away to something slow sends another one first, and so does one that finds requests waiting again and again.

use std::cell::Cell;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A request that was there this soon did not have to be waited for: a switch of the processor takes longer.
const AT_ONCE: Duration = Duration::from_micros(2);
/// So many of them in a row are more work than one thread does.
const BACKLOG: u32 = 16;
/// For so long after an answer the next request is looked for before a thread sleeps. To wake a processor that sleeps takes
/// most of the time of a small request, in a virtual machine more than all the rest.
pub const LOOK: Duration = Duration::from_micros(200);
/// What takes longer than this waited for a disk.
const LONG: Duration = Duration::from_millis(5);
/// So many reads and writes after it are taken for slow ones.
const SLOW_MOST: u32 = 16;

/// Keeps count of the threads.
#[derive(Debug)]
pub struct Turns {
    counts: Mutex<Counts>,
    wanted: Condvar,
    threads: usize,
}

#[derive(Debug, Default)]
struct Counts {
    /// Threads that wait for requests or answer quick ones.
    active: usize,
    /// How many are called.
    called: usize,
    /// No request will come any more.
    over: bool,
}

/// Is what one thread remembers of its last requests.
#[derive(Debug, Default)]
pub struct Pace {
    in_a_row: u32,
    /// The last request came soon, so the next one may.
    quick: bool,
    /// So many requests are still taken for slow ones.
    slow: u32,
}

thread_local! {
    /// This thread does something slow.
    static AWAY: Cell<bool> = const { Cell::new(false) };
}

impl Turns {
    pub fn new(threads: usize) -> Self {
        Self { counts: Mutex::default(), wanted: Condvar::new(), threads }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until this thread is needed; false when all is over. The first one is needed at once.
    pub fn join(&self) -> bool {
        let mut counts = self.counts();
        while !counts.over && counts.active > 0 && counts.called == 0 {
            counts = self.wanted.wait(counts).unwrap_or_else(PoisonError::into_inner);
        }
        counts.called = counts.called.saturating_sub(1);
        counts.active += 1;
        !counts.over
    }

    /// Does something slow: another thread waits for requests meanwhile. There may be one too many for a moment after.
    pub fn away<T>(&self, work: impl FnOnce() -> T) -> T {
        // Something slow within something slow is no second thread that goes.
        if AWAY.replace(true) {
            return work();
        }
        self.leave();
        let result = work();
        self.counts().active += 1;
        AWAY.set(false);
        result
    }

    /// Is called by a thread that is not needed, or not for now: the last one sends another.
    pub fn leave(&self) {
        let mut counts = self.counts();
        counts.active = counts.active.saturating_sub(1);
        if counts.active == 0 {
            self.wanted.notify_one();
        }
    }

    /// Ends all waiting.
    pub fn end(&self) {
        self.counts().over = true;
        self.wanted.notify_all();
    }

    /// Takes note of how long a thread waited for a request. Says whether it is still needed.
    pub fn note(&self, pace: &mut Pace, waited: Duration) -> bool {
        pace.quick = waited < 2 * LOOK;
        if waited > AT_ONCE {
            pace.in_a_row = 0;
            return self.counts().active <= 1;
        }
        pace.in_a_row += 1;
        if pace.in_a_row == BACKLOG {
            let mut counts = self.counts();
            if counts.active + counts.called < self.threads {
                counts.called += 1;
                self.wanted.notify_one();
            }
        }
        true
    }
}

impl Pace {
    /// Says whether the next request may come soon.
    pub fn is_quick(&self) -> bool {
        self.quick
    }

    /// Takes note of how long a request took.
    pub fn note_work(&mut self, took: Duration) {
        if took > LONG {
            self.slow = SLOW_MOST;
        }
    }

    /// Says whether reading or writing has been slow of late: the disk is, or the kernel holds writers back.
    pub fn is_slow(&mut self) -> bool {
        let slow = self.slow > 0;
        self.slow = self.slow.saturating_sub(1);
        slow
    }
}

#[cfg(test)]
mod tests {
    use std::thread::{scope, yield_now};

    use super::*;

    #[test]
    fn a_backlog_calls_another_thread_once() {
        let turns = Turns::new(2);
        assert!(turns.join());
        scope(|scope| {
            scope.spawn(|| assert!(turns.join()));
            let mut pace = Pace::default();
            for _ in 0..2 * BACKLOG {
                assert!(turns.note(&mut pace, Duration::ZERO));
            }
            while turns.counts().active < 2 {
                yield_now();
            }
            pace.in_a_row = BACKLOG - 1;
            assert!(turns.note(&mut pace, Duration::ZERO));
            assert_eq!(turns.counts().called, 0, "there is no third one");
        });
    }

    #[test]
    fn whoever_is_away_twice_is_counted_once() {
        let turns = Turns::new(2);
        assert!(turns.join());
        turns.away(|| turns.away(|| assert_eq!(turns.counts().active, 0)));
        assert_eq!(turns.counts().active, 1, "it would look as if another thread waited for requests");
        turns.away(|| assert_eq!(turns.counts().active, 0));
    }

    #[test]
    fn the_end_wakes_everybody() {
        let turns = Turns::new(2);
        assert!(turns.join());
        scope(|scope| {
            scope.spawn(|| assert!(!turns.join()));
            turns.end();
        });
    }

    #[test]
    fn who_asked_soon_may_ask_soon_again() {
        let (turns, mut pace) = (Turns::new(1), Pace::default());
        assert!(turns.join() && !pace.is_quick());
        for (waited, quick) in [(LOOK, true), (3 * LOOK, false), (Duration::ZERO, true)] {
            turns.note(&mut pace, waited);
            assert_eq!(pace.is_quick(), quick, "{waited:?}");
        }
    }

    #[test]
    fn slow_work_is_remembered_for_a_while() {
        let mut pace = Pace::default();
        assert!(!pace.is_slow());
        pace.note_work(LONG * 2);
        assert_eq!((0..2 * SLOW_MOST).filter(|_| pace.is_slow()).count(), SLOW_MOST as usize);
    }
}
