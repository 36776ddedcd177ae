//! Positions in the file: a path of keys and indexes to a value, and its line and column.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// A value of the document, as TOML, with its byte range.
pub(super) type Value<'a> = Spanned<DeValue<'a>>;

/// Path to a value, such as `vip[1].backend[0].port`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct KeyPath(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(Cow<'static, str>),
    Index(usize),
}

impl KeyPath {
    /// Returns the path of the document.
    pub(super) fn root() -> Self {
        Self::default()
    }

    /// Returns the path of `key` in this table.
    #[must_use]
    pub(super) fn key(&self, key: impl Into<Cow<'static, str>>) -> Self {
        self.step(Step::Key(key.into()))
    }

    /// Returns the path of element `index` in this list.
    #[must_use]
    pub(super) fn index(&self, index: usize) -> Self {
        self.step(Step::Index(index))
    }

    /// Whether this path is `other` or lies within it.
    pub(super) fn is_within(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }

    fn step(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// Returns the byte range of the value; if the value is absent, that of the nearest enclosing
    /// table.
    pub(super) fn span(&self, document: &Spanned<DeTable<'_>>) -> Range<usize> {
        let mut span = document.span();
        let Some((Step::Key(first), rest)) = self.0.split_first() else { return span };
        let Some(mut value) = document.get_ref().get(first.as_ref()) else { return span };
        span = value.span();
        for step in rest {
            let next = match (step, value.get_ref()) {
                (Step::Key(key), DeValue::Table(table)) => table.get(key.as_ref()),
                (Step::Index(index), DeValue::Array(list)) => list.get(*index),
                _ => None,
            };
            let Some(next) = next else { break };
            value = next;
            span = value.span();
        }
        span
    }
}

/// Keys joined by dots. Indexes are omitted: messages have the line number.
impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.0.iter().filter_map(|step| match step {
            Step::Key(key) => Some(key),
            Step::Index(_) => None,
        });
        for (number, key) in keys.enumerate() {
            let dot = if number == 0 { "" } else { "." };
            write!(f, "{dot}{key}")?;
        }
        Ok(())
    }
}

/// Line index of a text. Cost: one pass over the text, then a binary search per look-up.
pub(super) struct Lines<'a> {
    text: &'a str,
    /// Start of each line, in bytes.
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let after_newlines = text.match_indices('\n').map(|(at, _)| at + 1);
        Self { text, starts: std::iter::once(0).chain(after_newlines).collect() }
    }

    /// Returns line and column of a byte, both from 1, the column in characters; and the text of
    /// the line.
    pub(super) fn find(&self, byte: usize) -> (usize, usize, &'a str) {
        let line = self.starts.partition_point(|&start| start <= byte);
        let start = self.starts.get(line.saturating_sub(1)).copied().unwrap_or_default();
        let column = self.text.get(start..byte).unwrap_or_default().chars().count() + 1;
        let rest = self.text.get(start..).unwrap_or_default();
        (line, column, rest.lines().next().unwrap_or_default())
    }
}

/// Reads a section as its raw type. A key that does not fit is reported to `complain` with its path
/// and left out, and the rest is read again, so that one mistake does not hide the next.
///
/// Cost: the section is read once more per mistake.
pub(super) fn read<T: DeserializeOwned + Default>(
    mut section: Value<'_>,
    key_path: &KeyPath,
    mut complain: impl FnMut(KeyPath, &toml::de::Error),
) -> T {
    loop {
        let error = match T::deserialize(ValueDeserializer::from(section.clone())) {
            Ok(raw) => return raw,
            Err(error) => error,
        };
        let span = error.span().unwrap_or_default();
        let removed = remove(&mut section, &span, key_path);
        complain(removed.clone().unwrap_or_else(|| key_path.clone()), &error);
        if removed.is_none() {
            return T::default();
        }
    }
}

/// Removes the innermost key whose name or value covers `span`; returns its path.
fn remove(value: &mut Value<'_>, span: &Range<usize>, key_path: &KeyPath) -> Option<KeyPath> {
    let DeValue::Table(table) = value.get_mut() else { return None };
    let covers = |range: Range<usize>| range.start <= span.start && span.end <= range.end;
    let key = table.iter().find(|(key, value)| covers(key.span()) || covers(value.span()))?.0;
    let key = key.get_ref().to_string();
    let here = key_path.key(key.clone());
    let inner = table.get_mut(key.as_str())?;
    if let Some(deeper) = remove(inner, span, &here) {
        return Some(deeper);
    }
    table.remove(key.as_str());
    Some(here)
}

/// A checked value and its position, for the rules between sections.
pub(super) struct Located<T> {
    /// Checked value.
    pub(super) value: T,
    /// Position in the file.
    pub(super) key_path: KeyPath,
}
