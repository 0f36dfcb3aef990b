//! Everything remembered about the values of one site.

use std::collections::BTreeMap;

use rayon::prelude::*;
use zeropoint_kernels::{Extremes, Isa, channel_absmax, row_extremes};

use crate::ObserveError;
use crate::histogram::{BINS, Histogram, count_values, exponent_for};
use crate::samples::{SampleRange, SampleRows, Samples};
use crate::sketch::{Lane, Sketch};

/// Values handled by one thread at a time: 256 KiB, which stays in its second-level cache from the histogram to the
/// channel maxima and makes clearing and adding up its 8192 counts a small part of the work.
const CHUNK_VALUES: usize = 1 << 16;

/// Values counted before 32-bit counts are added to the 64-bit ones.
const SLAB_VALUES: usize = 1 << 31;

/// A power of two has 4 bins in the distribution of a channel: 384 bytes for each channel.
pub(crate) const CHANNEL_MANTISSA_BITS: u32 = 2;

/// A power of two has 32 bins in the distributions of row extremes, of which a site has but [`ROW_LANES`].
pub(crate) const ROW_MANTISSA_BITS: u32 = 5;

/// Minimum, maximum and largest magnitude of each row.
pub(crate) const ROW_LANES: usize = 3;

/// Statistics of the activations at one site: rows (tokens) of `channels` values.
///
/// They are a pure function of the multiset of observed rows, each with the sample it belongs to. However the rows are
/// ordered, batched, split between threads or merged from shards, the bits are the same. The two zeros count as one.
///
/// They take 388 bytes for each channel, 24 for each sample, and 73 KiB.
#[derive(Debug, Clone, PartialEq)]
pub struct ActivationStatistics {
    rows: u64,
    /// Of the rows, those that the model itself sends here, where it does not send all.
    routed: Option<u64>,
    /// Infinite while nothing was observed, so that any value replaces it.
    min: f32,
    /// Minus infinity while nothing was observed.
    max: f32,
    histogram: Histogram,
    channel_absmax: Vec<f32>,
    /// The values of each channel.
    channels: Sketch,
    /// The extremes of the rows.
    row_extremes: Sketch,
    samples: Samples,
}

/// [`ActivationStatistics`] as they are stored.
pub(crate) struct Parts {
    pub(crate) rows: u64,
    pub(crate) routed: Option<u64>,
    pub(crate) range: (f32, f32),
    pub(crate) histogram: Histogram,
    pub(crate) channel_absmax: Vec<f32>,
    pub(crate) channel_counts: Vec<u32>,
    pub(crate) row_counts: Vec<u32>,
    pub(crate) samples: Samples,
}

impl ActivationStatistics {
    /// Statistics of no rows yet, for rows of `channels` values.
    pub fn new(channels: usize) -> Self {
        Self {
            rows: 0,
            routed: None,
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            histogram: Histogram::new(),
            channel_absmax: vec![0.0; channels],
            channels: Sketch::new(channels, CHANNEL_MANTISSA_BITS),
            row_extremes: Sketch::new(ROW_LANES, ROW_MANTISSA_BITS),
            samples: Samples::default(),
        }
    }

    /// Statistics from their parts, `None` where no rows could have given them: counts that do not add up, extremes
    /// that are not finite or not in the outermost bins, an exponent that is not the smallest for them, a largest
    /// channel maximum that is not the largest magnitude, samples beyond the range of all.
    pub(crate) fn from_parts(parts: Parts) -> Option<Self> {
        let Parts { rows, routed, range, histogram, channel_absmax, channel_counts, row_counts, samples } =
            parts;
        let lanes = channel_absmax.len();
        let absmax = channel_absmax.iter().copied().fold(0.0, f32::max);
        if !channel_absmax.iter().all(|a| a.is_finite() && a.is_sign_positive()) {
            return None;
        }
        let channels = Sketch::from_parts(lanes, CHANNEL_MANTISSA_BITS, absmax, channel_counts)?;
        let row_extremes = Sketch::from_parts(ROW_LANES, ROW_MANTISSA_BITS, absmax, row_counts)?;
        // Adding zero turns -0.0 into 0.0.
        let (min, max) = (range.0 + 0.0, range.1 + 0.0);
        let found =
            Self { rows, routed, min, max, histogram, channel_absmax, channels, row_extremes, samples };
        if rows == 0 {
            let empty = Self::new(lanes);
            return (found == Self { min, max, ..empty.clone() } && (min, max) == (0.0, 0.0))
                .then_some(empty);
        }
        found.is_possible().then_some(found)
    }

