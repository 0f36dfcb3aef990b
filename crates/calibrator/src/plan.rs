//! Which samples are used, and in which batches: a function of the whole set and the seed alone.

use zeropoint_core::{Fingerprint, Rng};
use zeropoint_models::{InputRef, ModelError, ModelInput};

use crate::dataset::Sample;
use crate::inputs::Inputs;
use crate::shard::{Shard, assign};

/// Batches of indices into a list of inputs: texts, longest first, then images, never both in one.
///
/// Sequences of similar length share a batch, which keeps the memory of attention even and shows the largest batch
/// first. The plan depends on lengths and batch size only, so it is the same on every run and for any thread count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchPlan {
    batches: Vec<Vec<usize>>,
}

impl BatchPlan {
    /// Plans batches of at most `batch_size` inputs (0 counts as 1).
    pub fn new<'a, T>(inputs: &'a [T], batch_size: usize) -> Self
    where
        InputRef<'a>: From<&'a T>,
    {
        Self::of_some(inputs, 0..inputs.len(), batch_size)
    }

    /// As [`BatchPlan::new`], of those inputs whose indices are given.
    fn of_some<'a, T>(inputs: &'a [T], indices: impl IntoIterator<Item = usize>, batch_size: usize) -> Self
    where
        InputRef<'a>: From<&'a T>,
    {
        let (mut texts, mut images) = (Vec::new(), Vec::new());
        for i in indices {
            match InputRef::from(&inputs[i]) {
                InputRef::Tokens(tokens) => texts.push((std::cmp::Reverse(tokens.len()), i)),
                InputRef::Image(_) => images.push(i),
            }
        }
        texts.sort_unstable();
        let texts: Vec<usize> = texts.into_iter().map(|(_, i)| i).collect();
        let chunks = [&texts, &images].into_iter().flat_map(|order| order.chunks(batch_size.max(1)));
        Self { batches: chunks.map(<[usize]>::to_vec).collect() }
    }

    /// As [`BatchPlan::new`], for texts of these lengths.
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

/// A calibration set: the chosen samples as the model takes them, in planned batches.
#[derive(Debug, Clone)]
pub struct CalibrationSet {
    /// The samples in file order.
    pub inputs: Vec<ModelInput>,
    /// The batches they are run in.
    pub plan: BatchPlan,
    /// How many samples the data held before `samples` were chosen.
    pub available: usize,
}

impl CalibrationSet {
    /// Tokenises or decodes and batches samples that were chosen of `available` ones.
    pub fn of_chosen(
        chosen: &[&Sample],
        available: usize,
        makes: &Inputs,
        batch_size: usize,
    ) -> Result<Self, ModelError> {
        let inputs = makes.encode(chosen)?;
        let plan = BatchPlan::new(&inputs, batch_size);
        Ok(Self { inputs, plan, available })
    }

    /// Tokens over all samples; an image counts as one.
    pub fn tokens(&self) -> usize {
        self.inputs.iter().map(ModelInput::len).sum()
    }

    /// Tokens of the samples in some batches of this set.
    pub fn tokens_in(&self, plan: &BatchPlan) -> usize {
        plan.batches().iter().flatten().map(|&i| self.inputs[i].len()).sum()
    }

    /// Batches of fewer samples, evenly spread over the set in file order: of texts and of images each as many as hold `rows` on
    /// average, and at least one. `rows_of` says how many a sample has: tokens, or patches. All samples where they hold no more.
    pub fn spread(
        &self,
        rows: usize,
        rows_of: &dyn Fn(&ModelInput) -> usize,
        batch_size: usize,
    ) -> BatchPlan {
        let is_image = |i: &usize| matches!(self.inputs[*i], ModelInput::Image(_));
        let (images, texts): (Vec<usize>, Vec<usize>) = (0..self.inputs.len()).partition(is_image);
        let some = |all: Vec<usize>| {
            let held: usize = all.iter().map(|&i| rows_of(&self.inputs[i])).sum();
            let count = if held <= rows { all.len() } else { (rows * all.len()).div_ceil(held).max(1) };
            (0..count).map(|k| all[k * all.len() / count]).collect::<Vec<usize>>()
        };
        let chosen = some(texts).into_iter().chain(some(images));
        BatchPlan::of_some(&self.inputs, chosen, batch_size)
    }

