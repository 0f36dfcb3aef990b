//! What observers ask of activations: ranges, histograms and errors.

use crate::Isa;
use crate::simd::{Kernel, LANES, Simd};

/// The range of a set of values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Extremes {
    /// The smallest value that is not NaN; `+inf` where there is none. Never `-0.0`.
    pub min: f32,
    /// The largest value that is not NaN; `-inf` where there is none. Never `-0.0`.
    pub max: f32,
    /// No value is NaN or infinite.
    pub finite: bool,
}

/// The range of `x`.
pub fn extremes(isa: Isa, x: &[f32]) -> Extremes {
    isa.run(Range { x })
}

/// The range of each row of `x`, `[rows, columns]`.
pub fn row_extremes(isa: Isa, x: &[f32], columns: usize, out: &mut [Extremes]) {
    assert!(columns > 0, "a row has at least one column");
    assert_eq!(out.len() * columns, x.len(), "`x` is [rows, columns], `out` has an element for each row");
    isa.run(RowRanges { x, columns, out });
}

/// `out[c] = max(out[c], |x[r, c]|)` over all rows of `x`, `[rows, columns]`. NaN is passed over: [`extremes`] finds it.
pub fn channel_absmax(isa: Isa, x: &[f32], columns: usize, out: &mut [f32]) {
    assert!(columns > 0, "a row has at least one column");
    assert!(x.len().is_multiple_of(columns), "`x` is [rows, columns]");
    assert_eq!(out.len(), columns, "`out` has a value for each column");
    isa.run(ChannelAbsmax { x, out });
}

/// Counts each value in its bin: `counts[floor(x * bins_per_unit) + counts.len() / 2] += 1`, values beyond either end in
/// the last bin there, NaN in the first.
///
/// `bins_per_unit` is positive and normal. Where it is a power of two the product is exact (below `2^-126` apart) and bins can be
/// merged in pairs; otherwise it is the rounded one; a negative one below 2^-149 is a zero. There are `2^22` bins at most. The counts are u32: the caller
/// empties them before `2^32` values.
pub fn histogram(isa: Isa, x: &[f32], bins_per_unit: f32, counts: &mut [u32]) {
    assert!(bins_per_unit.is_normal() && bins_per_unit > 0.0, "`bins_per_unit` is positive and normal");
    assert!((1..=1 << 22).contains(&counts.len()), "there are 1 to 2^22 bins");
    isa.run(Histogram { x, bins_per_unit, counts });
}

/// Bins that grow with the magnitude: every power of two is cut into `2^mantissa_bits` equal parts, negative values have
/// bins of their own.
///
/// Where a magnitude belongs is decided by the leading bits of its f32, its *key*: `|x|.to_bits() >> (23 -
/// mantissa_bits)`. Keys rise with magnitudes, and where a bin ends does not depend on what was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogBins {
    /// Parts of a power of two, as an exponent of 2; at most 23.
    pub mantissa_bits: u32,
    /// Bins of each sign.
    pub per_sign: u32,
    /// Key of bin 0, which also holds everything of a smaller magnitude.
    pub lowest: u32,
}

impl LogBins {
    /// The key of a magnitude.
    #[inline(always)]
    pub fn key(self, x: f32) -> u32 {
        (x.to_bits() & 0x7fff_ffff) >> (23 - self.mantissa_bits)
    }

    /// The bin of a value: `0..per_sign` by magnitude, `per_sign` more for those below zero. Magnitudes above the last
    /// bin are in it. Both zeros are in bin 0.
    #[inline(always)]
    pub fn index(self, x: f32) -> u32 {
        // Keys are below 2^31, so that signed operations, which every instruction set has, are right.
        let above = (self.key(x) as i32 - self.lowest as i32).max(0).min(self.per_sign as i32 - 1) as u32;
        above + if x < 0.0 { self.per_sign } else { 0 }
    }

    /// Bins of both signs.
    pub fn len(self) -> usize {
        2 * self.per_sign as usize
    }

    /// Whether there are no bins.
    pub fn is_empty(self) -> bool {
        self.per_sign == 0
    }
}

