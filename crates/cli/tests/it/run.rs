//! `zeropoint run`: the run directory, its report, gates, the dry run, and what `--force` replaces.

use std::ffi::OsStr;
use std::process::Command;

use serde_json::{Value, json};
use zeropoint_evaluator::report::Report;

use crate::scene::{self, Scene, data, expect_code, stderr, stdout, workspace};

/// Every file of a finished run of the embedded model.
const RUN_DIRECTORY: [&str; 12] = [
    ".zeropoint",
    "config.toml",
    "model/",
    "model/README.md",
    "model/config.json",
    "model/model.safetensors",
    "model/tokenizer.json",
    "model/tokenizer_config.json",
    "report.html",
    "report.json",
    "report.md",
    "statistics.safetensors",
];

/// `configs/quickstart.toml` from the repository root, as its first line says to run it, but into the scene.
fn quickstart<S: AsRef<OsStr>>(scene: &Scene, more: impl IntoIterator<Item = S>) -> Command {
    let mut command = scene.zeropoint(["run", "configs/quickstart.toml", "--no-cache", "--out"]);
    command.arg(scene.path("out")).args(more).current_dir(workspace());
    command
}

/// A scene with a config that takes little time: the embedded model, few texts.
fn small() -> Scene {
    let scene = Scene::new();
    let config = format!(
        "version = 1\n[model]\nsource = 'embedded'\n\
         [calibration]\ndata = ['{}']\nsamples = 32\n\
         [[evaluation.tasks]]\nkind = 'fidelity'\ndata = '{}'\nlimit = 40\n",
        data("topics-train.jsonl").display(),
        data("topics-test.jsonl").display(),
    );
    scene.write("config.toml", config);
    scene
}

const SMALL: [&str; 5] = ["run", "config.toml", "--no-cache", "--out", "out"];

#[test]
fn the_quickstart_leaves_a_complete_run_directory() {
    let scene = Scene::new();
    let output = expect_code(&mut quickstart(&scene, [] as [&str; 0]), 0);
    assert_eq!(stdout(&output), "");
    assert_eq!(scene.tree("out").keys().collect::<Vec<_>>(), RUN_DIRECTORY);
    assert_eq!(scene.tree("").keys().filter(|name| !name.starts_with("out/")).count(), 0);
    assert_eq!(scene.temporary_files(), [] as [&str; 0]);

    let report = scene.json("out/report.json");
    let metric = |task: &str, name: &str| -> Value {
        let metrics = report["metrics"].as_array().expect("a list");
        metrics.iter().find(|m| m["task"] == task && m["name"] == name).expect("the metric is there").clone()
    };
    let accuracy = metric("classification", "accuracy");
    assert!(accuracy["original"].as_f64() >= Some(0.95), "{accuracy}");
    assert!(accuracy["delta"].as_f64() >= Some(-0.02), "{accuracy}");
    let cosine = metric("fidelity", "cosine_mean");
    assert!(cosine["quantized"].as_f64() >= Some(0.999), "{cosine}");
    assert_eq!(report["calibration"]["samples"], 256);
    assert_eq!(report["gates"][0]["passed"], true);
    assert_eq!(report["self_check"]["cosine_min"], 1.0);
    // What the terminal shows is what the report holds.
    let shown = stderr(&output);
    assert!(shown.contains(&format!("{:.4}", accuracy["quantized"].as_f64().expect("a number"))), "{shown}");
    assert!(shown.contains("gate classification accuracy"), "{shown}");
}

#[test]
fn the_report_has_the_keys_that_others_rely_on() {
    /// Every key of `promised` is in `found` with a value of the same kind.
    fn holds(promised: &Value, found: &Value, at: &str) {
        match (promised, found) {
            (Value::Object(promised), Value::Object(found)) => {
                for (key, value) in promised {
                    holds(value, found.get(key).unwrap_or(&Value::Null), &format!("{at}.{key}"));
                }
            }
            (Value::Array(promised), Value::Array(found)) => {
                assert!(!found.is_empty(), "{at} is empty");
                for (i, value) in found.iter().enumerate() {
                    holds(&promised[0], value, &format!("{at}[{i}]"));
                }
            }
            // A standard error that is not known.
            (Value::Number(_), Value::Null) if at.ends_with(".stderr") => {}
            _ => assert_eq!(std::mem::discriminant(promised), std::mem::discriminant(found), "{at}: {found}"),
        }
    }
    let promised = json!({
        "schema": 1,
        "zeropoint": { "version": "" },
        "model": { "source": "", "architecture": "", "parameters": 0, "fingerprint": "" },
        "calibration": { "samples": 0, "tokens": 0, "fingerprint": "", "seed": 0, "passes": 1 },
        "size": { "original_bytes": 0, "quantized_bytes": 0, "ratio": 0.0 },
        "metrics": [{
            "task": "sts", "name": "spearman", "original": 0.0, "quantized": 0.0, "delta": 0.0, "stderr": 0.0,
            "higher_is_better": true, "samples": 0,
        }],
        "layers": [{
            "path": "", "weights": "", "activations": "", "weight_sqnr_db": 0.0, "output_sqnr_db": 0.0,
            "input_range": [0.0, 0.0],
        }],
        "timing": { "load_s": 0.0, "calibrate_s": 0.0, "quantize_s": 0.0, "evaluate_s": 0.0, "peak_rss_bytes": 0 },
    });
    let scene = small();
    scene.succeeds(SMALL);
    let report = scene.json("out/report.json");
    holds(&promised, &report, "report");
    assert_eq!(report["schema"], 1);
    assert_eq!(report["layers"].as_array().map(Vec::len), Some(18));

    let text = scene.text("out/report.json");
    let parsed: Report = serde_json::from_str(&text).expect("the report parses back");
    assert_eq!(parsed.to_json(), text);

    let size = |name: &str| std::fs::metadata(scene.path(name)).expect("it is there").len();
    assert_eq!(report["size"]["quantized_bytes"], size("out/model/model.safetensors"));
    let bytes = |key: &str| report["size"][key].as_f64().expect("a number");
    assert_eq!(bytes("ratio"), bytes("original_bytes") / bytes("quantized_bytes"));
}

