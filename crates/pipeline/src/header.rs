//! What a statistics file says of itself: which model and data it belongs to, and which part of the data it has seen.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use zeropoint_calibrator::Shard;
use zeropoint_core::Fingerprint;
use zeropoint_observer::{StatisticsFile, StatisticsFileError};

use crate::PipelineError;

pub(crate) const GRAPH: &str = "graph_fingerprint";
pub(crate) const DATA: &str = "data_fingerprint";
pub(crate) const SHARD: &str = "shard";
const SAMPLES: &str = "samples";
const TOKENS: &str = "tokens";
const SEED: &str = "seed";
const INSTRUCTION_SET: &str = "instruction_set";
const VERSION: &str = "zeropoint_version";
const SHARD_SAMPLES: &str = "shard_samples";
const SHARD_TOKENS: &str = "shard_tokens";

/// What a statistics file belongs to. Everything but [`shard`](Self::shard) is the same in all shards of a set and in
/// the statistics of the whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StatisticsHeader {
    /// Identifies the float model with the code that ran it.
    pub graph_fingerprint: Fingerprint,
    /// Identifies what is observed, by one file or by all shards: token ids and batches.
    pub data_fingerprint: Fingerprint,
    /// Samples of it.
    pub samples: u64,
    /// Tokens of it.
    pub tokens: u64,
    /// The seed that chose the samples.
    pub seed: u64,
    /// The kernels that observed, as `ZEROPOINT_ISA` names them.
    pub instruction_set: String,
    /// The release that observed.
    pub zeropoint_version: String,
    /// The part that this file has observed, or `None` for all of it.
    pub shard: Option<ShardHeader>,
}

/// Which part of a calibration set a shard has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ShardHeader {
    /// Which shard of how many.
    pub shard: Shard,
    /// Samples in it.
    pub samples: u64,
    /// Tokens in it.
    pub tokens: u64,
}

/// Samples and tokens of what a statistics file is of.
pub(crate) fn samples_and_tokens(file: &StatisticsFile) -> Option<[u64; 2]> {
    let number = |key: &str| file.header.get(key)?.parse().ok();
    Some([number(SAMPLES)?, number(TOKENS)?])
}

/// A statistics file that is named must be there.
pub(crate) fn expect_file(path: &Path) -> Result<(), PipelineError> {
    if path.exists() {
        return Ok(());
    }
    Err(PipelineError::Absent { path: path.to_owned(), what: "statistics file" })
}

impl StatisticsHeader {
    /// Reads the header of a statistics file, and no statistics.
    pub fn load(path: &Path) -> Result<Self, PipelineError> {
        expect_file(path)?;
        Self::parse(StatisticsFile::load_header(path)?, path)
    }

    /// Understands the header of the file at `path`, all of it.
    pub(crate) fn parse(map: BTreeMap<String, String>, path: &Path) -> Result<Self, PipelineError> {
        let refused = |reason| StatisticsFileError::Foreign { path: path.to_owned(), reason };
        Ok(Fields(map).header().map_err(refused)?)
    }

    /// The header of the statistics that all shards give together.
    pub(crate) fn of_whole(&self) -> Self {
        Self { shard: None, ..self.clone() }
    }

