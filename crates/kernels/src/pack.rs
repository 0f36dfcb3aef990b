//! Weights laid out once so that the integer product reads them in order.

use thiserror::Error;

use crate::Isa;
use crate::gemm::{Line, PANEL};
use crate::pages::Lines;
use crate::simd::{Kernel, Product, Simd};

/// The longest sum whose corrected value fits an i32: `|a - zero_point| <= 255` and `|w| <= 128`, and
/// `255 * 128 * 65536 < 2^31`.
const INPUTS_LIMIT: usize = 65_536;
const _: () = assert!(255 * 128 * INPUTS_LIMIT as u64 <= i32::MAX as u64);

/// Why weights cannot be packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PackError {
    /// A weight without rows or columns.
    #[error("a weight of {outputs} outputs and {inputs} inputs has no values: both must be at least 1")]
    Empty {
        /// Rows as given.
        outputs: usize,
        /// Columns as given.
        inputs: usize,
    },
    /// Sums over so many inputs could leave the range of i32.
    #[error("a weight of {inputs} inputs is too wide: i32 sums are safe up to {INPUTS_LIMIT} inputs")]
    TooWide {
        /// Columns as given.
        inputs: usize,
    },
    /// The slice is not the matrix that the sizes describe.
    #[error(
        "a weight of {outputs} outputs and {inputs} inputs cannot have {len} values: their product is needed"
    )]
    Length {
        /// Rows as given.
        outputs: usize,
        /// Columns as given.
        inputs: usize,
        /// Length of the slice.
        len: usize,
    },
    /// Scales that are not one for each output and group of equally many inputs.
    #[error(
        "a weight of {outputs} outputs and {inputs} inputs cannot have {len} scales: as many for each output, in groups that divide \
         the inputs, are needed"
    )]
    Scales {
        /// Rows as given.
        outputs: usize,
        /// Columns as given.
        inputs: usize,
        /// Number of scales.
        len: usize,
    },
    /// A value that has more bits than the weight.
    #[error("a weight of {bits} bits holds {value}, which has more")]
    Value {
        /// The first of them.
        value: i8,
        /// Bits of the weight.
        bits: usize,
    },
}

/// The INT8 weight of a Linear, packed for one instruction set.
///
/// Outputs stand in panels of [`PackedWeights::PANEL`]; within a panel, K runs in groups as long as the instruction
/// set multiplies at once. What is missing to a whole panel or group is filled with zeros.
#[derive(Debug, Clone)]
pub struct PackedWeights {
    isa: Isa,
    outputs: usize,
    inputs: usize,
    lines: Lines,
    lines_per_panel: usize,
    /// Sum over K for each output, padded to whole panels.
    column_sums: Vec<[i32; PANEL]>,
}

impl PackedWeights {
    /// Outputs of one panel: the unit in which a product can be split over threads.
    pub const PANEL: usize = PANEL;

    /// Packs `q`, row-major `[outputs, inputs]` (as a Linear stores it), for `isa`. `inputs` is 65536 at most.
    pub fn pack(isa: Isa, q: &[i8], outputs: usize, inputs: usize) -> Result<Self, PackError> {
        if outputs == 0 || inputs == 0 {
            return Err(PackError::Empty { outputs, inputs });
        }
        if inputs > INPUTS_LIMIT {
            return Err(PackError::TooWide { inputs });
        }
        if outputs.checked_mul(inputs) != Some(q.len()) {
            return Err(PackError::Length { outputs, inputs, len: q.len() });
        }
        Ok(isa.run(Pack { isa, q, outputs, inputs }))
    }

    /// The instruction set whose layout this is; products run on it.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Rows of the weight: the width of the product.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the weight: the length of each sum.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.lines) + size_of_val(self.column_sums.as_slice())
    }

    /// The weights of one output, `inputs` values, as they were before they were packed.
    pub fn row(&self, output: usize, out: &mut [i8]) {
        assert!(output < self.outputs, "the row is an output of the weight");
        assert_eq!(out.len(), self.inputs, "`out` is as long as a row");
        self.isa.run(Unpack { packed: self, output, out });
    }

    pub(crate) fn panel(&self, index: usize) -> &[Line] {
        &self.lines[index * self.lines_per_panel..][..self.lines_per_panel]
    }

    /// The panel behind that one, nothing behind the last.
    pub(crate) fn panel_after(&self, index: usize) -> &[Line] {
        let start = self.lines.len().min((index + 1) * self.lines_per_panel);
        &self.lines[start..self.lines.len().min(start + self.lines_per_panel)]
    }

    pub(crate) fn column_sums(&self, panel: usize) -> &[i32; PANEL] {
        &self.column_sums[panel]
    }
}

