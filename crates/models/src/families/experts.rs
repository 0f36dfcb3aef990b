//! Decoders whose feed-forward halves are mixtures of experts: Mixtral and Qwen3-MoE (names and shapes as in `transformers`'
//! `modeling_mixtral.py` and `modeling_qwen3_moe.py`, of checkpoints with tensors for each expert).

use serde::Deserialize;

use super::builder::{Builder, Draft};
use super::decoder::DecoderConfig;
use super::llama::{plain, turning};
use super::rotary::{self, RotaryKeys};
use super::{Family, FamilyInput, Head};
use crate::ModelError;
use crate::spec::{ActivationFn, ExpertsSpec, Gate, LinearRole, MlpSpec, ModelSpec};

/// Bound on what a config may claim, far above every published model.
const MAX_EXPERTS: usize = 4096;

pub(super) const MIXTRAL: Family = Family {
    model_type: "mixtral",
    base: "MixtralModel",
    describe: mixtral,
    heads: &[("MixtralForCausalLM", Head::CausalLm)],
};

pub(super) const QWEN3_MOE: Family = Family {
    model_type: "qwen3_moe",
    base: "Qwen3MoeModel",
    describe: qwen3_moe,
    heads: &[("Qwen3MoeForCausalLM", Head::CausalLm)],
};

/// How a family's mixtures of experts look.
pub(super) struct Mixture {
    /// Which layers have one; the others have a feed-forward half for all tokens.
    layers: Vec<bool>,
    /// The module, relative to the layer.
    module: &'static str,
    /// Gate, up and down of an expert.
    names: [&'static str; 3],
    experts: usize,
    top_k: usize,
    renormalize: bool,
    /// Width of an expert between `up` and `down`.
    inner: usize,
}

impl Mixture {
    fn check(self, input: &FamilyInput<'_>, inner_key: &str) -> Result<Self, ModelError> {
        input.check_sizes(&[
            ("num_experts", self.experts, MAX_EXPERTS),
            ("num_experts_per_tok", self.top_k, MAX_EXPERTS),
            (inner_key, self.inner, 1 << 20),
        ])?;
        if self.top_k > self.experts {
            return Err(input.config_error(format!(
                "`num_experts_per_tok` is {}; there are {} experts, of which each token goes through 1 to all",
                self.top_k, self.experts
            )));
        }
        Ok(self)
    }

    /// Whether a layer has one.
    pub(super) fn is_at(&self, layer: usize) -> bool {
        self.layers[layer]
    }

