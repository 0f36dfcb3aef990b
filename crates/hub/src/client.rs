//! Requests: each one on a thread of its own, so that it can be given up, tried again while that may help, and its
//! failure said in the terms of what was asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use hf_hub::progress::{ProgressEvent, ProgressHandler, UploadEvent};
use hf_hub::repository::{RepoTreeEntry, RepoTypeDataset, RepoTypeModel};
use hf_hub::{HFClient, HFClientSync, HFError, HFRepositorySync, HFResult};

use crate::download::{Download, Driver, Part};
use crate::repo::{RepoId, RepoKind, Revision, is_oid};
use crate::settings::{HubSettings, Patience};
use crate::tree::Entry;
use crate::{HubError, HubEvent, Watch};

/// How often a running request is asked whether it should go on.
const TICK: Duration = Duration::from_millis(50);
/// Signs that a request may be ahead of whoever hears them; bytes are among them, and wait here in memory.
const AHEAD: usize = 16;
/// A repository with more files is not a model.
const MAX_FILES: usize = 100_000;

/// What a request is about, for messages.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) repo: &'a RepoId,
    pub(crate) revision: &'a Revision,
    pub(crate) file: Option<&'a str>,
}

/// Asks the hub.
pub(crate) struct Client {
    hub: HFClientSync,
    /// The same client for downloads, which only it gives as streams.
    streams: HFClient,
    driver: Arc<Driver>,
    endpoint: String,
    token: bool,
    patience: Patience,
}

/// A repository to ask.
#[derive(Clone)]
enum Handle {
    Model(HFRepositorySync<RepoTypeModel>),
    Dataset(HFRepositorySync<RepoTypeDataset>),
}

/// Why a request gave no answer.
enum Failure {
    Hub(HFError),
    Stalled(Duration),
    Cancelled,
    /// What came could not be used here.
    Unused(HubError),
}

/// What a request that is under way gives of itself.
pub(crate) enum Sign {
    /// Bytes so far, and of how many.
    Progress(u64, u64),
    /// Bytes of an answer.
    Bytes(Vec<u8>),
}

/// Takes the signs of a request to whoever waits for it.
pub(crate) struct Ticker<T>(SyncSender<Message<T>>);

enum Message<T> {
    Sign(Sign),
    Done(HFResult<T>),
}

impl<T: Send> Ticker<T> {
    /// An error when the request was given up and nobody listens.
    fn give(&self, sign: Sign) -> HFResult<()> {
        let sent = self.0.send(Message::Sign(sign));
        sent.map_err(|_| HFError::Other("the request was given up".to_owned()))
    }
}

impl<T: Send> ProgressHandler for Ticker<T> {
    fn on_progress(&self, event: &ProgressEvent) {
        if let ProgressEvent::Upload(UploadEvent::Progress { bytes_completed, total_bytes, .. }) = event {
            // Nobody listens to a request that was given up.
            let _ = self.give(Sign::Progress(*bytes_completed, *total_bytes));
        }
    }
}

