//! The same config, model and data give the same bytes, whatever the threads, the cache and the way there.

use std::fs;

use serde_json::Value;
use zeropoint_pipeline::config::{Config, Pattern};

use crate::scene::{self, Scene, Tree, data, stderr};

/// The embedded model with few texts; `more` is TOML at the top level.
fn scene_with(scheme: &str) -> Scene {
    let scene = Scene::new();
    let config = format!(
        "version = 1\nmodel.source = 'embedded'\nquantization.scheme = '{scheme}'\n\
         [calibration]\ndata = ['{}']\nsamples = 48\n\
         [[evaluation.tasks]]\nkind = 'classification'\ndata = '{test}'\nlimit = 100\n\
         [[evaluation.tasks]]\nkind = 'fidelity'\ndata = '{test}'\nlimit = 100\n",
        data("topics-train.jsonl").display(),
        test = data("topics-test.jsonl").display(),
    );
    scene.write("config.toml", config);
    scene
}

fn run(scene: &Scene, out: &str, more: &[&str]) -> String {
    let arguments = ["run", "config.toml", "--out", out];
    stderr(&scene.succeeds(arguments.iter().chain(more)))
}

/// What must be equal: the model directory and the statistics.
fn product(scene: &Scene, out: &str) -> Tree {
    let mut tree = scene.tree(out);
    tree.retain(|name, _| name.starts_with("model/") || name == "statistics.safetensors");
    assert!(tree.len() > 5, "{out} is a run directory");
    tree
}

/// The report without what is allowed to differ.
fn findings(scene: &Scene, out: &str) -> Value {
    let mut report = scene.json(&format!("{out}/report.json"));
    report.as_object_mut().expect("an object").remove("timing").expect("it is there");
    report
}

fn passes(scene: &Scene, out: &str) -> u64 {
    scene.json(&format!("{out}/report.json"))["calibration"]["passes"].as_u64().expect("a number")
}

#[test]
fn a_second_run_and_another_number_of_threads_give_the_same_bytes() {
    for scheme in ["w8a8-static", "w8a8-dynamic"] {
        let scene = scene_with(scheme);
        run(&scene, "out", &["--no-cache"]);
        let (first, report) = (product(&scene, "out"), findings(&scene, "out"));
        for threads in ["2", "1", "5"] {
            run(&scene, "out", &["--no-cache", "--force", "--threads", threads]);
            scene::assert_same_tree(&product(&scene, "out"), &first);
            assert_eq!(findings(&scene, "out"), report, "{scheme} with {threads} threads");
        }
    }
}

#[test]
fn the_place_of_a_run_is_not_in_its_model() {
    let scene = scene_with("w8a8-static");
    run(&scene, "out", &["--no-cache"]);
    let place = scene.root().to_string_lossy().into_owned();
    for (name, content) in product(&scene, "out") {
        let found = content.windows(place.len()).any(|window| window == place.as_bytes());
        assert!(!found, "{name} holds {place}");
    }
    run(&scene, "deeper/down/there", &["--no-cache"]);
    scene::assert_same_tree(&product(&scene, "deeper/down/there"), &product(&scene, "out"));
}

#[test]
fn the_resolved_config_gives_the_run_again() {
    let scene = scene_with("w8a8-static");
    let refined = "quantization={weights={granularity='tensor',observer='min-max'},\
                   activations={mode='static',observer='percentile',percentile=99.5,symmetric=true},\
                   ignore=['re:bert\\.pooler','classifier'],embeddings='bf16',\
                   overrides=[{layers=['bert.encoder.layer.1.output.dense'],scheme='none'}]}";
    run(&scene, "out", &["--no-cache", "--set", refined]);
    scene.succeeds(["run", "out/config.toml", "--no-cache", "--out", "again"]);
    scene::assert_same_tree(&product(&scene, "again"), &product(&scene, "out"));
    let text = |out: &str| scene.text(&format!("{out}/config.toml"));
    assert_eq!(text("again").replace("dir = \"again\"", "dir = \"out\""), text("out"));
}

