//! A batch as columns, and the statements that write it to PostgreSQL in one exchange.

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Statement, Transaction};

use super::{Batch, StoreError};

/// A batch as columns, so that it is a handful of statements however large it is.
#[derive(Default)]
pub struct Columns {
    put: (Vec<&'static str>, Vec<String>, Vec<String>),
    gone: (Vec<&'static str>, Vec<String>),
    audits: (Vec<i64>, Vec<String>, Vec<String>),
    notices: (Vec<i64>, Vec<String>, Vec<String>),
}

impl Columns {
    /// Turns a batch on its side.
    pub fn of(batch: &Batch) -> Result<Self, StoreError> {
        let mut columns = Self::default();
        for (key, record) in &batch.records {
            let (kind, id) = key.columns();
            match record {
                Some(record) => {
                    columns.put.2.push(json(record)?);
                    columns.put.0.push(kind);
                    columns.put.1.push(id);
                }
                None => {
                    columns.gone.0.push(kind);
                    columns.gone.1.push(id);
                }
            }
        }
        for row in &batch.audits {
            columns.audits.0.push(row.seq.cast_signed());
            columns.audits.1.push(row.group.to_string());
            columns.audits.2.push(json(row)?);
        }
        for row in &batch.notices {
            columns.notices.0.push(row.seq.cast_signed());
            columns.notices.1.push(row.group.to_string());
            columns.notices.2.push(json(row)?);
        }
        Ok(columns)
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|source| StoreError::Row { row: "batch".to_owned(), source })
}

/// What a commit says, prepared once for a connection.
pub struct Statements {
    hold: Statement,
    put: Statement,
    remove: Statement,
    audit: Statement,
    notice: Statement,
    trim: Statement,
}

impl Statements {
    /// Prepares them on a connection whose database has the schema.
    pub async fn prepare(client: &Client) -> Result<Self, Error> {
        Ok(Self {
            hold: client.prepare("SELECT 1 FROM leader WHERE epoch = $1 FOR SHARE").await?,
            put: client
                .prepare(
                    "INSERT INTO record SELECT * FROM unnest($1::text[], $2::text[], $3::text[])
                    ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body",
                )
                .await?,
            remove: client
                .prepare(
                    "DELETE FROM record USING unnest($1::text[], $2::text[]) AS gone (k, i)
                    WHERE kind = k AND id = i",
                )
                .await?,
            audit: client
                .prepare("INSERT INTO audit SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[])")
                .await?,
            notice: client
                .prepare("INSERT INTO notice SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[])")
                .await?,
            trim: client.prepare("DELETE FROM notice WHERE seq <= $1").await?,
        })
    }

    /// Writes a batch and gives up notices up to `oldest`; false when another scheduler leads.
    ///
    /// Everything is sent before the first answer is read. The lead's row is held until the commit: nobody takes the
    /// lead between the look and the write.
    pub async fn write(
        &self,
        transaction: &Transaction<'_>,
        epoch: i64,
        columns: &Columns,
        oldest: i64,
    ) -> Result<bool, Error> {
        let Columns { put, gone, audits, notices } = columns;
        let put: [&(dyn ToSql + Sync); 3] = [&put.0, &put.1, &put.2];
        let gone: [&(dyn ToSql + Sync); 2] = [&gone.0, &gone.1];
        let audits: [&(dyn ToSql + Sync); 3] = [&audits.0, &audits.1, &audits.2];
        let notices: [&(dyn ToSql + Sync); 3] = [&notices.0, &notices.1, &notices.2];
        let (epoch, last): ([&(dyn ToSql + Sync); 1], [&(dyn ToSql + Sync); 1]) = ([&epoch], [&oldest]);
        let (held, ..) = tokio::try_join!(
            biased;
            transaction.query_opt(&self.hold, &epoch),
            say(transaction, &self.put, &put, columns.put.0.is_empty()),
            say(transaction, &self.remove, &gone, columns.gone.0.is_empty()),
            say(transaction, &self.audit, &audits, columns.audits.0.is_empty()),
            say(transaction, &self.notice, &notices, columns.notices.0.is_empty()),
            say(transaction, &self.trim, &last, oldest <= 0),
        )?;
        Ok(held.is_some())
    }
}

async fn say(
    transaction: &Transaction<'_>,
    statement: &Statement,
    values: &[&(dyn ToSql + Sync)],
    nothing: bool,
) -> Result<(), Error> {
    if !nothing {
        transaction.execute(statement, values).await?;
    }
    Ok(())
}
