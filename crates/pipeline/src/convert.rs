//! The config's words in the terms of the crates that do the work.

use zeropoint_calibrator::dataset::{FieldRef, Fields, Format, ReadOptions};
use zeropoint_core::Scheme;
use zeropoint_formats::DirectoryFormat;
use zeropoint_models::{PromptChoice, Task};
use zeropoint_observer::{RangeObserver, WeightObserver};
use zeropoint_quantizer::transform::Strength;
use zeropoint_quantizer::{
    EmbeddingPrecision, HeadPrecision, LayerOverride, LayerScheme, Pattern, PatternError, PlanRequest,
    Transform, WeightAlgorithm,
};

use crate::config::{
    self, ActivationObserver, AlgorithmKind, Column, DataFormat, DataSource, Embeddings, LmHead, ModelTask,
    OutputFormat, TransformKind,
};

pub(crate) fn task(task: ModelTask) -> Task {
    match task {
        ModelTask::Auto => Task::Auto,
        ModelTask::Embedding => Task::Embedding,
        ModelTask::Classification => Task::Classification,
        ModelTask::TokenClassification => Task::TokenClassification,
        ModelTask::MaskedLm => Task::MaskedLm,
        ModelTask::CausalLm => Task::CausalLm,
        ModelTask::QuestionAnswering => Task::QuestionAnswering,
    }
}

/// The transforms of a config.
pub(crate) fn transforms(quantization: &config::Quantization) -> Result<Vec<Transform>, PatternError> {
    let transform = |transform: &config::Transform| {
        let layers = transform.layers.iter().flatten();
        let layers = layers.map(|pattern| Pattern::parse(pattern.as_str())).collect::<Result<_, _>>()?;
        let strength = match transform.search {
            Some(true) => Some(Strength::Search),
            _ => transform.strength.map(Strength::Fixed),
        };
        Ok(match transform.kind {
            TransformKind::Smoothquant => {
                Transform::SmoothQuant { strength: strength.unwrap_or(Strength::Search), layers }
            }
            TransformKind::Awq => Transform::ActivationAware { layers },
            TransformKind::Rotation => Transform::Rotation {
                residual: transform.residual.unwrap_or(true),
                heads: transform.heads.unwrap_or(true),
            },
            TransformKind::OnlineRotation => Transform::OnlineRotation { smoothing: strength, layers },
        })
    };
    quantization.transforms.iter().flatten().map(transform).collect()
}

pub(crate) fn plan_request(config: &config::Config) -> Result<PlanRequest, PatternError> {
    let quantization = &config.quantization;
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
        algorithm: match quantization.algorithm.kind {
            AlgorithmKind::Rtn => WeightAlgorithm::Rtn,
            AlgorithmKind::Gptq => {
                WeightAlgorithm::Gptq { damping: quantization.algorithm.damping.unwrap_or(0.01) }
            }
        },
        bias_correction: quantization.bias_correction,
        embeddings: match quantization.embeddings {
            Embeddings::Keep => EmbeddingPrecision::Keep,
            Embeddings::Bf16 => EmbeddingPrecision::Bf16,
            Embeddings::Int8 => EmbeddingPrecision::Int8,
        },
        lm_head: match quantization.lm_head {
            LmHead::Keep => HeadPrecision::Keep,
            LmHead::Int8 => HeadPrecision::Int8,
        },
        format: match config.output_format() {
            OutputFormat::CompressedTensors => DirectoryFormat::CompressedTensors,
            OutputFormat::Zeropoint => DirectoryFormat::Zeropoint,
        },
    })
}

pub(crate) fn layer_scheme(scheme: config::LayerScheme) -> LayerScheme {
    LayerScheme {
        weight_observer: weight_observer(scheme.weights),
        range_observer: scheme.activations.map_or(RangeObserver::MinMax, range_observer),
        scheme: Scheme::from(scheme),
    }
}

fn weight_observer(weights: config::Weights) -> WeightObserver {
    match (weights.observer, weights.percentile) {
        (config::WeightObserver::Percentile, Some(percentile)) => WeightObserver::Percentile { percentile },
        (config::WeightObserver::Mse, _) => WeightObserver::Mse,
        _ => WeightObserver::MinMax,
    }
}

/// A checked config has the settings of its observer, and an observer where activations are static.
fn range_observer(activations: config::Activations) -> RangeObserver {
    let observer = activations.observer.unwrap_or(ActivationObserver::MinMax);
    let percentile = activations.percentile.unwrap_or(100.0);
    match observer {
        ActivationObserver::MinMax => RangeObserver::MinMax,
        ActivationObserver::MovingAverage => RangeObserver::MovingAverage {
            constant: activations.averaging_constant.unwrap_or(1.0),
            batch: activations.averaging_batch.unwrap_or(1),
        },
        ActivationObserver::Percentile => RangeObserver::Percentile { percentile },
        ActivationObserver::PercentilePerChannel => RangeObserver::PercentilePerChannel { percentile },
        ActivationObserver::Entropy => RangeObserver::Entropy,
        ActivationObserver::OutlierAware => RangeObserver::OutlierAware {
            ratio: activations.outlier_ratio.unwrap_or(1.0),
            clipped_tokens: activations.clipped_tokens.unwrap_or(0.0),
        },
        ActivationObserver::Mse => RangeObserver::Mse,
    }
}

/// The prompts of the first and of the second texts; what is not said of the second is as of the first.
pub(crate) fn prompts(source: Option<&DataSource>) -> [PromptChoice; 2] {
    let choice = |name: &Option<String>, text: &Option<String>| match (name, text) {
        (_, Some(text)) => Some(PromptChoice::Text(text.clone())),
        (Some(name), None) => Some(PromptChoice::Named(name.clone())),
        (None, None) => None,
    };
    let Some(source) = source else { return [PromptChoice::ModelDefault, PromptChoice::ModelDefault] };
    let first = choice(&source.prompt, &source.prompt_text).unwrap_or_default();
    let second = choice(&source.prompt_b, &source.prompt_text_b).unwrap_or_else(|| first.clone());
    [first, second]
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
    place(&mut fields.image, &source.image);
    fields.messages = source.messages.as_deref().map(FieldRef::from);
    // The config allows ASCII delimiters only.
    let delimiter = source.delimiter.and_then(|delimiter| u8::try_from(delimiter).ok()).unwrap_or(b',');
    ReadOptions {
        format: match source.format {
            DataFormat::Jsonl => Some(Format::Jsonl),
            DataFormat::Txt => Some(Format::Txt),
            DataFormat::Document => Some(Format::Document),
            DataFormat::Parquet => Some(Format::Parquet),
            DataFormat::Csv => Some(Format::Csv { header: source.header, delimiter }),
            DataFormat::Images => None,
        },
        fields,
    }
}
