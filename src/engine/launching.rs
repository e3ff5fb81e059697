//! From a container's directory to its running first process, in the foreground and under a shim alike.

use std::os::fd::AsFd;
use std::path::Path;

use coracle_images::flatten;
use coracle_runtime::cgroup::Cgroup;
use coracle_runtime::{
    LaunchFailure, LaunchOptions, Namespaces, Rootfs, Running, Stage, Stdio, failpoint, host, launch,
};
use coracle_shim::Keeper;
use coracle_shim::disk::Disk;
use oci_spec::runtime::Spec;

use super::container::{ContainerDir, short_id};
use super::network::Plan;
use super::record::Record;
use super::{EngineError, confinement, elsewhere, quota};

/// Is everything a launch needs.
pub struct Launching<'a> {
    pub root: &'a Path,
    pub directory: &'a ContainerDir,
    pub record: &'a mut Record,
    pub spec: &'a Spec,
}

/// Is a launched container; the keeper ends its network helper, the disk ends with its mount.
pub struct Launched {
    pub running: Running,
    pub keeper: Option<Keeper>,
    pub disk: Option<Disk>,
    pub cgroup: Option<Cgroup>,
}

/// Are the processes beside a container.
#[derive(Default)]
struct Helpers {
    keeper: Option<Keeper>,
    disk: Option<Disk>,
}

impl Helpers {
    /// Ends them; the container is gone.
    fn finish(self) {
        if let Some(keeper) = self.keeper {
            keeper.finish();
        }
        if let Some(disk) = self.disk {
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
            Ok((running, helpers)) => Ok(Launched { running, keeper: helpers.keeper, disk: helpers.disk, cgroup }),
            Err(error) => {
                if let Some(cgroup) = &cgroup {
                    // Nothing is in it; the failure that is reported is the launch's.
                    let _ = cgroup.remove();
                }
                Err(error)
            }
        }
    }

    fn launch_once(&self, stdio: Stdio<'_>, cgroup: Option<&Cgroup>) -> Result<(Running, Helpers), EngineError> {
        let cgroup = cgroup.map(Cgroup::fd).transpose()?;
        let rootfs = match &self.record.disk {
            Some(_) => quota::moved(&self.directory.path, &self.record.rootfs)?,
            None => self.record.rootfs.clone(),
        };
        let mut helpers = Helpers::default();
        let mut failure: Option<EngineError> = None;
        let running = {
            let (disk, keeper) = (&mut helpers.disk, &mut helpers.keeper);
            let failure = std::cell::RefCell::new(&mut failure);
            let mut serve = |pid: i32| {
                let Some(limit) = &self.record.disk else { return Ok(()) };
                match quota::start(&self.directory.path, limit, pid) {
                    Ok(started) => *disk = Some(started),
                    Err(error) => {
                        **failure.borrow_mut() = Some(error.into());
                        return Err(LaunchFailure::rule(Stage::Rootfs, "disk limit", "cannot be set"));
                    }
                }
                Ok(())
            };
            let mut connect = |namespaces: &Namespaces<'_>| {
                failpoint::hit("netns_made").map_err(|_| failed("netns_made"))?;
                let Plan::Pasta(pasta) = &self.record.network else {
                    return Ok(());
                };
                match pasta.start(namespaces.pid, &self.directory.path) {
                    Ok(started) => {
                        *keeper = Some(started);
                        failpoint::hit("helper_started").map_err(|_| failed("helper_started"))
                    }
                    Err(error) => {
                        **failure.borrow_mut() = Some(error.into());
                        Err(LaunchFailure::rule(Stage::Network, "pasta", "cannot connect the container"))
                    }
                }
            };
            launch(LaunchOptions {
                idmap: Some(self.record.idmap.clone()),
                stdio,
                die_with_parent: true,
                init_reaper: self.record.init,
                cgroup: cgroup.as_ref().map(AsFd::as_fd),
                on_mapped: Some(&mut serve),
                on_namespaces: Some(&mut connect),
                ..LaunchOptions::new(&self.directory.id, self.spec, &self.directory.path, rootfs)
            })
        };
        match (running, failure) {
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
        elsewhere::call(&self.record.idmap, || Ok(flatten(lower, &path)?))?;
        self.record.rootfs = Rootfs::Directory(path);
        Ok(self.directory.publish("container.json", &*self.record)?)
    }
}

fn failed(name: &str) -> LaunchFailure {
    LaunchFailure::new(Stage::Network, "pass", name, rustix::io::Errno::IO)
}
