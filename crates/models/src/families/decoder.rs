//! Decoders of Llama's kind: pre-norm blocks with `RMSNorm`, rotary positions, grouped heads and a gated feed-forward half
//! (Touvron et al. 2023, "`LLaMA`: Open and Efficient Foundation Language Models"). The families that share this shape say
//! where they differ.

use serde::{Deserialize, Deserializer};

use super::builder::{Builder, Draft};
use super::experts::Mixture;
use super::{FamilyInput, Head, MAX_LAYERS, MAX_WIDTH};
use crate::ModelError;
use crate::heads::{Pooling, Task};
use crate::spec::{
    ActivationFn, AttentionSpec, BlockSpec, EmbeddingRole, FeedForward, Gate, InputSpec, LinearRole, MlpSpec,
    ModelSpec, NormPlacement, NormSpec, Positions, Projection, Reach, SiteId, TextInput, Tower,
};

/// The keys of config.json that every family has.
#[derive(Debug, Deserialize)]
pub(super) struct DecoderConfig {
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    #[serde(default)]
    pub(super) num_key_value_heads: Option<usize>,
    #[serde(default)]
    pub(super) head_dim: Option<usize>,
    pub(super) vocab_size: usize,
    #[serde(default)]
    pub(super) max_position_embeddings: Option<usize>,
    #[serde(default)]
    pub(super) hidden_act: Option<String>,
    #[serde(default)]
    pub(super) rms_norm_eps: Option<f64>,
    #[serde(default)]
    pub(super) attention_bias: bool,
    #[serde(default)]
    pub(super) mlp_bias: bool,
    #[serde(default)]
    sliding_window: Told<usize>,
    #[serde(default)]
    pub(super) use_sliding_window: bool,
    #[serde(default)]
    pub(super) layer_types: Option<Vec<String>>,
}

/// A key of which null and silence mean different things.
#[derive(Debug, Clone, Copy, Default)]
pub(super) enum Told<T> {
    #[default]
    Silence,
    Null,
    Value(T),
}

impl<T: Copy> Told<T> {
    /// `default` is what silence means.
    pub(super) fn or(self, default: Option<T>) -> Option<T> {
        match self {
            Self::Silence => default,
            Self::Null => None,
            Self::Value(value) => Some(value),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Told<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(deserializer)?.map_or(Self::Null, Self::Value))
    }
}

impl DecoderConfig {
    /// Channels of one head: `head_dim`, or `default`, or the heads' share of the residual stream.
    pub(super) fn head_dim(
        &self,
        input: &FamilyInput<'_>,
        default: Option<usize>,
    ) -> Result<usize, ModelError> {
        let heads = self.num_attention_heads;
        input.check_sizes(&[
            ("hidden_size", self.hidden_size, MAX_WIDTH),
            ("num_attention_heads", heads, MAX_WIDTH),
        ])?;
        match self.head_dim.or(default) {
            Some(head_dim) => {
                input.check_sizes(&[("head_dim", head_dim, MAX_WIDTH)])?;
                Ok(head_dim)
            }
            None => input.head_dim(("hidden_size", self.hidden_size), ("num_attention_heads", heads)),
        }
    }

    /// The reach of a layer with a sliding window, where config.json has one; `default` is what its silence means.
    pub(super) fn sliding(
        &self,
        input: &FamilyInput<'_>,
        default: Option<usize>,
    ) -> Result<Option<Reach>, ModelError> {
        match self.sliding_window.or(default) {
            None => Ok(None),
            Some(0) => {
                Err(input.config_error("`sliding_window` is 0; null or a number of tokens is expected"))
            }
            // The window counts the token itself.
            Some(window) => Ok(Some(Reach::CausalWindow(window - 1))),
        }
    }

    /// Whether each layer has the sliding window: as `layer_types` says, otherwise `default`.
    pub(super) fn windows(
        &self,
        input: &FamilyInput<'_>,
        default: impl Fn(usize) -> bool,
    ) -> Result<Vec<bool>, ModelError> {
        let layers = self.num_hidden_layers;
        input.check_sizes(&[("num_hidden_layers", layers, MAX_LAYERS)])?;
        let Some(types) = &self.layer_types else { return Ok((0..layers).map(default).collect()) };
        if types.len() != layers {
            return Err(
                input.config_error(format!("`layer_types` has {} entries for {layers} layers", types.len()))
            );
        }
        let of_type = |name: &String| match name.as_str() {
            "full_attention" => Ok(false),
            "sliding_attention" => Ok(true),
            other => Err(input.config_error(format!(
                "`layer_types` names `{other}`; full_attention and sliding_attention are supported"
            ))),
        };
        types.iter().map(of_type).collect()
    }
}

