//! The HTTP API as clients and attackers meet it, over real sockets.

#![expect(clippy::disallowed_methods, reason = "children of the tests are told what to do by the environment")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

mod agent;
mod chaos;
mod database;
mod faults;
mod files;
mod hostile;
mod identity;
mod metrics;
mod objects;
mod pairs;
mod postgres;
mod rows;
mod secrets;
mod ssh;
mod support;
mod tenants;
mod tls;
