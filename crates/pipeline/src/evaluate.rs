//! Measuring both models on the config's tasks, and holding the losses against the gates.

use std::ops::ControlFlow;
use std::path::Path;

use zeropoint_calibrator::Room;
use zeropoint_evaluator::report::{Gate, Metric};
use zeropoint_evaluator::tasks::{Models, Task, TaskError, run_task};
use zeropoint_kernels::Isa;
use zeropoint_models::{FloatParts, ModelParts, SourceRef};
use zeropoint_runtime::QuantizedParts;

use crate::events::{Cancel, Event, Events, Stage};
use crate::memory::Memory;
use crate::streamed::Streamed;
use crate::{PipelineError, Prepared, convert};

/// Runs one task on the original and the quantised model.
pub(crate) fn measure(
    prepared: &Prepared,
    task: &Task,
    models: [&dyn ModelParts; 2],
    room: Room<'_>,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<Vec<Metric>, PipelineError> {
    let isa = Isa::active().map_err(zeropoint_models::ModelError::from)?;
    let [original, quantized] = models.map(|model| Streamed { model, isa, room, cancel });
    let models = Models {
        original: &original,
        quantized: &quantized,
        inputs: &prepared.inputs,
        activation: prepared.activation,
    };
    let mut progress = |done, total| -> ControlFlow<()> {
        events.event(Event::Evaluated { task: task.name.clone(), done, total });
        cancel.flow()
    };
    run_task(task, &models, prepared.options, &mut progress).map_err(|error| match error {
        TaskError::Cancelled => PipelineError::Cancelled,
        _ if cancel.is_requested() => PipelineError::Cancelled,
        error => error.into(),
    })
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
    memory: Memory,
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
    let quantized = QuantizedParts::from_directory(directory, memory.whole())?;
    let original = FloatParts::new(&prepared.directory, memory.whole())?;
    let temporary = std::env::temp_dir();
    let room = Room { memory: memory.0, dir: &temporary };
    if !prepared.tasks.is_empty() {
        events.event(Event::Started(Stage::Evaluate));
    }
    let mut metrics = Vec::new();
    for task in &prepared.tasks {
        metrics.extend(measure(prepared, task, [&original, &quantized], room, events, cancel)?);
    }
    let gates = gates(prepared, &metrics);
    Ok((metrics, gates))
}
