//! Snapshots of the report's three forms on a made-up run, and its way through JSON.

/// Every fence of a code block stands on a line of its own, and there are as many that open as close.
#[track_caller]
fn assert_fences(text: &str) {
    let fences = text.lines().filter(|line| line.contains("```")).collect::<Vec<_>>();
    assert!(fences.iter().all(|line| line.starts_with("```")), "{fences:?}");
    assert!(fences.len().is_multiple_of(2), "{fences:?}");
    assert!(fences.iter().skip(1).step_by(2).all(|line| *line == "```"), "{fences:?}");
}
use zeropoint_evaluator::report::{
    CardInfo, Engine, Gate, Layer, Metric, Report, ReportError, SQNR_LIMIT_DB, SelfCheck, Timing,
    capped_sqnr_db, parse_front_matter,
};

use crate::made_up::{bare, latency_row, layer, metric, mixtures, rich};

const SOURCE_CARD: &str = "---\nlanguage: en\nlicense: apache-2.0\nlibrary_name: sentence-transformers\ntags:\n\
    - sentence-similarity\n- int8\ndatasets:\n- s2orc\npipeline_tag: sentence-similarity\n---\n# all-MiniLM-L6-v2\n";

fn card() -> CardInfo {
    CardInfo {
        name: "all-MiniLM-L6-v2-w8a8".to_owned(),
        base_model: Some("sentence-transformers/all-MiniLM-L6-v2".to_owned()),
        front_matter: parse_front_matter(SOURCE_CARD),
        auto_class: "AutoModel".to_owned(),
        input_class: "AutoTokenizer".to_owned(),
        sentence_transformers: true,
        zeropoint_only: false,
    }
}

#[test]
fn json() {
    insta::assert_snapshot!(rich().to_json());
}

#[test]
fn markdown() {
    insta::assert_snapshot!(rich().to_markdown());
}

#[test]
fn rows_of_experts_have_a_table_where_there_are_experts() {
    let report = mixtures();
    let text = report.to_markdown();
    let from = text.find("## Experts").expect("a section");
    let to = text.find("## What is not quantised").expect("the section after it");
    insta::assert_snapshot!(&text[from..to]);
    assert_eq!(Report::from_json(&report.to_json()).expect("JSON").experts, report.experts);
    assert!(!rich().to_markdown().contains("Experts") && !rich().to_json().contains("experts"));
}

#[test]
fn markdown_of_a_bare_report() {
    insta::assert_snapshot!(bare().to_markdown());
}

#[test]
fn model_card() {
    assert_fences(&rich().to_model_card(card()));
    assert_fences(&rich().to_markdown());
    insta::assert_snapshot!(rich().to_model_card(card()));
}

#[test]
fn model_card_of_a_bare_report() {
    let card = CardInfo {
        name: "a \"local\" model".to_owned(),
        base_model: None,
        front_matter: parse_front_matter(""),
        auto_class: "AutoModelForSequenceClassification".to_owned(),
        input_class: "AutoTokenizer".to_owned(),
        sentence_transformers: false,
        zeropoint_only: false,
    };
    insta::assert_snapshot!(bare().to_model_card(card));
}

