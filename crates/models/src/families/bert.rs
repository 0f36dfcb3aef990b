//! BERT and the families that keep its encoder: `RoBERTa`, XLM-`RoBERTa`, `CamemBERT` and ELECTRA.
//!
//! Post-norm blocks with absolute positions (Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers
//! for Language Understanding"). `RoBERTa` (Liu et al. 2019) counts positions from the padding token's row on and has a
//! classifier of two Linears instead of a pooler; ELECTRA (Clark et al. 2020) has narrower tables with a projection.
//! Names and shapes as in `transformers`' `modeling_bert.py`, `modeling_roberta.py` and `modeling_electra.py`.

use serde::Deserialize;

use super::builder::{Builder, Draft};
use super::layers::{BlockNames, Sizes};
use super::{Family, FamilyInput, Head, MAX_LAYERS, MAX_WIDTH};
use crate::ModelError;
use crate::heads::{HeadSpec, Pooling, RowSelection, Task};
use crate::spec::{
    ActivationFn, EmbeddingRole, EmbeddingTable, InputSpec, LinearRole, ModelSpec, NormPlacement, Positions,
    TextInput, Tower,
};

pub(super) const BERT: Family = Family {
    model_type: "bert",
    base: "BertModel",
    describe: |input, head| describe(input, head, &BERT_DIALECT),
    heads: &[
        ("BertForSequenceClassification", Head::Sequence),
        ("BertForTokenClassification", Head::Tokens),
        ("BertForMaskedLM", Head::MaskedLm),
        ("BertForQuestionAnswering", Head::Span),
        ("BertForPreTraining", Head::Base),
    ],
};

pub(super) const ROBERTA: Family = Family {
    model_type: "roberta",
    base: "RobertaModel",
    describe: |input, head| describe(input, head, &Dialect { base: "RobertaModel", ..ROBERTA_DIALECT }),
    heads: &[
        ("RobertaForSequenceClassification", Head::Sequence),
        ("RobertaForTokenClassification", Head::Tokens),
        ("RobertaForMaskedLM", Head::MaskedLm),
        ("RobertaForQuestionAnswering", Head::Span),
    ],
};

pub(super) const XLM_ROBERTA: Family = Family {
    model_type: "xlm-roberta",
    base: "XLMRobertaModel",
    describe: |input, head| describe(input, head, &Dialect { base: "XLMRobertaModel", ..ROBERTA_DIALECT }),
    heads: &[
        ("XLMRobertaForSequenceClassification", Head::Sequence),
        ("XLMRobertaForTokenClassification", Head::Tokens),
        ("XLMRobertaForMaskedLM", Head::MaskedLm),
        ("XLMRobertaForQuestionAnswering", Head::Span),
    ],
};

pub(super) const CAMEMBERT: Family = Family {
    model_type: "camembert",
    base: "CamembertModel",
    describe: |input, head| describe(input, head, &Dialect { base: "CamembertModel", ..ROBERTA_DIALECT }),
    heads: &[
        ("CamembertForSequenceClassification", Head::Sequence),
        ("CamembertForTokenClassification", Head::Tokens),
        ("CamembertForMaskedLM", Head::MaskedLm),
        ("CamembertForQuestionAnswering", Head::Span),
    ],
};

pub(super) const ELECTRA: Family = Family {
    model_type: "electra",
    base: "ElectraModel",
    describe: |input, head| describe(input, head, &ELECTRA_DIALECT),
    heads: &[
        ("ElectraForSequenceClassification", Head::Sequence),
        ("ElectraForTokenClassification", Head::Tokens),
        ("ElectraForMaskedLM", Head::MaskedLm),
        ("ElectraForQuestionAnswering", Head::Span),
        ("ElectraForPreTraining", Head::Base),
    ],
};

/// Which of the encoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bert,
    Roberta,
    Electra,
}

/// What the families do not share.
struct Dialect {
    kind: Kind,
    base: &'static str,
    /// The attribute of task models that holds the base model.
    prefix: &'static str,
    /// Beginnings of tensors that may be carried along without being run.
    unused: &'static [(&'static str, &'static str)],
}

const POSITION_BUFFER: (&str, &str) = ("embeddings.position_ids", "a constant buffer");
const CLASSIFIER: (&str, &str) = ("classifier.", "a classifier that the task does not run");
const SPAN: (&str, &str) = ("qa_outputs.", "a question answering head that the task does not run");
const PRE_TRAINING: &str = "a pre-training head that this architecture does not run";

