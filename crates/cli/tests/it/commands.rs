//! `encode`, `inspect` and `evaluate` on what a run has written.

use serde_json::Value;

use crate::scene::{self, Scene, data, fixture, json_lines, stderr, stdout};

/// A finished run of the embedded model at `out`.
fn finished() -> Scene {
    let scene = Scene::new();
    let config = format!(
        "version = 1\nmodel.source = 'embedded'\nquantization.scheme = 'w8a8-static'\n\
         [calibration]\ndata = ['{}']\nsamples = 64\n\
         [[evaluation.tasks]]\nkind = 'classification'\ndata = '{}'\n\
         [[evaluation.gate]]\ntask = 'classification'\nmetric = 'accuracy'\nmax_drop = 0.02\n",
        data("topics-train.jsonl").display(),
        data("topics-test.jsonl").display(),
    );
    scene.write("config.toml", config);
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "out"]);
    scene
}

#[test]
fn encode_gives_the_labels_that_the_report_counts() {
    let scene = finished();
    let texts = data("topics-test.jsonl").to_string_lossy().into_owned();
    let encoded = json_lines(&stdout(&scene.succeeds(["encode", "out/model", "--data", &texts])));
    let gold = json_lines(&std::fs::read_to_string(&texts).expect("it is there"));
    assert_eq!(encoded.len(), gold.len());
    let mut right = 0;
    for (encoded, gold) in encoded.iter().zip(&gold) {
        assert_eq!(encoded["text"], gold["text"], "in the order of the file");
        let logits: Vec<f64> =
            encoded["logits"].as_array().expect("a list").iter().filter_map(Value::as_f64).collect();
        assert_eq!(logits.len(), 12);
        right += usize::from(encoded["label"] == gold["label"]);
    }
    let accuracy = &scene.json("out/report.json")["metrics"][0];
    assert_eq!(accuracy["name"], "accuracy");
    assert_eq!(accuracy["quantized"].as_f64(), Some(right as f64 / gold.len() as f64));
}

#[test]
fn encode_gives_vectors_of_an_embedding_model() {
    let scene = finished();
    let source = format!("model.source={}", fixture("bert-mean").display());
    let sets = ["--set", &source, "--set", "evaluation={tasks=[],gate=[]}"];
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "vectors"].iter().chain(&sets));
    scene.write("texts.txt", "the river is on fire\nthe model was rounded\nthe river is on fire\n");
    let encode = ["encode", "vectors/model", "--data", "texts.txt"];
    let output = scene.succeeds(encode);
    let rows: Vec<Vec<f64>> = json_lines(&stdout(&output))
        .iter()
        .map(|line| line["embedding"].as_array().expect("a list").iter().filter_map(Value::as_f64).collect())
        .collect();
    assert_eq!(rows.iter().map(Vec::len).collect::<Vec<_>>(), [32, 32, 32]);
    for row in &rows {
        let norm: f64 = row.iter().map(|value| value * value).sum();
        assert!((norm - 1.0).abs() < 1e-5, "the model normalises: {norm}");
    }
    assert_eq!(rows[0], rows[2], "the same text gives the same vector");
    assert_ne!(rows[0], rows[1]);

    let to_file = scene.succeeds(encode.iter().chain(&["--out", "rows.jsonl"]));
    assert_eq!(scene.text("rows.jsonl"), stdout(&output));
    assert_eq!(stdout(&to_file), "");
    assert!(stderr(&to_file).contains("3 rows written to rows.jsonl"));
}

#[test]
fn evaluate_measures_what_the_run_measured() {
    let scene = finished();
    let before = scene.tree("");
    let evaluate = ["evaluate", "config.toml", "--model", "out/model"];
    let found = scene.succeeds(evaluate.iter().chain(&["--json"]));
    let found: Value = serde_json::from_slice(&found.stdout).expect("it is JSON and nothing else");
    let report = scene.json("out/report.json");
    assert_eq!(found["metrics"], report["metrics"]);
    assert_eq!(found["gates"], report["gates"]);
    let text = stdout(&scene.succeeds(evaluate));
    assert!(text.contains("accuracy") && text.contains("met"), "{text}");
    scene::assert_same_tree(&scene.tree(""), &before);
}

#[test]
fn inspect_describes_a_float_model() {
    let scene = Scene::new();
    insta::assert_snapshot!("inspect_embedded", stdout(&scene.succeeds(["inspect", "embedded"])));
    let sharded = fixture("bert-cls-sharded").to_string_lossy().into_owned();
    insta::assert_snapshot!("inspect_sharded", stdout(&scene.succeeds(["inspect", &sharded])));
    assert_eq!(scene.temporary_files(), [] as [&str; 0]);
}

