//! Everything that can be known before long work starts: the model described, the plan made, all data read and checked.

use std::collections::BTreeSet;

use zeropoint_calibrator::dataset::{self, Record, Sample};
use zeropoint_calibrator::{BatchPlan, CalibrationSet, Inputs};
use zeropoint_evaluator::tasks::{ImageTask, Options, RankingPrompts, Task, TaskData, TaskError, Windows};
use zeropoint_formats::DirectoryFormat;
use zeropoint_models::{ActivationFn, HeadOutput, LinearId, ModelDirectory, ModelInput, ModelSpec};
use zeropoint_quantizer::{Plan, TransformError, TransformPlan, WeightAlgorithm};

use crate::PipelineError;
use crate::config::{self, Config};
use crate::graph::Graph;
use crate::modality::fit_samples;
use crate::samples::{
    CalibrationSamples, Conversations, calibration_samples, longest, prompts, read_source, sequences,
    split_pairs,
};
use crate::sources::{LocalModel, Sources};
use crate::{blame, convert};

/// A run that is ready to start.
pub struct Prepared {
    /// The config with every default written out.
    pub config: Config,
    /// The float model's directory; no weight has been read.
    pub directory: ModelDirectory,
    /// The model that is quantised, where transforms make it another.
    pub(crate) transformed: Option<Graph>,
    /// What happens to every Linear.
    pub plan: Plan,
    /// Cuts at the calibration's length.
    pub calibration: CalibrationSet,
    /// The batches of it that factors of transforms are chosen from, where any are.
    pub(crate) factor_plan: Option<BatchPlan>,
    /// What makes the model's inputs for evaluation; cuts texts at the model's own length.
    pub inputs: Inputs,
    /// The tasks with their data, checked against the model.
    pub tasks: Vec<Task>,
    /// How tasks are run.
    pub options: Options,
    /// Between the logit of a cross-encoder and its score.
    pub activation: ActivationFn,
    /// What works but should be known.
    pub warnings: Vec<String>,
    /// Where the model came from.
    pub(crate) model: LocalModel,
}

impl Prepared {
    /// Opens, plans, reads and checks, as `config` says. Reads headers and data files, no weights.
    pub fn new(config: Config) -> Result<Self, PipelineError> {
        Self::with_sources(config, &Sources::default())
    }

    /// As [`Prepared::new`], with models and data of the hub fetched as `sources` says. The config that comes of it names
    /// the commits that were fetched, so that a later run of it reads the same files.
    pub fn with_sources(mut config: Config, sources: &Sources<'_>) -> Result<Self, PipelineError> {
        // Before the model, which may be large: a wrong name of a data file should not cost a download.
        pin_data(&mut config, sources)?;
        let (model, directory) =
            open_model(&config, sources).map_err(|error| blame::model(error, &config))?;
        let left_out = settle_transforms(&mut config, &directory);
        let (plan, transformed) =
            plan_with_transforms(&config, &directory).map_err(|error| blame::plan(error, &config))?;
        let mut warnings = plan.warnings.clone();
        warnings.extend(left_out);
        if let Some(graph) = &transformed {
            warnings.extend(graph.plan.notes.iter().cloned());
            warnings.extend(graph.untied_bytes().map(|bytes| {
                format!("the output matrix is no longer the embedding table: it is written as a tensor of its own, {bytes} bytes more in floats")
            }));
        }
        if let Some(commit) = &model.commit {
            config.model.revision = Some(commit.clone());
        } else if config.model.revision.is_some() {
            warnings.push(
                "`model.revision` has no meaning for a directory; the files are taken as they are".to_owned(),
            );
        }

        if model.bytes_missing > 0 {
            warnings.push(format!(
                "weights of {} bytes are not in the cache: a run downloads them",
                model.bytes_missing
            ));
        }
        let settings = &config.calibration;
        let makes = Inputs::of(&directory, Some(longest(&config, &directory)))
            .map_err(|error| blame::model(error.into(), &config))?;
        // Of the calibration data no more is held than is used.
        let tasks = config.evaluation.tasks.iter().filter(|task| task.data.is_none());
        let first = tasks.filter_map(config::Task::most_samples).max().unwrap_or(0);
        let CalibrationSamples { drawn, available, first, origin } =
            calibration_samples(&config, &directory, &makes, first, sources)?;
        if available == 0 {
            return Err(PipelineError::NoSamples { origin }.named_by(
                &config,
                &["calibration.data"],
                "no text",
            ));
        }
        if available < settings.samples {
            warnings.push(format!(
                "{origin} holds {available} samples, {} were asked for; all of them are used",
                settings.samples
            ));
        }
        let calibration = CalibrationSet::of_chosen(
            &drawn.iter().collect::<Vec<_>>(),
            available,
            &makes,
            settings.batch_size,
        )?;
        let smooths = transformed.as_ref().is_some_and(|graph| graph.plan.needs_statistics());
        // How many tokens an expert gets is reported of all.
        let mut blocks = directory.spec().towers.iter().flat_map(|tower| &tower.blocks);
        let has_experts = blocks.any(|block| block.mlp.experts().is_some());
        let factor_tokens = if has_experts { usize::MAX } else { settings.transform_tokens };
        let rows = |input: &ModelInput| input.rows(directory.spec());
        let factor_plan = smooths.then(|| calibration.spread(factor_tokens, &rows, settings.batch_size));
        let inputs = Inputs::of(&directory, None)?;
        let tasks = config
            .evaluation
            .tasks
            .iter()
            .enumerate()
            .map(|(index, task)| {
                read_task(task, &first, &directory, sources)
                    .and_then(|task| Ok(task.check(directory.spec(), &inputs).map(|()| task)?))
                    .map_err(|error| blame::task(error, &config, index))
            })
            .collect::<Result<Vec<_>, PipelineError>>()?;
        check_gates(&config, &directory, &tasks)?;
        let config = effective(config, &directory, &plan);
        let options = Options {
            batch_size: config.evaluation.batch_size,
            resamples: config.evaluation.bootstrap_resamples,
            seed: config.evaluation.seed,
        };
        Ok(Self {
            activation: directory.score_activation()?,
            inputs,
            config,
            directory,
            transformed,
            plan,
            calibration,
            factor_plan,
            tasks,
            options,
            warnings,
            model,
        })
    }