struct Pack<'a> {
    isa: Isa,
    q: &'a [i8],
    outputs: usize,
    inputs: usize,
}

impl Kernel for Pack<'_> {
    type Output = PackedWeights;

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> PackedWeights {
        let Self { isa, q, outputs, inputs } = self;
        let padded = inputs.next_multiple_of(S::Product::K_GROUP);
        let panels = outputs.div_ceil(PANEL);
        let lines_per_panel = padded * PANEL / size_of::<Line>();
        let zero = S::Product::WEIGHT_FLIP as i8;
        let mut lines = Lines::filled(Line([zero; 64]), panels * lines_per_panel);
        let mut column_sums = vec![[0; PANEL]; panels];
        for (output, row) in q.chunks_exact(inputs).enumerate() {
            let (panel, column) = (output / PANEL, output % PANEL);
            let packed = &mut lines[panel * lines_per_panel..][..lines_per_panel];
            for (k, &w) in row.iter().enumerate() {
                let position = position::<S::Product>(k, column, padded);
                packed[position / 64].0[position % 64] = w ^ zero;
            }
            column_sums[panel][column] = row.iter().map(|&w| i32::from(w)).sum();
        }
        PackedWeights { isa, outputs, inputs, lines, lines_per_panel, column_sums }
    }
}

struct Unpack<'a> {
    packed: &'a PackedWeights,
    output: usize,
    out: &'a mut [i8],
}

impl Kernel for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let Self { packed, output, out } = self;
        let padded = packed.inputs.next_multiple_of(S::Product::K_GROUP);
        let panel = packed.panel(output / PANEL);
        for (k, w) in out.iter_mut().enumerate() {
            let position = position::<S::Product>(k, output % PANEL, padded);
            *w = panel[position / 64].0[position % 64] ^ S::Product::WEIGHT_FLIP as i8;
        }
    }
}

/// Where `w[k, column]` lies in a packed panel of `padded` values of K: strip after strip, and within a strip group
/// after group, the values of a group and column together.
#[inline(always)]
pub(crate) fn position<P: Product>(k: usize, column: usize, padded: usize) -> usize {
    let (strip, group) = (column / P::STRIP, k / P::K_GROUP);
    strip * padded * P::STRIP
        + group * P::STRIP * P::K_GROUP
        + column % P::STRIP * P::K_GROUP
        + k % P::K_GROUP
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_cannot_be_packed_are_refused() {
        let q = [0i8; 12];
        let pack = |outputs, inputs| PackedWeights::pack(Isa::best(), &q, outputs, inputs).unwrap_err();
        assert_eq!(pack(0, 12), PackError::Empty { outputs: 0, inputs: 12 });
        assert_eq!(pack(12, 0), PackError::Empty { outputs: 12, inputs: 0 });
        assert_eq!(pack(3, 5), PackError::Length { outputs: 3, inputs: 5, len: 12 });
        assert_eq!(pack(usize::MAX, 2), PackError::Length { outputs: usize::MAX, inputs: 2, len: 12 });
        assert_eq!(pack(1, 65_537), PackError::TooWide { inputs: 65_537 });
    }

    #[test]
    fn rows_are_read_back_as_they_were_packed() {
        for (outputs, inputs) in [(1, 1), (65, 131), (130, 7), (64, 64)] {
            let q: Vec<i8> = (0..outputs * inputs).map(|i| (i * 37 % 256) as u8 as i8).collect();
            for isa in Isa::available() {
                let packed = PackedWeights::pack(isa, &q, outputs, inputs).unwrap();
                for (output, expected) in q.chunks_exact(inputs).enumerate() {
                    let mut row = vec![0; inputs];
                    packed.row(output, &mut row);
                    assert_eq!(row, expected, "{isa}: row {output} of {outputs} x {inputs}");
                }
            }
        }
    }

    #[test]
    fn a_packed_weight_holds_little_more_than_its_bytes() {
        for isa in Isa::available() {
            let packed = PackedWeights::pack(isa, &vec![1; 65 * 131], 65, 131).unwrap();
            assert_eq!((packed.isa(), packed.outputs(), packed.inputs()), (isa, 65, 131));
            let sums = 128 * size_of::<i32>();
            assert!((128 * 131 + sums..=128 * 132 + sums).contains(&packed.bytes()), "{}", packed.bytes());
        }
    }
}
