//! What each mistake is answered with: one sentence that says what and where, a way out, an exit code, and nothing left
//! behind. The snapshots are documents to be read: one for each kind of mistake.
#![cfg(unix)] // the snapshots hold what the system says about files

mod scene;

use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::process::Command;

use scene::safetensors::Safetensors;
use scene::{Scene, fixture, stderr, workspace};
use serde_json::{Value, json};

/// A small run of the embedded model.
const CONFIG: &str = "version = 1\n\n[model]\nsource = \"embedded\"\n\n[calibration]\nsamples = 4\n";
/// A query weight of the fixture `bert-mean`.
const QUERY: &str = "encoder.layer.0.attention.self.query.weight";

/// Mistakes made in one scene, and the answers to them as a document.
struct Answers {
    scene: Scene,
    document: String,
}

impl Answers {
    /// A scene with a config that works.
    fn new() -> Self {
        let scene = Scene::new();
        scene.write("config.toml", CONFIG);
        Self { scene, document: String::new() }
    }

    /// The command line must fail with `code`, say so on standard error alone, and leave the directory as it was.
    fn refused(&mut self, code: i32, mistake: &str, arguments: &[&str]) {
        self.refused_in(code, mistake, arguments, |_| ());
    }

    fn refused_in(
        &mut self,
        code: i32,
        mistake: &str,
        arguments: &[&str],
        change: impl FnOnce(&mut Command),
    ) {
        let before = self.scene.tree("");
        let mut command = self.scene.zeropoint(arguments);
        change(&mut command);
        let output = command.output().expect("the program starts");
        let answer = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{mistake}: {answer}");
        assert!(output.stdout.is_empty(), "{mistake}: standard output is for results");
        assert_eq!(answer.matches("error: ").count(), 1, "{mistake}: one error, said once: {answer}");
        scene::assert_same_tree(&self.scene.tree(""), &before);
        assert_eq!(self.scene.temporary_files(), [] as [&str; 0], "{mistake}");
        assert!(!self.scene.default_cache().exists(), "{mistake}");
        let line = arguments.join(" ").replace(workspace().to_string_lossy().as_ref(), "[repository]");
        let _ = write!(self.document, "# {mistake}\n$ zeropoint {line}\n{answer}exit code {code}\n\n");
    }

    /// `run` of a config with this text.
    fn config(&mut self, mistake: &str, text: &str) {
        self.scene.write("mistake.toml", text);
        self.refused(2, mistake, &["run", "mistake.toml", "--no-cache", "--out", "out"]);
    }

    /// `run` of the config that works, with one key changed.
    fn set(&mut self, code: i32, mistake: &str, change: &str) {
        self.refused(code, mistake, &["run", "config.toml", "--no-cache", "--out", "out", "--set", change]);
    }

    /// `run` of a model in the scene.
    fn model(&mut self, code: i32, mistake: &str, directory: &str) {
        self.set(code, mistake, &format!("model.source={directory}"));
    }

    #[track_caller]
    fn compare(self, name: &str) {
        let scene = self.scene.root().to_string_lossy().into_owned();
        let repository = workspace().to_string_lossy().into_owned();
        let mut settings = insta::Settings::clone_current();
        settings.add_filter(&scene.replace('.', "\\."), "[scene]");
        settings.add_filter(&repository.replace('.', "\\."), "[repository]");
        settings.add_filter("/[^ ]*/zeropoint-embedded-[A-Za-z0-9]+", "[embedded]");
        settings.add_filter("\\b[0-9a-f]{12}\\b", "[fingerprint]");
        settings.bind(|| insta::assert_snapshot!(name, self.document.trim_end()));
    }
}

#[test]
fn command_lines() {
    let mut answers = Answers::new();
    for (mistake, arguments) in [
        ("no config", &["run"][..]),
        ("an unknown command", &["quantise", "config.toml"]),
        ("an unknown option", &["run", "config.toml", "--no-cach"]),
        ("no threads", &["run", "config.toml", "--threads", "0"]),
        ("quiet and verbose", &["run", "config.toml", "--quiet", "--verbose"]),
        ("a cache and none", &["run", "config.toml", "--cache", "c", "--no-cache"]),
        ("no statistics", &["quantize", "config.toml"]),
        ("an empty batch", &["encode", "model", "--data", "texts.txt", "--batch-size", "0"]),
    ] {
        answers.refused(2, mistake, arguments);
    }
    answers.compare("command_lines");
}

