//! That the schema, the checks, the written and the read form of the language do not drift apart.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// A config in which every key of the language is written, but for those of [`OBSERVERS`].
const FULL: &str = r#"
version = 1
model = { source = "org/m", revision = "main", task = "embedding" }
[calibration]
samples = 10
sequences = "chunked"
max_length = 64
batch_size = 2
transform_tokens = 400
seed = 7
[[calibration.data]]
path = "a.csv"
format = "csv"
header = true
delimiter = ";"
text = "t"
text_a = 0
text_b = 1
score = 2
label = "l"
image = "i"
prompt = "query"
prompt_text_b = "passage: "
[[calibration.data]]
path = "b.jsonl"
messages = "chat"
prompt_text = ""
prompt_b = "document"
[quantization]
scheme = "w8a8-static"
weights = { bits = 8, granularity = "tensor", symmetric = true, observer = "min-max" }
activations = { bits = 8, mode = "static", granularity = "tensor", symmetric = true, observer = "percentile", percentile = 99.5 }
ignore = ["pooler.dense"]
embeddings = "bf16"
lm_head = "int8"
algorithm = { kind = "gptq", damping = 0.05 }
bias_correction = true
[[quantization.transforms]]
kind = "smoothquant"
search = false
strength = 0.75
layers = ['re:.*']
[[quantization.transforms]]
kind = "rotation"
residual = true
heads = false
[[quantization.transforms]]
kind = "online-rotation"
smooth = true
strength = 0.25
layers = []
[[quantization.overrides]]
layers = ['re:.*output']
scheme = "w8a8-static"
weights = { bits = 8, granularity = "tensor", symmetric = true, observer = "min-max" }
activations = { bits = 8, mode = "static", granularity = "tensor", symmetric = true, observer = "percentile", percentile = 99.5 }
[[quantization.overrides]]
layers = ['re:.*gate']
scheme = "w4a16"
weights = { bits = 4, granularity = "group", group_size = 32, symmetric = true, observer = "mse" }
[evaluation]
batch_size = 3
bootstrap_resamples = 200
seed = 9
[[evaluation.tasks]]
kind = "sts"
name = "sts-b"
limit = 100
data = { path = "b", format = "csv", header = true, delimiter = ",", text = "t", text_a = 0, text_b = 1, score = 2, label = "l", image = "i", prompt = "q", prompt_b = "d" }
[[evaluation.tasks]]
kind = "fidelity"
data = { path = "b.jsonl", messages = "m", prompt_text = "", prompt_text_b = "passage: " }
[[evaluation.tasks]]
kind = "zero-shot"
data = "photos/"
labels = ["cat", "dog"]
templates = ["a photo of a {label}."]
[[evaluation.tasks]]
kind = "perplexity"
data = "text.txt"
window = 128
stride = 64
windows = 9
counting = "every-token"
[[evaluation.gate]]
task = "sts-b"
metric = "spearman"
max_drop = 0.005
[report]
latency = true
sensitivity = true
[output]
dir = "out"
formats = ["compressed-tensors"]
max_shard_size = "2GiB"
self_check = true
[sweep]
grid = [["quantization.scheme=w8a16", "quantization.scheme=w4a16"]]
[[sweep.runs]]
name = "static"
set = ["quantization.scheme=w8a8-static"]
"#;

/// Settings of observers, which exclude each other.
const OBSERVERS: [&str; 3] = [
    "observer = 'moving-average', averaging_constant = 0.1, averaging_batch = 16",
    "observer = 'outlier-aware', outlier_ratio = 3.0, clipped_tokens = 0.5",
    "observer = 'percentile-per-channel', percentile = 99.9",
];

/// A config with the settings of an observer of activations, and of one of weights.
fn with_observer(settings: &str) -> String {
    let tables = format!(
        "weights = {{ observer = 'percentile', percentile = 99.8 }}\nactivations = {{ mode = 'static', {settings} }}"
    );
    format!("{MODEL}[quantization]\n{tables}\n[[quantization.overrides]]\nlayers = ['a']\n{tables}")
}

