//! A quantised Linear: the integer product and its f32 epilogue in one go.

use std::ops::Range;

use zeropoint_core::QuantParams;

use crate::activation::{Activation, GeluErf, GeluTanh, Identity, Map, Relu};
use crate::gemm::{Aligned, Finish, PANEL, multiply};
use crate::quantize::{Quantizer, RowMagnitudes};
use crate::simd::{Kernel, LANES, Simd};
use crate::{Isa, NonFinite, PackedWeights};

/// The quantisation parameters of the input rows.
#[derive(Debug, Clone, Copy)]
pub enum RowParams<'a> {
    /// One for all rows (static activations).
    PerTensor(QuantParams),
    /// One for each row (dynamic activations).
    PerToken(&'a [QuantParams]),
}

/// What turns i32 sums into the f32 output of a Linear.
#[derive(Debug, Clone, Copy)]
pub struct Epilogue<'a> {
    /// Scale and zero point of the INT8 input.
    pub input: RowParams<'a>,
    /// One scale for each output; repeat it for a weight quantised per tensor.
    pub weight_scales: &'a [f32],
    /// One f32 for each output.
    pub bias: Option<&'a [f32]>,
    /// Applied last.
    pub activation: Activation,
}

/// `out[r, c - columns.start] = act(sum over k of (a[r, k] - zero_point) * w[c, k] * input_scale * weight_scale[c] +
/// bias[c])` for the outputs in `columns`.
///
/// `a` is `[rows, inputs]`. `columns.start` is a multiple of [`PackedWeights::PANEL`], and rows of `out` begin every
/// `out_stride` values, of which those past the columns are left alone.
///
/// The zero point is taken off in integers: the sum is exact. It is then rounded to f32, multiplied by the input's
/// scale, and one fused operation multiplies by the weight's scale and adds the bias: before the activation the error
/// is at most `2^-24 * (2.01 * |product| + |result|)`, apart from f32's overflow and underflow.
pub fn linear(
    a: &[i8],
    rows: usize,
    w: &PackedWeights,
    columns: Range<usize>,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
    out_stride: usize,
) {
    check(rows, w, epilogue);
    assert!(out_stride >= columns.len(), "a row of `out` holds all columns");
    if rows == 0 || columns.is_empty() {
        return;
    }
    assert!(out.len() >= (rows - 1) * out_stride + columns.len(), "`out` holds all rows");

    run(
        a,
        rows,
        w,
        columns.clone(),
        epilogue,
        Values { out, stride: out_stride, first_column: columns.start },
    );
}

/// As [`linear`] over all outputs, added to `x`, `[rows, outputs]`: the residual connection, with the bits of
/// [`add_in_place`](crate::add_in_place).
pub fn linear_added(a: &[i8], rows: usize, w: &PackedWeights, epilogue: &Epilogue<'_>, x: &mut [f32]) {
    check(rows, w, epilogue);
    assert_eq!(x.len(), rows * w.outputs(), "`x` is [rows, outputs]");
    run(a, rows, w, 0..w.outputs(), epilogue, Added { x, stride: w.outputs() });
}

/// As [`linear`] over all outputs, keeping what [`quantize_measured`](crate::quantize_measured) asks of the rows: `out` is
/// `[rows, outputs]`.
pub fn linear_measured(
    a: &[i8],
    rows: usize,
    w: &PackedWeights,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
    magnitudes: &mut RowMagnitudes,
) {
    check(rows, w, epilogue);
    assert_eq!(out.len(), rows * w.outputs(), "`out` is [rows, outputs]");
    let values = Values { out, stride: w.outputs(), first_column: 0 };
    run(a, rows, w, 0..w.outputs(), epilogue, Measured { values, magnitudes: magnitudes.begin(rows) });
}

/// [`linear`] over all outputs and [`quantize_static`](crate::quantize_static) of its result in one: `out`, `[rows, outputs]`, has
/// the same integers. `magnitudes` is memory to work in.
///
/// On an error `out` is complete, as of `quantize_static`.
pub fn linear_quantized(
    a: &[i8],
    rows: usize,
    w: &PackedWeights,
    epilogue: &Epilogue<'_>,
    params: QuantParams,
    out: &mut [i8],
    magnitudes: &mut RowMagnitudes,
) -> Result<(), NonFinite> {
    check(rows, w, epilogue);
    assert_eq!(out.len(), rows * w.outputs(), "`out` is [rows, outputs]");
    let stride = w.outputs();
    run(
        a,
        rows,
        w,
        0..stride,
        epilogue,
        Requantized { params, out, stride, magnitudes: magnitudes.begin(rows) },
    );
    magnitudes.check(w.isa())
}

fn check(rows: usize, w: &PackedWeights, epilogue: &Epilogue<'_>) {
    assert_eq!(epilogue.weight_scales.len(), w.outputs(), "a weight scale for each output");
    assert!(epilogue.bias.is_none_or(|bias| bias.len() == w.outputs()), "a bias for each output");
    if let RowParams::PerToken(params) = epilogue.input {
        assert_eq!(params.len(), rows, "quantisation parameters for each row");
    }
}