#[test]
fn config_files() {
    let mut answers = Answers::new();
    answers.scene.write("latin1.toml", b"version = 1\n# caf\xe9\n");
    answers.scene.write("directory/config.toml", "");
    for (mistake, file) in [
        ("a config that does not exist", "absent.toml"),
        ("a directory", "directory"),
        ("a config that is not UTF-8", "latin1.toml"),
    ] {
        answers.refused(2, mistake, &["run", file, "--no-cache", "--out", "out"]);
    }
    let model = "version = 1\nmodel.source = 'embedded'\n";
    for (mistake, text) in [
        ("not TOML", "version = 1\nmodel.source = 'embedded\n"),
        ("an unknown version", "version = 3\nmodel.source = 'embedded'\n"),
        ("no model", "version = 1\n"),
        ("a key that is nearly right", &format!("{model}[calibration]\nsamplse = 3\n")),
        ("a table that is nearly right", &format!("{model}[quantisation]\n")),
        ("a key from another tool", &format!("{model}[quantization]\ngroup_size = 128\n")),
        ("a value of another type", &format!("{model}calibration.samples = '64'\n")),
        ("a value that is not offered", &format!("{model}quantization.scheme = 'w4a16'\n")),
        ("a number out of range", &format!("{model}calibration.samples = 0\n")),
        (
            "keys that contradict each other",
            &format!("{model}[quantization]\nscheme = 'w8a8-dynamic'\nactivations.observer = 'mse'\n"),
        ),
        (
            "a scheme and a mode that contradict each other",
            &format!("{model}[quantization]\nscheme = 'w8a8-dynamic'\nactivations.mode = 'static'\n"),
        ),
        (
            "a percentile without its observer",
            &format!("{model}[quantization]\nscheme = 'w8a8-static'\nactivations.percentile = 99\n"),
        ),
        (
            "a gate on a task that does not exist",
            &format!("{model}[[evaluation.gate]]\ntask = 'sts'\nmetric = 'spearman'\nmax_drop = 0.1\n"),
        ),
        (
            "a gate on a metric that the task does not have",
            &format!("{model}[[evaluation.gate]]\ntask = 'fidelity'\nmetric = 'accuracy'\nmax_drop = 0.1\n"),
        ),
        (
            "a gate in percent",
            &format!("{model}[[evaluation.gate]]\ntask = 'fidelity'\nmetric = 'cosine_mean'\nmax_drop = 5\n"),
        ),
        ("a task without data", &format!("{model}[[evaluation.tasks]]\nkind = 'classification'\n")),
        (
            "a pattern that is no regular expression",
            &format!("{model}quantization.ignore = ['re:encoder.(layer']\n"),
        ),
        ("data in an unknown format", &format!("{model}calibration.data = ['texts.parquet']\n")),
    ] {
        answers.config(mistake, text);
    }
    answers.compare("config_files");
}

#[test]
fn keys_and_values() {
    let mut answers = Answers::new();
    let model = "version = 1\nmodel.source = 'embedded'\n";
    for (mistake, text) in [
        ("a key given twice", "calibration.seed = 1\ncalibration.seed = 2\n"),
        ("a table that is not closed", "[calibration\nsamples = 3\n"),
        ("a backslash in double quotes", "quantization.ignore = [\"re:bert\\.pooler\"]\n"),
        ("a number that is too large", "calibration.seed = 99999999999999999999\n"),
        ("a negative number", "calibration.samples = -3\n"),
        ("a date", "model.revision = 2024-01-31\n"),
        ("a string in place of a table", "calibration = 'texts.txt'\n"),
        ("a string in place of a list", "calibration.data = 'texts.txt'\n"),
        ("a number among files", "calibration.data = [\n    'texts.txt',\n    3, # the third\n]\n"),
        ("a flag in quotes", "quantization.activations.symmetric = 'yes'\n"),
        ("characters of several bytes before it", "model.revision = '\u{2713} caf\u{e9}'; # \u{e4}\n"),
        ("a control character", "output.dir = \"runs/\\u001b[31m\"\n"),
        ("an empty path", "output.dir = ''\n"),
        ("a revision of the embedded model", "model.revision = 'main'\n"),
        ("a source with a prefix", "model = { source = 'hub:org/model' }\n"),
        ("a text of two tokens", "calibration.max_length = 2\n"),
        ("an empty batch", "evaluation.batch_size = 0\n"),
        ("no format", "output.formats = []\n"),
        ("an unknown format", "output.formats = ['onnx']\n"),
    ] {
        let head = if text.starts_with("model = ") { "version = 1\n" } else { model };
        answers.config(mistake, &format!("{head}{text}"));
    }
    answers.compare("keys_and_values");
}

#[test]
fn schemes() {
    let mut answers = Answers::new();
    for (mistake, text) in [
        ("four bits", "[quantization]\nweights.bits = 4\n"),
        ("asymmetric weights", "[quantization]\nweights = { symmetric = false }\n"),
        ("groups", "[quantization]\nweights = { granularity = 'group' }\n"),
        (
            "static activations per token",
            "[quantization]\nactivations = { mode = 'static', granularity = 'token' }\n",
        ),
        (
            "a percentile as a fraction",
            "[quantization]\nscheme = 'w8a8-static'\n\n[quantization.activations]\nobserver = 'percentile'\n\
             percentile = 0.999\n",
        ),
        ("an algorithm that is not here", "[quantization]\nalgorithm = { kind = 'gptq', damping = 0.01 }\n"),
        ("a pattern without an expression", "[quantization]\nignore = ['classifier', 're:']\n"),
        ("an override of nothing", "[[quantization.overrides]]\nlayers = []\nscheme = 'none'\n"),
        ("an override without layers", "[[quantization.overrides]]\nscheme = 'none'\n"),
        (
            "how to quantise what stays float",
            "[[quantization.overrides]]\nlayers = ['classifier']\nscheme = 'none'\nweights = { observer = 'mse' }\n",
        ),
        (
            "an observer of dynamic activations in an override",
            "[quantization]\nscheme = 'w8a8-static'\n\n[[quantization.overrides]]\nlayers = ['re:.*']\n\
             scheme = 'w8a8-dynamic'\nactivations = { observer = 'min-max' }\n",
        ),
    ] {
        answers.config(mistake, &format!("version = 1\nmodel.source = 'embedded'\n\n{text}"));
    }
    answers.compare("schemes");
}

