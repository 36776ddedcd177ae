//! What is wrong with a configuration: where, what, and what to write instead.

use std::fmt;

/// One mistake. Printed as `file:line:column: key: what is wrong; how to fix it`, followed by the
/// line and a caret under the place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, as it was named.
    pub file: String,
    /// Line and column, both from 1; `None` when the file could not be read at all.
    pub position: Option<(usize, usize)>,
    /// The key, such as `vip.backend.port`; empty when the mistake is not about one key.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// How to fix it; empty where `what` says it all.
    pub fix: String,
    /// The line of the file; empty for a mistake without a position, and for a line with a secret.
    pub line: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if let Some((line, column)) = self.position {
            write!(f, "{line}:{column}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.what)?;
        if !self.fix.is_empty() {
            write!(f, "; {}", self.fix)?;
        }
        match self.position {
            Some((line, column)) if !self.line.trim().is_empty() => {
                write!(f, "\n{line:>5} | {}\n      | {:>column$}", self.line, '^')
            }
            _ => Ok(()),
        }
    }
}

/// Every mistake of a configuration, in the file's order; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl ConfigErrors {
    /// One text per mistake.
    pub fn messages(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, error) in self.0.iter().enumerate() {
            let newline = if number == 0 { "" } else { "\n" };
            write!(f, "{newline}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