    /// Whether rows, at least one, could have left this.
    fn is_possible(&self) -> bool {
        let (rows, min, max) = (self.rows, self.min, self.max);
        let (Some(first), Some(last)) = (self.histogram.bins().next(), self.histogram.bins().last()) else {
            return false;
        };
        let holds = |(lower, upper, _): (f64, f64, u64), x: f32| (lower..upper).contains(&f64::from(x));
        let absmax = self.channel_absmax.iter().copied().fold(0.0, f32::max);
        let channels = self.channels.lanes().zip(&self.channel_absmax);
        let mut extremes = self.row_extremes.lanes();
        let (Some(lowest), Some(highest), Some(largest)) =
            (extremes.next(), extremes.next(), extremes.next())
        else {
            return false;
        };
        u32::try_from(rows).is_ok()
            && rows.checked_mul(self.channel_absmax.len() as u64) == Some(self.histogram.count())
            && min.is_finite()
            && max.is_finite()
            && min <= max
            && self.histogram.exponent() == exponent_for(min, max)
            && holds(first, min)
            && holds(last, max)
            && absmax == max.max(-min)
            && channels.into_iter().all(|(lane, &absmax)| lane.fits_magnitudes(rows, absmax))
            && lowest.begins_at(rows, min)
            && highest.ends_at(rows, max)
            && largest.ends_at(rows, absmax)
            && largest.is_positive()
            && self.samples.are_possible(rows, (min, max))
            && self.routed.is_none_or(|routed| routed <= rows)
    }

    /// Adds the rows of `x` (row-major, channels last), of which it is not known to which samples they belong, in
    /// parallel on the current rayon pool. A moving average has no range for them.
    ///
    /// Fails, changing nothing, when `x` is not whole rows or holds a NaN or an infinity.
    pub fn observe(&mut self, isa: Isa, x: &[f32]) -> Result<(), ObserveError> {
        self.observe_samples(isa, x, &[])
    }

    /// As [`observe`](Self::observe), for the rows of some samples, one sample after the other; without any samples the
    /// rows belong to none. Fails, changing nothing, also when they have another number of rows.
    pub fn observe_samples(
        &mut self,
        isa: Isa,
        x: &[f32],
        samples: &[SampleRows],
    ) -> Result<(), ObserveError> {
        let channels = self.channels();
        if !x.is_empty() && (channels == 0 || !x.len().is_multiple_of(channels)) {
            return Err(ObserveError::Ragged { values: x.len(), channels });
        }
        let rows = x.len().checked_div(channels).unwrap_or(0);
        let claimed: usize = samples.iter().map(|sample| sample.rows).fold(0, usize::saturating_add);
        if !samples.is_empty() && claimed != rows {
            return Err(ObserveError::Samples { rows, claimed });
        }
        if x.is_empty() {
            return Ok(());
        }
        self.check_room(rows as u64, x.len() as u64)?;
        let chunk_rows = (CHUNK_VALUES / channels).max(1);
        let chunk = chunk_rows * channels;

        let mut extremes = vec![Extremes { min: 0.0, max: 0.0, finite: true }; rows];
        let chunks = x.par_chunks(chunk).zip(extremes.par_chunks_mut(chunk_rows));
        chunks.for_each(|(x, extremes)| row_extremes(isa, x, channels, extremes));
        if let Some(row) = extremes.iter().position(|row| !row.finite) {
            let values = &x[row * channels..][..channels];
            let (channel, &value) =
                values.iter().enumerate().find(|(_, x)| !x.is_finite()).unwrap_or((0, &f32::NAN));
            return Err(ObserveError::NotFinite { row, channel, value });
        }
        // Never -0.0, by the contract of `row_extremes`: which of the zeros is the minimum would depend on the order.
        for row in &extremes {
            self.min = self.min.min(row.min);
            self.max = self.max.max(row.max);
        }

        self.histogram.cover(self.min, self.max);
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
        self.rows += rows as u64;
        let absmax = self.absmax();
        self.channels.observe(isa, x, absmax);
        let of_rows: Vec<f32> =
            extremes.iter().flat_map(|row| [row.min, row.max, row.max.max(-row.min)]).collect();
        self.row_extremes.observe(isa, &of_rows, absmax);
        self.samples.observe(samples, &extremes);
        Ok(())
    }

