//! f32 to INT8 and back, bit-equal to the scalar functions of `zeropoint-core`.

use thiserror::Error;
use zeropoint_core::{QMAX, QMIN, QuantParams, Symmetry};

use crate::simd::{Kernel, LANES, Simd};
use crate::statistics::{Extremes, extremes_of};
use crate::{AlignedMemory, Isa};

/// The bits of infinity: those of a finite magnitude are less.
const INFINITY_BITS: i32 = f32::INFINITY.to_bits() as i32;

/// A row that cannot be quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("row {row} of the activations holds NaN or infinity: it has no range to quantise by")]
pub struct NonFinite {
    /// The first such row.
    pub row: usize,
}

/// `out[i] = zeropoint_core::quantize(x[i], params)` for the rows of `x`, `[rows, columns]`.
///
/// On an error `out` is complete, with the specification's treatment of infinities and NaN.
pub fn quantize_static(
    isa: Isa,
    x: &[f32],
    columns: usize,
    params: QuantParams,
    out: &mut [i8],
) -> Result<(), NonFinite> {
    assert!(columns > 0, "a row has at least one column");
    assert!(x.len().is_multiple_of(columns), "`x` is [rows, columns]");
    assert_eq!(x.len(), out.len(), "`out` is as long as `x`");
    if isa.run(QuantizeStatic { x, params, out }) {
        return Ok(());
    }
    let bad = |row: &[f32]| row.iter().any(|v| !v.is_finite());
    Err(NonFinite { row: x.chunks_exact(columns).position(bad).unwrap_or_default() })
}

/// Quantises each row of `x`, `[rows, columns]`, by its own range.
///
/// `params[r]` becomes `QuantParams::from_range(min, max, symmetry)` of row `r`, and `out` what
/// `zeropoint_core::quantize` gives under it. On an error the contents of `out` and `params` from that row on are as they
/// were.
pub fn quantize_tokens(
    isa: Isa,
    x: &[f32],
    columns: usize,
    symmetry: Symmetry,
    out: &mut [i8],
    params: &mut [QuantParams],
) -> Result<(), NonFinite> {
    assert!(columns > 0, "a row has at least one column");
    assert_eq!(x.len(), params.len() * columns, "`x` is [params.len(), columns]");
    assert_eq!(x.len(), out.len(), "`out` is as long as `x`");
    isa.run(QuantizeTokens { x, columns, symmetry, out, params })
}

/// As [`quantize_tokens`] with symmetric parameters, where [`linear_measured`](crate::linear_measured) or
/// [`swish_gate`](crate::swish_gate) has computed `x` and found the rows' largest magnitudes with it.
pub fn quantize_measured(
    isa: Isa,
    x: &[f32],
    columns: usize,
    magnitudes: &RowMagnitudes,
    out: &mut [i8],
    params: &mut [QuantParams],
) -> Result<(), NonFinite> {
    assert!(columns > 0, "a row has at least one column");
    assert_eq!(x.len(), params.len() * columns, "`x` is [params.len(), columns]");
    assert_eq!(x.len(), out.len(), "`out` is as long as `x`");
    let magnitudes = magnitudes.rows();
    assert_eq!(magnitudes.len(), params.len(), "a magnitude for each row");
    isa.run(QuantizeMeasured { x, columns, magnitudes, out, params })
}

/// The largest magnitude of each row of an output, found while it was computed.
#[derive(Debug, Clone, Default)]
pub struct RowMagnitudes {
    /// The bits of the largest magnitude among the values that each lane has seen.
    memory: AlignedMemory<[i32; LANES]>,
    rows: usize,
}

impl RowMagnitudes {
    /// Forgets what was found.
    pub(crate) fn begin(&mut self, rows: usize) -> &mut [[i32; LANES]] {
        self.rows = rows;
        let memory = self.memory.room(rows);
        memory.fill([0; LANES]);
        memory
    }

    fn rows(&self) -> &[[i32; LANES]] {
        &self.memory[..self.rows]
    }

    /// Whether all rows are finite.
    pub(crate) fn check(&self, isa: Isa) -> Result<(), NonFinite> {
        match isa.run(FirstNonFinite { magnitudes: self.rows() }) {
            Some(row) => Err(NonFinite { row }),
            None => Ok(()),
        }
    }
}

/// `out[i] = zeropoint_core::dequantize(q[i], params)`.
pub fn dequantize(isa: Isa, q: &[i8], params: QuantParams, out: &mut [f32]) {
    assert_eq!(q.len(), out.len(), "`out` is as long as `q`");
    isa.run(Dequantize { q, params, out });
}

/// Values that are stored together.
const GROUP: usize = 4 * LANES;

