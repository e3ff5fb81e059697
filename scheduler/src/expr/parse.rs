//! From text to [`Expr`].
//!
//! The operator that starts first decides, the longest one at that place. Swarm looked for `==` anywhere before `!=`,
//! so that `a!==b` has the key `a!` and is refused; this is kept.

use std::cmp::Ordering;
use std::sync::LazyLock;

use regex::{Regex, RegexBuilder};

use super::{Expr, Test, Weight, number, version_order};

/// Says why a text is no expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExprError {
    /// There is no operator.
    #[error("expression {0:?} has none of the operators == != =~ !~ < <= > >= v== v!= v< v<= v> v>= in notin exists")]
    Operator(String),
    /// The part before the operator is no key.
    #[error("key {0:?} is invalid")]
    Key(String),
    /// The part after the operator is no operand of it.
    #[error("value {0:?} is invalid")]
    Value(String),
    /// The pattern does not compile or is too large.
    #[error("pattern {0:?} is not a regular expression of a reasonable size")]
    Pattern(String),
    /// The text is too long.
    #[error("an expression has at most 1024 bytes")]
    Length,
}

/// Compiled size of one pattern; `{1000}{1000}` must not eat the scheduler.
const PATTERN_BYTES: usize = 256 * 1024;
/// Largest weight in either direction.
const WEIGHT_MAX: i32 = 100;

#[expect(clippy::expect_used, reason = "the pattern is a constant of this file and is compiled by every test")]
static KEY: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^(?i)[a-z_][a-z0-9\-_.]+$").expect("constant"));
#[expect(clippy::expect_used, reason = "the pattern is a constant of this file and is compiled by every test")]
static SWARM_VALUE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^(?i)[=!/]?(~)?[a-z0-9:\-_\s.*/()?+\[\]\\^$|]+$").expect("constant"));

/// Operators outside Swarm, each before its own prefixes.
const EXTENDED: [&str; 14] =
    ["notin", "exists", "v==", "v!=", "v<=", "v>=", "v<", "v>", "=~", "!~", "<=", ">=", "<", ">"];

const LESS: &[Ordering] = &[Ordering::Less];
const AT_MOST: &[Ordering] = &[Ordering::Less, Ordering::Equal];
const MORE: &[Ordering] = &[Ordering::Greater];
const AT_LEAST: &[Ordering] = &[Ordering::Greater, Ordering::Equal];
const SAME: &[Ordering] = &[Ordering::Equal];
const OTHER: &[Ordering] = &[Ordering::Less, Ordering::Greater];

/// Parses one expression.
pub(super) fn parse(text: &str) -> Result<Expr, ExprError> {
    if text.len() > crate::model::limits::EXPRESSION_BYTES {
        return Err(ExprError::Length);
    }
    let swarm = ["==", "!="].into_iter().find_map(|op| text.find(op).map(|at| (at, op)));
    let extended = extended_operator(text);
    match (swarm, extended) {
        (None, None) => Err(ExprError::Operator(text.to_owned())),
        (Some((at, op)), found) if found.as_ref().is_none_or(|(other, _)| at < *other) => parse_swarm(text, at, op),
        (_, Some((at, op))) => parse_extended(text, at, op),
        (Some((at, op)), None) => parse_swarm(text, at, op),
    }
}

/// Finds the first operator outside Swarm. Words must stand between blanks; `v` operators after one.
fn extended_operator(text: &str) -> Option<(usize, &'static str)> {
    let blank = |c: Option<char>| c.is_none_or(char::is_whitespace);
    let accept = |at: usize, op: &str| {
        let (before, after) = (text[..at].chars().next_back(), text[at + op.len()..].chars().next());
        if op.starts_with('v') {
            before.is_some_and(char::is_whitespace)
        } else if op.chars().all(char::is_alphabetic) {
            before.is_some_and(char::is_whitespace) && blank(after)
        } else {
            true
        }
    };
    let each = EXTENDED.iter().chain(&["in"]).filter_map(|op| {
        let at = text.match_indices(op).map(|(at, _)| at).find(|at| accept(*at, op))?;
        Some((at, *op))
    });
    each.min_by_key(|(at, op)| (*at, std::cmp::Reverse(op.len())))
}

