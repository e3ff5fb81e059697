//! A store in PostgreSQL, for several replicas of which one leads.
//!
//! The lead is a row with an epoch and an end; it is renewed by the database's clock, and every transaction holds the
//! row against the epoch it was begun under. A leader that was stopped for a while finds another epoch, writes
//! nothing, and steps down (F34). A connection that breaks around a commit leaves the outcome to the next `load`: the
//! desk reads the truth back, and clients ask again with their idempotency key (F37).

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio_postgres::{Client, IsolationLevel};

use super::columns::{Columns, Statements};
use super::transfer::{self, CHUNK, Writer};
use super::{Batch, NOTICES_KEPT, ROWS_MAX, Store, StoreError, link};
use crate::failpoint;
use crate::model::*;

/// How long the lead lasts without renewal, when nothing else is asked.
pub const LEASE: Duration = Duration::from_secs(10);
/// Renewals in the time of one lease.
const RENEWALS: u32 = 3;
/// How often a standby looks whether the lead is free.
const POLL: Duration = Duration::from_millis(300);
/// How long one statement may take.
const STATEMENT: Duration = Duration::from_secs(8);

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS record (kind text NOT NULL, id text NOT NULL, body text NOT NULL, PRIMARY KEY (kind, id));
    CREATE TABLE IF NOT EXISTS notice (seq bigint PRIMARY KEY, tenant text NOT NULL, body text NOT NULL);
    CREATE INDEX IF NOT EXISTS notice_by_tenant ON notice (tenant, seq);
    CREATE TABLE IF NOT EXISTS audit (seq bigint PRIMARY KEY, tenant text NOT NULL, body text NOT NULL);
    CREATE INDEX IF NOT EXISTS audit_by_tenant ON audit (tenant, seq);
    CREATE TABLE IF NOT EXISTS leader (one int PRIMARY KEY CHECK (one = 1), epoch bigint NOT NULL,
        expires timestamptz NOT NULL, version int NOT NULL);
    INSERT INTO leader VALUES (1, 0, now(), 1) ON CONFLICT DO NOTHING;
    CREATE OR REPLACE FUNCTION audit_is_final() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'audit rows are final'; END $$;
    CREATE OR REPLACE TRIGGER audit_is_final BEFORE UPDATE OR DELETE ON audit
        FOR EACH ROW EXECUTE FUNCTION audit_is_final();
";
/// The schema that this code writes.
const VERSION: i32 = 1;
/// Any number: the advisory lock under which the schema is made, so that two replicas do not make it at once.
const SCHEMA_LOCK: i64 = 0x6372_636c;

/// A store in a PostgreSQL database.
pub struct PostgresStore {
    url: String,
    runtime: Runtime,
    session: Option<Session>,
    epoch: u64,
    lease: Duration,
    renewed: Option<Instant>,
}

/// A connection, and what was prepared on it.
struct Session {
    client: Client,
    statements: Option<Statements>,
}

fn pg(op: &'static str) -> impl FnOnce(tokio_postgres::Error) -> StoreError {
    move |source| StoreError::Postgres { op, source: Box::new(source) }
}

