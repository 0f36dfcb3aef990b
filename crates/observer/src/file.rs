//! Statistics on disk: one safetensors file, the same bytes for the same statistics.
//!
//! Each site `S` of `C` channels, of which `N` samples are known, has eight tensors:
//!
//! | tensor | dtype | length | holds |
//! |---|---|---|---|
//! | `S.histogram` | I64 | 8192 | counts, most negative bin first |
//! | `S.channel_absmax` | F32 | C | largest magnitude of each channel |
//! | `S.channel_counts` | U32 | 96 C | for each channel, counts by magnitude from zero up, then those below zero |
//! | `S.row_counts` | U32 | 2304 | likewise of the rows' minima, maxima and largest magnitudes |
//! | `S.range` | F32 | 2 | minimum and maximum, zeros without values |
//! | `S.samples` | I64 | 2 N | for each sample its number, rising, and its rows |
//! | `S.sample_ranges` | F32 | 2 N | for each sample its minimum and maximum |
//! | `S.meta` | I64 | 3 or 4 | values, rows, exponent of the bin width; of an expert, the rows that are routed to it |
//!
//! The metadata has one key, `zeropoint.statistics`: a JSON object with the format's `version`, the `header`, and the
//! `checksum` of header and tensors, a BLAKE3 hash.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeropoint_core::{Fingerprint, FingerprintBuilder};
use zeropoint_formats::safetensors::element::f32_bytes;
use zeropoint_formats::{Dtype, FormatError, SafetensorsFile, SafetensorsWriter, TensorSpec, planned_bytes};

use crate::samples::{SampleRange, Samples};
use crate::sketch::Sketch;
use crate::statistics::{CHANNEL_MANTISSA_BITS, Parts, ROW_LANES, ROW_MANTISSA_BITS};
use crate::{ActivationStatistics, BINS, Histogram};

/// Version of the file format that this crate writes, and the only one it reads.
pub const STATISTICS_VERSION: u32 = 2;

const METADATA_KEY: &str = "zeropoint.statistics";
const PARTS: [&str; 8] = [
    "channel_absmax",
    "channel_counts",
    "histogram",
    "meta",
    "range",
    "row_counts",
    "sample_ranges",
    "samples",
];

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
    /// What stands in the file is not what was written.
    #[error("{} is damaged: its content does not have the checksum it states, so calibrate again", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
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
    checksum: Fingerprint,
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
        let metadata = Metadata {
            checksum: self.checksum(),
            header: self.header.clone(),
            version: u64::from(STATISTICS_VERSION),
        };
        let json = serde_json::to_string(&metadata).expect("maps of strings always have a JSON form");
        let metadata = BTreeMap::from([(METADATA_KEY.to_owned(), json)]);
        let specs = self.sites.iter().flat_map(|(site, statistics)| {
            PARTS.map(|part| {
                let (dtype, len) = layout(part, Lengths::of(statistics));
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

    /// Bytes that the statistics of these sites (name and channels) over so many samples take, in a file without a header.
    pub fn planned_bytes<'a>(sites: impl IntoIterator<Item = (&'a str, usize)>, samples: usize) -> u64 {
        let specs: Vec<TensorSpec> = sites
            .into_iter()
            .flat_map(|(site, channels)| {
                PARTS.map(|part| {
                    let (dtype, len) = layout(part, Lengths { channels, samples, meta: META });
                    TensorSpec::new(tensor(site, part), dtype, [len])
                })
            })
            .collect();
        planned_bytes(&specs)
    }

    fn checksum(&self) -> Fingerprint {
        let mut content = content_of(&self.header);
        for (site, statistics) in &self.sites {
            for part in PARTS {
                content.field(&tensor(site, part), encode(part, statistics));
            }
        }
        content.finish()
    }

    /// The header alone, without reading any statistics: whether they are damaged is not looked at.
    pub fn load_header(path: impl AsRef<Path>) -> Result<BTreeMap<String, String>, StatisticsFileError> {
        let path = path.as_ref();
        Ok(metadata_of(&SafetensorsFile::open(path)?, path)?.header)
    }

    /// Reads and checks a file: nothing is returned that could not have been observed.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, StatisticsFileError> {
        let path = path.as_ref();
        let file = SafetensorsFile::open(path)?;
        let Metadata { checksum, header, .. } = metadata_of(&file, path)?;
        let foreign = |reason: String| StatisticsFileError::Foreign { path: path.to_owned(), reason };
        let mut names = BTreeSet::new();
        for name in file.tensors().map(|info| &info.name) {
            match name.rsplit_once('.') {
                Some((site, part)) if PARTS.contains(&part) => names.insert(site.to_owned()),
                _ => return Err(foreign(format!("it holds a tensor `{}`", name.escape_debug()))),
            };
        }
        let mut content = content_of(&header);
        let load = |site: String| {
            let statistics = load_site(&file, &site, &mut content)?.map_err(|reason| {
                StatisticsFileError::Site { path: path.to_owned(), site: site.clone(), reason }
            })?;
            Ok((site, statistics))
        };
        let sites = names.into_iter().map(load).collect::<Result<_, StatisticsFileError>>()?;
        if content.finish() != checksum {
            return Err(StatisticsFileError::Damaged { path: path.to_owned() });
        }
        Ok(Self { header, sites })
    }
}

