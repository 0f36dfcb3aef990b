//! Scale and zero point, and how a range becomes them.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{QMAX, QMIN, Symmetry, WeightBits};

/// Scales below the smallest normal f32 are replaced by the machine epsilon, as `compressed-tensors` does for zero: a
/// subnormal scale has lost most of its digits.
pub const SCALE_FLOOR: f32 = f32::MIN_POSITIVE;

/// Why a range gives no quantisation parameters.
#[derive(Debug, Clone, Copy, PartialEq, Error)]
pub enum ParamsError {
    /// An end of the range is NaN or infinite.
    #[error("the range [{min}, {max}] is not finite")]
    NotFinite {
        /// Lower end as given.
        min: f32,
        /// Upper end as given.
        max: f32,
    },
    /// The lower end is above the upper one.
    #[error("the range [{min}, {max}] is empty: its lower end is above its upper end")]
    Empty {
        /// Lower end as given.
        min: f32,
        /// Upper end as given.
        max: f32,
    },
}

/// Parameters of the affine map `r' = (q - zero_point) * scale` between INT8 and real numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct QuantParams {
    /// Real distance between two neighbouring integers; positive and normal.
    pub scale: f32,
    /// The integer that stands for real 0.0; 0 in symmetric quantisation.
    pub zero_point: i8,
}

impl QuantParams {
    /// Parameters that cover the real range `[min, max]`, widened to include 0.
    ///
    /// Symmetric: `scale = max(|min|, |max|) / 127.5`, zero point 0. Asymmetric: `scale = (max - min) / 255`,
    /// `zero_point = clamp(round(-128 - min / scale))`. These are the formulas of `compressed-tensors`
    /// (`calculate_qparams`), evaluated in f32; rounding is half to even.
    pub fn from_range(min: f32, max: f32, symmetry: Symmetry) -> Result<Self, ParamsError> {
        if !(min.is_finite() && max.is_finite()) {
            return Err(ParamsError::NotFinite { min, max });
        }
        if min > max {
            return Err(ParamsError::Empty { min, max });
        }
        let (min, max) = (min.min(0.0), max.max(0.0));
        Ok(match symmetry {
            Symmetry::Symmetric => Self { scale: usable_scale(max.max(-min) / 127.5), zero_point: 0 },
            Symmetry::Asymmetric => {
                // Halved before the difference, so that the widest finite range does not overflow.
                let scale = usable_scale((max / 2.0 - min / 2.0) / 127.5);
                let zero_point = (QMIN as f32 - min / scale).round_ties_even();
                Self { scale, zero_point: zero_point.clamp(QMIN as f32, QMAX as f32) as i8 }
            }
        })
    }

    /// Symmetric parameters for values of magnitude up to `absmax`.
    pub fn symmetric(absmax: f32) -> Result<Self, ParamsError> {
        Self::from_range(-absmax.abs(), absmax.abs(), Symmetry::Symmetric)
    }

    /// The scale of a weight of so many bits with magnitudes up to `absmax`: `absmax / (2^bits - 1) * 2`, as
    /// `calculate_qparams` of `compressed-tensors` has it. Of INT8 that of [`QuantParams::symmetric`].
    pub fn weight_scale(absmax: f32, bits: WeightBits) -> Result<f32, ParamsError> {
        let absmax = absmax.abs();
        if !absmax.is_finite() {
            return Err(ParamsError::NotFinite { min: -absmax, max: absmax });
        }
        Ok(usable_scale(absmax / bits.half_range()))
    }

    /// The real interval that is represented without saturation: `[(-128 - z) * s, (127 - z) * s]`.
    pub fn representable(self) -> (f32, f32) {
        let z = self.zero_point as f32;
        ((QMIN as f32 - z) * self.scale, (QMAX as f32 - z) * self.scale)
    }
}