const BERT_DIALECT: Dialect = Dialect {
    kind: Kind::Bert,
    base: "BertModel",
    prefix: "bert.",
    unused: &[POSITION_BUFFER, CLASSIFIER, SPAN, ("cls.", PRE_TRAINING)],
};

const ROBERTA_DIALECT: Dialect = Dialect {
    kind: Kind::Roberta,
    base: "RobertaModel",
    prefix: "roberta.",
    unused: &[POSITION_BUFFER, CLASSIFIER, SPAN, ("lm_head.", PRE_TRAINING)],
};

const ELECTRA_DIALECT: Dialect = Dialect {
    kind: Kind::Electra,
    base: "ElectraModel",
    prefix: "electra.",
    unused: &[
        POSITION_BUFFER,
        CLASSIFIER,
        SPAN,
        ("discriminator_predictions.", PRE_TRAINING),
        ("generator_predictions.", PRE_TRAINING),
        ("generator_lm_head.", PRE_TRAINING),
    ],
};

const BLOCK: BlockNames = BlockNames {
    qkv: ["attention.self.query", "attention.self.key", "attention.self.value"],
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    mlp_norm: "output.LayerNorm",
};

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
    embedding_size: Option<usize>,
    #[serde(default)]
    pad_token_id: Option<usize>,
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

