//! The files of sentence-transformers: what happens to token vectors after the transformer.

use std::path::{Component, Path};

use serde_json::Value;
use zeropoint_formats::SafetensorsFile;

use crate::ModelError;
use crate::families::SentenceModules;
use crate::heads::{Pooling, SentenceStep};
use crate::source::{read_json, read_json_if_there};
use crate::spec::ActivationFn;

/// The pooling modes, for sentences.
const NAMES: &str = "cls, max, mean, mean_sqrt_len_tokens, weightedmean and lasttoken";

/// Widest vector that a dense module may give.
const MAX_WIDTH: usize = 65_536;

#[derive(Debug, serde::Deserialize)]
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
pub(crate) fn read_modules(dir: &Path) -> Result<Option<SentenceModules>, ModelError> {
    let path = dir.join("modules.json");
    let Some(modules) = read_json_if_there::<Vec<Module>>(&path)? else { return Ok(None) };
    let bad = |reason: String| ModelError::Config { path: path.clone(), reason };
    let [transformer, pooling, rest @ ..] = &modules[..] else {
        return Err(bad(unsupported(&modules)));
    };
    if transformer.class() != "Transformer" || pooling.class() != "Pooling" {
        return Err(bad(unsupported(&modules)));
    }
    if !transformer.path.is_empty() && transformer.path != "." {
        return Err(bad(format!(
            "keeps its Transformer in `{}`; it must be the directory itself",
            transformer.path
        )));
    }
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
    let config = dir.join(&pooling.path).join("config.json");
    let (poolings, include_prompt) = read_pooling(&config)?;
    Ok(Some(SentenceModules { poolings, include_prompt, after }))
}

fn unsupported(modules: &[Module]) -> String {
    let kinds: Vec<&str> = modules.iter().map(Module::class).collect();
    format!(
        "describes the modules [{}]; Transformer, Pooling, then any Dense and Normalize are supported",
        kinds.join(", ")
    )
}

/// Reads a pooling config, the old one flag a mode or the newer `pooling_mode`, and whether prompts take part.
fn read_pooling(path: &Path) -> Result<(Vec<Pooling>, bool), ModelError> {
    let config: Value = read_json(path)?;
    let bad = |reason: String| ModelError::Config { path: path.to_owned(), reason };
    let known = |name: &str| match name {
        "cls" | "cls_token" => Some(Pooling::Cls),
        "max" | "max_tokens" => Some(Pooling::Max),
        "mean" | "mean_tokens" => Some(Pooling::Mean),
        "mean_sqrt_len_tokens" => Some(Pooling::MeanSqrtLength),
        "weightedmean" | "weightedmean_tokens" => Some(Pooling::WeightedMean),
        "lasttoken" => Some(Pooling::Last),
        _ => None,
    };
    let mut names: Vec<&str> = Vec::new();
    match config.get("pooling_mode") {
        Some(Value::String(name)) => names.push(name),
        Some(Value::Array(list)) => names.extend(list.iter().filter_map(Value::as_str)),
        _ => {
            let flags = config.as_object().into_iter().flatten();
            let on = flags.filter(|(_, on)| on.as_bool() == Some(true));
            names.extend(on.filter_map(|(key, _)| key.strip_prefix("pooling_mode_")));
        }
    }
    let mut poolings = names
        .iter()
        .map(|name| {
            known(name).ok_or_else(|| bad(format!("asks for pooling `{name}`; {NAMES} are supported")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    // sentence-transformers joins several modes in this order, whatever the file's.
    poolings.sort_unstable();
    poolings.dedup();
    if poolings.is_empty() {
        return Err(bad(format!("names no pooling mode; {NAMES} are supported")));
    }
    let include_prompt = config.get("include_prompt").and_then(Value::as_bool).unwrap_or(true);
    Ok((poolings, include_prompt))
}

/// `config.json` of a dense module.
#[derive(Debug, serde::Deserialize)]
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
    let config: DenseConfig = read_json(&path)?;
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
