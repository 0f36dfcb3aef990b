//! Every model of the fixtures through every scheme, and what the deployable directory holds afterwards.

use serde_json::{Value, json};

use crate::scene::safetensors::Safetensors;
use crate::scene::{self, Scene, data, fixture, tree};

const FIXTURES: [&str; 4] = ["bert-mean", "bert-cls-sharded", "bert-max-f16", "bert-classifier-bf16"];

/// A scene with a config for a fixture, calibrated and measured on the texts of its `reference.json`.
fn scene_of(name: &str) -> Scene {
    let scene = Scene::new();
    let reference = std::fs::read_to_string(fixture(name).join("reference.json")).expect("it is there");
    let reference: Value = serde_json::from_str(&reference).expect("it is JSON");
    let lines: Vec<String> = reference["texts"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|text| match text {
            Value::Array(pair) => json!({ "text_a": pair[0], "text_b": pair[1] }).to_string(),
            text => json!({ "text": text }).to_string(),
        })
        .collect();
    scene.write("texts.jsonl", lines.join("\n"));
    let config = format!(
        "version = 1\nmodel.source = '{}'\n[calibration]\ndata = ['texts.jsonl']\nsamples = {}\n",
        fixture(name).display(),
        // A pair is two samples to an encoder; all are taken.
        lines.len(),
    );
    scene.write("config.toml", config);
    scene
}

/// `run` of the scene's config into `out`, and its report.
fn run(scene: &Scene, out: &str, sets: &[&str]) -> Value {
    let mut arguments = vec!["run", "config.toml", "--no-cache", "--out", out];
    arguments.extend(sets.iter().flat_map(|set| ["--set", set]));
    scene.succeeds(&arguments);
    scene.json(&format!("{out}/report.json"))
}

fn quantization(scene: &Scene, out: &str) -> Value {
    scene.json(&format!("{out}/model/config.json"))["quantization_config"].clone()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().expect("a list").iter().map(|item| item.as_str().expect("a string")).collect()
}

/// Embedded model with few texts.
fn embedded() -> Scene {
    let scene = Scene::new();
    let config = format!(
        "version = 1\nmodel.source = 'embedded'\n[calibration]\ndata = ['{}']\nsamples = 16\n[evaluation]\ntasks = []\n",
        data("topics-train.jsonl").display(),
    );
    scene.write("config.toml", config);
    scene
}

#[test]
fn every_model_goes_through_every_scheme() {
    for name in FIXTURES {
        let scene = scene_of(name);
        for scheme in ["w8a8-dynamic", "w8a8-static"] {
            for granularity in ["channel", "tensor"] {
                let out = format!("{scheme}-{granularity}");
                let sets = [
                    format!("quantization.scheme={scheme}"),
                    format!("quantization.weights.granularity={granularity}"),
                ];
                let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
                let plan = {
                    let mut arguments = vec!["run", "config.toml", "--out", &out, "--dry-run", "--json"];
                    arguments.extend(sets.iter().flat_map(|set| ["--set", *set]));
                    let output = scene.succeeds(&arguments);
                    serde_json::from_slice::<Value>(&output.stdout).expect("it is JSON")
                };
                let report = run(&scene, &out, &sets);
                let about = format!("{name} {out}");
                assert_eq!(report["self_check"]["cosine_min"], 1.0, "{about}: the simulation is the runtime");
                let written = scene.tree(&format!("{out}/model"))["model.safetensors"].len();
                assert_eq!(plan["quantized_bytes"], written, "{about}");
                assert_eq!(report["size"]["quantized_bytes"], written, "{about}");
                assert_eq!(
                    report["layers"].as_array().map(Vec::len),
                    Some(12),
                    "{about}: six Linears in two blocks"
                );
                // The weights are random: what INT8 costs here is the rounding alone.
                let cosine = report["metrics"][0]["quantized"].as_f64().expect("a number");
                assert_eq!(report["metrics"][0]["name"], "cosine_mean", "{about}");
                assert!((0.995..1.0).contains(&cosine), "{about}: {cosine}");

                let arguments = &quantization(&scene, &out)["config_groups"]["group_0"];
                assert_eq!(arguments["weights"]["strategy"], granularity, "{about}");
                assert_eq!(arguments["input_activations"]["dynamic"], scheme == "w8a8-dynamic", "{about}");
            }
        }
    }
}

