//! BERT: post-norm encoder blocks, absolute positions (Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional
//! Transformers for Language Understanding"; names and shapes as in `transformers`' `modeling_bert.py`).

use std::collections::BTreeMap;

use serde::Deserialize;
use zeropoint_formats::Dtype;

use super::FamilyInput;
use crate::ModelError;
use crate::heads::{HeadSpec, Pooling, Task};
use crate::spec::{
    ActivationFn, AttentionSpec, BlockSpec, Edge, EmbeddingRole, EmbeddingTable, LinearId, LinearRole,
    LinearSpec, MlpSpec, ModelSpec, NormPlacement, NormSpec, Site, SiteId,
};

pub(super) const BASE: &str = "BertModel";
pub(super) const CLASSIFIER: &str = "BertForSequenceClassification";

/// Pre-training models are read as the encoder inside them.
pub(super) const PRE_TRAINING: &str = "BertForPreTraining";

/// Bounds on what a config may claim, far above every published model of the family.
const MAX_LAYERS: usize = 1024;
const MAX_WIDTH: usize = 65_536;

/// Tensors beside the weight of a quantised Linear.
const QUANTIZED_PARTS: [&str; 3] = ["weight_scale", "input_scale", "input_zero_point"];

/// The keys of config.json that matter, with `transformers`' defaults.
#[derive(Debug, Deserialize)]
struct BertConfig {
    hidden_size: usize,
    num_attention_heads: usize,
    num_hidden_layers: usize,
    intermediate_size: usize,
    vocab_size: usize,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
    #[serde(default = "default_types")]
    type_vocab_size: usize,
    #[serde(default = "default_act")]
    hidden_act: String,
    #[serde(default = "default_eps")]
    layer_norm_eps: f64,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    #[serde(default)]
    id2label: Option<BTreeMap<String, String>>,
    #[serde(default)]
    num_labels: Option<usize>,
    #[serde(default)]
    problem_type: Option<String>,
}

fn default_positions() -> usize {
    512
}
fn default_types() -> usize {
    2
}
fn default_act() -> String {
    "gelu".to_owned()
}
fn default_eps() -> f64 {
    1e-12
}

pub(super) fn describe(input: &FamilyInput<'_>) -> Result<ModelSpec, ModelError> {
    let config: BertConfig = input.parse()?;
    let activation = validate(&config, input)?;
    let named = input.config.get("architectures").and_then(|a| a.get(0)).and_then(|a| a.as_str());
    let has_classifier = named == Some(CLASSIFIER);
    let task = match (input.task, has_classifier) {
        (Task::Auto, true) if input.pooling.is_none() => Task::Classification,
        (Task::Auto, _) => Task::Embedding,
        (Task::Classification, false) => {
            return Err(ModelError::Task {
                path: input.dir.to_owned(),
                asked: "classification".to_owned(),
                architecture: BASE.to_owned(),
                allowed: "it has no classifier; `embedding` and `auto` fit".to_owned(),
            });
        }
        (task, _) => task,
    };
    // A classifier that is used for its sentence vectors is described, measured and deployed as the encoder inside it.
    let classifier = task == Task::Classification;
    let architecture = if classifier { CLASSIFIER } else { BASE };

    // Checkpoints saved from a pre-training or task model keep the base model under `bert.`; one saved from the base
    // model does not. `transformers` loads both into either class, so the file's prefix and the module's differ.
    let in_file =
        if input.checkpoint.contains("bert.embeddings.word_embeddings.weight") { "bert." } else { "" };
    let in_module = if classifier { "bert." } else { "" };
    let mut build =
        Builder { input, config: &config, in_file, in_module, linears: Vec::new(), sites: Vec::new() };

    let embeddings = build.embeddings()?;
    let embedding_norm = build.norm("embeddings.LayerNorm")?;
    let mut blocks = Vec::with_capacity(config.num_hidden_layers);
    let mut edges = Vec::new();
    let mut feeding_norm = embedding_norm.path.clone();
    for layer in 0..config.num_hidden_layers {
        let block = build.block(layer, activation)?;
        let attention = &block.attention;
        edges.push(Edge::NormToLinears {
            norm: std::mem::replace(&mut feeding_norm, block.mlp_norm.path.clone()),
            linears: vec![attention.query, attention.key, attention.value],
            residual: true,
        });
        edges.push(Edge::ValueToOutput {
            value: attention.value,
            output: attention.output,
            heads: attention.heads,
        });
        edges.push(Edge::NormToLinears {
            norm: block.attention_norm.path.clone(),
            linears: vec![block.mlp.up],
            residual: true,
        });
        edges.push(Edge::UpToDown { up: block.mlp.up, down: block.mlp.down });
        blocks.push(block);
    }
    let head = build.head(task, classifier)?;
    let unused = build.account_for_every_tensor(&embeddings, &embedding_norm, &blocks)?;
    let Builder { linears, sites, .. } = build;
    Ok(ModelSpec {
        architecture: architecture.to_owned(),
        hidden: config.hidden_size,
        max_positions: config.max_position_embeddings,
        embeddings,
        embedding_norm,
        blocks,
        sites,
        linears,
        head,
        edges,
        unused,
    })
}