impl PostgresStore {
    /// Connects and makes the schema when it is missing.
    pub fn open(url: &str, lease: Duration) -> Result<Self, StoreError> {
        let mut store = Self { lease, ..Self::read_only(url)? };
        store.with("make the schema", async |session| {
            let transaction = session.client.transaction().await?;
            transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&SCHEMA_LOCK]).await?;
            transaction.batch_execute(SCHEMA).await?;
            transaction.commit().await
        })?;
        let found: i32 = store.with("read the schema", async |session| {
            Ok(session.client.query_one("SELECT version FROM leader", &[]).await?.get(0))
        })?;
        if found != VERSION {
            return Err(StoreError::Schema { found: found.into(), known: VERSION.into() });
        }
        Ok(store)
    }

    /// Runs statements on the connection, connecting first when there is none. A failure closes it: whatever a broken
    /// transaction held is given back, and nothing is sent on a connection in doubt.
    fn with<T>(
        &mut self,
        op: &'static str,
        work: impl AsyncFnOnce(&mut Session) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, StoreError> {
        let mut session = match self.session.take() {
            Some(session) if !session.client.is_closed() => session,
            _ => Session { client: self.connect()?, statements: None },
        };
        let timed = self.runtime.block_on(async { tokio::time::timeout(STATEMENT, work(&mut session)).await });
        match timed {
            Ok(Ok(value)) => {
                self.session = Some(session);
                Ok(value)
            }
            Ok(Err(source)) => Err(pg(op)(source)),
            Err(_) => Err(StoreError::Slow(op)),
        }
    }

    fn connect(&self) -> Result<Client, StoreError> {
        self.runtime.block_on(link::connect(&self.url))
    }

    /// Opens a store to be read: nothing is made.
    pub fn read_only(url: &str) -> Result<Self, StoreError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| StoreError::File {
            op: "start a runtime for",
            path: "postgres".into(),
            source,
        })?;
        Ok(Self { url: url.to_owned(), runtime, session: None, epoch: 0, lease: LEASE, renewed: None })
    }

    /// Writes what one moment's transaction sees into a new SQLite file.
    pub fn copy(&mut self, to: &Path) -> Result<(), StoreError> {
        let mut client = self.connect()?;
        let writer = Writer::create(to)?;
        let epoch = self.runtime.block_on(async {
            let begin = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
            let transaction = begin.start().await.map_err(pg("begin a backup"))?;
            let epoch = transaction.query_one("SELECT epoch FROM leader", &[]).await.map_err(pg("read the epoch"))?;
            let records = "SELECT kind, id, body FROM record";
            for row in transaction.query(records, &[]).await.map_err(pg("read records"))? {
                writer.record(row.get(0), row.get(1), row.get(2))?;
            }
            for table in ["audit", "notice"] {
                let rows = format!("SELECT seq, tenant, body FROM {table} WHERE seq > $1 ORDER BY seq LIMIT $2");
                let (mut after, most) = (-1i64, i64::try_from(CHUNK).unwrap_or(i64::MAX));
                loop {
                    let rows = transaction.query(&rows, &[&after, &most]).await.map_err(pg("read rows"))?;
                    let Some(last) = rows.last() else { break };
                    after = last.get(0);
                    for row in rows {
                        writer.row(table, row.get(0), row.get(1), row.get(2))?;
                    }
                }
            }
            Ok::<i64, StoreError>(epoch.get(0))
        })?;
        writer.finish(epoch)
    }

    /// Fills an empty database from a backup.
    pub fn restore(&mut self, from: &Path) -> Result<(), StoreError> {
        let content = transfer::read(from)?;
        self.with("restore", async |session| {
            let transaction = session.client.transaction().await?;
            let leader = "SELECT epoch, expires > now() FROM leader FOR UPDATE";
            let leader = transaction.query_one(leader, &[]).await?;
            if leader.get(1) {
                return Ok(Err(StoreError::InUse));
            }
            let taken = "SELECT EXISTS (SELECT FROM record) OR EXISTS (SELECT FROM audit)";
            if transaction.query_one(taken, &[]).await?.get(0) {
                return Ok(Err(StoreError::NotEmpty));
            }
            let split = |rows: &[(i64, String, String)]| -> (Vec<i64>, Vec<String>, Vec<String>) {
                let (seqs, rest): (Vec<i64>, Vec<_>) = rows.iter().cloned().map(|(seq, a, b)| (seq, (a, b))).unzip();
                let (tenants, bodies) = rest.into_iter().unzip();
                (seqs, tenants, bodies)
            };
            for chunk in content.records.chunks(CHUNK) {
                let (kinds, rest): (Vec<&str>, Vec<_>) =
                    chunk.iter().map(|(kind, id, body)| (kind.as_str(), (id.as_str(), body.as_str()))).unzip();
                let (ids, bodies): (Vec<&str>, Vec<&str>) = rest.into_iter().unzip();
                let put = "INSERT INTO record SELECT * FROM unnest($1::text[], $2::text[], $3::text[])";
                transaction.execute(put, &[&kinds, &ids, &bodies]).await?;
            }
            for (table, rows) in [("audit", &content.audits), ("notice", &content.notices)] {
                let insert = format!("INSERT INTO {table} SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[])");
                for chunk in rows.chunks(CHUNK) {
                    let (seqs, tenants, bodies) = split(chunk);
                    transaction.execute(&insert, &[&seqs, &tenants, &bodies]).await?;
                }
            }
            let known = leader.get::<_, i64>(0).cast_unsigned().max(content.epoch);
            let epoch = transfer::epoch_after_restore(known).cast_signed();
            transaction.execute("UPDATE leader SET epoch = $1", &[&epoch]).await?;
            transaction.commit().await?;
            Ok(Ok(()))
        })?
    }

    fn rows<T: serde::de::DeserializeOwned>(
        &mut self,
        table: &'static str,
        after: u64,
        group: Option<GroupId>,
        most: usize,
    ) -> Result<Vec<T>, StoreError> {
        let text = format!(
            "SELECT body FROM {table} WHERE seq > $1 AND ($3::text IS NULL OR tenant = $3) ORDER BY seq LIMIT $2"
        );
        let after = after.min(i64::MAX as u64).cast_signed();
        let most = i64::try_from(most.min(ROWS_MAX)).unwrap_or(0);
        let tenant = group.map(|group| group.to_string());
        let rows =
            self.with("read rows", async |session| session.client.query(&text, &[&after, &most, &tenant]).await)?;
        let read = |row: &tokio_postgres::Row| {
            serde_json::from_str(row.get(0)).map_err(|source| StoreError::Row { row: table.to_owned(), source })
        };
        rows.iter().map(read).collect()
    }
}

