//! Everything a run has found out, put together as a report.

use std::collections::BTreeMap;

use zeropoint_core::Fingerprint;
use zeropoint_evaluator::report::{
    Calibration, CardInfo, Details, Gate, Latency, Layer, LayerDetails, Metric, Model, NotQuantized,
    OutlierChannel, Report, SCHEMA, SelfCheck, Sensitivity, Settings, Size, Timing, Zeropoint,
    capped_sqnr_db, parse_front_matter,
};
use zeropoint_formats::deployed::table_scale;
use zeropoint_formats::{Checkpoint, DirectoryFormat, Dtype, SafetensorsFile, TensorInfo};
use zeropoint_models::{ActivationQuantizer, InputSpec, LinearRole, LinearSpec, Task};
use zeropoint_observer::{
    ActivationStatistics, StatisticsFile, clipped_fraction, median_absmax, outlier_channels,
};
use zeropoint_quantizer::{Decision, EmbeddingPrecision, LayerScheme};

use crate::deploy::dense_files;
use crate::distribution::activation_bins;
use crate::experts::{expert_rows, unused_warning};
use crate::header::samples_and_tokens;
use crate::journal::{Exact, LinearDone};
use crate::system::processor;
use crate::tables::own_bytes;
use crate::{PipelineError, Prepared, config};

/// A channel is an outlier when its largest value is this many times the median channel's (as in Bondarenko et al.
/// 2021, who count values beyond six standard deviations; a ratio to the median needs no second pass).
const OUTLIER_RATIO: f32 = 6.0;
/// Outlier channels named for one layer; the report counts them all.
const OUTLIERS_NAMED: usize = 8;

/// What the report says of a quantised Linear: found out when the model was made, or read from the journal of then.
pub(crate) struct LayerFacts {
    pub(crate) scheme: LayerScheme,
    pub(crate) quantizer: Option<ActivationQuantizer>,
    pub(crate) done: LinearDone,
}

/// What the stages of a run found out.
pub(crate) struct Findings<'a> {
    pub(crate) model: Fingerprint,
    pub(crate) statistics: &'a StatisticsFile,
    pub(crate) factor_samples: Option<u64>,
    pub(crate) passes: u32,
    pub(crate) layers: &'a BTreeMap<usize, LayerFacts>,
    pub(crate) output: &'a Checkpoint,
    pub(crate) self_check: Option<SelfCheck>,
    pub(crate) metrics: Vec<Metric>,
    pub(crate) gates: Vec<Gate>,
    pub(crate) latency: Option<Latency>,
    pub(crate) sensitivity: Vec<Sensitivity>,
    pub(crate) timing: Timing,
}

pub(crate) fn build(prepared: &Prepared, findings: Findings<'_>) -> Result<Report, PipelineError> {
    let Findings {
        model,
        statistics,
        factor_samples,
        passes,
        layers,
        output,
        self_check,
        metrics,
        gates,
        latency,
        sensitivity,
        timing,
    } = findings;
    let checkpoint = prepared.directory.checkpoint();
    let spec = prepared.graph().spec();
    let parameters =
        checkpoint.tensors().filter(|info| info.dtype.is_float()).map(|info| info.elements() as u64).sum();
    let dense = dense_files(prepared, output.dir())?;
    let source_dense = dense_files(prepared, prepared.directory.path())?;
    let experts = expert_rows(spec, statistics);
    let set = &prepared.calibration;
    // Of a set no more is run than what is observed, but where weights or biases are made for all of it.
    let [samples, tokens] = samples_and_tokens(statistics)
        .filter(|_| !prepared.is_sequential())
        .unwrap_or([set.inputs.len() as u64, set.tokens() as u64]);
    Ok(Report {
        schema: SCHEMA,
        zeropoint: Zeropoint { version: env!("CARGO_PKG_VERSION").to_owned() },
        model: Model {
            source: prepared.config.model.source.clone(),
            revision: prepared.model.commit.clone(),
            architecture: spec.architecture.clone(),
            parameters,
            fingerprint: model,
        },
        settings: Settings {
            scheme: prepared.scheme_name(),
            config_fingerprint: config_fingerprint(prepared),
        },
        calibration: Calibration {
            samples,
            tokens,
            transform_samples: factor_samples,
            fingerprint: Some(set.fingerprint()),
            seed: prepared.config.calibration.seed,
            passes,
        },
        size: Size::new(
            weight_bytes(checkpoint, &source_dense),
            weight_bytes(output, &dense) + own_bytes(prepared),
        ),
        metrics,
        gates,
        latency,
        layers: layers.iter().map(|(&id, facts)| layer(prepared, statistics, id, facts)).collect(),
        sensitivity,
        not_quantized: not_quantized(prepared, output, &dense),
        self_check,
        warnings: prepared.warnings.iter().cloned().chain(unused_warning(&experts)).collect(),
        experts,
        timing: Timing { processor: processor(), ..timing },
    })
}