fn validate(config: &BertConfig, input: &FamilyInput<'_>) -> Result<ActivationFn, ModelError> {
    let bounds = [
        ("hidden_size", config.hidden_size, MAX_WIDTH),
        ("num_attention_heads", config.num_attention_heads, MAX_WIDTH),
        ("num_hidden_layers", config.num_hidden_layers, MAX_LAYERS),
        ("intermediate_size", config.intermediate_size, MAX_WIDTH),
        ("vocab_size", config.vocab_size, 1 << 28),
        ("max_position_embeddings", config.max_position_embeddings, 1 << 24),
        ("type_vocab_size", config.type_vocab_size, MAX_WIDTH),
    ];
    for (key, value, limit) in bounds {
        if !(1..=limit).contains(&value) {
            return Err(input.config_error(format!("`{key}` is {value}; 1 to {limit} is allowed")));
        }
    }
    if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
        return Err(input.config_error(format!(
            "`hidden_size` {} is not a multiple of `num_attention_heads` {}",
            config.hidden_size, config.num_attention_heads
        )));
    }
    if !(config.layer_norm_eps > 0.0 && config.layer_norm_eps < 1.0) {
        return Err(input.config_error(format!(
            "`layer_norm_eps` is {}; it lies between 0 and 1",
            config.layer_norm_eps
        )));
    }
    if let Some(kind) = config.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
        return Err(
            input.config_error(format!("`position_embedding_type` `{kind}` is not supported; `absolute` is"))
        );
    }
    if config.is_decoder {
        return Err(input.config_error("`is_decoder` is true; BERT is supported as an encoder only"));
    }
    match config.hidden_act.as_str() {
        "gelu" => Ok(ActivationFn::GeluErf),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(ActivationFn::GeluTanh),
        "relu" => Ok(ActivationFn::Relu),
        other => Err(input.config_error(format!(
            "`hidden_act` `{other}` is not supported; gelu, gelu_new, gelu_pytorch_tanh, gelu_fast and relu are"
        ))),
    }
}

/// Collects Linears and sites while the description is written down.
struct Builder<'a> {
    input: &'a FamilyInput<'a>,
    config: &'a BertConfig,
    in_file: &'static str,
    in_module: &'static str,
    linears: Vec<LinearSpec>,
    sites: Vec<Site>,
}

