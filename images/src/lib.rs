//! What a container is made of: references, the registry client, the store, layers.
//!
//! This crate knows nothing about containers and starts none. It prints nothing. tokio stays in
//! `registry`; everything else is plain blocking code on a few threads.

pub mod author;
mod contents;
pub mod credentials;
mod decompression;
pub mod diff;
pub mod digest;
pub mod flatten;
pub mod inventory;
pub mod layer;
pub mod limits;
pub mod load;
pub mod login;
pub mod lookup;
mod metadata;
pub mod pack;
pub mod platform;
pub mod progress;
pub mod pull;
pub mod push;
pub mod reference;
pub mod registry;
pub mod removal;
pub mod save;
pub mod store;
pub mod unpack;

pub use digest::{Digest, DigestError};
pub use flatten::{FlattenError, copy_up, flatten};
pub use layer::{Compression, Layer, LayerSpace, Ownership};
pub use load::{LoadError, LoadOptions, load};
pub use login::LoginError;
pub use lookup::{LookupError, open_in_layers};
pub use platform::Platform;
pub use progress::{NoProgress, Progress};
pub use pull::{PullError, PullOptions, pull};
pub use push::{PushError, Pushed, push};
pub use reference::Reference;
pub use removal::remove_tree;
pub use save::{SaveError, SaveFormat, save};
pub use store::{
    HistoryEntry, Image, IngestError, Ingested, KeepGuard, LayerIngest, OpenSource, Publication, Removed, SourceError,
    Store, StoreError,
};
pub use unpack::{UnpackError, UnpackReport};
