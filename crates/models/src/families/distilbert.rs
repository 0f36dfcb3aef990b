//! `DistilBERT`: BERT's blocks under other names, without segments and pooler (Sanh et al. 2019, "`DistilBERT`, a
//! distilled version of BERT"; names and shapes as in `transformers`' `modeling_distilbert.py`).

use serde::Deserialize;

use super::builder::Builder;
use super::layers::{BlockNames, Sizes};
use super::{Family, FamilyInput, Head, MAX_LAYERS, MAX_WIDTH};
use crate::ModelError;
use crate::heads::{Pooling, RowSelection, Task};
use crate::spec::{
    ActivationFn, EmbeddingRole, InputSpec, ModelSpec, NormPlacement, Positions, TextInput, Tower,
};

const BASE: &str = "DistilBertModel";

pub(super) const FAMILY: Family = Family {
    model_type: "distilbert",
    base: BASE,
    describe,
    heads: &[
        ("DistilBertForSequenceClassification", Head::Sequence),
        ("DistilBertForTokenClassification", Head::Tokens),
        ("DistilBertForMaskedLM", Head::MaskedLm),
        ("DistilBertForQuestionAnswering", Head::Span),
    ],
};

const BLOCK: BlockNames = BlockNames {
    qkv: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    attention_output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    mlp_norm: "output_layer_norm",
};

/// Written down in the family's code, not in config.json.
const EPS: f64 = 1e-12;

/// The keys of config.json that matter, with `transformers`' defaults.
#[derive(Debug, Deserialize)]
struct DistilBertConfig {
    #[serde(default = "default_width")]
    dim: usize,
    #[serde(default = "default_heads")]
    n_heads: usize,
    #[serde(default = "default_layers")]
    n_layers: usize,
    #[serde(default = "default_inner")]
    hidden_dim: usize,
    vocab_size: usize,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
    #[serde(default = "default_act")]
    activation: String,
}

fn default_width() -> usize {
    768
}
fn default_heads() -> usize {
    12
}
fn default_layers() -> usize {
    6
}
fn default_inner() -> usize {
    3072
}
fn default_positions() -> usize {
    512
}
fn default_act() -> String {
    "gelu".to_owned()
}

fn describe(input: &FamilyInput<'_>, head: Head) -> Result<ModelSpec, ModelError> {
    let config: DistilBertConfig = input.parse()?;
    let (task, architecture) = input.purpose(head, BASE)?;
    let base = task == Task::Embedding;
    input.check_sizes(&[
        ("dim", config.dim, MAX_WIDTH),
        ("n_heads", config.n_heads, MAX_WIDTH),
        ("n_layers", config.n_layers, MAX_LAYERS),
        ("hidden_dim", config.hidden_dim, MAX_WIDTH),
        ("vocab_size", config.vocab_size, 1 << 28),
        ("max_position_embeddings", config.max_position_embeddings, 1 << 24),
    ])?;
    let activation = input.activation("activation", &config.activation)?;
    let hidden = config.dim;
    let sizes = Sizes {
        hidden,
        heads: config.n_heads,
        head_dim: input.head_dim(("dim", hidden), ("n_heads", config.n_heads))?,
        inner: config.hidden_dim,
    };
    let mut build = Builder::new(
        input,
        "distilbert.",
        "embeddings.word_embeddings.weight",
        base,
        ("layer_norm_eps", EPS),
    )?;
    let words = build.table("embeddings.word_embeddings", config.vocab_size, hidden, EmbeddingRole::Word)?;
    let positions = config.max_position_embeddings;
    let role = EmbeddingRole::Position { offset: 0, pad: None };
    let position = build.table("embeddings.position_embeddings", positions, hidden, role)?;
    let norm = build.norm("embeddings.LayerNorm", hidden)?;
    let blocks = (0..config.n_layers)
        .map(|layer| {
            let path = format!("transformer.layer.{layer}");
            build.plain_block(&path, &BLOCK, sizes, activation, NormPlacement::Post, Positions::Embedded)
        })
        .collect::<Result<Vec<_>, _>>()?;
    build.connect(&blocks, Some(&norm));
    let head = match task {
        Task::Auto | Task::Embedding | Task::CausalLm => build.embedding_head(Pooling::Mean),
        Task::Classification => {
            let dense = build.head_step("pre_classifier", hidden, hidden, ActivationFn::Relu)?;
            build.sequence_head(RowSelection::Token(0), vec![dense], "classifier", hidden)?
        }
        Task::TokenClassification => build.token_head(Vec::new(), "classifier", hidden)?,
        Task::QuestionAnswering => build.span_head(Vec::new(), "qa_outputs", hidden)?,
        Task::MaskedLm => {
            let transform =
                build.transform_step("vocab_transform", hidden, hidden, activation, "vocab_layer_norm")?;
            build.masked_lm_head(vec![transform], "vocab_projector", &["vocab_projector.bias"], &words)?
        }
    };
    let tower = Tower {
        hidden,
        input: InputSpec::Text(TextInput {
            max_positions: positions,
            width: hidden,
            tables: vec![words, position],
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
            ("pre_classifier.", "a classifier that the task does not run"),
            ("classifier.", "a classifier that the task does not run"),
            ("qa_outputs.", "a question answering head that the task does not run"),
            ("vocab_", "a pre-training head that this architecture does not run"),
        ],
    )
}
