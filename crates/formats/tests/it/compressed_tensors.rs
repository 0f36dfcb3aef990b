//! The compressed-tensors format against its own tables, and against files of llm-compressor.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use serde_json::{Value, json};
use zeropoint_core::{
    ActivationMode::{Dynamic, Static},
    Granularity::{self, Channel, Tensor},
    Scheme,
    Symmetry::{Asymmetric, Symmetric},
    WeightBits,
};
use zeropoint_formats::{
    Dtype, QuantizationConfig, TensorSpec,
    compressed_tensors::{Format, Group, Target},
    linear_tensor_specs, planned_bytes,
};

use crate::schemes::{scheme, weight_only_schemes};

fn portable() -> Value {
    json!({
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel", "dynamic": false},
            "input_activations": {"num_bits": 8, "type": "int", "symmetric": true, "strategy": "token", "dynamic": true}}}})
}

#[test]
fn one_scheme_is_written_in_the_portable_form_to_the_letter() {
    let dynamic = scheme(Channel, Dynamic, Symmetric);
    let config = QuantizationConfig::for_modules([("a", dynamic), ("b", dynamic)], ["lm_head"]);
    // As text, because the order of the keys counts as well.
    assert_eq!(config.to_json().to_string(), portable().to_string());

    let config = QuantizationConfig::for_modules([("a", scheme(Channel, Static, Asymmetric))], ["lm_head"]);
    assert_eq!(
        config.to_json()["config_groups"]["group_0"]["input_activations"].to_string(),
        r#"{"num_bits":8,"type":"int","symmetric":false,"strategy":"tensor","dynamic":false}"#
    );
}

#[test]
fn several_schemes_are_written_with_exact_names() {
    let (dynamic, fixed) = (scheme(Channel, Dynamic, Symmetric), scheme(Tensor, Static, Symmetric));
    let config = QuantizationConfig::for_modules([("a", dynamic), ("b", fixed), ("c", dynamic)], ["head"]);
    let groups = &config.to_json()["config_groups"];
    assert_eq!(groups["group_0"]["targets"], json!(["a", "c"]));
    assert_eq!(groups["group_1"]["targets"], json!(["b"]));
    assert_eq!(groups["group_1"]["weights"]["strategy"], "tensor");
}

#[test]
fn weight_only_schemes_are_written_as_packed_and_mixtures_with_a_format_a_group() {
    let (four, int8) =
        (Scheme::weight_only(WeightBits::Four, Granularity::Group(64)), scheme(Channel, Dynamic, Symmetric));
    let config = QuantizationConfig::for_modules([("a", four)], ["lm_head"]);
    assert_eq!(config.format(), Some(Format::PackQuantized));
    let json = config.to_json();
    assert_eq!(json["format"], "pack-quantized");
    assert_eq!(
        json["config_groups"].to_string(),
        concat!(
            r#"{"group_0":{"targets":["Linear"],"weights":{"num_bits":4,"type":"int","symmetric":true,"#,
            r#""strategy":"group","group_size":64,"dynamic":false},"input_activations":null}}"#
        )
    );

    let mixed = QuantizationConfig::for_modules([("a", four), ("b", int8)], ["lm_head"]);
    assert_eq!(mixed.format(), None);
    let json = mixed.to_json();
    assert_eq!(json["format"], "mixed-precision");
    assert_eq!(json["config_groups"]["group_0"]["format"], "pack-quantized");
    assert_eq!(json["config_groups"]["group_1"]["format"], "int-quantized");
    assert_eq!(QuantizationConfig::from_json(&json).unwrap(), mixed);

    for scheme in weight_only_schemes() {
        let config = QuantizationConfig::for_modules([("a", scheme), ("b", int8)], ["head"]);
        assert_eq!(QuantizationConfig::from_json(&config.to_json()).unwrap(), config);
        assert_eq!((config.scheme_of("a"), config.scheme_of("b")), (Some(scheme), Some(int8)));
    }
}

#[test]
fn what_is_written_is_read_back() {
    for granularity in [Channel, Tensor] {
        for mode in [Static, Dynamic] {
            for symmetry in [Symmetric, Asymmetric] {
                let one = scheme(granularity, mode, symmetry);
                let other = scheme(Channel, Dynamic, Symmetric);
                let config = QuantizationConfig::for_modules([("a", one), ("b", other)], ["head"]);
                assert_eq!(QuantizationConfig::from_json(&config.to_json()).unwrap(), config);
                assert_eq!(config.scheme_of("a"), Some(one));
                assert_eq!(config.scheme_of("b"), Some(other));
                assert_eq!(config.scheme_of("head"), None);
            }
        }
    }
}

