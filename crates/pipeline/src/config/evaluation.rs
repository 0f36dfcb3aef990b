//! `[evaluation]`: what the original and the quantised model are compared on, and how much may be lost.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeropoint_evaluator::tasks::names;

use super::calibration::{LARGEST_BATCH, LARGEST_SEED, MOST_SAMPLES};
use super::data::{DataSource, Use};
use super::error::{Problem, list, name_hint, not_blank, quoted, within};

/// Fewer resamples give no standard error worth reading.
const FEWEST_RESAMPLES: usize = 100;
const MOST_RESAMPLES: usize = 100_000;
const LONGEST_NAME: usize = 64;
const LONGEST_WINDOW: usize = 1 << 20;
/// Tokens of a window where nothing is said.
const DEFAULT_WINDOW: usize = 512;
/// Largest `max_drop` of a metric that is no fraction.
const LARGEST_RISE: f64 = 1e6;
/// The sentence that CLIP's authors use where nothing is known of a data set.
const PLAIN_TEMPLATE: &str = "a photo of a {label}.";
/// Where the label stands in a template.
const PLACE: &str = "{label}";

/// `[evaluation]`: what the original and the quantised model are compared on, and how much may be lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Evaluation {
    /// Texts in one forward.
    #[schemars(range(min = 1, max = LARGEST_BATCH))]
    pub batch_size: usize,
    /// Paired bootstrap resamples for the standard error of each loss.
    #[schemars(range(min = FEWEST_RESAMPLES, max = MOST_RESAMPLES))]
    pub bootstrap_resamples: usize,
    /// Draws the resamples.
    #[schemars(range(max = LARGEST_SEED))]
    pub seed: u64,
    /// What is measured. By default fidelity on the calibration texts, which needs no further data.
    pub tasks: Vec<Task>,
    /// The losses that a run must stay within.
    pub gate: Vec<Gate>,
}

/// `[[evaluation.tasks]]`: one thing that is measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "TaskKeys")]
pub struct Task {
    /// What is measured.
    pub kind: TaskKind,
    /// What reports and gates call it.
    pub name: String,
    /// The samples; `None` for fidelity on the calibration texts.
    pub data: Option<DataSource>,
    /// Use only this many samples, the first.
    pub limit: Option<usize>,
    /// The labels that a zero-shot task chooses from; `None` for those of the data.
    pub labels: Option<Vec<String>>,
    /// The sentences that a zero-shot task makes of each label.
    pub templates: Option<Vec<String>>,
    /// Tokens of a window of a text; `None` where the model has not been asked yet, or the task has no windows.
    pub window: Option<usize>,
    /// Tokens from the start of a window to that of the next.
    pub stride: Option<usize>,
    /// Use only this many windows, the first.
    pub windows: Option<usize>,
    /// Which tokens of a window count.
    pub counting: Option<Counting>,
}

/// Which tokens of a window are told from those before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Counting {
    /// Every one but the first.
    #[serde(rename = "every-token")]
    EveryToken,
    /// As llama.cpp's perplexity tool: windows without overlap, which begin with the token that the tokenizer puts before a
    /// text, if there is one, and of each the tokens of its second half but the first.
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
}

