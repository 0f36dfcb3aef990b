//! Token classification: the model's label of each word against the gold one.

use std::ops::Range;

use zeropoint_calibrator::dataset::TaggedWords;
use zeropoint_models::{AlignedTokens, ModelError, TokenSequence, Tokenizer};

use super::labels::label_indices;
use super::run::{Run, ratio};
use super::{TaskError, names};
use crate::metrics::entities::{EntityCounts, are_entity_tags, count_entities, entity_f1};
use crate::metrics::fidelity::argmax;
use crate::report::Metric;

/// The names of the metrics for a model's labels: entities are counted where all labels are `O` or of an entity.
pub(super) fn metrics(labels: &[String]) -> &'static [&'static str] {
    if are_entity_tags(labels) { &[names::ACCURACY, names::ENTITY_F1] } else { &[names::ACCURACY] }
}

/// Gold label indices of every sentence.
pub(super) fn gold(
    task: &str,
    sentences: &[TaggedWords],
    labels: &[String],
) -> Result<Vec<Vec<usize>>, TaskError> {
    let tags = sentences.iter().flat_map(|sentence| {
        sentence.tags.iter().map(|tag| (tag.as_str(), (&*sentence.origin.file, sentence.origin.line)))
    });
    let flat = label_indices(task, &tags.collect::<Vec<_>>(), labels)?;
    let mut rest = flat.as_slice();
    let sentence = |sentence: &TaggedWords| {
        let (own, others) = rest.split_at(sentence.tags.len());
        rest = others;
        own.to_vec()
    };
    Ok(sentences.iter().map(sentence).collect())
}

/// A part of a sentence that the model can take, and the first token of each word in it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    pub(super) sequence: TokenSequence,
    sentence: usize,
    /// Row of the output, and word of the sentence.
    first_tokens: Vec<(usize, usize)>,
}

/// The sentences as tokens. Words are joined by single spaces, as the model meets them in running text; a sentence longer
/// than the model takes is cut between words into parts that fit.
pub(super) fn pieces(sentences: &[TaggedWords], tokenizer: &Tokenizer) -> Result<Vec<Piece>, ModelError> {
    let mut pieces = Vec::with_capacity(sentences.len());
    for (sentence, words) in sentences.iter().enumerate() {
        let tokens = tokenizer.align(&words.words.join(" "), None)?;
        let of_token = words_of_tokens(&words.words, &tokens);
        let room = tokenizer.max_length().saturating_sub(tokens.around());
        let mut seen = None;
        for kept in tokens.split(room, |token| of_token[token]) {
            let mut first_tokens = Vec::new();
            for token in kept.clone() {
                if of_token[token] != seen {
                    seen = of_token[token];
                    first_tokens
                        .extend(seen.map(|word| (tokens.last_part().start + token - kept.start, word)));
                }
            }
            pieces.push(Piece { sequence: tokens.window(&kept), sentence, first_tokens });
        }
    }
    Ok(pieces)
}

/// The word that each token is of: the first one that ends behind the token's start, so that a space belongs to the word
/// that follows it, as byte-level and `SentencePiece` tokenizers have it.
fn words_of_tokens(words: &[String], tokens: &AlignedTokens) -> Vec<Option<usize>> {
    let mut ends = Vec::with_capacity(words.len());
    let mut at = 0;
    for word in words {
        ends.push(at + word.len());
        at += word.len() + 1;
    }
    let text: Range<usize> = tokens.last_part();
    let word = |token: usize| {
        let start = tokens.spans[token].start;
        text.contains(&token)
            .then(|| ends.partition_point(|end| *end <= start))
            .filter(|word| *word < words.len())
    };
    (0..tokens.spans.len()).map(word).collect()
}

/// Words and entities of a sentence, counted.
#[derive(Default)]
struct Counts {
    right: usize,
    words: usize,
    entities: EntityCounts,
}

pub(super) fn measure(
    run: &mut Run<'_>,
    sentences: &[TaggedWords],
    labels: &[String],
) -> Result<Vec<Metric>, TaskError> {
    let gold = gold(run.task, sentences, labels)?;
    let pieces = pieces(sentences, run.models.inputs.tokenizer()?)?;
    let sequences: Vec<&TokenSequence> = pieces.iter().map(|piece| &piece.sequence).collect();
    let predicted = run.both(&sequences, |i, a, b| {
        let first = &pieces[i].first_tokens;
        let best = |output: super::run::Output<'_>| {
            first.iter().map(|(row, _)| argmax(output.row(*row))).collect::<Vec<_>>()
        };
        (best(a), best(b))
    })?;
    // A word without a token has no label: it is wrong, and of no entity.
    let empty = || gold.iter().map(|words| vec![None; words.len()]).collect::<Vec<Vec<Option<usize>>>>();
    let (mut original, mut quantized) = (empty(), empty());
    for (piece, (a, b)) in pieces.iter().zip(&predicted) {
        for ((&(_, word), a), b) in piece.first_tokens.iter().zip(a).zip(b) {
            original[piece.sentence][word] = *a;
            quantized[piece.sentence][word] = *b;
        }
    }
    let with_entities = are_entity_tags(labels);
    let counts = |predicted: &[Option<usize>], gold: &[usize]| {
        let name = |label: &Option<usize>| label.map_or("O", |label| labels[label].as_str());
        let entities = if with_entities {
            let names: Vec<&str> = predicted.iter().map(name).collect();
            count_entities(&names, &gold.iter().map(|label| labels[*label].as_str()).collect::<Vec<_>>())
        } else {
            EntityCounts::default()
        };
        let right = predicted.iter().zip(gold).filter(|(p, g)| **p == Some(**g)).count();
        Counts { right, words: gold.len(), entities }
    };
    let rows: Vec<(Counts, Counts)> = gold
        .iter()
        .zip(original.iter().zip(&quantized))
        .map(|(gold, (a, b))| (counts(a, gold), counts(b, gold)))
        .collect();
    let mut metrics = vec![run.compared((names::ACCURACY, true), &rows, |rows| {
        ratio(rows, |row| (row.right as f64, row.words as f64))
    })];
    if with_entities {
        metrics.push(run.compared((names::ENTITY_F1, true), &rows, |rows| {
            entity_f1(rows.iter().fold(EntityCounts::default(), |sum, row| EntityCounts {
                predicted: sum.predicted + row.entities.predicted,
                gold: sum.gold + row.entities.gold,
                right: sum.right + row.entities.right,
            }))
        }));
    }
    Ok(metrics)
}
