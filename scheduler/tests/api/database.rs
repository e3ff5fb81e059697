//! What a database can do to its scheduler: F37, TLS to it, backups from it and into it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coracle_scheduler::server::{Authority, AuthorityFiles};
use coracle_scheduler::store::{PostgresStore, SqliteStore, StoreError, StorePlace};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::faults::{Process, TEST_LEASE, call};
use crate::postgres::{Postgres, ask, server};
use crate::support::{DEADLINE, instance, until};

async fn names(process: &Process, token: &str) -> Vec<String> {
    let address = process.address.expect("address");
    until("a list", async || {
        let (_, list) = call(address, token, Method::GET, "/v1/instances", None, "").await?;
        Some(list["items"].as_array()?.iter().map(|item| item["name"].as_str().expect("name").to_owned()).collect())
    })
    .await
}

fn secret(folder: &Path) -> String {
    fs_err::read_to_string(folder.join("secret")).expect("secret")
}

#[tokio::test(flavor = "multi_thread")]
async fn f37_connections_that_are_cut_again_and_again_lose_nothing_and_make_nothing_twice() {
    let test = "f37_connections_that_are_cut_again_and_again_lose_nothing_and_make_nothing_twice";
    let Some((server, url)) = server(test).await else { return };
    let folder = tempfile::tempdir().expect("folder");
    let process = Process::start_on(folder.path(), "", &url);
    let address = process.address.expect("address");
    let token = fs_err::read_to_string(folder.path().join("secret")).expect("secret");
    let (client, connection) =
        tokio_postgres::connect(&server.url("postgres"), tokio_postgres::NoTls).await.expect("connect");
    let _task = tokio::spawn(connection);
    let cut = tokio::spawn(async move {
        for _ in 0..20 {
            let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'pool'";
            client.execute(cut, &[]).await.expect("cut");
            tokio::time::sleep(Duration::from_millis(37)).await;
        }
    });
    let mut made = Vec::new();
    for number in 0..40 {
        let start = Instant::now();
        let id = loop {
            if let Some(id) = ask(address, &token, number).await {
                break id;
            }
            assert!(start.elapsed() < DEADLINE, "request {number} never succeeds");
        };
        made.push(id);
    }
    cut.await.expect("cut");
    // The last cut may still be mended: until then the answer is "try again".
    let start = Instant::now();
    let list = loop {
        let answer = call(address, &token, Method::GET, "/v1/instances?limit=1000", None, "").await;
        if let Some((_, list)) = answer.filter(|(_, list)| list["items"].is_array()) {
            break list;
        }
        assert!(start.elapsed() < DEADLINE, "the list never comes back");
    };
    let mut ids: Vec<Value> = list["items"].as_array().expect("items").iter().map(|item| item["id"].clone()).collect();
    ids.sort_by_key(ToString::to_string);
    made.sort_by_key(ToString::to_string);
    assert_eq!(json!(ids), json!(made));
}

/// A way to the database that can be told to break at the next commit, before or after the server has heard of it.
struct Cutter {
    port: u16,
    before: Arc<AtomicBool>,
    after: Arc<AtomicBool>,
}

impl Cutter {
    async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let cutter = Self {
            port: listener.local_addr().expect("address").port(),
            before: Arc::default(),
            after: Arc::default(),
        };
        let (before, after) = (Arc::clone(&cutter.before), Arc::clone(&cutter.after));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (before, after) = (Arc::clone(&before), Arc::clone(&after));
                tokio::spawn(async move {
                    let Ok(database) = TcpStream::connect(("127.0.0.1", to)).await else { return };
                    forward(client, database, &before, &after).await;
                });
            }
        });
        cutter
    }
}

