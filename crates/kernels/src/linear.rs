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
mod tests {
    use super::*;
    use crate::Isa;
    use crate::activation::activate;
    use crate::{add_in_place, quantize_measured, quantize_static, quantize_tokens};
    use zeropoint_core::{Rng, Symmetry};

    struct Layer {
        a: Vec<i8>,
        w: Vec<i8>,
        params: Vec<QuantParams>,
        scales: Vec<f32>,
        bias: Vec<f32>,
    }

    fn layer(rng: &mut Rng, rows: usize, inputs: usize, outputs: usize) -> Layer {
        let mut integers = |len| (0..len).map(|_| rng.next_u64() as i8).collect::<Vec<i8>>();
        let (a, w, zero_points) = (integers(rows * inputs), integers(outputs * inputs), integers(rows));
        let mut positive = |len| (0..len).map(|_| 1e-4 + 0.01 * rng.uniform() as f32).collect::<Vec<f32>>();
        let (input_scales, scales) = (positive(rows), positive(outputs));
        let params = input_scales.iter().zip(&zero_points);
        let params = params.map(|(&scale, &zero_point)| QuantParams { scale, zero_point }).collect();
        Layer { a, w, params, scales, bias: (0..outputs).map(|_| rng.normal() as f32).collect() }
    }

    #[test]
    fn the_epilogue_alone_gives_the_bits_of_the_whole() {
        let (rows, inputs, outputs) = (3, 97, 130);
        let l = layer(&mut Rng::new(4), rows, inputs, outputs);
        for isa in Isa::available() {
            for bias in [None, Some(l.bias.as_slice())] {
                let packed = PackedWeights::pack(isa, &l.w, outputs, inputs).unwrap();
                let input = RowParams::PerToken(&l.params[..rows]);
                let epilogue =
                    Epilogue { input, weight_scales: &l.scales, bias, activation: Activation::None };
                let mut whole = vec![0.0; rows * outputs];
                linear(&l.a, rows, &packed, 0..outputs, &epilogue, &mut whole, outputs);
                for (r, whole) in whole.chunks(outputs).enumerate() {
                    let p = l.params[r];
                    let a = &l.a[r * inputs..][..inputs];
                    let sums: Vec<i32> =
                        l.w.chunks(inputs)
                            .map(|w| {
                                a.iter()
                                    .zip(w)
                                    .map(|(&a, &w)| (i32::from(a) - i32::from(p.zero_point)) * i32::from(w))
                                    .sum()
                            })
                            .collect();
                    let mut alone = vec![0.0; outputs];
                    dequantize_sums(isa, &sums, p.scale, &l.scales, bias, &mut alone);
                    assert_eq!(alone, whole, "{isa}");
                }
            }
        }
    }

