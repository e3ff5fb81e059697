//! Asking before something is lost.

use std::io::BufRead;

use super::error::note;

/// Shows what would be lost and waits for `y`; anything else, and the end of the input, means no.
pub fn confirm(warning: &str) -> bool {
    note(warning);
    note("Are you sure you want to continue? [y/N]");
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}
