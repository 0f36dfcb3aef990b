//! Masked language modelling: how well hidden tokens are told from their surroundings.

use zeropoint_calibrator::dataset::Sample;
use zeropoint_core::Rng;
use zeropoint_models::{ModelError, TextPart, TokenSequence, Tokenizer};

use super::run::{Output, Run, ratio};
use super::{TaskError, names};
use crate::metrics::fidelity::argmax;
use crate::metrics::logits::negative_log_likelihood;
use crate::report::Metric;

pub(super) const METRICS: &[&str] = &[names::LOSS, names::ACCURACY];

/// Share of the tokens that are hidden.
///
/// Source: J. Devlin et al., "BERT", 2019, section 3.1. Unlike in training, each of them becomes the mask token.
const MASKED: f64 = 0.15;

/// A text with some tokens hidden.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MaskedText {
    pub(super) sequence: TokenSequence,
    /// Where, and which token it was.
    places: Vec<(usize, u32)>,
}

/// Every text with 15 % of its tokens, at least one, hidden; which ones follows from `seed` and its place in the list.
/// Texts longer than the model takes are cut.
pub(super) fn mask(
    samples: &[Sample],
    tokenizer: &Tokenizer,
    seed: u64,
) -> Result<Vec<MaskedText>, ModelError> {
    let mask = tokenizer.mask_token()?.id;
    let texts = samples.iter().flat_map(|sample| [Some(sample.text_a.as_str()), sample.text_b.as_deref()]);
    let of = |(i, text): (usize, &str)| {
        let tokens = tokenizer.align(text, None)?;
        let all = tokens.part(TextPart::First);
        let room = tokenizer.max_length().saturating_sub(tokens.around());
        let kept = all.start..all.end.min(all.start + room);
        let mut sequence = tokens.window(&kept);
        let count = ((kept.len() as f64 * MASKED).round() as usize).max(1);
        let mut rng = Rng::new(seed.wrapping_add(i as u64));
        // A mask that the text itself holds hides nothing that is known.
        let open: Vec<usize> = kept.filter(|&at| sequence.ids[at] != mask).collect();
        let chosen = rng.sample(open.len(), count).into_iter().map(|i| open[i]);
        let places = chosen.map(|at| (at, std::mem::replace(&mut sequence.ids[at], mask))).collect();
        Ok(MaskedText { sequence, places })
    };
    texts.flatten().enumerate().map(of).collect()
}

/// Sums over the masked places of a text.
struct Told {
    loss: f64,
    right: f64,
    places: f64,
}

pub(super) fn measure(run: &mut Run<'_>, samples: &[Sample]) -> Result<Vec<Metric>, TaskError> {
    let texts = mask(samples, run.models.inputs.tokenizer()?, run.options.seed)?;
    let sequences: Vec<&TokenSequence> = texts.iter().map(|text| &text.sequence).collect();
    let rows = run.both(&sequences, |i, a, b| (told(&texts[i], a), told(&texts[i], b)))?;
    Ok(vec![
        run.compared((names::LOSS, false), &rows, |rows| ratio(rows, |row| (row.loss, row.places))),
        run.compared((names::ACCURACY, true), &rows, |rows| ratio(rows, |row| (row.right, row.places))),
    ])
}

fn told(text: &MaskedText, output: Output<'_>) -> Told {
    let mut told = Told { loss: 0.0, right: 0.0, places: text.places.len() as f64 };
    for &(at, token) in &text.places {
        let logits = output.row(at);
        told.loss += negative_log_likelihood(logits, token as usize).unwrap_or(f64::NAN);
        told.right += f64::from(argmax(logits) == Some(token as usize));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_and_accuracy_are_of_the_masked_places_alone() {
        let sequence = TokenSequence { ids: vec![9, 4, 9], type_ids: vec![0; 3], prompt: 0 };
        let text = MaskedText { sequence, places: vec![(1, 2), (2, 0)] };
        let values = [9.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0];
        let found = told(&text, Output { values: &values, columns: 3 });
        let e = 1f64.exp();
        let expected = -(e / (e + 2.0)).ln() + 3f64.ln();
        assert!((found.loss - expected).abs() < 1e-7, "{}", found.loss);
        assert_eq!((found.right, found.places), (2.0, 2.0), "of equal logits the first is taken");
    }
}
