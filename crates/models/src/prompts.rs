//! Prompts: texts that a sentence encoder was trained to find before its inputs, such as `query: `.
//!
//! sentence-transformers keeps them in `config_sentence_transformers.json`: texts by name, and the name of the one that is
//! used when none is asked for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::ModelError;
use crate::sentence::SAVED;
use crate::source::{ModelDirectory, read_json_if_there};

/// A text or a pair, and the prompt before its first text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextRef<'a> {
    /// The text, or the first of a pair.
    pub text: &'a str,
    /// The second text of a pair.
    pub pair: Option<&'a str>,
    /// Prepended to the text.
    pub prompt: Option<&'a str>,
}

impl<'a> From<(&'a str, Option<&'a str>)> for TextRef<'a> {
    fn from((text, pair): (&'a str, Option<&'a str>)) -> Self {
        Self { text, pair, prompt: None }
    }
}

/// Which prompt is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PromptChoice {
    /// The one that the model's files name as default, if they do.
    #[default]
    ModelDefault,
    /// One of the model's, by name.
    Named(String),
    /// This text; without any character, none.
    Text(String),
}

/// The prompts of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prompts {
    path: PathBuf,
    named: BTreeMap<String, String>,
    default: Option<String>,
}

/// The keys of `config_sentence_transformers.json` that matter.
#[derive(Debug, Default, serde::Deserialize)]
struct PromptConfig {
    #[serde(default)]
    prompts: Option<BTreeMap<String, String>>,
    #[serde(default)]
    default_prompt_name: Option<String>,
}

impl ModelDirectory {
    /// The prompts in the model's files; only sentence encoders have any.
    pub fn prompts(&self) -> Result<Prompts, ModelError> {
        let path = self.path().join(SAVED);
        if !self.spec().head().is_embedding() {
            return Ok(Prompts { path, ..Prompts::default() });
        }
        let config: PromptConfig = read_json_if_there(&path)?.unwrap_or_default();
        let (named, default) = (config.prompts.unwrap_or_default(), config.default_prompt_name);
        if let Some(name) = default.as_ref().filter(|name| !named.contains_key(*name)) {
            let reason = format!(
                "has the `default_prompt_name` `{name}`, which is not among its prompts ({})",
                list(&named)
            );
            return Err(ModelError::Config { path, reason });
        }
        Ok(Prompts { path, named, default })
    }

    /// The text of the prompt that is asked for; `None` when no prompt is to be used.
    pub fn prompt(&self, choice: &PromptChoice) -> Result<Option<String>, ModelError> {
        if *choice != PromptChoice::ModelDefault && !self.spec().head().is_embedding() {
            let reason = format!(
                "a prompt is given, but {} as loaded gives no sentence vectors: prompts are for sentence encoders",
                self.spec().architecture
            );
            return Err(ModelError::Prompt { reason });
        }
        self.prompts()?.resolve(choice)
    }
}

impl Prompts {
    /// Name and text of each.
    pub fn named(&self) -> &BTreeMap<String, String> {
        &self.named
    }

    /// The name of the one that is used when none is asked for.
    pub fn default_name(&self) -> Option<&str> {
        self.default.as_deref()
    }

    /// The text of the prompt that is asked for; `None` when it is empty or there is none.
    pub fn resolve(&self, choice: &PromptChoice) -> Result<Option<String>, ModelError> {
        let text = match choice {
            PromptChoice::Text(text) => Some(text),
            PromptChoice::ModelDefault => self.default.as_ref().and_then(|name| self.named.get(name)),
            PromptChoice::Named(name) => {
                let missing = || {
                    let what = if self.named.is_empty() {
                        "it names none; give the text itself instead".to_owned()
                    } else {
                        format!("there are {}", list(&self.named))
                    };
                    let reason = format!("{}: the model has no prompt `{name}`: {what}", self.path.display());
                    ModelError::Prompt { reason }
                };
                Some(self.named.get(name).ok_or_else(missing)?)
            }
        };
        Ok(text.filter(|text| !text.is_empty()).cloned())
    }
}

fn list(named: &BTreeMap<String, String>) -> String {
    if named.is_empty() {
        return "none".to_owned();
    }
    named.iter().map(|(name, text)| format!("`{name}` ({text:?})")).collect::<Vec<_>>().join(", ")
}
