//! What a container is made of: references, the registry client, the store, layers.
//!
//! This crate knows nothing about containers and starts none. It prints nothing. tokio stays in
//! `registry`; everything else is plain blocking code on a few threads.

pub mod digest;
pub mod layer;
pub mod limits;
pub mod platform;
pub mod progress;
pub mod reference;
pub mod store;

pub use digest::{Digest, DigestError};
pub use layer::{Compression, Layer, LayerSpace, Ownership};
pub use platform::Platform;
pub use progress::{NoProgress, Progress};
pub use reference::Reference;
pub use store::{
    Image, IngestError, KeepGuard, LayerIngest, OpenSource, Publication, SourceError, Store,
    StoreError,
};
