//! The words of a command line, by tables of flags.
//!
//! A parser of our own: the usual one touches more memory than everything else that `coracle-oci` does,
//! and a runtime is started for every container.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

use super::error::OciError;

/// A flag that a command knows.
pub struct Flag {
    /// Its name without the dashes.
    pub long: &'static str,
    /// Its letter.
    pub short: Option<char>,
    /// What its value is called in the help; a flag without one is given or not.
    pub value: Option<&'static str>,
    /// Whether it may be given more than once.
    pub repeats: bool,
    /// What it does. A flag without help is another name of the one before it.
    pub help: &'static str,
}

/// A flag that is given or not.
pub const fn switch(long: &'static str, help: &'static str) -> Flag {
    Flag { long, short: None, value: None, repeats: false, help }
}

/// A flag with a value.
pub const fn valued(long: &'static str, value: &'static str, help: &'static str) -> Flag {
    Flag { long, short: None, value: Some(value), repeats: false, help }
}

impl Flag {
    /// Gives it a letter.
    pub const fn short(mut self, letter: char) -> Self {
        self.short = Some(letter);
        self
    }

    /// Lets it be given several times.
    pub const fn repeats(mut self) -> Self {
        self.repeats = true;
        self
    }
}

/// The words that a command takes beside its flags.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Words {
    /// None.
    None,
    /// `ID`.
    Id,
    /// `ID`, and one more that may be left out.
    IdAnd(&'static str),
    /// `ID`, and a program with its arguments, which are not looked at.
    IdAndProgram,
    /// What follows is another command's.
    Command,
}

/// What a command takes.
pub struct Grammar {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// Its flags.
    pub flags: &'static [&'static [Flag]],
    /// Its words.
    pub words: Words,
}

/// What was given.
#[derive(Default)]
pub struct Given {
    values: Vec<(&'static str, OsString)>,
    words: Vec<OsString>,
    /// Whether help was asked for.
    pub help: bool,
}

const HELP: &str = "help";

impl Grammar {
    /// Sorts a command's words; what the command does not know is an error by its name.
    pub fn parse(&self, args: impl Iterator<Item = OsString>) -> Result<Given, OciError> {
        let mut given = Given::default();
        let mut args = args.peekable();
        let mut literal = false;
        while let Some(arg) = args.next() {
            let bytes = arg.as_bytes();
            if literal || !bytes.starts_with(b"-") || bytes == b"-" {
                given.words.push(arg);
                literal = literal
                    || self.words == Words::Command
                    || (self.words == Words::IdAndProgram && given.words.len() > 1);
                if self.words == Words::Command {
                    given.words.extend(args);
                    break;
                }
            } else if bytes == b"--" {
                literal = true;
            } else if let Some(name) = bytes.strip_prefix(b"--") {
                self.long(name, &mut args, &mut given)?;
            } else {
                self.letters(&bytes[1..], &mut args, &mut given)?;
            }
        }
        if !given.help {
            self.check(&given)?;
        }
        Ok(given)
    }

    fn long(&self, text: &[u8], rest: &mut impl Iterator<Item = OsString>, given: &mut Given) -> Result<(), OciError> {
        let mut parts = text.splitn(2, |byte| *byte == b'=');
        let name = parts.next().unwrap_or_default();
        let value = parts.next().map(|bytes| OsString::from_vec(bytes.to_vec()));
        if name == HELP.as_bytes() && value.is_none() {
            given.help = true;
            return Ok(());
        }
        let found = self.flags().find(|flag| flag.long.as_bytes() == name);
        let unknown = || OciError::UnknownFlag(format!("--{}", String::from_utf8_lossy(name)));
        given.take(found.ok_or_else(unknown)?, value, rest)
    }

    /// `-dt`, `-b DIR`, `-bDIR`.
    fn letters(
        &self,
        letters: &[u8],
        rest: &mut impl Iterator<Item = OsString>,
        given: &mut Given,
    ) -> Result<(), OciError> {
        for (at, letter) in letters.iter().enumerate() {
            let letter = char::from(*letter);
            let Some(flag) = self.flags().find(|flag| flag.short == Some(letter)) else {
                if letter == 'h' {
                    given.help = true;
                    return Ok(());
                }
                return Err(OciError::UnknownFlag(format!("-{letter}")));
            };
            if flag.value.is_none() {
                given.take(flag, None, rest)?;
                continue;
            }
            let value = &letters[at + 1..];
            let value = value.strip_prefix(b"=").unwrap_or(value);
            let value = (!value.is_empty()).then(|| OsString::from_vec(value.to_vec()));
            return given.take(flag, value, rest);
        }
        Ok(())
    }

