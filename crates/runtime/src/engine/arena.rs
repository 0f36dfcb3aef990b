//! The memory that a forward works in, kept between calls.

use zeropoint_core::QuantParams;
use zeropoint_kernels::{AlignedMemory, AttentionScratch, RowMagnitudes};

/// Memory of one worker.
#[derive(Default)]
pub(super) struct Arena {
    pub(super) work: Work,
    /// Queries, keys and values of this block and of the next one.
    pub(super) projections: [AlignedMemory<f32>; 2],
}

/// What is used within a block and then forgotten; each grows to the largest use.
#[derive(Default)]
pub(super) struct Work {
    /// The input of a product, and how each row was quantised.
    pub(super) quantized: AlignedMemory<i8>,
    pub(super) params: Vec<QuantParams>,
    /// The heads' outputs.
    pub(super) context: AlignedMemory<f32>,
    /// The input of the last product of a feed-forward half, and how each row was quantised.
    pub(super) inner: AlignedMemory<i8>,
    pub(super) inner_params: Vec<QuantParams>,
    /// Of the widened rows.
    pub(super) magnitudes: RowMagnitudes,
    /// The widened rows of a feed-forward half.
    pub(super) wide: AlignedMemory<f32>,
    /// The gated ones.
    pub(super) gated: AlignedMemory<f32>,
    /// Normalised rows, on their way to a quantiser or to the stream.
    pub(super) normed: AlignedMemory<f32>,
    pub(super) attention: AttentionScratch,
}

/// The first parameters, of so many rows, whatever they hold.
pub(super) fn room_for_params(memory: &mut Vec<QuantParams>, rows: usize) -> &mut [QuantParams] {
    if memory.len() < rows {
        memory.resize(rows, QuantParams { scale: 1.0, zero_point: 0 });
    }
    &mut memory[..rows]
}
