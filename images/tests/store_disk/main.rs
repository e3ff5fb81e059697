//! The store on a real disk: what comes in, what is visible when, what other tools read of it.
#![expect(clippy::disallowed_methods, reason = "a test finds its settings in the environment")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

#[path = "../unpack_hostile/canary.rs"]
#[expect(dead_code, reason = "only the picture of a tree is used here")]
mod canary;
mod differential;
#[path = "../unpack_hostile/evil_tar.rs"]
#[expect(dead_code, reason = "most of it is for hostile archives")]
mod evil_tar;
mod fixture;
mod images;
mod ingest;
mod kill;
mod tools;
mod transport;
