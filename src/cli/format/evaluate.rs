//! Runs a parsed template over one row.

use std::borrow::Cow;

use serde_json::Value;

use super::parse::{Node, Operand, Pipeline};
use super::{FormatError, functions};
use crate::report::one_line;

/// Says what a template is run for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Values as they are, for programs.
    Raw,
    /// Values without control bytes: an image's names must not drive the person's terminal.
    Cell,
    /// Headings instead of values; functions change nothing.
    Heading,
}

/// Objects whose keys are anybody's choice: a key that is missing is no mistake of the template.
const OPEN_OBJECTS: [&str; 12] = [
    "Labels",
    "Annotations",
    "Options",
    "DriverOpts",
    "Networks",
    "Ports",
    "PortBindings",
    "ExposedPorts",
    "Volumes",
    "Sysctls",
    "Tmpfs",
    "Attributes",
];

type Shared<'v> = Cow<'v, Value>;

/// Runs the template and gives its text.
pub fn run(nodes: &[Node], row: &Value, mode: Mode) -> Result<String, FormatError> {
    let mut run = Run { text: String::new(), variables: vec![(String::new(), Cow::Borrowed(row))], mode };
    run.nodes(nodes, &Cow::Borrowed(row))?;
    Ok(run.text)
}

struct Run<'v> {
    text: String,
    variables: Vec<(String, Shared<'v>)>,
    mode: Mode,
}

impl<'v> Run<'v> {
    fn nodes(&mut self, nodes: &[Node], dot: &Shared<'v>) -> Result<(), FormatError> {
        for node in nodes {
            match node {
                Node::Text(text) => self.text.push_str(text),
                Node::Print(pipeline) => {
                    let value = self.pipeline(pipeline, dot)?;
                    if pipeline.variables.is_empty() {
                        self.print(&value);
                    } else {
                        self.declare(pipeline, value)?;
                    }
                }
                Node::Choice { condition, becomes_dot, then, otherwise } => {
                    let known = self.variables.len();
                    let value = self.pipeline(condition, dot)?;
                    if !condition.variables.is_empty() {
                        self.declare(condition, value.clone())?;
                    }
                    match (functions::truth(&value), becomes_dot) {
                        (true, true) => self.nodes(then, &value)?,
                        (true, false) => self.nodes(then, dot)?,
                        (false, _) => self.nodes(otherwise, dot)?,
                    }
                    self.variables.truncate(known);
                }
                Node::Range { over, body, otherwise } => self.range(over, body, otherwise, dot)?,
            }
        }
        Ok(())
    }

    fn print(&mut self, value: &Value) {
        let text = functions::text(value);
        match self.mode {
            Mode::Cell => self.text.push_str(&one_line(&text)),
            Mode::Raw | Mode::Heading => self.text.push_str(&text),
        }
    }

    fn declare(&mut self, pipeline: &Pipeline, value: Shared<'v>) -> Result<(), FormatError> {
        let [name] = pipeline.variables.as_slice() else {
            return Err(FormatError::Syntax("two variables belong to {{range}} only".to_owned()));
        };
        if !pipeline.assigns {
            self.variables.push((name.clone(), value));
            return Ok(());
        }
        let variable = self.variables.iter_mut().rev().find(|(known, _)| known == name);
        variable.ok_or_else(|| FormatError::Syntax(format!("${name} is not declared")))?.1 = value;
        Ok(())
    }

    fn range(
        &mut self,
        over: &Pipeline,
        body: &[Node],
        otherwise: &[Node],
        dot: &Shared<'v>,
    ) -> Result<(), FormatError> {
        let entries = entries(self.pipeline(over, dot)?)?;
        if entries.is_empty() {
            return self.nodes(otherwise, dot);
        }
        let known = self.variables.len();
        for (key, value) in entries {
            match over.variables.as_slice() {
                [] => {}
                [element] => self.variables.push((element.clone(), value.clone())),
                [index, element, ..] => {
                    self.variables.push((index.clone(), Cow::Owned(key)));
                    self.variables.push((element.clone(), value.clone()));
                }
            }
            self.nodes(body, &value)?;
            self.variables.truncate(known);
        }
        Ok(())
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Shared<'v>) -> Result<Shared<'v>, FormatError> {
        let mut last: Option<Shared<'v>> = None;
        for command in &pipeline.commands {
            last = Some(self.command(command, last, dot)?);
        }
        Ok(last.unwrap_or(Cow::Owned(Value::Null)))
    }

    fn command(
        &mut self,
        command: &[Operand],
        piped: Option<Shared<'v>>,
        dot: &Shared<'v>,
    ) -> Result<Shared<'v>, FormatError> {
        let Some((first, rest)) = command.split_first() else {
            return Ok(Cow::Owned(Value::Null));
        };
        let mut arguments = Vec::with_capacity(rest.len() + 1);
        for operand in rest {
            arguments.push(self.operand(operand, dot)?);
        }
        arguments.extend(piped);
        match first {
            Operand::Function(name) => self.call(name, arguments),
            // Docker's rows have one method: {{.Label "key"}}.
            Operand::Fields(names) if !arguments.is_empty() && names.as_slice() == ["Label"] => {
                let key = functions::text(&arguments[0]).into_owned();
                Ok(Cow::Owned(if self.mode == Mode::Heading { label_heading(&key) } else { label(dot, &key) }))
            }
            other if arguments.is_empty() => self.operand(other, dot),
            _ => Err(FormatError::Syntax("only a function takes arguments".to_owned())),
        }
    }

