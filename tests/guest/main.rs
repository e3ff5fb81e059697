//! What needs a systemd host with full cgroup v2: the same `coracle`, in the machine of tests/guest/guest.
//!
//! The tests run outside and send commands in (`host::Guest`), so that they are counted like all others.
//! `make guest` starts the machine. Assertions are on the kernel's counters, never on upper bounds of
//! time: under emulation everything takes 15 to 50 times as long, and the machine may be shared.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test that panics is a test that failed")]

mod bed;
mod changes;
mod container;
mod devices;
mod host;
mod limits;
mod network;
mod oci;
mod pool;
mod quota;
mod watch;
