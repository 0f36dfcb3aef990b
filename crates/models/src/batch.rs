//! Batches without padding: the sequences of a batch laid end to end.

use crate::ModelError;

/// One tokenised sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSequence {
    /// Token ids, specials included.
    pub ids: Vec<u32>,
    /// Segment of each token (0, or 1 for the second text of a pair).
    pub type_ids: Vec<u32>,
}

impl TokenSequence {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether it holds no token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// Sequences laid end to end. Every row of every activation is a real token: no padding exists, so none can reach an
/// observer, a pooling or a metric, and no time is spent on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedBatch {
    pub(crate) ids: Vec<u32>,
    pub(crate) type_ids: Vec<u32>,
    /// Start of each sequence, and the total at the end.
    pub(crate) offsets: Vec<usize>,
}

impl PackedBatch {
    /// Packs sequences in the order given. Empty batches and empty sequences are refused.
    pub fn new<'a>(sequences: impl IntoIterator<Item = &'a TokenSequence>) -> Result<Self, ModelError> {
        let mut batch = Self { ids: Vec::new(), type_ids: Vec::new(), offsets: vec![0] };
        for sequence in sequences {
            if sequence.is_empty() {
                return Err(ModelError::Sample { reason: "a sample has no token at all".to_owned() });
            }
            if sequence.type_ids.len() != sequence.ids.len() {
                return Err(ModelError::Sample {
                    reason: format!(
                        "a sample has {} token ids but {} segment ids; there is one for each token",
                        sequence.ids.len(),
                        sequence.type_ids.len()
                    ),
                });
            }
            batch.ids.extend_from_slice(&sequence.ids);
            batch.type_ids.extend_from_slice(&sequence.type_ids);
            batch.offsets.push(batch.ids.len());
        }
        if batch.is_empty() {
            return Err(ModelError::Sample { reason: "a batch holds no sample".to_owned() });
        }
        Ok(batch)
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether it holds no sequence.
    pub fn is_empty(&self) -> bool {
        self.offsets.len() == 1
    }

    /// Number of tokens over all sequences: the rows of every activation.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Rows of each sequence.
    pub(crate) fn ranges(&self) -> impl ExactSizeIterator<Item = std::ops::Range<usize>> + '_ {
        self.offsets.windows(2).map(|pair| pair[0]..pair[1])
    }
}
