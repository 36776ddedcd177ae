//! Collects mistakes while sections are checked, and has the checks that several sections share.
//!
//! Every check returns a usable value even when it reports a mistake, so that later checks still
//! run. A configuration with any mistake is never returned.

use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, ConfigErrors};
use super::key_path::{KeyPath, Lines, Value, read};
use super::syntax;
use crate::net::Network;

/// Longest name of a VIP or backend, in bytes: it must fit a table column and a command line.
const MAX_NAME: usize = 64;
/// Longest interface name, in bytes: the kernel's `IFNAMSIZ` less its NUL.
const MAX_INTERFACE: usize = 15;
/// Shortest IPv4 prefix of a VIP: registries allocate no larger network.
const SHORTEST_V4: u8 = 8;
const SHORTEST_V6: u8 = 16;

/// The mistakes found so far in one file.
pub(super) struct Report<'a> {
    file: &'a str,
    lines: Lines<'a>,
    document: Spanned<DeTable<'a>>,
    errors: Vec<(usize, ConfigError)>,
    /// Keys that were reported as wrong and left out; they are not reported as missing.
    left_out: Vec<KeyPath>,
}

impl<'a> Report<'a> {
    /// Parses the text.
    ///
    /// # Errors
    /// The first syntax error. Later ones mostly follow from it, and the apparent contents of a
    /// broken text would only add spurious mistakes.
    pub(super) fn parse(text: &'a str, file: &'a str) -> Result<Self, ConfigErrors> {
        let (document, error) = match DeTable::parse(text) {
            Ok(document) => (document, None),
            Err(error) => (Spanned::new(0..0, DeTable::new()), Some(error)),
        };
        let lines = Lines::new(text);
        let mut report = Self { file, lines, document, errors: Vec::new(), left_out: Vec::new() };
        let Some(error) = error else { return Ok(report) };
        let start = error.span().unwrap_or_default().start;
        let line = report.lines.find(start).2;
        let (what, fix) = syntax::explain(line, error.message());
        report.push(start, String::new(), what, &fix);
        Err(report.into_errors())
    }

