//! Other people's tools, where they are installed.

use std::path::Path;
use std::process::{Command, Output};

/// Whether all tools are here; says so and, in CI, fails if not.
pub fn have(test: &str, tools: &[&str]) -> bool {
    let found = |tool: &&str| {
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|path| path.join(tool).is_file()))
    };
    let missing: Vec<_> = tools.iter().filter(|tool| !found(tool)).collect();
    if missing.is_empty() {
        return true;
    }
    assert!(
        std::env::var("CORACLE_TEST_REQUIRE").map_or(true, |value| value != "all"),
        "{missing:?} are not installed"
    );
    eprintln!("SKIP {test}: {missing:?} are not installed");
    false
}

/// Runs a tool; it must succeed.
pub fn run(directory: &Path, tool: &str, arguments: &[&str]) -> Output {
    let output = Command::new(tool).args(arguments).current_dir(directory).env("HOME", directory).output().expect(tool);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {arguments:?}: {error}");
    output
}

/// Runs skopeo without any policy file.
pub fn skopeo(directory: &Path, arguments: &[&str]) -> Output {
    let temporary = directory.to_str().expect("text");
    run(directory, "skopeo", &[&["--insecure-policy", "--tmpdir", temporary], arguments].concat())
}
