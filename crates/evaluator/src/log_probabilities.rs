//! Rows of log-probabilities over a vocabulary, in 16 bits an entry.
//!
//! The largest entries of a row and the one of the token that follows are kept in f32. Every other one is a multiple of a step
//! above a lowest value, both of which the row has for itself: `l' = lowest + step * code`. The lowest value is then moved so
//! that the probabilities of these entries have the sum that they had, which makes the row a distribution again and leaves
//! its perplexity as it was.
//!
//! # What it changes
//!
//! Let T be the entries that are coded, `m` their probability, `p` the exact and `p'` the decoded distribution, and `d = l' - l`
//! with `|d| <= e`. The codes span at most [`SPAN`] nats, so a rounding is at most `SPAN / 131070`; the move is no larger, as
//! it is a mean of roundings; hence `e <= SPAN / 65535 < 0.001`. For any third distribution `q`, with `r = ln (p / q)`,
//!
//! ```text
//! KL(p' || q) - KL(p || q) = sum over T of (p' - p) r  +  KL(p' || p)
//! |sum over T of (p' - p) r| <= (exp e - 1) sum over T of p |r|,      KL(p' || p) <= m e^2
//! ```
//!
//! because the sums of `p` and `p'` over T are the same. Were all roundings to conspire, a row whose coded entries hold a
//! tenth of the probability, at the full span, and differ from `q` by a tenth of a nat would move by 1e-5 nats. They do not:
//! they have both signs and thousands of addends, none of which is more than 1/[`EXACT`] of the whole, so that the mean over rows moves
//! by less than 1e-6. Entries more than [`SPAN`] nats below the largest coded one are raised to that; they have less than
//! 2e-28 of its probability each.

use thiserror::Error;

/// Entries of a row that are kept in f32.
pub const EXACT: usize = 128;

/// Most nats between the largest and the smallest entry that is coded.
pub const SPAN: f64 = 64.0;

/// The largest code.
const LARGEST: f64 = 65535.0;

/// A coded row that no row was coded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a row of log-probabilities is damaged")]
pub struct DamagedRow;

/// How rows of so many entries are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowCode {
    columns: usize,
}

impl RowCode {
    /// For rows of `columns` entries.
    pub fn new(columns: usize) -> Self {
        Self { columns }
    }

    /// Bytes of a coded row.
    pub fn bytes(self) -> usize {
        8 + 8 * self.exact() + 2 * self.columns
    }

    fn exact(self) -> usize {
        self.columns.min(EXACT)
    }

    /// Appends to `code` the log-probabilities of a row of finite logits; `next` is the token that follows, if it is known.
    pub fn encode(self, logits: &[f32], next: Option<usize>, code: &mut Vec<u8>) {
        debug_assert_eq!(logits.len(), self.columns);
        let largest = logits.iter().fold(f64::NEG_INFINITY, |best, &logit| best.max(f64::from(logit)));
        let mut shares: Vec<f64> = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).collect();
        let sum: f64 = shares.iter().sum();
        let log_sum = largest + sum.ln();
        let log_probability = |index: usize| f64::from(logits[index]) - log_sum;

