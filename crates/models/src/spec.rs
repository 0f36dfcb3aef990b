//! The declarative description of a model: what every other crate reads instead of tensor names.

use std::collections::BTreeSet;
use std::ops::Range;

use zeropoint_formats::DirectoryFormat;

use crate::heads::{HeadOutput, HeadSpec};

/// Index into [`ModelSpec::linears`].
pub type LinearId = usize;
/// Index into [`ModelSpec::sites`].
pub type SiteId = usize;

/// A transformer encoder as data: one tower for most models, one for texts and one for images where a model has both.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// `architectures[0]` of config.json, such as `BertModel`.
    pub architecture: String,
    /// What runs, at least one; at most one for each kind of input.
    pub towers: Vec<Tower>,
    /// Activations that Linears read, in the order in which a forward reaches them.
    pub sites: Vec<Site>,
    /// Every Linear of the model, those that the task does not run included.
    pub linears: Vec<LinearSpec>,
    /// How operators feed each other, for transforms.
    pub edges: Vec<Edge>,
    /// Tensors of the checkpoint that are carried along but never run, with the reason.
    pub unused: Vec<(String, String)>,
    /// Tensors that hold another one a second time, with that one. The description reads the latter alone; a float model
    /// is not loaded when they differ.
    pub copies: Vec<(String, String)>,
    /// Module paths of Linears that `transformers` builds though the checkpoint lacks them under that name, such as an untrained
    /// pooler.
    pub absent_linears: Vec<String>,
    /// Tensor of the logarithm of the factor on the cosine of an image and a text, in models that have both.
    pub logit_scale: Option<String>,
}

/// From an input to an output: embedding, blocks, head.
#[derive(Debug, Clone, PartialEq)]
pub struct Tower {
    /// Width of the residual stream.
    pub hidden: usize,
    /// What goes in and how it becomes the residual stream.
    pub input: InputSpec,
    /// Transformer blocks in order. A model that shares layers names the same Linears and sites in several.
    pub blocks: Vec<BlockSpec>,
    /// Norm after the last block, in models whose blocks normalise before they compute.
    pub final_norm: Option<NormSpec>,
    /// The learnt bias of the attention scores that every block adds, where there is one.
    pub relative_bias: Option<RelativeBias>,
    /// What makes the output of the hidden states.
    pub head: HeadSpec,
}

/// What a tower reads.
#[derive(Debug, Clone, PartialEq)]
pub enum InputSpec {
    /// Tokens.
    Text(TextInput),
    /// Images, cut into square patches.
    Image(ImageInput),
}

/// Token ids to the residual stream.
#[derive(Debug, Clone, PartialEq)]
pub struct TextInput {
    /// Longest sequence that the positions allow, in tokens with specials.
    pub max_positions: usize,
    /// Width of the tables: that of the residual stream unless there is a projection.
    pub width: usize,
    /// Tables whose rows are added up for each token.
    pub tables: Vec<EmbeddingTable>,
    /// Factor on the sum.
    pub scale: f32,
    /// Norm over the sum.
    pub norm: Option<NormSpec>,
    /// The Linear from `width` to the residual stream, where the widths differ.
    pub projection: Option<SiteId>,
}

/// Pixels to the residual stream.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageInput {
    /// Height and width of an image, in pixels.
    pub image_size: [usize; 2],
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Colour channels.
    pub channels: usize,
    /// The site whose rows are flattened patches, `[channels, patch, patch]` each.
    pub patches: SiteId,
    /// Tensors of `hidden` values that stand before the patches: class token, distillation token.
    pub tokens: Vec<String>,
    /// Tensor of the positions, `tokens + patches` rows of `hidden` values.
    pub positions: String,
    /// Norm over the sum.
    pub norm: Option<NormSpec>,
}

impl ImageInput {
    /// Patches of one image.
    pub fn patch_count(&self) -> usize {
        self.image_size.iter().map(|side| side / self.patch_size).product()
    }

    /// Rows of one image in the residual stream: its tokens and patches.
    pub fn rows(&self) -> usize {
        self.tokens.len() + self.patch_count()
    }
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
        /// A token that takes no position of its own but this row, as padding does in `RoBERTa`.
        pad: Option<u32>,
    },
    /// A segment (0 for the first text, 1 for the second of a pair).
    TokenType,
}

/// One embedding table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddingTable {
    /// Its tensor, `[rows, width]`.
    pub tensor: String,
    /// Number of rows.
    pub rows: usize,
    /// Values in a row.
    pub width: usize,
    /// What a row stands for.
    pub role: EmbeddingRole,
}

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
    /// [`Tower::relative_bias`] is added.
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
    /// Widening projection; without a gate, the non-linearity is its [`LinearSpec::activation`].
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
    /// `x * sigmoid(1.702 x)`, the approximation of GELU that CLIP uses.
    QuickGelu,
    /// `x * sigmoid(x)`.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
    /// 1 / (1 + exp(-x)).
    Sigmoid,
}

