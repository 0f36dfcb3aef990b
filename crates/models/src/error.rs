//! What can be wrong with a model directory, and with running it.

use std::path::{Path, PathBuf};

use thiserror::Error;
use zeropoint_formats::FormatError;

/// Why a model could not be read, described or run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// `model.source` names nothing that exists.
    #[error(
        "{path}: no such model directory{}; a directory with config.json, or \"embedded\", is expected",
        in_the_way(.owner.as_deref())
    )]
    NotFound {
        /// The directory asked for.
        path: PathBuf,
        /// For `owner/name`, the file or folder here that keeps it from being an id of the hub.
        owner: Option<String>,
    },
    /// A model of the hub that was not fetched.
    #[error("`{id}` is neither a directory here nor \"embedded\", and it was not fetched from the hub")]
    HubId {
        /// The source as given.
        id: String,
    },
    /// A file of the directory cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A JSON file of the directory does not hold what it must.
    #[error("{path}: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong, what is allowed.
        reason: String,
    },
    /// The model is of an architecture that has no description here.
    #[error("{path}: architecture `{found}` is not supported; supported are {supported}")]
    Architecture {
        /// Its config.json.
        path: PathBuf,
        /// `architectures[0]`, or `model_type`.
        found: String,
        /// The supported ones, comma-separated.
        supported: String,
    },
    /// The model cannot do what is asked.
    #[error("{path}: `task = \"{asked}\"` does not fit {architecture}; {allowed}")]
    Task {
        /// The model directory.
        path: PathBuf,
        /// The task asked for.
        asked: String,
        /// The model's architecture.
        architecture: String,
        /// What fits.
        allowed: String,
    },
    /// A tensor that the description needs is absent or has another shape.
    #[error("{path}: tensor `{tensor}` {reason}")]
    Tensor {
        /// The model directory.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The tokenizer cannot be loaded or refuses a text.
    #[error("{path}: the tokenizer {reason}")]
    Tokenizer {
        /// Its file.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
    /// The chat template cannot be used, or refuses a conversation.
    #[error("{path}: the chat template {reason}")]
    ChatTemplate {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A conversation for a model that has no chat template.
    #[error(
        "{path}: the model has no chat template (`chat_template.jinja`, or `chat_template` in tokenizer_config.json), so it \
         takes texts and no conversations"
    )]
    NoChatTemplate {
        /// The model directory.
        path: PathBuf,
    },
    /// A prompt that the model does not have, or has no use for.
    #[error("{reason}")]
    Prompt {
        /// What and why, and what there is.
        reason: String,
    },
    /// A sample that the model cannot take.
    #[error("{reason}")]
    Sample {
        /// What and why.
        reason: String,
    },
    /// Weight files.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// An observer refused the activations of a site.
    #[error("site `{site}`: {reason}")]
    Site {
        /// The site.
        site: String,
        /// Why.
        reason: String,
    },
    /// An instruction set was asked for that cannot be had.
    #[error(transparent)]
    Isa(#[from] zeropoint_kernels::IsaError),
    /// candle refused an operation: a fault of this program.
    #[error("internal error in a tensor operation: {0}")]
    Candle(#[from] candle_core::Error),
}

fn in_the_way(owner: Option<&str>) -> String {
    owner.map_or_else(String::new, |owner| {
        format!(
            ", and it is not taken for an id of the hub because `{owner}` exists here: run where it does not to fetch it"
        )
    })
}

impl ModelError {
    /// A tensor that holds NaN or an infinity at `element`.
    pub fn not_finite(dir: &Path, tensor: &str, element: usize, value: f32) -> Self {
        Self::Tensor {
            path: dir.to_owned(),
            tensor: tensor.to_owned(),
            reason: format!(
                "holds {value} at element {element}; weights must be finite: the source is damaged"
            ),
        }
    }
}
