//! The sensitivity of each group of Linears: a strip of shades and a table.

use serde::Serialize;

use crate::report::{Report, Sensitivity, escape};
use crate::svg::{self, percent, push, typeset};

/// Shades of the strip; a factor of ten in loss is [`PER_DECADE`] of them.
const SHADES: f64 = 9.0;
const PER_DECADE: f64 = 3.0;

/// What the page shows.
#[derive(Serialize)]
pub(super) struct Heat {
    strip: String,
    least: String,
    most: String,
    unit: String,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    scheme: String,
    decibels: String,
    loss: String,
    loss_value: Option<f64>,
}

/// The strip and the table of a report that has sensitivities.
pub(super) fn heat(report: &Report) -> Option<Heat> {
    let all = &report.sensitivity;
    let losses = || all.iter().map(|group| group.loss).filter(|loss| loss.is_finite() && *loss > 0.0);
    if all.is_empty() {
        return None;
    }
    let most = losses().fold(0f64, f64::max);
    let mut strip = format!(
        r#"<svg class="strip" width="100%" height="28" role="img" aria-label="Loss of each of {} groups of Linears; the table has the numbers">"#,
        all.len()
    );
    let width = 1.0 / all.len() as f64;
    for (index, group) in all.iter().enumerate() {
        let shade = shade(group.loss, most);
        push(
            &mut strip,
            format_args!(
                r#"<rect class="heat" x="{}" width="{}" height="28" fill-opacity="{}"><title>{}: {}</title></rect>"#,
                percent(width * index as f64),
                percent(width),
                svg::coordinate(shade),
                svg::escape(&svg::plain(&name(group))),
                number(group.loss),
            ),
        );
    }
    strip.push_str("</svg>");
    let rows = by_loss(all).into_iter().map(|group| Row {
        name: name(group),
        scheme: group.scheme.clone(),
        decibels: typeset(&escape::decibels(Some(group.output_sqnr_db))),
        loss: number(group.loss),
        loss_value: Some(group.loss).filter(|loss| loss.is_finite()),
    });
    Some(Heat {
        least: number(losses().fold(f64::INFINITY, f64::min)),
        most: number(most),
        unit: all.first().map(|group| group.unit.clone()).unwrap_or_default(),
        rows: rows.collect(),
        strip,
    })
}

/// From nearly nothing to 1, in equal steps of the logarithm below the largest.
fn shade(loss: f64, most: f64) -> f64 {
    if !(loss.is_finite() && loss > 0.0 && most > 0.0) {
        return 0.04;
    }
    let below = (most / loss).log10() * PER_DECADE;
    (1.0 - below.floor() / SHADES).clamp(0.04, 1.0)
}

fn number(loss: f64) -> String {
    if loss.is_finite() { typeset(&format!("{loss:.2e}")) } else { "–".to_owned() }
}

/// The largest loss first; what is no number last.
pub(in crate::report) fn by_loss(all: &[Sensitivity]) -> Vec<&Sensitivity> {
    let mut groups: Vec<&Sensitivity> = all.iter().collect();
    let key = |group: &Sensitivity| if group.loss.is_nan() { f64::NEG_INFINITY } else { group.loss };
    groups.sort_by(|a, b| key(b).total_cmp(&key(a)));
    groups
}

/// The first Linear, and the last parts of the others.
pub(in crate::report) fn name(group: &Sensitivity) -> String {
    let last = |path: &String| path.rsplit('.').next().unwrap_or(path).to_owned();
    match group.linears.as_slice() {
        [] => String::new(),
        [only] => only.clone(),
        [first, others @ ..] if others.len() <= 3 => {
            format!("{first}, {}", others.iter().map(last).collect::<Vec<_>>().join(", "))
        }
        [first, others @ ..] => format!("{first} and {} more", others.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shades_fall_with_the_logarithm_of_the_loss() {
        assert_eq!([shade(1.0, 1.0), shade(0.0, 1.0), shade(f64::NAN, 1.0)], [1.0, 0.04, 0.04]);
        assert!((shade(0.09, 1.0) - (1.0 - 3.0 / 9.0)).abs() < 1e-9);
        assert_eq!(shade(1e-9, 1.0), 0.04);
    }

    #[test]
    fn groups_are_named_by_their_first_linear_and_sorted_by_loss() {
        let group = |linears: &[&str], loss| Sensitivity {
            linears: linears.iter().map(|path| (*path).to_owned()).collect(),
            scheme: "x".to_owned(),
            output_sqnr_db: 30.0,
            loss,
            unit: "nats".to_owned(),
        };
        let all = [group(&["a.q", "a.k", "a.v"], 0.1), group(&["b"], f64::NAN), group(&["c"], 0.2)];
        let names: Vec<String> = by_loss(&all).into_iter().map(name).collect();
        assert_eq!(names, ["c", "a.q, k, v", "b"]);
        assert_eq!(name(&group(&["e.0", "e.1", "e.2", "e.3", "e.4"], 0.0)), "e.0 and 4 more");
    }
}
