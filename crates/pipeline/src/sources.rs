//! How models and data files are come by: directories and files of this machine, or those of the Hugging Face hub,
//! fetched into its cache.

#[cfg(feature = "hub")]
use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use zeropoint_models::SourceRef;

use crate::PipelineError;
use crate::events::{Cancel, Events};

/// What stands before a file of a data set of the hub.
const DATA_PREFIX: &str = "hub:";

/// Finds models and data files, and fetches those of the hub.
pub struct Sources<'a> {
    offline: bool,
    headers_only: bool,
    events: &'a dyn Events,
    cancel: &'a Cancel,
    #[cfg(feature = "hub")]
    hub: OnceCell<zeropoint_hub::Hub>,
}

/// Nothing is shown and nothing stops a download; whether the network is used, the environment says.
impl Default for Sources<'_> {
    fn default() -> Self {
        static NEVER: Cancel = Cancel::new();
        Self::new(&(), &NEVER)
    }
}

/// A model that is here.
#[derive(Debug)]
pub struct LocalModel {
    /// What to open.
    pub source: SourceRef,
    /// The commit, for a model of the hub.
    pub commit: Option<String>,
    /// Bytes of weights that were left on the hub; only headers are here if there are any. See
    /// [`Sources::headers_only`].
    pub bytes_missing: u64,
    /// Keeps a temporary directory alive.
    #[cfg(feature = "hub")]
    _fetched: Option<zeropoint_hub::FetchedModel>,
}

impl LocalModel {
    fn here(source: SourceRef) -> Self {
        Self {
            source,
            commit: None,
            bytes_missing: 0,
            #[cfg(feature = "hub")]
            _fetched: None,
        }
    }

    /// Refuses weights of which only the headers are here.
    pub(crate) fn check_whole(&self) -> Result<(), PipelineError> {
        if self.bytes_missing == 0 { Ok(()) } else { Err(PipelineError::HeadersOnly) }
    }
}

/// A data file that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    /// Where it is.
    pub path: PathBuf,
    /// The reference with its commit, for a file of the hub.
    pub pinned: Option<String>,
}

impl<'a> Sources<'a> {
    /// Downloads tell `events` of their progress and stop on `cancel`.
    pub fn new(events: &'a dyn Events, cancel: &'a Cancel) -> Self {
        Self {
            offline: false,
            headers_only: false,
            events,
            cancel,
            #[cfg(feature = "hub")]
            hub: OnceCell::new(),
        }
    }

    /// With `true`, only the hub's cache is looked at, as with `HF_HUB_OFFLINE=1`.
    #[must_use]
    pub fn offline(self, offline: bool) -> Self {
        Self { offline, ..self }
    }

    /// With `true`, weights that are not in the cache stay on the hub: their headers are fetched, which is enough to
    /// plan and to describe, and everything that runs a model refuses.
    #[must_use]
    pub fn headers_only(self, headers_only: bool) -> Self {
        Self { headers_only, ..self }
    }

    /// The model of `model.source` and `model.revision`.
    pub fn model(&self, source: &str, revision: Option<&str>) -> Result<LocalModel, PipelineError> {
        match SourceRef::parse(source)? {
            SourceRef::Hub { id } => self.fetch_model(id, revision),
            other => Ok(LocalModel::here(other)),
        }
    }

    /// As [`Sources::model`], for an argument that names a directory: a model of the hub is fetched, anything else is
    /// taken as the path that it is.
    pub fn directory(
        &self,
        name: &Path,
        revision: Option<&str>,
    ) -> Result<(PathBuf, LocalModel), PipelineError> {
        let as_given = || SourceRef::Directory(name.to_owned());
        let source = name.to_str().and_then(|name| SourceRef::parse(name).ok());
        let model = match source {
            Some(SourceRef::Hub { id }) => self.fetch_model(id, revision)?,
            _ => LocalModel::here(as_given()),
        };
        let path = match &model.source {
            SourceRef::Snapshot { path, .. } | SourceRef::Directory(path) => path.clone(),
            _ => name.to_owned(),
        };
        Ok((path, model))
    }

