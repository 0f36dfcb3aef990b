//! Quantisation as pure steps over weights and statistics: the plan, the weights, the activation parameters.
//!
//! A [`Plan`] decides for every Linear of a model whether and how it becomes integers; [`quantize_weight`] rounds a weight
//! to nearest under scales chosen by an observer; [`site_params`] turns calibration statistics into the parameters of
//! an activation; [`simulated_reader`] builds the float simulation of the same decisions. Nothing here runs a model,
//! opens a file or talks to a terminal.

mod activations;
mod bias;
mod gptq;
mod plan;
mod simulate;
pub mod transform;
mod weights;

pub use activations::{ActivationError, site_params, site_quantizer};
pub use bias::bias_correction;
pub use gptq::{Curvature, CurvatureError, quantize_weight_gptq};
pub use plan::{
    Decision, EmbeddingPrecision, HeadPrecision, LayerOverride, LayerScheme, LinearPlan, Plan, PlanError,
    PlanRequest, WeightAlgorithm,
};
pub use simulate::simulated_reader;
pub use transform::{Transform, TransformError, TransformPlan};
pub use weights::{QuantizedWeight, WeightError, quantize_weight};
pub use zeropoint_formats::compressed_tensors::{Pattern, PatternError};
