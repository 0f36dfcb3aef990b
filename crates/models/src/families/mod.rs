//! One function per family: config.json in, [`ModelSpec`] out.

mod bert;

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;
use zeropoint_formats::Checkpoint;

use crate::heads::{Pooling, Task};
use crate::{ModelError, ModelSpec};

/// What a family's description is made from.
pub(crate) struct FamilyInput<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) config: &'a Value,
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) task: Task,
    /// What modules.json says of pooling, if there is one.
    pub(crate) pooling: Option<(Vec<Pooling>, bool)>,
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
}

type Describe = fn(&FamilyInput<'_>) -> Result<ModelSpec, ModelError>;

/// Architectures by the name in `architectures[0]`.
const ARCHITECTURES: &[(&str, Describe)] = &[
    (bert::BASE, bert::describe as Describe),
    (bert::CLASSIFIER, bert::describe as Describe),
    (bert::PRE_TRAINING, bert::describe as Describe),
];

/// The description of the model in `input.dir`.
pub(crate) fn describe(input: &FamilyInput<'_>) -> Result<ModelSpec, ModelError> {
    let named = input.config.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    let model_type = input.config.get("model_type").and_then(Value::as_str);
    // Old configs name no architecture: the base model of the family is meant.
    let found = match (named, model_type) {
        (Some(name), _) => name,
        (None, Some("bert")) => bert::BASE,
        (None, Some(other)) => other,
        (None, None) => return Err(input.config_error("neither `architectures` nor `model_type` is given")),
    };
    let Some((_, describe)) = ARCHITECTURES.iter().find(|(name, _)| *name == found) else {
        return Err(ModelError::Architecture {
            path: input.dir.join("config.json"),
            found: found.to_owned(),
            supported: ARCHITECTURES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
        });
    };
    describe(input)
}