#[test]
fn json_is_the_report_and_nothing_else() {
    let scene = small();
    let output = scene.succeeds(SMALL.iter().chain(&["--json", "--quiet"]));
    assert_eq!(stdout(&output), scene.text("out/report.json"));
    assert_eq!(stderr(&output), "");
}

#[test]
fn a_gate_that_is_not_met_ends_with_3_and_keeps_the_outputs() {
    let scene = small();
    // Activations clipped to their middle 60 percent certainly lose something.
    let lossy = [
        "--set",
        "quantization={scheme='w8a8-static',activations={observer='percentile',percentile=60}}",
        "--set",
        "evaluation.gate=[{task='fidelity',metric='cosine_mean',max_drop=0.0}]",
    ];
    let output = scene.ends_with(3, SMALL.iter().chain(&lossy));
    let shown = stderr(&output);
    assert!(shown.contains("NOT MET") && shown.contains("the outputs are kept"), "{shown}");
    assert_eq!(scene.tree("out").keys().collect::<Vec<_>>(), RUN_DIRECTORY);
    let gate = &scene.json("out/report.json")["gates"][0];
    assert_eq!(gate["passed"], false);
    assert!(gate["drop"].as_f64() > Some(0.001), "{gate}");

    // The kept outputs are whole: they load, run and are measured again, and the gate holds for them as well.
    let evaluate = ["evaluate", "config.toml", "--model", "out/model"];
    scene.ends_with(3, evaluate.iter().chain(&lossy));
    let loose = ["--set", "evaluation.gate=[{task='fidelity',metric='cosine_mean',max_drop=1}]"];
    scene.succeeds(evaluate.iter().chain(&loose));
    scene.succeeds(SMALL.iter().chain(&["--force"]).chain(&lossy[..2]).chain(&loose));
    assert_eq!(scene.json("out/report.json")["gates"][0]["passed"], true);
}

#[test]
fn a_dry_run_foretells_the_plan_and_the_size_and_writes_nothing() {
    let scene = small();
    let before = scene.tree("");
    let plan = scene.succeeds(SMALL.iter().chain(&["--dry-run", "--json"]));
    let text = scene.succeeds(SMALL.iter().chain(&["--dry-run"]));
    scene::assert_same_tree(&scene.tree(""), &before);
    assert!(!scene.default_cache().exists());
    assert_eq!((stderr(&plan), stderr(&text)), (String::new(), String::new()));

    let plan: Value = serde_json::from_slice(&plan.stdout).expect("the plan is JSON");
    scene.succeeds(SMALL);
    let report = scene.json("out/report.json");
    for (foretold, found) in [
        (&plan["original_bytes"], &report["size"]["original_bytes"]),
        (&plan["quantized_bytes"], &report["size"]["quantized_bytes"]),
        (&plan["samples"], &report["calibration"]["samples"]),
        (&plan["tokens"], &report["calibration"]["tokens"]),
        (&plan["passes"], &report["calibration"]["passes"]),
        (&plan["tasks"], &json!([["fidelity", 40]])),
    ] {
        assert_eq!(foretold, found);
    }
    let planned: Vec<&Value> = plan["layers"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|layer| !layer["weights"].is_null())
        .map(|layer| &layer["path"])
        .collect();
    let done: Vec<&Value> =
        report["layers"].as_array().expect("a list").iter().map(|layer| &layer["path"]).collect();
    assert_eq!(planned, done);

    let shown = stdout(&text);
    let kept: Vec<&Value> =
        plan["layers"].as_array().into_iter().flatten().filter(|l| l["weights"].is_null()).collect();
    assert_eq!(kept.len(), 2, "the pooler and the classifier stay float");
    for layer in kept {
        assert!(layer["reason"].as_str().is_some_and(|reason| shown.contains(reason)), "{layer}");
    }
    assert!(shown.contains("32 samples") && shown.contains("fidelity, 40 samples"), "{shown}");
}

