//! `--format`: JSON, or a Go template as Docker's users write it, with or without `table`.
//!
//! ```text
//! json                         one JSON document a row
//! table {{.ID}}\t{{.Names}}    aligned columns under Docker's headings
//! {{.Names}}                   one line a row
//! ```
//! The templates are a subset of Go's text/template: fields, variables, pipelines, `if`, `range`, `with`
//! and the functions of [`functions`]. Whatever is not in the subset is refused by its name.

mod columns;
mod evaluate;
mod functions;
mod lexer;
mod parse;
mod verbs;

use std::io::Write;

use serde_json::Value;

pub use columns::align;
pub use evaluate::Mode;
use parse::Node;

/// Longer than any template a person writes; bounds the work of parsing.
const TEMPLATE_BYTES_MAX: usize = 64 << 10;

/// Says why a `--format` cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FormatError {
    #[error("--format: {0} is not implemented")]
    Refused(String),
    #[error("--format: {0}")]
    Syntax(String),
    #[error("--format: there is no field {0:?} here")]
    NoField(String),
    #[error("--format: {function}: {reason}")]
    Call { function: String, reason: String },
    #[error("--format: the template is longer than {TEMPLATE_BYTES_MAX} bytes")]
    TooLong,
}

/// Is a format that was understood.
#[derive(Debug)]
pub struct Format {
    kind: Kind,
    headings: &'static [(&'static str, &'static str)],
    own_columns: bool,
}

#[derive(Debug)]
enum Kind {
    Json,
    Lines(Vec<Node>),
    Table(Vec<Node>),
}

impl Format {
    /// Parses what the person gave.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        if text.len() > TEMPLATE_BYTES_MAX {
            return Err(FormatError::TooLong);
        }
        let kind = match text.strip_prefix("table") {
            _ if text == "json" => Kind::Json,
            Some(template) if template.starts_with(char::is_whitespace) || template.starts_with("{{") => {
                Kind::Table(parse::template(template.trim_start())?)
            }
            Some("") => return Err(FormatError::Syntax("\"table\" needs a template here".to_owned())),
            _ => Kind::Lines(parse::template(text)?),
        };
        Ok(Self { kind, headings: &[], own_columns: false })
    }

    /// Parses what the person gave to a listing; nothing or a bare `table` means the listing's own columns.
    pub fn listing(asked: Option<&str>, columns: &str) -> Result<Self, FormatError> {
        match asked {
            None | Some("" | "table") => {
                Ok(Self { kind: Kind::Table(parse::template(columns)?), headings: &[], own_columns: true })
            }
            Some(text) => Self::parse(text),
        }
    }

    /// Names the headings of the fields whose heading is not just their own name.
    pub fn headed(mut self, headings: &'static [(&'static str, &'static str)]) -> Self {
        self.headings = headings;
        self
    }

    /// Says whether nothing but the listing's own columns is shown.
    pub fn shows_own_columns(&self) -> bool {
        self.own_columns
    }

    /// Says whether this is `json`, for commands that show one document and not rows.
    pub fn is_json(&self) -> bool {
        matches!(self.kind, Kind::Json)
    }

    /// Writes the rows; that a reader has gone away is no error.
    pub fn write(&self, out: &mut dyn Write, rows: &[Value]) -> Result<(), FormatError> {
        let text = match &self.kind {
            Kind::Json => rows.iter().map(|row| format!("{row}\n")).collect(),
            Kind::Lines(nodes) => {
                let mut text = String::new();
                for row in rows {
                    text.push_str(&evaluate::run(nodes, row, Mode::Raw)?);
                    text.push('\n');
                }
                text
            }
            Kind::Table(nodes) => {
                let headings = self.headings.iter().map(|(field, text)| ((*field).to_owned(), (*text).into()));
                let mut lines = vec![evaluate::run(nodes, &Value::Object(headings.collect()), Mode::Heading)?];
                for row in rows {
                    lines.push(evaluate::run(nodes, row, Mode::Cell)?);
                }
                columns::align(&lines)
            }
        };
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        Ok(())
    }

    /// Writes the rows to standard output; says whether anybody still reads it.
    pub fn print_open(&self, rows: &[Value]) -> Result<bool, FormatError> {
        let mut text = Vec::new();
        self.write(&mut text, rows)?;
        let mut out = std::io::stdout().lock();
        Ok(out.write_all(&text).and_then(|()| out.flush()).is_ok())
    }

    /// Writes the rows to standard output.
    pub fn print(&self, rows: &[Value]) -> Result<(), FormatError> {
        self.write(&mut std::io::stdout().lock(), rows)
    }

    /// Gives one row as text, without the end of the line: for `events` and others that never end.
    pub fn line(&self, row: &Value) -> Result<String, FormatError> {
        match &self.kind {
            Kind::Json => Ok(row.to_string()),
            Kind::Lines(nodes) => evaluate::run(nodes, row, Mode::Raw),
            Kind::Table(nodes) => evaluate::run(nodes, row, Mode::Cell),
        }
    }
}

#[cfg(test)]
mod tests;
