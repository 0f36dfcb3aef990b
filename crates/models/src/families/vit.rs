//! `ViT` and `DeiT`: pre-norm blocks over the patches of an image, with a class token and, in `DeiT`, a distillation token
//! before them (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"; Touvron et al. 2021, "Training data-efficient
//! image transformers & distillation through attention"; shapes as in `transformers`' `modeling_vit.py` and
//! `modeling_deit.py`).
//!
//! `transformers` 5 renames the blocks' tensors when it loads them; files keep the older names, quantised formats speak of
//! the newer modules.

use serde::Deserialize;

use super::builder::{Builder, Draft};
use super::{Family, FamilyInput, Head, MAX_LAYERS, MAX_WIDTH};
use crate::ModelError;
use crate::heads::{HeadBranch, HeadOutput, HeadSpec, RowSelection, Task};
use crate::spec::{
    ActivationFn, AttentionSpec, BlockSpec, FeedForward, ImageInput, InputSpec, LinearRole, MlpSpec,
    ModelSpec, NormPlacement, Positions, Reach, Tower,
};

pub(super) const VIT: Family = Family {
    model_type: "vit",
    base: "ViTModel",
    describe: |input, head| describe(input, head, "ViTModel", "vit."),
    heads: &[("ViTForImageClassification", Head::Sequence)],
};

pub(super) const DEIT: Family = Family {
    model_type: "deit",
    base: "DeiTModel",
    describe: |input, head| describe(input, head, "DeiTModel", "deit."),
    heads: &[("DeiTForImageClassification", Head::Sequence), (TEACHER, Head::Sequence)],
};

/// The one architecture with two classifiers, on the class token and on the distillation token.
const TEACHER: &str = "DeiTForImageClassificationWithTeacher";

/// One number for a square, or height and width.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
pub(super) enum Extent {
    Square(usize),
    Sides([usize; 2]),
}

impl Extent {
    pub(super) fn sides(self) -> [usize; 2] {
        match self {
            Self::Square(side) => [side, side],
            Self::Sides(sides) => sides,
        }
    }
}

/// The keys of config.json that matter, with `transformers`' defaults.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct VitConfig {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    image_size: Extent,
    patch_size: Extent,
    num_channels: usize,
    qkv_bias: bool,
    pooler_output_size: Option<usize>,
    pooler_act: String,
}

impl Default for VitConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-12,
            image_size: Extent::Square(224),
            patch_size: Extent::Square(16),
            num_channels: 3,
            qkv_bias: true,
            pooler_output_size: None,
            pooler_act: "tanh".to_owned(),
        }
    }
}

fn describe(
    input: &FamilyInput<'_>,
    head: Head,
    base_name: &'static str,
    prefix: &'static str,
) -> Result<ModelSpec, ModelError> {
    let config: VitConfig = input.parse()?;
    let (task, architecture) = input.purpose(head, base_name)?;
    let base = task == Task::Embedding;
    let teacher = head.architecture(input.config, base_name) == TEACHER;
    let hidden = config.hidden_size;
    let pooled = config.pooler_output_size.unwrap_or(hidden);
    input.check_sizes(&[
        ("hidden_size", hidden, MAX_WIDTH),
        ("num_attention_heads", config.num_attention_heads, MAX_WIDTH),
        ("num_hidden_layers", config.num_hidden_layers, MAX_LAYERS),
        ("intermediate_size", config.intermediate_size, MAX_WIDTH),
        ("pooler_output_size", pooled, MAX_WIDTH),
    ])?;
    let activation = input.activation("hidden_act", &config.hidden_act)?;
    let head_dim =
        input.head_dim(("hidden_size", hidden), ("num_attention_heads", config.num_attention_heads))?;

    let mut build =
        Builder::new(input, prefix, "embeddings.cls_token", base, ("layer_norm_eps", config.layer_norm_eps))?;
    let leading: &[&str] = match base_name {
        "DeiTModel" => &["embeddings.cls_token", "embeddings.distillation_token"],
        _ => &["embeddings.cls_token"],
    };
    let image = ImageDraft {
        image_size: config.image_size,
        patch_size: config.patch_size,
        channels: config.num_channels,
        projection: "embeddings.patch_embeddings.projection",
        bias: true,
    };
    let mut image = build.image_input(&image, leading.len(), hidden)?;
    for token in leading {
        let token = build.in_file(token);
        build.expect(&token, &[1, 1, hidden])?;
        image.tokens.push(token);
    }
    image.positions = build.in_file("embeddings.position_embeddings");
    build.expect(&image.positions, &[1, image.rows(), hidden])?;
    let blocks = (0..config.num_hidden_layers)
        .map(|layer| block(&mut build, &config, layer, head_dim, activation))
        .collect::<Result<Vec<_>, _>>()?;
    build.connect(&blocks, None);
    let final_norm = build.norm("layernorm", hidden)?;
    let head = match task {
        Task::Classification if teacher => {
            let first = build.sequence_head(RowSelection::Token(0), Vec::new(), "cls_classifier", hidden)?;
            let second =
                build.sequence_head(RowSelection::Token(1), Vec::new(), "distillation_classifier", hidden)?;
            HeadSpec { branches: [first.branches, second.branches].concat(), ..first }
        }
        Task::Classification => {
            build.sequence_head(RowSelection::Token(0), Vec::new(), "classifier", hidden)?
        }
        _ => class_token_head(&mut build, &config, pooled)?,
    };
    let tower = Tower {
        hidden,
        input: InputSpec::Image(image),
        blocks,
        final_norm: Some(final_norm),
        relative_bias: None,
        head,
    };
    build.finish(
        &architecture,
        vec![tower],
        &[
            ("embeddings.mask_token", "a token of pre-training"),
            ("pooler.", "a pooler that the task does not run"),
            ("classifier.", "a classifier that the task does not run"),
            ("cls_classifier.", "a classifier that the task does not run"),
            ("distillation_classifier.", "a classifier that the task does not run"),
        ],
    )
}

