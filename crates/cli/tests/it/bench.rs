//! `zeropoint bench`: what it measures, and what it refuses. How fast things are is no matter of a test.

use serde_json::{Value, json};

use crate::scene::answers::Answers;
use crate::scene::{Scene, stdout};

fn quantized(scene: &Scene, out: &str, source: &str) {
    let source = format!("model.source={source}");
    let arguments = ["run", "config.toml", "--no-cache", "--out", out, "--set", &source];
    scene.succeeds(arguments.into_iter().chain([
        "--set",
        "evaluation.tasks=[]",
        "--set",
        "calibration.samples=8",
    ]));
}

#[test]
fn every_combination_is_measured_with_both_engines() {
    let scene = Scene::new();
    scene.write("config.toml", "version = 1\nmodel.source = 'embedded'\n");
    quantized(&scene, "out", "embedded");
    let shapes = ["--threads", "1,2", "--batch", "1,3", "--tokens", "4,9", "--runs", "3"];
    let arguments = ["bench", "out/model", "--against", "embedded", "--json"];
    let rows: Value =
        serde_json::from_str(&stdout(&scene.succeeds(arguments.iter().chain(&shapes)))).expect("it is JSON");
    let rows = rows.as_array().expect("a list");
    let mut expected = Vec::new();
    for threads in [1, 2] {
        for batch in [1, 3] {
            for tokens in [4, 9] {
                expected.extend(["int8", "f32"].map(|engine| (engine, threads, batch, tokens)));
            }
        }
    }
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"));
    let places: Vec<(&str, u64, u64, u64)> = rows
        .iter()
        .map(|row| {
            let whole = |key: &str| row[key].as_u64().expect("a whole number");
            (row["engine"].as_str().expect("a name"), whole("threads"), whole("batch"), whole("tokens"))
        })
        .collect();
    assert_eq!(places, expected);
    for row in rows {
        assert_eq!(row["runs"], 3);
        assert!(!row["isa"].as_str().expect("a name").is_empty());
        let (q1, median, q3) = (number(row, "q1_ms"), number(row, "median_ms"), number(row, "q3_ms"));
        assert!(0.0 < q1 && q1 <= median && median <= q3, "{row}");
        let tokens = number(row, "batch") * number(row, "tokens");
        assert!((number(row, "tokens_per_s") * median / 1e3 / tokens - 1.0).abs() < 1e-9, "{row}");
    }
    // The table has the same rows, and a first line that names the instruction set.
    let table = stdout(&scene.succeeds(arguments[..4].iter().chain(&shapes)));
    assert!(table.contains(rows[0]["isa"].as_str().expect("a name")), "{table}");
    assert_eq!(table.lines().filter(|line| line.contains(" x")).count(), expected.len() / 2, "{table}");
}

#[test]
fn images_are_measured_in_their_own_rows() {
    let scene = Scene::new();
    scene.copy_fixture("vit-classifier", "vit");
    scene.write("config.toml", "version = 1\ncalibration.data = ['vit/images/']\n[model]\nsource = 'vit'\n");
    quantized(&scene, "out", "vit");
    let output =
        scene.succeeds(["bench", "out/model", "--threads", "1", "--batch", "2", "--runs", "1", "--json"]);
    let rows: Value = serde_json::from_str(&stdout(&output)).expect("it is JSON");
    // 16 patches of an image of 32 x 32, and the class token.
    assert_eq!((&rows[0]["tokens"], rows.as_array().map(Vec::len)), (&17.into(), Some(1)));
}

#[test]
fn texts_are_measured_as_they_are_encoded() {
    let scene = Scene::new();
    scene.write("config.toml", "version = 1\nmodel.source = 'embedded'\n");
    quantized(&scene, "out", "embedded");
    scene.write("texts.txt", "the river is on fire\n\nwhat\nthe river\n");
    let arguments = ["bench", "out/model", "--against", "embedded", "--texts", "texts.txt", "--runs", "2"];
    let shapes = ["--threads", "1", "--batch", "1,2"];
    let json = stdout(&scene.succeeds(arguments.iter().chain(&shapes).chain(&["--json"])));
    let rows: Value = serde_json::from_str(&json).expect("it is JSON");
    let rows = rows.as_array().expect("a list");
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"));
    let places: Vec<_> = rows.iter().map(|row| (row["engine"].as_str(), row["batch"].as_u64())).collect();
    let of_batch = |batch| [(Some("int8"), Some(batch)), (Some("f32"), Some(batch))];
    assert_eq!(places, [of_batch(1), of_batch(2)].concat());
    // The same tokens in batches of any size.
    let tokens = |row: &Value| number(row, "tokens_per_s") * number(row, "median_ms") / 1e3;
    for row in rows {
        assert_eq!((&row["tokens"], &row["texts"], &row["runs"]), (&Value::Null, &3.into(), &2.into()));
        let texts = number(row, "texts_per_s") * number(row, "median_ms") / 1e3;
        assert!((texts - 3.0).abs() < 1e-6, "{row}");
        assert!((tokens(row) - tokens(&rows[0])).abs() < 1e-6 && tokens(row) > 3.0, "{row}");
    }
    let table = stdout(&scene.succeeds(arguments.iter().chain(&shapes)));
    assert!(table.contains("texts/s") && !table.contains("tokens"), "{table}");
}