/// A task as it is written.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TaskKeys {
    /// What is measured.
    kind: TaskKind,
    /// What reports and gates call it, each task differently; by default its kind. Letters, digits, `-`, `_`, `.`.
    name: Option<String>,
    /// The samples: `text_a`, `text_b`, `score` for sts; `text`, `label` for classification; texts for fidelity and
    /// masked-lm, by default those of the calibration; rows of JSON lines for token-classification (`tokens`, `labels`),
    /// question-answering (`question`, `context`, `answers`), multiple-choice (`context`, `choices`, `answer`) and reranking
    /// (`query`, `positives`, `negatives`).
    data: Option<DataSource>,
    /// Use only this many samples, the first; by default all of `data`, and 1000 of the calibration data.
    #[schemars(range(min = 1, max = MOST_SAMPLES))]
    limit: Option<usize>,
    /// zero-shot only: the labels to choose from; by default those that occur in the data.
    labels: Option<Vec<String>>,
    /// zero-shot only: the sentences that are made of each label, with `{label}` in its place. Default:
    /// "a photo of a {label}.".
    templates: Option<Vec<String>>,
    /// perplexity, and fidelity over windows: tokens of a window, of which every one but the first is told from those before
    /// it. Default: 512, or what the model takes. A fidelity task with `window`, `stride`, `windows` or `counting` reads its
    /// data, a txt file, as one text.
    #[schemars(range(min = 2, max = LONGEST_WINDOW))]
    window: Option<usize>,
    /// perplexity, and fidelity over windows: tokens from the start of a window to that of the next. Default: `window`. Every
    /// token of a window counts, also where windows overlap.
    #[schemars(range(min = 1, max = LONGEST_WINDOW))]
    stride: Option<usize>,
    /// perplexity, and fidelity over windows: use only this many windows, the first; by default all.
    #[schemars(range(min = 1, max = MOST_SAMPLES))]
    windows: Option<usize>,
    /// perplexity, and fidelity over windows: which tokens of a window count. Default: "every-token".
    counting: Option<Counting>,
}

/// Samples of the calibration data that a task without data of its own takes, where it has no limit. The data may be a whole
/// training set of which calibration chooses a few.
const CALIBRATION_LIMIT: usize = 1000;

impl Task {
    /// How many samples it uses at most: its limit, if it has one, else a default where it reads the calibration data.
    pub(crate) fn most_samples(&self) -> Option<usize> {
        let has_limit = self.data.is_none() && !self.has_windows();
        self.limit.or(has_limit.then_some(CALIBRATION_LIMIT))
    }

    /// Whether it is measured on windows of one text.
    pub(crate) fn has_windows(&self) -> bool {
        let is_given = self.window.is_some()
            || self.stride.is_some()
            || self.windows.is_some()
            || self.counting.is_some();
        self.kind == TaskKind::Perplexity || (self.kind == TaskKind::Fidelity && is_given)
    }

    /// Fills in what the keys of windows leave open, for a model that takes so many tokens.
    pub(crate) fn settle_windows(&mut self, longest: usize) {
        if self.has_windows() {
            let window = *self.window.get_or_insert(DEFAULT_WINDOW.min(longest));
            self.stride.get_or_insert(window);
            self.counting.get_or_insert(Counting::EveryToken);
        }
    }
}

impl From<TaskKeys> for Task {
    fn from(keys: TaskKeys) -> Self {
        let TaskKeys { kind, name, data, limit, labels, templates, window, stride, windows, counting } = keys;
        let plain = (kind == TaskKind::ZeroShot).then(|| vec![PLAIN_TEMPLATE.to_owned()]);
        let name = name.unwrap_or_else(|| kind.to_string());
        let templates = templates.or(plain);
        Self { kind, name, data, limit, labels, templates, window, stride, windows, counting }
    }
}

/// What a task measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    /// Semantic textual similarity: the model's cosine or score of each pair against people's scores.
    Sts,
    /// The model's class, labels or number of each text against the gold ones.
    Classification,
    /// The model's label of each word against the gold one.
    TokenClassification,
    /// The model's span of each context against the answers that people gave.
    QuestionAnswering,
    /// How well the model tells hidden tokens; needs no gold answers.
    MaskedLm,
    /// Whether the model ranks the documents that answer a query above the others, by cosine or score.
    Reranking,
    /// How well a decoder tells each token of a text from those before it, and how near its distributions are to the
    /// original's.
    Perplexity,
    /// Which of several continuations of a text a decoder finds likeliest, against the right one.
    MultipleChoice,
    /// The quantised model's outputs against the original's; needs no gold answers.
    Fidelity,
    /// For a model of images and texts: the label whose sentence is nearest to each image against the gold one.
    ZeroShot,
}

/// `[[evaluation.gate]]`: a loss that a run must stay within.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// The name of a task.
    pub task: String,
    /// A metric of that task.
    pub metric: Metric,
    /// The largest allowed loss in the metric's own unit: 0.01 is one hundredth of a correlation, or one percent of an
    /// accuracy. For fidelity the loss is counted from 1. Of metrics that are better the lower they are it is the largest
    /// allowed rise, in nats or in the unit of the scores, and may be more than 1.
    #[schemars(range(min = 0, max = LARGEST_RISE))]
    pub max_drop: f64,
}

