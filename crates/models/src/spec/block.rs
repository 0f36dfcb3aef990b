//! A transformer block: norms, attention, positions, feed-forward part.

use std::ops::Range;

use super::{ActivationFn, LinearId, SiteId};

/// What a norm computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Zero mean and unit variance, then gain and shift (`LayerNorm`).
    Layer,
    /// Unit mean square, then gain (`RMSNorm`).
    Rms,
}

/// A norm over the channels of a row.
#[derive(Debug, Clone, PartialEq)]
pub struct NormSpec {
    /// What it computes.
    pub kind: NormKind,
    /// Module path; its tensors are named by [`NormSpec::weight`] and [`NormSpec::bias`].
    pub path: String,
    /// Tensor of the gain, `[hidden]`.
    pub weight: String,
    /// Whether the tensor holds the gain less 1, as Gemma's do.
    pub unit_offset: bool,
    /// Tensor of the shift, `[hidden]`, where there is one.
    pub bias: Option<String>,
    /// Added to the variance, or to the mean square.
    pub eps: f32,
}

impl NormSpec {
    /// Names of its tensors.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        [Some(self.weight.as_str()), self.bias.as_deref()].into_iter().flatten()
    }
}

/// Where the norms of a block stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlacement {
    /// `norm(x + f(x))`, as in BERT.
    Post,
    /// `x + f(norm(x))`, as in `ModernBERT` and `ViT`.
    Pre,
    /// `x + f(norm_1(x)) + g(norm_2(x))`, both halves of the same `x`, as in GPT-NeoX.
    Parallel,
}

/// One transformer block.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockSpec {
    /// Module path, such as `encoder.layer.0`.
    pub path: String,
    /// Where its norms stand.
    pub placement: NormPlacement,
    /// Self-attention.
    pub attention: AttentionSpec,
    /// Norm of the attention half; `None` where what comes in is normalised already.
    pub attention_norm: Option<NormSpec>,
    /// Norm of what the attention half adds to the residual stream.
    pub attention_output_norm: Option<NormSpec>,
    /// Feed-forward half.
    pub mlp: FeedForward,
    /// Norm of the feed-forward half.
    pub mlp_norm: NormSpec,
    /// Norm of what the feed-forward half adds to the residual stream.
    pub mlp_output_norm: Option<NormSpec>,
}

impl BlockSpec {
    /// Its norms, in the order in which a forward reaches them in a pre-norm block.
    pub fn norms(&self) -> impl Iterator<Item = &NormSpec> {
        let AttentionSpec { query_norm, key_norm, .. } = &self.attention;
        let attention = [&self.attention_norm, query_norm, key_norm, &self.attention_output_norm];
        attention.into_iter().flatten().chain([&self.mlp_norm]).chain(&self.mlp_output_norm)
    }
}

/// Some outputs of a Linear: all of them, or a part of a fused one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection {
    /// The Linear.
    pub linear: LinearId,
    /// Its outputs, from the first to the last.
    pub outputs: Range<usize>,
    /// Outputs from the first of one head to the first of the next, where those of other projections lie between them; the
    /// last `outputs.len() % stride` are the last head's. `None` where the outputs are all of the range.
    pub stride: Option<usize>,
}

/// Multi-head self-attention over whole sequences.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    /// Number of heads of queries.
    pub heads: usize,
    /// Number of heads of keys and values, a divisor of `heads`: that many queries in a row share each (Ainslie et al.
    /// 2023, "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints").
    pub kv_heads: usize,
    /// Channels of one head.
    pub head_dim: usize,
    /// Factor on the scores before softmax.
    pub scale: f32,
    /// What scores `s`, scaled, are softly kept below: `cap * tanh(s / cap)`.
    pub cap: Option<f32>,
    /// The activation that query, key and value share.
    pub input: SiteId,
    /// Query projection.
    pub query: Projection,
    /// Key projection.
    pub key: Projection,
    /// Value projection.
    pub value: Projection,
    /// Norm of each head's queries, over its `head_dim` channels, before the positions.
    pub query_norm: Option<NormSpec>,
    /// Norm of each head's keys.
    pub key_norm: Option<NormSpec>,
    /// How the scores know of positions.
    pub positions: Positions,
    /// Which tokens a token attends to.
    pub reach: Reach,
    /// The heads' concatenated outputs.
    pub context: SiteId,
    /// Output projection.
    pub output: LinearId,
}

/// How attention scores know of positions.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// They do not: positions are in the residual stream, or the reach alone tells of them.
    Embedded,
    /// Queries and keys are rotated (Su et al. 2021, "`RoFormer`: Enhanced Transformer with Rotary Position Embedding"):
    /// channels `i` and `i + channels / 2` turn by `position * theta^(-2i / channels)`.
    Rotary(Rotary),
    /// [`Tower::relative_bias`](super::Tower::relative_bias) is added.
    RelativeBias,
}

/// The frequencies of rotary positions.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Their base.
    pub theta: f32,
    /// The first channels of each head, an even number of them, turn; the others stay.
    pub channels: usize,
    /// How they are stretched for sequences longer than those of the training.
    pub scaling: RotaryScaling,
}

