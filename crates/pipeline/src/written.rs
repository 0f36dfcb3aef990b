//! Parts of files that are done, and how to tell later that they still hold what was written.

use std::ops::Range;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use zeropoint_core::Fingerprint;
use zeropoint_formats::staged::{BytesHasher, bytes_digest, ranges_digest};

/// Bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenRange {
    /// The name of the file in its folder.
    file: String,
    start: u64,
    end: u64,
}

/// Some ranges of files in one folder, in the order in which they were written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenRanges {
    ranges: Vec<WrittenRange>,
    /// Of their bytes one after the other.
    blake3: Fingerprint,
}

impl Default for WrittenRanges {
    fn default() -> Self {
        Self { ranges: Vec::new(), blake3: bytes_digest(&[]) }
    }
}

impl WrittenRanges {
    /// Whether the files in `folder` hold what they held. `thorough` compares the bytes, otherwise only the lengths.
    pub(crate) fn are_as_written(&self, folder: &Path, thorough: bool) -> bool {
        let reach = |range: &WrittenRange| {
            let mut parts = Path::new(&range.file).components();
            let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
            let metadata = std::fs::symlink_metadata(folder.join(&range.file));
            plain
                && range.start <= range.end
                && metadata.is_ok_and(|found| found.is_file() && found.len() >= range.end)
        };
        let same = || {
            let paths: Vec<_> = self.ranges.iter().map(|range| folder.join(&range.file)).collect();
            let ranges = paths.iter().zip(&self.ranges);
            let ranges = ranges.map(|(path, range)| (path.as_path(), range.start..range.end));
            ranges_digest(ranges).is_ok_and(|found| found == self.blake3)
        };
        self.ranges.iter().all(reach) && (!thorough || same())
    }

    /// The names of the files.
    pub(crate) fn files(&self) -> impl Iterator<Item = &str> {
        self.ranges.iter().map(|range| range.file.as_str())
    }
}

/// Collects ranges as they are written.
#[derive(Default)]
pub(crate) struct RangesHasher {
    ranges: Vec<WrittenRange>,
    hasher: BytesHasher,
}

impl RangesHasher {
    /// Adds bytes at their place.
    pub(crate) fn add(&mut self, place: Option<(&str, Range<u64>)>, bytes: &[u8]) {
        if let Some((file, Range { start, end })) = place {
            self.ranges.push(WrittenRange { file: file.to_owned(), start, end });
            self.hasher.add(bytes);
        }
    }

    pub(crate) fn finish(self) -> WrittenRanges {
        WrittenRanges { ranges: self.ranges, blake3: self.hasher.finish() }
    }
}
