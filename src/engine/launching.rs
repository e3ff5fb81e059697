//! From a container's directory to its running first process, in the foreground and under a shim alike.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;

use coracle_images::{flatten, inventory};
use coracle_runtime::cgroup::Cgroup;
use coracle_runtime::userns::Ahead;
use coracle_runtime::{
    LaunchFailure, LaunchOptions, Namespaces, Rootfs, Running, Stage, Stdio, failpoint, host, launch,
};
use coracle_shim::Keeper;
use coracle_shim::disk::Disk;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::container::{ContainerDir, short_id};
use super::network::{Place, Plan};
use super::networks::watch::{self, LinkProcess, Ready};
use super::record::Record;
use super::transfer::TransferError;
use super::{EngineError, confinement, elsewhere, networks, quota};

/// What the copy of an image was like before its container began, in the container's directory.
pub const INVENTORY: &str = "rootfs.inventory";

/// Is everything a launch needs.
pub struct Launching<'a> {
    pub root: &'a Path,
    pub directory: &'a ContainerDir,
    pub record: &'a mut Record,
    pub spec: &'a Spec,
    /// The user namespace that was begun for the first attempt.
    pub ahead: Option<Ahead>,
}

/// Is a launched container.
pub struct Launched {
    pub running: Running,
    pub helpers: Helpers,
    pub cgroup: Option<Cgroup>,
}

/// Are the processes beside a container: one ends its network helper, one plugs it into its networks,
/// one serves its limited disk.
#[derive(Default)]
pub struct Helpers {
    keeper: Option<Keeper>,
    link: Option<LinkProcess>,
    disks: Vec<Disk>,
}

impl Helpers {
    /// Ends them; the container is gone.
    pub fn finish(self) {
        if let Some(keeper) = self.keeper {
            keeper.finish();
        }
        if let Some(link) = self.link {
            link.finish();
        }
        for disk in self.disks {
            disk.finish();
        }
    }
}

