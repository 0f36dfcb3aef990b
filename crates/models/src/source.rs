//! Where a model comes from, and its directory once it is there.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::TempDir;
use zeropoint_formats::Checkpoint;

use crate::embedded::EMBEDDED;
use crate::families::{self, FamilyInput};
use crate::heads::{Pooling, Task};
use crate::{ModelError, ModelSpec, Tokenizer};

/// The word for the model that the binary carries.
const EMBEDDED_NAME: &str = "embedded";
/// No JSON file of a model directory is larger; tokenizer.json is read by its own library.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// `model.source`, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceRef {
    /// A directory in Hugging Face's layout.
    Directory(PathBuf),
    /// The model that the binary carries.
    Embedded,
}

impl SourceRef {
    /// Understands `model.source`: "embedded", or a directory that exists.
    pub fn parse(source: &str) -> Result<Self, ModelError> {
        if source == EMBEDDED_NAME {
            return Ok(Self::Embedded);
        }
        let path = PathBuf::from(source);
        if path.is_dir() {
            return Ok(Self::Directory(path));
        }
        let parts: Vec<&str> = source.split('/').collect();
        let hub_like = parts.len() == 2
            && parts.iter().all(|part| !part.is_empty() && *part != "." && *part != "..")
            && !path.exists()
            && !Path::new(parts[0]).exists();
        if hub_like {
            return Err(ModelError::HubId { id: source.to_owned() });
        }
        if path.exists() {
            let error =
                std::io::Error::other("a file is given; the directory that holds config.json is expected");
            return Err(ModelError::Io { path, source: error });
        }
        Err(ModelError::NotFound { path })
    }

    /// A short name for output directories and reports.
    pub fn name(&self) -> String {
        match self {
            Self::Embedded => EMBEDDED_NAME.to_owned(),
            Self::Directory(path) => path
                .canonicalize()
                .ok()
                .and_then(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()))
                .unwrap_or_else(|| "model".to_owned()),
        }
    }
}

/// A model directory that has been opened and described; no weight has been read.
pub struct ModelDirectory {
    dir: PathBuf,
    name: String,
    config: Value,
    checkpoint: Checkpoint,
    spec: ModelSpec,
    max_tokens: usize,
    lower_case: bool,
    /// Holds the embedded model's files while they are in use.
    _unpacked: Option<TempDir>,
}

impl ModelDirectory {
    /// Opens a source for a task.
    pub fn open(source: &SourceRef, task: Task) -> Result<Self, ModelError> {
        match source {
            SourceRef::Directory(path) => Self::describe(path.clone(), source.name(), task, None),
            SourceRef::Embedded => {
                let unpacked = unpack_embedded()?;
                Self::describe(unpacked.path().to_owned(), source.name(), task, Some(unpacked))
            }
        }
    }

