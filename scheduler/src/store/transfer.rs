//! Rows from one store to another, for backups of and into PostgreSQL.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, params};

use super::StoreError;
use super::sqlite::{self, SqliteStore};

/// Rows that travel at once.
pub const CHUNK: usize = 5_000;

/// Makes an empty file that only its owner reads; one that is there already is an error.
pub fn reserve(path: &Path) -> Result<(), StoreError> {
    use fs_err::os::unix::fs::OpenOptionsExt as _;
    let made = fs_err::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
    made.map(drop).map_err(|source| StoreError::File { op: "make", path: path.to_owned(), source })
}

/// Returns an epoch above every one that a lost or replaced store may have given out: leads are counted one by one,
/// and nobody leads once a second for ever. Agents drop answers of a lower epoch.
pub fn epoch_after_restore(known: u64) -> u64 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    known.max(seconds) + 1
}

/// A backup file that is being written.
pub struct Writer {
    path: PathBuf,
    connection: Connection,
}

fn sql(op: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError {
    move |source| StoreError::Sql { op, source }
}

impl Writer {
    /// Begins a backup.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        reserve(path)?;
        let connection = sqlite::fresh(path)?;
        connection.execute_batch("BEGIN").map_err(sql("begin a backup"))?;
        Ok(Self { path: path.to_owned(), connection })
    }

    /// Writes one record.
    pub fn record(&self, kind: &str, id: &str, body: &str) -> Result<(), StoreError> {
        let put = "INSERT INTO record VALUES (?1, ?2, ?3)";
        self.connection
            .prepare_cached(put)
            .and_then(|mut put| put.execute(params![kind, id, body]))
            .map_err(sql("write a record"))?;
        Ok(())
    }

    /// Writes one row of `audit` or `notice`.
    pub fn row(&self, table: &'static str, seq: i64, tenant: &str, body: &str) -> Result<(), StoreError> {
        let put = format!("INSERT INTO {table} VALUES (?1, ?2, ?3)");
        self.connection
            .prepare_cached(&put)
            .and_then(|mut put| put.execute(params![seq, tenant, body]))
            .map_err(sql("write a row"))?;
        Ok(())
    }

    /// Ends the backup with the epoch of the store it was taken from.
    pub fn finish(self, epoch: i64) -> Result<(), StoreError> {
        self.connection.execute("UPDATE leader SET epoch = ?1", [epoch]).map_err(sql("write the epoch"))?;
        self.connection.execute_batch("COMMIT; PRAGMA journal_mode = DELETE;").map_err(sql("end a backup"))?;
        drop(self.connection);
        let file = |source| StoreError::File { op: "sync", path: self.path.clone(), source };
        fs_err::File::open(&self.path).and_then(|file| file.sync_all()).map_err(file)
    }
}

/// What a backup holds.
pub struct Content {
    /// Kind, id and body of each record.
    pub records: Vec<(String, String, String)>,
    /// Audit rows.
    pub audits: Vec<(i64, String, String)>,
    /// Notices.
    pub notices: Vec<(i64, String, String)>,
    /// The last epoch.
    pub epoch: u64,
}

/// Checks a backup and reads all of it. The file itself is only read: what is migrated is a copy beside it.
pub fn read(from: &Path) -> Result<Content, StoreError> {
    let scratch = from.with_extension("reading");
    let file = |op| {
        let path = from.to_owned();
        move |source| StoreError::File { op, path, source }
    };
    reserve(&scratch)?;
    let content = fs_err::copy(from, &scratch).map_err(file("copy")).and_then(|_| content(&scratch));
    for name in SqliteStore::files(&scratch) {
        let _ = fs_err::remove_file(name);
    }
    content
}

fn content(path: &Path) -> Result<Content, StoreError> {
    drop(SqliteStore::open(path)?);
    let connection = Connection::open(path).map_err(sql("open the backup"))?;
    let numbered = |table: &str| -> Result<Vec<(i64, String, String)>, StoreError> {
        let mut query = connection
            .prepare(&format!("SELECT seq, tenant, body FROM {table} ORDER BY seq"))
            .map_err(sql("read a backup"))?;
        let rows =
            query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).map_err(sql("read a backup"))?;
        rows.collect::<Result<_, _>>().map_err(sql("read a backup"))
    };
    let mut query = connection.prepare("SELECT kind, id, body FROM record").map_err(sql("read a backup"))?;
    let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).map_err(sql("read a backup"))?;
    let records = rows.collect::<Result<_, _>>().map_err(sql("read a backup"))?;
    let epoch: i64 =
        connection.query_row("SELECT epoch FROM leader", [], |row| row.get(0)).map_err(sql("read a backup"))?;
    Ok(Content { records, audits: numbered("audit")?, notices: numbered("notice")?, epoch: epoch.cast_unsigned() })
}
