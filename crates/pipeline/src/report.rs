//! Everything a run has found out, put together as a report.

use std::collections::BTreeMap;

use zeropoint_core::Fingerprint;
use zeropoint_evaluator::report::{
    Calibration, CardInfo, Details, Gate, Layer, LayerDetails, Metric, Model, NotQuantized, OutlierChannel,
    Report, SCHEMA, SelfCheck, Settings, Size, Timing, Zeropoint, parse_front_matter,
};
use zeropoint_formats::{Checkpoint, Dtype, TensorInfo};
use zeropoint_models::{ActivationQuantizer, InputSpec, LinearSpec, Task};
use zeropoint_observer::{
    ActivationStatistics, StatisticsFile, clipped_fraction, median_absmax, outlier_channels,
};
use zeropoint_quantizer::{Decision, LayerScheme};

use crate::Prepared;
use crate::distribution::activation_bins;
use crate::journal::{Exact, LinearDone};
use crate::system::processor;

/// A channel is an outlier when its largest value is this many times the median channel's (as in Bondarenko et al.
/// 2021, who count values beyond six standard deviations; a ratio to the median needs no second pass).
const OUTLIER_RATIO: f32 = 6.0;
/// Outlier channels named for one layer.
const OUTLIERS_NAMED: usize = 8;

/// What the report says of a quantised Linear: found out when the model was made, or read from the journal of then.
pub(crate) struct LayerFacts {
    pub(crate) scheme: LayerScheme,
    pub(crate) quantizer: Option<ActivationQuantizer>,
    pub(crate) done: LinearDone,
}

/// What the stages of a run found out.
pub(crate) struct Findings<'a> {
    pub(crate) weights: Fingerprint,
    pub(crate) statistics: &'a StatisticsFile,
    pub(crate) observed: bool,
    pub(crate) layers: &'a BTreeMap<usize, LayerFacts>,
    pub(crate) output: &'a Checkpoint,
    pub(crate) self_check: SelfCheck,
    pub(crate) metrics: Vec<Metric>,
    pub(crate) gates: Vec<Gate>,
    pub(crate) timing: Timing,
}

pub(crate) fn build(prepared: &Prepared, findings: Findings<'_>) -> Report {
    let Findings { weights, statistics, observed, layers, output, self_check, metrics, gates, timing } =
        findings;
    let checkpoint = prepared.directory.checkpoint();
    let spec = prepared.directory.spec();
    let parameters =
        checkpoint.tensors().filter(|info| info.dtype.is_float()).map(|info| info.elements() as u64).sum();
    Report {
        schema: SCHEMA,
        zeropoint: Zeropoint { version: env!("CARGO_PKG_VERSION").to_owned() },
        model: Model {
            source: prepared.config.model.source.clone(),
            revision: prepared.model.commit.clone(),
            architecture: spec.architecture.clone(),
            parameters,
            fingerprint: weights,
        },
        settings: Settings {
            scheme: prepared.scheme_name(),
            config_fingerprint: config_fingerprint(prepared),
        },
        calibration: Calibration {
            samples: prepared.calibration.inputs.len() as u64,
            tokens: prepared.calibration.tokens() as u64,
            fingerprint: Some(prepared.calibration.fingerprint()),
            seed: prepared.config.calibration.seed,
            passes: u32::from(observed),
        },
        size: Size::new(checkpoint.weight_bytes(), output.weight_bytes()),
        metrics,
        gates,
        layers: layers.iter().map(|(&id, facts)| layer(prepared, statistics, id, facts)).collect(),
        not_quantized: not_quantized(prepared, output),
        self_check: Some(self_check),
        warnings: prepared.warnings.clone(),
        timing: Timing { processor: processor(), ..timing },
    }
}

