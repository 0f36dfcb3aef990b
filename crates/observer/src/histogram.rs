//! A histogram that any order and any split of the same values builds bit for bit alike.
//!
//! Bins are `[k * 2^e, (k + 1) * 2^e)` for `k` in `-4096..4096`. The exponent `e` is always the smallest for which
//! every value so far falls inside, which makes the whole state a pure function of the multiset of values: `e` depends
//! on the extremes alone, and because every bin of a larger exponent is a union of bins of a smaller one, coarsening
//! the counts gives exactly what counting at the larger exponent would have given.

use std::fmt;

use zeropoint_kernels::{Isa, histogram};

use crate::ObserveError;

/// Number of bins: half of them below zero.
pub const BINS: usize = 8192;

/// The smallest exponent of a bin width: `2^-126` and its reciprocal are both normal in f32. Values below `2^-114` in
/// magnitude, all-zero data included, share it.
pub const MIN_EXPONENT: i32 = -126;

/// The largest exponent: with it the bins reach `2^128`, past the largest f32.
pub const MAX_EXPONENT: i32 = 116;

/// The most values one histogram holds: up to here counts are exact in f64 too.
pub const MAX_VALUES: u64 = 1 << 53;

const HALF: i32 = BINS as i32 / 2;
/// `log2` of the bins on one side of zero.
const HALF_LOG2: i32 = HALF.trailing_zeros() as i32;

/// Counts of values over 8192 equal bins anchored at zero; an empty one has the smallest exponent.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    exponent: i32,
    total: u64,
    /// `counts[i]` belongs to `k = i - 4096`.
    counts: Vec<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bins: Vec<(i32, u64)> = self.indexed().filter(|&(_, count)| count > 0).collect();
        f.debug_struct("Histogram")
            .field("exponent", &self.exponent)
            .field("bins", &bins)
            .finish_non_exhaustive()
    }
}

impl Histogram {
    /// A histogram of no values.
    pub fn new() -> Self {
        Self { exponent: MIN_EXPONENT, total: 0, counts: vec![0; BINS] }
    }

    /// A histogram with these counts, `None` if there are not [`BINS`] of them, the exponent is out of its range or
    /// there are more than [`MAX_VALUES`] values. Whether the exponent is the smallest possible only the extremes of
    /// the values can tell.
    pub fn from_parts(exponent: i32, counts: Vec<u64>) -> Option<Self> {
        let total = counts.iter().try_fold(0u64, |sum, &count| sum.checked_add(count))?;
        let valid =
            counts.len() == BINS && total <= MAX_VALUES && (MIN_EXPONENT..=MAX_EXPONENT).contains(&exponent);
        valid.then_some(Self { exponent, total, counts })
    }

    /// `e`: bins are `2^e` wide.
    pub fn exponent(&self) -> i32 {
        self.exponent
    }

    /// Width of one bin, `2^e`.
    pub fn bin_width(&self) -> f64 {
        power_of_two(self.exponent)
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// All [`BINS`] counts, most negative bin first; bin `i` starts at `(i - 4096) * 2^e`.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The non-empty bins in increasing order as `(lower, upper, count)`; the upper end is not part of the bin.
    pub fn bins(&self) -> impl Iterator<Item = (f64, f64, u64)> + '_ {
        let width = self.bin_width();
        self.indexed()
            .filter(|&(_, count)| count > 0)
            .map(move |(k, count)| (k as f64 * width, (k + 1) as f64 * width, count))
    }