/// What a Linear is for; decides whether it is quantised when the config does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearRole {
    /// Part of a block, or the projection of the embeddings.
    Block,
    /// Part of an expert of a mixture.
    Expert,
    /// What chooses the experts of a token.
    Router,
    /// A pooler: one row a sequence, small against the blocks.
    Pooler,
    /// A Linear of a head before its last.
    Head,
    /// The last Linear of a head: its outputs are the result.
    Classifier,
    /// The output matrix of a masked language model, which is the word embedding table.
    TiedDecoder,
    /// The patch embedding, which checkpoints store as a convolution.
    PatchEmbedding,
}

impl LinearRole {
    /// Why it stays float by default; `None` when it is quantised.
    pub fn default_ignore_reason(self) -> Option<&'static str> {
        match self {
            Self::Block | Self::Expert => None,
            Self::Router => Some("router: chooses the experts of a token, and is small against them"),
            Self::Pooler => Some("pooler: one row a sequence, nothing to gain"),
            Self::Head => Some("head: small against the blocks, and close to the result"),
            Self::Classifier => Some("classifier: its outputs are the result"),
            Self::TiedDecoder | Self::PatchEmbedding => self.obstacle(),
        }
    }

    /// Why it cannot be quantised whatever the config says.
    pub fn obstacle(self) -> Option<&'static str> {
        match self {
            Self::TiedDecoder => Some("decoder: its weight is the word embedding table"),
            Self::PatchEmbedding => {
                Some("patch embedding: a convolution, which compressed-tensors does not carry in INT8")
            }
            Self::Expert => Some(
                "expert: transformers reads experts from compressed-tensors in packed form alone, not as INT8 Linears",
            ),
            Self::Router => {
                Some("router: no torch Linear, the only module whose INT8 weights compressed-tensors carries")
            }
            _ => None,
        }
    }
}

/// One `torch.nn.Linear`, `y = x W^T + b`, or what works like one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearSpec {
    /// Module path in the model that `transformers` builds, such as `encoder.layer.0.attention.self.query`.
    pub path: String,
    /// Path of its tensors in the checkpoint, without `.weight`; may carry a prefix that [`LinearSpec::path`] lacks.
    pub tensor: String,
    /// Tensor of the weight; another than `tensor` says where it is tied, and `weight_packed` where its integers are packed.
    pub weight: String,
    /// Shape of the weight in the file, unpacked: `[N, K]`, a convolution's `[N, channels, height, width]`, or `[M, K]` where
    /// the file keeps several Linears in one tensor that `transformers` splits when it loads.
    pub weight_shape: Vec<usize>,
    /// Whether that shape is `[K, N]`, as `transformers`' `Conv1D` has it.
    pub transposed: bool,
    /// Its rows of that tensor, and of the bias.
    pub rows: Range<usize>,
    /// Tensor of the bias, as long as the weight has rows, where it has one.
    pub bias: Option<String>,
    /// Output channels N.
    pub outputs: usize,
    /// Input channels K.
    pub inputs: usize,
    /// The non-linearity right after it.
    pub activation: ActivationFn,
    /// The site it reads; `None` when the task does not run it.
    pub site: Option<SiteId>,
    /// What it is for.
    pub role: LinearRole,
}

impl LinearSpec {
    /// Number of weights, without the bias.
    pub fn weights(&self) -> usize {
        self.outputs * self.inputs
    }

    /// Whether the file keeps other Linears in the same tensor.
    pub fn is_fused_in_file(&self) -> bool {
        !self.transposed && self.rows.len() != self.weight_shape[0]
    }

    /// Whether `transformers` makes it a `torch.nn.Linear`, the modules that quantised formats speak of.
    pub fn is_torch_linear(&self) -> bool {
        self.weight_shape.len() == 2 && !self.transposed
    }

    /// Why it stays float by default in a directory of that format; `None` when it is quantised.
    pub fn default_ignore_reason(&self, format: DirectoryFormat) -> Option<&'static str> {
        // Experts are most of a mixture: what cannot be quantised of it is refused, not left float unasked.
        let obstacle = self.obstacle(format).filter(|_| self.role != LinearRole::Expert);
        obstacle.or_else(|| self.role.default_ignore_reason())
    }

    /// Why it cannot be quantised in a directory of that format whatever the config says.
    pub fn obstacle(&self, format: DirectoryFormat) -> Option<&'static str> {
        let transposed = "Conv1D: not a torch Linear, the only module whose INT8 weights compressed-tensors carries; \
                          `output.formats = [\"zeropoint\"]` carries it, for Zeropoint's runtime alone";
        let foreign = self.transposed && format == DirectoryFormat::CompressedTensors;
        foreign.then_some(transposed).or_else(|| self.role.obstacle())
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
    /// Channel j of head h of `value` is channel `g * head_dim + j` of `output`'s input, for each head g of the queries with
    /// `g / (heads / kv_heads) == h`.
    ValueToOutput {
        /// Value projection.
        value: LinearId,
        /// Output projection.
        output: LinearId,
        /// Number of heads of queries.
        heads: usize,
        /// Number of heads of values.
        kv_heads: usize,
    },
}

