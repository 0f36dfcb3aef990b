//! Snapshots of the report's three forms on a made-up run, and its way through JSON.

use zeropoint_core::Fingerprint;
use zeropoint_evaluator::report::{
    Calibration, CardInfo, Gate, Layer, Metric, Model, NotQuantized, OutlierChannel, Report, ReportError,
    SCHEMA, SelfCheck, Settings, Size, Timing, WeightRange, Zeropoint, parse_front_matter,
};

fn metric(
    task: &str,
    name: &str,
    original: f64,
    quantized: f64,
    stderr: f64,
    higher_is_better: bool,
) -> Metric {
    Metric {
        task: task.to_owned(),
        name: name.to_owned(),
        original,
        quantized,
        delta: quantized - original,
        stderr,
        higher_is_better,
        samples: 1379,
        ideal: false,
    }
}

fn layer(path: &str, weight: f64, input: Option<f64>, output: Option<f64>) -> Layer {
    Layer {
        path: path.to_owned(),
        weights: "int8 per-channel symmetric".to_owned(),
        activations: "int8 static per-tensor asymmetric".to_owned(),
        weight_sqnr_db: weight,
        activation_sqnr_db: input,
        output_sqnr_db: output,
        input_range: Some([-4.25, 6.5]),
        activation_range: Some([-4.258, 6.5]),
        clipped_fraction: Some(0.0),
        weight_range: Some(WeightRange { narrowest: [-0.15, 0.149], widest: [-0.42, 0.417] }),
        weight_clipped_fraction: Some(0.000_2),
        outlier_channels: Vec::new(),
        bytes: 148_992,
        original_bytes: Some(589_824),
    }
}

fn float(tensor: &str, bytes: u64, reason: &str) -> NotQuantized {
    NotQuantized { tensor: tensor.to_owned(), dtype: "F32".to_owned(), bytes, original_bytes: Some(bytes), reason: reason.to_owned() }
}

fn rich() -> Report {
    let spearman = metric("sts", "spearman", 0.8203, 0.8142, 0.0011, true);
    let perplexity = metric("wiki|text", "perplexity", 12.5, 12.504, 0.02, false);
    let cosine = Metric { ideal: true, ..metric("fidelity", "cosine_mean", 1.0, 0.9981, 0.0001, true) };
    let undefined = metric("odd", "spearman", f64::NAN, 0.5, f64::NAN, true);
    let outliers = [(77, 31.0), (12, 48.2), (301, 20.5), (5, 12.25)];
    Report {
        schema: SCHEMA,
        zeropoint: Zeropoint { version: "0.1.0".to_owned() },
        model: Model {
            source: "sentence-transformers/all-MiniLM-L6-v2".to_owned(),
            architecture: "BertModel".to_owned(),
            parameters: 22_713_216,
            fingerprint: Fingerprint::builder("model").finish(),
        },
        settings: Settings {
            scheme: "w8a8-static".to_owned(),
            config_fingerprint: Fingerprint::builder("config").finish(),
        },
        calibration: Calibration {
            samples: 256,
            tokens: 12_345,
            fingerprint: Some(Fingerprint::builder("data").finish()),
            seed: 42,
            passes: 1,
        },
        size: Size::new(90_868_376, 34_412_104),
        gates: vec![
            Gate::check(&spearman, 0.005),
            Gate::check(&perplexity, 0.1),
            Gate::check(&undefined, 0.1),
        ],
        metrics: vec![spearman, perplexity, cosine, undefined],
        layers: vec![
            layer("encoder.layer.0.attention.self.query", 43.1, Some(38.0), Some(36.2)),
            Layer {
                clipped_fraction: Some(0.001_23),
                outlier_channels: outliers
                    .map(|(channel, absmax)| OutlierChannel { channel, absmax, times_median: absmax / 1.5 })
                    .to_vec(),
                ..layer("encoder.layer.0.output.dense", 41.9, Some(24.4), Some(23.75))
            },
            Layer {
                activations: "int8 dynamic per-token symmetric".to_owned(),
                input_range: None,
                activation_range: None,
                clipped_fraction: None,
                ..layer("encoder.layer.1.`odd|name`", 31.2, Some(40.3), Some(31.0))
            },
            Layer {
                outlier_channels: vec![OutlierChannel { channel: 3, absmax: 9.5, times_median: f64::NAN }],
                ..layer("encoder.layer.1.output.dense", f64::NAN, None, None)
            },
            layer("encoder.layer.2.zero", 200.0, Some(200.0), Some(200.0)),
        ],
        not_quantized: vec![
            float("embeddings.LayerNorm.weight", 1536, "norms are small and sensitive"),
            float("embeddings.LayerNorm.bias", 1536, "norms are small and sensitive"),
            float("encoder.layer.0.output.LayerNorm.weight", 1536, "norms are small and sensitive"),
            float("encoder.layer.0.output.LayerNorm.bias", 1536, "norms are small and sensitive"),
            float("embeddings.word_embeddings.weight", 46_881_792, "an embedding: `embeddings = \"keep\"`"),
        ],
        self_check: Some(SelfCheck { samples: 16, cosine_min: 0.999_987 }),
        warnings: vec!["200 of 256 samples asked for: <the data> has no more".to_owned()],
        timing: Timing {
            load_s: 0.42,
            calibrate_s: 12.3,
            quantize_s: 1.25,
            evaluate_s: 61.04,
            peak_rss_bytes: 612_000_000,
            processor: Some("AMD EPYC 9R14".to_owned()),
            threads: Some(2),
        },
    }
}

/// Nothing measured, nothing quantised: every other branch of the templates.
fn bare() -> Report {
    Report {
        calibration: Calibration { samples: 0, tokens: 0, fingerprint: None, seed: 0, passes: 0 },
        size: Size::new(1000, 0),
        metrics: Vec::new(),
        gates: Vec::new(),
        layers: Vec::new(),
        not_quantized: Vec::new(),
        self_check: None,
        warnings: Vec::new(),
        timing: Timing { load_s: f64::NAN, ..Timing::default() },
        ..rich()
    }
}

const SOURCE_CARD: &str = "---\nlanguage: en\nlicense: apache-2.0\nlibrary_name: sentence-transformers\ntags:\n\
    - sentence-similarity\n- int8\ndatasets:\n- s2orc\npipeline_tag: sentence-similarity\n---\n# all-MiniLM-L6-v2\n";

fn card() -> CardInfo {
    CardInfo {
        name: "all-MiniLM-L6-v2-w8a8".to_owned(),
        base_model: Some("sentence-transformers/all-MiniLM-L6-v2".to_owned()),
        front_matter: parse_front_matter(SOURCE_CARD),
        auto_class: "AutoModel".to_owned(),
        sentence_transformers: true,
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
fn markdown_of_a_bare_report() {
    insta::assert_snapshot!(bare().to_markdown());
}

#[test]
fn model_card() {
    insta::assert_snapshot!(rich().to_model_card(card()));
}

#[test]
fn model_card_of_a_bare_report() {
    let card = CardInfo {
        name: "a \"local\" model".to_owned(),
        base_model: None,
        front_matter: parse_front_matter(""),
        auto_class: "AutoModelForSequenceClassification".to_owned(),
        sentence_transformers: false,
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
            "a change of 0.0000 with a standard error of 0.1000, so nothing was lost.",
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
        Case(|r| r.calibration.passes = 2, "in 2 passes."),
        Case(|r| r.layers[0].bytes = u64::MAX, "| of these, 5 INT8 layers | 18,446,744,073,709,551,615 |"),
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
    report.timing = Timing::default();
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