    /// The model that is quantised: with its transforms, of which no tensor can be read before their factors are chosen.
    pub(crate) fn graph(&self) -> &ModelDirectory {
        self.transformed.as_ref().map_or(&self.directory, |graph| &graph.directory)
    }

    /// Observing passes over the calibration set: of the model that is quantised, and where static ranges are those of a model whose
    /// smoothing is chosen from the original's, of the original before.
    pub(crate) fn observing_passes(&self) -> usize {
        if self.calibration.inputs.is_empty() {
            0
        } else if self.factor_plan.is_some() && self.plan.needs_statistics() {
            2
        } else {
            1
        }
    }

    /// The batches of the first observing pass: those that factors are chosen from, or all.
    pub(crate) fn first_pass(&self) -> &BatchPlan {
        self.factor_plan.as_ref().unwrap_or(&self.calibration.plan)
    }

    /// The batches of the last one, which are no fewer.
    pub(crate) fn last_pass(&self) -> &BatchPlan {
        if self.observing_passes() > 1 { &self.calibration.plan } else { self.first_pass() }
    }

    /// Whether weights are rounded, or biases corrected, for what the calibration texts give behind the integers before them.
    pub(crate) fn is_sequential(&self) -> bool {
        self.plan.algorithm != WeightAlgorithm::Rtn || self.plan.bias_correction
    }

    /// The scheme for reports: the preset, and what the config made of it.
    pub fn scheme_name(&self) -> String {
        let quantization = &self.config.quantization;
        let layer = convert::layer_scheme(quantization.layer_scheme());
        let mut name = format!(
            "{}: {}, weight range {}",
            quantization.scheme.as_str(),
            layer.scheme,
            layer.weight_observer
        );
        if layer.scheme.is_static() {
            name = name + ", activation range " + &layer.range_observer.to_string();
        }
        if quantization.embeddings != config::Embeddings::Keep {
            name = name + ", embedding tables " + quantization.embeddings.as_str();
        }
        if quantization.lm_head == config::LmHead::Int8 {
            name.push_str(", lm_head int8");
        }
        if quantization.algorithm.kind == config::AlgorithmKind::Gptq {
            name.push_str(", gptq");
        }
        if quantization.bias_correction {
            name.push_str(", bias correction");
        }
        for transform in quantization.transforms.iter().flatten() {
            name = name + ", " + &transform.in_words();
        }
        if self.plan.format == DirectoryFormat::Zeropoint {
            name.push_str(", format zeropoint");
        }
        match quantization.overrides.len() {
            0 => {}
            1 => name.push_str(", 1 override"),
            count => name = format!("{name}, {count} overrides"),
        }
        name
    }
}

