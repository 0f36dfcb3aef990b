//! The report of a run: `report.json`, and its HTML, Markdown and model card forms.
//!
//! `report.json` is an interface: other tools rely on its keys, and [`SCHEMA`] changes when one changes its meaning.
//! JSON has no infinity and no NaN. A measured number without a value is written as `null` and read back as NaN; an
//! SQNR is capped instead (see [`capped_sqnr_db`]), because "exact" and "all is lost" are not "unknown".

mod card;
pub(crate) mod escape;
mod front_matter;
pub(crate) mod html;
mod latency;
mod markdown;
mod suggestion;

pub use card::CardInfo;
pub use front_matter::{FrontMatter, FrontValue, parse_front_matter};
pub use html::{Bins, Details, LayerDetails};
pub use latency::{Engine, Latency, LatencyRow, Phase};

use serde::{Deserialize, Serialize};
use zeropoint_core::Fingerprint;

/// The version of `report.json` that this crate writes and reads.
pub const SCHEMA: u32 = 1;

/// The bounds of every SQNR in a report, in decibels. Rounding to f32 alone stays near 150 dB, so 200 says "exact".
pub const SQNR_LIMIT_DB: f64 = 200.0;

/// An SQNR within [`SQNR_LIMIT_DB`] on both sides, so that it is a number that JSON can hold and that sorts: the upper limit
/// where there is no noise, the lower one where there is no signal. NaN stays NaN.
pub fn capped_sqnr_db(db: f64) -> f64 {
    db.clamp(-SQNR_LIMIT_DB, SQNR_LIMIT_DB)
}

/// Why a `report.json` could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Not JSON, or not a report.
    #[error("this is not a report of Zeropoint: {0}; give the report.json that `zeropoint run` wrote")]
    Json(#[from] serde_json::Error),
    /// A schema of another release.
    #[error(
        "the report has schema {found}, and this release reads schema {SCHEMA}; make the report again or use the release that wrote it"
    )]
    Schema {
        /// The schema that the file names.
        found: u64,
    },
}

/// Everything that a run has to say about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The program that made it.
    pub zeropoint: Zeropoint,
    /// The model that was quantised.
    pub model: Model,
    /// What was asked for.
    pub settings: Settings,
    /// What the activations were observed on.
    pub calibration: Calibration,
    /// Bytes before and after.
    pub size: Size,
    /// Original against quantised, one entry per task and metric.
    pub metrics: Vec<Metric>,
    /// The limits that the config sets on losses.
    #[serde(default)]
    pub gates: Vec<Gate>,
    /// How fast both models are; `None` when the config does not ask for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// The quantised Linears, in the order of the model.
    pub layers: Vec<Layer>,
    /// What quantising each group of Linears alone costs, in the order of the model; empty when the config does not ask for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sensitivity: Vec<Sensitivity>,
    /// The mixtures of experts, in the order of the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub experts: Vec<ExpertRows>,
    /// Tensors that stay float.
    #[serde(default)]
    pub not_quantized: Vec<NotQuantized>,
    /// The written directory, loaded back and run beside the simulation; `None` when it was not run.
    #[serde(default)]
    pub self_check: Option<SelfCheck>,
    /// What the run warned about.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Wall time and memory.
    pub timing: Timing,
}

impl Report {
    /// The report as indented JSON, with a newline at the end.
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_string_pretty(self).expect("string keys and no failing serializer");
        json.push('\n');
        json
    }

    /// Reads a `report.json`. The schema is looked at first, so that a newer file is told from a broken one.
    pub fn from_json(json: &str) -> Result<Self, ReportError> {
        #[derive(Deserialize)]
        struct Header {
            schema: u64,
        }
        let Header { schema } = serde_json::from_str(json)?;
        if schema != u64::from(SCHEMA) {
            return Err(ReportError::Schema { found: schema });
        }
        Ok(serde_json::from_str(json)?)
    }

    /// Whether weights were rounded by GPTQ, as the scheme's name says.
    pub(crate) fn is_by_gptq(&self) -> bool {
        self.settings.scheme.contains(", gptq")
    }

    /// The metric that lost most, relative to the size of its original value (absolutely where that is 0).
    ///
    /// Metrics against an original come before fidelity metrics, whose `original` is an ideal. `None` when no metric has
    /// a value.
    pub fn worst_loss(&self) -> Option<&Metric> {
        let relative = |metric: &Metric| match metric.original.abs() {
            0.0 => metric.loss(),
            size => metric.loss() / size,
        };
        let worst_of = |ideal: bool| {
            self.metrics
                .iter()
                .filter(|metric| metric.ideal == ideal && metric.loss().is_finite())
                .reduce(|worst, metric| if relative(metric) > relative(worst) { metric } else { worst })
        };
        worst_of(false).or_else(|| worst_of(true))
    }
}

/// The program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Zeropoint {
    /// Its version.
    pub version: String,
}

