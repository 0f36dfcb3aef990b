//! Texts and images through the INT8 runtime: one record each, in the order of the file, whatever the model's head.

use std::ops::Range;
use std::path::Path;

use serde::Serialize;
use zeropoint_calibrator::dataset::{
    self, DatasetError, FieldRef, Fields, Format, Problem as DataProblem, ReadOptions, Sample,
};
use zeropoint_calibrator::{BatchPlan, Inputs};
use zeropoint_evaluator::decode::{QuestionWindow, WindowAnswer, best_window};
use zeropoint_evaluator::metrics::logits::{largest, sigmoid, softmax};
use zeropoint_models::{
    ActivationFn, HeadOutput, MaskToken, ModelError, ModelInput, PackedBatch, Problem, PromptChoice, Task,
    TextPart, TokenSequence, apply_activation,
};
use zeropoint_runtime::QuantizedModel;

use crate::modality::{fit_samples, place};
use crate::{Cancel, PipelineError};

/// Batches whose records are held before they are passed on: enough for batches of like length, few enough to hold.
const BATCHES_HELD: usize = 16;
/// Fillings given for a mask.
const CANDIDATES: usize = 5;

/// How texts are encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Sequences in a batch, at least 1.
    pub batch_size: usize,
    /// The prompt before each text, for sentence encoders.
    pub prompt: PromptChoice,
}

/// What the model says of one text or image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record {
    /// The text, or the first of a pair; of a question with its context, the question.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The file of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The second text of a pair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_b: Option<String>,
    /// The rest depends on the head.
    #[serde(flatten)]
    pub output: Encoded,
}

/// What the model says, by its head.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Encoded {
    /// Of a sentence encoder.
    Embedding {
        /// The sentence vector.
        embedding: Vec<f32>,
    },
    /// Of a classifier whose labels exclude each other.
    Label {
        /// One a label.
        logits: Vec<f32>,
        /// The likeliest.
        label: String,
        /// Its softmax probability.
        score: f64,
    },
    /// Of a classifier whose labels go together.
    Labels {
        /// One a label.
        logits: Vec<f32>,
        /// The labels with a probability above one half, likeliest first.
        labels: Vec<String>,
        /// The sigmoid probability of each label, in the model's order.
        scores: Vec<f64>,
    },
    /// Of a model of one number, such as a cross-encoder.
    Score {
        /// The logit, in a list as of other classifiers.
        logits: Vec<f32>,
        /// Behind the model's score activation.
        score: f32,
    },
    /// Of a model of several numbers.
    Numbers {
        /// The numbers.
        logits: Vec<f32>,
    },
    /// Of a token classifier.
    Tokens {
        /// Every token that is not special.
        tokens: Vec<LabelledToken>,
    },
    /// Of a question with its context.
    Answer {
        /// The text of the answer, from the context.
        answer: String,
        /// The probability of its start times that of its end, over the context in its window.
        score: f64,
        /// Its first character in the context, from 0.
        start: usize,
        /// The character behind its last.
        end: usize,
    },
    /// Of a masked language model.
    Masks {
        /// The fillings of each mask, likeliest first.
        masks: Vec<Vec<Filling>>,
    },
}

/// A token with its label.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LabelledToken {
    /// Its part of the text.
    pub token: String,
    /// The likeliest label.
    pub label: String,
    /// Its softmax probability.
    pub score: f64,
    /// Its first character in the text, from 0.
    pub start: usize,
    /// The character behind its last.
    pub end: usize,
}

/// A token in the place of a mask.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Filling {
    /// The token as text.
    pub token: String,
    /// Its number in the vocabulary, since two tokens may have the same text.
    pub id: usize,
    /// Its softmax probability over the vocabulary.
    pub score: f64,
}

