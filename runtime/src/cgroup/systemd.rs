//! Scopes of systemd: how its user manager (for root, the system's) gives us a part of the tree.
//!
//! One scope holds all containers of a session: they are directories in it, and only a process that
//! is not below the user manager yet needs a call, to be moved there. A scope vanishes with its last
//! process, so whoever looks after a container is in the scope too, in a cgroup of its own.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::dbus::{self, Address, Body, BusError, Connection, Value};
use super::delegation::{LEAF, enter_leaf};
use super::directory::Directory;
use super::error::{CgroupError, SystemdError};
use super::hierarchy::{Host, own_path};
use super::settings::{Controller, Settings};

mod properties;
mod scope;

pub(super) use scope::{Holder, make};

/// The scope of everything that has none of its own.
const SCOPE: &str = "coracle.scope";
/// How long another process that starts the same scope may take.
const RACE_LIMIT: Duration = Duration::from_secs(2);
const RACE_PAUSE: Duration = Duration::from_millis(5);

const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

fn addresses(host_uid: u32, root: bool) -> Vec<Address> {
    if root { dbus::system() } else { dbus::user(host_uid) }
}

/// Moves this process into the shared scope, starting it where it is not there, and gives its directory.
pub(super) fn scope(host: &Host) -> Result<Directory, SystemdError> {
    let expected = expected(host);
    if expected.is_ours() && enter_leaf(&expected).is_ok() {
        return Ok(expected);
    }
    let mut connection = Connection::open(&addresses(host.uid, host.root))?;
    let deadline = Instant::now() + RACE_LIMIT;
    loop {
        if expected.is_ours() && attach(&mut connection, &expected).is_ok() {
            return Ok(expected);
        }
        match start_shared(&mut connection) {
            Ok(()) => break,
            Err(SystemdError::Bus(BusError::Call { name, .. })) if name == UNIT_EXISTS && Instant::now() < deadline => {
                std::thread::sleep(RACE_PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
    let base = own_path().map_or(expected, |path| host.directory(&path));
    let failed = |source| SystemdError::Enter { path: base.path().to_owned(), source };
    enter_leaf(&base).map_err(failed)?;
    Ok(base)
}

/// Where systemd puts a scope without a slice of its own.
fn expected(host: &Host) -> Directory {
    let (scope, manager) = split(host);
    host.directory(&format!("{manager}/{scope}"))
}

/// The scope below its manager, and the manager's own path.
fn split(host: &Host) -> (String, String) {
    if host.root {
        return (SCOPE.to_owned(), "/system.slice".to_owned());
    }
    let uid = host.uid;
    let manager = format!("user@{uid}.service");
    // A manager that was moved elsewhere shows in our own path, if we are below it.
    let above = host.own.split_once(&format!("/{manager}")).map(|(above, _)| above.to_owned());
    let above = above.unwrap_or(format!("/user.slice/user-{uid}.slice"));
    (format!("app.slice/{SCOPE}"), format!("{above}/{manager}"))
}

/// Has systemd move this process: out of a login session, only the system's may.
fn attach(connection: &mut Connection, scope: &Directory) -> Result<(), SystemdError> {
    let failed = |source| SystemdError::Enter { path: scope.path().to_owned(), source };
    scope.child(LEAF).make().map_err(failed)?;
    let mut body = Body::default();
    body.string(SCOPE);
    body.string(&format!("/{LEAF}"));
    body.numbers(&[std::process::id()]);
    connection.manager("AttachProcessesToUnit", body)?;
    Ok(())
}

fn start_shared(connection: &mut Connection) -> Result<(), SystemdError> {
    let properties = [
        ("Description", Value::Text("Containers of coracle".to_owned())),
        ("PIDs", Value::Numbers(vec![std::process::id()])),
        ("Delegate", Value::Bool(true)),
        // The containers have limits of their own.
        ("TasksMax", Value::Number(u64::MAX)),
        ("CollectMode", Value::Text("inactive-or-failed".to_owned())),
    ];
    start(connection, SCOPE, &properties)
}

/// Starts a transient unit and waits until it is there.
fn start(connection: &mut Connection, unit: &str, properties: &[(&str, Value)]) -> Result<(), SystemdError> {
    connection.watch_jobs()?;
    let mut body = Body::default();
    body.string(unit);
    body.string("fail");
    body.properties(properties);
    body.no_auxiliary_units();
    let job = connection.manager("StartTransientUnit", body)?.unwrap_or_default();
    let result = connection.job_result(&job)?;
    if result == "done" { Ok(()) } else { Err(SystemdError::Job { unit: unit.to_owned(), result }) }
}

/// A unit that holds one container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Unit {
    name: String,
    uid: u32,
    root: bool,
}

impl Unit {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Tells systemd of new limits, or it would put the old ones back at its next reload.
    pub(super) fn update(&self, wanted: &Settings) -> Result<(), CgroupError> {
        let properties = properties::of(wanted);
        if properties.is_empty() {
            return Ok(());
        }
        let mut body = Body::default();
        body.string(&self.name);
        body.bool(true);
        body.properties(&properties);
        self.call("SetUnitProperties", body).map_err(|source| self.failed("change", source.into()))
    }

    /// Has systemd forget it; one that it does not know is forgotten.
    pub(super) fn forget(&self) -> Result<(), CgroupError> {
        let mut body = Body::default();
        body.string(&self.name);
        body.string("replace");
        match self.call("StopUnit", body) {
            Err(BusError::Call { name, .. }) if name == NO_SUCH_UNIT => Ok(()),
            result => result.map_err(|source| self.failed("stop", source.into())),
        }
    }

    fn call(&self, member: &'static str, body: Body) -> Result<(), BusError> {
        Connection::open(&addresses(self.uid, self.root))?.manager(member, body).map(drop)
    }

    fn failed(&self, op: &'static str, source: SystemdError) -> CgroupError {
        CgroupError::Unit { op, unit: self.name.clone(), source }
    }
}

/// The path of another process in the hierarchy.
fn path_of(host: &Host, pid: i32) -> Option<Directory> {
    let text = fs_err::read_to_string(Path::new("/proc").join(pid.to_string()).join("cgroup")).ok()?;
    super::hierarchy::path_in(&text).map(|path| host.directory(&path))
}

/// Where the scope would be and what could be limited in it, if systemd would make it; asks nobody.
pub(super) fn prospect(host: &Host) -> Option<(String, Vec<Controller>)> {
    let (unit, path) = split(host);
    let manager = host.directory(&path);
    let listening = addresses(host.uid, host.root).iter().any(Address::exists);
    (listening && manager.exists()).then(|| (format!("{path}/{unit}"), manager.controllers()))
}
