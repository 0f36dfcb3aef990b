//! The INT8 runtime: loads a deployable directory and runs its Linears in integer arithmetic.
//!
//! [`QuantizedModel::load`] reads what `zeropoint run` (or llm-compressor, for the same schemes) wrote, packs the INT8
//! weights for the machine's instruction set and runs the model of `zeropoint-models` with an [`IntegerSite`] in place
//! of each quantised site: activations are quantised once for all Linears that share them, products are exact in
//! i8 x i8 -> i32, and scales, zero points, bias and non-linearity are applied in one pass over the result.
//!
//! Linears of which the weight alone is quantised ([`WeightOnlyLinear`]) multiply float activations by integers that stay
//! packed. A model may mix them with INT8 and float ones.
//!
//! Where all Linears of the blocks are INT8, a fused engine runs whole blocks over memory that stays between calls, with the
//! same bits; [`generate()`] continues texts token by token. [`Encoder`] makes vectors of texts; [`Int8Linear`] is one Linear for models built by hand.
//!
//! [`QuantizedParts`] is a model of which one block at a time is in memory.
//!
//! It knows files through `zeropoint-formats` alone, and neither calibration nor quantisation algorithms.

mod encoder;
mod engine;
mod generate;
mod head;
mod linear;
mod model;
mod module;
mod sampling;
mod site;
mod split;
mod weight_only;

pub use encoder::Encoder;
pub use generate::{Ending, generate};
pub use linear::IntegerLinear;
pub use model::{QuantizedModel, QuantizedParts, RuntimeError};
pub use module::Int8Linear;
pub use sampling::{Sampler, Sampling, SamplingError};
pub use site::IntegerSite;
pub use weight_only::WeightOnlyLinear;