/// Reads texts and images for [`encode`], as the model takes them. For question answering a row may also name its texts `question` and `context`.
pub fn read_texts(path: &Path, model: &QuantizedModel) -> Result<Vec<Sample>, PipelineError> {
    // The first row names the columns, as everywhere else: taken for a text it would be one more output.
    let format = match Format::from_extension(path) {
        Some(Format::Csv { header: None, delimiter }) => Some(Format::Csv { header: Some(true), delimiter }),
        other => other,
    };
    let read = dataset::read(path, &ReadOptions { format, ..ReadOptions::default() });
    let is_missing = |error: &DatasetError| matches!(error.problem, DataProblem::MissingField { .. });
    let spec = model.directory().spec();
    let samples = match (read, &spec.head().output) {
        (Err(error), HeadOutput::QuestionAnswering) if is_missing(&error) => {
            let fields = Fields {
                text_a: FieldRef::from("question"),
                text_b: FieldRef::from("context"),
                ..Fields::default()
            };
            dataset::read(path, &ReadOptions { format, fields })?
        }
        (read, _) => read?,
    };
    fit_samples(samples, spec)
}

/// Encodes texts and passes on a record for each, in their order, as soon as those before it are done; outputs are not
/// held for longer. `each` may stop the work with an error.
pub fn encode(
    model: &QuantizedModel,
    samples: &[Sample],
    options: &EncodeOptions,
    cancel: &Cancel,
    each: &mut dyn FnMut(Record) -> Result<(), PipelineError>,
) -> Result<(), PipelineError> {
    let spec = model.directory().spec();
    if spec.head().output == HeadOutput::CausalLm {
        let reason = format!(
            "{} continues texts, and what it gives is no output of a text; `zeropoint generate` runs it, `zeropoint evaluate` measures it",
            spec.architecture
        );
        return Err(ModelError::Sample { reason }.into());
    }
    let encoder = Encoder::new(model, options)?;
    // What a text lacks is said before the first is encoded.
    for sample in samples {
        encoder.check(sample)?;
    }
    for samples in samples.chunks(options.batch_size.max(1) * BATCHES_HELD) {
        for record in encoder.records(samples, options.batch_size, cancel)? {
            each(record)?;
        }
    }
    Ok(())
}

/// All samples in batches of like length, and their rows.
pub(crate) fn batches(
    model: &QuantizedModel,
    samples: &[Sample],
    batch_size: usize,
) -> Result<(Vec<PackedBatch>, usize), PipelineError> {
    let options = EncodeOptions { batch_size, prompt: PromptChoice::ModelDefault };
    let encoder = Encoder::new(model, &options)?;
    let mut inputs = Vec::with_capacity(samples.len());
    for (i, sample) in samples.iter().enumerate() {
        encoder.check(sample)?;
        inputs.extend(encoder.located_pieces(i, sample)?.into_iter().map(|piece| piece.input));
    }
    let inputs: Vec<&ModelInput> = inputs.iter().collect();
    let spec = model.directory().spec();
    let rows = inputs.iter().map(|input| input.rows(spec)).sum();
    let plan = BatchPlan::new(&inputs, batch_size);
    let batches = plan.batches().iter().map(|indices| PackedBatch::new(indices.iter().map(|&i| inputs[i])));
    Ok((batches.collect::<Result<_, _>>()?, rows))
}

/// A model with what is needed to read its outputs.
pub(crate) struct Encoder<'a> {
    model: &'a QuantizedModel,
    inputs: Inputs,
    prompt: Option<String>,
    activation: ActivationFn,
    mask: Option<MaskToken>,
}

/// A sequence of a sample, and what its rows are of.
struct Piece {
    sample: usize,
    input: ModelInput,
    /// Of a question, the window; of labelled tokens and masks, rows with their places.
    rows: Rows,
}

enum Rows {
    /// One row of the whole.
    Whole,
    /// Row and bytes of the text of each token.
    Tokens(Vec<(usize, Range<usize>)>),
    /// Rows of masks.
    Masks(Vec<usize>),
    Window(QuestionWindow),
}

/// What a piece's output comes to.
enum Part {
    Values(Vec<f32>),
    Tokens(Vec<LabelledToken>),
    Masks(Vec<Vec<Filling>>),
    Answer(WindowAnswer, f64),
}

