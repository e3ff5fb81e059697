//! How an error reads: its chain of causes on one line, hints by kind, an exit code.
//!
//! Shared by the command line and by children that report back through `engine::elsewhere`. Hints are
//! keyed on typed errors and error numbers, never on the text of a message.

mod hints;
mod walk;

use std::error::Error;

pub use hints::{exit_code, hints};

use coracle_images::registry::RegistryError;
use coracle_runtime::{LaunchFailure, failure::describe};

use crate::engine::Elsewhere;

/// Joins an error and its causes by colons.
///
/// A cause that only repeats the end of what was said already is left out.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for link in walk::walk(error) {
        let link_text = text_of(link);
        if text.is_empty() {
            text = link_text;
        } else if !text.ends_with(&link_text) && !repeats_path(&text, &link_text) {
            text.push_str(": ");
            text.push_str(&link_text);
        }
        // What lies below these is the HTTP client's own talk, or said already.
        if link.is::<RegistryError>() || link.is::<LaunchFailure>() {
            break;
        }
    }
    text
}

/// Gives an error's own words; an error of the kernel reads the same wherever it came from.
fn text_of(error: &(dyn Error + 'static)) -> String {
    let number = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    number.map_or_else(|| error.to_string(), describe)
}

/// Says whether a cause only names, between backquotes, a path that was named before.
fn repeats_path(text: &str, cause: &str) -> bool {
    cause.split('`').nth(1).is_some_and(|path| !path.is_empty() && text.contains(path))
}

/// Puts an error into words for a parent process.
pub fn elsewhere(error: &(dyn Error + 'static)) -> Elsewhere {
    Elsewhere { message: chain(error), hints: hints(error), exit_code: exit_code(error) }
}

/// Makes control bytes visible: an image's names must not drive the person's terminal.
pub fn one_line(text: &str) -> String {
    text.trim_end().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_are_joined_once() {
        assert_eq!(chain(&Outer(std::io::Error::other("inner"))), "outer: inner");
        assert_eq!(chain(&Outer(std::io::Error::other("outer"))), "outer");
    }

    #[test]
    fn terminals_are_not_driven() {
        assert_eq!(one_line("a\x1b[2Jb\n"), "a\u{fffd}[2Jb");
    }
}
