//! The peak memory of a run, foretold from the plan.
//!
//! What lives at the same time is counted stage by stage and the largest sum is the answer. For MiniLM it is within a
//! quarter of what a run measures (`VmHWM`), and a test holds it to that; for a small decoder it is too high (docs/memory.md).

use std::collections::BTreeSet;

use zeropoint_formats::Dtype;
use zeropoint_models::{HeadOutput, LARGE_MATRIX, LinearSpec, ModelSpec, Part, WIDEST_MATRIX};
use zeropoint_quantizer::EmbeddingPrecision;

use crate::check::probe_lengths;
use crate::deploy::largest_copy;
use crate::system::resident_memory;
use crate::{Prepared, disk};

/// Bytes of hidden states that a run keeps in memory while all samples go through one part of a model after the other; what
/// does not fit goes into a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory(pub u64);

impl Default for Memory {
    fn default() -> Self {
        Self(1 << 30)
    }
}

impl Memory {
    /// Bytes of a model's weights in f32 up to which it is kept whole: hidden states would take as much.
    pub(crate) fn whole(self) -> u64 {
        self.0 / 8
    }
}

const F32: usize = 4;
const BF16: usize = 2;
/// Of the program before any weight is read, where the system does not tell.
const PROGRAM: u64 = 32 << 20;

/// Bytes resident at the peak. `evaluation` has the lengths of the inputs of each task, in the batches that they are run in.
///
/// The program, its data sets and tokenizers are measured: the caller holds what a run holds at that point.
pub(crate) fn peak(prepared: &Prepared, memory: Memory, evaluation: &[Vec<Vec<usize>>]) -> u64 {
    let spec = prepared.directory.spec();
    let parts = Part::of(spec).filter(|_| spec.float_bytes() > memory.whole());
    let stages = match parts {
        Some(parts) => by_parts(prepared, memory, &parts, evaluation),
        None => whole(prepared, evaluation),
    };
    resident_memory().unwrap_or(PROGRAM) + stages.into_iter().max().unwrap_or(0) as u64
}

/// Each stage of a run whose models are whole in memory.
fn whole(prepared: &Prepared, evaluation: &[Vec<Vec<usize>>]) -> Vec<usize> {
    let spec = prepared.directory.spec();
    let tables: usize = spec.tables().map(|table| table.rows * table.width * F32).sum();
    let run = |linear: &&LinearSpec| linear.site.is_some();
    let linears: usize = spec.linears.iter().filter(run).map(|linear| linear.weights() * F32).sum();
    let quantized: usize = prepared
        .plan
        .quantized()
        .map(|(plan, _)| &spec.linears[plan.linear])
        .filter(run)
        .map(LinearSpec::weights)
        .sum();
    // What the plan leaves float is read again by the simulation and by the written model.
    let float_again = linears - quantized * F32;
    let simulated_tables = if prepared.plan.embeddings == EmbeddingPrecision::Keep { 0 } else { tables };
    let statistics = disk::statistics(prepared) as usize;

    let model = tables + linears;
    let written = tables + quantized + float_again;
    let calibration = batches(prepared).map(|lengths| activations(spec, &lengths)).max().unwrap_or(0);
    let simulation = linears + simulated_tables;
    vec![
        model + statistics + calibration,
        model + statistics + quantized + largest_copy(prepared),
        model + statistics + quantized + written + simulation + check(spec, &probe_lengths(prepared)),
        model + statistics + written + evaluated(spec, evaluation),
    ]
}

/// Each stage of a run of which one part of a model is in memory at a time, for the part that takes most.
fn by_parts(
    prepared: &Prepared,
    memory: Memory,
    parts: &[Part],
    evaluation: &[Vec<Vec<usize>>],
) -> Vec<usize> {
    let spec = prepared.directory.spec();
    let hidden = spec.towers[0].hidden;
    let statistics =
        if prepared.calibration.inputs.is_empty() { 0 } else { disk::statistics(prepared) as usize };
    let limit = usize::try_from(memory.0).unwrap_or(usize::MAX);
    let states = |rows: usize| (rows * hidden * F32).min(limit);
    let calibrated: usize = batches(prepared).flatten().sum();
    let calibration = batches(prepared).map(|lengths| activations(spec, &lengths)).max().unwrap_or(0);
    let check = if prepared.config.output.self_check { check(spec, &probe_lengths(prepared)) } else { 0 };
    let quantized: BTreeSet<usize> = prepared.plan.quantized().map(|(plan, _)| plan.linear).collect();
    // A head that is made of a table waits for the part that runs it.
    let waiting = prepared.plan.tied_head(spec).map_or(0, |(id, _)| spec.linears[id].weights());
    let mut stages = Vec::new();
    for &part in parts {
        let float = part_bytes(prepared, part);
        let sites = part.sites(spec);
        let linears = spec.linears.iter().enumerate();
        let integers: usize = linears
            .filter(|(id, linear)| {
                quantized.contains(id) && linear.site.is_some_and(|site| sites.contains(&site))
            })
            .map(|(_, linear)| linear.weights())
            .sum();
        if !prepared.calibration.inputs.is_empty() {
            stages.push(statistics + states(calibrated) + float + calibration);
        }
        stages.push(statistics + waiting + integers + largest_copy(prepared));
        if prepared.config.output.self_check {
            // The float part, its integers as quantised, as written and as f32 in the simulation.
            let float_again = float - F32 * integers;
            stages.push(statistics + waiting + float + (2 + F32) * integers + 2 * float_again + check);
        }
        let rows = |task: &Vec<Vec<usize>>| task.iter().flatten().sum();
        let evaluated_rows = evaluation.iter().map(rows).max().unwrap_or(0);
        if evaluated_rows > 0 {
            // The hidden states of both models; at the end both heads.
            let both = if part.has_output() { 2 } else { 1 };
            stages.push(statistics + 2 * states(evaluated_rows) + both * float + evaluated(spec, evaluation));
        }
    }
    stages
}

