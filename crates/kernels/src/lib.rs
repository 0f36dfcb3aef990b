//! The fast code of Zeropoint: quantising, integer products and the f32 operations around them, for each instruction
//! set.
//!
//! `zeropoint-core` says what the numbers mean; this crate computes them at the speed of the machine. The instruction
//! set is found at run time and handed around as an [`Isa`]; without one of the fast sets everything runs as plain
//! Rust. All functions are single-threaded and safe to call; they assert that slices have the lengths they document.
//!
//! Every algorithm is written once, over a vector of sixteen lanes, and compiled for each instruction set: results are
//! equal bit for bit on all of them (the payload of a NaN apart). Only the inner tile of the integer product, which is
//! exact, has a version of its own for each.
//!
//! ```
//! use zeropoint_core::{QuantParams, Symmetry};
//! use zeropoint_kernels::{Activation, Epilogue, Isa, PackedWeights, RowParams, linear, quantize_tokens};
//!
//! let isa = Isa::active()?;
//! let weights = PackedWeights::pack(isa, &[127, 0, 0, 127], 2, 2)?; // 127 times the identity
//! let x = [0.5f32, -1.0];
//! let (mut q, mut params) = ([0i8; 2], [QuantParams { scale: 1.0, zero_point: 0 }]);
//! quantize_tokens(isa, &x, 2, Symmetry::Symmetric, &mut q, &mut params)?;
//! let epilogue = Epilogue {
//!     input: RowParams::PerToken(&params),
//!     weight_scales: &[1.0 / 127.0; 2],
//!     bias: None,
//!     activation: Activation::Relu,
//! };
//! let mut y = [0.0f32; 2];
//! linear(&q, 1, &weights, 0..2, &epilogue, &mut y, 2);
//! assert!((y[0] - 0.5).abs() < 0.01 && y[1] == 0.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// The operations of an instruction set are single instructions only where they are inlined into a function that
// enables it; a call instead would pass vectors through memory.
#![allow(clippy::inline_always)]

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod activation;
mod attention;
mod compensate;
mod gemm;
mod heap;
mod isa;
mod linear;
mod memory;
mod norm;
mod pack;
mod pages;
mod quantize;
mod rotation;
mod scalar;
mod simd;
mod statistics;
mod vector;
mod weight_only;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use activation::{
    Activation, activate, add_in_place, exp_nonpositive_in_place, sigmoid_in_place, soft_cap_in_place,
    swish_gate, swish_in_place, tanh_in_place,
};
pub use attention::{
    AttentionPrecision, AttentionScratch, CachedInput, HeadCache, HeadInput, KvPrecision, attend,
    attend_cached,
};
pub use compensate::{ROUNDED_ROWS, RoundingGrid, round_and_compensate};
pub use gemm::gemm_i32;
pub use heap::keep_freed_memory;
pub use isa::{Isa, IsaError};
pub use linear::{
    Epilogue, RowParams, dequantize_sums, linear, linear_added, linear_measured, linear_quantized,
};
pub use memory::AlignedMemory;
pub use norm::{layer_norm, rms_norm};
pub use pack::{PackError, PackedWeights};
pub use pages::with_large_pages;
pub use quantize::{
    NonFinite, RowMagnitudes, dequantize, quantize_measured, quantize_static, quantize_tokens,
};
pub use rotation::ChannelRotation;
pub use statistics::{
    Extremes, LogBins, channel_absmax, count_columns, extremes, histogram, row_extremes, sum_squared_error,
};
pub use vector::{MatrixValues, matrix_vector};
pub use weight_only::{WeightOnlyMatrix, weight_only_product};