    #[test]
    fn the_epilogue_keeps_its_error_bound_against_f64() {
        let (rows, inputs, outputs) = (8, 97, 130);
        let l = layer(&mut Rng::new(3), rows, inputs, outputs);
        for isa in Isa::available() {
            let packed = PackedWeights::pack(isa, &l.w, outputs, inputs).unwrap();
            for input in [RowParams::PerToken(&l.params), RowParams::PerTensor(l.params[1])] {
                for bias in [None, Some(l.bias.as_slice())] {
                    let epilogue =
                        Epilogue { input, weight_scales: &l.scales, bias, activation: Activation::None };
                    let mut out = vec![f32::NAN; rows * outputs];
                    linear(&l.a, rows, &packed, 0..outputs, &epilogue, &mut out, outputs);
                    for (i, &y) in out.iter().enumerate() {
                        let (r, c) = (i / outputs, i % outputs);
                        let p = match input {
                            RowParams::PerTensor(p) => p,
                            RowParams::PerToken(p) => p[r],
                        };
                        let sum: i64 = (0..inputs)
                            .map(|k| {
                                let a = i64::from(l.a[r * inputs + k]) - i64::from(p.zero_point);
                                a * i64::from(l.w[c * inputs + k])
                            })
                            .sum();
                        let product = sum as f64 * f64::from(p.scale) * f64::from(l.scales[c]);
                        let exact = product + bias.map_or(0.0, |bias| f64::from(bias[c]));
                        let bound = (2.01 * product.abs() + exact.abs()) * 0.5f64.powi(24);
                        assert!(
                            (f64::from(y) - exact).abs() <= bound,
                            "{isa}: {y} for {exact} at [{r}, {c}]"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn the_widest_sums_survive_the_zero_point() {
        let inputs = 65_536;
        for (x, zero_point, w) in
            [(-128i8, 127, -128i8), (127, -128, -128), (-128, 127, 127), (127, -128, 127)]
        {
            let exact = (i64::from(x) - i64::from(zero_point)) * i64::from(w) * inputs as i64;
            for isa in Isa::available() {
                let packed = PackedWeights::pack(isa, &vec![w; inputs], 1, inputs).unwrap();
                let epilogue = Epilogue {
                    input: RowParams::PerTensor(QuantParams { scale: 1.0, zero_point }),
                    weight_scales: &[1.0],
                    bias: None,
                    activation: Activation::None,
                };
                let mut out = [0.0];
                linear(&vec![x; inputs], 1, &packed, 0..1, &epilogue, &mut out, 1);
                assert_eq!(out[0], exact as f32, "{isa}");
            }
        }
    }

    #[test]
    fn parts_of_the_columns_give_the_bits_of_the_whole_and_touch_nothing_else() {
        let (rows, inputs, outputs) = (7, 50, 200);
        let l = layer(&mut Rng::new(4), rows, inputs, outputs);
        let mut whole_by_isa = Vec::new();
        for isa in Isa::available() {
            let packed = PackedWeights::pack(isa, &l.w, outputs, inputs).unwrap();
            let epilogue = Epilogue {
                input: RowParams::PerToken(&l.params),
                weight_scales: &l.scales,
                bias: Some(&l.bias),
                activation: Activation::None,
            };
            let mut whole = vec![0.0; rows * outputs];
            linear(&l.a, rows, &packed, 0..outputs, &epilogue, &mut whole, outputs);
            for columns in [0..64, 64..200, 128..130, 64..128, 192..192] {
                let (width, stride) = (columns.len(), columns.len() + 3);
                let mut part = vec![-7.0; rows * stride];
                linear(&l.a, rows, &packed, columns.clone(), &epilogue, &mut part, stride);
                for (r, row) in part.chunks_exact(stride).enumerate() {
                    assert_eq!(row[..width], whole[r * outputs..][columns.clone()], "{isa}: {columns:?}");
                    assert_eq!(row[width..], [-7.0; 3], "{isa}: {columns:?}");
                }
            }
            whole_by_isa.push(whole);
        }
        assert!(whole_by_isa.iter().all(|whole| *whole == whole_by_isa[0]), "all instruction sets agree");
    }

    #[test]
    fn what_is_done_at_once_is_what_is_done_after() {
        for (rows, inputs, outputs) in [(7, 50, 200), (13, 64, 64), (1, 9, 3), (2, 5, 129)] {
            let mut l = layer(&mut Rng::new(6), rows, inputs, outputs);
            for (isa, bad) in
                Isa::available().into_iter().flat_map(|isa| [(isa, None), (isa, Some(rows - 1))])
            {
                if let Some(row) = bad {
                    l.params[row].scale = f32::INFINITY;
                }
                for activation in [Activation::None, Activation::GeluErf] {
                    let packed = PackedWeights::pack(isa, &l.w, outputs, inputs).unwrap();
                    let input = RowParams::PerToken(&l.params);
                    let epilogue =
                        Epilogue { input, weight_scales: &l.scales, bias: Some(&l.bias), activation };
                    let mut whole = vec![0.0; rows * outputs];
                    linear(&l.a, rows, &packed, 0..outputs, &epilogue, &mut whole, outputs);
                    let (mut out, mut expected) = (vec![0; whole.len()], vec![1; whole.len()]);
                    let mut magnitudes = RowMagnitudes::default();

                    let params = QuantParams { scale: 0.03, zero_point: -5 };
                    let found =
                        linear_quantized(&l.a, rows, &packed, &epilogue, params, &mut out, &mut magnitudes);
                    let after = quantize_static(isa, &whole, outputs, params, &mut expected);
                    assert_eq!((found, &out), (after, &expected), "{isa}");

                    let mut measured = vec![0.0; rows * outputs];
                    linear_measured(&l.a, rows, &packed, &epilogue, &mut measured, &mut magnitudes);
                    let bits =
                        |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&measured), bits(&whole), "{isa}");
                    let (mut sum, mut added) = (vec![0.25; rows * outputs], vec![0.25; rows * outputs]);
                    linear_added(&l.a, rows, &packed, &epilogue, &mut added);
                    add_in_place(isa, &mut sum, &whole);
                    assert_eq!(bits(&added), bits(&sum), "{isa}");

                    let mut of_rows = [vec![params; rows], vec![params; rows]];
                    let [found_params, params] = &mut of_rows;
                    let found =
                        quantize_measured(isa, &measured, outputs, &magnitudes, &mut out, found_params);
                    let after =
                        quantize_tokens(isa, &whole, outputs, Symmetry::Symmetric, &mut expected, params);
                    assert_eq!((found, found_params, &out), (after, params, &expected), "{isa}");
                    assert_eq!(found.is_err(), bad.is_some(), "{isa}");
                }
                l = layer(&mut Rng::new(6), rows, inputs, outputs);
            }
        }
    }

    #[test]
    fn the_fused_activation_is_the_separate_one() {
        let (rows, inputs, outputs) = (3, 20, 70);
        let l = layer(&mut Rng::new(5), rows, inputs, outputs);
        for isa in Isa::available() {
            let packed = PackedWeights::pack(isa, &l.w, outputs, inputs).unwrap();
            let run = |activation| {
                let input = RowParams::PerToken(&l.params);
                let epilogue = Epilogue { input, weight_scales: &l.scales, bias: Some(&l.bias), activation };
                let mut out = vec![0.0; rows * outputs];
                linear(&l.a, rows, &packed, 0..outputs, &epilogue, &mut out, outputs);
                out
            };
            for activation in [Activation::Relu, Activation::GeluErf, Activation::GeluTanh] {
                let mut separate = run(Activation::None);
                activate(isa, &mut separate, activation);
                assert_eq!(run(activation), separate, "{isa}: {activation:?}");
            }
        }
    }
}