/// Bytes of a part of the float model: f32, but for large tables and last Linears that the file has in bfloat16.
fn part_bytes(prepared: &Prepared, part: Part) -> usize {
    let (spec, checkpoint) = (prepared.directory.spec(), prepared.directory.checkpoint());
    let is_bf16 = |tensor: &str| checkpoint.get(tensor).is_some_and(|info| info.dtype == Dtype::BF16);
    let of_matrix = |tensor: &str, weights: usize| {
        if weights >= LARGE_MATRIX && is_bf16(tensor) { weights * BF16 } else { weights * F32 }
    };
    if part.has_input() {
        return spec.tables().map(|table| of_matrix(&table.tensor, table.rows * table.width)).sum();
    }
    let sites = part.sites(spec);
    let linears = spec.linears.iter().filter(|linear| linear.site.is_some_and(|site| sites.contains(&site)));
    if part.has_output() {
        // With many rows the last Linear is multiplied in f32, a part of it at a time.
        return linears
            .map(|linear| {
                of_matrix(&linear.weight, linear.weights()) + linear.weights().min(WIDEST_MATRIX) * F32
            })
            .sum();
    }
    linears.map(|linear| linear.weights() * F32).sum()
}

/// Lengths of the sequences of each batch of the observing pass.
fn batches(prepared: &Prepared) -> impl Iterator<Item = Vec<usize>> + '_ {
    let set = &prepared.calibration;
    let spec = prepared.directory.spec();
    set.plan.batches().iter().map(|batch| batch.iter().map(|&i| set.inputs[i].rows(spec)).collect())
}

/// The largest batch of any task, with the outputs of both models that are kept to its end.
fn evaluated(spec: &ModelSpec, evaluation: &[Vec<Vec<usize>>]) -> usize {
    // A vector for each sequence; a classifier's row of logits is shorter. A row of logits for each token lives as long as its
    // batch.
    let columns = spec.towers[0].hidden;
    let vocabulary = spec.tables().map(|table| table.rows).max().unwrap_or(0);
    let by_token = matches!(spec.head().output, HeadOutput::MaskedLm | HeadOutput::CausalLm);
    let of_task = |batches: &Vec<Vec<usize>>| {
        let sequences: usize = batches.iter().map(Vec::len).sum();
        let tokens = batches.iter().map(|lengths| lengths.iter().sum::<usize>()).max().unwrap_or(0);
        let logits = if by_token { 2 * 2 * tokens * vocabulary * F32 } else { 0 };
        let largest = batches.iter().map(|lengths| activations(spec, lengths)).max().unwrap_or(0);
        2 * sequences * columns * F32 + largest + logits
    };
    evaluation.iter().map(of_task).max().unwrap_or(0)
}

/// What a forward pass over sequences of these lengths holds at once: at the end of a block the hidden states before and
/// after attention, query, key and value, context, both outputs and the wide inner activation; or, in attention, what each
/// thread has of its sequence besides.
fn activations(spec: &ModelSpec, lengths: &[usize]) -> usize {
    let tokens: usize = lengths.iter().sum();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let tower = &spec.towers[0];
    let (hidden, heads) = (tower.hidden, tower.blocks.first().map_or(0, |block| block.attention.heads));
    let threads = rayon::current_num_threads().min(lengths.len());
    let in_attention = tokens * 6 * hidden + threads * (5 * longest * hidden + heads * longest * longest);
    let at_the_end = tokens * (8 * hidden + widest(spec));
    in_attention.max(at_the_end) * F32
}

/// As [`activations`] while one layer after the other is compared: its input and output in float, in steps, as whole
/// sums and simulated.
fn check(spec: &ModelSpec, lengths: &[usize]) -> usize {
    let tokens: usize = lengths.iter().sum();
    activations(spec, lengths) + tokens * 4 * widest(spec) * F32
}

/// The widest output of a Linear that works on every token.
fn widest(spec: &ModelSpec) -> usize {
    let linears = spec.linears.iter().filter(|linear| linear.site.is_some());
    linears.map(|linear| linear.outputs).max().unwrap_or(0)
}

/// The batches of a task as lengths, from those of its inputs.
pub(crate) fn batches_of(lengths: &[usize], batch_size: usize) -> Vec<Vec<usize>> {
    let plan = zeropoint_calibrator::BatchPlan::of_lengths(lengths, batch_size);
    plan.batches().iter().map(|batch| batch.iter().map(|&i| lengths[i]).collect()).collect()
}
