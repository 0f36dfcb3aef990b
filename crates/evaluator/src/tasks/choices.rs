//! Multiple choice: which continuation of a text a decoder finds likeliest.

use rayon::prelude::*;
use zeropoint_calibrator::dataset::Choices;
use zeropoint_models::{ModelError, TokenSequence, Tokenizer};

use super::run::{Output, Run, mean};
use super::{TaskError, names};
use crate::metrics::logits::negative_log_likelihood;
use crate::report::Metric;

pub(super) const METRICS: &[&str] = &[names::ACCURACY, names::ACCURACY_NORM, names::CHOICE_AGREEMENT];

/// A context with one of its continuations.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Continued {
    /// Every token but the last, after which nothing is told.
    pub(super) sequence: TokenSequence,
    /// Row of the first token of the continuation; the others follow.
    first_row: usize,
    /// The tokens of the continuation.
    told: Vec<u32>,
}

/// Every context with each of its choices, in order.
///
/// Context and choice are tokenised together, and the continuation is what lies beyond the tokens of the context alone. Where
/// the two texts share a token, it counts as the context's; spaces at the end of a context are the continuation's, because
/// most tokenizers join them with the word behind. Contexts that the model cannot take as a whole lose their beginning.
///
/// Source: `loglikelihood` in `lm_eval/api/model.py` of lm-evaluation-harness.
pub(super) fn continued(
    task: &str,
    questions: &[Choices],
    tokenizer: &Tokenizer,
) -> Result<Vec<Continued>, TaskError> {
    let failed = |question: &Choices, reason: String| TaskError::Sample {
        task: task.to_owned(),
        origin: question.origin.file.to_string(),
        line: question.origin.line,
        reason,
    };
    let of_question = |question: &Choices| -> Result<Vec<Continued>, TaskError> {
        let model = |error: ModelError| failed(question, error.to_string());
        let before = ids(tokenizer, question.context.trim_end()).map_err(model)?.len();
        let of_choice = |(index, choice): (usize, &String)| {
            let whole = ids(tokenizer, &(question.context.clone() + choice)).map_err(model)?;
            cut(&whole, before, tokenizer.max_length())
                .map_err(|reason| failed(question, format!("choice {index} {reason}")))
        };
        question.choices.iter().enumerate().map(of_choice).collect()
    };
    let all: Vec<Vec<Continued>> = questions.par_iter().map(of_question).collect::<Result<_, _>>()?;
    Ok(all.into_iter().flatten().collect())
}

/// The tokens of a text and those that the tokenizer puts before it.
fn ids(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, ModelError> {
    let mut tokens = tokenizer.align(text, None)?;
    tokens.tokens.ids.truncate(tokens.last_part().end);
    Ok(tokens.tokens.ids)
}

/// Tokens whose first `before` are the context's, for a model that takes `most`.
fn cut(whole: &[u32], before: usize, most: usize) -> Result<Continued, String> {
    let told = whole.get(before..).filter(|told| !told.is_empty());
    let told = told.ok_or("adds no token to its context; every choice must")?;
    if told.len() > most {
        return Err(format!(
            "has {} tokens behind its context, and the model takes {most}; shorten it",
            told.len()
        ));
    }
    if before == 0 {
        return Err("follows a context without a token; something to continue is expected".to_owned());
    }
    let start = (whole.len() - 1).saturating_sub(most);
    let ids = whole[start..whole.len() - 1].to_vec();
    let sequence = TokenSequence { type_ids: vec![0; ids.len()], ids, prompt: 0 };
    Ok(Continued { sequence, first_row: before - 1 - start, told: told.to_vec() })
}

impl Continued {
    /// The sum of the log-likelihoods of the continuation's tokens, in nats.
    fn log_likelihood(&self, output: Output<'_>) -> f64 {
        let of = |(row, token): (usize, &u32)| {
            negative_log_likelihood(output.row(self.first_row + row), *token as usize).unwrap_or(f64::NAN)
        };
        -self.told.iter().enumerate().map(of).sum::<f64>()
    }
}

/// What a model chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chosen {
    is_right: bool,
    /// By log-likelihood a byte.
    is_right_by_length: bool,
    choice: usize,
}

impl Chosen {
    fn of(question: &Choices, log_likelihoods: &[f64]) -> Self {
        // A space before a choice belongs to the tokenisation, not to the answer.
        let lengths = question.choices.iter().map(|choice| choice.trim_start().len().max(1) as f64);
        let by_length: Vec<f64> =
            log_likelihoods.iter().zip(lengths).map(|(sum, bytes)| sum / bytes).collect();
        let choice = best(log_likelihoods);
        Self {
            is_right: choice == question.answer,
            is_right_by_length: best(&by_length) == question.answer,
            choice,
        }
    }
}

/// The index of the largest, the first of equals.
fn best(scores: &[f64]) -> usize {
    let better = |best: usize, index: usize| if scores[index] > scores[best] { index } else { best };
    (0..scores.len()).reduce(better).unwrap_or(0)
}

