//! Configuration mistakes: position, description and remedy.

use std::fmt;

/// One mistake. Printed as `file:line:column: key: mistake; remedy`, followed by the line and a
/// caret under the position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// File name as given.
    pub file: String,
    /// Line and column, both from 1; `None` if the file could not be read.
    pub position: Option<(usize, usize)>,
    /// Key, such as `vip.backend.port`; empty when the mistake is not about one key.
    pub key: String,
    /// Description of the mistake.
    pub what: String,
    /// Remedy; empty where the description suffices.
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

/// All mistakes of a configuration, in the file's order; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl ConfigErrors {
    /// Returns one text per mistake.
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
