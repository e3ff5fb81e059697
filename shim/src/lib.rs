//! What stays with a container while it runs: the foreground watch of `coracle run`, and the shim of a
//! container that outlives its command.
//!
//! Single-threaded and without tokio. It decides nothing about containers: it moves bytes between
//! clients, pipes and terminals, passes signals on, writes the log, waits for the end, and keeps the
//! network helper from outliving its container.

pub mod attach;
pub mod client;
mod clients;
pub mod disk;
mod foreground;
mod keeper;
pub mod log;
mod probe;
pub mod protocol;
mod signals;
mod streams;
mod stuck;
mod supervisor;
pub mod terminal;

pub use foreground::Foreground;
pub use keeper::{Helper, KEEPER_ARGUMENT, Keeper, Manner, keep};
pub use log::LogLimits;
pub use probe::{ProbeResult, Schedule};
pub use signals::parse_signal;
pub use supervisor::{After, Owner, Shim, ShimOptions};
