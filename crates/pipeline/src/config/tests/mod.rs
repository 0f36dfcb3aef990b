//! What is accepted, and what it means.

mod contradictions;
mod drift;
mod mistakes;

use super::*;

const MODEL: &str = "model.source = 'm'\n";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, "c.toml", &[])
}

fn with_sets(sets: &[&str]) -> Result<Config, ConfigError> {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    Config::parse(MODEL, "c.toml", &sets)
}

fn assert_hint(error: &ConfigError, start: &str) {
    let hint = error.hint().unwrap_or_default();
    assert!(!start.is_empty() && hint.starts_with(start), "{error}: hint {hint:?}, not {start:?}");
}

#[test]
fn a_model_alone_resolves_to_every_default() {
    let config = parse("[model]\nsource = 'models/minilm/'").unwrap();
    let resolved = r#"version = 1

[model]
source = "models/minilm/"
task = "auto"

[calibration]
data = []
samples = 256
batch_size = 16
transform_tokens = 8192
seed = 42

[quantization]
scheme = "w8a8-dynamic"
embeddings = "keep"
lm_head = "keep"
transforms = []
bias_correction = false
overrides = []

[quantization.weights]
bits = 8
granularity = "channel"
symmetric = true
observer = "mse"

[quantization.activations]
bits = 8
mode = "dynamic"
granularity = "token"
symmetric = true

[quantization.algorithm]
kind = "rtn"

[evaluation]
batch_size = 16
bootstrap_resamples = 1000
seed = 42
gate = []

[[evaluation.tasks]]
kind = "fidelity"
name = "fidelity"

[report]
latency = false
sensitivity = false

[output]
dir = "runs/minilm-w8a8-dynamic"
formats = ["compressed-tensors"]
max_shard_size = "5GB"
self_check = true
"#;
    assert_eq!(config.to_toml(), resolved);
    assert_eq!(Config::new("models/minilm/").to_toml(), resolved);
    assert_eq!(parse(resolved).unwrap(), config);
}

#[test]
fn keys_refine_the_preset() {
    let scheme = |keys: &str| parse(&format!("{MODEL}[quantization]\n{keys}")).unwrap().quantization;
    assert_eq!(scheme("").layer_scheme(), Preset::W8a8Dynamic.scheme());
    assert_eq!(scheme("scheme = 'w8a8-static'").layer_scheme(), Preset::W8a8Static.scheme());

    let by_mode = scheme("activations = { mode = 'static' }");
    assert_eq!((by_mode.scheme, by_mode.layer_scheme()), (Preset::W8a8Static, Preset::W8a8Static.scheme()));

    let percentile =
        scheme("scheme = 'w8a8-static'\nactivations = { observer = 'percentile', symmetric = true }");
    let static_ = Activations::of(ActivationMode::Static);
    assert_eq!(
        percentile.activations,
        Some(Activations {
            observer: Some(ActivationObserver::Percentile),
            percentile: Some(99.99),
            symmetric: true,
            ..static_
        })
    );
    let by_observer = |observer: &str| {
        scheme(&format!("scheme = 'w8a8-static'\nactivations.observer = '{observer}'")).activations
    };
    let with = |observer| Activations { observer: Some(observer), ..static_ };
    let expected = [
        Activations { percentile: Some(99.99), ..with(ActivationObserver::PercentilePerChannel) },
        Activations {
            averaging_constant: Some(0.01),
            averaging_batch: Some(1),
            ..with(ActivationObserver::MovingAverage)
        },
        Activations {
            outlier_ratio: Some(2.0),
            clipped_tokens: Some(1.0),
            ..with(ActivationObserver::OutlierAware)
        },
        with(ActivationObserver::Entropy),
        with(ActivationObserver::Mse),
        with(ActivationObserver::MinMax),
    ];
    for expected in expected {
        assert_eq!(by_observer(expected.observer.unwrap().as_str()), Some(expected));
    }
    let weights = scheme("weights.observer = 'percentile'").weights;
    assert_eq!((weights.observer, weights.percentile), (WeightObserver::Percentile, Some(99.9)));
    assert_eq!(scheme("ignore = []").ignore, Some(vec![]));
    assert_eq!(scheme("").ignore, None);
}

