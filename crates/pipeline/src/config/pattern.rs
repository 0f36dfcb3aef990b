//! Which layers a rule is about.

use regex::{Regex, RegexBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Problem, not_blank};

/// Compiled patterns may take this many bytes; names of layers need a few hundred.
const LARGEST_PROGRAM: usize = 1 << 20;

/// The exact name of a layer, or `re:` and a regular expression that must match from the start of the name, as
/// Python's `re.match` does; it need not reach the end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Pattern(pub String);

/// A [`Pattern`] ready to be compared with names.
#[derive(Debug, Clone)]
pub enum Matcher {
    /// The one name that matches.
    Exact(String),
    /// The expression that must match from the start.
    Regex(Regex),
}

impl Pattern {
    /// The pattern as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Compiles the pattern; the error says what is wrong with its expression.
    pub fn matcher(&self) -> Result<Matcher, regex::Error> {
        match self.0.strip_prefix("re:") {
            None => Ok(Matcher::Exact(self.0.clone())),
            Some(expression) => {
                RegexBuilder::new(expression).size_limit(LARGEST_PROGRAM).build().map(Matcher::Regex)
            }
        }
    }

    pub(super) fn check(&self, path: &str) -> Result<(), Problem> {
        not_blank(path, &self.0)?;
        if self.0 == "re:" {
            let problem = Problem::new(path, format!("`{path}` has no expression after `re:`"));
            return Err(problem.hint("`re:.*` matches every layer"));
        }
        self.matcher().map(|_| ()).map_err(|error| {
            // The library draws the expression over several lines; its last one is the reason.
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default().trim().trim_start_matches("error: ");
            Problem::new(path, format!("`{path}` is not a regular expression: {reason}"))
        })
    }
}

impl Matcher {
    /// Whether the pattern is about the layer called `name`.
    pub fn is_match(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            // The leftmost match starts at 0 if any does.
            Self::Regex(regex) => regex.find(name).is_some_and(|found| found.start() == 0),
        }
    }
}

impl From<&str> for Pattern {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_python_does() {
        let cases = [
            ("encoder.layer.5", "encoder.layer.5", true),
            ("encoder.layer.5", "encoder.layer.5.dense", false),
            ("encoder.layer.5", "encoderXlayer.5", false),
            ("re:encoder", "encoder.layer.5", true),
            ("re:layer", "encoder.layer.5", false),
            ("re:.*layer", "encoder.layer.5", true),
            ("re:encoder$", "encoder.layer.5", false),
            ("re:a|b", "cb", false),
            ("re:(?x) enc # comment", "encoder", true),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(
                Pattern::from(pattern).matcher().unwrap().is_match(name),
                expected,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn a_pattern_cannot_claim_the_memory() {
        assert!(Pattern::from("re:(a{1000}){1000}").check("ignore.0").is_err());
    }
}
