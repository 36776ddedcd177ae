//! `deny`, `allow` and their files, of `[access]` and of a `[[vip]]`: sources that may not, or that
//! alone may, send packets to VIPs.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use ipnet::IpNet;
use serde::Deserialize;

use super::checked::Vip;
use super::key_path::{KeyPath, Located};
use super::report::Report;
use super::sections::Sections;
use crate::format::reason;
use crate::net::{AccessLists, MAX_LISTED, Network, PortRange, Prefixes, Protocol};

/// Largest file of a list, in bytes: two million lines of 64 characters.
const MAX_FILE: u64 = 128 * 1024 * 1024;
/// Mistakes reported of one file: a file of another kind has one in each line.
const MAX_MISTAKES: usize = 3;
const FIX: &str = "write an address such as 192.0.2.10, or a prefix such as 192.0.2.0/24";

/// The section as written, and the keys of a VIP with the same names.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAccess {
    pub(super) deny: Option<Vec<String>>,
    pub(super) deny_file: Option<String>,
    pub(super) allow: Option<Vec<String>>,
    pub(super) allow_file: Option<String>,
}

impl RawAccess {
    /// Checks the lists, and reads their files.
    pub(super) fn check(self, key_path: &KeyPath, report: &mut Report<'_>) -> AccessLists {
        let deny = (self.deny, self.deny_file);
        let allow = (self.allow, self.allow_file);
        let allow_is_meant = allow.0.is_some() || allow.1.is_some();
        let lists = AccessLists {
            deny: list(deny, key_path, ["deny", "deny_file"], report),
            allow: list(allow, key_path, ["allow", "allow_file"], report),
        };
        if allow_is_meant && lists.allow.is_empty() && !report.has_errors() {
            let what = "no prefix: without any, every source is allowed";
            let fix = "list the sources that may send, or remove the key";
            report.error(&key_path.key("allow"), what, fix);
        }
        lists
    }
}

/// Reads a list: its prefixes in place, and those of its file.
fn list(
    (prefixes, file): (Option<Vec<String>>, Option<String>),
    key_path: &KeyPath,
    [key, file_key]: [&'static str; 2],
    report: &mut Report<'_>,
) -> Prefixes {
    let mut found = Vec::new();
    for (index, text) in prefixes.unwrap_or_default().iter().enumerate() {
        match prefix(text) {
            Ok(prefix) => found.push(prefix),
            Err((what, fix)) => report.error(&key_path.key(key).index(index), what, &fix),
        }
    }
    if let Some(path) = file {
        read_file(&path, &key_path.key(file_key), &mut found, report);
    }
    found.into_iter().collect()
}

/// Parses a prefix; a mistake comes with its remedy.
///
/// # Errors
/// The mistake and its remedy.
pub fn prefix(text: &str) -> Result<Network, (String, String)> {
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Ok(address.into());
    }
    let Ok(net) = text.parse::<IpNet>() else {
        return Err((format!("\"{text}\" is no address or prefix"), FIX.to_owned()));
    };
    if net.trunc() != net {
        let fix = format!("write \"{}\"", net.trunc());
        return Err((format!("{net} has bits behind its length"), fix));
    }
    Ok(net.into())
}

fn read_file(path: &str, key_path: &KeyPath, found: &mut Vec<Network>, report: &mut Report<'_>) {
    if !path.starts_with('/') || path.contains('\0') {
        let fix = "write an absolute path, such as \"/etc/holdfast/deny.txt\"";
        return report.error(key_path, format!("\"{path}\" is not an absolute path"), fix);
    }
    let text = match read_text(Path::new(path)) {
        Ok(text) => text,
        Err(what) => {
            let fix = "it must be a text file with a prefix in each line";
            return report.error(key_path, format!("{path}: {what}"), fix);
        }
    };
    let mut mistakes = 0;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split(['#', ';']).next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        match prefix(line) {
            Ok(prefix) => found.push(prefix),
            Err((what, fix)) => {
                mistakes += 1;
                if mistakes <= MAX_MISTAKES {
                    report.error(key_path, format!("{path}, line {number}: {what}"), &fix);
                }
            }
        }
    }
    if mistakes > MAX_MISTAKES {
        let what = format!("{path}: {} more lines are wrong", mistakes - MAX_MISTAKES);
        report.error(key_path, what, FIX);
    }
}

fn read_text(path: &Path) -> Result<String, String> {
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        _ => format!("cannot be read: {}", reason(&error)),
    };
    // A FIFO without a writer would block its reader, also at each reload.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err("not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_FILE) {
        return Err(format!("larger than {} MiB", MAX_FILE >> 20));
    }
    String::from_utf8(bytes).map_err(|_| "not a text".to_owned())
}

/// Checks that the lists fit, and that the XDP program can find the lists of each packet.
pub(super) fn rules(sections: &Sections<'_>, report: &mut Report<'_>) {
    let own = sections.vips.iter().map(|(vip, _)| &vip.value.access);
    let all = own.chain([&sections.config.access]);
    let count: usize = all.map(|lists| lists.deny.len() + lists.allow.len()).sum();
    if count > MAX_LISTED {
        let what = format!("{count} prefixes in all deny and allow lists");
        let fix = format!("at most {MAX_LISTED} are possible; larger prefixes take less room");
        report.error(&KeyPath::root().key("access"), what, &fix);
    }
    for (vip, other) in clashes(sections) {
        let (line, name) = (report.line(&other.key_path), &other.value.name);
        let noun = if vip.value.access == other.value.access { "rates" } else { "lists" };
        let what = format!(
            "its {noun} are not those of VIP \"{name}\" of line {line}, which shares addresses with it"
        );
        let fix = "give both the same lists and no rate, or one of them another address: only VIPs of \
                   single addresses and single ports can share an address and differ in this";
        let key = match &vip.value.access {
            lists if !lists.deny.is_empty() => "deny",
            lists if !lists.allow.is_empty() => "allow",
            _ => "rate",
        };
        report.error(&vip.key_path.key(key), what, fix);
    }
}