    fn flags(&self) -> impl Iterator<Item = &'static Flag> {
        self.flags.iter().flat_map(|group| group.iter())
    }

    fn check(&self, given: &Given) -> Result<(), OciError> {
        let (least, most) = match self.words {
            Words::None => (0, 0),
            Words::Id => (1, 1),
            Words::IdAnd(_) => (1, 2),
            Words::IdAndProgram => (1, usize::MAX),
            Words::Command => (0, usize::MAX),
        };
        if given.words.len() < least {
            return Err(OciError::MissingArgument("<ID>".to_owned()));
        }
        match given.words.get(most) {
            Some(word) => Err(OciError::Usage(format!("unexpected argument '{}'", word.display()))),
            None => Ok(()),
        }
    }

    /// The text that `--help` prints; `commands` are listed with it.
    pub fn help(&self, commands: &[&Grammar]) -> String {
        let words = match self.words {
            Words::None => "",
            Words::Id => " ID",
            Words::IdAnd(more) => more,
            Words::IdAndProgram => " ID PROGRAM [ARGUMENT...]",
            Words::Command => " COMMAND ...",
        };
        let mut text = format!("{}\n\nUsage: {} [FLAGS]{words}\n", self.about, self.name);
        if !commands.is_empty() {
            text.push_str("\nCommands:\n");
        }
        for command in commands {
            let _ = writeln!(text, "  {:<10} {}", command.name, command.about);
        }
        text.push_str("\nFlags:\n");
        for flag in self.flags().filter(|flag| !flag.help.is_empty()) {
            let short = flag.short.map_or("    ".to_owned(), |letter| format!("-{letter}, "));
            let value = flag.value.map_or(String::new(), |value| format!(" {value}"));
            let _ = writeln!(text, "  {short}{:<32} {}", format!("--{}{value}", flag.long), flag.help);
        }
        let _ = write!(text, "  -h, {:<32} Print this", "--help");
        text
    }
}

impl Given {
    /// Takes one flag, with the value behind its `=` or the next word.
    fn take(
        &mut self,
        flag: &'static Flag,
        value: Option<OsString>,
        rest: &mut impl Iterator<Item = OsString>,
    ) -> Result<(), OciError> {
        let long = flag.long;
        let value = match (flag.value, value) {
            (Some(_), Some(value)) => value,
            (Some(name), None) => {
                let wanted = || OciError::Usage(format!("a value is required for '--{long} <{name}>'"));
                rest.next().filter(|next| is_value(next)).ok_or_else(wanted)?
            }
            (None, None) => OsString::new(),
            // The form in which programs written in Go give a switch.
            (None, Some(value)) if value == "true" => OsString::new(),
            (None, Some(value)) if value == "false" => return Ok(()),
            (None, Some(value)) => {
                return Err(OciError::Usage(format!("unexpected value '{}' for '--{long}'", value.display())));
            }
        };
        if !flag.repeats && flag.value.is_some() && self.values.iter().any(|(name, _)| *name == long) {
            return Err(OciError::Usage(format!("the argument '--{long}' cannot be used multiple times")));
        }
        self.values.push((long, value));
        Ok(())
    }

    /// Says whether a switch was given.
    pub fn has(&self, long: &str) -> bool {
        self.value(long).is_some()
    }

    fn value(&self, long: &str) -> Option<&OsStr> {
        self.values.iter().find(|(name, _)| *name == long).map(|(_, value)| value.as_os_str())
    }

    /// Gives a path.
    pub fn path(&self, long: &str) -> Option<PathBuf> {
        self.value(long).map(PathBuf::from)
    }

    /// Gives a text, which must be UTF-8.
    pub fn text(&self, long: &'static str) -> Result<Option<String>, OciError> {
        self.value(long).map(|value| utf8(long, value)).transpose()
    }

    /// Gives every value of a flag that repeats.
    pub fn texts(&self, long: &'static str) -> Result<Vec<String>, OciError> {
        self.values.iter().filter(|(name, _)| *name == long).map(|(_, value)| utf8(long, value)).collect()
    }

    /// Gives a number, or anything else that is read from a text.
    pub fn number<T: FromStr>(&self, long: &'static str) -> Result<Option<T>, OciError> {
        self.text(long)?.map(|text| parsed(long, &text)).transpose()
    }

    /// Gives every value of a flag that repeats, as numbers.
    pub fn numbers<T: FromStr>(&self, long: &'static str) -> Result<Vec<T>, OciError> {
        self.texts(long)?.iter().map(|text| parsed(long, text)).collect()
    }

