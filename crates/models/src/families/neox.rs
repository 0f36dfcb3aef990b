//! GPT-NeoX and Pythia: both halves of a block read the same stream, a part of each head turns, and one Linear gives the
//! query, key and value of each head in turn (Black et al. 2022, "GPT-NeoX-20B: An Open-Source Autoregressive Language
//! Model"; names and shapes as in `transformers`' `modeling_gpt_neox.py`).

use serde::Deserialize;

use super::builder::{Builder, Draft};
use super::rotary::{self, RotaryKeys};
use super::{Family, FamilyInput, Head, MAX_LAYERS, MAX_WIDTH};
use crate::ModelError;
use crate::heads::{Pooling, Task};
use crate::spec::{
    ActivationFn, AttentionSpec, BlockSpec, EmbeddingRole, FeedForward, InputSpec, LinearRole, MlpSpec,
    ModelSpec, NormPlacement, Positions, Projection, Reach, Rotary, TextInput, Tower,
};

pub(super) const GPT_NEOX: Family = Family {
    model_type: "gpt_neox",
    base: "GPTNeoXModel",
    describe,
    heads: &[("GPTNeoXForCausalLM", Head::CausalLm)],
};

/// The keys of config.json that matter, with `transformers`' defaults.
#[derive(Debug, Deserialize)]
struct NeoxConfig {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    #[serde(default = "default_activation")]
    hidden_act: String,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
    #[serde(default = "default_eps")]
    layer_norm_eps: f64,
    #[serde(default = "default_true")]
    attention_bias: bool,
    #[serde(default = "default_true")]
    use_parallel_residual: bool,
}

fn default_activation() -> String {
    "gelu".to_owned()
}
fn default_positions() -> usize {
    2048
}
fn default_eps() -> f64 {
    1e-5
}
fn default_true() -> bool {
    true
}

fn describe(input: &FamilyInput<'_>, head: Head) -> Result<ModelSpec, ModelError> {
    let config: NeoxConfig = input.parse()?;
    let (task, architecture) = input.purpose(head, GPT_NEOX.base)?;
    let (hidden, layers) = (config.hidden_size, config.num_hidden_layers);
    input.check_sizes(&[
        ("hidden_size", hidden, MAX_WIDTH),
        ("intermediate_size", config.intermediate_size, 1 << 20),
        ("num_hidden_layers", layers, MAX_LAYERS),
        ("num_attention_heads", config.num_attention_heads, MAX_WIDTH),
        ("vocab_size", config.vocab_size, 1 << 28),
        ("max_position_embeddings", config.max_position_embeddings, 1 << 28),
    ])?;
    let head_dim =
        input.head_dim(("hidden_size", hidden), ("num_attention_heads", config.num_attention_heads))?;
    let keys = RotaryKeys {
        theta_key: "rotary_emb_base",
        channels: Some(("rotary_pct", 0.25)),
        ..RotaryKeys::default()
    };
    let rotary = rotary::read(input, head_dim, config.max_position_embeddings, &keys)?;
    let activation = input.activation("hidden_act", &config.hidden_act)?;
    let base = task == Task::Embedding;
    let eps = ("layer_norm_eps", config.layer_norm_eps);
    let mut build = Builder::new(input, "gpt_neox.", "embed_in.weight", base, eps)?;
    let words = build.table("embed_in", config.vocab_size, hidden, EmbeddingRole::Word)?;
    let blocks = (0..layers)
        .map(|layer| block(&mut build, &config, layer, head_dim, &rotary, activation))
        .collect::<Result<Vec<_>, ModelError>>()?;
    let final_norm = build.norm("final_layer_norm", hidden)?;
    build.connect(&blocks, None);
    let head = if base {
        build.embedding_head(Pooling::Last)
    } else {
        // transformers 5 builds it under another name, to which it moves the file's tensor.
        build.also_called("lm_head");
        build.language_head("embed_out", &words, false, None)?
    };
    let buffers: Vec<String> = (0..layers)
        .flat_map(|layer| {
            ["bias", "masked_bias", "rotary_emb.inv_freq"]
                .map(|name| format!("layers.{layer}.attention.{name}"))
        })
        .collect();
    let mut unused = vec![("embed_out.", "a head that the task does not run")];
    let reason = "the causal mask or rotary frequencies, which config.json gives";
    unused.extend(buffers.iter().map(|name| (name.as_str(), reason)));
    let tower = Tower {
        hidden,
        input: InputSpec::Text(TextInput {
            max_positions: config.max_position_embeddings,
            width: hidden,
            tables: vec![words],
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
    config: &NeoxConfig,
    layer: usize,
    head_dim: usize,
    rotary: &Rotary,
    activation: ActivationFn,
) -> Result<BlockSpec, ModelError> {
    let (hidden, inner, heads) = (config.hidden_size, config.intermediate_size, config.num_attention_heads);
    let path = format!("layers.{layer}");
    let mut linear = |name: &str, outputs, inputs, bias, activation| {
        let path = format!("{path}.{name}");
        let draft = Draft::new(&path, outputs, inputs, LinearRole::Block);
        build.linear(&draft.bias(bias).activation(activation))
    };
    let bias = config.attention_bias;
    let qkv = linear("attention.query_key_value", 3 * hidden, hidden, bias, ActivationFn::Identity)?;
    let output = linear("attention.dense", hidden, hidden, bias, ActivationFn::Identity)?;
    let up = linear("mlp.dense_h_to_4h", inner, hidden, true, activation)?;
    let down = linear("mlp.dense_4h_to_h", hidden, inner, true, ActivationFn::Identity)?;
    // Each head's query, key and value stand together.
    let stride = 3 * head_dim;
    let of_heads = |i: usize| Projection {
        linear: qkv,
        outputs: i * head_dim..(heads - 1) * stride + (i + 1) * head_dim,
        stride: Some(stride),
    };
    let parallel = config.use_parallel_residual;
    Ok(BlockSpec {
        placement: if parallel { NormPlacement::Parallel } else { NormPlacement::Pre },
        attention: AttentionSpec {
            heads,
            kv_heads: heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            cap: None,
            input: build.site(vec![qkv]),
            query: of_heads(0),
            key: of_heads(1),
            value: of_heads(2),
            query_norm: None,
            key_norm: None,
            positions: Positions::Rotary(rotary.clone()),
            reach: Reach::Causal,
            context: build.site(vec![output]),
            output,
        },
        attention_norm: Some(build.norm(&format!("{path}.input_layernorm"), hidden)?),
        attention_output_norm: None,
        mlp: FeedForward::Dense(MlpSpec {
            input: build.site(vec![up]),
            up: build.whole(up),
            gate: None,
            inner: build.site(vec![down]),
            down,
        }),
        mlp_norm: build.norm(&format!("{path}.post_attention_layernorm"), hidden)?,
        mlp_output_norm: None,
        path: build.in_module(&path),
    })
}
