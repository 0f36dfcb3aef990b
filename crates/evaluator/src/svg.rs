//! Charts drawn as SVG text: they need no script and no network, and print as they look.
//!
//! Charts in a page place things in percent of their width, so that the lettering keeps its size on every screen.

use std::fmt::Write as _;

/// Text as the content or an attribute (in double quotes) of HTML and XML. Control characters become spaces; those that
/// turn the direction of the writing, with which a name can pass for another, become visible.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(printable(c)),
        }
    }
    escaped
}

/// The character, unless it is none to be seen.
fn printable(c: char) -> char {
    match c {
        '\u{200e}'
        | '\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}'
        | '\u{fffe}'
        | '\u{ffff}' => '\u{fffd}',
        c if c.is_control() => ' ',
        c => c,
    }
}

/// Text of one line without characters that move the cursor or turn the direction of the writing.
pub(crate) fn plain(text: &str) -> String {
    let printable: String = text.chars().map(printable).collect();
    printable.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// As [`plain`], keeping the lines.
pub(crate) fn plain_lines(text: &str) -> String {
    text.chars().map(|c| if matches!(c, '\n' | '\t') { c } else { printable(c) }).collect()
}

/// A coordinate with at most two decimals; 0 for what is not a number.
pub(crate) fn coordinate(value: f64) -> String {
    if !value.is_finite() {
        return "0".to_owned();
    }
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// A position in percent of the chart's width.
pub(crate) fn percent(fraction: f64) -> String {
    coordinate(fraction * 100.0) + "%"
}

/// A number with a minus sign in place of the hyphen, which keeps together with its unit.
pub(crate) fn typeset(number: &str) -> String {
    number.replace('-', "\u{2212}").replace(' ', "\u{a0}")
}

/// Errors of rounding that do not make a number another one, in steps of a scale.
const ROUNDING: f64 = 1e-6;

/// A linear scale over a finite interval of positive length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    /// Of all finite values, with a share of its length added at both ends. Without two different values the
    /// interval is widened around the one there is, or around 0.
    pub(crate) fn around(values: impl IntoIterator<Item = f64>, margin: f64) -> Self {
        // A quarter of the largest number, so that lengths are finite too.
        const MOST: f64 = f64::MAX / 4.0;
        let finite = values.into_iter().filter(|value| value.is_finite()).map(|v| v.clamp(-MOST, MOST));
        let (low, high) =
            finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        if low > high {
            return Self { low: -1.0, high: 1.0 };
        }
        let smallest = low.abs().max(high.abs()) * 1e-9;
        let length = high - low;
        let pad = if length > smallest { length * margin } else { high.abs().max(1e-9) * 0.1 };
        Self { low: (low - pad).max(-MOST), high: (high + pad).min(MOST) }
    }

    /// Where a value lies: 0 at the low end, 1 at the high end, not outside these.
    pub(crate) fn at(self, value: f64) -> f64 {
        let fraction = (value - self.low) / (self.high - self.low);
        if fraction.is_nan() { 0.0 } else { fraction.clamp(0.0, 1.0) }
    }

    /// Round values inside the interval, at most `most` and a few more, in increasing order, as numbers and as text.
    pub(crate) fn ticks(self, most: u32) -> Vec<(f64, String)> {
        let step = round_step((self.high - self.low) / f64::from(most.max(1)));
        // What misses the ends by a rounding error belongs to them.
        let first = (self.low / step - ROUNDING).ceil();
        let count = ((self.high / step + ROUNDING).floor() - first).clamp(0.0, f64::from(2 * most)) as u32;
        let decimals = (-step.log10().floor()).clamp(0.0, 12.0) as usize;
        let large = self.low.abs().max(self.high.abs()) >= 1e6;
        (0..=count)
            .map(|i| (first + f64::from(i)) * step)
            .map(|value| {
                let text = if large { format!("{value:.1e}") } else { format!("{:.decimals$}", value + 0.0) };
                (value, typeset(&text))
            })
            .collect()
    }
}

/// The smallest of 1, 2 and 5 times a power of ten that is not below `step`.
fn round_step(step: f64) -> f64 {
    if !(step.is_finite() && step > 1e-300) {
        return 1.0;
    }
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0]
        .map(|digit| digit * power)
        .into_iter()
        .find(|round| *round >= step * (1.0 - ROUNDING))
        .unwrap_or(10.0 * power)
}

/// Adds formatted text; writing to a `String` cannot fail.
pub(crate) fn push(to: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = to.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_leave_its_place() {
        for (from, to) in [
            ("a<b>&\"c'", "a&lt;b&gt;&amp;&quot;c&#39;"),
            ("</script>", "&lt;/script&gt;"),
            ("a\u{1b}[31m\nb\0", "a [31m b "),
            ("\u{202e}txt\u{2066}", "\u{fffd}txt\u{fffd}"),
            ("größe μ 層", "größe μ 層"),
        ] {
            assert_eq!(escape(from), to);
        }
        assert_eq!(plain(" a\u{1b}[31m\n\tb <c> "), "a [31m b <c>");
        assert_eq!(plain_lines("a\n\tb\u{1b}\u{202e}"), "a\n\tb \u{fffd}");
    }

    #[test]
    fn coordinates_are_short_and_finite() {
        for (value, expected) in [
            (1.0, "1"),
            (33.333_333, "33.33"),
            (-0.001, "0"),
            (0.5, "0.5"),
            (100.0, "100"),
            (f64::NAN, "0"),
            (f64::INFINITY, "0"),
        ] {
            assert_eq!(coordinate(value), expected);
        }
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let texts = |values: [f64; 2], most| -> Vec<String> {
            Scale::around(values, 0.0).ticks(most).into_iter().map(|(_, text)| text).collect()
        };
        assert_eq!(texts([0.0, 100.0], 5), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(texts([-0.3, 0.3], 4), ["−0.2", "0.0", "0.2"]);
        assert_eq!(texts([0.860, 0.868], 4), ["0.860", "0.862", "0.864", "0.866", "0.868"]);
        assert_eq!(texts([1e9, 3e9], 2), ["1.0e9", "2.0e9", "3.0e9"]);
    }

    #[test]
    fn a_scale_takes_whatever_numbers_there_are() {
        for values in [
            vec![],
            vec![f64::NAN],
            vec![0.0],
            vec![5.0, 5.0],
            vec![-1e-300, 1e-300],
            vec![f64::MIN, f64::MAX],
            vec![f64::MAX],
            vec![1.0, 1.0 + 1e-15],
        ] {
            let scale = Scale::around(values.iter().copied(), 0.1);
            assert!(scale.low < scale.high && scale.low.is_finite() && scale.high.is_finite(), "{values:?}");
            assert!(scale.ticks(5).len() <= 12, "{values:?}");
            for value in values.iter().chain(&[f64::NAN, f64::INFINITY, 0.0]) {
                assert!((0.0..=1.0).contains(&scale.at(*value)), "{values:?}: {value}");
            }
        }
    }
}
