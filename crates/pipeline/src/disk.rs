//! Room on the disk: what a run needs, and what there is.

use std::fs;
use std::path::Path;

use zeropoint_formats::SafetensorsFile;
use zeropoint_formats::staged::companion_files;
use zeropoint_observer::StatisticsFile;

use crate::deploy::{dense_files, is_output, planned_output};
use crate::system::free_disk;
use crate::tables::own_bytes;
use crate::{PipelineError, Prepared};

/// Bytes that a run needs where its output goes: the output itself, and what it keeps to be continued.
///
/// Weights and index are exact. The rest is rounded up: the tokenizer and other files of the source, the statistics twice
/// (once as a checkpoint of the observing pass, and a new one is written before the old one goes), journal and reports.
pub(crate) fn needed(prepared: &Prepared) -> Result<u64, PipelineError> {
    /// Text about each Linear in the journal, report.json and report.md.
    const TEXT_PER_LINEAR: u64 = 4 << 10;
    const TEXT: u64 = 256 << 10;
    let spec = prepared.directory.spec();
    let source = prepared.directory.path();
    let output = planned_output(prepared);
    let dense: u64 = dense_files(prepared, source)?.values().map(SafetensorsFile::file_bytes).sum();
    let companions = companion_files(source, |path| is_output(source, path))?
        .iter()
        .map(|path| fs::metadata(source.join(path)).map_or(0, |found| found.len()))
        .fold(0u64, u64::saturating_add);
    let text = TEXT + TEXT_PER_LINEAR * spec.linears.len() as u64;
    let parts = [
        output.weight_bytes(),
        output.index_bytes,
        dense,
        own_bytes(prepared),
        companions,
        2 * statistics(prepared),
        text,
    ];
    Ok(parts.into_iter().fold(0, u64::saturating_add))
}

/// An upper bound of the statistics file.
pub(crate) fn statistics(prepared: &Prepared) -> u64 {
    /// Fingerprints, seed and counts in its metadata.
    const HEADER: u64 = 4 << 10;
    /// The count of the rows that are routed to an expert.
    const ROUTED: u64 = 8;
    let sites = &prepared.directory.spec().sites;
    let routed = ROUTED * sites.len() as u64;
    let sites = sites.iter().map(|site| (site.id.as_str(), site.channels));
    HEADER + routed + StatisticsFile::planned_bytes(sites, prepared.calibration.inputs.len())
}

/// Bytes of the files that are in a directory already; 0 when there is none.
pub(crate) fn used(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let bytes = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => used(&entry.path()),
        Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |found| found.len()),
        _ => 0,
    };
    entries.flatten().map(bytes).fold(0, u64::saturating_add)
}

/// Refuses a disk that would run full. What an interrupted run has left in `partial` is used again or removed.
pub(crate) fn check(prepared: &Prepared, target: &Path, partial: Option<&Path>) -> Result<(), PipelineError> {
    let needed = needed(prepared)?.saturating_sub(partial.map_or(0, used));
    match free_disk(target) {
        Some(available) if available < needed => {
            Err(PipelineError::DiskSpace { path: target.to_owned(), needed, available })
        }
        _ => Ok(()),
    }
}
