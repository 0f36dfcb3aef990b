//! What is wrong with a config: one sentence, where it is, and what to do about it.

use std::fmt::Write as _;

use thiserror::Error;

/// A source line longer than this is cut to a window around the mistake.
const WIDEST_EXCERPT: usize = 120;

/// Why a config was refused.
///
/// [`Display`](std::fmt::Display) gives one line, `origin:line:column: sentence`; [`render`](Self::render) gives the
/// sentence with the line of the file it is about and a hint.
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

/// The place of a mistake in a text, with the line it stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Excerpt {
    /// From 1.
    line: usize,
    /// In characters, from 1.
    column: usize,
    /// In characters, at least 1, within the line.
    length: usize,
    text: String,
}

impl Excerpt {
    /// The line of `text` that byte `span.start` is on; a span over several lines is cut at the end of the first.
    pub(super) fn new(text: &str, span: &std::ops::Range<usize>) -> Self {
        let start = floor_char_boundary(text, span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let shown = text[line_start..].split('\n').next().unwrap_or_default().trim_end();
        // A mistake in what is trimmed, a line end for example, is shown just behind the line.
        let line_end = line_start + shown.len();
        let start = start.min(line_end);
        let end = floor_char_boundary(text, span.end).clamp(start, line_end);
        Self {
            line: text[..line_start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            length: text[start..end].chars().count().max(1),
            text: shown.to_owned(),
        }
    }

    /// The line and the carets below it. Control characters become spaces, so that a file cannot steer the terminal.
    fn draw(&self) -> (String, String) {
        let before = self.column - 1;
        let first = if before + self.length <= WIDEST_EXCERPT { 0 } else { before.saturating_sub(20) };
        let shown = |c: char| if c.is_control() { ' ' } else { c };
        let mut line: String = self.text.chars().skip(first).take(WIDEST_EXCERPT).map(shown).collect();
        if self.text.chars().count() > first + WIDEST_EXCERPT {
            line.push('…');
        }
        let lead = if first > 0 { "…" } else { "" };
        let indent = before - first + lead.chars().count();
        let length = self.length.min(WIDEST_EXCERPT.saturating_sub(before - first)).max(1);
        (format!("{lead}{line}"), format!("{}{}", " ".repeat(indent), "^".repeat(length)))
    }
}

fn floor_char_boundary(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}

impl ConfigError {
    pub(super) fn new(origin: impl Into<String>, excerpt: Option<Excerpt>, problem: Problem) -> Self {
        let Problem { path, message, hint } = problem;
        let key = (!path.is_empty()).then_some(path);
        Self(Box::new(Detail { origin: origin.into(), excerpt, key, message, hint }))
    }

    /// Where the text came from: the path of a file as it was given, or the `--set` argument.
    pub fn origin(&self) -> &str {
        &self.0.origin
    }

    /// The line of the mistake, from 1, when it has one.
    pub fn line(&self) -> Option<usize> {
        self.0.excerpt.as_ref().map(|excerpt| excerpt.line)
    }

    /// The column of the mistake in characters, from 1, when it has one.
    pub fn column(&self) -> Option<usize> {
        self.0.excerpt.as_ref().map(|excerpt| excerpt.column)
    }

    /// The line of the source that the mistake is on, without its line end.
    pub fn source_line(&self) -> Option<&str> {
        self.0.excerpt.as_ref().map(|excerpt| excerpt.text.as_str())
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

    /// `origin:line:column`, as far as known.
    pub fn location(&self) -> String {
        let origin = printable(&self.0.origin);
        match &self.0.excerpt {
            Some(excerpt) => format!("{origin}:{}:{}", excerpt.line, excerpt.column),
            None => origin,
        }
    }

    /// The whole message as plain text of several lines: sentence, place, the line with the mistake marked, hint.
    pub fn render(&self) -> String {
        let mut out = format!("error: {}\n", self.0.message);
        let line = self.line().map(|line| line.to_string()).unwrap_or_default();
        let gutter = " ".repeat(line.len());
        let _ = writeln!(out, "{gutter}--> {}", self.location());
        if let Some(excerpt) = &self.0.excerpt {
            let (text, carets) = excerpt.draw();
            let _ = writeln!(out, "{gutter} |\n{line} | {text}\n{gutter} | {carets}");
        }
        if let Some(hint) = &self.0.hint {
            let _ = writeln!(out, "hint: {hint}");
        }
        out
    }
}

/// A mistake that knows its key but not yet its place in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// Dotted path; empty for the whole config.
    pub(super) path: String,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Problem {
    pub(super) fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), hint: None }
    }

    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
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
    Err(Problem::new(path, format!("`{path}` must be between {low} and {high}, but is {value}")))
}

/// Refuses an empty string and one that no file system or terminal takes.
pub(super) fn not_blank(path: &str, value: &str) -> Result<(), Problem> {
    if value.trim().is_empty() {
        return Err(Problem::new(path, format!("`{path}` must not be empty")));
    }
    if value.chars().any(char::is_control) {
        return Err(Problem::new(path, format!("`{path}` must not contain control characters")));
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

fn printable(text: &str) -> String {
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

    #[test]
    fn excerpts_survive_any_span() {
        let text = "a = 1\r\nb\u{e9}\t= [\n1]";
        for start in 0..=text.len() + 3 {
            for end in start..=text.len() + 3 {
                let excerpt = Excerpt::new(text, &(start..end));
                let (line, carets) = excerpt.draw();
                assert!(excerpt.line >= 1 && excerpt.line <= 3);
                assert!(carets.chars().count() <= line.chars().count() + 1, "{line:?} {carets:?}");
            }
        }
        let second = Excerpt::new(text, &(7..10));
        assert_eq!(
            (second.line, second.column, second.length, second.text.as_str()),
            (2, 1, 2, "b\u{e9}\t= [")
        );
    }

    #[test]
    fn a_long_line_is_cut_around_the_mistake() {
        let text = format!("{}WRONG{}", "x".repeat(5000), "y".repeat(5000));
        let (line, carets) = Excerpt::new(&text, &(5000..5005)).draw();
        assert!(line.chars().count() <= WIDEST_EXCERPT + 2);
        let at = carets.chars().position(|c| c == '^').unwrap();
        assert_eq!(line.chars().skip(at).take(carets.trim().len()).collect::<String>(), "WRONG");
    }
}