/// The metadata, if the file is of this crate and of its version.
fn metadata_of(file: &SafetensorsFile, path: &Path) -> Result<Metadata, StatisticsFileError> {
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
    serde_json::from_str(json).map_err(malformed)
}

fn tensor(site: &str, part: &str) -> String {
    format!("{site}.{part}")
}

/// A checksum of the header, to which the tensors of all sites are added in order.
fn content_of(header: &BTreeMap<String, String>) -> FingerprintBuilder {
    let mut content = Fingerprint::builder("statistics-content");
    for (key, value) in header {
        content.field("key", key).field("value", value);
    }
    content
}

/// Numbers in `meta`, one more where routed rows are counted.
const META: usize = 3;

/// What the lengths of a site's tensors follow from.
#[derive(Clone, Copy)]
struct Lengths {
    channels: usize,
    samples: usize,
    meta: usize,
}

impl Lengths {
    fn of(statistics: &ActivationStatistics) -> Self {
        Self {
            channels: statistics.channels(),
            samples: statistics.samples().len(),
            meta: META + usize::from(statistics.counts_routed()),
        }
    }
}

/// Element type and length of a part.
fn layout(part: &str, Lengths { channels, samples, meta }: Lengths) -> (Dtype, usize) {
    match part {
        "channel_absmax" => (Dtype::F32, channels),
        "channel_counts" => (Dtype::U32, channels.saturating_mul(Sketch::lane_len(CHANNEL_MANTISSA_BITS))),
        "histogram" => (Dtype::I64, BINS),
        "meta" => (Dtype::I64, meta),
        "row_counts" => (Dtype::U32, ROW_LANES * Sketch::lane_len(ROW_MANTISSA_BITS)),
        "sample_ranges" => (Dtype::F32, samples.saturating_mul(2)),
        "samples" => (Dtype::I64, samples.saturating_mul(2)),
        _ => (Dtype::F32, 2),
    }
}

fn encode(part: &str, statistics: &ActivationStatistics) -> Vec<u8> {
    let i64_bytes = |values: &[i64]| values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let u32_bytes = |values: &[u32]| values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let histogram = statistics.histogram();
    let samples = statistics.samples();
    match part {
        "channel_absmax" => f32_bytes(statistics.channel_absmax()),
        "channel_counts" => u32_bytes(statistics.sketched().0),
        "histogram" => histogram.counts().iter().flat_map(|count| count.to_le_bytes()).collect(),
        // Counts are at most 2^53.
        "meta" => {
            let (values, rows) = (statistics.values() as i64, statistics.rows() as i64);
            let meta = [values, rows, i64::from(histogram.exponent()), statistics.routed_rows() as i64];
            i64_bytes(&meta[..Lengths::of(statistics).meta])
        }
        "row_counts" => u32_bytes(statistics.sketched().1),
        "sample_ranges" => {
            f32_bytes(&samples.values().flat_map(|range| [range.min, range.max]).collect::<Vec<_>>())
        }
        "samples" => i64_bytes(
            &samples
                .iter()
                .flat_map(|(&sample, range)| [i64::from(sample), range.rows as i64])
                .collect::<Vec<_>>(),
        ),
        _ => f32_bytes(&[statistics.min(), statistics.max()]),
    }
}

