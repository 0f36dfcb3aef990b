//! Distributions for the report's histograms: few enough bins to draw, each about two quantisation steps wide.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use zeropoint_core::WeightBits;
use zeropoint_evaluator::report::{Bins, WeightRange};
use zeropoint_kernels::{Extremes, Isa, extremes, histogram};
use zeropoint_observer::{ActivationStatistics, BINS};
use zeropoint_quantizer::QuantizedWeight;

/// Bins of a drawn histogram.
const DRAWN: usize = 128;
/// Values counted by one thread at a time.
const CHUNK: usize = 1 << 16;

/// What the report says about the values of a weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WeightDistribution {
    /// Over `[-absmax, absmax]`.
    pub(crate) bins: Bins,
    /// The fraction of values that lie more than half a step outside what their scale represents.
    pub(crate) clipped: f64,
    /// What the scales represent.
    pub(crate) range: WeightRange,
    /// Of the weight before the transforms that changed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) before: Option<Bins>,
}

impl WeightDistribution {
    /// Of a float weight and what became of it; `None` when it has no values.
    pub(crate) fn of(isa: Isa, float: &[f32], quantized: &QuantizedWeight, bits: WeightBits) -> Option<Self> {
        let (narrowest, widest) = quantized
            .scales
            .iter()
            .map(|&scale| f64::from(scale))
            .fold((f64::INFINITY, 0f64), |(least, most), scale| (least.min(scale), most.max(scale)));
        if float.is_empty() || !narrowest.is_finite() {
            return None;
        }
        let group = quantized.group;
        let (clipped, absmax) = float
            .par_chunks(quantized.inputs)
            .enumerate()
            .map(|(row, values)| {
                let groups = values.chunks(group).zip(quantized.scales_of(row));
                groups.fold((0, 0f32), |(clipped, absmax), (values, &scale)| {
                    // In f64 and with a little room: the scale is the rounded quotient of the range, which is not clipped.
                    let limit = f64::from(scale) * f64::from(bits.half_range()) * (1.0 + 1e-6);
                    let lowest = -limit - f64::from(scale);
                    let outside = |w: f32| f64::from(w) > limit || f64::from(w) < lowest;
                    let Extremes { min, max, .. } = extremes(isa, values);
                    let some = outside(min) || outside(max);
                    let more = if some { values.iter().filter(|w| outside(**w)).count() } else { 0 };
                    (clipped + more, absmax.max(max).max(-min))
                })
            })
            .reduce(|| (0, 0.0), |left, right| (left.0 + right.0, left.1.max(right.1)));
        let (low, high) = bits.range();
        let represented = |scale: f64| [f64::from(low) * scale, f64::from(high) * scale];
        Some(Self {
            bins: bins_of(isa, float, absmax),
            clipped: clipped as f64 / float.len() as f64,
            range: WeightRange { narrowest: represented(narrowest), widest: represented(widest) },
            before: None,
        })
    }
}

/// The bins of a float weight that nothing became of.
pub(crate) fn weight_bins(isa: Isa, weight: &[f32]) -> Bins {
    let Extremes { min, max, .. } = extremes(isa, weight);
    bins_of(isa, weight, max.max(-min))
}

/// Equal bins over `[-absmax, absmax]`, or `[-1, 1]` where all values are as good as 0; whole numbers are added, so the split
/// between threads does not matter.
fn bins_of(isa: Isa, values: &[f32], absmax: f32) -> Bins {
    // The quotient is a normal number.
    let max = if absmax > 1e-30 { absmax } else { 1.0 };
    let bins_per_unit = (DRAWN / 2) as f32 / max;
    let none = || [0u64; DRAWN];
    let counts = values
        .par_chunks(CHUNK)
        .fold(none, |mut counts, chunk| {
            let mut of_chunk = [0u32; DRAWN];
            histogram(isa, chunk, bins_per_unit, &mut of_chunk);
            counts.iter_mut().zip(of_chunk).for_each(|(all, more)| *all += u64::from(more));
            counts
        })
        .reduce(none, |mut left, right| {
            left.iter_mut().zip(right).for_each(|(left, right)| *left += right);
            left
        });
    Bins { min: -f64::from(max), max: f64::from(max), counts: counts.to_vec() }
}