#[test]
fn what_a_report_says_follows_from_its_numbers() {
    struct Case(fn(&mut Report), &'static str);
    for Case(change, expected) in [
        Case(
            |r| r.metrics[0].delta = 0.0061,
            "12.5000 to 12.5040, a change of +0.0040 with a standard error of 0.0200, within two standard errors of none.",
        ),
        Case(
            |r| r.metrics.truncate(1),
            "a change of -0.0061 with a standard error of 0.0011, more than two standard errors.",
        ),
        Case(
            |r| r.metrics = vec![Metric { stderr: f64::NAN, ..r.metrics[0].clone() }],
            "a change of -0.0061. The",
        ),
        Case(
            |r| r.metrics = vec![metric("sts", "pearson", 0.5, 0.5, 0.1, true)],
            "No metric lost; the one nearest to a loss is sts pearson: 0.5000 to 0.5000, a change of 0.0000 with a standard error of 0.1000.",
        ),
        Case(
            |r| r.metrics.retain(|m| m.ideal),
            "1.0000 (ideal) to 0.9981, a change of -0.0019 with a standard error of 0.0001.",
        ),
        Case(
            |r| r.self_check = Some(SelfCheck { samples: 16, cosine_min: f64::NAN }),
            "their outputs is undefined.",
        ),
        Case(|r| r.gates.retain(|gate| gate.passed), "Every gate passed (1)."),
        Case(
            |r| r.layers.truncate(2),
            "Every layer: weights int8 per-channel symmetric, activations int8 static",
        ),
        Case(
            |r| r.layers[0].outlier_channels.clear(),
            "| `encoder.layer.0.attention.self.query` | A | 43.1 |",
        ),
        Case(
            |r| r.layers.iter_mut().for_each(|l| *l = layer("x", 30.0, None, Some(20.0))),
            "1. `x`, 20.0 dB: no cause measured",
        ),
        Case(|r| (r.timing.threads, r.timing.processor) = (Some(1), None), "Peak memory 612.0 MB, 1 thread."),
        Case(|r| r.calibration.passes = 2, "; 2 observing passes."),
        Case(
            |r| r.calibration.transform_samples = Some(1_016),
            "; 1 observing pass.\nFor the factors of transforms the original was observed on 1,016 of them.",
        ),
        Case(
            |r| r.layers[0].bytes = u64::MAX,
            "| of these, 5 quantised layers | 18,446,744,073,709,551,615 |",
        ),
    ] {
        let mut report = rich();
        change(&mut report);
        let markdown = report.to_markdown();
        assert!(markdown.contains(expected), "{expected}\n\n{markdown}");
    }
    let odd = CardInfo { base_model: Some("a](b)".to_owned()), ..card() };
    let card = rich().to_model_card(odd);
    assert!(card.contains("base_model: \"a](b)\"\n") && card.contains("\n`a](b)` (BertModel"), "{card}");
}

#[test]
fn a_card_has_no_clock_machine_or_path() {
    let mut report = rich();
    report.model.source = "/home/someone/models/minilm".to_owned();
    let card = report.to_model_card(CardInfo { base_model: None, ..card() });
    (report.timing, report.latency) = (Timing::default(), None);
    assert!(!card.contains("someone") && !card.contains("EPYC"), "{card}");
    assert_eq!(card, report.to_model_card(CardInfo { base_model: None, ..self::card() }));
}

#[test]
fn json_reads_back_and_holds_no_infinity() {
    let mut report = rich();
    report.metrics[1].quantized = f64::INFINITY;
    report.metrics[1].delta = f64::INFINITY;
    let json = report.to_json();
    let read = Report::from_json(&json).expect("our own report");
    assert!(read.metrics[1].quantized.is_nan(), "infinity is written as null and read as NaN");
    assert!(read.layers[3].weight_sqnr_db.is_nan());
    assert_eq!(read.layers[1], report.layers[1]);
    assert_eq!(read.to_json(), json);
}

#[test]
fn a_standard_error_that_is_not_known_is_said_to_be_so() {
    const NOTE: &str = "`-` stands for one that is not known";
    let mut report = rich();
    assert!(
        !report.to_markdown().contains(NOTE),
        "a metric without a value needs no explanation of its error"
    );
    report.metrics[2] =
        Metric { name: "cosine_min".to_owned(), stderr: f64::NAN, ..report.metrics[2].clone() };
    let (markdown, row) = (report.to_markdown(), "| 0.9981 | -0.0019 | - | higher | 1,379 |");
    assert!(markdown.contains(&format!("| fidelity | cosine_min | 1.0000 (ideal) {row}")), "{markdown}");
    assert!(markdown.contains(NOTE), "{markdown}");
    assert!(report.to_model_card(card()).contains(row));
    let read = Report::from_json(&report.to_json()).expect("our own report");
    assert!(read.metrics[2].stderr.is_nan());
    assert_eq!(read.metrics[2].quantized, 0.9981);
}

#[test]
fn latency_is_there_when_it_was_measured() {
    assert!(!bare().to_json().contains("latency"));
    assert!(!bare().to_markdown().contains("Latency"));
    // Both engines of a combination are one row, by batch, tokens and threads.
    let rows = "\n| 1 | 32 | 1 | 12.5 | 4.00 | 3.12 |\n| 1 | 32 | 2 | 8.00 | 2.50 | 3.20 |\n| 32 | 32 | 1 | 512 | 125 | 4.10 |\n\n";
    assert!(rich().to_markdown().contains(rows), "{}", rich().to_markdown());
    // What another program left out or put in makes a table too.
    let mut report = rich();
    let latency = report.latency.as_mut().expect("it was measured");
    latency.rows = vec![latency_row(Engine::Int8, 1, 8, f64::NAN), latency_row(Engine::F32, 1, 8, 4.0)];
    latency.rows.push(latency_row(Engine::Int8, 4, 8, 0.5));
    (latency.processor, latency.processors) = (None, 1);
    let markdown = report.to_markdown();
    for expected in ["a batch (1 processor, instruction set avx2).", "| 4.00 | - | - |", "| - | 0.500 | - |"]
    {
        assert!(markdown.contains(expected), "{expected}\n\n{markdown}");
    }
    let read = Report::from_json(&report.to_json()).expect("our own report");
    assert_eq!(read.to_json(), report.to_json());
}

#[test]
fn an_sqnr_is_a_number_that_sorts() {
    for (db, capped) in [(f64::INFINITY, 200.0), (f64::NEG_INFINITY, -200.0), (31.5, 31.5), (-201.0, -200.0)]
    {
        assert_eq!(capped_sqnr_db(db), capped);
    }
    assert!(capped_sqnr_db(f64::NAN).is_nan());
    let mut report = rich();
    report.layers.push(layer("lost", 40.0, Some(-SQNR_LIMIT_DB), Some(-SQNR_LIMIT_DB)));
    let markdown = report.to_markdown();
    assert!(markdown.contains("1. `lost`, -200.0 dB: inputs are the weaker side (-200.0 dB"), "{markdown}");
}

#[test]
fn outlier_channels_are_counted_beyond_those_that_are_named() {
    let mut report = rich();
    report.layers[1].outlier_count = 51;
    let markdown = report.to_markdown();
    for expected in ["| 51, largest #12 at 48.2 |", "77 (up to 31.0), 301 (up to 20.5) and 48 more;"] {
        assert!(markdown.contains(expected), "{expected}\n\n{markdown}");
    }
    // What is named is there, whatever the count says.
    let few = Layer { outlier_count: 2, ..report.layers[1].clone() };
    assert_eq!(few.outliers(), 4);
}

#[test]
fn reports_of_earlier_releases_are_read() {
    let json = rich().to_json();
    let newer = ["\"outlier_count\":", "\"data\":"];
    let older: Vec<&str> = json.lines().filter(|line| newer.iter().all(|key| !line.contains(key))).collect();
    assert_eq!(json.lines().count() - older.len(), 6, "five layers, and one metric that names its data");
    let report = Report::from_json(&older.join("\n")).expect("the keys of then");
    assert_eq!((report.layers[1].outlier_count, report.layers[1].outliers()), (0, 4));
    assert_eq!(report.metrics[2].data, None);
    assert_eq!(report.to_markdown(), rich().to_markdown());
}

#[test]
fn the_keys_of_the_design_suffice() {
    let zeros = "0".repeat(64);
    let json = format!(
        r#"{{"schema": 1, "zeropoint": {{"version": ""}},
        "model": {{"source": "", "architecture": "", "parameters": 0, "fingerprint": "{zeros}"}},
        "settings": {{"scheme": "", "config_fingerprint": "{zeros}"}},
        "calibration": {{"samples": 0, "tokens": 0, "fingerprint": "{zeros}", "seed": 0, "passes": 1}},
        "size": {{"original_bytes": 0, "quantized_bytes": 0, "ratio": 0.0}},
        "metrics": [{{"task": "sts", "name": "spearman", "original": 0.0, "quantized": 0.0, "delta": 0.0, "stderr": 0.0,
            "higher_is_better": true, "samples": 0}}],
        "layers": [{{"path": "", "weights": "", "activations": "", "weight_sqnr_db": 0.0, "output_sqnr_db": 0.0,
            "input_range": [0.0, 0.0]}}],
        "timing": {{"load_s": 0.0, "calibrate_s": 0.0, "quantize_s": 0.0, "evaluate_s": 0.0, "peak_rss_bytes": 0}}}}"#
    );
    let report = Report::from_json(&json).expect("the documented keys");
    assert_eq!(report.metrics[0].name, "spearman");
    assert!(!report.to_markdown().is_empty());
}

