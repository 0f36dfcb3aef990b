//! Choosing the range of a static activation from its statistics.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeropoint_core::{QuantParams, Symmetry};

use crate::density::Density;
use crate::{ActivationStatistics, ObserveError};

/// How the range of a static activation is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RangeObserver {
    /// From the smallest to the largest value: nothing saturates.
    #[default]
    MinMax,
    /// Leaves out the outermost values, `100 - percentile` per cent of them: symmetric ranges reach up to that
    /// percentile of the magnitudes, asymmetric ones leave out half of it at each end. The convention for asymmetric
    /// ranges is that of ONNX Runtime's percentile calibrator, `(100 - percentile) / 200` at each end; for symmetric
    /// ones it is that of histograms of magnitudes, as in `TensorRT`'s tools.
    Percentile {
        /// More than 50, at most 100 (which is [`RangeObserver::MinMax`]); usual are 99.9 to 99.9999.
        percentile: f64,
    },
    /// The range of least [`expected_error`](crate::expected_error), trading rounding against saturation.
    ///
    /// The criterion is that of Nagel et al., "A White Paper on Neural Network Quantization" (2021), section 3.1, and
    /// of Choukroun et al., "Low-bit Quantization of Neural Networks for Efficient Inference" (2019); the search is
    /// over the clipped fractions of both ends, from coarse to fine. Never worse than min-max by that error.
    Mse,
}

impl fmt::Display for RangeObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MinMax => f.write_str("min-max"),
            Self::Percentile { percentile } => write!(f, "percentile {percentile}"),
            Self::Mse => f.write_str("mse"),
        }
    }
}

impl RangeObserver {
    /// Whether the settings are allowed.
    pub fn validate(&self) -> Result<(), ObserveError> {
        match *self {
            Self::Percentile { percentile } if !(percentile > 50.0 && percentile <= 100.0) => {
                Err(ObserveError::Percentile { percentile })
            }
            _ => Ok(()),
        }
    }

    /// The range `(min, max)` that quantisation shall cover: finite, with `min <= 0 <= max`, `(-a, a)` if symmetric,
    /// never wider than the observed values and zero.
    pub fn range(
        &self,
        statistics: &ActivationStatistics,
        symmetry: Symmetry,
    ) -> Result<(f32, f32), ObserveError> {
        self.validate()?;
        let density = Density::new(statistics).ok_or(ObserveError::Empty)?;
        let (min, max) = match symmetry {
            Symmetry::Symmetric => (-statistics.absmax(), statistics.absmax()),
            Symmetry::Asymmetric => (statistics.min().min(0.0), statistics.max().max(0.0)),
        };
        let (min, max) = match *self {
            Self::MinMax => (min, max),
            Self::Percentile { percentile } => {
                let cut = 1.0 - percentile / 100.0;
                let quantile = |q| statistics.quantile(q).unwrap_or(0.0);
                match symmetry {
                    Symmetry::Symmetric => {
                        let absmax = statistics.absolute_quantile(1.0 - cut).unwrap_or(0.0);
                        (-absmax, absmax)
                    }
                    Symmetry::Asymmetric => {
                        (quantile(cut / 2.0).clamp(min, 0.0), quantile(1.0 - cut / 2.0).clamp(0.0, max))
                    }
                }
            }
            Self::Mse => Search { density, min, max, symmetry }.best(),
        };
        Ok((min + 0.0, max + 0.0)) // no -0.0
    }
}

/// The search of [`RangeObserver::Mse`]: over `(l, h)` in `[0, 1]^2`, for the range `[l * min, h * max]`.
struct Search {
    density: Density,
    min: f32,
    max: f32,
    symmetry: Symmetry,
}

/// A pair of fractions and its error.
#[derive(Clone, Copy)]
struct Candidate {
    low: f64,
    high: f64,
    error: f64,
}

/// Fractions tried first are spaced by 1/32 to 1/16 of themselves when there is one end to choose, by 1/8 to 1/4 when
/// there are two. The refinements below bridge the gaps: the error is smooth apart from small ripples.
const STEPS_PER_OCTAVE_ONE: u32 = 16;
const STEPS_PER_OCTAVE_TWO: u32 = 4;

/// Fractions go down to 2^-9. Less would leave a handful of bins to all 256 integers.
const OCTAVES: i32 = 9;

