//! The Hugging Face hub: models and data files fetched into Python's cache layout, results pushed.
//!
//! `hf-hub` speaks HTTP with the hub. Around it this crate keeps three promises that its own download does not make:
//! nothing enters the cache that was not compared with the hash in the repository's tree, a broken transfer goes on
//! where it broke, and without the network (`HF_HUB_OFFLINE`, `--offline`) nothing but the cache is looked at.
//!
//! ```no_run
//! use zeropoint_hub::{Hub, HubSettings, RepoId, Revision, Weights};
//!
//! let hub = Hub::new(HubSettings::from_env())?;
//! let id = RepoId::model("sentence-transformers/all-MiniLM-L6-v2")?;
//! let model = hub.fetch_model(&id, &Revision::default(), Weights::Whole, &())?;
//! println!("{} at commit {}", model.path().display(), model.commit());
//! # Ok::<(), zeropoint_hub::HubError>(())
//! ```

mod cache;
mod client;
mod digest;
mod download;
mod error;
mod fetch;
mod headers;
mod push;
mod repo;
mod select;
mod settings;
mod transfer;
mod tree;
mod watch;

pub use error::HubError;
pub use fetch::{FetchedFile, FetchedModel, Hub, Weights};
pub use push::{PushFile, Pushed, Upload};
pub use repo::{DATA_PREFIX, DataRef, RepoId, RepoKind, Revision};
pub use settings::{HubSettings, Patience};
pub use watch::{HubEvent, Watch};
