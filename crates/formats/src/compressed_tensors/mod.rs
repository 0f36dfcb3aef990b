//! The compressed-tensors format: how `config.json` names the scheme of each Linear, and which tensors hold it.
//!
//! [`QuantizationConfig`] is the `quantization_config` of a model; [`linear_tensor_specs`], [`read_linear`] and
//! [`linear_tensor_bytes`] are the tensors of one Linear; [`packed`] is the bit layout of weight-only schemes.

mod args;
mod config;
mod linear;
mod matching;
pub mod packed;
mod parse;
mod pattern;
mod read;

pub use config::{Format, Group, QuantizationConfig};
pub(crate) use linear::check_scales;
pub use linear::{NamedBytes, QuantizedLinear, linear_tensor_bytes, linear_tensor_specs};
pub use matching::Target;
pub use pattern::{Pattern, PatternError};
pub use read::read_linear;