    /// As [`observe_samples`](Self::observe_samples), for the input of an expert: all rows are shown to it, of which the model
    /// itself sends `routed`, at most all of them.
    pub fn observe_expert(
        &mut self,
        isa: Isa,
        x: &[f32],
        samples: &[SampleRows],
        routed: u64,
    ) -> Result<(), ObserveError> {
        let (before, known) = (self.rows, self.routed_rows());
        self.observe_samples(isa, x, samples)?;
        if self.rows > before {
            self.routed = Some(known + routed.min(self.rows - before));
        }
        Ok(())
    }

    /// Adds the rows that `other` has seen. Fails, changing nothing, when the channel counts differ.
    pub fn merge(&mut self, other: &Self) -> Result<(), ObserveError> {
        if self.channels() != other.channels() {
            return Err(ObserveError::Channels { left: self.channels(), right: other.channels() });
        }
        self.check_room(other.rows, other.values())?;
        self.histogram.merge(&other.histogram)?;
        if self.routed.is_some() || other.routed.is_some() {
            self.routed = Some(self.routed_rows() + other.routed_rows());
        }
        self.rows += other.rows;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        raise(&mut self.channel_absmax, &other.channel_absmax);
        self.channels.merge(&other.channels);
        self.row_extremes.merge(&other.row_extremes);
        self.samples.merge(&other.samples);
        Ok(())
    }

    /// Whether so many more may still be added: counts of a channel are 32-bit numbers.
    fn check_room(&self, rows: u64, values: u64) -> Result<(), ObserveError> {
        self.histogram.check_room(values)?;
        let rows = self.rows.checked_add(rows).ok_or(ObserveError::TooMany)?;
        if rows > u64::from(u32::MAX) { Err(ObserveError::TooMany) } else { Ok(()) }
    }

    /// Values in one row.
    pub fn channels(&self) -> usize {
        self.channel_absmax.len()
    }

    /// Rows observed.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Of the rows observed those that the model itself sends here: all, but at an expert of a mixture those that the router
    /// sends to it.
    pub fn routed_rows(&self) -> u64 {
        self.routed.unwrap_or(self.rows)
    }

    /// Whether rows were shown that the model may send elsewhere: whether this is an expert's site.
    pub fn counts_routed(&self) -> bool {
        self.routed.is_some()
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

    /// The range of each sample by its number.
    pub fn samples(&self) -> &BTreeMap<u32, SampleRange> {
        self.samples.ranges()
    }

    /// The distribution of the values of each channel.
    pub(crate) fn channel_lanes(&self) -> impl ExactSizeIterator<Item = Lane<'_>> {
        self.channels.lanes()
    }

    /// The distributions of the rows' minima, maxima and largest magnitudes.
    pub(crate) fn row_lanes(&self) -> Option<[Lane<'_>; ROW_LANES]> {
        self.row_extremes.lanes().collect::<Vec<_>>().try_into().ok()
    }

