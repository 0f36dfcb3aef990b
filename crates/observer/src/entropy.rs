//! The range of least divergence between a distribution and what quantisation makes of it.
//!
//! The calibration that Migacz describes in "8-bit Inference with `TensorRT`" (GTC 2017). For a candidate range, `P` is
//! the observed distribution with all that saturates added to the outermost bins, and `Q` what is left of it at INT8:
//! the bins of the range, without what saturates, are joined to as many levels as there are integers, and each level's
//! mass is spread evenly over those of its bins that `P` fills. The range of least `KL(P || Q)` is chosen, the widest of
//! equals. Clipping costs because `P` has mass at its ends that `Q` has not; wide levels cost because `Q` forgets how
//! the values lie within them.
//!
//! Symmetric ranges look at magnitudes and 128 levels, as the source does; asymmetric ones at values of both signs and
//! 256 levels. What the source leaves open, and what goes wrong with it:
//!
//! - A bin that `P` fills and `Q` does not makes the divergence infinite. `Q` is mixed with a uniform distribution over
//!   the bins that `P` fills, of weight [`SMOOTHING`].
//! - Values that are exactly zero, as `ReLU` leaves them, quantise without any error, but their tall bin would make every
//!   level around it look bad and so narrow the range. The bin at zero counts no more than its larger neighbour.
//! - A range of fewer bins than levels forgets nothing and is no candidate.
//! - Levels end at whole bins, the nearest to where they should: a level may have one bin more than the next.

use zeropoint_core::Symmetry;

use crate::ActivationStatistics;
use crate::search::Search;

/// Weight of the uniform distribution in `Q`.
const SMOOTHING: f64 = 1e-4;

/// Integers for one sign of a symmetric range, and for an asymmetric range.
const SYMMETRIC_LEVELS: usize = 128;
const ASYMMETRIC_LEVELS: usize = 256;

/// A histogram summed up, so that the divergence of a range costs a look at each level's ends.
pub(crate) struct Entropy {
    /// Bin width in the values' unit.
    unit: f64,
    /// Index of the first bin, counted from zero: 0 for magnitudes.
    first: i64,
    counts: Vec<f64>,
    /// `below[i]`: sums over all bins before bin `i`; one more entry than bins.
    below: Vec<Sums>,
    levels: usize,
}

/// Over some bins of counts `c`.
#[derive(Clone, Copy, Default)]
struct Sums {
    /// Sum of `c`.
    mass: f64,
    /// How many are not zero.
    filled: f64,
    /// Sum of `c ln c`.
    entropy: f64,
}

impl Sums {
    fn minus(self, other: Self) -> Self {
        Self {
            mass: self.mass - other.mass,
            filled: self.filled - other.filled,
            entropy: self.entropy - other.entropy,
        }
    }
}

/// `x ln x`, 0 at 0.
fn x_ln_x(x: f64) -> f64 {
    if x > 0.0 { x * x.ln() } else { 0.0 }
}

impl Entropy {
    pub(crate) fn new(statistics: &ActivationStatistics, symmetry: Symmetry) -> Self {
        let histogram = statistics.histogram();
        let all: Vec<(i64, u64)> = histogram.indexed().map(|(k, count)| (i64::from(k), count)).collect();
        let half = all.len() / 2;
        let (first, mut counts): (i64, Vec<u64>) = match symmetry {
            Symmetry::Symmetric => {
                // Bin -1 - k holds the magnitudes of bin k.
                let folded = all[half..].iter().zip(all[..half].iter().rev());
                (0, folded.map(|((_, above), (_, below))| above + below).collect())
            }
            Symmetry::Asymmetric => {
                let filled = |&&(k, count): &&(i64, u64)| count > 0 || k == 0;
                let first = all.iter().find(filled).map_or(0, |&(k, _)| k);
                let last = all.iter().rev().find(filled).map_or(0, |&(k, _)| k);
                let kept = all.iter().filter(|(k, _)| (first..=last).contains(k));
                (first, kept.map(|&(_, count)| count).collect())
            }
        };
        let zero = (-first) as usize;
        let neighbours = [zero.checked_sub(1), Some(zero + 1)];
        let tallest = neighbours.into_iter().flatten().filter_map(|i| counts.get(i)).max().copied();
        if let (Some(count), Some(tallest)) = (counts.get_mut(zero), tallest) {
            *count = tallest.min(*count);
        }
        let counts: Vec<f64> = counts.into_iter().map(|count| count as f64).collect();
        let mut below = vec![Sums::default()];
        let mut sum = Sums::default();
        for &count in &counts {
            sum.mass += count;
            sum.filled += if count > 0.0 { 1.0 } else { 0.0 };
            sum.entropy += x_ln_x(count);
            below.push(sum);
        }
        let levels = match symmetry {
            Symmetry::Symmetric => SYMMETRIC_LEVELS,
            Symmetry::Asymmetric => ASYMMETRIC_LEVELS,
        };
        Self { unit: histogram.bin_width(), first, counts, below, levels }
    }

