//! Sixteen lanes as an array: plain Rust, the twin that the other instruction sets are tested against.

use std::array::from_fn;

use zeropoint_core::ROUNDER;

use crate::gemm::{Line, PANEL, Tile};
use crate::simd::{Kernel, LANES, Product, Simd};

/// Needs nothing of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scalar;

impl Simd for Scalar {
    type Product = Self;
    type F = [f32; LANES];
    type I = [i32; LANES];
    type D = [f64; LANES];

    const WIDE: bool = false;

    #[inline(never)]
    fn apart<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        *from
    }

    #[inline(always)]
    fn store(self, vector: Self::F, to: &mut [f32; LANES]) {
        *to = vector;
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        a.map(f32::abs)
    }

    #[inline(always)]
    fn floor(self, a: Self::F) -> Self::F {
        from_fn(|i| {
            // The functions of the standard library are calls where the target lacks the instruction.
            let nearest = (a[i] + ROUNDER) - ROUNDER;
            if nearest > a[i] { nearest - 1.0 } else { nearest }
        })
    }

    #[inline(always)]
    fn copysign(self, a: Self::F, sign: Self::F) -> Self::F {
        from_fn(|i| a[i].copysign(sign[i]))
    }

    #[inline(always)]
    fn select_less(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        from_fn(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> Self::I {
        [value; LANES]
    }

    #[inline(always)]
    fn load_i32(self, from: &[i32; LANES]) -> Self::I {
        *from
    }

    #[inline(always)]
    fn store_i32(self, vector: Self::I, to: &mut [i32; LANES]) {
        *to = vector;
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Self::I {
        from.map(i32::from)
    }

    #[inline(always)]
    fn store_i8(self, vector: Self::I, to: &mut [i8; LANES]) {
        *to = vector.map(|lane| lane as i8);
    }

    #[inline(always)]
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }

    #[inline(always)]
    fn sub_i32(self, a: Self::I, b: Self::I) -> Self::I {
        from_fn(|i| a[i].wrapping_sub(b[i]))
    }

    #[inline(always)]
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I {
        from_fn(|i| a[i].wrapping_mul(b[i]))
    }

    #[inline(always)]
    fn max_i32(self, a: Self::I, b: Self::I) -> Self::I {
        from_fn(|i| a[i].max(b[i]))
    }

    #[inline(always)]
    fn to_i32(self, a: Self::F) -> Self::I {
        a.map(|lane| ((lane + ROUNDER).to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32))
    }

    #[inline(always)]
    fn to_f32(self, a: Self::I) -> Self::F {
        a.map(|lane| lane as f32)
    }

    #[inline(always)]
    fn magnitude_bits(self, a: Self::F) -> Self::I {
        a.map(|lane| lane.abs().to_bits() as i32)
    }

    #[inline(always)]
    fn exp2_i32(self, n: Self::I) -> Self::F {
        n.map(|lane| f32::from_bits((lane.wrapping_add(127) as u32) << 23))
    }

    #[inline(always)]
    fn bf16(self, a: [f32; LANES]) -> [f32; LANES] {
        a.map(|a| {
            let bits = a.to_bits();
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
            if a.abs() < f32::MIN_POSITIVE { 0.0 } else { f32::from_bits(rounded) }
        })
    }

    #[inline(always)]
    fn lookup(self, table: &[f32; LANES], index: [i32; LANES]) -> [f32; LANES] {
        index.map(|index| table[index as usize % LANES])
    }

    #[inline(always)]
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES] {
        from_fn(|column| from_fn(|row| rows[row][column]))
    }

    #[inline(always)]
    fn zero_f64(self) -> Self::D {
        [0.0; LANES]
    }

    #[inline(always)]
    fn add_square_of_difference(self, sum: Self::D, a: Self::F, b: Self::F) -> Self::D {
        from_fn(|i| {
            let difference = f64::from(a[i]) - f64::from(b[i]);
            sum[i] + difference * difference
        })
    }

    #[inline(always)]
    fn store_f64(self, vector: Self::D, to: &mut [f64; LANES]) {
        *to = vector;
    }

    #[inline(always)]
    fn product(self) -> Self {
        self
    }
}

impl Product for Scalar {
    const STRIP: usize = PANEL;
    const K_GROUP: usize = 1;
    const WEIGHT_FLIP: u8 = 0;

    #[inline(always)]
    fn row_offset(self, _row: &[i8]) -> i32 {
        0
    }

    fn tile(self, a: &[i8], inputs: usize, panel: &[Line], offsets: &[i32], tile: &mut Tile) {
        assert_eq!(panel.len(), inputs, "a line of the panel for each input");
        assert_eq!(a.len(), offsets.len() * inputs, "an offset for each row");
        for (row, sums) in a.chunks_exact(inputs).zip(tile) {
            *sums = [0; PANEL];
            for (&x, line) in row.iter().zip(panel) {
                for (sum, &w) in sums.iter_mut().zip(&line.0) {
                    // A product of two INT8 values fits 16 bits: 128 * 128 = 2^14.
                    *sum += i32::from(i16::from(x) * i16::from(w));
                }
            }
        }
    }
}