#[test]
fn latency_is_in_the_reports_of_a_run_that_is_asked_for_it() {
    let scene = small();
    scene.succeeds(SMALL);
    assert_eq!(scene.json("out/report.json").get("latency"), None);
    assert!(!scene.text("out/report.md").contains("Latency"));
    let card = scene.text("out/model/README.md");

    let asked = ["--force", "--threads", "1", "--set", "report.latency=true"];
    let plan = stdout(&scene.succeeds(SMALL.iter().chain(&asked).chain(&["--dry-run"])));
    assert!(plan.contains("\nlatency      4 combinations of threads, batch and tokens\n"), "{plan}");
    let shown = stderr(&scene.succeeds(SMALL.iter().chain(&asked)));
    assert!(shown.contains("Measuring the latency of both"), "{shown}");
    let latency = &scene.json("out/report.json")["latency"];
    assert!(latency["processors"].as_u64() >= Some(1), "{latency}");
    let rows = latency["rows"].as_array().expect("a list");
    let engines: Vec<&str> = rows.iter().map(|row| row["engine"].as_str().expect("a name")).collect();
    assert_eq!(engines, ["int8", "f32"].repeat(4));
    for key in ["median_ms", "q1_ms", "q3_ms", "tokens_per_s"] {
        assert!(rows.iter().all(|row| row[key].as_f64() > Some(0.0)), "{key} in {latency}");
    }
    assert!(scene.text("out/report.md").contains("\n## Latency\n"));
    assert!(scene.text("out/report.html").contains("<section id=\"latency\">"));
    assert!(scene.text("out/config.toml").contains("\n[report]\nlatency = true\n"));
    assert_eq!(scene.text("out/model/README.md"), card, "no machine is in the card");
}

#[test]
fn force_replaces_an_earlier_run_as_a_whole() {
    let scene = small();
    scene.succeeds(SMALL);
    scene.write("out/model/left-over.json", "{}");
    let first = scene.tree("out");
    scene.ends_with(1, SMALL);
    scene::assert_same_tree(&scene.tree("out"), &first);

    let scheme = ["--force", "--set", "quantization.scheme=w8a8-static"];
    scene.succeeds(SMALL.iter().chain(&scheme));
    assert_eq!(scene.tree("out").keys().collect::<Vec<_>>(), RUN_DIRECTORY);
    assert_ne!(scene.tree("out")["model/model.safetensors"], first["model/model.safetensors"]);
    assert_eq!(
        scene.tree("").keys().filter(|name| !name.starts_with("out/")).collect::<Vec<_>>(),
        ["config.toml"]
    );
}

#[test]
fn a_run_that_fails_leaves_the_earlier_one_as_it_was() {
    let scene = small();
    scene.succeeds(SMALL);
    let before = scene.tree("");
    // The weights are damaged, which only reading them shows.
    scene.copy_fixture("bert-mean", "damaged");
    let mut file = scene::safetensors::Safetensors::read(&scene.path("damaged/model.safetensors"));
    file.poke("encoder.layer.1.output.dense.weight", 7, f32::INFINITY);
    scene.write("damaged/model.safetensors", file.to_bytes());
    scene.ends_with(1, SMALL.iter().chain(&["--force", "--set", "model.source=damaged"]));
    let mut after = scene.tree("");
    after.retain(|name, _| !name.starts_with("damaged/"));
    scene::assert_same_tree(&after, &before);
}

#[test]
fn fewer_samples_than_asked_for_are_a_warning() {
    let scene = small();
    let output = scene.succeeds(SMALL.iter().chain(&["--set", "calibration.samples=5000"]));
    let shown = stderr(&output);
    assert!(shown.contains("warning: ") && shown.contains("5000 were asked for"), "{shown}");
    assert_eq!(scene.json("out/report.json")["calibration"]["samples"], 2004);
}

#[test]
fn a_dry_run_tells_the_plan() {
    let scene = Scene::new();
    scene.copy_fixture("llama-causal", "model");
    scene.write("text.txt", "the river is on fire\nit was a cold night for the model\n".repeat(20));
    scene.write(
        "config.toml",
        "version = 1\nmodel.source = 'model'\n[calibration]\ndata = ['text.txt']\nsamples = 4\n\
         [[evaluation.tasks]]\nkind = 'perplexity'\ndata = 'text.txt'\nwindow = 16\n",
    );
    let plan =
        stdout(&scene.succeeds(["run", "config.toml", "--cache", "kept", "--out", "out", "--dry-run"]));
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"; [0-9.]+ [KMGT]?i?B are free", "; [free] are free");
    settings.add_filter(r"memory       about [0-9.]+ MiB", "memory       about [memory]");
    settings.add_filter(r"time         about [0-9.]+ s", "time         about [seconds] s");
    settings.bind(|| insta::assert_snapshot!("dry_run", plan));
}
