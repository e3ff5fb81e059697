//! Says to the linker how coracle's programs are linked; knows nothing of their code.
//!
//! Half of what a start of the program read from its file was a list of addresses to put right, three words
//! each. Packed (DT_RELR) it is a fiftieth of that. The kernel maps 64 KiB around every page of code that is
//! touched, so what a container's life uses stands together in a release: `used.ld`, where the linker takes it.

#![expect(clippy::disallowed_methods, reason = "cargo speaks by variables")]

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The first version of glibc that puts packed addresses right in a static program.
const GLIBC_MIN: (u32, u32) = (2, 36);

/// Which functions stand together, for the linker (tests/bench/order.py).
const USED: &str = "src/used.ld";

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    println!("cargo::rerun-if-changed={USED}");
    let variable = |name: &str| env::var(name).unwrap_or_default();
    // The C library of another machine is not the one that can be asked here.
    let native = variable("HOST") == variable("TARGET") && variable("CARGO_CFG_TARGET_ENV") == "gnu";
    if !native {
        return;
    }
    if glibc().is_some_and(|version| version >= GLIBC_MIN) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    let used = Path::new(&variable("CARGO_MANIFEST_DIR")).join(USED);
    if variable("PROFILE") == "release" && links_with(&used) {
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", used.display());
    }
}

/// Whether the linker understands a script: not every one does.
fn links_with(script: &Path) -> bool {
    let place = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let (program, source) = (place.join("linked"), place.join("linked.rs"));
    let mut compiler = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    compiler.arg(&source).arg("-o").arg(&program).args(["-C", "target-feature=+crt-static", "-C"]);
    compiler.arg(format!("link-arg=-Wl,-T,{}", script.display()));
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        compiler.arg("-C").arg(format!("linker={linker}"));
    }
    let quiet = |command: &mut Command| {
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    std::fs::write(&source, "fn main() {}").is_ok() && quiet(&mut compiler) && quiet(&mut Command::new(&program))
}

/// The version of this machine's C library: `glibc 2.36`.
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