/// Fills in the transforms that the preset says, those that are exact in the model beside the ones before; what is left out, with its
/// reason.
fn settle_transforms(config: &mut Config, directory: &ModelDirectory) -> Vec<String> {
    let quantization = &mut config.quantization;
    if quantization.transforms.is_some() {
        return Vec::new();
    }
    let of_preset = quantization.scheme.transforms();
    quantization.transforms = Some(Vec::new());
    // A plan that fails does so once more behind this.
    let planned =
        convert::plan_request(config).ok().and_then(|request| Plan::new(directory.spec(), &request).ok());
    let Some(plan) = planned else { return Vec::new() };
    let quantized: BTreeSet<LinearId> = plan.quantized().map(|(linear, _)| linear.linear).collect();
    let (mut kept, mut left_out) = (Vec::new(), Vec::new());
    let quantization = &mut config.quantization;
    for transform in of_preset {
        quantization.transforms = Some(kept.iter().chain([&transform]).cloned().collect());
        // A preset names no layers, so there is no pattern to be wrong.
        let transforms = convert::transforms(quantization).unwrap_or_default();
        match TransformPlan::new(directory.spec(), &transforms, &|id| quantized.contains(&id)) {
            Ok(_) => kept.push(transform),
            Err(error) => left_out.push(format!(
                "\"{}\" goes without its transform \"{}\", which this model does not allow: {}",
                quantization.scheme.as_str(),
                transform.kind.as_str(),
                match error {
                    TransformError::Impossible { reason, .. } => reason,
                    other => other.to_string(),
                }
            )),
        }
    }
    quantization.transforms = Some(kept);
    left_out
}

/// The plan, and the graph that it is for where there are transforms.
fn plan_with_transforms(
    config: &Config,
    directory: &ModelDirectory,
) -> Result<(Plan, Option<Graph>), PipelineError> {
    let request = convert::plan_request(config)?;
    let transforms = convert::transforms(&config.quantization)?;
    let plan = Plan::new(directory.spec(), &request)?;
    if transforms.is_empty() {
        return Ok((plan, None));
    }
    let quantized: BTreeSet<LinearId> = plan.quantized().map(|(linear, _)| linear.linear).collect();
    let transform_plan =
        TransformPlan::new(directory.spec(), &transforms, &|linear| quantized.contains(&linear))?;
    let graph = Graph::new(directory, transform_plan, &quantized)?;
    // An output matrix that is no table any more, and inputs that are rotated, change what can be planned.
    let plan = Plan::new(graph.directory.spec(), &request)?;
    Ok((plan, Some(graph)))
}

fn open_model(config: &Config, sources: &Sources<'_>) -> Result<(LocalModel, ModelDirectory), PipelineError> {
    let model = sources.model(&config.model.source, config.model.revision.as_deref())?;
    let directory = ModelDirectory::open(&model.source, convert::task(config.model.task))?;
    if directory.quantization_config().is_some() {
        return Err(PipelineError::AlreadyQuantized { path: directory.path().to_owned() });
    }
    Ok((model, directory))
}

/// The config with what the model decides where the config leaves it open: its task, the tokens it takes, the Linears
/// that stay float. Run again, it gives the same.
fn effective(mut config: Config, directory: &ModelDirectory, plan: &Plan) -> Config {
    let spec = directory.spec();
    // A run is one of a sweep, or has nothing to do with it.
    config.sweep = config::Sweep::default();
    config.model.task = match spec.head().output {
        HeadOutput::Embedding { .. } => config::ModelTask::Embedding,
        HeadOutput::Classification { .. } => config::ModelTask::Classification,
        HeadOutput::TokenClassification { .. } => config::ModelTask::TokenClassification,
        HeadOutput::MaskedLm => config::ModelTask::MaskedLm,
        HeadOutput::CausalLm => config::ModelTask::CausalLm,
        HeadOutput::QuestionAnswering => config::ModelTask::QuestionAnswering,
    };
    let most = spec.text().map_or(0, |_| directory.max_tokens());
    let length = spec.text().map_or(0, |_| longest(&config, directory));
    config.calibration.sequences = Some(sequences(&config, directory));
    if config::Calibration::MAX_LENGTH.contains(&length) {
        config.calibration.max_length = Some(length);
    }
    for task in &mut config.evaluation.tasks {
        task.limit = task.most_samples();
        task.settle_windows(most);
    }
    config.quantization.ignore.get_or_insert_with(|| {
        let ignored = plan.linears.iter().filter(|plan| {
            spec.linears[plan.linear].role.default_ignore_reason().is_some() && plan.scheme().is_none()
        });
        ignored.map(|plan| config::Pattern(plan.path.clone())).collect()
    });
    config
}