#[test]
fn data_and_tasks() {
    let mut answers = Answers::new();
    for (mistake, text) in [
        ("an unknown key of a file", "calibration.data = [{ path = 'a.csv', heder = false }]\n"),
        ("a file without its path", "calibration.data = [{ format = 'csv' }]\n"),
        ("a header of a jsonl file", "calibration.data = [{ path = 'a.jsonl', header = true }]\n"),
        ("a column of a txt file", "calibration.data = [{ path = 'a.txt', text = 'body' }]\n"),
        ("the number of a field", "calibration.data = [{ path = 'a.jsonl', text = 0 }]\n"),
        (
            "a name without a header",
            "[[calibration.data]]\npath = 'a.csv'\nheader = false\n\ntext = 'body'\n",
        ),
        ("half a column", "calibration.data = [{ path = 'a.csv', text = 1.5 }]\n"),
        ("a delimiter of two characters", "calibration.data = [{ path = 'a.csv', delimiter = '||' }]\n"),
        ("a quote as a delimiter", "calibration.data = [{ path = 'a.csv', delimiter = '\"' }]\n"),
        ("an unknown task", "[[evaluation.tasks]]\nkind = 'retrieval'\n"),
        ("a task without its kind", "[[evaluation.tasks]]\ndata = 'a.jsonl'\n"),
        ("pairs in a txt file", "[[evaluation.tasks]]\nkind = 'sts'\ndata = 'pairs.txt'\n"),
        (
            "pairs without a column for the score",
            "[[evaluation.tasks]]\nkind = 'sts'\ndata = { path = 'a.csv', header = false, text_a = 0, text_b = 1 }\n",
        ),
        (
            "two tasks of one name",
            "[[evaluation.tasks]]\nkind = 'fidelity'\n\n[[evaluation.tasks]]\nkind = 'fidelity'\ndata = 'a.txt'\n",
        ),
        ("a name with a space", "[[evaluation.tasks]]\nkind = 'fidelity'\nname = 'my task'\n"),
        ("no samples", "[[evaluation.tasks]]\nkind = 'fidelity'\nlimit = 0\n"),
        ("a gate without its limit", "[[evaluation.gate]]\ntask = 'fidelity'\nmetric = 'cosine_mean'\n"),
        (
            "two gates on one metric",
            "[[evaluation.gate]]\ntask = 'fidelity'\nmetric = 'cosine_min'\nmax_drop = 0.1\n\n\
             [[evaluation.gate]]\ntask = 'fidelity'\nmetric = 'cosine_min'\nmax_drop = 0.2\n",
        ),
        (
            "a metric of another task",
            "[[evaluation.tasks]]\nkind = 'sts'\ndata = 'pairs.jsonl'\n\n[[evaluation.gate]]\ntask = 'sts'\n\
             metric = 'accuracy'\nmax_drop = 0.1\n",
        ),
        (
            "a gate without any task",
            "evaluation.tasks = []\n[[evaluation.gate]]\ntask = 'sts'\nmetric = 'spearman'\nmax_drop = 0.1\n",
        ),
    ] {
        answers.config(mistake, &format!("version = 1\nmodel.source = 'embedded'\n\n{text}"));
    }
    answers.compare("data_and_tasks");
}

