//! `MPNet`: BERT's blocks with a learnt bias for relative positions that all of them add (Song et al. 2020, "`MPNet`:
//! Masked and Permuted Pre-training for Language Understanding"; names and shapes as in `transformers`'
//! `modeling_mpnet.py`).

use serde::Deserialize;

use super::builder::Builder;
use super::layers::{BlockNames, Sizes};
use super::{Family, FamilyInput, Head, MAX_LAYERS, MAX_WIDTH};
use crate::ModelError;
use crate::heads::{Pooling, RowSelection, Task};
use crate::spec::{
    ActivationFn, EmbeddingRole, InputSpec, ModelSpec, NormPlacement, Positions, RelativeBias, TextInput,
    Tower,
};

const BASE: &str = "MPNetModel";

pub(super) const FAMILY: Family = Family {
    model_type: "mpnet",
    base: BASE,
    describe,
    heads: &[
        ("MPNetForSequenceClassification", Head::Sequence),
        ("MPNetForTokenClassification", Head::Tokens),
        ("MPNetForMaskedLM", Head::MaskedLm),
        ("MPNetForQuestionAnswering", Head::Span),
    ],
};

const BLOCK: BlockNames = BlockNames {
    qkv: ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
    attention_output: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    mlp_norm: "output.LayerNorm",
};

/// Written down in the family's code: what config.json says of the buckets sizes the table alone.
const BUCKETS: usize = 32;
const MAX_DISTANCE: usize = 128;
/// Written down in the family's code, whatever `pad_token_id` says.
const PAD: usize = 1;

/// The keys of config.json that matter, with `transformers`' defaults.
#[derive(Debug, Deserialize)]
struct MpnetConfig {
    hidden_size: usize,
    num_attention_heads: usize,
    num_hidden_layers: usize,
    intermediate_size: usize,
    vocab_size: usize,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
    #[serde(default = "default_act")]
    hidden_act: String,
    #[serde(default = "default_eps")]
    layer_norm_eps: f64,
    #[serde(default = "default_buckets")]
    relative_attention_num_buckets: usize,
}

fn default_positions() -> usize {
    512
}
fn default_act() -> String {
    "gelu".to_owned()
}
fn default_eps() -> f64 {
    1e-12
}
fn default_buckets() -> usize {
    BUCKETS
}

fn describe(input: &FamilyInput<'_>, head: Head) -> Result<ModelSpec, ModelError> {
    let config: MpnetConfig = input.parse()?;
    let (task, architecture) = input.purpose(head, BASE)?;
    let base = task == Task::Embedding;
    input.check_sizes(&[
        ("hidden_size", config.hidden_size, MAX_WIDTH),
        ("num_attention_heads", config.num_attention_heads, MAX_WIDTH),
        ("num_hidden_layers", config.num_hidden_layers, MAX_LAYERS),
        ("intermediate_size", config.intermediate_size, MAX_WIDTH),
        ("vocab_size", config.vocab_size, 1 << 28),
        ("max_position_embeddings", config.max_position_embeddings, 1 << 24),
    ])?;
    if config.relative_attention_num_buckets != BUCKETS {
        return Err(input.config_error(format!(
            "`relative_attention_num_buckets` is {}; only {BUCKETS}, which the family's code computes with, is supported",
            config.relative_attention_num_buckets
        )));
    }
    let positions = config.max_position_embeddings;
    if positions <= PAD + 1 {
        return Err(input.config_error(format!(
            "`max_position_embeddings` is {positions}; positions begin at row {}",
            PAD + 1
        )));
    }
    let activation = input.activation("hidden_act", &config.hidden_act)?;
    let hidden = config.hidden_size;
    let sizes = Sizes {
        hidden,
        heads: config.num_attention_heads,
        head_dim: input
            .head_dim(("hidden_size", hidden), ("num_attention_heads", config.num_attention_heads))?,
        inner: config.intermediate_size,
    };
    let probe = "embeddings.word_embeddings.weight";
    let mut build = Builder::new(input, "mpnet.", probe, base, ("layer_norm_eps", config.layer_norm_eps))?;
    let words = build.table("embeddings.word_embeddings", config.vocab_size, hidden, EmbeddingRole::Word)?;
    let role = EmbeddingRole::Position { offset: PAD + 1, pad: Some(PAD as u32) };
    let position = build.table("embeddings.position_embeddings", positions, hidden, role)?;
    let norm = build.norm("embeddings.LayerNorm", hidden)?;
    let bias = RelativeBias {
        tensor: build.in_file("encoder.relative_attention_bias.weight"),
        buckets: BUCKETS,
        max_distance: MAX_DISTANCE,
    };
    build.expect(&bias.tensor, &[BUCKETS, config.num_attention_heads])?;
    let blocks = (0..config.num_hidden_layers)
        .map(|layer| {
            let path = format!("encoder.layer.{layer}");
            build.plain_block(&path, &BLOCK, sizes, activation, NormPlacement::Post, Positions::RelativeBias)
        })
        .collect::<Result<Vec<_>, _>>()?;
    build.connect(&blocks, Some(&norm));
    build.idle_pooler("pooler.dense", hidden)?;
    let head = match task {
        Task::Auto | Task::Embedding | Task::CausalLm => build.embedding_head(Pooling::Mean),
        Task::Classification => {
            let dense = build.head_step("classifier.dense", hidden, hidden, ActivationFn::Tanh)?;
            build.sequence_head(RowSelection::Token(0), vec![dense], "classifier.out_proj", hidden)?
        }
        Task::TokenClassification => build.token_head(Vec::new(), "classifier", hidden)?,
        Task::QuestionAnswering => build.span_head(Vec::new(), "qa_outputs", hidden)?,
        Task::MaskedLm => {
            let gelu = ActivationFn::GeluErf;
            let transform =
                build.transform_step("lm_head.dense", hidden, hidden, gelu, "lm_head.layer_norm")?;
            let biases = ["lm_head.bias", "lm_head.decoder.bias"];
            build.masked_lm_head(vec![transform], "lm_head.decoder", &biases, &words)?
        }
    };
    let tower = Tower {
        hidden,
        input: InputSpec::Text(TextInput {
            max_positions: positions - PAD - 1,
            width: hidden,
            tables: vec![words, position],
            scale: 1.0,
            norm: Some(norm),
            projection: None,
        }),
        blocks,
        final_norm: None,
        relative_bias: Some(bias),
        head,
    };
    build.finish(
        &architecture,
        vec![tower],
        &[
            ("embeddings.position_ids", "a constant buffer"),
            ("classifier.", "a classifier that the task does not run"),
            ("qa_outputs.", "a question answering head that the task does not run"),
            ("lm_head.", "a pre-training head that this architecture does not run"),
        ],
    )
}