/// The vector form of [`zeropoint_core::quantize`].
///
/// The division is exact without dividing. `y`, the rounded `1 / scale`, gives a quotient `q` that a step with its exact
/// remainder brings within one unit in the last place; a second step then rounds it correctly (P. Markstein, "Computation of
/// Elementary Functions on the IBM RISC System/6000 Processor", IBM Journal of Research and Development 34, 1990).
/// Quotients so small that a remainder underflows round to the zero point either way.
#[derive(Clone, Copy)]
pub(crate) struct Quantizer<S: Simd> {
    s: S,
    scale: S::F,
    /// `-scale`.
    negated: S::F,
    /// Rounded `1 / scale`.
    reciprocal: S::F,
    zero_point: S::F,
    /// The values that become the lowest and the highest integer.
    lowest: S::F,
    highest: S::F,
    /// The scale is so small or large that a quotient or remainder could leave the range of f32.
    extreme: bool,
}

impl<S: Simd> Quantizer<S> {
    #[inline(always)]
    pub(crate) fn new(s: S, params: QuantParams) -> Self {
        /// `2^-80` and `2^80`.
        const ORDINARY: std::ops::RangeInclusive<f32> = 8.271_806e-25..=1.208_925_8e24;
        let zero_point = f32::from(params.zero_point);
        Self {
            s,
            scale: s.splat(params.scale),
            negated: s.splat(-params.scale),
            reciprocal: s.splat(1.0 / params.scale),
            zero_point: s.splat(zero_point),
            lowest: s.splat((QMIN as f32 - zero_point) * params.scale),
            highest: s.splat((QMAX as f32 - zero_point) * params.scale),
            extreme: !ORDINARY.contains(&params.scale),
        }
    }

    /// NaN gives the lowest integer: `max` returns its second operand then.
    #[inline(always)]
    pub(crate) fn quantize(self, x: S::F) -> S::I {
        let Self { s, negated, reciprocal, .. } = self;
        if self.extreme {
            let steps = s.add(s.div(x, self.scale), self.zero_point);
            return s.to_i32(s.min(s.max(steps, s.splat(QMIN as f32)), s.splat(QMAX as f32)));
        }
        let x = s.min(s.max(x, self.lowest), self.highest);
        let first = s.mul(x, reciprocal);
        let near = s.mul_add(s.mul_add(first, negated, x), reciprocal, first);
        let steps = s.mul_add(s.mul_add(near, negated, x), reciprocal, near);
        s.to_i32(s.add(steps, self.zero_point))
    }
}

/// Quantises `x` into `out` and returns the bits of the largest magnitude, where `MEASURE` asks for it.
#[inline(always)]
fn quantize_row<S: Simd, const MEASURE: bool>(quantizer: Quantizer<S>, x: &[f32], out: &mut [i8]) -> i32 {
    let s = quantizer.s;
    let mut magnitude = s.splat_i32(0);
    let (x, x_rest) = x.as_chunks::<GROUP>();
    let (out, out_rest) = out.as_chunks_mut::<GROUP>();
    for (x, out) in x.iter().zip(out) {
        let mut quantized = [s.splat_i32(0); GROUP / LANES];
        for (x, quantized) in x.as_chunks::<LANES>().0.iter().zip(&mut quantized) {
            let x = s.load(x);
            if MEASURE {
                magnitude = s.max_i32(magnitude, s.magnitude_bits(x));
            }
            *quantized = quantizer.quantize(x);
        }
        s.store_i8_of_four(quantized, out);
    }
    let (x, x_tail) = x_rest.as_chunks::<LANES>();
    let (out, out_tail) = out_rest.as_chunks_mut::<LANES>();
    for (x, out) in x.iter().zip(out) {
        let x = s.load(x);
        if MEASURE {
            magnitude = s.max_i32(magnitude, s.magnitude_bits(x));
        }
        s.store_i8(quantizer.quantize(x), out);
    }
    if !x_tail.is_empty() {
        let x = s.load_tail(x_tail, 0.0);
        if MEASURE {
            magnitude = s.max_i32(magnitude, s.magnitude_bits(x));
        }
        let mut lanes = [0; LANES];
        s.store_i8(quantizer.quantize(x), &mut lanes);
        out_tail.copy_from_slice(&lanes[..out_tail.len()]);
    }
    if MEASURE { s.largest_i32(magnitude) } else { 0 }
}

struct QuantizeStatic<'a> {
    x: &'a [f32],
    params: QuantParams,
    out: &'a mut [i8],
}

impl Kernel for QuantizeStatic<'_> {
    /// Whether every value is finite.
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        quantize_row::<S, true>(Quantizer::new(s, self.params), self.x, self.out) < INFINITY_BITS
    }
}

