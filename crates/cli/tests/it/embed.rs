//! `zeropoint embed`: lines in, vectors out, the same as `encode` gives.

use std::io::Write as _;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use crate::scene::{self, Scene, json_lines, stderr, stdout};

/// A quantised sentence encoder with prompts, none of them by default.
fn scene_of(fixture: &str) -> Scene {
    let scene = Scene::new();
    scene.copy_fixture(fixture, "source");
    scene.write(
        "config.toml",
        "version = 1\ncalibration.samples = 8\nevaluation.tasks = []\n[model]\nsource = 'source'\n",
    );
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "out"]);
    scene
}

fn fed(scene: &Scene, input: &[u8], arguments: &[&str]) -> Output {
    let mut command = scene.zeropoint(["embed", "out/model"].iter().chain(arguments));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // What refuses the input may not read it.
    let _ = child.stdin.take().expect("it is piped").write_all(input);
    child.wait_with_output().expect("it ends")
}

#[track_caller]
fn vectors(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", stderr(output));
    json_lines(&stdout(output)).iter().map(|row| row["embedding"].clone()).collect()
}

#[test]
fn vectors_are_those_of_encode_in_the_order_of_the_lines() {
    let scene = scene_of("bert-mean");
    // More than is read at once with batches of 1, of many lengths, empty lines between them.
    let words = ["the", "river", "is", "on", "fire", "and", "model"];
    let texts: Vec<String> = (0..70).map(|i| words[..i % 8 % 7].join(" ")).collect();
    let input = texts.join("\n");
    let rows: Vec<String> = texts.iter().map(|text| json!({ "text": text }).to_string()).collect();
    scene.write("texts.jsonl", rows.join("\n"));
    let encoded = json_lines(&stdout(&scene.succeeds(["encode", "out/model", "--data", "texts.jsonl"])));
    let expected: Vec<Value> = encoded.iter().map(|row| row["embedding"].clone()).collect();
    assert_eq!(expected.len(), texts.len());
    for (batch, threads) in [("32", "2"), ("1", "1"), ("2", "2")] {
        let found = vectors(&fed(&scene, input.as_bytes(), &["--batch-size", batch, "--threads", threads]));
        assert_eq!(found, expected, "batches of {batch}");
    }

    let output = fed(&scene, input.as_bytes(), &["--out", "vectors.npy"]);
    assert!(output.status.success() && output.stdout.is_empty(), "{}", stderr(&output));
    let bytes = std::fs::read(scene.path("vectors.npy")).expect("it is there");
    let width = expected[0].as_array().expect("a list").len();
    let head = String::from_utf8_lossy(&bytes[10..128]).into_owned();
    assert!(head.contains(&format!("'shape': (70, {width})")), "{head}");
    let values: Vec<f32> = bytes[128..]
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")))
        .collect();
    let flat: Vec<f32> = expected
        .iter()
        .flat_map(|row| row.as_array().expect("a list"))
        .map(|value| value.as_f64().expect("a number") as f32)
        .collect();
    assert_eq!(values, flat);

    let output = fed(&scene, b"one\r\ntwo\n", &["--out", "vectors.jsonl"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(json_lines(&scene.text("vectors.jsonl")).len(), 2);
}

#[test]
fn prompts_go_before_the_text() {
    let scene = scene_of("bert-prompts");
    let with = |arguments: &[&str], text: &str| vectors(&fed(&scene, text.as_bytes(), arguments));
    let default = with(&[], "the river\n");
    assert_eq!(with(&["--prompt", "query"], "the river\n"), default, "the default of this model");
    assert_ne!(with(&["--prompt-text", ""], "the river\n"), default);
}

#[test]
fn mistakes() {
    let scene = scene_of("bert-mean");
    let refused = |code: i32, input: &[u8], arguments: &[&str], expected: &str| {
        let before = scene.tree("");
        let output = fed(&scene, input, arguments);
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(output.stdout.is_empty());
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
        scene::assert_same_tree(&scene.tree(""), &before);
    };
    refused(1, b"", &[], "standard input: the data set holds no samples; at least one is needed");
    refused(1, b"", &["--out", "nothing.npy"], "standard input: the data set holds no samples");
    refused(1, b"fine\n\xff\n", &[], "standard input:2: the text is not valid UTF-8");
    refused(1, b"fine\n\xff\n", &["--out", "half.npy"], "standard input:2: the text is not valid UTF-8");
    refused(2, b"a\n", &["--format", "npy"], "--format: npy begins with the number of rows");
    refused(2, b"a\n", &["--prompt", "query"], "the model has no prompt `query`");
    refused(2, b"a\n", &["--out", "out/model/config.json"], "which is read here");
    let classifier = scene_of("bert-classifier-bf16");
    let output = fed(&classifier, b"a\n", &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("`zeropoint encode` runs it"), "{}", stderr(&output));
}
