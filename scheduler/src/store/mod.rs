//! The durable log of what the core decided, behind one trait.
//!
//! A store holds one row per record, the notices, and the audit rows. `commit` is one transaction: all of a batch or
//! nothing, durable when it returns. Heartbeats never reach it. Everything in memory can be rebuilt from `load`.

mod batch;
mod columns;
mod link;
mod place;
mod postgres;
mod sqlite;
mod transfer;

use std::path::PathBuf;

use crate::failpoint::Failed;
use crate::model::{Audit, GroupId, Notice, Record};

pub use batch::Batch;
pub use place::{PlaceError, StorePlace};
pub use postgres::{LEASE, PostgresStore};
pub use sqlite::{SQLITE_LEAST, SqliteStore};

/// Says what went wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database file or its lock cannot be used.
    #[error("cannot {op} {}", path.display())]
    File {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Another scheduler has the file.
    #[error("another scheduler uses {}", .0.display())]
    Busy(PathBuf),
    /// The file is on a file system whose locks cannot be trusted.
    #[error("{} is on a network file system; SQLite needs a local disk", .0.display())]
    Network(PathBuf),
    /// The library is too old to be trusted with a write-ahead log.
    #[error("SQLite is {found}, at least {least} is needed")]
    Version {
        /// What is linked.
        found: i32,
        /// What is needed.
        least: i32,
    },
    /// The file is damaged.
    #[error("{} is damaged ({report}); restore it from a backup", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What the check said.
        report: String,
    },
    /// A part of the store is not there any more.
    #[error(
        "{} {lost}; restore it from a backup, or remove {} to go on with what is there", path.display(), lock.display()
    )]
    Lost {
        /// Which file.
        path: PathBuf,
        /// What has happened to it.
        lost: &'static str,
        /// What remembers the store.
        lock: PathBuf,
    },
    /// The file was written by a newer coracle.
    #[error("the store has schema {found}, this coracle knows {known}")]
    Schema {
        /// What is there.
        found: i64,
        /// What is known.
        known: i64,
    },
    /// A statement failed.
    #[error("cannot {op} in the store")]
    Sql {
        /// What was tried.
        op: &'static str,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// A statement failed in PostgreSQL.
    #[error("cannot {op} in PostgreSQL")]
    Postgres {
        /// What was tried.
        op: &'static str,
        /// Why it failed.
        source: Box<tokio_postgres::Error>,
    },
    /// A statement took longer than the lead would last.
    #[error("PostgreSQL took too long to {0}")]
    Slow(&'static str),
    /// The name of the database's host gives no address.
    #[error("cannot find PostgreSQL")]
    Name(#[source] crate::names::NameError),
    /// TLS cannot be spoken.
    #[error("cannot speak TLS to PostgreSQL")]
    Tls(#[source] rustls::Error),
    /// There is something already where a backup should go.
    #[error("the database is not empty; a backup is restored into an empty one")]
    NotEmpty,
    /// A scheduler leads on the database.
    #[error("a scheduler uses the database; stop it first")]
    InUse,
    /// The server only reads.
    #[error("PostgreSQL is in recovery and takes no writes")]
    Standby,
    /// What was acknowledged is not there any more.
    #[error(
        "the store went back: it ends at event {found} and has acknowledged event {known}; a standby that was promoted late, or a copy"
    )]
    WentBack {
        /// Where it ends.
        found: u64,
        /// Where it has been.
        known: u64,
    },
    /// A row is not what was written.
    #[error("row {row} of the store cannot be read")]
    Row {
        /// Which one.
        row: String,
        /// Why.
        source: serde_json::Error,
    },
    /// Another scheduler is the leader now; this one must not write any more.
    #[error("another scheduler leads with epoch {0}")]
    Deposed(u64),
    /// A test asked for it.
    #[error("the store was told to fail")]
    Failpoint(#[from] Failed),
}

/// Rows that one read returns at most.
pub const ROWS_MAX: usize = 1000;
/// Notices that are kept; a stream that is further behind starts anew.
pub const NOTICES_KEPT: u64 = 100_000;

/// Keeps what must survive.
pub trait Store: Send {
    /// Takes the lead, and waits for it while another scheduler has it: returns an epoch above every earlier one.
    fn lead(&mut self) -> Result<u64, StoreError>;
    /// Makes sure that this scheduler still leads, before it answers anybody.
    fn keep_lead(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
    /// Lets another one lead at once.
    fn give_up_lead(&mut self) {}
    /// Reads every record.
    fn load(&mut self) -> Result<Vec<Record>, StoreError>;
    /// Writes a batch in one transaction, if this scheduler still leads.
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError>;
    /// Reads notices after a number, of one group or of all.
    fn notices(&mut self, after: u64, group: Option<GroupId>, most: usize) -> Result<Vec<Notice>, StoreError>;
    /// Reads audit rows after a number, of one group or of all.
    fn audits(&mut self, after: u64, group: Option<GroupId>, most: usize) -> Result<Vec<Audit>, StoreError>;
}