impl Search {
    fn best(&self) -> (f32, f32) {
        let best = match self.symmetry {
            Symmetry::Symmetric => self.one_end(|f| (f, f)),
            Symmetry::Asymmetric if self.min == 0.0 => self.one_end(|f| (1.0, f)),
            Symmetry::Asymmetric if self.max == 0.0 => self.one_end(|f| (f, 1.0)),
            Symmetry::Asymmetric => self.two_ends(),
        };
        self.range(best.low, best.high)
    }

    fn range(&self, low: f64, high: f64) -> (f32, f32) {
        ((f64::from(self.min) * low) as f32, (f64::from(self.max) * high) as f32)
    }

    fn try_at(&self, low: f64, high: f64) -> Candidate {
        let (min, max) = self.range(low, high);
        // A range inside finite ones and around zero always has parameters.
        let error = QuantParams::from_range(min, max, self.symmetry)
            .map_or(f64::INFINITY, |params| self.density.expected_error(params).mean_squared_error);
        Candidate { low, high, error }
    }

    /// The wider range stays where a narrower one is no better.
    fn keep_better(&self, best: &mut Candidate, low: f64, high: f64) {
        let candidate = self.try_at(low, high);
        if candidate.error < best.error {
            *best = candidate;
        }
    }

    /// Searches over one fraction; `ends` makes it the fractions of both ends.
    fn one_end(&self, ends: impl Fn(f64) -> (f64, f64)) -> Candidate {
        let mut best = self.try_at(1.0, 1.0);
        let mut visit = |fraction: f64| {
            let (low, high) = ends(fraction);
            self.keep_better(&mut best, low, high);
            // The end that is not searched stays at 1.
            best.low.min(best.high)
        };
        let mut centre = 1.0;
        for fraction in octave_grid(STEPS_PER_OCTAVE_ONE) {
            centre = visit(fraction);
        }
        let mut spacing = centre / f64::from(STEPS_PER_OCTAVE_ONE);
        for _ in 0..3 {
            spacing /= 4.0;
            let around = centre;
            for i in neighbours() {
                centre = visit((around + i * spacing).min(1.0));
            }
        }
        best
    }

    fn two_ends(&self) -> Candidate {
        let mut best = self.try_at(1.0, 1.0);
        let grid: Vec<f64> = octave_grid(STEPS_PER_OCTAVE_TWO).chain([0.0]).collect();
        for &low in &grid {
            for &high in &grid {
                self.keep_better(&mut best, low, high);
            }
        }
        // One end after the other, at a spacing that shrinks once neither gains.
        let mut spacing = 1.0 / f64::from(STEPS_PER_OCTAVE_TWO);
        for _ in 0..5 {
            spacing /= 3.0;
            for _ in 0..4 {
                let before = best.error;
                let centre = best;
                for i in neighbours() {
                    self.keep_better(&mut best, (centre.low * (1.0 + i * spacing)).min(1.0), centre.high);
                }
                let centre = best;
                for i in neighbours() {
                    self.keep_better(&mut best, centre.low, (centre.high * (1.0 + i * spacing)).min(1.0));
                }
                // Both together: the valley of equal scales runs along the diagonal.
                let centre = best;
                for i in neighbours() {
                    let factor = 1.0 + i * spacing;
                    self.keep_better(
                        &mut best,
                        (centre.low * factor).min(1.0),
                        (centre.high * factor).min(1.0),
                    );
                }
                if best.error >= before {
                    break;
                }
            }
        }
        best
    }
}

/// Fractions from 1 down to `2^-OCTAVES`, evenly spaced within each octave. All are exact in binary, so that no
/// platform's `pow` decides a range.
fn octave_grid(steps: u32) -> impl Iterator<Item = f64> {
    (0..OCTAVES).flat_map(move |octave| {
        let top = 1.0 / (1u64 << octave) as f64;
        (0..steps).map(move |i| top * (1.0 - f64::from(i) / f64::from(2 * steps)))
    })
}

