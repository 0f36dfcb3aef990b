//! Tasks: original and quantised model on the same batches, their metrics, and the standard error of each loss.

mod choices;
mod classification;
mod fidelity;
mod forward;
mod images;
mod labels;
mod masked_lm;
pub mod names;
mod next_tokens;
mod ranking;
mod run;
mod span;
mod sts;
mod tokens;
mod windows;

use std::ops::ControlFlow;

use thiserror::Error;
use zeropoint_calibrator::dataset::{
    Choices, DatasetError, Origin, Question, Ranking, Sample, TaggedWords, fingerprint,
};
use zeropoint_calibrator::{Inputs, encode_texts};
use zeropoint_core::Fingerprint;
use zeropoint_models::{
    ActivationFn, HeadOutput, ModelError, ModelInput, ModelSpec, Problem, TokenSequence, Tokenizer,
};

pub use fidelity::{loss_unit, output_loss};
pub use forward::{BatchOutputs, Forward};
pub use images::ImageTask;
pub use ranking::RankingPrompts;
pub use run::batch_plan;
pub use windows::{Counting, Windows};

use crate::report::Metric;
use run::Run;

/// What is measured, and on what.
#[derive(Debug, Clone)]
pub enum TaskData {
    /// The score of pairs, by the cosine of two sentence vectors or by a cross-encoder, against a graded similarity.
    Sts(Vec<Sample>),
    /// The labels of texts, or their number, against the gold ones.
    Classification(Vec<Sample>),
    /// Agreement with the original model; needs no gold.
    Fidelity(Vec<Sample>),
    /// The label of each word against the gold one.
    TokenClassification(Vec<TaggedWords>),
    /// Spans of a text against the gold answers.
    QuestionAnswering(Vec<Question>),
    /// Hidden tokens of texts.
    MaskedLm(Vec<Sample>),
    /// The order of documents for a query, by cosine or by a cross-encoder.
    Reranking(Vec<Ranking>, RankingPrompts),
    /// Windows of a text, token by token.
    Perplexity(Windows),
    /// Continuations of a text, of which the likeliest is chosen.
    MultipleChoice(Vec<Choices>),
    /// Agreement with the original on windows of a text, token by token.
    WindowFidelity(Windows),
    /// A task of a model that takes images.
    Images(ImageTask, Vec<Sample>),
}

/// A task and its data.
#[derive(Debug, Clone)]
pub struct Task {
    /// As the config names it.
    pub name: String,
    /// What is measured, on at least one sample.
    pub data: TaskData,
}

/// How tasks are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Sequences in a batch.
    pub batch_size: usize,
    /// Bootstrap resamples for a standard error.
    pub resamples: usize,
    /// Seed of the bootstrap, and of the tokens that a masked-lm task hides.
    pub seed: u64,
}

