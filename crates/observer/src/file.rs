//! Statistics on disk: one safetensors file, the same bytes for the same statistics.
//!
//! Each site `S` of `C` channels has four tensors:
//!
//! | tensor | dtype | shape | holds |
//! |---|---|---|---|
//! | `S.histogram` | I64 | `[8192]` | counts, most negative bin first |
//! | `S.channel_absmax` | F32 | `[C]` | largest magnitude of each channel |
//! | `S.range` | F32 | `[2]` | minimum and maximum, zeros without values |
//! | `S.meta` | I64 | `[3]` | values, rows, exponent of the bin width |
//!
//! The metadata has one key, `zeropoint.statistics`: a JSON object with the format's `version` and the `header`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeropoint_formats::safetensors::element::f32_bytes;
use zeropoint_formats::{Dtype, FormatError, SafetensorsFile, SafetensorsWriter, TensorSpec};

use crate::{ActivationStatistics, BINS, Histogram};

/// Version of the file format that this crate writes, and the only one it reads.
pub const STATISTICS_VERSION: u32 = 1;

const METADATA_KEY: &str = "zeropoint.statistics";
const PARTS: [&str; 4] = ["channel_absmax", "histogram", "meta", "range"];

/// Why statistics could not be saved or loaded.
#[derive(Debug, Error)]
pub enum StatisticsFileError {
    /// The file cannot be read or written, or is not safetensors.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A safetensors file of another kind.
    #[error("{} is not a statistics file ({reason}): give one that `zeropoint calibrate` has written", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is missing or malformed.
        reason: String,
    },
    /// A statistics file of another version.
    #[error(
        "{} is a statistics file of version {found}, this is Zeropoint for version {STATISTICS_VERSION}: calibrate again",
        .path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Version it states.
        found: u64,
    },
    /// The tensors of a site contradict each other or the format.
    #[error("{}: site `{}` {reason}; the file is damaged, so calibrate again", .path.display(), .site.escape_debug())]
    Site {
        /// The file.
        path: PathBuf,
        /// Name of the site.
        site: String,
        /// What is wrong, as the rest of a sentence.
        reason: String,
    },
}

/// The statistics of all sites of a graph, with what they are statistics of.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StatisticsFile {
    /// What the statistics belong to: fingerprints of graph and data, settings. Keys and values are the caller's.
    pub header: BTreeMap<String, String>,
    /// Statistics by name of the site.
    pub sites: BTreeMap<String, ActivationStatistics>,
}

/// What stands under [`METADATA_KEY`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    header: BTreeMap<String, String>,
    version: u64,
}

/// The one field that every version has.
#[derive(Deserialize)]
struct AnyVersion {
    version: u64,
}

impl StatisticsFile {
    /// Writes the file at once or not at all. The bytes depend on the contents alone.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), StatisticsFileError> {
        let metadata = Metadata { header: self.header.clone(), version: u64::from(STATISTICS_VERSION) };
        let json = serde_json::to_string(&metadata).expect("maps of strings always have a JSON form");
        let metadata = BTreeMap::from([(METADATA_KEY.to_owned(), json)]);
        let specs = self.sites.iter().flat_map(|(site, statistics)| {
            PARTS.map(|part| {
                let (dtype, len) = layout(part, statistics.channels());
                TensorSpec::new(tensor(site, part), dtype, [len])
            })
        });
        let mut writer = SafetensorsWriter::create(path, specs.collect(), &metadata)?;
        for (site, statistics) in &self.sites {
            for part in PARTS {
                writer.write(&tensor(site, part), &encode(part, statistics))?;
            }
        }
        writer.finish()?;
        Ok(())
    }

    /// The header alone, without reading any statistics.
    pub fn load_header(path: impl AsRef<Path>) -> Result<BTreeMap<String, String>, StatisticsFileError> {
        let path = path.as_ref();
        header_of(&SafetensorsFile::open(path)?, path)
    }

    /// Reads and checks a file: nothing is returned that could not have been observed.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, StatisticsFileError> {
        let path = path.as_ref();
        let file = SafetensorsFile::open(path)?;
        let header = header_of(&file, path)?;
        let foreign = |reason: String| StatisticsFileError::Foreign { path: path.to_owned(), reason };
        let mut names = BTreeSet::new();
        for name in file.tensors().map(|info| &info.name) {
            match name.rsplit_once('.') {
                Some((site, part)) if PARTS.contains(&part) => names.insert(site.to_owned()),
                _ => return Err(foreign(format!("it holds a tensor `{}`", name.escape_debug()))),
            };
        }
        let load = |site: String| {
            let statistics = load_site(&file, &site)?.map_err(|reason| StatisticsFileError::Site {
                path: path.to_owned(),
                site: site.clone(),
                reason,
            })?;
            Ok((site, statistics))
        };
        let sites = names.into_iter().map(load).collect::<Result<_, StatisticsFileError>>()?;
        Ok(Self { header, sites })
    }
}