/// A metric. Most are fractions; higher is better where nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Rank correlation with gold scores; in fidelity, of the two models' scores.
    Spearman,
    /// Linear correlation with gold scores; in fidelity, of the two models' scores.
    Pearson,
    /// Mean absolute error of a model that gives a number; lower is better.
    MeanAbsoluteError,
    /// Share of texts, images, words, hidden tokens or questions that are told right.
    Accuracy,
    /// Share of questions whose right answer has the largest log-likelihood a byte.
    AccuracyNorm,
    /// Share of questions for which both models choose the same answer.
    ChoiceAgreement,
    /// Share of images whose gold class is among the five likeliest; of models with more than five classes.
    #[serde(rename = "top5_accuracy")]
    Top5Accuracy,
    /// F1 of a classification task, averaged over its classes with equal weight.
    #[serde(rename = "macro_f1")]
    MacroF1,
    /// F1 of a multi-label task over all its labels together.
    #[serde(rename = "micro_f1")]
    MicroF1,
    /// Share of texts whose set of labels, or of questions whose answer, is exactly right.
    ExactMatch,
    /// F1 of the words of an answer.
    #[serde(rename = "f1")]
    F1,
    /// F1 of whole entities, as conlleval counts them.
    #[serde(rename = "entity_f1")]
    EntityF1,
    /// Mean negative log-likelihood of hidden tokens in nats; lower is better.
    Loss,
    /// Exponential of the mean negative log-likelihood of a token; lower is better.
    Perplexity,
    /// Mean reciprocal rank of the first document that answers a query.
    Mrr,
    /// Normalised discounted cumulative gain of the first ten documents.
    #[serde(rename = "ndcg_at_10")]
    NdcgAt10,
    /// Mean cosine of the two models' outputs.
    CosineMean,
    /// Smallest cosine of the two models' outputs.
    CosineMin,
    /// First percentile of the cosine of the two models' outputs.
    #[serde(rename = "cosine_p01")]
    CosineP01,
    /// Share of texts or tokens for which the two models' largest output is the same.
    #[serde(rename = "top1_agreement")]
    Top1Agreement,
    /// Mean Kullback-Leibler divergence of the two models' probabilities in nats; lower is better.
    KlMean,
    /// 99th percentile of a token's Kullback-Leibler divergence in nats; lower is better.
    #[serde(rename = "kl_p99")]
    KlP99,
    /// 99.9th percentile of a token's Kullback-Leibler divergence in nats; lower is better.
    #[serde(rename = "kl_p999")]
    KlP999,
    /// Mean change of the right token's probability, below 0 where it has become less likely.
    ProbabilityChange,
    /// Root mean square of the change of the right token's probability; lower is better.
    ProbabilityChangeRms,
    /// Mean absolute difference of the two models' scores; lower is better.
    DifferenceMean,
}

impl Gate {
    /// A limit on a metric by its name; `None` where that is none that can be held to one.
    pub fn of(task: &str, metric: &str, max_drop: f64) -> Option<Self> {
        use serde::de::value::{Error, StrDeserializer};
        let metric = Metric::deserialize(StrDeserializer::<Error>::new(metric)).ok()?;
        Some(Self { task: task.to_owned(), metric, max_drop })
    }
}

