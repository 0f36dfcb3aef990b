//! `[calibration]`: the texts whose activations are observed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::data::{DataSource, Use};
use super::error::{Problem, within};

/// Most samples of one set; also the most of an evaluation task.
pub(super) const MOST_SAMPLES: usize = 1_000_000;
/// Largest number of texts in one forward.
pub(super) const LARGEST_BATCH: usize = 4096;
/// Fewest tokens a text may be cut to: the two special tokens of an encoder and one of the text.
const SHORTEST: usize = 5;
/// Most tokens a text may be cut to.
const LONGEST: usize = 131_072;
/// TOML has no larger whole number.
pub(super) const LARGEST_SEED: u64 = i64::MAX as u64;

/// `[calibration]`: the texts whose activations are observed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Calibration {
    /// Files of texts, read in this order; without any, texts built into the program. Of a file without texts but
    /// with pairs, both texts of each pair.
    pub data: Vec<DataSource>,
    /// How many texts are used, chosen by the seed. With 0 nothing is observed: for dynamic schemes without a self-check.
    #[schemars(range(max = MOST_SAMPLES))]
    pub samples: usize,
    /// Longer texts are cut to this many tokens, special ones included; by default to what the model can take.
    #[schemars(range(min = SHORTEST, max = LONGEST))]
    pub max_length: Option<usize>,
    /// Texts in one forward.
    #[schemars(range(min = 1, max = LARGEST_BATCH))]
    pub batch_size: usize,
    /// Chooses the samples.
    #[schemars(range(max = LARGEST_SEED))]
    pub seed: u64,
}

impl Default for Calibration {
    fn default() -> Self {
        Self { data: Vec::new(), samples: 256, max_length: None, batch_size: 16, seed: 42 }
    }
}

impl Calibration {
    /// What `max_length` may be, in tokens.
    pub const MAX_LENGTH: std::ops::RangeInclusive<usize> = SHORTEST..=LONGEST;

    pub(super) fn check(&self) -> Result<(), Problem> {
        for (index, source) in self.data.iter().enumerate() {
            source.check(&format!("calibration.data.{index}"), Use::Texts)?;
        }
        within("calibration.samples", self.samples, 0..=MOST_SAMPLES)?;
        if let Some(max_length) = self.max_length {
            within("calibration.max_length", max_length, Self::MAX_LENGTH)?;
        }
        within("calibration.batch_size", self.batch_size, 1..=LARGEST_BATCH)?;
        within("calibration.seed", self.seed, 0..=LARGEST_SEED)
    }
}
