//! Tokens become a tree: text, printed pipelines, `if`, `range` and `with`.

use serde_json::Value;

use super::FormatError;
use super::lexer::{Piece, Token, pieces};

/// Deeper than any template a person writes; bounds the recursion.
const DEPTH_MAX: usize = 64;
/// Words of Go's templates that are no functions and not in the subset.
const REFUSED_WORDS: [&str; 5] = ["define", "template", "block", "break", "continue"];

/// Is one step of a template.
#[derive(Debug)]
pub enum Node {
    Text(String),
    Print(Pipeline),
    /// `if` or, where the value becomes the dot, `with`.
    Choice {
        condition: Pipeline,
        becomes_dot: bool,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Range {
        over: Pipeline,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

/// Is commands joined by `|`; what one gives is the last argument of the next.
#[derive(Debug)]
pub struct Pipeline {
    /// `$x :=` or, in a range, `$i, $x :=`.
    pub variables: Vec<String>,
    /// `=` instead of `:=`.
    pub assigns: bool,
    pub commands: Vec<Vec<Operand>>,
}

/// Is one argument; the first of a command may be a function.
#[derive(Debug)]
pub enum Operand {
    Fields(Vec<String>),
    Variable(String, Vec<String>),
    Function(String),
    Literal(Value),
    Group(Pipeline, Vec<String>),
}

/// Parses a whole template.
pub fn template(text: &str) -> Result<Vec<Node>, FormatError> {
    let mut pieces = pieces(text)?.into_iter();
    let (nodes, end) = block(&mut pieces, 0)?;
    match end {
        None => Ok(nodes),
        Some(end) => Err(FormatError::Syntax(format!("{{{{{}}}}} without a beginning", end.word))),
    }
}

/// Is what closed a block: `end`, or `else` with what follows it.
struct Closing {
    word: String,
    rest: Vec<Token>,
}

type Block = (Vec<Node>, Option<Closing>);

fn block(pieces: &mut std::vec::IntoIter<Piece>, depth: usize) -> Result<Block, FormatError> {
    if depth > DEPTH_MAX {
        return Err(FormatError::Syntax("nested too deeply".to_owned()));
    }
    let mut nodes = Vec::new();
    while let Some(piece) = pieces.next() {
        let mut tokens = match piece {
            Piece::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Piece::Action(tokens) => tokens,
        };
        let word = match tokens.first() {
            Some(Token::Word(word)) => word.clone(),
            Some(_) => String::new(),
            None => return Err(FormatError::Syntax("nothing between {{ and }}".to_owned())),
        };
        match word.as_str() {
            "if" | "with" | "range" => nodes.push(control(&word, tokens.split_off(1), pieces, depth)?),
            "else" | "end" => {
                let rest = tokens.split_off(1);
                return Ok((nodes, Some(Closing { word, rest })));
            }
            refused if REFUSED_WORDS.contains(&refused) => {
                return Err(FormatError::Refused(format!("{{{{{refused}}}}}")));
            }
            _ => nodes.push(Node::Print(whole_pipeline(tokens)?)),
        }
    }
    Ok((nodes, None))
}

fn control(
    word: &str,
    tokens: Vec<Token>,
    pieces: &mut std::vec::IntoIter<Piece>,
    depth: usize,
) -> Result<Node, FormatError> {
    let pipeline = whole_pipeline(tokens)?;
    let (body, closing) = block(pieces, depth + 1)?;
    let closing = closing.ok_or_else(|| FormatError::Syntax(format!("{{{{{word}}}}} without {{{{end}}}}")))?;
    let otherwise = match (closing.word.as_str(), closing.rest.as_slice()) {
        ("end", []) => Vec::new(),
        ("else", []) => {
            let (nodes, end) = block(pieces, depth + 1)?;
            match end {
                Some(Closing { word, rest }) if word == "end" && rest.is_empty() => nodes,
                _ => return Err(FormatError::Syntax("{{else}} without {{end}}".to_owned())),
            }
        }
        ("else", [Token::Word(next), rest @ ..]) if next == word && word != "range" => {
            vec![control(word, rest.to_vec(), pieces, depth + 1)?]
        }
        _ => return Err(FormatError::Syntax(format!("unexpected words after {{{{{}", closing.word))),
    };
    Ok(match word {
        "range" => Node::Range { over: pipeline, body, otherwise },
        _ => Node::Choice { condition: pipeline, becomes_dot: word == "with", then: body, otherwise },
    })
}

fn whole_pipeline(tokens: Vec<Token>) -> Result<Pipeline, FormatError> {
    let mut tokens = tokens.into_iter().peekable();
    let (found, close) = pipeline(&mut tokens, 0)?;
    if close.is_some() { Err(FormatError::Syntax(") without (".to_owned())) } else { Ok(found) }
}

type Tokens = std::iter::Peekable<std::vec::IntoIter<Token>>;

/// Parses up to the end or to a `)`, whose fields are given too.
fn pipeline(tokens: &mut Tokens, depth: usize) -> Result<(Pipeline, Option<Vec<String>>), FormatError> {
    if depth > DEPTH_MAX {
        return Err(FormatError::Syntax("nested too deeply".to_owned()));
    }
    let mut found = Pipeline { variables: Vec::new(), assigns: false, commands: Vec::new() };
    let mut command = Vec::new();
    let mut close = None;
    while let Some(token) = tokens.next() {
        match token {
            Token::Fields(names) => command.push(Operand::Fields(names)),
            Token::Variable(name, fields) => {
                let declares = command.is_empty() && found.commands.is_empty();
                match tokens.peek() {
                    Some(Token::Comma) if declares && fields.is_empty() && found.variables.is_empty() => {
                        tokens.next();
                        found.variables.push(name);
                    }
                    Some(next @ (Token::Declare | Token::Set)) if declares && fields.is_empty() => {
                        found.assigns = *next == Token::Set;
                        tokens.next();
                        found.variables.push(name);
                    }
                    _ => command.push(Operand::Variable(name, fields)),
                }
            }
            Token::Word(word) => command.push(self::word(word)?),
            Token::Literal(value) => command.push(Operand::Literal(value)),
            Token::Open => {
                let (inner, fields) = pipeline(tokens, depth + 1)?;
                let fields = fields.ok_or_else(|| FormatError::Syntax("( without )".to_owned()))?;
                command.push(Operand::Group(inner, fields));
            }
            Token::Close(fields) => {
                close = Some(fields);
                break;
            }
            Token::Bar => found.commands.push(ended(&mut command)?),
            Token::Comma | Token::Declare | Token::Set => {
                return Err(FormatError::Syntax("a , or = where none belongs".to_owned()));
            }
        }
    }
    found.commands.push(ended(&mut command)?);
    Ok((found, close))
}

fn ended(command: &mut Vec<Operand>) -> Result<Vec<Operand>, FormatError> {
    if command.is_empty() {
        return Err(FormatError::Syntax("a value is missing".to_owned()));
    }
    Ok(std::mem::take(command))
}

fn word(word: String) -> Result<Operand, FormatError> {
    match word.as_str() {
        "true" => Ok(Operand::Literal(true.into())),
        "false" => Ok(Operand::Literal(false.into())),
        "nil" => Ok(Operand::Literal(Value::Null)),
        name if super::functions::exists(name) => Ok(Operand::Function(word)),
        _ => Err(FormatError::Refused(format!("the function {word:?}"))),
    }
}
