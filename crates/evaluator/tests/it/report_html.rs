//! The page of a report: what it says, what it cannot be made to do, and that it is the same every time.

use zeropoint_evaluator::report::{
    Bins, Details, Engine, Layer, LayerDetails, Metric, OutlierChannel, Report,
};

use crate::made_up::{bare, details, latency_row, mixtures, rich};

/// The part of a page from the heading of a section to the end of the section.
fn section<'a>(page: &'a str, id: &str) -> &'a str {
    let from = page.find(&format!("<section id=\"{id}\"")).unwrap_or_else(|| panic!("no section {id}"));
    let length = page[from..].find("</section>").expect("sections end");
    &page[from..from + length + "</section>".len()]
}

#[test]
fn sections_of_a_page() {
    let page = rich().to_html(&details());
    for id in
        ["summary", "size", "metrics", "latency", "layers", "distributions", "float", "warnings", "reproduce"]
    {
        insta::assert_snapshot!(format!("html_{id}"), section(&page, id));
    }
}

#[test]
fn a_mixture_of_experts_has_a_section() {
    let page = mixtures().to_html(&details());
    insta::assert_snapshot!("html_experts", section(&page, "experts"));
    assert!(page.contains("href=\"#experts\""));
    assert!(!rich().to_html(&details()).contains("experts"));
}

#[test]
fn a_bare_report_is_a_page_too() {
    let page = bare().to_html(&Details::default());
    for id in ["summary", "size", "metrics", "layers", "float", "warnings", "reproduce"] {
        insta::assert_snapshot!(format!("html_bare_{id}"), section(&page, id));
    }
    for absent in ["distributions", "latency"] {
        assert!(!page.contains(&format!("id=\"{absent}\"")), "{absent}");
        assert!(!page.contains(&format!("href=\"#{absent}\"")), "{absent}");
    }
}

#[test]
fn the_same_report_is_the_same_page() {
    assert_eq!(rich().to_html(&details()), rich().to_html(&details()));
    let mut other = rich();
    other.settings.scheme = "w8a8-dynamic".to_owned();
    assert_ne!(nonce(&other.to_html(&details())), nonce(&rich().to_html(&details())));
}

/// What the content security policy allows the page's own script by.
fn nonce(page: &str) -> &str {
    let from = page.find("script-src 'nonce-").expect("the policy") + "script-src 'nonce-".len();
    &page[from..from + 64]
}

#[test]
fn the_page_refers_to_nothing_outside_itself() {
    let page = rich().to_html(&details());
    assert!(page.contains("default-src 'none'"));
    for reference in
        ["http://", "https://", " src=", "<link", "<img", "@import", "url(", "<iframe", "javascript:"]
    {
        assert!(!page.contains(reference), "{reference}");
    }
    for reference in page.split(" href=\"").skip(1) {
        assert!(reference.starts_with('#'), "{}", &reference[..40]);
    }
    // One style and one script, both named by the policy.
    for element in ["<style", "<script"] {
        assert_eq!(page.matches(element).count(), 1, "{element}");
        assert!(page.contains(&format!("{element} nonce=\"{}\">", nonce(&page))), "{element}");
    }
}

/// Text that tries every way out of its place.
const HOSTILE: &str =
    "</script></style><script>alert(1)</script>\"' onload=x <b>&amp;{{ 7*7 }}{% raw %}\u{202e}\0\u{1b}[2J";

#[test]
fn hostile_names_are_nothing_but_text() {
    let mut report = rich();
    let text = || HOSTILE.to_owned();
    report.zeropoint.version = text();
    report.model.source = text();
    report.model.architecture = text();
    report.settings.scheme = text();
    report.warnings = vec![text()];
    report.timing.processor = Some(text());
    let latency = report.latency.as_mut().expect("it was measured");
    latency.processor = Some(text());
    latency.rows.iter_mut().for_each(|row| row.isa = text());
    for metric in &mut report.metrics {
        (metric.task, metric.name) = (text(), text());
    }
    for gate in &mut report.gates {
        (gate.task, gate.metric) = (text(), text());
    }
    for layer in &mut report.layers {
        (layer.path, layer.weights, layer.activations) = (text(), text(), text());
    }
    for tensor in &mut report.not_quantized {
        (tensor.tensor, tensor.dtype, tensor.reason) = (text(), text(), text());
    }
    let hostile = report.to_html(&Details { config: Some(text()), ..details() });
    let harmless = rich().to_html(&details());
    // As many elements and attributes as without it: none came from a name.
    for markup in ["<script", "</script", "<style", "</style", "<b>", " onload", "alert(1)</script"] {
        let expected = harmless.matches(markup).count();
        let found = hostile.matches(markup).count();
        // ` onload` is there as text, between two escaped quotes.
        assert!(found == expected || markup == " onload", "{markup}: {found} instead of {expected}");
    }
    assert!(hostile.contains("&lt;script&gt;alert(1)"));
    for attribute in hostile.split("onload=x").skip(1) {
        assert!(attribute.starts_with(" &lt;b&gt;"), "{}", &attribute[..20]);
    }
    assert!(hostile.contains("{{ 7*7 }}") && !hostile.contains("49{% raw"), "templates do not run names");
    for forbidden in ['\0', '\u{1b}', '\u{202e}'] {
        assert!(!hostile.contains(forbidden), "{forbidden:?}");
    }
}

