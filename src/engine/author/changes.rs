//! `--change`: instructions of a Dockerfile that change an image's configuration.

use serde_json::{Map, Value, json};

/// Says why an instruction was refused; names it as it was written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid change {change:?}: {reason}")]
pub struct ChangeError {
    change: String,
    reason: String,
}

/// Applies one instruction to the `config` part of an image's configuration.
pub fn apply(config: &mut Map<String, Value>, change: &str) -> Result<(), ChangeError> {
    let fail = |reason: String| ChangeError { change: change.to_owned(), reason };
    let (keyword, rest) = change.trim().split_once(char::is_whitespace).unwrap_or((change.trim(), ""));
    let rest = rest.trim();
    if rest.is_empty() {
        return Err(fail("it needs an argument".into()));
    }
    match keyword.to_ascii_uppercase().as_str() {
        "CMD" => set(config, "Cmd", json!(command(rest).map_err(fail)?)),
        "ENTRYPOINT" => {
            set(config, "Entrypoint", json!(command(rest).map_err(fail)?));
            // As in a Dockerfile: a command of the image below belongs to its own entry point.
            config.remove("Cmd");
        }
        "USER" => set(config, "User", json!(rest)),
        "WORKDIR" => set(config, "WorkingDir", json!(rest)),
        "STOPSIGNAL" => set(config, "StopSignal", json!(rest)),
        "ENV" => {
            for (name, value) in pairs(rest).map_err(fail)? {
                let list = config.entry("Env").or_insert_with(|| json!([]));
                if let Some(list) = list.as_array_mut() {
                    let prefix = format!("{name}=");
                    list.retain(|entry| !entry.as_str().is_some_and(|entry| entry.starts_with(&prefix)));
                    list.push(json!(format!("{name}={value}")));
                }
            }
        }
        "LABEL" => {
            for (name, value) in pairs(rest).map_err(fail)? {
                insert(config, "Labels", &name, json!(value));
            }
        }
        "EXPOSE" => {
            for port in words(rest).map_err(fail)? {
                let port = if port.contains('/') { port } else { format!("{port}/tcp") };
                let valid = port.split_once('/').is_some_and(|(number, protocol)| {
                    number.parse::<u16>().is_ok() && matches!(protocol, "tcp" | "udp" | "sctp")
                });
                if !valid {
                    return Err(fail(format!("{port:?} is no port")));
                }
                insert(config, "ExposedPorts", &port, json!({}));
            }
        }
        "VOLUME" => {
            let paths = match json_list(rest) {
                Some(paths) => paths,
                None => words(rest).map_err(fail)?,
            };
            for path in paths {
                insert(config, "Volumes", &path, json!({}));
            }
        }
        other => return Err(fail(format!("{other} is not implemented"))),
    }
    Ok(())
}

fn set(config: &mut Map<String, Value>, key: &str, value: Value) {
    config.insert(key.to_owned(), value);
}

fn insert(config: &mut Map<String, Value>, key: &str, name: &str, value: Value) {
    let slot = config.entry(key).or_insert_with(|| json!({}));
    if !slot.is_object() {
        *slot = json!({});
    }
    if let Some(map) = slot.as_object_mut() {
        map.insert(name.to_owned(), value);
    }
}

/// A JSON list is taken as it is; anything else is for the shell.
fn command(text: &str) -> Result<Vec<String>, String> {
    match json_list(text) {
        Some(list) => Ok(list),
        None if text.starts_with('[') => Err("it begins like a JSON list and is none".into()),
        None => Ok(["/bin/sh", "-c", text].map(str::to_owned).to_vec()),
    }
}

fn json_list(text: &str) -> Option<Vec<String>> {
    if text.starts_with('[') { serde_json::from_str(text).ok() } else { None }
}

/// `NAME=VALUE…`, or the old `NAME VALUE`.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let words = words(text)?;
    if !words.first().is_some_and(|first| first.contains('=')) {
        let (name, value) = text.split_once(char::is_whitespace).ok_or("a value is missing")?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    let split = |word: &String| -> Result<(String, String), String> {
        match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(format!("{word:?} is not NAME=VALUE")),
        }
    };
    words.iter().map(split).collect()
}

/// Splits at blanks outside of quotes; a backslash takes the next character as it is.
fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote, mut is_word) = (Vec::new(), String::new(), None, false);
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => word.push(characters.next().ok_or("it ends with a backslash")?),
            ('"' | '\'', None) => (quote, is_word) = (Some(c), true),
            (c, Some(open)) if c == open => quote = None,
            (c, None) if c.is_whitespace() => {
                if is_word || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                is_word = false;
            }
            (c, _) => word.push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".into());
    }
    if is_word || !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(changes: &[&str]) -> Value {
        let mut config = json!({"Env": ["A=0", "PATH=/bin"], "Cmd": ["old"]}).as_object().cloned().unwrap();
        changes.iter().for_each(|change| apply(&mut config, change).unwrap());
        Value::Object(config)
    }

    #[test]
    fn instructions() {
        let config = applied(&[
            r#"CMD ["sh", "-c", "x"]"#,
            "env A=1 B='two words' C=\"q\\\"\"",
            "ENV D old form",
            "LABEL a=b",
            "EXPOSE 80 53/udp",
            r#"VOLUME ["/data"]"#,
            "volume /a /b",
            "USER 1000:1000",
            "WORKDIR /w",
            "STOPSIGNAL SIGINT",
        ]);
        assert_eq!(config["Cmd"], json!(["sh", "-c", "x"]));
        assert_eq!(config["Env"], json!(["PATH=/bin", "A=1", "B=two words", "C=q\"", "D=old form"]));
        assert_eq!(config["ExposedPorts"], json!({"80/tcp": {}, "53/udp": {}}));
        assert_eq!(config["Volumes"], json!({"/data": {}, "/a": {}, "/b": {}}));
        assert_eq!((&config["User"], &config["WorkingDir"]), (&json!("1000:1000"), &json!("/w")));
        let config = applied(&["ENTRYPOINT echo hi"]);
        assert_eq!(config["Entrypoint"], json!(["/bin/sh", "-c", "echo hi"]));
        assert_eq!(config.get("Cmd"), None);
    }

    #[test]
    fn refusals_name_the_instruction() {
        for bad in ["RUN x", "ONBUILD x", "CMD", "CMD [x", "EXPOSE x", "LABEL =x y=z", "ENV A='", "HEALTHCHECK NONE"] {
            let error = apply(&mut Map::new(), bad).unwrap_err();
            assert!(error.to_string().contains(bad.split_whitespace().next().unwrap()), "{error}");
        }
    }
}
