//! Metrics as pure functions: slices in, one number out, the same bits on every run and for any thread count.
//!
//! A metric that has no value (no samples, a constant side, lengths that differ) is `None` or, where a number is
//! promised, NaN; never a panic and never a made-up 0.

pub mod answers;
pub mod classification;
pub mod correlation;
pub mod entities;
pub mod fidelity;
pub mod label_sets;
pub mod logits;
pub mod next_token;
pub mod quantile;
pub mod ranking;