/// Bytes of all weight files of a model, those of its dense modules included.
fn weight_bytes(checkpoint: &Checkpoint, dense: &BTreeMap<&str, SafetensorsFile>) -> u64 {
    checkpoint.weight_bytes() + dense.values().map(SafetensorsFile::file_bytes).sum::<u64>()
}

/// Of everything in the config that the result depends on. Where files lie on this machine is not part of it, nor what the
/// report has besides: the model card holds this fingerprint, and its bytes are the same wherever the run is repeated.
fn config_fingerprint(prepared: &Prepared) -> Fingerprint {
    let file_name = |path: &str| {
        std::path::Path::new(path)
            .file_name()
            .map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned())
    };
    let mut config = prepared.config.clone();
    prepared.directory.name().clone_into(&mut config.model.source);
    config.output.dir = Some(String::new());
    config.report = config::Report::default();
    for source in &mut config.calibration.data {
        source.path = file_name(&source.path);
    }
    for source in config.evaluation.tasks.iter_mut().filter_map(|task| task.data.as_mut()) {
        source.path = file_name(&source.path);
    }
    Fingerprint::builder("config").field("toml", config.to_toml()).finish()
}

/// The distributions and the config, which the HTML report shows beyond `report.json`.
///
/// `before` are statistics of the original where its transforms were chosen from them and the transformed model was observed too.
pub(crate) fn details(
    prepared: &Prepared,
    statistics: &StatisticsFile,
    before: Option<&StatisticsFile>,
    layers: &BTreeMap<usize, LayerFacts>,
) -> Details {
    // Sites that no transform changes would show the same twice.
    let is_changed = |id: usize| prepared.transformed.as_ref().is_some_and(|graph| graph.changes(id));
    let layers = layers.iter().map(|(&id, facts)| LayerDetails {
        weights: facts.done.distribution.as_ref().map(|distribution| distribution.bins.clone()),
        activations: observed(prepared, statistics, id).and_then(activation_bins),
        weights_before: facts.done.distribution.as_ref().and_then(|distribution| distribution.before.clone()),
        activations_before: before
            .filter(|_| is_changed(id))
            .and_then(|before| observed(prepared, before, id).and_then(activation_bins)),
    });
    Details { layers: layers.collect(), config: Some(prepared.config.to_toml()) }
}

/// Statistics of the input of a Linear.
fn observed<'a>(
    prepared: &Prepared,
    statistics: &'a StatisticsFile,
    linear: usize,
) -> Option<&'a ActivationStatistics> {
    let spec = prepared.graph().spec();
    statistics.sites.get(&spec.sites[spec.linears[linear].site?].id)
}