/// Four points on each side, in units of the spacing.
fn neighbours() -> impl Iterator<Item = f64> {
    [4.0, 3.0, 2.0, 1.0, -1.0, -2.0, -3.0, -4.0].into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clipped_fraction, expected_error, measured_error};
    use proptest::prelude::*;
    use zeropoint_core::Rng;
    use zeropoint_core::Symmetry::{Asymmetric, Symmetric};
    use zeropoint_kernels::Isa;

    fn observed(x: &[f32]) -> ActivationStatistics {
        let mut statistics = ActivationStatistics::new(1);
        statistics.observe(Isa::SCALAR, x).unwrap();
        statistics
    }

    fn params(range: (f32, f32), symmetry: Symmetry) -> QuantParams {
        QuantParams::from_range(range.0, range.1, symmetry).unwrap()
    }

    fn normal(count: usize, seed: u64) -> Vec<f32> {
        let mut rng = Rng::new(seed);
        (0..count).map(|_| rng.normal() as f32).collect()
    }

    /// As GELU leaves them: a short side of small values, a long one of large.
    fn gelu(count: usize) -> Vec<f32> {
        normal(count, 5).into_iter().map(|x| 2.0 * x / (1.0 + (-3.4 * x).exp())).collect()
    }

    fn heavy_tailed(count: usize) -> Vec<f32> {
        normal(count, 6).into_iter().map(|x| x * x * x * x.abs().exp()).collect()
    }

    const PERCENTILE: RangeObserver = RangeObserver::Percentile { percentile: 99.9 };

    #[test]
    fn an_outlier_stretches_min_max_and_not_the_percentile() {
        let mut x = normal(20_000, 1);
        x[77] = 1000.0;
        let statistics = observed(&x);
        assert_eq!(RangeObserver::MinMax.range(&statistics, Symmetric), Ok((-1000.0, 1000.0)));
        for symmetry in [Symmetric, Asymmetric] {
            let (min, max) = PERCENTILE.range(&statistics, symmetry).unwrap();
            // 99.9% of |N(0, 1)| lie below 3.29; one bin is 1/4.
            assert!((3.0..3.6).contains(&max) && (-3.6..-3.0).contains(&min), "{symmetry} [{min}, {max}]");
        }
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_values_to_one_bin() {
        let mut x = heavy_tailed(5_000);
        let statistics = observed(&x);
        let bin = statistics.histogram().bin_width() as f32;
        for percentile in [60.0, 90.0, 99.0, 99.9, 100.0] {
            let rank = |q: f64| ((q * 5_000.0).ceil() as usize).max(1) - 1;
            let observer = RangeObserver::Percentile { percentile };
            x.sort_by(f32::total_cmp);
            let (min, max) = observer.range(&statistics, Asymmetric).unwrap();
            let cut = (100.0 - percentile) / 200.0;
            assert!((min - x[rank(cut)].min(0.0)).abs() <= bin, "{percentile}");
            assert!((max - x[rank(1.0 - cut)].max(0.0)).abs() <= bin, "{percentile}");
            x.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
            let (low, high) = observer.range(&statistics, Symmetric).unwrap();
            assert_eq!(low, -high);
            assert!((high - x[rank(percentile / 100.0)].abs()).abs() <= bin, "{percentile}");
        }
    }

    /// The best error over a fine grid of ranges, on the values themselves.
    fn brute_force(x: &[f32], symmetry: Symmetry) -> f64 {
        let statistics = observed(x);
        let (min, max) = RangeObserver::MinMax.range(&statistics, symmetry).unwrap();
        let steps = 60;
        let mut best = f64::INFINITY;
        for high in 1..=steps {
            let lows = if symmetry.is_symmetric() || min == 0.0 { high..=high } else { 1..=steps };
            for low in lows {
                let fraction = |i: i32| i as f32 / steps as f32;
                let params = params((min * fraction(low), max * fraction(high)), symmetry);
                best = best.min(measured_error(x, params).mean_squared_error);
            }
        }
        best
    }

    #[test]
    fn the_mse_range_is_near_the_best_of_a_fine_grid_on_the_values() {
        // 3%: the histogram spreads each value over 1/16 of a min-max step, which blurs the ripples of a small
        // sample's error, and the grid itself is not the optimum.
        let relu: Vec<f32> = normal(2_000, 2).into_iter().map(|x| x.max(0.0)).collect();
        for (name, x) in [
            ("normal", normal(2_000, 3)),
            ("relu", relu),
            ("gelu", gelu(2_000)),
            ("heavy", heavy_tailed(2_000)),
        ] {
            for symmetry in [Symmetric, Asymmetric] {
                let range = RangeObserver::Mse.range(&observed(&x), symmetry).unwrap();
                let chosen = measured_error(&x, params(range, symmetry)).mean_squared_error;
                let best = brute_force(&x, symmetry);
                assert!(chosen <= 1.03 * best, "{name} {symmetry}: {chosen:e} against {best:e}, {range:?}");
            }
        }
    }

    #[test]
    fn mse_clips_a_rare_outlier() {
        // One value of 100 among a million normal ones. Kept, the step is 0.78 and the error 0.78^2 / 12 = 0.05.
        // Clipped at 25, the step is 0.2 and the errors are 0.003 and 75^2 / 10^6 = 0.006.
        let mut x = normal(1_000_000, 4);
        x[1] = 100.0;
        let statistics = observed(&x);
        for symmetry in [Symmetric, Asymmetric] {
            let range = RangeObserver::Mse.range(&statistics, symmetry).unwrap();
            assert!((10.0..50.0).contains(&range.1), "{range:?}");
            // An asymmetric range may also give up a little of the other tail.
            let clipped = clipped_fraction(&statistics, params(range, symmetry));
            assert!((0.99e-6..1e-3).contains(&clipped), "{clipped}");
            assert!(measured_error(&x, params(range, symmetry)).mean_squared_error < 0.012);
        }
    }

    #[test]
    fn constant_zero_and_one_sided_values_have_ranges() {
        let relu: Vec<f32> = normal(500, 7).into_iter().map(|x| x.max(0.0)).collect();
        for observer in [RangeObserver::MinMax, PERCENTILE, RangeObserver::Mse] {
            assert_eq!(observer.range(&observed(&[0.0; 9]), Asymmetric), Ok((0.0, 0.0)), "{observer}");
            let zero = observer.range(&observed(&[0.0; 9]), Symmetric).unwrap();
            assert_eq!(params(zero, Symmetric).zero_point, 0);
            for constant in [3.0f32, -3.0] {
                let statistics = observed(&[constant; 50]);
                for symmetry in [Symmetric, Asymmetric] {
                    let range = observer.range(&statistics, symmetry).unwrap();
                    let error = measured_error(&[constant], params(range, symmetry));
                    assert!(error.mean_squared_error.sqrt() < 0.013, "{observer} {symmetry} {constant}");
                }
            }
            let (min, max) = observer.range(&observed(&relu), Asymmetric).unwrap();
            assert!(min == 0.0 && max > 1.0, "{observer} [{min}, {max}]");
            assert_eq!(params((min, max), Asymmetric).zero_point, -128);
        }
    }

    #[test]
    fn what_has_no_range_says_why() {
        let some = observed(&[1.0]);
        for percentile in [50.0, 0.0, -1.0, 100.1, f64::NAN] {
            let error = RangeObserver::Percentile { percentile }.range(&some, Symmetric).unwrap_err();
            assert!(matches!(error, ObserveError::Percentile { .. }), "{percentile}");
        }
        for observer in [RangeObserver::MinMax, PERCENTILE, RangeObserver::Mse] {
            let empty = ActivationStatistics::new(1);
            assert_eq!(observer.range(&empty, Symmetric), Err(ObserveError::Empty));
        }
    }

    #[test]
    fn the_settings_have_a_text_form() {
        let cases = [
            (RangeObserver::MinMax, r#"{"kind":"min-max"}"#, "min-max"),
            (PERCENTILE, r#"{"kind":"percentile","percentile":99.9}"#, "percentile 99.9"),
            (RangeObserver::Mse, r#"{"kind":"mse"}"#, "mse"),
        ];
        for (observer, json, display) in cases {
            assert_eq!(serde_json::to_string(&observer).unwrap(), json);
            assert_eq!(serde_json::from_str::<RangeObserver>(json).unwrap(), observer);
            assert_eq!(observer.to_string(), display);
        }
        assert!(serde_json::from_str::<RangeObserver>(r#"{"kind":"percentile"}"#).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn ranges_are_inside_the_values_and_mse_is_never_worse_than_min_max(
            x in prop::collection::vec(-1f32..1.0, 1..60), shift in -2f32..2.0, exponent in -120i32..120,
            asymmetric: bool, percentile in 51f64..100.0,
        ) {
            let symmetry = Symmetry::from_flag(!asymmetric);
            let unit = crate::histogram::power_of_two(exponent) as f32;
            let x: Vec<f32> = x.iter().map(|x| (x * x * x + shift) * unit).collect();
            let statistics = observed(&x);
            let widest = RangeObserver::MinMax.range(&statistics, symmetry).unwrap();
            for observer in [RangeObserver::Percentile { percentile }, RangeObserver::Mse] {
                let (min, max) = observer.range(&statistics, symmetry).unwrap();
                prop_assert!(widest.0 <= min && min <= 0.0 && 0.0 <= max && max <= widest.1);
                prop_assert!(asymmetric || min == -max);
            }
            let error = |range| expected_error(&statistics, params(range, symmetry)).mean_squared_error;
            let mse = RangeObserver::Mse.range(&statistics, symmetry).unwrap();
            prop_assert!(error(mse) <= error(widest));
        }
    }
}