    fn call(&self, name: &str, arguments: Vec<Shared<'v>>) -> Result<Shared<'v>, FormatError> {
        if self.mode == Mode::Heading && functions::shapes_text(name) {
            let heading = arguments.into_iter().find(|value| value.is_string());
            return Ok(heading.unwrap_or(Cow::Owned("".into())));
        }
        functions::call(name, &arguments).map(Cow::Owned)
    }

    fn operand(&mut self, operand: &Operand, dot: &Shared<'v>) -> Result<Shared<'v>, FormatError> {
        match operand {
            Operand::Fields(names) => self.fields(dot.clone(), names),
            Operand::Variable(name, names) => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                let value = found.ok_or_else(|| FormatError::Syntax(format!("${name} is not declared")))?.1.clone();
                self.fields(value, names)
            }
            Operand::Function(name) => self.call(name, Vec::new()),
            Operand::Literal(value) => Ok(Cow::Owned(value.clone())),
            Operand::Group(pipeline, names) => {
                let value = self.pipeline(pipeline, dot)?;
                self.fields(value, names)
            }
        }
    }

    fn fields(&self, mut value: Shared<'v>, names: &[String]) -> Result<Shared<'v>, FormatError> {
        let mut open = false;
        for (depth, name) in names.iter().enumerate() {
            value = match field(value, name) {
                Some(found) => found,
                None if open => Cow::Owned(Value::Null),
                None if self.mode == Mode::Heading => Cow::Owned(heading(name).into()),
                None => return Err(FormatError::NoField(names[..=depth].join("."))),
            };
            open = OPEN_OBJECTS.contains(&name.as_str());
        }
        Ok(value)
    }
}

fn field<'v>(value: Shared<'v>, name: &str) -> Option<Shared<'v>> {
    match value {
        Cow::Borrowed(value) => value.get(name).map(Cow::Borrowed),
        Cow::Owned(Value::Object(mut map)) => map.remove(name).map(Cow::Owned),
        Cow::Owned(_) => None,
    }
}

/// Gives what a range walks over, keys of an object in their order.
fn entries(value: Shared<'_>) -> Result<Vec<(Value, Shared<'_>)>, FormatError> {
    Ok(match value {
        Cow::Borrowed(Value::Array(list)) => {
            list.iter().enumerate().map(|(at, value)| (at.into(), Cow::Borrowed(value))).collect()
        }
        Cow::Owned(Value::Array(list)) => {
            list.into_iter().enumerate().map(|(at, value)| (at.into(), Cow::Owned(value))).collect()
        }
        Cow::Borrowed(Value::Object(map)) => {
            map.iter().map(|(key, value)| (key.as_str().into(), Cow::Borrowed(value))).collect()
        }
        Cow::Owned(Value::Object(map)) => map.into_iter().map(|(key, value)| (key.into(), Cow::Owned(value))).collect(),
        Cow::Borrowed(Value::Null) | Cow::Owned(Value::Null) => Vec::new(),
        _ => return Err(FormatError::Syntax("{{range}} needs a list or an object".to_owned())),
    })
}

/// Gives a label of a row, whose labels are one text `a=b,c=d` as in Docker, or an object.
fn label(row: &Value, key: &str) -> Value {
    match row.get("Labels") {
        Some(Value::Object(map)) => map.get(key).cloned().unwrap_or_else(|| "".into()),
        Some(Value::String(text)) => {
            let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
            pairs.into_iter().find(|(name, _)| *name == key).map_or("", |(_, value)| value).into()
        }
        _ => "".into(),
    }
}

fn label_heading(key: &str) -> Value {
    key.rsplit('.').next().unwrap_or(key).replace(['-', '_'], " ").into()
}

/// Makes a heading of a field's name: `CreatedAt` becomes `CREATED AT`.
fn heading(name: &str) -> String {
    let mut text = String::new();
    let mut lower = false;
    for c in name.chars() {
        if c.is_uppercase() && lower {
            text.push(' ');
        }
        lower = c.is_lowercase();
        text.extend(c.to_uppercase());
    }
    text
}
