//! Gemma, Gemma 2 and the text models of Gemma 3: embeddings scaled by the root of the width, gains stored less 1, and from
//! the second on norms of what each half adds (names and shapes as in `transformers`' `modeling_gemma.py`,
//! `modeling_gemma2.py` and `modeling_gemma3.py`).

use serde::Deserialize;
use serde_json::Value;

use super::decoder::{Decoder, DecoderConfig, Layer, Norms, Told};
use super::rotary::{self, RotaryKeys};
use super::{Family, FamilyInput, Head};
use crate::ModelError;
use crate::spec::{ModelSpec, Positions, Reach, Rotary};

pub(super) const GEMMA: Family = Family {
    model_type: "gemma",
    base: "GemmaModel",
    describe: gemma,
    heads: &[("GemmaForCausalLM", Head::CausalLm)],
};

pub(super) const GEMMA2: Family = Family {
    model_type: "gemma2",
    base: "Gemma2Model",
    describe: gemma2,
    heads: &[("Gemma2ForCausalLM", Head::CausalLm)],
};

pub(super) const GEMMA3: Family = Family {
    model_type: "gemma3_text",
    base: "Gemma3TextModel",
    describe: gemma3,
    heads: &[("Gemma3ForCausalLM", Head::CausalLm)],
};

/// The keys that the family alone has.
#[derive(Debug, Deserialize)]
struct GemmaConfig {
    #[serde(default)]
    hidden_activation: Option<String>,
    #[serde(default)]
    query_pre_attn_scalar: Option<f64>,
    #[serde(default)]
    attn_logit_softcapping: Told<f64>,
    #[serde(default)]
    final_logit_softcapping: Told<f64>,
    #[serde(default)]
    sliding_window_pattern: Option<usize>,
    #[serde(default)]
    use_bidirectional_attention: Option<Value>,
}

/// Channels of a head where config.json is silent.
const HEAD_DIM: usize = 256;

impl GemmaConfig {
    fn read(input: &FamilyInput<'_>) -> Result<Self, ModelError> {
        let config: Self = input.parse()?;
        match &config.use_bidirectional_attention {
            None | Some(Value::Null | Value::Bool(false)) => Ok(config),
            Some(other) => Err(input.config_error(format!(
                "`use_bidirectional_attention` is {other}; only causal models are supported"
            ))),
        }
    }

    /// The soft caps on scores and logits; `defaults` are what config.json's silence means.
    fn caps(
        &self,
        input: &FamilyInput<'_>,
        defaults: [Option<f64>; 2],
    ) -> Result<[Option<f32>; 2], ModelError> {
        let checked = |key: &str, value: Option<f64>| match value {
            Some(cap) if !(cap > 0.0 && cap < 1e9) => {
                Err(input.config_error(format!("`{key}` is {cap}; null or a number above 0 is expected")))
            }
            cap => Ok(cap.map(|cap| cap as f32)),
        };
        let [scores, logits] = defaults;
        Ok([
            checked("attn_logit_softcapping", self.attn_logit_softcapping.or(scores))?,
            checked("final_logit_softcapping", self.final_logit_softcapping.or(logits))?,
        ])
    }

    /// Factor on the scores.
    fn scale(&self, input: &FamilyInput<'_>) -> Result<f32, ModelError> {
        let scalar = self.query_pre_attn_scalar.unwrap_or(256.0);
        if !(scalar > 0.0 && scalar < 1e9) {
            let reason = format!("`query_pre_attn_scalar` is {scalar}; a number above 0 is expected");
            return Err(input.config_error(reason));
        }
        Ok(scalar.powf(-0.5) as f32)
    }
}

/// What the three share.
fn plain<'a>(
    input: &FamilyInput<'_>,
    config: &'a DecoderConfig,
    (base, activation): (&'static str, (&str, Option<&str>)),
    (head_dim, max_positions): (usize, usize),
    layers: Vec<Layer>,
) -> Result<Decoder<'a>, ModelError> {
    let (key, name) = activation;
    // The first checkpoints say `gelu` and mean its approximation.
    let name = match name {
        None => "gelu_pytorch_tanh",
        Some("gelu") if key == "hidden_act" => "gelu_pytorch_tanh",
        Some(name) => name,
    };
    let attention = config.attention_bias;
    Ok(Decoder {
        config,
        base,
        head_dim,
        activation: input.activation(key, name)?,
        eps: 1e-6,
        max_positions,
        layers,
        scale: 1.0 / (head_dim as f32).sqrt(),
        caps: [None, None],
        biases: [attention, attention, false],
        fused: false,
        head_norms: false,
        norms: Norms { unit_offset: true, ..Norms::LLAMA },
        embedding_scale: (config.hidden_size as f64).sqrt() as f32,
        tied: true,
        mixture: None,
    })
}

