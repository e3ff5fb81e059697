//! The default store: one SQLite file, write-ahead log, synchronous FULL, one writer.
//!
//! A lock file keeps a second scheduler out; audit rows cannot be changed or removed by SQL. The file is checked when
//! it is opened, and a file that fails is refused with the way out (F36). The lock file also says how the store was
//! left, because SQLite itself takes a missing file for a new one and a missing log for an empty one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, params};
use rustix::fs::{FlockOperation, flock, fstatfs};

use super::{Batch, NOTICES_KEPT, ROWS_MAX, Store, StoreError, transfer};
use crate::failpoint;
use crate::model::*;

/// 3.51.3 mends a rare corruption of the write-ahead log.
pub const SQLITE_LEAST: i32 = 3_051_003;
/// Tells our files from other people's: "crcl".
const APPLICATION: i32 = 0x6372_636c;
/// The schema that this code writes.
const SCHEMA: i64 = 1;
/// `statfs` kinds of file systems without trustworthy locks: NFS, SMB, CIFS, SMB2.
const NETWORK: [u64; 4] = [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42];
/// A backup tool may hold the file for a moment.
const BUSY: Duration = Duration::from_secs(5);
/// Statements that are kept prepared.
const STATEMENTS: usize = 32;
/// The lock file of a store in use, or of one whose scheduler was killed: its log is part of it.
const IN_USE: &[u8] = b"in use\n";
/// The lock file of a store whose log was written back before it was closed.
const CLOSED: &[u8] = b"closed\n";

/// What each schema adds to the one before; every step is its own transaction.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE record (kind TEXT NOT NULL, id TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (kind, id)) WITHOUT ROWID;
    CREATE TABLE notice (seq INTEGER PRIMARY KEY, tenant TEXT NOT NULL, body TEXT NOT NULL);
    CREATE INDEX notice_by_tenant ON notice (tenant, seq);
    CREATE TABLE audit (seq INTEGER PRIMARY KEY, tenant TEXT NOT NULL, body TEXT NOT NULL);
    CREATE INDEX audit_by_tenant ON audit (tenant, seq);
    CREATE TRIGGER audit_is_kept BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit rows are kept'); END;
    CREATE TRIGGER audit_is_final BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit rows are final'); END;
    CREATE TABLE leader (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL);
    INSERT INTO leader VALUES (1, 0);
"];

/// A store in one file.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    connection: Connection,
    epoch: u64,
    lock: fs_err::File,
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        let whole = "PRAGMA wal_checkpoint(TRUNCATE)";
        let busy: Result<i64, _> = self.connection.query_row(whole, [], |row| row.get(0));
        if matches!(busy, Ok(0)) {
            // What says "in use" although nothing is missing is refused later, by a message that tells the way out.
            let _ = mark(&self.lock, CLOSED);
        }
    }
}

