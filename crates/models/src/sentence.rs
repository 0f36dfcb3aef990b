//! The files of sentence-transformers: what happens to token vectors after the transformer.

use std::path::{Component, Path};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use zeropoint_formats::SafetensorsFile;

use crate::ModelError;
use crate::families::{SentenceModules, named_architecture};
use crate::heads::{Pooling, SentenceStep};
use crate::source::{read_json, read_json_if_there};
use crate::spec::ActivationFn;

/// The pooling modes, for sentences.
const NAMES: &str = "cls, max, mean, mean_sqrt_len_tokens, weightedmean and lasttoken";

/// Widest vector that a dense module may give.
const MAX_WIDTH: usize = 65_536;

/// What a saved model is and how it is used: its prompts, or the activation of its scores.
pub(crate) const SAVED: &str = "config_sentence_transformers.json";

/// The config of the transformer, by the names it has had, in the order in which sentence-transformers looks for them.
const TRANSFORMER_CONFIGS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// The keys of the transformer's config that matter.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TransformerConfig {
    pub(crate) max_seq_length: Option<usize>,
    do_lower_case: Option<bool>,
}

impl TransformerConfig {
    /// The first of the files that is there and says anything.
    pub(crate) fn read(dir: &Path) -> Result<Self, ModelError> {
        for path in TRANSFORMER_CONFIGS.map(|name| dir.join(name)) {
            let Some(config) = read_json_if_there::<Map<String, Value>>(&path)? else { continue };
            if !config.is_empty() {
                return Self::deserialize(Value::Object(config))
                    .map_err(|error| ModelError::Config { path, reason: error.to_string() });
            }
        }
        Ok(Self::default())
    }

    /// Whether texts are written small before the tokenizer sees them.
    pub(crate) fn lower_case(&self) -> bool {
        self.do_lower_case == Some(true)
    }
}

/// The keys of [`SAVED`] that matter for a cross-encoder.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CrossEncoderConfig {
    model_type: Option<String>,
    pub(crate) activation_fn: Option<String>,
    default_prompt_name: Option<String>,
}

impl CrossEncoderConfig {
    /// `None` for any other model, and for a cross-encoder without modules.json, whose config.json says all of it.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>, ModelError> {
        if !dir.join("modules.json").exists() {
            return Ok(None);
        }
        let config: Self = read_json_if_there(&dir.join(SAVED))?.unwrap_or_default();
        Ok((config.model_type.as_deref() == Some("CrossEncoder")).then_some(config))
    }
}

#[derive(Debug, Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Module {
    /// The class moved between packages over the years; its last name did not change.
    fn class(&self) -> &str {
        self.kind.rsplit('.').next().unwrap_or_default()
    }
}

/// Reads modules.json: Transformer, Pooling, then any Dense and Normalize; nothing else is understood.
///
/// The Transformer alone is a cross-encoder, as sentence-transformers saves them since version 5. Its scores are the
/// classifier's: it has no module after it.
pub(crate) fn read_modules(dir: &Path, config: &Value) -> Result<Option<SentenceModules>, ModelError> {
    let path = dir.join("modules.json");
    let Some(modules) = read_json_if_there::<Vec<Module>>(&path)? else { return Ok(None) };
    let bad = |reason: String| ModelError::Config { path: path.clone(), reason };
    let in_place = |transformer: &Module| match transformer.path.as_str() {
        "" | "." => Ok(()),
        folder => Err(bad(format!("keeps its Transformer in `{folder}`; it must be the directory itself"))),
    };
    let cross_encoder = CrossEncoderConfig::read(dir)?;
    let classifies =
        named_architecture(config).is_some_and(|name| name.ends_with("ForSequenceClassification"));
    if let [transformer] = &modules[..]
        && transformer.class() == "Transformer"
        && (cross_encoder.is_some() || classifies)
    {
        in_place(transformer)?;
        return match cross_encoder.and_then(|config| config.default_prompt_name) {
            None => Ok(None),
            Some(name) => Err(ModelError::Config {
                path: dir.join(SAVED),
                reason: format!(
                    "has the `default_prompt_name` `{name}`; prompts of cross-encoders are not supported: set it to null \
                     to score without"
                ),
            }),
        };
    }
    if cross_encoder.is_some() {
        return Err(bad(format!(
            "describes a cross-encoder of the modules [{}]; a Transformer alone is supported",
            classes(&modules)
        )));
    }
    let [transformer, pooling, rest @ ..] = &modules[..] else {
        return Err(bad(unsupported(&modules)));
    };
    if transformer.class() != "Transformer" || pooling.class() != "Pooling" {
        return Err(bad(unsupported(&modules)));
    }
    in_place(transformer)?;
    for module in &modules[1..] {
        let folder = Path::new(&module.path);
        if folder.is_absolute() || folder.components().any(|part| !matches!(part, Component::Normal(_))) {
            return Err(bad(format!(
                "names the {} folder `{}`, which is not inside the directory",
                module.class().to_lowercase(),
                module.path
            )));
        }
    }
    let after = rest
        .iter()
        .map(|module| match module.class() {
            "Normalize" => Ok(SentenceStep::Normalize),
            "Dense" => read_dense(dir, &module.path),
            _ => Err(bad(unsupported(&modules))),
        })
        .collect::<Result<_, _>>()?;
    let (poolings, include_prompt) = read_pooling(&dir.join(&pooling.path).join("config.json"))?;
    Ok(Some(SentenceModules { poolings, include_prompt, after }))
}

fn classes(modules: &[Module]) -> String {
    modules.iter().map(Module::class).collect::<Vec<_>>().join(", ")
}