/// Counts the values of some columns of `x`, `[rows, columns]`: `counts[c, bins.index(x[r, first + c])] += 1` for the
/// `counts.len() / bins.len()` columns from `first`. The counts are u32: the caller has room for `rows` more in each.
pub fn count_columns(isa: Isa, x: &[f32], columns: usize, first: usize, bins: LogBins, counts: &mut [u32]) {
    assert!(!bins.is_empty() && bins.mantissa_bits <= 23, "bins hold something");
    assert!(columns > 0 && x.len().is_multiple_of(columns), "`x` is [rows, columns]");
    assert!(counts.len().is_multiple_of(bins.len()), "`counts` has all bins of each column");
    assert!(first + counts.len() / bins.len() <= columns, "the columns are columns of `x`");
    isa.run(CountColumns { x, columns, first, bins, counts });
}

/// `(sum of (a - b)^2, sum of a^2)` in f64, added in an order that depends on the length alone: error and signal, whose
/// ratio is the SQNR.
pub fn sum_squared_error(isa: Isa, a: &[f32], b: &[f32]) -> (f64, f64) {
    assert_eq!(a.len(), b.len(), "`a` and `b` are equally long");
    isa.run(SquaredError { a, b })
}

struct Range<'a> {
    x: &'a [f32],
}

impl Kernel for Range<'_> {
    type Output = Extremes;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Extremes {
        extremes_of(s, self.x)
    }
}

#[inline(always)]
pub(crate) fn extremes_of<S: Simd>(s: S, x: &[f32]) -> Extremes {
    let Some(&first) = x.first() else {
        return Extremes { min: f32::INFINITY, max: f32::NEG_INFINITY, finite: true };
    };
    let start =
        Running { min: s.splat(f32::INFINITY), max: s.splat(f32::NEG_INFINITY), magnitude: s.splat_i32(0) };
    // Two of each, so that one need not wait for the other.
    let (mut even, mut odd) = (start, start);
    let (pairs, rest) = x.as_chunks::<{ 2 * LANES }>();
    for pair in pairs {
        let (low, high) = pair.split_at(LANES);
        even = even.with(s, s.load_some(low, first));
        odd = odd.with(s, s.load_some(high, first));
    }
    for part in rest.chunks(LANES) {
        even = even.with(s, s.load_some(part, first));
    }
    let min = s.smallest(s.min(even.min, odd.min));
    let max = s.largest(s.max(even.max, odd.max));
    let magnitude = s.largest_i32(s.max_i32(even.magnitude, odd.magnitude));
    // Adding 0.0 turns -0.0 into 0.0: which of the two zeros comes out must not depend on the order.
    Extremes { min: min + 0.0, max: max + 0.0, finite: magnitude < f32::INFINITY.to_bits() as i32 }
}

/// The range so far, lane by lane.
#[derive(Clone, Copy)]
struct Running<S: Simd> {
    min: S::F,
    max: S::F,
    magnitude: S::I,
}

impl<S: Simd> Running<S> {
    /// NaN comes first in `min` and `max`, whose second operand is then the result.
    #[inline(always)]
    fn with(self, s: S, v: S::F) -> Self {
        Self {
            min: s.min(v, self.min),
            max: s.max(v, self.max),
            magnitude: s.max_i32(s.magnitude_bits(v), self.magnitude),
        }
    }
}

struct RowRanges<'a> {
    x: &'a [f32],
    columns: usize,
    out: &'a mut [Extremes],
}

impl Kernel for RowRanges<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (row, out) in self.x.chunks_exact(self.columns).zip(self.out) {
            *out = extremes_of(s, row);
        }
    }
}

struct ChannelAbsmax<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for ChannelAbsmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.x.chunks_exact(self.out.len()) {
            for (x, out) in row.chunks(LANES).zip(self.out.chunks_mut(LANES)) {
                let largest = s.max(s.abs(s.load_some(x, 0.0)), s.load_some(out, 0.0));
                s.store_some(largest, out);
            }
        }
    }
}

struct Histogram<'a> {
    x: &'a [f32],
    bins_per_unit: f32,
    counts: &'a mut [u32],
}