impl Client {
    pub(crate) fn new(settings: &HubSettings) -> Result<Self, HubError> {
        let endpoint = settings.checked_endpoint()?;
        let mut builder = HFClient::builder()
            .endpoint(&endpoint)
            .cache_dir(&settings.cache)
            .user_agent(concat!("zeropoint/", env!("CARGO_PKG_VERSION")))
            .retry_max_attempts(0);
        if let Some(token) = &settings.token {
            builder = builder.token(token);
        }
        let failed = |error: HFError| HubError::Network {
            endpoint: endpoint.clone(),
            reason: error.to_string(),
            cache: String::new(),
        };
        let streams = builder.build().map_err(failed)?;
        let hub = HFClientSync::from_inner(streams.clone()).map_err(failed)?;
        let driver = Arc::new(Driver::start().map_err(|error| failed(error.into()))?);
        let (token, patience) = (settings.token.is_some(), settings.patience);
        Ok(Self { hub, streams, driver, endpoint, token, patience })
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn handle(&self, repo: &RepoId) -> Handle {
        match repo.kind() {
            RepoKind::Model => Handle::Model(self.hub.model(repo.owner(), repo.name())),
            RepoKind::Dataset => Handle::Dataset(self.hub.dataset(repo.owner(), repo.name())),
        }
    }

    pub(crate) fn hub(&self) -> HFClientSync {
        self.hub.clone()
    }

    /// The commit that a revision means now.
    pub(crate) fn commit(
        &self,
        repo: &RepoId,
        revision: &Revision,
        watch: &dyn Watch,
    ) -> Result<String, HubError> {
        let (handle, name) = (self.handle(repo), revision.as_str().to_owned());
        let subject = Subject { repo, revision, file: None };
        let sha = self.ask(subject, watch, move |_| match &handle {
            Handle::Model(repo) => Ok(repo.info().revision(&name).send()?.sha),
            Handle::Dataset(repo) => Ok(repo.info().revision(&name).send()?.sha),
        })?;
        sha.filter(|sha| is_oid(sha)).ok_or_else(|| HubError::Answer {
            repo: repo.clone(),
            reason: format!("it names no commit for revision `{revision}`"),
        })
    }

    /// Every file of a commit.
    pub(crate) fn files(
        &self,
        subject: Subject<'_>,
        commit: &str,
        watch: &dyn Watch,
    ) -> Result<Vec<Entry>, HubError> {
        let (handle, name) = (self.handle(subject.repo), commit.to_owned());
        let tree = self.ask(subject, watch, move |_| match &handle {
            Handle::Model(repo) => repo.list_tree().revision(&name).recursive(true).limit(MAX_FILES).send(),
            Handle::Dataset(repo) => repo.list_tree().revision(&name).recursive(true).limit(MAX_FILES).send(),
        })?;
        entries(subject.repo, tree)
    }

    /// One file of a commit, if it is there.
    pub(crate) fn file(
        &self,
        subject: Subject<'_>,
        commit: &str,
        path: &str,
        watch: &dyn Watch,
    ) -> Result<Option<Entry>, HubError> {
        let (handle, name) = (self.handle(subject.repo), commit.to_owned());
        let paths = vec![path.to_owned()];
        let tree = self.ask(subject, watch, move |_| match &handle {
            Handle::Model(repo) => repo.get_paths_info().paths(paths.clone()).revision(&name).send(),
            Handle::Dataset(repo) => repo.get_paths_info().paths(paths.clone()).revision(&name).send(),
        })?;
        Ok(entries(subject.repo, tree)?.into_iter().find(|entry| entry.path == path))
    }

    /// Hands the bytes of a part to `take` while they come: in order, each once, all of the range, and up to
    /// [`Part::enough`] where the server knows no ranges. Never more, and no more than the range is held in memory.
    /// `heard` is told up to which place of the file bytes have come.
    pub(crate) fn bytes(
        &self,
        subject: Subject<'_>,
        commit: &str,
        part: &Part<'_>,
        watch: &dyn Watch,
        heard: &mut dyn FnMut(u64),
        take: &mut dyn FnMut(&[u8]) -> Result<(), HubError>,
    ) -> Result<(), HubError> {
        let download = Download {
            hub: self.streams.clone(),
            driver: Arc::clone(&self.driver),
            repo: subject.repo.clone(),
            commit: commit.to_owned(),
            path: part.path.to_owned(),
            size: part.size,
            end: part.range.end,
            enough: part.enough,
        };
        // A request that is made again goes on where the last one broke.
        let taken = Arc::new(AtomicU64::new(part.range.start));
        let begin = Arc::clone(&taken);
        let mut hear = |sign: Sign| -> Result<(), HubError> {
            match sign {
                Sign::Progress(place, _) => heard(place),
                Sign::Bytes(bytes) => {
                    take(&bytes)?;
                    taken.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                }
            }
            Ok(())
        };
        self.ask_within(self.patience.stall, subject, watch, &mut hear, move |ticker: Ticker<()>| {
            let start = begin.load(Ordering::Relaxed);
            if start >= download.end { Ok(()) } else { download.receive(start, |sign| ticker.give(sign)) }
        })
    }

    /// Makes a request until it is answered, fails for good, or patience ends.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        subject: Subject<'_>,
        watch: &dyn Watch,
        work: impl Fn(Ticker<T>) -> HFResult<T> + Send + Sync + Clone + 'static,
    ) -> Result<T, HubError> {
        self.ask_within(self.patience.stall, subject, watch, &mut |_| Ok(()), work)
    }

