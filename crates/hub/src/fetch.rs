//! Models and data files, from the cache or from the hub.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::RepoCache;
use crate::client::{Client, Subject};
use crate::headers::Scratch;
use crate::repo::{DataRef, RepoId, Revision};
use crate::select::{INDEX, SINGLE, WeightFiles, needed, shards, what_there_is};
use crate::transfer::Transfer;
use crate::tree::Entry;
use crate::{HubError, HubEvent, HubSettings, Watch};

/// How much of a model is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Weights {
    /// All of it.
    #[default]
    Whole,
    /// Configs, tokenizer and the headers of the weights, for a plan. Weights in the cache are used; without them the
    /// directory is a temporary one whose weight files hold nothing behind their headers.
    Headers,
}

/// A model that is here.
#[derive(Debug)]
pub struct FetchedModel {
    dir: PathBuf,
    commit: String,
    missing: u64,
    _scratch: Option<Scratch>,
}

impl FetchedModel {
    /// Its directory, in Hugging Face's layout. It may go away with this value, see [`Weights::Headers`].
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The commit that the revision meant.
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// Bytes of weights that a later fetch with [`Weights::Whole`] downloads.
    pub fn bytes_missing(&self) -> u64 {
        self.missing
    }
}

/// A file of a data set that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedFile {
    /// Where it is in the cache.
    pub path: PathBuf,
    /// The commit that the revision meant.
    pub commit: String,
}

/// The hub with its cache.
pub struct Hub {
    pub(crate) settings: HubSettings,
    /// Without the network there is nobody to ask.
    client: Option<Client>,
}

impl Hub {
    /// A hub as the settings say. No request is made yet.
    pub fn new(settings: HubSettings) -> Result<Self, HubError> {
        let client = if settings.offline { None } else { Some(Client::new(&settings)?) };
        Ok(Self { settings, client })
    }

    pub(crate) fn client(&self) -> Option<&Client> {
        self.client.as_ref()
    }

    fn cache(&self, repo: &RepoId) -> RepoCache {
        RepoCache::new(&self.settings.cache, repo)
    }

    /// Brings a model here and gives its directory. What the cache has is not downloaded again; offline, the cache must
    /// have it.
    pub fn fetch_model(
        &self,
        repo: &RepoId,
        revision: &Revision,
        weights: Weights,
        watch: &dyn Watch,
    ) -> Result<FetchedModel, HubError> {
        let cache = self.cache(repo);
        let Some(client) = &self.client else { return cached_model(&cache, repo, revision) };
        let with_cache = |error| add_cache_state(error, || cached_model(&cache, repo, revision).is_ok());
        let commit = client.commit(repo, revision, watch).map_err(with_cache)?;
        let subject = Subject { repo, revision, file: None };
        let entries = client.files(subject, &commit, watch)?;
        let transfer = Transfer {
            client,
            cache: &cache,
            repo,
            revision,
            commit: &commit,
            part_bytes: self.settings.part_bytes,
            watch,
        };
        let needed = needed(&entries);
        let mut files = needed.small.clone();
        let weight_files = match needed.weights {
            WeightFiles::Single(entry) => vec![entry],
            WeightFiles::Index(index) => {
                transfer.fetch(index)?;
                files.push(index);
                indexed(&cache, repo, &commit, &entries, index)?
            }
            WeightFiles::None => {
                let found = what_there_is(entries.iter().map(|entry| entry.path.as_str()));
                return Err(HubError::NoSafetensors { repo: repo.clone(), commit, found });
            }
        };
        let missing: Vec<&Entry> =
            weight_files.iter().copied().filter(|entry| !cache.has(&commit, entry)).collect();
        let missing_bytes = total(&missing);
        let only_headers = weights == Weights::Headers && !missing.is_empty();
        if !only_headers {
            files.extend(&weight_files);
        }
        announce(&transfer, &files);
        for entry in &files {
            transfer.fetch(entry)?;
        }
        cache.remember(revision, &commit)?;
        if !only_headers {
            return Ok(FetchedModel { dir: cache.snapshot(&commit), commit, missing: 0, _scratch: None });
        }
        let scratch = Scratch::new()?;
        for entry in &files {
            scratch.take(entry, &cache.pointer(&commit, &entry.path))?;
        }
        for entry in &weight_files {
            scratch.header(&transfer, entry)?;
        }
        let dir = scratch.path().to_owned();
        Ok(FetchedModel { dir, commit, missing: missing_bytes, _scratch: Some(scratch) })
    }