#[test]
fn what_belongs_to_a_model_comes_along() {
    for name in FIXTURES {
        let scene = scene_of(name);
        scene.copy_fixture(name, "source");
        scene.write("source/README.md", "---\nlicense: apache-2.0\nlanguage: en\n---\n\n# The source\n");
        scene.write("source/LICENSE", "Do as you like.\n");
        scene.write("source/deep/er/template.jinja", "{{ text }}");
        scene.write("source/pytorch_model.bin", "weights of another format");
        scene.write("source/onnx/model.onnx", "weights of another format");
        run(&scene, "out", &["model.source=source"]);
        let (source, mut model) = (scene.tree("source"), scene.tree("out/model"));

        // What is ours: the weights, the card, and in config.json what says that it is quantised and as what it runs.
        assert!(model.remove("model.safetensors").is_some(), "{name}");
        assert!(model.remove("README.md").is_some(), "{name}");
        model.remove("config.json");
        let config = |at: &str| {
            let mut config = scene.json(&format!("{at}/config.json"));
            config.as_object_mut().expect("an object").remove("architectures");
            config
        };
        let mut written = config("out/model");
        assert!(written.as_object_mut().expect("an object").remove("quantization_config").is_some());
        assert_eq!(written, config("source"), "{name}");

        // The rest is the source's: every file but its weights, its card under another name.
        let mut expected = source;
        let card = expected.remove("README.md").expect("it was written");
        expected.insert("README.source.md".to_owned(), card);
        let weights = [".safetensors", ".safetensors.index.json", ".bin", ".onnx", "onnx/"];
        expected
            .retain(|file, _| file != "config.json" && !weights.iter().any(|ending| file.ends_with(ending)));
        scene::assert_same_tree(&model, &expected);

        let card = scene.text("out/model/README.md");
        assert!(card.contains("license: apache-2.0") && card.contains("language: en"), "{card}");
        assert!(!card.contains("# The source"), "the source's own card lies beside it");
    }
}

#[test]
fn the_source_is_only_read() {
    let scene = scene_of("bert-mean");
    scene.copy_fixture("bert-mean", "source");
    let before = scene.tree("source");
    run(&scene, "beside", &["model.source=source"]);
    run(&scene, "source/quantised", &["model.source=source"]);
    run(&scene, "source/runs/second", &["model.source=source"]);
    // Neither a run itself nor an earlier one beside it is a part of the model.
    let model = scene.tree("beside/model");
    for inside in ["source/quantised/model", "source/runs/second/model"] {
        scene::assert_same_tree(&scene.tree(inside), &model);
    }
    let mut after = scene.tree("source");
    after.retain(|name, _| !name.starts_with("quantised/") && !name.starts_with("runs/"));
    scene::assert_same_tree(&after, &before);
}

#[test]
fn bf16_embeddings_are_half_as_large_and_rounded_to_nearest() {
    let scene = scene_of("bert-mean");
    run(&scene, "keep", &[]);
    run(&scene, "bf16", &["quantization.embeddings=bf16"]);
    let read = |out: &str| Safetensors::read(&scene.path(&format!("{out}/model/model.safetensors")));
    let (keep, bf16) = (read("keep"), read("bf16"));
    let source = Safetensors::read(&fixture("bert-mean").join("model.safetensors"));
    let mut tables = 0;
    for name in keep.names() {
        let is_table = name.starts_with("embeddings.") && name.ends_with("_embeddings.weight");
        if !is_table {
            assert_eq!((keep.dtype(name), keep.bytes(name)), (bf16.dtype(name), bf16.bytes(name)), "{name}");
            continue;
        }
        tables += 1;
        assert_eq!((keep.dtype(name), keep.bytes(name)), ("F32", source.bytes(name)), "{name}");
        assert_eq!(bf16.dtype(name), "BF16", "{name}");
        assert_eq!(bf16.bytes(name).len() * 2, keep.bytes(name).len(), "{name}");
        for (float, half) in source.bytes(name).chunks_exact(4).zip(bf16.bytes(name).chunks_exact(2)) {
            let float = u32::from_le_bytes(float.try_into().expect("four bytes"));
            // Round half to even on the 16 bits that are dropped.
            let rounded = (float + 0x7fff + ((float >> 16) & 1)) >> 16;
            assert_eq!(u32::from(u16::from_le_bytes(half.try_into().expect("two bytes"))), rounded, "{name}");
        }
    }
    assert_eq!(tables, 3, "words, positions, token types");

    // A table that the file holds a second time, as a decoder, stays one and the same.
    let scene = scene_of("bert-mlm");
    scene.copy_fixture("bert-mlm", "twice");
    let mut file = Safetensors::read(&scene.path("twice/model.safetensors"));
    file.copy("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight");
    scene.write("twice/model.safetensors", file.to_bytes());
    run(&scene, "twice-bf16", &["model.source=twice", "quantization.embeddings=bf16"]);
    let out = Safetensors::read(&scene.path("twice-bf16/model/model.safetensors"));
    let [table, decoder] = ["bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"];
    assert_eq!(out.dtype(table), "BF16");
    assert_eq!((out.dtype(table), out.bytes(table)), (out.dtype(decoder), out.bytes(decoder)));

    // A source that is 16-bit already stays as it is.
    let scene = scene_of("bert-max-f16");
    run(&scene, "keep", &[]);
    run(&scene, "bf16", &["quantization.embeddings=bf16"]);
    let weights = |out: &str| tree(&scene.path(out))["model/model.safetensors"].clone();
    assert!(weights("keep") == weights("bf16"));
}