#[test]
fn what_a_config_names() {
    let mut answers = Answers::new();
    let scene = &answers.scene;
    scene.write("texts.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
    scene.write("columns.csv", "sentence,points\nA cold day.,1\n");
    scene.write("labels.jsonl", "{\"text\": \"a\", \"label\": \"poetry\"}\n");
    scene.write("broken.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two\"\n");
    scene.copy_fixture("bert-mean", "encoder");
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "finished", "--set", "evaluation.tasks=[]"]);
    let embedded = "[model]\nsource = 'embedded'\n\n";
    let encoder = "[model]\nsource = 'encoder'\n\n";
    for (code, mistake, text) in [
        (2, "a model that does not exist", "[model]\nsource = './models/absent'\n".to_owned()),
        (1, "a model that is quantised already", "[model]\nsource = 'finished/model'\n".to_owned()),
        (
            2,
            "a task that the model does not fit",
            "[model]\nsource = 'encoder'\ntask = 'classification'\n".to_owned(),
        ),
        (
            2,
            "a data file that does not exist",
            format!(
                "{embedded}[calibration]\ndata = [\n    'texts.jsonl',\n    'absent.jsonl', # to be written\n]\n"
            ),
        ),
        (
            2,
            "a field that the data file does not have",
            format!("{embedded}[[calibration.data]]\npath = 'columns.csv'\ntext = 'body'\n"),
        ),
        (1, "a data file that is broken", format!("{embedded}[calibration]\ndata = ['broken.jsonl']\n")),
        (
            2,
            "a task on a file that does not exist",
            format!("{embedded}[[evaluation.tasks]]\nkind = 'classification'\ndata = 'absent.jsonl'\n"),
        ),
        (
            2,
            "a task on texts without labels",
            format!(
                "{embedded}[[evaluation.tasks]]\nkind = 'classification'\ndata = {{ path = 'texts.jsonl' }}\n"
            ),
        ),
        (
            1,
            "a task on labels of another model",
            format!("{embedded}[[evaluation.tasks]]\nkind = 'classification'\ndata = 'labels.jsonl'\n"),
        ),
        (
            2,
            "a task that the model does not do",
            format!("{encoder}[[evaluation.tasks]]\nkind = 'classification'\ndata = 'labels.jsonl'\n"),
        ),
        (
            2,
            "a gate that this model cannot hold",
            format!(
                "{encoder}[[evaluation.gate]]\ntask = 'fidelity'\nmetric = 'top1_agreement'\nmax_drop = 0.01\n"
            ),
        ),
        (
            2,
            "a pattern that matches nothing",
            format!("{encoder}[quantization]\nignore = [\n    'pooler.dense',\n    'classifier',\n]\n"),
        ),
        (
            2,
            "an override that matches nothing",
            format!(
                "{encoder}[[quantization.overrides]]\nlayers = ['re:encoder\\.layer\\.0', 're:encoder\\.layer\\.9']\n\
                 scheme = 'none'\n"
            ),
        ),
        (
            2,
            "an override of what stays float anyway",
            format!(
                "{encoder}[[quantization.overrides]]\nlayers = ['pooler.dense']\nscheme = 'w8a8-static'\n"
            ),
        ),
        (2, "nothing left to quantise", format!("{encoder}[quantization]\nignore = ['re:.*']\n")),
        (
            2,
            "static activations of what the task does not run",
            format!("{encoder}[quantization]\nscheme = 'w8a8-static'\nignore = []\n"),
        ),
        (1, "an output that exists", format!("{embedded}[output]\ndir = 'finished'\n")),
        (2, "an output that is the model", format!("{encoder}[output]\ndir = 'encoder'\n")),
    ] {
        answers.scene.write("mistake.toml", text);
        answers.refused(code, mistake, &["run", "mistake.toml", "--no-cache"]);
    }
    answers.compare("what_a_config_names");
}

#[test]
fn first_configs() {
    let mut answers = Answers::new();
    let scene = &answers.scene;
    scene.copy_fixture("bert-mean", "model");
    scene.write("directory/config.toml", "");
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "finished", "--set", "evaluation.tasks=[]"]);
    for (code, mistake, arguments) in [
        (2, "no model", &["init"][..]),
        (2, "a model that does not exist", &["init", "absent"]),
        (2, "a file", &["init", "config.toml"]),
        (1, "a model that is quantised already", &["init", "finished/model"]),
        (2, "an unknown scheme", &["init", "embedded", "--scheme", "w4a16"]),
        (2, "a schema beside standard output", &["init", "embedded", "--schema"]),
        (1, "a file that is there", &["init", "embedded", "--out", "config.toml"]),
        (1, "a directory", &["init", "embedded", "--out", "directory", "--force"]),
        (2, "a file of the model", &["init", "model", "--out", "model/config.json", "--force"]),
        (1, "the name of the schema", &["init", "embedded", "--out", "zeropoint.schema.json", "--schema"]),
    ] {
        answers.refused(code, mistake, arguments);
    }
    answers.compare("first_configs");
}

#[test]
fn changes_to_a_config() {
    let mut answers = Answers::new();
    for (mistake, change) in [
        ("no value", "calibration.samples"),
        ("an unknown key", "calibration.sample=3"),
        ("a value of another type", "calibration.samples=many"),
        ("a value that is not TOML", "calibration.data=['texts.txt'"),
        ("an entry beyond the end of a list", "evaluation.tasks.5.kind=sts"),
        ("a key of a value", "model.source.name=embedded"),
    ] {
        answers.set(2, mistake, change);
    }
    answers.compare("changes_to_a_config");
}

#[test]
fn patterns() {
    let mut answers = Answers::new();
    for (mistake, change) in [
        ("a name without its prefix", "quantization.ignore=['encoder.layer.0.attention.self.query']"),
        ("a misspelt name", "quantization.ignore=['bert.encoder.layer.1.intermediate.dens']"),
        (
            "an expression that matches nothing",
            "quantization.overrides=[{layers=['re:bert\\.encoder\\.layer\\.7\\.'],scheme='none'}]",
        ),
        ("nothing left to quantise", "quantization.ignore=['re:.*']"),
        (
            "an override of what is ignored",
            "quantization.overrides=[{layers=['classifier'],scheme='w8a8-dynamic'}]",
        ),
    ] {
        answers.set(2, mistake, change);
    }
    answers.compare("patterns");
}

