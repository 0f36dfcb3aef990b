//! The scalar specification of every float-to-integer conversion.

use crate::{QMAX, QMIN, QuantParams};

/// `clamp(round(r / scale) + zero_point, -128, 127)`, rounding half to even.
///
/// This is the specification for weights and for activations with static parameters. Infinities saturate; NaN gives
/// -128, so that the function is total and vector code can match it, but no caller lets NaN come this far.
#[inline]
pub fn quantize(r: f32, params: QuantParams) -> i8 {
    round_and_shift(r / params.scale, params.zero_point)
}

/// As [`quantize`], multiplying by `1 / scale` rounded to f32.
///
/// This is the specification for dynamic activations, whose scale is known only once the row has been read: one
/// division per row, not one per element. The result may differ from [`quantize`] by one where `r / scale` is close to
/// a half.
#[inline]
pub fn quantize_with_reciprocal(r: f32, reciprocal: f32, zero_point: i8) -> i8 {
    round_and_shift(r * reciprocal, zero_point)
}

/// Clamping before rounding equals clamping after: the bounds are integers and rounding is monotone.
#[inline]
fn round_and_shift(steps: f32, zero_point: i8) -> i8 {
    let z = zero_point as i32;
    // `max` first: f32::max(NaN, x) is x, as is MAXPS with x as its second operand.
    let clamped = steps.max((QMIN - z) as f32).min((QMAX - z) as f32);
    (clamped.round_ties_even() as i32 + z) as i8
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
        fn the_reciprocal_differs_by_one_at_most(r in -1e4f32..1e4, z: i8, scale in 1e-3f32..1e3) {
            let exact = quantize(r, QuantParams { scale, zero_point: z });
            let fast = quantize_with_reciprocal(r, 1.0 / scale, z);
            prop_assert!((exact as i32 - fast as i32).abs() <= 1);
        }

        #[test]
        fn symmetric_quantisation_is_odd_where_it_does_not_saturate(r in -127f32..127.0) {
            let unit = QuantParams { scale: 1.0, zero_point: 0 };
            prop_assert_eq!(quantize(-r, unit), -quantize(r, unit));
        }
    }
}