/// What `transformers` calls the pooler's output where the file has a pooler, the normalised class token where it has
/// none.
fn class_token_head(
    build: &mut Builder<'_>,
    config: &VitConfig,
    pooled: usize,
) -> Result<HeadSpec, ModelError> {
    let mut steps = Vec::new();
    if build.has_weight("pooler.dense") {
        let activation = build.input.activation("pooler_act", &config.pooler_act)?;
        let draft = Draft::new("pooler.dense", pooled, config.hidden_size, LinearRole::Pooler);
        let pooler = build.linear(&draft.activation(activation))?;
        steps.push(build.step(pooler, None));
    } else {
        build.idle_pooler("pooler.dense", config.hidden_size)?;
    }
    Ok(HeadSpec {
        output: HeadOutput::Embedding { after: Vec::new(), include_prompt: true },
        branches: vec![HeadBranch { rows: RowSelection::Token(0), steps }],
    })
}

/// The name of a module of a block, and that of its tensors in files that `transformers` 4 could read.
const RENAMED: [(&str, &str); 6] = [
    ("attention.q_proj", "attention.attention.query"),
    ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"),
    ("attention.o_proj", "attention.output.dense"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
];

fn block(
    build: &mut Builder<'_>,
    config: &VitConfig,
    layer: usize,
    head_dim: usize,
    activation: ActivationFn,
) -> Result<BlockSpec, ModelError> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let path = format!("layers.{layer}");
    let file = format!("encoder.layer.{layer}");
    let mut linear = |which: usize, outputs, inputs, bias, activation| {
        let (module, older) = RENAMED[which];
        let module = format!("{path}.{module}");
        let draft = Draft::new(&module, outputs, inputs, LinearRole::Block).bias(bias).activation(activation);
        build.renamed_linear(&format!("{file}.{older}"), &draft)
    };
    let none = ActivationFn::Identity;
    let query = linear(0, hidden, hidden, config.qkv_bias, none)?;
    let key = linear(1, hidden, hidden, config.qkv_bias, none)?;
    let value = linear(2, hidden, hidden, config.qkv_bias, none)?;
    let output = linear(3, hidden, hidden, true, none)?;
    let up = linear(4, inner, hidden, true, activation)?;
    let down = linear(5, hidden, inner, true, none)?;
    let mut norm =
        |name: &str| build.renamed_norm(&format!("{file}.{name}"), &format!("{path}.{name}"), hidden);
    let (attention_norm, mlp_norm) = (norm("layernorm_before")?, norm("layernorm_after")?);
    Ok(BlockSpec {
        placement: NormPlacement::Pre,
        attention: AttentionSpec {
            heads: config.num_attention_heads,
            kv_heads: config.num_attention_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            input: build.site(vec![query, key, value]),
            query: build.whole(query),
            key: build.whole(key),
            value: build.whole(value),
            cap: None,
            query_norm: None,
            key_norm: None,
            positions: Positions::Embedded,
            reach: Reach::Full,
            context: build.site(vec![output]),
            output,
        },
        attention_norm: Some(attention_norm),
        attention_output_norm: None,
        mlp_output_norm: None,
        mlp: FeedForward::Dense(MlpSpec {
            input: build.site(vec![up]),
            up: build.whole(up),
            gate: None,
            inner: build.site(vec![down]),
            down,
        }),
        mlp_norm,
        path: build.in_module(&path),
    })
}

/// Images and their patch embedding, about to be described.
pub(super) struct ImageDraft {
    pub(super) image_size: Extent,
    pub(super) patch_size: Extent,
    pub(super) channels: usize,
    /// Path of the patch embedding.
    pub(super) projection: &'static str,
    /// Whether it has a bias.
    pub(super) bias: bool,
}

/// Most pixels on a side, and most rows of one image in the residual stream: attention takes memory by its square.
const MAX_SIDE: usize = 4096;
const MAX_ROWS: usize = 16_384;

impl Builder<'_> {
    /// Images with the convolution over their patches; the caller names the tensors of tokens and positions.
    pub(super) fn image_input(
        &mut self,
        draft: &ImageDraft,
        leading: usize,
        hidden: usize,
    ) -> Result<ImageInput, ModelError> {
        let ([height, width], [patch, across]) = (draft.image_size.sides(), draft.patch_size.sides());
        self.input.check_sizes(&[
            ("image_size", height, MAX_SIDE),
            ("image_size", width, MAX_SIDE),
            ("patch_size", patch, height.min(width)),
            ("num_channels", draft.channels, 1024),
        ])?;
        if patch != across {
            return Err(self
                .input
                .config_error(format!("`patch_size` is [{patch}, {across}]; patches must be square")));
        }
        let rows = (height / patch) * (width / patch) + leading;
        if rows > MAX_ROWS || !height.is_multiple_of(patch) || !width.is_multiple_of(patch) {
            return Err(self.input.config_error(format!(
                "images of {height} x {width} pixels in patches of {patch} x {patch} make {rows} rows; whole patches and \
                 at most {MAX_ROWS} rows are supported"
            )));
        }
        let channels = draft.channels;
        let linear = self.convolution(draft.projection, hidden, channels, patch, draft.bias)?;
        let image = ImageInput {
            image_size: [height, width],
            patch_size: patch,
            channels,
            patches: self.site(vec![linear]),
            tokens: Vec::new(),
            positions: String::new(),
            norm: None,
        };
        Ok(image)
    }
}