fn usable_scale(scale: f32) -> f32 {
    if scale < SCALE_FLOOR { f32::EPSILON } else { scale }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{dequantize, quantize};
    use proptest::prelude::*;

    #[test]
    fn ranges_of_the_specification() {
        struct Case {
            range: (f32, f32),
            symmetry: Symmetry,
            scale: f32,
            zero_point: i8,
        }
        use Symmetry::{Asymmetric, Symmetric};
        let cases = [
            Case { range: (-127.5, 10.0), symmetry: Symmetric, scale: 1.0, zero_point: 0 },
            Case { range: (0.0, 255.0), symmetry: Asymmetric, scale: 1.0, zero_point: -128 },
            Case { range: (-255.0, 0.0), symmetry: Asymmetric, scale: 1.0, zero_point: 127 },
            Case { range: (-128.0, 127.0), symmetry: Asymmetric, scale: 1.0, zero_point: 0 },
            // A range that leaves zero out is widened to hold it.
            Case { range: (51.0, 255.0), symmetry: Asymmetric, scale: 1.0, zero_point: -128 },
            Case { range: (0.0, 0.0), symmetry: Symmetric, scale: f32::EPSILON, zero_point: 0 },
            Case { range: (0.0, 0.0), symmetry: Asymmetric, scale: f32::EPSILON, zero_point: -128 },
        ];
        for case in cases {
            let params = QuantParams::from_range(case.range.0, case.range.1, case.symmetry).unwrap();
            assert_eq!(
                params,
                QuantParams { scale: case.scale, zero_point: case.zero_point },
                "{:?}",
                case.range
            );
        }
    }

    #[test]
    fn scales_of_weights_have_the_range_of_their_bits() {
        assert_eq!(QuantParams::weight_scale(15.0, WeightBits::Four), Ok(2.0));
        assert_eq!(QuantParams::weight_scale(0.0, WeightBits::Four), Ok(f32::EPSILON));
        for absmax in [0.0, 1e-30, 0.3, 77.7, f32::MAX] {
            let eight = QuantParams::symmetric(absmax).unwrap().scale;
            assert_eq!(QuantParams::weight_scale(absmax, WeightBits::Eight), Ok(eight));
        }
        assert!(QuantParams::weight_scale(f32::NAN, WeightBits::Eight).is_err());
    }

    #[test]
    fn bad_ranges_are_refused() {
        for (min, max) in [(f32::NAN, 1.0), (0.0, f32::INFINITY), (2.0, 1.0)] {
            assert!(QuantParams::from_range(min, max, Symmetry::Symmetric).is_err());
        }
    }

    proptest! {
        #[test]
        fn error_inside_the_range_is_at_most_one_step_at_the_ends_and_half_elsewhere(
            a in -1e6f32..1e6, b in -1e6f32..1e6, t in 0f32..=1.0, asymmetric: bool,
        ) {
            let symmetry = if asymmetric { Symmetry::Asymmetric } else { Symmetry::Symmetric };
            let (min, max) = (a.min(b), a.max(b));
            let params = QuantParams::from_range(min, max, symmetry).unwrap();
            let x = (min + (max - min) * t).clamp(min, max);
            let error = (dequantize(quantize(x, params), params) - x).abs();
            let (low, high) = params.representable();
            let slack = params.scale * 1e-3 + x.abs() * 1e-6;
            if (low..=high).contains(&x) {
                prop_assert!(error <= params.scale * 0.5 + slack);
            } else {
                prop_assert!(error <= params.scale + slack);
            }
        }

        #[test]
        fn zero_is_exact(a in -1e30f32..1e30, b in -1e30f32..1e30, asymmetric: bool) {
            let symmetry = if asymmetric { Symmetry::Asymmetric } else { Symmetry::Symmetric };
            let params = QuantParams::from_range(a.min(b), a.max(b), symmetry).unwrap();
            prop_assert_eq!(dequantize(quantize(0.0, params), params), 0.0);
        }
    }
}
