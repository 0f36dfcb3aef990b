//! Sites at work: the Linears that read one activation, in one of their lives.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;
use zeropoint_core::{ActivationMode, ParamsError, QuantParams, Symmetry, quantize};
use zeropoint_kernels::{
    Isa, MatrixValues, WeightOnlyMatrix, dequantize_sums, matrix_vector, weight_only_product,
};

use crate::ops::{BiasActivation, ROWS_PER_TASK, apply_activation, halves_of, rows_of};
use crate::spec::ActivationFn;

/// Runs all Linears that read one site: `[rows, channels]` in, one `[rows, outputs]` for each consumer out, in the
/// order of [`crate::Site::consumers`], each with its bias and non-linearity applied.
pub trait SiteOp: Send + Sync {
    /// The outputs of the consumers for contiguous f32 `input`.
    fn forward(&self, input: &Tensor) -> Result<Vec<Tensor>>;
}

impl<T: SiteOp + ?Sized> SiteOp for Arc<T> {
    fn forward(&self, input: &Tensor) -> Result<Vec<Tensor>> {
        (**self).forward(input)
    }
}

/// One Linear in f32.
pub struct FloatLinear {
    /// `[outputs, inputs]`, f32 or, where the file's numbers are, bfloat16.
    weight: Tensor,
    /// The weight in f32, once rows in number ask for it.
    wide: OnceLock<Tensor>,
    /// `[outputs]`.
    bias: Option<Vec<f32>>,
    /// Applied to the sum.
    activation: ActivationFn,
}

/// Weights from which on a matrix is not in cache, so that a product with one row takes as long as reading it.
pub const LARGE_MATRIX: usize = 1 << 20;

/// Most weights that are kept in f32 beside bfloat16: 256 MiB.
pub const WIDEST_MATRIX: usize = 1 << 26;

/// Most rows of a product in f32 that are computed at a time.
const ROWS_PER_PRODUCT: usize = 256;

/// Outputs from which on a product of all rows is made at once: a part of it would not stay in a cache.
const WIDEST_PRODUCT: usize = 1 << 14;

/// Outputs that one task computes of it.
const OUTPUTS_PER_TASK: usize = 1024;

impl FloatLinear {
    /// With a weight `[outputs, inputs]`, f32 or bfloat16, a bias `[outputs]`, and the non-linearity after the sum.
    pub fn new(weight: Tensor, bias: Option<Vec<f32>>, activation: ActivationFn) -> Self {
        Self { weight, wide: OnceLock::new(), bias, activation }
    }

    /// `activation(input * weight^T + bias)`.
    pub fn forward(&self, isa: Isa, input: &Tensor) -> Result<Tensor> {
        let (outputs, inputs) = self.weight.dims2()?;
        let out = if input.dim(0)? == 1 && outputs * inputs >= LARGE_MATRIX {
            self.one_row(isa, input)?
        } else {
            self.many_rows(input)?
        };
        out.inplace_op1(&BiasActivation { isa, bias: self.bias.as_deref(), activation: self.activation })?;
        Ok(out)
    }

