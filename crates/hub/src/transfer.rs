//! One file into the cache: in parts, each kept when the next one breaks, the whole compared with its hash before it
//! gets its name.
//!
//! `hf-hub`'s own `download_file` begins a broken transfer anew, takes whatever the second request returns (an error's
//! page, too) and gives it the name of the content that was meant; so only its requests are used here.

use std::fs::{self, OpenOptions};
use std::io::Write as _;

use crate::cache::RepoCache;
use crate::client::{Client, Subject};
use crate::download::Part;
use crate::repo::RepoId;
use crate::tree::Entry;
use crate::{HubError, HubEvent, Revision, Watch};

/// What is being fetched from where.
pub(crate) struct Transfer<'a> {
    pub(crate) client: &'a Client,
    pub(crate) cache: &'a RepoCache,
    pub(crate) repo: &'a RepoId,
    pub(crate) revision: &'a Revision,
    pub(crate) commit: &'a str,
    pub(crate) part_bytes: u64,
    pub(crate) watch: &'a dyn Watch,
}

impl<'a> Transfer<'a> {
    pub(crate) fn subject(&self, file: &'a str) -> Subject<'a> {
        Subject { repo: self.repo, revision: self.revision, file: Some(file) }
    }

    /// Brings a file into the commit's snapshot, from the network only if the cache does not have it.
    pub(crate) fn fetch(&self, entry: &Entry) -> Result<(), HubError> {
        let blob = match self.cache.find(entry) {
            Some(blob) => blob,
            None if self.cache.has(self.commit, entry) => return Ok(()),
            None => self.download(entry)?,
        };
        self.cache.link(self.commit, entry, &blob)
    }

    /// Downloads a file and gives it the name that its content earns.
    fn download(&self, entry: &Entry) -> Result<String, HubError> {
        /// Parts of another transfer may be stale or damaged: then the file is fetched once more from its beginning.
        const TRANSFERS: usize = 2;
        let _lock = self.cache.lock(entry, self.watch)?;
        if let Some(blob) = self.cache.find(entry) {
            return Ok(blob);
        }
        let partial = self.cache.partial(entry);
        for _ in 0..TRANSFERS {
            self.gather(entry)?;
            if let Some(name) = entry.name_of(&partial).map_err(HubError::io(&partial))? {
                let blob = self.cache.blob(&name);
                fs::rename(&partial, &blob).map_err(HubError::io(&blob))?;
                return Ok(name);
            }
            fs::remove_file(&partial).map_err(HubError::io(&partial))?;
        }
        Err(self.broken(
            entry,
            "what arrived is not what the commit holds, twice: its hash is another".to_owned(),
        ))
    }

    /// Appends what is missing of a file to what is there of it.
    fn gather(&self, entry: &Entry) -> Result<(), HubError> {
        let path = self.cache.partial(entry);
        let io = || HubError::io(&path);
        let mut file = OpenOptions::new().create(true).append(true).open(&path).map_err(io())?;
        let mut have = file.metadata().map_err(io())?.len();
        if have > entry.size {
            file.set_len(0).map_err(io())?;
            have = 0;
        }
        self.tell(entry, have);
        while have < entry.size {
            let end = entry.size.min(have.saturating_add(self.part_bytes.max(1)));
            // A server without ranges sends the whole file: then all of it that is missing is taken at once.
            let part = Part { path: &entry.path, size: entry.size, range: have..end, enough: entry.size };
            let mut heard = |place: u64| self.tell(entry, place);
            let mut take = |bytes: &[u8]| -> Result<(), HubError> {
                file.write_all(bytes).map_err(io())?;
                have += bytes.len() as u64;
                Ok(())
            };
            let subject = self.subject(&entry.path);
            self.client.bytes(subject, self.commit, &part, self.watch, &mut heard, &mut take)?;
            self.tell(entry, have);
        }
        file.sync_all().map_err(io())
    }

    fn tell(&self, entry: &Entry, done: u64) {
        self.watch.event(HubEvent::Downloaded { file: entry.path.clone(), done, total: entry.size });
    }

    fn broken(&self, entry: &Entry, reason: String) -> HubError {
        HubError::Transfer { repo: self.repo.clone(), file: entry.path.clone(), reason }
    }
}