    /// Gives the place of a value in a list of allowed ones.
    pub fn choice(&self, long: &'static str, allowed: &[&str]) -> Result<Option<usize>, OciError> {
        let Some(text) = self.text(long)? else { return Ok(None) };
        let found = allowed.iter().position(|name| *name == text);
        let wrong = || OciError::Usage(format!("invalid value '{text}' for '--{long}': {}", allowed.join(", ")));
        found.map(Some).ok_or_else(wrong)
    }

    /// Gives a word, which must be UTF-8.
    pub fn word(&self, at: usize) -> Result<Option<String>, OciError> {
        self.words.get(at).map(|word| utf8("<ID>", word)).transpose()
    }

    /// Gives the container's id, whose presence the grammar has checked.
    pub fn id(&self) -> Result<String, OciError> {
        Ok(self.word(0)?.unwrap_or_default())
    }

    /// Gives the words from this one on.
    pub fn words(&self, from: usize) -> Result<Vec<String>, OciError> {
        self.words.iter().skip(from).map(|word| utf8("<PROGRAM>", word)).collect()
    }

    /// Takes the words as they came.
    pub fn take_words(&mut self) -> Vec<OsString> {
        std::mem::take(&mut self.words)
    }
}

/// A word with a dash is a forgotten value, unless it is a negative number or stands for a stream.
fn is_value(word: &OsStr) -> bool {
    let bytes = word.as_bytes();
    !bytes.starts_with(b"-") || bytes.len() == 1 || bytes[1].is_ascii_digit()
}

fn utf8(name: &str, value: &OsStr) -> Result<String, OciError> {
    let wrong = || OciError::Usage(format!("the value of '{name}' is not valid UTF-8"));
    value.to_str().map(str::to_owned).ok_or_else(wrong)
}

fn parsed<T: FromStr>(long: &str, text: &str) -> Result<T, OciError> {
    text.parse().map_err(|_| OciError::Usage(format!("invalid value '{text}' for '--{long}'")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[
        switch("detach", "x").short('d'),
        switch("tty", "x").short('t'),
        valued("bundle", "DIR", "x").short('b'),
        valued("env", "V", "x").short('e').repeats(),
        valued("quota", "N", "x"),
    ];
    const GRAMMAR: Grammar = Grammar { name: "exec", about: "x", flags: &[FLAGS], words: Words::IdAndProgram };

    fn parse(line: &str) -> Result<Given, String> {
        GRAMMAR.parse(line.split(' ').map(OsString::from)).map_err(|error| error.to_string())
    }

    #[test]
    fn forms_of_flags() {
        for line in ["-dt -b x -e a -e b id", "-dtbx --env=a --env b id", "id --bundle x -ea --tty=true -d -e=b"] {
            let given = parse(line).unwrap();
            assert!(given.has("detach") && given.has("tty") && given.path("bundle") == Some("x".into()), "{line}");
            assert_eq!(given.texts("env").unwrap(), ["a", "b"], "{line}");
            assert_eq!(given.id().unwrap(), "id", "{line}");
        }
        assert_eq!(parse("--quota -1 id").unwrap().number::<i64>("quota").unwrap(), Some(-1));
        assert!(!parse("--detach=false id").unwrap().has("detach"));
        assert!(parse("--nonsense --help").is_err() && parse("--help").unwrap().help);
    }

    #[test]
    fn a_program_keeps_its_flags() {
        let given = parse("-d id -t sh -c -d -- x").unwrap();
        assert!(given.has("tty"));
        assert_eq!(given.words(1).unwrap(), ["sh", "-c", "-d", "--", "x"]);
        assert_eq!(parse("id -- -x").unwrap().words(1).unwrap(), ["-x"]);
    }

    #[test]
    fn mistakes_are_named() {
        for (line, expect) in [
            ("-d", "argument <ID> is missing"),
            ("--criu id", "flag --criu is not implemented"),
            ("-z id", "flag -z is not implemented"),
            ("--bundle", "a value is required for '--bundle <DIR>'"),
            ("--bundle --tty id", "a value is required for '--bundle <DIR>'"),
            ("-b x -b y id", "the argument '--bundle' cannot be used multiple times"),
            ("--tty=maybe id", "unexpected value 'maybe' for '--tty'"),
        ] {
            assert_eq!(parse(line).err().as_deref(), Some(expect), "{line}");
        }
        let given = parse("--quota x id").unwrap();
        assert_eq!(given.number::<i64>("quota").unwrap_err().to_string(), "invalid value 'x' for '--quota'");
        let one = Grammar { words: Words::Id, ..GRAMMAR };
        let error = one.parse(["a", "b"].map(OsString::from).into_iter()).err().unwrap();
        assert_eq!(error.to_string(), "unexpected argument 'b'");
    }
}