    /// The product with rows in number, for which a weight in bfloat16 becomes f32: once and for all, or where it is very large,
    /// a part at a time.
    fn many_rows(&self, input: &Tensor) -> Result<Tensor> {
        let (outputs, inputs) = self.weight.dims2()?;
        if self.weight.dtype() == DType::F32 || outputs * inputs <= WIDEST_MATRIX {
            return product(input, self.in_f32()?);
        }
        let rows = (WIDEST_MATRIX / inputs).max(1);
        let part = |start: usize| {
            let weight = self.weight.narrow(0, start, rows.min(outputs - start))?;
            input.matmul(&weight.to_dtype(DType::F32)?.t()?)
        };
        let parts = (0..outputs).step_by(rows).map(part).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, 1)
    }

    fn in_f32(&self) -> Result<&Tensor> {
        if self.weight.dtype() == DType::F32 {
            return Ok(&self.weight);
        }
        if self.wide.get().is_none() {
            let _ = self.wide.set(self.weight.to_dtype(DType::F32)?);
        }
        Ok(self.wide.get().unwrap_or(&self.weight))
    }

    /// The product with one row, each thread reading a part of the matrix.
    fn one_row(&self, isa: Isa, input: &Tensor) -> Result<Tensor> {
        let (outputs, inputs) = self.weight.dims2()?;
        let mut out = vec![0f32; outputs];
        let split = |part: &(dyn Fn(Range<usize>, &mut [f32]) + Sync), out: &mut [f32]| {
            out.par_chunks_mut(OUTPUTS_PER_TASK).enumerate().for_each(|(i, out)| {
                let start = i * OUTPUTS_PER_TASK * inputs;
                part(start..start + out.len() * inputs, out);
            });
        };
        rows_of(input, |x| {
            if self.weight.dtype() == DType::BF16 {
                halves_of(&self.weight, |weight| {
                    split(&|at, out| matrix_vector(isa, MatrixValues::Bf16(&weight[at]), x, out), &mut out);
                })
            } else {
                rows_of(&self.weight, |weight| {
                    split(&|at, out| matrix_vector(isa, MatrixValues::F32(&weight[at]), x, out), &mut out);
                })
            }
        })??;
        Tensor::from_vec(out, (1, outputs), &Device::Cpu)
    }
}

/// `input * weight^T` for rows in number.
///
/// Each thread takes some rows at a time: what it works on stays in its caches, and no thread waits for another within a product.
/// How they are split depends on the sizes alone, and so do the sums.
fn product(input: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (rows, outputs) = (input.dim(0)?, weight.dim(0)?);
    let tasks = rows.div_ceil(ROWS_PER_PRODUCT);
    if tasks < 2 || outputs > WIDEST_PRODUCT {
        return input.matmul(&weight.t()?);
    }
    let rows_per_task = rows.div_ceil(tasks);
    let mut out = vec![0f32; rows * outputs];
    let tasks = out.par_chunks_mut(rows_per_task * outputs).enumerate();
    tasks.try_for_each(|(task, out)| {
        let part = input.narrow(0, task * rows_per_task, out.len() / outputs)?;
        rows_of(&part.matmul(&weight.t()?)?, |part| out.copy_from_slice(part))
    })?;
    Tensor::from_vec(out, (rows, outputs), &Device::Cpu)
}

/// The f32 life: the original.
pub struct FloatSite {
    /// For the epilogue.
    pub isa: Isa,
    /// The consumers in order.
    pub linears: Vec<FloatLinear>,
}

impl SiteOp for FloatSite {
    fn forward(&self, input: &Tensor) -> Result<Vec<Tensor>> {
        self.linears.iter().map(|linear| linear.forward(self.isa, input)).collect()
    }
}

/// How the activation of a site becomes INT8.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ActivationQuantizer {
    /// With these parameters, found in calibration.
    Static(QuantParams),
    /// With parameters from each row itself.
    Dynamic(Symmetry),
}

impl ActivationQuantizer {
    /// Static or dynamic.
    pub fn mode(&self) -> ActivationMode {
        match self {
            Self::Static(_) => ActivationMode::Static,
            Self::Dynamic(_) => ActivationMode::Dynamic,
        }
    }

    /// `[rows, columns]` as integers with the zero point taken off, and each row's scale, by the scalar specification.
    ///
    /// Fails where a row is not finite: as an integer it would be a number like any other.
    pub fn quantize(
        &self,
        x: &[f32],
        columns: usize,
    ) -> std::result::Result<QuantizedActivation, ParamsError> {
        let task = columns * ROWS_PER_TASK;
        let mut steps = vec![0f32; x.len()];
        let tasks = steps.par_chunks_mut(task).zip(x.par_chunks(task));
        let scales: Vec<std::result::Result<Vec<f32>, ParamsError>> = tasks
            .map(|(steps, x)| {
                let rows = steps.chunks_exact_mut(columns).zip(x.chunks_exact(columns));
                rows.map(|(steps, row)| self.quantize_row(row, steps)).collect()
            })
            .collect();
        let mut all = Vec::with_capacity(x.len() / columns);
        for scales in scales {
            all.extend(scales?);
        }
        Ok(QuantizedActivation { steps, scales: all })
    }

