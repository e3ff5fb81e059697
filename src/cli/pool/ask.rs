//! `pool run`: asks for an instance.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use coracle_scheduler::client::Pool;
use coracle_scheduler::model::Name;
use serde_json::{Value, json};

use super::spec::{PlaceArgs, ProcessArgs, RoomArgs};
use super::word;
use crate::cli::error::{CliError, line, note};

/// How often an instance is looked at while somebody waits for it, at first: a cached image starts in a moment.
const LOOK: Duration = Duration::from_millis(20);
/// How often in the end.
const LOOK_MAX: Duration = Duration::from_millis(200);

/// Ask for an instance and wait until it runs; prints its name
#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct RunArgs {
    /// Show this help
    #[arg(long, action = clap::ArgAction::HelpLong)]
    help: Option<bool>,
    /// Name of the instance [default: USER-PROVIDER-NUMBER]
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
    /// Do not wait until it runs
    #[arg(short, long)]
    detach: bool,
    /// Tell where it would be placed, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub place: PlaceArgs,
    #[command(flatten)]
    pub process: ProcessArgs,
    #[command(flatten)]
    pub limits: RoomArgs,
    /// The image
    pub image: String,
    /// Command and arguments [default: the image's]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Asks for an instance.
pub fn run(pool: &Pool, args: RunArgs) -> Result<ExitCode, CliError> {
    let mut body = json!({ "spec": args.spec(pool)? });
    if let Some(name) = &args.name {
        body["name"] = json!(name);
    }
    if args.dry_run {
        crate::cli::table::print_json(&pool.post("/v1/instances/dry-run", &body)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let made = pool.post("/v1/instances", &body)?;
    if args.detach {
        line(word(&made, "name"));
        return Ok(ExitCode::SUCCESS);
    }
    wait_until_it_runs(pool, &made, true)
}

/// Waits, and says why it takes so long.
pub fn wait_until_it_runs(pool: &Pool, made: &Value, print: bool) -> Result<ExitCode, CliError> {
    let (mut said, mut look) = (String::new(), LOOK);
    loop {
        let now = pool.get(&format!("/v1/instances/{}", made["id"].as_str().unwrap_or_default()))?;
        let (state, reason, name) = (word(&now, "state"), word(&now, "reason"), word(&now, "name"));
        match state {
            "running" => {
                if print {
                    line(name);
                }
                return Ok(ExitCode::SUCCESS);
            }
            "failed" | "lost" => return Err(CliError::message(format!("the instance {state}: {reason}"))),
            "stopped" => {
                if print {
                    line(name);
                }
                note(&format!("note: it has ended: {reason}"));
                return Ok(ExitCode::SUCCESS);
            }
            _ if said != reason => {
                said = reason.to_owned();
                note(&format!("note: {state}: {reason}"));
            }
            _ => {}
        }
        std::thread::sleep(look);
        look = (look + look / 8).min(LOOK_MAX);
    }
}
