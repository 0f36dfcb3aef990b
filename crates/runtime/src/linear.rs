//! One Linear in integers.

use std::ops::Range;

use rayon::prelude::*;
use zeropoint_core::{QuantParams, Symmetry, dequantize};
use zeropoint_formats::compressed_tensors::QuantizedLinear;
use zeropoint_kernels::{
    Activation, AlignedMemory, Epilogue, Isa, NonFinite, PackError, PackedWeights, RowMagnitudes, RowParams,
    linear, linear_added, linear_measured, linear_quantized, quantize_measured, quantize_tokens,
};
use zeropoint_models::{ActivationFn, ActivationQuantizer, TableRows, apply_activation};

/// Rows that one task multiplies: enough to use a panel of weights several times while it is in cache.
const ROWS_PER_TASK: usize = 48;

/// Most outputs of one row that one task computes.
const OUTPUTS_PER_TASK: usize = 1024;

/// A Linear whose weight is INT8, packed for one instruction set.
#[derive(Debug)]
pub struct IntegerLinear {
    weights: PackedWeights,
    scales: Vec<f32>,
    bias: Option<Vec<f32>>,
    activation: Activation,
    /// Applied after the epilogue: what no integer kernel fuses.
    after: ActivationFn,
}

impl IntegerLinear {
    /// Packs a Linear as read from a file.
    pub fn new(
        isa: Isa,
        stored: &QuantizedLinear,
        bias: Option<Vec<f32>>,
        activation: ActivationFn,
    ) -> Result<Self, PackError> {
        let (activation, after) = match activation {
            ActivationFn::Identity => (Activation::None, ActivationFn::Identity),
            ActivationFn::Relu => (Activation::Relu, ActivationFn::Identity),
            ActivationFn::GeluErf => (Activation::GeluErf, ActivationFn::Identity),
            ActivationFn::GeluTanh => (Activation::GeluTanh, ActivationFn::Identity),
            other => (Activation::None, other),
        };
        let weights = PackedWeights::pack(isa, &stored.weight, stored.outputs, stored.inputs)?;
        Ok(Self { weights, scales: stored.weight_scales.clone(), bias, activation, after })
    }

    /// Output channels.
    pub fn outputs(&self) -> usize {
        self.weights.outputs()
    }

    /// Input channels.
    pub fn inputs(&self) -> usize {
        self.weights.inputs()
    }

    /// The real weights of one output, over `out` of `inputs` values.
    fn dequantize_row(&self, output: usize, out: &mut [f32]) {
        let mut row = vec![0i8; self.inputs()];
        self.weights.row(output, &mut row);
        let params = QuantParams { scale: self.scales[output], zero_point: 0 };
        out.iter_mut().zip(&row).for_each(|(out, q)| *out = dequantize(*q, params));
    }

    /// `activation((a - zero_point) w * scales + bias)` for INT8 rows `a`, `[rows, inputs]`; `[rows, outputs]` out.
    ///
    /// Split over threads by rows, or by output panels where rows are few. Each output is one exact integer sum and one
    /// epilogue, so the split does not change a bit.
    pub fn forward(&self, a: &[i8], rows: usize, input: RowParams<'_>) -> Vec<f32> {
        let (outputs, inputs) = (self.outputs(), self.inputs());
        let mut out = vec![0f32; rows * outputs];
        if rows >= ROWS_PER_TASK {
            out.par_chunks_mut(ROWS_PER_TASK * outputs).enumerate().for_each(|(i, out)| {
                let first = i * ROWS_PER_TASK;
                let count = out.len() / outputs;
                let epilogue = self.epilogue(slice_params(input, first, count));
                let a = &a[first * inputs..(first + count) * inputs];
                linear(a, count, &self.weights, 0..outputs, &epilogue, out, outputs);
            });
        } else {
            self.by_panels(a, rows, input, &mut out);
        }
        apply_activation(self.weights.isa(), &mut out, self.after);
        out
    }

    /// As [`IntegerLinear::forward`], on the calling thread, into rows that begin every `stride` values.
    pub(crate) fn forward_into(
        &self,
        a: &[i8],
        rows: usize,
        input: RowParams<'_>,
        out: &mut [f32],
        stride: usize,
    ) {
        let outputs = self.outputs();
        linear(a, rows, &self.weights, 0..outputs, &self.epilogue(input), out, stride);
        if self.after != ActivationFn::Identity {
            for row in out.chunks_mut(stride).take(rows) {
                apply_activation(self.weights.isa(), &mut row[..outputs], self.after);
            }
        }
    }

