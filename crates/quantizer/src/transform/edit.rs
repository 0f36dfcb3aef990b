//! The changes of a [`TransformPlan`] made to numbers.

use std::ops::Range;

use rayon::prelude::*;
use zeropoint_kernels::{ChannelRotation, Isa};

use super::{Edit, NormEdit, TransformPlan};

/// Columns of a matrix that are turned at a time.
const COLUMNS: usize = 64;

/// Rows of a matrix at hand.
pub struct EditedRows<'a> {
    /// `[rows.len(), inputs]`.
    pub values: &'a mut [f32],
    /// Which of the matrix they are: all of them, unless every edit [is by row](Edit::is_by_row).
    pub rows: Range<usize>,
    /// Columns.
    pub inputs: usize,
}

/// Makes `edits` of a weight. `factors` are those of each of the plan's smoothings, `gains` those of its norms as they were.
pub fn edit_weight(
    isa: Isa,
    plan: &TransformPlan,
    edits: &[Edit],
    (factors, gains): (&[Vec<f32>], &[Vec<f32>]),
    weight: EditedRows<'_>,
) {
    let EditedRows { values, rows, inputs } = weight;
    for edit in edits {
        match edit {
            Edit::ScaleColumns { smoothing } => {
                let factor = |channel| factors[*smoothing][plan.smoothings[*smoothing].factor_of(channel)];
                let factors: Vec<f32> = (0..inputs).map(factor).collect();
                scale_columns(values, &factors);
            }
            Edit::FoldGain { norm } => scale_columns(values, &gains[*norm]),
            Edit::DivideRows { smoothing, rows: divided } => {
                values.par_chunks_exact_mut(inputs).zip(rows.clone()).for_each(|(row, index)| {
                    if divided.contains(&index) {
                        let factor = factors[*smoothing][index - divided.start];
                        for w in row {
                            *w /= factor;
                        }
                    }
                });
            }
            Edit::RotateColumns { .. } => {
                if let Some(rotation) = edit.rotation() {
                    values.par_chunks_exact_mut(inputs).for_each(|row| rotation.apply(isa, row));
                }
            }
            Edit::RotateRows { order, rows: turned } => {
                let at = (turned.start - rows.start) * inputs..(turned.end - rows.start) * inputs;
                rotate_rows(isa, &mut values[at], *order, inputs);
            }
        }
    }
}

fn scale_columns(values: &mut [f32], factors: &[f32]) {
    values
        .par_chunks_exact_mut(factors.len())
        .for_each(|row| row.iter_mut().zip(factors).for_each(|(w, factor)| *w *= factor));
}

/// Rotates the columns of `[rows, inputs]`, `order` rows at a time.
fn rotate_rows(isa: Isa, values: &mut [f32], order: usize, inputs: usize) {
    let Some(rotation) = ChannelRotation::of_weights(order) else { return };
    values.par_chunks_exact_mut(order * inputs).for_each(|block| {
        let mut columns = vec![0f32; COLUMNS * order];
        for start in (0..inputs).step_by(COLUMNS) {
            let width = COLUMNS.min(inputs - start);
            let columns = &mut columns[..width * order];
            for (row, values) in block.chunks_exact(inputs).enumerate() {
                for (column, value) in values[start..start + width].iter().enumerate() {
                    columns[column * order + row] = *value;
                }
            }
            rotation.apply(isa, columns);
            for (row, values) in block.chunks_exact_mut(inputs).enumerate() {
                for (column, value) in values[start..start + width].iter_mut().enumerate() {
                    *value = columns[column * order + row];
                }
            }
        }
    });
}

/// Makes `edits` of all of a bias.
pub fn edit_bias(isa: Isa, edits: &[Edit], factors: &[Vec<f32>], bias: &mut [f32]) {
    for edit in edits {
        match edit {
            Edit::DivideRows { smoothing, rows } => {
                bias[rows.clone()].iter_mut().zip(&factors[*smoothing]).for_each(|(b, factor)| *b /= factor);
            }
            Edit::RotateRows { order, rows } => rotate_rows(isa, &mut bias[rows.clone()], *order, 1),
            Edit::ScaleColumns { .. } | Edit::FoldGain { .. } | Edit::RotateColumns { .. } => {}
        }
    }
}

/// Makes `edits` of the gain or the shift of a norm; where its gain is folded, the gain becomes 1.
pub fn edit_norm(edits: &[NormEdit], factors: &[Vec<f32>], values: &mut [f32]) {
    for edit in edits {
        match edit {
            NormEdit::Divide(smoothing) => {
                values.iter_mut().zip(&factors[*smoothing]).for_each(|(value, factor)| *value /= factor);
            }
            NormEdit::Fold => values.fill(1.0),
        }
    }
}

/// Rotates rows of an embedding table, `[rows, width]`.
pub fn edit_table(isa: Isa, width: usize, values: &mut [f32]) {
    if let Some(rotation) = ChannelRotation::of_weights(width) {
        values.par_chunks_exact_mut(width).for_each(|row| rotation.apply(isa, row));
    }
}
