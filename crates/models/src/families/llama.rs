//! Llama, and the families that differ from it in windows, biases and norms of heads: Mistral, Qwen2, Qwen3, `SmolLM3` and
//! Phi-3 (names and shapes as in `transformers`' `modeling_llama.py`, `modeling_mistral.py`, `modeling_qwen2.py`,
//! `modeling_qwen3.py`, `modeling_smollm3.py` and `modeling_phi3.py`).

use serde::Deserialize;

use super::decoder::{Decoder, DecoderConfig, Layer, Norms};
use super::rotary::{self, RotaryKeys};
use super::{Family, FamilyInput, Head};
use crate::spec::{ModelSpec, Positions, Reach};
use crate::{ModelError, spec::Rotary};

pub(super) const LLAMA: Family = Family {
    model_type: "llama",
    base: "LlamaModel",
    describe: llama,
    heads: &[("LlamaForCausalLM", Head::CausalLm)],
};

pub(super) const MISTRAL: Family = Family {
    model_type: "mistral",
    base: "MistralModel",
    describe: mistral,
    heads: &[("MistralForCausalLM", Head::CausalLm)],
};

pub(super) const QWEN2: Family = Family {
    model_type: "qwen2",
    base: "Qwen2Model",
    describe: qwen2,
    heads: &[("Qwen2ForCausalLM", Head::CausalLm)],
};

pub(super) const QWEN3: Family = Family {
    model_type: "qwen3",
    base: "Qwen3Model",
    describe: qwen3,
    heads: &[("Qwen3ForCausalLM", Head::CausalLm)],
};

pub(super) const SMOLLM3: Family = Family {
    model_type: "smollm3",
    base: "SmolLM3Model",
    describe: smollm3,
    heads: &[("SmolLM3ForCausalLM", Head::CausalLm)],
};

pub(super) const PHI3: Family = Family {
    model_type: "phi3",
    base: "Phi3Model",
    describe: phi3,
    heads: &[("Phi3ForCausalLM", Head::CausalLm)],
};

/// What Llama has, with that base and those layers.
pub(super) fn plain<'a>(
    input: &FamilyInput<'_>,
    config: &'a DecoderConfig,
    base: &'static str,
    (head_dim, max_positions): (usize, usize),
    layers: Vec<Layer>,
) -> Result<Decoder<'a>, ModelError> {
    let activation = config.hidden_act.as_deref().unwrap_or("silu");
    Ok(Decoder {
        config,
        base,
        head_dim,
        activation: input.activation("hidden_act", activation)?,
        eps: 1e-6,
        max_positions,
        layers,
        scale: 1.0 / (head_dim as f32).sqrt(),
        caps: [None, None],
        biases: [false; 3],
        fused: false,
        head_norms: false,
        norms: Norms::LLAMA,
        embedding_scale: 1.0,
        tied: false,
        mixture: None,
    })
}

/// Layers that all turn alike, with these windows.
pub(super) fn turning(rotary: &Rotary, sliding: Option<Reach>, windows: &[bool]) -> Vec<Layer> {
    let layer = |window: &bool| Layer {
        positions: Positions::Rotary(rotary.clone()),
        reach: sliding.filter(|_| *window).unwrap_or(Reach::Causal),
    };
    windows.iter().map(layer).collect()
}

fn llama(input: &FamilyInput<'_>, head: Head) -> Result<ModelSpec, ModelError> {
    let config: DecoderConfig = input.parse()?;
    let (head_dim, longest) = (config.head_dim(input, None)?, config.max_position_embeddings.unwrap_or(2048));
    let rotary = rotary::read(input, head_dim, longest, &RotaryKeys::default())?;
    let layers = turning(&rotary, None, &vec![false; config.windows(input, |_| false)?.len()]);
    let mut decoder = plain(input, &config, LLAMA.base, (head_dim, longest), layers)?;
    decoder.biases = [config.attention_bias, config.attention_bias, config.mlp_bias];
    decoder.describe(input, head)
}

fn mistral(input: &FamilyInput<'_>, head: Head) -> Result<ModelSpec, ModelError> {
    let config: DecoderConfig = input.parse()?;
    let longest = config.max_position_embeddings.unwrap_or(4096 * 32);
    let head_dim = config.head_dim(input, None)?;
    let rotary = rotary::read(input, head_dim, longest, &RotaryKeys::default())?;
    let sliding = config.sliding(input, Some(4096))?;
    let windows = vec![true; config.windows(input, |_| true)?.len()];
    let layers = turning(&rotary, sliding, &windows);
    plain(input, &config, MISTRAL.base, (head_dim, longest), layers)?.describe(input, head)
}

/// What Qwen's configs say of windows.
#[derive(Debug, Deserialize)]
struct QwenConfig {
    #[serde(default = "default_window_layers")]
    max_window_layers: usize,
}