    /// The batches of `plan` that a shard takes, in its order: a function of the plan and the number of shards.
    ///
    /// Batches stay whole, because their rows go through one product together, and each belongs to one shard. The tokens
    /// of any two shards differ by at most those of the largest batch; where there are more shards than batches, some
    /// are empty.
    pub fn shard(&self, plan: &BatchPlan, shard: Shard) -> BatchPlan {
        let batches = plan.batches();
        let tokens: Vec<usize> =
            batches.iter().map(|batch| batch.iter().map(|&i| self.inputs[i].len()).sum()).collect();
        let taken = assign(&tokens, shard.of());
        let own = batches.iter().zip(taken).filter(|(_, taker)| *taker == shard.index());
        BatchPlan { batches: own.map(|(batch, _)| batch.clone()).collect() }
    }

    /// Identifies all of the data, in the batches that they are run in.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint_of(&self.plan)
    }

    /// Identifies the token ids, the pixels, the samples' numbers and the batches of a plan: everything of the data that statistics
    /// of these batches depend on.
    pub fn fingerprint_of(&self, plan: &BatchPlan) -> Fingerprint {
        let mut builder = Fingerprint::builder("calibration-set");
        let bytes = |values: &[u32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        for batch in plan.batches() {
            builder.field("batch", (batch.len() as u64).to_le_bytes());
            for &i in batch {
                // Moving averages are taken in the samples' order, which batches do not keep.
                builder.field("sample", (i as u64).to_le_bytes());
                match &self.inputs[i] {
                    ModelInput::Tokens(tokens) => {
                        builder.field("ids", bytes(&tokens.ids));
                        builder.field("types", bytes(&tokens.type_ids));
                        // What is left out of the pooling reaches the sites behind it.
                        if tokens.prompt > 0 {
                            builder.field("prompt", (tokens.prompt as u64).to_le_bytes());
                        }
                    }
                    ModelInput::Image(image) => {
                        let shape = image.shape.iter().flat_map(|side| (*side as u64).to_le_bytes());
                        builder.field("shape", shape.collect::<Vec<u8>>());
                        let pixels = image.values.iter().flat_map(|value| value.to_le_bytes());
                        builder.field("pixels", pixels.collect::<Vec<u8>>());
                    }
                }
            }
        }
        builder.finish()
    }
}

#[cfg(test)]
mod tests {
    use zeropoint_models::{ImagePixels, TokenSequence};

    use super::*;

    fn text(ids: Vec<u32>) -> ModelInput {
        TokenSequence { type_ids: vec![0; ids.len()], ids, prompt: 0 }.into()
    }

    fn image(value: f32) -> ModelInput {
        ModelInput::Image(ImagePixels { values: vec![value; 3], shape: [3, 1, 1] })
    }

    fn of_lengths(lengths: &[usize]) -> Vec<ModelInput> {
        lengths.iter().map(|&n| text(vec![1; n])).collect()
    }

    #[test]
    fn batches_hold_neighbours_in_length_longest_first() {
        let plan = BatchPlan::new(&of_lengths(&[3, 9, 5, 9, 1]), 2);
        assert_eq!(plan.batches(), [vec![1, 3], vec![2, 0], vec![4]]);
    }

    #[test]
    fn images_come_after_texts_in_batches_of_their_own() {
        let inputs = [image(0.0), text(vec![1]), image(1.0), text(vec![1; 4]), text(vec![1; 2]), image(2.0)];
        let plan = BatchPlan::new(&inputs, 2);
        assert_eq!(plan.batches(), [vec![3, 4], vec![1], vec![0, 2], vec![5]]);
    }

