//! The losses with their error bars, each on its own axis: metrics have different units.

use serde::Serialize;

use crate::report::{Gate, Metric, Report, escape};
use crate::svg::{self, Scale, percent, push, typeset};

/// A row of the chart and of the table.
#[derive(Serialize)]
pub(super) struct MetricRow<'a> {
    task: &'a str,
    name: &'a str,
    ideal: bool,
    original: String,
    quantized: String,
    delta: String,
    stderr: String,
    samples: String,
    better: &'static str,
    chart: String,
    /// What became of it, in a few words: `lost 0.0061 ± 0.0011`.
    result: String,
    /// What the error bar says about it.
    note: &'static str,
    /// `worse`, `better` or `same`: how the page colours it.
    tone: &'static str,
    gate: Option<GateRow>,
}

#[derive(Serialize)]
struct GateRow {
    passed: bool,
    limit: String,
}

/// What stands where a number is not known.
const UNKNOWN: &str = "–";

fn number(value: f64) -> String {
    if value.is_finite() { typeset(&escape::metric(Some(value))) } else { UNKNOWN.to_owned() }
}

fn change(delta: f64) -> String {
    if delta.is_finite() { typeset(&escape::signed(Some(delta))) } else { UNKNOWN.to_owned() }
}

/// ` ± 0.0011`, or nothing where the standard error is 0 or not known.
fn plus_minus(stderr: f64) -> String {
    if stderr.is_finite() && stderr != 0.0 { format!(" ± {}", number(stderr)) } else { String::new() }
}

/// A limit as the config has it.
fn limit_text(limit: f64) -> String {
    typeset(&limit.to_string())
}

/// The change in words.
pub(super) fn result(metric: &Metric) -> String {
    let loss = metric.loss();
    let error = plus_minus(metric.stderr);
    match loss {
        _ if loss.is_nan() => "no value".to_owned(),
        0.0 => format!("unchanged{error}"),
        _ if metric.ideal => format!("{}{error} off the ideal", number(loss.abs())),
        0.0.. => format!("lost {}{error}", number(loss)),
        _ => format!("gained {}{error}", number(-loss)),
    }
}

fn note(metric: &Metric) -> (&'static str, &'static str) {
    let (loss, stderr) = (metric.loss(), metric.stderr);
    if loss.is_nan() {
        return ("it was measured on data without an answer", "same");
    }
    if metric.ideal {
        return ("distance from the original model's own outputs", "same");
    }
    match loss {
        0.0 => ("the same value", "same"),
        _ if !stderr.is_finite() => ("how much of it is chance is not known", "same"),
        _ if metric.is_significant_loss() => ("more than two standard errors: a loss", "worse"),
        _ if -loss > 2.0 * stderr => ("more than two standard errors: a gain", "better"),
        _ => ("within two standard errors: not a finding", "same"),
    }
}

pub(super) fn rows(report: &Report) -> Vec<MetricRow<'_>> {
    let row = |metric| {
        let gate = gate_of(report, metric);
        let (note, tone) = note(metric);
        MetricRow {
            task: &metric.task,
            name: &metric.name,
            ideal: metric.ideal,
            original: number(metric.original),
            quantized: number(metric.quantized),
            delta: change(metric.delta),
            stderr: number(metric.stderr),
            samples: escape::grouped(metric.samples),
            better: if metric.higher_is_better { "higher" } else { "lower" },
            chart: chart(metric, gate),
            result: result(metric),
            note,
            tone,
            gate: gate.map(|gate| GateRow { passed: gate.passed, limit: limit_text(gate.max_drop) }),
        }
    };
    report.metrics.iter().map(row).collect()
}

/// The strictest gate on a metric.
fn gate_of<'a>(report: &'a Report, metric: &Metric) -> Option<&'a Gate> {
    report
        .gates
        .iter()
        .filter(|gate| gate.task == metric.task && gate.metric == metric.name)
        .min_by(|a, b| a.max_drop.total_cmp(&b.max_drop))
}

/// Pixels from the top: limit's label, the line that the dot is on, numbers below it.
const LABEL: u32 = 10;
const LINE: u32 = 27;
const NUMBERS: u32 = 50;
const TOTAL: u32 = 54;

/// One line: no loss, the loss with two standard errors to either side, the limit.
fn chart(metric: &Metric, gate: Option<&Gate>) -> String {
    let (loss, error) = (metric.loss(), 2.0 * metric.stderr);
    let limit = gate.map(|gate| gate.max_drop).filter(|limit| limit.is_finite());
    let error = if error.is_finite() { error } else { 0.0 };
    let shown = [0.0, loss, loss - error, loss + error];
    // Without any extent the line has one place, no loss.
    let nowhere = shown.iter().chain(&limit).all(|value| *value == 0.0 || !value.is_finite());
    let scale = Scale::around(shown.into_iter().chain(limit), 0.08);
    let mut label = format!("{} {}: {}", svg::plain(&metric.task), svg::plain(&metric.name), result(metric));
    if let Some(limit) = limit {
        push(&mut label, format_args!("; at most {} allowed", limit_text(limit)));
    }
    let mut chart = format!(
        r#"<svg class="loss" width="100%" height="{TOTAL}" role="img" aria-label="{}">"#,
        svg::escape(&label)
    );
    push(&mut chart, format_args!(r#"<line class="axis" x1="0" x2="100%" y1="{LINE}" y2="{LINE}"/>"#));
    let ticks = if nowhere { vec![(0.0, "0".to_owned())] } else { scale.ticks(4) };
    for (value, text) in ticks {
        let x = percent(scale.at(value));
        let class = if value == 0.0 { "zero" } else { "axis" };
        let from = if value == 0.0 { LABEL + 4 } else { LINE };
        push(
            &mut chart,
            format_args!(
                r#"<line class="{class}" x1="{x}" x2="{x}" y1="{from}" y2="{}"/><text x="{x}" y="{NUMBERS}" text-anchor="middle">{text}</text>"#,
                LINE + 10,
            ),
        );
    }
    if let Some(limit) = limit {
        let x = percent(scale.at(limit));
        let anchor = if scale.at(limit) > 0.5 { "end" } else { "start" };
        push(
            &mut chart,
            format_args!(
                r#"<line class="limit" x1="{x}" x2="{x}" y1="{}" y2="{}"/><text class="limit" x="{x}" y="{LABEL}" text-anchor="{anchor}">limit {}</text>"#,
                LABEL + 4,
                LINE + 10,
                limit_text(limit),
            ),
        );
    }
    if loss.is_finite() {
        let [x, from, to] = [loss, loss - error, loss + error].map(|value| percent(scale.at(value)));
        if error > 0.0 {
            push(
                &mut chart,
                format_args!(r#"<line class="whisker" x1="{from}" x2="{to}" y1="{LINE}" y2="{LINE}"/>"#),
            );
            for end in [from, to] {
                push(
                    &mut chart,
                    format_args!(
                        r#"<line class="whisker" x1="{end}" x2="{end}" y1="{}" y2="{}"/>"#,
                        LINE - 5,
                        LINE + 5
                    ),
                );
            }
        }
        push(&mut chart, format_args!(r#"<circle class="value" cx="{x}" cy="{LINE}" r="5"/>"#));
    }
    chart.push_str("</svg>");
    chart
}
