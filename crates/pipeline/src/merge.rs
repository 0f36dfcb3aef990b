//! The shards of a calibration set made into the statistics of the whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use thiserror::Error;
use zeropoint_calibrator::Shard;
use zeropoint_observer::StatisticsFile;

use crate::PipelineError;
use crate::header::{ShardHeader, StatisticsHeader};
use crate::statistics::{check_out, create_parent};

/// Missing shards that a message names.
const NAMED: usize = 8;

/// Why files are not the shards of one calibration set.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MergeError {
    /// No file at all.
    #[error("there is no file to merge: give every shard of one calibration set")]
    NoFiles,
    /// Not a shard.
    #[error("{}: these are the statistics of a whole calibration set, not of a shard of one", .path.display())]
    Whole {
        /// The file.
        path: PathBuf,
    },
    /// Shards of different runs.
    #[error(
        "{} and {} cannot be merged: they differ in the {what} ({expected} and {found})",
        .first.display(), .path.display()
    )]
    Differs {
        /// The first file given.
        first: PathBuf,
        /// One that does not go with it.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// In the first file.
        expected: String,
        /// In the other.
        found: String,
    },
    /// The set was cut into different numbers of parts.
    #[error("{} is shard {shard}, but {} is one of {of}: both are needed from one cut", .path.display(), .first.display())]
    OtherCut {
        /// The first file given.
        first: PathBuf,
        /// How many shards it belongs to.
        of: u32,
        /// One that does not go with it.
        path: PathBuf,
        /// The shard it is.
        shard: Shard,
    },
    /// A shard is there more than once.
    #[error("{} and {} are both shard {shard}: its samples would count twice", .first.display(), .second.display())]
    Twice {
        /// Which.
        shard: Shard,
        /// The file given first.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// Shards were not given.
    #[error("{}", missing(*.count, *.first, .more))]
    Missing {
        /// How many.
        count: u32,
        /// The first of them.
        first: Shard,
        /// Those after it, at most seven.
        more: Vec<Shard>,
    },
    /// All shards are there and yet do not make up the set.
    #[error(
        "the shards hold {found} {what}, and the whole set has {expected}: one of the files is damaged, so calibrate \
         again"
    )]
    Total {
        /// `samples` or `tokens`.
        what: &'static str,
        /// In all shards together.
        found: u128,
        /// In the set.
        expected: u64,
    },
    /// Statistics of different graphs under the same name.
    #[error("{} does not go with the shards before it: {source}", .path.display())]
    Sites {
        /// The file whose statistics do not fit to those before it.
        path: PathBuf,
        /// What does not fit.
        source: zeropoint_observer::MergeError,
    },
}

