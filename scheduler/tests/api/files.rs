//! A store whose files are damaged, lost, or have no room: F36.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use coracle_scheduler::store::{SQLITE_LEAST, SqliteStore, Store as _, StoreError};
use reqwest::Method;

use crate::faults::{Process, call};
use crate::support::{instance, until};

#[test]
fn f36_bad_files_are_refused_and_say_what_to_do() {
    assert!(rusqlite::version_number() >= SQLITE_LEAST);
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name);
    let good = path("good.db");
    drop(SqliteStore::open(&good).expect("store"));
    let bytes = fs_err::read(&good).expect("bytes");
    let refused = |name: &str, bytes: &[u8]| {
        fs_err::write(path(name), bytes).expect("write");
        SqliteStore::open(&path(name)).err().unwrap_or_else(|| panic!("{name} was opened"))
    };
    let mut flipped = bytes.clone();
    // A page of the schema loses its head.
    flipped[4096..4200].fill(0xff);
    assert!(matches!(refused("flipped.db", &flipped), StoreError::Damaged { .. }));
    assert!(matches!(refused("cut.db", &bytes[..bytes.len() / 2]), StoreError::Damaged { .. }));
    let garbage = refused("garbage.db", &[b'x'; 8192]);
    assert!(garbage.to_string().contains("restore it from a backup"), "{garbage}");
    fs_err::create_dir(path("folder.db")).expect("folder");
    assert!(SqliteStore::open(&path("folder.db")).is_err());
    let other = path("other.db");
    rusqlite::Connection::open(&other).expect("open").execute_batch("CREATE TABLE cats (name)").expect("table");
    assert!(matches!(SqliteStore::open(&other), Err(StoreError::Damaged { .. })), "another program's database");
    let newer = path("newer.db");
    drop(SqliteStore::open(&newer).expect("store"));
    rusqlite::Connection::open(&newer).expect("open").execute_batch("PRAGMA user_version = 99").expect("pragma");
    assert!(matches!(SqliteStore::open(&newer), Err(StoreError::Schema { found: 99, .. })));
    let held = SqliteStore::open(&good).expect("store");
    assert!(matches!(SqliteStore::open(&good), Err(StoreError::Busy(_))), "two schedulers on one file");
    drop(held);
    assert!(SqliteStore::open(&good).is_ok());
}

fn beside(file: &Path, suffix: &str) -> std::path::PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// A scheduler is killed with acknowledged work in its write-ahead log.
async fn killed(folder: &Path) {
    let process = Process::start(folder, "");
    let token = fs_err::read_to_string(folder.join("secret")).expect("secret");
    let address = process.address.expect("address");
    call(address, &token, Method::POST, "/v1/instances", Some(instance("kept")), "").await.expect("made");
    process.signal(rustix::process::Signal::KILL);
}

#[tokio::test(flavor = "multi_thread")]
async fn f36_a_store_that_has_lost_a_part_is_not_taken_for_a_new_one() {
    let lost = |path: &Path| match SqliteStore::open(path) {
        Err(error @ StoreError::Lost { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("pool.db");
    let log = beside(&file, "-wal");
    killed(folder.path()).await;
    // A backup of what is left takes nothing away.
    SqliteStore::copy(&file, &folder.path().join("copy.db")).expect("backup");
    let aside = folder.path().join("aside");
    fs_err::rename(&log, &aside).expect("rename");
    let said = lost(&file);
    assert!(said.contains("has lost its write-ahead log") && said.contains("pool.db.lock"), "{said}");
    fs_err::rename(&aside, &log).expect("rename");
    // With its log it is whole, and closed in order it needs none.
    assert!(!SqliteStore::open(&file).expect("store").load().expect("records").is_empty());
    assert!(!log.exists());
    drop(SqliteStore::open(&file).expect("store"));
    let bytes = fs_err::read(&file).expect("bytes");
    fs_err::write(&file, "").expect("write");
    assert!(lost(&file).contains("is empty"));
    fs_err::remove_file(&file).expect("remove");
    assert!(lost(&file).contains("is missing"));
    SqliteStore::restore(&folder.path().join("copy.db"), &file).expect("restore");
    drop(SqliteStore::open(&file).expect("store"));
    // The operator decides to go on with what there is.
    fs_err::remove_file(&file).expect("remove");
    fs_err::remove_file(beside(&file, ".lock")).expect("remove");
    drop(SqliteStore::open(&file).expect("a new store"));
    fs_err::write(&file, bytes).expect("write");
    drop(SqliteStore::open(&file).expect("store"));
}

#[tokio::test(flavor = "multi_thread")]
async fn f36_a_full_disk_refuses_loses_nothing_and_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().expect("folder");
    // Its files are on a file system of 4 MiB that only it sees.
    let mut program = Command::new("unshare");
    let script = r#"mount -t tmpfs -o size=4m tmpfs "$0" && exec "$@""#;
    program.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]);
    program.arg(folder.path()).arg(std::env::current_exe().expect("own path"));
    let (errors, sink) = std::io::pipe().expect("pipe");
    let process = Process::start_as(program, folder.path(), "", "", &[] as &[(&str, &OsStr)], Stdio::from(sink));
    let lines = std::thread::spawn(move || {
        let text = |line: std::io::Result<String>| line.ok();
        BufReader::new(errors).lines().map_while(text).find(|line| line.contains("store-failed"))
    });
    let address = process.address.expect("address");
    let inside = Path::new("/proc").join(process.id().to_string()).join("root");
    let inside = inside.join(folder.path().strip_prefix("/").expect("absolute"));
    let token = fs_err::read_to_string(inside.join("secret")).expect("secret");
    let make = async |number: usize| {
        let (body, key) = (Some(instance(&format!("i{number}"))), format!("key{number}"));
        call(address, &token, Method::POST, "/v1/instances", body, &key).await.expect("an answer")
    };
    assert_eq!(make(0).await.0, 201);
    let ballast = inside.join("ballast");
    let mut file = fs_err::File::create(&ballast).expect("ballast");
    while file.write_all(&[0; 4096]).is_ok() {}
    // What is left of the last page of the log may hold some more.
    let mut acknowledged = 0;
    let refused = loop {
        match make(acknowledged + 1).await {
            (201, _) => acknowledged += 1,
            other => break other,
        }
        assert!(acknowledged < 1000, "the disk is not full");
    };
    assert_eq!(refused.0, 503, "{refused:?}");
    let reason = tokio::task::spawn_blocking(|| lines.join().expect("lines")).await.expect("task").expect("a line");
    assert!(reason.contains("full"), "{reason}");
    drop(file);
    fs_err::remove_file(&ballast).expect("remove");
    until("room", async || (make(acknowledged + 1).await.0 == 201).then_some(())).await;
    let (_, list) = call(address, &token, Method::GET, "/v1/instances?limit=1000", None, "").await.expect("list");
    let names: std::collections::BTreeSet<&str> =
        list["items"].as_array().expect("items").iter().filter_map(|item| item["name"].as_str()).collect();
    let wanted: Vec<String> = (0..=acknowledged + 1).map(|number| format!("i{number}")).collect();
    assert_eq!(names, wanted.iter().map(String::as_str).collect(), "{list}");
    assert_eq!(list["items"].as_array().map(Vec::len), Some(wanted.len()), "nothing is there twice");
}