    /// That of the layer at `path`.
    pub(super) fn describe(
        &self,
        build: &mut Builder<'_>,
        path: &str,
        hidden: usize,
        activation: ActivationFn,
    ) -> Result<ExpertsSpec, ModelError> {
        // What `transformers` makes of them in memory, and writes when it is told to keep it so.
        for module in [self.module, "mlp"] {
            let fused = format!("{path}.{module}.experts.gate_up_proj");
            if build.has(&fused) {
                return Err(ModelError::Tensor {
                    path: build.input.dir.to_owned(),
                    tensor: build.in_file(&fused),
                    reason: "holds all experts of a layer; tensors for each expert are expected, as the model is published \
                             and as `save_pretrained` of transformers writes it by default (`save_original_format=True`)"
                        .to_owned(),
                });
            }
        }
        let path = format!("{path}.{}", self.module);
        let mut linear = |name: &str, outputs: usize, inputs: usize, role: LinearRole| {
            let path = format!("{path}.{name}");
            build.linear(&Draft::new(&path, outputs, inputs, role).bias(false))
        };
        let router = linear("gate", self.experts, hidden, LinearRole::Router)?;
        let mut linears = Vec::with_capacity(self.experts);
        for expert in 0..self.experts {
            let [gate, up, down] = self.names.map(|name| format!("experts.{expert}.{name}"));
            let role = LinearRole::Expert;
            linears.push([
                linear(&gate, self.inner, hidden, role)?,
                linear(&up, self.inner, hidden, role)?,
                linear(&down, hidden, self.inner, role)?,
            ]);
        }
        let router = build.site(vec![router]);
        let expert = |[gate, up, down]: [usize; 3]| MlpSpec {
            input: build.site(vec![gate, up]),
            up: build.whole(up),
            gate: Some(Gate { projection: build.whole(gate), activation }),
            inner: build.site(vec![down]),
            down,
        };
        Ok(ExpertsSpec {
            experts: linears.into_iter().map(expert).collect(),
            path: build.in_module(&path),
            router,
            top_k: self.top_k,
            renormalize: self.renormalize,
        })
    }
}

/// The keys of config.json that say how many experts there are; version 5 of `transformers` writes the first.
#[derive(Debug, Deserialize)]
struct ExpertsConfig {
    #[serde(default)]
    num_local_experts: Option<usize>,
    #[serde(default)]
    num_experts: Option<usize>,
    #[serde(default)]
    num_experts_per_tok: Option<usize>,
}

impl ExpertsConfig {
    /// The experts; `default` is what silence means.
    fn experts(&self, input: &FamilyInput<'_>, default: usize) -> Result<usize, ModelError> {
        match (self.num_local_experts, self.num_experts) {
            (Some(local), Some(all)) if local != all => Err(input.config_error(format!(
                "`num_local_experts` is {local} and `num_experts` {all}; both mean the experts of a layer"
            ))),
            (local, all) => Ok(local.or(all).unwrap_or(default)),
        }
    }
}

fn mixtral(input: &FamilyInput<'_>, head: Head) -> Result<ModelSpec, ModelError> {
    let config: DecoderConfig = input.parse()?;
    let own: ExpertsConfig = input.parse()?;
    let longest = config.max_position_embeddings.unwrap_or(4096 * 32);
    let head_dim = config.head_dim(input, None)?;
    let keys = RotaryKeys { theta: 1_000_000.0, ..RotaryKeys::default() };
    let rotary = rotary::read(input, head_dim, longest, &keys)?;
    let sliding = config.sliding(input, None)?;
    let windows = vec![true; config.windows(input, |_| true)?.len()];
    let mixture = Mixture {
        layers: windows.clone(),
        module: "block_sparse_moe",
        names: ["w1", "w3", "w2"],
        experts: own.experts(input, 8)?,
        top_k: own.num_experts_per_tok.unwrap_or(2),
        renormalize: true,
        inner: config.intermediate_size,
    };
    let layers = turning(&rotary, sliding, &windows);
    let mut decoder = plain(input, &config, MIXTRAL.base, (head_dim, longest), layers)?;
    decoder.eps = 1e-5;
    decoder.mixture = Some(mixture.check(input, "intermediate_size")?);
    decoder.describe(input, head)
}

/// Which of Qwen3-MoE's layers are mixtures, and of what size.
#[derive(Debug, Deserialize)]
struct Qwen3MoeConfig {
    #[serde(default = "default_inner")]
    moe_intermediate_size: usize,
    #[serde(default)]
    norm_topk_prob: bool,
    #[serde(default = "default_step")]
    decoder_sparse_step: usize,
    #[serde(default)]
    mlp_only_layers: Option<Vec<usize>>,
}

fn default_inner() -> usize {
    768
}

fn default_step() -> usize {
    1
}

fn qwen3_moe(input: &FamilyInput<'_>, head: Head) -> Result<ModelSpec, ModelError> {
    let config: DecoderConfig = input.parse()?;
    let number: ExpertsConfig = input.parse()?;
    let own: Qwen3MoeConfig = input.parse()?;
    let longest = config.max_position_embeddings.unwrap_or(32_768);
    let head_dim = config.head_dim(input, None)?;
    let rotary = rotary::read(input, head_dim, longest, &RotaryKeys::default())?;
    let sliding = if config.use_sliding_window { config.sliding(input, Some(4096))? } else { None };
    let windows = vec![true; config.windows(input, |_| true)?.len()];
    input.check_sizes(&[("decoder_sparse_step", own.decoder_sparse_step, usize::MAX)])?;
    let dense = own.mlp_only_layers.unwrap_or_default();
    let is_sparse =
        |layer: usize| !dense.contains(&layer) && (layer + 1).is_multiple_of(own.decoder_sparse_step);
    let mixture = Mixture {
        layers: (0..windows.len()).map(is_sparse).collect(),
        module: "mlp",
        names: ["gate_proj", "up_proj", "down_proj"],
        experts: number.experts(input, 128)?,
        top_k: number.num_experts_per_tok.unwrap_or(8),
        renormalize: own.norm_topk_prob,
        inner: own.moe_intermediate_size,
    };
    let layers = turning(&rotary, sliding, &windows);
    let mut decoder = plain(input, &config, QWEN3_MOE.base, (head_dim, longest), layers)?;
    decoder.biases = [config.attention_bias, config.attention_bias, false];
    decoder.head_norms = true;
    decoder.mixture = Some(mixture.check(input, "moe_intermediate_size")?);
    decoder.describe(input, head)
}
