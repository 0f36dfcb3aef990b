//! How large the error of given quantisation parameters is, on a site's histogram or on the values themselves.

use zeropoint_core::{QMAX, QMIN, QuantParams, dequantize, quantize};

use crate::ActivationStatistics;

/// Mean squared error of quantising and dequantising, beside the mean square of what was quantised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpectedError {
    /// `E[(x - x')^2]`, rounding and saturation together, in the square of the values' unit.
    pub mean_squared_error: f64,
    /// `E[x^2]`, in the same unit.
    pub signal: f64,
}

impl ExpectedError {
    /// [`sqnr_db`] of the two.
    pub fn sqnr_db(self) -> f64 {
        sqnr_db(self.signal, self.mean_squared_error)
    }
}

/// Signal to quantisation noise ratio in decibels, `10 log10(signal / noise)`.
///
/// Without noise it is infinite, whatever the signal: callers that print or average must expect that. A signal of 0
/// under noise gives minus infinity.
pub fn sqnr_db(signal: f64, noise: f64) -> f64 {
    if noise == 0.0 { f64::INFINITY } else { 10.0 * (signal / noise).log10() }
}

/// The error that `params` would make on the observed values; 0 if there are none.
///
/// Values are taken to lie evenly within their bin, the outermost ones up to the exact minimum and maximum. A bin is
/// at most 1/16 of the quantisation step of a symmetric range that holds all values, and for such ranges the result is
/// within 2% of the measured error. Exact zeros, such as a `ReLU` leaves, are spread over their bin too: each is charged
/// at most a third of the squared bin width, where its true error is nothing.
pub fn expected_error(statistics: &ActivationStatistics, params: QuantParams) -> ExpectedError {
    Density::new(statistics).map_or(ExpectedError { mean_squared_error: 0.0, signal: 0.0 }, |density| {
        density.expected_error(params)
    })
}

/// The error that `params` makes on these very values, by the scalar specification; 0 if there are none.
pub fn measured_error(values: &[f32], params: QuantParams) -> ExpectedError {
    let (mut noise, mut signal) = (0.0, 0.0);
    for &x in values {
        let error = f64::from(dequantize(quantize(x, params), params)) - f64::from(x);
        noise += error * error;
        signal += f64::from(x) * f64::from(x);
    }
    let count = values.len().max(1) as f64;
    ExpectedError { mean_squared_error: noise / count, signal: signal / count }
}

/// The fraction, in `[0, 1]`, of observed values that saturate: that lie more than half a step outside
/// [`QuantParams::representable`] and so are further from their quantised value than rounding explains.
pub fn clipped_fraction(statistics: &ActivationStatistics, params: QuantParams) -> f64 {
    Density::new(statistics).map_or(0.0, |density| density.clipped_fraction(params))
}

/// The observed values as a piecewise uniform density with its moments summed up, so that the moments of any interval
/// cost two look-ups instead of a pass over the bins. Unit: one bin width.
#[derive(Debug)]
pub(crate) struct Density {
    /// Bin width in the values' unit.
    unit: f64,
    min: f64,
    max: f64,
    /// Index of the bin that holds `min`.
    first: i32,
    /// `below[i]`: moments of all values in bins before `first + i`; one more entry than bins, the last for all.
    below: Vec<Moments>,
}

/// Sums of 1, x and x^2.
#[derive(Debug, Clone, Copy, Default)]
struct Moments([f64; 3]);

impl Moments {
    /// Of `count` values spread evenly over `[a, b]`.
    fn uniform(count: f64, a: f64, b: f64) -> Self {
        Self([count, count * (a + b) / 2.0, count * (a * a + a * b + b * b) / 3.0])
    }

    fn plus(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }

    fn minus(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] - other.0[i]))
    }

    /// Sum of `(x - v)^2`.
    fn squared_distance(self, v: f64) -> f64 {
        let [count, sum, squares] = self.0;
        (squares - 2.0 * v * sum + v * v * count).max(0.0)
    }
}

impl Density {
    /// `None` if nothing was observed.
    pub(crate) fn new(statistics: &ActivationStatistics) -> Option<Self> {
        let histogram = statistics.histogram();
        let unit = histogram.bin_width();
        let mut filled = histogram.indexed().filter(|&(_, count)| count > 0).map(|(k, _)| k);
        let first = filled.next()?;
        let last = filled.next_back().unwrap_or(first);
        let mut density = Self {
            unit,
            min: f64::from(statistics.min()) / unit,
            max: f64::from(statistics.max()) / unit,
            first,
            below: vec![Moments::default()],
        };
        let mut sum = Moments::default();
        for (k, count) in histogram.indexed().filter(|(k, _)| (first..=last).contains(k)) {
            let (a, b) = density.bounds(k);
            sum = sum.plus(Moments::uniform(count as f64, a, b));
            density.below.push(sum);
        }
        Some(density)
    }

