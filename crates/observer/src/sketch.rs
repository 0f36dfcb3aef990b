//! Distributions of many lanes at once, coarse and small: a histogram over logarithmic bins for each.
//!
//! A lane is a channel, or one of the extremes of a row. The bins reach twelve powers of two down from the largest
//! magnitude of all lanes; what is smaller shares the lowest bin of its sign. That largest magnitude decides alone which
//! bins there are, their edges are the same whatever was observed, and when it rises, bins that fall below the window
//! are added to the lowest: the counts are a pure function of the multiset of values, and merging is exact.

use std::fmt;
use std::ops::RangeInclusive;

use rayon::prelude::*;
use zeropoint_kernels::{Isa, LogBins, count_columns};

use crate::histogram::power_of_two;

/// Powers of two that the bins reach down from the largest magnitude. What lies below is less than a sixteenth of the
/// quantisation step of a range that holds everything.
const OCTAVES: u32 = 12;

/// Lanes that one thread counts at a time: their counts, 384 bytes each, stay in its second-level cache, and what it
/// reads of a row is long enough to be worth the way there. Of 1536 channels, 32 at a time take four times as long.
const LANES_TOGETHER: RangeInclusive<usize> = 64..=192;

/// Counts of the values of each lane by magnitude and sign.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Sketch {
    bins: LogBins,
    /// For each lane `2 * per_sign` counts: by rising magnitude, first from zero up, then those below zero.
    counts: Vec<u32>,
}

impl fmt::Debug for Sketch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sketch").field("bins", &self.bins).finish_non_exhaustive()
    }
}

impl Sketch {
    /// Counts of one lane with so many bins to a power of two, as an exponent of 2.
    pub(crate) const fn lane_len(mantissa_bits: u32) -> usize {
        2 * (OCTAVES << mantissa_bits) as usize
    }

    /// No values yet.
    pub(crate) fn new(lanes: usize, mantissa_bits: u32) -> Self {
        let bins = LogBins { mantissa_bits, per_sign: OCTAVES << mantissa_bits, lowest: 0 };
        Self { bins, counts: vec![0; lanes * bins.len()] }
    }

    /// With these counts, for values up to `absmax`; `None` if they are not those of `lanes` lanes.
    pub(crate) fn from_parts(
        lanes: usize,
        mantissa_bits: u32,
        absmax: f32,
        counts: Vec<u32>,
    ) -> Option<Self> {
        let mut sketch = Self::new(0, mantissa_bits);
        sketch.bins.lowest = sketch.lowest_for(absmax);
        sketch.counts = counts;
        (Some(sketch.counts.len()) == lanes.checked_mul(sketch.bins.len())).then_some(sketch)
    }

    /// All counts, lane by lane.
    pub(crate) fn counts(&self) -> &[u32] {
        &self.counts
    }

    pub(crate) fn lanes(&self) -> impl ExactSizeIterator<Item = Lane<'_>> {
        self.counts.chunks_exact(self.bins.len()).map(|counts| Lane { bins: self.bins, counts })
    }

    /// Adds rows of one value for each lane, none above `absmax` in magnitude, which is at least that of all before.
    pub(crate) fn observe(&mut self, isa: Isa, x: &[f32], absmax: f32) {
        self.rise(self.lowest_for(absmax));
        let bins = self.bins;
        let lanes = self.counts.len() / bins.len();
        let (least, most) = LANES_TOGETHER.into_inner();
        let together = lanes.div_ceil(rayon::current_num_threads()).clamp(least, most);
        let tasks = self.counts.par_chunks_mut(together * bins.len()).enumerate();
        tasks.for_each(|(i, counts)| count_columns(isa, x, lanes, i * together, bins, counts));
    }

    /// Adds the counts of another sketch of as many lanes.
    pub(crate) fn merge(&mut self, other: &Self) {
        let lowest = self.bins.lowest.max(other.bins.lowest);
        self.rise(lowest);
        let mut other = other.clone();
        other.rise(lowest);
        for (sum, count) in self.counts.iter_mut().zip(other.counts) {
            *sum += count;
        }
    }

    fn lowest_for(&self, absmax: f32) -> u32 {
        (self.bins.key(absmax) + 1).saturating_sub(self.bins.per_sign)
    }

    /// Moves the window up; what falls out at its lower end is added to the lowest bin.
    fn rise(&mut self, lowest: u32) {
        let shift = lowest.saturating_sub(self.bins.lowest) as usize;
        if shift == 0 {
            return;
        }
        let per_sign = self.bins.per_sign as usize;
        for side in self.counts.chunks_exact_mut(per_sign) {
            let fallen = shift.min(per_sign - 1);
            let below = side[..=fallen].iter().sum();
            side.copy_within(fallen.., 0);
            side[per_sign - fallen..].fill(0);
            side[0] = below;
        }
        self.bins.lowest = lowest;
    }
}