impl<'a> Encoder<'a> {
    pub(crate) fn new(model: &'a QuantizedModel, options: &EncodeOptions) -> Result<Self, PipelineError> {
        let directory = model.directory();
        let inputs = Inputs::of(directory, None)?;
        let is_masked_lm = directory.spec().head().task() == Task::MaskedLm;
        Ok(Self {
            model,
            prompt: directory.prompt(&options.prompt)?,
            activation: directory.score_activation()?,
            mask: is_masked_lm.then(|| inputs.tokenizer()?.mask_token()).transpose()?,
            inputs,
        })
    }

    fn head(&self) -> &HeadOutput {
        &self.model.directory().spec().head().output
    }

    fn check(&self, sample: &Sample) -> Result<(), PipelineError> {
        let refused = |what: String| {
            let reason = format!("{}: {what}", place(sample));
            Err(ModelError::Sample { reason }.into())
        };
        match (self.head(), &sample.text_b, &self.mask) {
            (HeadOutput::Embedding { .. }, Some(_), _) => {
                refused("a pair of texts; a sentence encoder takes one text a line".to_owned())
            }
            (HeadOutput::QuestionAnswering, None, _) => refused(
                "a text alone; question answering takes a question with its context, `question` and `context` or \
                 `text_a` and `text_b`"
                    .to_owned(),
            ),
            (HeadOutput::MaskedLm, text_b, Some(mask))
                if !sample.text_a.contains(&mask.text)
                    && !text_b.as_ref().is_some_and(|text| text.contains(&mask.text)) =>
            {
                refused(format!("the text holds no `{}` to fill in", mask.text))
            }
            _ => Ok(()),
        }
    }

    /// The records of some samples, in their order.
    pub(crate) fn records(
        &self,
        samples: &[Sample],
        batch_size: usize,
        cancel: &Cancel,
    ) -> Result<Vec<Record>, PipelineError> {
        let mut pieces = Vec::with_capacity(samples.len());
        for (i, sample) in samples.iter().enumerate() {
            pieces.extend(self.located_pieces(i, sample)?);
        }
        let all: Vec<&ModelInput> = pieces.iter().map(|piece| &piece.input).collect();
        let mut parts: Vec<Option<Part>> = pieces.iter().map(|_| None).collect();
        for indices in BatchPlan::new(&all, batch_size).batches() {
            if cancel.is_requested() {
                return Err(PipelineError::Cancelled);
            }
            let batch = PackedBatch::new(indices.iter().map(|&i| all[i]))?;
            let outputs = self.model.forward(&batch)?;
            for (&i, values) in indices.iter().zip(outputs.samples()) {
                let sample = &samples[pieces[i].sample];
                if values.iter().any(|value| !value.is_finite()) {
                    let reason = format!("{}: the model's output is not finite", place(sample));
                    return Err(ModelError::Sample { reason }.into());
                }
                parts[i] = Some(self.part(&pieces[i], sample, values, outputs.columns)?);
            }
        }
        let mut of_samples: Vec<Vec<Part>> = samples.iter().map(|_| Vec::new()).collect();
        for (piece, part) in pieces.iter().zip(parts) {
            of_samples[piece.sample].extend(part);
        }
        Ok(samples.iter().zip(of_samples).map(|(sample, parts)| self.record(sample, parts)).collect())
    }

    /// As [`Encoder::pieces`], with the sample's place in an error.
    fn located_pieces(&self, index: usize, sample: &Sample) -> Result<Vec<Piece>, PipelineError> {
        self.pieces(index, sample).map_err(|error| {
            // An image's own file is named already.
            let reason = match sample.image {
                Some(_) => error.to_string(),
                None => format!("{}: {error}", place(sample)),
            };
            ModelError::Sample { reason }.into()
        })
    }