    /// As [`Client::ask`], for a request that changes something: it is waited for, however long it is silent, and not
    /// given up half-way.
    pub(crate) fn ask_to_the_end<T: Send + 'static>(
        &self,
        subject: Subject<'_>,
        heard: &mut dyn FnMut(u64, u64),
        work: impl Fn(Ticker<T>) -> HFResult<T> + Send + Sync + Clone + 'static,
    ) -> Result<T, HubError> {
        let mut hear = |sign: Sign| -> Result<(), HubError> {
            if let Sign::Progress(done, total) = sign {
                heard(done, total);
            }
            Ok(())
        };
        self.ask_within(Duration::MAX, subject, &(), &mut hear, work)
    }

    fn ask_within<T: Send + 'static>(
        &self,
        stall: Duration,
        subject: Subject<'_>,
        watch: &dyn Watch,
        hear: &mut dyn FnMut(Sign) -> Result<(), HubError>,
        work: impl Fn(Ticker<T>) -> HFResult<T> + Send + Sync + Clone + 'static,
    ) -> Result<T, HubError> {
        let mut pause = self.patience.pause;
        for attempt in 1.. {
            let last = attempt >= self.patience.attempts;
            match once(stall, watch, hear, work.clone()) {
                Ok(value) => return Ok(value),
                Err(Failure::Cancelled) => return Err(HubError::Cancelled),
                Err(failure) => {
                    let wait = match rate_limit(&failure, pause * 4) {
                        Some(wait) => {
                            if last || wait > self.patience.longest_wait {
                                return Err(HubError::RateLimited { seconds: wait.as_secs().max(1) });
                            }
                            watch.event(HubEvent::Waiting { seconds: wait.as_secs() });
                            wait
                        }
                        None if last || !may_pass(&failure) => return Err(self.explain(failure, subject)),
                        None => pause,
                    };
                    tracing::debug!(attempt, repo = %subject.repo, ?wait, "request failed, trying again");
                    sleep(wait, watch)?;
                    pause *= 2;
                }
            }
        }
        unreachable!("the loop ends by returning")
    }

    fn explain(&self, failure: Failure, subject: Subject<'_>) -> HubError {
        let repo = subject.repo.clone();
        let broken = |reason: String| match subject.file {
            Some(file) => HubError::Transfer { repo: repo.clone(), file: file.to_owned(), reason },
            None => HubError::Network { endpoint: self.endpoint.clone(), reason, cache: String::new() },
        };
        let error = match failure {
            Failure::Cancelled => return HubError::Cancelled,
            Failure::Unused(error) => return error,
            Failure::Stalled(time) => return broken(format!("no byte came for {} seconds", time.as_secs())),
            Failure::Hub(error) => error,
        };
        if let Some(answer) = Answer::of(&error) {
            return answer.explain(subject, &self.endpoint, self.token);
        }
        match error {
            HFError::Request { source, .. } if source.is_connect() => HubError::Network {
                endpoint: self.endpoint.clone(),
                reason: innermost(&source),
                cache: String::new(),
            },
            HFError::Request { source, .. } if is_json(&source) => HubError::Answer {
                repo,
                reason: format!("it is not the JSON expected: {}", innermost(&source)),
            },
            HFError::Request { source, .. } => broken(innermost(&source)),
            HFError::Xet { source, .. } => broken(source.to_string()),
            other => HubError::Answer { repo, reason: other.to_string() },
        }
    }
}

/// Makes a request once. One that is given up ends when it next has something to say.
fn once<T: Send + 'static>(
    stall: Duration,
    watch: &dyn Watch,
    hear: &mut dyn FnMut(Sign) -> Result<(), HubError>,
    work: impl FnOnce(Ticker<T>) -> HFResult<T> + Send + 'static,
) -> Result<T, Failure> {
    let (sender, receiver) = mpsc::sync_channel(AHEAD);
    let ticker = Ticker(sender.clone());
    let spawned = std::thread::Builder::new().name("hub-request".to_owned()).spawn(move || {
        let _ = sender.send(Message::Done(work(ticker)));
    });
    spawned.map_err(|error| Failure::Hub(error.into()))?;
    let mut last_sign = Instant::now();
    loop {
        match receiver.recv_timeout(TICK) {
            Ok(Message::Done(answer)) => return answer.map_err(Failure::Hub),
            Ok(Message::Sign(sign)) => {
                last_sign = Instant::now();
                hear(sign).map_err(Failure::Unused)?;
            }
            Err(RecvTimeoutError::Timeout) if last_sign.elapsed() > stall => {
                return Err(Failure::Stalled(stall));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Failure::Hub(HFError::Other("the request ended without an answer".to_owned())));
            }
        }
        if watch.is_cancelled() {
            return Err(Failure::Cancelled);
        }
    }
}

