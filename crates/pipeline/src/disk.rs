//! Room on the disk: what a run needs, and what there is.

use std::fs;
use std::path::Path;

use zeropoint_calibrator::BatchPlan;
use zeropoint_evaluator::tasks::{Task, batch_plan};
use zeropoint_formats::SafetensorsFile;
use zeropoint_formats::staged::companion_files;
use zeropoint_observer::StatisticsFile;

use crate::cadence::Cadence;
use crate::check::probe_lengths;
use crate::deploy::{dense_files, is_output, planned_output};
use crate::memory::Memory;
use crate::system::free_disk;
use crate::tables::own_bytes;
use crate::{PipelineError, Prepared};

/// What of a run writes hidden states, besides making a model.
pub(crate) struct Passes<'a> {
    /// Whether it observes its calibration set.
    pub(crate) observes: bool,
    /// The lengths of the inputs of each evaluation task, in the batches that they are run in; none are needed where models
    /// are whole, which keep no states.
    pub(crate) evaluation: &'a [Vec<Vec<usize>>],
}

/// Bytes that a run needs where its output goes, at the time when it needs most: while it observes, checks itself or evaluates.
///
/// Weights and index are exact. The rest is rounded up: the tokenizer and other files of the source, statistics and hidden states
/// as they are kept to be gone on with (twice, since new ones are written before the old ones go), hidden states that do not fit
/// into `memory`, journal and reports.
pub(crate) fn needed(prepared: &Prepared, memory: Memory, passes: &Passes<'_>) -> Result<u64, PipelineError> {
    /// Text about each Linear in the journal, report.json and report.md.
    const TEXT_PER_LINEAR: u64 = 4 << 10;
    const TEXT: u64 = 256 << 10;
    let spec = prepared.graph().spec();
    let source = prepared.graph().path();
    let output = planned_output(prepared);
    let dense: u64 = dense_files(prepared, source)?.values().map(SafetensorsFile::file_bytes).sum();
    let companions = companion_files(source, |path| is_output(source, path))?
        .iter()
        .map(|path| fs::metadata(source.join(path)).map_or(0, |found| found.len()))
        .fold(0u64, u64::saturating_add);
    let text = TEXT + TEXT_PER_LINEAR * spec.linears.len() as u64;
    let mut statistics = statistics(prepared);
    if prepared.observing_passes() > 1 {
        statistics *= 2;
    }
    let mut observing = if passes.observes { 2 * statistics } else { 0 };
    // What is beside the written model.
    let mut beside = 0;
    if let Some(parts) = memory.parts(spec) {
        let states = |rows: usize| (rows * spec.towers[0].hidden * size_of::<f32>()) as u64;
        let set = &prepared.calibration;
        let of_batches = |plan: &BatchPlan| -> Vec<u64> {
            let of_batch = |batch: &Vec<usize>| batch.iter().map(|&i| set.inputs[i].rows(spec)).sum();
            plan.batches().iter().map(of_batch).map(states).collect()
        };
        if passes.observes {
            let plan = prepared.last_pass();
            let batches = of_batches(plan);
            let kept = Cadence::between_parts(prepared, plan, parts.len()).min(2) as u64;
            observing += kept * batches.iter().sum::<u64>() + spilled(memory, &batches);
        }
        if prepared.config.output.self_check {
            // Of the original and the simulation.
            beside = 2 * 2 * states(probe_lengths(prepared).iter().sum());
        }
        if prepared.is_sequential() {
            beside += spilled(memory, &of_batches(&set.plan));
        }
        for task in passes.evaluation {
            let batches: Vec<u64> = task.iter().map(|lengths| states(lengths.iter().sum())).collect();
            // Of the original and what was written.
            beside = beside.max(2 * spilled(memory, &batches));
        }
    }
    let written = [statistics, beside, output.weight_bytes(), output.index_bytes, dense, own_bytes(prepared)];
    let at_end = written.into_iter().fold(companions, u64::saturating_add);
    Ok(observing.max(at_end).saturating_add(text))
}

/// Bytes of the batches that go into a file, as [`HiddenStates`](zeropoint_models::HiddenStates) chooses them.
fn spilled(memory: Memory, batches: &[u64]) -> u64 {
    let (mut kept, mut spilled) = (0, 0);
    for bytes in batches {
        let into = if kept + bytes > memory.0 { &mut spilled } else { &mut kept };
        *into += bytes;
    }
    spilled
}

