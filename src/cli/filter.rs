//! `--filter KEY=VALUE` as Docker has it: several keys must all match, several values of one key any.

use std::collections::BTreeMap;

/// Says why a `--filter` was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FilterError {
    #[error("invalid filter {0:?}: expected KEY=VALUE")]
    NoValue(String),
    #[error("filter {key:?} is not implemented; there are {known}")]
    Unknown { key: String, known: String },
    #[error("invalid filter {key}={value}: {reason}")]
    Value { key: &'static str, value: String, reason: String },
}

/// Is what a listing keeps.
#[derive(Debug, Default)]
pub struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// Parses the filters of a command that knows these keys.
    pub fn parse(asked: &[String], known: &[&str]) -> Result<Self, FilterError> {
        let mut filters = Self::default();
        for text in asked {
            let (key, value) = text.split_once('=').ok_or_else(|| FilterError::NoValue(text.clone()))?;
            let (key, value) = (key.trim().to_lowercase(), value.trim());
            if !known.contains(&key.as_str()) {
                return Err(FilterError::Unknown { key, known: known.join(", ") });
            }
            filters.0.entry(key).or_default().push(value.to_owned());
        }
        Ok(filters)
    }

    /// Gives the values of one key.
    pub fn values(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// Says whether a key was given at all.
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// Says whether a key was not given, or one of its values is accepted.
    pub fn any(&self, key: &str, accepts: impl FnMut(&String) -> bool) -> bool {
        self.0.get(key).is_none_or(|values| values.iter().any(accepts))
    }

    /// Gives the one truth value of a key.
    pub fn truth(&self, key: &'static str) -> Result<Option<bool>, FilterError> {
        let mut answer = None;
        for value in self.values(key) {
            answer = Some(match value.to_lowercase().as_str() {
                "true" | "1" | "t" => true,
                "false" | "0" | "f" => false,
                _ => {
                    let reason = "neither true nor false".to_owned();
                    return Err(FilterError::Value { key, value: value.clone(), reason });
                }
            });
        }
        Ok(answer)
    }

    /// Says whether every asked label is there: `label=KEY` or `label=KEY=VALUE`.
    pub fn labels<'a>(&self, key: &str, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.values(key).iter().all(|wanted| match wanted.split_once('=') {
            Some((name, value)) => label(name) == Some(value),
            None => label(wanted).is_some(),
        })
    }
}

/// Matches a shell pattern with `*` and `?`, neither of which crosses a `/`.
pub fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    // `reached[n]`: the pattern so far matches the first n characters. No recursion, so no pattern is slow.
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    for c in pattern {
        let mut next = vec![false; text.len() + 1];
        for at in 0..=text.len() {
            let step = at > 0 && reached[at - 1];
            next[at] = match c {
                '*' => reached[at] || (at > 0 && next[at - 1] && text[at - 1] != '/'),
                '?' => step && text[at - 1] != '/',
                c => step && text[at - 1] == c,
            };
        }
        reached = next;
    }
    reached[text.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(asked: &[&str]) -> Result<Filters, String> {
        let asked: Vec<String> = asked.iter().map(|text| (*text).to_owned()).collect();
        Filters::parse(&asked, &["name", "label", "dangling"]).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_are_joined_by_and_values_by_or() {
        let found = filters(&["name=a", "name=b", "label=x=1", "label=y"]).unwrap();
        assert!(found.any("name", |value| value == "b") && !found.any("name", |value| value == "c"));
        assert!(found.any("dangling", |_| false), "not asked for");
        let labels = |key: &str| [("x", "1"), ("y", "2")].iter().find(|pair| pair.0 == key).map(|pair| pair.1);
        assert!(found.labels("label", labels));
        assert!(!filters(&["label=x=2"]).unwrap().labels("label", labels));
        assert!(!filters(&["label=z"]).unwrap().labels("label", labels));
        assert_eq!(filters(&["dangling=True"]).unwrap().truth("dangling"), Ok(Some(true)));
        assert!(filters(&["dangling=maybe"]).unwrap().truth("dangling").is_err());
        assert!(filters(&["wat=1"]).unwrap_err().contains("\"wat\" is not implemented"));
        assert!(filters(&["name"]).unwrap_err().contains("KEY=VALUE"));
    }

    #[test]
    fn patterns() {
        for (pattern, text, matches) in [
            ("busy*", "busybox", true),
            ("busy*", "a/busybox", false),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("b?x", "box", true),
            ("b?x", "bx", false),
            ("", "", true),
            ("*a*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(glob(pattern, text), matches, "{pattern} {text}");
        }
    }
}