#[test]
fn mistakes() {
    let mut answers = Answers::new();
    quantized(&answers.scene, "out", "embedded");
    answers.scene.copy_fixture("bert-mean", "other");
    answers.scene.copy_fixture("vit-classifier", "vit");
    let images = "calibration.data=['vit/images/']";
    answers.scene.succeeds([
        "run",
        "config.toml",
        "--no-cache",
        "--out",
        "images",
        "--set",
        "model.source=vit",
        "--set",
        images,
    ]);
    let model = "out/model";
    answers.refused(2, "a model that is not there", &["bench", "nowhere"]);
    answers.refused(1, "a model that is not quantised", &["bench", "other"]);
    answers.refused(2, "more tokens than the model takes", &["bench", model, "--tokens", "32,100000"]);
    answers.refused(2, "no tokens", &["bench", model, "--tokens", "0"]);
    answers.scene.write("texts.txt", "the river\n");
    answers.scene.write("empty.txt", "\n\n");
    answers.refused(2, "texts and tokens", &["bench", model, "--texts", "texts.txt", "--tokens", "32"]);
    answers.refused(2, "texts that are not there", &["bench", model, "--texts", "nowhere.txt"]);
    answers.refused(1, "no texts", &["bench", model, "--texts", "empty.txt"]);
    answers.refused(2, "batches of no text", &["bench", model, "--texts", "texts.txt", "--batch", "0"]);
    answers.refused(2, "tokens of images", &["bench", "images/model", "--tokens", "32"]);
    answers.refused(2, "an empty batch", &["bench", model, "--batch", "0"]);
    answers.refused(2, "a batch beyond memory", &["bench", model, "--batch", "1000000"]);
    answers.refused(2, "no runs", &["bench", model, "--runs", "0"]);
    answers.refused(2, "a number that is none", &["bench", model, "--batch", "1,two"]);
    answers.refused(2, "no threads", &["bench", model, "--threads", "1,0"]);
    answers.refused(2, "another model", &["bench", model, "--against", "other"]);
    answers.refused(2, "a quantised original", &["bench", model, "--against", model]);
    answers.refused(2, "several numbers of threads elsewhere", &["inspect", "embedded", "--threads", "1,2"]);
    answers.compare("bench__mistakes");
}

#[test]
fn decoders_are_measured_in_two_phases() {
    let scene = Scene::new();
    scene.copy_fixture("llama-causal", "source");
    scene.write("config.toml", "version = 1\nreport.latency = true\n");
    quantized(&scene, "out", "source");
    let report = scene.json("out/report.json");
    assert_eq!(report["latency"]["rows"][0]["phase"], "prefill", "a report measures what a decoder is for");
    let shapes = ["--threads", "1,2", "--tokens", "4,9", "--generate", "5", "--runs", "3"];
    let arguments = ["bench", "out/model", "--against", "source", "--json"];
    let rows: Value =
        serde_json::from_str(&stdout(&scene.succeeds(arguments.iter().chain(&shapes)))).expect("it is JSON");
    let mut expected = Vec::new();
    for threads in [1, 2] {
        for tokens in [4, 9] {
            for (phase, new) in [("prefill", Value::Null), ("decode", 5.into())] {
                expected
                    .extend(["int8", "f32"].map(|engine| json!([engine, threads, 1, tokens, phase, new])));
            }
        }
    }
    let keys = ["engine", "threads", "batch", "tokens", "phase", "new_tokens"];
    let places: Vec<Value> = rows
        .as_array()
        .expect("a list")
        .iter()
        .map(|row| keys.iter().map(|key| row[key].clone()).collect())
        .collect();
    assert_eq!(places, expected);
    for row in rows.as_array().expect("a list") {
        let tokens = if row["phase"] == "decode" { 5.0 } else { row["tokens"].as_f64().expect("a number") };
        let number = |key: &str| row[key].as_f64().expect("a number");
        assert!((number("tokens_per_s") * number("median_ms") / 1e3 / tokens - 1.0).abs() < 1e-9, "{row}");
    }
    let table = stdout(&scene.succeeds(arguments[..4].iter().chain(&shapes)));
    assert!(table.contains("phase") && table.contains("decode"), "{table}");
    let mistake = |options: [&str; 4]| {
        let output = scene.ends_with(2, ["bench", "out/model"].iter().chain(&options));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let long = mistake(["--tokens", "60", "--generate", "9"]);
    assert!(long.contains("60 is not from 2 to 55, which this model takes"), "{long}");
    let none = mistake(["--tokens", "6", "--generate", "0"]);
    assert!(none.contains("0 is not from 1 to 63, which this model makes at most"), "{none}");
    let both = mistake(["--batch", "2", "--generate", "1"]);
    assert!(both.contains("cannot be used with"), "{both}");
}