impl Kernel for Histogram<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let half = self.counts.len() / 2;
        let bins_per_unit = s.splat(self.bins_per_unit);
        let (lowest, highest) = (-(half as f32), (self.counts.len() - 1 - half) as f32);
        let (lowest, highest, middle) = (s.splat(lowest), s.splat(highest), s.splat_i32(half as i32));
        let mut bins = [[0i32; LANES]; 16];
        for x in self.x.chunks(bins.len() * LANES) {
            for (x, bins) in x.chunks(LANES).zip(&mut bins) {
                let steps = s.mul(s.load_some(x, 0.0), bins_per_unit);
                // Clamping before the floor equals clamping after: the bounds are integers.
                let clamped = s.min(s.max(steps, lowest), highest);
                s.store_i32(s.add_i32(s.to_i32(s.floor(clamped)), middle), bins);
            }
            for &bin in &bins.as_flattened()[..x.len()] {
                self.counts[bin as usize] += 1;
            }
        }
    }
}

struct CountColumns<'a> {
    x: &'a [f32],
    columns: usize,
    first: usize,
    bins: LogBins,
    counts: &'a mut [u32],
}

impl Kernel for CountColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { bins, counts, .. } = self;
        let len = bins.len();
        let width = counts.len() / len;
        // Where each value belongs first, for the compiler's vectors, then the counts one by one.
        let mut found = [0u32; 2 * LANES];
        for row in self.x.chunks_exact(self.columns) {
            let row = &row[self.first..self.first + width];
            for (x, counts) in row.chunks(found.len()).zip(counts.chunks_mut(found.len() * len)) {
                for (bin, &x) in found.iter_mut().zip(x) {
                    *bin = bins.index(x);
                }
                for (&bin, counts) in found.iter().zip(counts.chunks_exact_mut(len)) {
                    counts[bin as usize] += 1;
                }
            }
        }
    }
}

