//! `zeropoint init`: the config that it writes is read, runs as it is, and says what was found.

use serde_json::Value;
use zeropoint_pipeline::config::{Config, ModelTask, Preset, TaskKind};

use crate::scene::{Scene, fixture, stderr, stdout};

const FIXTURES: [&str; 4] = ["bert-mean", "bert-cls-sharded", "bert-max-f16", "bert-classifier-bf16"];

fn written(scene: &Scene, arguments: &[&str]) -> String {
    stdout(&scene.succeeds(["init"].iter().chain(arguments)))
}

#[test]
fn a_first_config_is_a_document_to_be_read() {
    let scene = Scene::new();
    insta::assert_snapshot!("classifier", written(&scene, &["embedded"]));
    scene.copy_fixture("bert-mean", "models/bert-mean");
    insta::assert_snapshot!("encoder", written(&scene, &["models/bert-mean", "--scheme", "w8a8-static"]));
    scene.copy_fixture("llama-causal", "models/llama");
    insta::assert_snapshot!("decoder", written(&scene, &["models/llama"]));
    insta::assert_snapshot!("decoder_static", written(&scene, &["models/llama", "--scheme", "w8a8-static"]));
}

#[test]
fn a_first_config_says_what_was_found_and_runs_unchanged() {
    for name in FIXTURES {
        let scene = Scene::new();
        let source = fixture(name).to_string_lossy().into_owned();
        for scheme in Preset::ALL.map(Preset::as_str) {
            let arguments = ["init", &source, "--scheme", scheme, "--out", "configs/first.toml", "--force"];
            let told = stderr(&scene.succeeds(arguments));
            assert!(told.contains("zeropoint run configs/first.toml"), "{told}");
            let config = Config::parse(&scene.text("configs/first.toml"), "first.toml", &[])
                .unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(
                (config.model.source.as_str(), config.quantization.scheme.as_str()),
                (&*source, scheme)
            );
            assert_ne!(config.model.task, ModelTask::Auto);
            assert_eq!(config.evaluation.tasks[0].kind, TaskKind::Fidelity);

            scene.succeeds(["run", "configs/first.toml", "--no-cache", "--out", scheme]);
            let report = scene.json(&format!("{scheme}/report.json"));
            let size = |key: &str| {
                let bytes = report["size"][key].as_u64().expect("a number").to_string();
                let digits: Vec<&str> = bytes
                    .as_bytes()
                    .rchunks(3)
                    .rev()
                    .map(|three| std::str::from_utf8(three).expect("digits"))
                    .collect();
                format!("{} bytes", digits.join(","))
            };
            let text = scene.text("configs/first.toml");
            assert!(
                text.contains(&size("original_bytes")) && text.contains(&size("quantized_bytes")),
                "{text}"
            );
        }
    }
}

#[test]
fn a_first_config_says_nothing_but_defaults() {
    let scene = Scene::new();
    let text = written(&scene, &["embedded"]);
    let config = Config::parse(&text, "first.toml", &[]).expect("it is a config");
    let mut default = Config::new("embedded");
    default.model.task = ModelTask::Classification;
    default.calibration.max_length = Some(64);
    default.output.dir = Some(default.output_dir());
    default.output.formats = Some(vec![default.output_format()]);
    assert_eq!(config, default);
}

/// The lines that are keys, tables and lists behind a `# `, as they are without it.
fn uncommented(text: &str) -> String {
    let is_code = |rest: &&str| {
        let key = rest.find(' ').unwrap_or_default();
        rest.starts_with(['[', ']']) || rest.starts_with("    \"") || rest[key..].starts_with(" = ")
    };
    let lines = text.lines().map(|line| line.strip_prefix("# ").filter(is_code).unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn what_is_commented_out_is_a_config_too() {
    // A model of each head, and a row that its task takes.
    let cases = [
        ("bert-mean", "sts", r#"{"text_a": "a", "text_b": "b", "score": 1}"#),
        ("bert-classifier-bf16", "classification", r#"{"text": "a", "label": "0"}"#),
        ("bert-multilabel", "classification", r#"{"text": "a", "label": ["0"]}"#),
        ("bert-cross-encoder", "sts", r#"{"text_a": "a", "text_b": "b", "score": 1}"#),
        ("bert-tokens", "token-classification", r#"{"tokens": ["a"], "labels": ["0"]}"#),
        ("bert-qa", "question-answering", r#"{"question": "a", "context": "a b", "answers": ["b"]}"#),
        ("bert-mlm", "masked-lm", r#"{"text": "one"}"#),
        ("llama-causal", "perplexity", "the river is on fire and it was a cold night"),
    ];
    for (name, kind, row) in cases {
        let scene = Scene::new();
        let source = fixture(name).to_string_lossy().into_owned();
        let text = uncommented(&written(&scene, &[&source]));
        let config =
            Config::parse(&text, "first.toml", &[]).unwrap_or_else(|error| panic!("{name}: {error}\n{text}"));
        assert_eq!((config.evaluation.tasks.len(), config.evaluation.gate.len()), (2, 2), "{name}");
        assert_eq!((config.calibration.data.len(), config.quantization.overrides.len()), (1, 1), "{name}");
        // The names are the model's, the task and its metric fit: the plan accepts them.
        scene.write("uncommented.toml", text);
        scene.write("texts.jsonl", "{\"text_a\": \"one\", \"text_b\": \"two\"}\n");
        if kind != "sts" && kind != "question-answering" {
            scene.write("texts.jsonl", "{\"text\": \"one\"}\n");
        }
        let extension = if kind == "perplexity" { "txt" } else { "jsonl" };
        scene.write(&format!("{kind}.{extension}"), format!("{row}\n{row}\n"));
        scene.succeeds(["run", "uncommented.toml", "--dry-run"]);
    }
}

#[test]
fn nothing_is_replaced_unless_it_is_said_so() {
    let scene = Scene::new();
    scene.write("config.toml", "my own");
    let refused = scene.ends_with(1, ["init", "embedded", "--out", "config.toml"]);
    assert!(stderr(&refused).contains("config.toml: a file is there already"), "{}", stderr(&refused));
    assert_eq!(scene.text("config.toml"), "my own");
    scene.succeeds(["init", "embedded", "--out", "config.toml", "--force"]);
    assert_eq!(scene.text("config.toml"), written(&scene, &["embedded"]));

    scene.write("other/zeropoint.schema.json", "{}");
    scene.ends_with(1, ["init", "embedded", "--out", "other/config.toml", "--schema"]);
    assert_eq!(scene.text("other/zeropoint.schema.json"), "{}");
    assert!(!scene.path("other/config.toml").exists(), "both or none");
}

#[test]
fn the_schema_lies_where_the_config_says() {
    let scene = Scene::new();
    scene.succeeds(["init", "embedded", "--out", "runs/a.toml", "--schema"]);
    let first = scene.text("runs/a.toml").lines().next().map(str::to_owned);
    assert_eq!(first.as_deref(), Some("#:schema ./zeropoint.schema.json"));
    let beside: Value = scene.json("runs/zeropoint.schema.json");
    assert_eq!(beside, Config::json_schema());
    assert_eq!(scene.text("runs/zeropoint.schema.json"), stdout(&scene.succeeds(["schema"])));
    // A second config shares it.
    scene.succeeds(["init", "embedded", "--out", "runs/b.toml", "--schema"]);
    scene.succeeds(["run", "runs/b.toml", "--dry-run"]);
}
