//! What is wrong with a config: one sentence, where it is, and what to do about it.

use thiserror::Error;

use super::excerpt::Excerpt;

/// Why a config was refused.
///
/// [`Display`](std::fmt::Display) gives one line, `origin:line:column: sentence`. A front end that draws can show the
/// [excerpt](Self::excerpt) between the [sentence](Self::message) and the [hint](Self::hint).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}: {}", self.location(), self.0.message)]
pub struct ConfigError(Box<Detail>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Detail {
    origin: String,
    excerpt: Option<Excerpt>,
    key: Option<String>,
    message: String,
    hint: Option<String>,
}

impl ConfigError {
    pub(super) fn new(origin: impl Into<String>, excerpt: Option<Excerpt>, problem: Problem) -> Self {
        let Problem { path, message, hint, .. } = problem;
        let key = (!path.is_empty()).then_some(path);
        Self(Box::new(Detail { origin: origin.into(), excerpt, key, message, hint }))
    }

    /// The source with the mistake marked, where the mistake has a place.
    pub fn excerpt(&self) -> Option<&Excerpt> {
        self.0.excerpt.as_ref()
    }

    /// The line of the config file that the mistake is on, from 1.
    pub fn line(&self) -> Option<usize> {
        self.position().map(|(line, _)| line)
    }

    /// The column of the mistake in the config file in characters, from 1.
    pub fn column(&self) -> Option<usize> {
        self.position().map(|(_, column)| column)
    }

    fn position(&self) -> Option<(usize, usize)> {
        self.excerpt().filter(|excerpt| excerpt.is_file()).map(Excerpt::position)
    }

    /// The dotted path of the key that is wrong or missing, as `--set` takes it (`evaluation.tasks.0.limit`).
    pub fn key(&self) -> Option<&str> {
        self.0.key.as_deref()
    }

    /// What is wrong, as one sentence without its place.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What is allowed, or what to do.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// `FILE:LINE:COLUMN`, or `--set ARGUMENT`; without a place, what the config is called.
    pub fn location(&self) -> String {
        match &self.0.excerpt {
            Some(excerpt) => excerpt.to_string(),
            None => printable(&self.0.origin),
        }
    }
}

/// A mistake that knows its key but not yet its place in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// Dotted path; empty for the whole config.
    pub(super) path: String,
    pub(super) message: String,
    pub(super) hint: Option<String>,
    /// A few words to stand at the place.
    pub(super) label: String,
    /// Other keys that the mistake has to do with, with the words to stand at them.
    pub(super) related: Vec<(String, String)>,
}

impl Problem {
    pub(super) fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
            hint: None,
            label: "here".to_owned(),
            related: Vec::new(),
        }
    }

    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub(super) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    #[must_use]
    pub(super) fn related(mut self, path: impl Into<String>, label: impl Into<String>) -> Self {
        self.related.push((path.into(), label.into()));
        self
    }
}

/// Refuses a number outside `allowed`.
pub(super) fn within<T: Copy + PartialOrd + std::fmt::Display>(
    path: &str,
    value: T,
    allowed: std::ops::RangeInclusive<T>,
) -> Result<(), Problem> {
    if allowed.contains(&value) {
        return Ok(());
    }
    let (low, high) = allowed.into_inner();
    Err(Problem::new(path, format!("`{path}` must be between {low} and {high}, but is {value}"))
        .label("out of range")
        .hint("write a number of this range, or leave the key out for its default"))
}

/// Refuses an empty string and one that no file system or terminal takes.
pub(super) fn not_blank(path: &str, value: &str) -> Result<(), Problem> {
    if value.trim().is_empty() {
        return Err(Problem::new(path, format!("`{path}` must not be empty"))
            .label("empty")
            .hint("name something, or leave the key out for its default"));
    }
    if value.chars().any(char::is_control) {
        return Err(Problem::new(path, format!("`{path}` must not contain control characters"))
            .label("a control character is in this text")
            .hint("write it without line ends, escapes and other control characters"));
    }
    Ok(())
}

/// A name from a file, fit to be shown: in backticks, control characters escaped, cut when long.
pub(super) fn quoted(name: &str) -> String {
    format!("`{}`", short(name))
}

pub(super) fn short(text: &str) -> String {
    let mut shown = printable(&text.chars().take(60).collect::<String>());
    if text.chars().nth(60).is_some() {
        shown.push('…');
    }
    shown
}

pub(super) fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// `` `a`, `b`, `c` ``
pub(super) fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The hint of a wrong name: the nearest one, if one is near, and all that are allowed.
pub(super) fn name_hint(name: &str, allowed: &[&str]) -> String {
    match nearest(name, allowed) {
        Some(near) if allowed.len() == 1 => format!("did you mean `{near}`?"),
        Some(near) => format!("did you mean `{near}`? allowed: {}", list(allowed)),
        None => format!("allowed: {}", list(allowed)),
    }
}

/// The allowed name that `name` most likely stands for: the only one it begins, else the one fewest edits away.
fn nearest<'a>(name: &str, allowed: &[&'a str]) -> Option<&'a str> {
    let plain = |name: &str| name.to_lowercase().replace('-', "_");
    let name = plain(name);
    if name.chars().count() > 64 {
        return None;
    }
    let mut begun = allowed.iter().filter(|candidate| name.len() >= 3 && plain(candidate).starts_with(&name));
    if let (Some(&only), None) = (begun.next(), begun.next()) {
        return Some(only);
    }
    allowed
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(&name, &plain(candidate)), *candidate))
        .filter(|(edits, candidate)| *edits <= (name.len().max(candidate.len()) / 3).max(1))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_near() {
        let allowed = ["samples", "max_length", "batch_size", "seed", "w8a8-dynamic", "w8a8-static", "keep"];
        let cases = [
            ("sample", Some("samples")),
            ("batch-size", Some("batch_size")),
            ("BatchSize", Some("batch_size")),
            ("max_len", Some("max_length")),
            ("w8a8-dyn", Some("w8a8-dynamic")),
            ("w8a8", None), // begins two, and is near neither
            ("transforms", None),
            ("", None),
        ];
        for (name, expected) in cases {
            assert_eq!(nearest(name, &allowed), expected, "{name}");
        }
        assert_eq!(nearest(&"s".repeat(10_000), &allowed), None);
    }
}
