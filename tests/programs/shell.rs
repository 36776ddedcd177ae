//! Programs that a shell script runs: the part of bash's grammar that finds the words that name
//! one.

use std::collections::BTreeSet;

/// A word; `None` if its value is known only at run time of the script.
pub type Word = Option<String>;

/// Words of the grammar that come before a command.
const KEYWORDS: [&str; 13] =
    ["if", "then", "else", "elif", "fi", "while", "until", "do", "done", "!", "{", "}", "time"];

/// Builtin commands of bash.
const BUILTINS: [&str; 39] = [
    ".",
    ":",
    "[",
    "break",
    "builtin",
    "cd",
    "command",
    "continue",
    "declare",
    "echo",
    "eval",
    "exec",
    "exit",
    "export",
    "false",
    "getopts",
    "hash",
    "kill",
    "let",
    "local",
    "mapfile",
    "printf",
    "pwd",
    "read",
    "readarray",
    "readonly",
    "return",
    "set",
    "shift",
    "shopt",
    "source",
    "test",
    "trap",
    "true",
    "type",
    "ulimit",
    "umask",
    "unset",
    "wait",
];

/// Commands that run another one, by the number of operands that come before it.
const WRAPPERS: [(usize, &[&str]); 6] = [
    (0, &["taskset", "setsid", "nice", "exec", "env", "xargs", "unshare", "setpriv", "prlimit"]),
    (1, &["ip netns exec", "timeout", "chroot"]),
    // Functions of the scripts.
    (0, &["attempt_tests"]),
    (1, &["in_host", "lab exec", "wait_until", "with_apt", "attempt"]),
    (2, &["start_server", "start"]),
    (3, &["check"]),
];

/// Options of these commands that take a value as a separate word.
const WITH_VALUE: [&str; 5] = ["-c", "-k", "--reuid", "--regid", "-n"];

/// The programs that `text` runs, and the functions that it defines.
pub fn programs(text: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut script = Script { text: text.chars().collect(), ..Script::default() };
    script.list(None);
    (script.programs, script.functions)
}

/// The programs of one command line with known words.
pub fn programs_of_command(words: &[Word]) -> BTreeSet<String> {
    let mut script = Script::default();
    script.resolve(words);
    script.programs
}

#[derive(Default)]
struct Script {
    text: Vec<char>,
    at: usize,
    /// End marks of the here-documents that begin at the next line, and whether these are expanded.
    heredocs: Vec<(String, bool)>,
    programs: BTreeSet<String>,
    functions: BTreeSet<String>,
}

impl Script {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn starts_with(&self, wanted: &str) -> bool {
        wanted.chars().enumerate().all(|(i, c)| self.text.get(self.at + i) == Some(&c))
    }

    fn rest_of_line(&mut self) -> String {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let line: String = rest.iter().take_while(|&&c| c != '\n').collect();
        self.at += line.chars().count();
        line
    }