    /// Returns the parsed document.
    pub(super) fn document(&self) -> DeTable<'a> {
        self.document.get_ref().clone()
    }

    /// Returns the mistakes in the file's order as an error, if there are any.
    pub(super) fn finish(self) -> Result<(), ConfigErrors> {
        if self.errors.is_empty() { Ok(()) } else { Err(self.into_errors()) }
    }

    fn into_errors(mut self) -> ConfigErrors {
        self.errors.sort_by_key(|(start, _)| *start);
        ConfigErrors(self.errors.into_iter().map(|(_, error)| error).collect())
    }

    /// Whether there are mistakes so far.
    pub(super) const fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }

    /// Records a mistake at `key_path`.
    pub(super) fn error(&mut self, key_path: &KeyPath, what: impl Into<String>, fix: &str) {
        self.push(key_path.span(&self.document).start, key_path.to_string(), what.into(), fix);
    }

    /// Records that a key without a default is missing.
    pub(super) fn missing(&mut self, key_path: &KeyPath, fix: &str) {
        if !self.left_out.iter().any(|left_out| key_path.is_within(left_out)) {
            self.error(key_path, "missing", fix);
        }
    }

    /// Returns the line number of `key_path`.
    pub(super) fn line(&self, key_path: &KeyPath) -> usize {
        self.lines.find(key_path.span(&self.document).start).0
    }

    fn push(&mut self, start: usize, key: String, what: String, fix: &str) {
        let (line, column, text) = self.lines.find(start);
        // A tab is one column wide in the caret's line, too.
        let text = if syntax::has_secret(text) { String::new() } else { text.replace('\t', " ") };
        let (file, fix) = (self.file.to_owned(), fix.to_owned());
        let position = Some((line, column));
        let error = ConfigError { file, position, key, what, fix, line: text };
        self.errors.push((start, error));
    }

    /// Records a key of the document that no section reads.
    pub(super) fn unknown(&mut self, key: &str, start: usize, what: &str, fix: &str) {
        self.push(start, key.to_owned(), what.to_owned(), fix);
    }

    /// Records that `key_path` has a wrong type; keys within it are then not reported as missing.
    pub(super) fn wrong_type(&mut self, key_path: &KeyPath, what: &str, fix: &str) {
        self.error(key_path, what, fix);
        self.left_out.push(key_path.clone());
    }

    /// Returns the elements of `[[key_path]]`; elements that are not tables are recorded and left
    /// out.
    pub(super) fn tables<'v>(
        &mut self,
        list: Option<Value<'v>>,
        key_path: &KeyPath,
    ) -> Vec<Value<'v>> {
        let Some(list) = list else { return Vec::new() };
        let is_table = |value: &Value<'_>| matches!(value.get_ref(), DeValue::Table(_));
        if let DeValue::Array(list) = list.get_ref()
            && list.iter().all(is_table)
        {
            return list.iter().cloned().collect();
        }
        self.error(
            key_path,
            "not a list of tables",
            &format!("write [[{key_path}]], in double brackets"),
        );
        self.left_out.push(key_path.clone());
        Vec::new()
    }

    /// Reads a section as its raw type; keys that are unknown or of a wrong type are recorded and
    /// left out.
    pub(super) fn read<T: DeserializeOwned + Default>(
        &mut self,
        value: Value<'_>,
        key_path: &KeyPath,
    ) -> T {
        read(value, key_path, |key_path, error| {
            let start = error.span().unwrap_or_default().start;
            let (what, fix) = in_words(error.message());
            self.push(start, key_path.to_string(), what, &fix);
            self.left_out.push(key_path);
        })
    }

    /// Returns a whole number within `range`, or the default.
    pub(super) fn integer<T>(
        &mut self,
        key_path: &KeyPath,
        value: Option<i64>,
        default: T,
        range: RangeInclusive<T>,
    ) -> T
    where
        T: TryFrom<i64> + PartialOrd + Display + Copy,
    {
        let Some(value) = value else { return default };
        match T::try_from(value) {
            Ok(number) if range.contains(&number) => number,
            _ => {
                let fix = format!("use {} to {}", range.start(), range.end());
                self.error(key_path, format!("{value} is out of range"), &fix);
                default
            }
        }
    }

    /// Returns a number within `range`; integers count as numbers.
    pub(super) fn real(
        &mut self,
        key_path: &KeyPath,
        value: Option<f64>,
        default: f64,
        range: RangeInclusive<f64>,
    ) -> f64 {
        let Some(value) = value else { return default };
        if range.contains(&value) {
            return value;
        }
        let fix = format!("use {} to {}", range.start(), range.end());
        self.error(key_path, format!("{value} is out of range"), &fix);
        default
    }

    /// Returns the value of one of `words`. `later` lists words that the design has and this
    /// version lacks.
    pub(super) fn word<T: Copy>(
        &mut self,
        key_path: &KeyPath,
        value: &str,
        words: &[(&str, T)],
        later: &[&str],
    ) -> Option<T> {
        let found = words.iter().find(|(word, _)| *word == value);
        if found.is_none() {
            let known: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
            let known = known.join(" or ");
            let (what, fix) = if later.contains(&value) {
                ("is not available in this version", format!("available: {known}"))
            } else {
                ("is not a value of this key", format!("use {known}"))
            };
            self.error(key_path, format!("\"{value}\" {what}"), &fix);
        }
        found.map(|(_, meaning)| *meaning)
    }

    /// Checks a name that can be written on a command line as `VIP/BACKEND`.
    pub(super) fn name(&mut self, key_path: &KeyPath, value: Option<String>) -> Option<String> {
        let Some(name) = value else {
            self.missing(key_path, "give it a name, such as name = \"web\"");
            return None;
        };
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(allowed) {
            let fix = "use 1 to 64 of the characters A-Z a-z 0-9 _ . -";
            self.error(key_path, format!("\"{name}\" is not a name"), fix);
            return None;
        }
        Some(name)
    }

    /// Checks an interface name by the kernel's rules (`dev_valid_name` in net/core/dev.c).
    pub(super) fn interface(&mut self, key_path: &KeyPath, name: &str) {
        let allowed = |c: char| !c.is_whitespace() && !c.is_control() && c != '/' && c != ':';
        let fits = (1..=MAX_INTERFACE).contains(&name.len()) && name != "." && name != "..";
        if !fits || !name.chars().all(allowed) {
            let fix = "use 1 to 15 characters without spaces, '/' and ':'; `ip link` lists them";
            self.error(key_path, format!("\"{name}\" is not an interface name"), fix);
        }
    }

    /// Parses an address or prefix that hosts can have and others can send to.
    pub(super) fn network(&mut self, key_path: &KeyPath, value: Option<&str>) -> Option<Network> {
        let Some(text) = value.filter(|text| text.contains('/')) else {
            return self.address(key_path, value).map(Network::from);
        };
        let Ok(net) = text.parse::<IpNet>() else {
            let fix = "write an address such as 192.0.2.10, or a prefix such as 192.0.2.0/24";
            self.error(key_path, format!("\"{text}\" is no prefix of addresses"), fix);
            return None;
        };
        if net.trunc() != net {
            let fix = format!("write \"{}\", or the address without a length", net.trunc());
            self.error(key_path, format!("{net} has bits behind its length"), &fix);
            return None;
        }
        let shortest = if net.addr().is_ipv4() { SHORTEST_V4 } else { SHORTEST_V6 };
        if net.prefix_len() < shortest {
            let fix = format!("use /{shortest} or longer");
            self.error(key_path, format!("{net} is more than a network has"), &fix);
            return None;
        }
        match unusable(net.addr()) {
            None => Some(net.into()),
            Some((kind, fix)) => {
                self.error(key_path, format!("{net} begins with {kind}"), fix);
                None
            }
        }
    }

    /// Parses an address that one host can have and others can send to.
    pub(super) fn address(&mut self, key_path: &KeyPath, value: Option<&str>) -> Option<IpAddr> {
        let Some(text) = value else {
            self.missing(
                key_path,
                "give an IPv4 or IPv6 address, such as address = \"192.0.2.10\"",
            );
            return None;
        };
        let Ok(address) = text.parse::<IpAddr>() else {
            let fix = if text.contains('/') {
                "write one IPv4 or IPv6 address, without prefix length"
            } else {
                "write one IPv4 or IPv6 address, without port or brackets"
            };
            self.error(key_path, format!("\"{text}\" is not an IP address"), fix);
            return None;
        };
        match unusable(address) {
            None => Some(address),
            Some((kind, fix)) => {
                self.error(key_path, format!("{address} is {kind}"), fix);
                None
            }
        }
    }
}