fn key(text: &str) -> Result<String, ExprError> {
    if KEY.is_match(text) { Ok(text.to_lowercase()) } else { Err(ExprError::Key(text.to_owned())) }
}

fn compile(pattern: &str) -> Result<Regex, ExprError> {
    let built = RegexBuilder::new(pattern).size_limit(PATTERN_BYTES).nest_limit(50).build();
    built.map_err(|_| ExprError::Pattern(pattern.chars().take(80).collect()))
}

/// Splits a trailing `~weight` off an operand.
fn split_weight(value: &str) -> Option<(&str, i32)> {
    let (value, weight) = value.rsplit_once('~')?;
    let weight: i32 = weight.trim().parse().ok()?;
    (weight.abs() <= WEIGHT_MAX && !value.is_empty()).then_some((value, weight))
}

fn parse_swarm(text: &str, at: usize, op: &str) -> Result<Expr, ExprError> {
    let key = key(&text[..at])?;
    let whole = &text[at + op.len()..];
    let (value, scored) = match split_weight(whole) {
        Some((value, weight)) => (value, Some(weight)),
        None => (whole, None),
    };
    if !SWARM_VALUE.is_match(value) {
        return Err(ExprError::Value(whole.to_owned()));
    }
    let weight = match scored {
        Some(weight) => Weight::Scored(weight),
        None if value.starts_with('~') => Weight::Soft,
        None => Weight::Hard,
    };
    let operand = value.trim_start_matches('~');
    let (pattern, literal) = match operand.strip_prefix('/').and_then(|rest| rest.strip_suffix('/')) {
        Some(regex) => (compile(regex)?, None),
        None if operand == "/" => return Err(ExprError::Value(whole.to_owned())),
        None => {
            let plain = !operand.contains(|c: char| "*.?+()[]\\^$|".contains(c));
            (compile(&format!("^{}$", operand.replace('*', ".*")))?, plain.then(|| operand.to_owned()))
        }
    };
    Ok(Expr { key, weight, text: text.to_owned(), test: Test::Swarm { pattern, literal, negated: op == "!=" } })
}

fn parse_extended(text: &str, at: usize, op: &str) -> Result<Expr, ExprError> {
    let key = key(text[..at].trim())?;
    let whole = text[at + op.len()..].trim();
    let (value, weight) = match (whole.strip_prefix('~'), split_weight(whole)) {
        (Some(rest), _) if op != "=~" && op != "!~" => (rest, Weight::Soft),
        (_, Some((value, weight))) => (value.trim(), Weight::Scored(weight)),
        _ => (whole, Weight::Hard),
    };
    let bad = || ExprError::Value(whole.to_owned());
    let test = match op {
        "exists" if value.is_empty() => Test::Exists,
        // `gpu exists ~20`: the operand is empty, so the weight stands alone.
        "exists" => {
            let weight: i32 = value.strip_prefix('~').unwrap_or(value).trim().parse().map_err(|_| bad())?;
            if weight.abs() > WEIGHT_MAX {
                return Err(bad());
            }
            return Ok(Expr { key, weight: Weight::Scored(weight), text: text.to_owned(), test: Test::Exists });
        }
        "in" | "notin" => {
            let members: Vec<String> = value.split('|').map(|member| member.trim().to_owned()).collect();
            if members.iter().any(String::is_empty) {
                return Err(bad());
            }
            Test::Set { members, negated: op == "notin" }
        }
        "=~" | "!~" if value.is_empty() => return Err(bad()),
        "=~" | "!~" => Test::Pattern { pattern: compile(value)?, negated: op == "!~" },
        _ => ordered(op, value).ok_or_else(bad)?,
    };
    Ok(Expr { key, weight, text: text.to_owned(), test })
}

fn ordered(op: &str, value: &str) -> Option<Test> {
    let accept = match op.trim_start_matches('v') {
        "<" => LESS,
        "<=" => AT_MOST,
        ">" => MORE,
        ">=" => AT_LEAST,
        "==" => SAME,
        _ => OTHER,
    };
    if op.starts_with('v') {
        version_order(value, value).map(|_| Test::Version { accept, operand: value.to_owned() })
    } else {
        number(value).map(|operand| Test::Number { accept, operand })
    }
}
