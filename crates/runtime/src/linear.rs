//! One Linear in integers.

use std::ops::Range;

use zeropoint_core::{QuantParams, Symmetry, dequantize};
use zeropoint_formats::compressed_tensors::QuantizedLinear;
use zeropoint_kernels::{
    Activation, AlignedMemory, Epilogue, Isa, NonFinite, PackError, PackedWeights, RowMagnitudes, RowParams,
    linear, linear_added, linear_measured, linear_quantized, quantize_measured, quantize_tokens,
};
use zeropoint_models::{ActivationFn, ActivationQuantizer, TableRows, apply_activation};

use crate::split::over_threads;

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
        let inputs = self.inputs();
        let mut out = over_threads(rows, self.outputs(), |rows, columns, out, stride| {
            let epilogue = self.epilogue(slice_params(input, &rows));
            let a = &a[rows.start * inputs..rows.end * inputs];
            linear(a, rows.len(), &self.weights, columns, &epilogue, out, stride);
        });
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

fn slice_params<'a>(params: RowParams<'a>, rows: &Range<usize>) -> RowParams<'a> {
    match params {
        RowParams::PerTensor(params) => RowParams::PerTensor(params),
        RowParams::PerToken(all) => RowParams::PerToken(&all[rows.clone()]),
    }
}
