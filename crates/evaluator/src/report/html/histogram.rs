//! A histogram with the range that was chosen for it.

use super::Bins;
use crate::report::escape;
use crate::svg::{self, Scale, percent, push};

/// Width and height of the drawing inside the chart, in its own units.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 100.0;
/// Where the drawing begins and ends, in pixels from the top of the chart.
const TOP: u32 = 8;
const BOTTOM: u32 = 128;
/// The chart with its lettering.
const TOTAL: u32 = 148;

/// The chosen range: its ends, and the narrowest one where channels have their own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Chosen {
    pub(super) widest: [f64; 2],
    pub(super) narrowest: Option<[f64; 2]>,
}

/// Draws the counts twice, linear and logarithmic; the page's style shows one. What lies outside the range is shaded.
pub(super) fn draw(bins: &Bins, chosen: Option<Chosen>, label: &str) -> String {
    let finite = |range: &[f64; 2]| range.iter().all(|end| end.is_finite()) && range[0] < range[1];
    let chosen = chosen.filter(|chosen| finite(&chosen.widest));
    let ends = chosen.map_or([f64::NAN; 2], |chosen| chosen.widest);
    let scale = Scale::around([bins.min, bins.max].into_iter().chain(ends), 0.01);
    let mut svg = format!(
        r#"<svg class="histogram" width="100%" height="{TOTAL}" role="img" aria-label="{}">"#,
        svg::escape(label)
    );
    push(
        &mut svg,
        format_args!(
            r#"<svg x="0" y="{TOP}" width="100%" height="{}" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none">"#,
            BOTTOM - TOP
        ),
    );
    // A bin reaches a little further than the values in it; less than one bin outside says nothing.
    let bin = (bins.max - bins.min) / bins.counts.len().max(1) as f64;
    for (from, to) in [(bins.min, ends[0]), (ends[1], bins.max)] {
        if to - from > bin {
            let (from, to) = (scale.at(from), scale.at(to));
            let (x, width) = (svg::coordinate(from * WIDTH), svg::coordinate((to - from) * WIDTH));
            push(&mut svg, format_args!(r#"<rect class="outside" x="{x}" width="{width}" height="100"/>"#));
        }
    }
    let most = bins.counts.iter().copied().max().unwrap_or(0).max(1) as f64;
    let linear = outline(bins, scale, |count| count as f64 / most);
    let log = outline(bins, scale, |count| (count as f64).ln_1p() / most.ln_1p());
    push(&mut svg, format_args!(r#"<path class="counts linear" d="{linear}"/>"#));
    push(&mut svg, format_args!(r#"<path class="counts log" d="{log}"/></svg>"#));
    push(&mut svg, format_args!(r#"<line class="axis" x1="0" x2="100%" y1="{BOTTOM}" y2="{BOTTOM}"/>"#));
    if let Some(chosen) = chosen {
        for (range, class) in [(chosen.narrowest, "edge narrow"), (Some(chosen.widest), "edge")] {
            for end in range.into_iter().flatten() {
                let x = percent(scale.at(end));
                push(
                    &mut svg,
                    format_args!(
                        r#"<line class="{class}" x1="{x}" x2="{x}" y1="{}" y2="{BOTTOM}"/>"#,
                        TOP - 6
                    ),
                );
            }
        }
    }
    for (value, text) in scale.ticks(5) {
        let at = scale.at(value);
        let anchor = match at {
            ..0.04 => "start",
            0.96.. => "end",
            _ => "middle",
        };
        let x = percent(at);
        push(
            &mut svg,
            format_args!(
                r#"<line class="axis" x1="{x}" x2="{x}" y1="{BOTTOM}" y2="{}"/><text x="{x}" y="{}" text-anchor="{anchor}">{text}</text>"#,
                BOTTOM + 4,
                BOTTOM + 17,
            ),
        );
    }
    svg.push_str("</svg>");
    svg
}

/// The bars as one closed outline; runs of equal height are one step.
fn outline(bins: &Bins, scale: Scale, height: impl Fn(u64) -> f64) -> String {
    let width = (bins.max - bins.min) / bins.counts.len().max(1) as f64;
    let x = |edge: usize| svg::coordinate((scale.at(bins.min + width * edge as f64) * WIDTH).round());
    // A bin with few values is still to be seen.
    let y = |count: u64| {
        let height = if count == 0 { 0.0 } else { height(count).max(0.004) };
        svg::coordinate(((1.0 - height) * HEIGHT * 10.0).round() / 10.0)
    };
    let mut path = format!("M{} 100", x(0));
    let mut level = "100".to_owned();
    for (bin, count) in bins.counts.iter().enumerate() {
        let next = y(*count);
        if next != level {
            push(&mut path, format_args!("H{}V{next}", x(bin)));
            level = next;
        }
    }
    push(&mut path, format_args!("H{}V100Z", x(bins.counts.len())));
    path
}

/// What the chart says to those who do not see it.
pub(super) fn describe(what: &str, bins: &Bins, chosen: Option<Chosen>) -> String {
    let number = |value: f64| svg::typeset(&escape::activation(Some(value)));
    let values = bins.counts.iter().fold(0u64, |sum, count| sum.saturating_add(*count));
    let mut text = format!(
        "Histogram of {} {what} from {} to {}",
        escape::grouped(values),
        number(bins.min),
        number(bins.max)
    );
    if let Some(Chosen { widest: [low, high], .. }) = chosen {
        push(&mut text, format_args!("; chosen range {} to {}", number(low), number(high)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bins(counts: &[u64]) -> Bins {
        Bins { min: -2.0, max: 2.0, counts: counts.to_vec() }
    }

    #[test]
    fn equal_bars_are_one_step_and_small_ones_are_seen() {
        let scale = Scale::around([-2.0, 2.0], 0.0);
        let linear = outline(&bins(&[0, 10, 10, 5]), scale, |count| count as f64 / 10.0);
        assert_eq!(linear, "M0 100H250V0H750V50H1000V100Z");
        let small = outline(&bins(&[1, 1_000_000]), scale, |count| count as f64 / 1e6);
        assert_eq!(small, "M0 100H0V99.6H500V0H1000V100Z");
        assert_eq!(outline(&bins(&[]), scale, |_| 1.0), "M0 100H0V100Z");
    }

    #[test]
    fn what_is_clipped_is_shaded() {
        let shaded = |range| {
            let chosen = Chosen { widest: range, narrowest: None };
            draw(&bins(&[1, 2, 2, 2, 2, 2, 2, 1]), Some(chosen), "x").matches("outside").count()
        };
        for (range, expected) in
            [([-1.0, 1.0], 2), ([-1.0, 2.5], 1), ([-3.0, 3.0], 0), ([-1.9, 1.9], 0), ([f64::NAN, 1.0], 0)]
        {
            assert_eq!(shaded(range), expected, "{range:?}");
        }
    }

    #[test]
    fn broken_numbers_draw_something() {
        for bins in [
            Bins { min: f64::NAN, max: 1.0, counts: vec![1] },
            Bins { min: 1.0, max: -1.0, counts: vec![u64::MAX, u64::MAX] },
            Bins { min: 0.0, max: 0.0, counts: vec![0; 128] },
            Bins { min: f64::MIN, max: f64::MAX, counts: Vec::new() },
        ] {
            let svg = draw(&bins, None, &describe("<values>", &bins, None));
            assert!(svg.ends_with("</svg>") && !svg.contains("NaN") && !svg.contains("inf\""), "{svg}");
            assert!(svg.contains("&lt;values&gt;"), "{svg}");
        }
    }
}