#[test]
fn models() {
    let mut answers = Answers::new();
    let scene = &answers.scene;
    scene.write("a-file", "not a model");
    scene.copy_fixture("bert-mean", "without-config");
    std::fs::remove_file(scene.path("without-config/config.json")).expect("it was there");
    scene.copy_fixture("bert-mean", "without-weights");
    std::fs::remove_file(scene.path("without-weights/model.safetensors")).expect("it was there");
    scene.copy_fixture("bert-cls-sharded", "without-a-shard");
    std::fs::remove_file(scene.path("without-a-shard/model-00002-of-00002.safetensors"))
        .expect("it was there");
    scene.copy_fixture("bert-mean", "broken-config");
    scene.write("broken-config/config.json", "{\"architectures\": [");
    scene.copy_fixture("bert-mean", "broken-tokenizer");
    scene.write("broken-tokenizer/tokenizer.json", "{}");
    let change_json = |model: &str, file: &str, change: &dyn Fn(&mut Value)| {
        let name = format!("{model}/{file}");
        let mut value = scene.json(&name);
        change(&mut value);
        scene.write(&name, value.to_string());
    };
    scene.copy_fixture("bert-mean", "llama");
    change_json("llama", "config.json", &|config| {
        config["architectures"] = json!(["LlamaForCausalLM"]);
        config["model_type"] = json!("llama");
    });
    scene.copy_fixture("bert-mean", "relative-positions");
    change_json("relative-positions", "config.json", &|config| {
        config["position_embedding_type"] = json!("relative_key");
    });
    scene.copy_fixture("bert-mean", "with-a-dense-module");
    change_json("with-a-dense-module", "modules.json", &|modules| {
        modules[2] =
            json!({ "idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense" });
    });
    scene.copy_fixture("bert-cls-sharded", "index-points-outside");
    change_json("index-points-outside", "model.safetensors.index.json", &|index| {
        for file in index["weight_map"].as_object_mut().expect("a map").values_mut() {
            *file = json!("../bert-mean/model.safetensors");
        }
    });
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "finished", "--set", "evaluation.tasks=[]"]);

    for (mistake, source) in [
        ("a directory that does not exist", "./models/absent"),
        ("a hub id", "sentence-transformers/all-MiniLM-L6-v2"),
        ("a file", "a-file"),
    ] {
        answers.model(2, mistake, source);
    }
    for (mistake, source) in [
        ("a directory without config.json", "without-config"),
        ("a run directory in place of its model", "finished"),
        ("a model that is quantised already", "finished/model"),
        ("an unknown architecture", "llama"),
        ("an unknown kind of positions", "relative-positions"),
        ("an unknown sentence-transformers module", "with-a-dense-module"),
        ("a broken config.json", "broken-config"),
        ("a broken tokenizer", "broken-tokenizer"),
        ("a directory without weights", "without-weights"),
        ("a shard that is missing", "without-a-shard"),
        ("an index that names a file outside", "index-points-outside"),
    ] {
        answers.model(1, mistake, source);
    }
    answers.set(
        2,
        "a task that the model does not fit",
        &format!("model={{source='{}',task='classification'}}", fixture("bert-mean").display()),
    );
    answers.compare("models");
}

