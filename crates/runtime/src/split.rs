//! A product over all threads, by rows or by outputs.

use std::ops::Range;

use rayon::prelude::*;
use zeropoint_kernels::{PackedWeights, WeightOnlyMatrix};

/// Rows that one task multiplies: enough to use a panel of weights several times while it is in cache.
const ROWS_PER_TASK: usize = 48;

/// Most outputs of one row that one task computes.
const OUTPUTS_PER_TASK: usize = 1024;

/// Outputs that lie together in every packed weight.
const PANEL: usize = PackedWeights::PANEL;
const _: () = assert!(PANEL == WeightOnlyMatrix::PANEL);

/// `[rows, outputs]`, each part of which `part` fills: it is given rows, outputs from the first of a panel on, memory, and how
/// far apart rows begin in it.
///
/// Split over threads by rows, or by output panels where rows are few.
pub(crate) fn over_threads(
    rows: usize,
    outputs: usize,
    part: impl Fn(Range<usize>, Range<usize>, &mut [f32], usize) + Sync,
) -> Vec<f32> {
    let mut out = vec![0f32; rows * outputs];
    if rows >= ROWS_PER_TASK {
        out.par_chunks_mut(ROWS_PER_TASK * outputs).enumerate().for_each(|(i, out)| {
            let first = i * ROWS_PER_TASK;
            part(first..first + out.len() / outputs, 0..outputs, out, outputs);
        });
        return out;
    }
    // A task is at least two panels wide: narrower ones cost more to hand out than to run.
    let width = outputs.div_ceil(rayon::current_num_threads()).max(2 * PANEL).next_multiple_of(PANEL);
    if rows == 0 || width >= outputs {
        part(0..rows, 0..outputs, &mut out, outputs);
        return out;
    }
    if rows == 1 {
        // Narrow enough that the threads end together though one is slower.
        let width = width.min(OUTPUTS_PER_TASK);
        out.par_chunks_mut(width).enumerate().for_each(|(i, out)| {
            let count = out.len();
            part(0..1, i * width..i * width + count, out, count);
        });
        return out;
    }
    let parts: Vec<(usize, Vec<f32>)> = (0..outputs)
        .into_par_iter()
        .step_by(width)
        .map(|start| {
            let columns = start..(start + width).min(outputs);
            let count = columns.len();
            let mut values = vec![0f32; rows * count];
            part(0..rows, columns, &mut values, count);
            (start, values)
        })
        .collect();
    for (start, part) in parts {
        let count = part.len() / rows;
        for (row, values) in part.chunks_exact(count).enumerate() {
            out[row * outputs + start..][..count].copy_from_slice(values);
        }
    }
    out
}