    /// The scale of a row, of which the steps are written.
    fn quantize_row(&self, row: &[f32], steps: &mut [f32]) -> std::result::Result<f32, ParamsError> {
        if let Some(bad) = row.iter().find(|v| !v.is_finite()) {
            return Err(ParamsError::NotFinite { min: *bad, max: *bad });
        }
        let params = match *self {
            Self::Static(params) => params,
            Self::Dynamic(symmetry) => row_params(row, symmetry)?,
        };
        steps.iter_mut().zip(row).for_each(|(out, v)| *out = step(quantize(*v, params), params));
        Ok(params.scale)
    }
}

fn row_params(row: &[f32], symmetry: Symmetry) -> std::result::Result<QuantParams, ParamsError> {
    let (min, max) = row.iter().fold((0f32, 0f32), |(low, high), v| (low.min(*v), high.max(*v)));
    QuantParams::from_range(min, max, symmetry)
}

fn step(q: i8, params: QuantParams) -> f32 {
    f32::from(i16::from(q) - i16::from(params.zero_point))
}

/// An activation in whole steps of its scale: real value = step * scale.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedActivation {
    /// `[rows, columns]`: `q - zero_point`, whole numbers within `-255..=255`.
    pub steps: Vec<f32>,
    /// One for each row.
    pub scales: Vec<f32>,
}

impl QuantizedActivation {
    /// The real values, `[rows, columns]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let columns = (self.steps.len() / self.scales.len().max(1)).max(1);
        let mut values = self.steps.clone();
        for (row, scale) in values.chunks_exact_mut(columns).zip(&self.scales) {
            for step in row {
                *step *= scale;
            }
        }
        values
    }
}

/// A Linear in the simulation.
pub struct SimulatedLinear {
    /// How its input becomes INT8.
    pub quantizer: ActivationQuantizer,
    /// `[outputs, inputs]`: the INT8 weight as whole f32 numbers.
    pub weight: Tensor,
    /// One for each output.
    pub weight_scales: Vec<f32>,
    /// `[outputs]`.
    pub bias: Option<Vec<f32>>,
    /// Applied to the sum.
    pub activation: ActivationFn,
}

/// Products of `-255..=255` and `-128..=127` over this many inputs sum up exactly in f32: 255 * 128 * 512 < 2^24.
const EXACT_INPUTS: usize = 512;

impl SimulatedLinear {
    fn forward(&self, isa: Isa, input: &Tensor, quantized: &QuantizedActivation) -> Result<Tensor> {
        let (rows, inputs) = input.dims2()?;
        let outputs = self.weight_scales.len();
        let steps = Tensor::from_slice(&quantized.steps, (rows, inputs), &Device::Cpu)?;
        let mut sums = vec![0i32; rows * outputs];
        for start in (0..inputs).step_by(EXACT_INPUTS) {
            let count = EXACT_INPUTS.min(inputs - start);
            let part = |x: &Tensor| x.narrow(1, start, count)?.contiguous();
            let product = product(&part(&steps)?, &part(&self.weight)?)?;
            rows_of(&product, |exact| {
                let tasks = sums.par_chunks_mut(outputs * ROWS_PER_TASK);
                tasks.zip(exact.par_chunks(outputs * ROWS_PER_TASK)).for_each(|(sums, exact)| {
                    sums.iter_mut().zip(exact).for_each(|(sum, x)| *sum += *x as i32);
                });
            })?;
        }
        let mut out = vec![0f32; rows * outputs];
        let all = out.par_chunks_mut(outputs).zip(sums.par_chunks(outputs)).zip(&quantized.scales);
        all.with_min_len(ROWS_PER_TASK).for_each(|((out, sums), scale)| {
            dequantize_sums(isa, sums, *scale, &self.weight_scales, self.bias.as_deref(), out);
            apply_activation(isa, out, self.activation);
        });
        Tensor::from_vec(out, (rows, outputs), &Device::Cpu)
    }
}

