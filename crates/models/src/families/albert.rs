//! ALBERT: post-norm blocks that share their weights, over narrow tables with a projection (Lan et al. 2020, "ALBERT: A
//! Lite BERT for Self-supervised Learning of Language Representations"; names and shapes as in `transformers`'
//! `modeling_albert.py`).
//!
//! A shared Linear is one Linear here: its site sees the activations of every layer that uses it, and a static range
//! covers them all.

use serde::Deserialize;

use super::builder::{Builder, Draft};
use super::layers::{BlockNames, Sizes};
use super::{Family, FamilyInput, Head, MAX_LAYERS, MAX_WIDTH};
use crate::ModelError;
use crate::heads::{HeadSpec, Pooling, RowSelection, Task};
use crate::spec::{
    ActivationFn, BlockSpec, EmbeddingRole, EmbeddingTable, InputSpec, LinearRole, ModelSpec, NormPlacement,
    Positions, TextInput, Tower,
};

const BASE: &str = "AlbertModel";

pub(super) const FAMILY: Family = Family {
    model_type: "albert",
    base: BASE,
    describe,
    heads: &[
        ("AlbertForSequenceClassification", Head::Sequence),
        ("AlbertForTokenClassification", Head::Tokens),
        ("AlbertForMaskedLM", Head::MaskedLm),
        ("AlbertForQuestionAnswering", Head::Span),
        ("AlbertForPreTraining", Head::Base),
    ],
};

const BLOCK: BlockNames = BlockNames {
    qkv: ["attention.query", "attention.key", "attention.value"],
    attention_output: "attention.dense",
    attention_norm: "attention.LayerNorm",
    up: "ffn",
    down: "ffn_output",
    mlp_norm: "full_layer_layer_norm",
};

/// The keys of config.json that matter, with `transformers`' defaults.
#[derive(Debug, Deserialize)]
struct AlbertConfig {
    #[serde(default = "default_embedding")]
    embedding_size: usize,
    hidden_size: usize,
    num_attention_heads: usize,
    num_hidden_layers: usize,
    intermediate_size: usize,
    vocab_size: usize,
    #[serde(default = "one")]
    num_hidden_groups: usize,
    #[serde(default = "one")]
    inner_group_num: usize,
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
}

fn default_embedding() -> usize {
    128
}
fn one() -> usize {
    1
}
fn default_positions() -> usize {
    512
}
fn default_types() -> usize {
    2
}
fn default_act() -> String {
    "gelu_new".to_owned()
}
fn default_eps() -> f64 {
    1e-12
}

