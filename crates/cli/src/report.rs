//! An error as a report: the sentence, the line of the config that it is about with the place marked, and what to do.

use std::fmt;

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError, MietteSpanContents,
    SourceCode, SourceSpan, SpanContents,
};
use zeropoint_pipeline::PipelineError;
use zeropoint_pipeline::config::{Excerpt, Mark};

/// A source line is cut to a window of this many characters around what is marked on it.
const WIDEST_LINE: usize = 80;

/// How a report is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style {
    /// With colours.
    pub(crate) color: bool,
    /// With line-drawing characters; else in ASCII.
    pub(crate) unicode: bool,
}

/// The report of an error, ending with a line end. Control characters in it are shown as spaces, so that a file cannot steer
/// the terminal. Lines of text are not broken: a terminal of any width does that itself.
pub(crate) fn render(error: &PipelineError, style: Style) -> String {
    let message = match error {
        // Without a place to point to, the sentence names the config.
        PipelineError::Config(config) if config.excerpt().is_some() => config.message().to_owned(),
        other => other.to_string(),
    };
    let report =
        Report { message: one_line(&message), hint: error.hint(), shown: error.excerpt().map(Shown::new) };
    let mut text = String::new();
    let drawn = GraphicalReportHandler::new_themed(theme(style))
        .with_wrap_lines(false)
        .with_context_lines(0)
        .without_primary_span_start()
        .without_cause_chain()
        .without_syntax_highlighting()
        .render_report(&mut text, &report);
    if drawn.is_err() {
        return format!("error: {}\n", report.message);
    }
    // The sentence begins where the line does.
    text.trim_start().to_owned()
}

fn theme(style: Style) -> GraphicalTheme {
    let mut theme = match (style.color, style.unicode) {
        (true, true) => GraphicalTheme::unicode(),
        (true, false) => GraphicalTheme::ascii(),
        (false, true) => GraphicalTheme::unicode_nocolor(),
        (false, false) => GraphicalTheme::none(),
    };
    "error:".clone_into(&mut theme.characters.error);
    if !style.unicode {
        // A mark of one character is a caret too.
        theme.characters.underbar = theme.characters.underline;
    }
    if style.color {
        theme.styles.error = theme.styles.error.bold();
    }
    theme
}

/// Text for one line.
fn one_line(text: &str) -> String {
    text.lines().map(str::trim_end).collect::<Vec<_>>().join(" ").chars().map(harmless).collect()
}

fn harmless(c: char) -> char {
    if c.is_control() { ' ' } else { c }
}

#[derive(Debug)]
struct Report {
    message: String,
    hint: Option<String>,
    shown: Option<Shown>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Report {}

impl Diagnostic for Report {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.hint.as_deref().map(|hint| Box::new(one_line(hint)) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.shown.as_ref().map(|shown| shown as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let shown = self.shown.as_ref()?;
        Some(Box::new(shown.labels.iter().cloned()))
    }
}

/// The marked lines of a source as they are fit to be shown.
#[derive(Debug)]
struct Shown {
    /// Every line ends with a line end.
    text: String,
    labels: Vec<LabeledSpan>,
    /// What stands above each label's lines, by the offset of the label.
    names: Vec<(usize, String)>,
}

impl Shown {
    /// Every line keeps its number, but only those that are marked keep their text: as much of it as is near the mark. A
    /// mark over several lines is cut at the end of its first.
    fn new(excerpt: &Excerpt) -> Self {
        let text = excerpt.text();
        let mut marks: Vec<(usize, &Mark)> = excerpt.marks().iter().enumerate().collect();
        marks.sort_by_key(|(_, mark)| mark.span.start);
        let (mut shown, mut labels, mut names) = (String::new(), Vec::new(), Vec::new());
        let mut begin = 0;
        let mut number = 0;
        for line in text.split_inclusive('\n').chain(text.is_empty().then_some("")) {
            let end = begin + line.len();
            number += 1;
            let is_last = end == text.len();
            let on_line: Vec<&(usize, &Mark)> = marks
                .iter()
                .filter(|(_, mark)| mark.span.start >= begin && (mark.span.start < end || is_last))
                .collect();
            if let Some((_, first)) = on_line.first() {
                let kept = line.trim_end();
                let window = Window::around(kept, first.span.start - begin);
                for (index, mark) in on_line {
                    let (start, end) = (mark.span.start - begin, mark.span.end - begin);
                    let start = window.place(start.min(kept.len()));
                    let length = window.place(end.min(kept.len())).saturating_sub(start);
                    let column = kept.get(..mark.span.start - begin).unwrap_or(kept).chars().count() + 1;
                    let name = if excerpt.is_file() {
                        format!("{}:{number}:{column}", excerpt.origin())
                    } else {
                        excerpt.origin().to_owned()
                    };
                    let span = (shown.len() + start, length);
                    names.push((span.0, name.chars().map(harmless).collect()));
                    let label = Some(mark.label.clone());
                    labels.push(match index {
                        0 => LabeledSpan::new_primary_with_span(label, span),
                        _ => LabeledSpan::new_with_span(label, span),
                    });
                }
                shown.push_str(&window.text);
            }
            shown.push('\n');
            begin = end;
        }
        Self { text: shown, labels, names }
    }
}

/// Gives whole lines and none around them, whatever is asked for: miette's own sources give the marked bytes alone when
/// no context is wanted.
impl SourceCode for Shown {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        _before: usize,
        _after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let (start, end) = (span.offset(), span.offset() + span.len());
        let (Some(before), Some(after)) = (self.text.get(..start), self.text.get(end..)) else {
            return Err(MietteError::OutOfBounds);
        };
        let first = before.rfind('\n').map_or(0, |newline| newline + 1);
        let last = end + after.find('\n').map_or(after.len(), |newline| newline + 1);
        let name = self.names.iter().find(|(at, _)| *at == start).map(|(_, name)| name.clone());
        let lines = &self.text[first..last];
        Ok(Box::new(MietteSpanContents::new_named(
            name.unwrap_or_default(),
            lines.as_bytes(),
            (first, lines.len()).into(),
            before.matches('\n').count(),
            0,
            lines.matches('\n').count(),
        )))
    }
}

/// A piece of a line, with every character fit to be shown.
struct Window {
    text: String,
    /// For each byte of the line and its end, the byte of `text` that shows it.
    places: Vec<usize>,
}

impl Window {
    /// Of a line, what is near its byte `at`.
    fn around(line: &str, at: usize) -> Self {
        let before = line.get(..at).unwrap_or(line).chars().count();
        let all = line.chars().count();
        let first = if all <= WIDEST_LINE { 0 } else { before.saturating_sub(WIDEST_LINE / 4) };
        let last = first + WIDEST_LINE;
        let (mut text, mut places) = (String::new(), Vec::with_capacity(line.len() + 1));
        if first > 0 {
            text.push_str("...");
        }
        for (index, c) in line.chars().enumerate() {
            places.extend(std::iter::repeat_n(text.len(), c.len_utf8()));
            if (first..last).contains(&index) {
                text.push(if c == '\t' { c } else { harmless(c) });
            }
        }
        places.push(text.len());
        if all > last {
            text.push_str("...");
        }
        Self { text, places }
    }

