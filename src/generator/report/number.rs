//! Formatting and parsing of numbers with units.

use super::super::settings::Rate;

/// Formats a number with three or four digits and a factor: `1.25 M`.
pub fn short(number: f64) -> String {
    let (value, factor) = match number {
        _ if number >= 1e9 => (number / 1e9, " G"),
        _ if number >= 1e6 => (number / 1e6, " M"),
        _ if number >= 1e3 => (number / 1e3, " k"),
        _ => (number, " "),
    };
    let digits = match value {
        _ if factor == " " && value.fract() == 0.0 => 0,
        _ if value >= 100.0 => 1,
        _ if value >= 10.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}{factor}")
}

/// Parses a rate: `500k`, `1.5Mpps`, `10Gbit`, `max`.
///
/// # Errors
/// The accepted forms of a rate.
pub fn rate(text: &str) -> Result<Rate, String> {
    const HELP: &str = "write packets per second (500000, 500k, 1.5Mpps), bits per second \
                        (800Mbit, 10Gbit), or max";
    if text == "max" {
        return Ok(Rate::Max);
    }
    let (number, bits) = match strip(text, &["bit/s", "bits", "bit", "bps"]) {
        Some(number) => (number, true),
        None => (strip(text, &["pps"]).unwrap_or(text), false),
    };
    let (digits, factor) = match number.trim_end().char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&number[..at], 1e3),
        Some((at, 'M')) => (&number[..at], 1e6),
        Some((at, 'G')) => (&number[..at], 1e9),
        _ => (number, 1.0),
    };
    let value: f64 = digits.trim().parse().map_err(|_| HELP.to_owned())?;
    Ok(if bits { Rate::Bits(value * factor) } else { Rate::Packets(value * factor) })
}

fn strip<'a>(text: &'a str, suffixes: &[&str]) -> Option<&'a str> {
    suffixes.iter().find_map(|suffix| text.strip_suffix(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_packets_unless_they_say_bits() {
        for (text, expected) in [
            ("1000", Rate::Packets(1000.0)),
            ("500k", Rate::Packets(5e5)),
            ("1.5Mpps", Rate::Packets(1.5e6)),
            ("2 Mpps", Rate::Packets(2e6)),
            ("10Gbit", Rate::Bits(1e10)),
            ("800Mbit/s", Rate::Bits(8e8)),
            ("64kbps", Rate::Bits(64e3)),
            ("max", Rate::Max),
        ] {
            assert_eq!(rate(text), Ok(expected), "{text}");
        }
        for text in ["", "fast", "10X", "k", "Gbit", "-"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_have_a_factor() {
        for (number, text) in [
            (0.0, "0 "),
            (999.0, "999 "),
            (0.5, "0.500 "),
            (1234.0, "1.234 k"),
            (1_048_576.0, "1.049 M"),
            (123_456_789.0, "123.5 M"),
            (5e9, "5.000 G"),
        ] {
            assert_eq!(short(number), text);
        }
    }
}
