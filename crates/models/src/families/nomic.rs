//! Nomic-BERT and GTE: BERT's post-norm blocks with rotary positions and a gated feed-forward half (Nussbaum et al. 2024,
//! "Nomic Embed: Training a Reproducible Long Context Text Embedder"; Zhang et al. 2024, "mGTE: Generalized Long-Context
//! Text Representation and Reranking Models"; shapes as in `transformers`' `modeling_nomic_bert.py` and
//! `modeling_gte.py`).
//!
//! Both began as code beside their weights. `transformers` renames their tensors when it loads them and splits those that
//! hold query, key and value together; quantised formats speak of the modules after that, so Linears are described as
//! `transformers` builds them and read from wherever the file keeps them.

use serde::Deserialize;
use serde_json::Value;

use super::builder::{Builder, Draft};
use super::{Family, FamilyInput, Head, MAX_LAYERS, MAX_WIDTH};
use crate::ModelError;
use crate::heads::{HeadSpec, Pooling, RowSelection, Task};
use crate::spec::{
    ActivationFn, AttentionSpec, BlockSpec, EmbeddingRole, EmbeddingTable, FeedForward, Gate, InputSpec,
    LinearRole, MlpSpec, ModelSpec, NormPlacement, NormSpec, Positions, Reach, Rotary, TextInput, Tower,
};

pub(super) const NOMIC: Family = Family {
    model_type: "nomic_bert",
    base: "NomicBertModel",
    describe: |input, head| describe(input, head, &NOMIC_DIALECT),
    heads: &[
        ("NomicBertForSequenceClassification", Head::Sequence),
        ("NomicBertForTokenClassification", Head::Tokens),
        ("NomicBertForMaskedLM", Head::MaskedLm),
    ],
};

pub(super) const GTE: Family = Family {
    model_type: "gte",
    base: "GteModel",
    describe: |input, head| describe(input, head, &GTE_DIALECT),
    heads: &[
        ("GteForSequenceClassification", Head::Sequence),
        ("GteForTokenClassification", Head::Tokens),
        ("GteForMaskedLM", Head::MaskedLm),
    ],
};

/// How a family's files name what `transformers` builds.
struct Dialect {
    base: &'static str,
    /// The attribute of task models that holds the base model.
    prefix: &'static str,
    /// The same in checkpoints of the code beside the weights.
    older_prefix: &'static str,
    embedding_norm: &'static str,
    block: &'static str,
    qkv: &'static str,
    attention_output: &'static str,
    attention_norm: &'static str,
    /// Up and gate in one tensor.
    up_and_gate: Option<&'static str>,
    up: &'static str,
    gate: &'static str,
    down: &'static str,
    mlp_norm: &'static str,
    attention_bias: bool,
    down_bias: bool,
    hidden_act: &'static str,
    theta: f64,
    types: usize,
    positions: usize,
}

const NOMIC_DIALECT: Dialect = Dialect {
    base: "NomicBertModel",
    prefix: "nomic_bert.",
    older_prefix: "bert.",
    embedding_norm: "emb_ln",
    block: "encoder.layers",
    qkv: "attn.Wqkv",
    attention_output: "attn.out_proj",
    attention_norm: "norm1",
    up_and_gate: None,
    up: "mlp.fc11",
    gate: "mlp.fc12",
    down: "mlp.fc2",
    mlp_norm: "norm2",
    attention_bias: false,
    down_bias: false,
    hidden_act: "silu",
    theta: 1000.0,
    types: 2,
    positions: 2048,
};

const GTE_DIALECT: Dialect = Dialect {
    base: "GteModel",
    prefix: "gte.",
    older_prefix: "new.",
    embedding_norm: "embeddings.LayerNorm",
    block: "encoder.layer",
    qkv: "attention.qkv_proj",
    attention_output: "attention.o_proj",
    attention_norm: "attn_ln",
    up_and_gate: Some("mlp.up_gate_proj"),
    up: "mlp.up_proj",
    gate: "mlp.gate_proj",
    down: "mlp.down_proj",
    mlp_norm: "mlp_ln",
    attention_bias: true,
    down_bias: true,
    hidden_act: "gelu",
    theta: 160_000.0,
    types: 1,
    positions: 8192,
};

