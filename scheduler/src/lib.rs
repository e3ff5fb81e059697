//! The pool: one place to ask for instances on machines that many people lend.
//!
//! - `model`: the nouns, as they are stored and as they travel.
//! - `expr`: placement expressions, Swarm's and ours.
//! - `core`: the pure state machine. It knows neither time nor network; the server and the simulator drive it.
#![forbid(unsafe_code)]

pub mod agent;
pub mod core;
pub mod expr;
pub mod failpoint;
pub mod model;
pub mod server;
pub mod store;
