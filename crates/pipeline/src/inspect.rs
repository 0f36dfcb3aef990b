//! What a model directory holds, without reading a weight.

use serde::Serialize;
use zeropoint_formats::deployed::INT8_HEAD;
use zeropoint_formats::{DeployedConfig, Dtype, TensorInfo};
use zeropoint_models::{
    HeadOutput, HeadSpec, LinearSpec, ModelDirectory, Pooling, Problem, RowSelection, SentenceStep, Task,
};

use crate::PipelineError;
use crate::sources::Sources;

/// One Linear of an inspected model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InspectedLinear {
    /// Module path.
    pub path: String,
    /// `[outputs, inputs]`.
    pub shape: [usize; 2],
    /// Element type of its weight on disk.
    pub dtype: String,
    /// Bytes of its weight on disk.
    pub bytes: u64,
    /// The scheme it is quantised with already, or `None`.
    pub quantized: Option<String>,
    /// Why it stays float by default, or `None` when it is quantised by default.
    pub ignored_by_default: Option<String>,
}

/// The images that a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct InspectedImage {
    /// Height and width, in pixels.
    pub size: [usize; 2],
    /// Side of a patch, in pixels.
    pub patch: usize,
}

/// What a model directory holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// Its name.
    pub name: String,
    /// `architectures[0]`.
    pub architecture: String,
    /// What the head gives, in words.
    pub head: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub blocks: usize,
    /// Longest text in tokens, of a model that takes texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// What images it takes, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<InspectedImage>,
    /// Float and INT8 elements of all tensors, and the integers that are packed in words.
    pub parameters: u64,
    /// Bytes of the weight files.
    pub bytes: u64,
    /// Number of weight files.
    pub files: usize,
    /// Parameters of the Linears.
    pub linear_parameters: usize,
    /// Whether config.json says that it is quantised.
    pub quantized: bool,
    /// Every Linear.
    pub linears: Vec<InspectedLinear>,
    /// Tensors carried along but never run, with the reason.
    pub unused: Vec<(String, String)>,
}

/// Describes the model of a source: a directory, "embedded", or `owner/name` of the hub, of which only the headers of the
/// weights are needed.
pub fn inspect(
    source: &str,
    revision: Option<&str>,
    sources: &Sources<'_>,
) -> Result<Inspection, PipelineError> {
    let model = sources.model(source, revision)?;
    let directory = ModelDirectory::open(&model.source, Task::Auto)?;
    let (spec, checkpoint) = (directory.spec(), directory.checkpoint());
    let quantization = DeployedConfig::from_config(directory.config())?;
    let head = spec.language_head().filter(|_| quantization.as_ref().is_some_and(|q| q.int8_head));
    let linears = spec
        .linears
        .iter()
        .enumerate()
        .map(|(id, linear)| {
            let weight = checkpoint.get(&linear.weight);
            InspectedLinear {
                path: linear.path.clone(),
                shape: [linear.outputs, linear.inputs],
                dtype: weight.map(|info| info.dtype.name().to_owned()).unwrap_or_default(),
                bytes: weight.map_or(0, TensorInfo::bytes),
                quantized: quantization
                    .as_ref()
                    .filter(|_| linear.is_torch_linear())
                    .and_then(|q| q.linears.scheme_of(&linear.path))
                    .or_else(|| (head == Some(id)).then_some(INT8_HEAD))
                    .map(|s| s.to_string()),
                ignored_by_default: linear.role.default_ignore_reason().map(str::to_owned),
            }
        })
        .collect();
    Ok(Inspection {
        name: directory.name().to_owned(),
        architecture: spec.architecture.clone(),
        head: match spec.towers.len() {
            1 => head_in_words(spec.head()),
            _ => "images and texts in one space: projected, normalised".to_owned(),
        },
        hidden: spec.towers[0].hidden,
        blocks: spec.towers.iter().map(|tower| tower.blocks.len()).sum(),
        max_tokens: spec.text().map(|_| directory.max_tokens()),
        image: spec
            .image()
            .map(|(_, image)| InspectedImage { size: image.image_size, patch: image.patch_size }),
        parameters: parameters(&directory),
        bytes: checkpoint.weight_bytes(),
        files: checkpoint.files().len(),
        linear_parameters: spec.linear_parameters(),
        quantized: quantization.is_some(),
        linears,
        unused: spec.unused.clone(),
    })
}

fn parameters(directory: &ModelDirectory) -> u64 {
    let checkpoint = directory.checkpoint();
    let counted = |info: &&TensorInfo| info.dtype.is_float() || info.dtype == Dtype::I8;
    let elements: usize = checkpoint.tensors().filter(counted).map(TensorInfo::elements).sum();
    let is_packed =
        |linear: &&LinearSpec| checkpoint.get(&linear.weight).is_some_and(|info| info.dtype == Dtype::I32);
    let packed: usize = directory.spec().linears.iter().filter(is_packed).map(LinearSpec::weights).sum();
    (elements + packed) as u64
}

fn head_in_words(head: &HeadSpec) -> String {
    match &head.output {
        HeadOutput::Embedding { after, .. } => {
            let mut words = match head.branches.first().map(|branch| &branch.rows) {
                Some(RowSelection::Pooled(poolings)) => {
                    let names: Vec<&str> = poolings.iter().map(|pooling| pooling_name(*pooling)).collect();
                    format!("sentence embedding: {} pooling", names.join(" and "))
                }
                Some(RowSelection::Token(_)) if head.branches[0].steps.is_empty() => {
                    "embedding: class token".to_owned()
                }
                Some(RowSelection::Token(_)) if head.branches[0].steps.len() == 1 && after.is_empty() => {
                    "embedding: class token through the pooler".to_owned()
                }
                _ => "embedding: projected".to_owned(),
            };
            for step in after {
                match step {
                    SentenceStep::Dense { outputs, .. } => words = format!("{words}, dense to {outputs}"),
                    SentenceStep::Normalize => words.push_str(", normalised"),
                }
            }
            words
        }
        HeadOutput::Classification { labels, problem } => match problem {
            Problem::SingleLabel => format!("classification into {} labels", labels.len()),
            Problem::MultiLabel => format!("multi-label classification, {} labels", labels.len()),
            Problem::Regression if labels.len() == 1 => "one score".to_owned(),
            Problem::Regression => format!("regression, {} values", labels.len()),
        },
        HeadOutput::TokenClassification { labels } => {
            format!("token classification into {} labels", labels.len())
        }
        HeadOutput::MaskedLm => "masked language model".to_owned(),
        HeadOutput::CausalLm => "decoder language model".to_owned(),
        HeadOutput::QuestionAnswering => "question answering: start and end of a span".to_owned(),
    }
}

fn pooling_name(pooling: Pooling) -> &'static str {
    match pooling {
        Pooling::Cls => "CLS",
        Pooling::Max => "max",
        Pooling::Mean => "mean",
        Pooling::MeanSqrtLength => "mean-sqrt-length",
        Pooling::WeightedMean => "weighted mean",
        Pooling::Last => "last token",
    }
}
