//! `coracle logs`.

use std::io::{BufWriter, Stdout, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;

use super::error::{CliError, note};
use super::moment;
use crate::engine::logs::{self, Entry, LogRange, Sink};
use crate::engine::{Engine, containers};

/// Show what a container has written
#[derive(Args)]
pub struct LogsArgs {
    /// Go on with what it writes until it ends
    #[arg(short, long)]
    follow: bool,
    /// Start with the last N lines
    #[arg(short = 'n', long, value_name = "N", default_value = "all", allow_hyphen_values = true)]
    tail: String,
    /// Leave out what is older than a moment, or than a span such as 10m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Leave out what is newer
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Put its moment before each line
    #[arg(short, long)]
    timestamps: bool,
    /// Container, by name or id
    container: String,
}

/// Shows the log: standard output and standard error, each where it belongs.
pub fn run(root: Option<PathBuf>, args: LogsArgs) -> Result<ExitCode, CliError> {
    let now = Timestamp::now();
    let moment = |text: &Option<String>| text.as_deref().map(|text| moment::parse(text, now)).transpose();
    let range = LogRange {
        follow: args.follow,
        // Docker takes everything that is no number for "all", negative numbers too.
        tail: args.tail.parse().ok(),
        since: moment(&args.since)?,
        until: moment(&args.until)?,
    };
    let engine = Engine::open(root)?;
    let container = containers::find(engine.root(), &args.container)?;
    let mut screen = Screen {
        out: BufWriter::with_capacity(BUFFER_BYTES, std::io::stdout()),
        timestamps: args.timestamps,
        inside_line: [false; 2],
    };
    logs::read(engine.root(), &container, &range, &mut screen)?;
    let _ = screen.out.flush();
    Ok(ExitCode::SUCCESS)
}

/// Large enough that a write costs more than a system call.
const BUFFER_BYTES: usize = 64 << 10;

/// Puts entries on the two outputs, in their order.
struct Screen {
    out: BufWriter<Stdout>,
    timestamps: bool,
    /// By stream: the last entry had no newline, so that the next belongs to the same line.
    inside_line: [bool; 2],
}

impl Screen {
    fn put(&mut self, error: bool, entry: &Entry<'_>) -> std::io::Result<()> {
        let inside = std::mem::replace(&mut self.inside_line[usize::from(error)], !entry.log.ends_with('\n'));
        let stamped = self.timestamps && !inside;
        let mut errors = std::io::stderr();
        let out: &mut dyn Write = if error {
            // The two may be the same terminal: what came first is shown first.
            self.out.flush()?;
            &mut errors
        } else {
            &mut self.out
        };
        if stamped {
            write!(out, "{} ", entry.time)?;
        }
        out.write_all(entry.log.as_bytes())
    }
}

impl Sink for Screen {
    fn entry(&mut self, entry: &Entry<'_>) -> bool {
        // A reader that has gone away wants no more.
        self.put(entry.stream == "stderr", entry).is_ok()
    }

    fn lost(&mut self) {
        let _ = self.out.flush();
        note("note: lines are missing here: the log was rotated faster than it could be read");
    }

    fn idle(&mut self) -> bool {
        self.out.flush().is_ok()
    }
}
