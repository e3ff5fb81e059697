//! Hostile layers (security.md section 2): every test is named by its row, every test looks at a
//! canary outside the root before and after (oracle O1), and the process stands in a canary itself.
#![expect(clippy::disallowed_methods, reason = "a test finds its settings in the environment")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod canary;
mod damaged;
mod evil_tar;
mod ids;
mod links;
mod metadata;
mod names;
mod place;
mod whiteouts;