    /// The header as it is stored.
    pub(crate) fn to_map(&self) -> BTreeMap<String, String> {
        let mut fields = vec![
            (GRAPH, self.graph_fingerprint.to_string()),
            (DATA, self.data_fingerprint.to_string()),
            (SAMPLES, self.samples.to_string()),
            (TOKENS, self.tokens.to_string()),
            (SEED, self.seed.to_string()),
            (INSTRUCTION_SET, self.instruction_set.clone()),
            (VERSION, self.zeropoint_version.clone()),
        ];
        if let Some(part) = &self.shard {
            fields.extend([
                (SHARD, part.shard.to_string()),
                (SHARD_SAMPLES, part.samples.to_string()),
                (SHARD_TOKENS, part.tokens.to_string()),
            ]);
        }
        fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// Fields of a stored header that have not been read yet.
struct Fields(BTreeMap<String, String>);

impl Fields {
    fn header(mut self) -> Result<StatisticsHeader, String> {
        let header = StatisticsHeader {
            graph_fingerprint: self.parsed(GRAPH)?,
            data_fingerprint: self.parsed(DATA)?,
            samples: self.number(SAMPLES)?,
            tokens: self.number(TOKENS)?,
            seed: self.number(SEED)?,
            instruction_set: self.take(INSTRUCTION_SET)?,
            zeropoint_version: self.take(VERSION)?,
            shard: self.shard()?,
        };
        match self.0.keys().next() {
            None => Ok(header),
            Some(key) => Err(format!("its header has a key `{}`, which is not known", key.escape_debug())),
        }
    }

    fn shard(&mut self) -> Result<Option<ShardHeader>, String> {
        let Some(shard) = self.0.remove(SHARD) else { return Ok(None) };
        Ok(Some(ShardHeader {
            shard: shard.parse().map_err(|error| malformed(SHARD, &error))?,
            samples: self.number(SHARD_SAMPLES)?,
            tokens: self.number(SHARD_TOKENS)?,
        }))
    }

    fn take(&mut self, key: &str) -> Result<String, String> {
        self.0.remove(key).ok_or_else(|| format!("its header has no `{key}`"))
    }

    fn parsed(&mut self, key: &str) -> Result<Fingerprint, String> {
        Fingerprint::try_from(self.take(key)?).map_err(|error| malformed(key, &error))
    }

    fn number(&mut self, key: &str) -> Result<u64, String> {
        self.take(key)?.parse().map_err(|error| malformed(key, &error))
    }
}

fn malformed(key: &str, error: &dyn std::fmt::Display) -> String {
    format!("`{key}` in its header is malformed: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(shard: Option<ShardHeader>) -> StatisticsHeader {
        let fingerprint = |kind| Fingerprint::builder(kind).finish();
        StatisticsHeader {
            graph_fingerprint: fingerprint("graph"),
            data_fingerprint: fingerprint("data"),
            samples: 256,
            tokens: 9000,
            seed: 42,
            instruction_set: "avx2".to_owned(),
            zeropoint_version: "1.2.3".to_owned(),
            shard,
        }
    }

    fn shard() -> ShardHeader {
        ShardHeader { shard: Shard::new(2, 4).unwrap(), samples: 64, tokens: 2000 }
    }

    #[test]
    fn a_stored_header_is_read_back() {
        for header in [header(None), header(Some(shard()))] {
            assert_eq!(StatisticsHeader::parse(header.to_map(), Path::new("s")).unwrap(), header);
        }
        assert_eq!(header(Some(shard())).of_whole(), header(None));
    }

    #[test]
    fn a_header_is_understood_completely_or_refused() {
        let cases = [
            (GRAPH, Some("ab"), "`graph_fingerprint` in its header is malformed: `ab` is not a fingerprint"),
            (DATA, None, "has no `data_fingerprint`"),
            (SAMPLES, Some("-1"), "`samples` in its header is malformed"),
            (TOKENS, Some("many"), "`tokens` in its header is malformed"),
            (INSTRUCTION_SET, None, "has no `instruction_set`"),
            (SHARD, Some("5/4"), "`shard` in its header is malformed: there is no shard 5 of 4"),
            (SHARD, None, "a key `shard_samples`, which is not known"),
            (SHARD_TOKENS, None, "has no `shard_tokens`"),
            ("colour", Some("blue"), "a key `colour`, which is not known"),
        ];
        for (key, value, expected) in cases {
            let mut map = header(Some(shard())).to_map();
            map.remove(key);
            map.extend(value.map(|value| (key.to_owned(), value.to_owned())));
            let message = StatisticsHeader::parse(map, Path::new("s")).unwrap_err().to_string();
            assert!(
                message.starts_with("s is not a statistics file (") && message.contains(expected),
                "{message}"
            );
        }
    }
}