impl ModelSpec {
    /// The Linear that makes the logits of a model that continues texts.
    pub fn language_head(&self) -> Option<LinearId> {
        let head = self.head();
        let step = head.branches.last()?.steps.last()?;
        let linear = *self.sites[step.site].consumers.first()?;
        matches!(head.output, HeadOutput::CausalLm).then_some(linear)
    }

    /// Parameters of the Linears.
    pub fn linear_parameters(&self) -> usize {
        self.linears
            .iter()
            .map(|linear| linear.weights() + if linear.bias.is_some() { linear.outputs } else { 0 })
            .sum()
    }

    /// The Linear with that module path.
    pub fn linear(&self, path: &str) -> Option<(LinearId, &LinearSpec)> {
        self.linears.iter().enumerate().find(|(_, linear)| linear.path == path)
    }

    /// The tower that reads texts.
    pub fn text(&self) -> Option<(&Tower, &TextInput)> {
        self.towers.iter().find_map(|tower| match &tower.input {
            InputSpec::Text(input) => Some((tower, input)),
            InputSpec::Image(_) => None,
        })
    }

    /// The tower that reads images.
    pub fn image(&self) -> Option<(&Tower, &ImageInput)> {
        self.towers.iter().find_map(|tower| match &tower.input {
            InputSpec::Image(input) => Some((tower, input)),
            InputSpec::Text(_) => None,
        })
    }

    /// Weights that a tower multiplies each row with in one pass. Those of shared blocks count as often as they run, those of
    /// experts as far as a row goes through them.
    pub fn weights_per_row(&self, tower: &Tower) -> usize {
        self.weights_of_row(tower, false)
    }

    /// As [`ModelSpec::weights_per_row`] in a pass that a sink watches, in which every row is shown to every expert.
    pub fn weights_per_observed_row(&self, tower: &Tower) -> usize {
        self.weights_of_row(tower, true)
    }

    fn weights_of_row(&self, tower: &Tower, observed: bool) -> usize {
        let first = match &tower.input {
            InputSpec::Text(input) => input.projection,
            InputSpec::Image(input) => Some(input.patches),
        };
        let head = tower.head.branches.iter().flat_map(|branch| &branch.steps).map(|step| step.site);
        let of_site = |site: SiteId| -> usize {
            self.linears.iter().filter(|linear| linear.site == Some(site)).map(LinearSpec::weights).sum()
        };
        // Of the sites of a block two may be one, and of heads too; a site of two blocks is computed twice.
        let of_sites = |sites: BTreeSet<SiteId>| -> usize { sites.into_iter().map(of_site).sum() };
        let blocks = tower.blocks.iter().map(|block| {
            let attention = [block.attention.input, block.attention.context].into_iter();
            match &block.mlp {
                FeedForward::Dense(mlp) => of_sites(attention.chain([mlp.input, mlp.inner]).collect()),
                FeedForward::Experts(ExpertsSpec { router, top_k, experts, .. }) => {
                    let inputs = of_sites(experts.iter().map(|expert| expert.input).collect());
                    let inner = of_sites(experts.iter().map(|expert| expert.inner).collect());
                    let taken = top_k * ((inputs + inner) / experts.len().max(1));
                    let shown = if observed { inputs } else { 0 };
                    of_sites(attention.chain([*router]).collect()) + taken + shown
                }
            }
        });
        first.into_iter().map(of_site).chain(blocks).sum::<usize>() + of_sites(head.collect())
    }

    /// The head that says what the model is for: that of the first tower.
    pub fn head(&self) -> &HeadSpec {
        &self.towers[0].head
    }

    /// All embedding tables.
    pub fn tables(&self) -> impl Iterator<Item = &EmbeddingTable> {
        self.towers.iter().flat_map(|tower| match &tower.input {
            InputSpec::Text(input) => input.tables.as_slice(),
            InputSpec::Image(_) => &[],
        })
    }

    /// All norms, a shared one once for each block that uses it.
    pub fn norms(&self) -> impl Iterator<Item = &NormSpec> {
        self.towers.iter().flat_map(|tower| {
            let first = match &tower.input {
                InputSpec::Text(input) => input.norm.as_ref(),
                InputSpec::Image(input) => input.norm.as_ref(),
            };
            let blocks = tower.blocks.iter().flat_map(|block| block.norms().map(Some));
            let head =
                tower.head.branches.iter().flat_map(|branch| &branch.steps).map(|step| step.norm.as_ref());
            [first].into_iter().chain(blocks).chain([tower.final_norm.as_ref()]).chain(head).flatten()
        })
    }
}