fn sql(op: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError {
    move |source| StoreError::Sql { op, source }
}

impl SqliteStore {
    /// Opens or makes the file.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let found = rusqlite::version_number();
        if found < SQLITE_LEAST {
            return Err(StoreError::Version { found, least: SQLITE_LEAST });
        }
        let lock = lock(path)?;
        whole(path, &lock)?;
        private(path)?;
        let connection = Connection::open(path).map_err(sql("open the file"))?;
        let mut store = Self { path: path.to_owned(), connection, epoch: 0, lock };
        store.prepare()?;
        store.migrate()?;
        mark(&store.lock, IN_USE).map_err(|source| StoreError::File { op: "mark", path: path.to_owned(), source })?;
        Ok(store)
    }

    fn prepare(&mut self) -> Result<(), StoreError> {
        let damaged = |report: String| StoreError::Damaged { path: self.path.clone(), report };
        self.connection.busy_timeout(BUSY).map_err(sql("set the timeout"))?;
        self.connection.set_prepared_statement_cache_capacity(STATEMENTS);
        let report: String = self
            .connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|error| damaged(error.to_string()))?;
        if report != "ok" {
            return Err(damaged(report));
        }
        let pragmas =
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA mmap_size = 0; PRAGMA trusted_schema = OFF;";
        self.connection.execute_batch(pragmas).map_err(sql("set the journal"))?;
        let mode: String = self
            .connection
            .query_row("PRAGMA journal_mode", [], |row| row.get(0))
            .map_err(sql("read the journal mode"))?;
        if mode != "wal" {
            return Err(damaged(format!("journal mode is {mode}")));
        }
        Ok(())
    }

    fn migrate(&mut self) -> Result<(), StoreError> {
        let application: i32 = self
            .connection
            .query_row("PRAGMA application_id", [], |row| row.get(0))
            .map_err(sql("read the application"))?;
        let mut version = self.version()?;
        if application != APPLICATION && (application != 0 || version != 0 || self.has_tables()?) {
            let report = "it is a database of something else".to_owned();
            return Err(StoreError::Damaged { path: self.path.clone(), report });
        }
        if version > SCHEMA {
            return Err(StoreError::Schema { found: version, known: SCHEMA });
        }
        while version < SCHEMA {
            let step = usize::try_from(version).unwrap_or(0);
            let transaction = self.connection.transaction().map_err(sql("begin a migration"))?;
            transaction.execute_batch(MIGRATIONS[step]).map_err(sql("migrate"))?;
            version += 1;
            let mark = format!("PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {version};");
            transaction.execute_batch(&mark).map_err(sql("mark the schema"))?;
            failpoint::hit("migrate_step")?;
            transaction.commit().map_err(sql("commit a migration"))?;
        }
        Ok(())
    }

    fn version(&self) -> Result<i64, StoreError> {
        self.connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(sql("read the schema"))
    }

    fn has_tables(&self) -> Result<bool, StoreError> {
        let count = "SELECT count(*) FROM sqlite_schema";
        let count: i64 = self.connection.query_row(count, [], |row| row.get(0)).map_err(sql("read the tables"))?;
        Ok(count > 0)
    }

    /// Writes a consistent copy into a new file while a scheduler may be at work.
    pub fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(from, flags).map_err(sql("open the file"))?;
        connection.busy_timeout(BUSY).map_err(sql("set the timeout"))?;
        // The log of a scheduler that was killed stays where its successor looks for it.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(sql("keep the log"))?;
        let application: i32 =
            connection.query_row("PRAGMA application_id", [], |row| row.get(0)).map_err(sql("read the application"))?;
        if application != APPLICATION {
            let report = "it is a database of something else".to_owned();
            return Err(StoreError::Damaged { path: from.to_owned(), report });
        }
        transfer::reserve(to)?;
        connection.execute("VACUUM INTO ?1", [to.to_string_lossy().as_ref()]).map_err(sql("back up"))?;
        let sync = |source| StoreError::File { op: "sync", path: to.to_owned(), source };
        fs_err::File::open(to).and_then(|file| file.sync_all()).map_err(sync)
    }

    /// Lists every file that a store at this path may consist of.
    pub(super) fn files(path: &Path) -> Vec<PathBuf> {
        let name = |suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        ["", "-wal", "-shm", ".lock"].map(name).to_vec()
    }

    /// Puts a backup in the place of a store that is not in use. The copy is checked first; the old file stays beside
    /// it under the name `<file>.replaced`.
    pub fn restore(from: &Path, to: &Path) -> Result<(), StoreError> {
        let lock = lock(to)?;
        let fresh = to.with_extension("restoring");
        let file = |op, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::File { op, path, source }
        };
        // What a restore that was killed has left.
        Self::files(&fresh).into_iter().for_each(|left| drop(fs_err::remove_file(left)));
        transfer::reserve(&fresh)?;
        fs_err::copy(from, &fresh).map_err(file("copy", from))?;
        let restored = Self::open(&fresh)?;
        let next = "UPDATE leader SET epoch = ?1 WHERE epoch < ?1";
        let epoch = transfer::epoch_after_restore(0).cast_signed();
        restored.connection.execute(next, [epoch]).map_err(sql("write the epoch"))?;
        restored.connection.execute_batch("PRAGMA journal_mode = DELETE;").map_err(sql("close the copy"))?;
        drop(restored);
        let [_, rest @ ..] = &Self::files(&fresh)[..] else { return Ok(()) };
        rest.iter().for_each(|left| drop(fs_err::remove_file(left)));
        // The old log goes with the old file: set aside they are still one store.
        let aside = to.with_extension("replaced");
        for (old, aside) in Self::files(to).iter().zip(Self::files(&aside)).take(3) {
            match fs_err::rename(old, &aside) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(file("set aside", old)(error));
                }
                _ => {}
            }
        }
        fs_err::File::open(&fresh).and_then(|copy| copy.sync_all()).map_err(file("sync", &fresh))?;
        mark(&lock, CLOSED).map_err(file("mark", to))?;
        fs_err::rename(&fresh, to).map_err(file("put in place", to))?;
        let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs_err::File::open(folder).and_then(|folder| folder.sync_all()).map_err(file("sync", folder))
    }
}