    /// Commands up to `end`, or to the end of the text.
    fn list(&mut self, end: Option<char>) {
        let (mut words, mut depth, mut cases) = (Vec::new(), 0, 0);
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => self.at += 1,
                '\\' if self.starts_with("\\\n") => self.at += 2,
                '#' => _ = self.rest_of_line(),
                '\n' => {
                    self.at += 1;
                    self.command(&mut words);
                    self.skip_heredocs();
                }
                '(' if self.starts_with("((") && (is_start(&words) || is_for(&words)) => {
                    self.arithmetic();
                }
                '(' => {
                    // `name() {` defines a function.
                    if let [Some(name)] = &words[..]
                        && self.starts_with("()")
                    {
                        self.functions.insert(name.clone());
                        words.clear();
                        self.at += 2;
                    } else {
                        self.command(&mut words);
                        depth += 1;
                        self.at += 1;
                    }
                }
                ')' if depth == 0 && end == Some(')') => break,
                ')' => {
                    self.command(&mut words);
                    depth -= i32::from(depth > 0);
                    self.at += 1;
                }
                ';' if self.starts_with(";;") => {
                    self.command(&mut words);
                    self.at += 2;
                    self.pattern(&mut cases);
                }
                ';' | '|' | '&' => {
                    self.command(&mut words);
                    self.at += 1;
                }
                '<' | '>' => self.redirection(&mut words),
                _ => {
                    let word = self.word();
                    let starts = is_start(&words);
                    match word.as_deref() {
                        Some("[[") if starts => self.condition(),
                        Some("case") if starts => {
                            self.skip_blanks();
                            self.word();
                            self.skip_blanks();
                            self.word();
                            cases += 1;
                            self.pattern(&mut cases);
                        }
                        Some("esac") if starts => cases -= 1,
                        _ => words.push(word),
                    }
                }
            }
        }
        self.command(&mut words);
    }

    fn skip_blanks(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) || self.starts_with("\\\n") {
            self.at += 1;
        }
    }

    /// Skips the pattern of a case with its bracket, or `esac`.
    fn pattern(&mut self, cases: &mut i32) {
        self.skip_blanks();
        while self.peek() == Some('#') {
            self.rest_of_line();
            self.skip_blanks();
        }
        if self.starts_with("esac") {
            self.at += 4;
            *cases -= 1;
            return;
        }
        while let Some(c) = self.peek() {
            match c {
                ')' => return self.at += 1,
                ' ' | '\t' | '|' | '(' => self.at += 1,
                _ => _ = self.word(),
            }
        }
    }

    /// Skips to the end of `((`.
    fn arithmetic(&mut self) {
        let mut depth = 0;
        while let Some(c) = self.peek() {
            match c {
                '(' => depth += 1,
                ')' => depth -= 1,
                '$' if self.starts_with("$(") => {
                    self.dollar();
                    continue;
                }
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return;
            }
        }
    }

    /// Skips to the end of `[[`.
    fn condition(&mut self) {
        while self.at < self.text.len() {
            self.skip_blanks();
            match self.peek() {
                Some('(' | ')' | '<' | '>' | '&' | '|' | ';' | '#') => self.at += 1,
                _ => {
                    if self.word().as_deref() == Some("]]") {
                        return;
                    }
                }
            }
        }
    }

    fn redirection(&mut self, words: &mut Vec<Word>) {
        // The number of a descriptor precedes the operator.
        let touches = self.at > 0 && self.text.get(self.at - 1).is_some_and(char::is_ascii_digit);
        if touches && words.last().is_some_and(|w| w.as_deref().is_some_and(is_number)) {
            words.pop();
        }
        if self.starts_with("<(") || self.starts_with(">(") {
            self.at += 2;
            self.list(Some(')'));
            self.at += 1;
            return words.push(None);
        }
        let here = self.starts_with("<<") && !self.starts_with("<<<");
        while self.peek().is_some_and(|c| "<>&|-".contains(c)) {
            self.at += 1;
        }
        while self.peek().is_some_and(|c| c == ' ') {
            self.at += 1;
        }
        let expanded = !matches!(self.peek(), Some('\'' | '"'));
        let target = self.word();
        if let Some(end) = target.filter(|_| here) {
            self.heredocs.push((end, expanded));
        }
    }

    /// Skips the bodies of here-documents; programs that an expansion runs count.
    fn skip_heredocs(&mut self) {
        for (end, expanded) in std::mem::take(&mut self.heredocs) {
            while self.at < self.text.len() {
                let begin = self.at;
                let line = self.rest_of_line();
                let after = self.at + 1;
                if line.trim_start_matches('\t') == end {
                    self.at = after;
                    break;
                }
                self.at = begin;
                while expanded && self.at + 1 < after {
                    match self.peek() {
                        Some('\\') => self.at += 2,
                        Some('$') => self.dollar(),
                        _ => self.at += 1,
                    }
                }
                self.at = self.at.max(after);
            }
        }
    }

    /// One word; `None` if it has an expansion.
    fn word(&mut self) -> Word {
        let (mut literal, mut known, begin) = (String::new(), true, self.at);
        while let Some(c) = self.peek() {
            match c {
                c if c.is_whitespace() || ";&|<>".contains(c) => break,
                ')' => break,
                '(' if literal.ends_with('=') && self.at > begin => {
                    self.at += 1;
                    self.array();
                    known = false;
                }
                '(' => break,
                '\'' => {
                    self.at += 1;
                    while let Some(c) = self.peek().filter(|&c| c != '\'') {
                        literal.push(c);
                        self.at += 1;
                    }
                    self.at += 1;
                }
                '"' => known &= self.quoted(&mut literal),
                c => known &= self.character(c, &mut literal),
            }
        }
        if self.at == begin {
            // No word begins with this character, but the position must advance.
            self.at += 1;
        }
        // An assignment is recognised without its value.
        if !known && literal.split_once('=').is_some_and(|(name, _)| is_name(name)) {
            return Some(literal);
        }
        known.then_some(literal)
    }

    /// A character, an escaped one or an expansion; returns whether its value is known before run
    /// time.
    fn character(&mut self, c: char, literal: &mut String) -> bool {
        match c {
            '\\' => {
                literal.extend(self.text.get(self.at + 1));
                self.at += 2;
            }
            '$' => self.dollar(),
            c => {
                literal.push(c);
                self.at += 1;
            }
        }
        c != '$'
    }

    /// Text in double quotes; returns whether its value is known before run time.
    fn quoted(&mut self, literal: &mut String) -> bool {
        let mut known = true;
        self.at += 1;
        while let Some(c) = self.peek() {
            match c {
                '"' => break,
                c => known &= self.character(c, literal),
            }
        }
        self.at += 1;
        known
    }

    /// An expansion.
    fn dollar(&mut self) {
        if self.starts_with("$((") {
            self.at += 1;
            self.arithmetic();
        } else if self.starts_with("$(") {
            self.at += 2;
            self.list(Some(')'));
            self.at += 1;
        } else if self.starts_with("${") {
            self.at += 2;
            while let Some(c) = self.peek().filter(|&c| c != '}') {
                match c {
                    '$' => self.dollar(),
                    '\'' | '"' if self.text.get(self.at - 1) != Some(&'\\') => {
                        self.word_of_brace(c);
                    }
                    _ => self.at += 1,
                }
            }
            self.at += 1;
        } else {
            self.at += 1;
        }
    }

    fn word_of_brace(&mut self, quote: char) {
        if quote == '"' {
            self.quoted(&mut String::new());
            return;
        }
        self.at += 1;
        while self.peek().is_some_and(|c| c != quote) {
            self.at += 1;
        }
        self.at += 1;
    }

    /// The words of an array: a command line, if it looks like one.
    fn array(&mut self) {
        let mut words = Vec::new();
        loop {
            self.skip_blanks();
            match self.peek() {
                None => break,
                Some(')') => break self.at += 1,
                Some('#') => _ = self.rest_of_line(),
                Some(c) if ";&|<>(".contains(c) => self.at += 1,
                Some(_) => words.push(self.word()),
            }
        }
        if is_command_line(&words) {
            self.resolve(&words);
        }
    }

    fn command(&mut self, words: &mut Vec<Word>) {
        let words = std::mem::take(words);
        let keyword = |word: &&Word| word.as_deref().is_some_and(|word| KEYWORDS.contains(&word));
        let before = words.iter().take_while(keyword).count();
        let words = &words[before..];
        let assignments = words.iter().take_while(|word| is_assignment(word)).count();
        let words = &words[assignments..];
        // The words of a loop are not a command.
        if !matches!(words.first(), Some(Some(word)) if word == "for" || word == "select") {
            self.resolve(words);
        }
    }

    /// Records the program that a command line runs, and the programs that it runs in turn.
    fn resolve(&mut self, words: &[Word]) {
        let literal = |at: usize| words.get(at).and_then(|word: &Word| word.as_deref());
        // A number is the operand of `taskset -cp 0 PID`, which runs nothing.
        let Some(first) = literal(0).filter(|first| !is_number(first)) else { return };
        let is_shell = ["bash", "sh"].contains(&first);
        if !BUILTINS.contains(&first) {
            self.programs.insert(first.to_owned());
        }
        if let Some(code) = words.iter().position(|word| word.as_deref() == Some("-c"))
            && is_shell
        {
            if let Some(code) = literal(code + 1) {
                self.programs.extend(programs(code).0);
            }
            return;
        }
        if let Some(code) = literal(1).filter(|&code| first == "trap" && code != "-") {
            self.programs.extend(programs(code).0);
        }
        for (operands, wrapper) in WRAPPERS.iter().flat_map(|(n, all)| all.iter().map(|w| (*n, *w)))
        {
            let length = wrapper.split(' ').count();
            if wrapper.split(' ').enumerate().all(|(at, word)| literal(at) == Some(word)) {
                let rest = skip_options(&words[length..]);
                return self.resolve(skip_options(rest.get(operands..).unwrap_or_default()));
            }
        }
    }
}

