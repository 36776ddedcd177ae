//! `[[vip.quic]]` and `server_id`: server ids in QUIC connection ids.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};

use super::checked::Backend;
use super::hash::secret;
use super::key_path::{KeyPath, Located, Value};
use super::report::Report;
use crate::forwarding::quic_lb::{Config, MAX_PLAINTEXT, MAX_SERVER_ID, MIN_NONCE};
use crate::forwarding::{Affinity, ServerId};

/// Highest rotation: rotation 7 is for connection ids without a server id.
const MAX_ROTATION: u8 = 6;

/// The section as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawQuic {
    rotation: Option<i64>,
    server_id_bytes: Option<i64>,
    nonce_bytes: Option<i64>,
    key: Option<String>,
}

/// `server_id` of a backend as written: one, or several.
#[derive(Debug)]
pub(super) struct RawServerIds(Vec<String>);

impl<'de> Deserialize<'de> for RawServerIds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = RawServerIds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("hex digits in quotes, such as \"c4605e\", or a list of such texts")
            }

            fn visit_str<E>(self, id: &str) -> Result<RawServerIds, E> {
                Ok(RawServerIds(vec![id.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RawServerIds, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = list.next_element()? {
                    ids.push(id);
                }
                Ok(RawServerIds(ids))
            }
        }
        deserializer.deserialize_any(Read)
    }
}

impl RawServerIds {
    /// Returns the valid server ids, and reports the others.
    pub(super) fn check(&self, key_path: &KeyPath, report: &mut Report<'_>) -> Vec<ServerId> {
        self.0.iter().filter_map(|text| server_id(text, key_path, report)).collect()
    }
}

fn server_id(text: &str, key_path: &KeyPath, report: &mut Report<'_>) -> Option<ServerId> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|it| u8::try_from(it).ok());
    let digits: Option<Vec<u8>> = text.as_bytes().iter().map(digit).collect();
    let bytes = digits.filter(|digits| digits.len().is_multiple_of(2)).map(|digits| {
        let pairs = digits.chunks_exact(2);
        pairs.map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect::<Vec<_>>()
    });
    let id = bytes.and_then(|bytes| ServerId::new(&bytes));
    if id.is_none() {
        let fix = format!("write 1 to {MAX_SERVER_ID} bytes as two hex digits each");
        report.error(key_path, format!("\"{text}\" is not a server id"), &fix);
    }
    id
}

/// Reads and checks the `[[vip.quic]]` of a VIP, and that its backends have matching server ids.
pub(super) fn check(
    list: Option<Value<'_>>,
    key_path: &KeyPath,
    affinity: Affinity,
    backends: &[Located<Backend>],
    report: &mut Report<'_>,
) -> Vec<Config> {
    let given = list.is_some();
    let mut configs: Vec<Located<Config>> = Vec::new();
    for (index, section) in report.tables(list, key_path).into_iter().enumerate() {
        let key_path = key_path.index(index);
        let raw: RawQuic = report.read(section, &key_path);
        configs.extend(raw.check(&key_path, report).map(|value| Located { value, key_path }));
    }
    match (given, affinity == Affinity::QuicCid) {
        (true, false) => {
            let fix = "set affinity = \"quic_cid\" for this [[vip]], or remove it";
            report.error(key_path, "the VIP does not look at connection ids", fix);
        }
        (false, true) => {
            let fix = "add a [[vip.quic]] that says how connection ids are made";
            report.missing(key_path, fix);
        }
        _ => {}
    }
    rotations(&configs, report);
    missing_ids(&configs, backends, report);
    unique_ids(backends, report);
    if !given && affinity != Affinity::QuicCid {
        useless_ids(backends, report);
    }
    configs.into_iter().map(|config| config.value).collect()
}

