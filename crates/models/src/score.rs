//! What a model of one output makes of its logit.

use serde_json::Value;

use crate::ModelError;
use crate::heads::HeadOutput;
use crate::sentence::{CrossEncoderConfig, SAVED};
use crate::source::ModelDirectory;
use crate::spec::ActivationFn;

impl ModelDirectory {
    /// The non-linearity between the logits and the scores of a cross-encoder, as sentence-transformers chooses it: what
    /// `config_sentence_transformers.json` names beside modules.json, since version 5; what config.json names
    /// (`sentence_transformers.activation_fn`, before version 4 `sbert_ce_default_activation_function`); else a sigmoid for a
    /// single label and none for several. A `problem_type` of `regression` says that the logit is the number itself.
    pub fn score_activation(&self) -> Result<ActivationFn, ModelError> {
        let config = self.config();
        let saved = CrossEncoderConfig::read(self.path())?.and_then(|saved| saved.activation_fn);
        let (file, named) = match saved.as_deref() {
            Some(class) => (SAVED, Some(class)),
            None => (
                "config.json",
                config
                    .pointer("/sentence_transformers/activation_fn")
                    .or_else(|| config.get("sbert_ce_default_activation_function"))
                    .and_then(Value::as_str),
            ),
        };
        if let Some(class) = named {
            return match class.rsplit('.').next().unwrap_or_default() {
                "Identity" => Ok(ActivationFn::Identity),
                "Sigmoid" => Ok(ActivationFn::Sigmoid),
                "Tanh" => Ok(ActivationFn::Tanh),
                "ReLU" => Ok(ActivationFn::Relu),
                other => Err(ModelError::Config {
                    path: self.path().join(file),
                    reason: format!(
                        "has the score activation `{other}`; Identity, Sigmoid, Tanh and ReLU are supported"
                    ),
                }),
            };
        }
        let is_regression = config.get("problem_type").and_then(Value::as_str) == Some("regression");
        let single = matches!(&self.spec().head().output, HeadOutput::Classification { labels, .. } if labels.len() == 1);
        Ok(if single && !is_regression { ActivationFn::Sigmoid } else { ActivationFn::Identity })
    }
}