fn run<T: Rows>(
    a: &[i8],
    rows: usize,
    w: &PackedWeights,
    columns: Range<usize>,
    epilogue: &Epilogue<'_>,
    to: T,
) {
    match epilogue.activation {
        Activation::None => multiply(a, rows, w, columns, Dequantize::new(epilogue, to, Identity)),
        Activation::Relu => multiply(a, rows, w, columns, Dequantize::new(epilogue, to, Relu)),
        Activation::GeluErf => multiply(a, rows, w, columns, Dequantize::new(epilogue, to, GeluErf)),
        Activation::GeluTanh => multiply(a, rows, w, columns, Dequantize::new(epilogue, to, GeluTanh)),
    }
}

/// The epilogue of [`linear`] alone, to the bit and before its activation, for one row of exact sums from which the
/// zero point is taken off already: `out[c] = sums[c] * input_scale * weight_scales[c] + bias[c]`.
///
/// A simulation that finds the sums in another way ends with the same f32 values as the integer product.
pub fn dequantize_sums(
    isa: Isa,
    sums: &[i32],
    input_scale: f32,
    weight_scales: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    assert_eq!(sums.len(), out.len(), "a sum for each output");
    assert_eq!(sums.len(), weight_scales.len(), "a weight scale for each output");
    assert!(bias.is_none_or(|bias| bias.len() == sums.len()), "a bias for each output");
    isa.run(DequantizeSums { sums, input_scale, weight_scales, bias, out });
}

struct DequantizeSums<'a> {
    sums: &'a [i32],
    input_scale: f32,
    weight_scales: &'a [f32],
    bias: Option<&'a [f32]>,
    out: &'a mut [f32],
}

impl Kernel for DequantizeSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let scale = s.splat(self.input_scale);
        let vectors = self.sums.chunks(LANES).zip(self.out.chunks_mut(LANES));
        for (i, ((sums, out), scales)) in vectors.zip(self.weight_scales.chunks(LANES)).enumerate() {
            let mut padded = [0; LANES];
            padded[..sums.len()].copy_from_slice(sums);
            let product = s.mul(s.to_f32(s.load_i32(&padded)), scale);
            let bias = self.bias.map_or(&[][..], |bias| &bias[i * LANES..][..sums.len()]);
            s.store_some(s.mul_add(product, s.load_some(scales, 0.0), s.load_some(bias, 0.0)), out);
        }
    }
}

/// What becomes of the finished values.
trait Rows {
    /// Takes a row's values of some columns, [`PANEL`] at most; vectors past them hold no values of the result.
    fn take<S: Simd>(&mut self, s: S, row: usize, columns: &Range<usize>, values: [S::F; VECTORS]);
}

/// Vectors of a panel.
const VECTORS: usize = PANEL / LANES;

struct Values<'a> {
    out: &'a mut [f32],
    stride: usize,
    first_column: usize,
}

impl Rows for Values<'_> {
    #[inline(always)]
    fn take<S: Simd>(&mut self, s: S, row: usize, columns: &Range<usize>, values: [S::F; VECTORS]) {
        let out = &mut self.out[row * self.stride + columns.start - self.first_column..][..columns.len()];
        match out.first_chunk_mut::<PANEL>() {
            Some(whole) => {
                for (out, values) in whole.as_chunks_mut::<LANES>().0.iter_mut().zip(values) {
                    s.store(values, out);
                }
            }
            None => {
                for (out, values) in out.chunks_mut(LANES).zip(values) {
                    s.store_some(values, out);
                }
            }
        }
    }
}

struct Added<'a> {
    x: &'a mut [f32],
    stride: usize,
}

impl Rows for Added<'_> {
    #[inline(always)]
    fn take<S: Simd>(&mut self, s: S, row: usize, columns: &Range<usize>, values: [S::F; VECTORS]) {
        let x = &mut self.x[row * self.stride + columns.start..][..columns.len()];
        match x.first_chunk_mut::<PANEL>() {
            Some(whole) => {
                for (x, values) in whole.as_chunks_mut::<LANES>().0.iter_mut().zip(values) {
                    s.store(s.add(s.load(x), values), x);
                }
            }
            None => {
                for (x, values) in x.chunks_mut(LANES).zip(values) {
                    s.store_some(s.add(s.load_some(x, 0.0), values), x);
                }
            }
        }
    }
}

struct Measured<'a> {
    values: Values<'a>,
    magnitudes: &'a mut [[i32; LANES]],
}

impl Rows for Measured<'_> {
    #[inline(always)]
    fn take<S: Simd>(&mut self, s: S, row: usize, columns: &Range<usize>, values: [S::F; VECTORS]) {
        measure(s, &mut self.magnitudes[row], values);
        self.values.take(s, row, columns, values);
    }
}

struct Requantized<'a> {
    params: QuantParams,
    out: &'a mut [i8],
    stride: usize,
    magnitudes: &'a mut [[i32; LANES]],
}

