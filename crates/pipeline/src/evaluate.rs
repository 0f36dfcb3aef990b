//! Measuring both models on the config's tasks, and holding the losses against the gates.

use std::ops::ControlFlow;
use std::path::Path;

use zeropoint_calibrator::Room;
use zeropoint_core::Fingerprint;
use zeropoint_evaluator::report::{Gate, Metric};
use zeropoint_evaluator::tasks::{Forward, Models, Task, TaskError, run_task};
use zeropoint_models::{FloatParts, SourceRef};
use zeropoint_runtime::QuantizedParts;

use crate::events::{Cancel, Event, Events, Stage};
use crate::identity::{Identity, model_weights};
use crate::kept::{KeptOriginal, KeptOutputs};
use crate::log_prob_cache::LogProbCache;
use crate::memory::Memory;
use crate::original::CodedOriginal;
use crate::statistics::CacheDir;
use crate::streamed::Streamed;
use crate::{PipelineError, Prepared, convert};

/// The original of an evaluation, and where what it gives is kept.
#[derive(Clone, Copy)]
pub(crate) struct Original<'a> {
    pub(crate) model: &'a dyn Forward,
    /// Of its weights and files; `None` where nothing is kept.
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) cache: &'a CacheDir,
    /// What was kept of it in memory.
    pub(crate) kept: Option<&'a KeptOutputs>,
}

/// Runs one task on both models.
pub(crate) fn measure(
    prepared: &Prepared,
    task: &Task,
    original: Original<'_>,
    quantized: &dyn Forward,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<Vec<Metric>, PipelineError> {
    let Original { model, fingerprint, cache, kept } = original;
    let coded = task.compares_next_tokens(model.spec());
    // Log-probabilities of a vocabulary are large, and have a place of their own.
    let remembered = kept.filter(|_| !coded).map(|kept| KeptOriginal { original: model, kept });
    let model = remembered.as_ref().map_or(model, |remembered| remembered as &dyn Forward);
    let coded = coded.then(|| {
        let kept = fingerprint.zip(cache.path());
        CodedOriginal::new(model, kept.map(|(model, dir)| (model, LogProbCache::at(dir))))
    });
    let models = Models {
        original: coded.as_ref().map_or(model, |coded| coded as &dyn Forward),
        quantized,
        inputs: &prepared.inputs,
        activation: prepared.activation,
    };
    let mut progress = |done, total| -> ControlFlow<()> {
        events.event(Event::Evaluated { task: task.name.clone(), done, total });
        cancel.flow()
    };
    let measured = run_task(task, &models, prepared.options, &mut progress);
    for warning in coded.iter().flat_map(CodedOriginal::warnings) {
        events.event(Event::Warning(warning));
    }
    measured.map_err(|error| match error {
        TaskError::Cancelled => PipelineError::Cancelled,
        _ if cancel.is_requested() => PipelineError::Cancelled,
        error => error.into(),
    })
}

/// How a directory is evaluated.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EvaluateOptions {
    /// Where the log-probabilities of decoders are looked for and kept.
    pub cache: CacheDir,
    /// What may be in memory.
    pub memory: Memory,
}

/// The gates of the config against these metrics.
pub(crate) fn gates(prepared: &Prepared, metrics: &[Metric]) -> Vec<Gate> {
    let gates = &prepared.config.evaluation.gate;
    gates
        .iter()
        .map(|gate| match metrics.iter().find(|m| m.task == gate.task && m.name == gate.metric.as_str()) {
            Some(metric) => Gate::check(metric, gate.max_drop),
            // What was not measured is not met.
            None => Gate {
                task: gate.task.clone(),
                metric: gate.metric.to_string(),
                max_drop: gate.max_drop,
                drop: f64::NAN,
                passed: false,
            },
        })
        .collect()
}

/// Evaluates a directory that was written before against the config's model: metrics and gates.
pub fn evaluate(
    prepared: &Prepared,
    dir: &Path,
    options: &EvaluateOptions,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<(Vec<Metric>, Vec<Gate>), PipelineError> {
    if !dir.is_dir() {
        return Err(PipelineError::Absent { path: dir.to_owned(), what: "quantised model directory" });
    }
    prepared.model.check_whole()?;
    events.event(Event::Started(Stage::Load));
    let directory = zeropoint_models::ModelDirectory::open(
        &SourceRef::Directory(dir.to_owned()),
        convert::task(prepared.config.model.task),
    )?;
    let (ours, theirs) = (prepared.directory.spec(), directory.spec());
    let other = |reason: String| PipelineError::OtherModel { path: dir.to_owned(), reason };
    if ours.architecture != theirs.architecture {
        return Err(other(format!("it is a {}, the config's a {}", theirs.architecture, ours.architecture)));
    }
    let shapes = |spec: &zeropoint_models::ModelSpec| -> Vec<_> {
        let shape = |l: &zeropoint_models::LinearSpec| (l.path.clone(), l.outputs, l.inputs, l.activation);
        spec.linears.iter().map(shape).collect()
    };
    if shapes(ours) != shapes(theirs) || ours.towers != theirs.towers {
        return Err(other("its layers have other names or sizes, or its head another form".to_owned()));
    }
    let quantized = QuantizedParts::from_directory(directory, options.memory.whole())?;
    let original = FloatParts::new(&prepared.directory, options.memory.whole())?;
    let keeps =
        prepared.tasks.iter().any(|task| task.compares_next_tokens(ours)) && options.cache != CacheDir::None;
    let fingerprint = keeps.then(|| -> Result<_, PipelineError> {
        Ok(Identity::of(prepared, Some(model_weights(prepared)?), None)?.model(None))
    });
    let temporary = std::env::temp_dir();
    let room = Room { memory: options.memory.0, dir: &temporary };
    let original = Streamed::new(&original, true, room, events, cancel)?;
    let quantized = Streamed::new(&quantized, false, room, events, cancel)?;
    let original = Original {
        model: &original,
        fingerprint: fingerprint.transpose()?,
        cache: &options.cache,
        kept: None,
    };
    if !prepared.tasks.is_empty() {
        events.event(Event::Started(Stage::Evaluate));
    }
    let mut metrics = Vec::new();
    for task in &prepared.tasks {
        metrics.extend(measure(prepared, task, original, &quantized, events, cancel)?);
    }
    let gates = gates(prepared, &metrics);
    Ok((metrics, gates))
}