/// The observed values in at most [`DRAWN`] bins, which are unions of the histogram's and keep 0 on an edge; `None` when
/// nothing was observed.
pub(crate) fn activation_bins(statistics: &ActivationStatistics) -> Option<Bins> {
    let histogram = statistics.histogram();
    let filled = |(_, count): &(usize, &u64)| **count > 0;
    let first = histogram.counts().iter().enumerate().find(filled)?.0;
    let last = histogram.counts().iter().enumerate().rfind(filled)?.0;
    // Powers of two divide the middle, where 0 is.
    let mut size = 1;
    while last / size - first / size >= DRAWN {
        size *= 2;
    }
    let (first, last) = (first / size, last / size);
    let edge = |group: usize| ((group * size) as f64 - (BINS / 2) as f64) * histogram.bin_width();
    let counts = histogram.counts()[first * size..(last + 1) * size].chunks(size);
    Some(Bins {
        min: edge(first),
        max: edge(last + 1),
        counts: counts.map(|group| group.iter().sum()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use zeropoint_core::{Granularity, Rng, WeightScheme};
    use zeropoint_observer::WeightObserver;
    use zeropoint_quantizer::quantize_weight;

    fn normal(count: usize) -> Vec<f32> {
        let mut rng = Rng::new(7);
        (0..count).map(|_| rng.normal() as f32 * 0.05).collect()
    }

    fn observed(values: &[f32]) -> ActivationStatistics {
        let mut statistics = ActivationStatistics::new(1);
        statistics.observe(Isa::SCALAR, values).unwrap();
        statistics
    }

    #[test]
    fn every_weight_is_counted_once_and_on_its_side_of_zero() {
        let weight = normal(100_000);
        let absmax = weight.iter().fold(0f32, |most, w| most.max(w.abs()));
        let bins = bins_of(Isa::best(), &weight, absmax);
        assert_eq!(bins.counts.iter().sum::<u64>(), 100_000);
        assert_eq!(bins.counts.len(), DRAWN);
        let negative = weight.iter().filter(|w| **w < 0.0).count() as u64;
        assert_eq!(bins.counts[..DRAWN / 2].iter().sum::<u64>(), negative);
        assert!(bins.max == -bins.min && bins.counts[0] + bins.counts[DRAWN - 1] > 0);
        for isa in Isa::available() {
            assert_eq!(bins_of(isa, &weight, absmax), bins);
            assert_eq!(bins_of(isa, &[0.0, -0.0], 0.0).counts[DRAWN / 2], 2);
            // The smallest that is not 0, and the largest.
            for x in [1e-45, 1e-31, f32::MAX] {
                let counts = bins_of(isa, &[x, -x], x).counts;
                assert_eq!(counts[..DRAWN / 2].iter().sum::<u64>(), 1, "{x}");
            }
        }
    }

    #[test]
    fn clipped_weights_are_those_beyond_half_a_step() {
        let scheme = WeightScheme::int8(Granularity::Channel);
        let mut weight = normal(4 * 5000);
        weight[17] = 2.0; // 40 standard deviations, in the first row
        for (observer, clipped) in [(WeightObserver::MinMax, false), (WeightObserver::Mse, true)] {
            let quantized = quantize_weight(Isa::SCALAR, &weight, 4, 5000, scheme, observer).unwrap();
            let found = WeightDistribution::of(Isa::best(), &weight, &quantized, WeightBits::Eight).unwrap();
            let expected = weight
                .iter()
                .enumerate()
                .filter(|(i, w)| {
                    let scale = f64::from(quantized.scales_of(i / 5000)[0]);
                    let (low, high) = (-128.5 * scale, 127.5 * scale);
                    f64::from(**w) < low || f64::from(**w) > high * (1.0 + 1e-6)
                })
                .count();
            assert_eq!(found.clipped, expected as f64 / weight.len() as f64, "{observer}");
            assert_eq!(found.clipped > 0.0, clipped, "{observer}");
            assert!(found.range.widest[1] > found.range.narrowest[1], "{observer}");
        }
        let tensor = WeightScheme::int8(Granularity::Tensor);
        let quantized =
            quantize_weight(Isa::SCALAR, &weight, 4, 5000, tensor, WeightObserver::MinMax).unwrap();
        let found = WeightDistribution::of(Isa::best(), &weight, &quantized, WeightBits::Eight).unwrap();
        assert_eq!((found.clipped, found.range.narrowest), (0.0, found.range.widest));
    }

    #[test]
    fn drawn_bins_hold_every_observed_value_and_leave_zero_on_an_edge() {
        let wide: Vec<f32> = (0..10_000).map(|i| (i as f32 - 2_000.0) / 100.0).collect();
        for values in [normal(10_000), wide, vec![3.0; 5], vec![-0.5, 1e6], vec![0.0]] {
            let bins = activation_bins(&observed(&values)).unwrap();
            assert!((1..=DRAWN).contains(&bins.counts.len()), "{}", bins.counts.len());
            assert_eq!(bins.counts.iter().sum::<u64>(), values.len() as u64);
            assert!(values.iter().all(|x| (bins.min..=bins.max).contains(&f64::from(*x))));
            let width = (bins.max - bins.min) / bins.counts.len() as f64;
            assert_eq!((bins.min / width).fract(), 0.0, "0 is a whole number of bins from the end");
        }
        assert_eq!(activation_bins(&ActivationStatistics::new(3)), None);
    }
}
