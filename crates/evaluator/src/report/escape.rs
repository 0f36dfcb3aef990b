//! Text from outside (names of tensors, tasks, sources) made safe for Markdown and YAML, and numbers made readable.

use std::fmt::Write as _;

use super::SQNR_LIMIT_DB;

/// What stands where a number was not measured.
const NO_VALUE: &str = "-";

/// Whitespace and control characters become single spaces: a cell is one line.
pub(crate) fn one_line(text: &str) -> String {
    let spaced: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    spaced.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Plain text in a paragraph or table cell: what Markdown or HTML would read as markup is escaped.
pub(crate) fn text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in one_line(text).chars() {
        if matches!(c, '\\' | '|' | '`' | '*' | '<' | '>' | '[' | ']') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// A code span. Its fence is longer than any run of backticks inside; pipes are escaped, as tables want them.
pub(crate) fn code(text: &str) -> String {
    let content = one_line(text).replace('|', "\\|");
    let longest = content.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    let space = if longest > 0 || content.is_empty() { " " } else { "" };
    format!("{fence}{space}{content}{space}{fence}")
}

/// A YAML scalar: plain where that cannot be misread, otherwise double-quoted.
pub(crate) fn yaml(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/' | '.' | '+'));
    // YAML 1.1, which PyYAML reads, takes these for booleans and null.
    let word = ["y", "n", "yes", "no", "true", "false", "on", "off", "null"];
    if plain && !word.contains(&text.to_ascii_lowercase().as_str()) {
        return text.to_owned();
    }
    quoted(text)
}

/// A double-quoted string that YAML, Python and JSON read alike.
pub(crate) fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c)); // writing to a String cannot fail
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// `90868376` as `90,868,376`.
pub(crate) fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `value` with a decimal prefix: `90868376` as `90.9 M`; below a thousand as it is.
fn prefixed(value: u64) -> String {
    let mut scaled = value as f64;
    let mut prefix = "";
    for next in ["k", "M", "G", "T"] {
        // 999.95 would be printed as 1000.0.
        if scaled < 999.95 {
            break;
        }
        scaled /= 1000.0;
        prefix = next;
    }
    if prefix.is_empty() { format!("{value} ") } else { format!("{scaled:.1} {prefix}") }
}

/// Bytes, in decimal units as the Hub shows them: `90.9 MB`.
pub(crate) fn bytes(value: u64) -> String {
    prefixed(value) + "B"
}

/// A count: `22.7 M`.
pub(crate) fn count(value: u64) -> String {
    prefixed(value).trim_end().to_owned()
}

/// A metric's value: four decimals, more where they would all be 0, fewer for large values.
pub(crate) fn metric(value: Option<f64>) -> String {
    match value.filter(|v| v.is_finite()) {
        None => NO_VALUE.to_owned(),
        Some(v) if v != 0.0 && v.abs() < 0.00005 => format!("{v:.1e}"),
        Some(v) if v.abs() >= 1000.0 => format!("{v:.1}"),
        Some(v) => format!("{v:.4}"),
    }
}

/// A change of a metric, with its sign.
pub(crate) fn signed(value: Option<f64>) -> String {
    let sign = if value.is_some_and(|v| v > 0.0 && v.is_finite()) { "+" } else { "" };
    sign.to_owned() + &metric(value.map(|v| v + 0.0))
}

/// Decibels without the unit; the cap of SQNR means that nothing was lost.
pub(crate) fn decibels(value: Option<f64>) -> String {
    match value.filter(|v| v.is_finite()) {
        None => NO_VALUE.to_owned(),
        Some(v) if v >= SQNR_LIMIT_DB => "exact".to_owned(),
        Some(v) => format!("{v:.1}"),
    }
}

/// Decibels with the unit.
pub(crate) fn with_unit(value: f64) -> String {
    let unit = if value < SQNR_LIMIT_DB { " dB" } else { "" };
    decibels(Some(value)) + unit
}

/// An activation's value: three significant digits.
pub(crate) fn activation(value: Option<f64>) -> String {
    match value.filter(|v| v.is_finite()) {
        None => NO_VALUE.to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(v) if v.abs() < 0.001 || v.abs() >= 100_000.0 => format!("{v:.2e}"),
        Some(v) => format!("{v:.*}", (2 - v.abs().log10().floor() as i32).max(0) as usize),
    }
}

/// Seconds of wall time.
pub(crate) fn seconds(value: Option<f64>) -> String {
    value.filter(|v| v.is_finite()).map_or(NO_VALUE.to_owned(), |v| format!("{v:.1} s"))
}

/// A fraction as a percentage: `0.00123` as `0.123 %`.
pub(crate) fn percent(fraction: Option<f64>) -> String {
    match fraction {
        None => NO_VALUE.to_owned(),
        some => format!("{} %", activation(some.map(|f| f * 100.0))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_names_stays_text() {
        assert_eq!(text("a|b\r\n<b>*x*"), r"a\|b \<b\>\*x\*");
        assert_eq!(code("a|b"), r"`a\|b`");
        assert_eq!(code("a`b"), "`` a`b ``");
        assert_eq!(code("``"), "``` `` ```");
        assert_eq!(code("x\ny"), "`x y`");
    }

    #[test]
    fn yaml_scalars_cannot_be_misread() {
        for plain in ["apache-2.0", "en", "BAAI/bge-small-en-v1.5"] {
            assert_eq!(yaml(plain), plain);
        }
        for (from, to) in [
            ("no", r#""no""#),
            ("", r#""""#),
            ("1.0", r#""1.0""#),
            ("a: b", r#""a: b""#),
            ("- x\n\"y\"\\", r#""- x\u000a\"y\"\\""#),
            ("~", r#""~""#),
        ] {
            assert_eq!(yaml(from), to);
        }
    }

    #[test]
    fn numbers_read_well() {
        for (value, expected) in
            [(0, "0 B"), (999, "999 B"), (999_949, "999.9 kB"), (999_950, "1.0 MB"), (90_868_376, "90.9 MB")]
        {
            assert_eq!(bytes(value), expected);
        }
        assert_eq!(bytes(u64::MAX), "18446744.1 TB");
        assert_eq!(count(22_713_216), "22.7 M");
        assert_eq!(
            (grouped(1), grouped(1000), grouped(90_868_376)),
            ("1".into(), "1,000".into(), "90,868,376".into())
        );
        for (value, expected) in [
            (f64::NAN, "-"),
            (0.0, "0.0000"),
            (-0.0, "0.0000"),
            (0.82031, "+0.8203"),
            (-0.000_012, "-1.2e-5"),
            (12_345.67, "+12345.7"),
        ] {
            assert_eq!(signed(Some(value)), expected);
        }
        for (value, expected) in [
            (0.0, "0"),
            (9.994, "9.99"),
            (-48.23, "-48.2"),
            (0.012_34, "0.0123"),
            (1234.5, "1234"),
            (2e-7, "2.00e-7"),
        ] {
            assert_eq!(activation(Some(value)), expected);
        }
        assert_eq!(percent(Some(0.001_23)), "0.123 %");
        assert_eq!(
            (decibels(Some(200.0)), decibels(Some(31.25)), decibels(None)),
            ("exact".into(), "31.2".into(), "-".into())
        );
    }
}
