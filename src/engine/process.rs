//! What runs in the container: argv, environment and working directory from the image's
//! configuration and the person's options, by Docker's rules. Pure.

use std::collections::BTreeMap;

use super::options::EnvEntry;

/// The PATH Docker gives when the image names none.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Says that there is nothing to run.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProcessError {
    #[error("no command given and the image names none")]
    NoCommand,
    #[error("{what} contains a NUL byte")]
    Nul { what: &'static str },
    #[error("working directory {path:?} is not absolute")]
    RelativeWorkdir { path: String },
}

/// Joins ENTRYPOINT and CMD: a given entry point drops the image's CMD, a given command replaces it.
pub fn arguments(
    image_entrypoint: &[String],
    image_command: &[String],
    entrypoint: Option<&str>,
    command: &[String],
) -> Result<Vec<String>, ProcessError> {
    let mut argv: Vec<String> = match entrypoint {
        None => image_entrypoint.to_vec(),
        Some("") => Vec::new(),
        Some(program) => vec![program.to_owned()],
    };
    if command.is_empty() && entrypoint.is_none() {
        argv.extend_from_slice(image_command);
    } else {
        argv.extend_from_slice(command);
    }
    if argv.iter().any(|argument| argument.contains('\0')) {
        return Err(ProcessError::Nul { what: "an argument" });
    }
    match argv.first() {
        Some(program) if !program.is_empty() => Ok(argv),
        _ => Err(ProcessError::NoCommand),
    }
}

/// Is what the environment is made of, weakest first.
pub struct EnvironmentInputs<'a> {
    pub image: &'a [String],
    pub entries: &'a [EnvEntry],
    pub hostname: &'a str,
    pub home: &'a str,
    pub tty: bool,
}

/// Builds the environment: PATH, HOSTNAME, HOME and TERM as Docker does, then the image, then the
/// person; the last setting of a name wins and every name appears once.
///
/// An image entry that is not NAME=VALUE is dropped: it must never become a question to the host's
/// environment (CVE-2026-57231).
pub fn environment(inputs: &EnvironmentInputs) -> Result<Vec<String>, ProcessError> {
    let mut names: Vec<String> = Vec::new();
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |name: &str, value: &str| {
        if values.insert(name.to_owned(), value.to_owned()).is_none() {
            names.push(name.to_owned());
        }
    };
    let default_path = DEFAULT_PATH.trim_start_matches("PATH=");
    set("PATH", default_path);
    set("HOSTNAME", inputs.hostname);
    if inputs.tty {
        set("TERM", "xterm");
    }
    for entry in inputs.image {
        if let Some((name, value)) = entry.split_once('=')
            && !name.is_empty()
            && !entry.contains('\0')
        {
            set(name, value);
        }
    }
    let mut unset = Vec::new();
    for entry in inputs.entries {
        match entry {
            EnvEntry::Set { name, value } => {
                if name.contains('\0') || value.contains('\0') {
                    return Err(ProcessError::Nul { what: "an environment variable" });
                }
                unset.retain(|gone| *gone != name);
                set(name, value);
            }
            EnvEntry::Unset { name } => unset.push(name),
        }
    }
    values.entry("HOME".to_owned()).or_insert_with(|| {
        names.push("HOME".to_owned());
        inputs.home.to_owned()
    });
    Ok(names
        .iter()
        .filter(|name| !unset.contains(name))
        .filter_map(|name| values.get(name).map(|value| format!("{name}={value}")))
        .collect())
}

/// Picks the working directory; the image's relative one counts from the root, a person's must be absolute.
pub fn working_directory(image: Option<&str>, asked: Option<&str>) -> Result<String, ProcessError> {
    let path = match (asked, image) {
        (Some(asked), _) if !asked.starts_with('/') => {
            return Err(ProcessError::RelativeWorkdir { path: asked.to_owned() });
        }
        (Some(asked), _) => asked.to_owned(),
        (None, Some(image)) if image.starts_with('/') => image.to_owned(),
        (None, Some(image)) => format!("/{image}"),
        (None, None) => "/".to_owned(),
    };
    if path.contains('\0') {
        return Err(ProcessError::Nul { what: "the working directory" });
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn entrypoint_and_command() {
        let (entry, cmd) = (strings(&["/entry", "-x"]), strings(&["serve"]));
        let check = |entrypoint, command: &[&str], expect: &[&str]| {
            assert_eq!(arguments(&entry, &cmd, entrypoint, &strings(command)).unwrap(), strings(expect));
        };
        check(None, &[], &["/entry", "-x", "serve"]);
        check(None, &["ls"], &["/entry", "-x", "ls"]);
        check(Some("/bin/sh"), &[], &["/bin/sh"]);
        check(Some("/bin/sh"), &["-c", "id"], &["/bin/sh", "-c", "id"]);
        check(Some(""), &["id"], &["id"]);
        assert_eq!(arguments(&entry, &cmd, Some(""), &[]), Err(ProcessError::NoCommand));
        assert_eq!(arguments(&[], &strings(&[""]), None, &[]), Err(ProcessError::NoCommand));
        assert!(arguments(&[], &strings(&["a\0b"]), None, &[]).is_err());
    }

    #[test]
    fn a33_environment_is_only_what_was_said() {
        let image = strings(&["FOO", "=x", "", "*", "PATH*", "A=1\0B=2", "GOOD=1", "GOOD=2", "GONE=1"]);
        let entries =
            [EnvEntry::Set { name: "MINE".into(), value: "a=b".into() }, EnvEntry::Unset { name: "GONE".into() }];
        let env = environment(&EnvironmentInputs {
            image: &image,
            entries: &entries,
            hostname: "h",
            home: "/root",
            tty: false,
        });
        assert_eq!(env.unwrap(), strings(&[DEFAULT_PATH, "HOSTNAME=h", "GOOD=2", "MINE=a=b", "HOME=/root"]));
    }

    #[test]
    fn working_directories() {
        assert_eq!(working_directory(None, None).unwrap(), "/");
        assert_eq!(working_directory(Some("srv"), None).unwrap(), "/srv");
        assert_eq!(working_directory(Some("/srv"), Some("/x")).unwrap(), "/x");
        assert!(working_directory(None, Some("x")).is_err());
        assert!(working_directory(Some("/a\0"), None).is_err());
    }
}
