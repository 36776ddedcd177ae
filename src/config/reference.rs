//! Checks the files in `config/` against the code: every key is present, every default is right.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};

use super::checked::Config;
use super::parse;

const REFERENCE: &str = include_str!("../../config/holdfast.toml");

/// A deserializer that only records the names of a struct's fields.
struct Fields<'f>(&'f mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Fields<'_> {
    type Error = de::value::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom("only the field names are wanted"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn keys_of<T: for<'de> Deserialize<'de> + fmt::Debug>() -> Vec<&'static str> {
    let mut fields: &'static [&'static str] = &[];
    T::deserialize(Fields(&mut fields)).unwrap_err();
    assert!(!fields.is_empty());
    fields.to_vec()
}

/// The reference, with those commented-out keys enabled that `wanted` accepts.
fn uncommented(wanted: impl Fn(&str) -> bool) -> String {
    let is_key = |line: &str| {
        let word = line.split(' ').next().unwrap_or_default();
        line.contains(" = ") && word.bytes().all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'_'))
    };
    let lines = REFERENCE.lines().map(|line| match line.strip_prefix("# ") {
        Some(key) if key.split(' ').nth(1) == Some("=") && is_key(key) && wanted(key) => key,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn is_default(line: &str) -> bool {
    line.ends_with("# default")
}

fn parsed(text: &str) -> Config {
    // The example files of lists lie beside the reference.
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/config/");
    let text = text.replace("/etc/holdfast/", examples);
    parse(&text, "holdfast.toml").map_err(|errors| errors.to_string()).unwrap()
}

#[test]
fn stated_defaults_are_the_codes_defaults() {
    let stated = uncommented(is_default);
    assert_ne!(stated, REFERENCE, "there are defaults to compare");
    assert_eq!(parsed(&stated), parsed(REFERENCE));
}

#[test]
fn examples_of_keys_without_a_default_are_valid() {
    assert_ne!(parsed(&uncommented(|line| !is_default(line))), parsed(REFERENCE));
}

#[test]
fn every_key_of_the_code_is_in_the_reference() {
    let document: toml::Table = uncommented(|_| true).parse().unwrap();
    // All sections at a path: the file has two VIPs, as not every key fits every VIP.
    let section = |path: &[&str]| {
        let mut tables = vec![document.clone()];
        for key in path {
            let values = tables.iter().filter_map(|table| table.get(*key).cloned());
            let values = values.flat_map(|value| match value {
                toml::Value::Array(list) => list,
                value => vec![value],
            });
            tables = values.map(|value| value.as_table().unwrap().clone()).collect();
        }
        tables.iter().flat_map(|table| table.keys().cloned()).collect::<BTreeSet<_>>()
    };
    for (path, keys) in [
        (&["workers"][..], keys_of::<super::workers::RawWorkers>()),
        (&["nic"], keys_of::<super::nic::RawNic>()),
        (&["vip"], keys_of::<super::vip::RawVip>()),
        (&["vip", "health"], keys_of::<super::health::RawHealth>()),
        (&["vip", "passive"], keys_of::<super::passive::RawPassive>()),
        (&["vip", "rate"], keys_of::<super::rate::RawRate>()),
        (&["vip", "damping"], keys_of::<super::damping::RawDamping>()),
        (&["vip", "timeouts"], keys_of::<super::timeouts::RawTimeouts>()),
        (&["vip", "quic"], keys_of::<super::quic::RawQuic>()),
        (&["vip", "sticky"], keys_of::<super::sticky::RawSticky>()),
        (&["vip", "drain"], keys_of::<super::drain::RawDrain>()),
        (&["vip", "backend"], keys_of::<super::backend::RawBackend>()),
        (&["full_nat"], keys_of::<super::full_nat::RawFullNat>()),
        (&["control"], keys_of::<super::control::RawControl>()),
        (&["state"], keys_of::<super::state::RawState>()),
        (&["security"], keys_of::<super::security::RawSecurity>()),
        (&["fragments"], keys_of::<super::fragments::RawFragments>()),
        (&["fleet"], keys_of::<super::fleet::RawFleet>()),
        (&["vip", "lost"], keys_of::<super::lost::RawLost>()),
        (&["tunnel"], keys_of::<super::tunnel::RawTunnel>()),
        (&["access"], keys_of::<super::access::RawAccess>()),
        (&["icmp"], keys_of::<super::icmp::RawIcmp>()),
        (&["new_flows"], keys_of::<super::new_flows::RawNewFlows>()),
        (&["new_flows", "per_prefix"], keys_of::<super::new_flows::RawPrefixBudget>()),
        (&["hash"], keys_of::<super::hash::RawHash>()),
    ] {
        let keys: BTreeSet<String> = keys.into_iter().map(str::to_owned).collect();
        assert_eq!(section(path), keys, "{path:?}");
    }
}

/// Settings that are words, or tables of them, are described in the text above their keys.
#[test]
fn keys_within_a_choice_are_in_the_reference() {
    let keys =
        [keys_of::<super::scheduler::RawScheduler>(), keys_of::<super::affinity::RawAffinity>()];
    for key in keys.into_iter().flatten() {
        assert!(REFERENCE.contains(&format!(" {key} = ")), "{key}");
    }
}

#[test]
fn examples_are_valid() {
    for text in [
        include_str!("../../config/example-dsr.toml"),
        include_str!("../../config/example-nat.toml"),
        include_str!("../../config/example-full-nat.toml"),
        include_str!("../../config/example-tunnel.toml"),
    ] {
        parsed(text);
    }
}