    fn describe(
        dir: PathBuf,
        name: String,
        task: Task,
        unpacked: Option<TempDir>,
    ) -> Result<Self, ModelError> {
        if !dir.exists() {
            return Err(ModelError::NotFound { path: dir });
        }
        if !dir.join("config.json").is_file() {
            let inside = dir.join("model");
            let elsewhere = if inside.join("config.json").is_file() {
                format!("; {} is one", inside.display())
            } else {
                String::new()
            };
            let reason = format!("holds no config.json, so it is not a model directory{elsewhere}");
            return Err(ModelError::Config { path: dir, reason });
        }
        let config: Value = read_json(&dir.join("config.json"))?;
        let checkpoint = Checkpoint::open(&dir)?;
        let pooling = read_modules(&dir)?;
        let spec = families::describe(&FamilyInput {
            dir: &dir,
            config: &config,
            checkpoint: &checkpoint,
            task,
            pooling,
            quantized: quantization_config(&config).is_some(),
        })?;
        tracing::info!(
            dir = %dir.display(),
            architecture = spec.architecture,
            linears = spec.linears.len(),
            sites = spec.sites.len(),
            "model described"
        );
        let sentence: SentenceConfig =
            read_json_if_there(&dir.join("sentence_bert_config.json"))?.unwrap_or_default();
        let tokenizer: TokenizerConfig =
            read_json_if_there(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        let limits = [sentence.max_seq_length, tokenizer.limit(), Some(spec.max_positions)];
        let max_tokens = limits.into_iter().flatten().min().unwrap_or(spec.max_positions);
        Ok(Self {
            name,
            config,
            checkpoint,
            max_tokens,
            lower_case: sentence.do_lower_case,
            spec,
            dir,
            _unpacked: unpacked,
        })
    }

    /// The directory on disk.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The name for reports: the directory's last component, or `embedded`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// config.json.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The weight files.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The description.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The longest sequence that the model's own files allow, in tokens with specials.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// `quantization_config` of config.json: present in a model that is already quantised.
    pub fn quantization_config(&self) -> Option<&Value> {
        quantization_config(&self.config)
    }

    /// The tokenizer, cutting samples at `max_length` tokens or the model's own limit, whichever is smaller.
    pub fn tokenizer(&self, max_length: Option<usize>) -> Result<Tokenizer, ModelError> {
        let limit = max_length.map_or(self.max_tokens, |asked| asked.min(self.max_tokens));
        Tokenizer::load(&self.dir, limit, self.lower_case)
    }
}

/// `null` says no more than an absent key.
fn quantization_config(config: &Value) -> Option<&Value> {
    config.get("quantization_config").filter(|value| !value.is_null())
}

fn unpack_embedded() -> Result<TempDir, ModelError> {
    let io = |path: &Path, source| ModelError::Io { path: path.to_owned(), source };
    let dir = tempfile::Builder::new()
        .prefix("zeropoint-embedded-")
        .tempdir()
        .map_err(|source| io(&std::env::temp_dir(), source))?;
    for (name, content) in EMBEDDED {
        let path = dir.path().join(name);
        std::fs::write(&path, content).map_err(|source| io(&path, source))?;
    }
    Ok(dir)
}

/// `sentence_bert_config.json` of sentence-transformers.
#[derive(Debug, Default, serde::Deserialize)]
struct SentenceConfig {
    #[serde(default)]
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

/// The keys of `tokenizer_config.json` that matter.
#[derive(Debug, Default, serde::Deserialize)]
struct TokenizerConfig {
    #[serde(default)]
    model_max_length: Option<f64>,
}

impl TokenizerConfig {
    /// `transformers` writes 1e30 for "no limit".
    fn limit(&self) -> Option<usize> {
        self.model_max_length.filter(|limit| (1.0..1e9).contains(limit)).map(|limit| limit as usize)
    }
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let io = |source| ModelError::Io { path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    if bytes > MAX_JSON_BYTES {
        return Err(ModelError::Config {
            path: path.to_owned(),
            reason: format!("is {bytes} bytes long; a file of this kind has at most {MAX_JSON_BYTES}"),
        });
    }
    let text = std::fs::read(path).map_err(io)?;
    serde_json::from_slice(&text).map_err(|error| ModelError::Config {
        path: path.to_owned(),
        reason: format!("is not the JSON that is expected: {error}"),
    })
}

fn read_json_if_there<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ModelError> {
    path.exists().then(|| read_json(path)).transpose()
}

#[derive(Debug, serde::Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

/// Reads sentence-transformers' modules.json: Transformer, Pooling, and Normalize if there; nothing else is understood.
fn read_modules(dir: &Path) -> Result<Option<(Vec<Pooling>, bool)>, ModelError> {
    let path = dir.join("modules.json");
    let Some(modules) = read_json_if_there::<Vec<Module>>(&path)? else { return Ok(None) };
    let bad = |reason: String| ModelError::Config { path: path.clone(), reason };
    // The class moved between packages over the years; its last name did not change.
    let kinds: Vec<&str> = modules.iter().map(|m| m.kind.rsplit('.').next().unwrap_or_default()).collect();
    let normalize = match kinds[..] {
        ["Transformer", "Pooling"] => false,
        ["Transformer", "Pooling", "Normalize"] => true,
        _ => {
            return Err(bad(format!(
                "describes the modules [{}]; Transformer, Pooling and an optional Normalize, in that order, are \
                 supported",
                kinds.join(", ")
            )));
        }
    };
    if !modules[0].path.is_empty() && modules[0].path != "." {
        return Err(bad(format!(
            "keeps its Transformer in `{}`; it must be the directory itself",
            modules[0].path
        )));
    }
    let folder = Path::new(&modules[1].path);
    if folder.is_absolute()
        || folder.components().any(|part| !matches!(part, std::path::Component::Normal(_)))
    {
        return Err(bad(format!(
            "names the pooling folder `{}`, which is not inside the directory",
            modules[1].path
        )));
    }
    Ok(Some((read_pooling(&dir.join(folder).join("config.json"))?, normalize)))
}

/// Reads a pooling config: the old one flag a mode, or the newer `pooling_mode`.
fn read_pooling(path: &Path) -> Result<Vec<Pooling>, ModelError> {
    let config: Value = read_json(path)?;
    let bad = |reason: String| ModelError::Config { path: path.to_owned(), reason };
    let known = |name: &str| match name {
        "cls" | "cls_token" => Some(Pooling::Cls),
        "max" | "max_tokens" => Some(Pooling::Max),
        "mean" | "mean_tokens" => Some(Pooling::Mean),
        _ => None,
    };
    let mut names: Vec<String> = Vec::new();
    match config.get("pooling_mode") {
        Some(Value::String(name)) => names.push(name.clone()),
        Some(Value::Array(list)) => names.extend(list.iter().filter_map(Value::as_str).map(str::to_owned)),
        _ => {
            let flags = config.as_object().into_iter().flatten();
            for (key, _) in flags.filter(|(_, on)| on.as_bool() == Some(true)) {
                if let Some(name) = key.strip_prefix("pooling_mode_") {
                    names.push(name.to_owned());
                }
            }
        }
    }
    let mut poolings = Vec::new();
    for name in &names {
        let Some(pooling) = known(name) else {
            return Err(bad(format!("asks for pooling `{name}`; cls, max and mean are supported")));
        };
        poolings.push(pooling);
    }
    // sentence-transformers joins several modes in this order, whatever the file's.
    poolings.sort_by_key(|pooling| match pooling {
        Pooling::Cls => 0,
        Pooling::Max => 1,
        Pooling::Mean => 2,
    });
    if poolings.is_empty() {
        return Err(bad("names no pooling mode; cls, max and mean are supported".to_owned()));
    }
    Ok(poolings)
}