struct SquaredError<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl Kernel for SquaredError<'_> {
    type Output = (f64, f64);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f64, f64) {
        let (mut error, mut signal) = (s.zero_f64(), s.zero_f64());
        let zero = s.splat(0.0);
        for (a, b) in self.a.chunks(LANES).zip(self.b.chunks(LANES)) {
            let (a, b) = (s.load_some(a, 0.0), s.load_some(b, 0.0));
            error = s.add_square_of_difference(error, a, b);
            signal = s.add_square_of_difference(signal, a, zero);
        }
        let total = |sum| {
            let mut lanes = [0.0; LANES];
            s.store_f64(sum, &mut lanes);
            lanes.into_iter().sum()
        };
        (total(error), total(signal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_bits() -> impl Strategy<Value = f32> {
        prop_oneof![
            any::<u32>().prop_map(f32::from_bits),
            -10f32..10.0,
            prop::sample::select(vec![0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-45, -1e-45]),
        ]
    }

    #[test]
    fn nothing_has_an_empty_range() {
        for isa in Isa::available() {
            let empty = Extremes { min: f32::INFINITY, max: f32::NEG_INFINITY, finite: true };
            assert_eq!(extremes(isa, &[]), empty);
            assert_eq!(extremes(isa, &[f32::NAN]), Extremes { finite: false, ..empty });
        }
    }

    #[test]
    fn bins_are_anchored_at_zero_and_the_ends_take_the_rest() {
        let cases = [
            (0.0, 4),
            (-0.0, 4),
            (0.49, 4),
            (0.5, 5),
            (-0.01, 3),
            (-0.5, 3),
            (-0.51, 2),
            (1.99, 7),
            (2.0, 7),
            (1e30, 7),
            (-2.0, 0),
            (-2.01, 0),
            (f32::NEG_INFINITY, 0),
            (f32::INFINITY, 7),
            (f32::NAN, 0),
        ];
        for isa in Isa::available() {
            for (x, bin) in cases {
                let mut counts = [0; 8];
                histogram(isa, &[x], 2.0, &mut counts);
                assert_eq!(counts.iter().position(|&n| n == 1), Some(bin), "{isa}: {x}");
            }
        }
    }

    proptest! {
        #[test]
        fn extremes_are_those_of_a_plain_loop(x in prop::collection::vec(any_bits(), 0..100)) {
            // A signalling NaN is not for `f32::min`: its result there depends on the processor.
            let numbers = x.iter().filter(|x| !x.is_nan());
            let (min, max) = numbers.fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), &x| (a.min(x), b.max(x)));
            for isa in Isa::available() {
                let found = extremes(isa, &x);
                prop_assert_eq!(found, Extremes { min, max, finite: x.iter().all(|x| x.is_finite()) });
                prop_assert!(found.min.to_bits() != (-0.0f32).to_bits() && found.max.to_bits() != (-0.0f32).to_bits());
            }
        }

        #[test]
        fn rows_have_the_range_of_their_values(x in prop::collection::vec(any_bits(), 1..200), columns in 1usize..50) {
            let x = &x[..x.len() / columns * columns];
            for isa in Isa::available() {
                let mut out = vec![Extremes { min: 7.0, max: 7.0, finite: true }; x.len() / columns];
                row_extremes(isa, x, columns, &mut out);
                let expected: Vec<Extremes> = x.chunks(columns).map(|row| extremes(Isa::SCALAR, row)).collect();
                prop_assert_eq!(out, expected, "{}", isa);
            }
        }

        #[test]
        fn columns_are_counted_as_a_plain_loop_counts_them(
            x in prop::collection::vec(any_bits(), 1..400), columns in 1usize..90, first in 0usize..90,
            mantissa_bits in 0u32..8, per_sign in 1u32..60, lowest in 0u32..2000,
        ) {
            let x = &x[..x.len() / columns * columns];
            let first = first % columns;
            let bins = LogBins { mantissa_bits, per_sign, lowest };
            let mut expected = vec![1u32; (columns - first) * bins.len()];
            for row in x.chunks(columns) {
                for (c, &x) in row[first..].iter().enumerate() {
                    let key = u64::from(x.abs().to_bits()) >> (23 - mantissa_bits);
                    let bin = key.saturating_sub(u64::from(lowest)).min(u64::from(per_sign) - 1);
                    let negative = if x < 0.0 { u64::from(per_sign) } else { 0 };
                    expected[c * bins.len() + (bin + negative) as usize] += 1;
                }
            }
            for isa in Isa::available() {
                let mut counts = vec![1u32; expected.len()];
                count_columns(isa, x, columns, first, bins, &mut counts);
                prop_assert_eq!(&counts, &expected, "{}", isa);
            }
        }

        #[test]
        fn channels_keep_their_largest_magnitude(x in prop::collection::vec(any_bits(), 1..200), columns in 1usize..50) {
            let x = &x[..x.len() / columns * columns];
            let mut expected = vec![1.0f32; columns];
            for row in x.chunks_exact(columns) {
                for (out, x) in expected.iter_mut().zip(row).filter(|(_, x)| !x.is_nan()) {
                    *out = out.max(x.abs());
                }
            }
            for isa in Isa::available() {
                let mut out = vec![1.0; columns];
                channel_absmax(isa, x, columns, &mut out);
                prop_assert_eq!(&out, &expected, "{}", isa);
            }
        }

        #[test]
        fn histograms_are_those_of_a_plain_loop(
            x in prop::collection::vec(any_bits(), 0..700), exponent in -3i32..8, bins in 1usize..300,
        ) {
            let bins_per_unit = 2f32.powi(exponent);
            let mut expected = vec![0; bins];
            for &x in &x {
                let bin = ((x * bins_per_unit).floor() as i64).saturating_add((bins / 2) as i64);
                let bin = if x.is_nan() { 0 } else { bin.clamp(0, bins as i64 - 1) };
                expected[bin as usize] += 1;
            }
            for isa in Isa::available() {
                let mut counts = vec![0; bins];
                histogram(isa, &x, bins_per_unit, &mut counts);
                prop_assert_eq!(&counts, &expected, "{}", isa);
            }
        }

        #[test]
        fn squared_errors_are_equal_everywhere_and_right(pairs in prop::collection::vec((-1e3f32..1e3, -1e3f32..1e3), 0..100)) {
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let scalar = sum_squared_error(Isa::SCALAR, &a, &b);
            let exact = a.iter().zip(&b).fold((0.0, 0.0), |(error, signal), (&a, &b)| {
                let (a, b) = (f64::from(a), f64::from(b));
                (error + (a - b).powi(2), signal + a.powi(2))
            });
            prop_assert!((scalar.0 - exact.0).abs() <= 1e-13 * exact.0 && (scalar.1 - exact.1).abs() <= 1e-13 * exact.1);
            for isa in Isa::available() {
                prop_assert_eq!(sum_squared_error(isa, &a, &b), scalar, "{}", isa);
            }
        }
    }
}
