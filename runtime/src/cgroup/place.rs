//! Makes one container's cgroup: finds the place, checks the controllers, sets the limits.

use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use super::apply::{all_unenforced, apply, fields, refuse, with_source};
use super::control::remove_tree;
use super::delegation::{Scope, base, enable, enter_leaf, is};
use super::directory::Directory;
use super::error::{CgroupError, NoPlace};
use super::hierarchy::Host;
use super::settings::{Controller, Settings, settings};
use super::{Cgroup, Kind, LimitState, Made, Request, devices, systemd};

/// A place for one cgroup that is not made yet.
struct Place {
    /// Its parent, whose children get the controllers.
    base: Directory,
    directory: Directory,
    /// Whether the processes that look after containers belong into a leaf of `base`.
    leaf: bool,
}

/// Makes a cgroup and sets its limits; `host` is `None` where there is no unified hierarchy.
pub(super) fn make(host: Option<&Host>, request: &Request<'_>) -> Result<Made, CgroupError> {
    let wanted = request.resources.map(settings).unwrap_or_default();
    if request.kind == Kind::Disabled {
        return Ok(Made { cgroup: None, limits: all_unenforced(&wanted, &NoPlace::Disabled.to_string()) });
    }
    let refused = refuse(&wanted, request.best_effort)?;
    let found = match host {
        None => Err(NoPlace::NoHierarchy),
        Some(host) => {
            if request.kind == Kind::Systemd {
                return systemd::make(host, request, wanted, refused);
            }
            place(host, request)
        }
    };
    match found {
        Ok(place) => place.make(request, host.is_some_and(|host| host.root), wanted, refused),
        Err(why) => none(why, request, &wanted, refused),
    }
}

/// There is no place: an error where limits were asked for.
pub(super) fn none(
    why: NoPlace,
    request: &Request<'_>,
    wanted: &Settings,
    mut limits: Vec<LimitState>,
) -> Result<Made, CgroupError> {
    if !wanted.list.is_empty() && !request.best_effort {
        return Err(CgroupError::Unenforceable { fields: fields(&wanted.list), source: why });
    }
    limits.extend(all_unenforced(wanted, &with_source(&why)));
    Ok(Made { cgroup: None, limits })
}

fn place(host: &Host, request: &Request<'_>) -> Result<Place, NoPlace> {
    let name = format!("coracle-{}", request.id);
    let path = request.path.filter(|path| !path.is_empty() && request.kind == Kind::Cgroupfs);
    if let Some(path) = path.filter(|path| path.starts_with('/')) {
        return at_path(host.directory("/"), Path::new(path));
    }
    if path.is_none() && request.kind == Kind::Cgroupfs && host.root {
        return at_path(host.directory("/"), Path::new(&name));
    }
    let scope = if request.kind == Kind::Auto { Scope::Ask } else { Scope::Never };
    let base = base(host, scope)?;
    match path {
        Some(path) => at_path(base, Path::new(path)),
        None => Ok(Place { directory: base.child(&name), base, leaf: true }),
    }
}

/// A path below `top`, whose missing parents are made; `..` never leads out of it.
fn at_path(top: Directory, path: &Path) -> Result<Place, NoPlace> {
    let parts: Vec<&std::ffi::OsStr> = path
        .components()
        .filter_map(|part| if let Component::Normal(name) = part { Some(name) } else { None })
        .collect();
    let inside: PathBuf = parts.iter().collect();
    let directory = Directory::new(top.path().join(&inside));
    let Some(parent) = inside.parent().map(|parent| top.path().join(parent)) else {
        let source = io::Error::from(Errno::INVAL);
        return Err(NoPlace::Path { path: directory.path().to_owned(), source });
    };
    let mut made = top.clone();
    for name in inside.parent().into_iter().flat_map(Path::components) {
        made = Directory::new(made.path().join(name));
        // The kernel's answer to the last one decides: parents may be there and not be ours.
        if let Err(source) = made.make().or_else(|error| if made.exists() { Ok(()) } else { Err(error) }) {
            return Err(NoPlace::Path { path: made.path().to_owned(), source });
        }
    }
    let base = Directory::new(parent);
    if !base.is_ours() && !directory.exists() {
        let source = io::Error::from(Errno::ACCESS);
        return Err(NoPlace::Path { path: directory.path().to_owned(), source });
    }
    Ok(Place { base, directory, leaf: false })
}