    /// Brings a file of a data set here.
    pub fn fetch_data(&self, data: &DataRef, watch: &dyn Watch) -> Result<FetchedFile, HubError> {
        let DataRef { repo, revision, file } = data;
        let cache = self.cache(repo);
        let cached = |commit: &str| {
            let path = cache.pointer(commit, file);
            path.is_file().then(|| FetchedFile { path, commit: commit.to_owned() })
        };
        let Some(client) = &self.client else {
            let what = format!("{repo} at revision `{revision}`");
            let commit = cache.commit_of(revision).ok_or_else(|| HubError::Offline {
                what: what.clone(),
                missing: "no file of this revision was ever fetched".to_owned(),
            })?;
            return cached(&commit).ok_or_else(|| HubError::Offline { what, missing: format!("`{file}`") });
        };
        if let (true, Some(found)) = (revision.is_commit(), cached(revision.as_str())) {
            return Ok(found);
        }
        let in_cache = || cache.commit_of(revision).is_some_and(|commit| cached(&commit).is_some());
        let commit =
            client.commit(repo, revision, watch).map_err(|error| add_cache_state(error, in_cache))?;
        let subject = Subject { repo, revision, file: Some(file) };
        let entry = client.file(subject, &commit, file, watch)?.ok_or_else(|| HubError::File {
            repo: repo.clone(),
            revision: revision.clone(),
            file: file.clone(),
        })?;
        let part_bytes = self.settings.part_bytes;
        let transfer = Transfer { client, cache: &cache, repo, revision, commit: &commit, part_bytes, watch };
        announce(&transfer, &[&entry]);
        transfer.fetch(&entry)?;
        cache.remember(revision, &commit)?;
        Ok(FetchedFile { path: cache.pointer(&commit, file), commit })
    }
}

fn total(entries: &[&Entry]) -> u64 {
    entries.iter().fold(0, |sum, entry| sum.saturating_add(entry.size))
}

/// Says what is about to be downloaded.
fn announce(transfer: &Transfer<'_>, files: &[&Entry]) {
    let missing: Vec<&Entry> =
        files.iter().copied().filter(|entry| !transfer.cache.has(transfer.commit, entry)).collect();
    if !missing.is_empty() {
        let what = format!("{} at {}", transfer.repo.path(), &transfer.commit[..7]);
        let bytes = total(&missing);
        transfer.watch.event(HubEvent::Fetching { what, files: missing.len(), bytes });
    }
}

/// The files that an index names, each of which the commit must have.
fn indexed<'a>(
    cache: &RepoCache,
    repo: &RepoId,
    commit: &str,
    entries: &'a [Entry],
    index: &Entry,
) -> Result<Vec<&'a Entry>, HubError> {
    let path = cache.pointer(commit, &index.path);
    let answer = |reason: String| HubError::Answer { repo: repo.clone(), reason };
    let text = fs::read(&path).map_err(HubError::io(path))?;
    let names = shards(&text).map_err(|reason| answer(format!("{INDEX} is no index: {reason}")))?;
    let find = |name: &String| {
        entries.iter().find(|entry| entry.path == *name).ok_or_else(|| {
            answer(format!("{INDEX} names `{}`, which the commit does not have", name.escape_debug()))
        })
    };
    names.iter().map(find).collect()
}

/// The model as the cache has it: config and weights must be there. Which other files the repository has, only the hub
/// could tell.
fn cached_model(cache: &RepoCache, repo: &RepoId, revision: &Revision) -> Result<FetchedModel, HubError> {
    let offline =
        |missing: String| HubError::Offline { what: format!("{repo} at revision `{revision}`"), missing };
    let commit = cache
        .commit_of(revision)
        .ok_or_else(|| offline("no file of this revision was ever fetched".to_owned()))?;
    let dir = cache.snapshot(&commit);
    let there = |name: &str| dir.join(name).is_file();
    let mut missing: Vec<String> = Vec::new();
    if !there("config.json") {
        missing.push("`config.json`".to_owned());
    }
    if !there(SINGLE) {
        match fs::read(dir.join(INDEX)) {
            Err(_) => missing.push(format!("the weights (`{SINGLE}` or `{INDEX}`)")),
            Ok(index) => {
                let names = shards(&index).map_err(|reason| HubError::Answer {
                    repo: repo.clone(),
                    reason: format!("{INDEX} in the cache is no index: {reason}"),
                })?;
                missing.extend(names.iter().filter(|name| !there(name)).map(|name| format!("`{name}`")));
            }
        }
    }
    if !missing.is_empty() {
        return Err(offline(missing.join(", ")));
    }
    Ok(FetchedModel { dir, commit, missing: 0, _scratch: None })
}

/// When the hub cannot be reached, says whether the cache would do.
fn add_cache_state(error: HubError, in_cache: impl Fn() -> bool) -> HubError {
    match error {
        HubError::Network { endpoint, reason, .. } => {
            let cache = if in_cache() {
                "the cache has this revision: --offline (or HF_HUB_OFFLINE=1) uses it"
            } else {
                "check the connection and HF_ENDPOINT; the cache does not have this revision"
            };
            HubError::Network { endpoint, reason, cache: cache.to_owned() }
        }
        other => other,
    }
}