/// Returns the VIPs whose packets the XDP program cannot distinguish from those of another VIP with
/// other lists.
///
/// Cost: the VIPs with lists times all VIPs.
fn clashes<'s>(sections: &Sections<'s>) -> Vec<(&'s Located<Vip>, &'s Located<Vip>)> {
    let mut found = Vec::new();
    let vips = || sections.vips.iter().map(|(vip, _)| vip);
    let is_limited = |vip: &Vip| vip.access.present().any() || vip.rate.is_some();
    for vip in vips().filter(|vip| is_limited(&vip.value)) {
        let clash = |other: &&Located<Vip>| clash(&vip.value, &other.value);
        found.extend(vips().find(clash).map(|other| (vip, other)));
    }
    // Of two with lists, the first is reported.
    let mut reported = BTreeSet::new();
    found.retain(|(vip, other)| {
        let (a, b) = (vip.value.name.as_str(), other.value.name.as_str());
        reported.insert(if a < b { (a, b) } else { (b, a) })
    });
    found
}

/// Whether two VIPs have other lists, and the XDP program cannot apply them.
fn clash(one: &Vip, other: &Vip) -> bool {
    let same = one.access == other.access && one.rate.is_none() && other.rate.is_none();
    one.name != other.name && !same && share_lists(one, other)
}

/// Returns whether the XDP program does not distinguish packets for two VIPs, so that both must have
/// the same lists.
pub fn share_lists(one: &Vip, other: &Vip) -> bool {
    let (a, b) = (one.address, other.address);
    if !(a.covers(b) || b.covers(a)) {
        return false;
    }
    let by_area = |vip: &Vip| !vip.address.is_single() || vip.ports.ranges().iter().any(is_range);
    let is_all = |vip: &Vip| vip.ports.ranges().contains(&PortRange::ALL);
    let any = |vip: &Vip| vip.protocol == Protocol::Any;
    // The program finds all ports of a single address before its ranges.
    let hides = |all: &Vip, ranges: &Vip| {
        all.address == ranges.address && all.protocol == ranges.protocol && is_all(all)
    };
    match (by_area(one) || any(one), by_area(other) || any(other)) {
        (true, true) => true,
        (true, false) => hides(other, one),
        (false, true) => hides(one, other),
        (false, false) => false,
    }
}

fn is_range(ports: &PortRange) -> bool {
    !ports.is_single() && *ports != PortRange::ALL
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use crate::config::{Config, parse};

    /// Returns the configuration of a `deny_file` with this text, or the messages about it.
    fn parsed(text: &str) -> Result<Config, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("holdfast-list-{}-{next}", std::process::id());
        let file = std::env::temp_dir().join(name);
        std::fs::write(&file, text).unwrap();
        let path = file.display().to_string();
        let text = format!(
            "access.deny_file = \"{path}\"\naccess.deny = [\"10.0.0.7\"]\n[workers]\ncores = [0]\n\
             [[nic]]\ninterface = \"eth0\"\n[[vip]]\nname = \"v\"\naddress = \"192.0.2.10\"\n\
             ports = [80]\nforward = \"dsr\"\n[[vip.backend]]\nname = \"b\"\naddress = \"10.0.0.11\"\n"
        );
        let errors = |errors: crate::config::ConfigErrors| {
            let errors = errors.0.iter().map(|error| format!("{}; {}", error.what, error.fix));
            errors.collect::<Vec<_>>().join("\n").replace(&path, "FILE")
        };
        let config = parse(&text, "f.toml").map_err(errors);
        std::fs::remove_file(&file).unwrap();
        config
    }

    #[test]
    fn a_file_has_a_prefix_in_each_line_and_comments() {
        let text =
            "# of today\n203.0.113.0/24 ; SBL1\n\n\t2001:db8::/32# v6\r\n10.0.0.7\n10.0.0.7\n";
        let config = parsed(text).unwrap();
        let texts: Vec<_> = config.access.deny.iter().map(|prefix| prefix.to_string()).collect();
        assert_eq!(texts, ["10.0.0.7", "203.0.113.0/24", "2001:db8::/32"]);
        assert!(config.access.allow.is_empty());
    }

    #[test]
    fn mistakes_in_a_file_are_reported_with_their_lines() {
        let text = "10.0.0.0/8\n\n10.0.0.1/8\nhere\n256.0.0.1\nx\ny\n";
        let errors = parsed(text).unwrap_err();
        let lines: Vec<&str> = errors.lines().collect();
        assert_eq!(lines.len(), 4, "{errors}");
        for (line, part) in lines.iter().zip([
            "FILE, line 3: 10.0.0.1/8 has bits behind its length; write \"10.0.0.0/8\"",
            "FILE, line 4: \"here\" is no address or prefix",
            "FILE, line 5: \"256.0.0.1\" is no address or prefix",
            "FILE: 2 more lines are wrong",
        ]) {
            assert!(line.starts_with(part), "{errors}");
        }
    }
}