/// Returns the reason why packets cannot be sent to `address`, and the remedy; `None` if they can.
fn unusable(address: IpAddr) -> Option<(&'static str, &'static str)> {
    const UNICAST: &str = "use a unicast address that other hosts can reach";
    let kind = match address {
        _ if address.is_loopback() => "a loopback address",
        _ if address.is_unspecified() => "the unspecified address",
        _ if address.is_multicast() => "a multicast address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        IpAddr::V4(v4) if v4.octets().first() == Some(&0) => "in 0.0.0.0/8, \"this network\"",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            return Some(("an IPv4-mapped IPv6 address", "write it as IPv4"));
        }
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
        _ => return None,
    };
    Some((kind, UNICAST))
}

/// Converts Serde's message into the terms of a configuration: mistake and remedy.
fn in_words(message: &str) -> (String, String) {
    let (what, expected) = message.split_once(", expected ").unwrap_or((message, ""));
    let what = what.replace("unknown field", "unknown key");
    let expected = expected.replace('`', "");
    let expected = expected.trim_start_matches("one of ");
    if let Some(range) = what.strip_prefix("invalid type: string ").filter(|text| is_range(text))
        && expected == "i64"
    {
        let what = format!("{range}: ranges are not possible in this version");
        return (what, "list every number, such as [8000, 8001]".to_owned());
    }
    let fix = match expected {
        "" => String::new(),
        "i64" => "write a whole number".to_owned(),
        "a sequence" => "write a list, such as [1, 2]".to_owned(),
        "a string" => "write a text in quotes".to_owned(),
        _ if expected.starts_with("struct ") => "write a table, as in { key = value }".to_owned(),
        _ if what.starts_with("unknown key") => format!("the keys here are: {expected}"),
        _ => format!("write {expected}"),
    };
    (what, fix)
}

/// Whether a quoted text is two numbers with a hyphen between them.
fn is_range(quoted: &str) -> bool {
    let number = |text: &str| text.trim().parse::<u32>().is_ok();
    quoted.trim_matches('"').split_once('-').is_some_and(|(a, b)| number(a) && number(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serde_messages_become_words() {
        for (message, what, fix) in [
            (
                "unknown field `corse`, expected one of `cores`, `idle`",
                "unknown key `corse`",
                "the keys here are: cores, idle",
            ),
            (
                "invalid type: string \"x\", expected i64",
                "invalid type: string \"x\"",
                "write a whole number",
            ),
            (
                "invalid type: integer `5`, expected struct RawDrain",
                "invalid type: integer `5`",
                "write a table, as in { key = value }",
            ),
            ("duplicate key", "duplicate key", ""),
        ] {
            assert_eq!(in_words(message), (what.to_owned(), fix.to_owned()));
        }
    }
}