    #[test]
    fn shards_take_whole_batches_in_the_order_of_the_plan() {
        let inputs = of_lengths(&[9, 8, 7, 6, 5, 4, 3, 2, 1]);
        let plan = BatchPlan::new(&inputs, 2);
        let set = CalibrationSet { inputs, plan, available: 9 };
        for of in 1..=8 {
            let shards: Vec<BatchPlan> =
                (1..=of).map(|i| set.shard(&set.plan, Shard::new(i, of).unwrap())).collect();
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
    fn fewer_samples_are_spread_over_the_set() {
        let set = |inputs: Vec<ModelInput>| {
            let plan = BatchPlan::new(&inputs, 2);
            CalibrationSet { available: inputs.len(), inputs, plan }
        };
        let of = |set: &CalibrationSet, rows: usize| {
            let plan = set.spread(rows, &ModelInput::len, 2);
            let mut chosen = plan.batches().concat();
            chosen.sort_unstable();
            (chosen, plan)
        };
        let even = set(of_lengths(&[5; 8]));
        for (rows, expected) in [(0, vec![0]), (5, vec![0]), (6, vec![0, 4]), (20, vec![0, 2, 4, 6])] {
            assert_eq!(of(&even, rows).0, expected, "{rows}");
        }
        // All of them are the set as it is, and its statistics those of the set.
        for rows in [40, 41, usize::MAX] {
            let (chosen, plan) = of(&even, rows);
            assert_eq!(chosen, (0..8).collect::<Vec<_>>());
            assert_eq!(plan, even.plan);
            assert_eq!(even.fingerprint_of(&plan), even.fingerprint());
        }
        assert_ne!(even.fingerprint_of(&of(&even, 20).1), even.fingerprint());
        let mixed = set(vec![text(vec![1; 6]), image(0.0), text(vec![1; 2]), image(1.0), image(2.0)]);
        assert_eq!(of(&mixed, 1).0, [0, 1]);
        assert_eq!(of(&mixed, 2).0, [0, 1, 3]);
        assert_eq!(of(&set(Vec::new()), 9).0, Vec::<usize>::new());
    }

    #[test]
    fn samples_are_seeded_and_in_file_order() {
        let chosen = choose_samples(100, 10, 42);
        assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(chosen, choose_samples(100, 10, 42));
        assert_ne!(chosen, choose_samples(100, 10, 43));
    }

    #[test]
    fn the_fingerprint_sees_tokens_pixels_and_batches() {
        let set = |input: ModelInput, batch: usize| {
            let inputs = vec![input, text(vec![7])];
            let plan = BatchPlan::new(&inputs, batch);
            CalibrationSet { inputs, plan, available: 2 }.fingerprint()
        };
        assert_eq!(set(text(vec![1, 2]), 2), set(text(vec![1, 2]), 2));
        assert_ne!(set(text(vec![1, 2]), 2), set(text(vec![1, 3]), 2));
        assert_ne!(set(text(vec![1, 2]), 2), set(text(vec![1, 2]), 1));
        // Batches are sorted by length, so two samples that change places leave them as they are.
        let swapped = |inputs: Vec<ModelInput>| {
            let plan = BatchPlan::new(&inputs, 2);
            CalibrationSet { inputs, plan, available: 2 }.fingerprint()
        };
        let (short, long) = (text(vec![1]), text(vec![2, 3]));
        assert_ne!(swapped(vec![short.clone(), long.clone()]), swapped(vec![long, short]));
        assert_eq!(set(image(0.5), 2), set(image(0.5), 2));
        assert_ne!(set(image(0.5), 2), set(image(0.25), 2));
        assert_ne!(set(image(0.5), 2), set(text(vec![1, 2]), 2));
    }
}
