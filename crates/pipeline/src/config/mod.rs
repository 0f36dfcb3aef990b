//! The typed config: what a TOML file may say, every default, and an error with a place for everything else.
//!
//! A model and nothing else is a valid config:
//!
//! ```
//! use zeropoint_pipeline::config::{Config, Preset};
//!
//! let config = Config::parse("model.source = 'models/minilm'", "example.toml", &[]).unwrap();
//! assert_eq!(config.quantization.scheme, Preset::W8a8Dynamic);
//! assert_eq!(config.output_dir(), "runs/minilm-w8a8-dynamic");
//!
//! let error = Config::parse("[model]\nsource = 'm'\ntsak = 'auto'", "example.toml", &[]).unwrap_err();
//! assert_eq!(error.to_string(), "example.toml:3:1: unknown key `tsak` in `model`");
//! assert!(error.hint().unwrap().starts_with("did you mean `task`?"));
//! ```
//!
//! Text becomes a tree that knows its places (`tree`), `--set` changes it (`set`), `decode` types it, `check` looks for
//! contradictions. A config remembers where its keys were written (`written`), so that what turns out later, a pattern
//! that matches nothing or a file that does not exist, [points there](Config::excerpt) too. Paths are kept as they are written: relative ones start at the current directory, not at the config.
//! They are UTF-8 strings, as TOML is.

mod calibration;
mod contradictions;
mod data;
mod decode;
mod error;
mod evaluation;
mod excerpt;
mod model;
mod output;
mod pattern;
mod quantization;
mod refine;
mod report;
mod set;
mod size;
mod sweep;
mod transforms;
mod tree;
mod written;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::{Deserialize, Serialize};

pub use calibration::{Calibration, Sequences};
pub use data::{Column, DataFormat, DataSource};
pub use error::ConfigError;
pub use evaluation::{Counting, Evaluation, Gate, Metric, Task, TaskKind};
pub use excerpt::{Excerpt, Mark};
pub use model::{Model, ModelTask};
pub use output::{Output, OutputFormat};
pub use pattern::Pattern;
pub use quantization::{
    ActivationGranularity, ActivationMode, ActivationObserver, Activations, Algorithm, AlgorithmKind,
    Embeddings, LayerScheme, LmHead, Override, OverrideScheme, Preset, Quantization, WeightGranularity,
    WeightObserver, Weights,
};
pub use report::Report;
pub use size::byte_size;
pub use sweep::{COMPARISON, Sweep, SweepRun};
pub use transforms::{Transform, TransformKind};

use error::Problem;
use excerpt::Source;
use tree::Value;
use written::{Sources, Written};

/// The version of the config language that this build reads.
pub const VERSION: u32 = 1;

/// A config file is not longer than this, in bytes.
const LARGEST_FILE: u64 = 1 << 20;

/// A Zeropoint run: the model, the calibration data, the scheme, the evaluation and the output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The version of the config language: 1.
    #[serde(default = "version")]
    #[schemars(extend("const" = VERSION))]
    pub version: u32,
    /// Which float model is quantised.
    pub model: Model,
    /// The texts whose activations are observed.
    #[serde(default)]
    pub calibration: Calibration,
    /// How weights and activations become INT8.
    #[serde(default)]
    pub quantization: Quantization,
    /// What the original and the quantised model are compared on, and how much may be lost.
    #[serde(default)]
    pub evaluation: Evaluation,
    /// What the report has beyond what every run finds out.
    #[serde(default)]
    pub report: Report,
    /// Where the run goes and what is written.
    #[serde(default)]
    pub output: Output,
    /// The schemes that a sweep makes and compares.
    #[serde(default, skip_serializing_if = "Sweep::is_empty")]
    pub sweep: Sweep,
    #[serde(skip)]
    #[schemars(skip)]
    written: Written,
}

fn version() -> u32 {
    VERSION
}

impl Config {
    /// The config of a model with every default.
    pub fn new(source: impl Into<String>) -> Self {
        Self {
            version: VERSION,
            model: Model::new(source),
            calibration: Calibration::default(),
            quantization: Quantization::default(),
            evaluation: Evaluation::default(),
            report: Report::default(),
            output: Output::default(),
            sweep: Sweep::default(),
            written: Written::default(),
        }
    }

    /// Reads a config file of at most 1 MiB and applies `sets`, each `key=value`, in their order.
    pub fn load(path: &Path, sets: &[String]) -> Result<Self, ConfigError> {
        let origin = path.display().to_string();
        let text = read(path).map_err(|problem| ConfigError::new(&origin, None, problem))?;
        let text = String::from_utf8(text).map_err(|error| not_utf8(&origin, &error))?;
        Self::parse(&text, &origin, sets)
    }

