//! `spec`: a configuration to start from.

use std::io::Write;
use std::process::ExitCode;

use coracle_runtime::bundle::CONFIG;
use coracle_runtime::defaults::{self, MountOptions, SpecOptions};

use super::arguments::{Given, Grammar, Words, switch, valued};
use super::error::OciError;

/// `spec`.
pub const SPEC: Grammar = Grammar {
    name: "spec",
    about: "Write a config.json with the defaults",
    flags: &[&[
        valued("bundle", "DIR", "The bundle's directory [default: .]").short('b'),
        switch("rootless", "For a user without root: root inside is the caller, and the network is the host's"),
    ]],
    words: Words::None,
};

/// Runs `spec`.
pub fn spec(given: &Given) -> Result<ExitCode, OciError> {
    let path = given.path("bundle").unwrap_or_default().join(CONFIG);
    let mut options = SpecOptions::default();
    if given.has("rootless") {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        options.map_root_to = Some((uid, gid));
        options.mounts = MountOptions { own_network: false, tty_group_mapped: false, ..MountOptions::default() };
    }
    let mut text = serde_json::to_vec_pretty(&defaults::spec(&options)).map_err(OciError::Json)?;
    text.push(b'\n');
    let mut file = match fs_err::OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(OciError::ConfigExists(path));
        }
        Err(error) => {
            return Err(OciError::file("make", &path, &error));
        }
    };
    file.write_all(&text).map_err(|error| OciError::file("write", &path, &error))?;
    Ok(ExitCode::SUCCESS)
}
