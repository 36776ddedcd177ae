//! Numbers and the system's errors as people say them.

use std::io;

/// `1 flow`, `2 flows`: the number and its noun, with the plural's `s`.
pub fn counted(number: impl TryInto<u64>, noun: &str) -> String {
    let number = number.try_into().unwrap_or(u64::MAX);
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// What the system said, without the number that the standard library adds: `No such device`, not
/// `No such device (os error 19)`.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error ") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

/// Bytes as `155 MB` or `1.2 GB` (powers of ten), rounded up.
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
}