/// What a layer's attention knows of places.
pub(super) struct Layer {
    pub(super) positions: Positions,
    pub(super) reach: Reach,
}

/// Where families differ.
pub(super) struct Decoder<'a> {
    pub(super) config: &'a DecoderConfig,
    /// Class of the model without its head.
    pub(super) base: &'static str,
    pub(super) head_dim: usize,
    pub(super) activation: ActivationFn,
    /// What the mean square is increased by where config.json is silent.
    pub(super) eps: f64,
    pub(super) max_positions: usize,
    pub(super) layers: Vec<Layer>,
    /// Factor on the scores.
    pub(super) scale: f32,
    /// Soft caps on scores and logits.
    pub(super) caps: [Option<f32>; 2],
    /// Biases of query, key and value; of the attention's output; of the feed-forward half.
    pub(super) biases: [bool; 3],
    /// Whether query, key and value are one Linear, and gate and up another.
    pub(super) fused: bool,
    /// Whether each head's queries and keys are normalised.
    pub(super) head_norms: bool,
    pub(super) norms: Norms,
    pub(super) embedding_scale: f32,
    /// Whether the head is the embedding table where config.json is silent.
    pub(super) tied: bool,
    /// The layers that are mixtures of experts.
    pub(super) mixture: Option<Mixture>,
}

/// The names and kinds of a block's norms.
#[derive(Debug, Clone, Copy)]
pub(super) struct Norms {
    /// Of the feed-forward half.
    pub(super) mlp: &'static str,
    /// Of what the halves add to the residual stream.
    pub(super) outputs: Option<[&'static str; 2]>,
    /// [`NormSpec::unit_offset`].
    pub(super) unit_offset: bool,
}

impl Norms {
    /// Llama's.
    pub(super) const LLAMA: Self =
        Self { mlp: "post_attention_layernorm", outputs: None, unit_offset: false };
}

impl Decoder<'_> {
    /// What config.json says, checked against the tensors.
    pub(super) fn describe(self, input: &FamilyInput<'_>, head: Head) -> Result<ModelSpec, ModelError> {
        let Self { config, .. } = self;
        let (task, architecture) = input.purpose(head, self.base)?;
        let kv_heads = self.check(input)?;
        let hidden = config.hidden_size;
        let base = task == Task::Embedding;
        let eps = ("rms_norm_eps", config.rms_norm_eps.unwrap_or(self.eps));
        let mut build = Builder::new(input, "model.", "embed_tokens.weight", base, eps)?;
        let words = build.table("embed_tokens", config.vocab_size, hidden, EmbeddingRole::Word)?;
        let blocks = (0..self.layers.len())
            .map(|layer| self.block(&mut build, layer, kv_heads))
            .collect::<Result<Vec<_>, ModelError>>()?;
        let final_norm = self.norm(&mut build, "norm", hidden)?;
        build.connect(&blocks, None);
        let head = if base {
            build.embedding_head(Pooling::Last)
        } else {
            build.language_head("lm_head", &words, self.tied, self.caps[1])?
        };
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
                max_positions: self.max_positions,
                width: hidden,
                tables: vec![words],
                scale: self.embedding_scale,
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

    /// The number of heads of keys and values, where all sizes fit.
    fn check(&self, input: &FamilyInput<'_>) -> Result<usize, ModelError> {
        let (config, head_dim) = (self.config, self.head_dim);
        let heads = config.num_attention_heads;
        let kv_heads = config.num_key_value_heads.unwrap_or(heads);
        input.check_sizes(&[
            ("intermediate_size", config.intermediate_size, 1 << 20),
            ("num_key_value_heads", kv_heads, MAX_WIDTH),
            ("vocab_size", config.vocab_size, 1 << 28),
            ("max_position_embeddings", self.max_positions, 1 << 28),
        ])?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(input.config_error(format!(
                "`num_attention_heads` {heads} is not a multiple of `num_key_value_heads` {kv_heads}"
            )));
        }
        if !head_dim.is_multiple_of(2) || head_dim * heads > MAX_WIDTH {
            return Err(input.config_error(format!(
                "{heads} heads have {head_dim} channels each; rotary positions need an even number, and all heads \
                 together have at most {MAX_WIDTH}"
            )));
        }
        Ok(kv_heads)
    }

    fn norm(&self, build: &mut Builder<'_>, path: &str, width: usize) -> Result<NormSpec, ModelError> {
        Ok(NormSpec { unit_offset: self.norms.unit_offset, ..build.rms_norm(path, width)? })
    }

