//! One function per family: config.json in, [`ModelSpec`] out.

mod albert;
mod bert;
mod builder;
mod clip;
mod decoder;
mod distilbert;
mod experts;
mod gemma;
mod gpt2;
mod layers;
mod llama;
mod modernbert;
mod mpnet;
mod neox;
mod nomic;
mod rotary;
mod vit;

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;
use zeropoint_formats::Checkpoint;

use crate::heads::{Pooling, SentenceStep, Task};
use crate::spec::ActivationFn;
use crate::{ModelError, ModelSpec};

/// Bounds on what a config may claim, far above every published model.
const MAX_LAYERS: usize = 1024;
const MAX_WIDTH: usize = 65_536;

/// What modules.json of sentence-transformers says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SentenceModules {
    pub(crate) poolings: Vec<Pooling>,
    pub(crate) include_prompt: bool,
    pub(crate) after: Vec<SentenceStep>,
}

/// What a family's description is made from.
pub(crate) struct FamilyInput<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) config: &'a Value,
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) task: Task,
    /// modules.json, if there is one.
    pub(crate) sentence: Option<SentenceModules>,
    /// Whether config.json says that Linears are quantised: their scales are then part of the file.
    pub(crate) quantized: bool,
}

impl FamilyInput<'_> {
    fn config_error(&self, reason: impl Into<String>) -> ModelError {
        ModelError::Config { path: self.dir.join("config.json"), reason: reason.into() }
    }

    /// Deserialises the family's part of config.json; keys it does not name are left alone.
    fn parse<T: DeserializeOwned>(&self) -> Result<T, ModelError> {
        T::deserialize(self.config).map_err(|error| self.config_error(error.to_string()))
    }

    /// Refuses sizes that no model has: `(key, value, largest)`.
    fn check_sizes(&self, sizes: &[(&str, usize, usize)]) -> Result<(), ModelError> {
        match sizes.iter().find(|(_, value, largest)| !(1..=*largest).contains(value)) {
            Some((key, value, largest)) => {
                Err(self.config_error(format!("`{key}` is {value}; 1 to {largest} is allowed")))
            }
            None => Ok(()),
        }
    }

    /// Channels of one head.
    fn head_dim(&self, hidden: (&str, usize), heads: (&str, usize)) -> Result<usize, ModelError> {
        if !hidden.1.is_multiple_of(heads.1) {
            return Err(self.config_error(format!(
                "`{}` {} is not a multiple of `{}` {}",
                hidden.0, hidden.1, heads.0, heads.1
            )));
        }
        Ok(hidden.1 / heads.1)
    }

    /// A non-linearity by `transformers`' name.
    fn activation(&self, key: &str, name: &str) -> Result<ActivationFn, ModelError> {
        match name {
            "gelu" | "gelu_python" => Ok(ActivationFn::GeluErf),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(ActivationFn::GeluTanh),
            "quick_gelu" => Ok(ActivationFn::QuickGelu),
            "silu" | "swish" => Ok(ActivationFn::Silu),
            "relu" => Ok(ActivationFn::Relu),
            "tanh" => Ok(ActivationFn::Tanh),
            other => Err(self.config_error(format!(
                "`{key}` `{other}` is not supported; gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, quick_gelu, silu, \
                 relu and tanh are"
            ))),
        }
    }

    /// The task that [`FamilyInput::task_for`] gives, and the architecture of the result: a task model that is used for its
    /// vectors is described, measured and deployed as the encoder inside it.
    fn purpose(&self, head: Head, base: &str) -> Result<(Task, String), ModelError> {
        let task = self.task_for(head, base)?;
        let architecture =
            if task == Task::Embedding { base.to_owned() } else { head.architecture(self.config, base) };
        Ok((task, architecture))
    }

    /// What the model is described as: the task asked for, or what its architecture is for. A model with modules.json is
    /// an encoder of sentences whatever it was trained as.
    fn task_for(&self, head: Head, base: &str) -> Result<Task, ModelError> {
        let own = head.task();
        match self.task {
            Task::Auto if self.sentence.is_some() => Ok(Task::Embedding),
            Task::Auto => Ok(own),
            Task::Embedding => Ok(Task::Embedding),
            asked if asked == own => Ok(asked),
            asked => Err(ModelError::Task {
                path: self.dir.to_owned(),
                asked: asked.name().to_owned(),
                architecture: head.architecture(self.config, base),
                allowed: match own {
                    Task::Embedding => "it has no head for that; `embedding` and `auto` fit".to_owned(),
                    own => format!("`{}`, `embedding` and `auto` fit", own.name()),
                },
            }),
        }
    }
}

/// Refuses a `rope_scaling` that scales, or that sets more than its type: `transformers` lets it override
/// `rope_parameters`.
fn refuse_scaling(input: &FamilyInput<'_>) -> Result<(), ModelError> {
    let Some(scaling) = input.config.get("rope_scaling").filter(|value| !value.is_null()) else {
        return Ok(());
    };
    let plain = |(key, value): (&String, &Value)| {
        matches!(key.as_str(), "rope_type" | "type") && value.as_str() == Some("default")
    };
    if scaling.as_object().is_some_and(|settings| settings.iter().all(plain)) {
        return Ok(());
    }
    Err(input.config_error(format!(
        "`rope_scaling` is {scaling}; only null and the type `default` are supported: frequencies are not scaled here"
    )))
}

