//! The layers: a row of the table with its bars, and a panel with its histograms.

use serde::Serialize;

use super::histogram::{self, Chosen};
use super::{Bins, Details};
use crate::report::suggestion::suggestion;
use crate::report::{Layer, OutlierChannel, Report, escape, markdown};
use crate::svg::{self, percent, push, typeset};

/// Layers that are named in the text above the table and printed with their histograms.
const NAMED: usize = 3;
/// Decibels below which a bar is drawn as a warning: the noise is more than a tenth of the signal's amplitude.
pub(super) const LOW_DB: f64 = 20.0;
/// Every bar reaches its end here or at the largest value below it, in decibels.
const LONGEST_BAR_DB: f64 = 60.0;

/// One layer as the page shows it.
#[derive(Serialize)]
pub(super) struct LayerRow<'a> {
    /// Its place in the model, from 1; the page's names for it hold it.
    number: usize,
    path: &'a str,
    weights: &'a str,
    activations: &'a str,
    output: Decibels,
    weight: Decibels,
    input: Decibels,
    range: String,
    clipped: String,
    clipped_value: Option<f64>,
    bytes: String,
    bytes_value: u64,
    sizes: String,
    outliers: Vec<OutlierRow>,
    /// How many there are, where not all of them are named.
    outliers_in_all: Option<u64>,
    outlier_cell: String,
    /// Among the worst that are named.
    worst: bool,
    cause: String,
    suggestion: &'static str,
    weight_before: Option<String>,
    activation_before: Option<String>,
    weight_chart: Option<Chart>,
    activation_chart: Option<Chart>,
}

/// A number of decibels with its bar.
#[derive(Serialize)]
struct Decibels {
    text: String,
    /// For sorting; `None` sorts last.
    value: Option<f64>,
    low: bool,
    bar: String,
}

#[derive(Serialize)]
struct OutlierRow {
    channel: u64,
    absmax: String,
    times: String,
}

/// A histogram with what stands below it.
#[derive(Serialize)]
struct Chart {
    svg: String,
    caption: String,
}

/// All layers, the lowest output SQNR first, those without one last, equals in the order of the model.
pub(super) fn rows<'a>(report: &'a Report, details: &Details) -> Vec<LayerRow<'a>> {
    let finite = |value: Option<f64>| value.filter(|db| db.is_finite());
    let measured =
        report.layers.iter().flat_map(|layer| [finite(layer.output_sqnr_db), Some(layer.weight_sqnr_db)]);
    let longest = measured.flatten().filter(|db| *db <= LONGEST_BAR_DB).fold(LOW_DB, f64::max);
    let mut order: Vec<(usize, &Layer)> = report.layers.iter().enumerate().collect();
    let key = |layer: &Layer| finite(layer.output_sqnr_db).unwrap_or(f64::INFINITY);
    order.sort_by(|a, b| key(a.1).total_cmp(&key(b.1)));
    order
        .into_iter()
        .enumerate()
        .map(|(rank, (index, layer))| {
            let charts = details.layers.get(index);
            let decibels = |value| decibels(value, longest);
            LayerRow {
                number: index + 1,
                path: &layer.path,
                weights: &layer.weights,
                activations: &layer.activations,
                output: decibels(layer.output_sqnr_db),
                weight: decibels(Some(layer.weight_sqnr_db)),
                input: decibels(layer.activation_sqnr_db),
                range: layer.input_range.map_or_else(|| "–".to_owned(), range),
                clipped: layer.clipped_fraction.map_or_else(|| "–".to_owned(), share),
                clipped_value: finite(layer.clipped_fraction),
                bytes: escape::grouped(layer.bytes),
                bytes_value: layer.bytes,
                sizes: sizes(layer),
                outliers: outliers(layer),
                outliers_in_all: Some(layer.outliers())
                    .filter(|all| *all > layer.outlier_channels.len() as u64),
                outlier_cell: outlier_cell(layer),
                worst: rank < NAMED && finite(layer.output_sqnr_db).is_some(),
                cause: typeset_numbers(&markdown::cause(layer)),
                suggestion: suggestion(layer, report.is_by_gptq()),
                weight_before: charts
                    .and_then(|c| c.weights_before.as_ref())
                    .map(|bins| before(&format!("weights of {}", svg::plain(&layer.path)), bins)),
                activation_before: charts
                    .and_then(|c| c.activations_before.as_ref())
                    .map(|bins| before(&format!("inputs of {}", svg::plain(&layer.path)), bins)),
                weight_chart: charts.and_then(|c| c.weights.as_ref()).map(|bins| weight_chart(layer, bins)),
                activation_chart: charts
                    .and_then(|c| c.activations.as_ref())
                    .map(|bins| activation_chart(layer, bins)),
            }
        })
        .collect()
}

