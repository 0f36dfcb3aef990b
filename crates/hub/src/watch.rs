//! What a caller sees of a transfer, and how it stops one.

/// Something worth showing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HubEvent {
    /// Files are about to be downloaded; not sent when everything is in the cache.
    Fetching {
        /// The repository and its commit, as `owner/name at 0123abc`.
        what: String,
        /// How many files are missing in the cache.
        files: usize,
        /// Their bytes.
        bytes: u64,
    },
    /// Bytes of a file are there.
    Downloaded {
        /// Its path in the repository.
        file: String,
        /// Bytes so far.
        done: u64,
        /// Bytes of the whole file.
        total: u64,
    },
    /// The hub asked for a pause.
    Waiting {
        /// How long, in seconds.
        seconds: u64,
    },
    /// Bytes of a push are sent.
    Uploaded {
        /// Bytes so far, of all files.
        done: u64,
        /// Bytes of all files.
        total: u64,
    },
}

/// Follows a transfer. Called from the thread that asked for it.
pub trait Watch {
    /// Takes one event.
    fn event(&self, event: HubEvent);

    /// Whether the transfer should stop; asked for several times a second.
    fn is_cancelled(&self) -> bool;
}

/// Follows nothing and never stops.
impl Watch for () {
    fn event(&self, _event: HubEvent) {}

    fn is_cancelled(&self) -> bool {
        false
    }
}
