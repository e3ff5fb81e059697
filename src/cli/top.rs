//! `coracle top`: the processes of a container, in the columns that `ps` has.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle_runtime::IdMap;

use super::error::{CliError, line};
use crate::engine::Engine;
use crate::engine::containers::{self, Container};
use crate::engine::processes::{self, Process, TICKS_PER_SECOND};
use crate::report::one_line;

/// Show the processes of a container
#[derive(Args)]
pub struct TopArgs {
    /// Container, by name or id
    container: String,
    /// Options of ps: -ef (as without any), aux, or -o COLUMN,COLUMN…
    #[arg(value_name = "PS-OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// Says why the options of ps were refused.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    #[error("option {0:?} of ps is not implemented; there are -e, -f, -ef, aux and -o")]
    Option(String),
    #[error("column {0:?} of ps is not implemented; there are {known}", known = COLUMNS.map(|column| column.0).join(", "))]
    Column(String),
    #[error("container {0} is not running")]
    NotRunning(String),
}

/// Is what a column is made from.
struct Facts<'a> {
    container: &'a Container,
    uptime_s: u64,
    memory_bytes: u64,
    now_s: i64,
}

type Cell = fn(&Process, &Facts<'_>) -> String;
type Column = (&'static str, &'static str, Cell);

/// Columns by ps' name, with their heading.
const COLUMNS: [Column; 21] = [
    ("pid", "PID", |process, _| process.pid.to_string()),
    ("ppid", "PPID", |process, _| process.parent.to_string()),
    ("uid", "UID", |process, facts| inside(process.uid, &facts.container.record.idmap)),
    ("user", "USER", |process, facts| inside(process.uid, &facts.container.record.idmap)),
    ("euser", "USER", |process, facts| inside(process.uid, &facts.container.record.idmap)),
    ("c", "C", |process, facts| (cpu_tenths(process, facts) / 10).min(99).to_string()),
    ("pcpu", "%CPU", |process, facts| tenths(cpu_tenths(process, facts))),
    ("%cpu", "%CPU", |process, facts| tenths(cpu_tenths(process, facts))),
    ("pmem", "%MEM", |process, facts| tenths(process.resident_bytes * 1000 / facts.memory_bytes.max(1))),
    ("%mem", "%MEM", |process, facts| tenths(process.resident_bytes * 1000 / facts.memory_bytes.max(1))),
    ("vsz", "VSZ", |process, _| (process.virtual_bytes >> 10).to_string()),
    ("rss", "RSS", |process, _| (process.resident_bytes >> 10).to_string()),
    ("stime", "STIME", |process, facts| started(process, facts)),
    ("tty", "TTY", |process, _| terminal(process.tty)),
    ("stat", "STAT", |process, _| process.state.to_string()),
    ("nlwp", "NLWP", |process, _| process.threads.to_string()),
    ("nice", "NI", |process, _| process.nice.to_string()),
    ("etime", "ELAPSED", |process, facts| elapsed(age_s(process, facts))),
    ("time", "TIME", |process, _| clock(process.cpu_ticks / TICKS_PER_SECOND)),
    ("comm", "COMMAND", |process, _| process.name.clone()),
    ("args", "COMMAND", |process, _| command(process)),
];

/// Prints the table.
pub fn run(root: Option<PathBuf>, args: TopArgs) -> Result<ExitCode, CliError> {
    let columns = columns(&args.options)?;
    let engine = Engine::open(root)?;
    let container = containers::find(engine.root(), &args.container)?;
    if container.init().is_none() {
        return Err(TopError::NotRunning(args.container).into());
    }
    let now_s = jiff::Timestamp::now().as_second();
    let uptime = rustix::system::sysinfo().uptime;
    let facts = Facts {
        container: &container,
        uptime_s: u64::try_from(uptime).unwrap_or(0),
        memory_bytes: crate::engine::provider::facts::memory_bytes("MemTotal"),
        now_s,
    };
    let mut lines = vec![columns.iter().map(|column| column.1.to_owned()).collect::<Vec<_>>()];
    for process in processes::list(&container) {
        lines.push(columns.iter().map(|column| one_line(&(column.2)(&process, &facts))).collect());
    }
    let lines: Vec<String> = lines.into_iter().map(|cells| cells.join("\t")).collect();
    line(super::format::align(&lines).trim_end());
    Ok(ExitCode::SUCCESS)
}

/// Chooses the columns from the options of ps.
fn columns(options: &[String]) -> Result<Vec<Column>, TopError> {
    let named = |names: &[&str]| -> Result<Vec<Column>, TopError> {
        let find = |name: &&str| {
            let name = match *name {
                "cmd" | "command" => "args",
                "ucmd" => "comm",
                "tt" | "tname" => "tty",
                "s" | "state" => "stat",
                "ni" => "nice",
                "start_time" => "stime",
                "cputime" => "time",
                "rssize" => "rss",
                "vsize" => "vsz",
                other => other,
            };
            COLUMNS.iter().find(|column| column.0 == name).copied().ok_or_else(|| TopError::Column(name.to_owned()))
        };
        names.iter().map(find).collect()
    };
    let full = || {
        let mut columns = named(&["uid", "pid", "ppid", "c", "stime", "tty", "time", "args"])?;
        if let Some(last) = columns.last_mut() {
            last.1 = "CMD";
        }
        Ok(columns)
    };
    let mut wanted: Option<Vec<Column>> = None;
    let mut words = options.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "-e" | "-f" | "-ef" | "-A" | "-eF" => {}
            "aux" | "-aux" => {
                wanted = Some(named(&[
                    "user", "pid", "%cpu", "%mem", "vsz", "rss", "tty", "stat", "stime", "time", "args",
                ])?);
            }
            "-o" | "-eo" | "o" => {
                let list = words.next().ok_or_else(|| TopError::Option(word.to_owned()))?;
                wanted = Some(named(&list.split(',').collect::<Vec<_>>())?);
            }
            other => match other.strip_prefix("-o").or_else(|| other.strip_prefix("-eo")) {
                Some(list) => wanted = Some(named(&list.split(',').collect::<Vec<_>>())?),
                None => return Err(TopError::Option(other.to_owned())),
            },
        }
    }
    wanted.map_or_else(full, Ok)
}

