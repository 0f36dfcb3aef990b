//! The compressed-tensors format against its own tables, and against files of llm-compressor.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};
use zeropoint_core::{
    ActivationMode::{self, Dynamic, Static},
    ActivationScheme,
    Granularity::{self, Channel, Tensor},
    QuantParams, Scheme,
    Symmetry::{self, Asymmetric, Symmetric},
    WeightScheme,
};
use zeropoint_formats::{
    Checkpoint, CheckpointWriter, Dtype, QuantizationConfig, QuantizedLinear, TensorSpec,
    compressed_tensors::{Format, Group, Target},
    linear_tensor_bytes, linear_tensor_specs, planned_bytes, read_linear,
    safetensors::element::{bf16_bytes, f32_bytes},
};

fn scheme(granularity: Granularity, mode: ActivationMode, symmetry: Symmetry) -> Scheme {
    Scheme { weights: WeightScheme { granularity }, activations: ActivationScheme { mode, symmetry } }
}

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
        format: Format::IntQuantized,
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
            Some(json!("pack-quantized")),
            &["`quantization_config.format` is \"pack-quantized\"", "int-quantized"],
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
            &["input_activations", "weight-only"],
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
            &["group_0.format", "pack-quantized"],
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

#[test]
fn tensors_of_a_linear_are_those_of_the_table() {
    let weight = ("p.weight", Dtype::I8, vec![3, 5]);
    let per_channel = ("p.weight_scale", Dtype::F32, vec![3, 1]);
    let per_tensor = ("p.weight_scale", Dtype::F32, vec![1]);
    let input_scale = ("p.input_scale", Dtype::F32, vec![1]);
    let zero_point = ("p.input_zero_point", Dtype::I8, vec![1]);
    let cases = [
        (scheme(Channel, Dynamic, Symmetric), vec![&weight, &per_channel]),
        (scheme(Channel, Dynamic, Asymmetric), vec![&weight, &per_channel]),
        (scheme(Tensor, Dynamic, Symmetric), vec![&weight, &per_tensor]),
        (scheme(Channel, Static, Symmetric), vec![&weight, &per_channel, &input_scale]),
        (scheme(Channel, Static, Asymmetric), vec![&weight, &per_channel, &input_scale, &zero_point]),
        (scheme(Tensor, Static, Asymmetric), vec![&weight, &per_tensor, &input_scale, &zero_point]),
    ];
    for (scheme, expected) in cases {
        let expected: Vec<TensorSpec> = expected
            .into_iter()
            .map(|(name, dtype, shape)| TensorSpec::new(*name, *dtype, shape.clone()))
            .collect();
        assert_eq!(linear_tensor_specs("p", 3, 5, scheme), expected, "{scheme}");
    }
}

fn linear(scheme: Scheme) -> QuantizedLinear {
    let zero_point = if scheme.activations.symmetry == Asymmetric { -7 } else { 0 };
    let per_channel = scheme.weights.granularity == Channel;
    QuantizedLinear {
        weight: vec![-128, -1, 0, 1, 2, 127],
        outputs: 2,
        inputs: 3,
        weight_scales: if per_channel { vec![0.5, 0.25] } else { vec![0.5, 0.5] },
        input: (scheme.activations.mode == Static).then_some(QuantParams { scale: 0.125, zero_point }),
    }
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(scheme: Scheme) -> Tensors {
    let linear = linear(scheme);
    let bytes = linear_tensor_bytes("p", &linear, scheme).unwrap();
    let specs = linear_tensor_specs("p", 2, 3, scheme);
    assert_eq!(bytes.len(), specs.len());
    specs
        .into_iter()
        .zip(bytes)
        .map(|(spec, (name, bytes))| {
            assert_eq!(spec.name, name);
            assert_eq!(spec.bytes(), bytes.len() as u64);
            (spec.name, (spec.dtype, spec.shape, bytes.into_owned()))
        })
        .collect()
}

fn checkpoint(dir: &Path, tensors: &Tensors) -> Checkpoint {
    let specs = tensors.iter().map(|(name, (dtype, shape, _))| TensorSpec::new(name, *dtype, shape.clone()));
    let mut writer = CheckpointWriter::create(dir, specs.collect(), u64::MAX).unwrap();
    for (name, (_, _, bytes)) in tensors {
        writer.write(name, bytes).unwrap();
    }
    writer.finish().unwrap();
    Checkpoint::open(dir).unwrap()
}

#[test]
fn a_linear_survives_the_round_trip_under_every_scheme() {
    for granularity in [Channel, Tensor] {
        for mode in [Static, Dynamic] {
            for symmetry in [Symmetric, Asymmetric] {
                let scheme = scheme(granularity, mode, symmetry);
                let dir = tempfile::tempdir().unwrap();
                let mut tensors = tensors(scheme);
                // Neighbours and a bias do not disturb.
                tensors.insert("p.bias".to_owned(), (Dtype::BF16, vec![2], vec![0; 4]));
                tensors.insert("p2.weight_zero_point".to_owned(), (Dtype::I8, vec![1], vec![0]));
                let read = read_linear(&checkpoint(dir.path(), &tensors), "p", scheme).unwrap();
                assert_eq!(read, linear(scheme), "{scheme}");
            }
        }
    }
}

#[test]
fn scales_in_bf16_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let scheme = scheme(Channel, Dynamic, Symmetric);
    let mut tensors = tensors(scheme);
    tensors.insert("p.weight_scale".to_owned(), (Dtype::BF16, vec![2, 1], bf16_bytes(&[0.5, 0.25])));
    assert_eq!(read_linear(&checkpoint(dir.path(), &tensors), "p", scheme).unwrap(), linear(scheme));
}

