//! `zeropoint compare`: two real runs side by side, and what it refuses.

use crate::scene::{self, Scene, data, stderr, stdout};

/// Two runs of the embedded model on few texts.
fn two_runs() -> Scene {
    let scene = Scene::new();
    let config = format!(
        "version = 1\n[model]\nsource = 'embedded'\n[calibration]\ndata = ['{}']\nsamples = 32\n\
         [[evaluation.tasks]]\nkind = 'fidelity'\ndata = '{}'\nlimit = 40\n",
        data("topics-train.jsonl").display(),
        data("topics-test.jsonl").display(),
    );
    scene.write("config.toml", config);
    scene.succeeds(["run", "config.toml", "--out", "runs/dynamic"]);
    scene.succeeds(["run", "config.toml", "--out", "runs/small", "--set", "quantization.embeddings=bf16"]);
    scene
}

const COMPARE: [&str; 3] = ["compare", "runs/dynamic", "runs/small/"];
const FILES: [&str; 5] = [".zeropoint-compare", "compare.csv", "compare.html", "compare.json", "compare.svg"];

#[test]
fn a_comparison_is_a_table_and_four_files() {
    let scene = two_runs();
    let before = scene.tree("runs");
    let output = scene.succeeds(COMPARE);
    assert_eq!(scene.tree("compare").keys().collect::<Vec<_>>(), FILES);
    scene::assert_same_tree(&scene.tree("runs"), &before);
    let shown = stdout(&output);
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].contains("fidelity cosine_mean") && lines[1].contains("original"), "{shown}");
    assert!(
        lines[2].starts_with("*  runs/small ") && lines[3].contains(" runs/dynamic "),
        "smallest first: {shown}"
    );
    assert!(stderr(&output).contains("compare/compare.html"));

    // The files say what the reports say.
    let comparison = scene.json("compare/compare.json");
    let report = scene.json("runs/small/report.json");
    let metric = &report["metrics"][0];
    let row = &comparison["runs"][0];
    assert_eq!(comparison["metric"]["samples"], 40);
    for (found, expected) in [
        (&row["run"], &"runs/small".into()),
        (&row["bytes"], &report["size"]["quantized_bytes"]),
        (&row["value"], &metric["quantized"]),
        (&row["stderr"], &metric["stderr"]),
        (&comparison["original"]["bytes"], &report["size"]["original_bytes"]),
    ] {
        assert_eq!(found, expected);
    }
    assert_eq!(scene.text("compare/compare.csv").lines().count(), 4);

    // Again, with the runs in another order: the same bytes, in the place of the earlier comparison.
    let first = scene.tree("compare");
    let json = scene.succeeds([
        "compare",
        "runs/small",
        "runs/dynamic",
        "--metric",
        "fidelity.cosine_mean",
        "--json",
    ]);
    scene::assert_same_tree(&scene.tree("compare"), &first);
    assert_eq!(stdout(&json), scene.text("compare/compare.json"));
}

#[test]
fn what_cannot_be_compared_is_refused_and_nothing_is_written() {
    let scene = two_runs();
    scene.write("empty/notes.txt", "no run");
    scene.write("newer/report.json", r#"{"schema": 99}"#);
    scene.write("broken/report.json", "{\"schema\": 1, \"metrics\": [");
    scene.write("binary/report.json", [0xff, 0xfe, 0x00]);
    let mut other = scene.json("runs/small/report.json");
    other["model"]["fingerprint"] = "0".repeat(64).into();
    scene.write("other/report.json", other.to_string());
    let before = scene.tree("");
    let mut sentences = String::new();
    for (code, arguments) in [
        (2, &["compare"][..]),
        (2, &["compare", "runs/small", "nowhere"]),
        (2, &["compare", "empty"]),
        (2, &["compare", "runs/small/report.json"]),
        (1, &["compare", "newer"]),
        (1, &["compare", "broken"]),
        (1, &["compare", "binary"]),
        (2, &["compare", "runs/small", "other"]),
        (2, &["compare", "runs/small", "./runs//small/"]),
        (2, &["compare", "runs/small", "--metric", "sts.spearman"]),
        (2, &["compare", "runs/small", "--metric", "spearman"]),
        // Neither a run nor anything else is replaced.
        (1, &["compare", "runs/small", "--out", "runs/dynamic"]),
        (1, &["compare", "runs/small", "--out", "empty"]),
        (1, &["compare", "runs/small", "--out", "config.toml"]),
    ] {
        let output = scene.ends_with(code, arguments);
        assert_eq!(stdout(&output), "");
        let said = stderr(&output).replace(&scene.root().to_string_lossy().into_owned(), "SCENE");
        sentences.extend(["$ zeropoint ", &arguments.join(" "), "\n", &said, "\n"]);
    }
    insta::assert_snapshot!(sentences);
    scene::assert_same_tree(&scene.tree(""), &before);
}
