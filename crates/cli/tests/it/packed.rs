//! Directories with packed weights, which other programs write: `inspect`, `generate`, `embed`, `encode`, `evaluate` and `bench`.
#![cfg(unix)] // a snapshot holds paths

use serde_json::{Value, json};
use zeropoint_core::{Granularity, Scheme, WeightBits};
use zeropoint_formats::{Dtype, TensorSpec};

use crate::scene::answers::Answers;
use crate::scene::packed::Tensors;
use crate::scene::{Scene, json_lines, stdout};

const FOUR: Scheme = Scheme::weight_only(WeightBits::Four, Granularity::Group(8));
const EIGHT: Scheme = Scheme::weight_only(WeightBits::Eight, Granularity::Channel);

#[test]
fn inspect_names_packed_weights_and_counts_their_values() {
    let scene = Scene::new();
    scene.pack_fixture("llama-causal", "packed", FOUR, |_, _| ());
    insta::assert_snapshot!("inspect_packed", stdout(&scene.succeeds(["inspect", "packed"])));
}

#[test]
fn a_packed_decoder_generates_the_same_on_any_number_of_threads() {
    let scene = Scene::new();
    scene.pack_fixture("llama-causal", "four", FOUR, |_, _| ());
    scene.pack_fixture("llama-causal", "eight", EIGHT, |_, _| ());
    scene.copy_fixture("llama-causal", "float");
    let tokens = |model: &str, threads: &str| -> Value {
        let arguments = ["generate", model, "--prompt", "the river is", "--json", "--max-tokens", "8"];
        let output = scene.succeeds(arguments.iter().chain(&["--ignore-stop", "--threads", threads]));
        serde_json::from_str::<Value>(&stdout(&output)).expect("JSON")["tokens"].clone()
    };
    for model in ["four", "eight"] {
        let one = tokens(model, "1");
        assert_eq!((one.as_array().map(Vec::len), &tokens(model, "3")), (Some(8), &one), "{model}");
    }
    assert_eq!(tokens("eight", "2")[0], tokens("float", "2")[0], "the first token survives 8 bits");
    let arguments = [
        "bench",
        "four",
        "--against",
        "float",
        "--generate",
        "2",
        "--tokens",
        "4",
        "--runs",
        "1",
        "--threads",
        "1",
    ];
    let rows: Value =
        serde_json::from_slice(&scene.succeeds(arguments.iter().chain(&["--json"])).stdout).expect("JSON");
    assert_eq!(rows.as_array().map(Vec::len), Some(4), "two phases of both models: {rows}");
}

#[test]
fn a_packed_encoder_gives_nearly_the_vectors_of_its_original() {
    let scene = Scene::new();
    scene.pack_fixture("bert-mean", "packed", EIGHT, |_, _| ());
    scene.write("texts.txt", "the river is on fire\nmodels\n");
    let vectors = json_lines(&stdout(&scene.succeeds(["encode", "packed", "--data", "texts.txt"])));
    assert_eq!(vectors.len(), 2);
    scene.copy_fixture("bert-mean", "float");
    scene.write("config.toml", "version = 1\ncalibration.data = ['texts.txt']\n[model]\nsource = 'float'\n");
    let arguments = ["evaluate", "config.toml", "--model", "packed", "--json"];
    let found: Value = serde_json::from_slice(&scene.succeeds(arguments).stdout).expect("JSON");
    let metrics = found["metrics"].as_array().expect("a list");
    let lowest = metrics.iter().find(|metric| metric["name"] == "cosine_min").expect("it is measured");
    let cosine = lowest["quantized"].as_f64().expect("a number");
    assert!((0.999..1.0).contains(&cosine), "{cosine}");
}

#[test]
fn what_is_packed_wrongly_is_refused_in_a_sentence() {
    fn set(tensors: &mut Tensors, suffix: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) {
        let name = format!("model.layers.0.mlp.down_proj.{suffix}");
        tensors.insert(name.clone(), (TensorSpec::new(name, dtype, shape), bytes));
    }
    fn weights(config: &mut Value) -> &mut Value {
        &mut config["quantization_config"]["config_groups"]["group_0"]["weights"]
    }
    type Change = fn(&mut Tensors, &mut Value);
    let cases: [(&str, Change); 17] = [
        ("two bits", |_, config| weights(config)["num_bits"] = json!(2)),
        ("floats", |_, config| weights(config)["type"] = json!("float")),
        ("asymmetric weights", |_, config| weights(config)["symmetric"] = json!(false)),
        ("groups that do not divide", |_, config| weights(config)["group_size"] = json!(16)),
        ("no group size", |_, config| weights(config)["group_size"] = Value::Null),
        ("blocks", |_, config| weights(config)["strategy"] = json!("block")),
        ("INT8 activations", |_, config| {
            let arguments = json!({"num_bits": 8, "type": "int", "symmetric": true, "strategy": "token", "dynamic": true});
            config["quantization_config"]["config_groups"]["group_0"]["input_activations"] = arguments;
        }),
        ("another format", |_, config| config["quantization_config"]["format"] = json!("marlin-24")),
        ("transforms", |_, config| {
            config["quantization_config"]["transform_config"] =
                json!({"config_groups": {"u": {"type": "hadamard"}}});
        }),
        ("a quantised cache of keys and values", |_, config| {
            config["quantization_config"]["kv_cache_scheme"] = json!({"num_bits": 8});
        }),
        ("fewer words", |tensors, _| set(tensors, "weight_packed", Dtype::I32, &[24, 4], vec![0; 384])),
        ("bytes for words", |tensors, _| set(tensors, "weight_packed", Dtype::U8, &[24, 5], vec![0; 120])),
        ("another shape", |tensors, _| {
            set(tensors, "weight_shape", Dtype::I64, &[2], [24u64, 32].map(u64::to_le_bytes).concat());
        }),
        ("no shape", |tensors, _| drop(tensors.remove("model.layers.0.mlp.down_proj.weight_shape"))),
        ("scales of channels", |tensors, _| set(tensors, "weight_scale", Dtype::F32, &[24, 1], vec![1; 96])),
        ("a scale that is not finite", |tensors, _| {
            set(tensors, "weight_scale", Dtype::F32, &[24, 5], f32::NAN.to_le_bytes().repeat(120));
        }),
        ("groups that nobody has", |tensors, _| {
            set(tensors, "weight_g_idx", Dtype::I32, &[40], 9i32.to_le_bytes().repeat(40));
        }),
    ];
    let mut answers = Answers::new();
    for (mistake, change) in cases {
        answers.scene.pack_fixture("llama-causal", "packed", FOUR, change);
        answers.refused(1, mistake, &["generate", "packed", "--prompt", "the river is"]);
    }
    answers.compare("packed__mistakes");
}
