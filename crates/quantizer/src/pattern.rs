//! Patterns over module paths: exact names, or `re:` and a regular expression anchored at the start.

use std::fmt;

use regex::Regex;
use thiserror::Error;

/// Why a pattern cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("pattern `{pattern}` is not a regular expression: {reason}")]
pub struct PatternError {
    /// The pattern as given.
    pub pattern: String,
    /// What the regex engine said, on one line.
    pub reason: String,
}

/// A pattern over module paths, as compressed-tensors reads them: `re:` is matched from the start of the name, as by
/// Python's `re.match`, and need not reach its end; anything else is an exact name.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    regex: Option<Regex>,
}

impl Pattern {
    /// Parses a pattern.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let regex = text
            .strip_prefix("re:")
            .map(|body| Regex::new(&format!("^(?:{body})")))
            .transpose()
            .map_err(|error| PatternError {
                pattern: text.to_owned(),
                reason: error.to_string().lines().last().unwrap_or_default().trim().to_owned(),
            })?;
        Ok(Self { text: text.to_owned(), regex })
    }

    /// Whether the module path matches.
    pub fn matches(&self, path: &str) -> bool {
        match &self.regex {
            Some(regex) => regex.is_match(path),
            None => self.text == path,
        }
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
            // Alternatives stay inside the anchor.
            ("re:a|output", "encoder.layer.0.output.dense", false),
        ];
        for (pattern, path, expected) in cases {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(path), expected, "{pattern} on {path}");
        }
    }

    #[test]
    fn a_broken_expression_is_one_sentence() {
        let error = Pattern::parse("re:encoder[").unwrap_err().to_string();
        assert!(error.starts_with("pattern `re:encoder[` is not a regular expression: "), "{error}");
        assert!(!error.contains('\n'));
    }
}
