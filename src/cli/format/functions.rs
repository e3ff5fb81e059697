//! The functions that templates may call, with the meaning that Go and Docker give them.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value;

use super::{FormatError, verbs};

/// The functions, and whether a heading passes through them unchanged.
const FUNCTIONS: [(&str, bool); 23] = [
    ("json", true),
    ("upper", true),
    ("lower", true),
    ("title", true),
    ("join", true),
    ("split", true),
    ("pad", true),
    ("truncate", true),
    ("len", true),
    ("index", true),
    ("slice", true),
    ("print", false),
    ("println", false),
    ("printf", false),
    ("eq", false),
    ("ne", false),
    ("lt", false),
    ("le", false),
    ("gt", false),
    ("ge", false),
    ("and", false),
    ("or", false),
    ("not", false),
];

/// Says whether there is a function of this name.
pub fn exists(name: &str) -> bool {
    FUNCTIONS.iter().any(|(known, _)| *known == name)
}

/// Says whether a function only reshapes a text, so that a heading stays as it is.
pub fn shapes_text(name: &str) -> bool {
    FUNCTIONS.iter().any(|(known, shapes)| *known == name && *shapes)
}

/// Says whether a value counts as true: not empty, not zero.
pub fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(value) => value.as_f64() != Some(0.0),
        Value::String(value) => !value.is_empty(),
        Value::Array(value) => !value.is_empty(),
        Value::Object(value) => !value.is_empty(),
    }
}

/// Gives a value as Go prints it.
pub fn text(value: &Value) -> Cow<'_, str> {
    match value {
        Value::Null => "<no value>".into(),
        Value::String(value) => value.as_str().into(),
        Value::Array(list) => format!("[{}]", list.iter().map(inner).collect::<Vec<_>>().join(" ")).into(),
        Value::Object(map) => {
            let pairs = map.iter().map(|(key, value)| format!("{key}:{}", inner(value)));
            format!("map[{}]", pairs.collect::<Vec<_>>().join(" ")).into()
        }
        Value::Bool(_) | Value::Number(_) => value.to_string().into(),
    }
}

fn inner(value: &Value) -> String {
    if value.is_null() { "<nil>".to_owned() } else { text(value).into_owned() }
}