fn layer(prepared: &Prepared, statistics: &StatisticsFile, id: usize, facts: &LayerFacts) -> Layer {
    let LayerFacts { scheme, quantizer, done } = facts;
    let linear = &prepared.graph().spec().linears[id];
    let observed = observed(prepared, statistics, id);
    let mut outlier_channels = observed.map(outliers).unwrap_or_default();
    let outlier_count = outlier_channels.len() as u64;
    outlier_channels.truncate(OUTLIERS_NAMED);
    let static_params = match quantizer {
        Some(ActivationQuantizer::Static(params)) => Some(*params),
        _ => None,
    };
    Layer {
        path: linear.path.clone(),
        weights: scheme.scheme.weights.to_string(),
        activations: scheme.scheme.activations_in_words(),
        weight_sqnr_db: capped_sqnr_db(done.weight_sqnr_db.0),
        activation_sqnr_db: done.input_sqnr_db.map(|Exact(value)| capped_sqnr_db(value)),
        output_sqnr_db: done.output_sqnr_db.map(|Exact(value)| capped_sqnr_db(value)),
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
        outlier_count,
        bytes: done.bytes,
        // A table that stays one is counted as one.
        original_bytes: if linear.role == LinearRole::TiedDecoder
            && prepared.plan.embeddings != EmbeddingPrecision::Int8
        {
            Some(0)
        } else {
            source_bytes(prepared, linear)
        },
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
/// copied as it is, or the scales of an INT8 table, which are new.
fn float_source_bytes(prepared: &Prepared, info: &TensorInfo) -> u64 {
    let of_a_table = prepared.plan.embeddings == EmbeddingPrecision::Int8 && info.name.ends_with("_scale");
    let is_new = prepared.transformed.as_ref().is_some_and(|graph| graph.is_new(&info.name));
    let unnamed = if of_a_table || is_new { 0 } else { info.bytes() };
    prepared.directory.checkpoint().get(&info.name).map_or(unnamed, TensorInfo::bytes)
}

/// Every float tensor of the output, those of dense modules in its folders at the end, with the reason why it is one.
fn not_quantized(
    prepared: &Prepared,
    output: &Checkpoint,
    dense: &BTreeMap<&str, SafetensorsFile>,
) -> Vec<NotQuantized> {
    let spec = prepared.graph().spec();
    let int8_tables = prepared.plan.embeddings == EmbeddingPrecision::Int8;
    let mut reasons: BTreeMap<String, String> = BTreeMap::new();
    for table in spec.tables() {
        reasons.insert(table.tensor.clone(), "embedding table: looked up, not multiplied".to_owned());
        if int8_tables {
            reasons.insert(table_scale(&table.tensor), "scales of an embedding table's rows".to_owned());
        }
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
                if linear.is_fused_in_file() {
                    // Beside a part that is quantised it is written under its own name.
                    reasons.insert(format!("{}.weight", linear.tensor), reason.clone());
                }
                reason.clone()
            }
            Decision::Quantize(_) => "bias: added to the float result".to_owned(),
        };
        if linear.is_fused_in_file() && linear.bias.is_some() {
            reasons.insert(format!("{}.bias", linear.tensor), bias.clone());
        }
        reasons.extend(linear.bias.clone().map(|name| (name, bias)));
    }
    reasons.extend(spec.unused.iter().cloned());
    if let Some((head, _)) = prepared.plan.tied_head(spec).filter(|_| int8_tables) {
        // Its integers are a layer's.
        let tensor = &spec.linears[head].weight;
        reasons.remove(tensor);
        reasons.remove(&table_scale(tensor));
    }
    let dense = dense.iter().flat_map(|(folder, file)| {
        file.tensors().map(move |info| NotQuantized {
            tensor: format!("{folder}/{}", info.name),
            dtype: info.dtype.name().to_owned(),
            bytes: info.bytes(),
            original_bytes: Some(info.bytes()),
            reason: "dense module: behind the pooling, copied as it is".to_owned(),
        })
    });
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
                reason: match info.dtype {
                    Dtype::BF16 if spec.tables().any(|t| t.tensor == info.name) => {
                        format!("{reason} (stored as bf16)")
                    }
                    Dtype::I8 => format!("{reason} (stored as INT8)"),
                    _ => reason,
                },
            })
        })
        .chain(dense)
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
        zeropoint_only: prepared.plan.format == DirectoryFormat::Zeropoint,
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
        Task::CausalLm => "AutoModelForCausalLM",
        Task::QuestionAnswering => "AutoModelForQuestionAnswering",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;
    use crate::deploy::DeployedLinear;
    use crate::deploy::tests::{deploy, room};
    use crate::dry_run::dry_run;
    use crate::events::Cancel;
    use crate::run::RunOptions;
    use crate::statistics::{CacheDir, Origin, Pass, observe};
    use zeropoint_evaluator::report::SQNR_LIMIT_DB;
    use zeropoint_kernels::Isa;

    fn prepared(fixture: &str, quantization: &str) -> Prepared {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
        let mut config = Config::new(fixtures.join(fixture).to_string_lossy());
        config.quantization = toml::from_str(quantization).unwrap();
        config.calibration.samples = 4;
        config.evaluation.tasks.clear();
        Prepared::new(config).unwrap()
    }

    /// The written model with what became of each quantised Linear, and the statistics.
    fn written(prepared: &Prepared) -> (tempfile::TempDir, BTreeMap<usize, DeployedLinear>, StatisticsFile) {
        let float = zeropoint_models::Model::load(&prepared.directory).unwrap();
        let weights = prepared.directory.checkpoint().content_fingerprint().unwrap();
        let (origin, cancel) = (Origin::of(prepared, weights).unwrap(), Cancel::default());
        let pass = Pass::whole(prepared.last_pass(), room());
        let statistics = observe(prepared, origin, &float, pass, &mut |_| Ok(()), &(), &cancel).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let deployed = deploy(prepared, &statistics, float.isa(), dir.path());
        (dir, deployed, statistics)
    }

    #[test]
    fn every_tensor_of_the_output_is_of_a_layer_or_explained() {
        for (fixture, exceptions, own) in [
            ("bert-mean", "", ""),
            ("bert-dense", "", "2_Dense/linear.weight"),
            ("nomic-mean", "", ""),
            ("nomic-mean", "re:.*k_proj", "0.self_attn.k_proj.weight"),
            ("gte-mean", "", "0.self_attn.v_proj.bias"),
            ("gte-mean", "re:.*(q_proj|k_proj|gate_proj)", "1.mlp.gate_proj.weight"),
            // A tensor of which nothing is quantised stays as it is.
            ("gte-mean", "re:.*self_attn\\\\.[qkv]_proj", "attention.qkv_proj.bias"),
        ] {
            for scheme in ["w8a8-dynamic", "w8a8-static"] {
                let overrides = match exceptions {
                    "" => String::new(),
                    layers => format!("overrides = [{{ layers = [\"{layers}\"], scheme = \"none\" }}]"),
                };
                let quantization = format!("scheme = \"{scheme}\"\n{overrides}");
                let about = format!("{fixture}, {quantization}");
                let prepared = prepared(fixture, &quantization);
                let (dir, deployed, _) = written(&prepared);
                let output = Checkpoint::open(dir.path()).unwrap();
                let dense = dense_files(&prepared, dir.path()).unwrap();
                let float = not_quantized(&prepared, &output, &dense);
                let in_dense: u64 =
                    dense.values().flat_map(SafetensorsFile::tensors).map(TensorInfo::bytes).sum();
                let all = in_dense + output.tensors().map(TensorInfo::bytes).sum::<u64>();
                let of_layers: u64 = deployed.values().map(|done| done.bytes).sum();
                let explained: u64 = float.iter().map(|tensor| tensor.bytes).sum();
                assert_eq!(of_layers + explained, all, "{about}: {float:#?}");
                assert!(float.iter().any(|tensor| tensor.tensor.ends_with(own)), "{about}: {float:#?}");
                assert!(float.iter().all(|tensor| tensor.dtype != "I8"), "{about}: {float:#?}");
            }
        }
    }

    #[test]
    fn dense_modules_are_in_the_sizes_and_in_their_forecast() {
        let prepared = prepared("bert-dense", "scheme = 'w8a8-dynamic'");
        let (dir, _, statistics) = written(&prepared);
        let output = Checkpoint::open(dir.path()).unwrap();
        let findings = Findings {
            model: Fingerprint::builder("model").finish(),
            statistics: &statistics,
            factor_samples: None,
            passes: 1,
            layers: &BTreeMap::new(),
            output: &output,
            self_check: Some(SelfCheck { samples: 0, cosine_min: 1.0 }),
            metrics: Vec::new(),
            gates: Vec::new(),
            latency: None,
            sensitivity: Vec::new(),
            timing: Timing::default(),
        };
        let report = build(&prepared, findings).unwrap();
        let bytes = |dir: &Path| -> u64 {
            let files = ["model.safetensors", "2_Dense/model.safetensors"];
            files.iter().map(|file| dir.join(file).metadata().unwrap().len()).sum()
        };
        let (before, after) = (bytes(prepared.directory.path()), bytes(dir.path()));
        assert_eq!((report.size.original_bytes, report.size.quantized_bytes), (before, after));

        let options = RunOptions { cache: CacheDir::None, ..RunOptions::default() };
        let plan = dry_run(&prepared, &options).unwrap();
        assert_eq!((plan.original_bytes, plan.quantized_bytes), (before, after));
        assert_eq!(plan.files.iter().map(|(_, bytes)| bytes).sum::<u64>(), after);
        for (name, bytes) in &plan.files {
            assert_eq!(dir.path().join(name).metadata().unwrap().len(), *bytes, "{name}");
        }
    }

    #[test]
    fn an_sqnr_is_a_number_and_outliers_are_all_counted() {
        let prepared = prepared("bert-mean", "scheme = 'w8a8-dynamic'");
        let (plan, scheme) = prepared.plan.quantized().next().unwrap();
        let linear = &prepared.directory.spec().linears[plan.linear];
        let mut observed = ActivationStatistics::new(linear.inputs);
        let few = OUTLIERS_NAMED + 3;
        assert!(2 * few < linear.inputs, "the median channel is none of them");
        let row: Vec<f32> =
            (0..linear.inputs).map(|i| if i < few { 100.0 + i as f32 } else { 1.0 }).collect();
        observed.observe(Isa::best(), &row).unwrap();
        let site = prepared.directory.spec().sites[linear.site.unwrap()].id.clone();
        let statistics = StatisticsFile { header: BTreeMap::new(), sites: [(site, observed)].into() };
        let facts = LayerFacts {
            scheme: *scheme,
            quantizer: None,
            done: LinearDone {
                path: linear.path.clone(),
                bytes: 0,
                weight_sqnr_db: Exact(31.5),
                input_sqnr_db: Some(Exact(f64::INFINITY)),
                output_sqnr_db: Some(Exact(f64::NEG_INFINITY)),
                distribution: None,
            },
        };
        let layer = layer(&prepared, &statistics, plan.linear, &facts);
        assert_eq!(layer.weight_sqnr_db, 31.5);
        assert_eq!(layer.activation_sqnr_db, Some(SQNR_LIMIT_DB), "exact");
        assert_eq!(layer.output_sqnr_db, Some(-SQNR_LIMIT_DB), "nothing is left of it");
        assert_eq!((layer.outlier_channels.len(), layer.outliers()), (OUTLIERS_NAMED, few as u64));
        assert_eq!(layer.outlier_channels[0].channel, few as u64 - 1, "the largest come first");
    }
}
