//! The INT8 runtime: loads a deployable directory and runs its Linears in integer arithmetic.
//!
//! [`QuantizedModel::load`] reads what `zeropoint run` (or llm-compressor, for the same schemes) wrote, packs the INT8
//! weights for the machine's instruction set and runs the model of `zeropoint-models` with an [`IntegerSite`] in place
//! of each quantised site: activations are quantised once for all Linears that share them, products are exact in
//! i8 x i8 -> i32, and scales, zero points, bias and non-linearity are applied in one pass over the result.
//!
//! It knows files through `zeropoint-formats` alone, and neither calibration nor quantisation algorithms.

mod engine;
mod linear;
mod model;
mod site;

pub use linear::IntegerLinear;
pub use model::{QuantizedModel, RuntimeError};
pub use site::IntegerSite;