/// Makes the file, if it is missing, so that only its owner reads it: SQLite gives its other files the same mode.
fn private(path: &Path) -> Result<(), StoreError> {
    use fs_err::os::unix::fs::OpenOptionsExt as _;
    let made = fs_err::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    made.map(drop).map_err(|source| StoreError::File { op: "open", path: path.to_owned(), source })
}

/// Makes a new file with the schema.
pub(super) fn fresh(path: &Path) -> Result<Connection, StoreError> {
    drop(SqliteStore::open(path)?);
    Connection::open(path).map_err(sql("open the file"))
}

/// Refuses a store that has lost a part since it was left (F36).
fn whole(path: &Path, lock: &fs_err::File) -> Result<(), StoreError> {
    let left = fs_err::read(lock.path()).map_err(|source| StoreError::File {
        op: "read",
        path: lock.path().to_owned(),
        source,
    })?;
    let bytes = |path: &Path| fs_err::metadata(path).map(|found| found.len()).ok();
    let [file, log, ..] = &SqliteStore::files(path)[..] else { return Ok(()) };
    let lost = match (bytes(file), bytes(log)) {
        _ if left != IN_USE && left != CLOSED => return Ok(()),
        (None, _) => "is missing",
        (Some(0), _) => "is empty",
        (_, None) if left == IN_USE => "has lost its write-ahead log, and with it what was acknowledged last",
        _ => return Ok(()),
    };
    Err(StoreError::Lost { path: path.to_owned(), lost, lock: lock.path().to_owned() })
}

/// Writes into the lock file how the store is left.
fn mark(lock: &fs_err::File, how: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    lock.file().write_all_at(how, 0)?;
    lock.set_len(how.len() as u64)?;
    lock.sync_data()
}

/// Takes the lock beside the file; the kernel gives it back when the process ends, however it ends.
fn lock(path: &Path) -> Result<fs_err::File, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let file = |op| {
        let path = name.clone();
        move |source| StoreError::File { op, path, source }
    };
    use fs_err::os::unix::fs::OpenOptionsExt as _;
    let lock = fs_err::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&name)
        .map_err(file("open"))?;
    let kind = fstatfs(lock.file()).map_err(|error| file("look at")(error.into()))?.f_type;
    if NETWORK.contains(&(kind as u64 & 0xffff_ffff)) {
        return Err(StoreError::Network(path.to_owned()));
    }
    match flock(lock.file(), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Busy(path.to_owned())),
        Err(error) => Err(file("lock")(error.into())),
    }
}

fn json<T: serde::Serialize>(row: &str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|source| StoreError::Row { row: row.to_owned(), source })
}

fn write(transaction: &Transaction<'_>, batch: &Batch) -> Result<(), StoreError> {
    let mut put = transaction
        .prepare_cached("INSERT INTO record VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET body = excluded.body")
        .map_err(sql("prepare"))?;
    let mut remove =
        transaction.prepare_cached("DELETE FROM record WHERE kind = ?1 AND id = ?2").map_err(sql("prepare"))?;
    for (key, record) in &batch.records {
        let (kind, id) = key.columns();
        match record {
            Some(record) => put.execute(params![kind, id, json(&id, record)?]).map_err(sql("write a record"))?,
            None => remove.execute(params![kind, id]).map_err(sql("remove a record"))?,
        };
        failpoint::hit("row_written")?;
    }
    let mut audit = transaction.prepare_cached("INSERT INTO audit VALUES (?1, ?2, ?3)").map_err(sql("prepare"))?;
    for row in &batch.audits {
        let body = json("audit", row)?;
        audit.execute(params![row.seq.cast_signed(), row.group.to_string(), body]).map_err(sql("audit"))?;
        failpoint::hit("audit_written")?;
    }
    let mut notice = transaction.prepare_cached("INSERT INTO notice VALUES (?1, ?2, ?3)").map_err(sql("prepare"))?;
    for row in &batch.notices {
        let body = json("notice", row)?;
        notice.execute(params![row.seq.cast_signed(), row.group.to_string(), body]).map_err(sql("write a notice"))?;
    }
    if let Some(newest) = batch.notices.last().filter(|row| row.seq > NOTICES_KEPT) {
        let oldest = (newest.seq - NOTICES_KEPT).cast_signed();
        transaction.execute("DELETE FROM notice WHERE seq <= ?1", [oldest]).map_err(sql("forget notices"))?;
    }
    Ok(())
}