/// The distribution of one lane.
#[derive(Clone, Copy)]
pub(crate) struct Lane<'a> {
    bins: LogBins,
    counts: &'a [u32],
}

impl Lane<'_> {
    /// Values counted.
    pub(crate) fn count(self) -> u64 {
        self.counts.iter().map(|&count| u64::from(count)).sum()
    }

    /// The bins of values and their counts, from the most negative up: `(lower, upper, count)`.
    fn ascending(self) -> impl DoubleEndedIterator<Item = (f64, f64, u64)> {
        let (above, below) = self.counts.split_at(self.bins.per_sign as usize);
        let below = (0..).zip(below).map(move |(i, &count)| (-self.edge(i + 1), -self.edge(i), count));
        let above = (0..).zip(above).map(move |(i, &count)| (self.edge(i), self.edge(i + 1), count));
        // `(0..)` has no end to begin from.
        let below: Vec<_> = below.collect();
        let above: Vec<_> = above.collect();
        below.into_iter().rev().chain(above).map(|(lower, upper, count)| (lower, upper, u64::from(count)))
    }

    /// The bins of magnitudes and their counts.
    fn magnitudes(self) -> impl Iterator<Item = (f64, f64, u64)> {
        let (above, below) = self.counts.split_at(self.bins.per_sign as usize);
        let both = above.iter().zip(below).map(|(&a, &b)| u64::from(a) + u64::from(b));
        (0..).zip(both).map(move |(i, count)| (self.edge(i), self.edge(i + 1), count))
    }

    /// Where bin `i` of the values above zero begins.
    fn edge(self, i: u32) -> f64 {
        if i == 0 {
            return 0.0;
        }
        let bits = (self.bins.lowest + i) << (23 - self.bins.mantissa_bits);
        // One past the largest finite number.
        if bits >= f32::INFINITY.to_bits() { power_of_two(128) } else { f64::from(f32::from_bits(bits)) }
    }

    /// The value below which a fraction `q` lies, to one bin; 0 without values. Values are taken to lie evenly in
    /// their bins, as [`Histogram::quantile`](crate::Histogram::quantile) does.
    pub(crate) fn quantile(self, q: f64) -> f64 {
        interpolate(self.ascending(), q * self.count() as f64)
    }

    /// As [`quantile`](Self::quantile), of magnitudes.
    pub(crate) fn absolute_quantile(self, q: f64) -> f64 {
        interpolate(self.magnitudes(), q * self.count() as f64)
    }

    /// The end of a bin that at most a fraction `rest` of the values lie above, none of them in the bin.
    pub(crate) fn upper_end(self, rest: f64) -> f64 {
        let allowed = rest * self.count() as f64;
        let mut above = 0.0;
        for (_, upper, count) in self.ascending().rev().filter(|&(_, _, count)| count > 0) {
            above += count as f64;
            if above > allowed {
                return upper;
            }
        }
        0.0
    }

    /// As [`upper_end`](Self::upper_end), at the other end.
    pub(crate) fn lower_end(self, rest: f64) -> f64 {
        let allowed = rest * self.count() as f64;
        let mut below = 0.0;
        for (lower, _, count) in self.ascending().filter(|&(_, _, count)| count > 0) {
            below += count as f64;
            if below > allowed {
                return lower;
            }
        }
        0.0
    }

    /// Whether these are `rows` values of which the largest magnitude is `absmax`.
    pub(crate) fn fits_magnitudes(self, rows: u64, absmax: f32) -> bool {
        let last = self.magnitudes().filter(|&(_, _, count)| count > 0).last();
        self.count() == rows && last.is_some_and(|(lower, _, _)| lower == self.edge(self.bins.index(absmax)))
    }

    /// Whether these are `rows` values of which `min` is the smallest.
    pub(crate) fn begins_at(self, rows: u64, min: f32) -> bool {
        let first = self.ascending().find(|&(_, _, count)| count > 0);
        self.count() == rows && first.is_some_and(|(lower, upper, _)| self.holds(lower, upper, min))
    }

    /// Whether these are `rows` values of which `max` is the largest.
    pub(crate) fn ends_at(self, rows: u64, max: f32) -> bool {
        let last = self.ascending().rev().find(|&(_, _, count)| count > 0);
        self.count() == rows && last.is_some_and(|(lower, upper, _)| self.holds(lower, upper, max))
    }

    /// Whether no value is below zero.
    pub(crate) fn is_positive(self) -> bool {
        self.counts[self.bins.per_sign as usize..].iter().all(|&count| count == 0)
    }

    /// Whether the bin between these edges is that of `x`.
    fn holds(self, lower: f64, upper: f64, x: f32) -> bool {
        match self.bins.index(x).checked_sub(self.bins.per_sign) {
            Some(below) => (lower, upper) == (-self.edge(below + 1), -self.edge(below)),
            None => lower == self.edge(self.bins.index(x)),
        }
    }
}

