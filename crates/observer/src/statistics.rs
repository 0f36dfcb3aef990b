//! Everything remembered about the values of one site.

use rayon::prelude::*;
use zeropoint_kernels::{Isa, channel_absmax, extremes};

use crate::ObserveError;
use crate::histogram::{BINS, Histogram, count_values, exponent_for};

/// Values handled by one thread at a time: 256 KiB, which stays in its second-level cache from the histogram to the
/// channel maxima and makes clearing and adding up its 8192 counts a small part of the work.
const CHUNK_VALUES: usize = 1 << 16;

/// Values counted before 32-bit counts are added to the 64-bit ones.
const SLAB_VALUES: usize = 1 << 31;

/// Statistics of the activations at one site: rows (tokens) of `channels` values.
///
/// They are a pure function of the multiset of observed rows. However the rows are ordered, batched, split between
/// threads or merged from shards, the bits are the same. The two zeros count as one.
#[derive(Debug, Clone, PartialEq)]
pub struct ActivationStatistics {
    rows: u64,
    /// Infinite while nothing was observed, so that any value replaces it.
    min: f32,
    /// Minus infinity while nothing was observed.
    max: f32,
    histogram: Histogram,
    channel_absmax: Vec<f32>,
}

impl ActivationStatistics {
    /// Statistics of no rows yet, for rows of `channels` values.
    pub fn new(channels: usize) -> Self {
        Self {
            rows: 0,
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            histogram: Histogram::new(),
            channel_absmax: vec![0.0; channels],
        }
    }

    /// Statistics from their parts, `None` where no rows could have given them: the counts do not add up to
    /// `rows * channels`, the extremes are not finite or not in the outermost bins, the exponent is not the smallest
    /// for them, or the largest channel maximum is not the largest magnitude.
    pub(crate) fn from_parts(
        rows: u64,
        (min, max): (f32, f32),
        histogram: Histogram,
        channel_absmax: Vec<f32>,
    ) -> Option<Self> {
        let channels = channel_absmax.len();
        if rows == 0 {
            let empty = histogram == Histogram::new() && channel_absmax.iter().all(|&a| a == 0.0);
            return (empty && (min, max) == (0.0, 0.0)).then(|| Self::new(channels));
        }
        let (first, last) = (histogram.bins().next()?, histogram.bins().last()?);
        let holds = |(lower, upper, _): (f64, f64, u64), x: f32| (lower..upper).contains(&f64::from(x));
        let absmax = channel_absmax.iter().copied().fold(0.0, f32::max);
        let valid = rows.checked_mul(channels as u64) == Some(histogram.count())
            && min.is_finite()
            && max.is_finite()
            && min <= max
            && histogram.exponent() == exponent_for(min, max)
            && holds(first, min)
            && holds(last, max)
            && channel_absmax.iter().all(|a| a.is_finite() && a.is_sign_positive())
            && absmax == max.max(-min);
        // Adding zero turns -0.0 into 0.0.
        valid.then_some(Self { rows, min: min + 0.0, max: max + 0.0, histogram, channel_absmax })
    }

    /// Adds the rows of `x` (row-major, channels last), in parallel on the current rayon pool.
    ///
    /// Fails, changing nothing, when `x` is not whole rows or holds a NaN or an infinity.
    pub fn observe(&mut self, isa: Isa, x: &[f32]) -> Result<(), ObserveError> {
        let channels = self.channels();
        if x.is_empty() {
            return Ok(());
        }
        if channels == 0 || !x.len().is_multiple_of(channels) {
            return Err(ObserveError::Ragged { values: x.len(), channels });
        }
        self.histogram.check_room(x.len() as u64)?;
        let chunk = (CHUNK_VALUES / channels).max(1) * channels;

        let (min, max, finite) = x
            .par_chunks(chunk)
            .map(|chunk| {
                let found = extremes(isa, chunk);
                (found.min, found.max, found.finite)
            })
            .reduce(
                || (f32::INFINITY, f32::NEG_INFINITY, true),
                |a, b| (a.0.min(b.0), a.1.max(b.1), a.2 && b.2),
            );
        if !finite && let Some(at) = x.iter().position(|value| !value.is_finite()) {
            return Err(ObserveError::NotFinite { row: at / channels, channel: at % channels, value: x[at] });
        }

        self.histogram.cover(min, max);
        let exponent = self.histogram.exponent();
        for slab in x.chunks((SLAB_VALUES / chunk).max(1) * chunk) {
            let partial = slab
                .par_chunks(chunk)
                .fold(
                    || Partial::new(channels),
                    |mut partial, chunk| {
                        count_values(isa, chunk, exponent, &mut partial.counts);
                        channel_absmax(isa, chunk, channels, &mut partial.channel_absmax);
                        partial
                    },
                )
                .reduce(|| Partial::new(0), Partial::merge);
            self.histogram.add(&partial.counts);
            raise(&mut self.channel_absmax, &partial.channel_absmax);
        }
        // Never -0.0, by the contract of `extremes`: which of the zeros is the minimum would depend on the order.
        self.min = self.min.min(min);
        self.max = self.max.max(max);
        self.rows += (x.len() / channels) as u64;
        Ok(())
    }

