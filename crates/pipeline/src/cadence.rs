//! When a run keeps what its observing pass has seen.

use zeropoint_calibrator::{BatchPlan, Begun};

use crate::Prepared;

/// When the observing pass keeps what it has seen: after so many batches, or sooner after so much work. Counted and not
/// timed, so that a run does the same things every time.
pub(crate) struct Cadence {
    /// Multiplications and additions for each token, by progress through the whole model.
    operations_per_token: f64,
    batches_of_part: usize,
    /// Batches and tokens at the last checkpoint.
    last: (usize, usize),
}

impl Cadence {
    /// A few seconds of a small encoder.
    const BATCHES: usize = 64;
    /// About half a minute on two cores of a server processor.
    const OPERATIONS: f64 = 5e12;

    pub(crate) fn new(prepared: &Prepared, plan: &BatchPlan, parts: usize, begun: &Begun) -> Self {
        let spec = prepared.directory.spec();
        let weights: usize = spec.towers.iter().map(|tower| spec.weights_per_observed_row(tower)).sum();
        let set = &prepared.calibration;
        let of_part = plan.batches().len();
        let before = plan.batches().iter().take(begun.batches).flatten();
        let tokens: usize = before.map(|&sample| set.inputs[sample].len()).sum();
        let tokens = (begun.parts * set.tokens_in(plan) + tokens) / parts;
        Self {
            operations_per_token: 2.0 * weights as f64,
            batches_of_part: of_part,
            last: (begun.parts * of_part + begun.batches, tokens),
        }
    }

    pub(crate) fn is_due(&mut self, parts: usize, batches: usize, tokens: usize) -> bool {
        let batches = parts * self.batches_of_part + batches;
        let operations = tokens.saturating_sub(self.last.1) as f64 * self.operations_per_token;
        let due = batches - self.last.0 >= Self::BATCHES || operations >= Self::OPERATIONS;
        if due {
            self.last = (batches, tokens);
        }
        due
    }

    /// How often a whole pass part by part keeps hidden states: between two parts, never behind the last one.
    pub(crate) fn between_parts(prepared: &Prepared, plan: &BatchPlan, parts: usize) -> usize {
        let mut cadence = Self::new(prepared, plan, parts, &Begun::default());
        let tokens = prepared.calibration.tokens_in(plan);
        (1..parts).filter(|done| cadence.is_due(*done, 0, done * tokens / parts)).count()
    }
}