#[test]
fn overrides_start_from_their_preset_or_from_the_scheme_of_all() {
    let text = "model.source = 'm'
        [quantization]
        scheme = 'w8a8-static'
        weights = { observer = 'min-max' }
        activations = { observer = 'percentile', percentile = 99.9 }
        overrides = [
            { layers = ['a'], scheme = 'none' },
            { layers = ['b'], scheme = 'w8a8-static' },
            { layers = ['c'], weights = { granularity = 'tensor' } },
            { layers = ['d'], activations = { observer = 'mse' } },
            { layers = ['e'], activations = { mode = 'dynamic' } },
            { layers = ['f'], activations = { observer = 'percentile-per-channel' } },
        ]";
    let quantization = parse(text).unwrap().quantization;
    let all = quantization.layer_scheme();
    let schemes: Vec<_> = quantization.overrides.iter().map(Override::layer_scheme).collect();
    let usual = all.activations.unwrap();
    let mse = Activations { observer: Some(ActivationObserver::Mse), percentile: None, ..usual };
    // The percentile is inherited.
    let per_channel = Activations { observer: Some(ActivationObserver::PercentilePerChannel), ..usual };
    let by_tensor = Weights { granularity: WeightGranularity::Tensor, ..all.weights };
    let expected = [
        None,
        Some(Preset::W8a8Static.scheme()),
        Some(LayerScheme { weights: by_tensor, ..all }),
        Some(LayerScheme { activations: Some(mse), ..all }),
        Some(LayerScheme { activations: Some(Activations::of(ActivationMode::Dynamic)), ..all }),
        Some(LayerScheme { activations: Some(per_channel), ..all }),
    ];
    assert_eq!(schemes, expected);
    assert_eq!(quantization.overrides[4].scheme, OverrideScheme::W8a8Dynamic);
}

#[test]
fn presets_bring_weights_algorithms_transforms_and_formats_that_keys_replace() {
    let config = |keys: &str| parse(&format!("{MODEL}[quantization]\n{keys}")).unwrap();
    let scheme = |keys: &str| config(keys).quantization;
    let four = scheme("scheme = 'w4a16'");
    assert_eq!(
        (four.weights.bits, four.weights.granularity, four.weights.group_size),
        (4, WeightGranularity::Group, Some(64))
    );
    assert_eq!(
        (four.activations, four.algorithm.kind, four.transforms),
        (None, AlgorithmKind::Gptq, Some(vec![]))
    );
    let size = scheme("scheme = 'w8a16'\nweights = { group_size = 32 }").weights;
    assert_eq!((size.bits, size.granularity, size.group_size), (8, WeightGranularity::Group, Some(32)));
    let channel =
        scheme("scheme = 'w4a16'\nweights = { granularity = 'channel' }\nalgorithm = { kind = 'rtn' }");
    assert_eq!((channel.weights.group_size, channel.algorithm.kind), (None, AlgorithmKind::Rtn));

    assert_eq!(scheme("scheme = 'best-int8'").transforms, None, "the model has a say");
    assert_eq!(scheme("scheme = 'best-int8'\ntransforms = []").transforms, Some(vec![]));
    assert_eq!(config("scheme = 'best-int8'").output_format(), OutputFormat::CompressedTensors);
    let runtime = config("scheme = 'best-int8-runtime'");
    assert_eq!(runtime.output_format(), OutputFormat::Zeropoint);
    assert_eq!(parse(&runtime.to_toml()).unwrap(), runtime);

    let mixed = scheme(
        "scheme = 'w8a16'\noverrides = [{ layers = ['a'], weights = { bits = 4, group_size = 128 } }, { layers = ['b'], scheme = 'w8a8-dynamic' }]",
    );
    assert_eq!(mixed.overrides[0].scheme, OverrideScheme::W4a16);
    let [first, second] = [0, 1].map(|index| mixed.overrides[index].layer_scheme().unwrap());
    assert_eq!((first.weights.bits, first.weights.group_size, first.activations), (4, Some(128), None));
    assert_eq!(second, Preset::W8a8Dynamic.scheme());
}

#[test]
fn data_sources_fill_in_what_follows_from_the_path() {
    let source = |toml: &str| {
        parse(&format!("{MODEL}calibration.data = [{toml}]")).unwrap().calibration.data.pop().unwrap()
    };
    let name = |name: &str| Some(Column::Name(name.to_owned()));
    let jsonl = source("{ path = 'a.data', format = 'jsonl', text = 'sentence' }");
    assert_eq!((jsonl.text, jsonl.text_a, jsonl.header), (name("sentence"), name("text_a"), None));
    let txt = source("'a.TXT'");
    assert_eq!((txt.format, txt.text, txt.delimiter), (DataFormat::Txt, None, None));
    let csv = source("'a.csv'");
    assert_eq!((csv.header, csv.delimiter, csv.label), (Some(true), Some(','), name("label")));
    assert_eq!(source("'a.tsv'").delimiter, Some('\t'));
    let bare = source("{ path = 'a.csv', header = false, text_a = 0, text_b = 1 }");
    assert_eq!((bare.text_a, bare.text_b, bare.text), (Some(Column::Index(0)), Some(Column::Index(1)), None));
}

