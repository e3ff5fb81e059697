//! Launches a container for a case and collects what it says.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::PathBuf;

use coracle_runtime::defaults::{self, SpecOptions};
use coracle_runtime::userns::Ahead;
use coracle_runtime::{
    Gate, HostIds, IdMap, LaunchFailure, LaunchOptions, Rootfs, Running, Stdio, UserNs, idmap, launch,
};
use serde_json::{Value, json};

use crate::place::Place;

/// A container to be.
pub struct Container {
    pub spec: Value,
    pub idmap: IdMap,
    pub rootfs: Rootfs,
    bundle: PathBuf,
    pub gate: Gate,
    pub init_reaper: bool,
    pub die_with_parent: bool,
    pub no_pivot: bool,
    pub keep_fds: Vec<i32>,
}

/// What a container said and how it ended.
#[derive(Debug)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    pub status: i32,
}

pub fn ids(mode: UserNs) -> IdMap {
    let facts = HostIds::probe().expect("ids of the host");
    idmap::choose(mode, &facts).expect("an id map")
}

impl Container {
    /// A default container that runs a shell script.
    pub fn new(place: &Place, script: &str) -> Self {
        let mut spec =
            serde_json::to_value(defaults::spec(&SpecOptions { map_root_to: Some((0, 0)), ..SpecOptions::default() }))
                .expect("a spec");
        spec["process"]["args"] = json!(["sh", "-c", script]);
        spec["process"]["terminal"] = json!(false);
        spec["process"]["env"] = json!(["PATH=/bin", "A=1"]);
        spec["root"]["readonly"] = json!(false);
        // The default hard limit of open files may be above this host's.
        spec["process"]["rlimits"] = json!([]);
        Self {
            spec,
            idmap: ids(UserNs::Auto),
            rootfs: Rootfs::Directory(place.rootfs()),
            bundle: place.bundle(),
            gate: Gate::Immediate,
            init_reaper: false,
            die_with_parent: true,
            no_pivot: false,
            keep_fds: Vec::new(),
        }
    }

    /// Adds a mount.
    pub fn mount(&mut self, destination: &str, kind: &str, source: &str, options: &[&str]) -> &mut Self {
        let mount = json!({"destination": destination, "type": kind, "source": source, "options": options});
        self.spec["mounts"].as_array_mut().expect("mounts").push(mount);
        self
    }

    /// Launches with these standard streams.
    pub fn launch(&self, stdio: Stdio<'_>) -> Result<Running, LaunchFailure> {
        self.launch_with(stdio, None)
    }

    /// Launches with namespaces that were begun before.
    pub fn launch_with(&self, stdio: Stdio<'_>, ahead: Option<Ahead>) -> Result<Running, LaunchFailure> {
        let spec = serde_json::from_value(self.spec.clone()).expect("a spec");
        let mut options = LaunchOptions::new("case", &spec, &self.bundle, self.rootfs.clone());
        options.idmap = Some(self.idmap.clone());
        options.ahead = ahead;
        options.stdio = stdio;
        options.gate = self.gate.clone();
        options.init_reaper = self.init_reaper;
        options.die_with_parent = self.die_with_parent;
        options.no_pivot = self.no_pivot;
        options.keep_fds = &self.keep_fds;
        launch(options)
    }

    /// Runs to the end.
    pub fn try_run(&self) -> Result<Output, LaunchFailure> {
        collect(|stdio| self.launch(stdio))
    }

    /// Runs to the end; the launch must succeed.
    pub fn run(&self) -> Output {
        self.try_run().unwrap_or_else(|failure| panic!("launch: {failure} ({failure:?})"))
    }

    /// Runs to the end successfully and returns its output without the last newline.
    pub fn says(&self) -> String {
        let output = self.run();
        assert_eq!(output.status, 0, "{output:?}");
        output.stdout.trim_end().to_owned()
    }

    /// The launch must fail.
    pub fn fails(&self) -> LaunchFailure {
        match self.try_run() {
            Err(failure) => failure,
            Ok(output) => panic!("launched, and said {output:?}"),
        }
    }
}

/// Starts something with pipes and reads them to the end.
pub fn collect(start: impl FnOnce(Stdio<'_>) -> Result<Running, LaunchFailure>) -> Result<Output, LaunchFailure> {
    let null = fs_err::File::open("/dev/null").expect("opened");
    let (mut out_read, out_write) = std::io::pipe().expect("a pipe");
    let (mut err_read, err_write) = std::io::pipe().expect("a pipe");
    let running = start(Stdio::Fds([null.as_fd(), out_write.as_fd(), err_write.as_fd()]))?;
    drop((out_write, err_write));
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    // What the cases print to stderr fits into the pipe, so one after the other is fine.
    out_read.read_to_end(&mut stdout).expect("read");
    err_read.read_to_end(&mut stderr).expect("read");
    let exit = running.wait().expect("waited");
    Ok(Output {
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
        status: exit.status(),
    })
}
