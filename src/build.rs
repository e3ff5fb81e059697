//! Says to the linker how coracle's programs are linked; knows nothing of their code.
//!
//! Half of what a start of the program read from its file was a list of addresses to put right, three words
//! each. Packed (DT_RELR) it is a fiftieth of that.

#![expect(clippy::disallowed_methods, reason = "cargo speaks by variables")]

use std::process::Command;

/// The first version of glibc that puts packed addresses right in a static program.
const GLIBC_MIN: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    // The C library of another machine is not the one that can be asked here.
    let native = variable("HOST") == variable("TARGET") && variable("CARGO_CFG_TARGET_ENV") == "gnu";
    if native && glibc().is_some_and(|version| version >= GLIBC_MIN) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of this machine's C library: `glibc 2.36`.
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
