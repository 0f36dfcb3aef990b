//! The choice of the next token.

use thiserror::Error;
use zeropoint_core::Rng;

/// How the next token is chosen from the logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// What logits are divided by before softmax, at least 0; at 0 the most probable token is taken.
    pub temperature: f64,
    /// The share of the probability, above 0 and up to 1, that the most probable tokens among which one is drawn have together
    /// (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration").
    pub top_p: f64,
    /// Of the draws.
    pub seed: u64,
}

/// The most probable token, every time.
impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, seed: 0 }
    }
}

/// Why no token can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Error)]
pub enum SamplingError {
    /// A temperature that is none.
    #[error("the temperature is {0}; a number from 0 to 1000 is expected")]
    Temperature(f64),
    /// A share that is none.
    #[error("top-p is {0}; a number above 0 and at most 1 is expected")]
    TopP(f64),
    /// Logits that are not numbers.
    #[error("the logit of token {token} is {value}")]
    NotFinite {
        /// The token.
        token: usize,
        /// Its logit.
        value: f32,
    },
}

/// Draws tokens, the same ones for the same seed and logits.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    rng: Rng,
    /// Tokens with their weights.
    weights: Vec<(u32, f64)>,
}

impl Sampler {
    /// Refuses numbers out of range.
    pub fn new(sampling: Sampling) -> Result<Self, SamplingError> {
        let Sampling { temperature, top_p, seed } = sampling;
        if !(0.0..=1000.0).contains(&temperature) {
            return Err(SamplingError::Temperature(temperature));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(SamplingError::TopP(top_p));
        }
        Ok(Self { sampling, rng: Rng::new(seed), weights: Vec::new() })
    }

    /// The token after those that these logits are of; of equal logits the first one counts as more probable.
    pub fn choose(&mut self, logits: &[f32]) -> Result<u32, SamplingError> {
        if let Some(token) = logits.iter().position(|logit| !logit.is_finite()) {
            return Err(SamplingError::NotFinite { token, value: logits[token] });
        }
        let mut best = 0;
        for (token, logit) in logits.iter().enumerate() {
            if *logit > logits[best] {
                best = token;
            }
        }
        let Sampling { temperature, top_p, .. } = self.sampling;
        if temperature == 0.0 || logits.is_empty() {
            return Ok(best as u32);
        }
        let largest = f64::from(logits[best]);
        let weight = |logit: &f32| ((f64::from(*logit) - largest) / temperature).exp();
        self.weights.clear();
        self.weights
            .extend(logits.iter().map(weight).enumerate().map(|(token, weight)| (token as u32, weight)));
        let mut total: f64 = self.weights.iter().map(|(_, weight)| weight).sum();
        if top_p < 1.0 {
            self.weights.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let mut sum = 0.0;
            let enough = self.weights.iter().position(|(_, weight)| {
                sum += weight;
                sum >= top_p * total
            });
            self.weights.truncate(enough.map_or(self.weights.len(), |last| last + 1));
            total = sum;
        }
        let mut left = self.rng.uniform() * total;
        for (token, weight) in &self.weights {
            left -= weight;
            if left < 0.0 {
                return Ok(*token);
            }
        }
        // Rounding has left something over.
        Ok(self
            .weights
            .iter()
            .rev()
            .find(|(_, weight)| *weight > 0.0)
            .map_or(best as u32, |(token, _)| *token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(sampling: Sampling, logits: &[f32], draws: usize) -> Vec<usize> {
        let mut sampler = Sampler::new(sampling).unwrap();
        let mut counts = vec![0; logits.len()];
        for _ in 0..draws {
            counts[sampler.choose(logits).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn without_a_temperature_the_first_of_the_largest_is_taken() {
        assert_eq!(counts(Sampling::default(), &[0.5, 2.0, -1.0, 2.0], 5), [0, 5, 0, 0]);
    }

    #[test]
    fn tokens_are_drawn_as_often_as_they_are_probable() {
        let logits = [0.0, 2f32.ln(), 5f32.ln()];
        let share =
            |counts: Vec<usize>| counts.iter().map(|count| *count as f64 / 40_000.0).collect::<Vec<_>>();
        let near = |found: Vec<f64>, expected: [f64; 3]| {
            assert!(
                found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.01),
                "{found:?} is not {expected:?}"
            );
        };
        let plain = Sampling { temperature: 1.0, ..Sampling::default() };
        near(share(counts(plain, &logits, 40_000)), [1.0 / 8.0, 2.0 / 8.0, 5.0 / 8.0]);
        // Half the temperature squares the odds.
        let cold = Sampling { temperature: 0.5, ..plain };
        near(share(counts(cold, &logits, 40_000)), [1.0 / 30.0, 4.0 / 30.0, 25.0 / 30.0]);
        let nucleus = Sampling { top_p: 0.7, ..plain };
        near(share(counts(nucleus, &logits, 40_000)), [0.0, 2.0 / 7.0, 5.0 / 7.0]);
        // The most probable alone has that share.
        assert_eq!(counts(Sampling { top_p: 0.6, ..plain }, &logits, 9), [0, 0, 9]);
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        let says = |sampling| Sampler::new(sampling).unwrap_err().to_string();
        let plain = Sampling::default();
        let temperature = says(Sampling { temperature: -1.0, ..plain });
        assert_eq!(temperature, "the temperature is -1; a number from 0 to 1000 is expected");
        assert_eq!(
            says(Sampling { top_p: 0.0, ..plain }),
            "top-p is 0; a number above 0 and at most 1 is expected"
        );
        assert!(Sampler::new(Sampling { temperature: f64::NAN, ..plain }).is_err());
        let error = Sampler::new(plain).unwrap().choose(&[1.0, f32::NAN]).unwrap_err();
        assert_eq!(error.to_string(), "the logit of token 1 is NaN");
    }

    proptest! {
        #[test]
        fn a_seed_draws_the_same_tokens_again(
            logits in prop::collection::vec(-30f32..30.0, 1..50), temperature in 0.0f64..3.0, top_p in 0.01f64..=1.0, seed: u64,
        ) {
            let mut samplers = [(); 2].map(|()| Sampler::new(Sampling { temperature, top_p, seed }).unwrap());
            for _ in 0..5 {
                let [first, second] = samplers.each_mut().map(|sampler| sampler.choose(&logits).unwrap());
                prop_assert_eq!(first, second);
                prop_assert!((first as usize) < logits.len());
            }
        }
    }
}
