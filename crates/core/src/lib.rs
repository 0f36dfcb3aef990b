//! Number formats of affine quantisation: what an INT8 value means, and the one scalar function that makes it.
//!
//! Everything else in the workspace takes its arithmetic from here. The fast code in `zeropoint-kernels` is tested
//! bit for bit against [`quantize`]; the files in `zeropoint-formats` store the [`QuantParams`] of this crate; configs
//! and reports name [`Scheme`]s. This crate knows no tensor library, no file and no model.
//!
//! ```
//! use zeropoint_core::{QuantParams, Symmetry, dequantize, quantize};
//!
//! let params = QuantParams::from_range(-1.0, 3.0, Symmetry::Asymmetric).unwrap();
//! let q = quantize(2.0, params);
//! assert!((dequantize(q, params) - 2.0).abs() <= params.scale / 2.0);
//! assert_eq!(dequantize(quantize(0.0, params), params), 0.0); // real zero is exact: that is the zero point
//! ```

mod contain;
mod fingerprint;
mod params;
mod quantize;
mod rng;
mod scheme;

pub use contain::contain;
pub use fingerprint::{Fingerprint, FingerprintBuilder};
pub use params::{ParamsError, QuantParams, SCALE_FLOOR};
pub use quantize::{ROUNDER, dequantize, quantize, quantize_weight};
pub use rng::Rng;
pub use scheme::{
    ActivationMode, ActivationScheme, Granularity, QMAX, QMIN, Scheme, Symmetry, WeightBits, WeightScheme,
};