struct QuantizeTokens<'a> {
    x: &'a [f32],
    columns: usize,
    symmetry: Symmetry,
    out: &'a mut [i8],
    params: &'a mut [QuantParams],
}

impl Kernel for QuantizeTokens<'_> {
    type Output = Result<(), NonFinite>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Result<(), NonFinite> {
        let rows = self.x.chunks_exact(self.columns).zip(self.out.chunks_exact_mut(self.columns));
        for (row, ((x, out), params)) in rows.zip(self.params).enumerate() {
            let (min, max) = match self.symmetry {
                Symmetry::Asymmetric => {
                    let Extremes { min, max, finite } = extremes_of(s, x);
                    if !finite {
                        return Err(NonFinite { row });
                    }
                    (min, max)
                }
                // Not finite where a value is not: the parameters refuse it.
                Symmetry::Symmetric => {
                    let largest = largest_magnitude(s, x);
                    (-largest, largest)
                }
            };
            *params = QuantParams::from_range(min, max, self.symmetry).map_err(|_| NonFinite { row })?;
            quantize_row::<S, false>(Quantizer::new(s, *params), x, out);
        }
        Ok(())
    }
}

struct QuantizeMeasured<'a> {
    x: &'a [f32],
    columns: usize,
    magnitudes: &'a [[i32; LANES]],
    out: &'a mut [i8],
    params: &'a mut [QuantParams],
}

impl Kernel for QuantizeMeasured<'_> {
    type Output = Result<(), NonFinite>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Result<(), NonFinite> {
        let rows = self.x.chunks_exact(self.columns).zip(self.out.chunks_exact_mut(self.columns));
        for (row, (((x, out), params), magnitude)) in rows.zip(self.params).zip(self.magnitudes).enumerate() {
            let largest = f32::from_bits(s.largest_i32(s.load_i32(magnitude)) as u32);
            *params = QuantParams::symmetric(largest).map_err(|_| NonFinite { row })?;
            quantize_row::<S, false>(Quantizer::new(s, *params), x, out);
        }
        Ok(())
    }
}

struct FirstNonFinite<'a> {
    magnitudes: &'a [[i32; LANES]],
}

impl Kernel for FirstNonFinite<'_> {
    type Output = Option<usize>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Option<usize> {
        for (row, magnitude) in self.magnitudes.iter().enumerate() {
            if s.largest_i32(s.load_i32(magnitude)) >= INFINITY_BITS {
                return Some(row);
            }
        }
        None
    }
}

/// The largest `|x|`; NaN or infinity where there is one.
#[inline(always)]
fn largest_magnitude<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut largest = [s.splat_i32(0); GROUP / LANES];
    let (groups, rest) = x.as_chunks::<GROUP>();
    for group in groups {
        for (x, largest) in group.as_chunks::<LANES>().0.iter().zip(&mut largest) {
            *largest = s.max_i32(*largest, s.magnitude_bits(s.load(x)));
        }
    }
    for (x, largest) in rest.chunks(LANES).zip(&mut largest) {
        *largest = s.max_i32(*largest, s.magnitude_bits(s.load_some(x, 0.0)));
    }
    let [a, b, c, d] = largest;
    f32::from_bits(s.largest_i32(s.max_i32(s.max_i32(a, b), s.max_i32(c, d))) as u32)
}

struct Dequantize<'a> {
    q: &'a [i8],
    params: QuantParams,
    out: &'a mut [f32],
}