    /// All counts of the distributions of channels and of row extremes.
    pub(crate) fn sketched(&self) -> (&[u32], &[u32]) {
        (self.channels.counts(), self.row_extremes.counts())
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
        assert_eq!(a, b);
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
        let two = [SampleRows { sample: 0, rows: 2 }];
        assert_eq!(
            statistics.observe_samples(Isa::SCALAR, &[1.0; 3], &two),
            Err(ObserveError::Samples { rows: 1, claimed: 2 })
        );
        assert_eq!(
            statistics.observe_samples(Isa::SCALAR, &[], &two),
            Err(ObserveError::Samples { rows: 0, claimed: 2 })
        );
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
    fn an_expert_counts_the_rows_that_are_routed_to_it() {
        let x = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(observed(1, &x).routed_rows(), 4, "elsewhere all rows are");
        let mut expert = ActivationStatistics::new(1);
        assert_eq!(expert.routed_rows(), 0);
        expert.observe_expert(Isa::SCALAR, &x, &[], 3).unwrap();
        expert.observe_expert(Isa::SCALAR, &x, &[], 0).unwrap();
        assert_eq!((expert.rows(), expert.routed_rows()), (8, 3));
        let before = expert.clone();
        assert!(expert.observe_expert(Isa::SCALAR, &[f32::NAN], &[], 1).is_err());
        assert_same_bits(&expert, &before);
        let all = ActivationStatistics { routed: None, ..expert.clone() };
        assert_eq!(all.routed_rows(), 8, "what is shown is all that a range is chosen from");
        assert_ne!(all, expert);
    }

    #[test]
    fn parts_at_a_coarser_exponent_than_needed_are_refused() {
        // Another -4 in the histogram, but not in the extremes: every count is in order, only too coarse.
        let fine = observed(1, &[1.0, -2.0]);
        let mut coarse = observed(1, &[-4.0]).histogram;
        coarse.merge(observed(1, &[1.0, -2.0]).histogram()).unwrap();
        let mut counts = coarse.counts().to_vec();
        counts[coarse.counts().iter().position(|&count| count > 0).unwrap()] = 0;
        let from = |exponent, counts: &[u64]| {
            let histogram = Histogram::from_parts(exponent, counts.to_vec()).unwrap();
            ActivationStatistics::from_parts(Parts {
                rows: 2,
                routed: None,
                range: (-2.0, 1.0),
                histogram,
                channel_absmax: vec![2.0],
                channel_counts: fine.sketched().0.to_vec(),
                row_counts: fine.sketched().1.to_vec(),
                samples: Samples::default(),
            })
        };
        assert_eq!(from(coarse.exponent(), &counts), None);
        assert_eq!(from(fine.histogram.exponent(), fine.histogram.counts()), Some(fine.clone()));
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
                let mut statistics = ActivationStatistics::new(256);
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
            rows in prop::collection::vec((prop::array::uniform3(-1e6f32..1e6), 0usize..4, 0u32..5), 0..60),
            scale in prop::sample::select(vec![1e-30f32, 1.0, 1e30]),
            order in Just([0usize, 1, 2, 3]).prop_shuffle(),
        ) {
            // The rows of a sample may come in any order, and from several parts.
            let of = |keep: &dyn Fn(usize) -> bool| {
                let kept = rows.iter().filter(|(_, part, _)| keep(*part));
                let (mut x, mut samples) = (Vec::new(), Vec::new());
                for (row, _, sample) in kept {
                    x.extend(row.map(|x| x * scale));
                    samples.push(SampleRows { sample: *sample, rows: 1 });
                }
                let mut statistics = ActivationStatistics::new(3);
                statistics.observe_samples(Isa::SCALAR, &x, &samples).unwrap();
                statistics
            };
            let mut merged = ActivationStatistics::new(3);
            for part in order {
                merged.merge(&of(&|p| p == part)).unwrap();
            }
            assert_same_bits(&merged, &of(&|_| true));
        }

        #[test]
        fn routed_rows_of_parts_add_up_in_any_order(
            parts in prop::collection::vec((0usize..4, 0u64..4), 0..6),
            shift in 0usize..6,
        ) {
            let show = |statistics: &mut ActivationStatistics, (rows, routed): (usize, u64)| {
                let routed = routed.min(rows as u64);
                statistics.observe_expert(Isa::SCALAR, &vec![0.5; rows], &[], routed).unwrap();
            };
            let mut whole = ActivationStatistics::new(1);
            parts.iter().for_each(|part| show(&mut whole, *part));
            let mut merged = ActivationStatistics::new(1);
            let count = parts.len().max(1);
            for part in parts.iter().cycle().skip(shift % count).take(parts.len()) {
                let mut own = ActivationStatistics::new(1);
                show(&mut own, *part);
                merged.merge(&own).unwrap();
            }
            assert_same_bits(&merged, &whole);
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
