//! `[hash]`: what every box of a fleet must have in common.

use serde::Deserialize;

use super::Hash;
use super::place::Place;
use super::report::Report;
use crate::forwarding::Secret;

/// `holdfast-default` in ASCII: fixed, so that boxes without a secret of their own agree. It is
/// public: set another one where clients may be hostile, or they can aim at one backend.
const SECRET: Secret = *b"holdfast-default";
/// The prime of the Maglev paper (NSDI 2016, section 3.4): shares within 1% for 600 backends.
const TABLE_SIZE: u32 = 65_537;

/// The section as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawHash {
    secret: Option<String>,
    table_size: Option<i64>,
}

impl RawHash {
    /// The section as the program relies on it.
    pub(super) fn check(self, place: &Place, report: &mut Report<'_>) -> Hash {
        let secret_at = place.key("secret");
        let secret = self.secret.map(|text| secret(&text, &secret_at, report)).unwrap_or(SECRET);
        let table_size_at = place.key("table_size");
        let table_size =
            report.integer(&table_size_at, self.table_size, TABLE_SIZE, 251..=5_000_011);
        if !is_prime(table_size) {
            let next = (table_size..=5_000_011).find(|&n| is_prime(n)).unwrap_or(TABLE_SIZE);
            let fix = format!("use a prime, such as {next}: a permutation needs one");
            report.error(&table_size_at, format!("{table_size} is not a prime"), &fix);
        }
        Hash { secret, table_size }
    }
}

/// 32 hex digits.
pub(super) fn secret(text: &str, place: &Place, report: &mut Report<'_>) -> Secret {
    let parsed = u128::from_str_radix(text, 16);
    match parsed {
        Ok(number) if text.len() == 32 && !text.starts_with('+') => number.to_be_bytes(),
        _ => {
            // Not the text itself: messages end in logs.
            let what = format!("{} characters that are not a secret", text.chars().count());
            report.error(place, what, "write 32 hex digits; `openssl rand -hex 16` makes them");
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
        assert!(is_prime(5_000_011), "the upper bound can be used");
    }
}