    /// Reads a config from `text` and applies `sets`, each `key=value`, in their order. `origin` is what errors call
    /// the text. The result is [valid](Self::validate), and its output directory is filled in.
    pub fn parse(text: &str, origin: &str, sets: &[String]) -> Result<Self, ConfigError> {
        let sources = Sources::new(text, origin, sets)?;
        // Before the types: a config of another version has other keys.
        if let Some(Value::Integer(version)) = sources.tree.child("version").map(|node| &node.value) {
            check_version(*version).map_err(|problem| sources.error_at_key(problem))?;
        }
        let mut config: Self = decode::decode(&sources.tree).map_err(|mistake| sources.error(mistake))?;
        config.output.dir = Some(config.output_dir());
        config.output.formats =
            Some(config.output.formats.unwrap_or_else(|| vec![config.quantization.scheme.format()]));
        config.check().map_err(|problem| sources.error_at_key(problem))?;
        config.written = sources.into();
        Ok(config)
    }

    /// The config with the sweep that a file of its own describes: what `[sweep]` may say, without its head.
    pub fn with_sweep_of(mut self, path: &Path) -> Result<Self, ConfigError> {
        let origin = path.display().to_string();
        let text = read(path).map_err(|problem| ConfigError::new(&origin, None, problem))?;
        let text = String::from_utf8(text).map_err(|error| not_utf8(&origin, &error))?;
        let sources = Sources::new(&text, &origin, &[])?;
        self.sweep = decode::decode(&sources.tree).map_err(|mistake| sources.error(mistake))?;
        let inside = |mut problem: Problem| {
            let inner = problem.path.strip_prefix("sweep.").map(str::to_owned);
            problem.path = inner.unwrap_or_default();
            sources.error_at_key(problem)
        };
        self.sweep.check().map_err(inside)?;
        Ok(self)
    }

    /// The config with another output directory, which `option` of a command line names.
    pub fn with_output_dir(mut self, dir: &str, option: &'static str) -> Result<Self, ConfigError> {
        self.output.dir = Some(dir.to_owned());
        let Some(mut sources) = self.written.sources().cloned() else {
            return self.validate().map(|()| self);
        };
        sources.put(option, "output.dir", dir).map_err(|problem| sources.error_at_key(problem))?;
        self.check().map_err(|problem| sources.error_at_key(problem))?;
        self.written = sources.into();
        Ok(self)
    }

    /// The config with changes as `--set` takes them, another output directory, and no sweep: one of those of a sweep.
    pub fn with_changes(&self, changes: &[String], dir: &str) -> Result<Self, ConfigError> {
        let (text, origin, before) = match self.written.sources() {
            Some(sources) => sources.as_given(),
            None => (self.to_toml(), "config".to_owned(), Vec::new()),
        };
        let sets: Vec<String> = before.into_iter().chain(changes.iter().cloned()).collect();
        let mut config = Self::parse(&text, &origin, &sets)?;
        config.sweep = Sweep::default();
        config.with_output_dir(dir, "--out")
    }

    /// Where the value of a dotted key (`evaluation.tasks.0.data`) is written, marked and with `label` at the mark;
    /// `None` for a default, and in a config that a program made.
    pub fn excerpt(&self, key: &str, label: &str) -> Option<Excerpt> {
        self.written.excerpt(key, label)
    }

    /// Whether every value is allowed and no two contradict each other. [`parse`](Self::parse) has asked already; this
    /// is for a config that was made or changed by a program. The error names the key but has no line.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.check().map_err(|problem| ConfigError::new("config", None, problem))
    }

    fn check(&self) -> Result<(), Problem> {
        check_version(self.version.into())?;
        self.model.check()?;
        self.calibration.check()?;
        self.quantization.check()?;
        self.evaluation.check()?;
        self.output.check()?;
        self.sweep.check()?;
        if self.output.dir.as_ref().is_some_and(|dir| Path::new(dir) == Path::new(&self.model.source)) {
            return Err(Problem::new("output.dir", "`output.dir` is the directory of the model itself")
                .label("the output")
                .related("model.source", "the model")
                .hint("choose another directory"));
        }
        if self.calibration.samples == 0 {
            self.check_uncalibrated()?;
        }
        Ok(())
    }

    /// What a run without calibration cannot do.
    fn check_uncalibrated(&self) -> Result<(), Problem> {
        if self.quantization.has_static_activations() {
            let message =
                "`calibration.samples` is 0, but static activations take their ranges from calibration";
            return Err(Problem::new("calibration.samples", message)
                .label("no samples")
                .related("quantization.scheme", "what has static activations")
                .hint("ask for samples, or write `scheme = \"w8a8-dynamic\"`"));
        }
        if let Some(place) = self.quantization.calibrated_key() {
            let message = format!("`calibration.samples` is 0, but `{place}` goes by what calibration shows");
            return Err(Problem::new("calibration.samples", message)
                .label("no samples")
                .related(place, "what needs some")
                .hint("ask for samples, or leave that out"));
        }
        if self.report.sensitivity {
            let message = "`calibration.samples` is 0, but sensitivities are measured on some of them";
            return Err(Problem::new("calibration.samples", message)
                .label("no samples")
                .related("report.sensitivity", "what needs some")
                .hint("ask for samples, or leave that out"));
        }
        if self.output.self_check {
            let message = "`calibration.samples` is 0, but the self-check runs some of them";
            return Err(Problem::new("calibration.samples", message)
                .label("no samples")
                .hint("ask for samples, or leave the check out: `output.self_check = false`"));
        }
        if let Some(at) = self.evaluation.tasks.iter().position(|task| task.data.is_none()) {
            let kind = self.evaluation.tasks[at].kind;
            let message = format!(
                "`calibration.samples` is 0, but the {kind} task without `data` measures on some of them"
            );
            return Err(Problem::new("calibration.samples", message)
                .label("no samples")
                .related(format!("evaluation.tasks.{at}"), "the task")
                .hint("ask for samples, give the task `data`, or write `evaluation.tasks = []`"));
        }
        Ok(())
    }

    /// The run directory: the one that is given, else `runs/MODEL-SCHEME`.
    pub fn output_dir(&self) -> String {
        let derived = || format!("runs/{}-{}", self.model.name(), self.quantization.scheme.as_str());
        self.output.dir.clone().unwrap_or_else(derived)
    }

    /// The format of the model's directory.
    pub fn output_format(&self) -> OutputFormat {
        let given = self.output.formats.as_ref().and_then(|formats| formats.first());
        given.copied().unwrap_or(self.quantization.scheme.format())
    }

    /// The config as TOML with every default written out; [`parse`](Self::parse) reads the same config from it. A key
    /// that stands for nothing (no limit, no revision) is left out.
    ///
    /// # Panics
    ///
    /// When a number is larger than TOML can hold (`i64::MAX`); [`validate`](Self::validate) refuses such a config.
    pub fn to_toml(&self) -> String {
        let mut resolved = self.clone();
        resolved.output.dir = Some(self.output_dir());
        resolved.output.formats = Some(vec![self.output_format()]);
        toml::to_string(&resolved).expect("a valid config has a TOML form")
    }

    /// The JSON Schema of the config language, for editors. It describes what may be written; what keys mean together
    /// is only checked by [`parse`](Self::parse).
    pub fn json_schema() -> serde_json::Value {
        let settings = SchemaSettings::draft2020_12().with_transform(
            schemars::transform::RecursiveTransform(without_null as fn(&mut schemars::Schema)),
        );
        let mut schema = settings.into_generator().into_root_schema_for::<Self>();
        schema.insert("title".to_owned(), "Zeropoint config".into());
        schema.to_value()
    }
}