/// Norms before and after each half.
const SANDWICH: Norms = Norms {
    mlp: "pre_feedforward_layernorm",
    outputs: Some(["post_attention_layernorm", "post_feedforward_layernorm"]),
    unit_offset: true,
};

fn gemma(input: &FamilyInput<'_>, head: Head) -> Result<ModelSpec, ModelError> {
    let config: DecoderConfig = input.parse()?;
    GemmaConfig::read(input)?;
    let longest = config.max_position_embeddings.unwrap_or(8192);
    let head_dim = config.head_dim(input, Some(HEAD_DIM))?;
    let rotary = rotary::read(input, head_dim, longest, &RotaryKeys::default())?;
    let layers = config.windows(input, |_| false)?;
    let layers = layers.iter().map(|_| layer(&rotary, Reach::Causal)).collect();
    let activation = ("hidden_act", config.hidden_act.as_deref());
    plain(input, &config, (GEMMA.base, activation), (head_dim, longest), layers)?.describe(input, head)
}

fn layer(rotary: &Rotary, reach: Reach) -> Layer {
    Layer { positions: Positions::Rotary(rotary.clone()), reach }
}

fn gemma2(input: &FamilyInput<'_>, head: Head) -> Result<ModelSpec, ModelError> {
    let config: DecoderConfig = input.parse()?;
    let own = GemmaConfig::read(input)?;
    let longest = config.max_position_embeddings.unwrap_or(8192);
    let head_dim = config.head_dim(input, Some(HEAD_DIM))?;
    let rotary = rotary::read(input, head_dim, longest, &RotaryKeys::default())?;
    let sliding = config.sliding(input, Some(4096))?.unwrap_or(Reach::Causal);
    let windows = config.windows(input, |layer| layer.is_multiple_of(2))?;
    let layers = windows.iter().map(|window| layer(&rotary, if *window { sliding } else { Reach::Causal }));
    let layers = layers.collect();
    let activation = ("hidden_activation", own.hidden_activation.as_deref());
    let mut decoder = plain(input, &config, (GEMMA2.base, activation), (head_dim, longest), layers)?;
    decoder.scale = own.scale(input)?;
    decoder.caps = own.caps(input, [Some(50.0), Some(30.0)])?;
    decoder.norms = SANDWICH;
    decoder.describe(input, head)
}

fn gemma3(input: &FamilyInput<'_>, head: Head) -> Result<ModelSpec, ModelError> {
    let config: DecoderConfig = input.parse()?;
    let own = GemmaConfig::read(input)?;
    let longest = config.max_position_embeddings.unwrap_or(131_072);
    let head_dim = config.head_dim(input, Some(HEAD_DIM))?;
    let (near, far) = rotary::read_local_and_global(input, head_dim, longest)?;
    let sliding = config.sliding(input, Some(4096))?.unwrap_or(Reach::Causal);
    let pattern = own.sliding_window_pattern.unwrap_or(6);
    input.check_sizes(&[("sliding_window_pattern", pattern, usize::MAX)])?;
    let windows = config.windows(input, |layer| !(layer + 1).is_multiple_of(pattern))?;
    let of_layer = |window: &bool| if *window { layer(&near, sliding) } else { layer(&far, Reach::Causal) };
    let layers = windows.iter().map(of_layer).collect();
    let activation = ("hidden_activation", own.hidden_activation.as_deref());
    let mut decoder = plain(input, &config, (GEMMA3.base, activation), (head_dim, longest), layers)?;
    decoder.scale = own.scale(input)?;
    decoder.caps = own.caps(input, [None, None])?;
    decoder.norms = SANDWICH;
    decoder.head_norms = true;
    decoder.describe(input, head)
}
