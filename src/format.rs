//! Numbers and the system's errors as readable text.

use std::io;

/// Formats a number with its noun: `1 flow`, `2 flows`, with the plural's `s`.
pub fn counted(number: impl TryInto<u64>, noun: &str) -> String {
    let number = number.try_into().unwrap_or(u64::MAX);
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Formats a system error without the number that the standard library appends: `No such device`,
/// not `No such device (os error 19)`.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error ") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

/// Formats a MAC address as `02:00:00:00:01:02`.
pub fn mac([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// Formats bytes as `155 MB` or `1.2 GB` (powers of ten), rounded up.
pub fn bytes(number: u64) -> String {
    const MEGA: u64 = 1_000_000;
    match number.div_ceil(MEGA) {
        megabytes @ 0..1000 => format!("{megabytes} MB"),
        megabytes => {
            let tenths = megabytes.div_ceil(100);
            format!("{}.{} GB", tenths / 10, tenths % 10)
        }
    }
}

/// Formats a share of 1 as `33.3 %`, `0.25 %` or `0 %`, with the significant digits only.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        _ if percent == 0.0 => "0 %".to_owned(),
        _ if percent < 0.01 => "< 0.01 %".to_owned(),
        _ if percent < 0.995 => format!("{percent:.2} %"),
        _ => format!("{percent:.1} %"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_right_noun() {
        for (number, expected) in [(0, "0 flows"), (1, "1 flow"), (2, "2 flows")] {
            assert_eq!(counted(number, "flow"), expected);
        }
    }

    #[test]
    fn reasons_have_no_numbers() {
        let error = io::Error::from_raw_os_error(101);
        assert_eq!(reason(&error), "Network is unreachable");
        assert_eq!(reason(&io::Error::other("broken")), "broken");
    }

    #[test]
    fn bytes_are_rounded_up() {
        for (number, expected) in [
            (0, "0 MB"),
            (1, "1 MB"),
            (77_594_624, "78 MB"),
            (999_000_001, "1.0 GB"),
            (1_234_000_000, "1.3 GB"),
        ] {
            assert_eq!(bytes(number), expected);
        }
    }

    #[test]
    fn percentages_have_the_digits_that_matter() {
        for (share, expected) in [
            (0.0, "0 %"),
            (0.000_01, "< 0.01 %"),
            (0.002_5, "0.25 %"),
            (0.009_99, "1.0 %"),
            (1.0 / 3.0, "33.3 %"),
            (1.0, "100.0 %"),
        ] {
            assert_eq!(percent(share), expected);
        }
    }
}
