//! all-MiniLM-L6-v2 on the development part of the STS benchmark: what INT8 costs a real model.
//!
//! `ZEROPOINT_MODELS` is a directory with `minilm/` in it, `ZEROPOINT_DATA` one with `stsb-en-dev.csv`.

use serde_json::Value;

use crate::scene::real::{foretells_its_memory, from_environment, number, source};
use crate::scene::{self, Scene};

/// `run` of `configs/minilm-{scheme}.toml` with that model; the report.
fn run(scene: &Scene, scheme: &str, out: &str, sets: &[&str], more: &[&str]) -> Value {
    let model = source("minilm");
    let config = format!("configs/minilm-{scheme}.toml");
    let out_path = scene.path(out);
    let mut command = scene.zeropoint(["run", &config, "--no-cache", "--set", &model]);
    command.current_dir(scene::workspace()).arg("--out").arg(out_path).args(more);
    for set in sets {
        command.args(["--set", set]);
    }
    scene::expect_code(&mut command, 0);
    scene.json(&format!("{out}/report.json"))
}

/// Original and quantised value of a metric.
fn metric(report: &Value, task: &str, name: &str) -> (f64, f64) {
    let metrics = report["metrics"].as_array().expect("a list");
    let metric = metrics.iter().find(|m| m["task"] == task && m["name"] == name).expect("it was measured");
    (number(&metric["original"]), number(&metric["quantized"]))
}

/// Quantised weight bytes as a share of the original's.
fn share(report: &Value) -> f64 {
    number(&report["size"]["quantized_bytes"]) / number(&report["size"]["original_bytes"])
}

/// The sentences of both columns of the benchmark, one a line.
fn sentences(benchmark: &str) -> String {
    let mut lines = String::new();
    for record in benchmark.lines() {
        let mut fields = Vec::new();
        let (mut field, mut quoted) = (String::new(), false);
        for character in record.chars() {
            match character {
                '"' => quoted = !quoted,
                ',' if !quoted => fields.push(std::mem::take(&mut field)),
                other => field.push(other),
            }
        }
        assert_eq!(fields.len(), 2, "two sentences before the score: {record}");
        for sentence in fields {
            lines.push_str(sentence.trim());
            lines.push('\n');
        }
    }
    lines
}

/// What the benchmark loses with a scheme, and how near the vectors stay.
fn costs_at_most(scheme: &str, loss: f64, cosine: f64) {
    /// Spearman correlation of the float model, from the model as published.
    const FLOAT: f64 = 0.8672;
    let scene = Scene::new();
    let benchmark = from_environment("ZEROPOINT_DATA", "stsb-en-dev.csv");
    scene.write("sentences.txt", sentences(&std::fs::read_to_string(&benchmark).expect("it is text")));
    let sts = format!(
        "evaluation.tasks.0.data={{path='{}',header=false,text_a=0,text_b=1,score=2}}",
        benchmark.display()
    );
    let fidelity = format!("evaluation.tasks.1.data='{}'", scene.path("sentences.txt").display());
    let report = run(&scene, scheme, "keep", &[&sts, &fidelity], &[]);

    let (original, quantised) = metric(&report, "sts", "spearman");
    assert!((original - FLOAT).abs() <= 0.0002, "float: {original}");
    assert!(original - quantised <= loss, "{original} -> {quantised}");
    let (_, mean) = metric(&report, "fidelity", "cosine_mean");
    assert!(mean >= cosine, "cosine {mean}");
    assert!(number(&report["self_check"]["cosine_min"]) >= 0.9999, "{}", report["self_check"]);
    assert!(share(&report) <= 0.66, "{}", share(&report));

    let bf16 = run(&scene, scheme, "bf16", &[&sts, &fidelity, "quantization.embeddings=bf16"], &[]);
    assert!(share(&bf16) <= 0.40, "{}", share(&bf16));
    let (_, quantised) = metric(&bf16, "sts", "spearman");
    assert!(original - quantised <= loss, "bf16 tables: {original} -> {quantised}");
}

#[test]
#[ignore = "needs ZEROPOINT_MODELS and ZEROPOINT_DATA"]
fn dynamic_activations_cost_a_thousandth() {
    costs_at_most("w8a8-dynamic", 0.0015, 0.996);
}

#[test]
#[ignore = "needs ZEROPOINT_MODELS and ZEROPOINT_DATA"]
fn static_activations_cost_two_thousandths() {
    costs_at_most("w8a8-static", 0.0025, 0.992);
}

#[test]
#[ignore = "needs ZEROPOINT_MODELS"]
fn the_bytes_do_not_depend_on_the_threads() {
    let scene = Scene::new();
    for scheme in ["w8a8-dynamic", "w8a8-static"] {
        let product = |threads: &str| {
            let out = format!("{scheme}-{threads}");
            run(&scene, scheme, &out, &["evaluation.tasks=[]"], &["--threads", threads]);
            let mut tree = scene.tree(&out);
            tree.retain(|name, _| name.starts_with("model/") || name == "statistics.safetensors");
            tree
        };
        scene::assert_same_tree(&product("1"), &product("2"));
    }
}

#[test]
#[ignore = "needs ZEROPOINT_MODELS"]
fn the_dry_run_foretells_the_peak_memory_within_a_quarter() {
    let scene = Scene::new();
    // Short and long texts, small and large batches: which stage has the peak differs.
    let long_text = "the doctor sent the tax bill by train to the garden ".repeat(24) + "\n";
    scene.write("long.txt", long_text.repeat(96));
    scene.write("config.toml", "version = 1\nmodel.source = 'replaced'\ncalibration.samples = 96\n");
    let long = "calibration={data=['long.txt'],samples=96,batch_size=48}";
    let none = "evaluation.tasks=[]";
    let large = "evaluation={batch_size=64,tasks=[{kind='fidelity',data='long.txt'}]}";
    for (about, sets) in [
        ("short texts", &[none][..]),
        ("bf16 tables", &[none, "quantization.embeddings=bf16"]),
        ("static", &[none, "quantization.scheme=w8a8-static"]),
        ("long calibration", &[none, long]),
        ("long evaluation", &[large]),
    ] {
        foretells_its_memory(&scene, about, "minilm", sets, &[]);
    }
}
