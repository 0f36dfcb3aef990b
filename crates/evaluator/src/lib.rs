//! What quantisation cost: metrics of the original against the quantised model, the standard error of each loss,
//! and the report that says so.
//!
//! - [`metrics`]: correlations, classification scores and fidelity to the original, as pure functions over slices.
//! - [`bootstrap`]: how far a loss would move with another sample of the same data.
//! - [`decode`]: spans of answers, and the windows they are looked for in.
//! - [`log_probabilities`]: rows over a vocabulary in 16 bits an entry.
//! - [`tasks`]: both models on the same batches, metric by metric.
//! - [`report`]: the types of `report.json`, its HTML and Markdown forms, and the model card.
//! - [`compare`]: several reports of one model as accuracy against size.
//!
//! ```
//! use zeropoint_evaluator::{bootstrap::paired_standard_error, metrics::correlation::spearman};
//!
//! let gold = [0.1, 0.4, 0.5, 0.9, 1.0];
//! let original = [0.2, 0.3, 0.6, 0.8, 0.9];
//! let quantized = [0.2, 0.4, 0.3, 0.8, 0.9];
//! let score = |scores: &[f64], rows: &[usize]| {
//!     let take = |values: &[f64]| rows.iter().map(|&row| values[row]).collect::<Vec<_>>();
//!     spearman(&take(&gold), &take(scores))
//! };
//! let all = [0, 1, 2, 3, 4];
//! assert_eq!(score(&original, &all), Some(1.0));
//! assert_eq!(score(&quantized, &all), Some(0.9));
//! let stderr = paired_standard_error(5, 1000, 42, |rows| Some(score(&quantized, rows)? - score(&original, rows)?));
//! assert!(stderr > 0.0);
//! ```

pub mod bootstrap;
pub mod compare;
pub mod decode;
pub mod log_probabilities;
pub mod metrics;
pub mod report;
mod svg;
pub mod tasks;