    fn pieces(&self, sample: usize, texts: &Sample) -> Result<Vec<Piece>, ModelError> {
        let (text, pair) = (texts.text_a.as_str(), texts.text_b.as_deref());
        if texts.image.is_some() {
            let images = self.inputs.encode(&[texts])?.into_iter();
            return Ok(images.map(|input| Piece { sample, input, rows: Rows::Whole }).collect());
        }
        let tokenizer = self.inputs.tokenizer()?;
        let piece = |sequence: TokenSequence, rows| Piece { sample, input: sequence.into(), rows };
        Ok(match self.head() {
            HeadOutput::QuestionAnswering => {
                let windows = QuestionWindow::all(tokenizer, text, pair.unwrap_or_default())?;
                windows.into_iter().map(|w| piece(w.sequence.clone(), Rows::Window(w))).collect()
            }
            HeadOutput::TokenClassification { .. } => {
                let tokens = tokenizer.align(text, pair)?;
                let room = tokenizer.max_length().saturating_sub(tokens.around());
                // Only the first text is labelled; of a pair too long for the model the second is cut.
                if pair.is_some() {
                    if tokens.around() > tokenizer.max_length() {
                        let reason = format!(
                            "the first text of the pair takes {} tokens with specials, and the model takes {}",
                            tokens.around(),
                            tokenizer.max_length()
                        );
                        return Err(ModelError::Sample { reason });
                    }
                    let first = tokens.part(TextPart::First);
                    let last = tokens.last_part();
                    let kept = last.start..last.end.min(last.start + room);
                    let rows = first.map(|at| (at, tokens.spans[at].clone())).collect();
                    return Ok(vec![piece(tokens.window(&kept), Rows::Tokens(rows))]);
                }
                let windows = tokens.split(room, |at| tokens.words[at]);
                let before = tokens.last_part().start;
                let rows = |kept: &Range<usize>| {
                    kept.clone().map(|at| (before + at - kept.start, tokens.spans[at].clone())).collect()
                };
                windows
                    .into_iter()
                    .map(|kept| piece(tokens.window(&kept), Rows::Tokens(rows(&kept))))
                    .collect()
            }
            HeadOutput::MaskedLm => {
                let sequence = tokenizer.encode(text, pair)?;
                let mask = self.mask.as_ref().map(|mask| mask.id);
                let rows: Vec<usize> =
                    (0..sequence.len()).filter(|&at| Some(sequence.ids[at]) == mask).collect();
                if rows.is_empty() {
                    let reason = format!(
                        "every mask lies behind the {} tokens that the model takes",
                        tokenizer.max_length()
                    );
                    return Err(ModelError::Sample { reason });
                }
                vec![piece(sequence, Rows::Masks(rows))]
            }
            HeadOutput::Embedding { .. } | HeadOutput::Classification { .. } | HeadOutput::CausalLm => {
                let mut text = texts.text();
                text.prompt = self.prompt.as_deref();
                vec![piece(tokenizer.encode_text(text)?, Rows::Whole)]
            }
        })
    }

    fn part(
        &self,
        piece: &Piece,
        sample: &Sample,
        values: &[f32],
        columns: usize,
    ) -> Result<Part, ModelError> {
        let row = |at: usize| &values[at * columns..(at + 1) * columns];
        Ok(match &piece.rows {
            Rows::Whole => Part::Values(values.to_vec()),
            Rows::Window(window) => {
                let answer = window.answer(values);
                let probability = |column: usize, at: usize| {
                    let context = window.first..window.first + window.spans.len();
                    let logits: Vec<f32> = context.clone().map(|token| values[2 * token + column]).collect();
                    softmax(&logits)[at - context.start]
                };
                let score = answer.span.map_or(0.0, |s| probability(0, s.start) * probability(1, s.end));
                Part::Answer(answer, score)
            }
            Rows::Tokens(rows) => {
                let labels = self.model.directory().spec().head().labels();
                let places = Characters::new(&sample.text_a);
                let token = |(at, bytes): &(usize, Range<usize>)| {
                    let best = largest(row(*at), 1)[0];
                    LabelledToken {
                        token: sample.text_a.get(bytes.clone()).unwrap_or_default().to_owned(),
                        label: labels[best].clone(),
                        score: softmax(row(*at))[best],
                        start: places.at(bytes.start),
                        end: places.at(bytes.end),
                    }
                };
                Part::Tokens(rows.iter().map(token).collect())
            }
            Rows::Masks(rows) => {
                let fillings = |&at: &usize| {
                    let scores = softmax(row(at));
                    let filling = |id: usize| {
                        Ok(Filling {
                            token: self.inputs.tokenizer()?.token_text(id as u32)?,
                            id,
                            score: scores[id],
                        })
                    };
                    largest(row(at), CANDIDATES)
                        .into_iter()
                        .map(filling)
                        .collect::<Result<Vec<_>, ModelError>>()
                };
                Part::Masks(rows.iter().map(fillings).collect::<Result<_, _>>()?)
            }
        })
    }

