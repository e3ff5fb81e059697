//! Facts: what a provider says about itself, typed, with an age.
//!
//! A fact older than its time to live is unknown, not false: a hard expression on it fails, a soft one counts nothing.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One typed value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum FactValue {
    /// Yes or no.
    Bool(bool),
    /// A number; its unit is the fact's documented one (bytes, seconds, cores).
    Number(f64),
    /// Words.
    Text(String),
    /// Several words at once, such as the images that are present.
    Set(Vec<String>),
}

impl FactValue {
    /// Lists the words that an expression compares with.
    pub fn words(&self) -> Vec<String> {
        match self {
            Self::Bool(value) => vec![value.to_string()],
            Self::Number(value) => vec![value.to_string()],
            Self::Text(value) => vec![value.clone()],
            Self::Set(values) => values.clone(),
        }
    }
}

/// A fact as the state keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Fact {
    /// What was measured.
    pub value: FactValue,
    /// When, in the scheduler's time.
    pub at_ms: u64,
    /// How long it may be believed; `None` means until replaced.
    pub ttl_ms: Option<u64>,
}

impl Fact {
    /// Tells whether the fact may still be believed.
    pub fn is_fresh(&self, now_ms: u64) -> bool {
        self.ttl_ms.is_none_or(|ttl| now_ms.saturating_sub(self.at_ms) <= ttl)
    }
}

/// A fact as an agent reports it: ages travel, clocks do not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FactReport {
    /// What was measured.
    pub value: FactValue,
    /// How long ago.
    #[serde(default)]
    pub age_ms: u64,
    /// How long it may be believed; absent means until replaced.
    #[serde(default)]
    pub ttl_ms: Option<u64>,
}

impl FactReport {
    /// Turns the age into a time.
    pub fn into_fact(self, now_ms: u64) -> Fact {
        Fact { value: self.value, at_ms: now_ms.saturating_sub(self.age_ms), ttl_ms: self.ttl_ms }
    }
}