/// A Linear of which the weight alone is quantised, in the simulation: the kernel of the runtime on the weight as it was rounded. Its
/// sums are floats, which another order would change, and so whatever is rounded behind it.
pub struct SimulatedWeightOnly {
    /// `[outputs, inputs]`.
    pub weight: WeightOnlyMatrix,
    /// `[outputs]`.
    pub bias: Option<Vec<f32>>,
    /// Applied to the sum.
    pub activation: ActivationFn,
}

impl SimulatedWeightOnly {
    fn forward(&self, isa: Isa, input: &Tensor) -> Result<Tensor> {
        /// Rows that one task takes.
        const ROWS: usize = 48;
        let (rows, inputs) = input.dims2()?;
        let outputs = self.weight.outputs();
        let mut out = vec![0f32; rows * outputs];
        rows_of(input, |x| {
            let tasks = out.par_chunks_mut(ROWS * outputs).zip(x.par_chunks(ROWS * inputs));
            tasks.for_each(|(out, x)| {
                weight_only_product(isa, x, x.len() / inputs, &self.weight, 0..outputs, out, outputs);
            });
        })?;
        let out = Tensor::from_vec(out, (rows, outputs), &Device::Cpu)?;
        out.inplace_op1(&BiasActivation { isa, bias: self.bias.as_deref(), activation: self.activation })?;
        Ok(out)
    }
}

/// A consumer of a simulated site.
pub enum SimulatedReader {
    /// Left float by the plan.
    Float(FloatLinear),
    /// INT8 by the plan.
    Integer(SimulatedLinear),
    /// Weight-only by the plan.
    WeightOnly(SimulatedWeightOnly),
}

/// The simulated life: the arithmetic of the INT8 runtime, with candle's float product in place of the integer kernels.
///
/// Rounding is the scalar specification's; the products are of whole numbers, in parts small enough for f32 to hold
/// every sum exactly; the epilogue is the runtime's. So the simulation is not close to the integers but equal to them,
/// which it must be: quantisers magnify. A difference of one rounding in f32 flips an integer now and then, a flipped
/// integer moves thousands of values a little, more of them flip in the next layer, and after a few layers two
/// "equivalent" computations share the model but not the quantisation noise.
pub struct SimulatedSite {
    /// For the epilogue.
    pub isa: Isa,
    /// The consumers in order.
    pub readers: Vec<SimulatedReader>,
}

impl SiteOp for SimulatedSite {
    fn forward(&self, input: &Tensor) -> Result<Vec<Tensor>> {
        let columns = input.dim(1)?;
        let mut ready: Option<(ActivationQuantizer, QuantizedActivation)> = None;
        let mut outputs = Vec::with_capacity(self.readers.len());
        for reader in &self.readers {
            outputs.push(match reader {
                SimulatedReader::Float(linear) => linear.forward(self.isa, input)?,
                SimulatedReader::WeightOnly(linear) => linear.forward(self.isa, input)?,
                SimulatedReader::Integer(linear) => {
                    let quantized = match ready.take() {
                        Some((done, quantized)) if done == linear.quantizer => quantized,
                        _ => rows_of(input, |x| linear.quantizer.quantize(x, columns))?
                            .map_err(candle_core::Error::wrap)?,
                    };
                    let output = linear.forward(self.isa, input, &quantized)?;
                    ready = Some((linear.quantizer, quantized));
                    output
                }
            });
        }
        Ok(outputs)
    }
}