impl TaskKind {
    /// The metrics that a task of this kind can have; which of them it has depends on the model's head.
    pub fn metrics(self) -> &'static [Metric] {
        match self {
            Self::Sts => &[Metric::Spearman, Metric::Pearson],
            Self::Classification => &[
                Metric::Accuracy,
                Metric::MacroF1,
                Metric::Top5Accuracy,
                Metric::MicroF1,
                Metric::ExactMatch,
                Metric::Pearson,
                Metric::Spearman,
                Metric::MeanAbsoluteError,
            ],
            Self::TokenClassification => &[Metric::Accuracy, Metric::EntityF1],
            Self::QuestionAnswering => &[Metric::ExactMatch, Metric::F1],
            Self::MaskedLm => &[Metric::Loss, Metric::Accuracy],
            Self::MultipleChoice => &[Metric::Accuracy, Metric::AccuracyNorm, Metric::ChoiceAgreement],
            Self::Reranking => &[Metric::Mrr, Metric::NdcgAt10],
            Self::Perplexity => &[Metric::Perplexity, Metric::KlMean, Metric::Top1Agreement],
            Self::Fidelity => &[
                Metric::CosineMean,
                Metric::CosineMin,
                Metric::CosineP01,
                Metric::Top1Agreement,
                Metric::KlMean,
                Metric::KlP99,
                Metric::KlP999,
                Metric::ProbabilityChange,
                Metric::ProbabilityChangeRms,
                Metric::Pearson,
                Metric::Spearman,
                Metric::DifferenceMean,
            ],
            Self::ZeroShot => &[Metric::Accuracy, Metric::Top5Accuracy],
        }
    }

    /// The name used in configs and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sts => "sts",
            Self::Classification => "classification",
            Self::TokenClassification => "token-classification",
            Self::QuestionAnswering => "question-answering",
            Self::MaskedLm => "masked-lm",
            Self::Reranking => "reranking",
            Self::Perplexity => "perplexity",
            Self::MultipleChoice => "multiple-choice",
            Self::Fidelity => "fidelity",
            Self::ZeroShot => "zero-shot",
        }
    }
}