    /// The file of a data source: `hub:owner/name/path` and `hub:owner/name@revision/path` are files of a data set of
    /// the hub, everything else is a path.
    pub fn data(&self, path: &str) -> Result<LocalFile, PipelineError> {
        if path.starts_with(DATA_PREFIX) {
            return self.fetch_data(path);
        }
        Ok(LocalFile { path: PathBuf::from(path), pinned: None })
    }
}

#[cfg(feature = "hub")]
impl Sources<'_> {
    /// The hub of the environment.
    pub(crate) fn hub(&self) -> Result<&zeropoint_hub::Hub, PipelineError> {
        if let Some(hub) = self.hub.get() {
            return Ok(hub);
        }
        let settings = zeropoint_hub::HubSettings::from_env();
        let offline = self.offline || settings.offline;
        let hub = zeropoint_hub::Hub::new(zeropoint_hub::HubSettings { offline, ..settings })?;
        Ok(self.hub.get_or_init(|| hub))
    }

    fn fetch_model(&self, id: String, revision: Option<&str>) -> Result<LocalModel, PipelineError> {
        use zeropoint_hub::{HubError, RepoId, Revision, Weights};
        let revision = revision.map(Revision::parse).transpose()?.unwrap_or_default();
        let weights = if self.headers_only { Weights::Headers } else { Weights::Whole };
        let fetched = self.hub()?.fetch_model(&RepoId::model(&id)?, &revision, weights, self);
        let fetched = fetched.map_err(|error| match error {
            // The id may have been meant as a path.
            error @ (HubError::NotFound { .. } | HubError::Offline { .. } | HubError::Network { .. }) => {
                PipelineError::NoModel { id: id.clone(), hub: error }
            }
            error => error.into(),
        })?;
        Ok(LocalModel {
            source: SourceRef::Snapshot { id, path: fetched.path().to_owned() },
            commit: Some(fetched.commit().to_owned()),
            bytes_missing: fetched.bytes_missing(),
            _fetched: Some(fetched),
        })
    }

    fn fetch_data(&self, reference: &str) -> Result<LocalFile, PipelineError> {
        let data = zeropoint_hub::DataRef::parse(reference).transpose()?;
        let Some(data) = data else { return Ok(LocalFile { path: reference.into(), pinned: None }) };
        let file = self.hub()?.fetch_data(&data, self)?;
        Ok(LocalFile { path: file.path, pinned: Some(data.pinned(&file.commit)) })
    }
}

#[cfg(feature = "hub")]
impl zeropoint_hub::Watch for Sources<'_> {
    fn event(&self, event: zeropoint_hub::HubEvent) {
        use zeropoint_hub::HubEvent;

        use crate::events::Event;

        self.events.event(match event {
            HubEvent::Fetching { what, files, bytes } => Event::Fetching { what, files, bytes },
            HubEvent::Downloaded { file, done, total } => Event::Downloaded { file, done, total },
            HubEvent::Waiting { seconds } => Event::Waiting { seconds },
            HubEvent::Uploaded { done, total } => Event::Uploaded { done, total },
            _ => return,
        });
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.is_requested()
    }
}

#[cfg(not(feature = "hub"))]
impl Sources<'_> {
    fn no_hub<T>(&self, what: String) -> Result<T, PipelineError> {
        let _ = (self.offline, self.headers_only, self.events, self.cancel);
        Err(PipelineError::NoHub { what })
    }

    fn fetch_model(&self, id: String, _revision: Option<&str>) -> Result<LocalModel, PipelineError> {
        self.no_hub(id)
    }

    fn fetch_data(&self, reference: &str) -> Result<LocalFile, PipelineError> {
        self.no_hub(reference.to_owned())
    }
}
