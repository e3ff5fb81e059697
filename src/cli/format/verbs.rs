//! `printf` with the verbs that make sense for JSON: %s %v %d %q %t %f %x %%, with width, `-`, `0` and precision.

use serde_json::Value;

use super::FormatError;
use super::functions::text;

/// No terminal is wider; bounds what one verb can make.
const WIDTH_MAX: usize = 4096;

/// Fills the verbs of a layout by the values.
pub fn format(layout: &str, values: &[&Value]) -> Result<String, FormatError> {
    let fail = |reason: String| FormatError::Call { function: "printf".to_owned(), reason };
    let mut out = String::new();
    let mut values = values.iter();
    let mut rest = layout;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let (flags, after) = span(after, |c| c == '-' || c == '0');
        let (width, after) = span(after, |c| c.is_ascii_digit());
        let (precision, after) = match after.strip_prefix('.') {
            Some(after) => {
                let (digits, after) = span(after, |c| c.is_ascii_digit());
                (Some(digits.parse::<usize>().unwrap_or(0).min(WIDTH_MAX)), after)
            }
            None => (None, after),
        };
        let verb = after.chars().next().ok_or_else(|| fail("% at the end".to_owned()))?;
        rest = &after[verb.len_utf8()..];
        if verb == '%' {
            out.push('%');
            continue;
        }
        let value = values.next().ok_or_else(|| fail(format!("no value for %{verb}")))?;
        let body = one(verb, precision, value).map_err(fail)?;
        let width = width.parse::<usize>().unwrap_or(0).min(WIDTH_MAX);
        match (flags.contains('-'), flags.contains('0') && verb != 's') {
            (true, _) => out.push_str(&format!("{body:<width$}")),
            (false, true) => out.push_str(&format!("{body:0>width$}")),
            (false, false) => out.push_str(&format!("{body:>width$}")),
        }
    }
    out.push_str(rest);
    match values.next() {
        Some(value) => Err(fail(format!("{value} has no verb"))),
        None => Ok(out),
    }
}

fn span(text: &str, wanted: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !wanted(c)).unwrap_or(text.len()))
}

fn one(verb: char, precision: Option<usize>, value: &Value) -> Result<String, String> {
    match (verb, value) {
        ('s' | 'v', value) => {
            let text = text(value).into_owned();
            Ok(precision.map_or_else(|| text.clone(), |most| text.chars().take(most).collect()))
        }
        ('q', Value::String(_)) => Ok(value.to_string()),
        ('d', Value::Number(number)) if !number.is_f64() => Ok(number.to_string()),
        ('t', Value::Bool(value)) => Ok(value.to_string()),
        ('x', Value::Number(number)) if number.is_u64() => Ok(format!("{:x}", number.as_u64().unwrap_or(0))),
        ('f', Value::Number(number)) => {
            let precision = precision.unwrap_or(6);
            Ok(format!("{:.precision$}", number.as_f64().unwrap_or(0.0)))
        }
        (verb @ ('q' | 'd' | 't' | 'x' | 'f'), value) => Err(format!("%{verb} does not fit {value}")),
        (verb, _) => Err(format!("the verb %{verb} is not implemented")),
    }
}
