//! `spark-runtime config`: the settings that count, and where each comes from.

use serde_json::{Value, json};

use super::{CliError, Exit, output};
use crate::config::{self, Effective, Settings, Sources};

/// Arguments of `config`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the reference of all settings instead, as Markdown.
    #[arg(long)]
    reference: bool,
    /// Print JSON: a list of objects with `key`, `value` and `source`.
    #[arg(long, conflicts_with = "reference")]
    json: bool,
}

pub(super) fn run(args: &Args, sources: &Sources) -> Result<Exit, CliError> {
    if args.reference {
        output::line(config::reference().trim_end())?;
        return Ok(Exit::Ok);
    }
    let settings = Settings::load(sources)?;
    if args.json {
        let of = |shown: &Effective| json!({"key": shown.key, "value": shown.value, "source": shown.source});
        output::json(&settings.effective().iter().map(of).collect::<Vec<_>>())?;
        return Ok(Exit::Ok);
    }
    output::line(&table(settings.effective()))?;
    Ok(Exit::Ok)
}

fn table(effective: &[Effective]) -> String {
    let rows: Vec<_> =
        effective.iter().map(|shown| (format!("{} = {}", shown.key, text(&shown.value)), shown)).collect();
    // One long address must not push every source off the screen.
    let width =
        rows.iter().map(|(row, _)| row.chars().count()).filter(|width| *width <= 60).max().unwrap_or(0);
    let lines = rows.iter().map(|(row, shown)| format!("{row:width$}  ({})", shown.source));
    lines.collect::<Vec<_>>().join("\n")
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}
