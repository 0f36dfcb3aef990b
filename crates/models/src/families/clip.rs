//! CLIP: a causal text encoder and a `ViT` that meet in one space (Radford et al. 2021, "Learning Transferable Visual
//! Models From Natural Language Supervision"; names and shapes as in `transformers`' `modeling_clip.py`).

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::builder::{Builder, Draft};
use super::layers::{BlockNames, Sizes};
use super::vit::{Extent, ImageDraft};
use super::{Family, FamilyInput, Head, MAX_LAYERS, MAX_WIDTH};
use crate::ModelError;
use crate::heads::{HeadBranch, HeadOutput, HeadSpec, RowSelection, SentenceStep};
use crate::spec::{
    BlockSpec, EmbeddingRole, InputSpec, LinearRole, ModelSpec, NormPlacement, Positions, Reach, TextInput,
    Tower,
};

pub(super) const CLIP: Family = Family {
    model_type: "clip",
    base: "CLIPModel",
    describe: |input, head| describe(input, head, "CLIPModel", true, true),
    heads: &[],
};

pub(super) const TEXT: Family = Family {
    model_type: "clip_text_model",
    base: "CLIPTextModelWithProjection",
    describe: |input, head| describe(input, head, "CLIPTextModelWithProjection", true, false),
    heads: &[],
};

pub(super) const VISION: Family = Family {
    model_type: "clip_vision_model",
    base: "CLIPVisionModelWithProjection",
    describe: |input, head| describe(input, head, "CLIPVisionModelWithProjection", false, true),
    heads: &[],
};

const BLOCK: BlockNames = BlockNames {
    qkv: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    attention_output: "self_attn.out_proj",
    attention_norm: "layer_norm1",
    up: "mlp.fc1",
    down: "mlp.fc2",
    mlp_norm: "layer_norm2",
};

/// What config files without the key mean by `projection_dim`.
const PROJECTION: usize = 512;
/// The same for `layer_norm_eps`.
const EPS: f64 = 1e-5;
/// `eos_token_id` of configs written before it was right: the end of the text is then its largest id.
const EOS_OF_OLD_CONFIGS: u32 = 2;