fn check_version(version: i64) -> Result<(), Problem> {
    if version == i64::from(VERSION) {
        return Ok(());
    }
    Err(Problem::new("version", format!("config version {version} is not known"))
        .label("not known here")
        .hint("allowed: `version = 1`"))
}

fn read(path: &Path) -> Result<Vec<u8>, Problem> {
    let fail = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => Problem::new("", "there is no such config file")
            .hint("a relative path starts at the current directory; `zeropoint init MODEL` writes a config"),
        ErrorKind::IsADirectory => Problem::new("", "this is a directory, not a config file")
            .hint("give the TOML file; `zeropoint init MODEL` writes one"),
        ErrorKind::PermissionDenied => {
            Problem::new("", "the config file may not be read (permission denied)")
                .hint("check its permissions")
        }
        _ => Problem::new("", format!("the config file cannot be read: {error}")),
    };
    let mut text = Vec::new();
    File::open(path).and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut text)).map_err(fail)?;
    if text.len() as u64 > LARGEST_FILE {
        return Err(Problem::new("", "the file is larger than 1 MiB, so it is not taken for a config")
            .hint("give the TOML file that describes the run"));
    }
    Ok(text)
}

fn not_utf8(origin: &str, error: &std::string::FromUtf8Error) -> ConfigError {
    let start = error.utf8_error().valid_up_to();
    let text = String::from_utf8_lossy(error.as_bytes());
    let line = text[..start].matches('\n').count() + 1;
    let problem =
        Problem::new("", format!("line {line} of the config is not UTF-8")).hint("save the file as UTF-8");
    let mark = Mark {
        span: start..start + char::REPLACEMENT_CHARACTER.len_utf8(),
        label: "not a character of UTF-8".to_owned(),
    };
    let source = Source::File { origin: origin.into(), text: text.as_ref().into() };
    ConfigError::new(origin, Some(Excerpt::new(source, mark, [])), problem)
}

/// TOML has no null: a key that may be left out is not a key that may be null.
fn without_null(schema: &mut schemars::Schema) {
    use serde_json::Value as Json;
    let Some(object) = schema.as_object_mut() else { return };
    if object.get("default").is_some_and(Json::is_null) {
        object.remove("default");
    }
    if let Some(default) = object.get_mut("default") {
        drop_nulls(default);
    }
    if let Some(Json::Array(types)) = object.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            object.insert("type".to_owned(), only);
        }
    }
    if let Some(Json::Array(choices)) = object.get_mut("anyOf") {
        choices.retain(|choice| choice.get("type") != Some(&Json::from("null")));
        if let [only] = choices.as_slice()
            && let Some(only) = only.as_object().cloned()
        {
            object.remove("anyOf");
            object.extend(only);
        }
    }
}

fn drop_nulls(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(object) => {
            object.retain(|_, value| !value.is_null());
            object.values_mut().for_each(drop_nulls);
        }
        serde_json::Value::Array(values) => values.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
