//! Accuracy against size as a scatter with error bars and the frontier as a line.

use super::{Comparison, Row, frontier};
use crate::svg::{self, Scale, coordinate as c, push};

/// The look of the marks, for the page and for the file alone.
pub(super) const STYLE: &str = include_str!("../templates/chart.css");

/// The colours of the file that stands alone; in a page they are the page's.
const COLOURS: &str = "\
.chart { --ink: #1c1f24; --muted: #595f69; --line: #dedbd2; --int8: #2b6cab; --paper: #fffefb; }
@media (prefers-color-scheme: dark) {
.chart { --ink: #e8e6e1; --muted: #a3a8b1; --line: #31353c; --int8: #5d9cd8; --paper: #1b1e23; }
}
";

/// Measures of a chart, in pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Format {
    width: f64,
    height: f64,
    /// Room for the numbers of the vertical axis.
    left: f64,
    /// Numbers on an axis.
    ticks: u32,
    /// Characters of a run's name beside its mark.
    name: usize,
}

/// For READMEs and wide screens.
pub(super) const WIDE: Format = Format { width: 760.0, height: 420.0, left: 72.0, ticks: 6, name: 36 };
/// For telephones.
pub(super) const NARROW: Format = Format { width: 340.0, height: 380.0, left: 58.0, ticks: 4, name: 20 };

const TOP: f64 = 36.0;
const BOTTOM: f64 = 50.0;
const RIGHT: f64 = 16.0;
/// Half the side of a mark.
const MARK: f64 = 5.5;
/// A guess at the width of a character of the lettering: only where names are put depends on it.
const CHARACTER: f64 = 6.4;
/// Height of a line of lettering.
const LINE: f64 = 14.0;

/// What accuracy is drawn against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Across {
    /// Bytes of the weight files.
    Bytes,
    /// Milliseconds of the combination that is compared.
    Latency,
}

impl Across {
    fn in_words(self) -> &'static str {
        match self {
            Self::Bytes => "the size of the weight files",
            Self::Latency => "latency",
        }
    }

    fn of(self, row: &Row) -> Option<f64> {
        match self {
            Self::Bytes => Some(row.bytes as f64),
            Self::Latency => row.latency_ms,
        }
    }

    fn of_original(self, comparison: &Comparison) -> Option<f64> {
        match self {
            Self::Bytes => Some(comparison.original.bytes as f64),
            Self::Latency => comparison.original.latency_ms,
        }
    }

    /// Of each run, and of the original, whether no other is as far to the left and as good, and better in one.
    fn frontier(self, comparison: &Comparison) -> (Vec<bool>, bool) {
        if self == Self::Bytes {
            let on = comparison.runs.iter().map(|row| row.frontier).collect();
            return (on, comparison.original.frontier);
        }
        // In nanoseconds; what was not measured is on no frontier.
        let point = |at: Option<f64>, loss: Option<f64>| match at {
            Some(ms) => ((ms * 1e6) as u64, loss),
            None => (0, None),
        };
        let runs = comparison.runs.iter().map(|row| point(self.of(row), row.loss));
        let original = point(self.of_original(comparison), Some(0.0));
        let mut on = frontier(&runs.chain([original]).collect::<Vec<_>>());
        let original = on.pop().unwrap_or(false);
        (on, original)
    }
}

/// What is drawn of a run or of the original, in pixels.
struct Point {
    name: String,
    x: f64,
    y: f64,
    /// Two standard errors to either side.
    error: Option<[f64; 2]>,
    on: bool,
    original: bool,
}

/// A rectangle: left, top, right, bottom.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Area([f64; 4]);

impl Area {
    /// Of a horizontal line.
    fn line(from: f64, to: f64, y: f64) -> Self {
        Self([from, y - 1.0, to, y + 1.0])
    }

    /// Of a line of lettering whose middle is at the height `y`.
    fn lettering(text: &str, anchor: &str, x: f64, y: f64) -> Self {
        let width = text.chars().count() as f64 * CHARACTER;
        let from = match anchor {
            "start" => x,
            "end" => x - width,
            _ => x - width / 2.0,
        };
        Self([from, y - LINE / 2.0, from + width, y + LINE / 2.0])
    }

    fn overlaps(self, other: Self) -> bool {
        let (Self([left, top, right, bottom]), Self([l, t, r, b])) = (self, other);
        left < r && l < right && top < b && t < bottom
    }