        let exact = self.exact_indices(logits, next);
        for &index in &exact {
            // An exact entry is no part of what is coded.
            shares[index] = f64::NAN;
        }
        let coded = || (0..self.columns).filter(|&index| !shares[index].is_nan());
        let (low, high) = coded().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), index| {
            let value = log_probability(index);
            (value.min(low), value.max(high))
        });
        let low = low.max(high - SPAN);
        let step = if high > low { f64::from(((high - low) / LARGEST) as f32) } else { 0.0 };
        let code_of = |index: usize| {
            let steps = if step > 0.0 { ((log_probability(index) - low) / step).round() } else { 0.0 };
            steps.clamp(0.0, LARGEST)
        };
        // The sums of the coded entries' probabilities before and after, less what both have.
        let (mut mass, mut gain) = (0.0, 0.0);
        for index in coded() {
            // Not the share times what it grows by: what had none at all is raised to the lowest of the coded.
            mass += shares[index];
            gain += (low + step * code_of(index) + log_sum - largest).exp() - shares[index];
        }
        let shift = if mass > 0.0 { -(gain / mass).ln_1p() } else { 0.0 };
        let low = if low.is_finite() { low } else { 0.0 };

        code.reserve(self.bytes());
        code.extend_from_slice(&((low + shift) as f32).to_le_bytes());
        code.extend_from_slice(&(step as f32).to_le_bytes());
        for &index in &exact {
            code.extend_from_slice(&(index as u32).to_le_bytes());
            code.extend_from_slice(&(log_probability(index) as f32).to_le_bytes());
        }
        for index in 0..self.columns {
            let steps = if shares[index].is_nan() { 0.0 } else { code_of(index) };
            code.extend_from_slice(&(steps as u16).to_le_bytes());
        }
    }

    /// The entries that are kept in f32, in rising order: the largest, the first of equals, and `next` among them.
    fn exact_indices(self, logits: &[f32], next: Option<usize>) -> Vec<usize> {
        let count = self.exact();
        let mut order: Vec<usize> = (0..self.columns).collect();
        let by_size = |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
        if count < order.len() && count > 0 {
            order.select_nth_unstable_by(count - 1, by_size);
            order.truncate(count);
        }
        if let Some(next) = next.filter(|next| *next < self.columns && !order.contains(next))
            && let Some(last) = order.last_mut()
        {
            // It is the smallest of those that were selected.
            *last = next;
        }
        order.sort_unstable();
        order
    }

    /// The log-probabilities that a row was coded to, in nats.
    pub fn decode(self, code: &[u8], row: &mut [f32]) -> Result<(), DamagedRow> {
        if code.len() != self.bytes() || row.len() != self.columns {
            return Err(DamagedRow);
        }
        let (head, codes) = code.split_at(8 + 8 * self.exact());
        let (scale, exact) = head.split_at(8);
        let (low, step) = (f64::from(float(&scale[..4])), f64::from(float(&scale[4..])));
        if !(low.is_finite() && step.is_finite() && (low + step * LARGEST).abs() <= f64::from(f32::MAX)) {
            return Err(DamagedRow);
        }
        for (value, code) in row.iter_mut().zip(codes.chunks_exact(2)) {
            *value = (low + step * f64::from(u16::from_le_bytes([code[0], code[1]]))) as f32;
        }
        for entry in exact.chunks_exact(8) {
            let index = u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) as usize;
            let value = float(&entry[4..]);
            *row.get_mut(index).filter(|_| value.is_finite()).ok_or(DamagedRow)? = value;
        }
        Ok(())
    }
}

