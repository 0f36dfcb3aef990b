//! The vector that every kernel is written in: sixteen lanes, whatever the machine's registers hold.
//!
//! A kernel is generic over [`Simd`], and each instruction set implements the trait: one 512-bit register, two of 256
//! bits, or an array. Lane `i` sees the same IEEE operations in the same order everywhere, and horizontal sums fold the
//! same tree, so that results are equal bit for bit without a second version of any algorithm.

use crate::gemm::{Line, Tile};

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Work that can be compiled for any instruction set.
///
/// `run` must be `#[inline(always)]`: only inside a function that enables the instruction set do the operations of
/// [`Simd`] become single instructions.
pub(crate) trait Kernel {
    type Output;

    /// Whether it goes by [`Simd::Product`]. One that does not is compiled once for all sets that differ in that alone, where it
    /// says so.
    const USES_PRODUCT: bool = true;

    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Operations on sixteen lanes; the value is the proof that the machine has them.
pub(crate) trait Simd: Copy {
    /// The integer product that goes with them.
    type Product: Product;
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen i32.
    type I: Copy;
    /// Sixteen f64.
    type D: Copy;

    /// Whether the registers hold twelve vectors of sums and what is added to them.
    const WIDE: bool;

    /// Whether [`Simd::dot_pairs`] is one instruction.
    const BF16: bool = false;

    /// Runs a kernel as a function of its own. What is inlined in each of many places, or in one place with many others, would take
    /// minutes to compile.
    fn apart<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, value: f32) -> Self::F;
    fn load(self, from: &[f32; LANES]) -> Self::F;
    fn store(self, vector: Self::F, to: &mut [f32; LANES]);

    /// The bfloat16 numbers with these bits.
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> Self::F {
        let mut values = [0.0; LANES];
        for (value, bits) in values.iter_mut().zip(from) {
            *value = f32::from_bits(u32::from(*bits) << 16);
        }
        self.load(&values)
    }

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`: the second operand where either is NaN or both are zeros.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`: the second operand where either is NaN or both are zeros.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn abs(self, a: Self::F) -> Self::F;
    /// Every lane must be within `±2^22`.
    fn floor(self, a: Self::F) -> Self::F;
    /// The magnitude of `a` with the sign of `sign`.
    fn copysign(self, a: Self::F, sign: Self::F) -> Self::F;
    /// `if a < b { x } else { y }`.
    fn select_less(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;

    fn splat_i32(self, value: i32) -> Self::I;
    fn load_i32(self, from: &[i32; LANES]) -> Self::I;
    fn store_i32(self, vector: Self::I, to: &mut [i32; LANES]);
    fn load_i8(self, from: &[i8; LANES]) -> Self::I;
    /// Every lane must be in `-128..=127`.
    fn store_i8(self, vector: Self::I, to: &mut [i8; LANES]);
    /// As [`Simd::store_i8`], of four vectors in order.
    #[inline(always)]
    fn store_i8_of_four(self, vectors: [Self::I; 4], to: &mut [i8; 4 * LANES]) {
        for (vector, to) in vectors.into_iter().zip(to.as_chunks_mut().0) {
            self.store_i8(vector, to);
        }
    }

    /// Wraps, as do the other two.
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I;
    fn sub_i32(self, a: Self::I, b: Self::I) -> Self::I;
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I;
    fn max_i32(self, a: Self::I, b: Self::I) -> Self::I;

    /// Rounded half to even; every lane must be within `±2^22`, or NaN and then unused.
    fn to_i32(self, a: Self::F) -> Self::I;
    fn to_f32(self, a: Self::I) -> Self::F;
    /// The bits of `|a|`: ordered as the magnitudes are, with infinity and then NaN above every finite value.
    fn magnitude_bits(self, a: Self::F) -> Self::I;
    /// `2^n`; every lane must be in `-126..=127`.
    fn exp2_i32(self, n: Self::I) -> Self::F;

    /// `table[index]`; every lane must be in `0..16`, or its result is not used.
    fn lookup(self, table: &[f32; LANES], index: Self::I) -> Self::F;

    /// Rounded to bfloat16, half to even; magnitudes below `2^-126` become 0.
    fn bf16(self, a: Self::F) -> Self::F;

    /// Sixteen vectors as the rows of a square, and its columns as vectors.
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES];

