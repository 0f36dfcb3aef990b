//! Bytes of a file while they come, and no more of them than were asked for, whatever a server claims or sends.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::channel::oneshot;
use hf_hub::repository::download::HFByteStream;
use hf_hub::{HFClient, HFError, HFResult};
use tokio::runtime::{Builder, Handle};

use crate::client::Sign;
use crate::repo::{RepoId, RepoKind};

/// Bytes of a file that are asked for.
#[derive(Debug, Clone)]
pub(crate) struct Part<'a> {
    /// The file's path in the repository.
    pub(crate) path: &'a str,
    /// Bytes of the whole file, as the commit lists it.
    pub(crate) size: u64,
    /// The bytes.
    pub(crate) range: Range<u64>,
    /// How far a server is listened to that knows no ranges and sends the whole file: at least to the range's end.
    pub(crate) enough: u64,
}

/// Drives downloads. `hf-hub` gives streams to callers that have a runtime, and does not lend the one of its blocking
/// client. As there, the runtime stays on a thread of its own, where it cannot meet a runtime of the caller.
pub(crate) struct Driver {
    handle: Handle,
    /// The thread ends when this is dropped.
    _alive: oneshot::Sender<()>,
}

impl Driver {
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (alive, dropped) = oneshot::channel::<()>();
        std::thread::Builder::new().name("hub-downloads".to_owned()).spawn(move || {
            // An error: that nothing was sent, which is how it ends.
            let _ = runtime.block_on(dropped);
        })?;
        Ok(Self { handle, _alive: alive })
    }

    fn run<F: Future>(&self, work: F) -> F::Output {
        self.handle.block_on(work)
    }
}

/// A request for a part of a file.
#[derive(Clone)]
pub(crate) struct Download {
    pub(crate) hub: HFClient,
    pub(crate) driver: Arc<Driver>,
    pub(crate) repo: RepoId,
    pub(crate) commit: String,
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(crate) end: u64,
    pub(crate) enough: u64,
}

impl Download {
    /// Gives the bytes from `start` on, in order, and after each answer's chunk the place up to which they are here.
    pub(crate) fn receive(&self, start: u64, give: impl Fn(Sign) -> HFResult<()>) -> HFResult<()> {
        self.driver.run(async {
            let (announced, mut stream) = self.open(start).await?;
            let asked = self.end - start;
            let wrong = |what: String| {
                HFError::Other(format!("{asked} bytes of `{}` were asked for, {what}", self.path))
            };
            if let Some(length) = announced.filter(|length| ![asked, self.size].contains(length)) {
                return Err(wrong(format!("{length} are announced")));
            }
            let mut sieve = Sieve::new(start..self.end, self.enough);
            while !sieve.has_enough() {
                let Some(chunk) = stream.next().await else { break };
                let known = sieve.push(&chunk?);
                if !known.is_empty() {
                    give(Sign::Bytes(known))?;
                }
                give(Sign::Progress(start + sieve.done(), self.size))?;
            }
            match sieve.finish() {
                Ok(rest) if rest.is_empty() => Ok(()),
                Ok(rest) => give(Sign::Bytes(rest)),
                Err(came) => Err(wrong(format!("{came} came"))),
            }
        })
    }

    /// The answer's length as it is announced, and its bytes.
    async fn open(&self, start: u64) -> HFResult<(Option<u64>, HFByteStream)> {
        // A server without ranges can still give a file that is asked for in one piece.
        let range = (start > 0 || self.end < self.size).then_some(start..self.end);
        let (owner, name) = (self.repo.owner(), self.repo.name());
        match self.repo.kind() {
            RepoKind::Model => {
                let repo = self.hub.model(owner, name);
                let request = repo.download_file_stream().filename(&self.path).revision(&self.commit);
                request.maybe_range(range).send().await
            }
            RepoKind::Dataset => {
                let repo = self.hub.dataset(owner, name);
                let request = repo.download_file_stream().filename(&self.path).revision(&self.commit);
                request.maybe_range(range).send().await
            }
        }
    }
}

/// Finds the bytes of a range in an answer.
///
/// A server that knows ranges sends these bytes alone, another one the whole file, and what an answer says of its length may
/// be the length of either. The first byte too many tells, so up to there the answer is held.
struct Sieve {
    range: Range<u64>,
    enough: u64,
    /// The answer so far, while it may be either.
    held: Vec<u8>,
    /// Whether the answer begins at the beginning of the file.
    whole: bool,
    /// Bytes of such an answer so far.
    seen: u64,
}