/// Of everything in the config that the result depends on. Where files lie on this machine is not part of it: the
/// model card holds this fingerprint, and its bytes are the same wherever the run is repeated.
fn config_fingerprint(prepared: &Prepared) -> Fingerprint {
    let file_name = |path: &str| {
        std::path::Path::new(path)
            .file_name()
            .map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned())
    };
    let mut config = prepared.config.clone();
    prepared.directory.name().clone_into(&mut config.model.source);
    config.output.dir = Some(String::new());
    for source in &mut config.calibration.data {
        source.path = file_name(&source.path);
    }
    for source in config.evaluation.tasks.iter_mut().filter_map(|task| task.data.as_mut()) {
        source.path = file_name(&source.path);
    }
    Fingerprint::builder("config").field("toml", config.to_toml()).finish()
}

/// The distributions and the config, which the HTML report shows beyond `report.json`.
pub(crate) fn details(
    prepared: &Prepared,
    statistics: &StatisticsFile,
    layers: &BTreeMap<usize, LayerFacts>,
) -> Details {
    let layers = layers.iter().map(|(&id, facts)| LayerDetails {
        weights: facts.done.distribution.as_ref().map(|distribution| distribution.bins.clone()),
        activations: observed(prepared, statistics, id).and_then(activation_bins),
    });
    Details { layers: layers.collect(), config: Some(prepared.config.to_toml()) }
}

/// Statistics of the input of a Linear.
fn observed<'a>(
    prepared: &Prepared,
    statistics: &'a StatisticsFile,
    linear: usize,
) -> Option<&'a ActivationStatistics> {
    let spec = prepared.directory.spec();
    statistics.sites.get(&spec.sites[spec.linears[linear].site?].id)
}

fn layer(prepared: &Prepared, statistics: &StatisticsFile, id: usize, facts: &LayerFacts) -> Layer {
    let LayerFacts { scheme, quantizer, done } = facts;
    let linear = &prepared.directory.spec().linears[id];
    let observed = observed(prepared, statistics, id);
    let mut outlier_channels = observed.map(outliers).unwrap_or_default();
    outlier_channels.truncate(OUTLIERS_NAMED);
    let static_params = match quantizer {
        Some(ActivationQuantizer::Static(params)) => Some(*params),
        _ => None,
    };
    Layer {
        path: linear.path.clone(),
        weights: scheme.scheme.weights.to_string(),
        activations: scheme.scheme.activations.to_string(),
        weight_sqnr_db: done.weight_sqnr_db.0,
        activation_sqnr_db: done.input_sqnr_db.map(|Exact(value)| value),
        output_sqnr_db: done.output_sqnr_db.map(|Exact(value)| value),
        input_range: observed.map(|observed| [f64::from(observed.min()), f64::from(observed.max())]),
        activation_range: static_params.map(|params| {
            let (low, high) = params.representable();
            [f64::from(low), f64::from(high)]
        }),
        clipped_fraction: observed
            .zip(static_params)
            .map(|(observed, params)| clipped_fraction(observed, params)),
        weight_range: done.distribution.as_ref().map(|distribution| distribution.range),
        weight_clipped_fraction: done.distribution.as_ref().map(|distribution| distribution.clipped),
        outlier_channels,
        bytes: done.bytes,
        original_bytes: source_bytes(prepared, linear),
    }
}

/// The outlier channels of a site, largest first.
pub(crate) fn outliers(statistics: &ActivationStatistics) -> Vec<OutlierChannel> {
    let median = median_absmax(statistics);
    outlier_channels(statistics, OUTLIER_RATIO)
        .into_iter()
        .map(|(channel, absmax)| OutlierChannel {
            channel: channel as u64,
            absmax: f64::from(absmax),
            times_median: f64::from(absmax) / median,
        })
        .collect()
}

/// Bytes of a weight in the source, of a fused tensor its own rows.
fn source_bytes(prepared: &Prepared, linear: &LinearSpec) -> Option<u64> {
    let info = prepared.directory.checkpoint().get(&linear.weight)?;
    Some((linear.weights() * info.dtype.size()) as u64)
}

/// Bytes of a float tensor of the output in the source. One that the source does not name is a part of a fused tensor,
/// copied as it is.
fn float_source_bytes(prepared: &Prepared, info: &TensorInfo) -> u64 {
    prepared.directory.checkpoint().get(&info.name).map_or(info.bytes(), TensorInfo::bytes)
}

