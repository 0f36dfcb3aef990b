//! A made-up run with something of everything, and one with nothing of anything.

use zeropoint_core::Fingerprint;
use zeropoint_evaluator::report::{
    Bins, Calibration, Details, Engine, ExpertRows, Gate, Latency, LatencyRow, Layer, LayerDetails, Metric,
    Model, NotQuantized, OutlierChannel, PassTime, Report, SCHEMA, SelfCheck, Sensitivity, Settings, Size,
    Timing, WeightRange, Zeropoint,
};

pub(crate) fn metric(
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
        data: None,
        ideal: false,
    }
}

pub(crate) fn layer(path: &str, weight: f64, input: Option<f64>, output: Option<f64>) -> Layer {
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
        outlier_count: 0,
        bytes: 148_992,
        original_bytes: Some(589_824),
    }
}

pub(crate) fn float(tensor: &str, bytes: u64, reason: &str) -> NotQuantized {
    NotQuantized {
        tensor: tensor.to_owned(),
        dtype: "F32".to_owned(),
        bytes,
        original_bytes: Some(bytes),
        reason: reason.to_owned(),
    }
}

pub(crate) fn latency_row(engine: Engine, threads: u64, batch: u64, median_ms: f64) -> LatencyRow {
    LatencyRow {
        engine,
        isa: "avx2".to_owned(),
        threads,
        batch,
        tokens: Some(32),
        phase: None,
        new_tokens: None,
        texts: None,
        median_ms,
        q1_ms: median_ms * 0.75,
        q3_ms: median_ms * 1.5,
        tokens_per_s: (batch * 32) as f64 / median_ms * 1e3,
        texts_per_s: None,
        runs: 101,
    }
}

pub(crate) fn rich() -> Report {
    let spearman = metric("sts", "spearman", 0.8203, 0.8142, 0.0011, true);
    let perplexity = metric("wiki|text", "perplexity", 12.5, 12.504, 0.02, false);
    let cosine = Metric {
        data: Some(Fingerprint::builder("data").finish()),
        ideal: true,
        ..metric("fidelity", "cosine_mean", 1.0, 0.9981, 0.0001, true)
    };
    let undefined = metric("odd", "spearman", f64::NAN, 0.5, f64::NAN, true);
    let outliers = [(77, 31.0), (12, 48.2), (301, 20.5), (5, 12.25)];
    Report {
        schema: SCHEMA,
        zeropoint: Zeropoint { version: "0.1.0".to_owned() },
        model: Model {
            source: "sentence-transformers/all-MiniLM-L6-v2".to_owned(),
            revision: None,
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
            transform_samples: None,
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
        latency: Some(Latency {
            processor: Some("AMD EPYC 9R14".to_owned()),
            processors: 2,
            rows: vec![
                latency_row(Engine::Int8, 1, 1, 4.0),
                latency_row(Engine::F32, 1, 1, 12.5),
                latency_row(Engine::Int8, 1, 32, 125.0),
                latency_row(Engine::F32, 1, 32, 512.0),
                latency_row(Engine::Int8, 2, 1, 2.5),
                latency_row(Engine::F32, 2, 1, 8.0),
            ],
        }),
        layers: vec![
            layer("encoder.layer.0.attention.self.query", 43.1, Some(38.0), Some(36.2)),
            Layer {
                clipped_fraction: Some(0.001_23),
                outlier_channels: outliers
                    .map(|(channel, absmax)| OutlierChannel { channel, absmax, times_median: absmax / 1.5 })
                    .to_vec(),
                outlier_count: 4,
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
                outlier_count: 1,
                ..layer("encoder.layer.1.output.dense", f64::NAN, None, None)
            },
            layer("encoder.layer.2.zero", 200.0, Some(200.0), Some(200.0)),
        ],
        experts: Vec::new(),
        not_quantized: vec![
            float("embeddings.LayerNorm.weight", 1536, "norms are small and sensitive"),
            float("embeddings.LayerNorm.bias", 1536, "norms are small and sensitive"),
            float("encoder.layer.0.output.LayerNorm.weight", 1536, "norms are small and sensitive"),
            float("encoder.layer.0.output.LayerNorm.bias", 1536, "norms are small and sensitive"),
            float("embeddings.word_embeddings.weight", 46_881_792, "an embedding: `embeddings = \"keep\"`"),
        ],
        sensitivity: Vec::new(),
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
            passes: Vec::new(),
        },
    }
}

/// [`rich`] with two mixtures of experts, one of which has experts without rows, sensitivities and the times of passes.
pub(crate) fn mixtures() -> Report {
    let mixture = |path: &str, fewest, unused: &[u64]| ExpertRows {
        path: path.to_owned(),
        experts: 8,
        per_row: 2,
        fewest,
        most: 12_345,
        unused: unused.to_vec(),
    };
    let experts = vec![mixture("layers.0.mlp", 17, &[]), mixture("layers.1.<mlp|2>", 0, &[3, 7])];
    let group = |linears: &[&str], output_sqnr_db, loss| Sensitivity {
        linears: linears.iter().map(|path| (*path).to_owned()).collect(),
        scheme: "weights int8, activations <float>".to_owned(),
        output_sqnr_db,
        loss,
        unit: "nats".to_owned(),
    };
    let sensitivity = vec![
        group(&["layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj"], 31.2, 0.004),
        group(&["layers.0.<mlp>"], 200.0, f64::NAN),
        group(&["layers.1.down_proj"], 12.0, 0.31),
    ];
    let pass = |what: &str, seconds| PassTime { what: what.to_owned(), seconds };
    let passes = vec![pass("observing the original", 8.5), pass("observing the <rest>", f64::NAN)];
    Report { experts, sensitivity, timing: Timing { passes, ..rich().timing }, ..rich() }
}

/// Nothing measured, nothing quantised: every other branch of the templates.
pub(crate) fn bare() -> Report {
    Report {
        calibration: Calibration {
            samples: 0,
            tokens: 0,
            transform_samples: None,
            fingerprint: None,
            seed: 0,
            passes: 0,
        },
        size: Size::new(1000, 0),
        metrics: Vec::new(),
        gates: Vec::new(),
        latency: None,
        layers: Vec::new(),
        not_quantized: Vec::new(),
        self_check: None,
        warnings: Vec::new(),
        timing: Timing { load_s: f64::NAN, ..Timing::default() },
        ..rich()
    }
}

/// Histograms of the first three layers of [`rich`], and a config.
pub(crate) fn details() -> Details {
    let bell = |min: f64, max: f64| Bins { min, max, counts: vec![1, 12, 80, 300, 310, 75, 9, 0] };
    let layer = |weights, activations| LayerDetails { weights, activations, ..LayerDetails::default() };
    Details {
        layers: vec![
            LayerDetails {
                weights_before: Some(bell(-0.9, 0.9)),
                activations_before: Some(bell(-14.5, 60.5)),
                ..layer(Some(bell(-0.42, 0.42)), Some(bell(-4.5, 6.5)))
            },
            layer(
                Some(bell(-0.5, 0.5)),
                Some(Bins { min: -4.5, max: 48.5, counts: vec![900, 40, 3, 0, 0, 0, 0, 1] }),
            ),
            layer(Some(bell(-0.1, 0.1)), None),
        ],
        config: Some("[model]\nsource = \"<minilm>\"\n".to_owned()),
    }
}