/// Calls a function that [`exists`].
pub fn call(name: &str, arguments: &[Cow<'_, Value>]) -> Result<Value, FormatError> {
    let fail = |reason: &str| FormatError::Call { function: name.to_owned(), reason: reason.to_owned() };
    let values: Vec<&Value> = arguments.iter().map(AsRef::as_ref).collect();
    let string = |at: usize| values.get(at).and_then(|value| value.as_str()).ok_or_else(|| fail("needs a text"));
    let whole = |at: usize| values.get(at).and_then(|value| value.as_u64()).ok_or_else(|| fail("needs a number"));
    let size = |at| whole(at).and_then(|n| usize::try_from(n).map_err(|_| fail("the number is too large")));
    let expect =
        |count: usize| if values.len() == count { Ok(()) } else { Err(fail(&format!("takes {count} values"))) };
    Ok(match name {
        "json" => expect(1).map(|()| values[0].to_string().into())?,
        "upper" => expect(1).and_then(|()| Ok(string(0)?.to_uppercase().into()))?,
        "lower" => expect(1).and_then(|()| Ok(string(0)?.to_lowercase().into()))?,
        "title" => expect(1).and_then(|()| Ok(title(string(0)?).into()))?,
        "join" => {
            expect(2)?;
            let list = values[0].as_array().ok_or_else(|| fail("needs a list"))?;
            list.iter().map(|value| text(value).into_owned()).collect::<Vec<_>>().join(string(1)?).into()
        }
        "split" => expect(2).and_then(|()| Ok(string(0)?.split(string(1)?).collect::<Vec<_>>().into()))?,
        "pad" => {
            expect(3)?;
            let (before, after) = (size(1)?.min(PAD_MAX), size(2)?.min(PAD_MAX));
            format!("{}{}{}", " ".repeat(before), string(0)?, " ".repeat(after)).into()
        }
        "truncate" => expect(2).and_then(|()| Ok(string(0)?.chars().take(size(1)?).collect::<String>().into()))?,
        "len" => expect(1).and_then(|()| length(values[0]).ok_or_else(|| fail("needs a text, list or object")))?,
        "index" => index(&values).map_err(|reason| fail(&reason))?,
        "slice" => {
            expect(3)?;
            let (from, to) = (size(1)?, size(2)?);
            slice(values[0], from, to).ok_or_else(|| fail("out of range"))?
        }
        "print" | "println" => printed(&values, name == "println").into(),
        "printf" => {
            let layout = string(0)?;
            verbs::format(layout, &values[1..])?.into()
        }
        "eq" | "ne" => {
            let [first, rest @ ..] = values.as_slice() else { return Err(fail("takes two values or more")) };
            if rest.is_empty() || (name == "ne" && rest.len() > 1) {
                return Err(fail("takes two values"));
            }
            let mut equal = false;
            for other in rest {
                equal |= compare(first, other).map_err(|reason| fail(&reason))? == Ordering::Equal;
            }
            (equal == (name == "eq")).into()
        }
        "lt" | "le" | "gt" | "ge" => {
            expect(2)?;
            let order = compare(values[0], values[1]).map_err(|reason| fail(&reason))?;
            match name {
                "lt" => order.is_lt(),
                "le" => order.is_le(),
                "gt" => order.is_gt(),
                _ => order.is_ge(),
            }
            .into()
        }
        "not" => expect(1).map(|()| (!truth(values[0])).into())?,
        "and" | "or" => {
            let decides = |value: &&&Value| truth(value) == (name == "or");
            let found = values.iter().find(decides).or_else(|| values.last());
            (**found.ok_or_else(|| fail("takes a value"))?).clone()
        }
        _ => return Err(FormatError::Refused(format!("the function {name:?}"))),
    })
}

/// No terminal is wider; bounds what one `pad` can make.
const PAD_MAX: usize = 4096;

fn title(text: &str) -> String {
    let mut start = true;
    let capital = |c: char| {
        let first = std::mem::replace(&mut start, !c.is_alphanumeric());
        if first { c.to_uppercase().to_string() } else { c.to_string() }
    };
    text.chars().map(capital).collect()
}

fn length(value: &Value) -> Option<Value> {
    Some(match value {
        Value::String(text) => text.len().into(),
        Value::Array(list) => list.len().into(),
        Value::Object(map) => map.len().into(),
        Value::Null => 0.into(),
        _ => return None,
    })
}

fn index(values: &[&Value]) -> Result<Value, String> {
    let [first, keys @ ..] = values else { return Err("takes a value and its keys".to_owned()) };
    let mut found = *first;
    for key in keys {
        found = match (found, key) {
            (Value::Array(list), Value::Number(at)) => {
                let at = at.as_u64().and_then(|at| usize::try_from(at).ok());
                at.and_then(|at| list.get(at)).ok_or_else(|| format!("index {key} is out of range"))?
            }
            (Value::Object(map), Value::String(key)) => map.get(key).unwrap_or(&EMPTY),
            (Value::Null, _) => &EMPTY,
            (other, key) => return Err(format!("{key} is no key of {other}")),
        };
    }
    Ok(if found == &EMPTY { "".into() } else { found.clone() })
}

static EMPTY: Value = Value::Null;

fn slice(value: &Value, from: usize, to: usize) -> Option<Value> {
    match value {
        Value::String(text) => text.get(from..to).map(Into::into),
        Value::Array(list) => list.get(from..to).map(|part| part.to_vec().into()),
        _ => None,
    }
}

/// Joins values: `println` puts a space between all of them, `print` only between two that are no texts.
fn printed(values: &[&Value], lines: bool) -> String {
    let mut joined = String::new();
    for (at, value) in values.iter().enumerate() {
        let bare = at > 0 && !value.is_string() && !values[at - 1].is_string();
        if at > 0 && (lines || bare) {
            joined.push(' ');
        }
        joined.push_str(&text(value));
    }
    if lines {
        joined.push('\n');
    }
    joined
}

fn compare(a: &Value, b: &Value) -> Result<Ordering, String> {
    match (a, b) {
        (Value::String(a), Value::String(b)) => Ok(a.cmp(b)),
        (Value::Bool(a), Value::Bool(b)) => Ok(a.cmp(b)),
        (Value::Null, Value::Null) => Ok(Ordering::Equal),
        (Value::Null, _) | (_, Value::Null) => Ok(Ordering::Less),
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => Ok(a.cmp(&b)),
            _ => a.as_f64().partial_cmp(&b.as_f64()).ok_or_else(|| "these have no order".to_owned()),
        },
        _ => Err(format!("{a} and {b} cannot be compared")),
    }
}
