//! The declarative description of a model: what every other crate reads instead of tensor names.

mod block;
mod input;
mod linear;

use std::collections::BTreeSet;

use crate::heads::{HeadOutput, HeadSpec};

pub use block::{
    AttentionSpec, BlockSpec, ExpertsSpec, FeedForward, Gate, MlpSpec, NormKind, NormPlacement, NormSpec,
    Positions, Projection, Reach, RelativeBias, Rotary, RotaryScaling,
};
pub use input::{EmbeddingRole, EmbeddingTable, ImageInput, InputSpec, TextInput};
pub use linear::{ActivationFn, LinearRole, LinearSpec};

/// Index into [`ModelSpec::linears`].
pub type LinearId = usize;
/// Index into [`ModelSpec::sites`].
pub type SiteId = usize;

/// A transformer as data: one tower for most models, one for texts and one for images where a model has both.
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

/// An activation that one or more Linears read: the place where an observer stands and a quantiser works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Stable name, used in statistics files: the path of the first consumer, with `.input`.
    pub id: String,
    /// Channels of one row.
    pub channels: usize,
    /// The Linears that read it, in the order of their outputs.
    pub consumers: Vec<LinearId>,
    /// What happens to it before they do. Whoever watches the site sees what they read.
    pub rotation: Option<SiteRotation>,
}

/// The channels of an activation rotated by [`zeropoint_kernels::ChannelRotation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteRotation {
    /// Tensor of what each channel is divided by before, `[channels]`, where there is one.
    pub divisors: Option<String>,
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

    /// Numbers in a row of the model's output, before what sentence-transformers has behind it.
    pub fn output_columns(&self) -> usize {
        let steps = self.head().branches.iter().filter_map(|branch| branch.steps.last());
        let consumers = steps.flat_map(|step| &self.sites[step.site].consumers);
        consumers.map(|id| self.linears[*id].outputs).max().unwrap_or(self.towers[0].hidden)
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