#[test]
fn what_the_model_decides_is_written_into_the_resolved_config() {
    for (name, task, length, ignore) in [
        ("bert-mean", "embedding", 48, &["pooler.dense"][..]),
        ("bert-cls-sharded", "embedding", 48, &[]),
        ("bert-classifier-bf16", "classification", 64, &["bert.pooler.dense", "classifier"]),
    ] {
        let scene = scene_with("w8a8-static");
        let source = format!("model.source={}", scene::fixture(name).display());
        let sets = ["--no-cache", "--set", &source, "--set", "evaluation.tasks=[{kind='fidelity'}]"];
        run(&scene, "out", &sets);
        let resolved = Config::load(&scene.path("out/config.toml"), &[]).expect("it is a config");
        let kept: Vec<&str> = resolved.quantization.ignore.iter().flatten().map(Pattern::as_str).collect();
        assert_eq!(kept, ignore, "{name}");
        assert_eq!(resolved.calibration.max_length, Some(length), "{name}");
        assert!(scene.text("out/config.toml").contains(&format!("task = \"{task}\"\n")), "{name}");

        scene.succeeds(["run", "out/config.toml", "--no-cache", "--out", "again"]);
        scene::assert_same_tree(&product(&scene, "again"), &product(&scene, "out"));
        assert_eq!(findings(&scene, "again"), findings(&scene, "out"), "{name}");
        let text = |out: &str| scene.text(&format!("{out}/config.toml"));
        assert_eq!(text("again").replace("dir = \"again\"", "dir = \"out\""), text("out"), "{name}");
    }
}

#[test]
fn instruction_sets_agree_in_what_they_measure() {
    let scene = scene_with("w8a8-static");
    run(&scene, "best", &["--no-cache"]);
    let arguments = ["run", "config.toml", "--out", "scalar", "--no-cache"];
    scene::expect_code(scene.zeropoint(arguments).env("ZEROPOINT_ISA", "scalar"), 0);
    let metrics = |out: &str| -> Vec<(String, f64, f64)> {
        let report = scene.json(&format!("{out}/report.json"));
        let number = |value: &Value| value.as_f64().expect("a number");
        let metrics = report["metrics"].as_array().expect("a list").clone();
        metrics
            .iter()
            .map(|m| (m["name"].to_string(), number(&m["original"]), number(&m["quantized"])))
            .collect()
    };
    let (best, scalar) = (metrics("best"), metrics("scalar"));
    assert_eq!(best.len(), 7);
    for ((name, a_original, a_quantized), (other, b_original, b_quantized)) in best.into_iter().zip(scalar) {
        assert_eq!(name, other);
        assert!((a_original - b_original).abs() <= 0.01, "{name}: {a_original} {b_original}");
        assert!((a_quantized - b_quantized).abs() <= 0.01, "{name}: {a_quantized} {b_quantized}");
    }
    let check = &scene.json("scalar/report.json")["self_check"]["cosine_min"];
    assert_eq!(check, 1.0, "the simulation is the runtime on every instruction set");
}

#[test]
fn the_cache_saves_the_observing_pass_and_changes_nothing() {
    let scene = scene_with("w8a8-static");
    let files = || scene.tree("cache").into_iter().collect::<Vec<_>>();
    let cached = ["--cache", "cache"];
    assert!(run(&scene, "first", &cached).contains("Calibrating"));
    assert_eq!((passes(&scene, "first"), files().len()), (1, 1));

    let told = run(&scene, "second", &cached);
    assert!(
        !told.contains("Calibrating") && told.contains("statistics of an earlier run are reused"),
        "{told}"
    );
    assert_eq!(passes(&scene, "second"), 0);
    let read =
        |out: &str| fs::read(scene.path(&format!("{out}/statistics.safetensors"))).expect("it is there");
    assert_eq!(read("first"), read("second"));
    for name in ["model.safetensors", "config.json"] {
        let read = |out: &str| fs::read(scene.path(&format!("{out}/model/{name}"))).expect("it is there");
        assert_eq!(read("first"), read("second"), "{name}");
    }

    // Another scheme reads the same statistics; other texts, or as many others of the same file, do not.
    run(&scene, "dynamic", &["--cache", "cache", "--set", "quantization.scheme=w8a8-dynamic"]);
    assert_eq!((passes(&scene, "dynamic"), files().len()), (0, 1));
    for (i, change) in
        ["calibration.seed=43", "calibration.samples=47", "calibration.max_length=16"].iter().enumerate()
    {
        let out = format!("other-{i}");
        run(&scene, &out, &["--cache", "cache", "--set", change]);
        assert_eq!((passes(&scene, &out), files().len()), (1, i + 2), "{change}");
        assert_ne!(read(&out), read("first"), "{change}");
    }

    run(&scene, "without", &["--no-cache"]);
    assert_eq!((passes(&scene, "without"), files().len()), (1, 4));
}