impl Sieve {
    fn new(range: Range<u64>, enough: u64) -> Self {
        // There both begin alike, and nothing has to be held.
        let whole = range.start == 0;
        Self { range, enough, held: Vec::new(), whole, seen: 0 }
    }

    /// Takes the next bytes of the answer and gives back what is known to be wanted.
    fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.whole {
            return self.wanted(bytes);
        }
        self.held.extend_from_slice(bytes);
        if self.held.len() as u64 <= self.range.end - self.range.start {
            return Vec::new();
        }
        self.whole = true;
        let held = std::mem::take(&mut self.held);
        self.wanted(&held)
    }

    /// What is wanted of the next bytes of a whole file.
    fn wanted(&mut self, bytes: &[u8]) -> Vec<u8> {
        let at = |place: u64| place.saturating_sub(self.seen).min(bytes.len() as u64) as usize;
        let wanted = bytes[at(self.range.start)..at(self.enough)].to_vec();
        self.seen += bytes.len() as u64;
        wanted
    }

    /// How many wanted bytes are here.
    fn done(&self) -> u64 {
        if self.whole {
            self.seen.min(self.enough).saturating_sub(self.range.start)
        } else {
            self.held.len() as u64
        }
    }

    /// Whether the rest of the answer does not matter.
    fn has_enough(&self) -> bool {
        self.whole && self.seen >= self.enough
    }

    /// What is still held when the answer has ended, or how many bytes came when the range is not among them.
    fn finish(self) -> Result<Vec<u8>, u64> {
        let came = if self.whole { self.seen } else { self.held.len() as u64 };
        let complete =
            if self.whole { came >= self.range.end } else { came == self.range.end - self.range.start };
        if complete { Ok(self.held) } else { Err(came) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of an answer in chunks: what is found, and how much of it was listened to.
    fn sift(range: Range<u64>, enough: u64, answer: &[u8], chunk: usize) -> Result<(Vec<u8>, usize), u64> {
        let asked = (range.end - range.start) as usize;
        let mut sieve = Sieve::new(range, enough);
        let (mut found, mut heard) = (Vec::new(), 0);
        for bytes in answer.chunks(chunk) {
            if sieve.has_enough() {
                break;
            }
            heard += bytes.len();
            found.extend(sieve.push(bytes));
            assert!(sieve.held.len() <= asked, "no more is held than was asked for");
        }
        found.extend(sieve.finish()?);
        Ok((found, heard))
    }

    #[test]
    fn a_range_is_found_in_its_own_bytes_and_in_the_whole_file() {
        let file: Vec<u8> = (0..40).collect();
        for start in 0..40_usize {
            for end in start + 1..=40 {
                let (range, bytes) = (start as u64..end as u64, &file[start..end]);
                for chunk in [1, 3, 7, 40] {
                    let alone = sift(range.clone(), 40, bytes, chunk);
                    assert_eq!(alone, Ok((bytes.to_vec(), bytes.len())), "{range:?} by {chunk}");
                    let (found, heard) = sift(range.clone(), range.end, &file, chunk).unwrap();
                    assert_eq!(found, bytes, "{range:?} by {chunk}");
                    assert!(
                        heard < end + chunk,
                        "{range:?} by {chunk}: {heard} bytes of the file were heard"
                    );
                    let (found, _) = sift(range.clone(), 40, &file, chunk).unwrap();
                    assert_eq!(found, &file[start..], "{range:?} by {chunk}");
                }
            }
        }
    }

    #[test]
    fn an_answer_without_the_range_is_told_by_its_length() {
        let file: Vec<u8> = (0..40).collect();
        assert_eq!(sift(10..20, 40, &file[10..19], 4), Err(9));
        assert_eq!(sift(10..20, 40, &file[..19], 4), Err(19));
        assert_eq!(sift(0..20, 40, &file[..19], 4), Err(19));
        assert_eq!(sift(0..20, 40, &[], 4), Err(0));
        // What comes without end is listened to as far as the file goes.
        let endless = vec![0; 1000];
        assert_eq!(sift(0..20, 40, &endless, 16).map(|(found, heard)| (found.len(), heard)), Ok((40, 48)));
        assert_eq!(sift(10..20, 40, &endless, 16).map(|(found, heard)| (found.len(), heard)), Ok((30, 48)));
    }
}
