//! Which key of the config named what has turned out to be wrong, and a few words to stand there.

use std::io::ErrorKind;

use zeropoint_calibrator::dataset::{DatasetError, Problem};
use zeropoint_evaluator::tasks::TaskError;
#[cfg(feature = "hub")]
use zeropoint_hub::HubError;
use zeropoint_models::ModelError;
use zeropoint_quantizer::{PlanError, TransformError};

use crate::PipelineError;
use crate::config::{Column, Config, DataSource};

/// The model could not be opened or described.
pub(crate) fn model(error: PipelineError, config: &Config) -> PipelineError {
    let (key, label) = match &error {
        PipelineError::Model(ModelError::Task { .. }) => ("model.task", "not what this model does"),
        PipelineError::Model(ModelError::NotFound { .. } | ModelError::HubId { .. }) => {
            ("model.source", "not found")
        }
        PipelineError::Model(ModelError::Io { source, .. }) if source.kind() == ErrorKind::NotADirectory => {
            ("model.source", "not a directory")
        }
        PipelineError::AlreadyQuantized { .. } => ("model.source", "quantised already"),
        #[cfg(feature = "hub")]
        PipelineError::NoModel { .. } => ("model.source", "not found"),
        #[cfg(feature = "hub")]
        PipelineError::Hub(HubError::Revision { .. } | HubError::RevisionName { .. }) => {
            ("model.revision", "no such revision")
        }
        _ => ("model.source", "this model"),
    };
    error.named_by(config, &[key], label)
}

/// The plan does not fit the model.
pub(crate) fn plan(error: PipelineError, config: &Config) -> PipelineError {
    let quantization = &config.quantization;
    let (keys, label) = match &error {
        PipelineError::Plan(PlanError::NoMatch { place, pattern, .. })
        | PipelineError::Transform(TransformError::Pattern(PlanError::NoMatch { place, pattern, .. })) => {
            (pattern_keys(config, place, pattern), "matches no Linear")
        }
        PipelineError::Plan(PlanError::OnlyIgnored { place, pattern, .. }) => {
            (pattern_keys(config, place, pattern), "only Linears that stay float anyway")
        }
        PipelineError::Plan(PlanError::Nothing { .. }) => {
            let key = if quantization.ignore.is_some() { "ignore" } else { "overrides" };
            (vec![format!("quantization.{key}")], "leaves nothing to quantise")
        }
        PipelineError::Plan(PlanError::NothingPossible { .. }) => {
            (vec!["model.source".to_owned()], "has no Linear that this format carries in INT8")
        }
        PipelineError::Plan(PlanError::Impossible { .. }) => {
            (vec!["quantization.ignore".to_owned()], "does not name it")
        }
        PipelineError::Plan(PlanError::NoLanguageHead { .. }) => {
            (vec!["quantization.lm_head".to_owned()], "this model has none")
        }
        PipelineError::Plan(PlanError::OnlineRotation) => {
            (vec!["quantization.transforms".to_owned()], "not in this format")
        }
        PipelineError::Transform(TransformError::Impossible { place, .. }) => {
            (vec![place.clone()], "not exact in this model")
        }
        PipelineError::Transform(TransformError::Layer { place, .. }) => {
            (vec![place.clone()], "not exact there")
        }
        PipelineError::Plan(PlanError::Groups { .. }) => {
            let keys = ["quantization.weights.group_size", "quantization.weights", "quantization.scheme"];
            (keys.map(str::to_owned).to_vec(), "does not divide")
        }
        PipelineError::Plan(PlanError::NoBias { .. }) => {
            (vec!["quantization.bias_correction".to_owned()], "nothing to correct")
        }
        PipelineError::Plan(PlanError::Int8Tables) => {
            (vec!["quantization.embeddings".to_owned()], "not in this format")
        }
        PipelineError::Plan(PlanError::Expert { .. }) => {
            (vec!["model.source".to_owned()], "is a mixture of experts")
        }
        PipelineError::Plan(PlanError::NeverObserved { .. }) => {
            (vec!["quantization.scheme".to_owned()], "needs the range of every input")
        }
        _ => return error,
    };
    error.named_by(config, &keys, label)
}