impl MergeError {
    /// What to do about it, where that is not in the sentence itself.
    pub(crate) fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Whole { .. } => {
                "use it as it is; merging is for files of `zeropoint calibrate --shard I/N`"
            }
            Self::Differs { .. } => {
                "make all shards with one config, one build and one instruction set (`ZEROPOINT_ISA`)"
            }
            Self::OtherCut { .. } => "make all shards with the same N in `--shard I/N`",
            Self::Twice { .. } => "give each shard once",
            Self::Missing { first, .. } => {
                return Some(format!(
                    "make one with `zeropoint calibrate CONFIG --shard {first} --out FILE`"
                ));
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

fn missing(count: u32, first: Shard, more: &[Shard]) -> String {
    let named: Vec<String> = std::iter::once(&first).chain(more).map(Shard::to_string).collect();
    let verb = if count == 1 { "is" } else { "are" };
    let rest = match count as usize - named.len() {
        0 => String::new(),
        left => format!(" and {left} more"),
    };
    format!("{count} of {} shards {verb} missing: {}{rest}", first.of(), named.join(", "))
}

/// A file that is a shard.
struct Part<'a> {
    path: &'a Path,
    header: &'a StatisticsHeader,
    own: ShardHeader,
}

/// Merges all shards of a calibration set, given in any order, into `out`: the bytes that [`calibrate`](crate::calibrate)
/// writes for the whole set. Returns the header that it has written.
///
/// Every header is checked before any statistics are read, and the statistics of no more than two files are in memory
/// at a time. `out` is none of the files, and a file that is there already must hold statistics.
pub fn merge_statistics(files: &[PathBuf], out: &Path) -> Result<StatisticsHeader, PipelineError> {
    let headers = files.iter().map(|path| StatisticsHeader::load(path)).collect::<Result<Vec<_>, _>>()?;
    let parts = files.iter().zip(&headers).map(|(path, header)| match header.shard {
        Some(own) => Ok(Part { path, header, own }),
        None => Err(MergeError::Whole { path: path.clone() }),
    });
    let parts = complete(parts.collect::<Result<_, _>>()?)?;
    let Some(header) = parts.values().next().map(|part| part.header.of_whole()) else {
        return Err(MergeError::NoFiles.into());
    };
    if let Ok(target) = out.canonicalize()
        && let Some(input) = files.iter().find(|path| path.canonicalize().is_ok_and(|path| path == target))
    {
        return Err(PipelineError::InputInside { output: out.to_owned(), input: input.clone() });
    }
    check_out(out)?;

    let mut merged: Option<StatisticsFile> = None;
    for (shard, Part { path, .. }) in parts {
        let file = StatisticsFile::load(path)?;
        tracing::debug!(shard, path = %path.display(), sites = file.sites.len(), "shard read");
        merged = Some(match merged {
            None => file,
            Some(merged) => {
                merged.merge(&file).map_err(|source| MergeError::Sites { path: path.to_owned(), source })?
            }
        });
    }
    let sites = merged.map(|file| file.sites).unwrap_or_default();
    create_parent(out)?;
    StatisticsFile { header: header.to_map(), sites }.save(out)?;
    Ok(header)
}

/// All shards of one set by their number, or why they are not.
fn complete(parts: Vec<Part<'_>>) -> Result<BTreeMap<u32, Part<'_>>, MergeError> {
    let Some(first) = parts.first() else { return Err(MergeError::NoFiles) };
    let (first_path, whole, of) = (first.path.to_owned(), first.header.of_whole(), first.own.shard.of());
    let mut found = BTreeMap::<u32, Part<'_>>::new();
    for part in parts {
        if let Some((what, expected, found)) = difference(&whole, &part.header.of_whole()) {
            let path = part.path.to_owned();
            return Err(MergeError::Differs { first: first_path, path, what, expected, found });
        }
        let shard = part.own.shard;
        if shard.of() != of {
            return Err(MergeError::OtherCut { first: first_path, of, path: part.path.to_owned(), shard });
        }
        if let Some(other) = found.get(&shard.index()) {
            let (first, second) = (other.path.to_owned(), part.path.to_owned());
            return Err(MergeError::Twice { shard, first, second });
        }
        found.insert(shard.index(), part);
    }
    // `of` is what a file claims: nothing of that size is made.
    let mut missing = (1..=of).filter(|i| !found.contains_key(i)).filter_map(|i| Shard::new(i, of).ok());
    if let Some(first) = missing.next() {
        let more = missing.take(NAMED - 1).collect();
        return Err(MergeError::Missing { count: of - found.len() as u32, first, more });
    }
    for (what, expected, of_part) in [
        ("samples", whole.samples, (|part| part.samples) as fn(&ShardHeader) -> u64),
        ("tokens", whole.tokens, |part| part.tokens),
    ] {
        let sum: u128 = found.values().map(|part| u128::from(of_part(&part.own))).sum();
        if sum != u128::from(expected) {
            return Err(MergeError::Total { what, found: sum, expected });
        }
    }
    Ok(found)
}

/// In what two headers differ, and how each says it. The fingerprint of the graph covers version and instruction set,
/// so these come first.
fn difference(a: &StatisticsHeader, b: &StatisticsHeader) -> Option<(&'static str, String, String)> {
    let text = |text: &String| text.escape_debug().to_string();
    let fields = [
        ("version of zeropoint", text(&a.zeropoint_version), text(&b.zeropoint_version)),
        ("instruction set", text(&a.instruction_set), text(&b.instruction_set)),
        ("model", a.graph_fingerprint.to_string(), b.graph_fingerprint.to_string()),
        ("calibration data", a.data_fingerprint.to_string(), b.data_fingerprint.to_string()),
        ("seed", a.seed.to_string(), b.seed.to_string()),
        ("number of samples", a.samples.to_string(), b.samples.to_string()),
        ("number of tokens", a.tokens.to_string(), b.tokens.to_string()),
    ];
    let short = |text: String| text.chars().take(12).collect();
    fields.into_iter().find(|(_, a, b)| a != b).map(|(what, a, b)| (what, short(a), short(b)))
}