fn default_window_layers() -> usize {
    28
}

/// Qwen's layers, of which the upper ones may have a window.
fn qwen<'a>(
    input: &FamilyInput<'_>,
    config: &'a DecoderConfig,
    base: &'static str,
    head_dim: Option<usize>,
) -> Result<Decoder<'a>, ModelError> {
    let QwenConfig { max_window_layers } = input.parse()?;
    let longest = config.max_position_embeddings.unwrap_or(32_768);
    let head_dim = config.head_dim(input, head_dim)?;
    let rotary = rotary::read(input, head_dim, longest, &RotaryKeys::default())?;
    let sliding = if config.use_sliding_window { config.sliding(input, Some(4096))? } else { None };
    let windows = config.windows(input, |layer| layer >= max_window_layers)?;
    plain(input, config, base, (head_dim, longest), turning(&rotary, sliding, &windows))
}

fn qwen2(input: &FamilyInput<'_>, head: Head) -> Result<ModelSpec, ModelError> {
    let config: DecoderConfig = input.parse()?;
    let mut decoder = qwen(input, &config, QWEN2.base, None)?;
    decoder.biases = [true, false, false];
    decoder.describe(input, head)
}

fn qwen3(input: &FamilyInput<'_>, head: Head) -> Result<ModelSpec, ModelError> {
    let config: DecoderConfig = input.parse()?;
    let mut decoder = qwen(input, &config, QWEN3.base, Some(128))?;
    decoder.biases = [config.attention_bias, config.attention_bias, false];
    decoder.head_norms = true;
    decoder.describe(input, head)
}

/// Which of `SmolLM3`'s layers turn.
#[derive(Debug, Deserialize)]
struct SmolLm3Config {
    #[serde(default)]
    no_rope_layers: Option<Vec<u8>>,
    #[serde(default = "default_interval")]
    no_rope_layer_interval: usize,
}

fn default_interval() -> usize {
    4
}

fn smollm3(input: &FamilyInput<'_>, head: Head) -> Result<ModelSpec, ModelError> {
    let config: DecoderConfig = input.parse()?;
    let SmolLm3Config { no_rope_layers, no_rope_layer_interval } = input.parse()?;
    let longest = config.max_position_embeddings.unwrap_or(32_768);
    let head_dim = config.head_dim(input, None)?;
    let keys = RotaryKeys { theta: 2_000_000.0, ..RotaryKeys::default() };
    let rotary = rotary::read(input, head_dim, longest, &keys)?;
    let layers = config.num_hidden_layers;
    input.check_sizes(&[("num_hidden_layers", layers, super::MAX_LAYERS)])?;
    // The key says which layers turn, not which do not.
    let turns: Vec<bool> = if let Some(flags) = no_rope_layers {
        flags.into_iter().map(|flag| flag != 0).collect()
    } else {
        input.check_sizes(&[("no_rope_layer_interval", no_rope_layer_interval, usize::MAX)])?;
        (1..=layers).map(|layer| !layer.is_multiple_of(no_rope_layer_interval)).collect()
    };
    if turns.len() != layers {
        return Err(
            input.config_error(format!("`no_rope_layers` has {} entries for {layers} layers", turns.len()))
        );
    }
    let sliding = if config.use_sliding_window { config.sliding(input, None)? } else { None };
    let windows = config.windows(input, |layer| !turns[layer])?;
    let mut layers = turning(&rotary, sliding, &windows);
    for (layer, _) in layers.iter_mut().zip(&turns).filter(|(_, turns)| !**turns) {
        layer.positions = Positions::Embedded;
    }
    let mut decoder = plain(input, &config, SMOLLM3.base, (head_dim, longest), layers)?;
    decoder.biases = [config.attention_bias, config.attention_bias, config.mlp_bias];
    decoder.tied = true;
    decoder.describe(input, head)
}

fn phi3(input: &FamilyInput<'_>, head: Head) -> Result<ModelSpec, ModelError> {
    let config: DecoderConfig = input.parse()?;
    let longest = config.max_position_embeddings.unwrap_or(4096);
    let head_dim = config.head_dim(input, None)?;
    let keys = RotaryKeys {
        channels: Some(("partial_rotary_factor", 1.0)),
        original: Some(4096.0),
        long: &["longrope", "su", "yarn"],
        ..RotaryKeys::default()
    };
    let rotary = rotary::read(input, head_dim, longest, &keys)?;
    let sliding = config.sliding(input, None)?;
    let windows = vec![true; config.windows(input, |_| true)?.len()];
    let layers = turning(&rotary, sliding, &windows);
    let mut decoder = plain(input, &config, PHI3.base, (head_dim, longest), layers)?;
    decoder.eps = 1e-5;
    decoder.fused = true;
    decoder.describe(input, head)
}
