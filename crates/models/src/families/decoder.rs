//! Decoders of Llama's kind: pre-norm blocks with `RMSNorm`, rotary positions, grouped heads and a gated feed-forward half
//! (Touvron et al. 2023, "`LLaMA`: Open and Efficient Foundation Language Models"; names and shapes as in `transformers`'
//! `modeling_llama.py`, `modeling_mistral.py` and `modeling_qwen2.py`).

use serde::Deserialize;

use super::builder::{Builder, Draft};
use super::{Family, FamilyInput, Head, MAX_LAYERS, MAX_WIDTH, rotary};
use crate::ModelError;
use crate::heads::{HeadBranch, HeadOutput, HeadSpec, Pooling, RowSelection, Task};
use crate::spec::{
    ActivationFn, AttentionSpec, BlockSpec, EmbeddingRole, EmbeddingTable, Gate, InputSpec, LinearRole,
    MlpSpec, ModelSpec, NormPlacement, Positions, Reach, Rotary, TextInput, Tower,
};

pub(super) const LLAMA: Family = Family {
    model_type: "llama",
    base: "LlamaModel",
    describe: |input, head| describe(input, head, Kind::Llama),
    heads: &[("LlamaForCausalLM", Head::CausalLm)],
};

pub(super) const MISTRAL: Family = Family {
    model_type: "mistral",
    base: "MistralModel",
    describe: |input, head| describe(input, head, Kind::Mistral),
    heads: &[("MistralForCausalLM", Head::CausalLm)],
};

pub(super) const QWEN2: Family = Family {
    model_type: "qwen2",
    base: "Qwen2Model",
    describe: |input, head| describe(input, head, Kind::Qwen2),
    heads: &[("Qwen2ForCausalLM", Head::CausalLm)],
};

/// Where the families differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Llama,
    Mistral,
    Qwen2,
}

impl Kind {
    fn base(self) -> &'static str {
        match self {
            Self::Llama => LLAMA.base,
            Self::Mistral => MISTRAL.base,
            Self::Qwen2 => QWEN2.base,
        }
    }
}

/// The keys of config.json that matter, with `transformers`' defaults.
#[derive(Debug, Deserialize)]
struct DecoderConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    #[serde(default)]
    num_key_value_heads: Option<usize>,
    #[serde(default)]
    head_dim: Option<usize>,
    vocab_size: usize,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
    #[serde(default = "default_act")]
    hidden_act: String,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default = "default_window")]
    sliding_window: Option<usize>,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default = "default_window_layers")]
    max_window_layers: usize,
    #[serde(default)]
    layer_types: Option<Vec<String>>,
}

fn default_positions() -> usize {
    2048
}
fn default_act() -> String {
    "silu".to_owned()
}
fn default_eps() -> f64 {
    1e-6
}
#[allow(clippy::unnecessary_wraps)] // serde wants the field's type.
fn default_window() -> Option<usize> {
    Some(4096)
}
fn default_window_layers() -> usize {
    28
}

impl DecoderConfig {
    /// The reach of each layer.
    fn reaches(&self, input: &FamilyInput<'_>, kind: Kind) -> Result<Vec<Reach>, ModelError> {
        let layers = self.num_hidden_layers;
        let window = match kind {
            Kind::Llama => None,
            Kind::Mistral => self.sliding_window,
            Kind::Qwen2 => self.sliding_window.filter(|_| self.use_sliding_window),
        };
        let Some(window) = window else { return Ok(vec![Reach::Causal; layers]) };
        if window == 0 {
            return Err(input.config_error("`sliding_window` is 0; null or a number of tokens is expected"));
        }
        // The window counts the token itself.
        let sliding = Reach::CausalWindow(window - 1);
        if kind == Kind::Mistral {
            return Ok(vec![sliding; layers]);
        }
        let Some(types) = &self.layer_types else {
            let of_layer = |layer| if layer >= self.max_window_layers { sliding } else { Reach::Causal };
            return Ok((0..layers).map(of_layer).collect());
        };
        if types.len() != layers {
            return Err(
                input.config_error(format!("`layer_types` has {} entries for {layers} layers", types.len()))
            );
        }
        let of_type = |name: &String| match name.as_str() {
            "full_attention" => Ok(Reach::Causal),
            "sliding_attention" => Ok(sliding),
            other => Err(input.config_error(format!(
                "`layer_types` names `{other}`; full_attention and sliding_attention are supported"
            ))),
        };
        types.iter().map(of_type).collect()
    }
}

/// What every block shares.
struct Block<'a> {
    config: &'a DecoderConfig,
    kind: Kind,
    head_dim: usize,
    kv_heads: usize,
    activation: ActivationFn,
    rotary: Rotary,
}