#[test]
fn one_scheme_for_all_is_one_group_of_every_linear() {
    let scene = embedded();
    run(&scene, "out", &[]);
    let config = quantization(&scene, "out");
    assert_eq!(strings(&config["ignore"]), ["bert.pooler.dense", "classifier"]);
    assert_eq!(config["config_groups"].as_object().map(serde_json::Map::len), Some(1));
    assert_eq!(strings(&config["config_groups"]["group_0"]["targets"]), ["Linear"]);
}

#[test]
fn patterns_become_exact_names() {
    let scene = embedded();
    let report = run(
        &scene,
        "out",
        &[
            r"quantization.ignore=['re:bert\.pooler', 'classifier', 're:.*layer\.0\.attention\.output']",
            "quantization.scheme=w8a8-static",
            r"quantization.overrides=[
                { layers = ['re:bert\.encoder\.layer\.1\.'], scheme = 'w8a8-dynamic' },
                { layers = ['bert.encoder.layer.1.output.dense'], scheme = 'none' },
                { layers = ['re:.*layer\.2\.intermediate'], weights = { granularity = 'tensor' } },
            ]",
        ],
    );
    let config = quantization(&scene, "out");
    assert_eq!(
        strings(&config["ignore"]),
        [
            "bert.encoder.layer.0.attention.output.dense",
            "bert.encoder.layer.1.output.dense",
            "bert.pooler.dense",
            "classifier",
        ]
    );
    // Each Linear is named once: in `ignore`, or in the one group whose scheme it has.
    let groups = config["config_groups"].as_object().expect("an object");
    assert_eq!(groups.len(), 3);
    let mut named = strings(&config["ignore"]);
    for group in groups.values() {
        let (weights, dynamic) = (&group["weights"]["strategy"], &group["input_activations"]["dynamic"]);
        for target in strings(&group["targets"]) {
            assert!(!target.starts_with("re:"), "{target}");
            assert_eq!(*dynamic, target.contains("layer.1."), "{target}");
            assert_eq!(weights == "tensor", target.contains("layer.2.intermediate"), "{target}");
            named.push(target);
        }
    }
    named.sort_unstable();
    named.dedup();
    assert_eq!(named.len(), 20);
    assert_eq!(groups.values().map(|group| strings(&group["targets"]).len()).sum::<usize>(), 16);
    // The weights on disk are what the config says.
    let weights = Safetensors::read(&scene.path("out/model/model.safetensors"));
    let is_int8 = |layer: &str| weights.dtype(&format!("{layer}.weight")) == "I8";
    for name in &named {
        assert_eq!(is_int8(name), !strings(&config["ignore"]).contains(name), "{name}");
    }
    let has_static_input = |layer: &str| weights.names().any(|name| name == format!("{layer}.input_scale"));
    assert!(has_static_input("bert.encoder.layer.0.output.dense"));
    assert!(!has_static_input("bert.encoder.layer.1.intermediate.dense"));
    assert_eq!(report["self_check"]["cosine_min"], 1.0);
}

#[test]
fn a_site_whose_readers_differ_is_a_warning() {
    let scene = embedded();
    let set = "quantization.overrides=[{layers=['re:.*layer\\.0\\.attention\\.self\\.query'],scheme='none'}]";
    let output = scene.succeeds(["run", "config.toml", "--no-cache", "--out", "out", "--set", set]);
    let told = scene::stderr(&output);
    assert!(
        told.contains("warning: ") && told.contains("read one activation but are quantised differently"),
        "{told}"
    );
}

#[test]
fn an_override_without_effect_is_a_warning_that_names_both() {
    let scene = embedded();
    let set = "quantization.overrides=[{layers=['classifier','re:.*layer\\.0'],scheme='none'},\
               {layers=['re:bert\\.encoder'],scheme='w8a8-static'}]";
    let output = scene.succeeds([
        "run",
        "config.toml",
        "--dry-run",
        "--set",
        set,
        "--set",
        "quantization.ignore=['bert.pooler.dense']",
    ]);
    assert!(!scene::stdout(&output).contains("no effect"), "the classifier is left to the first");
    let set = set.replace("'classifier',", "");
    let output = scene.succeeds(["run", "config.toml", "--no-cache", "--out", "out", "--set", &set]);
    let expected = "warning: `quantization.overrides.0` (`re:.*layer\\.0`) has no effect: every layer it names is decided \
                    by `quantization.overrides.1` (`re:bert\\.encoder`), where the last one holds";
    assert!(scene::stderr(&output).contains(expected), "{}", scene::stderr(&output));
}
