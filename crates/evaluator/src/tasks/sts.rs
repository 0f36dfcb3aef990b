//! Semantic textual similarity: the model's score of each pair against people's.

use zeropoint_calibrator::dataset::{DatasetError, Sample, require_pairs, require_scores};
use zeropoint_models::{ActivationFn, ModelError, TextRef, TokenSequence, Tokenizer, apply_activation};

use super::run::Run;
use super::{TaskError, names};
use crate::metrics::correlation::{pearson, spearman};
use crate::metrics::fidelity::cosine;
use crate::report::Metric;

pub(super) const METRICS: &[&str] = &[names::SPEARMAN, names::PEARSON];

pub(super) fn check(samples: &[Sample]) -> Result<(), DatasetError> {
    require_pairs(samples)?;
    require_scores(samples).map(drop)
}

/// For an encoder both texts of each pair, one after the other; for a cross-encoder each pair.
pub(super) fn sequences(
    samples: &[Sample],
    encoder: bool,
    tokenizer: &Tokenizer,
) -> Result<Vec<TokenSequence>, ModelError> {
    if !encoder {
        return tokenizer.encode_all(&samples.iter().map(Sample::text).collect::<Vec<_>>());
    }
    let texts: Vec<TextRef<'_>> = samples.iter().filter_map(Sample::texts).flatten().collect();
    tokenizer.encode_all(&texts)
}

pub(super) fn measure(run: &mut Run<'_>, samples: &[Sample]) -> Result<Vec<Metric>, TaskError> {
    let data = |source| TaskError::Data { task: run.task.to_owned(), source };
    let gold = require_scores(samples).map_err(data)?;
    let encoder = run.models.original.spec().head().is_embedding();
    let sequences = sequences(samples, encoder, run.models.inputs.tokenizer()?)?;
    let sequences: Vec<&TokenSequence> = sequences.iter().collect();
    let outputs = run.both(&sequences, |_, a, b| (a.values.to_vec(), b.values.to_vec()))?;
    // Of each model, gold and predicted.
    let rows: Vec<_> = if encoder {
        let pairs = outputs.chunks_exact(2).zip(&gold);
        pairs.map(|(p, &g)| ((g, cosine(&p[0].0, &p[1].0)), (g, cosine(&p[0].1, &p[1].1)))).collect()
    } else {
        let score = |logits: &[f32]| score(run, logits[0]);
        outputs.iter().zip(&gold).map(|((a, b), &g)| ((g, score(a)), (g, score(b)))).collect()
    };
    let correlation = |of: fn(&[f64], &[f64]) -> Option<f64>| {
        move |rows: &[&(f64, f64)]| {
            let (gold, predicted): (Vec<f64>, Vec<f64>) = rows.iter().map(|row| **row).unzip();
            of(&gold, &predicted)
        }
    };
    Ok(vec![
        run.compared((names::SPEARMAN, true), &rows, correlation(spearman)),
        run.compared((names::PEARSON, true), &rows, correlation(pearson)),
    ])
}

/// A cross-encoder's logit as its score.
fn score(run: &Run<'_>, logit: f32) -> f64 {
    if run.models.activation == ActivationFn::Identity {
        return f64::from(logit);
    }
    let mut value = [logit];
    apply_activation(run.models.original.isa(), &mut value, run.models.activation);
    f64::from(value[0])
}