/// The lengths of the inputs of each evaluation task, in the batches that they are run in.
pub(crate) fn evaluation_batches(prepared: &Prepared) -> Result<Vec<Vec<Vec<usize>>>, PipelineError> {
    let spec = prepared.graph().spec();
    let of_task = |task: &Task| {
        let lengths = task.lengths(spec, &prepared.inputs)?;
        let plan = batch_plan(spec, &lengths, prepared.options.batch_size);
        Ok(plan.batches().iter().map(|batch| batch.iter().map(|&i| lengths[i]).collect()).collect())
    };
    prepared.tasks.iter().map(of_task).collect()
}

/// Bytes that a run needs: one whose statistics are given makes no first observing pass, and does not evaluate.
pub(crate) fn needed_by(prepared: &Prepared, memory: Memory, is_given: bool) -> Result<u64, PipelineError> {
    let evaluates = !is_given && memory.parts(prepared.graph().spec()).is_some();
    let evaluation = if evaluates { evaluation_batches(prepared)? } else { Vec::new() };
    needed(
        prepared,
        memory,
        &Passes { observes: !is_given || prepared.observing_passes() > 1, evaluation: &evaluation },
    )
}

/// An upper bound of the statistics file.
pub(crate) fn statistics(prepared: &Prepared) -> u64 {
    /// Fingerprints, seed and counts in its metadata.
    const HEADER: u64 = 4 << 10;
    /// The count of the rows that are routed to an expert.
    const ROUTED: u64 = 8;
    let sites = &prepared.graph().spec().sites;
    let routed = ROUTED * sites.len() as u64;
    let sites = sites.iter().map(|site| (site.id.as_str(), site.channels));
    HEADER + routed + StatisticsFile::planned_bytes(sites, prepared.calibration.inputs.len())
}

/// Bytes that the files in a directory take already; 0 when there is none.
pub(crate) fn used(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let bytes = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => used(&entry.path()),
        Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |found| taken(&found)),
        _ => 0,
    };
    entries.flatten().map(bytes).fold(0, u64::saturating_add)
}

/// Bytes that a file takes of the disk: weight files have their full length before what they hold is written.
#[cfg(unix)]
fn taken(found: &fs::Metadata) -> u64 {
    /// Of a block as `st_blocks` counts them, whatever the file system's are (POSIX, sys/stat.h).
    const BLOCK: u64 = 512;
    found.len().min(std::os::unix::fs::MetadataExt::blocks(found).saturating_mul(BLOCK))
}

#[cfg(not(unix))]
fn taken(found: &fs::Metadata) -> u64 {
    found.len()
}

/// Refuses a disk that would run full. What an interrupted run has left in `partial` is used again or removed.
pub(crate) fn check(
    prepared: &Prepared,
    (memory, is_given): (Memory, bool),
    target: &Path,
    partial: Option<&Path>,
) -> Result<(), PipelineError> {
    let needed = needed_by(prepared, memory, is_given)?.saturating_sub(partial.map_or(0, used));
    match free_disk(target) {
        Some(available) if available < needed => {
            Err(PipelineError::DiskSpace { path: target.to_owned(), needed, available })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_full_length_takes_no_more_than_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = fs::File::create(dir.path().join("weights")).unwrap();
        file.set_len(1 << 30).unwrap();
        assert!(used(dir.path()) < 1 << 20, "{}", used(dir.path()));
        fs::write(dir.path().join("text"), vec![1; 3 << 20]).unwrap();
        file.sync_all().unwrap();
        fs::File::open(dir.path().join("text")).unwrap().sync_all().unwrap();
        assert!((3 << 20..4 << 20).contains(&used(dir.path())), "{}", used(dir.path()));
    }

    #[test]
    fn batches_that_fit_no_more_go_into_a_file_as_wholes() {
        for (limit, batches, expected) in
            [(0, &[3, 4][..], 7), (5, &[3, 4, 2], 4), (5, &[6, 5], 6), (9, &[3, 4, 2], 0)]
        {
            assert_eq!(spilled(Memory(limit), batches), expected, "{limit} {batches:?}");
        }
    }
}
