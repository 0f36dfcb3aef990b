//! Which layers a rule is about.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeropoint_formats::compressed_tensors;

use super::error::{Problem, not_blank};

/// The exact name of a layer, or `re:` and a regular expression that must match from the start of the name, as
/// Python's `re.match` does; it need not reach the end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Pattern(pub String);

impl Pattern {
    /// The pattern as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn check(&self, path: &str) -> Result<(), Problem> {
        not_blank(path, &self.0)?;
        if self.0 == "re:" {
            let problem = Problem::new(path, format!("`{path}` has no expression after `re:`"));
            return Err(problem.label("nothing follows").hint("`re:.*` matches every layer"));
        }
        compressed_tensors::Pattern::parse(&self.0).map(drop).map_err(|error| {
            Problem::new(path, format!("`{path}` is not a regular expression: {}", error.reason))
                .label("not a regular expression")
                .hint("close every group and class; a character that means itself takes a backslash: `\\(`")
        })
    }
}

impl From<&str> for Pattern {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}