#[test]
fn another_schema_is_told_from_a_broken_file() {
    assert!(matches!(Report::from_json(r#"{"schema": 2}"#), Err(ReportError::Schema { found: 2 })));
    assert!(matches!(Report::from_json(r#"{"schema": 1}"#), Err(ReportError::Json(_))));
    assert!(matches!(Report::from_json("no"), Err(ReportError::Json(_))));
}

#[test]
fn the_worst_loss_is_relative_and_measured() {
    let mut report = rich();
    let worst = |report: &Report| report.worst_loss().map(|metric| metric.name.clone());
    assert_eq!(worst(&report), Some("spearman".to_owned()));
    report.metrics[1].delta = 1.0; // 1 / 12.5 is more than 0.0061 / 0.8203
    assert_eq!(worst(&report), Some("perplexity".to_owned()));
    report.metrics.retain(|metric| metric.ideal);
    assert_eq!(worst(&report), Some("cosine_mean".to_owned()));
    report.metrics.clear();
    assert_eq!(worst(&report), None);
}

#[test]
fn losses_and_gates_follow_the_direction_of_the_metric() {
    let better = metric("t", "perplexity", 10.0, 9.0, 0.1, false);
    assert_eq!(better.loss(), -1.0);
    assert!(!better.is_significant_loss());
    assert!(Gate::check(&better, 0.0).passed);
    let worse = metric("t", "accuracy", 0.75, 0.5, 0.125, true);
    assert_eq!(worse.loss(), 0.25);
    assert!(!worse.is_significant_loss(), "exactly two standard errors are not beyond two");
    assert!(Gate::check(&worse, 0.25).passed);
    assert!(!Gate::check(&worse, 0.2).passed);
    assert!(!Gate::check(&metric("t", "x", f64::NAN, 1.0, 0.0, true), 1.0).passed);
    assert!(!metric("t", "x", 1.0, 0.0, f64::NAN, true).is_significant_loss());
}