#[test]
fn targets_match_as_the_format_defines() {
    let (x, y, z) = (
        scheme(Channel, Dynamic, Symmetric),
        scheme(Channel, Static, Symmetric),
        scheme(Tensor, Static, Symmetric),
    );
    let parsed =
        |texts: &[&str]| -> Vec<Target> { texts.iter().map(|text| Target::parse(text).unwrap()).collect() };
    let group = |targets: &[&str], scheme| Group { targets: parsed(targets), scheme };
    let config = |groups: &[Group], ignore: &[&str]| QuantizationConfig {
        groups: groups.to_vec(),
        ignore: parsed(ignore),
    };
    let mixed =
        config(&[group(&["Linear"], x), group(&["re:enc", "re:enc.*q"], y), group(&["enc.q"], z)], &[]);
    let any = |target: &str, ignore: &[&str]| config(&[group(&[target], x)], ignore);
    let cases = [
        (any("Linear", &[]), "a.b", Some(x)),
        (any("Conv1D", &[]), "a.b", None),
        (any("a.b", &[]), "a.b", Some(x)),
        (any("a.b", &[]), "a.b.c", None),
        // `re.match`: anchored at the start, open at the end, for every alternative.
        (any("re:a", &[]), "a.b", Some(x)),
        (any("re:b", &[]), "a.b", None),
        (any("re:c|b", &[]), "a.b", None),
        (any("re:.*b$", &[]), "a.b", Some(x)),
        (any("re:.*b$", &[]), "a.bc", None),
        (any("Linear", &["a.b"]), "a.b", None),
        (any("Linear", &["re:.*head"]), "lm_head", None),
        (any("Linear", &["re:head"]), "lm_head", Some(x)),
        (any("Linear", &["Linear"]), "a.b", None),
        (any("Linear", &["Embedding", "LayerNorm"]), "a.b", Some(x)),
        // Ignoring wins over an exact name; exact names over patterns over classes.
        (any("a.b", &["re:a"]), "a.b", None),
        (mixed.clone(), "enc.q", Some(z)),
        (mixed.clone(), "enc.k", Some(y)),
        (mixed, "dec.q", Some(x)),
    ];
    for (config, name, expected) in cases {
        assert_eq!(config.scheme_of(name), expected, "{name} under {config:?}");
    }
}

#[test]
fn configs_that_say_more_than_they_need_are_read() {
    let edit = |edits: &[(&str, Value)]| {
        let mut config = portable();
        for (pointer, value) in edits {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            config.pointer_mut(parent).unwrap()[key] = value.clone();
        }
        config
    };
    let group = "/config_groups/group_0";
    let cases = [
        edit(&[
            ("/version", json!("0.9.1")),
            ("/global_compression_ratio", json!(1.5)),
            ("/kv_cache_scheme", Value::Null),
        ]),
        edit(&[("/sparsity_config", json!({})), ("/transform_config", json!({}))]),
        edit(&[(
            "/sparsity_config",
            json!({"format": "dense", "targets": [], "sparsity_structure": "unstructured"}),
        )]),
        edit(&[
            (&format!("{group}/output_activations"), Value::Null),
            (&format!("{group}/format"), Value::Null),
        ]),
        edit(&[(&format!("{group}/format"), json!("int-quantized")), ("/format", json!("mixed-precision"))]),
        edit(&[
            (&format!("{group}/weights/observer"), json!("minmax")),
            (&format!("{group}/weights/actorder"), json!("static")),
            (&format!("{group}/weights/observer_kwargs"), json!({"maxshrink": 0.8})),
            (&format!("{group}/weights/group_size"), Value::Null),
            (&format!("{group}/weights/block_structure"), Value::Null),
            (&format!("{group}/weights/zp_dtype"), json!("torch.int8")),
        ]),
    ];
    let expected = QuantizationConfig::from_json(&portable()).unwrap();
    for config in cases {
        assert_eq!(QuantizationConfig::from_json(&config).unwrap(), expected, "{config}");
    }
}

