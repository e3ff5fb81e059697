//! Templates cut into text and actions, and an action into tokens.

use serde_json::Value;

use super::FormatError;

/// Is a part of a template.
#[derive(Debug, PartialEq)]
pub enum Piece {
    Text(String),
    Action(Vec<Token>),
}

/// Is a word of an action.
#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    /// `.a.b`; `.` alone is empty.
    Fields(Vec<String>),
    /// `$x.a`; `$` alone has an empty name.
    Variable(String, Vec<String>),
    Word(String),
    Literal(Value),
    Open,
    /// `)` or `).a.b`.
    Close(Vec<String>),
    Bar,
    Comma,
    /// `:=`
    Declare,
    /// `=`
    Set,
}

/// Cuts a template at `{{` and `}}`, applying the trim markers `{{- ` and ` -}}`.
pub fn pieces(template: &str) -> Result<Vec<Piece>, FormatError> {
    let mut pieces = Vec::new();
    let mut rest = template;
    let mut trim_next = false;
    while let Some((before, after)) = rest.split_once("{{") {
        let trims_before = after.starts_with("- ") || after.starts_with("-\t") || after.starts_with("-\n");
        push_text(&mut pieces, before, trim_next, trims_before);
        let body = if trims_before { &after[1..] } else { after };
        if let Some(comment) = body.trim_start().strip_prefix("/*") {
            let (_, after) = comment.split_once("*/").ok_or_else(unclosed)?;
            let (end, after) = after.split_once("}}").ok_or_else(unclosed)?;
            trim_next = end.trim_start() != end && end.trim() == "-";
            if !end.trim().is_empty() && !trim_next {
                return Err(FormatError::Syntax("something follows a comment inside of {{ }}".to_owned()));
            }
            rest = after;
            continue;
        }
        let length = action_length(body)?;
        let (action, after) = (&body[..length], &body[length + 2..]);
        trim_next = action.strip_suffix('-').is_some_and(|action| action.ends_with(char::is_whitespace));
        pieces.push(Piece::Action(tokens(if trim_next { &action[..action.len() - 1] } else { action })?));
        rest = after;
    }
    push_text(&mut pieces, rest, trim_next, false);
    Ok(pieces)
}

fn push_text(pieces: &mut Vec<Piece>, text: &str, trim_start: bool, trim_end: bool) {
    // Docker lets a person write \t and \n for what a shell makes hard to type.
    let text = text.replace("\\t", "\t").replace("\\n", "\n");
    let text = if trim_start { text.trim_start() } else { &text };
    let text = if trim_end { text.trim_end() } else { text };
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
}

fn unclosed() -> FormatError {
    FormatError::Syntax("{{ without }}".to_owned())
}

/// Gives the length of an action up to its `}}`, which may also stand inside of a string.
fn action_length(body: &str) -> Result<usize, FormatError> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        match quote {
            Some('"') if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '`' => quote = Some(c),
            None if body[at..].starts_with("}}") => return Ok(at),
            None => {}
        }
    }
    Err(unclosed())
}

fn tokens(action: &str) -> Result<Vec<Token>, FormatError> {
    let mut tokens = Vec::new();
    let mut rest = action.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            '.' => {
                let (fields, length) = fields(rest);
                (Token::Fields(fields), if length == 0 { 1 } else { length })
            }
            '$' => {
                let name = word_length(&rest[1..]);
                let (fields, length) = fields(&rest[1 + name..]);
                (Token::Variable(rest[1..=name].to_owned(), fields), 1 + name + length)
            }
            '(' => (Token::Open, 1),
            ')' => {
                let (fields, length) = fields(&rest[1..]);
                (Token::Close(fields), 1 + length)
            }
            '|' => (Token::Bar, 1),
            ',' => (Token::Comma, 1),
            ':' if rest.starts_with(":=") => (Token::Declare, 2),
            '=' => (Token::Set, 1),
            '"' | '`' => string(rest)?,
            '-' | '+' | '0'..='9' => number(rest)?,
            c if c == '_' || c.is_alphabetic() => {
                let length = word_length(rest);
                (Token::Word(rest[..length].to_owned()), length)
            }
            other => return Err(FormatError::Syntax(format!("unexpected {other:?} in {{{{{action}}}}}"))),
        };
        tokens.push(token);
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

fn word_length(text: &str) -> usize {
    text.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(text.len())
}

/// Reads `.a.b` and gives its names and length.
fn fields(text: &str) -> (Vec<String>, usize) {
    let (mut names, mut length) = (Vec::new(), 0);
    while let Some(after) = text[length..].strip_prefix('.') {
        let word = word_length(after);
        if word == 0 {
            break;
        }
        names.push(after[..word].to_owned());
        length += 1 + word;
    }
    (names, length)
}

fn string(text: &str) -> Result<(Token, usize), FormatError> {
    if let Some(raw) = text.strip_prefix('`') {
        let end = raw.find('`').ok_or_else(unclosed)?;
        return Ok((Token::Literal(raw[..end].into()), end + 2));
    }
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((Token::Literal(value.into()), at + 1)),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 't')) => value.push('\t'),
                Some((_, c @ ('"' | '\\' | '\''))) => value.push(c),
                Some((_, other)) => return Err(FormatError::Refused(format!("\\{other} in a string"))),
                None => return Err(unclosed()),
            },
            c => value.push(c),
        }
    }
    Err(unclosed())
}

fn number(text: &str) -> Result<(Token, usize), FormatError> {
    let length = text[1..].find(|c: char| c != '.' && !c.is_alphanumeric()).map_or(text.len(), |at| at + 1);
    let digits = &text[..length];
    let whole = digits.parse::<i64>().map(Value::from);
    let value = whole.or_else(|_| digits.parse::<f64>().map(Value::from));
    let value = value.map_err(|_| FormatError::Syntax(format!("{digits:?} is not a number")))?;
    Ok((Token::Literal(value), length))
}