fn entries(repo: &RepoId, tree: Vec<RepoTreeEntry>) -> Result<Vec<Entry>, HubError> {
    let files = tree.into_iter().filter_map(|entry| match entry {
        RepoTreeEntry::File { oid, size, path, lfs, xet_hash, .. } => {
            let size = lfs.as_ref().and_then(|lfs| lfs.size).unwrap_or(size);
            Some(Entry::new(repo, path, size, oid, lfs.is_some() || xet_hash.is_some()))
        }
        RepoTreeEntry::Directory { .. } => None,
    });
    files.collect()
}

/// Waits, and stops waiting when asked to.
fn sleep(time: Duration, watch: &dyn Watch) -> Result<(), HubError> {
    let end = Instant::now() + time;
    loop {
        if watch.is_cancelled() {
            return Err(HubError::Cancelled);
        }
        match end.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => std::thread::sleep(left.min(TICK)),
            _ => return Ok(()),
        }
    }
}

/// For a 429, the pause that it asks for, or this one where it does not say.
fn rate_limit(failure: &Failure, otherwise: Duration) -> Option<Duration> {
    match failure {
        Failure::Hub(HFError::RateLimited { retry_after, .. }) => Some(retry_after.unwrap_or(otherwise)),
        Failure::Hub(error) => Answer::of(error).filter(|answer| answer.status == 429).map(|_| otherwise),
        _ => None,
    }
}

/// Whether trying again may help.
fn may_pass(failure: &Failure) -> bool {
    match failure {
        Failure::Cancelled | Failure::Unused(_) => false,
        Failure::Stalled(_) | Failure::Hub(HFError::Xet { .. }) => true,
        Failure::Hub(HFError::Request { source, .. }) => !source.is_builder(),
        Failure::Hub(error) => {
            Answer::of(error).is_some_and(|answer| matches!(answer.status, 408 | 500 | 502..=504))
        }
    }
}

/// The cause at the bottom of a chain, which is the system's own word.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.last().map(ToString::to_string).unwrap_or_default()
}

/// Whether the answer came and made no sense.
fn is_json(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .any(<dyn std::error::Error>::is::<serde_json::Error>)
}

/// An answer that is not a success.
struct Answer {
    status: u16,
    /// `X-Error-Code`.
    code: String,
    message: String,
    url: String,
}

impl Answer {
    fn of(error: &HFError) -> Option<Self> {
        let context = match error {
            HFError::Http { context }
            | HFError::AuthRequired { context }
            | HFError::Forbidden { context }
            | HFError::Conflict { context }
            | HFError::RateLimited { context, .. } => &**context,
            HFError::RepoNotFound { context, .. }
            | HFError::RevisionNotFound { context, .. }
            | HFError::EntryNotFound { context, .. } => context.as_deref()?,
            _ => return None,
        };
        Some(Self {
            status: context.status.as_u16(),
            code: context.error_code.clone().unwrap_or_default(),
            message: context.server_message.clone().unwrap_or_default(),
            url: context.url.clone(),
        })
    }

    fn explain(self, subject: Subject<'_>, endpoint: &str, token: bool) -> HubError {
        let Subject { repo, revision, file } = subject;
        let (repo, revision) = (repo.clone(), revision.clone());
        let message =
            if self.message.is_empty() { "no reason given".to_owned() } else { plain(&self.message) };
        match (self.status, self.code.as_str()) {
            (401 | 403, "GatedRepo") => HubError::Gated { url: repo.page(endpoint), repo, token },
            (401 | 404, "RepoNotFound") => HubError::NotFound { repo, token },
            (404, "RevisionNotFound") => HubError::Revision { repo, revision },
            (404, _) => match file {
                Some(file) => HubError::File { repo, revision, file: file.to_owned() },
                None if revision == Revision::default() => HubError::NotFound { repo, token },
                None => HubError::Revision { repo, revision },
            },
            (401, _) => HubError::Unauthorized { repo, token },
            (403, _) => HubError::Forbidden { repo, message },
            (status, _) => HubError::Server { status, url: plain(&self.url), message },
        }
    }
}

/// Text from a server on one line of bounded length.
fn plain(text: &str) -> String {
    const SHOWN: usize = 200;
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let shown: String = clean.clone().take(SHOWN).collect();
    if clean.count() > SHOWN { shown + "..." } else { shown }
}