impl Kernel for Dequantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let zero_point = s.splat_i32(i32::from(self.params.zero_point));
        let scale = s.splat(self.params.scale);
        for (q, out) in self.q.chunks(LANES).zip(self.out.chunks_mut(LANES)) {
            let mut lanes = [0; LANES];
            lanes[..q.len()].copy_from_slice(q);
            let q = s.load_i8(q.first_chunk().unwrap_or(&lanes));
            s.store_some(s.mul(s.to_f32(s.sub_i32(q, zero_point)), scale), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zeropoint_core as core;

    /// Any bits at all, the special values often.
    fn any_f32() -> impl Strategy<Value = f32> {
        const SPECIAL: [f32; 12] = [
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::MAX,
            f32::MIN,
            f32::MIN_POSITIVE,
            1e-45,
            -1e-45,
            0.0,
            -0.0,
            0.5,
            -2.5,
        ];
        prop_oneof![
            prop::sample::select(SPECIAL.to_vec()),
            any::<u32>().prop_map(f32::from_bits),
            -300f32..300.0,
            (-600i32..600).prop_map(|halves| halves as f32 / 2.0),
        ]
    }

    fn any_scale() -> impl Strategy<Value = f32> {
        prop_oneof![Just(1.0f32), Just(f32::MIN_POSITIVE), Just(f32::MAX), 1e-6f32..10.0, 1e-38f32..1e38]
    }

    fn symmetries() -> impl Strategy<Value = Symmetry> {
        any::<bool>().prop_map(Symmetry::from_flag)
    }

    proptest! {
        #[test]
        fn static_quantising_is_the_scalar_specification(
            x in prop::collection::vec(any_f32(), 0..70), scale in any_scale(), zero_point: i8,
        ) {
            let params = QuantParams { scale, zero_point };
            let expected: Vec<i8> = x.iter().map(|&x| core::quantize(x, params)).collect();
            for isa in Isa::available() {
                let mut out = vec![55; x.len()];
                let result = quantize_static(isa, &x, 1, params, &mut out);
                prop_assert_eq!(&out, &expected, "{}", isa);
                let row = x.iter().position(|x| !x.is_finite());
                prop_assert_eq!(result, row.map_or(Ok(()), |row| Err(NonFinite { row })), "{}", isa);
            }
        }

        #[test]
        fn token_quantising_is_the_scalar_specification(
            x in prop::collection::vec(any_f32().prop_filter("finite", |x| x.is_finite()), 1..140),
            rows in 1usize..4, symmetry in symmetries(),
        ) {
            let columns = x.len().div_ceil(rows);
            let rows = x.len() / columns;
            let x = &x[..rows * columns];
            let mut expected = Vec::new();
            for row in x.chunks_exact(columns) {
                let (min, max) = row.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), &x| (a.min(x), b.max(x)));
                let p = QuantParams::from_range(min, max, symmetry).unwrap();
                let q = row.iter().map(|&x| core::quantize(x, p));
                expected.push((p, q.collect::<Vec<i8>>()));
            }
            for isa in Isa::available() {
                let mut out = vec![55; x.len()];
                let mut params = vec![QuantParams { scale: 0.0, zero_point: 0 }; rows];
                prop_assert_eq!(quantize_tokens(isa, x, columns, symmetry, &mut out, &mut params), Ok(()));
                for (r, (p, q)) in expected.iter().enumerate() {
                    prop_assert_eq!(params[r], *p, "{}", isa);
                    prop_assert_eq!(&out[r * columns..][..columns], q, "{}", isa);
                }
            }
        }

        #[test]
        fn dequantising_is_the_scalar_specification(
            q in prop::collection::vec(any::<i8>(), 0..70), scale in any_scale(), zero_point: i8,
        ) {
            let params = QuantParams { scale, zero_point };
            let expected: Vec<u32> = q.iter().map(|&q| core::dequantize(q, params).to_bits()).collect();
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; q.len()];
                dequantize(isa, &q, params, &mut out);
                prop_assert_eq!(out.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), expected.clone(), "{}", isa);
            }
        }
    }

    /// Values whose quotient is a tie or its neighbour: where a division that is not exact would show.
    #[test]
    fn ties_and_their_neighbours_are_those_of_the_specification() {
        let mut rng = zeropoint_core::Rng::new(8);
        for case in 0..2000 {
            let exponent =
                if case % 4 == 0 { rng.uniform() * 150.0 - 75.0 } else { rng.uniform() * 12.0 - 10.0 };
            let scale = ((1.0 + rng.uniform()) * exponent.floor().exp2()) as f32;
            let params =
                QuantParams { scale, zero_point: if case % 2 == 0 { 0 } else { rng.next_u64() as i8 } };
            let mut x = Vec::new();
            for halves in -259..=259 {
                let tie = (f64::from(halves) / 2.0 * f64::from(scale)) as f32;
                x.extend([
                    tie.next_down().next_down(),
                    tie.next_down(),
                    tie,
                    tie.next_up(),
                    tie.next_up().next_up(),
                ]);
            }
            let expected: Vec<i8> = x.iter().map(|&x| core::quantize(x, params)).collect();
            for isa in Isa::available() {
                let mut out = vec![55; x.len()];
                assert_eq!(quantize_static(isa, &x, 1, params, &mut out), Ok(()));
                assert!(out == expected, "{isa}: {params:?}");
            }
        }
    }

    #[test]
    fn a_row_that_is_not_finite_is_named() {
        for isa in Isa::available() {
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for (columns, at) in [(3, 2), (16, 0), (40, 33)] {
                    let mut x = vec![1.0; 3 * columns];
                    x[columns + at] = bad;
                    let mut out = vec![0; x.len()];
                    let mut params = [QuantParams { scale: 1.0, zero_point: 0 }; 3];
                    let result =
                        quantize_tokens(isa, &x, columns, Symmetry::Asymmetric, &mut out, &mut params);
                    assert_eq!(result, Err(NonFinite { row: 1 }), "{isa}: {bad} at {at} of {columns}");
                }
            }
        }
    }
}
