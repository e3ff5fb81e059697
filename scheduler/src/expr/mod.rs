//! Placement expressions: Swarm's own, quirk by quirk, and a superset with numbers, versions, sets and weights.
//!
//! One text is one expression. Swarm's two operators keep Swarm's grammar and meaning; the others have no legacy to
//! respect. Evaluation is three-valued: a fact that is too old is *unknown*, which fails a hard expression whatever
//! its operator, and counts nothing in a soft one.
//!
//! Must not: look at a clock (freshness is decided by the caller's lookup), or accept a pattern that can take more
//! than linear time (the `regex` crate has none) or much memory (`PATTERN_BYTES`).

mod parse;
mod unit;

use std::cmp::Ordering;

use regex::Regex;

pub use parse::ExprError;
pub use unit::{number, version_order};

/// What is known about a key on a provider.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// The words; none at all is Swarm's empty label.
    Words(Vec<String>),
    /// There is something, but it is too old.
    Stale,
}

/// The outcome of one expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    True,
    /// It does not.
    False,
    /// The fact is too old to say.
    Unknown,
}

/// How much an expression counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// It must hold.
    Hard,
    /// Swarm's `~`: must hold unless nothing meets all soft ones, in which case all soft ones are dropped.
    Soft,
    /// Adds its weight to the score when it holds.
    Scored(i32),
}

/// An operator with its compiled operand.
#[derive(Clone, Debug)]
enum Test {
    /// Swarm `==` and `!=`: glob or `/regex/`.
    Swarm { pattern: Regex, literal: Option<String>, negated: bool },
    /// `=~` and `!~`.
    Pattern { pattern: Regex, negated: bool },
    /// `< <= > >=` on numbers with units.
    Number { accept: &'static [Ordering], operand: f64 },
    /// `v== v!= v< v<= v> v>=` on versions.
    Version { accept: &'static [Ordering], operand: String },
    /// `in` and `notin`.
    Set { members: Vec<String>, negated: bool },
    /// `exists`.
    Exists,
}

/// A parsed expression.
#[derive(Clone, Debug)]
pub struct Expr {
    /// The lower-cased key.
    pub key: String,
    /// How much it counts.
    pub weight: Weight,
    /// As it was written.
    pub text: String,
    test: Test,
}

impl Expr {
    /// Parses one expression.
    pub fn parse(text: &str) -> Result<Self, ExprError> {
        parse::parse(text)
    }

    /// Returns the one word that the key must have, when the expression is a hard `==` without pattern characters:
    /// such an expression can be answered from an index.
    pub fn literal(&self) -> Option<&str> {
        match &self.test {
            Test::Swarm { literal, negated: false, .. } if self.weight == Weight::Hard => literal.as_deref(),
            _ => None,
        }
    }

    /// Evaluates it on what is known.
    pub fn test(&self, found: &Found) -> Verdict {
        let Found::Words(words) = found else { return Verdict::Unknown };
        // Swarm quirk `missing_is_empty`: an absent label is the empty word.
        let empty = [String::new()];
        let swarm_words: &[String] = if words.is_empty() { &empty } else { words };
        let holds = match &self.test {
            Test::Swarm { pattern, negated, .. } => swarm_words.iter().any(|word| pattern.is_match(word)) != *negated,
            Test::Pattern { pattern, negated } => words.iter().any(|word| pattern.is_match(word)) != *negated,
            Test::Number { accept, operand } => words
                .iter()
                .filter_map(|word| number(word))
                .any(|value| value.partial_cmp(operand).is_some_and(|order| accept.contains(&order))),
            Test::Version { accept, operand } => {
                words.iter().any(|word| version_order(word, operand).is_some_and(|order| accept.contains(&order)))
            }
            Test::Set { members, negated } => words.iter().any(|word| members.contains(word)) != *negated,
            Test::Exists => !words.is_empty(),
        };
        if holds { Verdict::True } else { Verdict::False }
    }
}

#[cfg(test)]
mod tests;