/// The source model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// As the config names it: a directory or a Hub id.
    pub source: String,
    /// The commit, for a model of a hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The architecture that its `config.json` names.
    pub architecture: String,
    /// Number of parameters.
    pub parameters: u64,
    /// Identifies its weights and every file beside them that decides what it computes.
    pub fingerprint: Fingerprint,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The scheme in one line, as a preset's name or as [`zeropoint_core::Scheme`] displays itself.
    pub scheme: String,
    /// Of the resolved config.
    pub config_fingerprint: Fingerprint,
}

/// What the activations were observed on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Number of samples that went through the model; 0 when nothing had to be observed.
    pub samples: u64,
    /// Number of tokens, padding excluded.
    pub tokens: u64,
    /// On how many of them the original was observed for the factors of transforms; `None` where no transform has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transform_samples: Option<u64>,
    /// Of all samples that were drawn; `None` when there were none.
    pub fingerprint: Option<Fingerprint>,
    /// Of the choice of samples.
    pub seed: u64,
    /// How often they were observed; the passes of GPTQ are in the timing.
    pub passes: u32,
}

/// Bytes of the weight files on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Size {
    /// Of the source.
    pub original_bytes: u64,
    /// Of the quantised model.
    pub quantized_bytes: u64,
    /// How many times smaller: `original_bytes / quantized_bytes`.
    #[serde(with = "number")]
    pub ratio: f64,
}

impl Size {
    /// Sizes with their ratio (NaN when the quantised model has no bytes).
    pub fn new(original_bytes: u64, quantized_bytes: u64) -> Self {
        let ratio = match quantized_bytes {
            0 => f64::NAN,
            bytes => original_bytes as f64 / bytes as f64,
        };
        Self { original_bytes, quantized_bytes, ratio }
    }
}

/// One metric of one task, in its own unit (correlations and accuracies are fractions).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// The task, as the config names it.
    pub task: String,
    /// The metric.
    pub name: String,
    /// The original model's value; for fidelity metrics the ideal, 0 or 1.
    #[serde(with = "number")]
    pub original: f64,
    /// The quantised model's value.
    #[serde(with = "number")]
    pub quantized: f64,
    /// `quantized - original`.
    #[serde(with = "number")]
    pub delta: f64,
    /// Standard error of `delta`, see [`paired_standard_error`](crate::bootstrap::paired_standard_error); NaN when it is not
    /// known, as that of a minimum.
    #[serde(with = "number")]
    pub stderr: f64,
    /// Which direction is good.
    pub higher_is_better: bool,
    /// Number of samples measured.
    pub samples: u64,
    /// Of the samples measured, see [`TaskData::fingerprint`](crate::tasks::TaskData::fingerprint); `None` when not recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Fingerprint>,
    /// Whether `original` is the ideal of a fidelity metric and not a measurement.
    #[serde(default)]
    pub ideal: bool,
}

impl Metric {
    /// How much worse the quantised model is: positive when it lost, negative when it gained, NaN when unknown.
    pub fn loss(&self) -> f64 {
        // 0 - x and not -x: no loss is 0, not -0.
        if self.higher_is_better { 0.0 - self.delta } else { self.delta }
    }

    /// Whether the loss is larger than two standard errors: more than another sample of the same data explains.
    pub fn is_significant_loss(&self) -> bool {
        self.loss() > 0.0 && self.loss() > 2.0 * self.stderr
    }
}

/// A limit on a loss, and whether it was kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// The task.
    pub task: String,
    /// The metric.
    pub metric: String,
    /// The largest loss allowed.
    #[serde(with = "number")]
    pub max_drop: f64,
    /// The loss found, see [`Metric::loss`].
    #[serde(with = "number")]
    pub drop: f64,
    /// Whether it is within the limit; a drop without a value is not.
    pub passed: bool,
}

impl Gate {
    /// Holds a metric against a limit.
    pub fn check(metric: &Metric, max_drop: f64) -> Self {
        let drop = metric.loss();
        Self {
            task: metric.task.clone(),
            metric: metric.name.clone(),
            max_drop,
            drop,
            passed: drop <= max_drop,
        }
    }
}

/// One quantised Linear.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// Its path, as the source names it.
    pub path: String,
    /// How its weight is quantised, as [`zeropoint_core::WeightScheme`] displays itself.
    pub weights: String,
    /// How its input is quantised, as [`zeropoint_core::ActivationScheme`] displays itself.
    pub activations: String,
    /// Weight against quantised weight, in decibels, as the others [capped](capped_sqnr_db).
    #[serde(with = "number")]
    pub weight_sqnr_db: f64,
    /// Input against quantised input, in decibels; `None` when not measured.
    #[serde(default)]
    pub activation_sqnr_db: Option<f64>,
    /// Output of the float Linear against that of the quantised one on the same float input, in decibels; `None` when
    /// not measured.
    pub output_sqnr_db: Option<f64>,
    /// Smallest and largest value of the input; `None` when it was not observed.
    pub input_range: Option<[f64; 2]>,
    /// Interval that the input's static parameters represent without saturation; `None` when they are dynamic.
    #[serde(default)]
    pub activation_range: Option<[f64; 2]>,
    /// Fraction of the input's values that fell outside the chosen range; `None` when not measured.
    #[serde(default)]
    pub clipped_fraction: Option<f64>,
    /// What the scales of the weight represent without saturation; `None` when not recorded.
    #[serde(default)]
    pub weight_range: Option<WeightRange>,
    /// Fraction of the weight's values that fell outside the range of their channel; `None` when not recorded.
    #[serde(default)]
    pub weight_clipped_fraction: Option<f64>,
    /// Input channels far larger than the others, the largest of them.
    #[serde(default)]
    pub outlier_channels: Vec<OutlierChannel>,
    /// How many such channels there are, those that are not named included; 0 when not recorded. See [`Layer::outliers`].
    #[serde(default)]
    pub outlier_count: u64,
    /// Bytes of its tensors in the quantised model.
    #[serde(default)]
    pub bytes: u64,
    /// Bytes of its weight in the source; `None` when not recorded.
    #[serde(default)]
    pub original_bytes: Option<u64>,
}