    fn place(&self, byte: usize) -> usize {
        self.places.get(byte).copied().unwrap_or(self.text.len())
    }
}

#[cfg(test)]
mod tests {
    use zeropoint_pipeline::config::Config;

    use super::*;

    const PLAIN: Style = Style { color: false, unicode: false };

    fn mistake(text: &str, sets: &[&str]) -> PipelineError {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        Config::parse(text, "c.toml", &sets).expect_err("a mistake").into()
    }

    #[test]
    fn a_mistake_is_shown_on_its_line() {
        let text = "[model]\nsource = 'm'\n\n[calibration]\n\tsamplse = 10 # ten\r\n";
        insta::assert_snapshot!("ascii", render(&mistake(text, &[]), PLAIN));
        insta::assert_snapshot!("unicode", render(&mistake(text, &[]), Style { unicode: true, ..PLAIN }));
        let color = render(&mistake(text, &[]), Style { color: true, unicode: true });
        insta::assert_snapshot!("color", color.escape_debug().to_string().replace("\\n", "\n"));
    }

    #[test]
    fn an_argument_is_shown_as_it_was_given() {
        let shown = render(&mistake("model.source = 'm'", &["model.task = embeding"]), PLAIN);
        insta::assert_snapshot!("argument", shown);
    }

    #[test]
    fn what_contradicts_each_other_is_marked_in_both_places() {
        let text = "model.source = 'm'\n[quantization]\nscheme = 'w8a8-dynamic'\n# why not\n\nactivations.mode = 'static'";
        insta::assert_snapshot!("contradiction", render(&mistake(text, &[]), PLAIN));
    }

    #[test]
    fn a_long_line_is_cut_around_the_mistake() {
        let text =
            format!("model.source = 'm' # {}\nmodel.task = 'wrong' # {}", "x".repeat(5000), "y".repeat(5000));
        let left = render(&mistake(&text, &[]), PLAIN);
        let text = format!("model = {{ revision = '{}', task = 'wrong', source = '' }}", "é".repeat(3000));
        let right = render(&mistake(&text, &[]), PLAIN);
        for shown in [left, right] {
            let lines: Vec<&str> = shown.lines().collect();
            let line = lines.iter().position(|line| line.contains("'wrong'")).expect("the mistake is shown");
            assert!(lines[line].chars().count() < WIDEST_LINE + 20, "{shown}");
            let at = |line: &str, what: &str| line.find(what).map(|at| line[..at].chars().count());
            assert_eq!(at(lines[line], "'wrong'"), at(lines[line + 1], "^"), "{shown}");
        }
    }

    #[test]
    fn nothing_in_a_file_steers_the_terminal() {
        for text in
            ["\"a\\u001b[2J\" = 1 # \u{1}\u{9b}", "model.source = 'm\u{1b}]0;title\u{7}'", "a\u{b}\r = ["]
        {
            let shown = render(&mistake(text, &["x=\u{1b}[2J"]), PLAIN);
            assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
        }
        let shown =
            render(&mistake("model.source = 'm'", &["calibration.samples=\u{1b}[2J\nerror: no"]), PLAIN);
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
    }

    #[test]
    fn any_mistake_can_be_shown() {
        let text = "é = [\r\n\t'\u{301}a',\n]\nmodel.source = \"m\"\n[calibration]\nsamples = '''\n'''\n";
        for start in (0..=text.len()).filter(|&i| text.is_char_boundary(i)) {
            for broken in [&text[..start], &text[start..]] {
                let Err(error) = Config::parse(broken, "c.toml", &[]) else { continue };
                let message = error.message().to_owned();
                let shown = render(&error.into(), PLAIN);
                assert!(shown.starts_with("error: ") && shown.contains(&one_line(&message)), "{shown}");
                assert!(!shown.contains("Failed to read"), "{broken:?}: {shown}");
            }
        }
    }
}
