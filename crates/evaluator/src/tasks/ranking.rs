//! Reranking: whether the documents that answer a query are ranked above those that do not.

use std::sync::Arc;

use zeropoint_calibrator::dataset::Ranking;
use zeropoint_models::{ModelError, TextRef, TokenSequence, Tokenizer};

use super::run::{Run, mean};
use super::{TaskError, names};
use crate::metrics::fidelity::cosine;
use crate::metrics::ranking::{ndcg, reciprocal_rank};
use crate::report::Metric;

pub(super) const METRICS: &[&str] = &[names::MRR, names::NDCG];

/// Documents that count for the gain.
const DEPTH: usize = 10;

/// Prompts of the queries and of the documents, for an encoder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RankingPrompts {
    /// Before each query.
    pub query: Option<Arc<str>>,
    /// Before each document.
    pub document: Option<Arc<str>>,
}

/// Of each query, for an encoder the query and its documents, for a cross-encoder the query with each document;
/// positives first.
pub(super) fn sequences(
    rankings: &[Ranking],
    prompts: &RankingPrompts,
    encoder: bool,
    tokenizer: &Tokenizer,
) -> Result<Vec<TokenSequence>, ModelError> {
    let mut texts: Vec<TextRef<'_>> = Vec::new();
    for Ranking { query, positives, negatives, .. } in rankings {
        let documents = positives.iter().chain(negatives).map(String::as_str);
        if encoder {
            let (prompt, before) = (prompts.query.as_deref(), prompts.document.as_deref());
            texts.push(TextRef { text: query, pair: None, prompt });
            texts.extend(documents.map(|text| TextRef { text, pair: None, prompt: before }));
        } else {
            texts.extend(documents.map(|text| TextRef { text: query, pair: Some(text), prompt: None }));
        }
    }
    tokenizer.encode_all(&texts)
}

/// Of the original and of the quantised model.
type BothOutputs = (Vec<f32>, Vec<f32>);

/// Reciprocal rank and gain of one query.
type Scores = (f64, f64);

pub(super) fn measure(
    run: &mut Run<'_>,
    rankings: &[Ranking],
    prompts: &RankingPrompts,
) -> Result<Vec<Metric>, TaskError> {
    let encoder = run.models.original.spec().head().is_embedding();
    let sequences = sequences(rankings, prompts, encoder, run.models.inputs.tokenizer()?)?;
    let sequences: Vec<&TokenSequence> = sequences.iter().collect();
    let outputs = run.both(&sequences, |_, a, b| (a.values.to_vec(), b.values.to_vec()))?;
    let mut rest = outputs.as_slice();
    let mut rows: Vec<(Scores, Scores)> = Vec::with_capacity(rankings.len());
    for ranking in rankings {
        let documents = ranking.positives.len() + ranking.negatives.len();
        let (own, others) = rest.split_at(documents + usize::from(encoder));
        rest = others;
        let scores = |of: fn(&BothOutputs) -> &[f32]| -> Scores {
            let scores: Vec<f64> = if encoder {
                own[1..].iter().map(|document| cosine(of(&own[0]), of(document))).collect()
            } else {
                // The activation behind a logit rises with it: it changes no order but may make ties.
                own.iter().map(|pair| f64::from(of(pair)[0])).collect()
            };
            let (positives, negatives) = scores.split_at(ranking.positives.len());
            let rank = reciprocal_rank(positives, negatives).unwrap_or(f64::NAN);
            (rank, ndcg(positives, negatives, DEPTH).unwrap_or(f64::NAN))
        };
        rows.push((scores(|pair| &pair.0), scores(|pair| &pair.1)));
    }
    Ok(vec![
        run.compared((names::MRR, true), &rows, |rows| mean(rows, |row| row.0)),
        run.compared((names::NDCG, true), &rows, |rows| mean(rows, |row| row.1)),
    ])
}