fn skip_options(words: &[Word]) -> &[Word] {
    match words {
        [Some(option), _, rest @ ..] if WITH_VALUE.contains(&option.as_str()) => skip_options(rest),
        [Some(option), rest @ ..] if option.starts_with('-') => skip_options(rest),
        [word, rest @ ..] if is_assignment(word) => skip_options(rest),
        words => words,
    }
}

/// Whether the words are a command with options.
pub fn is_command_line(words: &[Word]) -> bool {
    let is_option = |word: &Word| word.as_deref().is_some_and(|word| word.starts_with('-'));
    words.first().is_some_and(|first| first.is_some() && !is_option(first))
        && words.iter().any(is_option)
}

fn is_start(words: &[Word]) -> bool {
    words.iter().all(|word| {
        is_assignment(word) || word.as_deref().is_some_and(|word| KEYWORDS.contains(&word))
    })
}

/// Whether the words are the beginning of `for ((`.
fn is_for(words: &[Word]) -> bool {
    matches!(words, [.., Some(word)] if word == "for")
}

fn is_assignment(word: &Word) -> bool {
    let name = word.as_deref().and_then(|word| word.split_once('='));
    name.is_some_and(|(name, _)| is_name(name))
}

fn is_name(text: &str) -> bool {
    let text = text.trim_end_matches('+').split('[').next().unwrap_or_default();
    !text.is_empty()
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !is_number(text)
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}