/// The statistics of one site, whose tensors are added to `content`; the inner error says what is wrong with them.
fn load_site(
    file: &SafetensorsFile,
    site: &str,
    content: &mut FingerprintBuilder,
) -> Result<Result<ActivationStatistics, String>, StatisticsFileError> {
    if let Some(part) = PARTS.iter().find(|part| file.get(&tensor(site, part)).is_none()) {
        return Ok(Err(format!("has no tensor `{part}`")));
    }
    // These say how long the others are.
    let len_of = |part| file.get(&tensor(site, part)).and_then(|info| info.shape.first().copied());
    let channels = len_of("channel_absmax").unwrap_or(0);
    let samples = len_of("samples").unwrap_or(0) / 2;
    let meta = if len_of("meta") == Some(META + 1) { META + 1 } else { META };
    let mut parts = BTreeMap::new();
    for part in PARTS {
        let name = tensor(site, part);
        let info = file.require(&name)?;
        let (dtype, len) = layout(part, Lengths { channels, samples, meta });
        if info.dtype != dtype || info.shape != [len] {
            let (found, shape) = (info.dtype, &info.shape);
            return Ok(Err(format!("has `{part}` of {found} {shape:?} where {dtype} [{len}] is needed")));
        }
        let bytes = file.read_bytes(&name)?;
        content.field(&name, &bytes);
        parts.insert(part, bytes);
    }
    Ok(decode(&parts))
}

fn decode(parts: &BTreeMap<&str, Vec<u8>>) -> Result<ActivationStatistics, String> {
    let bytes_of = |part: &str| parts.get(part).map(Vec::as_slice).unwrap_or_default();
    let counts = i64s(bytes_of("histogram")).map(u64::try_from).collect::<Result<Vec<_>, _>>();
    let counts = counts.map_err(|_| "has a negative count".to_owned())?;
    let meta = i64s(bytes_of("meta")).collect::<Vec<_>>();
    let &[values, rows, exponent, ref routed @ ..] = &meta[..] else {
        return Err("has no complete `meta`".to_owned());
    };
    let [min, max] = f32s(bytes_of("range")).collect::<Vec<_>>()[..] else {
        return Err("has no complete `range`".to_owned());
    };
    let rows = u64::try_from(rows).map_err(|_| format!("claims {rows} rows"))?;
    let routed = routed.first().map(|&routed| {
        u64::try_from(routed).map_err(|_| format!("claims {routed} rows that are routed to it"))
    });
    let histogram = i32::try_from(exponent)
        .ok()
        .and_then(|exponent| Histogram::from_parts(exponent, counts))
        .ok_or_else(|| format!("has an impossible histogram (exponent {exponent})"))?;
    if i64::try_from(histogram.count()) != Ok(values) {
        return Err(format!("claims {values} values and counts {}", histogram.count()));
    }
    let parts = Parts {
        rows,
        routed: routed.transpose()?,
        range: (min, max),
        histogram,
        channel_absmax: f32s(bytes_of("channel_absmax")).collect(),
        channel_counts: u32s(bytes_of("channel_counts")).collect(),
        row_counts: u32s(bytes_of("row_counts")).collect(),
        samples: decode_samples(bytes_of("samples"), bytes_of("sample_ranges"))?,
    };
    ActivationStatistics::from_parts(parts).ok_or_else(|| {
        format!("contradicts itself: {rows} rows, {values} values, range [{min}, {max}], exponent {exponent}")
    })
}

fn decode_samples(samples: &[u8], ranges: &[u8]) -> Result<Samples, String> {
    let (samples, ranges): (Vec<i64>, Vec<f32>) = (i64s(samples).collect(), f32s(ranges).collect());
    let mut found = BTreeMap::new();
    for (&[sample, rows], &[min, max]) in samples.as_chunks().0.iter().zip(ranges.as_chunks().0) {
        let number = u32::try_from(sample).map_err(|_| format!("has a sample of the number {sample}"))?;
        let rows = u64::try_from(rows).map_err(|_| format!("claims {rows} rows of sample {sample}"))?;
        if found.last_key_value().is_some_and(|(&before, _)| before >= number) {
            return Err(format!("names sample {sample} out of order"));
        }
        // Adding zero turns -0.0 into 0.0.
        found.insert(number, SampleRange { rows, min: min + 0.0, max: max + 0.0 });
    }
    Ok(Samples::new(found))
}

fn i64s(bytes: &[u8]) -> impl Iterator<Item = i64> + '_ {
    bytes.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes))
}

fn u32s(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes))
}

fn f32s(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests;