pub(super) fn measure(run: &mut Run<'_>, questions: &[Choices]) -> Result<Vec<Metric>, TaskError> {
    let continued = continued(run.task, questions, run.models.inputs.tokenizer()?)?;
    let sequences: Vec<&TokenSequence> = continued.iter().map(|choice| &choice.sequence).collect();
    let sums = run.both(&sequences, |i, original, quantized| {
        (continued[i].log_likelihood(original), continued[i].log_likelihood(quantized))
    })?;
    let (originals, quantized): (Vec<f64>, Vec<f64>) = sums.into_iter().unzip();
    let mut at = 0;
    let mut rows = Vec::with_capacity(questions.len());
    for question in questions {
        let own = at..at + question.choices.len();
        at = own.end;
        rows.push((Chosen::of(question, &originals[own.clone()]), Chosen::of(question, &quantized[own])));
    }
    let share = |of: fn(&Chosen) -> bool| move |rows: &[&Chosen]| mean(rows, |row| f64::from(of(row)));
    Ok(vec![
        run.compared((names::ACCURACY, true), &rows, share(|row| row.is_right)),
        run.compared((names::ACCURACY_NORM, true), &rows, share(|row| row.is_right_by_length)),
        run.against_ideal(names::CHOICE_AGREEMENT, 1.0, &rows, |rows| {
            mean(rows, |(a, b)| f64::from(a.choice == b.choice))
        }),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_continuation_is_told_from_all_that_the_model_takes_before_it() {
        let whole = [10, 11, 12, 13, 14];
        let cut = |before, most| cut(&whole, before, most);
        let all = cut(3, 9).unwrap();
        assert_eq!((all.sequence.ids.as_slice(), all.first_row), ([10, 11, 12, 13].as_slice(), 2));
        assert_eq!(all.told, [13, 14]);
        // One token of the context is lost, and the rows move with it.
        let left = cut(3, 3).unwrap();
        assert_eq!((left.sequence.ids.as_slice(), left.first_row), ([11, 12, 13].as_slice(), 1));
        let least = cut(3, 2).unwrap();
        assert_eq!((least.sequence.ids.as_slice(), least.first_row), ([12, 13].as_slice(), 0));
        assert!(cut(3, 1).unwrap_err().contains("has 2 tokens behind its context, and the model takes 1"));
        for before in [5, 6] {
            assert!(cut(before, 9).unwrap_err().contains("adds no token"));
        }
        assert!(cut(0, 9).unwrap_err().contains("context without a token"));
    }

    #[test]
    fn a_log_likelihood_is_of_the_continuation_alone() {
        let continued = cut(&[0, 0, 1, 1], 2, 9).unwrap();
        // Rows of the three tokens that go in, over two tokens of the vocabulary.
        let values = [9.0, 0.0, 0.0, 0.0, 3f32.ln(), 0.0];
        let found = continued.log_likelihood(Output { values: &values, columns: 2 });
        assert!((found - (0.5f64.ln() + 0.25f64.ln())).abs() < 1e-6, "{found}");
    }

    #[test]
    fn the_likeliest_choice_and_the_likeliest_byte_are_two_measures() {
        let choices = [" no", " certainly", " no"].map(str::to_owned).to_vec();
        let question = Choices { choices, answer: 1, ..Choices::default() };
        let chosen = Chosen::of(&question, &[-4.0, -9.0, -4.0]);
        // -4 / 2 against -9 / 9; of equals the first is taken.
        assert_eq!(chosen, Chosen { is_right: false, is_right_by_length: true, choice: 0 });
    }

    /// What `transformers` says in float32 of the same tokens, cut and told by the rules of lm-evaluation-harness.
    #[test]
    fn continuations_have_the_log_likelihoods_of_the_reference() {
        use zeropoint_models::{Model, ModelDirectory, PackedBatch, SourceRef, Task};
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/llama-causal");
        let directory = ModelDirectory::open(&SourceRef::Directory(path.into()), Task::Auto).unwrap();
        let (model, tokenizer) = (Model::load(&directory).unwrap(), directory.tokenizer(None).unwrap());
        let question = |context: &str, choices: &[&str]| {
            let choices = choices.iter().map(|choice| (*choice).to_owned()).collect();
            Choices { context: context.to_owned(), choices, ..Choices::default() }
        };
        let questions = [
            // The space belongs to the continuation.
            question("the river is ", &["on fire", "a cold night"]),
            question("it was a cold night for", &[" the model", " the river", " a fire that was cold"]),
            question("the", &[" model", " night"]),
        ];
        let expected = [
            (-24.477_706, 5),
            (-54.981_500, 11),
            (-11.867_359, 2),
            (-11.581_448, 2),
            (-61.634_061, 11),
            (-6.532_511, 1),
            (-23.493_770, 5),
        ];
        let continued = continued("task", &questions, &tokenizer).unwrap();
        assert_eq!(continued.len(), expected.len());
        for (continued, (sum, tokens)) in continued.iter().zip(expected) {
            let outputs = model.forward(&PackedBatch::new([&continued.sequence]).unwrap()).unwrap();
            let found =
                continued.log_likelihood(Output { values: &outputs.values, columns: outputs.columns });
            assert_eq!(continued.told.len(), tokens);
            assert!((found - sum).abs() < 1e-3, "{found} {sum}");
        }
        let long = [question("the", &[" model", &" river".repeat(60)])];
        let error = super::continued("task", &long, &tokenizer).unwrap_err().to_string();
        assert!(error.contains("choice 1 has") && error.contains("the model takes 48"), "{error}");
    }
}
