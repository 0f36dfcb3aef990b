//! From logits to what they say: spans of answers, and the windows of a long text that they are looked for in.

use std::ops::Range;

use zeropoint_models::{ModelError, TokenSequence, Tokenizer};

/// Most tokens of an answer, as in `transformers`' question answering.
pub const MAX_ANSWER_TOKENS: usize = 30;
/// Most tokens that neighbouring windows share, as in `transformers`' question answering.
const OVERLAP: usize = 128;
/// Fewest tokens of the context that a window must have room for.
const LEAST_ROOM: usize = 4;

/// The best span of one text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// Its first token.
    pub start: usize,
    /// Its last token.
    pub end: usize,
    /// The sum of the logits of its start and its end.
    pub score: f64,
}

/// The span `start..=end` of at most [`MAX_ANSWER_TOKENS`] tokens within `allowed` with the largest sum of the logit of its
/// start and the logit of its end; of equal sums the first. `logits` has two columns, start and end, and a row a token.
///
/// `None` when nothing is allowed or all sums are NaN.
pub fn best_span(logits: &[f32], allowed: Range<usize>) -> Option<Span> {
    let last = allowed.end.min(logits.len() / 2);
    let mut best: Option<Span> = None;
    for start in allowed.start..last {
        for end in start..last.min(start + MAX_ANSWER_TOKENS) {
            let score = f64::from(logits[2 * start]) + f64::from(logits[2 * end + 1]);
            if !score.is_nan() && best.is_none_or(|best| score > best.score) {
                best = Some(Span { start, end, score });
            }
        }
    }
    best
}

/// A question with a part of its context, as one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct QuestionWindow {
    /// The tokens.
    pub sequence: TokenSequence,
    /// The first token of the context among them.
    pub first: usize,
    /// Bytes of the context that each of its tokens covers, from `first` on.
    pub spans: Vec<Range<usize>>,
}

impl QuestionWindow {
    /// A question over a context in windows that the model can take: one where all fits, else windows that share up to 128
    /// tokens, at most half of one. An error where the question leaves no room.
    pub fn all(tokenizer: &Tokenizer, question: &str, context: &str) -> Result<Vec<Self>, ModelError> {
        let tokens = tokenizer.align(question, Some(context))?;
        let room = tokenizer.max_length().saturating_sub(tokens.around());
        if room < LEAST_ROOM && room < tokens.last_part().len() {
            return Err(ModelError::Sample {
                reason: format!(
                    "the question takes {} tokens with specials, and with at most {} for both there is no room for the \
                     context; shorten the question",
                    tokens.around(),
                    tokenizer.max_length()
                ),
            });
        }
        let context = tokens.last_part();
        let window = |kept: Range<usize>| Self {
            sequence: tokens.window(&kept),
            first: context.start,
            spans: tokens.spans[kept].to_vec(),
        };
        Ok(tokens.windows(room, OVERLAP.min(room / 2)).into_iter().map(window).collect())
    }

    /// What the logits of this window, two a token, say.
    pub fn answer(&self, logits: &[f32]) -> WindowAnswer {
        let span = best_span(logits, self.first..self.first + self.spans.len());
        let bytes =
            |span: Span| self.spans[span.start - self.first].start..self.spans[span.end - self.first].end;
        let no_answer = match logits {
            [start, end, ..] => f64::from(*start) + f64::from(*end),
            _ => f64::NEG_INFINITY,
        };
        WindowAnswer {
            score: span.map_or(f64::NEG_INFINITY, |span| span.score),
            bytes: span.map_or(0..0, bytes),
            span,
            no_answer,
        }
    }
}

/// The best answer in a window.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowAnswer {
    /// Its tokens; `None` when the context has none.
    pub span: Option<Span>,
    /// Its bytes of the context.
    pub bytes: Range<usize>,
    /// The sum of its logits.
    pub score: f64,
    /// The same for the first token, which stands for "the text does not say".
    pub no_answer: f64,
}

/// The best of the windows of one question, the first of equals, with its index.
pub fn best_window(answers: &[WindowAnswer]) -> Option<(usize, &WindowAnswer)> {
    let better = |best: (usize, &WindowAnswer), other: &(usize, &WindowAnswer)| other.1.score > best.1.score;
    answers.iter().enumerate().reduce(|best, other| if better(best, &other) { other } else { best })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_span_does_not_end_before_it_starts() {
        // Token 2 is the best start and token 1 the best end.
        let logits = [0.0, 0.0, 1.0, 9.0, 9.0, 1.0, 0.0, 2.0];
        assert_eq!(best_span(&logits, 0..4), Some(Span { start: 2, end: 3, score: 11.0 }));
        assert_eq!(best_span(&logits, 0..2), Some(Span { start: 1, end: 1, score: 10.0 }));
        assert_eq!(best_span(&logits, 2..2), None);
        assert_eq!(best_span(&[f32::NAN; 4], 0..2), None);
    }

    proptest! {
        #[test]
        fn the_best_span_is_that_of_all(
            rows in prop::collection::vec((-4i8..4, -4i8..4), 1..60), from in 0usize..20,
        ) {
            let logits: Vec<f32> = rows.iter().flat_map(|&(s, e)| [f32::from(s), f32::from(e)]).collect();
            let all = (from..rows.len()).flat_map(|s| (s..rows.len()).map(move |e| (s, e)));
            let allowed = all.filter(|(s, e)| e - s < MAX_ANSWER_TOKENS);
            let best = allowed.map(|(s, e)| f64::from(logits[2 * s] + logits[2 * e + 1])).reduce(f64::max);
            let found = best_span(&logits, from..rows.len());
            prop_assert_eq!(found.map(|span| span.score), best);
            if let Some(span) = found {
                prop_assert!(from <= span.start && span.start <= span.end && span.end < rows.len());
                prop_assert!(span.end - span.start < MAX_ANSWER_TOKENS);
            }
        }
    }
}