    /// Adds the rows that `other` has seen. Fails, changing nothing, when the channel counts differ.
    pub fn merge(&mut self, other: &Self) -> Result<(), ObserveError> {
        if self.channels() != other.channels() {
            return Err(ObserveError::Channels { left: self.channels(), right: other.channels() });
        }
        self.histogram.merge(&other.histogram)?;
        self.rows += other.rows;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        raise(&mut self.channel_absmax, &other.channel_absmax);
        Ok(())
    }

    /// Values in one row.
    pub fn channels(&self) -> usize {
        self.channel_absmax.len()
    }

    /// Rows observed.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Values observed: `rows * channels`.
    pub fn values(&self) -> u64 {
        self.histogram.count()
    }

    /// Whether nothing was observed.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The smallest value, exactly; 0 if nothing was observed.
    pub fn min(&self) -> f32 {
        if self.is_empty() { 0.0 } else { self.min }
    }

    /// The largest value, exactly; 0 if nothing was observed.
    pub fn max(&self) -> f32 {
        if self.is_empty() { 0.0 } else { self.max }
    }

    /// The largest magnitude, exactly.
    pub fn absmax(&self) -> f32 {
        self.max().max(-self.min())
    }

    /// Counts over equal bins.
    pub fn histogram(&self) -> &Histogram {
        &self.histogram
    }

    /// The largest magnitude of each channel, exactly.
    pub fn channel_absmax(&self) -> &[f32] {
        &self.channel_absmax
    }

    /// The value below which a fraction `q` of all values lie, to one bin of the histogram and never outside
    /// `[min, max]`; `None` if nothing was observed.
    pub fn quantile(&self, q: f64) -> Option<f32> {
        self.histogram.quantile(q).map(|value| (value as f32).clamp(self.min, self.max))
    }

    /// As [`quantile`](Self::quantile), for the magnitudes of the values.
    pub fn absolute_quantile(&self, q: f64) -> Option<f32> {
        self.histogram.absolute_quantile(q).map(|value| (value as f32).min(self.absmax()))
    }
}

/// What one thread has gathered of a slab.
struct Partial {
    counts: Vec<u32>,
    channel_absmax: Vec<f32>,
}

impl Partial {
    /// With 0 channels: the neutral element of [`Partial::merge`], which holds nothing at all.
    fn new(channels: usize) -> Self {
        let bins = if channels == 0 { 0 } else { BINS };
        Self { counts: vec![0; bins], channel_absmax: vec![0.0; channels] }
    }

    fn merge(mut self, other: Self) -> Self {
        if self.counts.is_empty() {
            return other;
        }
        for (sum, count) in self.counts.iter_mut().zip(other.counts) {
            *sum += count;
        }
        raise(&mut self.channel_absmax, &other.channel_absmax);
        self
    }
}

