//! The memory that a forward works in, kept between calls.

use zeropoint_core::QuantParams;
use zeropoint_kernels::AttentionScratch;

/// Memory of one worker.
#[derive(Default)]
pub(super) struct Arena {
    pub(super) work: Work,
    /// Queries, keys and values of this block and of the next one.
    pub(super) projections: [Vec<f32>; 2],
}

/// What is used within a block and then forgotten; each grows to the largest use.
#[derive(Default)]
pub(super) struct Work {
    /// The input of a product, and how each row was quantised.
    pub(super) quantized: Vec<i8>,
    pub(super) params: Vec<QuantParams>,
    /// The heads' outputs.
    pub(super) context: Vec<f32>,
    /// The widened rows of a feed-forward half.
    pub(super) wide: Vec<f32>,
    /// The gated ones.
    pub(super) gated: Vec<f32>,
    /// What is added to the residual stream.
    pub(super) delta: Vec<f32>,
    /// Normalised rows on their way to a quantiser.
    pub(super) normed: Vec<f32>,
    pub(super) attention: AttentionScratch,
}

/// The first `len` values, whatever they hold.
pub(super) fn room<T: Clone + Default>(memory: &mut Vec<T>, len: usize) -> &mut [T] {
    filled(memory, len, T::default())
}

/// As [`room`], for the parameters of so many rows.
pub(super) fn room_for_params(memory: &mut Vec<QuantParams>, rows: usize) -> &mut [QuantParams] {
    filled(memory, rows, QuantParams { scale: 1.0, zero_point: 0 })
}

fn filled<T: Clone>(memory: &mut Vec<T>, len: usize, fill: T) -> &mut [T] {
    if memory.len() < len {
        memory.resize(len, fill);
    }
    &mut memory[..len]
}
