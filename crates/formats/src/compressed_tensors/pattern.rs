//! Patterns over module names: exact names, or `re:` and a regular expression anchored at the start.

use std::fmt;

use regex::{Regex, RegexBuilder};
use thiserror::Error;

const PREFIX: &str = "re:";
/// Compiled expressions may take this many bytes; names of layers need a few hundred.
const LARGEST_PROGRAM: usize = 1 << 20;

/// Why a pattern cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("pattern `{pattern}` is not a regular expression: {reason}")]
pub struct PatternError {
    /// The pattern as given.
    pub pattern: String,
    /// What is wrong with it, on one line.
    pub reason: String,
}

/// A pattern as compressed-tensors reads it: `re:` is matched from the start of the name, as by Python's `re.match`,
/// and need not reach its end; anything else is an exact name.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    regex: Option<Regex>,
}

impl Pattern {
    /// Parses a pattern.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let regex = text
            .strip_prefix(PREFIX)
            .map(|body| RegexBuilder::new(body).size_limit(LARGEST_PROGRAM).build())
            .transpose()
            .map_err(|error| {
                // The engine draws the expression over several lines; its last one is the reason.
                let text_of_error = error.to_string();
                let reason = text_of_error.lines().last().unwrap_or_default().trim();
                let reason = reason.trim_start_matches("error: ").to_owned();
                PatternError { pattern: text.to_owned(), reason }
            })?;
        Ok(Self { text: text.to_owned(), regex })
    }

    /// The pattern of one name.
    pub(super) fn exact(name: String) -> Self {
        Self { text: name, regex: None }
    }

    /// Whether the module of that name is meant.
    pub fn matches(&self, name: &str) -> bool {
        match &self.regex {
            // The leftmost match starts at 0 if any does.
            Some(regex) => regex.find(name).is_some_and(|found| found.start() == 0),
            None => self.text == name,
        }
    }

    /// Whether it is a regular expression.
    pub fn is_expression(&self) -> bool {
        self.regex.is_some()
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_anchored_at_the_start_only() {
        let cases = [
            ("encoder.layer.0.output.dense", "encoder.layer.0.output.dense", true),
            ("encoder.layer.0", "encoder.layer.0.output.dense", false),
            (r"re:encoder\.layer\.0\.", "encoder.layer.0.output.dense", true),
            (r"re:encoder\.layer\.0\.", "encoder.layer.01", false),
            ("re:output", "encoder.layer.0.output.dense", false),
            ("re:.*output", "encoder.layer.0.output.dense", true),
            // Alternatives and comments do not escape the anchor, and line starts are not starts.
            ("re:a|output", "encoder.layer.0.output.dense", false),
            ("re:encoder$", "encoder.layer.0.output.dense", false),
            ("re:(?x) enc # comment", "encoder.layer.0.output.dense", true),
            ("re:(?m)^output", "encoder\noutput", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(name), expected, "{pattern} on {name}");
        }
    }

    #[test]
    fn a_broken_expression_is_one_sentence() {
        for broken in ["re:encoder[", "re:a)(b", "re:(?:a{1000}){1000}"] {
            let error = Pattern::parse(broken).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("pattern `{broken}` is not a regular expression: ")),
                "{error}"
            );
            assert!(!error.contains('\n'));
        }
    }
}
