//! A quantised model to the hub: what would go there, checked before anything is sent.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use zeropoint_formats::staged::is_model_file;
use zeropoint_formats::{Checkpoint, DeployedConfig};
use zeropoint_hub::{PushFile, RepoId, Revision, Upload};

use crate::deploy::MODEL_DIR;
use crate::sources::Sources;
use crate::{Cancel, Events, PipelineError};

/// A larger file is refused by the hub.
const LARGEST_FILE: u64 = 50_000_000_000;

/// Where to push, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushRequest {
    /// `owner/name`.
    pub target: String,
    /// The branch; `main` by default.
    pub revision: Option<String>,
    /// Whether everyone may see the repository.
    pub public: bool,
    /// The commit's message; by default one that names the version.
    pub message: Option<String>,
}

/// What a push would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PushPlan {
    /// The model directory.
    pub dir: PathBuf,
    /// `owner/name`.
    pub target: String,
    /// The branch.
    pub revision: String,
    /// Whether everyone may see a repository that is made.
    pub public: bool,
    /// The files with their bytes, by path.
    pub files: Vec<(String, u64)>,
    /// Bytes of all files.
    pub bytes: u64,
    /// What works but should be known.
    pub warnings: Vec<String>,
    #[serde(skip)]
    upload: Upload,
}

/// What a push made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PushOutcome {
    /// The repository's page.
    pub url: String,
    /// The commit, where the hub tells.
    pub commit: Option<String>,
}

/// Checks a directory and lists what would go to the hub. Nothing is sent.
///
/// `dir` is the `model/` of a run, or the run directory.
pub fn plan_push(dir: &Path, request: &PushRequest) -> Result<PushPlan, PipelineError> {
    let inside = dir.join(MODEL_DIR);
    let dir = if !dir.join("config.json").exists() && inside.join("config.json").exists() {
        inside
    } else {
        dir.to_owned()
    };
    let repo = RepoId::model(&request.target)?;
    let revision = request.revision.as_deref().map(Revision::parse).transpose()?.unwrap_or_default();
    let refuse = |reason: String| PipelineError::NotPushable { path: dir.clone(), reason };
    check_config(&dir)?;
    let checkpoint = Checkpoint::open(&dir)?;
    let mut files = Vec::new();
    list(&dir, &dir, &mut files)?;
    files.sort();
    let strays: Vec<&str> =
        files.iter().map(|(path, _)| path.as_str()).filter(|path| !is_model_file(Path::new(path))).collect();
    if !strays.is_empty() {
        return Err(refuse(format!(
            "holds files that are no part of a model: {}; remove them, nothing was pushed",
            strays.join(", ")
        )));
    }
    let extra = files.iter().find(|(path, _)| {
        path.ends_with(".safetensors")
            && !path.contains('/')
            && !checkpoint.files().iter().any(|file| file.ends_with(path))
    });
    if let Some((path, _)) = extra {
        return Err(refuse(format!("holds `{path}`, which its index does not name; remove it")));
    }
    if let Some((path, bytes)) = files.iter().find(|(_, bytes)| *bytes > LARGEST_FILE) {
        return Err(refuse(format!(
            "holds `{path}` with {bytes} bytes; the hub takes at most {LARGEST_FILE} in a file"
        )));
    }
    let warnings = check_card(&dir)?;
    let message = request
        .message
        .clone()
        .unwrap_or_else(|| format!("INT8 model, quantised with Zeropoint {}", env!("CARGO_PKG_VERSION")));
    let upload = Upload {
        repo,
        revision: revision.clone(),
        public: request.public,
        message,
        files: files
            .iter()
            .map(|(path, _)| PushFile { path: path.clone(), source: dir.join(path) })
            .collect(),
    };
    Ok(PushPlan {
        target: request.target.clone(),
        revision: revision.to_string(),
        public: request.public,
        bytes: files.iter().map(|(_, bytes)| bytes).sum(),
        dir,
        files,
        warnings,
        upload,
    })
}

/// Pushes what was planned, in one commit.
pub fn push(
    plan: &PushPlan,
    offline: bool,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<PushOutcome, PipelineError> {
    let sources = Sources::new(events, cancel).offline(offline);
    let pushed = sources.hub()?.push(&plan.upload, &sources)?;
    Ok(PushOutcome { url: pushed.url, commit: pushed.commit })
}

/// The model is quantised, in the form that is published here.
fn check_config(dir: &Path) -> Result<(), PipelineError> {
    let path = dir.join("config.json");
    let refuse = |reason: String| PipelineError::NotPushable { path: dir.to_owned(), reason };
    let text = match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(refuse(
                "holds no config.json; give a run directory or the `model/` in it".to_owned(),
            ));
        }
        other => other.map_err(|source| PipelineError::Io { path: path.clone(), source })?,
    };
    let config: Value = serde_json::from_slice(&text)
        .map_err(|error| refuse(format!("its config.json is not JSON: {error}")))?;
    let quantization = DeployedConfig::from_config(&config)?;
    quantization.map(drop).ok_or_else(|| {
        refuse("is not quantised (config.json has no `quantization_config`); what is pushed is what `zeropoint run` wrote".to_owned())
    })
}

/// The card is there; what it lacks is said.
fn check_card(dir: &Path) -> Result<Vec<String>, PipelineError> {
    let Ok(card) = fs::read_to_string(dir.join("README.md")) else {
        let reason =
            "holds no model card (README.md), and without one nobody knows what the model is".to_owned();
        return Err(PipelineError::NotPushable { path: dir.to_owned(), reason });
    };
    let lacks = |key: &str, why: &str| {
        (!says(&card, key)).then(|| format!("the card's front matter has no `{key}`: {why}"))
    };
    Ok([
        lacks("license", "nobody may know whether they may use the model"),
        lacks("base_model", "the hub cannot link it to its original"),
    ]
    .into_iter()
    .flatten()
    .collect())
}

/// Whether a card's front matter has a key, with a value behind it or in the lines below.
fn says(card: &str, key: &str) -> bool {
    let mut lines = card.trim_start_matches('\u{feff}').lines().map(str::trim_end);
    lines.next() == Some("---")
        && lines
            .take_while(|line| *line != "---")
            .any(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')))
}

/// Every file below `dir`, with forward slashes. A link might lead anywhere and is refused.
fn list(root: &Path, dir: &Path, found: &mut Vec<(String, u64)>) -> Result<(), PipelineError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| PipelineError::Io { path, source }
    };
    for entry in fs::read_dir(dir).map_err(io(dir))? {
        let path = entry.map_err(io(dir))?.path();
        let metadata = fs::symlink_metadata(&path).map_err(io(&path))?;
        if metadata.is_dir() {
            list(root, &path, found)?;
            continue;
        }
        let relative = path.strip_prefix(root).unwrap_or(&path);
        let parts: Option<Vec<&str>> = relative.iter().map(|part| part.to_str()).collect();
        match parts {
            Some(parts) if metadata.is_file() => found.push((parts.join("/"), metadata.len())),
            _ => {
                return Err(PipelineError::NotPushable {
                    path: root.to_owned(),
                    reason: format!(
                        "holds {}, which is no plain file with a name in UTF-8",
                        relative.display()
                    ),
                });
            }
        }
    }
    Ok(())
}