impl fmt::Display for TaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Metric {
    /// The name used in configs and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Spearman => names::SPEARMAN,
            Self::Pearson => names::PEARSON,
            Self::MeanAbsoluteError => names::MEAN_ABSOLUTE_ERROR,
            Self::Accuracy => names::ACCURACY,
            Self::AccuracyNorm => names::ACCURACY_NORM,
            Self::ChoiceAgreement => names::CHOICE_AGREEMENT,
            Self::Top5Accuracy => names::TOP5_ACCURACY,
            Self::MacroF1 => names::MACRO_F1,
            Self::MicroF1 => names::MICRO_F1,
            Self::ExactMatch => names::EXACT_MATCH,
            Self::F1 => names::F1,
            Self::EntityF1 => names::ENTITY_F1,
            Self::Loss => names::LOSS,
            Self::Perplexity => names::PERPLEXITY,
            Self::Mrr => names::MRR,
            Self::NdcgAt10 => names::NDCG,
            Self::CosineMean => names::COSINE_MEAN,
            Self::CosineMin => names::COSINE_MIN,
            Self::CosineP01 => names::COSINE_P01,
            Self::Top1Agreement => names::TOP1_AGREEMENT,
            Self::KlMean => names::KL_MEAN,
            Self::KlP99 => names::KL_P99,
            Self::KlP999 => names::KL_P999,
            Self::ProbabilityChange => names::PROBABILITY_CHANGE,
            Self::ProbabilityChangeRms => names::PROBABILITY_CHANGE_RMS,
            Self::DifferenceMean => names::DIFFERENCE_MEAN,
        }
    }

    /// Whether it lies between 0 and 1, or -1 and 1, so that no loss of it above 1 can be meant.
    pub fn is_fraction(self) -> bool {
        !matches!(
            self,
            Self::MeanAbsoluteError
                | Self::Loss
                | Self::Perplexity
                | Self::KlMean
                | Self::KlP99
                | Self::KlP999
                | Self::DifferenceMean
        )
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Task {
    /// A task with every default, called as its kind is.
    pub fn new(kind: TaskKind) -> Self {
        let (name, data, limit, labels, templates) = (None, None, None, None, None);
        let (window, stride, windows, counting) = (None, None, None, None);
        TaskKeys { kind, name, data, limit, labels, templates, window, stride, windows, counting }.into()
    }

    fn check(&self, at: &str) -> Result<(), Problem> {
        let path = format!("{at}.name");
        not_blank(&path, &self.name)?;
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
        if !self.name.chars().all(plain) || self.name.chars().count() > LONGEST_NAME {
            let message = format!("`{path}` is {}, which is not a name", quoted(&self.name));
            return Err(Problem::new(path, message)
                .label("not a name")
                .hint(format!("allowed: up to {LONGEST_NAME} letters, digits, `-`, `_` and `.`")));
        }
        if let Some(limit) = self.limit {
            within(&format!("{at}.limit"), limit, 1..=MOST_SAMPLES)?;
        }
        let used_for = match self.kind {
            TaskKind::Sts => Use::ScoredPairs,
            TaskKind::Classification => Use::LabelledTexts,
            TaskKind::Fidelity if self.has_windows() => Use::Document("a fidelity task with windows"),
            TaskKind::Fidelity | TaskKind::MaskedLm => Use::Texts,
            TaskKind::TokenClassification => Use::Rows("token-classification"),
            TaskKind::QuestionAnswering => Use::Rows("question-answering"),
            TaskKind::Reranking => Use::Rows("reranking"),
            TaskKind::MultipleChoice => Use::Rows("multiple-choice"),
            TaskKind::Perplexity => Use::Document("a perplexity task"),
            TaskKind::ZeroShot => Use::LabelledImages,
        };
        self.check_zero_shot(at)?;
        self.check_windows(at)?;
        match (&self.data, self.kind) {
            (Some(data), _) => data.check(&format!("{at}.data"), used_for),
            (None, TaskKind::Fidelity | TaskKind::MaskedLm) if !self.has_windows() => Ok(()),
            (None, kind) => {
                let needed = match used_for {
                    Use::Document(_) => "a text",
                    _ => "samples with gold answers",
                };
                let message = format!("`{at}.data` is missing: the {kind} task needs {needed}");
                let formats = match used_for {
                    Use::Rows(_) => "jsonl",
                    Use::Document(_) => "txt",
                    _ => "jsonl or csv",
                };
                Err(Problem::new(format!("{at}.data"), message)
                    .label("`data` belongs here")
                    .hint(format!("add `data = \"FILE\"`, {formats}")))
            }
        }
    }
}

impl Task {
    fn check_windows(&self, at: &str) -> Result<(), Problem> {
        // Of a window of 2 tokens, llama.cpp scores none.
        let least = if self.counting == Some(Counting::LlamaCpp) { 3 } else { 2 };
        let given = [
            ("window", self.window, least..=LONGEST_WINDOW),
            ("stride", self.stride, 1..=LONGEST_WINDOW),
            ("windows", self.windows, 1..=MOST_SAMPLES),
            ("counting", self.counting.map(|_| 1), 1..=1),
        ];
        for (key, value, range) in given {
            let (path, Some(value)) = (format!("{at}.{key}"), value) else { continue };
            if !self.has_windows() {
                let message = format!("`{path}` is given, but only perplexity and fidelity have windows");
                return Err(Problem::new(path, message).hint(format!("remove `{key}`")));
            }
            within(&path, value, range)?;
        }
        if self.has_windows() && self.limit.is_some() {
            let path = format!("{at}.limit");
            let message =
                format!("`{path}` is given, but a {} task on windows has one text and no samples", self.kind);
            return Err(Problem::new(path, message).hint("write `windows` for the number of windows"));
        }
        if self.counting == Some(Counting::LlamaCpp) && self.stride.is_some() && self.stride != self.window {
            let path = format!("{at}.stride");
            let message = format!("`{path}` is not `window`, but llama.cpp's windows do not overlap");
            return Err(Problem::new(path, message)
                .label("another stride")
                .related(format!("{at}.counting"), "as llama.cpp counts")
                .hint("remove `stride`"));
        }
        Ok(())
    }

    fn check_zero_shot(&self, at: &str) -> Result<(), Problem> {
        let given = [("labels", self.labels.as_ref()), ("templates", self.templates.as_ref())];
        for (key, list) in given {
            let (path, Some(list)) = (format!("{at}.{key}"), list) else { continue };
            if self.kind != TaskKind::ZeroShot {
                let message = format!("`{path}` is given, but only a zero-shot task has {key}");
                return Err(Problem::new(path, message).hint(format!("remove `{key}`")));
            }
            let least = if key == "labels" { 2 } else { 1 };
            let repeated = list.iter().enumerate().any(|(at, entry)| list[..at].contains(entry));
            if list.len() < least || repeated {
                let message = format!("`{path}` must hold {least} or more {key}, each once");
                let example =
                    if key == "labels" { "[\"cat\", \"dog\"]" } else { "[\"a photo of a {label}.\"]" };
                return Err(Problem::new(path, message).hint(format!("for example {example}")));
            }
            for (index, entry) in list.iter().enumerate() {
                not_blank(&format!("{path}.{index}"), entry)?;
                if key == "templates" && !entry.contains(PLACE) {
                    let path = format!("{path}.{index}");
                    let message = format!("`{path}` has no `{PLACE}`, so it says the same of every label");
                    return Err(Problem::new(path, message).hint(format!("for example \"{PLAIN_TEMPLATE}\"")));
                }
            }
        }
        Ok(())
    }
}

impl Default for Evaluation {
    fn default() -> Self {
        Self {
            batch_size: 16,
            bootstrap_resamples: 1000,
            seed: 42,
            tasks: vec![Task::new(TaskKind::Fidelity)],
            gate: Vec::new(),
        }
    }
}

impl Evaluation {
    pub(super) fn check(&self) -> Result<(), Problem> {
        within("evaluation.batch_size", self.batch_size, 1..=LARGEST_BATCH)?;
        within(
            "evaluation.bootstrap_resamples",
            self.bootstrap_resamples,
            FEWEST_RESAMPLES..=MOST_RESAMPLES,
        )?;
        within("evaluation.seed", self.seed, 0..=LARGEST_SEED)?;
        let mut names = BTreeMap::new();
        for (index, task) in self.tasks.iter().enumerate() {
            let at = format!("evaluation.tasks.{index}");
            task.check(&at)?;
            if let Some(first) = names.insert(task.name.as_str(), index) {
                let message = format!("two tasks are called {}", quoted(&task.name));
                return Err(Problem::new(format!("{at}.name"), message)
                    .label("the second")
                    .related(format!("evaluation.tasks.{first}"), "the first")
                    .hint("give one of them another `name`"));
            }
        }
        let mut gated = BTreeMap::new();
        for (index, gate) in self.gate.iter().enumerate() {
            let at = format!("evaluation.gate.{index}");
            let Some(task) = self.tasks.iter().find(|task| task.name == gate.task) else {
                let path = format!("{at}.task");
                let message = format!("`{path}` is {}, but no task is called so", quoted(&gate.task));
                let names: Vec<&str> = names.into_keys().collect();
                return Err(Problem::new(path, message).label("no such task").hint(if names.is_empty() {
                    "there are no tasks: add one under `[[evaluation.tasks]]`".to_owned()
                } else {
                    name_hint(&gate.task, &names)
                }));
            };
            let metrics = task.kind.metrics();
            let path = format!("{at}.metric");
            if !metrics.contains(&gate.metric) {
                let message = format!(
                    "`{path}` is `{}`, which the {} task `{}` has not",
                    gate.metric, task.kind, task.name
                );
                let allowed: Vec<&str> = metrics.iter().map(|metric| metric.as_str()).collect();
                let task = self.tasks.iter().position(|other| other.name == task.name).unwrap_or_default();
                return Err(Problem::new(path, message)
                    .label("not a metric of this task")
                    .related(format!("evaluation.tasks.{task}.kind"), "its kind")
                    .hint(format!("allowed: {}", list(&allowed))));
            }
            if let Some(first) = gated.insert((gate.task.as_str(), gate.metric.as_str()), index) {
                let message = format!("two gates are on `{}` of task `{}`", gate.metric, gate.task);
                return Err(Problem::new(path, message)
                    .label("the second")
                    .related(format!("evaluation.gate.{first}.metric"), "the first")
                    .hint("keep the stricter one"));
            }
            let at = format!("{at}.max_drop");
            if gate.metric.is_fraction() {
                within(&at, gate.max_drop, 0.0..=1.0).map_err(|problem| {
                    problem.hint("metrics are fractions from 0 to 1: one percent is 0.01")
                })?;
            } else {
                within(&at, gate.max_drop, 0.0..=LARGEST_RISE)?;
            }
        }
        Ok(())
    }
}
