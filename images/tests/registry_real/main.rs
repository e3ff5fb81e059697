//! The registry client against Debian's real `docker-registry`, filled by skopeo and umoci.
#![expect(clippy::disallowed_methods, reason = "tests read their own switches and the search path")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod cases;
mod proxy;
mod registry;