fn unsupported(modules: &[Module]) -> String {
    format!(
        "describes the modules [{}]; Transformer, Pooling, then any Dense and Normalize are supported",
        classes(modules)
    )
}

/// Reads the config.json of a module, which must be there.
fn read_module<T: DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    if !path.exists() {
        let reason = "is missing, and modules.json names its folder; copy the whole model again".to_owned();
        return Err(ModelError::Config { path: path.to_owned(), reason });
    }
    read_json(path)
}

/// Reads a pooling config, the old one flag a mode or the newer `pooling_mode`, and whether prompts take part.
fn read_pooling(path: &Path) -> Result<(Vec<Pooling>, bool), ModelError> {
    let config: Value = read_module(path)?;
    let bad = |reason: String| ModelError::Config { path: path.to_owned(), reason };
    let known = |name: &str| match name {
        "cls" | "cls_token" => Ok(Pooling::Cls),
        "max" | "max_tokens" => Ok(Pooling::Max),
        "mean" | "mean_tokens" => Ok(Pooling::Mean),
        "mean_sqrt_len_tokens" => Ok(Pooling::MeanSqrtLength),
        "weightedmean" | "weightedmean_tokens" => Ok(Pooling::WeightedMean),
        "lasttoken" => Ok(Pooling::Last),
        _ => Err(bad(format!("asks for pooling `{name}`; {NAMES} are supported"))),
    };
    let poolings: Vec<Pooling> = match config.get("pooling_mode") {
        Some(Value::String(name)) => vec![known(name)?],
        // A list is joined in its own order.
        Some(Value::Array(list)) => list
            .iter()
            .map(|mode| match mode.as_str() {
                Some(name) => known(name),
                None => Err(bad(format!("names the pooling mode {mode}; {NAMES} are supported"))),
            })
            .collect::<Result<_, _>>()?,
        Some(other) if !other.is_null() => {
            return Err(bad(format!(
                "has the `pooling_mode` {other}; a name or a list of {NAMES} is expected"
            )));
        }
        _ => {
            let flags = config.as_object().into_iter().flatten();
            let on = flags.filter(|(_, on)| on.as_bool() == Some(true));
            let names = on.filter_map(|(key, _)| key.strip_prefix("pooling_mode_"));
            let mut poolings = names.map(known).collect::<Result<Vec<_>, _>>()?;
            // Flags have no order: sentence-transformers joins what they ask for in this one.
            poolings.sort_unstable();
            poolings.dedup();
            poolings
        }
    };
    if poolings.is_empty() {
        return Err(bad(format!("names no pooling mode; {NAMES} are supported")));
    }
    let include_prompt = config.get("include_prompt").and_then(Value::as_bool).unwrap_or(true);
    Ok((poolings, include_prompt))
}

/// `config.json` of a dense module.
#[derive(Debug, Deserialize)]
struct DenseConfig {
    in_features: usize,
    out_features: usize,
    #[serde(default = "with_bias")]
    bias: bool,
    #[serde(default = "tanh")]
    activation_function: String,
    #[serde(default)]
    use_residual: bool,
}

fn with_bias() -> bool {
    true
}
fn tanh() -> String {
    "torch.nn.modules.activation.Tanh".to_owned()
}

/// Reads what a dense module is, and checks its weight file.
fn read_dense(dir: &Path, folder: &str) -> Result<SentenceStep, ModelError> {
    let path = dir.join(folder).join("config.json");
    let config: DenseConfig = read_module(&path)?;
    let bad = |reason: String| ModelError::Config { path: path.clone(), reason };
    let (inputs, outputs) = (config.in_features, config.out_features);
    if !(1..=MAX_WIDTH).contains(&inputs) || !(1..=MAX_WIDTH).contains(&outputs) {
        return Err(bad(format!("maps {inputs} to {outputs} features; 1 to {MAX_WIDTH} are allowed")));
    }
    if config.use_residual {
        return Err(bad("sets `use_residual`, which is not supported".to_owned()));
    }
    let activation = match config.activation_function.rsplit('.').next().unwrap_or_default() {
        "Identity" => ActivationFn::Identity,
        "Tanh" => ActivationFn::Tanh,
        "ReLU" => ActivationFn::Relu,
        "GELU" => ActivationFn::GeluErf,
        "SiLU" => ActivationFn::Silu,
        "Sigmoid" => ActivationFn::Sigmoid,
        other => {
            return Err(bad(format!(
                "has the activation `{other}`; Identity, Tanh, ReLU, GELU, SiLU and Sigmoid are supported"
            )));
        }
    };
    let weights = dir.join(folder).join("model.safetensors");
    if !weights.is_file() {
        return Err(ModelError::Config {
            path: weights,
            reason: "is missing: the weights of a dense module are read from safetensors; save the model again with a \
                     newer sentence-transformers"
                .to_owned(),
        });
    }
    let file = SafetensorsFile::open(&weights)?;
    let expected = [("linear.weight", vec![outputs, inputs]), ("linear.bias", vec![outputs])];
    for (name, shape) in expected.into_iter().take(if config.bias { 2 } else { 1 }) {
        let info = file.require(name)?;
        if info.shape != shape || !info.dtype.is_float() {
            return Err(ModelError::Tensor {
                path: weights.clone(),
                tensor: name.to_owned(),
                reason: format!("is {} of shape {:?}; config.json says {shape:?}", info.dtype, info.shape),
            });
        }
    }
    Ok(SentenceStep::Dense { folder: folder.to_owned(), inputs, outputs, bias: config.bias, activation })
}