#[test]
fn what_cannot_be_run_is_refused_by_key_value_and_what_is_allowed() {
    struct Case {
        pointer: &'static str,
        /// `None` removes the key.
        value: Option<Value>,
        says: &'static [&'static str],
    }
    let case = |pointer, value, says| Case { pointer, value, says };
    let cases = [
        case(
            "/quant_method",
            Some(json!("gptq")),
            &["quantization_config.quant_method", "\"gptq\"", "compressed-tensors"],
        ),
        case("/format", None, &["quantization_config.format", "missing"]),
        case(
            "/format",
            Some(json!("float-quantized")),
            &["`quantization_config.format` is \"float-quantized\"", "int-quantized", "pack-quantized"],
        ),
        case(
            "/format",
            Some(json!("pack-quantized")),
            &["group_0.input_activations", "only null", "int-quantized"],
        ),
        case("/format", Some(json!("mixed-precision")), &["group_0.format", "missing"]),
        case("/format", Some(json!(8)), &["a string"]),
        case("/quantization_status", None, &["quantization_status", "missing", "\"compressed\""]),
        case("/quantization_status", Some(json!("frozen")), &["\"frozen\"", "\"compressed\""]),
        case("/kv_cache_scheme", Some(json!({"num_bits": 8})), &["kv_cache_scheme", "num_bits"]),
        case("/sparsity_config", Some(json!({"format": "sparse-24"})), &["sparsity_config", "sparse-24"]),
        case("/transform_config", Some(json!({"config_groups": {"r1": {}}})), &["transform_config"]),
        case("/surprise", Some(json!(true)), &["quantization_config.surprise", "not known"]),
        case("/ignore", Some(json!("lm_head")), &["quantization_config.ignore", "list"]),
        case("/ignore", Some(json!(["a", 1])), &["ignore[1]"]),
        case("/ignore", Some(json!(["re:(?!x)"])), &["ignore[0]", "does not compile", "look-around"]),
        case("/ignore", Some(json!(["re:a)(b"])), &["does not compile"]),
        case("/config_groups", None, &["config_groups", "missing"]),
        case("/config_groups", Some(json!({})), &["at least one group"]),
        case("/config_groups", Some(json!([1])), &["an object"]),
        case(
            "/config_groups/group_0",
            Some(json!(["Linear"])),
            &["quantization_config.config_groups.group_0`", "an object"],
        ),
        case("/config_groups/group_0/targets", None, &["group_0.targets", "missing"]),
        case("/config_groups/group_0/targets", Some(json!([])), &["at least one target"]),
        case("/config_groups/group_0/targets", Some(json!(["re:["])), &["targets[0]", "does not compile"]),
        case("/config_groups/group_0/weights", None, &["group_0.weights", "missing"]),
        case("/config_groups/group_0/weights", Some(Value::Null), &["group_0.weights", "null", "an object"]),
        case(
            "/config_groups/group_0/weights/num_bits",
            Some(json!(4)),
            &["weights.num_bits` is 4", "only 8"],
        ),
        case("/config_groups/group_0/weights/num_bits", None, &["weights.num_bits", "missing"]),
        case("/config_groups/group_0/weights/type", Some(json!("float")), &["\"float\"", "\"int\""]),
        case(
            "/config_groups/group_0/weights/symmetric",
            Some(json!(false)),
            &["weights.symmetric", "false", "symmetric"],
        ),
        case("/config_groups/group_0/weights/symmetric", None, &["weights.symmetric", "missing"]),
        case(
            "/config_groups/group_0/weights/strategy",
            Some(json!("group")),
            &["\"group\"", "\"channel\" or \"tensor\""],
        ),
        case("/config_groups/group_0/weights/group_size", Some(json!(128)), &["group_size", "128"]),
        case("/config_groups/group_0/weights/dynamic", Some(json!(true)), &["weights.dynamic"]),
        case("/config_groups/group_0/weights/surprise", Some(json!(1)), &["weights.surprise", "not known"]),
        case(
            "/config_groups/group_0/input_activations",
            Some(Value::Null),
            &["input_activations` is null", "int-quantized", "pack-quantized"],
        ),
        case("/config_groups/group_0/input_activations", None, &["input_activations", "missing"]),
        case(
            "/config_groups/group_0/input_activations/dynamic",
            Some(json!("local")),
            &["\"local\"", "true or false"],
        ),
        case(
            "/config_groups/group_0/input_activations/dynamic",
            Some(json!(false)),
            &["\"token\"", "static"],
        ),
        case(
            "/config_groups/group_0/input_activations/strategy",
            Some(json!("tensor")),
            &["\"tensor\"", "dynamic"],
        ),
        case("/config_groups/group_0/input_activations/num_bits", Some(json!(8.5)), &["8.5"]),
        case(
            "/config_groups/group_0/output_activations",
            Some(json!({"num_bits": 8})),
            &["output_activations"],
        ),
        case(
            "/config_groups/group_0/format",
            Some(json!("pack-quantized")),
            &["group_0.input_activations", "only null is allowed with pack-quantized"],
        ),
        case(
            "/config_groups/group_0/format",
            Some(json!("marlin-24")),
            &["group_0.format", "marlin-24", "\"int-quantized\" or \"pack-quantized\""],
        ),
        case(
            "/config_groups/group_0/weights/actorder",
            Some(json!("magic")),
            &["weights.actorder", "\"magic\""],
        ),
    ];
    for Case { pointer, value, says } in cases {
        let mut config = portable();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = config.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match value {
            Some(value) => parent.insert(key.to_owned(), value),
            None => parent.shift_remove(key),
        };
        let message = QuantizationConfig::from_json(&config).expect_err(pointer).to_string();
        for expected in says {
            assert!(message.contains(expected), "{pointer}: {message}");
        }
    }
    for not_an_object in [json!(null), json!([]), json!("int8")] {
        assert!(QuantizationConfig::from_json(&not_an_object).is_err());
    }
    let mut twice = portable();
    twice["config_groups"]["group_1"] = twice["config_groups"]["group_0"].clone();
    twice["config_groups"]["group_1"]["weights"]["strategy"] = json!("tensor");
    let message = QuantizationConfig::from_json(&twice).unwrap_err().to_string();
    assert!(message.contains("`Linear` is in groups of different schemes"), "{message}");
}

