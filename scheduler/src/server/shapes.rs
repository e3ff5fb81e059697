//! Bodies of requests and answers that are not model types, and the shapes of all of them for the OpenAPI document.

use serde::{Deserialize, Serialize};
use utoipa::openapi::{RefOr, schema::Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::model::*;

macro_rules! bodies {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
    )* };
}

bodies! {
    /// A new group.
    GroupNew {
        /// Unique in the pool.
        name: Name,
        /// No limit when absent.
        #[serde(default)] quota: Quota,
        /// 1 to 1000.
        #[serde(default = "one")] #[schema(minimum = 1, maximum = 1000)] weight: u32,
    }
    /// A changed group.
    GroupChange {
        /// No limit when absent.
        #[serde(default)] quota: Quota,
        /// 1 to 1000.
        #[serde(default = "one")] #[schema(minimum = 1, maximum = 1000)] weight: u32,
    }
    /// A new user.
    UserNew {
        /// Whose.
        group: GroupId,
        /// Unique in the group.
        name: Name,
        /// The most its tokens may do.
        role: Role,
    }
    /// A user's SSH keys.
    Keys {
        /// In OpenSSH's one-line form.
        keys: Vec<String>,
    }
    /// A new token.
    TokenNew {
        /// For whom; absent means oneself.
        #[serde(default)] user: Option<UserId>,
        /// The most it may do.
        role: Role,
        /// How long it lives.
        #[schema(minimum = 1000, maximum = 31622400000u64)] ttl_ms: u64,
    }
    /// A new join token.
    JoinNew {
        /// Whose machine; absent means the own group's.
        #[serde(default)] group: Option<GroupId>,
        /// The only name that may join by it.
        provider_name: Name,
        /// The trust given on joining.
        #[serde(default)] tier: Tier,
        /// How long it may be used, an hour at most.
        #[schema(minimum = 1000, maximum = 3600000)] ttl_ms: u64,
    }
    /// The only answer that shows a secret.
    SecretShown {
        /// The token's id.
        id: String,
        /// The secret; absent when the request was a repetition.
        secret: Option<String>,
    }
    /// A provider's trust.
    TierChange {
        /// How far.
        tier: Tier,
    }
    /// A drain.
    DrainNew {
        /// When what remains is stopped.
        #[schema(maximum = 2592000000u64)] within_ms: u64,
    }
    /// A new instance.
    InstanceNew {
        /// Whose; absent means the own group's.
        #[serde(default)] group: Option<GroupId>,
        /// Made up when absent.
        #[serde(default)] name: Option<Name>,
        /// What is asked.
        spec: InstanceSpec,
    }
    /// A new service.
    ServiceNew {
        /// Whose; absent means the own group's.
        #[serde(default)] group: Option<GroupId>,
        /// What is asked.
        spec: ServiceSpec,
    }
    /// A new job.
    JobNew {
        /// Whose; absent means the own group's.
        #[serde(default)] group: Option<GroupId>,
        /// What is asked.
        spec: JobSpec,
    }
    /// A new volume.
    VolumeNew {
        /// Whose; absent means the own group's.
        #[serde(default)] group: Option<GroupId>,
        /// Unique in the group.
        name: Name,
        /// Its size.
        #[schema(minimum = 1, maximum = 1152921504606846976u64)] size_bytes: u64,
    }
    /// A machine that joins; the join token is the bearer token.
    JoinBody {
        /// The name the join token was made for.
        name: Name,
        /// A signing request for the key that the agent made, PEM; needed where agents have certificates.
        #[serde(default)] request: Option<String>,
    }
    /// A machine that joined.
    Joined {
        /// Its id.
        provider: ProviderId,
        /// Its token's secret; in this answer only.
        secret: String,
        /// The certificate for its key, PEM, where agents have them.
        #[serde(default)] certificate: Option<String>,
    }
    /// An agent's key that should be signed.
    CertificateNew {
        /// A signing request, PEM.
        request: String,
    }
    /// A signed key.
    Certificate {
        /// The certificate, PEM.
        certificate: String,
    }
    /// A move to another provider.
    InstanceMove {
        /// Only there; absent leaves the choice to the scheduler.
        #[serde(default)] to: Option<ProviderId>,
    }
    /// A stream to an instance.
    StreamNew {
        /// What flows.
        kind: StreamKind,
    }
    /// Why an agent gives no stream.
    StreamRefused {
        /// The agent's words.
        reason: String,
    }
    /// Who a token stands for.
    Whoami {
        /// The group.
        group: GroupId,
        /// The user.
        user: Option<UserId>,
        /// What it may do.
        role: Role,
    }
    /// A page of a list.
    Page {
        /// The objects.
        items: Vec<serde_json::Value>,
        /// What to give as `after` for the next page; absent on the last.
        next: Option<String>,
    }
}

/// A new secret. It is read and never written out again, so it is no `Serialize`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretNew {
    /// Whose; absent means the own group's.
    #[serde(default)]
    pub group: Option<GroupId>,
    /// Unique in the group.
    pub name: Name,
    /// The value, at most 64 KiB.
    #[serde(deserialize_with = "is_value")]
    pub value: Plain,
}

fn one() -> u32 {
    1
}

fn shape<T: ToSchema + PartialSchema>(all: &mut Vec<(String, RefOr<Schema>)>) -> RefOr<Schema> {
    all.push((T::name().into_owned(), T::schema()));
    T::schemas(all);
    RefOr::Ref(utoipa::openapi::schema::Ref::from_schema_name(T::name()))
}

macro_rules! shapes {
    ($($name:ident $type:ty;)*) => { $(
        /// The shape of this type.
        pub fn $name(all: &mut Vec<(String, RefOr<Schema>)>) -> RefOr<Schema> { shape::<$type>(all) }
    )* };
}

shapes! {
    group_new GroupNew; group_change GroupChange; group Group; user_new UserNew; user User; keys Keys;
    token_new TokenNew; join_new JoinNew; secret SecretShown; provider Provider; tier TierChange; drain DrainNew;
    instance_new InstanceNew; instance_move InstanceMove; instance Instance; explanation Explanation; service_new ServiceNew; service Service;
    service_spec ServiceSpec; job_new JobNew; job Job; volume_new VolumeNew; volume Volume; secret_new SecretNew;
    secret_view SecretView; join_body JoinBody;
    joined Joined; certificate_new CertificateNew; certificate Certificate; hello Hello; hello_reply HelloReply; sync Sync; sync_reply SyncReply; page Page; stream_new StreamNew; whoami Whoami;
    problem super::problem::Problem;
}