    /// The value below which a fraction `q` of all values lie, `None` without values.
    ///
    /// Values are taken to lie evenly within their bin, so the result is at most one bin width from the value of rank
    /// `ceil(q * count)`. `q` outside `[0, 1]` means the nearer end.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        self.interpolate(q, self.indexed())
    }

    /// As [`quantile`](Self::quantile), for the magnitudes of the values.
    pub fn absolute_quantile(&self, q: f64) -> Option<f64> {
        let (below, above) = self.counts.split_at(HALF as usize);
        // Bin -1 - k holds the magnitudes of bin k, up to which end is closed.
        let folded = above.iter().zip(below.iter().rev()).map(|(above, below)| above + below);
        self.interpolate(q, (0..).zip(folded))
    }

    /// Adds the counts of another histogram. Fails, changing nothing, above [`MAX_VALUES`].
    pub fn merge(&mut self, other: &Self) -> Result<(), ObserveError> {
        self.check_room(other.total)?;
        self.coarsen(other.exponent);
        let shift = self.exponent - other.exponent;
        for (k, count) in other.indexed() {
            self.counts[coarser(k, shift)] += count;
        }
        self.total += other.total;
        Ok(())
    }

    /// Whether `more` values may still be added.
    pub(crate) fn check_room(&self, more: u64) -> Result<(), ObserveError> {
        let total = self.total.checked_add(more).ok_or(ObserveError::TooMany)?;
        if total > MAX_VALUES { Err(ObserveError::TooMany) } else { Ok(()) }
    }

    /// Makes room for finite values between `min` and `max`.
    pub(crate) fn cover(&mut self, min: f32, max: f32) {
        self.coarsen(exponent_for(min, max));
    }

    /// Adds counts made by [`count_values`] at this histogram's exponent.
    pub(crate) fn add(&mut self, counts: &[u32]) {
        for (sum, &count) in self.counts.iter_mut().zip(counts) {
            *sum += u64::from(count);
            self.total += u64::from(count);
        }
    }

    /// `(k, count)` of every bin.
    pub(crate) fn indexed(&self) -> impl DoubleEndedIterator<Item = (i32, u64)> + '_ {
        self.counts.iter().enumerate().map(|(i, &count)| (i as i32 - HALF, count))
    }

    fn coarsen(&mut self, exponent: i32) {
        if exponent <= self.exponent {
            return;
        }
        let mut counts = vec![0; BINS];
        for (k, count) in self.indexed() {
            counts[coarser(k, exponent - self.exponent)] += count;
        }
        self.counts = counts;
        self.exponent = exponent;
    }

    fn interpolate(&self, q: f64, bins: impl Iterator<Item = (i32, u64)>) -> Option<f64> {
        let target = q.clamp(0.0, 1.0) * self.total as f64;
        let mut below = 0.0;
        for (k, count) in bins.filter(|&(_, count)| count > 0) {
            let count = count as f64;
            if below + count >= target {
                return Some((k as f64 + (target - below) / count) * self.bin_width());
            }
            below += count;
        }
        None
    }
}

/// Index of the bin, `2^shift` times wider, that holds bin `k`: an arithmetic shift is a division rounding down.
fn coarser(k: i32, shift: i32) -> usize {
    ((k >> shift.min(31)) + HALF) as usize
}

/// Adds the values, which are finite and inside the bins of this exponent, to `counts`.
pub(crate) fn count_values(isa: Isa, x: &[f32], exponent: i32, counts: &mut [u32]) {
    histogram(isa, x, power_of_two(-exponent) as f32, counts);
    // x * 2^-e is exact unless it falls below the smallest subnormal. For a negative x it then rounds to -0, which
    // belongs to the bin above its own. That takes |x| <= 2^(e - 150), so it cannot happen for e < 1.
    if exponent >= 1 {
        let limit = -power_of_two(exponent - 150) as f32;
        let lost: u32 = x.iter().map(|&x| u32::from(x < 0.0 && x >= limit)).sum();
        counts[HALF as usize] -= lost;
        counts[HALF as usize - 1] += lost;
    }
}

/// The smallest exponent whose bins hold every value of `[min, max]`.
pub(crate) fn exponent_for(min: f32, max: f32) -> i32 {
    // floor(log2 |x|); for subnormals some number below MIN_EXPONENT.
    let log2 = |x: f32| (x.abs().to_bits() >> 23) as i32 - 127;
    let is_power_of_two = |x: f32| x.to_bits().trailing_zeros() >= 23;
    // Below 4096 * 2^e above zero; down to and including -4096 * 2^e below.
    let above = if max > 0.0 { log2(max) + 1 - HALF_LOG2 } else { MIN_EXPONENT };
    let below =
        if min < 0.0 { log2(min) + i32::from(!is_power_of_two(min)) - HALF_LOG2 } else { MIN_EXPONENT };
    above.max(below).max(MIN_EXPONENT)
}