    /// As [`IntegerLinear::forward_into`] of one row, some outputs of it; the first is a multiple of
    /// [`PackedWeights::PANEL`].
    pub(crate) fn forward_columns(
        &self,
        a: &[i8],
        input: RowParams<'_>,
        columns: Range<usize>,
        out: &mut [f32],
    ) {
        let count = columns.len();
        linear(a, 1, &self.weights, columns, &self.epilogue(input), out, count);
        apply_activation(self.weights.isa(), out, self.after);
    }

    /// Whether its whole epilogue is part of the product, so that [`IntegerLinear::forward_quantized`] can run it.
    pub(crate) fn is_fused(&self) -> bool {
        self.after == ActivationFn::Identity
    }

    /// Adds its output to `x`, `[rows, outputs]`, on the calling thread. It must be fused.
    pub(crate) fn add_into(&self, a: &[i8], rows: usize, input: RowParams<'_>, x: &mut [f32]) {
        linear_added(a, rows, &self.weights, &self.epilogue(input), x);
    }

    /// As [`IntegerLinear::forward_into`] without a gap between rows, and quantised by `quantizer`, in memory for the values
    /// between. It must be fused.
    pub(crate) fn forward_quantized(
        &self,
        a: &[i8],
        rows: usize,
        input: RowParams<'_>,
        quantizer: ActivationQuantizer,
        memory: (&mut AlignedMemory<f32>, &mut RowMagnitudes),
        out: (&mut [i8], &mut [QuantParams]),
    ) -> Result<(), NonFinite> {
        let (isa, outputs, epilogue) = (self.weights.isa(), self.outputs(), self.epilogue(input));
        let ((values, magnitudes), (quantized, params)) = (memory, out);
        match quantizer {
            ActivationQuantizer::Static(static_params) => {
                linear_quantized(a, rows, &self.weights, &epilogue, static_params, quantized, magnitudes)
            }
            ActivationQuantizer::Dynamic(Symmetry::Symmetric) => {
                let values = values.room(rows * outputs);
                linear_measured(a, rows, &self.weights, &epilogue, values, magnitudes);
                quantize_measured(isa, values, outputs, magnitudes, quantized, params)
            }
            ActivationQuantizer::Dynamic(Symmetry::Asymmetric) => {
                let values = values.room(rows * outputs);
                self.forward_into(a, rows, input, values, outputs);
                quantize_tokens(isa, values, outputs, Symmetry::Asymmetric, quantized, params)
            }
        }
    }

    fn by_panels(&self, a: &[i8], rows: usize, input: RowParams<'_>, out: &mut [f32]) {
        let outputs = self.outputs();
        let epilogue = self.epilogue(input);
        // A task is at least two panels wide: narrower ones cost more to hand out than to run.
        let width = outputs.div_ceil(rayon::current_num_threads()).max(2 * PackedWeights::PANEL);
        let width = width.next_multiple_of(PackedWeights::PANEL);
        if rows == 0 || width >= outputs {
            linear(a, rows, &self.weights, 0..outputs, &epilogue, out, outputs);
            return;
        }
        if rows == 1 {
            // Narrow enough that the threads end together though one is slower.
            let width = width.min(OUTPUTS_PER_TASK);
            out.par_chunks_mut(width).enumerate().for_each(|(i, out)| {
                let (start, count) = (i * width, out.len());
                linear(a, 1, &self.weights, start..start + count, &epilogue, out, count);
            });
            return;
        }
        let parts: Vec<(usize, Vec<f32>)> = (0..outputs)
            .into_par_iter()
            .step_by(width)
            .map(|start| {
                let columns = start..(start + width).min(outputs);
                let count = columns.len();
                let mut part = vec![0f32; rows * count];
                linear(a, rows, &self.weights, columns, &epilogue, &mut part, count);
                (start, part)
            })
            .collect();
        for (start, part) in parts {
            let count = part.len() / rows;
            for (row, values) in part.chunks_exact(count).enumerate() {
                out[row * outputs + start..][..count].copy_from_slice(values);
            }
        }
    }

    fn epilogue<'a>(&'a self, input: RowParams<'a>) -> Epilogue<'a> {
        Epilogue {
            input,
            weight_scales: &self.scales,
            bias: self.bias.as_deref(),
            activation: self.activation,
        }
    }
}

/// A head's weights are an embedding table too: one copy serves both.
impl TableRows for IntegerLinear {
    fn read(&self, row: usize, out: &mut [f32]) {
        self.dequantize_row(row, out);
    }
}

fn slice_params(params: RowParams<'_>, first: usize, count: usize) -> RowParams<'_> {
    match params {
        RowParams::PerTensor(params) => RowParams::PerTensor(params),
        RowParams::PerToken(rows) => RowParams::PerToken(&rows[first..first + count]),
    }
}
