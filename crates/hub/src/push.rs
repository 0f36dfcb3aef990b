//! A directory to the hub, in one commit.

use std::path::PathBuf;

use hf_hub::HFError;
use hf_hub::progress::Progress;
use hf_hub::repository::{CommitOperation, RepoTypeModel};

use crate::client::Subject;
use crate::{Hub, HubError, HubEvent, RepoId, Revision, Watch};

/// A file to push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushFile {
    /// Its path in the repository, with forward slashes.
    pub path: String,
    /// Where it is.
    pub source: PathBuf,
}

/// What to push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// The model repository, made if it is not there.
    pub repo: RepoId,
    /// The branch, made if it is not there.
    pub revision: Revision,
    /// Whether everyone may see it.
    pub public: bool,
    /// The commit's message.
    pub message: String,
    /// The files; those of the repository with other names stay.
    pub files: Vec<PushFile>,
}

/// What a push made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The repository's page.
    pub url: String,
    /// The commit, where the hub tells.
    pub commit: Option<String>,
}

impl Hub {
    /// Whether there is a token to push with.
    pub fn has_token(&self) -> bool {
        self.settings.token.is_some()
    }

    /// Makes the repository if it is not there and commits the files, all or none. A repository that is there keeps its
    /// visibility; one that is public takes nothing that was to be private. Once the commit is on its way it is waited
    /// for: a request to stop is heard before it.
    pub fn push(&self, upload: &Upload, watch: &dyn Watch) -> Result<Pushed, HubError> {
        let repo = &upload.repo;
        let Some(client) = self.client() else { return Err(HubError::PushOffline { repo: repo.clone() }) };
        if !self.has_token() {
            return Err(HubError::NoToken { repo: repo.clone() });
        }
        let main = Revision::default();
        let subject = Subject { repo, revision: &main, file: None };
        let (hub, id, private) = (client.hub(), repo.path(), !upload.public);
        let made = client.ask(subject, watch, move |_| {
            hub.create_repository()
                .repo_id(&id)
                .repo_type(RepoTypeModel)
                .private(private)
                .exist_ok(true)
                .send()
                .map(|_| ())
        });
        // A token may be allowed to write to a repository and not to make one: then it is to be there.
        let forbidden = match made {
            Ok(()) => None,
            Err(error @ HubError::Forbidden { .. }) => Some(error),
            Err(error) => return Err(error),
        };
        let handle = client.hub().model(repo.owner(), repo.name());
        let info = handle.clone();
        let is_private = client.ask(subject, watch, move |_| Ok(info.info().send()?.private));
        let is_private = is_private.map_err(|error| match (error, forbidden) {
            (HubError::NotFound { .. }, Some(forbidden)) => forbidden,
            (error, _) => error,
        })?;
        if private && is_private != Some(true) {
            return Err(HubError::Public { repo: repo.clone() });
        }
        if upload.revision != main {
            let (handle, branch) = (handle.clone(), upload.revision.to_string());
            client.ask(subject, watch, move |_| match handle.create_branch().branch(&branch).send() {
                Err(HFError::Conflict { .. }) => Ok(()),
                other => other,
            })?;
        }
        if watch.is_cancelled() {
            return Err(HubError::Cancelled);
        }
        let operations: Vec<CommitOperation> =
            upload.files.iter().map(|file| CommitOperation::add_file(&file.path, &file.source)).collect();
        let (message, branch) = (upload.message.clone(), upload.revision.to_string());
        let subject = Subject { repo, revision: &upload.revision, file: None };
        let mut heard = |done, total| watch.event(HubEvent::Uploaded { done, total });
        let commit = client.ask_to_the_end(subject, &mut heard, move |ticker| {
            handle
                .create_commit()
                .operations(operations.clone())
                .commit_message(&message)
                .revision(&branch)
                .progress(Progress::new(ticker))
                .send()
        })?;
        Ok(Pushed { url: repo.page(client.endpoint()), commit: commit.commit_oid })
    }
}