    /// Where the values of bin `k` lie.
    fn bounds(&self, k: i32) -> (f64, f64) {
        (self.min.max(k as f64), self.max.min((k + 1) as f64))
    }

    fn all(&self) -> Moments {
        self.below.last().copied().unwrap_or_default()
    }

    /// Moments of all values up to `t`.
    fn up_to(&self, t: f64) -> Moments {
        if t >= self.max {
            return self.all();
        }
        if t <= self.min {
            return Moments::default();
        }
        let k = t.floor() as i32;
        let i = (k - self.first) as usize;
        let (a, b) = self.bounds(k);
        let count = self.below[i + 1].0[0] - self.below[i].0[0];
        self.below[i].plus(Moments::uniform(count * (t - a) / (b - a), a, t))
    }

    /// `E[(x - x')^2]` in squared bin widths.
    fn squared_error(&self, params: QuantParams) -> f64 {
        let scale = f64::from(params.scale) / self.unit;
        let z = i32::from(params.zero_point);
        let mut below = Moments::default();
        let mut error = 0.0;
        for q in QMIN..=QMAX {
            // Rounding ties have no width, and the outermost integers take all that saturates.
            let upper = if q == QMAX { f64::INFINITY } else { ((q - z) as f64 + 0.5) * scale };
            let up_to = self.up_to(upper);
            error += up_to.minus(below).squared_distance((q - z) as f64 * scale);
            below = up_to;
        }
        error / self.all().0[0]
    }

    pub(crate) fn expected_error(&self, params: QuantParams) -> ExpectedError {
        let square = self.unit * self.unit;
        let [count, _, squares] = self.all().0;
        ExpectedError {
            mean_squared_error: self.squared_error(params) * square,
            signal: squares / count * square,
        }
    }

    fn clipped_fraction(&self, params: QuantParams) -> f64 {
        // A scale is rounded to f32: the end of a min-max range may miss its half step by a hair.
        const HALF_STEP: f64 = 0.5 + 1e-4;
        let scale = f64::from(params.scale) / self.unit;
        let z = i32::from(params.zero_point);
        let low = self.up_to(((QMIN - z) as f64 - HALF_STEP) * scale).0[0];
        let high = self.up_to(((QMAX - z) as f64 + HALF_STEP) * scale).0[0];
        let all = self.all().0[0];
        ((low + (all - high)) / all).clamp(0.0, 1.0)
    }
}