/// The pattern itself in the list at `place`, else the list.
fn pattern_keys(config: &Config, place: &str, pattern: &str) -> Vec<String> {
    let quantization = &config.quantization;
    let index_behind = |list: &str| -> Option<usize> {
        place.strip_prefix(list)?.split_once('.').and_then(|(index, _)| index.parse().ok())
    };
    let list = if let Some(index) = index_behind("quantization.overrides.") {
        quantization.overrides.get(index).map(|other| &other.layers)
    } else if let Some(index) = index_behind("quantization.transforms.") {
        quantization.transforms.iter().flatten().nth(index).and_then(|transform| transform.layers.as_ref())
    } else {
        quantization.ignore.as_ref()
    };
    let index = list.and_then(|list| list.iter().position(|known| known.as_str() == pattern));
    index.map(|index| format!("{place}.{index}")).into_iter().chain([place.to_owned()]).collect()
}

/// The data file that is named at `at` cannot be read as the config says.
pub(crate) fn data(error: PipelineError, config: &Config, at: &str) -> PipelineError {
    let (column, label) = match data_problem(&error) {
        Some(Problem::Io(error)) if error.kind() == ErrorKind::NotFound => ("path", "not found"),
        Some(Problem::MissingField { field, .. }) => {
            (column_named(source(config, at), field).unwrap_or("path"), "no such field in this file")
        }
        Some(Problem::NoSuchColumn { role, .. }) => (*role, "no such column in this file"),
        Some(Problem::ColumnInJson { .. } | Problem::NameWithoutHeader { .. }) => ("path", "read so"),
        Some(Problem::Empty) => ("path", "empty"),
        _ => ("path", "this file"),
    };
    let keys = [format!("{at}.{column}"), format!("{at}.path"), at.to_owned()];
    error.named_by(config, &keys, label)
}

/// Task number `index` cannot be measured on this model with this data.
pub(crate) fn task(error: PipelineError, config: &Config, index: usize) -> PipelineError {
    let at = format!("evaluation.tasks.{index}");
    match &error {
        PipelineError::Task(TaskError::Head { .. }) => {
            error.named_by(config, &[format!("{at}.kind")], "not what this model does")
        }
        PipelineError::Task(TaskError::Data { .. }) => {
            let keys = [format!("{at}.data.path"), format!("{at}.data"), format!("{at}.kind")];
            error.named_by(config, &keys, "lacks what the task needs")
        }
        PipelineError::Task(TaskError::Label { .. }) => {
            let keys = [format!("{at}.data.path"), format!("{at}.data")];
            error.named_by(config, &keys, "has labels that the model does not have")
        }
        _ => data(error, config, &format!("{at}.data")),
    }
}

fn data_problem(error: &PipelineError) -> Option<&Problem> {
    match error {
        PipelineError::Data(DatasetError { problem, .. }) => Some(problem),
        _ => None,
    }
}

/// The data source that the config has at `at`.
fn source<'a>(config: &'a Config, at: &str) -> Option<&'a DataSource> {
    let index = |rest: &str| rest.split('.').next()?.parse::<usize>().ok();
    match at.strip_prefix("calibration.data.") {
        Some(rest) => config.calibration.data.get(index(rest)?),
        None => config.evaluation.tasks.get(index(at.strip_prefix("evaluation.tasks.")?)?)?.data.as_ref(),
    }
}

/// The key of the column whose name is among the quoted ones of `missing`.
fn column_named(source: Option<&DataSource>, missing: &str) -> Option<&'static str> {
    let source = source?;
    let columns = [
        ("text", &source.text),
        ("text_a", &source.text_a),
        ("text_b", &source.text_b),
        ("score", &source.score),
        ("label", &source.label),
    ];
    let is_missing = |column: &Option<Column>| match column {
        Some(Column::Name(name)) => missing.contains(&format!("`{name}`")),
        _ => false,
    };
    columns.into_iter().find(|(_, column)| is_missing(column)).map(|(key, _)| key)
}
