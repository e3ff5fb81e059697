//! `state` and `list`: what is known about containers.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use coracle_runtime::container::{Container, Id, State, Status};
use coracle_runtime::defaults::OCI_VERSION;
use serde::Serialize;

use super::Context;
use super::arguments::{Given, Grammar, Words, switch, valued};
use super::error::OciError;

/// `state`.
pub const STATE: Grammar =
    Grammar { name: "state", about: "Print the state of a container as JSON", flags: &[], words: Words::Id };

/// `list`.
pub const LIST: Grammar = Grammar {
    name: "list",
    about: "List the containers",
    flags: &[&[
        switch("quiet", "Print ids alone").short('q'),
        valued("format", "FORMAT", "Print a table or json [default: table]").short('f'),
    ]],
    words: Words::None,
};

/// The values of `--format`.
const FORMATS: [&str; 2] = ["table", "json"];

/// Says whether `--format` asks for JSON.
pub fn wants_json(given: &Given) -> Result<bool, OciError> {
    Ok(given.choice("format", &FORMATS)? == Some(1))
}

/// The state as the runtime specification defines it, and what runc adds.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    oci_version: String,
    id: Id,
    /// 0 once it has ended, as runc prints it.
    pid: i32,
    status: Status,
    bundle: PathBuf,
    rootfs: PathBuf,
    created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    owner: String,
    /// The container's own scope, under crun's name for it.
    #[serde(rename = "systemd-scope", skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
}

/// Runs `state`.
pub fn state(context: &Context, given: &Given) -> Result<ExitCode, OciError> {
    let id: Id = given.id()?.parse()?;
    let container = context.place.container(&id)?;
    let shown = Shown::of(&container)?;
    print(&serde_json::to_string_pretty(&shown).map_err(OciError::Json)?);
    Ok(ExitCode::SUCCESS)
}

/// Runs `list`.
pub fn list(context: &Context, given: &Given) -> Result<ExitCode, OciError> {
    let json = wants_json(given)?;
    let root = context.place.open()?;
    let ids = root.as_ref().map(|root| root.ids()).transpose()?.unwrap_or_default();
    if given.has("quiet") {
        ids.iter().for_each(|id| print(id.as_str()));
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = Vec::new();
    for id in ids {
        // One that is deleted while we look is no error; one that is damaged must not hide the rest.
        match root.as_ref().map(|root| root.get(&id).map_err(OciError::from).and_then(|found| Shown::of(&found))) {
            Some(Ok(shown)) => rows.push(shown),
            Some(Err(error)) => context.journal.warn(&crate::report::chain(&error)),
            None => {}
        }
    }
    print(&if json { serde_json::to_string(&rows).map_err(OciError::Json)? } else { table(&rows) });
    Ok(ExitCode::SUCCESS)
}

impl Shown {
    fn of(container: &Container) -> Result<Self, OciError> {
        let state = container.state()?;
        let status = container.status(state.as_ref())?;
        let id = container.id().clone();
        let cgroup = state.as_ref().map(State::cgroup).transpose().map_err(OciError::Json)?.flatten();
        let scope = cgroup.and_then(|cgroup| cgroup.unit().map(str::to_owned));
        Ok(match state {
            Some(state) => Self {
                scope,
                oci_version: state.oci_version,
                id,
                pid: if status == Status::Stopped { 0 } else { state.init.pid },
                status,
                bundle: state.bundle,
                rootfs: state.rootfs,
                created: state.created,
                annotations: state.annotations,
                owner: user_name(state.owner_uid),
            },
            None => Self {
                oci_version: OCI_VERSION.to_owned(),
                id,
                pid: 0,
                status,
                bundle: PathBuf::new(),
                rootfs: PathBuf::new(),
                created: String::new(),
                annotations: BTreeMap::new(),
                owner: String::new(),
                scope: None,
            },
        })
    }
}

fn table(rows: &[Shown]) -> String {
    let mut cells = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    for row in rows {
        cells.push([
            row.id.to_string(),
            row.pid.to_string(),
            row.status.to_string(),
            crate::report::one_line(&row.bundle.display().to_string()),
            row.created.clone(),
            row.owner.clone(),
        ]);
    }
    let widths: Vec<usize> = (0..cells[0].len())
        .map(|column| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &[String; 6]| {
        let padded = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<String>>().join("   ").trim_end().to_owned()
    };
    cells.iter().map(line).collect::<Vec<String>>().join("\n")
}

/// The name of a user, or the number where /etc/passwd has none.
fn user_name(uid: u32) -> String {
    let text = fs_err::read_to_string(Path::new("/etc/passwd")).unwrap_or_default();
    let name = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse::<u32>().ok()? == uid).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| uid.to_string())
}

/// Prints data; a reader that is gone has seen enough.
pub fn print(text: &str) {
    let mut line = text.to_owned();
    line.push('\n');
    let _ = std::io::stdout().write_all(line.as_bytes());
}
