//! Where a store is, and what can be done with it as a whole: open, back up, restore.
//!
//! A backup is always one SQLite file with the schema of the default store, whatever it was taken from: it can be
//! looked at with `sqlite3`, becomes a pool by itself, and moves a pool from one kind of store to the other.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::{PostgresStore, SqliteStore, Store, StoreError};

/// Where a pool's store is.
#[derive(Clone, PartialEq, Eq)]
pub enum StorePlace {
    /// A file.
    Sqlite(PathBuf),
    /// A database, by URL.
    Postgres(String),
}

/// Says why a text names no store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// Nothing was given.
    #[error("a store is a path or a URL that starts with postgres://")]
    Empty,
    /// A URL of something else.
    #[error("{0:?} is no kind of store; sqlite:PATH, PATH and postgres://… are")]
    Kind(String),
}

impl FromStr for StorePlace {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let text = text.trim();
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            return Ok(Self::Postgres(text.to_owned()));
        }
        let path = text.strip_prefix("sqlite:").unwrap_or(text);
        match path.split_once("://") {
            Some((kind, _)) => Err(PlaceError::Kind(kind.to_owned())),
            None if path.is_empty() => Err(PlaceError::Empty),
            None => Ok(Self::Sqlite(path.into())),
        }
    }
}

/// Shows no password: of a URL only what follows it.
impl fmt::Display for StorePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "{}", path.display()),
            Self::Postgres(url) => {
                let rest = url.split_once("://").map_or("", |(_, rest)| rest);
                let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
                write!(f, "postgres://{}", rest.split('?').next().unwrap_or_default())
            }
        }
    }
}

impl fmt::Debug for StorePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StorePlace {
    /// Opens the store, making it when it is missing.
    pub fn open(&self, lease: Duration) -> Result<Box<dyn Store>, StoreError> {
        Ok(match self {
            Self::Sqlite(path) => Box::new(SqliteStore::open(path)?),
            Self::Postgres(url) => Box::new(PostgresStore::open(url, lease)?),
        })
    }

    /// Writes a consistent copy into a file that does not exist yet, while a scheduler may be at work.
    pub fn backup(&self, to: &Path) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(path) => SqliteStore::copy(path, to),
            Self::Postgres(url) => PostgresStore::read_only(url)?.copy(to),
        }
    }

    /// Puts a backup in the place of a store that no scheduler uses. A file that was there stays beside it as
    /// `<file>.replaced`; a database must be empty.
    pub fn restore(&self, from: &Path) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(path) => SqliteStore::restore(from, path),
            Self::Postgres(url) => PostgresStore::open(url, super::LEASE)?.restore(from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a80_a_place_shows_no_password() {
        let place: StorePlace = "postgres://pool:s3cret@db.example:5432/pool?password=s3cret".parse().expect("place");
        for shown in [place.to_string(), format!("{place:?}")] {
            assert!(!shown.contains("s3cret"), "{shown}");
            assert_eq!(shown, "postgres://db.example:5432/pool");
        }
    }

    #[test]
    fn a_place_is_a_path_or_a_postgres_url() {
        assert_eq!("sqlite:/a/b".parse(), Ok(StorePlace::Sqlite("/a/b".into())));
        assert_eq!("pool.db".parse(), Ok(StorePlace::Sqlite("pool.db".into())));
        assert_eq!("mysql://x".parse::<StorePlace>(), Err(PlaceError::Kind("mysql".to_owned())));
        assert_eq!("sqlite:".parse::<StorePlace>(), Err(PlaceError::Empty));
    }
}