/// Every float tensor of the output with the reason why it is one.
fn not_quantized(prepared: &Prepared, output: &Checkpoint) -> Vec<NotQuantized> {
    let spec = prepared.directory.spec();
    let mut reasons: BTreeMap<String, String> = BTreeMap::new();
    for table in spec.tables() {
        reasons.insert(table.tensor.clone(), "embedding table: looked up, not multiplied".to_owned());
    }
    for norm in spec.norms() {
        for name in norm.tensors() {
            reasons.insert(name.to_owned(), "norm: applied in float, small".to_owned());
        }
    }
    for tower in &spec.towers {
        if let Some(bias) = &tower.relative_bias {
            reasons.insert(bias.tensor.clone(), "relative position bias: added to the scores".to_owned());
        }
        if let InputSpec::Image(image) = &tower.input {
            for name in image.tokens.iter().chain([&image.positions]) {
                reasons.insert(name.clone(), "tokens and positions: added, not multiplied".to_owned());
            }
        }
    }
    for plan in &prepared.plan.linears {
        let linear = &spec.linears[plan.linear];
        let bias = match &plan.decision {
            Decision::Keep { reason } => {
                // A table that is also a decoder is already explained as a table.
                reasons.entry(linear.weight.clone()).or_insert_with(|| reason.clone());
                reason.clone()
            }
            Decision::Quantize(_) => "bias: added to the float result".to_owned(),
        };
        reasons.extend(linear.bias.clone().map(|name| (name, bias)));
    }
    reasons.extend(spec.unused.iter().cloned());
    output
        .tensors()
        .filter_map(|info| {
            // Whatever has no reason is a part of a quantised Linear.
            let reason = reasons.get(&info.name)?.clone();
            Some(NotQuantized {
                tensor: info.name.clone(),
                dtype: info.dtype.name().to_owned(),
                bytes: info.bytes(),
                original_bytes: Some(float_source_bytes(prepared, info)),
                reason: if info.dtype == Dtype::BF16 && spec.tables().any(|t| t.tensor == info.name) {
                    format!("{reason} (stored as bf16)")
                } else {
                    reason
                },
            })
        })
        .collect()
}

/// The model card's facts.
pub(crate) fn card(prepared: &Prepared) -> CardInfo {
    let directory = &prepared.directory;
    let readme = std::fs::read_to_string(directory.path().join("README.md")).unwrap_or_default();
    CardInfo {
        name: format!("{}-{}", directory.name(), prepared.config.quantization.scheme.as_str()),
        base_model: hub_id(directory.path()),
        front_matter: parse_front_matter(&readme),
        auto_class: auto_class(directory.spec()).to_owned(),
        input_class: match (directory.spec().text(), directory.spec().image()) {
            (Some(_), Some(_)) => "AutoProcessor",
            (None, Some(_)) => "AutoImageProcessor",
            _ => "AutoTokenizer",
        }
        .to_owned(),
        sentence_transformers: directory.path().join("modules.json").exists(),
    }
}

/// The hub id of a directory in the layout of the Hugging Face cache, `models--OWNER--NAME/snapshots/REVISION`. Other
/// directories do not tell where they came from.
fn hub_id(dir: &std::path::Path) -> Option<String> {
    let real = dir.canonicalize().ok()?;
    let folder = real.parent()?.parent()?.file_name()?.to_str()?;
    let id = folder.strip_prefix("models--")?.replacen("--", "/", 1);
    (real.parent()?.file_name()? == "snapshots").then_some(id)
}

/// The class of `transformers` that loads the model.
fn auto_class(spec: &zeropoint_models::ModelSpec) -> &'static str {
    let image = spec.text().is_none();
    match spec.head().task() {
        Task::Auto | Task::Embedding => "AutoModel",
        Task::Classification if image => "AutoModelForImageClassification",
        Task::Classification => "AutoModelForSequenceClassification",
        Task::TokenClassification => "AutoModelForTokenClassification",
        Task::MaskedLm => "AutoModelForMaskedLM",
        Task::QuestionAnswering => "AutoModelForQuestionAnswering",
    }
}
