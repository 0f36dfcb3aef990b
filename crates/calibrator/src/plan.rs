//! Which samples are used, and in which batches: a function of the whole set and the seed alone.

use zeropoint_core::{Fingerprint, Rng};
use zeropoint_models::{ModelError, TokenSequence, Tokenizer};

use crate::dataset::Sample;
use crate::shard::{Shard, assign};

/// Batches of indices into a list of sequences, longest sequences first.
///
/// Sequences of similar length share a batch, which keeps the memory of attention even and shows the largest batch
/// first. The plan depends on lengths and batch size only, so it is the same on every run and for any thread count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchPlan {
    batches: Vec<Vec<usize>>,
}

impl BatchPlan {
    /// Plans batches of at most `batch_size` sequences (0 counts as 1).
    pub fn new(sequences: &[TokenSequence], batch_size: usize) -> Self {
        Self::of_lengths(&sequences.iter().map(TokenSequence::len).collect::<Vec<_>>(), batch_size)
    }

    /// As [`BatchPlan::new`], for sequences of these lengths.
    pub fn of_lengths(lengths: &[usize], batch_size: usize) -> Self {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(lengths[i]), i));
        Self { batches: order.chunks(batch_size.max(1)).map(<[usize]>::to_vec).collect() }
    }

    /// The batches in order.
    pub fn batches(&self) -> &[Vec<usize>] {
        &self.batches
    }

    /// Samples in all batches.
    pub fn samples(&self) -> usize {
        self.batches.iter().map(Vec::len).sum()
    }
}

/// Indices of the samples to use: `count` of `available`, seeded, in file order.
pub fn choose_samples(available: usize, count: usize, seed: u64) -> Vec<usize> {
    Rng::new(seed).sample(available, count)
}

/// A calibration set: the chosen samples as tokens, in planned batches.
#[derive(Debug, Clone)]
pub struct CalibrationSet {
    /// The samples in file order.
    pub sequences: Vec<TokenSequence>,
    /// The batches they are run in.
    pub plan: BatchPlan,
    /// How many samples the data held before `samples` were chosen.
    pub available: usize,
}

impl CalibrationSet {
    /// Chooses `samples` of `data`, and tokenises and batches them.
    pub fn new(
        data: &[Sample],
        tokenizer: &Tokenizer,
        samples: usize,
        batch_size: usize,
        seed: u64,
    ) -> Result<Self, ModelError> {
        let chosen = choose_samples(data.len(), samples, seed).into_iter().map(|i| &data[i]);
        let texts: Vec<_> = chosen.map(Sample::text).collect();
        let sequences = tokenizer.encode_all(&texts)?;
        let plan = BatchPlan::new(&sequences, batch_size);
        Ok(Self { sequences, plan, available: data.len() })
    }

    /// Tokens over all samples.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(TokenSequence::len).sum()
    }

    /// Tokens of the samples in some batches of this set.
    pub fn tokens_in(&self, plan: &BatchPlan) -> usize {
        plan.batches().iter().flatten().map(|&i| self.sequences[i].len()).sum()
    }

    /// The batches that a shard takes, in the order of the whole plan: a function of the plan and the number of shards.
    ///
    /// Batches stay whole, because their rows go through one product together, and each belongs to one shard. The tokens
    /// of any two shards differ by at most those of the largest batch; where there are more shards than batches, some
    /// are empty.
    pub fn shard(&self, shard: Shard) -> BatchPlan {
        let batches = self.plan.batches();
        let tokens: Vec<usize> =
            batches.iter().map(|batch| batch.iter().map(|&i| self.sequences[i].len()).sum()).collect();
        let taken = assign(&tokens, shard.of());
        let own = batches.iter().zip(taken).filter(|(_, taker)| *taker == shard.index());
        BatchPlan { batches: own.map(|(batch, _)| batch.clone()).collect() }
    }

    /// Identifies the token ids and the batches: everything of the data that statistics depend on.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut builder = Fingerprint::builder("calibration-set");
        let bytes = |values: &[u32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        for batch in self.plan.batches() {
            builder.field("batch", (batch.len() as u64).to_le_bytes());
            for &i in batch {
                builder.field("ids", bytes(&self.sequences[i].ids));
                builder.field("types", bytes(&self.sequences[i].type_ids));
                // What is left out of the pooling reaches the sites behind it.
                if self.sequences[i].prompt > 0 {
                    builder.field("prompt", (self.sequences[i].prompt as u64).to_le_bytes());
                }
            }
        }
        builder.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_lengths(lengths: &[usize]) -> Vec<TokenSequence> {
        lengths.iter().map(|&n| TokenSequence { ids: vec![1; n], type_ids: vec![0; n], prompt: 0 }).collect()
    }

    #[test]
    fn batches_hold_neighbours_in_length_longest_first() {
        let plan = BatchPlan::new(&of_lengths(&[3, 9, 5, 9, 1]), 2);
        assert_eq!(plan.batches(), [vec![1, 3], vec![2, 0], vec![4]]);
    }

    #[test]
    fn shards_take_whole_batches_in_the_order_of_the_plan() {
        let sequences = of_lengths(&[9, 8, 7, 6, 5, 4, 3, 2, 1]);
        let plan = BatchPlan::new(&sequences, 2);
        let set = CalibrationSet { sequences, plan, available: 9 };
        for of in 1..=8 {
            let shards: Vec<BatchPlan> = (1..=of).map(|i| set.shard(Shard::new(i, of).unwrap())).collect();
            for shard in &shards {
                let of_set = set.plan.batches().iter().filter(|batch| shard.batches().contains(batch));
                assert!(of_set.eq(shard.batches()), "{of}: {shard:?}");
            }
            let mut batches: Vec<_> = shards.iter().flat_map(|shard| shard.batches().to_vec()).collect();
            batches.sort();
            assert_eq!(batches, set.plan.batches(), "{of}: every batch once");
            assert_eq!(shards.iter().map(BatchPlan::samples).sum::<usize>(), 9);
            assert_eq!(shards.iter().map(|shard| set.tokens_in(shard)).sum::<usize>(), set.tokens());
            assert_eq!(
                shards.iter().filter(|shard| shard.samples() == 0).count(),
                of.saturating_sub(5) as usize
            );
        }
    }

    #[test]
    fn samples_are_seeded_and_in_file_order() {
        let chosen = choose_samples(100, 10, 42);
        assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(chosen, choose_samples(100, 10, 42));
        assert_ne!(chosen, choose_samples(100, 10, 43));
    }

    #[test]
    fn the_fingerprint_sees_tokens_and_batches() {
        let set = |ids: Vec<u32>, batch: usize| {
            let sequences = vec![
                TokenSequence { type_ids: vec![0; ids.len()], ids, prompt: 0 },
                TokenSequence { ids: vec![7], type_ids: vec![0], prompt: 0 },
            ];
            let plan = BatchPlan::new(&sequences, batch);
            CalibrationSet { sequences, plan, available: 2 }.fingerprint()
        };
        assert_eq!(set(vec![1, 2], 2), set(vec![1, 2], 2));
        assert_ne!(set(vec![1, 2], 2), set(vec![1, 3], 2));
        assert_ne!(set(vec![1, 2], 2), set(vec![1, 2], 1));
    }
}