fn describe(input: &FamilyInput<'_>, head: Head, dialect: &Dialect) -> Result<ModelSpec, ModelError> {
    let config: BertConfig = input.parse()?;
    let (task, architecture) = input.purpose(head, dialect.base)?;
    let base = task == Task::Embedding;
    let activation = validate(&config, input)?;
    let hidden = config.hidden_size;
    let sizes = Sizes {
        hidden,
        heads: config.num_attention_heads,
        head_dim: input
            .head_dim(("hidden_size", hidden), ("num_attention_heads", config.num_attention_heads))?,
        inner: config.intermediate_size,
    };

    let probe = "embeddings.word_embeddings.weight";
    let mut build =
        Builder::new(input, dialect.prefix, probe, base, ("layer_norm_eps", config.layer_norm_eps))?;
    let text = text_input(&mut build, &config, dialect)?;
    let words = text.tables[0].clone();
    let blocks = (0..config.num_hidden_layers)
        .map(|layer| {
            let path = format!("encoder.layer.{layer}");
            build.plain_block(&path, &BLOCK, sizes, activation, NormPlacement::Post, Positions::Embedded)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let feeding = text.norm.clone().filter(|_| text.projection.is_none());
    build.connect(&blocks, feeding.as_ref());
    let head = describe_head(&mut build, task, dialect, &config, activation, &words)?;
    let tower =
        Tower { hidden, input: InputSpec::Text(text), blocks, final_norm: None, relative_bias: None, head };
    build.finish(&architecture, vec![tower], dialect.unused)
}

fn validate(config: &BertConfig, input: &FamilyInput<'_>) -> Result<ActivationFn, ModelError> {
    input.check_sizes(&[
        ("hidden_size", config.hidden_size, MAX_WIDTH),
        ("num_attention_heads", config.num_attention_heads, MAX_WIDTH),
        ("num_hidden_layers", config.num_hidden_layers, MAX_LAYERS),
        ("intermediate_size", config.intermediate_size, MAX_WIDTH),
        ("vocab_size", config.vocab_size, 1 << 28),
        ("max_position_embeddings", config.max_position_embeddings, 1 << 24),
        ("type_vocab_size", config.type_vocab_size, MAX_WIDTH),
        ("embedding_size", config.embedding_size.unwrap_or(1), MAX_WIDTH),
    ])?;
    if let Some(kind) = config.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
        return Err(
            input.config_error(format!("`position_embedding_type` `{kind}` is not supported; `absolute` is"))
        );
    }
    if config.is_decoder {
        return Err(input.config_error("`is_decoder` is true; the family is supported as an encoder only"));
    }
    input.activation("hidden_act", &config.hidden_act)
}

fn text_input(
    build: &mut Builder<'_>,
    config: &BertConfig,
    dialect: &Dialect,
) -> Result<TextInput, ModelError> {
    let hidden = config.hidden_size;
    let width = match dialect.kind {
        Kind::Electra => config.embedding_size.unwrap_or(128),
        Kind::Bert | Kind::Roberta => hidden,
    };
    let positions = config.max_position_embeddings;
    let (offset, pad) = match dialect.kind {
        Kind::Roberta => {
            let pad = config.pad_token_id.unwrap_or(1);
            if pad >= positions - 1 {
                return Err(build.input.config_error(format!(
                    "`pad_token_id` is {pad}, which leaves no row of {positions} to the positions"
                )));
            }
            (pad + 1, Some(pad as u32))
        }
        Kind::Bert | Kind::Electra => (0, None),
    };
    let words = build.table("embeddings.word_embeddings", config.vocab_size, width, EmbeddingRole::Word)?;
    let types = build.table(
        "embeddings.token_type_embeddings",
        config.type_vocab_size,
        width,
        EmbeddingRole::TokenType,
    )?;
    let position = EmbeddingRole::Position { offset, pad };
    let position = build.table("embeddings.position_embeddings", positions, width, position)?;
    let tables: Vec<EmbeddingTable> = vec![words, types, position];
    let norm = Some(build.norm("embeddings.LayerNorm", width)?);
    let projection = if width == hidden {
        None
    } else {
        let linear = build.linear(&Draft::new("embeddings_project", hidden, width, LinearRole::Block))?;
        Some(build.site(vec![linear]))
    };
    Ok(TextInput { max_positions: positions - offset, width, tables, scale: 1.0, norm, projection })
}

fn describe_head(
    build: &mut Builder<'_>,
    task: Task,
    dialect: &Dialect,
    config: &BertConfig,
    activation: ActivationFn,
    words: &EmbeddingTable,
) -> Result<HeadSpec, ModelError> {
    let hidden = config.hidden_size;
    let width = words.width;
    match task {
        Task::Auto | Task::Embedding | Task::CausalLm => {
            if dialect.kind != Kind::Electra {
                build.idle_pooler("pooler.dense", hidden)?;
            }
            Ok(build.embedding_head(Pooling::Mean))
        }
        Task::Classification => match dialect.kind {
            Kind::Bert => {
                let pooler = build.pooler_step("pooler.dense", hidden)?;
                build.sequence_head(RowSelection::Token(0), vec![pooler], "classifier", hidden)
            }
            Kind::Roberta | Kind::Electra => {
                build.idle_pooler("pooler.dense", hidden)?;
                let activation =
                    if dialect.kind == Kind::Roberta { ActivationFn::Tanh } else { ActivationFn::GeluErf };
                let dense = build.head_step("classifier.dense", hidden, hidden, activation)?;
                build.sequence_head(RowSelection::Token(0), vec![dense], "classifier.out_proj", hidden)
            }
        },
        Task::TokenClassification => {
            build.idle_pooler("pooler.dense", hidden)?;
            build.token_head(Vec::new(), "classifier", hidden)
        }
        Task::QuestionAnswering => {
            build.idle_pooler("pooler.dense", hidden)?;
            build.span_head(Vec::new(), "qa_outputs", hidden)
        }
        Task::MaskedLm => {
            build.idle_pooler("pooler.dense", hidden)?;
            // Only BERT asks for its own non-linearity here; the others have written GELU down.
            let (dense, norm, activation, decoder, biases): (_, _, _, _, &[&str]) = match dialect.kind {
                Kind::Bert => (
                    "cls.predictions.transform.dense",
                    "cls.predictions.transform.LayerNorm",
                    activation,
                    "cls.predictions.decoder",
                    &["cls.predictions.bias", "cls.predictions.decoder.bias"],
                ),
                Kind::Roberta => (
                    "lm_head.dense",
                    "lm_head.layer_norm",
                    ActivationFn::GeluErf,
                    "lm_head.decoder",
                    &["lm_head.bias", "lm_head.decoder.bias"],
                ),
                Kind::Electra => (
                    "generator_predictions.dense",
                    "generator_predictions.LayerNorm",
                    ActivationFn::GeluErf,
                    "generator_lm_head",
                    &["generator_lm_head.bias"],
                ),
            };
            let transform = build.transform_step(dense, width, hidden, activation, norm)?;
            build.masked_lm_head(vec![transform], decoder, biases, words)
        }
    }
}
