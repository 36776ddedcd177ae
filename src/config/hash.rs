//! `[hash]`: settings that must be equal on every box of a fleet.

use serde::Deserialize;

use super::checked::Hash;
use super::key_path::KeyPath;
use super::report::Report;
use crate::forwarding::Secret;
use crate::forwarding::scheduler::TABLE_SIZE;

/// Default secret, `holdfast-default` in ASCII: fixed, so that boxes without a secret of their own
/// agree. It is public: where clients may be hostile, set a secret, or they can aim at one backend.
const SECRET: Secret = *b"holdfast-default";
/// Largest table size, a prime: 10 MB, and a build time of some tenths of a second.
const LARGEST: u32 = 5_000_011;

/// The section as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawHash {
    secret: Option<String>,
    table_size: Option<i64>,
}

impl RawHash {
    /// Checks the section.
    pub(super) fn check(self, key_path: &KeyPath, report: &mut Report<'_>) -> Hash {
        let secret_at = key_path.key("secret");
        let secret = self.secret.map(|text| secret(&text, &secret_at, report)).unwrap_or(SECRET);
        let size_at = key_path.key("table_size");
        Hash { secret, table_size: table_size(&size_at, self.table_size, TABLE_SIZE, report) }
    }
}

/// Checks the size of a Maglev lookup table: a prime, or the default.
pub(super) fn table_size(
    key_path: &KeyPath,
    value: Option<i64>,
    default: u32,
    report: &mut Report<'_>,
) -> u32 {
    // The default was checked where it is defined.
    let Some(value) = value else { return default };
    let size = report.integer(key_path, Some(value), default, 251..=LARGEST);
    if !is_prime(size) {
        let next = (size..=LARGEST).find(|&n| is_prime(n)).unwrap_or(TABLE_SIZE);
        let fix = format!("use a prime, such as {next}: a permutation needs one");
        report.error(key_path, format!("{size} is not a prime"), &fix);
    }
    size
}

/// Parses a secret of 32 hex digits.
pub(super) fn secret(text: &str, key_path: &KeyPath, report: &mut Report<'_>) -> Secret {
    let parsed = u128::from_str_radix(text, 16);
    match parsed {
        Ok(number) if text.len() == 32 && !text.starts_with('+') => number.to_be_bytes(),
        _ => {
            // The message omits the text itself: messages end in logs.
            let what = format!("{} characters that are not a secret", text.chars().count());
            report.error(key_path, what, "write 32 hex digits; `openssl rand -hex 16` makes them");
            SECRET
        }
    }
}

fn is_prime(number: u32) -> bool {
    let divisors = (2..).take_while(|d: &u32| d.checked_mul(*d).is_some_and(|sq| sq <= number));
    number >= 2 && divisors.into_iter().all(|divisor| !number.is_multiple_of(divisor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primes() {
        for (number, expected) in
            [(0, false), (1, false), (2, true), (251, true), (65_536, false), (65_537, true)]
        {
            assert_eq!(is_prime(number), expected, "{number}");
        }
        assert!(is_prime(LARGEST), "the upper bound can be used");
    }
}
