//! `coracle-oci`: the runc-compatible command line, for other people's tools and test suites.
//!
//! It keeps containers in directories of its own (`runtime::container`) and starts them with exactly
//! the code that `coracle run` uses. Errors are one line on stderr, and in `--log` in runc's form.

mod arguments;
mod create;
mod delete;
mod error;
mod events;
mod exec;
mod features;
mod journal;
mod kill;
mod list;
mod notify;
mod pause;
mod place;
mod processes;
mod rootless;
mod spec;
mod streams;
mod update;

use std::ffi::OsString;
use std::process::ExitCode;

use coracle_runtime::cgroup::Kind;
use coracle_runtime::defaults::OCI_VERSION;
use coracle_runtime::memory;

use arguments::{Given, Grammar, Words, switch, valued};
pub use error::OciError;
use journal::Journal;
use place::Place;

/// What stands before the command.
const GLOBALS: Grammar = Grammar {
    name: "coracle-oci",
    about: "Start and control containers from OCI bundles.",
    flags: &[&[
        valued("root", "DIR", "Keep the containers' state in DIR"),
        valued("log", "FILE", "Append errors to FILE"),
        valued("log-format", "FORMAT", "Write the log as text or json [default: text]"),
        switch("debug", "Log more than errors"),
        valued("cgroup-manager", "WHO", "Who makes cgroups: cgroupfs, systemd, or disabled, which ignores limits"),
        switch("systemd-cgroup", "The same as --cgroup-manager=systemd"),
        valued("rootless", "true|false|auto", "Accepted for runc's sake: whether we are rootless is seen, not told"),
        switch("version", "Print the version").short('v'),
    ]],
    words: Words::Command,
};

type Command = fn(&Context, &Given) -> Result<ExitCode, OciError>;

const COMMANDS: [(Grammar, Command); 15] = [
    (create::CREATE, create::create),
    (create::RUN, create::run),
    (create::START, create::start),
    (list::STATE, list::state),
    (kill::KILL, kill::kill),
    (delete::DELETE, delete::delete),
    (list::LIST, list::list),
    (exec::EXEC, exec::exec),
    (processes::PS, processes::ps),
    (pause::PAUSE, pause::pause),
    (pause::RESUME, pause::resume),
    (update::UPDATE, update::update),
    (events::EVENTS, events::events),
    (spec::SPEC, |_, given| spec::spec(given)),
    (features::FEATURES, |_, _| features::features()),
];

/// What this runtime can do, in crun's form; programs that drive crun look for the words.
const FEATURES: &str = "+SYSTEMD +CAP +SECCOMP";

/// What every command gets.
struct Context {
    place: Place,
    journal: Journal,
    cgroups: Kind,
}

/// Parses the arguments, of which the first is the program's name, and runs one command.
pub fn main(args: Vec<OsString>) -> ExitCode {
    memory::be_thrifty();
    // What the start of the program needed is over.
    memory::step();
    let journal = Journal::default();
    let (globals, command) = match words(args) {
        Ok(Some(words)) => words,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => return journal.fail(&error),
    };
    let format = match globals.choice("log-format", &["text", "json"]) {
        Ok(format) => {
            if format == Some(1) {
                journal::Format::Json
            } else {
                journal::Format::Text
            }
        }
        Err(error) => return journal.fail(&error),
    };
    let journal = match Journal::open(globals.path("log").as_deref(), format, globals.has("debug")) {
        Ok(journal) => journal,
        Err(error) => return journal.fail(&error),
    };
    dispatch(&globals, command, &journal).unwrap_or_else(|error| journal.fail(&error))
}

/// Sorts what stands before the command from what stands behind it; `None` after a version or a help.
fn words(args: Vec<OsString>) -> Result<Option<(Given, Vec<OsString>)>, OciError> {
    let mut globals = GLOBALS.parse(args.into_iter().skip(1))?;
    if globals.help {
        let commands: Vec<&Grammar> = COMMANDS.iter().map(|(grammar, _)| grammar).collect();
        list::print(&GLOBALS.help(&commands));
        return Ok(None);
    }
    if globals.has("version") {
        list::print(&format!("coracle-oci version {}\nspec: {OCI_VERSION}\n{FEATURES}", env!("CARGO_PKG_VERSION")));
        return Ok(None);
    }
    let command = globals.take_words();
    Ok(Some((globals, command)))
}

fn dispatch(globals: &Given, words: Vec<OsString>, journal: &Journal) -> Result<ExitCode, OciError> {
    let manager = globals.choice("cgroup-manager", &["disabled", "cgroupfs", "systemd"])?;
    let cgroups = match (manager, globals.has("systemd-cgroup")) {
        (Some(0), _) => Kind::Disabled,
        (Some(2), _) | (_, true) => Kind::Systemd,
        (Some(_), _) => Kind::Cgroupfs,
        (None, false) => Kind::Auto,
    };
    let mut words = words.into_iter();
    let name = words.next().ok_or(OciError::NoCommand)?;
    let found = COMMANDS.iter().find(|(grammar, _)| name == grammar.name);
    let (grammar, command) = found.ok_or_else(|| OciError::UnknownCommand(name.display().to_string()))?;
    let given = grammar.parse(words)?;
    if given.help {
        list::print(&grammar.help(&[]));
        return Ok(ExitCode::SUCCESS);
    }
    let context = Context { place: Place::new(globals.path("root")), journal: journal.clone(), cgroups };
    // What the words needed is over too.
    memory::step();
    command(&context, &given)
}
