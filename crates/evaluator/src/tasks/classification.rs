//! Classification: one label a text, a set of labels, or a number.

use zeropoint_calibrator::dataset::{Sample, require_labels};
use zeropoint_models::{Problem, TokenSequence};

use super::labels::{Written, label_indices};
use super::run::{Output, Run, mean};
use super::{TaskError, names};
use crate::metrics::classification::{accuracy, macro_f1};
use crate::metrics::correlation::{pearson, spearman};
use crate::metrics::fidelity::argmax;
use crate::metrics::label_sets::{self, LabelSet};
use crate::report::Metric;

/// Between labels of a set where a file has one column for them.
const SEPARATOR: char = '|';

/// Gold answers, as the problem has them.
pub(super) enum Gold {
    Classes(Vec<usize>),
    Sets(Vec<LabelSet>),
    Numbers(Vec<f64>),
}

/// The names of the metrics for a kind of problem.
pub(super) fn metrics(problem: Problem) -> &'static [&'static str] {
    match problem {
        Problem::SingleLabel => &[names::ACCURACY, names::MACRO_F1],
        Problem::MultiLabel => &[names::MICRO_F1, names::MACRO_F1, names::EXACT_MATCH],
        Problem::Regression => &[names::PEARSON, names::SPEARMAN, names::MEAN_ABSOLUTE_ERROR],
    }
}

/// Understands the gold answers of the samples.
pub(super) fn gold(
    task: &str,
    samples: &[Sample],
    labels: &[String],
    problem: Problem,
) -> Result<Gold, TaskError> {
    let data = |source| TaskError::Data { task: task.to_owned(), source };
    match problem {
        Problem::SingleLabel => {
            let named = require_labels(samples).map_err(data)?;
            let written: Vec<Written<'_>> =
                named.into_iter().zip(samples.iter().map(|sample| (&*sample.file, sample.line))).collect();
            label_indices(task, &written, labels).map(Gold::Classes)
        }
        Problem::MultiLabel => label_sets(task, samples, labels).map(Gold::Sets),
        Problem::Regression => {
            samples.iter().map(|sample| number(task, sample)).collect::<Result<_, _>>().map(Gold::Numbers)
        }
    }
}

fn label_sets(task: &str, samples: &[Sample], labels: &[String]) -> Result<Vec<LabelSet>, TaskError> {
    let data = |source| TaskError::Data { task: task.to_owned(), source };
    let mut written: Vec<Written<'_>> = Vec::new();
    let mut counts = Vec::with_capacity(samples.len());
    for sample in samples {
        let before = written.len();
        let place = (&*sample.file, sample.line);
        match (&sample.labels, &sample.label) {
            (Some(list), _) => written.extend(list.iter().map(|label| (label.as_str(), place))),
            (None, Some(joined)) => {
                written.extend(joined.split(SEPARATOR).map(|label| (label.trim(), place)));
            }
            // Neither is there, which is the error.
            (None, None) => drop(require_labels(std::slice::from_ref(sample)).map_err(data)?),
        }
        counts.push(written.len() - before);
    }
    let indices = label_indices(task, &written, labels)?;
    let mut rest = indices.as_slice();
    let set = |count: usize| {
        let (own, others) = rest.split_at(count);
        rest = others;
        (0..labels.len()).map(|label| own.contains(&label)).collect()
    };
    Ok(counts.into_iter().map(set).collect())
}

/// The gold number: the score, or a label that is one.
fn number(task: &str, sample: &Sample) -> Result<f64, TaskError> {
    let of_label = || sample.label.as_deref()?.trim().parse::<f64>().ok().filter(|number| number.is_finite());
    sample.score.or_else(of_label).ok_or_else(|| TaskError::Number {
        task: task.to_owned(),
        origin: sample.file.to_string(),
        line: sample.line,
        found: sample.label.as_ref().map_or_else(|| "nothing".to_owned(), |label| format!("`{label}`")),
    })
}

pub(super) fn measure(
    run: &mut Run<'_>,
    samples: &[Sample],
    labels: &[String],
    problem: Problem,
) -> Result<Vec<Metric>, TaskError> {
    let gold = gold(run.task, samples, labels, problem)?;
    let texts: Vec<_> = samples.iter().map(Sample::text).collect();
    let sequences = run.models.inputs.tokenizer()?.encode_all(&texts)?;
    let sequences: Vec<&TokenSequence> = sequences.iter().collect();
    match gold {
        Gold::Classes(gold) => {
            let best = |output: Output<'_>| argmax(output.values).unwrap_or(0);
            let rows = run.both(&sequences, |i, a, b| ((best(a), gold[i]), (best(b), gold[i])))?;
            let unzip = |rows: &[&(usize, usize)]| -> (Vec<usize>, Vec<usize>) {
                rows.iter().map(|row| **row).unzip()
            };
            Ok(vec![
                run.compared((names::ACCURACY, true), &rows, |rows| {
                    let (predicted, gold) = unzip(rows);
                    accuracy(&predicted, &gold)
                }),
                run.compared((names::MACRO_F1, true), &rows, |rows| {
                    let (predicted, gold) = unzip(rows);
                    macro_f1(&predicted, &gold, labels.len())
                }),
            ])
        }
        Gold::Sets(gold) => {
            // A sigmoid above one half is a logit above 0.
            let set =
                |output: Output<'_>| output.values.iter().map(|logit| *logit > 0.0).collect::<LabelSet>();
            let rows =
                run.both(&sequences, |i, a, b| ((set(a), gold[i].clone()), (set(b), gold[i].clone())))?;
            let score = |name, of: fn(&[(&LabelSet, &LabelSet)]) -> Option<f64>| {
                run.compared((name, true), &rows, |rows| {
                    of(&rows.iter().map(|(predicted, gold)| (predicted, gold)).collect::<Vec<_>>())
                })
            };
            Ok(vec![
                score(names::MICRO_F1, label_sets::micro_f1),
                score(names::MACRO_F1, label_sets::macro_f1),
                score(names::EXACT_MATCH, label_sets::exact_sets),
            ])
        }
        Gold::Numbers(gold) => {
            let value = |output: Output<'_>| f64::from(output.values[0]);
            let rows = run.both(&sequences, |i, a, b| ((value(a), gold[i]), (value(b), gold[i])))?;
            let correlation = |of: fn(&[f64], &[f64]) -> Option<f64>| {
                move |rows: &[&(f64, f64)]| {
                    let (predicted, gold): (Vec<f64>, Vec<f64>) = rows.iter().map(|row| **row).unzip();
                    of(&predicted, &gold)
                }
            };
            Ok(vec![
                run.compared((names::PEARSON, true), &rows, correlation(pearson)),
                run.compared((names::SPEARMAN, true), &rows, correlation(spearman)),
                run.compared((names::MEAN_ABSOLUTE_ERROR, false), &rows, |rows| {
                    mean(rows, |(predicted, gold)| (predicted - gold).abs())
                }),
            ])
        }
    }
}