#[test]
fn the_schema_and_the_language_have_the_same_keys() {
    fn written(value: &toml::Value, at: &str, keys: &mut BTreeSet<String>) {
        match value {
            toml::Value::Table(table) => {
                for (key, value) in table {
                    keys.insert(format!("{at}.{key}"));
                    written(value, &format!("{at}.{key}"), keys);
                }
            }
            toml::Value::Array(values) => values.iter().for_each(|value| written(value, at, keys)),
            _ => {}
        }
    }
    fn described(
        schema: &serde_json::Value,
        root: &serde_json::Value,
        at: &str,
        keys: &mut BTreeSet<String>,
    ) {
        if let Some(name) = schema["$ref"].as_str() {
            let definition = root.pointer(&name[1..]).expect("a reference within the schema");
            described(definition, root, at, keys);
        }
        for choice in schema["anyOf"].as_array().into_iter().flatten() {
            described(choice, root, at, keys);
        }
        if schema["items"].is_object() {
            described(&schema["items"], root, at, keys);
        }
        if let Some(properties) = schema["properties"].as_object() {
            assert_eq!(schema["additionalProperties"], false, "{at}");
            for (key, inner) in properties {
                keys.insert(format!("{at}.{key}"));
                described(inner, root, &format!("{at}.{key}"), keys);
            }
        }
    }
    let (mut in_file, mut in_resolved, mut in_schema) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let groups = format!("{MODEL}[quantization]\nscheme = 'w4a16'\nweights.group_size = 32");
    for text in OBSERVERS.map(with_observer).into_iter().chain([FULL.to_owned(), groups]) {
        let config = parse(&text).unwrap();
        assert_eq!(parse(&config.to_toml()).unwrap(), config);
        written(&toml::from_str(&text).unwrap(), "", &mut in_file);
        written(&toml::from_str(&config.to_toml()).unwrap(), "", &mut in_resolved);
    }
    let schema = Config::json_schema();
    described(&schema, &schema, "", &mut in_schema);
    assert_eq!(in_file, in_schema);
    assert_eq!(in_file, in_resolved);
    assert!(!schema.to_string().contains("null"), "TOML has no null");
}

#[test]
fn the_schema_describes_every_key_and_every_value_that_is_a_name() {
    fn walk(schema: &serde_json::Value, at: &str, keys: &mut usize, names: &mut usize) {
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            let at = format!("{at}.{key}");
            let text = property["description"].as_str().unwrap_or_default();
            assert!(text.len() > 1, "{at} has no description");
            *keys += 1;
            walk(property, &at, keys, names);
        }
        for part in ["oneOf", "anyOf"] {
            for choice in schema[part].as_array().into_iter().flatten() {
                if let Some(name) = choice["const"].as_str() {
                    assert!(choice["description"].is_string(), "{at}: `{name}` has no description");
                    *names += 1;
                }
                walk(choice, at, keys, names);
            }
        }
        assert!(schema["enum"].is_null(), "{at}: a list of names without their descriptions");
        if schema["items"].is_object() {
            walk(&schema["items"], at, keys, names);
        }
    }
    let schema = Config::json_schema();
    let (mut keys, mut names) = (0, 0);
    walk(&schema, "", &mut keys, &mut names);
    for (name, definition) in schema["$defs"].as_object().unwrap() {
        assert!(definition["description"].is_string(), "{name} has no description");
        walk(definition, name, &mut keys, &mut names);
    }
    assert!(keys >= 40 && names >= 20, "{keys} keys and {names} names");
    for preset in ["w8a8-dynamic", "w8a8-static"] {
        assert!(schema["$defs"]["Preset"].to_string().contains(preset), "{preset}");
    }
}

