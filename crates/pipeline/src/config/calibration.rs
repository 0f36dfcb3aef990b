//! `[calibration]`: the texts whose activations are observed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::data::{DataSource, Use};
use super::error::{Problem, within};

/// Most samples of one set; also the most of an evaluation task.
pub(super) const MOST_SAMPLES: usize = 1_000_000;
/// Largest number of texts in one forward.
pub(super) const LARGEST_BATCH: usize = 4096;
/// Most tokens that factors are chosen from.
const MOST_TOKENS: usize = 1_000_000_000;
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
    /// How many samples are used, chosen by the seed. With 0 nothing is observed: for dynamic schemes without a self-check.
    #[schemars(range(max = MOST_SAMPLES))]
    pub samples: usize,
    /// How texts become samples; by default as the model needs it: "chunked" for decoder language models, "truncated" for all
    /// others, which take nothing else.
    pub sequences: Option<Sequences>,
    /// The longest sample in tokens, special ones included; by default what the model can take, and of that at most 2048 for
    /// a decoder language model.
    #[schemars(range(min = SHORTEST, max = LONGEST))]
    pub max_length: Option<usize>,
    /// Texts in one forward.
    #[schemars(range(min = 1, max = LARGEST_BATCH))]
    pub batch_size: usize,
    /// On about how many tokens (of images, patches) the original is observed for the factors of transforms: those of samples
    /// spread over the set, and of mixtures of experts all. Static ranges and GPTQ see all samples.
    #[schemars(range(min = 1, max = MOST_TOKENS))]
    pub transform_tokens: usize,
    /// Chooses the samples.
    #[schemars(range(max = LARGEST_SEED))]
    pub seed: u64,
}

/// How texts become samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Sequences {
    /// Each text is a sample, cut at `max_length` tokens.
    Truncated,
    /// Each text is one sample or, where it is longer than `max_length` tokens, several.
    Chunked,
    /// All texts one behind the other, the model's end of text between them, cut into samples of exactly `max_length` tokens.
    Packed,
}

impl Sequences {
    /// As a config writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Chunked => "chunked",
            Self::Packed => "packed",
        }
    }
}

impl Default for Calibration {
    fn default() -> Self {
        Self {
            data: Vec::new(),
            samples: 256,
            sequences: None,
            max_length: None,
            batch_size: 16,
            transform_tokens: 8192,
            seed: 42,
        }
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
        within("calibration.transform_tokens", self.transform_tokens, 1..=MOST_TOKENS)?;
        within("calibration.seed", self.seed, 0..=LARGEST_SEED)
    }
}
