//! Every way a fetch or a push can fail, as one sentence and a hint.

use std::path::PathBuf;

use thiserror::Error;

use crate::repo::{RepoId, Revision};

/// Why something could not be fetched or pushed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HubError {
    /// A repository's name that cannot be one.
    #[error("`{id}` is not the name of a repository: {reason}; `owner/name` is expected")]
    Id {
        /// As given.
        id: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A revision's name that cannot be one.
    #[error("`{revision}` is not the name of a revision: {reason}; a branch, a tag or a commit is expected")]
    RevisionName {
        /// As given.
        revision: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A data reference that cannot be one.
    #[error("`{reference}` does not name a file of a data set: {reason}")]
    DataRef {
        /// As given.
        reference: String,
        /// What is wrong with it.
        reason: String,
    },
    /// `HF_ENDPOINT` is no address.
    #[error("HF_ENDPOINT is `{endpoint}`, which is no address of a hub; `https://huggingface.co` is one")]
    Endpoint {
        /// As given.
        endpoint: String,
    },
    /// No such repository, or none that this token may see.
    #[error(
        "the hub has no {repo}, or it is private and {}",
        if *.token { "the token in use may not read it" } else { "no token was given" }
    )]
    NotFound {
        /// The repository.
        repo: RepoId,
        /// Whether a token was sent.
        token: bool,
    },
    /// No such branch, tag or commit.
    #[error("{repo} has no revision `{revision}`")]
    Revision {
        /// The repository.
        repo: RepoId,
        /// The branch, tag or commit asked for.
        revision: Revision,
    },
    /// No such file.
    #[error("{repo} has no file `{file}` at revision `{revision}`")]
    File {
        /// The repository.
        repo: RepoId,
        /// The revision asked for.
        revision: Revision,
        /// The path asked for.
        file: String,
    },
    /// The terms of the repository have to be accepted first.
    #[error(
        "{repo} is gated: {}",
        if *.token {
            "the account of the token in use has not been granted access"
        } else {
            "access needs a token of an account that has accepted its terms"
        }
    )]
    Gated {
        /// The repository.
        repo: RepoId,
        /// Where access is asked for.
        url: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// The hub does not know the token, or wants one.
    #[error("the hub refused {} for {repo}", if *.token { "the token in use" } else { "access without a token" })]
    Unauthorized {
        /// The repository.
        repo: RepoId,
        /// Whether a token was sent.
        token: bool,
    },
    /// The token may not do this.
    #[error("the hub forbids this for {repo}: {message}")]
    Forbidden {
        /// The repository.
        repo: RepoId,
        /// What the hub says.
        message: String,
    },
    /// Too many requests.
    #[error("the hub allows no more requests at the moment (429); it asks to wait {seconds} seconds")]
    RateLimited {
        /// How long the hub asks to wait.
        seconds: u64,
    },
    /// The hub cannot be reached.
    #[error("the hub at {endpoint} cannot be reached: {reason}")]
    Network {
        /// Where it should be.
        endpoint: String,
        /// What the system says.
        reason: String,
        /// What the cache has to offer instead.
        cache: String,
    },
    /// The hub has a fault.
    #[error("the hub answered {status} to {url}: {message}")]
    Server {
        /// The HTTP status.
        status: u16,
        /// What was asked for.
        url: String,
        /// What the hub says.
        message: String,
    },
    /// A file did not arrive whole.
    #[error("{repo}: the transfer of `{file}` broke: {reason}")]
    Transfer {
        /// The repository.
        repo: RepoId,
        /// The file.
        file: String,
        /// How.
        reason: String,
    },
    /// The hub says something that makes no sense.
    #[error("{repo}: the hub's answer makes no sense: {reason}")]
    Answer {
        /// The repository.
        repo: RepoId,
        /// What is wrong with it.
        reason: String,
    },
    /// A repository without weights that can be read.
    #[error("{repo} at {commit} holds no model.safetensors and no model.safetensors.index.json; {found}")]
    NoSafetensors {
        /// The repository.
        repo: RepoId,
        /// The commit.
        commit: String,
        /// What it holds instead.
        found: String,
    },
    /// Without the network, and the cache does not have it.
    #[error("the cache does not have {what}: {missing}; nothing is fetched offline")]
    Offline {
        /// The repository and its revision.
        what: String,
        /// What is not there.
        missing: String,
    },
    /// A file of the cache cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A push without a token.
    #[error("pushing to {repo} needs a token with write access, and there is none")]
    NoToken {
        /// The repository.
        repo: RepoId,
    },
    /// A push offline.
    #[error("pushing to {repo} needs the network, and this is offline (`--offline` or HF_HUB_OFFLINE)")]
    PushOffline {
        /// The repository.
        repo: RepoId,
    },
    /// The repository is public and the push was to be private.
    #[error(
        "{repo} is there already and is public; nothing was pushed, because a private push was asked for"
    )]
    Public {
        /// The repository.
        repo: RepoId,
    },
    /// The user asked to stop.
    #[error("stopped as asked")]
    Cancelled,
}

impl HubError {
    /// What to do about it, where that is not in the sentence itself.
    pub fn hint(&self) -> Option<String> {
        const TOKEN: &str = "set HF_TOKEN to a token of huggingface.co/settings/tokens";
        let hint = match self {
            Self::DataRef { .. } => "write hub:owner/name/path or hub:owner/name@revision/path",
            Self::NotFound { token: false, .. } => {
                return Some(format!("check the spelling; for a private one {TOKEN}"));
            }
            Self::NotFound { token: true, .. } => {
                "check the spelling and what the token in HF_TOKEN may read"
            }
            Self::Revision { .. } => "a commit is written with all its 40 digits",
            Self::Gated { url, token, .. } => {
                let token = if *token { "" } else { ", then set HF_TOKEN to a token of that account" };
                return Some(format!("ask for access at {url}{token}"));
            }
            Self::Unauthorized { .. } | Self::NoToken { .. } => return Some(TOKEN.to_owned()),
            Self::RateLimited { .. } => {
                "try again later; what is already here is kept. A token raises the limit"
            }
            Self::Network { cache, .. } if !cache.is_empty() => return Some(cache.clone()),
            Self::Network { .. } => "check the connection and HF_ENDPOINT",
            Self::Transfer { .. } => "run the command again: it goes on where it broke",
            Self::NoSafetensors { .. } => {
                "convert the weights to safetensors, or choose a repository that has them"
            }
            Self::Offline { .. } => "run once without --offline (or HF_HUB_OFFLINE) to fetch it",
            Self::Public { .. } => "give --public, or another name",
            _ => return None,
        };
        Some(hint.to_owned())
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
