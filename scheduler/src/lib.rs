//! The pool: one place to ask for instances on machines that many people lend.
//!
//! - `model`: the nouns, as they are stored and as they travel; bounds on everything that comes from outside.
//! - `expr`: placement expressions, Swarm's quirk by quirk and a superset with numbers, versions, sets and weights.
//! - `core`: the pure state machine `step(state, now, event) -> actions`. It knows neither time nor network. What must
//!   survive leaves as writes; everything else it keeps is derived and can be rebuilt from the records.
//! - `store`: one transaction for what one or many steps wrote: SQLite by default, PostgreSQL for several schedulers of
//!   which one leads.
//! - `server`: a thread that owns state and store (`desk`), and a table of routes with a policy each around it.
//! - `agent`: the provider's side: a pure session machine, the `Engine` it drives, a client over HTTP.
//! - `mirror`: what agents pull, fetched from its registry once and kept.
//! - `client`: a person's side of the API.
//! - `ssh`: sessions from end to end, between a person and the process that serves one on the provider.
//!
//! The life of an instance: a request becomes a [`core::Wish`], the core checks scope and quota and puts it in line;
//! the queue takes it in its turn, `place` walks the index, the choice is written with its explanation, and only then
//! the provider's held sync is answered with `Start`. Reports come back by sync; silence turns `running` into
//! `unknown` and, by the instance's own policy, into `lost` or a replacement. Nothing is killed because somebody is
//! silent.
//!
//! The simulator (`tests/sim.rs`) and the server drive the same core and the same agent machine.
#![forbid(unsafe_code)]

pub mod agent;
pub mod client;
pub mod command;
pub mod core;
pub mod dial;
pub mod expr;
pub mod failpoint;
pub mod mirror;
pub mod model;
pub mod names;
pub mod server;
pub mod ssh;
pub mod store;