fn describe(input: &FamilyInput<'_>, head: Head, kind: Kind) -> Result<ModelSpec, ModelError> {
    let config: DecoderConfig = input.parse()?;
    let (task, architecture) = input.purpose(head, kind.base())?;
    let heads = config.num_attention_heads;
    let kv_heads = config.num_key_value_heads.unwrap_or(heads);
    input.check_sizes(&[
        ("hidden_size", config.hidden_size, MAX_WIDTH),
        ("intermediate_size", config.intermediate_size, 1 << 20),
        ("num_hidden_layers", config.num_hidden_layers, MAX_LAYERS),
        ("num_attention_heads", heads, MAX_WIDTH),
        ("num_key_value_heads", kv_heads, MAX_WIDTH),
        ("vocab_size", config.vocab_size, 1 << 28),
        ("max_position_embeddings", config.max_position_embeddings, 1 << 28),
        ("head_dim", config.head_dim.unwrap_or(1), MAX_WIDTH),
    ])?;
    if !heads.is_multiple_of(kv_heads) {
        return Err(input.config_error(format!(
            "`num_attention_heads` {heads} is not a multiple of `num_key_value_heads` {kv_heads}"
        )));
    }
    let head_dim = match config.head_dim {
        Some(head_dim) => head_dim,
        None => input.head_dim(("hidden_size", config.hidden_size), ("num_attention_heads", heads))?,
    };
    if !head_dim.is_multiple_of(2) || head_dim * heads > MAX_WIDTH {
        return Err(input.config_error(format!(
            "{heads} heads have {head_dim} channels each; rotary positions need an even number, and all heads together \
             have at most {MAX_WIDTH}"
        )));
    }
    let activation = input.activation("hidden_act", &config.hidden_act)?;
    let reaches = config.reaches(input, kind)?;
    let shared =
        Block { config: &config, kind, head_dim, kv_heads, activation, rotary: rotary::read(input)? };

    let hidden = config.hidden_size;
    let base = task == Task::Embedding;
    let mut build =
        Builder::new(input, "model.", "embed_tokens.weight", base, ("rms_norm_eps", config.rms_norm_eps))?;
    let words = build.table("embed_tokens", config.vocab_size, hidden, EmbeddingRole::Word)?;
    let blocks = reaches
        .into_iter()
        .enumerate()
        .map(|(layer, reach)| shared.describe(&mut build, layer, reach))
        .collect::<Result<Vec<_>, ModelError>>()?;
    let final_norm = build.rms_norm("norm", hidden)?;
    build.connect(&blocks, None);
    let head = if base { build.embedding_head(Pooling::Last) } else { language_head(&mut build, &words)? };
    // Old checkpoints hold the frequencies, which follow from config.json.
    let frequencies: Vec<String> =
        (0..blocks.len()).map(|layer| format!("layers.{layer}.self_attn.rotary_emb.inv_freq")).collect();
    let mut unused = vec![("lm_head.", "a head that the task does not run")];
    unused.extend(
        frequencies.iter().map(|name| (name.as_str(), "rotary frequencies, which config.json gives")),
    );
    let tower = Tower {
        hidden,
        input: InputSpec::Text(TextInput {
            max_positions: config.max_position_embeddings,
            width: hidden,
            tables: vec![words],
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

impl Block<'_> {
    fn describe(&self, build: &mut Builder<'_>, layer: usize, reach: Reach) -> Result<BlockSpec, ModelError> {
        let &Self { config, kind, head_dim, kv_heads, activation, rotary } = self;
        let (hidden, inner, heads) =
            (config.hidden_size, config.intermediate_size, config.num_attention_heads);
        let (wide, narrow) = (heads * head_dim, kv_heads * head_dim);
        let path = format!("layers.{layer}");
        let projected = config.attention_bias || kind == Kind::Qwen2;
        let (output_bias, mlp_bias) =
            if kind == Kind::Llama { (config.attention_bias, config.mlp_bias) } else { (false, false) };
        let projected = projected && kind != Kind::Mistral;
        let mut linear = |name: &str, outputs, inputs, bias| {
            build
                .linear(&Draft::new(&format!("{path}.{name}"), outputs, inputs, LinearRole::Block).bias(bias))
        };
        let query = linear("self_attn.q_proj", wide, hidden, projected)?;
        let key = linear("self_attn.k_proj", narrow, hidden, projected)?;
        let value = linear("self_attn.v_proj", narrow, hidden, projected)?;
        let output = linear("self_attn.o_proj", hidden, wide, output_bias)?;
        let gate = linear("mlp.gate_proj", inner, hidden, mlp_bias)?;
        let up = linear("mlp.up_proj", inner, hidden, mlp_bias)?;
        let down = linear("mlp.down_proj", hidden, inner, mlp_bias)?;
        Ok(BlockSpec {
            placement: NormPlacement::Pre,
            attention: AttentionSpec {
                heads,
                kv_heads,
                head_dim,
                scale: 1.0 / (head_dim as f32).sqrt(),
                input: build.site(vec![query, key, value]),
                query: build.whole(query),
                key: build.whole(key),
                value: build.whole(value),
                positions: Positions::Rotary(rotary),
                reach,
                context: build.site(vec![output]),
                output,
            },
            attention_norm: Some(build.rms_norm(&format!("{path}.input_layernorm"), hidden)?),
            mlp: MlpSpec {
                input: build.site(vec![gate, up]),
                up: build.whole(up),
                gate: Some(Gate { projection: build.whole(gate), activation }),
                inner: build.site(vec![down]),
                down,
            },
            mlp_norm: build.rms_norm(&format!("{path}.post_attention_layernorm"), hidden)?,
            path: build.in_module(&path),
        })
    }
}

/// Logits over the vocabulary, by the word embedding table where config.json ties it.
fn language_head(build: &mut Builder<'_>, words: &EmbeddingTable) -> Result<HeadSpec, ModelError> {
    let tied = build.tied(false);
    if !tied {
        build.expect("lm_head.weight", &[words.rows, words.width])?;
    }
    let linear = build.decoder("lm_head", &[], words, tied)?;
    let steps = vec![build.step(linear, None)];
    Ok(HeadSpec {
        output: HeadOutput::CausalLm,
        branches: vec![HeadBranch { rows: RowSelection::Every, steps }],
    })
}