#[test]
fn a_cached_file_that_is_damaged_or_foreign_is_made_again() {
    let scene = scene_with("w8a8-static");
    run(&scene, "first", &["--cache", "cache"]);
    let (name, whole) = scene.tree("cache").pop_first().expect("there is one file");
    run(&scene, "seed", &["--cache", "elsewhere", "--set", "calibration.seed=43"]);
    let (_, foreign) = scene.tree("elsewhere").pop_first().expect("there is one file");
    for (i, (content, said)) in [
        (&whole[..whole.len() / 2], "fetch or write"),
        (b"", "not a well-formed safetensors file"),
        (&foreign, "belong to another"),
    ]
    .into_iter()
    .enumerate()
    {
        scene.write(&format!("cache/{name}"), content);
        let out = format!("again-{i}");
        let told = run(&scene, &out, &["--cache", "cache"]);
        assert!(
            told.contains("warning: the cached statistics are not used: ") && told.contains(said),
            "{told}"
        );
        assert_eq!(passes(&scene, &out), 1);
        scene::assert_same_tree(&product(&scene, &out), &product(&scene, "first"));
        assert_eq!(scene.tree("cache")[&name], whole, "the file is whole again");
    }
}

#[test]
fn a_cache_that_cannot_be_written_costs_a_warning() {
    let scene = scene_with("w8a8-dynamic");
    scene.write("file", "");
    let told = run(&scene, "out", &["--cache", "file/cache"]);
    assert!(told.contains("warning: the statistics are not kept"), "{told}");
    assert_eq!(passes(&scene, "out"), 1);
}

#[test]
fn statistics_are_kept_in_the_users_cache_unless_told_otherwise() {
    let scene = scene_with("w8a8-dynamic");
    run(&scene, "first", &[]);
    assert_eq!(scene::tree(&scene.default_cache()).len(), 1);
    run(&scene, "second", &[]);
    assert_eq!((passes(&scene, "first"), passes(&scene, "second")), (1, 0));
}

#[test]
fn the_stages_apart_give_what_the_run_gives() {
    for scheme in ["w8a8-static", "w8a8-dynamic"] {
        let scene = scene_with(scheme);
        run(&scene, "whole", &["--no-cache"]);
        scene.succeeds(["calibrate", "config.toml", "--no-cache", "--out", "made/here/statistics"]);
        scene.succeeds(["quantize", "config.toml", "--statistics", "made/here/statistics", "--out", "parts"]);
        let evaluated = scene.succeeds(["evaluate", "config.toml", "--model", "parts/model", "--json"]);

        let product = |out: &str| {
            let mut tree = product(&scene, out);
            // The card also tells what was measured, which `quantize` does not do.
            assert!(tree.remove("model/README.md").is_some());
            tree
        };
        scene::assert_same_tree(&product("parts"), &product("whole"));
        assert_eq!(
            fs::read(scene.path("made/here/statistics")).expect("it is there"),
            product("whole")["statistics.safetensors"]
        );
        let evaluated: Value = serde_json::from_slice(&evaluated.stdout).expect("it is JSON");
        let (whole, parts) = (findings(&scene, "whole"), findings(&scene, "parts"));
        assert_eq!(evaluated["metrics"], whole["metrics"]);
        assert_eq!(parts["metrics"], serde_json::json!([]));
        assert_eq!(parts["layers"], whole["layers"]);
        assert_eq!((passes(&scene, "whole"), passes(&scene, "parts")), (1, 0));
    }
}
