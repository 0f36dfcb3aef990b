//! Bytes before and after, part by part.

use serde::Serialize;

use crate::report::{Report, escape, markdown};
use crate::svg::{self, percent, push, typeset};

/// Float parts that get a colour of their own; smaller ones are put together.
const FLOAT_PARTS: usize = 3;

/// The two bars and their legend.
#[derive(Serialize)]
pub(super) struct SizeView {
    original: String,
    quantized: String,
    original_bytes: String,
    quantized_bytes: String,
    before: String,
    after: String,
    parts: Vec<PartRow>,
}

/// A line of the legend.
#[derive(Serialize)]
struct PartRow {
    /// The class that gives it its colour.
    class: String,
    name: String,
    before: String,
    after: String,
}

/// Bytes of one part; `before` is not known where a report does not record it.
struct Part {
    class: String,
    name: String,
    before: Option<u64>,
    after: u64,
}

pub(super) fn view(report: &Report) -> SizeView {
    let parts = parts(report);
    let size = &report.size;
    let longest = size.original_bytes.max(size.quantized_bytes).max(1) as f64;
    let known: Option<Vec<(&str, u64)>> =
        parts.iter().map(|part| Some((part.class.as_str(), part.before?))).collect();
    let before = known.unwrap_or_else(|| vec![("part-unknown", size.original_bytes)]);
    let after: Vec<(&str, u64)> = parts.iter().map(|part| (part.class.as_str(), part.after)).collect();
    let bytes =
        |bytes: Option<u64>| bytes.map_or_else(|| "–".to_owned(), |bytes| typeset(&escape::bytes(bytes)));
    SizeView {
        original: typeset(&escape::bytes(size.original_bytes)),
        quantized: typeset(&escape::bytes(size.quantized_bytes)),
        original_bytes: escape::grouped(size.original_bytes),
        quantized_bytes: escape::grouped(size.quantized_bytes),
        before: bar(&before, longest, "before"),
        after: bar(&after, longest, "after"),
        parts: parts
            .iter()
            .map(|part| PartRow {
                class: part.class.clone(),
                name: part.name.clone(),
                before: bytes(part.before),
                after: typeset(&escape::bytes(part.after)),
            })
            .collect(),
    }
}

/// The INT8 layers, float tensors by reason (the smaller reasons together), and what files hold beside tensors.
fn parts(report: &Report) -> Vec<Part> {
    let sum = |bytes: &mut dyn Iterator<Item = u64>| bytes.fold(0, u64::saturating_add);
    let add = |a: Option<u64>, b: Option<u64>| Some(a?.saturating_add(b?));
    let layers_before = report.layers.iter().map(|layer| layer.original_bytes).fold(Some(0), add);
    let count = report.layers.len();
    let mut parts = vec![Part {
        class: "part-int8".to_owned(),
        name: format!("{count} INT8 {}", if count == 1 { "layer" } else { "layers" }),
        before: layers_before,
        after: sum(&mut report.layers.iter().map(|layer| layer.bytes)),
    }];
    for (index, group) in markdown::float_groups(&report.not_quantized).into_iter().enumerate() {
        let of_group = |tensor: &&crate::report::NotQuantized| {
            tensor.reason == group.reason() && tensor.dtype == group.dtype()
        };
        let before = report
            .not_quantized
            .iter()
            .filter(of_group)
            .map(|tensor| tensor.original_bytes)
            .fold(Some(0), add);
        let after = group.bytes();
        if index < FLOAT_PARTS {
            let class = format!("part-float-{}", index + 1);
            parts.push(Part { class, name: format!("float: {}", group.reason()), before, after });
        } else if index == FLOAT_PARTS {
            let class = "part-float-4".to_owned();
            parts.push(Part { class, name: "float: all other reasons".to_owned(), before, after });
        } else if let Some(rest) = parts.last_mut() {
            rest.before = add(rest.before, before);
            rest.after = rest.after.saturating_add(after);
        }
    }
    let named_before = parts.iter().map(|part| part.before).fold(Some(0), add);
    let named_after = sum(&mut parts.iter().map(|part| part.after));
    let rest = Part {
        class: "part-rest".to_owned(),
        name: "file headers and other tensors".to_owned(),
        before: named_before.map(|named| report.size.original_bytes.saturating_sub(named)),
        after: report.size.quantized_bytes.saturating_sub(named_after),
    };
    parts.push(rest);
    parts.retain(|part| part.after > 0 || part.before.is_some_and(|before| before > 0));
    parts
}

/// A bar of parts, drawn to a scale on which `longest` fills the width.
fn bar(parts: &[(&str, u64)], longest: f64, what: &str) -> String {
    let mut bar =
        format!(r#"<svg class="bar" width="100%" height="28" aria-hidden="true" data-bar="{what}">"#);
    let mut from = 0.0f64;
    for (class, bytes) in parts {
        let to = (from + *bytes as f64 / longest).min(1.0);
        push(
            &mut bar,
            format_args!(
                r#"<rect class="{}" x="{}" width="{}" height="28"/>"#,
                svg::escape(class),
                percent(from),
                percent(to - from)
            ),
        );
        from = to;
    }
    bar.push_str("</svg>");
    bar
}