impl Store for PostgresStore {
    fn lead(&mut self) -> Result<u64, StoreError> {
        let seconds = self.lease.as_secs_f64();
        loop {
            let taken = self.with("take the lead", async |session| {
                let take = "UPDATE leader SET epoch = epoch + 1, expires = now() + make_interval(secs => $1)
                    WHERE expires <= now() RETURNING epoch";
                Ok(session.client.query_opt(take, &[&seconds]).await?.map(|row| row.get::<_, i64>(0)))
            })?;
            if let Some(epoch) = taken {
                self.epoch = epoch.cast_unsigned();
                self.renewed = Some(Instant::now());
                failpoint::hit("lease_taken")?;
                return Ok(self.epoch);
            }
            std::thread::sleep(POLL);
        }
    }

    fn keep_lead(&mut self) -> Result<(), StoreError> {
        if self.renewed.is_some_and(|at| at.elapsed() < self.lease / RENEWALS) {
            return Ok(());
        }
        let (begun, epoch, seconds) = (Instant::now(), self.epoch.cast_signed(), self.lease.as_secs_f64());
        let kept = self.with("keep the lead", async |session| {
            let renew = "UPDATE leader SET expires = now() + make_interval(secs => $2) WHERE epoch = $1";
            session.client.execute(renew, &[&epoch, &seconds]).await
        })?;
        if kept == 0 {
            failpoint::hit("lease_lost")?;
            return Err(StoreError::Deposed(self.epoch + 1));
        }
        self.renewed = Some(begun);
        Ok(())
    }

    fn give_up_lead(&mut self) {
        let epoch = self.epoch.cast_signed();
        let end = "UPDATE leader SET expires = now() WHERE epoch = $1";
        // Whoever comes next waits for the lease at worst.
        let _ = self.with("give the lead up", async |session| session.client.execute(end, &[&epoch]).await);
    }

    fn load(&mut self) -> Result<Vec<Record>, StoreError> {
        let rows =
            self.with("read records", async |session| session.client.query("SELECT id, body FROM record", &[]).await)?;
        let read = |row: &tokio_postgres::Row| {
            serde_json::from_str(row.get(1)).map_err(|source| StoreError::Row { row: row.get(0), source })
        };
        rows.iter().map(read).collect()
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let columns = Columns::of(batch)?;
        let (self_epoch, epoch) = (self.epoch, self.epoch.cast_signed());
        failpoint::hit("txn_begun")?;
        let oldest = batch.notices.last().map_or(0, |row| row.seq.saturating_sub(NOTICES_KEPT)).cast_signed();
        let outcome = self.with("commit", async |session| {
            let statements = match session.statements.take() {
                Some(statements) => statements,
                None => Statements::prepare(&session.client).await?,
            };
            let statements = session.statements.insert(statements);
            let transaction = session.client.transaction().await?;
            if !statements.write(&transaction, epoch, &columns, oldest).await? {
                return Ok(Err(StoreError::Deposed(self_epoch + 1)));
            }
            // Dropping the transaction rolls it back.
            for point in ["row_written", "audit_written", "before_commit"] {
                if let Err(failed) = failpoint::hit(point) {
                    return Ok(Err(StoreError::Failpoint(failed)));
                }
            }
            transaction.commit().await?;
            Ok(Ok(()))
        })?;
        outcome?;
        failpoint::hit("after_commit")?;
        Ok(())
    }

    fn notices(&mut self, after: u64, group: Option<GroupId>, most: usize) -> Result<Vec<Notice>, StoreError> {
        self.rows("notice", after, group, most)
    }

    fn audits(&mut self, after: u64, group: Option<GroupId>, most: usize) -> Result<Vec<Audit>, StoreError> {
        self.rows("audit", after, group, most)
    }
}