    /// Lanes `i` and `i + distance` become their sum and the first less the second, at distances 1, 2, 4 and 8 in that order.
    #[inline(always)]
    fn butterflies(self, a: Self::F) -> Self::F {
        let mut lanes = [0.0; LANES];
        self.store(a, &mut lanes);
        for distance in [1, 2, 4, 8] {
            for i in (0..LANES).filter(|i| i & distance == 0) {
                (lanes[i], lanes[i + distance]) =
                    (lanes[i] + lanes[i + distance], lanes[i] - lanes[i + distance]);
            }
        }
        self.load(&lanes)
    }

    fn zero_f64(self) -> Self::D;
    /// `sum + (a - b)^2` in f64, each operation rounded.
    fn add_square_of_difference(self, sum: Self::D, a: Self::F, b: Self::F) -> Self::D;
    fn store_f64(self, vector: Self::D, to: &mut [f64; LANES]);

    fn product(self) -> Self::Product;

    /// Asks for the cache line that holds `at`, which will be read soon.
    #[inline(always)]
    fn prefetch<T>(self, _at: &T) {}

    /// To an integer, half to even; every lane must be within `±2^22`, or NaN, which stays or becomes any number.
    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        self.to_f32(self.to_i32(a))
    }

    /// `a * 2^n`, of which neither overflows nor underflows; every lane of `n` must be an integer in `-126..=127`, or any
    /// number where `a` is NaN.
    #[inline(always)]
    fn scale_by_exp2(self, a: Self::F, n: Self::F) -> Self::F {
        self.mul(a, self.exp2_i32(self.to_i32(n)))
    }

    /// Pairs of bfloat16 numbers: those of lane `i` are of lane `i` of `low`, in the low half, and of `high`. Rounded as by
    /// [`Simd::bf16`].
    #[inline(always)]
    fn pairs(self, low: Self::F, high: Self::F) -> Self::I {
        let (mut lows, mut highs, mut pairs) = ([0.0; LANES], [0.0; LANES], [0; LANES]);
        self.store(self.bf16(low), &mut lows);
        self.store(self.bf16(high), &mut highs);
        for i in 0..LANES {
            pairs[i] = (lows[i].to_bits() >> 16 | highs[i].to_bits()) as i32;
        }
        self.load_i32(&pairs)
    }

    /// As [`Simd::pairs`], of neighbours: lane `i` has the numbers `2i` and `2i + 1` of `first` with `second` behind it.
    #[inline(always)]
    fn pairs_in_order(self, first: Self::F, second: Self::F) -> Self::I {
        let (mut lanes, mut lows, mut highs) = ([[0.0; LANES]; 2], [0.0; LANES], [0.0; LANES]);
        self.store(first, &mut lanes[0]);
        self.store(second, &mut lanes[1]);
        let pairs = lanes.as_flattened().as_chunks::<2>().0;
        for i in 0..LANES {
            [lows[i], highs[i]] = pairs[i];
        }
        self.pairs(self.load(&lows), self.load(&highs))
    }

    /// `sum + a.high * b.high`, rounded once, and that `+ a.low * b.low`; sums below `2^-126` may become 0.
    #[inline(always)]
    fn dot_pairs(self, sum: Self::F, a: Self::I, b: Self::I) -> Self::F {
        let (mut sums, mut x, mut y) = ([0.0; LANES], [0; LANES], [0; LANES]);
        self.store(sum, &mut sums);
        self.store_i32(a, &mut x);
        self.store_i32(b, &mut y);
        let high = |pair: i32| f32::from_bits(pair as u32 & 0xffff_0000);
        let low = |pair: i32| f32::from_bits((pair as u32) << 16);
        for i in 0..LANES {
            sums[i] = high(x[i]).mul_add(high(y[i]), sums[i]);
            sums[i] = low(x[i]).mul_add(low(y[i]), sums[i]);
        }
        self.load(&sums)
    }

    /// Sixteen bytes of two 4-bit integers each, in two's complement: the low halves and the high ones, as f32.
    #[inline(always)]
    fn load_i4(self, from: &[i8; LANES]) -> [Self::F; 2] {
        let (mut low, mut high) = ([0; LANES], [0; LANES]);
        for i in 0..LANES {
            low[i] = from[i] << 4 >> 4;
            high[i] = from[i] >> 4;
        }
        [self.to_f32(self.load_i8(&low)), self.to_f32(self.load_i8(&high))]
    }

    /// The lanes of `from`, and `fill` in those that it lacks; `from` has fewer than sixteen.
    #[inline(always)]
    fn load_tail(self, from: &[f32], fill: f32) -> Self::F {
        let mut lanes = [fill; LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load(&lanes)
    }

    /// The first lanes, as many as `to` has; fewer than sixteen.
    #[inline(always)]
    fn store_tail(self, vector: Self::F, to: &mut [f32]) {
        let mut lanes = [0.0; LANES];
        self.store(vector, &mut lanes);
        to.copy_from_slice(&lanes[..to.len()]);
    }

    /// [`Simd::load`] or [`Simd::load_tail`], by the length of `from`, which has sixteen lanes at most.
    #[inline(always)]
    fn load_some(self, from: &[f32], fill: f32) -> Self::F {
        match from.first_chunk() {
            Some(full) => self.load(full),
            None => self.load_tail(from, fill),
        }
    }

    /// [`Simd::store`] or [`Simd::store_tail`], by the length of `to`, which has sixteen lanes at most.
    #[inline(always)]
    fn store_some(self, vector: Self::F, to: &mut [f32]) {
        match to.first_chunk_mut() {
            Some(full) => self.store(vector, full),
            None => self.store_tail(vector, to),
        }
    }

    /// Folds sixteen lanes to one: lane `i` with `i + 8`, then `i + 4`, `i + 2`, `i + 1`.
    #[inline(always)]
    fn fold(self, vector: Self::F, f: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(vector, &mut lanes);
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] = f(lanes[i], lanes[i + width]);
            }
            width /= 2;
        }
        lanes[0]
    }

    #[inline(always)]
    fn sum(self, vector: Self::F) -> f32 {
        self.fold(vector, |a, b| a + b)
    }

    /// The largest lane that is not NaN, as [`Simd::max`] sees it.
    #[inline(always)]
    fn largest(self, vector: Self::F) -> f32 {
        self.fold(vector, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn smallest(self, vector: Self::F) -> f32 {
        self.fold(vector, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn largest_i32(self, vector: Self::I) -> i32 {
        let mut lanes = [0; LANES];
        self.store_i32(vector, &mut lanes);
        lanes.into_iter().fold(i32::MIN, i32::max)
    }
}

/// The integer product of an instruction set, and the layout of weights that it reads; the value is the proof that the
/// machine has its instructions.
pub(crate) trait Product: Copy {
    /// Columns of a panel that stand together: the tile takes one such strip after the other.
    const STRIP: usize;
    /// Values of K that stand together within a strip.
    const K_GROUP: usize;
    /// The bits of a packed byte that are flipped: `0x80` stores `w + 128` as u8.
    const WEIGHT_FLIP: u8;

    /// What the accumulators of a row begin with, so that the tile ends with the exact product.
    fn row_offset(self, row: &[i8]) -> i32;

    /// `tile[r][c] = sum over k of a[r, k] * w[k, c]` for the `offsets.len()` rows of `a` (1 to 6, `inputs` values
    /// each) and one packed panel. `offsets[r]` is [`Product::row_offset`] of row `r`.
    fn tile(self, a: &[i8], inputs: usize, panel: &[Line], offsets: &[i32], tile: &mut Tile);
}