/// The header, if the file is of this crate and of its version.
fn header_of(file: &SafetensorsFile, path: &Path) -> Result<BTreeMap<String, String>, StatisticsFileError> {
    let foreign = |reason: String| StatisticsFileError::Foreign { path: path.to_owned(), reason };
    let json = file
        .metadata()
        .get(METADATA_KEY)
        .ok_or_else(|| foreign(format!("its metadata has no key `{METADATA_KEY}`")))?;
    let malformed =
        |e: serde_json::Error| foreign(format!("`{METADATA_KEY}` in its metadata is malformed: {e}"));
    let AnyVersion { version } = serde_json::from_str(json).map_err(malformed)?;
    if version != u64::from(STATISTICS_VERSION) {
        return Err(StatisticsFileError::Version { path: path.to_owned(), found: version });
    }
    let Metadata { header, .. } = serde_json::from_str(json).map_err(malformed)?;
    Ok(header)
}

fn tensor(site: &str, part: &str) -> String {
    format!("{site}.{part}")
}

/// Element type and length of a part.
fn layout(part: &str, channels: usize) -> (Dtype, usize) {
    match part {
        "channel_absmax" => (Dtype::F32, channels),
        "histogram" => (Dtype::I64, BINS),
        "meta" => (Dtype::I64, 3),
        _ => (Dtype::F32, 2),
    }
}

fn encode(part: &str, statistics: &ActivationStatistics) -> Vec<u8> {
    // Counts are at most 2^53.
    let histogram = statistics.histogram();
    match part {
        "channel_absmax" => f32_bytes(statistics.channel_absmax()),
        "histogram" => histogram.counts().iter().flat_map(|count| count.to_le_bytes()).collect(),
        "meta" => [statistics.values() as i64, statistics.rows() as i64, i64::from(histogram.exponent())]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        _ => f32_bytes(&[statistics.min(), statistics.max()]),
    }
}

/// The statistics of one site; the inner error says what is wrong with them.
fn load_site(
    file: &SafetensorsFile,
    site: &str,
) -> Result<Result<ActivationStatistics, String>, StatisticsFileError> {
    let mut parts = Vec::with_capacity(PARTS.len());
    for part in PARTS {
        let name = tensor(site, part);
        let Some(info) = file.get(&name) else {
            return Ok(Err(format!("has no tensor `{part}`")));
        };
        let channels = info.shape.first().copied().unwrap_or(0);
        let (dtype, len) = layout(part, channels);
        if info.dtype != dtype || info.shape != [len] {
            let (found, shape) = (info.dtype, &info.shape);
            return Ok(Err(format!("has `{part}` of {found} {shape:?} where {dtype} [{len}] is needed")));
        }
        parts.push(file.read_bytes(&name)?);
    }
    let [channel_absmax, histogram, meta, range] = &parts[..] else {
        return Ok(Err("is incomplete".to_owned()));
    };
    Ok(decode(channel_absmax, histogram, meta, range))
}

fn decode(
    channel_absmax: &[u8],
    histogram: &[u8],
    meta: &[u8],
    range: &[u8],
) -> Result<ActivationStatistics, String> {
    let counts = i64s(histogram).map(u64::try_from).collect::<Result<Vec<_>, _>>();
    let counts = counts.map_err(|_| "has a negative count".to_owned())?;
    let [values, rows, exponent] = i64s(meta).collect::<Vec<_>>()[..] else {
        return Err("has no complete `meta`".to_owned());
    };
    let [min, max] = f32s(range).collect::<Vec<_>>()[..] else {
        return Err("has no complete `range`".to_owned());
    };
    let rows = u64::try_from(rows).map_err(|_| format!("claims {rows} rows"))?;
    let histogram = i32::try_from(exponent)
        .ok()
        .and_then(|exponent| Histogram::from_parts(exponent, counts))
        .ok_or_else(|| format!("has an impossible histogram (exponent {exponent})"))?;
    if i64::try_from(histogram.count()) != Ok(values) {
        return Err(format!("claims {values} values and counts {}", histogram.count()));
    }
    ActivationStatistics::from_parts(rows, (min, max), histogram, f32s(channel_absmax).collect()).ok_or_else(
        || {
            format!(
                "contradicts itself: {rows} rows, {values} values, range [{min}, {max}], exponent {exponent}"
            )
        },
    )
}