/// Fetches the data files of the hub and puts their commits into the config.
fn pin_data(config: &mut Config, sources: &Sources<'_>) -> Result<(), PipelineError> {
    let pin = |source: &config::DataSource, at: &str| {
        let file = sources.data(&source.path).map_err(|error| blame::data(error, config, at))?;
        Ok(file.pinned.unwrap_or_else(|| source.path.clone()))
    };
    let texts = config.calibration.data.iter().enumerate();
    let texts: Vec<String> = texts
        .map(|(index, source)| pin(source, &format!("calibration.data.{index}")))
        .collect::<Result<_, PipelineError>>()?;
    let tasks = config.evaluation.tasks.iter().enumerate();
    let tasks: Vec<Option<String>> = tasks
        .map(|(index, task)| {
            task.data.as_ref().map(|data| pin(data, &format!("evaluation.tasks.{index}.data"))).transpose()
        })
        .collect::<Result<_, PipelineError>>()?;
    for (source, path) in config.calibration.data.iter_mut().zip(texts) {
        source.path = path;
    }
    for (task, path) in config.evaluation.tasks.iter_mut().zip(tasks) {
        if let (Some(data), Some(path)) = (&mut task.data, path) {
            data.path = path;
        }
    }
    Ok(())
}

fn read_task(
    task: &config::Task,
    calibration: &[Sample],
    directory: &ModelDirectory,
    sources: &Sources<'_>,
) -> Result<Task, PipelineError> {
    // Whether the model can do this at all is said before what is wrong with the data.
    let spec = directory.spec();
    let images = image_task(task, spec);
    let data = images.clone().map_or_else(|| no_data(task), |images| TaskData::Images(images, Vec::new()));
    Task { name: task.name.clone(), data }.metrics(spec)?;
    let limit = task.most_samples().unwrap_or(usize::MAX);
    let samples = || -> Result<Vec<Sample>, PipelineError> {
        match &task.data {
            Some(source) => {
                let (conversations, mut samples) = (Conversations::of(directory), Vec::new());
                read_source(source, directory, &conversations, sources, &mut |sample| {
                    samples.push(sample);
                    Ok(())
                })?;
                Ok(samples)
            }
            None => Ok(calibration.to_vec()),
        }
    };
    if let Some(images) = images {
        let mut samples = samples()?;
        samples.truncate(limit);
        let fidelity = images == ImageTask::Fidelity;
        if !fidelity {
            // A caption beside an image is no part of it.
            let captioned = samples.iter_mut().filter(|sample| sample.image.is_some());
            captioned.for_each(|sample| sample.text_a.clear());
        }
        let data = TaskData::Images(images, fit_samples(samples, spec)?);
        return Ok(Task { name: task.name.clone(), data });
    }
    let texts = |split: bool| -> Result<Vec<Sample>, PipelineError> {
        let mut samples = fit_samples(samples()?, spec)?;
        samples.retain(|sample| sample.image.is_none());
        let mut samples = if split { split_pairs(samples) } else { samples };
        samples.truncate(limit);
        Ok(samples)
    };
    let data = match task.kind {
        config::TaskKind::Sts => TaskData::Sts(texts(false)?),
        config::TaskKind::Classification => TaskData::Classification(texts(false)?),
        config::TaskKind::Fidelity if task.has_windows() => {
            TaskData::WindowFidelity(windows(task, directory, sources)?)
        }
        config::TaskKind::Fidelity => TaskData::Fidelity(texts(spec.head().is_embedding())?),
        config::TaskKind::ZeroShot => no_data(task),
        config::TaskKind::MaskedLm => TaskData::MaskedLm(texts(true)?),
        config::TaskKind::Perplexity => TaskData::Perplexity(windows(task, directory, sources)?),
        config::TaskKind::TokenClassification => TaskData::TokenClassification(rows(task, limit, sources)?),
        config::TaskKind::QuestionAnswering => TaskData::QuestionAnswering(rows(task, limit, sources)?),
        config::TaskKind::MultipleChoice => TaskData::MultipleChoice(rows(task, limit, sources)?),
        config::TaskKind::Reranking => {
            let [query, document] = prompts(task.data.as_ref(), directory)?;
            TaskData::Reranking(rows(task, limit, sources)?, RankingPrompts { query, document })
        }
    };
    Ok(Task { name: task.name.clone(), data })
}