/// Why a task cannot be run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The model has another head than the task needs.
    #[error("task `{task}`: {kind} needs {needs}, and {architecture} as loaded gives {gives}")]
    Head {
        /// The task.
        task: String,
        /// Its kind.
        kind: &'static str,
        /// What it needs.
        needs: &'static str,
        /// The architecture.
        architecture: String,
        /// What the model gives.
        gives: &'static str,
    },
    /// A label that the model does not have.
    #[error("{}: label `{label}` is not one of the model's {count} labels: {known}", place(.origin, *.line))]
    Label {
        /// The task.
        task: String,
        /// The file.
        origin: String,
        /// Its line.
        line: usize,
        /// The label.
        label: String,
        /// How many the model has.
        count: usize,
        /// The first of them.
        known: String,
    },
    /// A gold answer that must be a number and is none.
    #[error(
        "{origin}:{line}: the model gives a number, and the sample has {found} to compare it with; a `score`, or a `label` \
         that is a number, is expected"
    )]
    Number {
        /// The task.
        task: String,
        /// The file.
        origin: String,
        /// Its line.
        line: usize,
        /// What is there.
        found: String,
    },
    /// A window that the model cannot take.
    #[error(
        "task `{task}`: windows of {window} tokens are asked for, and the model takes 2 to {most}; set `window`"
    )]
    Window {
        /// The task.
        task: String,
        /// Tokens of a window.
        window: usize,
        /// What the model takes.
        most: usize,
    },
    /// A text that has no token to tell from those before it.
    #[error("task `{task}`: {origin} has fewer than two tokens; a text is expected")]
    ShortText {
        /// The task.
        task: String,
        /// The file.
        origin: String,
    },
    /// A text that llama.cpp would not measure.
    #[error(
        "task `{task}`: {origin} has {tokens} tokens, and llama.cpp's counting needs two windows of {window}; give a longer \
         text or a smaller `window`"
    )]
    FewWindows {
        /// The task.
        task: String,
        /// The file.
        origin: String,
        /// Its tokens.
        tokens: usize,
        /// Tokens of a window.
        window: usize,
    },
    /// A sample that the model cannot take.
    #[error("{origin}:{line}: {reason}")]
    Sample {
        /// The task.
        task: String,
        /// The file.
        origin: String,
        /// Its line.
        line: usize,
        /// What and why.
        reason: String,
    },
    /// The data.
    #[error("task `{task}`: {source}")]
    Data {
        /// The task.
        task: String,
        /// What is wrong.
        source: DatasetError,
    },
    /// A model gave NaN or infinity.
    #[error("task `{task}`: the {which} model gave an output that is not finite for sample {sample}")]
    NotFinite {
        /// The task.
        task: String,
        /// `original` or `quantized`.
        which: &'static str,
        /// Index of the sequence.
        sample: usize,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// Running a model.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// `file:line`; of an image in a folder the file alone.
fn place(origin: &str, line: usize) -> String {
    if line == 0 { origin.to_owned() } else { format!("{origin}:{line}") }
}

impl TaskError {
    fn sample(task: &str, origin: &Origin, error: &ModelError) -> Self {
        let (origin, line) = (origin.file.to_string(), origin.line);
        Self::Sample { task: task.to_owned(), origin, line, reason: error.to_string() }
    }
}

impl TaskData {
    /// How many samples there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Sts(samples)
            | Self::Classification(samples)
            | Self::Fidelity(samples)
            | Self::MaskedLm(samples)
            | Self::Images(_, samples) => samples.len(),
            Self::TokenClassification(sentences) => sentences.len(),
            Self::QuestionAnswering(questions) => questions.len(),
            Self::Reranking(rankings, _) => rankings.len(),
            Self::MultipleChoice(questions) => questions.len(),
            Self::Perplexity(windows) | Self::WindowFidelity(windows) => windows.tokens.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Identifies what is measured on: the samples in their order, prompts and the content of images included; files and
    /// lines do not count.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut builder = Fingerprint::builder("task-data");
        builder.field("kind", self.kind().0);
        // As Rust writes lists of strings, no two different ones are written alike.
        match self {
            Self::Sts(samples)
            | Self::Classification(samples)
            | Self::Fidelity(samples)
            | Self::MaskedLm(samples) => {
                builder.field("samples", fingerprint(samples).to_string());
            }
            Self::Images(task, samples) => {
                // Images count by their content, wherever they lie.
                let placeless: Vec<Sample> =
                    samples.iter().map(|sample| Sample { image: None, ..sample.clone() }).collect();
                builder.field("samples", fingerprint(&placeless).to_string());
                task.fingerprint(samples, &mut builder);
            }
            Self::TokenClassification(sentences) => {
                for TaggedWords { words, tags, .. } in sentences {
                    builder.field("row", format!("{words:?} {tags:?}"));
                }
            }
            Self::QuestionAnswering(questions) => {
                for Question { question, context, answers, .. } in questions {
                    builder.field("row", format!("{question:?} {context:?} {answers:?}"));
                }
            }
            Self::MultipleChoice(questions) => {
                for Choices { context, choices, answer, .. } in questions {
                    builder.field("row", format!("{context:?} {choices:?} {answer}"));
                }
            }
            Self::Perplexity(windows) | Self::WindowFidelity(windows) => {
                builder.field("counting", format!("{:?}", windows.counting));
                for window in &windows.tokens {
                    builder.field("row", format!("{window:?}"));
                }
            }
            Self::Reranking(rankings, prompts) => {
                builder.field("prompts", format!("{prompts:?}"));
                for Ranking { query, positives, negatives, .. } in rankings {
                    builder.field("row", format!("{query:?} {positives:?} {negatives:?}"));
                }
            }
        }
        builder.finish()
    }

    /// The kind as configs name it, and the outputs it needs.
    fn kind(&self) -> (&'static str, &'static str) {
        match self {
            Self::Sts(_) => {
                ("sts", "sentence vectors (task `embedding`) or one score for a pair (a cross-encoder)")
            }
            Self::Classification(_) => ("classification", "a classifier (task `classification`)"),
            Self::Fidelity(_) => ("fidelity", "any output"),
            Self::TokenClassification(_) => {
                ("token-classification", "a label for each token (task `token-classification`)")
            }
            Self::QuestionAnswering(_) => {
                ("question-answering", "the span of an answer (task `question-answering`)")
            }
            Self::MaskedLm(_) => ("masked-lm", "a masked language model (task `masked-lm`)"),
            Self::Perplexity(_) => ("perplexity", "a decoder language model (task `causal-lm`)"),
            Self::MultipleChoice(_) => ("multiple-choice", "a decoder language model (task `causal-lm`)"),
            Self::WindowFidelity(_) => {
                ("fidelity over windows", "a decoder language model (task `causal-lm`)")
            }
            Self::Images(task, _) => task.kind(),
            Self::Reranking(..) => {
                ("reranking", "sentence vectors (task `embedding`) or one score for a pair (a cross-encoder)")
            }
        }
    }
}

