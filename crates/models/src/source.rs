//! Where a model comes from, and its directory once it is there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::TempDir;
use zeropoint_formats::Checkpoint;
use zeropoint_formats::deployed::InputRotation;
use zeropoint_formats::safetensors::Overlay;

use crate::embedded::EMBEDDED;
use crate::families::{self, FamilyInput};
use crate::heads::Task;
use crate::rotation::named_rotations;
use crate::sentence::{TransformerConfig, read_modules};
use crate::tokenizer::TokenizerSettings;
use crate::{ImageProcessor, ModelError, ModelSpec, Tokenizer};

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
    /// A model of the Hugging Face hub, which has to be fetched before it can be opened.
    Hub {
        /// `owner/name`.
        id: String,
    },
    /// A model of the hub that has been fetched.
    Snapshot {
        /// `owner/name`.
        id: String,
        /// Its directory.
        path: PathBuf,
    },
}

impl SourceRef {
    /// Understands `model.source`: "embedded", a directory that exists, or `owner/name` of the hub.
    pub fn parse(source: &str) -> Result<Self, ModelError> {
        if source == EMBEDDED_NAME {
            return Ok(Self::Embedded);
        }
        let path = PathBuf::from(source);
        if path.is_dir() {
            return Ok(Self::Directory(path));
        }
        let named = |part: &str| !part.is_empty() && part != "." && part != "..";
        let owner = source
            .split_once('/')
            .filter(|(owner, name)| named(owner) && named(name) && !name.contains('/'))
            .map(|(owner, _)| owner);
        let in_the_way = owner.filter(|owner| Path::new(owner).exists());
        if owner.is_some() && in_the_way.is_none() && !path.exists() {
            return Ok(Self::Hub { id: source.to_owned() });
        }
        if path.exists() {
            let error = std::io::Error::new(
                std::io::ErrorKind::NotADirectory,
                "a file is given; the directory that holds config.json is expected",
            );
            return Err(ModelError::Io { path, source: error });
        }
        Err(ModelError::NotFound { path, owner: in_the_way.map(str::to_owned) })
    }

    /// A short name for output directories and reports.
    pub fn name(&self) -> String {
        match self {
            Self::Embedded => EMBEDDED_NAME.to_owned(),
            Self::Hub { id } | Self::Snapshot { id, .. } => {
                id.rsplit('/').next().unwrap_or_default().to_owned()
            }
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
    tokenizer: TokenizerSettings,
    task: Task,
    /// Holds the embedded model's files while they are in use.
    _unpacked: Option<TempDir>,
}

impl ModelDirectory {
    /// Opens a source for a task.
    pub fn open(source: &SourceRef, task: Task) -> Result<Self, ModelError> {
        match source {
            SourceRef::Directory(path) | SourceRef::Snapshot { path, .. } => {
                Self::describe(path.clone(), source.name(), task, None)
            }
            SourceRef::Hub { id } => Err(ModelError::HubId { id: id.clone() }),
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
            return Err(ModelError::NotFound { path: dir, owner: None });
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
        let rotations = named_rotations(&config)?;
        let parts = (config, checkpoint, rotations.as_slice());
        Self::assemble(dir, name, task, parts, unpacked)
    }

    /// A directory with this config.json, weights and rotations.
    fn assemble(
        dir: PathBuf,
        name: String,
        task: Task,
        (config, checkpoint, rotations): (Value, Checkpoint, &[InputRotation]),
        unpacked: Option<TempDir>,
    ) -> Result<Self, ModelError> {
        let sentence = read_modules(&dir, &config)?;
        let mut spec = families::describe(&FamilyInput {
            dir: &dir,
            config: &config,
            checkpoint: &checkpoint,
            task,
            sentence,
            quantized: quantization_config(&config).is_some() || !rotations.is_empty(),
        })?;
        spec.rotate(rotations)
            .and_then(|()| spec.check_divisors(&checkpoint))
            .map_err(|reason| ModelError::Config { path: dir.join("config.json"), reason })?;
        tracing::info!(
            dir = %dir.display(),
            architecture = spec.architecture,
            linears = spec.linears.len(),
            sites = spec.sites.len(),
            "model described"
        );
        let sentence = TransformerConfig::read(&dir)?;
        let tokenizer = TokenizerSettings::read(&dir, &config, sentence.lower_case())?;
        let positions = spec.text().map(|(_, text)| text.max_positions);
        let all = [sentence.max_seq_length, tokenizer.max_length(), positions];
        let max_tokens = all.into_iter().flatten().min().unwrap_or(1);
        Ok(Self { dir, name, config, checkpoint, spec, max_tokens, tokenizer, task, _unpacked: unpacked })
    }

    /// This model with other tensors in place of some of its own and beside them, and with activations that are rotated. An
    /// untied one has a matrix of its own for its logits, which the overlay holds. It lives no longer than this.
    pub fn with_overlay(
        &self,
        overlay: Arc<dyn Overlay>,
        untied: bool,
        rotations: &[InputRotation],
    ) -> Result<Self, ModelError> {
        const TIED: &str = "tie_word_embeddings";
        let mut config = self.config.clone();
        if untied && let Value::Object(config) = &mut config {
            config.insert(TIED.to_owned(), Value::Bool(false));
            // Models of texts and images keep a config of each.
            if let Some(Value::Object(text)) = config.get_mut("text_config") {
                text.insert(TIED.to_owned(), Value::Bool(false));
            }
        }
        let checkpoint = Checkpoint::open(&self.dir)?.with_overlay(overlay);
        let parts = (config, checkpoint, rotations);
        Self::assemble(self.dir.clone(), self.name.clone(), self.task, parts, None)
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
        Tokenizer::load(&self.dir, limit, &self.tokenizer)
    }

    /// What prepares images, for a model that takes them.
    pub fn image_processor(&self) -> Result<Option<ImageProcessor>, ModelError> {
        let model_type = self.config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let image = self.spec.image();
        image.map(|(_, input)| ImageProcessor::load(&self.dir, model_type, input)).transpose()
    }
}

/// `null` says no more than an absent key.
impl ModelDirectory {
    /// Tokens that end a text: `eos_token_id` of `generation_config.json`, otherwise of `config.json`, one or several; none where
    /// both are silent.
    pub fn stop_tokens(&self) -> Result<Vec<u32>, ModelError> {
        const KEY: &str = "eos_token_id";
        let path = self.dir.join("generation_config.json");
        let own: Option<Value> = read_json_if_there(&path)?;
        let told = own.as_ref().and_then(|own| own.get(KEY)).filter(|value| !value.is_null());
        let (path, value) = match told {
            Some(value) => (path, Some(value)),
            None => (self.dir.join("config.json"), self.config.get(KEY)),
        };
        let ids: Option<Vec<u32>> = match value {
            None | Some(Value::Null) => Some(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(token_id).collect(),
            Some(id) => token_id(id).map(|id| vec![id]),
        };
        ids.ok_or_else(|| ModelError::Config {
            path,
            reason: format!(
                "`{KEY}` is {}; a token id or a list of them is expected",
                value.unwrap_or(&Value::Null)
            ),
        })
    }
}

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

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

pub(crate) fn read_json_if_there<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ModelError> {
    path.exists().then(|| read_json(path)).transpose()
}