impl RawQuic {
    fn check(self, key_path: &KeyPath, report: &mut Report<'_>) -> Option<Config> {
        let rotation_at = key_path.key("rotation");
        let rotation = self
            .rotation
            .map(|rotation| report.integer(&rotation_at, Some(rotation), 0, 0..=MAX_ROTATION));
        if rotation.is_none() {
            report.missing(&rotation_at, "write rotation = 0: the first three bits of its ids");
        }
        let server_id = ("server_id_bytes", self.server_id_bytes, 1..=MAX_SERVER_ID);
        let nonce = ("nonce_bytes", self.nonce_bytes, MIN_NONCE..=MAX_PLAINTEXT - 1);
        let [server_id_bytes, nonce_bytes] = [server_id, nonce].map(|(key, raw, range)| {
            let at = key_path.key(key);
            let Some(raw) = raw else {
                report.missing(
                    &at,
                    &format!("write a length of {} to {}", range.start(), range.end()),
                );
                return None;
            };
            let length = report.integer(&at, Some(raw), *range.start(), range);
            u8::try_from(length).ok()
        });
        let key = self.key.map(|key| secret(&key, &key_path.key("key"), report));
        let (rotation, server_id_bytes, nonce_bytes) = (rotation?, server_id_bytes?, nonce_bytes?);
        let length = usize::from(server_id_bytes) + usize::from(nonce_bytes);
        if length > MAX_PLAINTEXT {
            let what = format!("server id and nonce have {length} bytes together");
            let fix = format!("use {MAX_PLAINTEXT} at most: a connection id has 20");
            report.error(&key_path.key("nonce_bytes"), what, &fix);
        }
        Some(Config { rotation, server_id_bytes, nonce_bytes, key })
    }
}

fn rotations(configs: &[Located<Config>], report: &mut Report<'_>) {
    let mut seen = BTreeMap::new();
    for Located { value, key_path } in configs {
        if let Some(first) = seen.insert(value.rotation, key_path) {
            let what = format!("{} again, as in line {}", value.rotation, report.line(first));
            report.error(&key_path.key("rotation"), what, "give every [[vip.quic]] one of its own");
        }
    }
}

/// Reports backends without a server id, whose clients would lose the backend when they migrate.
fn missing_ids(
    configs: &[Located<Config>],
    backends: &[Located<Backend>],
    report: &mut Report<'_>,
) {
    let wanted: BTreeMap<usize, u8> = configs
        .iter()
        .rev()
        .map(|config| (usize::from(config.value.server_id_bytes), config.value.rotation))
        .collect();
    for (length, rotation) in wanted {
        let lacks = |backend: &&Located<Backend>| {
            backend.value.server_ids.iter().all(|id| id.len() != length)
        };
        for backend in backends.iter().filter(lacks) {
            let what = format!(
                "backend \"{}\" has no server id of {}, which rotation {rotation} wants",
                backend.value.name,
                crate::format::counted(length, "byte"),
            );
            let fix = format!("add one of {} hex digits", 2 * length);
            report.error(&backend.key_path.key("server_id"), what, &fix);
        }
    }
}

fn unique_ids(backends: &[Located<Backend>], report: &mut Report<'_>) {
    let mut seen = BTreeMap::new();
    for Located { value: backend, key_path } in backends {
        let at = key_path.key("server_id");
        for &id in &backend.server_ids {
            if let Some(first) = seen.insert(id, at.clone()) {
                let what = format!("{id} again, as in line {}", report.line(&first));
                report.error(&at, what, "give every backend of the VIP ids of its own");
            }
        }
    }
}

fn useless_ids(backends: &[Located<Backend>], report: &mut Report<'_>) {
    if let Some(backend) = backends.iter().find(|backend| !backend.value.server_ids.is_empty()) {
        let what = "the VIP does not look at connection ids";
        let fix = "set affinity = \"quic_cid\" and add a [[vip.quic]], or remove the server id";
        report.error(&backend.key_path.key("server_id"), what, fix);
    }
}