fn float(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zeropoint_core::Rng;

    use super::*;
    use crate::metrics::next_token::NextToken;

    fn decoded(logits: &[f32], next: Option<usize>) -> Vec<f32> {
        let code = RowCode::new(logits.len());
        let mut bytes = Vec::new();
        code.encode(logits, next, &mut bytes);
        assert_eq!(bytes.len(), code.bytes());
        let mut row = vec![f32::NAN; logits.len()];
        code.decode(&bytes, &mut row).unwrap();
        row
    }

    fn log_probabilities(logits: &[f32]) -> Vec<f64> {
        let largest = logits.iter().fold(f64::NEG_INFINITY, |best, &logit| best.max(f64::from(logit)));
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
        logits.iter().map(|&logit| f64::from(logit) - largest - sum.ln()).collect()
    }

    /// Rows of a vocabulary of 20,000 with a spread of so many nats, and one whose logits are so much apart from them.
    fn rows(spread: f64, peak: f64, seed: u64) -> (Vec<f32>, Vec<f32>) {
        let mut rng = Rng::new(seed);
        let mut original: Vec<f32> = (0..20_000).map(|_| (rng.normal() * spread) as f32).collect();
        original[7] += peak as f32;
        let quantized = original.iter().map(|logit| logit + (rng.normal() * 0.3) as f32).collect();
        (original, quantized)
    }

    #[test]
    fn divergences_and_losses_stay_what_they_were() {
        // From all alike to one that has nearly all the probability; the spread of real models is 2 to 4 nats.
        for (spread, peak) in
            [(0.001, 0.0), (0.3, 0.0), (1.0, 0.0), (2.5, 0.0), (2.5, 20.0), (8.0, 0.0), (30.0, 0.0)]
        {
            let (mut divergence, mut loss, mut told) = (0.0, 0.0, 0.0);
            let count = 20;
            for seed in 0..count {
                let (original, quantized) = rows(spread, peak, seed);
                let next = (seed as usize * 37) % original.len();
                let exact = NextToken::compare(&original, &quantized, next).unwrap();
                let coded = decoded(&original, Some(next));
                let found = NextToken::compare(&coded, &quantized, next).unwrap();
                divergence += (found.kl - exact.kl) / f64::from(count as u32);
                loss += (found.losses.0 - exact.losses.0) / f64::from(count as u32);
                told += exact.losses.0 / f64::from(count as u32);
                assert!((found.kl - exact.kl).abs() < 1e-5, "{spread} {peak} {seed}: {found:?} {exact:?}");
                assert_eq!(found.same_top, exact.same_top);
                // Wider rows have entries below the span.
                let is_coded = spread > 8.0 || (found.cosine - exact.cosine).abs() < 1e-5;
                assert!(is_coded, "{spread} {peak}: {found:?} {exact:?}");
            }
            assert!(divergence.abs() < 1e-6, "{spread} {peak}: {divergence:e}");
            // The token's own is in f32, which keeps 24 bits of it.
            let kept = 1e-6 + told * 2f64.powi(-24);
            assert!(loss.abs() < kept, "{spread} {peak}: {loss:e} of {told}");
        }
    }

    #[test]
    fn the_largest_entries_and_the_next_token_are_exact() {
        let (logits, _) = rows(2.0, 5.0, 1);
        let expected = log_probabilities(&logits);
        let smallest = (0..logits.len()).min_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        let found = decoded(&logits, Some(smallest));
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        for &index in order[..EXACT - 1].iter().chain([&smallest]) {
            assert_eq!(found[index], expected[index] as f32, "{index}");
        }
    }

    #[test]
    fn masked_entries_do_not_take_the_codes_of_the_others() {
        let (mut logits, quantized) = rows(2.0, 0.0, 3);
        let exact = NextToken::compare(&logits, &quantized, 0).unwrap();
        logits.truncate(19_000);
        logits.resize(20_000, -1e30);
        let masked = NextToken::compare(&logits, &quantized, 0).unwrap();
        assert!(masked.kl > exact.kl);
        let found = NextToken::compare(&decoded(&logits, Some(0)), &quantized, 0).unwrap();
        assert!((found.kl - masked.kl).abs() < 1e-5, "{found:?} {masked:?}");
    }

    #[test]
    fn a_damaged_row_is_refused() {
        let code = RowCode::new(300);
        let logits: Vec<f32> = (0..300).map(|i| (i % 17) as f32).collect();
        let mut bytes = Vec::new();
        code.encode(&logits, None, &mut bytes);
        let mut row = vec![0.0; 300];
        assert_eq!(code.decode(&bytes[1..], &mut row), Err(DamagedRow));
        assert_eq!(code.decode(&bytes, &mut row[1..]), Err(DamagedRow));
        // Lowest value, step, an index and a value.
        for (at, damage) in [(0, f32::NAN), (4, f32::INFINITY), (4, f32::MAX), (8, -1.0), (12, f32::NAN)] {
            let mut bytes = bytes.clone();
            bytes[at..at + 4].copy_from_slice(&damage.to_le_bytes());
            assert_eq!(code.decode(&bytes, &mut row), Err(DamagedRow), "{at}");
        }
    }

    proptest! {
        #[test]
        fn a_row_stays_a_distribution_near_what_it_was(
            logits in prop::collection::vec(-30f32..30.0, 1..400), next in prop::option::of(0usize..400),
        ) {
            let found = decoded(&logits, next);
            let sum: f64 = found.iter().map(|value| f64::from(*value).exp()).sum();
            prop_assert!((sum - 1.0).abs() < 1e-5, "{}", sum);
            for (found, expected) in found.iter().zip(log_probabilities(&logits)) {
                prop_assert!((f64::from(*found) - expected).abs() < SPAN / LARGEST + 1e-5);
            }
        }
    }
}
