//! What a container is while nobody holds it in their hands: its id, its directory, its state.
//!
//! ```text
//! <root>/            0700, owned by the user whose containers these are
//!   <id>/            0700, made by mkdir: whoever makes it owns the id; flock = someone is changing it
//!     config.json    the bundle's specification as it was at create
//!     status         absent until the first process exists; replaced by rename
//!     gate           a socket that exists from create until start
//! ```
//! Invariants: everything below the root is reached through its descriptor and never through a
//! symbolic link; a recorded pid is believed only together with its start time and this boot's id
//! (F14, F15); `status` is whole or absent at every moment.

mod id;
mod identity;
mod state;
mod store;

pub use id::{Id, InvalidId};
pub use identity::{Identity, IdentityError};
pub use state::{Beginning, State, Status, timestamp};
pub use store::{Container, ContainerError, Lock, StateRoot};