#[test]
fn the_schema_and_the_checks_have_the_same_limits() {
    let schema = Config::json_schema();
    let mut checked = 0;
    for (section, definition) in [("calibration", "Calibration"), ("evaluation", "Evaluation")] {
        for (key, property) in schema["$defs"][definition]["properties"].as_object().unwrap() {
            let (Some(low), Some(high)) = (property["minimum"].as_i64(), property["maximum"].as_i64()) else {
                continue;
            };
            // Without samples there is nothing to check with, nor for a task without data.
            let accepts = |value: i128| {
                with_sets(&[
                    "output.self_check=false",
                    "evaluation.tasks=[]",
                    &format!("{section}.{key}={value}"),
                ])
                .is_ok()
            };
            let (low, high) = (i128::from(low), i128::from(high));
            assert!(accepts(low) && accepts(high), "{section}.{key}");
            assert!(!accepts(low - 1) && !accepts(high + 1), "{section}.{key}");
            checked += 1;
        }
    }
    assert_eq!(checked, 8);
}

fn settings() -> impl Strategy<Value = Vec<String>> {
    let scheme = prop_oneof![
        Just(vec!["quantization.activations.symmetric=false".to_owned()]),
        (50.0..=100.0).prop_map(|percentile| vec![
            "quantization.scheme=w8a8-static".to_owned(),
            "quantization.activations.observer=percentile".to_owned(),
            format!("quantization.activations.percentile={percentile:?}"),
        ]),
        prop::sample::select(OBSERVERS.to_vec()).prop_map(|settings| vec![
            format!("quantization.activations={{ mode = 'static', {settings} }}"),
            "quantization.weights.observer=percentile".to_owned(),
        ]),
        prop::sample::select(ActivationObserver::ALL.to_vec()).prop_map(|observer| {
            vec![format!(
                "quantization.activations={{ mode = 'static', observer = '{}' }}",
                observer.as_str()
            )]
        }),
    ];
    let others = (1_usize..=1_000_000, 0..=i64::MAX, 0.0..=1.0, "[a-z\\\\.\"' é]{0,8}x").prop_map(
        |(samples, seed, max_drop, text)| {
            let quoted = toml::Value::String(text.clone()).to_string();
            vec![
                format!("calibration.samples={samples}"),
                format!("calibration.seed={seed}"),
                format!("calibration.data=[{{ path = {quoted}, format = 'jsonl', label = {quoted} }}, 'b.tsv']"),
                "calibration.max_length=128".to_owned(),
                format!("quantization.ignore=[{quoted}]"),
                format!("quantization.overrides=[{{ layers = [{quoted}], scheme = 'none' }}]"),
                "quantization.embeddings=bf16".to_owned(),
                "quantization.lm_head=int8".to_owned(),
                "report.latency=true".to_owned(),
                format!("evaluation.gate=[{{ task = 'fidelity', metric = 'cosine_min', max_drop = {max_drop:?} }}]"),
                format!("output.dir={quoted}"),
                format!("model.source=models/{text}"),
            ]
        },
    );
    (scheme, others.prop_flat_map(|others| proptest::sample::subsequence(others.clone(), 0..=others.len())))
        .prop_map(|(scheme, others)| [scheme, others].concat())
}

proptest! {
    #[test]
    fn what_is_resolved_reads_back_the_same(sets in settings()) {
        let config = Config::parse(MODEL, "c.toml", &sets).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let text = config.to_toml();
        let again = parse(&text).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(&again, &config);
        prop_assert_eq!(again.to_toml(), text);
    }

    #[test]
    fn a_damaged_config_is_an_error_that_can_be_shown(at in 0..FULL.len(), length in 0_usize..8, put in "(?s).{0,4}") {
        prop_assume!(FULL.is_char_boundary(at));
        let end = (at + length).min(FULL.len());
        let text = format!("{}{put}{}", &FULL[..at], &FULL[end..]);
        match parse(&text) {
            Ok(config) => prop_assert_eq!(config.validate(), Ok(())),
            Err(error) => {
                let shown = error.to_string();
                prop_assert!(shown.contains(error.message()));
                prop_assert!(!shown.chars().any(char::is_control), "{shown:?}");
                prop_assert!(error.line().is_none_or(|line| line <= text.lines().count() + 1));
                prop_assert!(error.hint().is_some(), "{shown:?}: a way out");
                let marks = error.excerpt().map(Excerpt::marks).unwrap_or_default();
                prop_assert!(marks.iter().all(|mark| text.get(mark.span.clone()).is_some()), "{marks:?}");
            }
        }
    }
}