async fn forward(client: TcpStream, database: TcpStream, before: &AtomicBool, after: &AtomicBool) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_database, mut to_database) = database.into_split();
    let back = tokio::spawn(async move { drop(tokio::io::copy(&mut from_database, &mut to_client).await) });
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
        let commit = buffer[..read].windows(6).any(|word| word == b"COMMIT");
        if commit && before.swap(false, Ordering::SeqCst) {
            break;
        }
        // The answer must not get back: whether the transaction is in is then unknown.
        let last = commit && after.swap(false, Ordering::SeqCst);
        if last {
            back.abort();
        }
        if to_database.write_all(&buffer[..read]).await.is_err() {
            break;
        }
        if last {
            // The server has it when it closes the connection, which it does after it has read our end of it.
            let _ = to_database.shutdown().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            break;
        }
    }
    back.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn f37_a_commit_of_unknown_outcome_is_resolved_by_its_key() {
    let test = "f37_a_commit_of_unknown_outcome_is_resolved_by_its_key";
    let Some((server, url)) = server(test).await else { return };
    let cutter = Cutter::start(server.port).await;
    let folder = tempfile::tempdir().expect("folder");
    let through = url.replace(&format!(":{}/", server.port), &format!(":{}/", cutter.port));
    let process = Process::start_on(folder.path(), "", &through);
    let (address, token) = (process.address.expect("address"), secret(folder.path()));
    for (number, cut) in [&cutter.before, &cutter.after, &cutter.before, &cutter.after].into_iter().enumerate() {
        cut.store(true, Ordering::SeqCst);
        let body = || Some(instance(&format!("i{number}")));
        let first = call(address, &token, Method::POST, "/v1/instances", body(), &format!("key{number}")).await;
        assert!(!cut.load(Ordering::SeqCst), "nothing was cut");
        assert_eq!(first.map(|(status, _)| status), Some(503), "nobody knows, so nobody says that it is made");
        until("made", async || ask(address, &token, number).await).await;
    }
    let made = names(&process, &token).await;
    assert_eq!(made, ["i0", "i1", "i2", "i3"], "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn f37_a_database_that_only_reads_is_waited_for() {
    let Some((server, url)) = server("f37_a_database_that_only_reads_is_waited_for").await else { return };
    let folder = tempfile::tempdir().expect("folder");
    let process = Process::start_on(folder.path(), "", &url);
    let (address, token) = (process.address.expect("address"), secret(folder.path()));
    let (client, connection) =
        tokio_postgres::connect(&server.url("postgres"), tokio_postgres::NoTls).await.expect("connect");
    let _task = tokio::spawn(connection);
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'pool'";
    let only_reads = "ALTER DATABASE pool SET default_transaction_read_only = on";
    client.batch_execute(&format!("{only_reads}; {cut}")).await.expect("read-only");
    assert_eq!(ask(address, &token, 0).await, None, "it cannot be made durable");
    client
        .batch_execute(&format!("ALTER DATABASE pool RESET default_transaction_read_only; {cut}"))
        .await
        .expect("both");
    // The lease may have ended meanwhile; whoever leads then, nothing was made by halves.
    let last = if process.address.is_some() && ask(address, &token, 0).await.is_some() {
        process
    } else {
        drop(process);
        Process::start_on(folder.path(), "", &url)
    };
    until("made", async || ask(last.address.expect("address"), &token, 0).await).await;
    assert_eq!(names(&last, &token).await, ["i0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn f37_a_scheduler_does_not_go_on_from_a_database_that_went_back() {
    let Some((_server, url)) = server("f37_a_scheduler_does_not_go_on_from_a_database_that_went_back").await else {
        return;
    };
    let folder = tempfile::tempdir().expect("folder");
    let mut process = Process::start_on(folder.path(), "", &url);
    let (address, token) = (process.address.expect("address"), secret(folder.path()));
    ask(address, &token, 0).await.expect("made");
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.expect("connect");
    let _task = tokio::spawn(connection);
    let meta: String = client.query_one("SELECT body FROM record WHERE kind = 'meta'", &[]).await.expect("meta").get(0);
    ask(address, &token, 1).await.expect("made");
    // A standby that had not heard of the last transaction is promoted.
    client.execute("DELETE FROM record WHERE kind = 'instance' AND body LIKE '%\"i1\"%'", &[]).await.expect("delete");
    client.execute("UPDATE record SET body = $1 WHERE kind = 'meta'", &[&meta]).await.expect("meta");
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = 'pool' AND application_name = 'coracle scheduler'";
    client.execute(cut, &[]).await.expect("cut");
    assert_eq!(ask(address, &token, 2).await, None);
    let start = Instant::now();
    while !process.is_dead() {
        assert!(start.elapsed() < DEADLINE, "it goes on as if nothing were missing");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_spoken_to_by_tls_and_only_if_its_certificate_is_good() {
    let test = "a_database_is_spoken_to_by_tls_and_only_if_its_certificate_is_good";
    let folder = tempfile::tempdir().expect("folder");
    let files = AuthorityFiles::in_folder(folder.path());
    Authority::make(&files).expect("authority");
    let tls = |names: &'static str| {
        let files = files.clone();
        move |place: &Path| {
            let authority = Authority::open(&files, Duration::from_secs(3600)).expect("authority");
            let (certificate, key) = (place.join("server.crt"), place.join("server.key"));
            authority.make_server(&[names.to_owned()], &certificate, &key).expect("certificate");
            let show = |path: &Path| path.display().to_string();
            vec![
                "ssl=on".to_owned(),
                format!("ssl_cert_file={}", show(&certificate)),
                format!("ssl_key_file={}", show(&key)),
            ]
        }
    };
    let (good, other) = (tls("127.0.0.1"), tls("other.example"));
    let started = tokio::task::spawn_blocking(move || {
        Some((Postgres::start_with(test, good)?, Postgres::start_with(test, other)?))
    });
    let Some((server, stranger)) = started.await.expect("start") else { return };
    let asked = |server: &Postgres| format!("{}?sslmode=require", server.url("postgres"));
    // An authority that nobody has named is not trusted.
    let url = asked(&server);
    let refused = tokio::task::spawn_blocking(move || PostgresStore::open(&url, TEST_LEASE).err()).await.expect("open");
    assert!(matches!(refused, Some(StoreError::Postgres { op: "connect by TLS", .. })), "{refused:?}");
    let trusted = [("SSL_CERT_FILE", files.certificates.as_os_str())];
    let process = Process::start_in(folder.path(), "", &asked(&stranger), &trusted);
    assert_eq!(process.address, None, "the certificate is somebody else's");
    let process = Process::start_in(folder.path(), "", &asked(&server), &trusted);
    ask(process.address.expect("it listens"), &secret(folder.path()), 0).await.expect("made");
    let (client, connection) =
        tokio_postgres::connect(&server.url("postgres"), tokio_postgres::NoTls).await.expect("connect");
    let _task = tokio::spawn(connection);
    let ways = "SELECT ssl, version FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
        WHERE application_name = 'coracle scheduler'";
    let rows = client.query(ways, &[]).await.expect("ways");
    assert!(!rows.is_empty() && rows.iter().all(|row| row.get::<_, bool>(0)), "it speaks plainly");
    assert_eq!(rows[0].get::<_, Option<&str>>(1), Some("TLSv1.3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_database_is_a_pool_on_either_store() {
    let Some((server, url)) = server("a_backup_of_a_database_is_a_pool_on_either_store").await else { return };
    let folder = tempfile::tempdir().expect("folder");
    let process = Process::start_on(folder.path(), "", &url);
    let (address, token) = (process.address.expect("address"), secret(folder.path()));
    ask(address, &token, 0).await.expect("made");
    let copy = folder.path().join("copy.db");
    let place = |url: &str| StorePlace::Postgres(url.to_owned());
    let backup = |place: StorePlace, copy: std::path::PathBuf| tokio::task::spawn_blocking(move || place.backup(&copy));
    let restore =
        |place: StorePlace, copy: std::path::PathBuf| tokio::task::spawn_blocking(move || place.restore(&copy));
    backup(place(&url), copy.clone()).await.expect("task").expect("while the scheduler is at work");
    ask(address, &token, 1).await.expect("made");
    let under = restore(place(&url), copy.clone()).await.expect("task");
    assert!(matches!(under, Err(StoreError::InUse)), "{under:?}");
    drop(process);
    let full = until("the lease's end", async || match restore(place(&url), copy.clone()).await.expect("task") {
        Err(StoreError::InUse) => None,
        other => Some(other),
    })
    .await;
    assert!(matches!(full, Err(StoreError::NotEmpty)), "{full:?}");
    let fresh = server.database("fresh").await;
    restore(place(&fresh), copy.clone()).await.expect("task").expect("into an empty database");
    let process = Process::start_on(folder.path(), "", &fresh);
    assert_eq!(names(&process, &token).await, ["i0"]);
    ask(process.address.expect("address"), &token, 2).await.expect("it is a pool to work with");
    drop(process);
    let elsewhere = tempfile::tempdir().expect("folder");
    SqliteStore::restore(&copy, &elsewhere.path().join("pool.db")).expect("into a file");
    let process = Process::start_on(elsewhere.path(), "", "");
    assert_eq!(names(&process, &token).await, ["i0"], "the same backup, the other store");
}
