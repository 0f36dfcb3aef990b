//! `ModernBERT`: pre-norm blocks with rotary positions, a gated feed-forward half and, in most layers, attention within a
//! window (Warner et al. 2024, "Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder"; names and shapes as in
//! `transformers`' `modeling_modernbert.py`).

use serde::Deserialize;
use serde_json::Value;

use super::builder::{Builder, Draft};
use super::{Family, FamilyInput, Head, MAX_LAYERS, MAX_WIDTH};
use crate::ModelError;
use crate::heads::{HeadSpec, HeadStep, Pooling, RowSelection, Task};
use crate::spec::{
    ActivationFn, AttentionSpec, BlockSpec, EmbeddingRole, EmbeddingTable, FeedForward, Gate, InputSpec,
    LinearRole, MlpSpec, ModelSpec, NormPlacement, Positions, Projection, Reach, Rotary, TextInput, Tower,
};

const BASE: &str = "ModernBertModel";

pub(super) const FAMILY: Family = Family {
    model_type: "modernbert",
    base: BASE,
    describe,
    heads: &[
        ("ModernBertForSequenceClassification", Head::Sequence),
        ("ModernBertForTokenClassification", Head::Tokens),
        ("ModernBertForMaskedLM", Head::MaskedLm),
        ("ModernBertForQuestionAnswering", Head::Span),
    ],
};

/// The keys of config.json that matter, with `transformers`' defaults.
#[derive(Debug, Deserialize)]
struct ModernBertConfig {
    hidden_size: usize,
    num_attention_heads: usize,
    num_hidden_layers: usize,
    intermediate_size: usize,
    vocab_size: usize,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
    #[serde(default = "default_act")]
    hidden_activation: String,
    #[serde(default = "default_act")]
    classifier_activation: String,
    #[serde(default = "default_eps")]
    norm_eps: f64,
    #[serde(default)]
    norm_bias: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    classifier_bias: bool,
    #[serde(default = "default_pooling")]
    classifier_pooling: String,
    #[serde(default = "default_window")]
    local_attention: usize,
    /// One entry a layer since version 5 of `transformers`; before, every n-th layer attended to everything.
    #[serde(default)]
    layer_types: Option<Vec<String>>,
    #[serde(default = "default_every")]
    global_attn_every_n_layers: usize,
    #[serde(default = "default_global_theta")]
    global_rope_theta: Option<f64>,
    #[serde(default = "default_local_theta")]
    local_rope_theta: Option<f64>,
    #[serde(default)]
    rope_parameters: Option<Value>,
}

fn default_positions() -> usize {
    8192
}
fn default_act() -> String {
    "gelu".to_owned()
}
fn default_eps() -> f64 {
    1e-5
}
fn default_pooling() -> String {
    "cls".to_owned()
}
fn default_window() -> usize {
    128
}
fn default_every() -> usize {
    3
}
#[allow(clippy::unnecessary_wraps)] // serde wants the field's type.
fn default_global_theta() -> Option<f64> {
    Some(160_000.0)
}
#[allow(clippy::unnecessary_wraps)] // serde wants the field's type.
fn default_local_theta() -> Option<f64> {
    Some(10_000.0)
}

const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

impl ModernBertConfig {
    /// Whether each layer attends within the window only.
    fn windows(&self, input: &FamilyInput<'_>) -> Result<Vec<bool>, ModelError> {
        let Some(types) = &self.layer_types else {
            let every = self.global_attn_every_n_layers;
            return Ok((0..self.num_hidden_layers).map(|layer| layer % every != 0).collect());
        };
        if types.len() != self.num_hidden_layers {
            return Err(input.config_error(format!(
                "`layer_types` has {} entries for {} layers",
                types.len(),
                self.num_hidden_layers
            )));
        }
        let window = |kind: &String| match kind.as_str() {
            FULL => Ok(false),
            SLIDING => Ok(true),
            other => Err(input
                .config_error(format!("`layer_types` names `{other}`; {FULL} and {SLIDING} are supported"))),
        };
        types.iter().map(window).collect()
    }