/// `2^exponent`, exact for every exponent of a normal f64.
pub(crate) fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, read aloud: exact arithmetic in f64, one value after another.
    fn by_definition(values: &[f32]) -> Histogram {
        let fits = |e: i32| values.iter().all(|&x| bin_of(x, e).is_some());
        let exponent = (MIN_EXPONENT..=MAX_EXPONENT).find(|&e| fits(e)).unwrap();
        let mut counts = vec![0; BINS];
        for &x in values {
            counts[bin_of(x, exponent).unwrap()] += 1;
        }
        Histogram::from_parts(exponent, counts).unwrap()
    }

    fn bin_of(x: f32, exponent: i32) -> Option<usize> {
        let k = (f64::from(x) / power_of_two(exponent)).floor() + f64::from(HALF);
        (0.0..BINS as f64).contains(&k).then_some(k as usize)
    }

    fn histogram_of(isa: Isa, values: &[f32]) -> Histogram {
        let mut result = Histogram::new();
        let min = values.iter().copied().fold(0.0, f32::min);
        let max = values.iter().copied().fold(0.0, f32::max);
        result.cover(min, max);
        let mut counts = vec![0; BINS];
        count_values(isa, values, result.exponent(), &mut counts);
        result.add(&counts);
        result
    }

    fn any_finite() -> impl Strategy<Value = f32> {
        prop_oneof![
            any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |x| x.is_finite()),
            -8f32..8.0,
            (-149i32..128, any::<bool>()).prop_map(|(e, negative)| {
                let x = power_of_two(e) as f32;
                if negative { -x } else { x }
            }),
            Just(0.0),
            Just(-0.0),
        ]
    }

    #[test]
    fn the_exponent_is_the_smallest_that_holds_the_extremes() {
        let cases = [
            (0.0, 0.0, MIN_EXPONENT),
            (-1e-40, 1e-40, MIN_EXPONENT),
            (0.0, 4095.999, 0),
            (0.0, 4096.0, 1),
            (-4096.0, 0.0, 0),
            (-4096.0, 4096.0, 1),
            (-4096.001, 0.0, 1),
            (-1.0, 0.5, -12),
            (-1.0, 1.0, -11),
            (f32::MIN, f32::MAX, MAX_EXPONENT),
        ];
        for (min, max, exponent) in cases {
            assert_eq!(exponent_for(min, max), exponent, "[{min}, {max}]");
        }
    }

    #[test]
    fn parts_that_are_no_histogram_are_refused() {
        let mut too_many = vec![0; BINS];
        too_many[0] = MAX_VALUES;
        too_many[1] = 1;
        let mut overflowing = vec![0; BINS];
        overflowing[..2].fill(u64::MAX);
        for (exponent, counts) in [
            (0, vec![0; BINS - 1]),
            (MIN_EXPONENT - 1, vec![0; BINS]),
            (MAX_EXPONENT + 1, vec![0; BINS]),
            (0, too_many),
            (0, overflowing),
        ] {
            assert_eq!(Histogram::from_parts(exponent, counts), None);
        }
    }

    #[test]
    fn a_full_histogram_refuses_more_and_stays_as_it_was() {
        let mut counts = vec![0; BINS];
        counts[BINS / 2] = MAX_VALUES;
        let mut full = Histogram::from_parts(0, counts).unwrap();
        let before = full.clone();
        assert_eq!(full.merge(&histogram_of(Isa::SCALAR, &[1e9])), Err(ObserveError::TooMany));
        assert_eq!(full, before);
    }

    #[test]
    fn no_values_have_no_quantile() {
        assert_eq!(Histogram::new().quantile(0.5), None);
        assert_eq!(Histogram::new().bins().count(), 0);
    }

    proptest! {
        #[test]
        fn counting_is_the_definition_on_every_instruction_set(
            values in prop::collection::vec(any_finite(), 0..200),
        ) {
            let expected = by_definition(&values);
            for isa in Isa::available() {
                prop_assert_eq!(&histogram_of(isa, &values), &expected);
            }
        }

        #[test]
        fn merging_any_split_in_any_order_is_one_pass(
            values in prop::collection::vec((any_finite(), 0usize..4), 0..200), reversed: bool,
        ) {
            let mut parts: Vec<Histogram> = (0..4)
                .map(|part| {
                    let of_part: Vec<f32> =
                        values.iter().filter(|(_, p)| *p == part).map(|(x, _)| *x).collect();
                    by_definition(&of_part)
                })
                .collect();
            if reversed {
                parts.reverse();
            }
            let mut merged = Histogram::new();
            for part in &parts {
                merged.merge(part).unwrap();
            }
            let all: Vec<f32> = values.into_iter().map(|(x, _)| x).collect();
            prop_assert_eq!(merged, by_definition(&all));
        }

        #[test]
        fn quantiles_are_within_one_bin_of_the_sorted_values(
            mut values in prop::collection::vec(-50f32..90.0, 1..300), q in 0f64..=1.0,
        ) {
            let histogram = by_definition(&values);
            let rank = ((q * values.len() as f64).ceil() as usize).max(1) - 1;
            values.sort_by(f32::total_cmp);
            let error = histogram.quantile(q).unwrap() - f64::from(values[rank]);
            prop_assert!(error.abs() <= histogram.bin_width());

            values.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
            let error = histogram.absolute_quantile(q).unwrap() - f64::from(values[rank].abs());
            prop_assert!(error.abs() <= histogram.bin_width());
        }
    }
}
