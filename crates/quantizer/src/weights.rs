//! Weights to integers: round to nearest under scales per channel, per tensor or per group of columns.

use rayon::prelude::*;
use thiserror::Error;
use zeropoint_core::{Granularity, ParamsError, QuantParams, WeightBits, WeightScheme};
use zeropoint_kernels::{Isa, dequantize, extremes, quantize_static, sum_squared_error};
use zeropoint_observer::WeightObserver;

/// A weight in integers.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedWeight {
    /// `[outputs, inputs]`, row-major.
    pub values: Vec<i8>,
    /// One for each output (per channel), a single one (per tensor), or row-major `[outputs, inputs / group]`.
    pub scales: Vec<f32>,
    /// Rows N.
    pub outputs: usize,
    /// Columns K.
    pub inputs: usize,
    /// Neighbouring columns that share a scale: all of them, but per group.
    pub group: usize,
    /// Sum of squares of the float weight.
    pub signal: f64,
    /// Sum of squares of the rounding error.
    pub noise: f64,
}

impl QuantizedWeight {
    /// The scales of a row, one for each group of its columns.
    pub fn scales_of(&self, row: usize) -> &[f32] {
        scales_of(&self.scales, self.inputs / self.group, row)
    }

    /// The scales of all rows, `[outputs, inputs / group]`, those of a tensor repeated.
    pub fn scales_by_row(&self) -> Vec<f32> {
        (0..self.outputs).flat_map(|row| self.scales_of(row)).copied().collect()
    }

    /// Real values, `[outputs, inputs]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut real = Vec::with_capacity(self.values.len());
        for (row, values) in self.values.chunks_exact(self.inputs).enumerate() {
            for (values, &scale) in values.chunks(self.group).zip(self.scales_of(row)) {
                let params = QuantParams { scale, zero_point: 0 };
                real.extend(values.iter().map(|q| zeropoint_core::dequantize(*q, params)));
            }
        }
        real
    }
}

/// The scales of a row among all.
pub(crate) fn scales_of(scales: &[f32], groups: usize, row: usize) -> &[f32] {
    if scales.len() == 1 { scales } else { &scales[row * groups..][..groups] }
}

/// Why a weight cannot be quantised.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum WeightError {
    /// It holds NaN or an infinity.
    #[error("holds {value} at row {row}, column {column}; weights must be finite: the source is damaged")]
    NotFinite {
        /// Row (output channel).
        row: usize,
        /// Column (input channel).
        column: usize,
        /// What is there.
        value: f32,
    },
    /// Its length does not fit its shape.
    #[error("has {len} values, but its shape [{outputs}, {inputs}] holds another number")]
    Shape {
        /// Values given.
        len: usize,
        /// Rows.
        outputs: usize,
        /// Columns.
        inputs: usize,
    },
    /// Its columns are no whole groups.
    #[error("has {inputs} inputs, which are no whole groups of {scheme}")]
    Groups {
        /// Columns.
        inputs: usize,
        /// As asked for.
        scheme: WeightScheme,
    },
    /// Its range gives no scale.
    #[error(transparent)]
    Params(#[from] ParamsError),
}

/// Rounds `weight` (`[outputs, inputs]`) to nearest, symmetric, with the range of each channel, group or of the whole tensor
/// chosen by `observer`. Rows are worked on in parallel; the result does not depend on the number of threads.
pub fn quantize_weight(
    isa: Isa,
    weight: &[f32],
    outputs: usize,
    inputs: usize,
    scheme: WeightScheme,
    observer: WeightObserver,
) -> Result<QuantizedWeight, WeightError> {
    check_weight(isa, weight, outputs, inputs)?;
    let group = group_of(inputs, scheme)?;
    let scales = chosen_scales(weight, group, scheme, observer)?;
    let (low, high) = scheme.bits.range();
    let mut values = vec![0i8; weight.len()];
    let rows: Vec<(f64, f64)> = values
        .par_chunks_exact_mut(inputs)
        .zip(weight.par_chunks_exact(inputs))
        .enumerate()
        .map_init(
            || vec![0f32; inputs],
            |real, (row, (q, weight))| {
                let scales = scales_of(&scales, inputs / group, row);
                for ((q, weight), &scale) in q.chunks_mut(group).zip(weight.chunks(group)).zip(scales) {
                    let params = QuantParams { scale, zero_point: 0 };
                    quantize_static(isa, weight, group, params, q).expect("every weight is finite");
                    if scheme.bits != WeightBits::Eight {
                        // To nearest and then to what there is: the same as the other way round.
                        for q in q {
                            *q = (*q).clamp(low, high);
                        }
                    }
                }
                rounding_error(isa, weight, q, scales, real)
            },
        )
        .collect();
    let (signal, noise) = rows.iter().fold((0.0, 0.0), |(s, n), row| (s + row.0, n + row.1));
    Ok(QuantizedWeight { values, scales, outputs, inputs, group, signal, noise })
}

/// Sums of squares of a row and of its rounding error, in memory for its real values.
pub(crate) fn rounding_error(
    isa: Isa,
    weight: &[f32],
    q: &[i8],
    scales: &[f32],
    real: &mut [f32],
) -> (f64, f64) {
    let group = q.len() / scales.len();
    for ((q, real), &scale) in q.chunks(group).zip(real.chunks_mut(group)).zip(scales) {
        dequantize(isa, q, QuantParams { scale, zero_point: 0 }, real);
    }
    let (noise, signal) = sum_squared_error(isa, weight, real);
    (signal, noise)
}

/// Columns that share a scale.
pub(crate) fn group_of(inputs: usize, scheme: WeightScheme) -> Result<usize, WeightError> {
    let groups = match scheme.granularity {
        Granularity::Token => None,
        granularity => granularity.groups(inputs),
    };
    Ok(inputs / groups.ok_or(WeightError::Groups { inputs, scheme })?)
}

/// Whether a weight is as long as its shape says, and finite.
pub(crate) fn check_weight(
    isa: Isa,
    weight: &[f32],
    outputs: usize,
    inputs: usize,
) -> Result<(), WeightError> {
    if inputs == 0 || outputs.checked_mul(inputs) != Some(weight.len()) {
        return Err(WeightError::Shape { len: weight.len(), outputs, inputs });
    }
    // All at once, so that the first of several is told.
    let bad = |row: &[f32]| !extremes(isa, row).finite;
    if let Some(row) = weight.par_chunks_exact(inputs).position_first(bad) {
        let values = &weight[row * inputs..(row + 1) * inputs];
        let column = values.iter().position(|w| !w.is_finite()).unwrap_or_default();
        return Err(WeightError::NotFinite { row, column, value: values[column] });
    }
    Ok(())
}

/// The scale of each row and group of a weight, or the one of all.
pub(crate) fn chosen_scales(
    weight: &[f32],
    group: usize,
    scheme: WeightScheme,
    observer: WeightObserver,
) -> Result<Vec<f32>, WeightError> {
    let scale_of =
        |values: &[f32]| QuantParams::weight_scale(observer.absmax(values, scheme.bits), scheme.bits);
    match scheme.granularity {
        Granularity::Tensor => Ok(vec![scale_of(weight)?]),
        _ => Ok(weight.par_chunks_exact(group).map(scale_of).collect::<Result<_, ParamsError>>()?),
    }
}