impl Builder<'_> {
    fn expect(&self, tensor: &str, shape: &[usize]) -> Result<(), ModelError> {
        let wrong = |reason: String| ModelError::Tensor {
            path: self.input.dir.to_owned(),
            tensor: tensor.to_owned(),
            reason,
        };
        let Some(info) = self.input.checkpoint.get(tensor) else {
            return Err(wrong(format!("is missing; config.json describes one of shape {shape:?}")));
        };
        if info.shape != shape {
            return Err(wrong(format!("has shape {:?}; config.json says {shape:?}", info.shape)));
        }
        let integers = self.input.quantized && info.dtype == Dtype::I8;
        if !(info.dtype.is_float() || integers) {
            return Err(wrong(format!("is stored as {}; F32, F16, BF16 and F64 are supported", info.dtype)));
        }
        Ok(())
    }

    fn embeddings(&self) -> Result<Vec<EmbeddingTable>, ModelError> {
        let config = self.config;
        [
            ("word_embeddings", config.vocab_size, EmbeddingRole::Word),
            ("token_type_embeddings", config.type_vocab_size, EmbeddingRole::TokenType),
            ("position_embeddings", config.max_position_embeddings, EmbeddingRole::Position { offset: 0 }),
        ]
        .into_iter()
        .map(|(name, rows, role)| {
            let tensor = format!("{}embeddings.{name}.weight", self.in_file);
            self.expect(&tensor, &[rows, config.hidden_size])?;
            Ok(EmbeddingTable { tensor, rows, role })
        })
        .collect()
    }

    fn norm(&self, path: &str) -> Result<NormSpec, ModelError> {
        let file = format!("{}{path}", self.in_file);
        // Checkpoints converted from TensorFlow name the gain and shift gamma and beta; `transformers` renames them.
        let old = self.input.checkpoint.contains(&format!("{file}.gamma"));
        let (gain, shift) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        let spec = NormSpec {
            path: format!("{}{path}", self.in_module),
            weight: format!("{file}.{gain}"),
            bias: format!("{file}.{shift}"),
            eps: self.config.layer_norm_eps as f32,
        };
        self.expect(&spec.weight, &[self.config.hidden_size])?;
        self.expect(&spec.bias, &[self.config.hidden_size])?;
        Ok(spec)
    }

    fn linear(&mut self, spec: LinearSpec) -> Result<LinearId, ModelError> {
        self.expect(&spec.weight_name(), &[spec.outputs, spec.inputs])?;
        self.expect(&spec.bias_name(), &[spec.outputs])?;
        self.linears.push(spec);
        Ok(self.linears.len() - 1)
    }

    fn base_linear(
        &mut self,
        path: &str,
        outputs: usize,
        inputs: usize,
        activation: ActivationFn,
        role: LinearRole,
    ) -> Result<LinearId, ModelError> {
        self.linear(LinearSpec {
            path: format!("{}{path}", self.in_module),
            tensor: format!("{}{path}", self.in_file),
            outputs,
            inputs,
            bias: true,
            activation,
            site: None,
            role,
        })
    }

    fn site(&mut self, consumers: Vec<LinearId>) -> SiteId {
        let id = self.sites.len();
        let first = &self.linears[consumers[0]];
        let site = Site { id: format!("{}.input", first.path), channels: first.inputs, consumers };
        for &consumer in &site.consumers {
            self.linears[consumer].site = Some(id);
        }
        self.sites.push(site);
        id
    }

    fn block(&mut self, layer: usize, activation: ActivationFn) -> Result<BlockSpec, ModelError> {
        let (hidden, inner, heads) =
            (self.config.hidden_size, self.config.intermediate_size, self.config.num_attention_heads);
        let path = format!("encoder.layer.{layer}");
        let mut plain = |name: &str, outputs, inputs, activation| {
            self.base_linear(&format!("{path}.{name}"), outputs, inputs, activation, LinearRole::Block)
        };
        let none = ActivationFn::Identity;
        let query = plain("attention.self.query", hidden, hidden, none)?;
        let key = plain("attention.self.key", hidden, hidden, none)?;
        let value = plain("attention.self.value", hidden, hidden, none)?;
        let output = plain("attention.output.dense", hidden, hidden, none)?;
        let up = plain("intermediate.dense", inner, hidden, activation)?;
        let down = plain("output.dense", hidden, inner, none)?;
        let head_dim = hidden / heads;
        Ok(BlockSpec {
            placement: NormPlacement::Post,
            attention: AttentionSpec {
                heads,
                head_dim,
                scale: 1.0 / (head_dim as f32).sqrt(),
                input: self.site(vec![query, key, value]),
                query,
                key,
                value,
                context: self.site(vec![output]),
                output,
            },
            attention_norm: self.norm(&format!("{path}.attention.output.LayerNorm"))?,
            mlp: MlpSpec { input: self.site(vec![up]), up, inner: self.site(vec![down]), down },
            mlp_norm: self.norm(&format!("{path}.output.LayerNorm"))?,
            path: format!("{}{path}", self.in_module),
        })
    }

    fn head(&mut self, task: Task, classifier: bool) -> Result<HeadSpec, ModelError> {
        let hidden = self.config.hidden_size;
        let pooler = if classifier
            || self.input.checkpoint.contains(&format!("{}pooler.dense.weight", self.in_file))
        {
            Some(self.base_linear("pooler.dense", hidden, hidden, ActivationFn::Tanh, LinearRole::Pooler)?)
        } else {
            None
        };
        let labels = if classifier { self.labels()? } else { Vec::new() };
        let classifier = if classifier {
            Some(self.linear(LinearSpec {
                path: "classifier".to_owned(),
                tensor: "classifier".to_owned(),
                outputs: labels.len(),
                inputs: hidden,
                bias: true,
                activation: ActivationFn::Identity,
                site: None,
                role: LinearRole::Classifier,
            })?)
        } else {
            None
        };
        if let (Task::Classification, Some(pooler), Some(classifier)) = (task, pooler, classifier) {
            let pooler_input = self.site(vec![pooler]);
            let classifier_input = self.site(vec![classifier]);
            return Ok(HeadSpec::Classification {
                pooler_input,
                pooler,
                classifier_input,
                classifier,
                labels,
            });
        }
        let (pooling, normalize) = self.input.pooling.clone().unwrap_or((vec![Pooling::Mean], false));
        Ok(HeadSpec::Embedding { pooling, normalize })
    }

    /// Label names in logit order: `id2label`, or as many `LABEL_i` as `num_labels` says (2 by default).
    fn labels(&self) -> Result<Vec<String>, ModelError> {
        let problem = self.config.problem_type.as_deref().unwrap_or("single_label_classification");
        if problem != "single_label_classification" {
            return Err(self.input.config_error(format!(
                "`problem_type` `{problem}` is not supported; single_label_classification is"
            )));
        }
        let allowed = |count: usize| {
            match count {
            2..=MAX_WIDTH => Ok(()),
            _ => Err(self.input.config_error(format!(
                "there are {count} labels; a classifier has 2 to {MAX_WIDTH} (one label would be a regression, which is \
                 not supported)"
            ))),
        }
        };
        let Some(map) = &self.config.id2label else {
            let count = self.config.num_labels.unwrap_or(2);
            allowed(count)?;
            return Ok((0..count).map(|i| format!("LABEL_{i}")).collect());
        };
        allowed(map.len())?;
        (0..map.len())
            .map(|i| {
                map.get(&i.to_string()).cloned().ok_or_else(|| {
                    self.input
                        .config_error(format!("`id2label` has {} entries but none for label {i}", map.len()))
                })
            })
            .collect()
    }

    /// Every tensor of the file is either described or known to be unused; anything else is not understood, and what
    /// is not understood is not published.
    fn account_for_every_tensor(
        &self,
        embeddings: &[EmbeddingTable],
        embedding_norm: &NormSpec,
        blocks: &[BlockSpec],
    ) -> Result<Vec<(String, String)>, ModelError> {
        let mut known: std::collections::BTreeSet<String> =
            embeddings.iter().map(|t| t.tensor.clone()).collect();
        let norms =
            blocks.iter().flat_map(|block| [&block.attention_norm, &block.mlp_norm]).chain([embedding_norm]);
        for norm in norms {
            known.extend([norm.weight.clone(), norm.bias.clone()]);
        }
        for linear in &self.linears {
            known.extend([linear.weight_name(), linear.bias_name()]);
            if self.input.quantized {
                known.extend(QUANTIZED_PARTS.map(|part| format!("{}.{part}", linear.tensor)));
            }
        }
        let mut unused = Vec::new();
        for info in self.input.checkpoint.tensors().filter(|info| !known.contains(&info.name)) {
            let name = info.name.strip_prefix(self.in_file).unwrap_or(&info.name);
            let reason = if name == "embeddings.position_ids" {
                "a constant buffer"
            } else if name.starts_with("classifier.") {
                "a classifier that the task does not run"
            } else if name.starts_with("cls.") {
                "a pre-training head that this architecture does not run"
            } else {
                return Err(ModelError::Tensor {
                    path: self.input.dir.to_owned(),
                    tensor: info.name.clone(),
                    reason: format!(
                        "is not part of the architecture that config.json describes ({} layers); a directory that \
                         holds it cannot be converted safely",
                        self.config.num_hidden_layers
                    ),
                });
            };
            unused.push((info.name.clone(), reason.to_owned()));
        }
        Ok(unused)
    }
}