fn interpolate(bins: impl Iterator<Item = (f64, f64, u64)>, target: f64) -> f64 {
    let mut below = 0.0;
    for (lower, upper, count) in bins.filter(|&(_, _, count)| count > 0) {
        let count = count as f64;
        if below + count >= target {
            return lower + (target - below).max(0.0) / count * (upper - lower);
        }
        below += count;
    }
    0.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MANTISSA_BITS: u32 = 2;

    fn absmax_of(x: &[f32]) -> f32 {
        x.iter().fold(0.0, |a, x| a.max(x.abs()))
    }

    fn sketch_of(lanes: usize, x: &[f32]) -> Sketch {
        let mut sketch = Sketch::new(lanes, MANTISSA_BITS);
        sketch.observe(Isa::SCALAR, x, absmax_of(x));
        sketch
    }

    fn finite() -> impl Strategy<Value = f32> {
        prop_oneof![
            any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |x| x.is_finite()),
            -8f32..8.0,
            prop::sample::select(vec![0.0, -0.0, 1e-45, -1e-45, f32::MAX, f32::MIN, f32::MIN_POSITIVE]),
        ]
    }

    #[test]
    fn bins_hold_what_their_edges_say() {
        for absmax in [1.0f32, 1.9, f32::MAX, f32::MIN_POSITIVE, 1e-45] {
            for part in [1.0, 0.7, 0.5, 1e-3, 1e-9, 0.0] {
                for x in [absmax * part, -absmax * part] {
                    let sketch = sketch_of(1, &[absmax, x]);
                    let lane = sketch.lanes().next().unwrap();
                    let holds = |(lower, upper, count): &(f64, f64, u64)| {
                        let x = f64::from(x);
                        *count > 0
                            && if x < 0.0 {
                                *lower <= x && x <= *upper
                            } else {
                                (*lower..*upper).contains(&x)
                            }
                    };
                    assert!(lane.ascending().any(|bin| holds(&bin)), "{absmax} {x}");
                    assert_eq!(lane.count(), 2);
                }
            }
        }
    }

    #[test]
    fn both_zeros_and_all_that_is_small_share_the_lowest_bins() {
        assert_eq!(sketch_of(1, &[1.0, 0.0]), sketch_of(1, &[1.0, -0.0]));
        assert_eq!(sketch_of(1, &[1.0, 1e-4]), sketch_of(1, &[1.0, 1e-30]));
        assert_ne!(sketch_of(1, &[1.0, -1e-30]), sketch_of(1, &[1.0, 1e-30]));
        assert_eq!(
            sketch_of(1, &[0.0]).lanes().next().unwrap().quantile(1.0),
            f64::from(1e-45f32) * (1u64 << 21) as f64
        );
    }

    #[test]
    fn no_values_have_quantile_zero() {
        let none = Sketch::new(2, MANTISSA_BITS);
        for lane in none.lanes() {
            assert_eq!((lane.count(), lane.quantile(0.5), lane.absolute_quantile(0.5)), (0, 0.0, 0.0));
            assert_eq!((lane.upper_end(0.1), lane.lower_end(0.1)), (0.0, 0.0));
        }
    }

    proptest! {
        #[test]
        fn merging_any_split_in_any_order_is_one_pass(
            rows in prop::collection::vec(((finite(), finite()), 0usize..3), 0..60), reversed: bool,
        ) {
            let of = |keep: &dyn Fn(usize) -> bool| {
                let x: Vec<f32> = rows.iter().filter(|(_, part)| keep(*part)).flat_map(|((a, b), _)| [*a, *b]).collect();
                sketch_of(2, &x)
            };
            let mut parts = [of(&|part| part == 0), of(&|part| part == 1), of(&|part| part == 2)];
            if reversed {
                parts.reverse();
            }
            let mut merged = Sketch::new(2, MANTISSA_BITS);
            for part in &parts {
                merged.merge(part);
            }
            prop_assert_eq!(merged, of(&|_| true));
        }

        #[test]
        fn quantiles_are_within_a_bin_of_the_sorted_values(
            mut x in prop::collection::vec(-50f32..90.0, 1..200), q in 0f64..=1.0,
        ) {
            let sketch = sketch_of(1, &x);
            let lane = sketch.lanes().next().unwrap();
            let rank = ((q * x.len() as f64).ceil() as usize).max(1) - 1;
            // A bin is at most a quarter of what it holds wide; below the window, as wide as its end.
            let absmax = f64::from(absmax_of(&x));
            let widest = |value: f32| f64::from(value.abs() / 4.0).max(absmax / 2048.0);
            x.sort_by(f32::total_cmp);
            let expected = x[rank];
            prop_assert!((lane.quantile(q) - f64::from(expected)).abs() <= widest(expected));
            let mut magnitudes: Vec<f32> = x.iter().map(|x| x.abs()).collect();
            magnitudes.sort_by(f32::total_cmp);
            let expected = magnitudes[rank];
            prop_assert!((lane.absolute_quantile(q) - f64::from(expected)).abs() <= widest(expected));
        }

        #[test]
        fn the_ends_leave_out_no_more_than_allowed_and_one_bin_less_would(
            x in prop::collection::vec(-50f32..90.0, 1..200), rest in 0f64..0.6,
        ) {
            let sketch = sketch_of(1, &x);
            let lane = sketch.lanes().next().unwrap();
            let (lower, upper) = (lane.lower_end(rest), lane.upper_end(rest));
            let share = |count: usize| count as f64 / x.len() as f64;
            prop_assert!(share(x.iter().filter(|&&x| f64::from(x) > upper).count()) <= rest);
            prop_assert!(share(x.iter().filter(|&&x| f64::from(x) < lower).count()) <= rest);
            // Where the bin begins, at most a quarter further in, more than allowed would be left out.
            let narrower = upper - upper.abs() * 0.26 - f64::from(absmax_of(&x)) / 2000.0;
            prop_assert!(share(x.iter().filter(|&&x| f64::from(x) > narrower).count()) > rest);
        }
    }
}