    /// The best range inside the widest one. Where one end alone is free every bin is tried.
    pub(crate) fn range(&self, widest: (f32, f32), symmetry: Symmetry) -> (f32, f32) {
        let len = self.counts.len();
        if symmetry == Symmetry::Symmetric || widest.0 == 0.0 {
            let hi = least((self.levels..=len).rev(), |hi| self.divergence(0, hi));
            let max = hi.map_or(widest.1, |hi| self.end(hi).clamp(0.0, f64::from(widest.1)) as f32);
            return if symmetry == Symmetry::Symmetric { (-max, max) } else { (widest.0, max) };
        }
        if widest.1 == 0.0 {
            let lo = least(0..=len.saturating_sub(self.levels), |lo| self.divergence(lo, len));
            let min = lo.map_or(widest.0, |lo| self.end(lo).clamp(f64::from(widest.0), 0.0) as f32);
            return (min, widest.1);
        }
        let criterion = |min: f32, max: f32| {
            let bin = |end: f64| (end as i64 - self.first).clamp(0, len as i64) as usize;
            let (lo, hi) = (f64::from(min) / self.unit, f64::from(max) / self.unit);
            self.divergence(bin(lo.floor()), bin(hi.ceil()))
        };
        Search { criterion: &criterion, widest, symmetry }.best()
    }

    /// Where a bin begins, in the values' unit.
    fn end(&self, bin: usize) -> f64 {
        (self.first + bin as i64) as f64 * self.unit
    }

    /// `KL(P || Q)` in nats of the range that holds the bins `lo..hi`; infinite where that is no candidate.
    fn divergence(&self, lo: usize, hi: usize) -> f64 {
        if hi < lo + self.levels || hi > self.counts.len() {
            return f64::INFINITY;
        }
        let all = self.below[self.counts.len()].mass;
        let kept = self.below[hi].minus(self.below[lo]);
        let (under, over) = (self.below[lo].mass, all - self.below[hi].mass);
        if kept.mass <= 0.0 {
            return f64::INFINITY;
        }
        // The outermost bins of P hold what saturates; they are filled by it.
        let (first, last) = (self.counts[lo], self.counts[hi - 1]);
        let newly_filled = |count: f64, added: f64| if count == 0.0 && added > 0.0 { 1.0 } else { 0.0 };
        let filled_ends = [newly_filled(first, under), newly_filled(last, over)];
        let filled = kept.filled + filled_ends[0] + filled_ends[1];
        // Sum of p ln p over bins, p in counts; the sum of p is all values.
        let p_ln_p =
            kept.entropy - x_ln_x(first) - x_ln_x(last) + x_ln_x(first + under) + x_ln_x(last + over);
        let mut p_ln_q = 0.0;
        let mut start = lo;
        for level in 0..self.levels {
            let end = lo + (level + 1) * (hi - lo) / self.levels;
            let bins = self.below[end].minus(self.below[start]);
            start = end;
            let (mut mass, mut filled_bins) = (bins.mass, bins.filled);
            if level == 0 {
                mass += under;
                filled_bins += filled_ends[0];
            }
            if level == self.levels - 1 {
                mass += over;
                filled_bins += filled_ends[1];
            }
            if mass > 0.0 {
                let even = bins.mass / (kept.mass * filled_bins);
                p_ln_q += mass * ((1.0 - SMOOTHING) * even + SMOOTHING / filled).ln();
            }
        }
        (p_ln_p - x_ln_x(all) - p_ln_q) / all
    }
}

/// The first of the candidates with the least cost, `None` if every cost is infinite.
fn least(candidates: impl Iterator<Item = usize>, cost: impl Fn(usize) -> f64) -> Option<usize> {
    let mut best = (None, f64::INFINITY);
    for candidate in candidates {
        let cost = cost(candidate);
        if cost < best.1 {
            best = (Some(candidate), cost);
        }
    }
    best.0
}
