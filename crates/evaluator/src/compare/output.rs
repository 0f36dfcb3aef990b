//! A comparison as a table, CSV, JSON and a page.

use serde::Serialize;

use super::chart::Across;
use super::{Comparison, Row, chart};
use crate::report::escape;
use crate::report::html::{PAGE_SCRIPT, STYLE, kept, page, render};
use crate::svg::{plain, push, typeset};

/// A comparison as rows of text, for a terminal: heads, the original, then the runs by size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Names of the columns.
    pub heads: Vec<String>,
    /// As many cells as heads in each.
    pub rows: Vec<Vec<String>>,
}

/// A column that is shown when some run has a value in it.
struct Column {
    title: &'static str,
    cell: fn(&Row) -> Option<String>,
}

/// Columns beyond those that every comparison has.
const OPTIONAL: [Column; 4] = [
    Column {
        title: "latency",
        cell: |row| row.latency_ms.map(|ms| format!("{} ms", escape::activation(Some(ms)))),
    },
    Column {
        title: "gates",
        cell: |row| row.gates_met.map(|met| if met { "met" } else { "not met" }.to_owned()),
    },
    Column { title: "lowest SQNR", cell: |row| row.lowest_output_sqnr_db.map(escape::with_unit) },
    Column { title: "not compared", cell: |row| row.excluded.clone() },
];

/// What the template of the page sees.
#[derive(Serialize)]
struct View {
    model: String,
    metric: String,
    samples: String,
    better: &'static str,
    ideal: bool,
    verdict: Vec<String>,
    original: Cells,
    wide: String,
    narrow: String,
    latency: Option<LatencyCharts>,
    optional: Vec<String>,
    runs: Vec<Cells>,
    excluded: usize,
}

/// Accuracy against latency.
#[derive(Serialize)]
struct LatencyCharts {
    wide: String,
    narrow: String,
    about: String,
}

/// A row of the page's table.
#[derive(Serialize)]
struct Cells {
    name: String,
    scheme: String,
    refinements: String,
    bytes: u64,
    size: String,
    kept: String,
    ratio: String,
    value: String,
    value_key: Option<f64>,
    loss: String,
    loss_key: Option<f64>,
    stderr: String,
    optional: Vec<String>,
    frontier: bool,
    compared: bool,
}

