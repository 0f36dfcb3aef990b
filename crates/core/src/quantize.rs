//! The scalar specification of every float-to-integer conversion.

use crate::{QMAX, QMIN, QuantParams, WeightBits};

/// `1.5 * 2^23`: between `2^23` and `2^24` an f32 has no fraction, so that adding this rounds what is within `±2^22`, half to even,
/// and leaves the integer in the low bits.
pub const ROUNDER: f32 = 12_582_912.0;

/// `clamp(round(r / scale + zero_point), -128, 127)` in f32, rounding half to even.
///
/// The zero point is added before rounding, as `compressed-tensors` does it (`_quantize`), whose arithmetic those who
/// load the result will run; adding it afterwards is the same but for halves and for the digits that the sum rounds off.
/// For the same reason a division stays a division: where the scale is `absmax / 127.5`, the largest magnitude lies on a
/// rounding boundary, and the product with a reciprocal falls on its other side too often.
///
/// Infinities saturate; NaN gives -128, so that the function is total and vector code can match it, but no caller lets
/// NaN come this far.
#[inline]
pub fn quantize(r: f32, params: QuantParams) -> i8 {
    let steps = r / params.scale + f32::from(params.zero_point);
    // Clamping before rounding equals clamping after: the bounds are integers and rounding is monotone. `max` first:
    // f32::max(NaN, x) is x, as is MAXPS with x as its second operand.
    let steps = steps.max(QMIN as f32).min(QMAX as f32);
    // As `round_ties_even`, which is a call into the C library where the target lacks the instruction.
    ((steps + ROUNDER) - ROUNDER) as i8
}

/// A weight of so many bits: `clamp(round(w / scale), -2^(bits - 1), 2^(bits - 1) - 1)`, rounding half to even.
#[inline]
pub fn quantize_weight(w: f32, scale: f32, bits: WeightBits) -> i8 {
    let (low, high) = bits.range();
    quantize(w, QuantParams { scale, zero_point: 0 }).clamp(low, high)
}

/// `(q - zero_point) * scale`.
#[inline]
pub fn dequantize(q: i8, params: QuantParams) -> f32 {
    (q as i32 - params.zero_point as i32) as f32 * params.scale
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn halves_round_to_even_and_ends_saturate() {
        let unit = QuantParams { scale: 1.0, zero_point: 0 };
        let cases = [
            (0.5, 0),
            (1.5, 2),
            (2.5, 2),
            (-0.5, 0),
            (-1.5, -2),
            (127.4, 127),
            (127.6, 127),
            (-128.4, -128),
            (-1e30, -128),
            (f32::INFINITY, 127),
            (f32::NEG_INFINITY, -128),
            (f32::NAN, -128),
        ];
        for (r, q) in cases {
            assert_eq!(quantize(r, unit), q, "{r}");
        }
    }

    proptest! {
        #[test]
        fn rounding_is_half_to_even(r in -130f32..130.0, halves in -260i32..=260) {
            let unit = QuantParams { scale: 1.0, zero_point: 0 };
            for r in [r, halves as f32 / 2.0, (halves as f32 / 2.0).next_up(), (halves as f32 / 2.0).next_down()] {
                prop_assert_eq!(quantize(r, unit), r.round_ties_even() as i8);
            }
        }

        #[test]
        fn every_integer_survives_the_round_trip(q: i8, z: i8, scale in 1e-20f32..1e20) {
            let params = QuantParams { scale, zero_point: z };
            prop_assert_eq!(quantize(dequantize(q, params), params), q);
        }

        #[test]
        fn quantize_is_monotone(a: f32, b: f32, z: i8, scale in 1e-6f32..1e6) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            let params = QuantParams { scale, zero_point: z };
            prop_assert!(quantize(a.min(b), params) <= quantize(a.max(b), params));
        }

        #[test]
        fn the_zero_point_shifts_by_whole_steps(r in -1e3f32..1e3, z: i8) {
            // Apart from the digits that the sum rounds off, and from halves, where evenness decides.
            prop_assume!((r.fract().abs() - 0.5).abs() > 1e-3);
            let shifted = r.round() as i32 + i32::from(z);
            let q = quantize(r, QuantParams { scale: 1.0, zero_point: z });
            prop_assert_eq!(i32::from(q), shifted.clamp(QMIN, QMAX));
        }

        #[test]
        fn symmetric_quantisation_is_odd_where_it_does_not_saturate(r in -127f32..127.0) {
            let unit = QuantParams { scale: 1.0, zero_point: 0 };
            prop_assert_eq!(quantize(-r, unit), -quantize(r, unit));
        }
    }
}
