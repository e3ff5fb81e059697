//! The cases, by what they are about.

mod basic;

use crate::runner::Case;

/// Every case of every file.
pub const CASES: &[&[Case]] = &[basic::CASES];