#[test]
fn weight_files() {
    type Damage = fn(&mut Safetensors);
    let mut answers = Answers::new();
    let whole = Safetensors::read(&fixture("bert-mean").join("model.safetensors"));
    let damages: [(&str, &str, Damage); 9] = [
        ("a tensor beyond the end of the file", "beyond", |file| {
            file.header[QUERY]["data_offsets"][1] = json!(10_000_000);
        }),
        ("two tensors in one place", "overlapping", |file| {
            let (begin, end) = file.offsets(QUERY);
            file.header[QUERY]["data_offsets"] = json!([begin - 4096, end - 4096]);
        }),
        ("a tensor that ends before it begins", "backwards", |file| {
            let (begin, end) = file.offsets(QUERY);
            file.header[QUERY]["data_offsets"] = json!([end, begin]);
        }),
        ("a shape that its bytes do not fill", "bytes", |file| file.header[QUERY]["shape"] = json!([32, 33])),
        ("a shape that overflows", "overflow", |file| {
            file.header[QUERY]["shape"] = json!([1u64 << 40, 1u64 << 40]);
        }),
        ("a shape that is not the config's", "shape", |file| file.header[QUERY]["shape"] = json!([16, 64])),
        ("an unknown dtype", "dtype", |file| file.header[QUERY]["dtype"] = json!("F4")),
        ("a tensor that is missing", "missing", |file| {
            let entry = file.header.remove(QUERY).expect("it was there");
            file.header.insert("encoder.layer.0.attention.self.q.weight".to_owned(), entry);
        }),
        ("NaN in a weight", "not-a-number", |file| file.poke(QUERY, 10, f32::NAN)),
    ];
    for (mistake, name, damage) in damages {
        let mut file = whole.clone();
        damage(&mut file);
        answers.scene.copy_fixture("bert-mean", name);
        answers.scene.write(&format!("{name}/model.safetensors"), file.to_bytes());
        answers.model(1, mistake, name);
    }
    let bytes = whole.to_bytes();
    for (mistake, name, content) in [
        ("a file that ends early", "truncated", &bytes[..bytes.len() - 100]),
        ("a file that ends in its header", "cut", &bytes[..1000]),
        ("a header that claims a terabyte", "huge", &[&(1u64 << 40).to_le_bytes()[..], &bytes[8..]].concat()),
        ("three bytes", "tiny", b"abc"),
        (
            "a Git LFS pointer",
            "pointer",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        ),
        ("a pickle", "pickle", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."),
    ] {
        answers.scene.copy_fixture("bert-mean", name);
        answers.scene.write(&format!("{name}/model.safetensors"), content);
        answers.model(1, mistake, name);
    }
    answers.compare("weight_files");
}

#[test]
fn infinity_in_a_table_that_no_text_reaches() {
    // Found while the tensor is copied, after calibration: the texts do not use that row.
    let mut answers = Answers::new();
    let mut file = Safetensors::read(&fixture("bert-mean").join("model.safetensors"));
    file.poke("embeddings.word_embeddings.weight", 10, f32::INFINITY);
    answers.scene.copy_fixture("bert-mean", "infinite");
    answers.scene.write("infinite/model.safetensors", file.to_bytes());
    for embeddings in ["keep", "bf16"] {
        let arguments = [
            "run",
            "config.toml",
            "--no-cache",
            "--out",
            "out",
            "--set",
            "model.source=infinite",
            "--set",
            &format!("quantization.embeddings={embeddings}"),
        ];
        answers.refused(1, embeddings, &arguments);
    }
    answers.compare("infinity_in_a_table");
}

#[test]
fn data_files() {
    let mut answers = Answers::new();
    let scene = &answers.scene;
    scene.write("broken.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two\"\n");
    scene.write("strings.jsonl", "\"one\"\n");
    scene.write("empty.jsonl", "");
    scene.write("blank.txt", "\n\n");
    scene.write("columns.csv", "sentence,points\nA cold day.,1\n");
    scene.write("ragged.csv", "text,label\nA cold, wet day.,weather\n");
    scene.write("latin1.txt", b"caf\xe9\n");
    scene.write(
        "labels.jsonl",
        "{\"text\": \"a\", \"label\": \"law\"}\n{\"text\": \"b\", \"label\": \"poetry\"}\n",
    );
    scene.write("texts.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
    scene.write("pairs.jsonl", "{\"text_a\": \"a\", \"text_b\": \"b\", \"score\": \"good\"}\n");
    for (code, mistake, file) in [
        (2, "a data file that does not exist", "absent.jsonl"),
        (1, "a line that ends early", "broken.jsonl"),
        (1, "a line that is no object", "strings.jsonl"),
        (1, "an empty file", "empty.jsonl"),
        (1, "a file of blank lines", "blank.txt"),
        (2, "a csv file with other columns", "columns.csv"),
        (1, "a csv file with an unquoted comma", "ragged.csv"),
        (1, "a text that is not UTF-8", "latin1.txt"),
    ] {
        answers.set(code, mistake, &format!("calibration.data=['{file}']"));
    }
    for (mistake, data) in [
        ("a column that does not exist", "[{path='columns.csv',text='body'}]"),
        ("a column beyond the last", "['texts.jsonl',{path='columns.csv',header=false,text=7}]"),
        ("columns without names or numbers", "[{path='columns.csv',header=false}]"),
        ("a field that does not exist", "[{path='texts.jsonl',text='body'}]"),
    ] {
        answers.set(2, mistake, &format!("calibration.data={data}"));
    }
    for (code, mistake, kind, file) in [
        (1, "a label outside the model's", "classification", "labels.jsonl"),
        (2, "texts without labels", "classification", "texts.jsonl"),
        (2, "similarity of a classifier", "sts", "texts.jsonl"),
        (2, "a task on a file that does not exist", "fidelity", "absent.txt"),
    ] {
        answers.set(code, mistake, &format!("evaluation.tasks=[{{kind='{kind}',data='{file}'}}]"));
    }
    let source = format!("model.source={}", fixture("bert-mean").display());
    for (code, mistake, kind, file) in [
        (2, "similarity without pairs", "sts", "texts.jsonl"),
        (1, "a score that is no number", "sts", "pairs.jsonl"),
        (2, "classes of an embedding model", "classification", "labels.jsonl"),
    ] {
        let tasks = format!("evaluation.tasks=[{{kind='{kind}',data='{file}'}}]");
        answers.refused(
            code,
            mistake,
            &["run", "config.toml", "--no-cache", "--out", "out", "--set", &source, "--set", &tasks],
        );
    }
    answers.compare("data_files");
}

#[test]
fn outputs() {
    let mut answers = Answers::new();
    let scene = &answers.scene;
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "finished", "--set", "evaluation.tasks=[]"]);
    scene.write("theirs/thesis.tex", "three years of work");
    scene.write("unfinished.partial/thesis.tex", "two years of work");
    scene.write("a-file", "");
    symlink("theirs", scene.path("link")).expect("links can be made");
    scene.copy_fixture("bert-mean", "source");
    for (mistake, code, arguments) in [
        ("an output that exists", 1, &["--out", "finished"][..]),
        ("a directory that is not ours", 1, &["--out", "theirs"]),
        ("a directory that is not ours, by force", 1, &["--out", "theirs", "--force"]),
        ("a working directory that is not ours, by force", 1, &["--out", "unfinished", "--force"]),
        ("a file", 1, &["--out", "a-file", "--force"]),
        ("a link", 1, &["--out", "link", "--force"]),
        ("a directory inside a file", 1, &["--out", "a-file/out"]),
        ("no name", 2, &["--out", ""]),
        ("the root of the file system", 1, &["--out", "/"]),
        ("the model itself", 2, &["--out", "source", "--force", "--set", "model.source=source"]),
    ] {
        let arguments = [&["run", "config.toml", "--no-cache"][..], arguments].concat();
        answers.refused(code, mistake, &arguments);
    }
    answers.refused(
        1,
        "statistics in place of a directory",
        &["calibrate", "config.toml", "--no-cache", "--out", "theirs"],
    );
    answers.compare("outputs");
}

