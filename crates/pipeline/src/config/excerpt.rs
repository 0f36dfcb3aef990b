//! Where something is written: a source, and the bytes of it that are meant.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::error::printable;

/// A source with the places in it that a message is about, for a front end to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    source: Source,
    /// Never empty; the first is what the message is about.
    marks: Vec<Mark>,
}

/// What a config was put together from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// The config itself.
    File { origin: Arc<str>, text: Arc<str> },
    /// An argument that changes it.
    Argument { option: &'static str, text: Arc<str> },
}

/// A marked piece of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Bytes of [`Excerpt::text`], within it and on the boundaries of characters; may be empty.
    pub span: Range<usize>,
    /// A few words to stand at the mark.
    pub label: String,
}

impl Excerpt {
    /// `marks` holds the one that the message is about and then the others; spans are cut to the text.
    pub(super) fn new(source: Source, first: Mark, others: impl IntoIterator<Item = Mark>) -> Self {
        let mut excerpt = Self { source, marks: vec![first] };
        excerpt.marks.extend(others);
        let text = excerpt.text().to_owned();
        for mark in &mut excerpt.marks {
            let start = floor_char_boundary(&text, mark.span.start);
            mark.span = start..floor_char_boundary(&text, mark.span.end).max(start);
        }
        excerpt
    }

    /// What the source is called: the path of a file as it was given, or the option of the command line.
    pub fn origin(&self) -> &str {
        match &self.source {
            Source::File { origin, .. } => origin,
            Source::Argument { option, .. } => option,
        }
    }

    /// The whole text of the file, or of the argument.
    pub fn text(&self) -> &str {
        match &self.source {
            Source::File { text, .. } | Source::Argument { text, .. } => text,
        }
    }

    /// Whether the source is a file, whose lines have numbers.
    pub fn is_file(&self) -> bool {
        matches!(self.source, Source::File { .. })
    }

    /// The marks, at least one; the first is what the message is about, others explain it.
    pub fn marks(&self) -> &[Mark] {
        &self.marks
    }

    /// The bytes that the message is about.
    pub fn span(&self) -> Range<usize> {
        self.marks[0].span.clone()
    }

    /// Line and column of the first mark, from 1, the column in characters.
    pub fn position(&self) -> (usize, usize) {
        let before = &self.text()[..self.span().start];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

/// `FILE:LINE:COLUMN`, or the option with its argument.
impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::File { origin, .. } => {
                let (line, column) = self.position();
                write!(f, "{}:{line}:{column}", printable(origin))
            }
            Source::Argument { option, text } => write!(f, "{option} {}", printable(text)),
        }
    }
}

fn floor_char_boundary(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_span_is_cut_to_the_text() {
        let text = "a = 1\r\nb\u{e9}\t= [\n1]";
        for start in 0..=text.len() + 3 {
            for end in start..=text.len() + 3 {
                let source = Source::File { origin: "c.toml".into(), text: text.into() };
                let excerpt = Excerpt::new(source, Mark { span: start..end, label: String::new() }, []);
                let span = excerpt.span();
                assert!(span.start <= start && span.end <= end.max(span.start));
                assert!(excerpt.text().get(span).is_some());
                let (line, column) = excerpt.position();
                assert!((1..=3).contains(&line) && (1..=7).contains(&column));
            }
        }
        let source = Source::File { origin: "c.toml".into(), text: text.into() };
        let second = Excerpt::new(source, Mark { span: 8..11, label: String::new() }, []);
        assert_eq!((second.position(), &text[second.span()]), ((2, 2), "\u{e9}\t"));
        assert_eq!(second.to_string(), "c.toml:2:2");
    }
}
