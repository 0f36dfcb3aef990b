//! A site in integers: one quantised activation for all Linears that read it.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;
use zeropoint_core::QuantParams;
use zeropoint_kernels::{Isa, RowParams, quantize_static, quantize_tokens};
use zeropoint_models::{ActivationQuantizer, FloatLinear, SiteOp, rows_of};

use crate::IntegerLinear;

/// Rows that one task quantises.
const ROWS_PER_TASK: usize = 32;

/// A Linear of a site: integer with its activation quantiser, or float as in the source.
pub(crate) enum Reader {
    Integer(ActivationQuantizer, IntegerLinear),
    Float(FloatLinear),
}

/// The operator of a site whose Linears are quantised, all or some.
pub struct IntegerSite {
    isa: Isa,
    readers: Vec<Reader>,
}

/// An activation in INT8.
struct QuantizedRows {
    values: Vec<i8>,
    /// One for each row, or empty when one serves all.
    params: Vec<QuantParams>,
    shared: Option<QuantParams>,
}

impl QuantizedRows {
    fn params(&self) -> RowParams<'_> {
        match self.shared {
            Some(params) => RowParams::PerTensor(params),
            None => RowParams::PerToken(&self.params),
        }
    }
}

impl IntegerSite {
    pub(crate) fn new(isa: Isa, readers: Vec<Reader>) -> Self {
        Self { isa, readers }
    }

    fn quantize(&self, x: &[f32], columns: usize, quantizer: ActivationQuantizer) -> Result<QuantizedRows> {
        let mut values = vec![0i8; x.len()];
        let task = columns * ROWS_PER_TASK;
        match quantizer {
            ActivationQuantizer::Static(shared) => {
                values
                    .par_chunks_mut(task)
                    .zip(x.par_chunks(task))
                    .for_each(|(out, x)| quantize_static(self.isa, x, shared, out));
                Ok(QuantizedRows { values, params: Vec::new(), shared: Some(shared) })
            }
            ActivationQuantizer::Dynamic(symmetry) => {
                let mut params = vec![QuantParams { scale: 1.0, zero_point: 0 }; x.len() / columns];
                values
                    .par_chunks_mut(task)
                    .zip(x.par_chunks(task))
                    .zip(params.par_chunks_mut(ROWS_PER_TASK))
                    .try_for_each(|((out, x), params)| quantize_tokens(self.isa, x, columns, symmetry, out, params))
                    .map_err(candle_core::Error::wrap)?;
                Ok(QuantizedRows { values, params, shared: None })
            }
        }
    }
}

impl SiteOp for IntegerSite {
    fn forward(&self, input: &Tensor) -> Result<Vec<Tensor>> {
        let (rows, columns) = input.dims2()?;
        let mut ready: Option<(ActivationQuantizer, QuantizedRows)> = None;
        let mut outputs = Vec::with_capacity(self.readers.len());
        for reader in &self.readers {
            outputs.push(match reader {
                Reader::Float(linear) => linear.forward(self.isa, input)?,
                Reader::Integer(quantizer, linear) => {
                    let quantized = match ready.take() {
                        Some((done, quantized)) if done == *quantizer => quantized,
                        _ => rows_of(input, |x| self.quantize(x, columns, *quantizer))??,
                    };
                    let out = linear.forward(&quantized.values, rows, quantized.params());
                    ready = Some((*quantizer, quantized));
                    Tensor::from_vec(out, (rows, linear.outputs()), &Device::Cpu)?
                }
            });
        }
        Ok(outputs)
    }
}
