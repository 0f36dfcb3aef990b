//! What turns hidden states into the model's output.

use crate::spec::{ActivationFn, NormSpec, SiteId};

/// What a model is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// What its architecture says: classification for a model with a classifier, embedding for a bare encoder.
    Auto,
    /// One vector a text or image.
    Embedding,
    /// One row of logits a text, text pair or image. With a single label it is a score, as cross-encoders give.
    Classification,
    /// One row of logits a token.
    TokenClassification,
    /// One row of logits over the vocabulary a token.
    MaskedLm,
    /// One row of logits over the vocabulary a token, for the token that follows it.
    CausalLm,
    /// For each token, the logits of an answer that starts and one that ends there.
    QuestionAnswering,
}

impl Task {
    /// Its name in configs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Embedding => "embedding",
            Self::Classification => "classification",
            Self::TokenClassification => "token-classification",
            Self::MaskedLm => "masked-lm",
            Self::CausalLm => "causal-lm",
            Self::QuestionAnswering => "question-answering",
        }
    }
}

/// How token vectors become one sentence vector; in the order in which sentence-transformers joins those that an old config
/// flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pooling {
    /// The first token.
    Cls,
    /// Maximum of each channel.
    Max,
    /// Mean over all tokens, specials included.
    Mean,
    /// Sum over all tokens, divided by the square root of their number.
    MeanSqrtLength,
    /// Mean with weights 1, 2, 3, ... from the first token to the last. The weights of tokens behind a prompt that is left
    /// out do not change.
    WeightedMean,
    /// The last token.
    Last,
}

/// The rows of the hidden states that a head reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowSelection {
    /// Every token.
    Every,
    /// One token of each sequence, counted from its start.
    Token(usize),
    /// The poolings' results one after the other.
    Pooled(Vec<Pooling>),
    /// The end of the text: the first token with this id, or, as CLIP's first checkpoints ask for, the first with the
    /// largest id of its sequence.
    EndOfText(Option<u32>),
}

/// One Linear of a head, with its non-linearity as [`crate::LinearSpec::activation`], and the norm after it.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadStep {
    /// The site that the Linear alone reads.
    pub site: SiteId,
    /// Norm over its output.
    pub norm: Option<NormSpec>,
    /// What the outputs `x` are softly kept below: `cap * tanh(x / cap)`.
    pub cap: Option<f32>,
}

/// Rows, and the Linears they go through.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadBranch {
    /// What goes in.
    pub rows: RowSelection,
    /// Applied in order.
    pub steps: Vec<HeadStep>,
}

/// A step of sentence-transformers after the pooling, outside the transformer and always in f32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SentenceStep {
    /// A Linear with its non-linearity.
    Dense {
        /// Folder of its own weight file, relative to the model directory.
        folder: String,
        /// Columns of what goes in.
        inputs: usize,
        /// Columns of what comes out.
        outputs: usize,
        /// Whether it has a bias.
        bias: bool,
        /// Applied to the sum.
        activation: ActivationFn,
    },
    /// Division by the Euclidean norm.
    Normalize,
}

/// What the numbers of a sequence classifier are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// One label is right: softmax over the logits.
    SingleLabel,
    /// Any number of labels is right: a sigmoid for each logit.
    MultiLabel,
    /// The outputs are numbers. One output is also the score of a cross-encoder.
    Regression,
}

/// What a head gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadOutput {
    /// A vector for each sequence or image.
    Embedding {
        /// Applied to it in order.
        after: Vec<SentenceStep>,
        /// Whether the tokens of a prompt take part in the pooling.
        include_prompt: bool,
    },
    /// A row of logits for each sequence or image.
    Classification {
        /// Names of the labels, by index of the logit.
        labels: Vec<String>,
        /// What the logits are.
        problem: Problem,
    },
    /// A row of logits for each token.
    TokenClassification {
        /// Names of the labels, by index of the logit.
        labels: Vec<String>,
    },
    /// A row of logits over the vocabulary for each token.
    MaskedLm,
    /// A row of logits over the vocabulary for each token: of the one that follows it.
    CausalLm,
    /// Two logits for each token: that an answer starts there, that it ends there.
    QuestionAnswering,
}

/// The head of a tower.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadSpec {
    /// What it gives.
    pub output: HeadOutput,
    /// What it computes: the mean of its branches, nearly always one.
    pub branches: Vec<HeadBranch>,
}

impl HeadSpec {
    /// The task that this head does.
    pub fn task(&self) -> Task {
        match self.output {
            HeadOutput::Embedding { .. } => Task::Embedding,
            HeadOutput::Classification { .. } => Task::Classification,
            HeadOutput::TokenClassification { .. } => Task::TokenClassification,
            HeadOutput::MaskedLm => Task::MaskedLm,
            HeadOutput::CausalLm => Task::CausalLm,
            HeadOutput::QuestionAnswering => Task::QuestionAnswering,
        }
    }

    /// Whether it gives one vector a sequence.
    pub fn is_embedding(&self) -> bool {
        matches!(self.output, HeadOutput::Embedding { .. })
    }

    /// Whether it gives a row for each token instead of one for each sequence.
    pub fn is_per_token(&self) -> bool {
        self.branches.iter().any(|branch| branch.rows == RowSelection::Every)
    }

    /// Names of its labels, by index of the logit; none for vectors, vocabularies and spans.
    pub fn labels(&self) -> &[String] {
        match &self.output {
            HeadOutput::Classification { labels, .. } | HeadOutput::TokenClassification { labels } => labels,
            _ => &[],
        }
    }
}
