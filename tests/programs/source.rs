//! Programs that Rust and Python sources run: string literals at the start of a command line.

use std::collections::BTreeSet;

use super::shell::{Word, is_command_line, programs_of_command};

/// Hosts of the lab, which `run` and similar functions take before the command line.
const HOSTS: [&str; 9] = ["client", "lb", "lb2", "b1", "b2", "b3", "b4", "router", "switch"];
/// Functions that take a command line in brackets.
const RUN: [&str; 2] = ["run", "try_run"];
/// Functions that take arguments of holdfast, or of a script of the project.
const ARGUMENTS: [&str; 9] =
    ["args", "cli", "ok", "refused", "script", "run_script", "conformance", "holdfast", "extend"];
/// First words of such arguments in a separate list.
const SUBCOMMANDS: [&str; 16] = [
    "up", "cases", "random", "generate", "run", "status", "check", "replay", "whatif", "clients",
    "drain", "undrain", "events", "flows", "reload", "explain",
];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Text(String),
    Ident(String),
    Sign(char),
}

/// Programs that a source in Rust or Python names; both languages have the same strings and
/// brackets.
pub fn programs(text: &str) -> BTreeSet<String> {
    let tokens = tokens(text);
    let mut found = BTreeSet::new();
    for at in 0..tokens.len() {
        let words = command_at(&tokens, at);
        found.extend(programs_of_command(&words));
        // A name of a bash builtin counts as a program here.
        found.extend(words.into_iter().next().flatten());
    }
    found.retain(|name| is_name(name));
    found
}

/// Whether a string may be the name of a program.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_./+-".contains(c))
}

/// The command line that begins at a token; empty if none does.
fn command_at(tokens: &[Token], at: usize) -> Vec<Word> {
    let before = |back: usize| at.checked_sub(back).and_then(|at| tokens.get(at));
    let ident = |back: usize, names: &[&str]| matches!(before(back), Some(Token::Ident(name)) if names.contains(&name.as_str()));
    let text = |at: usize| match tokens.get(at) {
        Some(Token::Text(text)) => Some(text.clone()),
        _ => None,
    };
    match &tokens[at] {
        // Command::new("x")
        Token::Ident(name) if name == "new" && ident(3, &["Command"]) => vec![text(at + 2)],
        // .command(host, "x")
        Token::Ident(name) if name == "command" && before(1) == Some(&Token::Sign('.')) => {
            let arguments = tokens.get(at + 1..).unwrap_or_default();
            let comma = arguments.iter().take(12).position(|token| *token == Token::Sign(','));
            vec![comma.and_then(|comma| text(at + 2 + comma))]
        }
        // run("ip", ..), run("ip netns add x"), run(&format!("ip netns add {x}"))
        Token::Ident(name) if RUN.contains(&name.as_str()) => {
            let near = at + 1..at + 7;
            let first = near.clone().find_map(text).unwrap_or_default();
            let opens = tokens.get(at + 1) == Some(&Token::Sign('('));
            let ends =
                |at: usize| matches!(tokens.get(at), Some(Token::Sign('[' | ')' | '{' | '|')));
            let direct = near.take_while(|&at| !ends(at)).any(|at| text(at).is_some());
            if !opens || !direct || HOSTS.contains(&first.as_str()) {
                return Vec::new();
            }
            let words: Vec<Word> =
                first.split_whitespace().map(|word| Some(word.to_owned())).collect();
            let is_ours =
                |word: &Word| word.as_deref().is_some_and(|word| SUBCOMMANDS.contains(&word));
            if words.first().is_some_and(is_ours) { Vec::new() } else { words }
        }
        // ["x", "-y"], and run(host, &["x", "y"])
        Token::Sign('[') => {
            let words = elements(tokens, at);
            let near: Vec<usize> = (1..=6).take_while(|&back| !is_end(before(back))).collect();
            let is_run = near.iter().any(|&back| ident(back, &RUN))
                && !near.iter().any(|&back| is_program_before(before(back)));
            let is_other = near.iter().any(|&back| ident(back, &ARGUMENTS));
            let first = words.first().and_then(|word| word.as_deref()).unwrap_or_default();
            if first.is_empty() || first.starts_with('-') || SUBCOMMANDS.contains(&first) {
                return Vec::new();
            }
            if is_run || !is_other && is_command_line(&words) { words } else { Vec::new() }
        }
        _ => Vec::new(),
    }
}

/// Whether the brackets are arguments of a program, as in `run("ip", &[..])`.
fn is_program_before(token: Option<&Token>) -> bool {
    matches!(token, Some(Token::Text(text)) if !HOSTS.contains(&text.as_str()))
}

fn is_end(token: Option<&Token>) -> bool {
    matches!(token, None | Some(Token::Sign(';' | '{' | '}')))
}

/// Elements of an array: strings, or `None` for values that are known at run time only.
fn elements(tokens: &[Token], at: usize) -> Vec<Word> {
    let (mut words, mut depth, mut word, mut any) = (Vec::new(), 0, None, false);
    for token in &tokens[at..] {
        match token {
            Token::Sign('[' | '(' | '{') => depth += 1,
            Token::Sign(']' | ')' | '}') => depth -= 1,
            Token::Sign(',') if depth == 1 => {
                words.push(word.take());
                any = false;
                continue;
            }
            Token::Text(text) if depth == 1 && !any => word = Some(text.clone()),
            _ => word = None,
        }
        any |= depth > 1 || matches!(token, Token::Text(_) | Token::Ident(_));
        if depth == 0 {
            break;
        }
    }
    if any {
        words.push(word);
    }
    words
}

fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let (mut tokens, mut at) = (Vec::new(), 0);
    while let Some(&c) = chars.get(at) {
        let next = chars.get(at + 1);
        at += 1;
        match c {
            '/' if next == Some(&'/') => {
                while chars.get(at).is_some_and(|&c| c != '\n') {
                    at += 1;
                }
            }
            '"' => {
                let mut literal = String::new();
                while let Some(&c) = chars.get(at).filter(|&&c| c != '"') {
                    let escaped = c == '\\';
                    literal.extend(chars.get(at + usize::from(escaped)));
                    at += 1 + usize::from(escaped);
                }
                at += 1;
                tokens.push(Token::Text(literal));
            }
            // A character literal, not a lifetime.
            '\'' if next == Some(&'\\') || chars.get(at + 1) == Some(&'\'') => {
                at += 1 + usize::from(next == Some(&'\\'));
                while chars.get(at).is_some_and(|&c| c != '\'') {
                    at += 1;
                }
                at += 1;
            }
            c if c.is_alphanumeric() || c == '_' => {
                let begin = at - 1;
                while chars.get(at).is_some_and(|&c| c.is_alphanumeric() || c == '_') {
                    at += 1;
                }
                tokens.push(Token::Ident(chars[begin..at].iter().collect()));
            }
            c if c.is_whitespace() => {}
            c => tokens.push(Token::Sign(c)),
        }
    }
    tokens
}
