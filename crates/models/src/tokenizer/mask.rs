//! The token that a masked language model was taught to fill in.

use serde_json::Value;

use super::Tokenizer;
use crate::ModelError;
use crate::source::read_json_if_there;

/// Names that mask tokens have where no file says which one it is.
const USUAL: [&str; 2] = ["[MASK]", "<mask>"];

/// The token that stands for a word to fill in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaskToken {
    /// As it is written in a text.
    pub text: String,
    /// Its id.
    pub id: u32,
}

impl Tokenizer {
    /// The mask token: `mask_token` of `tokenizer_config.json` or `special_tokens_map.json`, else a special token of
    /// tokenizer.json called `[MASK]` or `<mask>`. An error when there is none.
    pub fn mask_token(&self) -> Result<MaskToken, ModelError> {
        for name in ["tokenizer_config.json", "special_tokens_map.json"] {
            let path = self.dir.join(name);
            let Some(config) = read_json_if_there::<Value>(&path)? else { continue };
            let token = config.get("mask_token").and_then(|token| match token {
                Value::String(text) => Some(text.as_str()),
                other => other.get("content").and_then(Value::as_str),
            });
            if let Some(text) = token {
                let id = self.inner.token_to_id(text).ok_or_else(|| ModelError::Config {
                    path: path.clone(),
                    reason: format!("has the `mask_token` `{text}`, which is not in the vocabulary"),
                })?;
                return Ok(MaskToken { text: text.to_owned(), id });
            }
        }
        let special = |text: &&str| self.inner.get_added_vocabulary().is_special_token(text);
        USUAL
            .into_iter()
            .filter(special)
            .find_map(|text| Some(MaskToken { text: text.to_owned(), id: self.inner.token_to_id(text)? }))
            .ok_or_else(|| ModelError::Tokenizer {
                path: self.path.clone(),
                reason:
                    "has no mask token: neither tokenizer_config.json nor special_tokens_map.json names a \
                         `mask_token`, and no special token is called `[MASK]` or `<mask>`"
                        .to_owned(),
            })
    }

    /// A token as text, on its own.
    pub fn token_text(&self, id: u32) -> Result<String, ModelError> {
        self.library(|| self.inner.decode(&[id], false))
    }
}