    /// Base of the rotary frequencies of a kind of layer.
    fn theta(&self, window: bool, input: &FamilyInput<'_>) -> Result<f32, ModelError> {
        let (kind, key, older) = if window {
            (SLIDING, "local_rope_theta", self.local_rope_theta)
        } else {
            (FULL, "global_rope_theta", self.global_rope_theta)
        };
        match &self.rope_parameters {
            Some(parameters) => {
                let parameters = parameters.get(kind).filter(|value| !value.is_null());
                super::rotary_theta(input, parameters, &format!("rope_parameters.{kind}"), older)
            }
            None => super::check_theta(input, key, older),
        }
    }
}

fn describe(input: &FamilyInput<'_>, head: Head) -> Result<ModelSpec, ModelError> {
    let config: ModernBertConfig = input.parse()?;
    let (task, architecture) = input.purpose(head, BASE)?;
    let base = task == Task::Embedding;
    input.check_sizes(&[
        ("hidden_size", config.hidden_size, MAX_WIDTH),
        ("num_attention_heads", config.num_attention_heads, MAX_WIDTH),
        ("num_hidden_layers", config.num_hidden_layers, MAX_LAYERS),
        ("intermediate_size", config.intermediate_size, MAX_WIDTH),
        ("vocab_size", config.vocab_size, 1 << 28),
        ("max_position_embeddings", config.max_position_embeddings, 1 << 24),
        ("global_attn_every_n_layers", config.global_attn_every_n_layers, MAX_LAYERS),
        ("local_attention", config.local_attention, 1 << 24),
    ])?;
    let head_dim = input
        .head_dim(("hidden_size", config.hidden_size), ("num_attention_heads", config.num_attention_heads))?;
    if !head_dim.is_multiple_of(2) {
        return Err(input
            .config_error(format!("heads have {head_dim} channels; rotary positions need an even number")));
    }
    super::refuse_scaling(input)?;
    let activation = input.activation("hidden_activation", &config.hidden_activation)?;
    let windows = config.windows(input)?;
    let thetas = [config.theta(false, input)?, config.theta(true, input)?];

    let hidden = config.hidden_size;
    let mut build = Builder::new(
        input,
        "model.",
        "embeddings.tok_embeddings.weight",
        base,
        ("norm_eps", config.norm_eps),
    )?;
    let words = build.table("embeddings.tok_embeddings", config.vocab_size, hidden, EmbeddingRole::Word)?;
    let norm = build.norm_without_shift("embeddings.norm", hidden, config.norm_bias)?;
    let mut blocks = Vec::with_capacity(windows.len());
    for (layer, window) in windows.into_iter().enumerate() {
        let positions = Positions::Rotary(Rotary::plain(thetas[usize::from(window)], head_dim));
        let reach = if window { Reach::Window(config.local_attention / 2) } else { Reach::Full };
        blocks.push(block(&mut build, &config, layer, head_dim, activation, positions, reach)?);
    }
    let final_norm = build.norm_without_shift("final_norm", hidden, config.norm_bias)?;
    build.connect(&blocks, None);
    let head = describe_head(&mut build, task, &config, &words)?;
    let tower = Tower {
        hidden,
        input: InputSpec::Text(TextInput {
            max_positions: config.max_position_embeddings,
            width: hidden,
            tables: vec![words],
            scale: 1.0,
            norm: Some(norm),
            projection: None,
        }),
        blocks,
        final_norm: Some(final_norm),
        relative_bias: None,
        head,
    };
    build.finish(
        &architecture,
        vec![tower],
        &[
            ("head.", "a head that the task does not run"),
            ("decoder.", "a pre-training head that this architecture does not run"),
            ("classifier.", "a classifier that the task does not run"),
        ],
    )
}