/// The keys of a tower's config that both have.
#[derive(Debug, Deserialize)]
struct LayersConfig {
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct TextConfig {
    vocab_size: usize,
    max_position_embeddings: usize,
    eos_token_id: Option<u32>,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self { vocab_size: 49_408, max_position_embeddings: 77, eos_token_id: Some(49_407) }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct VisionConfig {
    image_size: Extent,
    patch_size: Extent,
    num_channels: usize,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self { image_size: Extent::Square(224), patch_size: Extent::Square(32), num_channels: 3 }
    }
}

fn describe(
    input: &FamilyInput<'_>,
    head: Head,
    base: &'static str,
    text: bool,
    vision: bool,
) -> Result<ModelSpec, ModelError> {
    input.task_for(head, base)?;
    let both = text && vision;
    // A tower alone has its width in its own config; beside the other the whole model's counts.
    let projection = |own: &Value| match if both { input.config } else { own }.get("projection_dim") {
        None | Some(Value::Null) => Ok(PROJECTION),
        Some(width) => width
            .as_u64()
            .and_then(|width| usize::try_from(width).ok())
            .filter(|width| (1..=MAX_WIDTH).contains(width))
            .ok_or_else(|| {
                input.config_error(format!("`projection_dim` is {width}; 1 to {MAX_WIDTH} is allowed"))
            }),
    };
    let mut build = Builder::new(input, "", "logit_scale", true, ("layer_norm_eps", EPS))?;
    let mut towers = Vec::new();
    // Images first: what the model is asked for with them is what its spaces meet for.
    if vision {
        let config = tower_config(input, "vision_config", both);
        towers.push(vision_tower(&mut build, &config, projection(&config)?)?);
    }
    if text {
        let config = tower_config(input, "text_config", both);
        towers.push(text_tower(&mut build, &config, projection(&config)?)?);
    }
    if both {
        build.expect("logit_scale", &[])?;
        build.logit_scale("logit_scale");
    }
    build.finish(
        base,
        towers,
        &[
            ("text_model.embeddings.position_ids", "a constant buffer"),
            ("vision_model.embeddings.position_ids", "a constant buffer"),
            ("text_", "the tower for texts, which this architecture does not run"),
            ("vision_", "the tower for images, which this architecture does not run"),
            ("visual_projection.", "the tower for images, which this architecture does not run"),
            ("logit_scale", "a factor that one tower alone does not need"),
        ]
        .into_iter()
        .filter(|(name, _)| !both || name.ends_with("position_ids"))
        .collect::<Vec<_>>(),
    )
}

/// A tower's part of config.json: the whole of it for a model of one tower, otherwise what is under `key`.
///
/// Old files of both towers repeat that under `key` and `_dict`. `transformers` fills such a table up with its defaults and
/// then lets it override all that is under `key`: nothing of the latter is left.
fn tower_config(input: &FamilyInput<'_>, key: &str, both: bool) -> Value {
    let part = |key: &str| input.config.get(key).filter(|value| value.is_object()).cloned();
    let older = if both { part(&format!("{key}_dict")) } else { None };
    match older.or_else(|| part(key)) {
        None if !both && part("text_config").or_else(|| part("vision_config")).is_none() => {
            input.config.clone()
        }
        own => own.unwrap_or_else(|| Value::Object(serde_json::Map::new())),
    }
}

fn parse<T: DeserializeOwned>(input: &FamilyInput<'_>, tower: &str, config: &Value) -> Result<T, ModelError> {
    T::deserialize(config).map_err(|error| input.config_error(format!("`{tower}`: {error}")))
}

/// What the two towers have in common.
struct Layers {
    sizes: Sizes,
    blocks: usize,
    activation: crate::spec::ActivationFn,
}

/// `defaults` are the width, that of the feed-forward half, layers and heads of `transformers`' default config.
fn layers(
    build: &mut Builder<'_>,
    tower: &str,
    config: &Value,
    defaults: [usize; 4],
) -> Result<Layers, ModelError> {
    let input = build.input;
    let config: LayersConfig = parse(input, tower, config)?;
    let hidden = config.hidden_size.unwrap_or(defaults[0]);
    let inner = config.intermediate_size.unwrap_or(defaults[1]);
    let blocks = config.num_hidden_layers.unwrap_or(defaults[2]);
    let heads = config.num_attention_heads.unwrap_or(defaults[3]);
    input.check_sizes(&[
        ("hidden_size", hidden, MAX_WIDTH),
        ("intermediate_size", inner, MAX_WIDTH),
        ("num_hidden_layers", blocks, MAX_LAYERS),
        ("num_attention_heads", heads, MAX_WIDTH),
    ])?;
    build.set_eps(("layer_norm_eps", config.layer_norm_eps.unwrap_or(EPS)))?;
    let head_dim = input.head_dim(("hidden_size", hidden), ("num_attention_heads", heads))?;
    let activation = input.activation("hidden_act", config.hidden_act.as_deref().unwrap_or("quick_gelu"))?;
    Ok(Layers { sizes: Sizes { hidden, heads, head_dim, inner }, blocks, activation })
}

fn blocks(
    build: &mut Builder<'_>,
    path: &str,
    layers: &Layers,
    reach: Reach,
) -> Result<Vec<BlockSpec>, ModelError> {
    let blocks = (0..layers.blocks)
        .map(|layer| {
            let path = format!("{path}.encoder.layers.{layer}");
            let (placement, positions) = (NormPlacement::Pre, Positions::Embedded);
            let mut block =
                build.plain_block(&path, &BLOCK, layers.sizes, layers.activation, placement, positions)?;
            block.attention.reach = reach;
            Ok(block)
        })
        .collect::<Result<Vec<_>, ModelError>>()?;
    build.connect(&blocks, None);
    Ok(blocks)
}

/// One row of each sample through a projection without a bias, then divided by its length.
fn projected(
    build: &mut Builder<'_>,
    path: &str,
    rows: RowSelection,
    width: usize,
    hidden: usize,
) -> Result<HeadSpec, ModelError> {
    let linear = build.linear(&Draft::new(path, width, hidden, LinearRole::Head).bias(false))?;
    let step = build.step(linear, None);
    Ok(HeadSpec {
        output: HeadOutput::Embedding { after: vec![SentenceStep::Normalize], include_prompt: true },
        branches: vec![HeadBranch { rows, steps: vec![step] }],
    })
}

fn text_tower(build: &mut Builder<'_>, config: &Value, projection: usize) -> Result<Tower, ModelError> {
    let layers = layers(build, "text_config", config, [512, 2048, 12, 8])?;
    let own: TextConfig = parse(build.input, "text_config", config)?;
    build.input.check_sizes(&[
        ("vocab_size", own.vocab_size, 1 << 28),
        ("max_position_embeddings", own.max_position_embeddings, 1 << 24),
    ])?;
    let hidden = layers.sizes.hidden;
    let embeddings = "text_model.embeddings";
    let words =
        build.table(&format!("{embeddings}.token_embedding"), own.vocab_size, hidden, EmbeddingRole::Word)?;
    let positions = build.table(
        &format!("{embeddings}.position_embedding"),
        own.max_position_embeddings,
        hidden,
        EmbeddingRole::Position { offset: 0, pad: None },
    )?;
    let blocks = blocks(build, "text_model", &layers, Reach::Causal)?;
    let final_norm = build.norm("text_model.final_layer_norm", hidden)?;
    let end = own.eos_token_id.filter(|id| *id != EOS_OF_OLD_CONFIGS);
    let head = projected(build, "text_projection", RowSelection::EndOfText(end), projection, hidden)?;
    Ok(Tower {
        hidden,
        input: InputSpec::Text(TextInput {
            max_positions: own.max_position_embeddings,
            width: hidden,
            tables: vec![words, positions],
            scale: 1.0,
            norm: None,
            projection: None,
        }),
        blocks,
        final_norm: Some(final_norm),
        relative_bias: None,
        head,
    })
}

fn vision_tower(build: &mut Builder<'_>, config: &Value, projection: usize) -> Result<Tower, ModelError> {
    let layers = layers(build, "vision_config", config, [768, 3072, 12, 12])?;
    let own: VisionConfig = parse(build.input, "vision_config", config)?;
    let hidden = layers.sizes.hidden;
    let draft = ImageDraft {
        image_size: own.image_size,
        patch_size: own.patch_size,
        channels: own.num_channels,
        projection: "vision_model.embeddings.patch_embedding",
        bias: false,
    };
    let mut image = build.image_input(&draft, 1, hidden)?;
    image.tokens.push(build.in_file("vision_model.embeddings.class_embedding"));
    build.expect(&image.tokens[0], &[hidden])?;
    image.positions = build.in_file("vision_model.embeddings.position_embedding.weight");
    build.expect(&image.positions, &[image.rows(), hidden])?;
    // The published names are misspelt so.
    image.norm = Some(build.norm("vision_model.pre_layrnorm", hidden)?);
    let blocks = blocks(build, "vision_model", &layers, Reach::Full)?;
    // The reference normalises the class token alone, which alone is read.
    let final_norm = build.norm("vision_model.post_layernorm", hidden)?;
    let head = projected(build, "visual_projection", RowSelection::Token(0), projection, hidden)?;
    Ok(Tower {
        hidden,
        input: InputSpec::Image(image),
        blocks,
        final_norm: Some(final_norm),
        relative_bias: None,
        head,
    })
}