fn no_data(task: &config::Task) -> TaskData {
    match task.kind {
        config::TaskKind::Sts => TaskData::Sts(Vec::new()),
        config::TaskKind::Classification => TaskData::Classification(Vec::new()),
        config::TaskKind::Fidelity if task.has_windows() => TaskData::WindowFidelity(Windows::default()),
        config::TaskKind::Fidelity => TaskData::Fidelity(Vec::new()),
        config::TaskKind::MaskedLm => TaskData::MaskedLm(Vec::new()),
        config::TaskKind::TokenClassification => TaskData::TokenClassification(Vec::new()),
        config::TaskKind::QuestionAnswering => TaskData::QuestionAnswering(Vec::new()),
        config::TaskKind::Reranking => TaskData::Reranking(Vec::new(), RankingPrompts::default()),
        config::TaskKind::MultipleChoice => TaskData::MultipleChoice(Vec::new()),
        config::TaskKind::Perplexity => TaskData::Perplexity(Windows::default()),
        config::TaskKind::ZeroShot => TaskData::Images(zero_shot(None, None), Vec::new()),
    }
}

/// The task as one on images, when the model takes images and the kind is for them.
fn image_task(task: &config::Task, spec: &ModelSpec) -> Option<ImageTask> {
    match task.kind {
        config::TaskKind::ZeroShot => Some(zero_shot(task.labels.clone(), task.templates.clone())),
        config::TaskKind::Classification if spec.image().is_some() => Some(ImageTask::Classification),
        config::TaskKind::Fidelity if spec.image().is_some() && !task.has_windows() => {
            Some(ImageTask::Fidelity)
        }
        _ => None,
    }
}

fn zero_shot(labels: Option<Vec<String>>, templates: Option<Vec<String>>) -> ImageTask {
    ImageTask::ZeroShot { labels: labels.unwrap_or_default(), templates: templates.unwrap_or_default() }
}

/// The windows of a task's text; the config has made sure that there is a file.
fn windows(
    task: &config::Task,
    directory: &ModelDirectory,
    sources: &Sources<'_>,
) -> Result<Windows, PipelineError> {
    let (mut settled, most) = (task.clone(), directory.max_tokens());
    settled.settle_windows(most);
    let window = settled.window.unwrap_or(most);
    if window > most {
        return Err(TaskError::Window { task: task.name.clone(), window, most }.into());
    }
    let path = task.data.as_ref().map_or("", |source| source.path.as_str());
    let file = sources.data(path)?.path;
    let tokenizer = directory.tokenizer(None)?;
    let ids = tokenizer.token_ids(&dataset::read_document(&file)?)?;
    let origin = || file.display().to_string();
    if ids.len() < 2 {
        return Err(TaskError::ShortText { task: task.name.clone(), origin: origin() }.into());
    }
    let windows = task.windows.unwrap_or(usize::MAX);
    if settled.counting == Some(config::Counting::LlamaCpp) {
        let (before, _) = tokenizer.specials_around()?;
        let tokens = before.len() + ids.len();
        if tokens < 2 * window {
            let task = task.name.clone();
            return Err(TaskError::FewWindows { task, origin: origin(), tokens, window }.into());
        }
        return Ok(Windows::llama_cpp(&before, &ids, window, windows));
    }
    Ok(Windows::new(&ids, window, settled.stride.unwrap_or(window), windows))
}

/// Rows with lists; the config has made sure that there is a file.
fn rows<T: Record>(
    task: &config::Task,
    limit: usize,
    sources: &Sources<'_>,
) -> Result<Vec<T>, PipelineError> {
    let path = task.data.as_ref().map_or("", |source| source.path.as_str());
    let mut rows = dataset::read_records(&sources.data(path)?.path)?;
    rows.truncate(limit);
    Ok(rows)
}

/// A gate on a metric that this model does not have could never be held.
fn check_gates(config: &Config, directory: &ModelDirectory, tasks: &[Task]) -> Result<(), PipelineError> {
    for (index, gate) in config.evaluation.gate.iter().enumerate() {
        let Some(task) = tasks.iter().find(|task| task.name == gate.task) else { continue };
        let metrics = task.metrics(directory.spec())?;
        if !metrics.contains(&gate.metric.as_str()) {
            let error = PipelineError::Gate {
                task: gate.task.clone(),
                metric: gate.metric.to_string(),
                reason: format!(
                    "with what {} gives, a task of this kind has {}",
                    directory.spec().architecture,
                    metrics.join(", ")
                ),
            };
            let key = format!("evaluation.gate.{index}.metric");
            return Err(error.named_by(config, &[key], "not a metric of this model"));
        }
    }
    Ok(())
}