fn describe(input: &FamilyInput<'_>, head: Head) -> Result<ModelSpec, ModelError> {
    let config: AlbertConfig = input.parse()?;
    let (task, architecture) = input.purpose(head, BASE)?;
    let base = task == Task::Embedding;
    input.check_sizes(&[
        ("embedding_size", config.embedding_size, MAX_WIDTH),
        ("hidden_size", config.hidden_size, MAX_WIDTH),
        ("num_attention_heads", config.num_attention_heads, MAX_WIDTH),
        ("num_hidden_layers", config.num_hidden_layers, MAX_LAYERS),
        ("num_hidden_groups", config.num_hidden_groups, config.num_hidden_layers.max(1)),
        ("inner_group_num", config.inner_group_num, MAX_LAYERS),
        ("intermediate_size", config.intermediate_size, MAX_WIDTH),
        ("vocab_size", config.vocab_size, 1 << 28),
        ("max_position_embeddings", config.max_position_embeddings, 1 << 24),
        ("type_vocab_size", config.type_vocab_size, MAX_WIDTH),
    ])?;
    if let Some(kind) = config.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
        return Err(
            input.config_error(format!("`position_embedding_type` `{kind}` is not supported; `absolute` is"))
        );
    }
    let activation = input.activation("hidden_act", &config.hidden_act)?;
    let (hidden, width) = (config.hidden_size, config.embedding_size);
    let sizes = Sizes {
        hidden,
        heads: config.num_attention_heads,
        head_dim: input
            .head_dim(("hidden_size", hidden), ("num_attention_heads", config.num_attention_heads))?,
        inner: config.intermediate_size,
    };
    let probe = "embeddings.word_embeddings.weight";
    let mut build = Builder::new(input, "albert.", probe, base, ("layer_norm_eps", config.layer_norm_eps))?;
    let words = build.table("embeddings.word_embeddings", config.vocab_size, width, EmbeddingRole::Word)?;
    let types = build.table(
        "embeddings.token_type_embeddings",
        config.type_vocab_size,
        width,
        EmbeddingRole::TokenType,
    )?;
    let positions = config.max_position_embeddings;
    let role = EmbeddingRole::Position { offset: 0, pad: None };
    let position = build.table("embeddings.position_embeddings", positions, width, role)?;
    let norm = build.norm("embeddings.LayerNorm", width)?;
    let mapping =
        build.linear(&Draft::new("encoder.embedding_hidden_mapping_in", hidden, width, LinearRole::Block))?;
    let projection = Some(build.site(vec![mapping]));

    let mut groups: Vec<Vec<BlockSpec>> = Vec::with_capacity(config.num_hidden_groups);
    for group in 0..config.num_hidden_groups {
        let blocks = (0..config.inner_group_num)
            .map(|inner| {
                let path = format!("encoder.albert_layer_groups.{group}.albert_layers.{inner}");
                build.plain_block(&path, &BLOCK, sizes, activation, NormPlacement::Post, Positions::Embedded)
            })
            .collect::<Result<_, _>>()?;
        groups.push(blocks);
    }
    let blocks: Vec<BlockSpec> = (0..config.num_hidden_layers)
        .flat_map(|layer| groups[group_of(layer, config.num_hidden_layers, groups.len())].iter().cloned())
        .collect();
    build.connect(&blocks, None);
    let head = describe_head(&mut build, task, hidden, activation, &words)?;
    let tower = Tower {
        hidden,
        input: InputSpec::Text(TextInput {
            max_positions: positions,
            width,
            tables: vec![words, types, position],
            scale: 1.0,
            norm: Some(norm),
            projection,
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
            ("classifier.", "a classifier that the task does not run"),
            ("qa_outputs.", "a question answering head that the task does not run"),
            ("predictions.", "a pre-training head that this architecture does not run"),
            ("sop_classifier.", "a pre-training head that this architecture does not run"),
        ],
    )
}

/// The group whose weights a layer has. In floating point as the reference computes it, which is not always the exact
/// quotient's floor.
fn group_of(layer: usize, layers: usize, groups: usize) -> usize {
    let per_group = layers as f64 / groups as f64;
    ((layer as f64 / per_group) as usize).min(groups - 1)
}

fn describe_head(
    build: &mut Builder<'_>,
    task: Task,
    hidden: usize,
    activation: ActivationFn,
    words: &EmbeddingTable,
) -> Result<HeadSpec, ModelError> {
    if task == Task::Classification {
        let pooler = build.pooler_step("pooler", hidden)?;
        return build.sequence_head(RowSelection::Token(0), vec![pooler], "classifier", hidden);
    }
    build.idle_pooler("pooler", hidden)?;
    match task {
        Task::TokenClassification => build.token_head(Vec::new(), "classifier", hidden),
        Task::QuestionAnswering => build.span_head(Vec::new(), "qa_outputs", hidden),
        Task::MaskedLm => {
            let transform = build.transform_step(
                "predictions.dense",
                words.width,
                hidden,
                activation,
                "predictions.LayerNorm",
            )?;
            let biases = ["predictions.bias", "predictions.decoder.bias"];
            build.masked_lm_head(vec![transform], "predictions.decoder", &biases, words)
        }
        _ => Ok(build.embedding_head(Pooling::Mean)),
    }
}

#[cfg(test)]
mod tests {
    use super::group_of;

    /// What `int(i / (layers / groups))` gives in Python; for 18 layers in 14 groups exact arithmetic puts layer 9 into
    /// group 7.
    #[test]
    fn layers_share_weights_as_the_floating_point_of_the_reference_has_it() {
        let all =
            |layers, groups| (0..layers).map(|layer| group_of(layer, layers, groups)).collect::<Vec<_>>();
        assert_eq!(all(3, 1), [0, 0, 0]);
        assert_eq!(all(3, 2), [0, 0, 1]);
        assert_eq!(all(4, 4), [0, 1, 2, 3]);
        assert_eq!(all(18, 14), [0, 0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 10, 10, 11, 12, 13]);
    }
}