/// Gives the id that a process has inside; what the map does not have keeps the host's.
fn inside(uid: u32, map: &IdMap) -> String {
    let range = map.uids.iter().find(|range| (range.host..range.host.saturating_add(range.size)).contains(&uid));
    match range.map_or(uid, |range| range.container + (uid - range.host)) {
        0 => "root".to_owned(),
        other => other.to_string(),
    }
}

fn age_s(process: &Process, facts: &Facts<'_>) -> u64 {
    facts.uptime_s.saturating_sub(process.started_ticks / TICKS_PER_SECOND)
}

/// Gives tenths of a percent of one processor over the process's life, as ps does.
fn cpu_tenths(process: &Process, facts: &Facts<'_>) -> u64 {
    process.cpu_ticks * 1000 / (age_s(process, facts).max(1) * TICKS_PER_SECOND)
}

fn tenths(tenths: u64) -> String {
    format!("{}.{}", tenths / 10, tenths % 10)
}

fn clock(seconds: u64) -> String {
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn elapsed(seconds: u64) -> String {
    match seconds / 86_400 {
        0 if seconds < 3600 => format!("{:02}:{:02}", seconds / 60, seconds % 60),
        0 => clock(seconds),
        days => format!("{days}-{}", clock(seconds % 86_400)),
    }
}

/// Gives the hour today and the day before that, in UTC.
fn started(process: &Process, facts: &Facts<'_>) -> String {
    let age = i64::try_from(age_s(process, facts)).unwrap_or(0);
    let layout = if age < 86_400 { "%H:%M" } else { "%b%d" };
    jiff::Timestamp::from_second(facts.now_s - age)
        .map_or_else(|_| "?".to_owned(), |then| then.strftime(layout).to_string())
}

/// Names a terminal by its device number; containers have pseudo terminals only.
fn terminal(device: i32) -> String {
    /// The first of the numbers for pseudo terminals (Documentation/admin-guide/devices.txt).
    const PTS_MAJOR: u32 = 136;
    let device = u64::from(device.cast_unsigned());
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    match (device, major) {
        (0, _) => "?".to_owned(),
        (_, PTS_MAJOR) => format!("pts/{minor}"),
        _ => format!("{major}:{minor}"),
    }
}

fn command(process: &Process) -> String {
    if process.argv.is_empty() { format!("[{}]", process.name) } else { process.argv.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headings(options: &[&str]) -> Result<String, String> {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let columns = columns(&options).map_err(|error| error.to_string())?;
        Ok(columns.iter().map(|column| column.1).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn columns_follow_the_options_of_ps() {
        for (options, expect) in [
            (&[][..], "UID PID PPID C STIME TTY TIME CMD"),
            (&["-ef"], "UID PID PPID C STIME TTY TIME CMD"),
            (&["aux"], "USER PID %CPU %MEM VSZ RSS TTY STAT STIME TIME COMMAND"),
            (&["-o", "pid,cmd"], "PID COMMAND"),
            (&["-opid,user"], "PID USER"),
            (&["-eo", "comm"], "COMMAND"),
        ] {
            assert_eq!(headings(options).as_deref(), Ok(expect), "{options:?}");
        }
        assert!(headings(&["-o", "pid,wat"]).unwrap_err().contains("\"wat\""));
        assert!(headings(&["--forest"]).unwrap_err().contains("--forest"));
    }

    #[test]
    fn times() {
        assert_eq!(
            (clock(3725), elapsed(59), elapsed(90_061)),
            ("01:02:05".into(), "00:59".into(), "1-01:01:01".into())
        );
        assert_eq!((terminal(0), terminal(34_819)), ("?".into(), "pts/3".into()));
    }
}