impl Task {
    /// The names of the metrics that the task has on this model, or why it has none.
    pub fn metrics(&self, model: &ModelSpec) -> Result<&'static [&'static str], TaskError> {
        let head = &model.head().output;
        let wrong_head = |gives| {
            let (kind, needs) = self.data.kind();
            let (task, architecture) = (self.name.clone(), model.architecture.clone());
            Err(TaskError::Head { task, kind, needs, architecture, gives })
        };
        match (&self.data, head) {
            (TaskData::Images(task, samples), head) => match task.metrics(samples, model) {
                Some(metrics) => Ok(metrics),
                None if model.image().is_some() && matches!(head, HeadOutput::Embedding { .. }) => {
                    wrong_head("vectors of images")
                }
                None => wrong_head(gives(head)),
            },
            _ if model.text().is_none() && matches!(head, HeadOutput::Embedding { .. }) => {
                wrong_head("vectors of images")
            }
            _ if model.text().is_none() => wrong_head("class logits of images"),
            (TaskData::Sts(_), head) if scores_pairs(head) => Ok(sts::METRICS),
            (TaskData::Reranking(..), head) if scores_pairs(head) => Ok(ranking::METRICS),
            (TaskData::Classification(_), HeadOutput::Classification { labels, problem })
                if *problem != Problem::Regression || labels.len() == 1 =>
            {
                Ok(classification::metrics(*problem))
            }
            (TaskData::TokenClassification(_), HeadOutput::TokenClassification { labels }) => {
                Ok(tokens::metrics(labels))
            }
            (TaskData::QuestionAnswering(_), HeadOutput::QuestionAnswering) => Ok(span::METRICS),
            (TaskData::MaskedLm(_), HeadOutput::MaskedLm) => Ok(masked_lm::METRICS),
            (TaskData::Perplexity(_), HeadOutput::CausalLm) => Ok(next_tokens::PERPLEXITY),
            (TaskData::MultipleChoice(_), HeadOutput::CausalLm) => Ok(choices::METRICS),
            (TaskData::WindowFidelity(_), HeadOutput::CausalLm) => Ok(next_tokens::FIDELITY),
            (TaskData::Fidelity(_), head) => Ok(fidelity::metrics(head)),
            (_, head) => wrong_head(gives(head)),
        }
    }

    /// Checks that the task fits the model, and that its data hold what it needs; before any long work.
    pub fn check(&self, model: &ModelSpec, inputs: &Inputs) -> Result<(), TaskError> {
        self.metrics(model)?;
        let data = |source| TaskError::Data { task: self.name.clone(), source };
        match (&self.data, &model.head().output) {
            (TaskData::Sts(samples), _) => sts::check(samples).map_err(data),
            (TaskData::Classification(samples), HeadOutput::Classification { labels, problem }) => {
                classification::gold(&self.name, samples, labels, *problem).map(drop)
            }
            (TaskData::TokenClassification(sentences), HeadOutput::TokenClassification { labels }) => {
                tokens::gold(&self.name, sentences, labels).map(drop)
            }
            (TaskData::QuestionAnswering(questions), _) => {
                span::windows(&self.name, questions, inputs.tokenizer()?).map(drop)
            }
            (TaskData::MultipleChoice(questions), _) => {
                choices::continued(&self.name, questions, inputs.tokenizer()?).map(drop)
            }
            (TaskData::MaskedLm(_), _) => Ok(inputs.tokenizer()?.mask_token().map(drop)?),
            (TaskData::Images(task, samples), head) => task.check(&self.name, samples, head),
            _ => Ok(()),
        }
    }

    /// Whether every row of the original's logits is compared with the quantised model's, so that it pays to keep them between
    /// evaluations.
    pub fn compares_next_tokens(&self, model: &ModelSpec) -> bool {
        let is_of_tokens = matches!(
            self.data,
            TaskData::Perplexity(_) | TaskData::WindowFidelity(_) | TaskData::Fidelity(_)
        );
        is_of_tokens && model.head().output == HeadOutput::CausalLm
    }

    /// The rows in the residual stream of what goes through both models, for an estimate of the work.
    pub fn lengths(&self, model: &ModelSpec, inputs: &Inputs) -> Result<Vec<usize>, TaskError> {
        if let TaskData::Images(_, samples) = &self.data {
            let rows = model.image().map_or(1, |(_, image)| image.rows());
            let texts: Vec<&Sample> = samples.iter().filter(|sample| sample.image.is_none()).collect();
            let images = (texts.len()..samples.len()).map(|_| rows);
            let texts = inputs.encode(&texts)?;
            return Ok(texts.iter().map(ModelInput::len).chain(images).collect());
        }
        Ok(self.sequences(model, inputs.tokenizer()?)?.iter().map(TokenSequence::len).collect())
    }

    /// The tokens of each sequence that goes through both models; none of images.
    ///
    /// Fails where a sample cannot be tokenised.
    pub fn token_ids(&self, model: &ModelSpec, inputs: &Inputs) -> Result<Vec<Vec<u32>>, TaskError> {
        let sequences = self.sequences(model, inputs.tokenizer()?)?;
        Ok(sequences.into_iter().map(|sequence| sequence.ids).collect())
    }

    fn sequences(&self, model: &ModelSpec, tokenizer: &Tokenizer) -> Result<Vec<TokenSequence>, TaskError> {
        let encoder = model.head().is_embedding();
        Ok(match &self.data {
            TaskData::Sts(samples) => sts::sequences(samples, encoder, tokenizer)?,
            TaskData::Classification(samples) | TaskData::Fidelity(samples) => {
                encode_texts(tokenizer, &samples.iter().collect::<Vec<_>>())?
            }
            TaskData::TokenClassification(sentences) => {
                tokens::pieces(sentences, tokenizer)?.into_iter().map(|piece| piece.sequence).collect()
            }
            TaskData::QuestionAnswering(questions) => {
                let windows = span::windows(&self.name, questions, tokenizer)?;
                windows.into_iter().flatten().map(|window| window.sequence).collect()
            }
            TaskData::MaskedLm(samples) => {
                masked_lm::mask(samples, tokenizer, 0)?.into_iter().map(|text| text.sequence).collect()
            }
            TaskData::Reranking(rankings, prompts) => {
                ranking::sequences(rankings, prompts, encoder, tokenizer)?
            }
            TaskData::Perplexity(windows) | TaskData::WindowFidelity(windows) => windows.sequences(),
            TaskData::MultipleChoice(questions) => {
                let continued = choices::continued(&self.name, questions, tokenizer)?;
                continued.into_iter().map(|choice| choice.sequence).collect()
            }
            TaskData::Images(..) => Vec::new(),
        })
    }
}

