//! Linears: what they are for, where their tensors are, what follows them.

use std::ops::Range;

use zeropoint_formats::DirectoryFormat;

use super::SiteId;

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
