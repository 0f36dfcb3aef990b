//! What turns hidden states into the model's output.

use crate::spec::{LinearId, SiteId};

/// What a model is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// What its architecture says: classification for a model with a classifier, embedding otherwise.
    Auto,
    /// One vector a text.
    Embedding,
    /// One row of logits a text or text pair.
    Classification,
}

/// How token vectors become one sentence vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Mean over all tokens, specials included.
    Mean,
    /// The first token.
    Cls,
    /// Maximum of each channel.
    Max,
}

/// The head of a model.
#[derive(Debug, Clone, PartialEq)]
pub enum HeadSpec {
    /// A sentence vector: the poolings' results one after the other, normalised to length 1 if asked.
    Embedding {
        /// In the order of sentence-transformers: CLS, max, mean.
        pooling: Vec<Pooling>,
        /// Whether the vector is divided by its Euclidean norm.
        normalize: bool,
    },
    /// BERT's sequence classifier: `classifier(tanh(pooler(first token)))`.
    Classification {
        /// The first token of each sequence.
        pooler_input: SiteId,
        /// Pooler, with its tanh as [`crate::LinearSpec::activation`].
        pooler: LinearId,
        /// The pooled vector.
        classifier_input: SiteId,
        /// Classifier.
        classifier: LinearId,
        /// Names of the labels, by index of the logit.
        labels: Vec<String>,
    },
}

impl HeadSpec {
    /// The task that this head does.
    pub fn task(&self) -> Task {
        match self {
            Self::Embedding { .. } => Task::Embedding,
            Self::Classification { .. } => Task::Classification,
        }
    }
}