#[test]
fn packed_schemes_are_read_or_refused_by_key_value_and_what_is_allowed() {
    let packed = |edits: &[(&str, Value)]| {
        let mut config = json!({
            "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
            "config_groups": {"group_0": {
                "targets": ["Linear"], "input_activations": null, "output_activations": null,
                "weights": {"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 128,
                            "dynamic": false, "actorder": "group", "observer": "minmax", "observer_kwargs": {}}}}});
        for (key, value) in edits {
            config["config_groups"]["group_0"]["weights"][*key] = value.clone();
        }
        QuantizationConfig::from_json(&config)
    };
    let scheme_of = |edits: &[(&str, Value)]| packed(edits).unwrap().scheme_of("a").unwrap();
    let (four, eight) = (WeightBits::Four, WeightBits::Eight);
    let channel = ("strategy", json!("channel"));
    assert_eq!(scheme_of(&[]), Scheme::weight_only(four, Granularity::Group(128)));
    assert_eq!(scheme_of(&[("num_bits", json!(8))]), Scheme::weight_only(eight, Granularity::Group(128)));
    for no_group in [Value::Null, json!(-1)] {
        assert_eq!(
            scheme_of(&[channel.clone(), ("group_size", no_group)]),
            Scheme::weight_only(four, Channel)
        );
    }
    let cases = [
        (vec![("num_bits", json!(3))], "weights.num_bits` is 3; only 4 or 8 is allowed"),
        (vec![("num_bits", json!(4.0))], "weights.num_bits` is 4.0; only 4 or 8"),
        (vec![("type", json!("float"))], "weights.type` is \"float\"; only \"int\" is allowed"),
        (
            vec![("symmetric", json!(false))],
            "weights.symmetric` is false; only symmetric weights (true) can be run, for",
        ),
        (vec![("dynamic", json!(true))], "weights.dynamic` is true"),
        (vec![("strategy", json!("block"))], "\"group\" or \"channel\" or \"tensor\" is allowed"),
        (
            vec![("group_size", Value::Null)],
            "group_size` is null; a whole number that is at least 1 is needed",
        ),
        (vec![("group_size", json!(0))], "group_size` is 0; a whole number"),
        (vec![("group_size", json!(-1))], "group_size` is -1; a whole number"),
        (vec![("group_size", json!(1e30))], "group_size` is 1e+30; a whole number"),
        (vec![channel], "group_size` is 128; the strategy \"channel\" has no groups"),
        (vec![("block_structure", json!([128, 128]))], "block_structure` is [128,128]"),
        (vec![("surprise", json!(1))], "weights.surprise` is 1; this key is not known"),
    ];
    for (edits, expected) in cases {
        let message = packed(&edits).expect_err(expected).to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn patterns_and_names_are_limited() {
    let numbered =
        |prefix: &str, count: usize| -> Vec<String> { (0..count).map(|i| format!("{prefix}{i}")).collect() };
    let config = |ignored: Vec<String>, targets: Vec<String>| {
        let mut config = portable();
        config["ignore"] = json!(ignored);
        config["config_groups"]["group_0"]["targets"] = json!(targets);
        QuantizationConfig::from_json(&config)
    };
    let read = config(numbered("re:layer", 200), numbered("re:.*", 56)).unwrap();
    assert_eq!(
        (read.ignore.len(), read.scheme_of("layer7"), read.scheme_of("x").is_some()),
        (200, None, false)
    );
    assert!(config(numbered("layer", 10_000), numbered("other", 10_000)).is_ok());
    // One too many, in whatever list it is.
    let message = config(numbered("re:layer", 200), numbered("re:.*", 57)).unwrap_err().to_string();
    for part in ["group_0.targets[56]` is \"re:.*56\"", "at most 256 patterns", "exact names"] {
        assert!(message.contains(part), "{message}");
    }
    let message = config(numbered("layer", 100_001), numbered("other", 1)).unwrap_err().to_string();
    assert!(message.contains("ignore[100000]") && message.contains("at most 100000 names"), "{message}");
}

/// Metadata of real models, one JSON file each: `config` is their config.json, `tensors` the dtype and shape of every
/// tensor by name.
#[test]
#[ignore = "needs ZEROPOINT_FORMATS"]
fn files_of_llm_compressor_are_read() {
    let dir = std::env::var("ZEROPOINT_FORMATS").expect("ZEROPOINT_FORMATS names a directory of JSON files");
    let mut formats = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let config = QuantizationConfig::from_json(&file["config"]["quantization_config"]).unwrap();
        let tensors = real_tensors(&file["tensors"]);
        check_real_tensors(&config, &tensors);
        // The same header to the byte, or its length would differ.
        let specs: Vec<TensorSpec> = tensors.into_values().collect();
        assert_eq!(file["files"]["model.safetensors"], planned_bytes(&specs));
        formats.insert(config.format().unwrap().name());
    }
    assert_eq!(formats.into_iter().collect::<Vec<_>>(), ["int-quantized", "pack-quantized"]);
}

fn real_tensors(tensors: &Value) -> BTreeMap<String, TensorSpec> {
    let spec = |(name, info): (&String, &Value)| {
        let dtype = Dtype::parse(info["dtype"].as_str().unwrap()).unwrap();
        let shape: Vec<usize> = serde_json::from_value(info["shape"].clone()).unwrap();
        (name.clone(), TensorSpec::new(name, dtype, shape))
    };
    tensors.as_object().unwrap().iter().map(spec).collect()
}

fn check_real_tensors(config: &QuantizationConfig, tensors: &BTreeMap<String, TensorSpec>) {
    assert_eq!(config.scheme_of("lm_head"), None);
    let mut linears = 0;
    for spec in tensors.values().filter(|spec| [Dtype::I8, Dtype::I32].contains(&spec.dtype)) {
        let Some((path, "weight" | "weight_packed")) = spec.name.rsplit_once('.') else { continue };
        let scheme = config.scheme_of(path).expect("a quantised Linear has a scheme");
        // No row of this model ends within a word.
        let inputs = if scheme.is_weight_only() {
            spec.shape[1] * 32 / scheme.weights.bits.width()
        } else {
            spec.shape[1]
        };
        let expected = linear_tensor_specs(path, spec.shape[0], inputs, scheme);
        let expected: BTreeMap<String, TensorSpec> =
            expected.into_iter().map(|spec| (spec.name.clone(), spec)).collect();
        let found: BTreeMap<String, TensorSpec> = tensors
            .iter()
            .filter(|(name, _)| name.starts_with(&format!("{path}.")))
            .map(|(name, spec)| (name.clone(), spec.clone()))
            .collect();
        assert_eq!(found, expected);
        linears += 1;
    }
    assert!(linears > 0);
}
