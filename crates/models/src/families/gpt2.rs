//! GPT-2: learnt positions, pre-norm blocks with `LayerNorm`, and weights stored the other way round (Radford et al. 2019,
//! "Language Models are Unsupervised Multitask Learners"; names and shapes as in `transformers`' `modeling_gpt2.py`).

use serde::Deserialize;

use super::builder::{Builder, Draft};
use super::{Family, FamilyInput, Head, MAX_LAYERS, MAX_WIDTH};
use crate::ModelError;
use crate::heads::{Pooling, Task};
use crate::spec::{
    ActivationFn, AttentionSpec, BlockSpec, EmbeddingRole, FeedForward, InputSpec, LinearRole, MlpSpec,
    ModelSpec, NormPlacement, Positions, Projection, Reach, TextInput, Tower,
};

pub(super) const GPT2: Family =
    Family { model_type: "gpt2", base: "GPT2Model", describe, heads: &[("GPT2LMHeadModel", Head::CausalLm)] };

/// The keys of config.json that matter, with `transformers`' defaults.
#[derive(Debug, Deserialize)]
struct Gpt2Config {
    vocab_size: usize,
    #[serde(default = "default_positions")]
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    #[serde(default)]
    n_inner: Option<usize>,
    #[serde(default = "default_activation")]
    activation_function: String,
    #[serde(default = "default_eps")]
    layer_norm_epsilon: f64,
    #[serde(default = "default_true")]
    scale_attn_weights: bool,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
    #[serde(default)]
    add_cross_attention: bool,
}

fn default_positions() -> usize {
    1024
}
fn default_activation() -> String {
    "gelu_new".to_owned()
}
fn default_eps() -> f64 {
    1e-5
}
fn default_true() -> bool {
    true
}

fn describe(input: &FamilyInput<'_>, head: Head) -> Result<ModelSpec, ModelError> {
    let config: Gpt2Config = input.parse()?;
    let (task, architecture) = input.purpose(head, GPT2.base)?;
    if config.add_cross_attention {
        return Err(
            input.config_error("`add_cross_attention` is true; only decoders by themselves are supported")
        );
    }
    let (hidden, layers) = (config.n_embd, config.n_layer);
    let inner = config.n_inner.unwrap_or(4 * hidden);
    input.check_sizes(&[
        ("n_embd", hidden, MAX_WIDTH),
        ("n_inner", inner, 1 << 20),
        ("n_layer", layers, MAX_LAYERS),
        ("n_head", config.n_head, MAX_WIDTH),
        ("vocab_size", config.vocab_size, 1 << 28),
        ("n_positions", config.n_positions, 1 << 28),
    ])?;
    let head_dim = input.head_dim(("n_embd", hidden), ("n_head", config.n_head))?;
    let activation = input.activation("activation_function", &config.activation_function)?;
    let base = task == Task::Embedding;
    let eps = ("layer_norm_epsilon", config.layer_norm_epsilon);
    let mut build = Builder::new(input, "transformer.", "wte.weight", base, eps)?;
    let words = build.table("wte", config.vocab_size, hidden, EmbeddingRole::Word)?;
    let role = EmbeddingRole::Position { offset: 0, pad: None };
    let positions = build.table("wpe", config.n_positions, hidden, role)?;
    let blocks = (0..layers)
        .map(|layer| block(&mut build, &config, layer, (head_dim, inner), activation))
        .collect::<Result<Vec<_>, ModelError>>()?;
    let final_norm = build.norm("ln_f", hidden)?;
    build.connect(&blocks, None);
    let head = if base {
        build.embedding_head(Pooling::Last)
    } else {
        build.language_head("lm_head", &words, true, None)?
    };
    // Old checkpoints hold the triangle of ones that masks what comes later.
    let masks: Vec<String> = (0..layers)
        .flat_map(|layer| ["bias", "masked_bias"].map(|name| format!("h.{layer}.attn.{name}")))
        .collect();
    let mut unused = vec![("lm_head.", "a head that the task does not run")];
    unused.extend(masks.iter().map(|name| (name.as_str(), "the causal mask, which needs no tensor")));
    let tower = Tower {
        hidden,
        input: InputSpec::Text(TextInput {
            max_positions: config.n_positions,
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
    };
    build.finish(&architecture, vec![tower], &unused)
}

fn block(
    build: &mut Builder<'_>,
    config: &Gpt2Config,
    layer: usize,
    (head_dim, inner): (usize, usize),
    activation: ActivationFn,
) -> Result<BlockSpec, ModelError> {
    let hidden = config.n_embd;
    let path = format!("h.{layer}");
    let mut linear = |name: &str, outputs, inputs, activation| {
        let path = format!("{path}.{name}");
        let draft = Draft::new(&path, outputs, inputs, LinearRole::Block).activation(activation);
        build.linear(&Draft { transposed: true, ..draft })
    };
    let qkv = linear("attn.c_attn", 3 * hidden, hidden, ActivationFn::Identity)?;
    let output = linear("attn.c_proj", hidden, hidden, ActivationFn::Identity)?;
    let up = linear("mlp.c_fc", inner, hidden, activation)?;
    let down = linear("mlp.c_proj", hidden, inner, ActivationFn::Identity)?;
    let of_qkv = |i: usize| Projection { linear: qkv, outputs: i * hidden..(i + 1) * hidden, stride: None };
    let mut scale = if config.scale_attn_weights { 1.0 / (head_dim as f32).sqrt() } else { 1.0 };
    if config.scale_attn_by_inverse_layer_idx {
        scale /= (layer + 1) as f32;
    }
    Ok(BlockSpec {
        placement: NormPlacement::Pre,
        attention: AttentionSpec {
            heads: config.n_head,
            kv_heads: config.n_head,
            head_dim,
            scale,
            cap: None,
            input: build.site(vec![qkv]),
            query: of_qkv(0),
            key: of_qkv(1),
            value: of_qkv(2),
            query_norm: None,
            key_norm: None,
            positions: Positions::Embedded,
            reach: Reach::Causal,
            context: build.site(vec![output]),
            output,
        },
        attention_norm: Some(build.norm(&format!("{path}.ln_1"), hidden)?),
        attention_output_norm: None,
        mlp: FeedForward::Dense(MlpSpec {
            input: build.site(vec![up]),
            up: build.whole(up),
            gate: None,
            inner: build.site(vec![down]),
            down,
        }),
        mlp_norm: build.norm(&format!("{path}.ln_2"), hidden)?,
        mlp_output_norm: None,
        path: build.in_module(&path),
    })
}
