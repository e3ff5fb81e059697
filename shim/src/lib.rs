//! What stays with a container while it runs: today the foreground watch of `coracle run`.
//!
//! Single-threaded and without tokio. It decides nothing about containers: it moves bytes between a
//! terminal and a pseudo terminal, passes signals on, waits for the end, and keeps the network
//! helper from outliving its container.

mod foreground;
mod keeper;
mod signals;
mod terminal;

pub use foreground::Foreground;
pub use keeper::{KEEPER_ARGUMENT, Keeper, keep};
pub use signals::parse_signal;