#[test]
fn set_changes_what_the_file_says() {
    let config = with_sets(&[
        "model.source=models/all MiniLM#1",
        "quantization.weights.observer=min-max",
        "calibration.samples = 64",
        "calibration.data.0=a.txt",
        "calibration.data.1={ path = 'b.csv', text = 'body' }",
        "evaluation.tasks.0.kind=fidelity",
        "evaluation.tasks.0.limit=5",
        "evaluation.tasks.0.limit=6",
        "model.revision='2024'",
        "report.latency=true",
        "output.dir=runs/a=b",
    ])
    .unwrap();
    assert_eq!(config.model.source, "models/all MiniLM#1");
    assert_eq!(config.quantization.weights.observer, WeightObserver::MinMax);
    assert_eq!(config.calibration.samples, 64);
    assert_eq!(config.calibration.data[1].text, Some(Column::Name("body".to_owned())));
    assert_eq!(config.evaluation.tasks[0].limit, Some(6));
    assert_eq!(config.model.revision.as_deref(), Some("2024"));
    assert!(config.report.latency);
    assert_eq!(config.output_dir(), "runs/a=b");
}

#[test]
fn validate_is_for_configs_made_by_a_program() {
    let mut config = Config::new("m");
    assert_eq!(config.validate(), Ok(()));
    config.calibration.seed = u64::MAX;
    let error = config.validate().unwrap_err();
    assert_eq!((error.key(), error.line()), (Some("calibration.seed"), None));
    config.calibration.seed = 1;
    config.version = 3;
    assert_eq!(config.validate().unwrap_err().key(), Some("version"));
}

#[test]
fn the_names_of_runs_are_names() {
    let cases = [
        ("embedded", "embedded"),
        ("org/model", "model"),
        ("/data/m/", "m"),
        (".", "model"),
        ("../..", "model"),
    ];
    for (source, name) in cases {
        assert_eq!(Model::new(source).name(), name, "{source}");
    }
}

#[test]
fn the_configs_of_the_repository_are_valid() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let mut found = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap().to_owned();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let config = Config::load(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(config.output_dir(), format!("runs/{name}"));
        // What completes its keys in an editor is there.
        let text = std::fs::read_to_string(&path).unwrap();
        let schema =
            text.lines().next().and_then(|line| line.strip_prefix("#:schema ")).expect("a schema line");
        let schema: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.join(schema)).unwrap()).unwrap();
        assert_eq!(schema["title"], Config::json_schema()["title"], "{name}");
        found += 1;
    }
    assert!(found >= 3);
}

#[test]
fn a_config_knows_where_its_keys_are_written() {
    let text = "[model]\nsource = 'm'\n[calibration]\ndata = ['a.txt', { path = 'b.csv', text = 'body' }]\n\
                [[evaluation.tasks]]\nkind = 'fidelity'\n";
    let sets = ["quantization.ignore = ['a', \"b\"]".to_owned(), "model.source=n".to_owned()];
    let config = Config::parse(text, "c.toml", &sets).unwrap().with_output_dir("elsewhere", "--out").unwrap();
    let at = |key: &str| {
        let excerpt = config.excerpt(key, "here")?;
        Some((excerpt.to_string(), excerpt.text()[excerpt.span()].to_owned()))
    };
    let cases = [
        ("calibration.data.0", Some(("c.toml:4:9", "'a.txt'"))),
        ("calibration.data.1.path", Some(("c.toml:4:27", "'b.csv'"))),
        ("calibration.data.1.text", Some(("c.toml:4:43", "'body'"))),
        ("evaluation.tasks.0.kind", Some(("c.toml:6:8", "'fidelity'"))),
        ("quantization.ignore.1", Some(("--set quantization.ignore = ['a', \"b\"]", "\"b\""))),
        ("model.source", Some(("--set model.source=n", "n"))),
        ("output.dir", Some(("--out elsewhere", "elsewhere"))),
        // Defaults are written nowhere, nor are the tables around them a place of theirs.
        ("calibration.seed", None),
        ("calibration.data.0.path", None),
        ("calibration.data.2", None),
        ("nothing.at.all", None),
    ];
    for (key, expected) in cases {
        let expected = expected.map(|(place, text)| (place.to_owned(), text.to_owned()));
        assert_eq!(at(key), expected, "{key}");
    }
    assert_eq!(Config::new("m").excerpt("model.source", "here"), None);
    assert_eq!(config.output_dir(), "elsewhere");
}