#[test]
fn statistics_and_models_of_something_else() {
    let mut answers = Answers::new();
    let scene = &answers.scene;
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "finished", "--set", "evaluation.tasks=[]"]);
    scene.write("text.txt", "one\n");
    let statistics = "finished/statistics.safetensors";
    let other_model = format!("model.source={}", fixture("bert-mean").display());
    let float = fixture("bert-classifier-bf16").to_string_lossy().into_owned();
    for (mistake, arguments) in [
        (
            "statistics that do not exist",
            &["quantize", "config.toml", "--out", "out", "--statistics", "absent.safetensors"][..],
        ),
        ("evaluation of a model that does not exist", &["evaluate", "config.toml", "--model", "absent"]),
        ("evaluation of the float embedded model", &["evaluate", "config.toml", "--model", "embedded"]),
        ("encoding with the float embedded model", &["encode", "embedded", "--data", "text.txt"]),
        ("encoding with a model that does not exist", &["encode", "absent", "--data", "text.txt"]),
        ("encoding a file that does not exist", &["encode", "finished/model", "--data", "absent.txt"]),
        ("encoding over the texts", &["encode", "finished/model", "--data", "text.txt", "--out", "text.txt"]),
        ("inspection of a model that does not exist", &["inspect", "absent"]),
        ("inspection of a file", &["inspect", "text.txt"]),
    ] {
        answers.refused(2, mistake, arguments);
    }
    for (mistake, arguments) in [
        (
            "weights in place of statistics",
            &["quantize", "config.toml", "--out", "out", "--statistics", "finished/model/model.safetensors"]
                [..],
        ),
        (
            "a text in place of statistics",
            &["quantize", "config.toml", "--out", "out", "--statistics", "text.txt"],
        ),
        (
            "statistics of other data",
            &[
                "quantize",
                "config.toml",
                "--out",
                "out",
                "--statistics",
                statistics,
                "--set",
                "calibration.seed=7",
            ][..],
        ),
        (
            "statistics of another model",
            &["quantize", "config.toml", "--out", "out", "--statistics", statistics, "--set", &other_model],
        ),
        (
            "evaluation of another model",
            &["evaluate", "config.toml", "--model", "finished/model", "--set", &other_model],
        ),
        (
            "evaluation of a model of the same architecture and another size",
            &["evaluate", "config.toml", "--model", &float],
        ),
        ("encoding with a float model", &["encode", &float, "--data", "text.txt"]),
    ] {
        answers.refused(1, mistake, arguments);
    }
    answers.compare("something_else");
}

#[test]
fn instruction_sets() {
    let mut answers = Answers::new();
    for (name, arguments) in [
        ("foo", &["run", "config.toml", "--no-cache", "--out", "out"][..]),
        ("foo", &["run", "config.toml", "--dry-run"]),
        ("AVX2", &["inspect", "embedded"]),
    ] {
        answers.refused_in(2, &format!("ZEROPOINT_ISA={name}"), arguments, |command| {
            command.env("ZEROPOINT_ISA", name);
        });
    }
    answers.compare("instruction_sets");
}

/// Rewrites fields of a statistics file's header.
fn edit_header(scene: &Scene, from: &str, to: &str, fields: &[(&str, &str)]) {
    let mut file = Safetensors::read(&scene.path(from));
    let stored = &mut file.header["__metadata__"]["zeropoint.statistics"];
    let mut metadata: Value = serde_json::from_str(stored.as_str().expect("a text")).expect("it is JSON");
    for (field, value) in fields {
        metadata["header"][*field] = json!(value);
    }
    *stored = json!(metadata.to_string());
    scene.write(to, file.to_bytes());
}