fn i64s(bytes: &[u8]) -> impl Iterator<Item = i64> + '_ {
    bytes.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes))
}

fn f32s(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;
    use zeropoint_kernels::Isa;

    fn observed(channels: usize, x: &[f32]) -> ActivationStatistics {
        let mut statistics = ActivationStatistics::new(channels);
        statistics.observe(Isa::SCALAR, x).unwrap();
        statistics
    }

    fn example() -> StatisticsFile {
        StatisticsFile {
            header: [("graph", "ab12"), ("data", "cd34"), ("a \"quoted\" key", "\u{e9}\n")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            sites: [
                ("encoder.layer.0.attention", observed(3, &[1.0, -2.0, 3.5, 0.25, -0.0, 1e-30])),
                ("encoder.layer.0.meta", observed(1, &[f32::MAX, f32::MIN])),
                ("never seen", ActivationStatistics::new(2)),
                ("zero", observed(2, &[0.0; 4])),
            ]
            .map(|(site, statistics)| (site.to_owned(), statistics))
            .into(),
        }
    }

    #[test]
    fn what_was_saved_is_loaded_and_saved_again_byte_for_byte() {
        let dir = TempDir::new().unwrap();
        let (first, second) = (dir.path().join("a.safetensors"), dir.path().join("b.safetensors"));
        for file in [example(), StatisticsFile::default()] {
            file.save(&first).unwrap();
            let loaded = StatisticsFile::load(&first).unwrap();
            assert_eq!(loaded, file);
            loaded.save(&second).unwrap();
            assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
        }
    }

    #[test]
    fn loaded_statistics_go_on_like_those_in_memory() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("s.safetensors");
        example().save(&path).unwrap();
        for (site, mut statistics) in StatisticsFile::load(&path).unwrap().sites {
            let mut expected = example().sites[&site].clone();
            let more = vec![-7.0; statistics.channels()];
            statistics.observe(Isa::SCALAR, &more).unwrap();
            expected.observe(Isa::SCALAR, &more).unwrap();
            assert_eq!(statistics, expected, "{site}");
        }
    }

    /// A part of the site `s` with its dtype, length and bytes.
    type Part = (&'static str, Dtype, Vec<u8>);

    fn message_of(parts: &[Part], metadata: &str) -> String {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("s.safetensors");
        let specs = parts.iter().map(|(part, dtype, bytes)| {
            TensorSpec::new(tensor("s", part), *dtype, [bytes.len() / dtype.size()])
        });
        let metadata = BTreeMap::from([(METADATA_KEY.to_owned(), metadata.to_owned())]);
        let mut writer = SafetensorsWriter::create(&path, specs.collect(), &metadata).unwrap();
        for (part, _, bytes) in parts {
            writer.write(&tensor("s", part), bytes).unwrap();
        }
        writer.finish().unwrap();
        match StatisticsFile::load(&path) {
            Ok(_) => "no error".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    const VERSION_1: &str = r#"{"header":{},"version":1}"#;

    /// Two rows of two channels: 1, -2 and 0.5, 1.
    fn good() -> Vec<Part> {
        let statistics = observed(2, &[1.0, -2.0, 0.5, 1.0]);
        PARTS.map(|part| (part, layout(part, 2).0, encode(part, &statistics))).into()
    }

    fn i64_bytes(values: &[i64]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn statistics_that_nothing_could_have_left_are_refused() {
        assert_eq!(message_of(&good(), VERSION_1), "no error");
        let exponent = i64::from(observed(2, &[1.0, -2.0]).histogram().exponent());
        let counts = |changes: &[(usize, i64)]| {
            let (_, _, bytes) = good().swap_remove(1);
            let mut counts: Vec<i64> = i64s(&bytes).collect();
            for &(bin, change) in changes {
                counts[bin] += change;
            }
            i64_bytes(&counts)
        };
        let cases: Vec<(&str, Vec<u8>, &str)> = vec![
            ("meta", i64_bytes(&[4, 2]), "has `meta` of I64 [2] where I64 [3] is needed"),
            ("meta", i64_bytes(&[5, 2, exponent]), "claims 5 values and counts 4"),
            ("meta", i64_bytes(&[-4, 2, exponent]), "claims -4 values"),
            ("meta", i64_bytes(&[4, 1, exponent]), "contradicts itself"),
            ("meta", i64_bytes(&[4, -2, exponent]), "claims -2 rows"),
            ("meta", i64_bytes(&[4, i64::MAX, exponent]), "contradicts itself"),
            ("meta", i64_bytes(&[4, 0, exponent]), "contradicts itself"),
            ("meta", i64_bytes(&[4, 2, exponent + 1]), "contradicts itself"),
            ("meta", i64_bytes(&[4, 2, exponent - 1]), "contradicts itself"),
            ("meta", i64_bytes(&[4, 2, i64::MAX]), "impossible histogram"),
            ("meta", i64_bytes(&[4, 2, -127]), "impossible histogram"),
            ("histogram", vec![0; 8 * (BINS - 1)], "has `histogram` of I64 [8191]"),
            ("histogram", counts(&[(9, -1)]), "negative count"),
            ("histogram", counts(&[(9, i64::MAX)]), "impossible histogram"),
            ("histogram", counts(&[(9, i64::MAX), (10, i64::MAX), (11, i64::MAX)]), "impossible histogram"),
            ("histogram", counts(&[(9, 1)]), "claims 4 values and counts 5"),
            ("histogram", counts(&[(0, -1), (1, 1)]), "contradicts itself"), // the minimum's bin is empty
            ("range", f32_bytes(&[-2.0]), "has `range` of F32 [1]"),
            ("range", f32_bytes(&[-2.0, f32::NAN]), "contradicts itself"),
            ("range", f32_bytes(&[f32::NEG_INFINITY, 1.0]), "contradicts itself"),
            ("range", f32_bytes(&[-2.0, 1.9]), "contradicts itself"),
            ("range", f32_bytes(&[1.0, -2.0]), "contradicts itself"),
            ("channel_absmax", f32_bytes(&[1.0, f32::NAN]), "contradicts itself"),
            ("channel_absmax", f32_bytes(&[1.0, 3.0]), "contradicts itself"),
            ("channel_absmax", f32_bytes(&[-1.0, 2.0]), "contradicts itself"),
            ("channel_absmax", f32_bytes(&[1.0, 2.0, 0.0]), "contradicts itself"),
            ("channel_absmax", vec![], "contradicts itself"),
        ];
        for (part, bytes, expected) in cases {
            let mut parts = good();
            for (_, _, old) in parts.iter_mut().filter(|(name, ..)| *name == part) {
                old.clone_from(&bytes);
            }
            let message = message_of(&parts, VERSION_1);
            assert!(message.contains(expected) && message.contains("site `s`"), "{part}: {message}");
        }
    }

    #[test]
    fn files_of_another_kind_are_named() {
        let mut incomplete = good();
        incomplete.pop();
        let mut retyped = good();
        retyped[0].1 = Dtype::I32;
        let mut stranger = good();
        stranger.push(("weight", Dtype::F32, vec![0; 4]));
        let cases = [
            (incomplete, VERSION_1, "site `s` has no tensor `range`"),
            (retyped, VERSION_1, "has `channel_absmax` of I32 [2] where F32 [2] is needed"),
            (stranger, VERSION_1, "not a statistics file (it holds a tensor `s.weight`)"),
            (good(), r#"{"header":{},"version":2}"#, "version 2, this is Zeropoint for version 1"),
            (good(), r#"{"version":9,"other":[]}"#, "version 9"),
            (good(), r#"{"header":{"a":1},"version":1}"#, "malformed"),
            (good(), r#"{"header":{},"version":1,"x":1}"#, "malformed"),
            (good(), "", "malformed"),
        ];
        for (parts, metadata, expected) in cases {
            let message = message_of(&parts, metadata);
            assert!(message.contains(expected), "{message}");
        }
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("s.safetensors");
        SafetensorsWriter::create(&path, vec![], &BTreeMap::new()).unwrap().finish().unwrap();
        let message = StatisticsFile::load(&path).unwrap_err().to_string();
        assert!(message.contains("has no key `zeropoint.statistics`"), "{message}");
        std::fs::write(&path, [0; 5]).unwrap();
        assert!(matches!(StatisticsFile::load(&path), Err(StatisticsFileError::Format(_))));
    }
}
