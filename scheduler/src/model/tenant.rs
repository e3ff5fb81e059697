//! Who may do what: groups with quotas, users, tokens, join tokens.
//!
//! A secret never enters these types: a token is known by the SHA-256 of its secret (S01).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{GroupId, JoinId, Name, ProviderId, Resources, Tier, TokenId, UserId};

/// The most that a group's normal instances may reserve at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Quota {
    /// Reserved amounts; `None` means no limit.
    pub resources: Option<Resources>,
    /// Instances that are not finished, pending ones included; `None` means the pool's own bound.
    #[schema(format = "uint32", maximum = 4294967295u64)]
    pub instances: Option<u32>,
}

/// One tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Group {
    /// Its id.
    pub id: GroupId,
    /// Its name, unique in the pool.
    pub name: Name,
    /// Its quota.
    pub quota: Quota,
    /// Its share when groups compete; 1 to 1000.
    pub weight: u32,
    /// When it was made.
    pub created_at_ms: u64,
}

/// What a user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Look at the own group's objects.
    Reader,
    /// Make and remove the own group's objects.
    Member,
    /// Everything in every group.
    Admin,
}

/// A person or robot of one group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct User {
    /// Its id.
    pub id: UserId,
    /// Its group.
    pub group: GroupId,
    /// Its name, unique in the group.
    pub name: Name,
    /// The most its tokens may do.
    pub role: Role,
    /// Public keys in OpenSSH's one-line form.
    pub ssh_keys: Vec<String>,
    /// When it was made.
    pub created_at_ms: u64,
}

/// What a token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum TokenKind {
    /// A user, with at most this role.
    User {
        /// Which one.
        user: UserId,
        /// Never above the user's own role.
        role: Role,
    },
    /// A provider's agent, and nothing but its own agent calls.
    Provider {
        /// Which one.
        provider: ProviderId,
    },
}

/// A bearer token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its id; not its secret.
    pub id: TokenId,
    /// The group it belongs to.
    pub group: GroupId,
    /// What it stands for.
    pub stands_for: TokenKind,
    /// SHA-256 of the secret in hex; never leaves the server.
    #[serde(rename = "hash")]
    #[schema(ignore)]
    pub hash: String,
    /// When it ends; `None` for provider tokens, which end by revocation.
    pub expires_at_ms: Option<u64>,
    /// When it was made.
    pub created_at_ms: u64,
}

/// A one-time token by which one named machine may join.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Join {
    /// Its id; not its secret.
    pub id: JoinId,
    /// The group whose machine it is.
    pub group: GroupId,
    /// Who made it; the owner of the provider.
    pub user: UserId,
    /// The only name that may join by it.
    pub provider_name: Name,
    /// The trust given on joining.
    pub tier: Tier,
    /// SHA-256 of the secret in hex; never leaves the server.
    #[schema(ignore)]
    pub hash: String,
    /// When it ends.
    pub expires_at_ms: u64,
}

/// Who asks: the outcome of authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Actor {
    /// The group.
    pub group: GroupId,
    /// The user; `None` for an agent.
    pub user: Option<UserId>,
    /// The provider; `None` for a user.
    pub provider: Option<ProviderId>,
    /// The role; a provider's is `Reader` and its policy never admits it to user routes.
    pub role: Role,
    /// The token that was shown.
    pub token: TokenId,
}

impl Actor {
    /// Tells whether objects of `group` exist for this actor.
    pub fn sees(&self, group: GroupId) -> bool {
        self.user.is_some() && (self.role == Role::Admin || self.group == group)
    }
}
