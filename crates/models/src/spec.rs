//! The declarative description of a model: what every other crate reads instead of tensor names.

use crate::heads::HeadSpec;

/// Index into [`ModelSpec::linears`].
pub type LinearId = usize;
/// Index into [`ModelSpec::sites`].
pub type SiteId = usize;

/// A transformer encoder as data.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// `architectures[0]` of config.json, such as `BertModel`.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Longest sequence the position table allows, in tokens with specials.
    pub max_positions: usize,
    /// Tables whose rows are added up for each token.
    pub embeddings: Vec<EmbeddingTable>,
    /// Norm over the summed embeddings.
    pub embedding_norm: NormSpec,
    /// Transformer blocks in order.
    pub blocks: Vec<BlockSpec>,
    /// Activations that Linears read, in the order in which a forward reaches them.
    pub sites: Vec<Site>,
    /// Every Linear of the model, those that the task does not run included.
    pub linears: Vec<LinearSpec>,
    /// What makes the output of the hidden states.
    pub head: HeadSpec,
    /// How operators feed each other, for transforms.
    pub edges: Vec<Edge>,
    /// Tensors of the checkpoint that are carried along but never run, with the reason.
    pub unused: Vec<(String, String)>,
}

/// What a row of an embedding table stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmbeddingRole {
    /// A token id.
    Word,
    /// An absolute position; the first token has position `offset`.
    Position {
        /// Rows skipped at the start of the table.
        offset: usize,
    },
    /// A segment (0 for the first text, 1 for the second of a pair).
    TokenType,
}

/// One embedding table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddingTable {
    /// Its tensor, `[rows, hidden]`.
    pub tensor: String,
    /// Number of rows.
    pub rows: usize,
    /// What a row stands for.
    pub role: EmbeddingRole,
}

/// A `LayerNorm` with weight and bias.
#[derive(Debug, Clone, PartialEq)]
pub struct NormSpec {
    /// Module path; its tensors are named by [`NormSpec::weight`] and [`NormSpec::bias`].
    pub path: String,
    /// Tensor of the gain, `[hidden]`.
    pub weight: String,
    /// Tensor of the shift, `[hidden]`.
    pub bias: String,
    /// Added to the variance.
    pub eps: f32,
}

/// Where the norms of a block stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlacement {
    /// `norm(x + f(x))`, as in BERT.
    Post,
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
    /// Norm of the attention half.
    pub attention_norm: NormSpec,
    /// Feed-forward half.
    pub mlp: MlpSpec,
    /// Norm of the feed-forward half.
    pub mlp_norm: NormSpec,
}

/// Multi-head self-attention over whole sequences.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    /// Number of heads.
    pub heads: usize,
    /// Channels of one head.
    pub head_dim: usize,
    /// Factor on the scores before softmax.
    pub scale: f32,
    /// The activation that query, key and value share.
    pub input: SiteId,
    /// Query projection.
    pub query: LinearId,
    /// Key projection.
    pub key: LinearId,
    /// Value projection.
    pub value: LinearId,
    /// The heads' concatenated outputs.
    pub context: SiteId,
    /// Output projection.
    pub output: LinearId,
}

/// A feed-forward pair: `down(activation(up(x)))`.
#[derive(Debug, Clone, PartialEq)]
pub struct MlpSpec {
    /// The activation that `up` reads.
    pub input: SiteId,
    /// Widening projection; its [`LinearSpec::activation`] is the non-linearity.
    pub up: LinearId,
    /// The activation that `down` reads.
    pub inner: SiteId,
    /// Narrowing projection.
    pub down: LinearId,
}

/// An activation that one or more Linears read: the place where an observer stands and a quantiser works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Stable name, used in statistics files: the path of the first consumer, with `.input`.
    pub id: String,
    /// Channels of one row.
    pub channels: usize,
    /// The Linears that read it, in the order of their outputs.
    pub consumers: Vec<LinearId>,
}

/// The non-linearity right after a Linear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationFn {
    /// None.
    Identity,
    /// max(x, 0).
    Relu,
    /// Exact GELU.
    GeluErf,
    /// GELU, tanh approximation.
    GeluTanh,
    /// Hyperbolic tangent.
    Tanh,
}

/// What a Linear is for; decides whether it is quantised when the config does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearRole {
    /// Part of a block.
    Block,
    /// A pooler: one row a sequence, small against the blocks.
    Pooler,
    /// A classifier: its outputs are the result.
    Classifier,
}

impl LinearRole {
    /// Why it stays float by default; `None` when it is quantised.
    pub fn default_ignore_reason(self) -> Option<&'static str> {
        match self {
            Self::Block => None,
            Self::Pooler => Some("pooler: one row a sequence, nothing to gain"),
            Self::Classifier => Some("classifier: its outputs are the result"),
        }
    }
}

/// One `torch.nn.Linear`: `y = x W^T + b`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearSpec {
    /// Module path in the model that `transformers` builds, such as `encoder.layer.0.attention.self.query`.
    pub path: String,
    /// Path of its tensors in the checkpoint, without `.weight`; may carry a prefix that [`LinearSpec::path`] lacks.
    pub tensor: String,
    /// Output channels N of the weight `[N, K]`.
    pub outputs: usize,
    /// Input channels K.
    pub inputs: usize,
    /// Whether it has a bias `[N]`.
    pub bias: bool,
    /// The non-linearity right after it.
    pub activation: ActivationFn,
    /// The site it reads; `None` when the task does not run it.
    pub site: Option<SiteId>,
    /// What it is for.
    pub role: LinearRole,
}

impl LinearSpec {
    /// Name of the weight tensor.
    pub fn weight_name(&self) -> String {
        format!("{}.weight", self.tensor)
    }

    /// Name of the bias tensor.
    pub fn bias_name(&self) -> String {
        format!("{}.bias", self.tensor)
    }

    /// Number of weights, without the bias.
    pub fn weights(&self) -> usize {
        self.outputs * self.inputs
    }
}

/// How operators feed each other. Transforms fold scales along these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edge {
    /// A norm whose output these Linears read (the residual may read it too).
    NormToLinears {
        /// Module path of the norm.
        norm: String,
        /// Its consumers.
        linears: Vec<LinearId>,
        /// Whether the residual stream also takes the norm's output, as in post-norm blocks.
        residual: bool,
    },
    /// Channel j of `up` is channel j of `down`'s input, through the non-linearity.
    UpToDown {
        /// Widening Linear.
        up: LinearId,
        /// Narrowing Linear.
        down: LinearId,
    },
    /// Channel j of head h of `value` is channel `h * head_dim + j` of `output`'s input.
    ValueToOutput {
        /// Value projection.
        value: LinearId,
        /// Output projection.
        output: LinearId,
        /// Number of heads.
        heads: usize,
    },
}

impl ModelSpec {
    /// Parameters of the Linears.
    pub fn linear_parameters(&self) -> usize {
        self.linears
            .iter()
            .map(|linear| linear.weights() + if linear.bias { linear.outputs } else { 0 })
            .sum()
    }

    /// The Linear with that module path.
    pub fn linear(&self, path: &str) -> Option<(LinearId, &LinearSpec)> {
        self.linears.iter().enumerate().find(|(_, linear)| linear.path == path)
    }
}