/// The keys of config.json that matter, `transformers`' names first, those of the code beside the weights as aliases.
#[derive(Debug, Deserialize)]
struct NomicConfig {
    #[serde(alias = "n_embd")]
    hidden_size: usize,
    #[serde(alias = "n_head")]
    num_attention_heads: usize,
    #[serde(alias = "n_layer")]
    num_hidden_layers: usize,
    #[serde(alias = "n_inner")]
    intermediate_size: usize,
    vocab_size: usize,
    #[serde(default, alias = "n_positions")]
    max_position_embeddings: Option<usize>,
    #[serde(default)]
    type_vocab_size: Option<usize>,
    #[serde(default)]
    hidden_act: Option<String>,
    #[serde(default)]
    activation_function: Option<String>,
    #[serde(default = "default_eps", alias = "layer_norm_epsilon")]
    layer_norm_eps: f64,
    #[serde(default)]
    rope_parameters: Option<Value>,
    #[serde(default, alias = "rotary_emb_base")]
    rope_theta: Option<f64>,
    #[serde(default)]
    head_dim: Option<usize>,
}

fn default_eps() -> f64 {
    1e-12
}

/// Switches of the code beside the weights, with the only value that this description computes.
const FIXED: [(&str, &str); 15] = [
    ("prenorm", "false"),
    ("parallel_block", "false"),
    ("causal", "false"),
    ("use_rms_norm", "false"),
    ("qkv_proj_bias", "false"),
    ("mlp_fc1_bias", "false"),
    ("mlp_fc2_bias", "false"),
    ("rotary_emb_fraction", "1.0"),
    ("rotary_emb_interleaved", "false"),
    ("rotary_head_dim", "false"),
    ("rotary_emb_scale_base", "null"),
    ("rotary_scaling_factor", "null"),
    ("logn_attention_scale", "false"),
    ("position_embedding_type", "\"rope\""),
    ("layer_norm_type", "\"layer_norm\""),
];

fn refuse_variants(input: &FamilyInput<'_>) -> Result<(), ModelError> {
    for (key, supported) in FIXED {
        let Some(value) = input.config.get(key).filter(|value| !value.is_null()) else { continue };
        let written = value.to_string();
        let same = match value.as_f64() {
            Some(number) => supported.parse() == Ok(number),
            None => written == supported,
        };
        if !same {
            return Err(input.config_error(format!("`{key}` is {value}; only {supported} is supported")));
        }
    }
    Ok(())
}

impl NomicConfig {
    fn activation(&self, input: &FamilyInput<'_>, dialect: &Dialect) -> Result<ActivationFn, ModelError> {
        match (self.hidden_act.as_deref(), self.activation_function.as_deref()) {
            (None, Some("swiglu")) => Ok(ActivationFn::Silu),
            (None, Some("geglu")) => Ok(ActivationFn::GeluErf),
            (None, Some(other)) => Err(input.config_error(format!(
                "`activation_function` `{other}` is not supported; swiglu and geglu are"
            ))),
            (name, _) => input.activation("hidden_act", name.unwrap_or(dialect.hidden_act)),
        }
    }

    fn theta(&self, input: &FamilyInput<'_>, dialect: &Dialect) -> Result<f32, ModelError> {
        super::refuse_scaling(input)?;
        let default = Some(self.rope_theta.unwrap_or(dialect.theta));
        // A `rope_scaling` that says anything takes the place of `rope_parameters`, even if it is only the type.
        let replaced =
            input.config.get("rope_scaling").and_then(Value::as_object).is_some_and(|own| !own.is_empty());
        let parameters = self.rope_parameters.as_ref().filter(|value| !value.is_null() && !replaced);
        super::rotary_theta(input, parameters, "rope_parameters", default)
    }
}

