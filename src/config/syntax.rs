//! Syntax errors in terms of a configuration. The parser reports the token that it expected, which
//! often misses the intention.

/// Returns mistake and remedy, given the line and the parser's message. The remedy is empty where
/// the message suffices.
pub(super) fn explain(line: &str, message: &str) -> (String, String) {
    let line = strip_comment(line);
    let known = if has_secret(line) {
        None
    } else if message.starts_with("duplicate key") {
        Some(duplicate(line))
    } else {
        line.split_once('=').and_then(|(key, value)| value_mistake(key.trim(), value.trim()))
    };
    known.map_or_else(
        || (format!("not TOML: {message}"), String::new()),
        |(what, fix)| (format!("not TOML: {what}"), fix),
    )
}

/// Whether a line of a configuration has a key of a hash or a cipher: messages end in logs.
pub(super) fn has_secret(line: &str) -> bool {
    line.split(['{', ',']).filter_map(|part| part.split_once('=')).any(|(key, _)| {
        let key = key.rsplit('.').next().unwrap_or_default();
        matches!(key.trim().trim_matches(['"', '\'']), "secret" | "key")
    })
}

/// Returns the line without its comment; sufficient for lines without `#` in a string.
fn strip_comment(line: &str) -> &str {
    line.split('#').next().unwrap_or_default().trim()
}

fn duplicate(line: &str) -> (String, String) {
    let what = "duplicate key".to_owned();
    let section = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let fix = match section.filter(|name| !name.starts_with('[')) {
        Some(name @ ("nic" | "vip" | "vip.backend")) => {
            format!("write [[{name}]], in double brackets, each time: there may be several")
        }
        Some(name) => format!("write [{name}] once, with all its keys"),
        None => "write every key once in its section".to_owned(),
    };
    (what, fix)
}

fn value_mistake(key: &str, value: &str) -> Option<(String, String)> {
    if let Some(items) = value.strip_prefix('[') {
        return list_mistake(key, items.trim_end_matches(']').trim());
    }
    if let Some(rest) = value.strip_prefix('"') {
        let what = "the quotes are not closed".to_owned();
        return (!rest.contains('"')).then(|| (what, format!("write {key} = \"{rest}\"")));
    }
    if is_text(value) {
        let what = "a text without quotes".to_owned();
        return Some((what, format!("write {key} = \"{value}\"")));
    }
    None
}

fn list_mistake(key: &str, items: &str) -> Option<(String, String)> {
    let is_number = |item: &str| !item.is_empty() && item.bytes().all(|c| c.is_ascii_digit());
    let range = |item: &str| {
        item.split_once('-').is_some_and(|(a, b)| is_number(a.trim()) && is_number(b.trim()))
    };
    if items.split(',').any(range) && key == "ports" {
        let what = "a range of ports is a text".to_owned();
        return Some((what, "write it in quotes, such as ports = [\"8000-8999\"]".to_owned()));
    }
    if items.split(',').any(range) {
        let what = "ranges are not possible in this version".to_owned();
        return Some((what, format!("list every number, such as {key} = [8000, 8001]")));
    }
    let words: Vec<&str> = items.split([',', ' ']).filter(|word| !word.is_empty()).collect();
    if words.len() > 1 && words.iter().all(|word| is_number(word)) {
        let what = "the elements of a list are separated by commas".to_owned();
        return Some((what, format!("write {key} = [{}]", words.join(", "))));
    }
    if words.iter().any(|word| is_text(word)) {
        let quoted: Vec<String> =
            words.iter().map(|word| format!("\"{}\"", word.trim_matches('"'))).collect();
        let what = "a text without quotes".to_owned();
        return Some((what, format!("write {key} = [{}]", quoted.join(", "))));
    }
    None
}

/// Whether a value is a word or an address that lacks the quotes of TOML.
fn is_text(value: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-:/".contains(c);
    let says = |c: char| c.is_ascii_alphabetic() || c == '.' || c == ':';
    !value.is_empty()
        && value.chars().all(plain)
        && value.contains(says)
        && !matches!(value, "true" | "false")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_of_syntax_have_a_cure() {
        for (line, message, what, fix) in [
            ("forward = nat", "invalid float", "a text without quotes", "write forward = \"nat\""),
            ("ports = all # of them", "x", "a text without quotes", "write ports = \"all\""),
            (
                "address = 10.0.0.1",
                "invalid float",
                "a text without quotes",
                "write address = \"10.0.0.1\"",
            ),
            (
                "address = 2001:db8::1",
                "x",
                "a text without quotes",
                "write address = \"2001:db8::1\"",
            ),
            (
                "ports = [80 443]",
                "string values must be quoted",
                "the elements of a list are separated by commas",
                "write ports = [80, 443]",
            ),
            (
                "ports = [80, 8000-8100]",
                "invalid date",
                "a range of ports is a text",
                "write it in quotes, such as ports = [\"8000-8999\"]",
            ),
            (
                "cores = [0-3]",
                "invalid date",
                "ranges are not possible in this version",
                "list every number, such as cores = [8000, 8001]",
            ),
            ("ports = [http]", "x", "a text without quotes", "write ports = [\"http\"]"),
            ("name = \"web", "x", "the quotes are not closed", "write name = \"web\""),
            (
                "[vip.backend]",
                "duplicate key",
                "duplicate key",
                "write [[vip.backend]], in double brackets, each time: there may be several",
            ),
            ("[hash]", "duplicate key", "duplicate key", "write [hash] once, with all its keys"),
            (
                "name = \"x\"",
                "duplicate key",
                "duplicate key",
                "write every key once in its section",
            ),
            ("name \"web\"", "key with no value", "key with no value", ""),
            ("[[nic]]", "unclosed array", "unclosed array", ""),
            ("x = true", "odd", "odd", ""),
            ("", "odd", "odd", ""),
        ] {
            assert_eq!(explain(line, message), (format!("not TOML: {what}"), fix.to_owned()));
        }
    }
}