fn block(
    build: &mut Builder<'_>,
    config: &ModernBertConfig,
    layer: usize,
    head_dim: usize,
    activation: ActivationFn,
    positions: Positions,
    reach: Reach,
) -> Result<BlockSpec, ModelError> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let path = format!("layers.{layer}");
    let mut linear = |name: &str, outputs, inputs, bias| {
        let path = format!("{path}.{name}");
        build.linear(&Draft::new(&path, outputs, inputs, LinearRole::Block).bias(bias))
    };
    let qkv = linear("attn.Wqkv", 3 * hidden, hidden, config.attention_bias)?;
    let output = linear("attn.Wo", hidden, hidden, config.attention_bias)?;
    let wide = linear("mlp.Wi", 2 * inner, hidden, config.mlp_bias)?;
    let down = linear("mlp.Wo", hidden, inner, config.mlp_bias)?;
    let of_qkv = |i: usize| Projection { linear: qkv, outputs: i * hidden..(i + 1) * hidden, stride: None };
    // The first layer reads the embeddings, which are normalised already.
    let attention_norm = (layer > 0)
        .then(|| build.norm_without_shift(&format!("{path}.attn_norm"), hidden, config.norm_bias))
        .transpose()?;
    Ok(BlockSpec {
        placement: NormPlacement::Pre,
        attention: AttentionSpec {
            heads: config.num_attention_heads,
            kv_heads: config.num_attention_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            input: build.site(vec![qkv]),
            query: of_qkv(0),
            key: of_qkv(1),
            value: of_qkv(2),
            cap: None,
            query_norm: None,
            key_norm: None,
            positions,
            reach,
            context: build.site(vec![output]),
            output,
        },
        attention_norm,
        attention_output_norm: None,
        mlp_output_norm: None,
        mlp: FeedForward::Dense(MlpSpec {
            input: build.site(vec![wide]),
            // The non-linearity is on the first half.
            up: Projection { linear: wide, outputs: inner..2 * inner, stride: None },
            gate: Some(Gate {
                projection: Projection { linear: wide, outputs: 0..inner, stride: None },
                activation,
            }),
            inner: build.site(vec![down]),
            down,
        }),
        mlp_norm: build.norm_without_shift(&format!("{path}.mlp_norm"), hidden, config.norm_bias)?,
        path: build.in_module(&path),
    })
}

fn describe_head(
    build: &mut Builder<'_>,
    task: Task,
    config: &ModernBertConfig,
    words: &EmbeddingTable,
) -> Result<HeadSpec, ModelError> {
    let hidden = config.hidden_size;
    if matches!(task, Task::Auto | Task::Embedding) {
        return Ok(build.embedding_head(Pooling::Mean));
    }
    let activation = build.input.activation("classifier_activation", &config.classifier_activation)?;
    let draft = Draft::new("head.dense", hidden, hidden, LinearRole::Head)
        .activation(activation)
        .bias(config.classifier_bias);
    let dense = build.head_linear(&draft)?;
    let norm = build.head_norm("head.norm", hidden, config.norm_bias)?;
    let steps: Vec<HeadStep> = vec![build.step(dense, Some(norm))];
    match task {
        Task::TokenClassification => build.token_head(steps, "classifier", hidden),
        Task::QuestionAnswering => build.span_head(steps, "classifier", hidden),
        Task::MaskedLm => build.masked_lm_head(steps, "decoder", &["decoder.bias"], words),
        _ => {
            let rows = match config.classifier_pooling.as_str() {
                "cls" => RowSelection::Token(0),
                "mean" => RowSelection::Pooled(vec![Pooling::Mean]),
                other => {
                    return Err(build.input.config_error(format!(
                        "`classifier_pooling` `{other}` is not supported; cls and mean are"
                    )));
                }
            };
            build.sequence_head(rows, steps, "classifier", hidden)
        }
    }
}