/// The bin width `2^exponent` never under- or overflows when squared: it stays within `2^-252..=2^232`.
const _: () = assert!(2 * crate::MIN_EXPONENT > -1022 && 2 * crate::MAX_EXPONENT < 1023);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::histogram::power_of_two;
    use proptest::prelude::*;
    use zeropoint_core::{Rng, Symmetry};
    use zeropoint_kernels::Isa;

    fn observed(x: &[f32]) -> ActivationStatistics {
        let mut statistics = ActivationStatistics::new(1);
        statistics.observe(Isa::SCALAR, x).unwrap();
        statistics
    }

    fn params(min: f32, max: f32, symmetry: Symmetry) -> QuantParams {
        QuantParams::from_range(min, max, symmetry).unwrap()
    }

    #[test]
    fn expected_and_measured_errors_agree_on_many_values() {
        let mut rng = Rng::new(11);
        let normal: Vec<f32> = (0..100_000).map(|_| rng.normal() as f32).collect();
        let relu: Vec<f32> = normal.iter().map(|x| x.max(0.0)).collect();
        for (x, range, symmetry) in [
            (&normal, (-4.5, 4.5), Symmetry::Symmetric),
            (&normal, (-2.0, 3.0), Symmetry::Asymmetric), // much saturation
            (&relu, (0.0, 4.5), Symmetry::Asymmetric),
            (&relu, (0.0, 1.0), Symmetry::Symmetric),
        ] {
            let params = params(range.0, range.1, symmetry);
            let (expected, measured) = (expected_error(&observed(x), params), measured_error(x, params));
            let relative = |a: f64, b: f64| (a / b - 1.0).abs();
            assert!(relative(expected.mean_squared_error, measured.mean_squared_error) < 0.02, "{range:?}");
            assert!(relative(expected.signal, measured.signal) < 0.001, "{range:?}");
        }
    }

    #[test]
    fn moments_between_the_ends_of_a_bin_are_those_of_an_even_density() {
        // One bin of width 2^-11 starts at 1; the values reach to its middle.
        let density = Density::new(&observed(&[1.0, 1.0, 1.0, 1.0 + 1.0 / 4096.0])).unwrap();
        assert_eq!(density.unit, 1.0 / 2048.0);
        let [count, sum, squares] = density.up_to(2048.125).0;
        assert_eq!((count, sum), (1.0, 2048.0625));
        assert!((squares - (2048.0625f64.powi(2) + 0.125f64.powi(2) / 12.0)).abs() < 1e-6);
        assert_eq!(density.up_to(2048.0).0[0], 0.0);
        assert_eq!(density.up_to(2048.5).0[0], 4.0);
    }

    #[test]
    fn uniform_noise_is_a_twelfth_of_the_squared_step() {
        let x: Vec<f32> = (0..255_000).map(|i| i as f32 / 1000.0).collect();
        let error = expected_error(&observed(&x), params(0.0, 255.0, Symmetry::Asymmetric));
        assert!((error.mean_squared_error * 12.0 - 1.0).abs() < 1e-3);
        assert!((error.sqnr_db() - 10.0 * (255.0f64 * 255.0 / 3.0 * 12.0).log10()).abs() < 0.01);
    }

    #[test]
    fn saturation_is_counted_beyond_half_a_step_only() {
        let mut x = vec![1.0f32; 98];
        x.extend([100.0, -100.0]);
        let statistics = observed(&x);
        let full = params(-100.0, 100.0, Symmetry::Symmetric);
        assert_eq!(clipped_fraction(&statistics, full), 0.0);
        assert!((clipped_fraction(&statistics, params(-2.0, 2.0, Symmetry::Symmetric)) - 0.02).abs() < 1e-9);
        assert!(
            (clipped_fraction(&statistics, params(-100.0, 2.0, Symmetry::Asymmetric)) - 0.01).abs() < 1e-9
        );
    }

    #[test]
    fn nothing_observed_has_no_error() {
        let empty = ActivationStatistics::new(3);
        let any = params(-1.0, 1.0, Symmetry::Symmetric);
        assert_eq!(expected_error(&empty, any), ExpectedError { mean_squared_error: 0.0, signal: 0.0 });
        assert_eq!(measured_error(&[], any), ExpectedError { mean_squared_error: 0.0, signal: 0.0 });
        assert_eq!(clipped_fraction(&empty, any), 0.0);
    }

    #[test]
    fn decibels_at_the_ends() {
        assert_eq!(sqnr_db(100.0, 1.0), 20.0);
        assert_eq!(sqnr_db(1.0, 0.0), f64::INFINITY);
        assert_eq!(sqnr_db(0.0, 0.0), f64::INFINITY);
        assert_eq!(sqnr_db(0.0, 1.0), f64::NEG_INFINITY);
    }

    proptest! {
        #[test]
        fn a_single_value_has_its_own_error(x in -1e3f32..1e3, max in 1f32..2e3) {
            let params = params(-max, max, Symmetry::Symmetric);
            let (expected, measured) = (expected_error(&observed(&[x; 7]), params), measured_error(&[x], params));
            // The measured value x' is rounded to f32, the expected one is not.
            let (expected, measured) = (expected.mean_squared_error.sqrt(), measured.mean_squared_error.sqrt());
            prop_assert!((expected - measured).abs() <= 1e-6 * f64::from(x.abs()));
        }

        #[test]
        fn errors_are_finite_at_every_magnitude(
            x in prop::collection::vec(-1f32..1.0, 1..20), exponent in -149i32..127, asymmetric: bool,
        ) {
            let x: Vec<f32> = x.iter().map(|x| x * power_of_two(exponent) as f32).collect();
            let statistics = observed(&x);
            let symmetry = Symmetry::from_flag(!asymmetric);
            let params = params(statistics.min(), statistics.max(), symmetry);
            let error = expected_error(&statistics, params);
            prop_assert!(error.mean_squared_error.is_finite() && error.mean_squared_error >= 0.0);
            prop_assert!(error.signal.is_finite() && error.signal >= 0.0);
            prop_assert_eq!(clipped_fraction(&statistics, params), 0.0);
        }
    }
}
