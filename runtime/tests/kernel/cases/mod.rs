//! The cases, by what they are about.

mod basic;
mod configuration;
mod exec;
mod hostile;
mod identity;
mod mounts;
mod namespaces;
mod races;
mod terminal;

use crate::runner::Case;

/// Every case of every file.
pub const CASES: &[&[Case]] = &[
    basic::CASES,
    configuration::CASES,
    exec::CASES,
    hostile::CASES,
    identity::CASES,
    mounts::CASES,
    namespaces::CASES,
    races::CASES,
    terminal::CASES,
];