impl Comparison {
    /// The comparison as indented JSON, with a newline at the end.
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_string_pretty(self).expect("string keys and no failing serializer");
        json.push('\n');
        json
    }

    /// The runs as CSV with a head, the original first; a value that is not known is empty.
    pub fn to_csv(&self) -> String {
        let heads = [
            "run",
            "scheme",
            "bytes",
            "ratio",
            "task",
            "metric",
            "value",
            "loss",
            "stderr",
            "samples",
            "frontier",
            "gates_met",
            "lowest_output_sqnr_db",
            "excluded",
            "latency_ms",
        ];
        let optional =
            |value: Option<f64>| value.filter(|v| v.is_finite()).map_or(String::new(), |v| v.to_string());
        let about = |fields: [String; 8]| -> String {
            let [run, scheme, bytes, ratio, value, loss, stderr, frontier] = fields;
            let (task, name) = (field(&self.metric.task), field(&self.metric.name));
            let samples = self.metric.samples;
            format!(
                "{run},{scheme},{bytes},{ratio},{task},{name},{value},{loss},{stderr},{samples},{frontier}"
            )
        };
        let mut csv = heads.join(",") + "\n";
        csv.push_str(&about([
            "original".to_owned(),
            String::new(),
            self.original.bytes.to_string(),
            "1".to_owned(),
            optional(Some(self.original.value)),
            "0".to_owned(),
            String::new(),
            self.original.frontier.to_string(),
        ]));
        push(&mut csv, format_args!(",,,,{}\n", optional(self.original.latency_ms)));
        for row in &self.runs {
            csv.push_str(&about([
                field(&row.run),
                field(&row.scheme),
                row.bytes.to_string(),
                optional(Some(row.ratio)),
                optional(row.value),
                optional(row.loss),
                optional(row.stderr),
                row.frontier.to_string(),
            ]));
            let gates = row.gates_met.map_or(String::new(), |met| met.to_string());
            let excluded = row.excluded.as_deref().map_or(String::new(), field);
            let sqnr = optional(row.lowest_output_sqnr_db);
            let latency = optional(row.latency_ms);
            push(&mut csv, format_args!(",{gates},{sqnr},{excluded},{latency}\n"));
        }
        csv
    }

    /// The comparison as a table of text; the column without a title marks the frontier with `*`.
    pub fn table(&self) -> Table {
        let optional = self.optional();
        let metric = format!("{} {}", plain(&self.metric.task), plain(&self.metric.name));
        let heads = ["", "run", "scheme", "size", "smaller", &metric, "loss", "stderr"];
        let heads =
            heads.into_iter().chain(optional.iter().map(|column| column.title)).map(str::to_owned).collect();
        let mark = |on: bool| if on { "*" } else { "" }.to_owned();
        let original = vec![
            mark(self.original.frontier),
            "original".to_owned(),
            String::new(),
            escape::bytes(self.original.bytes),
            String::new(),
            escape::metric(Some(self.original.value)),
            String::new(),
            String::new(),
        ];
        let beside = optional.iter().map(|column| self.of_original(column, ""));
        let original = original.into_iter().chain(beside).collect();
        let rows = self.runs.iter().map(|row| {
            let cells = vec![
                mark(row.frontier),
                plain(&row.run),
                plain(scheme(&row.scheme).0),
                escape::bytes(row.bytes),
                ratio(row.ratio),
                escape::metric(row.value),
                escape::signed(row.loss),
                escape::metric(row.stderr),
            ];
            cells
                .into_iter()
                .chain(optional.iter().map(|column| (column.cell)(row).unwrap_or_default()))
                .collect()
        });
        Table { heads, rows: std::iter::once(original).chain(rows).collect() }
    }

    /// The chart alone, for a README: it follows the reader's choice of light or dark.
    pub fn to_svg(&self) -> String {
        chart::file(self)
    }

    /// The comparison as one HTML page without any reference outside itself.
    pub fn to_html(&self) -> String {
        let optional = self.optional();
        let metric = format!("{} {}", plain(&self.metric.task), plain(&self.metric.name));
        let model = plain(&self.model.source);
        let name = model.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
        let view = View {
            samples: escape::grouped(self.metric.samples),
            better: if self.metric.higher_is_better { "higher" } else { "lower" },
            ideal: self.metric.ideal,
            verdict: self.verdict(),
            original: Cells {
                name: "original".to_owned(),
                scheme: "float".to_owned(),
                refinements: String::new(),
                bytes: self.original.bytes,
                size: typeset(&escape::bytes(self.original.bytes)),
                kept: "100\u{a0}%".to_owned(),
                ratio: "1.00".to_owned(),
                value: known(Some(self.original.value), escape::metric),
                value_key: Some(self.original.value).filter(|value| value.is_finite()),
                loss: "–".to_owned(),
                loss_key: Some(0.0),
                stderr: "–".to_owned(),
                optional: optional.iter().map(|column| self.of_original(column, "–")).collect(),
                frontier: self.original.frontier,
                compared: true,
            },
            wide: chart::inline(self, Across::Bytes, chart::WIDE, "wide-chart"),
            narrow: chart::inline(self, Across::Bytes, chart::NARROW, "narrow-chart"),
            latency: self.latency.as_ref().map(|of| LatencyCharts {
                wide: chart::inline(self, Across::Latency, chart::WIDE, "wide-chart"),
                narrow: chart::inline(self, Across::Latency, chart::NARROW, "narrow-chart"),
                about: format!(
                    "{} of {} tokens, batch {}, {} {}",
                    if of.phase.is_some() { "a prompt" } else { "texts" },
                    of.tokens,
                    of.batch,
                    of.threads,
                    if of.threads == 1 { "thread" } else { "threads" }
                ),
            }),
            runs: self.runs.iter().map(|row| self.cells(row, &optional)).collect(),
            excluded: self.runs.iter().filter(|row| row.excluded.is_some()).count(),
            optional: optional.iter().map(|column| capital(column.title)).collect(),
            model: name,
            metric,
        };
        let title = format!("{}: accuracy against size", view.model);
        let body = render("compare.html", include_str!("../templates/compare.html.jinja"), view);
        page(&title, &body, &[STYLE, chart::STYLE], &[PAGE_SCRIPT])
    }

    fn cells(&self, row: &Row, optional: &[&Column]) -> Cells {
        Cells {
            name: plain(&row.run),
            scheme: plain(scheme(&row.scheme).0),
            refinements: plain(scheme(&row.scheme).1),
            bytes: row.bytes,
            size: typeset(&escape::bytes(row.bytes)),
            kept: kept(self.original.bytes, row.bytes),
            ratio: ratio(row.ratio),
            value: known(row.value, escape::metric),
            value_key: row.value,
            loss: known(row.loss, escape::signed),
            loss_key: row.loss,
            stderr: known(row.stderr, escape::metric),
            optional: optional
                .iter()
                .map(|column| (column.cell)(row).map_or_else(|| "–".to_owned(), |text| plain(&text)))
                .collect(),
            frontier: row.frontier,
            compared: row.excluded.is_none(),
        }
    }

    /// What a run is called where there is little room: the last part of its path when no other run has the same.
    pub(super) fn short_name(&self, run: &str) -> String {
        fn last(run: &str) -> &str {
            run.rsplit(['/', '\\']).next().unwrap_or(run)
        }
        let same = self.runs.iter().filter(|row| last(&row.run) == last(run)).count();
        plain(if same > 1 { run } else { last(run) })
    }

    /// The original's cell of an optional column.
    fn of_original(&self, column: &Column, none: &str) -> String {
        let latency = self.original.latency_ms.filter(|_| column.title == OPTIONAL[0].title);
        latency.map_or_else(|| none.to_owned(), |ms| format!("{} ms", escape::activation(Some(ms))))
    }

    /// The optional columns that some run has a value in.
    fn optional(&self) -> Vec<&'static Column> {
        OPTIONAL.iter().filter(|column| self.runs.iter().any(|row| (column.cell)(row).is_some())).collect()
    }

    /// The frontier in sentences, the smallest run first.
    fn verdict(&self) -> Vec<String> {
        let on = self.runs.iter().filter(|row| row.frontier);
        on.map(|row| {
            let number = |value: f64| typeset(&escape::metric(Some(value)));
            let loss = row.loss.unwrap_or(f64::NAN);
            let error = row.stderr.map_or(String::new(), |stderr| format!(" ± {}", number(stderr)));
            let change = match loss {
                0.0 => "loses nothing".to_owned(),
                0.0.. => format!("loses {}{error}", number(loss)),
                _ => format!("gains {}{error}", number(-loss)),
            };
            format!(
                "{} keeps {} of the bytes and {change}",
                self.short_name(&row.run),
                kept(self.original.bytes, row.bytes)
            )
        })
        .collect()
    }
}