    fn inside(self, other: Self) -> bool {
        let (Self([left, top, right, bottom]), Self([l, t, r, b])) = (self, other);
        l <= left && t <= top && right <= r && bottom <= b
    }
}

/// The chart as a file of its own.
pub(super) fn file(comparison: &Comparison) -> String {
    let Format { width, height, .. } = WIDE;
    let label = svg::escape(&label(comparison, Across::Bytes));
    let mut out = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" class="chart" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">"#
    );
    push(&mut out, format_args!("\n<style>\n{COLOURS}{STYLE}</style>\n<title>{label}</title>\n"));
    push(&mut out, format_args!("<rect class=\"back\" width=\"{width}\" height=\"{height}\" rx=\"6\"/>\n"));
    draw(&mut out, comparison, Across::Bytes, WIDE);
    out + "</svg>\n"
}

/// The chart as a part of a page.
pub(super) fn inline(comparison: &Comparison, across: Across, format: Format, class: &str) -> String {
    let Format { width, height, .. } = format;
    let label = svg::escape(&label(comparison, across));
    let mut out = format!(
        r#"<svg class="chart {class}" width="100%" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">"#
    );
    draw(&mut out, comparison, across, format);
    out + "</svg>"
}

fn label(comparison: &Comparison, across: Across) -> String {
    let drawn = |row: &&Row| row.value.is_some() && across.of(row).is_some();
    let runs = comparison.runs.iter().filter(drawn).count();
    format!(
        "{} against {}: {runs} {} and the original",
        metric(comparison),
        across.in_words(),
        if runs == 1 { "run" } else { "runs" }
    )
}

fn metric(comparison: &Comparison) -> String {
    format!("{} {}", svg::plain(&comparison.metric.task), svg::plain(&comparison.metric.name))
}

