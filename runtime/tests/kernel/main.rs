//! Kernel tests: real namespaces and mounts, as an ordinary user with and without subordinate ids,
//! and as root.
//!
//! Every case runs in a process of its own, because a launch needs a caller without threads. As root
//! the runner becomes `alice` (with /etc/subuid) and `bob` (without) by setpriv; as anybody else it
//! runs the cases for whoever it is. `cargo test -p coracle-runtime --test kernel -- PART` selects.

#![expect(clippy::print_stdout, reason = "a test runner of its own: its report goes to stdout")]
#![expect(clippy::disallowed_methods, reason = "a test program reads the variables of its runner")]

mod cases;
mod container;
mod helper;
mod place;
mod runner;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((first, rest)) if first == runner::ONE_CASE => runner::run_one(rest),
        Some((first, rest)) if first == runner::HELPER => helper::run(rest),
        _ => runner::run_all(&args),
    }
}