/// Whether pairs of texts get a score: from two vectors, or from one output.
fn scores_pairs(head: &HeadOutput) -> bool {
    match head {
        HeadOutput::Embedding { .. } => true,
        HeadOutput::Classification { labels, .. } => labels.len() == 1,
        _ => false,
    }
}

/// What a head gives, in words.
fn gives(output: &HeadOutput) -> &'static str {
    match output {
        HeadOutput::Embedding { .. } => "sentence vectors",
        HeadOutput::Classification { labels, .. } if labels.len() == 1 => "one score",
        HeadOutput::Classification { problem: Problem::Regression, .. } => "several numbers",
        HeadOutput::Classification { .. } => "class logits",
        HeadOutput::TokenClassification { .. } => "class logits for each token",
        HeadOutput::MaskedLm => "logits over the vocabulary for each token",
        HeadOutput::CausalLm => "logits over the vocabulary for each next token",
        HeadOutput::QuestionAnswering => "the logits of an answer's start and end",
    }
}

/// The two models under comparison, and what they share.
pub struct Models<'a> {
    /// The float original.
    pub original: &'a dyn Forward,
    /// The quantised one.
    pub quantized: &'a dyn Forward,
    /// Texts to tokens and images to pixels.
    pub inputs: &'a Inputs,
    /// Between the logit of a cross-encoder and its score.
    pub activation: ActivationFn,
}

