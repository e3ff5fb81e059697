//! Secrets of a group: what the store keeps, how an instance asks for one, how it travels to its agent (S30).
//!
//! A value is [`Plain`] while it passes: it has no `Debug` and no `Serialize`, and its memory is wiped. It is written out
//! in one place only, the answer to the agent that starts the instance. Everything else knows [`Sealed`].

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::{KnownFormat, RefOr, SchemaFormat};
use zeroize::Zeroize as _;

use super::{GroupId, Name, SecretId, UserId};

/// Bytes of one value: a key with its chain of certificates.
pub const SECRET_BYTES: usize = 64 * 1024;

/// A value in the clear.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Plain(String);

impl Plain {
    /// Takes a value over.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// Shows the value to who seals it or gives it to a container.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl utoipa::PartialSchema for Plain {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(SECRET_BYTES));
        text.format(Some(SchemaFormat::KnownFormat(KnownFormat::Password))).build().into()
    }
}

impl ToSchema for Plain {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Plain")
    }
}

/// A value as the store keeps it: only the scheduler's own key, which is not in the store, opens it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sealed(String);

impl Sealed {
    /// Takes what the seal made.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// Returns what the seal made.
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(sealed)")
    }
}

/// One secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSecret {
    /// Its id.
    pub id: SecretId,
    /// Unique in the group.
    pub name: Name,
    /// Whose it is.
    pub group: GroupId,
    /// Who made it.
    pub user: UserId,
    /// The value, sealed; never shown.
    pub sealed: Sealed,
    /// When it was made.
    pub created_at_ms: u64,
}

/// A secret as it is shown: all but its value.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SecretView {
    /// Its id.
    pub id: SecretId,
    /// Unique in the group.
    pub name: Name,
    /// Whose it is.
    pub group: GroupId,
    /// Who made it.
    pub user: UserId,
    /// When it was made.
    pub created_at_ms: u64,
}

/// A secret that an instance wants, as an environment variable or as a file that only its user reads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretMount {
    /// Which secret.
    pub secret: SecretId,
    /// Name of the variable.
    #[serde(default)]
    pub env: Option<String>,
    /// Absolute path of the file in the container.
    #[serde(default)]
    pub file: Option<String>,
}

/// A secret on its way into a container; in the answer to its agent only.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Delivered {
    /// Name of the variable.
    pub env: Option<String>,
    /// Absolute path of the file in the container.
    pub file: Option<String>,
    /// The value.
    #[serde(serialize_with = "reveal")]
    pub value: Plain,
}

fn reveal<S: Serializer>(value: &Plain, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(value.expose())
}

impl fmt::Debug for Delivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivered").field("env", &self.env).field("file", &self.file).finish_non_exhaustive()
    }
}

/// Tells whether a text is a value that may be kept.
pub fn is_value<'de, D: Deserializer<'de>>(input: D) -> Result<Plain, D::Error> {
    let value = Plain::deserialize(input)?;
    let length = value.expose().len();
    if (1..=SECRET_BYTES).contains(&length) && !value.expose().contains('\0') {
        return Ok(value);
    }
    Err(serde::de::Error::custom("a value has 1 to 65536 bytes and no NUL"))
}
