//! Where errors go: one line on stderr for people, and runc's log format for tools.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::SystemTime;

use coracle_runtime::container::timestamp;

use super::error::OciError;
use crate::report;

/// The form of the log file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// Is the log of one command.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    file: Option<Rc<File>>,
    format: Format,
    debug: bool,
}

impl Journal {
    /// Opens the log; without a path only stderr hears of errors.
    pub fn open(path: Option<&Path>, format: Format, debug: bool) -> Result<Self, OciError> {
        let open = |path: &Path| {
            let mut options = fs_err::OpenOptions::new();
            let opened = options.append(true).create(true).open(path);
            opened.map_err(|error| OciError::file("open", path, &error))
        };
        let file = path.map(open).transpose()?;
        Ok(Self { file: file.map(|file| Rc::new(file.into_file())), format, debug })
    }

    /// Tells of an error and gives the exit code for it.
    pub fn fail(&self, error: &OciError) -> ExitCode {
        let text = report::one_line(&report::chain(error));
        self.line("error", &text);
        say(&format!("error: {text}"));
        for hint in report::hints(error) {
            say(&format!("hint: {}", report::one_line(&hint)));
        }
        ExitCode::from(error.exit_code())
    }

    /// Tells of something that does not stop the command. People see it in the log alone: `state`
    /// and others have their stderr read as data (slurm.md).
    pub fn warn(&self, text: &str) {
        self.line("warning", &report::one_line(text));
    }

    /// Tells what is being done, with `--debug`.
    pub fn debug(&self, text: &str) {
        if self.debug {
            self.line("debug", &report::one_line(text));
        }
    }

    fn line(&self, level: &str, text: &str) {
        let Some(file) = &self.file else { return };
        let time = timestamp(SystemTime::now());
        let mut line = match self.format {
            Format::Json => serde_json::json!({ "level": level, "msg": text, "time": time }).to_string(),
            Format::Text => format!("time=\"{time}\" level={level} msg={text:?}"),
        };
        line.push('\n');
        // A log that cannot be written must not hide the error itself, which goes to stderr too.
        let _ = (&**file).write_all(line.as_bytes());
    }
}

/// Prints a line for people.
fn say(text: &str) {
    let mut line = String::new();
    let _ = writeln!(line, "{text}");
    let _ = std::io::stderr().write_all(line.as_bytes());
}