/// Raises each element of `a` to that of `b`.
fn raise(a: &mut [f32], b: &[f32]) {
    for (a, &b) in a.iter_mut().zip(b) {
        *a = a.max(b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zeropoint_core::Rng;

    fn observed(channels: usize, x: &[f32]) -> ActivationStatistics {
        let mut statistics = ActivationStatistics::new(channels);
        statistics.observe(Isa::SCALAR, x).unwrap();
        statistics
    }

    /// Equal in every bit, not merely in value.
    fn assert_same_bits(a: &ActivationStatistics, b: &ActivationStatistics) {
        let bits = |s: &ActivationStatistics| {
            let absmax: Vec<u32> = s.channel_absmax.iter().map(|a| a.to_bits()).collect();
            (s.rows, s.min.to_bits(), s.max.to_bits(), absmax)
        };
        assert_eq!(bits(a), bits(b));
        assert_eq!(a.histogram, b.histogram);
    }

    #[test]
    fn what_is_wrong_is_named_and_changes_nothing() {
        let mut statistics = observed(3, &[1.0, 2.0, 3.0]);
        let before = statistics.clone();
        let cases = [
            (vec![1.0; 4], ObserveError::Ragged { values: 4, channels: 3 }),
            (
                vec![9.0, 9.0, 9.0, 9.0, f32::INFINITY, f32::INFINITY],
                ObserveError::NotFinite { row: 1, channel: 1, value: f32::INFINITY },
            ),
        ];
        for (x, expected) in cases {
            assert_eq!(statistics.observe(Isa::SCALAR, &x), Err(expected));
        }
        let nan = statistics.observe(Isa::SCALAR, &[0.0, 0.0, f32::NAN]);
        assert!(matches!(nan, Err(ObserveError::NotFinite { row: 0, channel: 2, value }) if value.is_nan()));
        assert_eq!(
            statistics.merge(&ActivationStatistics::new(2)),
            Err(ObserveError::Channels { left: 3, right: 2 })
        );
        assert_same_bits(&statistics, &before);
    }

    #[test]
    fn nothing_observed_is_a_state_of_its_own() {
        let empty = ActivationStatistics::new(4);
        assert_eq!((empty.values(), empty.min(), empty.max()), (0, 0.0, 0.0));
        assert_eq!(empty.quantile(0.5), None);
        let mut some = observed(4, &[5.0, 6.0, 7.0, 8.0]);
        let before = some.clone();
        some.merge(&empty).unwrap();
        assert_same_bits(&some, &before);
        assert_eq!(some.min(), 5.0, "the neutral element must not bring its zero along");
    }

    #[test]
    fn parts_at_a_coarser_exponent_than_needed_are_refused() {
        // Another -4 in the histogram, but not in the extremes: every count is in order, only too coarse.
        let mut coarse = observed(1, &[-4.0]).histogram;
        coarse.merge(observed(1, &[1.0, -2.0]).histogram()).unwrap();
        let mut counts = coarse.counts().to_vec();
        counts[coarse.counts().iter().position(|&count| count > 0).unwrap()] = 0;
        let from = |exponent, counts: &[u64]| {
            let histogram = Histogram::from_parts(exponent, counts.to_vec()).unwrap();
            ActivationStatistics::from_parts(2, (-2.0, 1.0), histogram, vec![2.0])
        };
        assert_eq!(from(coarse.exponent(), &counts), None);
        let fine = observed(1, &[1.0, -2.0]);
        assert_eq!(from(fine.histogram.exponent(), fine.histogram.counts()), Some(fine));
    }

    #[test]
    fn the_order_of_the_zeros_does_not_show() {
        assert_same_bits(&observed(1, &[0.0, -0.0]), &observed(1, &[-0.0, 0.0]));
        assert_same_bits(&observed(1, &[-0.0]), &observed(1, &[0.0]));
    }

    #[test]
    fn any_number_of_threads_and_any_instruction_set_give_the_same_bits() {
        // Several chunks, and a coarsening in the middle.
        let mut rng = Rng::new(3);
        let x: Vec<f32> = (0..3 * CHUNK_VALUES).map(|_| rng.normal() as f32).collect();
        let large: Vec<f32> = x[..CHUNK_VALUES].iter().map(|x| x * 1000.0).collect();
        let with = |threads: usize, isa: Isa| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut statistics = ActivationStatistics::new(64);
                statistics.observe(isa, &x).unwrap();
                statistics.observe(isa, &large).unwrap();
                statistics
            })
        };
        let reference = with(1, Isa::SCALAR);
        for isa in Isa::available() {
            for threads in [1, 3, 8] {
                assert_same_bits(&with(threads, isa), &reference);
            }
        }
    }

    proptest! {
        #[test]
        fn merging_any_split_in_any_order_is_one_pass(
            rows in prop::collection::vec((prop::array::uniform3(-1e6f32..1e6), 0usize..4), 0..60),
            scale in prop::sample::select(vec![1e-30f32, 1.0, 1e30]),
            order in Just([0usize, 1, 2, 3]).prop_shuffle(),
        ) {
            let rows: Vec<([f32; 3], usize)> =
                rows.into_iter().map(|(row, part)| (row.map(|x| x * scale), part)).collect();
            let all: Vec<f32> = rows.iter().flat_map(|(row, _)| *row).collect();
            let mut merged = ActivationStatistics::new(3);
            for part in order {
                let of_part: Vec<f32> =
                    rows.iter().filter(|(_, p)| *p == part).flat_map(|(row, _)| *row).collect();
                merged.merge(&observed(3, &of_part)).unwrap();
            }
            assert_same_bits(&merged, &observed(3, &all));
        }

        #[test]
        fn extremes_and_channel_maxima_are_exact(x in prop::collection::vec(-1e3f32..1e3, 1..40)) {
            let rows: Vec<f32> = x.iter().flat_map(|&x| [x, -2.0 * x]).collect();
            let statistics = observed(2, &rows);
            let absmax = x.iter().fold(0f32, |a, x| a.max(x.abs()));
            prop_assert_eq!(statistics.channel_absmax(), [absmax, 2.0 * absmax]);
            prop_assert_eq!(statistics.min(), rows.iter().copied().fold(f32::INFINITY, f32::min));
            prop_assert_eq!(statistics.max(), rows.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            prop_assert_eq!(statistics.values(), rows.len() as u64);
        }
    }
}
