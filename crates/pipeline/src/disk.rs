//! Room on the disk: what a run needs, and what there is.

use std::fs;
use std::path::Path;

use zeropoint_evaluator::tasks::Task;
use zeropoint_formats::SafetensorsFile;
use zeropoint_formats::staged::companion_files;
use zeropoint_observer::StatisticsFile;

use crate::cadence::Cadence;
use crate::deploy::{dense_files, is_output, planned_output};
use crate::memory::Memory;
use crate::system::free_disk;
use crate::tables::own_bytes;
use crate::{PipelineError, Prepared};

/// Bytes that a run needs where its output goes, at the time when it needs most: while it observes, or at its end. `rows` are
/// those of the largest evaluation task, as [`evaluated_rows`] has them.
///
/// Weights and index are exact. The rest is rounded up: the tokenizer and other files of the source, statistics and hidden states
/// as they are kept to be gone on with (twice, since new ones are written before the old ones go), hidden states that do not fit
/// into `memory`, journal and reports.
pub(crate) fn needed(prepared: &Prepared, memory: Memory, rows: usize) -> Result<u64, PipelineError> {
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
    let states = |rows: usize| (rows * spec.towers[0].hidden * size_of::<f32>()) as u64;
    let spilled = |bytes: u64| bytes.saturating_sub(memory.0);
    let (mut observing, mut at_end) = (2 * statistics(prepared), statistics(prepared));
    if let Some(parts) = memory.parts(spec) {
        let set = &prepared.calibration;
        let rows_of_set: usize = set.inputs.iter().map(|input| input.rows(spec)).sum();
        let kept = Cadence::between_parts(prepared, parts.len()).min(2) as u64;
        observing += kept * states(rows_of_set) + spilled(states(rows_of_set));
        // Of the original and of what was written.
        at_end += 2 * spilled(states(rows));
    }
    let written = [output.weight_bytes(), output.index_bytes, dense, own_bytes(prepared), companions];
    let at_end = written.into_iter().fold(at_end, u64::saturating_add);
    Ok(observing.max(at_end).saturating_add(text))
}

/// Rows in the residual stream of the largest evaluation task of a run whose models are in parts; 0 of others, which keep none.
pub(crate) fn evaluated_rows(prepared: &Prepared, memory: Memory) -> Result<usize, PipelineError> {
    let spec = prepared.directory.spec();
    if memory.parts(spec).is_none() {
        return Ok(0);
    }
    let rows = |task: &Task| task.lengths(spec, &prepared.inputs).map(|lengths| lengths.iter().sum());
    let rows: Vec<usize> = prepared.tasks.iter().map(rows).collect::<Result<_, _>>()?;
    Ok(rows.into_iter().max().unwrap_or(0))
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
pub(crate) fn check(
    prepared: &Prepared,
    memory: Memory,
    target: &Path,
    partial: Option<&Path>,
) -> Result<(), PipelineError> {
    let needed = needed(prepared, memory, evaluated_rows(prepared, memory)?)?;
    let needed = needed.saturating_sub(partial.map_or(0, used));
    match free_disk(target) {
        Some(available) if available < needed => {
            Err(PipelineError::DiskSpace { path: target.to_owned(), needed, available })
        }
        _ => Ok(()),
    }
}
