//! Explanations: why an instance is where it is, or why it is nowhere.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ProviderId;

/// One candidate's score.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScoreLine {
    /// The candidate.
    pub provider: ProviderId,
    /// The sum.
    pub score: i64,
    /// Its parts by name.
    pub parts: BTreeMap<String, i64>,
}

/// The outcome of one placement decision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// When, in the scheduler's time.
    pub at_ms: u64,
    /// Providers in the pool.
    pub pool: u32,
    /// Providers that were looked at; fewer than `pool` when enough good ones were found early.
    pub examined: u32,
    /// Providers that match.
    pub matched: u32,
    /// Providers that do not match, by the first reason.
    pub filtered: BTreeMap<String, u32>,
    /// The best candidates, best first.
    pub scores: Vec<ScoreLine>,
    /// What would make it placeable.
    pub hints: Vec<String>,
    /// Soft expressions were dropped because nothing met them all.
    pub soft_dropped: bool,
}

impl Explanation {
    /// Candidates that are kept: enough to see why, few enough for 100,000 instances.
    pub const SCORES_KEPT: usize = 5;

    /// Says it in one sentence.
    pub fn sentence(&self) -> String {
        let mut text = if self.examined < self.pool {
            format!("{} of {} examined providers match ({} in the pool)", self.matched, self.examined, self.pool)
        } else {
            format!("{} of {} providers match", self.matched, self.pool)
        };
        for (reason, count) in &self.filtered {
            let _ = write!(text, "; {count} filtered by {reason}");
        }
        if let Some(best) = self.scores.first() {
            let _ = write!(text, "; best score {} at {}", best.score, best.provider);
        }
        for hint in &self.hints {
            let _ = write!(text, "; {hint}");
        }
        text
    }
}