impl Store for SqliteStore {
    fn lead(&mut self) -> Result<u64, StoreError> {
        let next = "UPDATE leader SET epoch = epoch + 1 RETURNING epoch";
        let epoch: i64 = self.connection.query_row(next, [], |row| row.get(0)).map_err(sql("take the lead"))?;
        self.epoch = epoch.cast_unsigned();
        failpoint::hit("lease_taken")?;
        Ok(self.epoch)
    }

    fn load(&mut self) -> Result<Vec<Record>, StoreError> {
        let mut query = self.connection.prepare("SELECT id, body FROM record").map_err(sql("read records"))?;
        let rows = query
            .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
            .map_err(sql("read records"))?;
        let mut records = Vec::new();
        for row in rows {
            let (id, body) = row.map_err(sql("read a record"))?;
            records.push(serde_json::from_str(&body).map_err(|source| StoreError::Row { row: id, source })?);
        }
        Ok(records)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let transaction = self
            .connection
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .map_err(sql("begin a transaction"))?;
        failpoint::hit("txn_begun")?;
        // The lock file says the same; a copied or restored file does not.
        let epoch: Option<i64> = transaction
            .query_row("SELECT epoch FROM leader", [], |row| row.get(0))
            .optional()
            .map_err(sql("read the epoch"))?;
        let epoch = epoch.unwrap_or(0).cast_unsigned();
        if epoch != self.epoch {
            return Err(StoreError::Deposed(epoch));
        }
        write(&transaction, batch)?;
        failpoint::hit("before_commit")?;
        transaction.commit().map_err(sql("commit"))?;
        failpoint::hit("after_commit")?;
        Ok(())
    }

    fn notices(&mut self, after: u64, group: Option<GroupId>, most: usize) -> Result<Vec<Notice>, StoreError> {
        read(&self.connection, "notice", after, group, most)
    }

    fn audits(&mut self, after: u64, group: Option<GroupId>, most: usize) -> Result<Vec<Audit>, StoreError> {
        read(&self.connection, "audit", after, group, most)
    }
}

/// Reads rows of one table; the tenant is part of the query, not a filter on its result (S10).
fn read<T: serde::de::DeserializeOwned>(
    connection: &Connection,
    table: &'static str,
    after: u64,
    group: Option<GroupId>,
    most: usize,
) -> Result<Vec<T>, StoreError> {
    let text = match group {
        Some(_) => format!("SELECT body FROM {table} WHERE seq > ?1 AND tenant = ?3 ORDER BY seq LIMIT ?2"),
        None => format!("SELECT body FROM {table} WHERE seq > ?1 AND ?3 IS NULL ORDER BY seq LIMIT ?2"),
    };
    let mut query = connection.prepare_cached(&text).map_err(sql("read rows"))?;
    let most = i64::try_from(most.min(ROWS_MAX)).unwrap_or(0);
    let tenant = group.map(|group| group.to_string());
    let rows = query
        .query_map(params![after.min(i64::MAX as u64).cast_signed(), most, tenant], |row| row.get::<_, String>(0))
        .map_err(sql("read rows"))?;
    let mut found = Vec::new();
    for row in rows {
        let body = row.map_err(sql("read a row"))?;
        found.push(serde_json::from_str(&body).map_err(|source| StoreError::Row { row: table.to_owned(), source })?);
    }
    Ok(found)
}