/// The base of rotary frequencies, from an object like `{"rope_type": "default", "rope_theta": 10000.0}`.
fn rotary_theta(
    input: &FamilyInput<'_>,
    parameters: Option<&Value>,
    key: &str,
    default: Option<f64>,
) -> Result<f32, ModelError> {
    let text = |name: &str| parameters.and_then(|p| p.get(name)).and_then(Value::as_str);
    if let Some(kind) = text("rope_type").or_else(|| text("type")).filter(|kind| *kind != "default") {
        return Err(input.config_error(format!("`{key}` has the type `{kind}`; only `default` is supported")));
    }
    let theta = match parameters.and_then(|parameters| parameters.get("rope_theta")) {
        Some(value) => value.as_f64(),
        None => default,
    };
    check_theta(input, &format!("{key}.rope_theta"), theta)
}

fn check_theta(input: &FamilyInput<'_>, key: &str, theta: Option<f64>) -> Result<f32, ModelError> {
    theta.filter(|theta| (1.0..1e12).contains(theta)).map(|theta| theta as f32).ok_or_else(|| {
        input.config_error(match theta {
            Some(theta) => format!("`{key}` is {theta}; a number from 1 to 1e12 is expected"),
            None => format!("`{key}` is no number; one from 1 to 1e12 is expected"),
        })
    })
}

/// What an architecture puts on top of its base model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    /// Nothing, or something from pre-training that is left aside: read as the encoder inside.
    Base,
    Sequence,
    Tokens,
    MaskedLm,
    CausalLm,
    Span,
}

impl Head {
    fn task(self) -> Task {
        match self {
            Self::Base => Task::Embedding,
            Self::Sequence => Task::Classification,
            Self::Tokens => Task::TokenClassification,
            Self::MaskedLm => Task::MaskedLm,
            Self::CausalLm => Task::CausalLm,
            Self::Span => Task::QuestionAnswering,
        }
    }

    fn architecture(self, config: &Value, base: &str) -> String {
        match self {
            Self::Base => base.to_owned(),
            _ => named_architecture(config).unwrap_or(base).to_owned(),
        }
    }
}

/// `architectures[0]` of config.json.
pub(crate) fn named_architecture(config: &Value) -> Option<&str> {
    config.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str)
}

type Describe = fn(&FamilyInput<'_>, Head) -> Result<ModelSpec, ModelError>;

/// A family: `model_type` in config.json, its base architecture, what describes it, and its architectures with heads.
struct Family {
    model_type: &'static str,
    base: &'static str,
    describe: Describe,
    heads: &'static [(&'static str, Head)],
}

const FAMILIES: &[Family] = &[
    bert::BERT,
    bert::ROBERTA,
    bert::XLM_ROBERTA,
    bert::CAMEMBERT,
    bert::ELECTRA,
    distilbert::FAMILY,
    mpnet::FAMILY,
    albert::FAMILY,
    modernbert::FAMILY,
    nomic::NOMIC,
    nomic::GTE,
    vit::VIT,
    vit::DEIT,
    clip::CLIP,
    clip::TEXT,
    clip::VISION,
    llama::LLAMA,
    llama::MISTRAL,
    llama::QWEN2,
    llama::QWEN3,
    llama::SMOLLM3,
    llama::PHI3,
    gemma::GEMMA,
    gemma::GEMMA2,
    gemma::GEMMA3,
    gpt2::GPT2,
    neox::GPT_NEOX,
    experts::MIXTRAL,
    experts::QWEN3_MOE,
];

/// The description of the model in `input.dir`.
pub(crate) fn describe(input: &FamilyInput<'_>) -> Result<ModelSpec, ModelError> {
    let model_type = input.config.get("model_type").and_then(Value::as_str);
    let found = match (named_architecture(input.config), model_type) {
        (Some(name), _) => name,
        // Old configs name no architecture: the base model of the family is meant.
        (None, Some(model_type)) => FAMILIES
            .iter()
            .find(|family| family.model_type == model_type)
            .map_or(model_type, |family| family.base),
        (None, None) => return Err(input.config_error("neither `architectures` nor `model_type` is given")),
    };
    for family in FAMILIES {
        let base = [(family.base, Head::Base)];
        if let Some((_, head)) = base.iter().chain(family.heads).find(|(name, _)| *name == found) {
            return (family.describe)(input, *head);
        }
    }
    Err(ModelError::Architecture {
        path: input.dir.join("config.json"),
        found: found.to_owned(),
        supported: supported(found),
    })
}

/// What is supported, for a class that is not: the classes of its family, or the families.
fn supported(found: &str) -> String {
    let prefix = |family: &Family| family.base.split("Model").next().unwrap_or(family.base);
    let own: Vec<&str> = FAMILIES
        .iter()
        .filter(|family| found.strip_prefix(prefix(family)).is_some_and(|rest| rest.starts_with(['M', 'F'])))
        .flat_map(|family| std::iter::once(family.base).chain(family.heads.iter().map(|(name, _)| *name)))
        .collect();
    if !own.is_empty() {
        return own.join(", ");
    }
    let mut families: Vec<&str> = Vec::new();
    for name in FAMILIES.iter().map(prefix) {
        // The towers of CLIP have classes of their own.
        if !families.iter().any(|known| name.starts_with(known)) {
            families.push(name);
        }
    }
    format!("classes of {}", families.join(", "))
}