#[test]
fn broken_numbers_make_a_page() {
    let mut report = rich();
    let numbers = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN, -0.0, 1e-308];
    report.metrics = numbers
        .iter()
        .flat_map(|a| numbers.iter().map(|b| (*a, *b)))
        .map(|(a, b)| Metric { delta: a, stderr: b, original: b, quantized: a, ..rich().metrics[0].clone() })
        .collect();
    report.layers = numbers
        .iter()
        .flat_map(|a| numbers.iter().map(|b| (*a, *b)))
        .map(|(a, b)| Layer {
            weight_sqnr_db: a,
            output_sqnr_db: Some(b),
            activation_sqnr_db: Some(a),
            input_range: Some([a, b]),
            activation_range: Some([b, a]),
            clipped_fraction: Some(a),
            outlier_channels: vec![OutlierChannel { channel: u64::MAX, absmax: a, times_median: b }],
            bytes: u64::MAX,
            original_bytes: Some(u64::MAX),
            ..rich().layers[0].clone()
        })
        .collect();
    report.latency.as_mut().expect("it was measured").rows = numbers
        .iter()
        .zip(0..)
        .flat_map(|(&median, batch)| {
            [Engine::Int8, Engine::F32].map(|engine| latency_row(engine, u64::MAX, batch, median))
        })
        .collect();
    let layers = numbers.iter().flat_map(|a| numbers.iter().map(|b| (*a, *b)));
    let layers = layers.map(|(min, max)| {
        let bins = Bins { min, max, counts: vec![u64::MAX, 0, 1] };
        LayerDetails {
            weights: Some(bins.clone()),
            activations: Some(bins.clone()),
            weights_before: Some(bins.clone()),
            activations_before: Some(bins),
        }
    });
    let page = report.to_html(&Details { layers: layers.collect(), config: None });
    for broken in ["=\"NaN", "=\"inf", "=\"-inf", ">NaN", ">inf", "NaN%", "inf%"] {
        assert!(!page.contains(broken), "{broken}: {}", &page[page.find(broken).unwrap_or(0)..][..200]);
    }
}

#[test]
fn the_verdict_follows_from_the_numbers() {
    struct Case(fn(&mut Report), &'static str);
    for Case(change, expected) in [
        Case(|_| (), "class=\"verdict bad\""),
        Case(|_| (), "<strong>2.64 times smaller</strong> (90.9\u{a0}MB to 34.4\u{a0}MB, 37.9\u{a0}% kept)"),
        Case(|_| (), "<strong>sts spearman lost 0.0061 ± 0.0011</strong>"),
        Case(|_| (), "2 of 3 gates not met."),
        Case(|r| r.gates.truncate(0), "class=\"verdict same\""),
        Case(|r| r.gates.truncate(0), "No gate was set."),
        Case(|r| r.gates = vec![r.gates[1].clone()], "class=\"verdict good\""),
        Case(|r| r.gates = vec![r.gates[1].clone()], "The gate was met."),
        Case(|r| r.metrics[0].delta = 0.0061, "sts spearman gained 0.0061 ± 0.0011"),
        Case(
            |r| (r.metrics[0].delta, r.metrics[0].stderr) = (0.0, 0.0),
            "<strong>sts spearman unchanged</strong>",
        ),
        Case(|r| r.metrics.retain(|m| m.ideal), "fidelity cosine_mean 0.0019 ± 0.0001 off the ideal"),
        Case(|r| r.size.ratio = 0.9, "<strong>not smaller</strong>"),
        Case(|r| r.size.ratio = f64::NAN, "<strong>of unknown size</strong>"),
    ] {
        let mut report = rich();
        change(&mut report);
        let page = report.to_html(&details());
        let summary = section(&page, "summary");
        assert!(summary.contains(expected), "{expected}\n\n{summary}");
    }
}

#[test]
fn what_is_not_known_or_not_named_is_said() {
    let mut report = rich();
    report.metrics[2].stderr = f64::NAN;
    report.layers[1].outlier_count = 51;
    let page = report.to_html(&details());
    for (id, expected) in [
        ("metrics", "<td class=\"n\">−0.0019</td><td class=\"n\">–</td><td>higher</td>"),
        ("metrics", "<b>0.0019 off the ideal</b>"),
        ("metrics", "– stands for one that is not known"),
        ("layers", "301 (up to 20.5) and 48 more;"),
        ("layers", "<td>12, 77, 301 + 48</td>"),
        ("distributions", "<caption>Outlier input channels, the largest 4 of 51</caption>"),
        ("distributions", "<caption>Outlier input channels</caption>"),
    ] {
        assert!(section(&page, id).contains(expected), "{expected}\n\n{}", section(&page, id));
    }
    assert!(!rich().to_html(&details()).contains("– stands for one that is not known"));
}

#[test]
fn layers_come_worst_first_and_three_are_named() {
    let page = rich().to_html(&details());
    let layers = section(&page, "layers");
    let named: Vec<&str> = layers.split("<li><a href=\"#layer-").skip(1).map(|rest| &rest[..1]).collect();
    assert_eq!(named, ["2", "3", "1"]);
    let order: Vec<usize> = layers
        .split("<th scope=\"row\" data-value=\"")
        .skip(1)
        .map(|rest| rest[..1].parse().expect("a number"))
        .collect();
    assert_eq!(order, [2, 3, 1, 5, 4], "the one without a value is last");
}