#[test]
fn a_linear_that_contradicts_its_scheme_is_refused() {
    let full = scheme(Channel, Static, Asymmetric);
    let scales = |values: &[f32]| Some((Dtype::F32, vec![2, 1], f32_bytes(values)));
    let scale = |value: f32| Some((Dtype::F32, vec![1], f32_bytes(&[value])));
    let cases = [
        ("weight", None, "no tensor `p.weight`"),
        ("weight", Some((Dtype::U8, vec![2, 3], vec![0; 6])), "dtype U8 where I8"),
        ("weight", Some((Dtype::I8, vec![6], vec![0; 6])), "shape [6]"),
        ("weight", Some((Dtype::I8, vec![0, 3], vec![])), "without a zero"),
        ("weight_scale", None, "no tensor `p.weight_scale`"),
        ("weight_scale", Some((Dtype::F64, vec![2, 1], vec![1; 16])), "dtype F64"),
        ("weight_scale", Some((Dtype::F32, vec![2], f32_bytes(&[1.0; 2]))), "where [2, 1] is needed"),
        ("weight_scale", scale(1.0), "where [2, 1] is needed"),
        ("weight_scale", scales(&[1.0, 0.0]), "scale 1 is 0"),
        ("weight_scale", scales(&[-1.0, 1.0]), "scale 0 is -1"),
        ("weight_scale", scales(&[1.0, f32::NAN]), "scale 1 is NaN"),
        ("weight_scale", scales(&[f32::INFINITY, 1.0]), "scale 0 is inf"),
        ("weight_scale", scales(&[1.0, 1e-40]), "normal"),
        ("input_scale", None, "no tensor `p.input_scale`"),
        ("input_scale", scale(0.0), "bad `input_scale`"),
        ("input_zero_point", None, "no tensor `p.input_zero_point`"),
        ("input_zero_point", Some((Dtype::U8, vec![1], vec![0])), "dtype U8"),
        ("input_zero_point", Some((Dtype::I8, vec![1, 1], vec![0])), "shape [1, 1]"),
        ("weight_zero_point", Some((Dtype::I8, vec![2, 1], vec![0; 2])), "`weight_zero_point`"),
        ("weight_g_idx", Some((Dtype::I32, vec![3], vec![0; 12])), "`weight_g_idx`"),
    ];
    for (suffix, tensor, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let mut tensors = tensors(full);
        match tensor {
            Some(tensor) => tensors.insert(format!("p.{suffix}"), tensor),
            None => tensors.remove(&format!("p.{suffix}")),
        };
        let message = read_linear(&checkpoint(dir.path(), &tensors), "p", full).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains('p'), "{suffix}: {message}");
    }
    // Parameters that a dynamic scheme would silently leave unused.
    let dir = tempfile::tempdir().unwrap();
    let dynamic = scheme(Channel, Dynamic, Symmetric);
    let message = read_linear(&checkpoint(dir.path(), &tensors(full)), "p", dynamic).unwrap_err().to_string();
    assert!(message.contains("`input_scale`"), "{message}");
}

#[test]
fn a_linear_that_contradicts_itself_is_not_written() {
    let full = scheme(Channel, Static, Symmetric);
    let broken = |change: fn(&mut QuantizedLinear)| {
        let mut linear = linear(full);
        change(&mut linear);
        linear
    };
    let cases = [
        (broken(|l| l.weight.truncate(5)), full, "5 values where [2, 3]"),
        (broken(|l| l.weight_scales.truncate(1)), full, "1 weight scales where 2"),
        (broken(|l| l.weight_scales[1] = f32::NAN), full, "scale 1 is NaN"),
        (broken(|l| l.input = None), full, "calibrate"),
        (broken(|l| l.input = Some(QuantParams { scale: 0.0, zero_point: 0 })), full, "scale 0 is 0"),
        (broken(|l| l.input = Some(QuantParams { scale: 1.0, zero_point: 3 })), full, "zero point is 3"),
        (linear(full), scheme(Tensor, Static, Symmetric), "differ"),
        (linear(full), scheme(Channel, Dynamic, Symmetric), "give none"),
    ];
    for (linear, scheme, expected) in cases {
        let message = linear_tensor_bytes("p", &linear, scheme).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("`p`"), "{message}");
    }
}

/// Metadata of real models, one JSON file each: `config` is their config.json, `tensors` the dtype and shape of every
/// tensor by name.
#[test]
#[ignore = "needs ZEROPOINT_FORMATS"]
fn files_of_llm_compressor_are_read_or_refused_rightly() {
    let dir = std::env::var("ZEROPOINT_FORMATS").expect("ZEROPOINT_FORMATS names a directory of JSON files");
    let (mut read, mut refused) = (0, 0);
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let config = QuantizationConfig::from_json(&file["config"]["quantization_config"]);
        if path.to_string_lossy().contains("w8a8") {
            let tensors = real_tensors(&file["tensors"]);
            check_real_tensors(&config.unwrap(), &tensors);
            // The same header to the byte, or its length would differ.
            let specs: Vec<TensorSpec> = tensors.into_values().collect();
            assert_eq!(file["files"]["model.safetensors"], planned_bytes(&specs));
            read += 1;
        } else {
            let message = config.expect_err("only W8A8 can be run").to_string();
            assert!(message.contains("pack-quantized"), "{message}");
            refused += 1;
        }
    }
    assert!(read > 0 && refused > 0, "{read} read, {refused} refused");
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
    for spec in tensors.values().filter(|spec| spec.dtype == Dtype::I8 && spec.name.ends_with(".weight")) {
        let path = spec.name.strip_suffix(".weight").unwrap();
        let scheme = config.scheme_of(path).expect("an INT8 Linear has a scheme");
        let expected = linear_tensor_specs(path, spec.shape[0], spec.shape[1], scheme);
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
