//! The provider's side: a pure session machine, the `Engine` it drives, and a client that speaks HTTP.
//!
//! The agent dials out and opens no port (A82). It keeps instances running while the scheduler is away, reports
//! everything before it takes new orders, and applies each order once.

mod client;
mod engine;
mod fetch;
mod identity;
mod machine;
mod membership;
mod stream;

pub use client::{Agent, Client, ClientError, FileKeeper, Keeper};
pub use engine::{Asked, Engine, EngineError, EngineStream, SimulatedEngine};
pub use identity::{Identity, IdentityError};
pub use machine::{Machine, REPLY_MAX_MS};
pub use membership::{Membership, MembershipError, Reach};