#[test]
fn inspect_describes_a_quantised_model() {
    let scene = finished();
    insta::assert_snapshot!("inspect_quantised", stdout(&scene.succeeds(["inspect", "out/model"])));
    let inspect = |model: &str| -> Value {
        let output = scene.succeeds(["inspect", model, "--json"]);
        assert_eq!(stderr(&output), "");
        serde_json::from_slice(&output.stdout).expect("it is JSON")
    };
    let (float, quantised) = (inspect("embedded"), inspect("out/model"));
    assert_eq!((&float["quantized"], &quantised["quantized"]), (&Value::Bool(false), &Value::Bool(true)));
    let size = &scene.json("out/report.json")["size"];
    assert_eq!((&float["bytes"], &quantised["bytes"]), (&size["original_bytes"], &size["quantized_bytes"]));
    let linears = |model: &Value, key: &str| -> Vec<Value> {
        model["linears"].as_array().expect("a list").iter().map(|linear| linear[key].clone()).collect()
    };
    for same in ["path", "shape"] {
        assert_eq!(linears(&float, same), linears(&quantised, same));
    }
    let count = |model: &Value| linears(model, "quantized").iter().filter(|scheme| !scheme.is_null()).count();
    assert_eq!((count(&float), count(&quantised)), (0, 18));
}

#[test]
fn a_sentence_encoder_refuses_pairs() {
    let scene = finished();
    let source = format!("model.source={}", fixture("bert-mean").display());
    let sets = ["--set", &source, "--set", "evaluation={tasks=[],gate=[]}"];
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "vectors"].iter().chain(&sets));
    scene.write("pairs.jsonl", "{\"text\": \"one\"}\n{\"text_a\": \"one\", \"text_b\": \"two\"}\n");
    let output = scene.ends_with(1, ["encode", "vectors/model", "--data", "pairs.jsonl"]);
    assert!(stderr(&output).contains("pairs.jsonl:2: a pair of texts"), "{}", stderr(&output));
}

#[test]
fn a_classifier_used_as_an_encoder_is_deployed_as_one() {
    let scene = finished();
    let sets = ["--set", "model.task=embedding", "--set", "evaluation={tasks=[],gate=[]}"];
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "vectors"].iter().chain(&sets));
    let config = scene.json("vectors/model/config.json");
    assert_eq!(config["architectures"][0], "BertModel");
    // The names of the modules that AutoModel builds, and of the classifier that is carried along.
    assert_eq!(config["quantization_config"]["ignore"], serde_json::json!(["pooler.dense", "classifier"]));
    scene.write("texts.txt", "rain is coming\n");
    let rows = json_lines(&stdout(&scene.succeeds(["encode", "vectors/model", "--data", "texts.txt"])));
    assert_eq!(rows[0]["embedding"].as_array().map(Vec::len), Some(64));
}

#[test]
fn a_gate_that_could_never_be_held_is_refused() {
    let scene = finished();
    let sets = [
        "--set",
        "model.task=embedding",
        "--set",
        "evaluation={tasks=[{kind='fidelity'}],gate=[{task='fidelity',metric='top1_agreement',max_drop=0.1}]}",
    ];
    let output =
        scene.ends_with(2, ["run", "config.toml", "--no-cache", "--out", "other"].iter().chain(&sets));
    assert!(stderr(&output).contains("has no metric `top1_agreement` here"), "{}", stderr(&output));
}

#[test]
fn force_never_removes_what_the_run_reads() {
    let scene = finished();
    scene.copy_fixture("bert-mean", "out/base");
    let sets = ["--set", "model.source=out/base", "--set", "evaluation={tasks=[],gate=[]}"];
    let output = scene
        .ends_with(2, ["run", "config.toml", "--no-cache", "--out", "out", "--force"].iter().chain(&sets));
    assert!(stderr(&output).contains("replacing it would remove"), "{}", stderr(&output));
    assert!(scene.path("out/base/model.safetensors").exists());
}

#[test]
fn an_output_file_never_takes_the_place_of_an_input() {
    let scene = finished();
    scene.write("texts.txt", "rain is coming\n");
    for out in ["texts.txt", "out/model/model.safetensors"] {
        let before = std::fs::read(scene.path(out)).expect("it is there");
        let output = scene.ends_with(2, ["encode", "out/model", "--data", "texts.txt", "--out", out]);
        assert!(stderr(&output).contains("which is read here"), "{}", stderr(&output));
        assert_eq!(std::fs::read(scene.path(out)).expect("it is there"), before);
    }
    let output = scene.ends_with(1, ["calibrate", "config.toml", "--no-cache", "--out", "config.toml"]);
    assert!(stderr(&output).contains("exists and holds no statistics"), "{}", stderr(&output));
    assert!(scene.text("config.toml").starts_with("version = 1"));
    // What it wrote itself may be written again.
    for _ in 0..2 {
        scene.succeeds(["calibrate", "config.toml", "--no-cache", "--out", "statistics.safetensors"]);
    }
}

#[test]
fn column_numbers_say_that_a_csv_has_no_header() {
    let scene = finished();
    scene.write("labelled.csv", "rain is coming,weather\nthe loan was repaid,banking\n");
    let task =
        "evaluation={tasks=[{kind='classification',data={path='labelled.csv',text=0,label=1}}],gate=[]}";
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "numbered", "--set", task]);
    assert_eq!(scene.json("numbered/report.json")["metrics"][0]["samples"], 2);
}