/// Runs a task on both models; the metrics say what data they are of. `progress` is called with sequences done and in all
/// after each batch, and may stop it.
pub fn run_task(
    task: &Task,
    models: &Models<'_>,
    options: Options,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Vec<Metric>, TaskError> {
    let spec = models.original.spec();
    task.check(spec, models.inputs)?;
    let mut run = Run { task: &task.name, models, options, progress };
    let metrics = match (&task.data, &spec.head().output) {
        (TaskData::Sts(samples), _) => sts::measure(&mut run, samples),
        (TaskData::Classification(samples), HeadOutput::Classification { labels, problem }) => {
            classification::measure(&mut run, samples, labels, *problem)
        }
        (TaskData::TokenClassification(sentences), _) => {
            tokens::measure(&mut run, sentences, spec.head().labels())
        }
        (TaskData::QuestionAnswering(questions), _) => span::measure(&mut run, questions),
        (TaskData::MaskedLm(samples), _) => masked_lm::measure(&mut run, samples),
        (TaskData::Perplexity(windows), _) => next_tokens::perplexity(&mut run, windows),
        (TaskData::MultipleChoice(questions), _) => choices::measure(&mut run, questions),
        (TaskData::WindowFidelity(windows), _) => {
            next_tokens::fidelity(&mut run, &windows.sequences(), windows.counting)
        }
        (TaskData::Images(task, samples), _) => images::measure(&mut run, task, samples),
        (TaskData::Reranking(rankings, prompts), _) => ranking::measure(&mut run, rankings, prompts),
        (TaskData::Fidelity(_) | TaskData::Classification(_), _) => {
            fidelity::measure(&mut run, &task.sequences(spec, models.inputs.tokenizer()?)?)
        }
    }?;
    let data = task.data.fingerprint();
    Ok(metrics.into_iter().map(|metric| Metric { data: Some(data), ..metric }).collect())
}
