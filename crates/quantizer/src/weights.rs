//! Weights to INT8: round to nearest under per-channel or per-tensor scales.

use rayon::prelude::*;
use thiserror::Error;
use zeropoint_core::{Granularity, ParamsError, QuantParams, WeightBits, WeightScheme};
use zeropoint_kernels::{Isa, dequantize, extremes, quantize_static, sum_squared_error};
use zeropoint_observer::WeightObserver;

/// A weight in INT8.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedWeight {
    /// `[outputs, inputs]`, row-major.
    pub values: Vec<i8>,
    /// One for each output (per channel), or a single one (per tensor).
    pub scales: Vec<f32>,
    /// Rows N.
    pub outputs: usize,
    /// Columns K.
    pub inputs: usize,
    /// Sum of squares of the float weight.
    pub signal: f64,
    /// Sum of squares of the rounding error.
    pub noise: f64,
}

impl QuantizedWeight {
    /// The scale of a row.
    pub fn scale(&self, row: usize) -> f32 {
        if self.scales.len() == 1 { self.scales[0] } else { self.scales[row] }
    }

    /// Real values, `[outputs, inputs]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut real = Vec::with_capacity(self.values.len());
        for (row, values) in self.values.chunks_exact(self.inputs).enumerate() {
            let params = QuantParams { scale: self.scale(row), zero_point: 0 };
            real.extend(values.iter().map(|q| zeropoint_core::dequantize(*q, params)));
        }
        real
    }
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
    /// Weights are rounded to INT8 per channel or tensor alone.
    #[error("cannot be quantised as {scheme}; int8 per-channel or per-tensor is made")]
    Scheme {
        /// As asked for.
        scheme: WeightScheme,
    },
    /// Its range gives no scale.
    #[error(transparent)]
    Params(#[from] ParamsError),
}

/// Rounds `weight` (`[outputs, inputs]`) to nearest, symmetric, with the range of each channel or of the whole tensor
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
    let scales = chosen_scales(weight, inputs, scheme, observer)?;
    let mut values = vec![0i8; weight.len()];
    let rows: Vec<(f64, f64)> = values
        .par_chunks_exact_mut(inputs)
        .zip(weight.par_chunks_exact(inputs))
        .enumerate()
        .map_init(
            || vec![0f32; inputs],
            |real, (row, (q, weight))| {
                let scale = if scales.len() == 1 { scales[0] } else { scales[row] };
                let params = QuantParams { scale, zero_point: 0 };
                quantize_static(isa, weight, inputs, params, q).expect("every weight is finite");
                dequantize(isa, q, params, real);
                let (noise, signal) = sum_squared_error(isa, weight, real);
                (signal, noise)
            },
        )
        .collect();
    let (signal, noise) = rows.iter().fold((0.0, 0.0), |(s, n), row| (s + row.0, n + row.1));
    Ok(QuantizedWeight { values, scales, outputs, inputs, signal, noise })
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

/// The scale of each row of a weight, or the one of all.
pub(crate) fn chosen_scales(
    weight: &[f32],
    inputs: usize,
    scheme: WeightScheme,
    observer: WeightObserver,
) -> Result<Vec<f32>, WeightError> {
    let scale_of = |values: &[f32]| -> Result<f32, ParamsError> {
        Ok(QuantParams::symmetric(observer.absmax(values))?.scale)
    };
    match (scheme.bits, scheme.granularity) {
        (WeightBits::Eight, Granularity::Tensor) => Ok(vec![scale_of(weight)?]),
        (WeightBits::Eight, Granularity::Channel) => {
            Ok(weight.par_chunks_exact(inputs).map(scale_of).collect::<Result<_, ParamsError>>()?)
        }
        _ => Err(WeightError::Scheme { scheme }),
    }
}