    fn block(&self, build: &mut Builder<'_>, layer: usize, kv_heads: usize) -> Result<BlockSpec, ModelError> {
        let (hidden, head_dim) = (self.config.hidden_size, self.head_dim);
        let Layer { positions, reach } = &self.layers[layer];
        let path = format!("layers.{layer}");
        let attention_norm = self.norm(build, &format!("{path}.input_layernorm"), hidden)?;
        let mlp_norm = self.norm(build, &format!("{path}.{}", self.norms.mlp), hidden)?;
        let [attention_output_norm, mlp_output_norm] = match self.norms.outputs {
            None => [None, None],
            Some([attention, mlp]) => [
                Some(self.norm(build, &format!("{path}.{attention}"), hidden)?),
                Some(self.norm(build, &format!("{path}.{mlp}"), hidden)?),
            ],
        };
        let heads = self.config.num_attention_heads;
        let widths = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim];
        let names = ["q_proj", "k_proj", "v_proj"];
        let (input, [query, key, value]) =
            self.read(build, &format!("{path}.self_attn"), ("qkv_proj", names), widths, self.biases[0])?;
        let [query_norm, key_norm] = if self.head_norms {
            let mut norm = |name: &str| self.norm(build, &format!("{path}.self_attn.{name}"), head_dim);
            [Some(norm("q_norm")?), Some(norm("k_norm")?)]
        } else {
            [None, None]
        };
        let role = LinearRole::Block;
        let output = format!("{path}.self_attn.o_proj");
        let output = build.linear(&Draft::new(&output, hidden, widths[0], role).bias(self.biases[1]))?;
        let context = build.site(vec![output]);
        let mlp = match self.mixture.as_ref().filter(|mixture| mixture.is_at(layer)) {
            Some(mixture) => FeedForward::Experts(mixture.describe(build, &path, hidden, self.activation)?),
            None => FeedForward::Dense(self.mlp(build, &format!("{path}.mlp"))?),
        };
        Ok(BlockSpec {
            placement: NormPlacement::Pre,
            attention: AttentionSpec {
                heads,
                kv_heads,
                head_dim,
                scale: self.scale,
                cap: self.caps[0],
                input,
                query,
                key,
                value,
                query_norm,
                key_norm,
                positions: positions.clone(),
                reach: *reach,
                context,
                output,
            },
            attention_norm: Some(attention_norm),
            attention_output_norm,
            mlp,
            mlp_norm,
            mlp_output_norm,
            path: build.in_module(&path),
        })
    }

    /// The feed-forward half of all tokens.
    fn mlp(&self, build: &mut Builder<'_>, path: &str) -> Result<MlpSpec, ModelError> {
        let (hidden, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let names = ["gate_proj", "up_proj"];
        let (input, [gate, up]) =
            self.read(build, path, ("gate_up_proj", names), [inner; 2], self.biases[2])?;
        let down = format!("{path}.down_proj");
        let down = build.linear(&Draft::new(&down, hidden, inner, LinearRole::Block).bias(self.biases[2]))?;
        Ok(MlpSpec {
            input,
            up,
            gate: Some(Gate { projection: gate, activation: self.activation }),
            inner: build.site(vec![down]),
            down,
        })
    }

    /// The Linears that read a norm: one with the first name, or one for each of the others.
    fn read<const N: usize>(
        &self,
        build: &mut Builder<'_>,
        path: &str,
        (together, apart): (&str, [&str; N]),
        widths: [usize; N],
        bias: bool,
    ) -> Result<(SiteId, [Projection; N]), ModelError> {
        let hidden = self.config.hidden_size;
        let mut linear = |name: &str, outputs: usize| {
            let path = format!("{path}.{name}");
            build.linear(&Draft::new(&path, outputs, hidden, LinearRole::Block).bias(bias))
        };
        let mut linears = Vec::with_capacity(N);
        let mut start = 0;
        let fused = if self.fused { Some(linear(together, widths.iter().sum())?) } else { None };
        let mut projections = [const { Projection { linear: 0, outputs: 0..0, stride: None } }; N];
        for ((name, width), projection) in apart.into_iter().zip(widths).zip(&mut projections) {
            let id = match fused {
                Some(fused) => fused,
                None => linear(name, width)?,
            };
            *projection = Projection { linear: id, outputs: start..start + width, stride: None };
            start += if self.fused { width } else { 0 };
            linears.push(id);
        }
        linears.dedup();
        Ok((build.site(linears), projections))
    }
}
