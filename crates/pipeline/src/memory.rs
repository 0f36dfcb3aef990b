//! The peak memory of a run, foretold from the plan.

use crate::Prepared;

/// Memory at the peak, the self-check: the float model, the simulated Linears, the INT8 model with its own tables, the
/// quantised weights, and the activations of the largest batch.
pub(crate) fn peak(prepared: &Prepared) -> u64 {
    const PROGRAM: usize = 40 << 20;
    let spec = prepared.directory.spec();
    let linears: usize = spec.linears.iter().filter(|l| l.site.is_some()).map(|l| l.weights() * 4).sum();
    let quantized: usize =
        prepared.plan.quantized().map(|(plan, _)| spec.linears[plan.linear].weights()).sum();
    let tables: usize = spec.embeddings.iter().map(|table| table.rows * spec.hidden * 4).sum();
    let widest = spec.linears.iter().map(|linear| linear.outputs).max().unwrap_or(0);
    let batch = prepared.calibration.plan.batches().iter().map(|batch| {
        let lengths = batch.iter().map(|&i| prepared.calibration.sequences[i].len());
        let heads = spec.blocks.first().map_or(0, |block| block.attention.heads);
        let scores: usize = lengths.clone().map(|n| n * n * heads).max().unwrap_or(0);
        (lengths.sum::<usize>() * (widest * 2 + spec.hidden * 6) + scores * rayon::current_num_threads()) * 4
    });
    // Float and simulated Linears; the quantised values once as stored and once packed; tables of both models.
    (PROGRAM + 2 * linears + 2 * quantized + 2 * tables + batch.max().unwrap_or(0)) as u64
}