impl Rotary {
    /// Frequencies as they are.
    pub fn plain(theta: f32, channels: usize) -> Self {
        Self { theta, channels, scaling: RotaryScaling::None }
    }
}

/// How rotary frequencies are stretched; the names are `rope_type`'s of `transformers`.
#[derive(Debug, Clone, PartialEq)]
pub enum RotaryScaling {
    /// Not at all: `default`.
    None,
    /// All divided by a factor: `linear` (Chen et al. 2023, "Extending Context Window of Large Language Models via
    /// Positional Interpolation").
    Linear {
        /// What they are divided by.
        factor: f32,
    },
    /// Slow ones divided by a factor, fast ones kept, and a ramp between: `llama3` (`_compute_llama3_parameters` of
    /// `transformers`' `modeling_rope_utils.py`).
    Llama3 {
        /// What the slow ones are divided by.
        factor: f32,
        /// Turns within `original` tokens below which a frequency is slow.
        low: f32,
        /// Turns from which on it is fast.
        high: f32,
        /// Tokens of the longest sequence of the training.
        original: f32,
    },
    /// Slow ones divided by a factor, fast ones kept, and a ramp over the channels between: `yarn` (Peng et al. 2023, "`YaRN`:
    /// Efficient Context Window Extension of Large Language Models").
    Yarn {
        /// What the slow ones are divided by.
        factor: f32,
        /// Channels, by their index among the turning halves, up to which frequencies are kept, and from which on they are
        /// divided.
        ramp: [f32; 2],
        /// Factor on the cosines and sines.
        attention: f32,
    },
    /// Each divided by a factor of its own: `longrope` (Ding et al. 2024, "`LongRoPE`: Extending LLM Context Window Beyond 2
    /// Million Tokens").
    Long {
        /// For sequences of up to `original` tokens, `channels / 2` factors.
        short: Vec<f32>,
        /// For longer ones.
        long: Vec<f32>,
        /// Tokens of the longest sequence of the training.
        original: usize,
        /// Factor on the cosines and sines.
        attention: f32,
    },
}

/// Which tokens a token attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// All of its sequence.
    Full,
    /// Those at most this many places away.
    Window(usize),
    /// Itself and those before it.
    Causal,
    /// Itself and at most this many before it.
    CausalWindow(usize),
}

/// A learnt bias for each head and each bucket of distances (Raffel et al. 2020, "Exploring the Limits of Transfer
/// Learning with a Unified Text-to-Text Transformer", section 2.1; bidirectional, as `MPNet` uses it).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelativeBias {
    /// Its tensor, `[buckets, heads]`.
    pub tensor: String,
    /// Number of buckets, a multiple of 4: half for each direction, half of which for exact distances.
    pub buckets: usize,
    /// Distance from which on all share the last bucket.
    pub max_distance: usize,
}

/// What the feed-forward half of a block computes.
#[derive(Debug, Clone, PartialEq)]
pub enum FeedForward {
    /// The same for every token.
    Dense(MlpSpec),
    /// A mixture of experts.
    Experts(ExpertsSpec),
}

impl FeedForward {
    /// Every MLP of it: the one, or those of all experts in their order.
    pub fn mlps(&self) -> &[MlpSpec] {
        match self {
            Self::Dense(mlp) => std::slice::from_ref(mlp),
            Self::Experts(mixture) => &mixture.experts,
        }
    }

    /// The mixture of experts, where it is one.
    pub fn experts(&self) -> Option<&ExpertsSpec> {
        match self {
            Self::Dense(_) => None,
            Self::Experts(mixture) => Some(mixture),
        }
    }
}

/// A mixture of experts: each token goes through some of them alone, `y = sum of p_e * expert_e(x)` over the `top_k` experts
/// of the largest `p = softmax(router(x))` (Shazeer et al. 2017, "Outrageously Large Neural Networks: The Sparsely-Gated
/// Mixture-of-Experts Layer"; Jiang et al. 2024, "Mixtral of Experts", section 2.1).
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertsSpec {
    /// Module path, such as `model.layers.0.mlp`.
    pub path: String,
    /// The activation that the router reads, alone: a Linear with an output for each expert.
    pub router: SiteId,
    /// Experts that a token goes through, from 1 to all.
    pub top_k: usize,
    /// Whether the `p_e` of a token's experts are divided by their sum.
    pub renormalize: bool,
    /// The experts, each with sites of its own.
    pub experts: Vec<MlpSpec>,
}

/// A feed-forward network: `down(activation(up(x)))`, or `down(activation(gate(x)) * up(x))`.
#[derive(Debug, Clone, PartialEq)]
pub struct MlpSpec {
    /// The activation that `up` and `gate` read.
    pub input: SiteId,
    /// Widening projection; without a gate, the non-linearity is its [`LinearSpec::activation`](super::LinearSpec::activation).
    pub up: Projection,
    /// What the widened values are multiplied with.
    pub gate: Option<Gate>,
    /// The activation that `down` reads.
    pub inner: SiteId,
    /// Narrowing projection.
    pub down: LinearId,
}

/// The gate of a feed-forward half (Shazeer 2020, "GLU Variants Improve Transformer").
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// Its projection, as wide as `up`.
    pub projection: Projection,
    /// Applied to the gate.
    pub activation: ActivationFn,
}
