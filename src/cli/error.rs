//! The one place where an error becomes what a person sees: one line, hints, an exit code.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use crate::report;

/// Docker's code for "the runtime itself failed".
pub const EXIT_CORACLE_FAILED: u8 = 125;
/// Every command other than `run` that fails.
pub const EXIT_FAILURE: u8 = 1;

/// Is an error on its way to the person.
#[derive(Debug)]
pub struct CliError {
    source: Box<dyn Error + 'static>,
    exit_code: Option<u8>,
}

impl CliError {
    /// Wraps a message that has no typed error behind it.
    pub fn message(text: impl Into<String>) -> Self {
        Self { source: text.into().into(), exit_code: None }
    }

    /// Sets the exit code where the error itself does not decide it.
    pub fn with_exit_code(mut self, code: u8) -> Self {
        self.exit_code = report::exit_code(self.source.as_ref()).or(Some(code));
        self
    }

    /// Writes the error and its hints to standard error and gives the exit code.
    pub fn report(&self) -> ExitCode {
        note(&format!("error: {}", report::one_line(&report::chain(self.source.as_ref()))));
        for hint in report::hints(self.source.as_ref()) {
            note(&format!("hint: {}", report::one_line(&hint)));
        }
        ExitCode::from(self.exit_code.unwrap_or(EXIT_FAILURE))
    }
}

impl<E: Error + 'static> From<E> for CliError {
    fn from(source: E) -> Self {
        Self { source: Box::new(source), exit_code: None }
    }
}

/// Writes one message to standard error.
#[expect(clippy::print_stderr, reason = "the one place where messages leave for the person")]
pub fn note(text: &str) {
    eprintln!("{text}");
}

/// Writes one line of data to standard output; a reader that has gone away is no error.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}