#[test]
fn shards() {
    let mut answers = Answers::new();
    for (mistake, shard) in [
        ("shards are counted from 1", "0/4"),
        ("a shard beyond the last", "5/4"),
        ("a set cut into nothing", "1/0"),
        ("letters for a shard", "a/b"),
        ("a shard without their number", "3"),
        ("a negative shard", "-1/4"),
    ] {
        answers.refused(
            2,
            mistake,
            &["calibrate", "config.toml", "--out", "out", &format!("--shard={shard}")],
        );
    }
    let cached = ["calibrate", "config.toml", "--out", "out", "--shard", "1/2", "--cache", "c"];
    answers.refused(2, "a shard in the cache", &cached);
    answers.refused(2, "nothing to merge", &["statistics", "merge", "--out", "out"]);
    answers.refused(2, "nowhere to merge to", &["statistics", "merge", "a", "b"]);

    let scene = &answers.scene;
    let other_model = format!("model.source={}", fixture("bert-mean").display());
    let seed = "calibration.seed=7";
    for (shard, file, change) in [
        ("1/2", "1-of-2", None),
        ("2/2", "2-of-2", None),
        ("1/3", "1-of-3", None),
        ("2/3", "2-of-3", None),
        ("2/2", "other-data", Some(seed)),
        ("2/2", "other-model", Some(other_model.as_str())),
    ] {
        let change = change.map(|change| ["--set", change]);
        let arguments = ["calibrate", "config.toml", "--shard", shard, "--out", file];
        scene.succeeds(arguments.iter().copied().chain(change.into_iter().flatten()));
    }
    scene.succeeds(["calibrate", "config.toml", "--no-cache", "--out", "whole"]);
    std::fs::copy(scene.path("2-of-2"), scene.path("copy")).expect("it can be copied");
    scene.write("text.txt", "one\n");
    scene.write("directory/file", "");
    edit_header(scene, "1-of-2", "avx2", &[("instruction_set", "avx2")]);
    edit_header(scene, "2-of-2", "scalar", &[("instruction_set", "scalar")]);
    edit_header(scene, "2-of-2", "later", &[("zeropoint_version", "9.0.0"), ("instruction_set", "scalar")]);
    edit_header(scene, "2-of-2", "seed-43", &[("seed", "43")]);
    edit_header(scene, "2-of-2", "heavier", &[("shard_tokens", "77")]);
    edit_header(scene, "1-of-2", "one-of-many", &[("shard", "1/4294967295")]);
    edit_header(scene, "1-of-2", "no-shard", &[("shard", "2/1")]);
    let mut renamed = Safetensors::read(&scene.path("2-of-2"));
    renamed.header = renamed
        .header
        .into_iter()
        .map(|(name, value)| (name.replace("classifier.input", "classifier.output"), value))
        .collect();
    scene.write("renamed", renamed.to_bytes());

    for (mistake, files, out) in [
        ("one shard is missing", &["1-of-2"][..], "out"),
        ("the first shard is missing", &["2-of-3"], "out"),
        ("nearly all of very many are missing", &["one-of-many"], "out"),
        ("the same file twice", &["1-of-2", "2-of-2", "2-of-2"], "out"),
        ("the same shard twice, and one missing", &["2-of-2", "copy"], "out"),
        ("shards of two and of three", &["1-of-2", "2-of-3"], "out"),
        ("shards of two models", &["1-of-2", "other-model"], "out"),
        ("shards of other data", &["1-of-2", "other-data"], "out"),
        ("shards of two instruction sets", &["avx2", "scalar"], "out"),
        ("shards of two versions", &["avx2", "later"], "out"),
        ("shards of two seeds", &["1-of-2", "seed-43"], "out"),
        ("a shard with too many tokens", &["1-of-2", "heavier"], "out"),
        ("a shard with other sites", &["1-of-2", "renamed"], "out"),
        ("a shard that cannot be", &["no-shard"], "out"),
        ("a whole set", &["whole"], "out"),
        ("a whole set among shards", &["1-of-2", "2-of-2", "whole"], "out"),
        ("no statistics among shards", &["1-of-2", "text.txt"], "out"),
        ("the output is something else", &["1-of-2", "2-of-2"], "text.txt"),
        ("the output is a directory", &["1-of-2", "2-of-2"], "directory"),
        ("the output is inside a file", &["1-of-2", "2-of-2"], "text.txt/out"),
    ] {
        let arguments = [&["statistics", "merge"], files, &["--out", out]].concat();
        answers.refused(1, mistake, &arguments);
    }
    answers.refused(
        1,
        "a model from one shard",
        &["quantize", "config.toml", "--statistics", "1-of-2", "--out", "out"],
    );
    answers.refused(1, "a text shown", &["statistics", "show", "text.txt"]);
    for (mistake, files, out) in [
        ("a shard that does not exist", &["1-of-2", "absent"][..], "out"),
        ("the output is a shard", &["1-of-2", "2-of-2"], "./2-of-2"),
    ] {
        let arguments = [&["statistics", "merge"], files, &["--out", out]].concat();
        answers.refused(2, mistake, &arguments);
    }
    answers.refused(2, "nothing shown", &["statistics", "show", "absent"]);
    answers.compare("shards");
}
