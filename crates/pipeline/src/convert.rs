//! The config's words in the terms of the crates that do the work.

use zeropoint_calibrator::dataset::{FieldRef, Fields, Format, ReadOptions};
use zeropoint_core::Scheme;
use zeropoint_models::Task;
use zeropoint_observer::{RangeObserver, WeightObserver};
use zeropoint_quantizer::{
    EmbeddingPrecision, LayerOverride, LayerScheme, Pattern, PatternError, PlanRequest,
};

use crate::config::{
    self, ActivationObserver, Column, DataFormat, DataSource, Embeddings, ModelTask, Quantization,
};

pub(crate) fn task(task: ModelTask) -> Task {
    match task {
        ModelTask::Auto => Task::Auto,
        ModelTask::Embedding => Task::Embedding,
        ModelTask::Classification => Task::Classification,
        ModelTask::TokenClassification => Task::TokenClassification,
        ModelTask::MaskedLm => Task::MaskedLm,
        ModelTask::QuestionAnswering => Task::QuestionAnswering,
    }
}

pub(crate) fn plan_request(quantization: &Quantization) -> Result<PlanRequest, PatternError> {
    let patterns = |list: &[config::Pattern]| -> Result<Vec<Pattern>, PatternError> {
        list.iter().map(|pattern| Pattern::parse(pattern.as_str())).collect()
    };
    Ok(PlanRequest {
        scheme: layer_scheme(quantization.layer_scheme()),
        ignore: quantization.ignore.as_deref().map(patterns).transpose()?,
        overrides: quantization
            .overrides
            .iter()
            .map(|exception| {
                Ok(LayerOverride {
                    layers: patterns(&exception.layers)?,
                    scheme: exception.layer_scheme().map(layer_scheme),
                })
            })
            .collect::<Result<_, PatternError>>()?,
        embeddings: match quantization.embeddings {
            Embeddings::Keep => EmbeddingPrecision::Keep,
            Embeddings::Bf16 => EmbeddingPrecision::Bf16,
        },
    })
}

pub(crate) fn layer_scheme(scheme: config::LayerScheme) -> LayerScheme {
    LayerScheme {
        weight_observer: match scheme.weights.observer {
            config::WeightObserver::MinMax => WeightObserver::MinMax,
            config::WeightObserver::Mse => WeightObserver::Mse,
        },
        range_observer: match (scheme.activations.observer, scheme.activations.percentile) {
            (Some(ActivationObserver::Percentile), Some(percentile)) => {
                RangeObserver::Percentile { percentile }
            }
            (Some(ActivationObserver::Mse), _) => RangeObserver::Mse,
            _ => RangeObserver::MinMax,
        },
        scheme: Scheme::from(scheme),
    }
}

pub(crate) fn read_options(source: &DataSource) -> ReadOptions {
    let place = |field: &mut FieldRef, column: &Option<Column>| match column {
        Some(Column::Name(name)) => *field = FieldRef::Name(name.clone()),
        Some(Column::Index(index)) => *field = FieldRef::Column(*index),
        None => {}
    };
    let mut fields = Fields::default();
    place(&mut fields.text, &source.text);
    place(&mut fields.text_a, &source.text_a);
    place(&mut fields.text_b, &source.text_b);
    place(&mut fields.score, &source.score);
    place(&mut fields.label, &source.label);
    // The config allows ASCII delimiters only.
    let delimiter = source.delimiter.and_then(|delimiter| u8::try_from(delimiter).ok()).unwrap_or(b',');
    ReadOptions {
        format: Some(match source.format {
            DataFormat::Jsonl => Format::Jsonl,
            DataFormat::Txt => Format::Txt,
            DataFormat::Csv => Format::Csv { header: source.header, delimiter },
        }),
        fields,
    }
}
