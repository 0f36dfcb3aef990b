//! The peak memory of a run, foretold from the plan.
//!
//! What lives at the same time is counted stage by stage and the largest sum is the answer. It is within a quarter of what
//! a run of a real model measures (`VmHWM`); a test holds it to that.

use zeropoint_models::{LinearSpec, ModelSpec};
use zeropoint_quantizer::EmbeddingPrecision;

use crate::check::probe_lengths;
use crate::deploy::largest_copy;
use crate::system::resident_memory;
use crate::{Prepared, disk};

const F32: usize = 4;
/// Of the program before any weight is read, where the system does not tell.
const PROGRAM: u64 = 32 << 20;

/// Bytes resident at the peak. `evaluation` has the lengths of the inputs of each task, in the batches that they are run in.
///
/// The program, its data sets and tokenizers are measured: the caller holds what a run holds at that point.
pub(crate) fn peak(prepared: &Prepared, evaluation: &[Vec<Vec<usize>>]) -> u64 {
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
    let stages = [
        model + statistics + calibration,
        model + statistics + quantized + largest_copy(prepared),
        model + statistics + quantized + written + simulation + check(spec, &probe_lengths(prepared)),
        model + statistics + written + evaluated(spec, evaluation),
    ];
    resident_memory().unwrap_or(PROGRAM) + stages.into_iter().max().unwrap_or(0) as u64
}

/// Lengths of the sequences of each batch of the observing pass.
fn batches(prepared: &Prepared) -> impl Iterator<Item = Vec<usize>> + '_ {
    let set = &prepared.calibration;
    let spec = prepared.directory.spec();
    set.plan.batches().iter().map(|batch| batch.iter().map(|&i| set.inputs[i].rows(spec)).collect())
}

/// The largest batch of any task, with the outputs of both models that are kept to its end.
fn evaluated(spec: &ModelSpec, evaluation: &[Vec<Vec<usize>>]) -> usize {
    // A vector for each sequence; a classifier's row of logits is shorter.
    let columns = spec.towers[0].hidden;
    let of_task = |batches: &Vec<Vec<usize>>| {
        let sequences: usize = batches.iter().map(Vec::len).sum();
        let largest = batches.iter().map(|lengths| activations(spec, lengths)).max().unwrap_or(0);
        2 * sequences * columns * F32 + largest
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
