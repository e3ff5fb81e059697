//! The one end-to-end test binary: the real `coracle` against a real registry, as whoever runs it.
//!
//! `make e2e` runs it as alice (ranges of ids), as bob (one id) and as root. Every test starts from
//! an empty environment (`env::TestEnv`) and ends with the proof that nothing is left behind.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test that panics is a test that failed")]

mod attached;
mod commit;
mod copy;
mod credentials;
mod differential;
mod e2e_oci;
mod env;
mod failpoints;
mod host;
mod hostile_image;
mod hostile_layer;
mod hostile_registry;
mod housekeeping;
mod ids;
mod images;
mod inside;
mod isolation;
mod kill;
mod life;
mod limits;
mod model;
mod named_volumes;
mod network;
mod network_crowd;
mod network_flags;
mod network_life;
mod network_outside;
mod network_rate;
mod network_slirp;
mod networks;
mod options;
mod pool;
mod pool_faults;
mod pool_machines;
mod pool_mirror;
mod pool_move;
mod pool_story;
mod probe;
mod provider;
mod provider_owner;
mod provider_ssh;
mod pull;
mod push;
mod quota;
mod quota_backends;
mod records;
mod refused;
mod rows;
mod run;
mod scheduler;
mod signals;
mod stdio;
mod tty;
mod views;
mod volumes;