impl Layer {
    /// How many input channels are far larger than the others: as counted, and no fewer than are named.
    pub fn outliers(&self) -> u64 {
        self.outlier_count.max(self.outlier_channels.len() as u64)
    }
}

/// What quantising one group of Linears alone costs, those that read one activation or the experts of one mixture, on the beginnings
/// of a few calibration samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sensitivity {
    /// Their paths.
    pub linears: Vec<String>,
    /// The scheme of the first, as [`zeropoint_core::Scheme`] displays itself.
    pub scheme: String,
    /// Their outputs against those of the float Linears on the same inputs, in decibels, [capped](capped_sqnr_db).
    #[serde(with = "number")]
    pub output_sqnr_db: f64,
    /// What the outputs of the model lose on average: of logits the Kullback-Leibler divergence, of vectors 1 less the cosine, of a
    /// score the difference.
    #[serde(with = "number")]
    pub loss: f64,
    /// The unit of the loss, in words.
    pub unit: String,
}

/// How calibration's rows were spread over the experts of one mixture: what the router does on this data. The ranges of every
/// expert come from all rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertRows {
    /// Module path of the mixture.
    pub path: String,
    /// How many experts there are.
    pub experts: u64,
    /// How many of them each row goes through.
    pub per_row: u64,
    /// Rows of the expert that has fewest.
    pub fewest: u64,
    /// Rows of the expert that has most.
    pub most: u64,
    /// The experts without any row, counted from 0.
    #[serde(default)]
    pub unused: Vec<u64>,
}

/// The intervals that a weight's scales represent without saturation: those of the smallest and of the largest scale,
/// which are the same when one scale serves the whole tensor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WeightRange {
    /// Of the smallest scale.
    pub narrowest: [f64; 2],
    /// Of the largest scale.
    pub widest: [f64; 2],
}

/// An input channel far larger than the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutlierChannel {
    /// Its index.
    pub channel: u64,
    /// Its largest absolute value.
    #[serde(with = "number")]
    pub absmax: f64,
    /// `absmax` over the median of all channels' largest absolute values; NaN when that is 0 or not recorded.
    #[serde(default = "number::unknown", with = "number")]
    pub times_median: f64,
}

/// A tensor that stays float.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NotQuantized {
    /// Its name in the file.
    pub tensor: String,
    /// Its type in the quantised model, as safetensors names it.
    pub dtype: String,
    /// Its bytes in the quantised model.
    pub bytes: u64,
    /// Its bytes in the source; `None` when not recorded.
    #[serde(default)]
    pub original_bytes: Option<u64>,
    /// Why, in a few words; tensors with the same reason are listed together.
    pub reason: String,
}

/// The written directory, loaded back and run beside the simulation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SelfCheck {
    /// Number of samples run.
    pub samples: u64,
    /// The lowest cosine between the outputs of both.
    #[serde(with = "number")]
    pub cosine_min: f64,
}

/// Wall time in seconds, memory in bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Loading the model.
    #[serde(with = "number")]
    pub load_s: f64,
    /// Calibration.
    #[serde(with = "number")]
    pub calibrate_s: f64,
    /// Quantising and writing.
    #[serde(with = "number")]
    pub quantize_s: f64,
    /// Evaluation of both models.
    #[serde(with = "number")]
    pub evaluate_s: f64,
    /// The largest resident memory of the process.
    pub peak_rss_bytes: u64,
    /// Each pass of the calibration data through the model, with its seconds; empty when not recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passes: Vec<PassTime>,
    /// The processor, as the system names it, when known.
    #[serde(default)]
    pub processor: Option<String>,
    /// Number of threads, when known.
    #[serde(default)]
    pub threads: Option<u32>,
}

/// A pass of the calibration data through the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PassTime {
    /// What it is for.
    pub what: String,
    /// Wall time of the stage that it is, in seconds.
    #[serde(with = "number")]
    pub seconds: f64,
}

/// A measured number: not finite is `null` in JSON, and `null` is NaN in memory.
pub(crate) mod number {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
    pub(crate) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        value.is_finite().then_some(*value).serialize(serializer)
    }

    /// What stands for a number that an older report does not have.
    pub(crate) fn unknown() -> f64 {
        f64::NAN
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
    }
}
