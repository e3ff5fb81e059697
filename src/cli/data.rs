//! The commands that keep or move data.

pub mod commit;
pub mod cp;
pub mod df;
pub mod diff;
pub mod export;
pub mod import;
pub mod network;
pub mod prune;
pub mod reset;
pub mod unshare;
pub mod volume;
