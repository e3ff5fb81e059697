//! `coracle system boot` and `coracle system install-unit`: containers that come back with the machine.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::error::{CliError, line, note};
use crate::engine::{Engine, containers, lifecycle, sharing};
use crate::env;
use crate::report;

/// Where systemd looks for a user's own units (systemd.unit(5)), below `$XDG_CONFIG_HOME`.
const UNIT: &str = "systemd/user/coracle.service";

/// Start the containers whose restart policy wants it after a reboot
#[derive(Args)]
pub struct BootArgs {}

/// Starts them; the exit code says whether all of them run.
pub fn boot(root: Option<PathBuf>, _args: BootArgs) -> Result<ExitCode, CliError> {
    sharing::protect(root.as_ref())?;
    let engine = Engine::open(root)?;
    let wanted = lifecycle::wanted_after_boot(&engine);
    containers::sweep(&engine);
    let mut failed = false;
    for (id, called) in wanted {
        match lifecycle::start_and_leave(&engine, &id) {
            Ok(()) => line(&called),
            Err(error) => {
                failed = true;
                note(&format!("error: {called}: {}", report::one_line(&report::chain(&error))));
            }
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Write a systemd user unit that runs `coracle system boot` when the machine starts
#[derive(Args)]
pub struct InstallUnitArgs {}

/// Writes the unit and says how to switch it on.
pub fn install_unit(root: Option<PathBuf>, _args: InstallUnitArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    let service = "Type=oneshot\nRemainAfterExit=yes\nKillMode=none";
    let what = "containers of coracle that restart with the machine";
    let path = write_unit(UNIT, what, service, engine.root(), "system boot")?;
    line(&path.display().to_string());
    note("hint: systemctl --user enable coracle.service, and loginctl enable-linger so that it does not wait for you");
    Ok(ExitCode::SUCCESS)
}

/// Writes a user unit that runs this program; `name` is below `$XDG_CONFIG_HOME`.
pub fn write_unit(name: &str, what: &str, service: &str, root: &Path, command: &str) -> Result<PathBuf, CliError> {
    let home = || CliError::message("no home directory: neither XDG_CONFIG_HOME nor HOME is set");
    let path = env::xdg_config_home().or_else(|| Some(env::home()?.join(".config"))).ok_or_else(home)?.join(name);
    let program = fs_err::read_link("/proc/self/exe")?;
    if let Some(parent) = path.parent() {
        fs_err::create_dir_all(parent)?;
    }
    let (program, state) = (program.display().to_string(), root.display().to_string());
    fs_err::write(&path, unit(what, service, &program, &state, command))?;
    Ok(path)
}

/// Gives the unit's text (systemd.service(5)); a path is quoted, and its percent signs are no specifiers. It stands behind
/// the scope of the containers, so that it ends before them (systemd.unit(5)): an agent must not take their end at a
/// shutdown for the end of their work.
fn unit(what: &str, service: &str, program: &str, state: &str, command: &str) -> String {
    let quoted = |path: &str| {
        let escaped = path.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
        format!("\"{escaped}\"")
    };
    format!(
        "[Unit]\nDescription={what}\nAfter=network-online.target coracle.scope\n\n\
         [Service]\n{service}\n\
         ExecStart={} --root {} {command}\n\n[Install]\nWantedBy=default.target\n",
        quoted(program),
        quoted(state)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_paths_stay_one_word() {
        let text = unit("x", "Type=exec", "/a b/100%/\"x\"$y", "/r", "system boot");
        assert!(text.contains("ExecStart=\"/a b/100%%/\\\"x\\\"$$y\" --root \"/r\" system boot"), "{text}");
    }
}