    fn record(&self, sample: &Sample, parts: Vec<Part>) -> Record {
        let (mut values, mut tokens, mut masks, mut answers) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            match part {
                Part::Values(all) => values = all,
                Part::Tokens(own) => tokens.extend(own),
                Part::Masks(own) => masks.extend(own),
                Part::Answer(answer, score) => answers.push((answer, score)),
            }
        }
        let output = match self.head() {
            HeadOutput::Embedding { .. } => Encoded::Embedding { embedding: values },
            HeadOutput::Classification { labels, problem } => self.classified(values, labels, *problem),
            HeadOutput::TokenClassification { .. } => Encoded::Tokens { tokens },
            HeadOutput::MaskedLm => Encoded::Masks { masks },
            HeadOutput::CausalLm => unreachable!("`encode` refuses decoders"),
            HeadOutput::QuestionAnswering => answered(sample, &answers),
        };
        // A question's context is where the answer comes from, not a part of it.
        let text_b = sample.text_b.clone().filter(|_| *self.head() != HeadOutput::QuestionAnswering);
        let (text, image) = match &sample.image {
            Some(image) => (None, Some(image.display().to_string())),
            None => (Some(sample.text_a.clone()), None),
        };
        Record { text, image, text_b, output }
    }

    fn classified(&self, logits: Vec<f32>, labels: &[String], problem: Problem) -> Encoded {
        if logits.len() == 1 {
            let mut score = [logits[0]];
            apply_activation(self.model.model().isa(), &mut score, self.activation);
            return Encoded::Score { score: score[0], logits };
        }
        match problem {
            Problem::Regression => Encoded::Numbers { logits },
            Problem::SingleLabel => {
                let best = largest(&logits, 1).first().copied().unwrap_or(0);
                Encoded::Label { label: labels[best].clone(), score: softmax(&logits)[best], logits }
            }
            Problem::MultiLabel => {
                let on = largest(&logits, logits.len()).into_iter().filter(|&label| logits[label] > 0.0);
                Encoded::Labels {
                    labels: on.map(|label| labels[label].clone()).collect(),
                    scores: logits.iter().map(|logit| sigmoid(*logit)).collect(),
                    logits,
                }
            }
        }
    }
}

fn answered(sample: &Sample, answers: &[(WindowAnswer, f64)]) -> Encoded {
    let windows: Vec<WindowAnswer> = answers.iter().map(|(answer, _)| answer.clone()).collect();
    let context = sample.text_b.as_deref().unwrap_or_default();
    let places = Characters::new(context);
    let (bytes, score) =
        best_window(&windows).map_or((0..0, 0.0), |(i, best)| (best.bytes.clone(), answers[i].1));
    Encoded::Answer {
        answer: context.get(bytes.clone()).unwrap_or_default().to_owned(),
        score,
        start: places.at(bytes.start),
        end: places.at(bytes.end),
    }
}

/// Bytes of a text to characters.
struct Characters(Vec<usize>);

impl Characters {
    fn new(text: &str) -> Self {
        Self(text.char_indices().map(|(at, _)| at).collect())
    }

    /// The number of the character that begins at a byte.
    fn at(&self, byte: usize) -> usize {
        self.0.partition_point(|start| *start < byte)
    }
}
