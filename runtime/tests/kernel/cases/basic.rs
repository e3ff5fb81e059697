//! An ordinary container: it runs, it is separate, its exit code comes back.

use crate::container::Container;
use crate::place::Place;
use crate::runner::{ALL, Case};

pub const CASES: &[Case] = &[
    Case { name: "runs_and_returns_its_exit_code", users: ALL, run: runs },
];

fn runs(place: &Place) {
    let output = Container::new(place, "echo out; echo err >&2; exit 7").run();
    assert_eq!((output.stdout.as_str(), output.stderr.as_str(), output.status), ("out\n", "err\n", 7));
}
