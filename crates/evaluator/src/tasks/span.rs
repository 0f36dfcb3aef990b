//! Question answering: the best span of the context against the answers that people gave.

use zeropoint_calibrator::dataset::Question;
use zeropoint_models::{TokenSequence, Tokenizer};

use super::run::{Run, mean};
use super::{TaskError, names};
use crate::decode::{QuestionWindow, WindowAnswer, best_window};
use crate::metrics::answers::{answer_f1, exact_match};
use crate::report::Metric;

pub(super) const METRICS: &[&str] = &[names::EXACT_MATCH, names::F1];

/// The windows of each question.
pub(super) fn windows(
    task: &str,
    questions: &[Question],
    tokenizer: &Tokenizer,
) -> Result<Vec<Vec<QuestionWindow>>, TaskError> {
    let of = |question: &Question| {
        QuestionWindow::all(tokenizer, &question.question, &question.context)
            .map_err(|error| TaskError::sample(task, &question.origin, &error))
    };
    questions.iter().map(of).collect()
}

pub(super) fn measure(run: &mut Run<'_>, questions: &[Question]) -> Result<Vec<Metric>, TaskError> {
    let windows = windows(run.task, questions, run.models.inputs.tokenizer()?)?;
    let flat: Vec<&QuestionWindow> = windows.iter().flatten().collect();
    let sequences: Vec<&TokenSequence> = flat.iter().map(|window| &window.sequence).collect();
    let answers = run.both(&sequences, |i, a, b| (flat[i].answer(a.values), flat[i].answer(b.values)))?;
    let (originals, quantized): (Vec<WindowAnswer>, Vec<WindowAnswer>) = answers.into_iter().unzip();
    // Only where the data has questions without an answer may a model give none.
    let may_refuse = questions.iter().any(|question| question.answers.is_empty());
    let mut at = 0;
    let mut rows = Vec::with_capacity(questions.len());
    for (question, windows) in questions.iter().zip(&windows) {
        let own = at..at + windows.len();
        at = own.end;
        let scores = |answers: &[WindowAnswer]| {
            let answer = chosen(answers, &question.context, may_refuse);
            (exact_match(answer, &question.answers), answer_f1(answer, &question.answers))
        };
        rows.push((scores(&originals[own.clone()]), scores(&quantized[own])));
    }
    Ok(vec![
        run.compared((names::EXACT_MATCH, true), &rows, |rows| mean(rows, |row| row.0)),
        run.compared((names::F1, true), &rows, |rows| mean(rows, |row| row.1)),
    ])
}

/// The text of the best answer over all windows; empty when the first token scores higher in the window where it scores
/// lowest, as in the baseline of SQuAD 2.0.
fn chosen<'a>(answers: &[WindowAnswer], context: &'a str, may_refuse: bool) -> &'a str {
    let Some((_, best)) = best_window(answers) else { return "" };
    let no_answer = answers.iter().map(|answer| answer.no_answer).fold(f64::INFINITY, f64::min);
    if may_refuse && no_answer > best.score {
        return "";
    }
    context.get(best.bytes.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_window_answers_unless_all_say_there_is_no_answer() {
        let answer = |score, bytes, no_answer| WindowAnswer { span: None, bytes, score, no_answer };
        let answers = [answer(1.0, 0..3, 5.0), answer(2.0, 4..7, 1.5)];
        assert_eq!(chosen(&answers, "one two", false), "two");
        assert_eq!(chosen(&answers, "one two", true), "two", "one window finds it");
        let answers = [answer(1.0, 0..3, 5.0), answer(2.0, 4..7, 2.5)];
        assert_eq!(chosen(&answers, "one two", true), "");
        assert_eq!(chosen(&answers, "one two", false), "two");
        assert_eq!(chosen(&[], "one two", false), "");
    }
}