impl Launching<'_> {
    /// Launches; where overlayfs is refused, once more on a copy of the image, which `note` is told.
    ///
    /// With `accounted` it gets a cgroup wherever one can be had, else only where a limit was asked for.
    pub fn launch(
        &mut self,
        stdio: Stdio<'_>,
        accounted: bool,
        note: &mut dyn FnMut(&str),
    ) -> Result<Launched, EngineError> {
        let cgroup = confinement::make(self.directory, self.record, self.spec, accounted, note)?;
        failpoint::hit("cgroup_made")?;
        let mut outcome = self.launch_once(stdio, cgroup.as_ref());
        if let Some(refusal) = self.overlay_refused(&outcome) {
            note(&format!("overlayfs does not work here ({refusal}), so the image is copied"));
            outcome = self.copy_rootfs().and_then(|()| self.launch_once(stdio, cgroup.as_ref()));
        }
        match outcome {
            Ok((running, helpers)) => Ok(Launched { running, helpers, cgroup }),
            Err(error) => {
                if let Some(cgroup) = &cgroup {
                    // Nothing is in it; the failure that is reported is the launch's.
                    let _ = cgroup.remove();
                }
                Err(error)
            }
        }
    }

    fn launch_once(&mut self, stdio: Stdio<'_>, cgroup: Option<&Cgroup>) -> Result<(Running, Helpers), EngineError> {
        let cgroup = cgroup.map(Cgroup::fd).transpose()?;
        let mut spec = Cow::Borrowed(self.spec);
        if let Plan::Container(id) = &self.record.network {
            share_network(self.root, id, self.record, spec.to_mut())?;
        }
        let ready = match &self.record.network {
            Plan::Networks(plan) => Some(watch::prepare(self.root, plan)?),
            _ => None,
        };
        let rootfs = match &self.record.disk {
            Some(limit) => quota::moved(&self.directory.path, limit, &self.record.rootfs)?,
            None => self.record.rootfs.clone(),
        };
        let volumes = match &self.record.disk {
            Some(_) => quota::own_volumes(self.root, self.record),
            None => Vec::new(),
        };
        if let (Some(limit), false) = (&self.record.disk, volumes.is_empty()) {
            quota::move_volumes(&self.directory.path, limit, spec.to_mut(), &volumes);
        }
        let limited = quota::start_volume(self.root, self.directory, self.record, &mut spec)?;
        let ahead = self.ahead.take();
        let helpers = RefCell::new(Helpers::default());
        let failure: RefCell<Option<EngineError>> = RefCell::new(None);
        let running = {
            let mut serve = |pid: i32| {
                let own = self.record.disk.as_ref();
                let own = own.map(|limit| quota::start(&self.directory.path, limit, &volumes, pid));
                for started in own.into_iter().chain(limited.iter().map(|volume| volume.start(pid))) {
                    match started {
                        Ok(started) => helpers.borrow_mut().disks.extend(started),
                        Err(error) => {
                            failure.replace(Some(error.into()));
                            return Err(LaunchFailure::rule(Stage::Rootfs, "disk limit", "cannot be set"));
                        }
                    }
                }
                Ok(())
            };
            let mut connect = |namespaces: &Namespaces<'_>| {
                failpoint::hit("netns_made").map_err(|_| failed("netns_made"))?;
                if let Err(error) = self.connect(ready.as_ref(), namespaces, &mut helpers.borrow_mut()) {
                    failure.replace(Some(error));
                    return Err(LaunchFailure::rule(Stage::Network, "network", "cannot be connected"));
                }
                failpoint::hit("helper_started").map_err(|_| failed("helper_started"))
            };
            launch(LaunchOptions {
                idmap: Some(self.record.idmap.clone()),
                ahead,
                stdio,
                die_with_parent: true,
                init_reaper: self.record.init,
                cgroup: cgroup.as_ref().map(AsFd::as_fd),
                nest: ready.as_ref().map(Ready::nest),
                on_mapped: Some(&mut serve),
                on_namespaces: Some(&mut connect),
                ..LaunchOptions::new(&self.directory.id, &spec, &self.directory.path, rootfs)
            })
        };
        let helpers = helpers.into_inner();
        match (running, failure.into_inner()) {
            (Ok(running), None) => Ok((running, helpers)),
            (result, failure) => {
                helpers.finish();
                match (failure, result) {
                    (Some(error), _) => Err(error),
                    (None, Err(source)) => {
                        Err(EngineError::Launch { id: short_id(&self.directory.id).to_owned(), source })
                    }
                    (None, Ok(running)) => Ok((running, Helpers::default())),
                }
            }
        }
    }

    /// Connects the container while it waits.
    fn connect(
        &self,
        ready: Option<&Ready>,
        namespaces: &Namespaces<'_>,
        helpers: &mut Helpers,
    ) -> Result<(), EngineError> {
        if let (Some(ready), Plan::Networks(plan)) = (ready, &self.record.network) {
            helpers.link = Some(ready.connect(self.root, self.record, plan, namespaces)?);
        }
        if let Plan::Pasta(outside) = &self.record.network {
            let place = Place::Container { pid: namespaces.pid, user: namespaces.user, net: namespaces.net };
            helpers.keeper = Some(outside.start(place, &self.directory.path)?);
        }
        if let Some(link) = &helpers.link {
            link.wait()?;
        }
        Ok(())
    }

    /// Says why overlayfs is refused, if a launch failed at its root filesystem and a trial fails too.
    fn overlay_refused<T>(&self, outcome: &Result<T, EngineError>) -> Option<LaunchFailure> {
        let overlay = matches!(self.record.rootfs, Rootfs::Overlay { .. });
        match outcome {
            Err(EngineError::Launch { source, .. }) if overlay && source.stage == Stage::Rootfs => {
                host::overlay_works(self.root).err()
            }
            _ => None,
        }
    }

    /// Replaces the overlay by a plain directory with the layers' merged content.
    fn copy_rootfs(&mut self) -> Result<(), EngineError> {
        let Rootfs::Overlay { lower, .. } = &self.record.rootfs else { return Ok(()) };
        let path = self.directory.make_dir("rootfs", 0o755)?;
        let index = self.directory.path.join(INVENTORY);
        elsewhere::call(&self.record.idmap, || {
            flatten(lower, &path)?;
            // What the container changes is told by it later: `diff`.
            let mut out = std::io::BufWriter::new(fs_err::File::create(&index)?);
            inventory::take(&path, &mut out).map_err(TransferError::from)?;
            Ok(out.flush()?)
        })?;
        self.record.rootfs = Rootfs::Directory(path);
        Ok(self.directory.publish("container.json", &*self.record)?)
    }
}

/// Puts the namespaces of another container, as it runs now, into a specification.
///
/// The user namespace too: it owns the network, and without it neither could be joined.
fn share_network(root: &Path, id: &str, record: &Record, spec: &mut Spec) -> Result<(), EngineError> {
    let other = networks::plan::shared(root, id)?;
    if other.record.idmap != record.idmap {
        return Err(networks::NetworksError::OtherIds(other.record.called().to_owned()).into());
    }
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    let mut list = linux.namespaces().clone().unwrap_or_default();
    for namespace in &mut list {
        let name = match namespace.typ() {
            LinuxNamespaceType::User => "user",
            LinuxNamespaceType::Network => "net",
            _ => continue,
        };
        namespace.set_path(Some(format!("/proc/{}/ns/{name}", other.pid()).into()));
    }
    linux.set_namespaces(Some(list)).set_uid_mappings(None).set_gid_mappings(None);
    Ok(())
}

fn failed(name: &str) -> LaunchFailure {
    LaunchFailure::new(Stage::Network, "pass", name, rustix::io::Errno::IO)
}
