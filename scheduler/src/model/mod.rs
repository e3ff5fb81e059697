//! The pool's nouns: what is stored, what travels, in which units.
//!
//! Plain data with serde and OpenAPI shapes. Nothing here decides, reads a clock or does I/O. Every string that a
//! tenant or a provider can send has a bound that is checked by `validate` before it enters the state.

mod disk;
mod fact;
mod id;
mod life;
mod moving;
mod name;
mod options;
mod plan;
mod protocol;
mod record;
mod resource;
mod secret;
mod spec;
mod tenant;

pub use disk::{DiskBackend, DiskReport};
pub use fact::{Fact, FactReport, FactValue};
pub use id::{GroupId, IdError, InstanceId, JobId, JoinId, ProviderId, SecretId, ServiceId, TokenId, UserId, VolumeId};
pub use life::InstanceState;
pub use moving::Moving;
pub use name::{Name, NameError};
pub use options::{LimitOptions, ProcessOptions};
pub use plan::{Explanation, ScoreLine};
pub use protocol::{
    AllocStatus, Command, Hello, HelloReply, NumberedCommand, PROTOCOL_MAX, PROTOCOL_MIN, Phase, StreamKind,
    StreamOrder, Sync, SyncReply,
};
pub use record::{
    Allocation, Audit, Drain, Exit, Gang, Instance, Job, JobState, Key, Meta, Notice, OldAllocation, Owner, Provider,
    ProviderState, Record, Remembered, Service, StopReason, UsageRecord, Volume,
};
pub use resource::{Resources, Usage};
pub use secret::{Delivered, Plain, SECRET_BYTES, Sealed, SecretMount, SecretView, StoredSecret, is_value};
pub use spec::{
    Class, InstanceSpec, JobSpec, OnLoss, Port, Restart, ServiceSpec, SpecError, Strategy, Tier, VolumeMount, limits,
};
pub use tenant::{Actor, Group, Join, Quota, Role, Token, TokenKind, User};
