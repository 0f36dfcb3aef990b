//! Numbers of bytes as people write them.

/// Bytes of a whole number with a unit: B, kB, MB, GB, TB count by 1000, KiB, MiB, GiB, TiB by 1024; without a unit, bytes.
/// `None` of anything else, and of what 64 bits do not hold.
pub fn byte_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.strip_prefix(' ').filter(|unit| !unit.is_empty()).unwrap_or(unit);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" | "kiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_numbers_with_a_unit() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("7", Some(7)),
            ("5GB", Some(5_000_000_000)),
            ("500 MB", Some(500_000_000)),
            ("2GiB", Some(2 << 30)),
            ("3kB", Some(3000)),
            ("1KiB", Some(1024)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("20000000000GiB", None),
            ("", None),
            ("GB", None),
            ("1.5GB", None),
            ("-1", None),
            ("5gb", None),
            ("5  GB", None),
            ("5 ", None),
            ("1 000", None),
        ] {
            assert_eq!(byte_size(text), bytes, "{text:?}");
        }
    }
}
