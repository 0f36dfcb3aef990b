//! `[model]`: which float model is quantised.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Problem, not_blank};

/// `[model]`: which float model is quantised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The directory of a Hugging Face model, `owner/name` of one on the Hugging Face hub, or "embedded" for the small one
    /// built into the program. Relative paths start at the current directory.
    pub source: String,
    /// Branch, tag or commit of a model on the hub; by default `main`. A finished run's config names the commit.
    pub revision: Option<String>,
    /// What the model is for; "auto" reads it from the model's files.
    #[serde(default)]
    pub task: ModelTask,
}

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ModelTask {
    /// Read from the model's files.
    #[default]
    Auto,
    /// One vector for each text.
    Embedding,
    /// One class for each text, or a score for a pair where the model has a single label (a cross-encoder).
    Classification,
    /// One class for each token.
    TokenClassification,
    /// Logits over the vocabulary for each token.
    MaskedLm,
    /// Logits over the vocabulary for the token after each: a decoder language model.
    CausalLm,
    /// The span of a text that answers a question.
    QuestionAnswering,
}

impl Model {
    /// The model of `source` with every default.
    pub fn new(source: impl Into<String>) -> Self {
        Self { source: source.into(), revision: None, task: ModelTask::Auto }
    }

    /// Whether the model built into the program is meant.
    pub fn is_embedded(&self) -> bool {
        self.source == "embedded"
    }

    /// The last part of the source, for names of runs; "model" where it has none (`.`, `/`).
    pub fn name(&self) -> &str {
        let last = self.source.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default();
        if matches!(last, "" | "." | "..") { "model" } else { last }
    }

    pub(super) fn check(&self) -> Result<(), Problem> {
        not_blank("model.source", &self.source)?;
        if self.source.starts_with("hub:") {
            let problem =
                Problem::new("model.source", "`model.source` has a prefix `hub:`, which is not a source");
            return Err(problem.label("not a source").hint(
                "allowed: a model directory, `owner/name` of the hub without a prefix, or \"embedded\"",
            ));
        }
        if let Some(revision) = &self.revision {
            not_blank("model.revision", revision)?;
            if self.is_embedded() {
                let message = "`model.revision` is given, but the embedded model has no revisions";
                return Err(Problem::new("model.revision", message)
                    .label("a revision of what?")
                    .related("model.source", "has no revisions")
                    .hint("remove `revision`"));
            }
        }
        Ok(())
    }
}