impl Rows for Requantized<'_> {
    #[inline(always)]
    fn take<S: Simd>(&mut self, s: S, row: usize, columns: &Range<usize>, values: [S::F; VECTORS]) {
        measure(s, &mut self.magnitudes[row], values);
        let quantizer = Quantizer::new(s, self.params);
        let mut quantized = [s.splat_i32(0); VECTORS];
        for (quantized, values) in quantized.iter_mut().zip(values) {
            *quantized = quantizer.quantize(values);
        }
        let out = &mut self.out[row * self.stride + columns.start..][..columns.len()];
        if let Some(whole) = out.first_chunk_mut() {
            s.store_i8_of_four(quantized, whole);
        } else {
            let Aligned(whole) = &mut Aligned([0; PANEL]);
            s.store_i8_of_four(quantized, whole);
            out.copy_from_slice(&whole[..out.len()]);
        }
    }
}

/// The columns past the last have a scale and a bias of 0, and every activation keeps 0: they add nothing.
#[inline(always)]
fn measure<S: Simd>(s: S, magnitude: &mut [i32; LANES], values: [S::F; VECTORS]) {
    let mut largest = s.load_i32(magnitude);
    for values in values {
        largest = s.max_i32(largest, s.magnitude_bits(values));
    }
    s.store_i32(largest, magnitude);
}

/// The epilogue of one panel, padded to whole vectors.
#[repr(C, align(64))]
struct Panel {
    column_sums: [i32; PANEL],
    scales: [f32; PANEL],
    bias: [f32; PANEL],
    columns: Range<usize>,
}

struct Dequantize<'a, T, M> {
    epilogue: &'a Epilogue<'a>,
    to: T,
    activation: M,
    panel: Panel,
}

impl<'a, T, M> Dequantize<'a, T, M> {
    fn new(epilogue: &'a Epilogue<'a>, to: T, activation: M) -> Self {
        let panel =
            Panel { columns: 0..0, column_sums: [0; PANEL], scales: [0.0; PANEL], bias: [0.0; PANEL] };
        Self { epilogue, to, activation, panel }
    }
}

impl<T: Rows, M: Map> Finish for Dequantize<'_, T, M> {
    #[inline(always)]
    fn begin_panel(&mut self, columns: Range<usize>, column_sums: &[i32; PANEL]) {
        let panel = &mut self.panel;
        let count = columns.len();
        panel.columns = columns.clone();
        panel.column_sums = *column_sums;
        panel.scales[..count].copy_from_slice(&self.epilogue.weight_scales[columns.clone()]);
        panel.scales[count..].fill(0.0);
        if let Some(bias) = self.epilogue.bias {
            panel.bias[..count].copy_from_slice(&bias[columns]);
            panel.bias[count..].fill(0.0);
        }
    }

    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S, first_row: usize, sums: &[[i32; PANEL]]) {
        let panel = &self.panel;
        for (row, sums) in (first_row..).zip(sums) {
            let QuantParams { scale, zero_point } = match self.epilogue.input {
                RowParams::PerTensor(params) => params,
                RowParams::PerToken(params) => params[row],
            };
            let Aligned(corrected) = &mut Aligned([0; PANEL]);
            let exact = if zero_point == 0 {
                sums
            } else {
                panel.take_off(simd, zero_point, sums, corrected);
                corrected
            };
            let values = panel.dequantize(simd, exact, scale, self.activation);
            self.to.take(simd, row, &panel.columns, values);
        }
    }
}

impl Panel {
    /// `sums - zero_point * column_sums`.
    #[inline(always)]
    fn take_off<S: Simd>(&self, s: S, zero_point: i8, sums: &[i32; PANEL], exact: &mut [i32; PANEL]) {
        let zero_point = s.splat_i32(i32::from(zero_point));
        let exact = exact.as_chunks_mut::<LANES>().0;
        for ((exact, sums), column_sums) in
            exact.iter_mut().zip(vectors(sums)).zip(vectors(&self.column_sums))
        {
            let correction = s.mul_i32(zero_point, s.load_i32(column_sums));
            s.store_i32(s.sub_i32(s.load_i32(sums), correction), exact);
        }
    }

    #[inline(always)]
    fn dequantize<S: Simd, M: Map>(
        &self,
        s: S,
        exact: &[i32; PANEL],
        scale: f32,
        activation: M,
    ) -> [S::F; VECTORS] {
        let scale = s.splat(scale);
        let constants = vectors_f32(&self.scales).iter().zip(vectors_f32(&self.bias));
        let mut values = [s.splat(0.0); VECTORS];
        for ((value, exact), (scales, bias)) in values.iter_mut().zip(vectors(exact)).zip(constants) {
            let product = s.mul(s.to_f32(s.load_i32(exact)), scale);
            *value = activation.apply(s, s.mul_add(product, s.load(scales), s.load(bias)));
        }
        values
    }
}

fn vectors(panel: &[i32; PANEL]) -> &[[i32; LANES]] {
    panel.as_chunks().0
}

fn vectors_f32(panel: &[f32; PANEL]) -> &[[f32; LANES]] {
    panel.as_chunks().0
}

#[cfg(test)]
mod tests;
