//! The built-in image `coracle/hello`: this very binary in an otherwise empty root filesystem.
//!
//! It needs no registry, no network and no layer, so it shows on any host whether containers work.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use coracle_images::Reference;
use oci_spec::image::{Config, ConfigBuilder};

use super::EngineError;

/// The name a person types.
pub const NAME: &str = "coracle/hello";
/// The hidden first argument under which the binary tells what it sees.
pub const INSIDE_ARGUMENT: &str = "__hello";
const PROGRAM: &str = "coracle";

/// Says whether a reference means the built-in image.
pub fn is_hello(image: &str) -> bool {
    let parsed: Result<Reference, _> = image.parse();
    parsed.is_ok_and(|reference| reference.to_string() == format!("docker.io/{NAME}:latest"))
}

/// Gives the image's configuration.
pub fn config() -> Config {
    let entrypoint = vec![format!("/{PROGRAM}"), INSIDE_ARGUMENT.to_owned()];
    ConfigBuilder::default().entrypoint(entrypoint).working_dir("/").build().unwrap_or_default()
}

/// Makes the root filesystem in an empty directory.
///
/// A copy, not a bind of the running binary: nothing inside a container may lead to the file that
/// the host executes.
pub fn fill(rootfs: &Path) -> Result<(), EngineError> {
    let program = rootfs.join(PROGRAM);
    fs_err::copy("/proc/self/exe", &program).map_err(EngineError::State)?;
    fs_err::set_permissions(&program, PermissionsExt::from_mode(0o755)).map_err(EngineError::State)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_name() {
        assert!(is_hello("coracle/hello") && is_hello("docker.io/coracle/hello:latest"));
        for other in ["hello", "coracle/hello:1", "quay.io/coracle/hello", "coracle/hello2", ""] {
            assert!(!is_hello(other), "{other}");
        }
    }
}
