//! `pool events`: what happened, and what happens.

use std::io::Write as _;

use clap::Args;
use coracle_scheduler::client::Pool;
use serde_json::{Value, json};

use super::word;
use crate::cli::error::CliError;
use crate::cli::format::Format;

/// Show what happened in the pool; each event has a number, by which a later call goes on
#[derive(Args)]
pub struct EventsArgs {
    /// Go on with what happens, also after the connection was cut
    #[arg(short, long)]
    follow: bool,
    /// Only events after this number [default: all that are kept]
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    after: u64,
    /// json, or a Go template such as '{{.Kind}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Prints events.
pub fn events(pool: &Pool, args: &EventsArgs) -> Result<(), CliError> {
    const COLUMNS: &str = "{{.Number}}\t{{.Kind}}\t{{.Subject}}\t{{.Text}}";
    let format = Format::listing(args.format.as_deref(), COLUMNS)?;
    let row = |event: &Value| {
        json!({
            "Number": event["seq"], "Time": event["at_ms"], "Kind": word(event, "kind"),
            "Subject": word(event, "subject"), "Text": word(event, "text"),
        })
    };
    if !args.follow {
        let events: Vec<Value> = pool.list_after("/v1/events", args.after)?.iter().map(row).collect();
        return Ok(format.print(&events)?);
    }
    let line = |event: &Value| -> std::io::Result<()> {
        let row = row(event);
        match &args.format {
            None => crate::cli::error::line(&format!(
                "{} {} {} {}",
                row["Number"],
                word(&row, "Kind"),
                word(&row, "Subject"),
                word(&row, "Text")
            )),
            Some(_) => format.print(&[row]).map_err(std::io::Error::other)?,
        }
        std::io::stdout().flush()
    };
    Ok(pool.follow("/v1/events", args.after, line)?)
}