fn decibels(value: Option<f64>, longest: f64) -> Decibels {
    let value = value.filter(|db| db.is_finite());
    let low = value.is_some_and(|db| db < LOW_DB);
    let mut bar = String::from(r#"<svg class="decibels" width="100%" height="8" aria-hidden="true">"#);
    if let Some(db) = value {
        let class = if low { "low" } else { "enough" };
        let width = percent((db / longest).clamp(0.0, 1.0));
        push(&mut bar, format_args!(r#"<rect class="{class}" width="{width}" height="8"/>"#));
    }
    bar.push_str("</svg>");
    let text = value.map_or_else(|| "–".to_owned(), |db| typeset(&escape::decibels(Some(db))));
    Decibels { text, value, low, bar }
}

/// Bytes before, where known, and after.
fn sizes(layer: &Layer) -> String {
    let after = escape::bytes(layer.bytes);
    let before = layer.original_bytes.map(|bytes| escape::bytes(bytes) + " to ");
    typeset(&(before.unwrap_or_default() + &after))
}

fn number(value: f64) -> String {
    let text = typeset(&escape::activation(Some(value)));
    if value.is_finite() { text } else { "–".to_owned() }
}

fn range([low, high]: [f64; 2]) -> String {
    format!("{} to {}", number(low), number(high))
}

fn share(fraction: f64) -> String {
    match fraction {
        0.0 => "none".to_owned(),
        _ if fraction.is_finite() => typeset(&escape::percent(Some(fraction))),
        _ => "–".to_owned(),
    }
}

/// A hyphen before a digit and after a space or bracket is a minus; others belong to words. Units stay with their
/// numbers.
fn typeset_numbers(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut before = ' ';
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let sign = c == '-' && matches!(before, ' ' | '(') && rest.peek().is_some_and(char::is_ascii_digit);
        out.push(if sign { '\u{2212}' } else { c });
        before = c;
    }
    out.replace(" dB", "\u{a0}dB").replace(" %", "\u{a0}%")
}

fn sorted(layer: &Layer) -> Vec<&OutlierChannel> {
    markdown::largest_outliers(layer)
}

fn outliers(layer: &Layer) -> Vec<OutlierRow> {
    sorted(layer)
        .into_iter()
        .map(|outlier| OutlierRow {
            channel: outlier.channel,
            absmax: number(outlier.absmax),
            times: if outlier.times_median.is_finite() {
                format!("{}\u{a0}×", escape::activation(Some(outlier.times_median)))
            } else {
                "–".to_owned()
            },
        })
        .collect()
}

fn outlier_cell(layer: &Layer) -> String {
    let named: Vec<String> =
        sorted(layer).into_iter().take(NAMED).map(|outlier| outlier.channel.to_string()).collect();
    match layer.outliers().saturating_sub(named.len() as u64) {
        0 if named.is_empty() => "none".to_owned(),
        0 => named.join(", "),
        more => format!("{} + {more}", named.join(", ")),
    }
}

/// A histogram from before the transforms, in which no range was chosen.
fn before(what: &str, bins: &Bins) -> String {
    histogram::draw(bins, None, &histogram::describe(&format!("{what} before the transforms"), bins, None))
}

fn weight_chart(layer: &Layer, bins: &Bins) -> Chart {
    let chosen = layer.weight_range.map(|range| Chosen {
        widest: range.widest,
        narrowest: (range.narrowest != range.widest).then_some(range.narrowest),
    });
    let caption = match layer.weight_range {
        None => "The range was not recorded.".to_owned(),
        Some(chosen) => {
            let channels = if chosen.narrowest == chosen.widest {
                format!("Range {} for the whole tensor", range(chosen.widest))
            } else {
                format!(
                    "Each output channel has its own range: the widest is {}, the narrowest {} (dashed)",
                    range(chosen.widest),
                    range(chosen.narrowest)
                )
            };
            match layer.weight_clipped_fraction {
                None => format!("{channels}."),
                Some(fraction) => format!("{channels}. Clipped: {}.", share(fraction)),
            }
        }
    };
    let label = histogram::describe(&format!("weights of {}", svg::plain(&layer.path)), bins, chosen);
    Chart { svg: histogram::draw(bins, chosen, &label), caption }
}

fn activation_chart(layer: &Layer, bins: &Bins) -> Chart {
    let chosen = layer.activation_range.map(|widest| Chosen { widest, narrowest: None });
    let seen =
        layer.input_range.map_or_else(String::new, |seen| format!("Calibration saw {}. ", range(seen)));
    let caption = match (layer.activation_range, layer.clipped_fraction) {
        (None, _) => format!("{seen}The range is found for every token at run time, so nothing is clipped."),
        (Some(chosen), None) => format!("{seen}Chosen range {}.", range(chosen)),
        (Some(chosen), Some(fraction)) => {
            format!("{seen}Chosen range {}. Clipped: {}.", range(chosen), share(fraction))
        }
    };
    let label = histogram::describe(&format!("inputs of {}", svg::plain(&layer.path)), bins, chosen);
    Chart { svg: histogram::draw(bins, chosen, &label), caption }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minus_is_not_a_hyphen() {
        for (from, to) in [
            ("up to -4.5 (-3 dB, x)", "up to −4.5 (−3\u{a0}dB, x)"),
            ("per-tensor w8-a8 1e-5", "per-tensor w8-a8 1e-5"),
            ("- 4", "- 4"),
        ] {
            assert_eq!(typeset_numbers(from), to);
        }
    }

    #[test]
    fn bars_are_as_long_as_their_decibels() {
        for (value, width, low, text) in [
            (Some(30.0), "75%", false, "30.0"),
            (Some(10.0), "25%", true, "10.0"),
            (Some(-5.0), "0%", true, "−5.0"),
            (Some(200.0), "100%", false, "exact"),
        ] {
            let made = decibels(value, 40.0);
            assert!(made.bar.contains(&format!("width=\"{width}\" height")), "{}", made.bar);
            assert_eq!((made.low, made.text.as_str()), (low, text));
        }
        for unknown in [None, Some(f64::NAN), Some(f64::INFINITY)] {
            let made = decibels(unknown, 40.0);
            assert!(!made.bar.contains("<rect") && made.text == "–" && made.value.is_none());
        }
    }
}