fn draw(out: &mut String, comparison: &Comparison, across: Across, format: Format) {
    let Format { width, height, left, ticks, .. } = format;
    let (floor, right) = (height - BOTTOM, width - RIGHT);
    let (on_frontier, original_on) = across.frontier(comparison);
    let rows = || comparison.runs.iter().zip(on_frontier.iter().copied());
    let compared = || rows().filter_map(|(row, on)| Some((row, row.value?, across.of(row)?, on)));
    let original = across.of_original(comparison);

    let largest = compared().map(|(_, _, at, _)| at).fold(original.unwrap_or(0.0), f64::max);
    let (unit, unit_name) = match across {
        Across::Bytes => {
            let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
            let unit = units.into_iter().find(|(unit, _)| largest.max(1.0) >= *unit).unwrap_or((1.0, "B"));
            (unit.0, format!("weight files, {}", unit.1))
        }
        Across::Latency => (1.0, "latency, ms".to_owned()),
    };
    let sizes = Scale::around([0.0, if largest > 0.0 { largest * 1.06 / unit } else { 1.0 }], 0.0);
    let spread = compared().flat_map(|(row, value, ..)| {
        let error = row.stderr.map_or(0.0, |stderr| 2.0 * stderr);
        [value - error, value + error]
    });
    let values = Scale::around(spread.chain([comparison.original.value]), 0.1);
    let x = |at: f64| left + sizes.at(at / unit) * (right - left);
    let up = comparison.metric.higher_is_better;
    let y = |value: f64| {
        let height = if up { values.at(value) } else { 1.0 - values.at(value) };
        floor - height * (floor - TOP)
    };

    // Axes.
    let title = svg::escape(&shortened(&metric(comparison), format.name));
    let better = if up { "higher is better" } else { "lower is better" };
    push(out, format_args!(r#"<text class="title" x="8" y="19">{title}</text>"#));
    push(out, format_args!(r#"<text x="{}" y="19" text-anchor="end">{better}</text>"#, c(right)));
    let mut drawn = Vec::new();
    for (value, text) in values.ticks(ticks) {
        drawn.push(Area::lettering(&text, "end", left - 8.0, y(value)));
        let (y, from, to, at) = (c(y(value)), c(left), c(right), c(left - 8.0));
        push(out, format_args!(r#"<line class="grid" x1="{from}" x2="{to}" y1="{y}" y2="{y}"/>"#));
        push(out, format_args!(r#"<text x="{at}" y="{y}" dy="4" text-anchor="end">{text}</text>"#));
    }
    for (size, text) in sizes.ticks(ticks) {
        let x = c(left + sizes.at(size) * (right - left));
        let (from, to, at) = (c(floor), c(floor + 5.0), c(floor + 19.0));
        push(out, format_args!(r#"<line class="grid" x1="{x}" x2="{x}" y1="{from}" y2="{to}"/>"#));
        push(out, format_args!(r#"<text x="{x}" y="{at}" text-anchor="middle">{text}</text>"#));
    }
    let (from, to, y0) = (c(left), c(right), c(floor));
    push(out, format_args!(r#"<line class="grid" x1="{from}" x2="{to}" y1="{y0}" y2="{y0}"/>"#));
    let below = c(height - 12.0);
    push(out, format_args!(r#"<text x="{to}" y="{below}" text-anchor="end">{unit_name}</text>"#));

    // Points.
    let mut points: Vec<Point> = compared()
        .map(|(row, value, at, on)| Point {
            name: comparison.short_name(&row.run),
            x: x(at),
            y: y(value),
            error: row.stderr.map(|stderr| [value - 2.0 * stderr, value + 2.0 * stderr].map(y)),
            on,
            original: false,
        })
        .collect();
    if let Some(original) = original.filter(|_| comparison.original.value.is_finite()) {
        let name = if comparison.metric.ideal { "original (ideal)" } else { "original" };
        points.push(Point {
            name: name.to_owned(),
            x: x(original),
            y: y(comparison.original.value),
            error: None,
            on: original_on,
            original: true,
        });
        let at = c(y(comparison.original.value));
        push(out, format_args!(r#"<line class="reference" x1="{from}" x2="{to}" y1="{at}" y2="{at}"/>"#));
    }
    drawn.extend(stair(out, &points, right));
    drawn.extend(points.iter().filter(|point| point.original).map(|point| Area::line(left, right, point.y)));
    // The frontier lies on top.
    for on in [false, true] {
        points.iter().filter(|point| point.on == on).for_each(|point| mark(out, point));
    }
    names(out, &points, drawn, format);
}

/// The frontier as steps: to the right of a point nothing smaller is as good until the next one. Returns
/// where its horizontal parts are.
fn stair(out: &mut String, points: &[Point], right: f64) -> Vec<Area> {
    let mut on: Vec<&Point> = points.iter().filter(|point| point.on).collect();
    on.sort_by(|a, b| a.x.total_cmp(&b.x).then(b.y.total_cmp(&a.y)));
    let Some(first) = on.first() else { return Vec::new() };
    let mut path = format!("M{} {}", c(first.x), c(first.y));
    for point in &on[1..] {
        push(&mut path, format_args!("H{}V{}", c(point.x), c(point.y)));
    }
    push(out, format_args!(r#"<path class="stair" d="{path}H{}"/>"#, c(right)));
    let ends = on.iter().skip(1).map(|point| point.x).chain([right]);
    on.iter().zip(ends).map(|(point, end)| Area::line(point.x, end, point.y)).collect()
}

fn mark(out: &mut String, point: &Point) {
    let on = if point.on { " on" } else { "" };
    let (x, y) = (c(point.x), c(point.y));
    if let Some(ends) = point.error {
        let [from, to] = ends.map(c);
        push(out, format_args!(r#"<line class="error{on}" x1="{x}" x2="{x}" y1="{from}" y2="{to}"/>"#));
        for end in [from, to] {
            let (left, right) = (c(point.x - 4.0), c(point.x + 4.0));
            push(
                out,
                format_args!(r#"<line class="error{on}" x1="{left}" x2="{right}" y1="{end}" y2="{end}"/>"#),
            );
        }
    }
    if point.original {
        let (left, right) = (c(point.x - MARK - 1.0), c(point.x + MARK + 1.0));
        let (top, bottom) = (c(point.y - MARK - 1.0), c(point.y + MARK + 1.0));
        push(
            out,
            format_args!(
                r#"<path class="original{on}" d="M{x} {top}L{right} {y}L{x} {bottom}L{left} {y}Z"/>"#
            ),
        );
    } else {
        push(out, format_args!(r#"<circle class="run{on}" cx="{x}" cy="{y}" r="{MARK}"/>"#));
    }
}

/// Names beside the marks, those of the frontier first, none over a mark, another name or what is `drawn` already; one that
/// finds no free place is left to the table.
fn names(out: &mut String, points: &[Point], drawn: Vec<Area>, format: Format) {
    let frame = Area([2.0, TOP - LINE, format.width - 2.0, format.height - BOTTOM]);
    let mut taken: Vec<Area> = points
        .iter()
        .flat_map(|point| {
            let [from, to] = point.error.unwrap_or([point.y; 2]);
            [
                Area([point.x - MARK, point.y - MARK, point.x + MARK, point.y + MARK]),
                Area([point.x - 3.0, from.min(to), point.x + 3.0, from.max(to)]),
            ]
        })
        .chain(drawn)
        .collect();
    let mut order: Vec<&Point> = points.iter().collect();
    order.sort_by_key(|point| (!point.original, !point.on));
    for point in order {
        let name = shortened(&point.name, format.name);
        let (x, y) = (point.x, point.y);
        let gap = MARK + 5.0;
        // Beside the mark, then above and below it, then further up and down.
        let mut places = vec![("start", x + gap, y), ("end", x - gap, y)];
        for step in [1.0, 2.0, 3.0] {
            for sign in [-1.0, 1.0] {
                let y = y + sign * step * (LINE + 1.0);
                places.extend([("start", x + gap, y), ("end", x - gap, y), ("middle", x, y)]);
            }
        }
        let free = places.into_iter().find_map(|(anchor, x, y)| {
            let area = Area::lettering(&name, anchor, x, y);
            let free = area.inside(frame) && !taken.iter().any(|other| area.overlaps(*other));
            free.then_some((anchor, x, y, area))
        });
        if let Some((anchor, x, y, area)) = free {
            taken.push(area);
            let class = if point.on || point.original { "name" } else { "name off" };
            let name = svg::escape(&name);
            push(
                out,
                format_args!(
                    r#"<text class="{class}" x="{}" y="{}" dy="4" text-anchor="{anchor}">{name}</text>"#,
                    c(x),
                    c(y)
                ),
            );
        }
    }
}

/// The end of a long name: paths differ there.
fn shortened(name: &str, most: usize) -> String {
    let length = name.chars().count();
    if length <= most {
        return name.to_owned();
    }
    let kept: String = name.chars().skip(length + 1 - most).collect();
    format!("…{kept}")
}

#[cfg(test)]
mod tests {
    use zeropoint_core::{Fingerprint, Rng};

    use super::*;
    use crate::compare::{COMPARE_SCHEMA, ComparedMetric, ComparedModel, Reference, Row};

    fn point(x: f64, y: f64, on: bool) -> Point {
        Point { name: "run".to_owned(), x, y, error: None, on, original: false }
    }

    #[test]
    fn the_stair_joins_the_frontier_from_small_to_large() {
        let mut out = String::new();
        stair(&mut out, &[point(50.0, 10.0, true), point(40.0, 5.0, false), point(20.0, 30.0, true)], 90.0);
        assert_eq!(out, r#"<path class="stair" d="M20 30H50V10H90"/>"#);
        let mut none = String::new();
        stair(&mut none, &[point(1.0, 1.0, false)], 9.0);
        assert_eq!(none, "");
    }

    #[test]
    fn long_names_keep_their_end() {
        assert_eq!(shortened("runs/a", 6), "runs/a");
        assert_eq!(shortened("runs/äbc", 4), "…äbc");
    }

    /// All lettering of a drawing, each line with the rectangle that it takes up by the guess that names are put by.
    fn lettering(svg: &str) -> Vec<(String, Area)> {
        let line = |element: &str| -> (String, Area) {
            let (head, rest) = element.split_once('>').expect("a tag ends");
            let text = rest.split("</text>").next().unwrap_or_default();
            let attribute = |name: &str| -> Option<String> {
                let (_, value) = head.split_once(&format!(" {name}=\""))?;
                value.split('"').next().map(str::to_owned)
            };
            let number = |name: &str| -> f64 {
                attribute(name)
                    .and_then(|value| value.parse().ok())
                    .unwrap_or_else(|| panic!("{name}: {head}"))
            };
            // With `dy` the letters are around `y`, without it above.
            let middle = if attribute("dy").is_some() { number("y") } else { number("y") - 4.0 };
            let anchor = attribute("text-anchor").unwrap_or_else(|| "start".to_owned());
            (text.to_owned(), Area::lettering(text, &anchor, number("x"), middle))
        };
        svg.split("<text").skip(1).map(line).collect()
    }

    /// Whether areas overlap by more than the rounding of coordinates.
    fn cover(one: Area, other: Area) -> bool {
        let Area([left, top, right, bottom]) = one;
        Area([left + 0.02, top + 0.02, right - 0.02, bottom - 0.02]).overlaps(other)
    }

    fn assert_apart(lettering: &[(String, Area)]) {
        for (i, (name, area)) in lettering.iter().enumerate() {
            for (other, of_other) in &lettering[..i] {
                assert!(!cover(*area, *of_other), "`{name}` {area:?} covers `{other}` {of_other:?}");
            }
        }
    }

    #[test]
    fn names_never_cover_one_another_or_a_mark() {
        for (format, seed) in
            [WIDE, NARROW].into_iter().flat_map(|format| (0..24).map(move |seed| (format, seed)))
        {
            let mut rng = Rng::new(seed);
            // From all over the chart to all in one place.
            let spread = [1.0, 0.3, 0.05, 0.0][seed as usize % 4];
            let mut within = |from: f64, to: f64| {
                let share = 0.4 + spread * (rng.below(1001) as f64 / 1000.0 - 0.4);
                from + share * (to - from)
            };
            let points: Vec<Point> = (0..30usize)
                .map(|i| {
                    let x = within(format.left, format.width - RIGHT);
                    let y = within(TOP, format.height - BOTTOM);
                    Point {
                        name: format!("{}{i}", "run-".repeat(i % 5 + 1)),
                        x,
                        y,
                        error: i.is_multiple_of(3).then_some([y - 9.0, y + 9.0]),
                        on: i.is_multiple_of(2),
                        original: i == 0,
                    }
                })
                .collect();
            let mut out = String::new();
            names(&mut out, &points, vec![Area::line(format.left, format.width, points[0].y)], format);
            let placed = lettering(&out);
            assert!((1..=30).contains(&placed.len()), "{} of 30 find a place", placed.len());
            assert_apart(&placed);
            let frame = Area([2.0, TOP - LINE, format.width - 2.0, format.height - BOTTOM]);
            for (name, area) in &placed {
                assert!(!cover(*area, Area::line(format.left, format.width, points[0].y)), "{name}");
                let Area([left, top, right, bottom]) = *area;
                assert!(Area([left + 0.02, top + 0.02, right - 0.02, bottom - 0.02]).inside(frame), "{name}");
                for Point { x, y, .. } in &points {
                    assert!(!cover(*area, Area([x - MARK, y - MARK, x + MARK, y + MARK])), "{name}");
                }
            }
        }
    }

    #[test]
    fn names_do_not_cover_the_numbers_of_the_axes() {
        // Runs so small that their marks stand at the vertical axis, and so many that names go to its side.
        let row = |i: u32| Row {
            run: format!("runs/r{i}"),
            scheme: String::new(),
            bytes: 100_000 * u64::from(i % 3),
            ratio: 1.0,
            value: Some(0.8 + f64::from(i) * 0.001),
            loss: Some(0.02 - f64::from(i) * 0.001),
            stderr: None,
            frontier: i.is_multiple_of(2),
            excluded: None,
            gates_met: None,
            lowest_output_sqnr_db: None,
            latency_ms: None,
        };
        for (format, count) in [(WIDE, 3), (WIDE, 20), (NARROW, 3), (NARROW, 20)] {
            let comparison = Comparison {
                schema: COMPARE_SCHEMA,
                metric: ComparedMetric {
                    task: "sts".to_owned(),
                    name: "spearman".to_owned(),
                    higher_is_better: true,
                    ideal: false,
                    samples: 100,
                },
                model: ComparedModel {
                    source: "model".to_owned(),
                    architecture: "BertModel".to_owned(),
                    fingerprint: Fingerprint::builder("model").finish(),
                },
                original: Reference { bytes: 90_000_000, value: 0.82, frontier: true, latency_ms: None },
                latency: None,
                runs: (0..count).map(row).collect(),
            };
            let drawn = lettering(&inline(&comparison, Across::Bytes, format, "test"));
            assert!(drawn.iter().any(|(text, _)| text.starts_with('r')), "{drawn:?}");
            assert_apart(&drawn);
        }
    }
}