fn describe(input: &FamilyInput<'_>, head: Head, dialect: &Dialect) -> Result<ModelSpec, ModelError> {
    let config: NomicConfig = input.parse()?;
    let (task, architecture) = input.purpose(head, dialect.base)?;
    let base = task == Task::Embedding;
    let positions = config.max_position_embeddings.unwrap_or(dialect.positions);
    let types = config.type_vocab_size.unwrap_or(dialect.types);
    input.check_sizes(&[
        ("hidden_size", config.hidden_size, MAX_WIDTH),
        ("num_attention_heads", config.num_attention_heads, MAX_WIDTH),
        ("num_hidden_layers", config.num_hidden_layers, MAX_LAYERS),
        ("intermediate_size", config.intermediate_size, MAX_WIDTH),
        ("vocab_size", config.vocab_size, 1 << 28),
        ("max_position_embeddings", positions, 1 << 24),
        ("type_vocab_size", types.max(1), MAX_WIDTH),
    ])?;
    refuse_variants(input)?;
    let hidden = config.hidden_size;
    let head_dim =
        input.head_dim(("hidden_size", hidden), ("num_attention_heads", config.num_attention_heads))?;
    if config.head_dim.is_some_and(|given| given != head_dim) || !head_dim.is_multiple_of(2) {
        return Err(input.config_error(format!(
            "heads have {} channels; {head_dim}, `hidden_size` over `num_attention_heads`, is supported where it is even",
            config.head_dim.unwrap_or(head_dim)
        )));
    }
    let activation = config.activation(input, dialect)?;
    let rotary = Positions::Rotary(Rotary::plain(config.theta(input, dialect)?, head_dim));

    let probe = "embeddings.word_embeddings.weight";
    let older = input.checkpoint.contains(&format!("{}{probe}", dialect.older_prefix));
    let prefix = if older { dialect.older_prefix } else { dialect.prefix };
    let mut build = Builder::new(input, prefix, probe, base, ("layer_norm_eps", config.layer_norm_eps))?;
    build.module_prefix(if base { "" } else { dialect.prefix });
    let words = build.table("embeddings.word_embeddings", config.vocab_size, hidden, EmbeddingRole::Word)?;
    let mut tables = vec![words.clone()];
    if types > 0 {
        let role = EmbeddingRole::TokenType;
        tables.push(build.table("embeddings.token_type_embeddings", types, hidden, role)?);
    }
    let norm = build.renamed_norm(dialect.embedding_norm, "embeddings.LayerNorm", hidden)?;
    let blocks = (0..config.num_hidden_layers)
        .map(|layer| block(&mut build, &config, dialect, layer, head_dim, activation, rotary.clone()))
        .collect::<Result<Vec<_>, _>>()?;
    build.connect(&blocks, Some(&norm));
    let head = describe_head(&mut build, task, dialect, hidden, activation, &words)?;
    let tower = Tower {
        hidden,
        input: InputSpec::Text(TextInput {
            max_positions: positions,
            width: hidden,
            tables,
            scale: 1.0,
            norm: Some(norm),
            projection: None,
        }),
        blocks,
        final_norm: None,
        relative_bias: None,
        head,
    };
    build.finish(
        &architecture,
        vec![tower],
        &[
            ("embeddings.position_ids", "a constant buffer"),
            ("pooler.", "a pooler that the task does not run"),
            ("classifier.", "a classifier that the task does not run"),
            ("cls.", "a pre-training head that this architecture does not run"),
            ("lm_head.", "a pre-training head that this architecture does not run"),
        ],
    )
}