/// A number as the page shows it.
fn known(value: Option<f64>, text: fn(Option<f64>) -> String) -> String {
    match value {
        Some(value) if value.is_finite() => typeset(&text(Some(value))),
        _ => "–".to_owned(),
    }
}

/// With a capital first letter.
fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

/// A scheme's name and what it stands for: `w8a8-static: weights ...`.
fn scheme(text: &str) -> (&str, &str) {
    text.split_once(':').unwrap_or((text, ""))
}

fn ratio(ratio: f64) -> String {
    if ratio.is_finite() { format!("{ratio:.2}") } else { "-".to_owned() }
}

/// A field of CSV (RFC 4180). Text that a spreadsheet would run as a formula gets an apostrophe before it.
fn field(text: &str) -> String {
    let text = plain(text);
    let formula = text.starts_with(['=', '+', '-', '@']);
    let text = if formula { format!("'{text}") } else { text };
    if text.contains([',', '"']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_csv_stay_fields() {
        for (from, to) in [
            ("runs/a", "runs/a"),
            ("a,b", "\"a,b\""),
            ("say \"x\"", "\"say \"\"x\"\"\""),
            ("two\nlines\u{1b}[1m", "two lines [1m"),
            ("=cmd()", "'=cmd()"),
            ("-1,2", "\"'-1,2\""),
        ] {
            assert_eq!(field(from), to);
        }
    }
}
