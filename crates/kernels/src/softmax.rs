//! Softmax.

use crate::Isa;
use crate::activation::exp_nonpositive;
use crate::simd::{Kernel, LANES, Simd};

/// Replaces each row `v` of `x`, `[rows, columns]`, by `exp(scale * v) / sum(exp(scale * v))`.
///
/// The largest `scale * v` is taken off first, so nothing overflows. A value that lies `d` below it has the relative
/// error `1e-6 + 1e-7 * d`, and more than 87.3 below it is exactly 0, as is negative infinity (a mask). A row with NaN or
/// positive infinity, or with nothing but negative infinity, becomes NaN. `scale` is positive and finite.
pub fn softmax_rows(isa: Isa, x: &mut [f32], columns: usize, scale: f32) {
    assert!(columns > 0, "a row has at least one column");
    assert!(x.len().is_multiple_of(columns), "`x` is [rows, columns]");
    assert!(scale > 0.0 && scale.is_finite(), "`scale` is positive and finite");
    isa.run(Softmax { x, columns, scale });
}

struct Softmax<'a> {
    x: &'a mut [f32],
    columns: usize,
    scale: f32,
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let scale = s.splat(self.scale);
        for row in self.x.chunks_exact_mut(self.columns) {
            let mut largest = s.splat(f32::NEG_INFINITY);
            for v in row.chunks(LANES) {
                largest = s.max(s.load_some(v, f32::NEG_INFINITY), largest);
            }
            // Rounded, but common to the whole row: it cancels.
            let shift = s.splat(-(s.largest(largest) * self.scale));
            let mut sum = s.splat(0.0);
            for v in row.chunks_mut(LANES) {
                let e = exp_nonpositive(s, s.mul_add(s.load_some(v, f32::NEG_INFINITY), scale, shift));
                s.store_some(e, v);
                sum = s.add(sum, e);
            }
            let factor = s.splat(1.0 / s.sum(sum));
            for v in row.chunks_mut(LANES) {
                s.store_some(s.mul(s.load_some(v, 0.0), factor), v);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zeropoint_core::Rng;

    #[test]
    fn softmax_keeps_its_error_against_f64() {
        let mut rng = Rng::new(7);
        for columns in [1, 2, 15, 16, 17, 31, 128, 129, 2048] {
            for (spread, scale) in [(1.0, 1.0), (30.0, 0.125), (100.0, 1.0), (1e-3, 1.0), (1e30, 1e-29)] {
                let x: Vec<f32> = (0..2 * columns).map(|_| (spread * rng.normal()) as f32).collect();
                let mut first: Option<Vec<f32>> = None;
                for isa in Isa::available() {
                    let mut out = x.clone();
                    softmax_rows(isa, &mut out, columns, scale);
                    for (x, out) in x.chunks_exact(columns).zip(out.chunks_exact(columns)) {
                        let scaled: Vec<f64> = x.iter().map(|&x| f64::from(x) * f64::from(scale)).collect();
                        let largest = scaled.iter().copied().fold(f64::MIN, f64::max);
                        let sum: f64 = scaled.iter().map(|x| (x - largest).exp()).sum();
                        for (x, &out) in scaled.iter().zip(out) {
                            let exact = (x - largest).exp() / sum;
                            let bound = exact * (1e-6 + 1e-7 * (largest - x)) + f64::from(f32::MIN_POSITIVE);
                            let error = (f64::from(out) - exact).abs();
                            assert!(
                                error <= bound,
                                "{isa}: {columns} columns +- {spread}: {out:e} for {exact:e}"
                            );
                        }
                    }
                    assert_eq!(
                        first.get_or_insert_with(|| out.clone()),
                        &out,
                        "{isa} has the bits of scalar"
                    );
                }
            }
        }
    }

    #[test]
    fn masked_values_weigh_nothing_and_rows_without_a_softmax_are_nan() {
        for isa in Isa::available() {
            for mask in [f32::NEG_INFINITY, f32::MIN, -1e9] {
                let mut x = [0.0, mask, 0.0, mask];
                softmax_rows(isa, &mut x, 4, 0.5);
                assert_eq!(x, [0.5, 0.0, 0.5, 0.0], "{isa}: {mask}");
            }
            for row in [[f32::NAN, 1.0], [1.0, f32::NAN], [f32::INFINITY, 1.0], [f32::NEG_INFINITY; 2]] {
                let mut x = row;
                softmax_rows(isa, &mut x, 2, 1.0);
                assert!(x.iter().all(|x| x.is_nan()), "{isa}: {row:?} became {x:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn rows_sum_to_one(x in prop::collection::vec(-1e3f32..1e3, 1..200), scale in 1e-3f32..10.0) {
            for isa in Isa::available() {
                let mut out = x.clone();
                softmax_rows(isa, &mut out, x.len(), scale);
                let sum: f64 = out.iter().map(|&p| f64::from(p)).sum();
                prop_assert!((sum - 1.0).abs() < 1e-6, "{}: {}", isa, sum);
            }
        }
    }
}