fn block(
    build: &mut Builder<'_>,
    config: &NomicConfig,
    dialect: &Dialect,
    layer: usize,
    head_dim: usize,
    activation: ActivationFn,
    positions: Positions,
) -> Result<BlockSpec, ModelError> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (file, module) = (format!("{}.{layer}", dialect.block), format!("layers.{layer}"));
    let path = |name: &str| format!("{module}.{name}");
    let draft = |path, outputs, inputs, bias| Draft::new(path, outputs, inputs, LinearRole::Block).bias(bias);

    let names = ["q_proj", "k_proj", "v_proj"].map(|name| path(&format!("self_attn.{name}")));
    let drafts: Vec<Draft<'_>> =
        names.iter().map(|name| draft(name, hidden, hidden, dialect.attention_bias)).collect();
    let qkv = build.split_linears(&format!("{file}.{}", dialect.qkv), &drafts)?;
    let output_path = path("self_attn.o_proj");
    let output = build.renamed_linear(
        &format!("{file}.{}", dialect.attention_output),
        &draft(&output_path, hidden, hidden, dialect.attention_bias),
    )?;
    let (up_path, gate_path) = (path("mlp.up_proj"), path("mlp.gate_proj"));
    let (up, gate) = (draft(&up_path, inner, hidden, false), draft(&gate_path, inner, hidden, false));
    let (up, gate) = match dialect.up_and_gate {
        Some(fused) => {
            let both = build.split_linears(&format!("{file}.{fused}"), &[up, gate])?;
            (both[0], both[1])
        }
        None => (
            build.renamed_linear(&format!("{file}.{}", dialect.up), &up)?,
            build.renamed_linear(&format!("{file}.{}", dialect.gate), &gate)?,
        ),
    };
    let down_path = path("mlp.down_proj");
    let down = build.renamed_linear(
        &format!("{file}.{}", dialect.down),
        &draft(&down_path, hidden, inner, dialect.down_bias),
    )?;
    let norm = |build: &mut Builder<'_>, in_file: &str, name: &str| -> Result<NormSpec, ModelError> {
        build.renamed_norm(&format!("{file}.{in_file}"), &path(name), hidden)
    };
    Ok(BlockSpec {
        placement: NormPlacement::Post,
        attention: AttentionSpec {
            heads: config.num_attention_heads,
            kv_heads: config.num_attention_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            input: build.site(qkv.clone()),
            query: build.whole(qkv[0]),
            key: build.whole(qkv[1]),
            value: build.whole(qkv[2]),
            cap: None,
            query_norm: None,
            key_norm: None,
            positions,
            reach: Reach::Full,
            context: build.site(vec![output]),
            output,
        },
        attention_norm: Some(norm(build, dialect.attention_norm, "post_attention_layernorm")?),
        attention_output_norm: None,
        mlp_output_norm: None,
        mlp: FeedForward::Dense(MlpSpec {
            input: build.site(vec![up, gate]),
            up: build.whole(up),
            gate: Some(Gate { projection: build.whole(gate), activation }),
            inner: build.site(vec![down]),
            down,
        }),
        mlp_norm: norm(build, dialect.mlp_norm, "post_mlp_layernorm")?,
        path: build.in_module(&module),
    })
}

fn describe_head(
    build: &mut Builder<'_>,
    task: Task,
    dialect: &Dialect,
    hidden: usize,
    activation: ActivationFn,
    words: &EmbeddingTable,
) -> Result<HeadSpec, ModelError> {
    match task {
        Task::Classification => {
            let pooler = build.pooler_step("pooler.dense", hidden)?;
            build.sequence_head(RowSelection::Token(0), vec![pooler], "classifier", hidden)
        }
        Task::TokenClassification => build.token_head(Vec::new(), "classifier", hidden),
        Task::MaskedLm if dialect.base == GTE_DIALECT.base => {
            let gelu = ActivationFn::GeluErf;
            let older = build.input.checkpoint.contains("lm_head.norm.weight");
            let norm = if older { "lm_head.norm" } else { "lm_head.layer_norm" };
            let transform = build.transform_step("lm_head.dense", hidden, hidden, gelu, norm)?;
            build.masked_lm_head(vec![transform], "lm_head.decoder", &["lm_head.decoder.bias"], words)
        }
        Task::MaskedLm => {
            let dense = "cls.predictions.transform.dense";
            let norm = "cls.predictions.transform.layer_norm";
            let transform = build.transform_step(dense, hidden, hidden, activation, norm)?;
            let biases = ["cls.predictions.decoder.bias", "cls.predictions.bias"];
            build.masked_lm_head(vec![transform], "cls.predictions.decoder", &biases, words)
        }
        _ => Ok(build.embedding_head(Pooling::Mean)),
    }
}