impl Place {
    fn make(
        self,
        request: &Request<'_>,
        root: bool,
        mut wanted: Settings,
        mut limits: Vec<LimitState>,
    ) -> Result<Made, CgroupError> {
        if self.leaf && wanted.list.is_empty() && self.base.processes().is_ok_and(|list| !list.is_empty()) {
            // Nothing was asked for, so nobody is moved out of the way: it only counts and kills.
        } else {
            limits.extend(drop_undelegated(&self.base, &mut wanted, request.best_effort)?);
            self.prepare(&wanted.controllers())?;
        }
        make_fresh(&self.directory)?;
        let applied = apply(&self.directory, &wanted, request.best_effort)
            .and_then(|states| restrict_devices(&self.directory, request, root).map(|()| states));
        match applied {
            Ok(states) => limits.extend(states),
            Err(error) => {
                // What could not be limited is not left behind; the first error is the one that tells.
                let _ = self.directory.remove();
                return Err(error);
            }
        }
        let path = self.directory.path().to_owned();
        let cgroup = Cgroup { path, kind: request.kind, unit: None, limits: limits.clone(), holder: None };
        Ok(Made { cgroup: Some(cgroup), limits })
    }

    fn prepare(&self, needed: &[Controller]) -> Result<(), CgroupError> {
        if self.leaf {
            let failed = |source| CgroupError::File { op: "enter", path: self.base.path().to_owned(), source };
            enter_leaf(&self.base).map_err(failed)?;
        } else {
            enable_down_to(&self.base, needed);
        }
        enable(&self.base, needed)
    }
}

/// Puts the rules for devices on, which only root of the host may, and only its containers need.
pub(super) fn restrict_devices(directory: &Directory, request: &Request<'_>, root: bool) -> Result<(), CgroupError> {
    let rules = request.resources.and_then(|resources| resources.devices().as_deref());
    match rules.filter(|rules| root && !rules.is_empty()) {
        Some(rules) => devices::restrict(directory, rules),
        None => Ok(()),
    }
}

/// Enables controllers in the parents that are ours, from the top; the last one's answer decides.
fn enable_down_to(base: &Directory, needed: &[Controller]) {
    let mut parents: Vec<&Path> = base.path().ancestors().skip(1).collect();
    parents.reverse();
    for parent in parents {
        let parent = Directory::new(parent);
        if parent.has("cgroup.subtree_control") && parent.is_ours() {
            for controller in needed.iter().filter(|one| !parent.enabled().contains(one)) {
                let _ = parent.write("cgroup.subtree_control", &format!("+{}", controller.name()));
            }
        }
    }
}

/// Takes out what no controller is there for: an error, or a state each with `best_effort`.
pub(super) fn drop_undelegated(
    base: &Directory,
    wanted: &mut Settings,
    best_effort: bool,
) -> Result<Vec<LimitState>, CgroupError> {
    let present = base.controllers();
    let (kept, lacking): (Vec<_>, Vec<_>) =
        std::mem::take(&mut wanted.list).into_iter().partition(|setting| present.contains(&setting.controller));
    wanted.list = kept;
    if lacking.is_empty() {
        return Ok(Vec::new());
    }
    if best_effort {
        let state = |setting: &super::settings::Setting| {
            let why = format!("the controller {} is not delegated to us", setting.controller.name());
            LimitState::unenforced(&setting.field, &setting.value, &why)
        };
        return Ok(lacking.iter().map(state).collect());
    }
    let mut names: Vec<&str> = lacking.iter().map(|setting| setting.controller.name()).collect();
    names.sort_unstable();
    names.dedup();
    Err(CgroupError::Controllers {
        fields: fields(&lacking),
        controllers: names.join(", "),
        cgroup: base.path().to_owned(),
    })
}

/// Makes the directory; an empty one of the same name belonged to a container that is gone.
fn make_fresh(directory: &Directory) -> Result<(), CgroupError> {
    let failed = |source| CgroupError::File { op: "make", path: directory.path().to_owned(), source };
    match directory.make_new() {
        Err(error) if is(&error, Errno::EXIST) => {
            remove_tree(directory).map_err(failed)?;
            directory.make_new().map_err(failed)
        }
        result => result.map_err(failed),
    }
}

/// Goes to where this process may clone into `directory`: the kernel asks for write permission at the
/// closest cgroup that contains both (cgroup-v2.rst, delegation containment).
pub(super) fn approach(host: &Host, directory: &Directory) {
    let own = host.own_directory();
    let shared = directory.path().ancestors().find(|path| own.path().starts_with(path));
    let permitted = shared.is_some_and(|path| Directory::new(path).is_ours());
    if !permitted {
        // Where this fails the clone says so.
        let _ = systemd::scope(host);
    }
}
