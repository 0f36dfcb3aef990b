//! Rotations of the channels of a row that take an outlier apart: Hadamard matrices, with small factors beside them where the
//! number of channels is no power of two.

use std::f64::consts::TAU;

use crate::Isa;
use crate::simd::{Kernel, LANES, Simd};

/// Primes above this are not taken for a factor: a row would cost as much as a product with a matrix.
const LARGEST_PRIME: usize = 257;

/// An orthogonal matrix `R` of order `n = m * 2^k`, `m` odd, behind a diagonal one: rows `x` become `R (f * x)` with a factor `f` for
/// each channel.
///
/// `R` is a Kronecker product of small matrices and, innermost, the Hadamard matrix of a power of two in Sylvester's order, divided by
/// its root. A factor 3 of `m` takes four of the power of two: the Hadamard matrix of order 12 in Williamson's array (Williamson 1944,
/// "Hadamard's determinant theorem and the sum of four squares"), all of whose entries have one size. Where the power of two does not
/// reach, the matrix for 3, and for 5 always, is the reflection `1 - 2/p J`, `J` all ones; for a larger prime it is the discrete Hartley
/// matrix, `cos(a) + sin(a)` of `a = 2 pi i j / p` over the root of `p` (Bracewell 1983, "Discrete Hartley transform"). Rotations of this
/// kind spread outliers over all channels (Ashkboos et al. 2024, "`QuaRot`: Outlier-Free 4-Bit Inference in Rotated LLMs").
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelRotation {
    /// Order of the innermost matrix.
    power: usize,
    /// The others, the outermost first.
    small: Vec<Small>,
    /// `f`, divided by the roots of the orders of Hadamard matrices.
    factors: Vec<f32>,
}

/// A small matrix of the product.
#[derive(Debug, Clone, PartialEq)]
enum Small {
    /// The Hadamard matrix of order 12, not divided by its root.
    Twelve,
    /// A reflection of that order.
    Reflection(usize),
    /// The rows of a matrix of that order.
    Matrix(usize, Vec<f32>),
}

impl Small {
    /// That of a prime.
    fn of_prime(prime: usize) -> Self {
        if prime <= 5 {
            return Self::Reflection(prime);
        }
        let entry = |i: usize| {
            let angle = TAU * ((i / prime) * (i % prime) % prime) as f64 / prime as f64;
            ((angle.cos() + angle.sin()) / (prime as f64).sqrt()) as f32
        };
        Self::Matrix(prime, (0..prime * prime).map(entry).collect())
    }

    fn order(&self) -> usize {
        match self {
            Self::Twelve => 12,
            Self::Reflection(order) | Self::Matrix(order, _) => *order,
        }
    }
}

/// The primes of an odd number, rising.
fn primes(mut odd: usize) -> Vec<usize> {
    let mut primes = Vec::new();
    let mut prime = 3;
    while odd > 1 {
        if prime * prime > odd {
            prime = odd;
        }
        while odd.is_multiple_of(prime) {
            primes.push(prime);
            odd /= prime;
        }
        prime += 2;
    }
    primes
}

impl ChannelRotation {
    /// The rotation of that many channels, with factors of 1; `None` of no channel, and where the number has a prime factor above
    /// 257.
    pub fn new(order: usize) -> Option<Self> {
        Self::with_factors(&vec![1.0; order])
    }

    /// The rotation of as many channels as there are factors.
    pub fn with_factors(factors: &[f32]) -> Option<Self> {
        Self::of(factors, LANES)
    }

    /// As [`ChannelRotation::new`], for weights: a rotation whose entries are as near to one size as they can be, whatever
    /// multiplying with it costs. It is another one for some numbers of channels.
    pub fn of_weights(order: usize) -> Option<Self> {
        Self::of(&vec![1.0; order], 1)
    }

    /// The innermost matrix keeps an order of at least `least`, where the channels allow it.
    fn of(factors: &[f32], least: usize) -> Option<Self> {
        let order = factors.len();
        if order == 0 {
            return None;
        }
        let mut power = 1 << order.trailing_zeros();
        let primes = primes(order / power);
        if primes.last().is_some_and(|prime| *prime > LARGEST_PRIME) {
            return None;
        }
        let mut flat = power;
        let mut small = Vec::with_capacity(primes.len());
        for prime in primes {
            if prime == 3 && power >= 4 * least {
                power /= 4;
                flat *= 3;
                small.push(Small::Twelve);
            } else {
                small.push(Small::of_prime(prime));
            }
        }
        let scale = (1.0 / (flat as f64).sqrt()) as f32;
        Some(Self { power, small, factors: factors.iter().map(|f| f * scale).collect() })
    }

    /// Channels.
    pub fn order(&self) -> usize {
        self.factors.len()
    }

    /// Rotates each row of `x`, `[rows, order]`, in place. The same bits on every instruction set.
    pub fn apply(&self, isa: Isa, x: &mut [f32]) {
        assert!(x.len().is_multiple_of(self.order()), "`x` is [rows, order]");
        isa.run(Rotate { x, rotation: self });
    }
}

struct Rotate<'a> {
    x: &'a mut [f32],
    rotation: &'a ChannelRotation,
}

impl Kernel for Rotate<'_> {
    type Output = ();

    const USES_PRODUCT: bool = false;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let ChannelRotation { power, small, factors } = self.rotation;
        let longest = small.iter().map(Small::order).max().unwrap_or(0);
        let mut memory = vec![[0f32; LANES]; longest];
        for row in self.x.chunks_exact_mut(factors.len()) {
            for (x, factors) in row.chunks_exact_mut(*power).zip(factors.chunks_exact(*power)) {
                if *power < LANES {
                    hadamard_short(x, factors);
                } else {
                    hadamard(s, x, factors);
                }
            }
            let mut stride = *power;
            for small in small.iter().rev() {
                for x in row.chunks_exact_mut(small.order() * stride) {
                    match small {
                        Small::Twelve => twelve(s, x, stride),
                        Small::Reflection(order) => reflect(s, x, stride, *order),
                        Small::Matrix(order, matrix) => {
                            multiply(s, x, stride, (*order, matrix), &mut memory);
                        }
                    }
                }
                stride *= small.order();
            }
        }
    }
}

/// `H (f * x)` for fewer than sixteen values.
#[inline(always)]
fn hadamard_short(x: &mut [f32], factors: &[f32]) {
    x.iter_mut().zip(factors).for_each(|(x, f)| *x *= f);
    let mut distance = 1;
    while distance < x.len() {
        for i in (0..x.len()).filter(|i| i & distance == 0) {
            (x[i], x[i + distance]) = (x[i] + x[i + distance], x[i] - x[i + distance]);
        }
        distance *= 2;
    }
}

/// `H (f * x)`, butterfly by butterfly of rising distance; several distances each time that values are in registers.
#[inline(always)]
fn hadamard<S: Simd>(s: S, x: &mut [f32], factors: &[f32]) {
    let (x, factors) = (x.as_chunks_mut::<LANES>().0, factors.as_chunks::<LANES>().0);
    let vectors = x.len();
    match vectors {
        1 => begin::<S, 1>(s, x, factors),
        2 => begin::<S, 2>(s, x, factors),
        4 => begin::<S, 4>(s, x, factors),
        _ if S::WIDE => begin::<S, 8>(s, x, factors),
        _ => begin::<S, 4>(s, x, factors),
    }
    let mut distance = vectors.min(if S::WIDE { 8 } else { 4 });
    while distance < vectors {
        match vectors / distance {
            2 => distance *= step::<S, 2>(s, x, distance),
            4 => distance *= step::<S, 4>(s, x, distance),
            _ if S::WIDE => distance *= step::<S, 8>(s, x, distance),
            _ => distance *= step::<S, 4>(s, x, distance),
        }
    }
}

/// The butterflies within vectors and of distances up to `R` vectors.
#[inline(always)]
fn begin<S: Simd, const R: usize>(s: S, x: &mut [[f32; LANES]], factors: &[[f32; LANES]]) {
    for (x, factors) in x.as_chunks_mut::<R>().0.iter_mut().zip(factors.as_chunks::<R>().0) {
        let mut v = [s.splat(0.0); R];
        for i in 0..R {
            v[i] = s.butterflies(s.mul(s.load(&x[i]), s.load(&factors[i])));
        }
        butterflies(s, &mut v);
        for i in 0..R {
            s.store(v[i], &mut x[i]);
        }
    }
}

/// The butterflies of distances from `distance` vectors to below `R` times that.
#[inline(always)]
fn step<S: Simd, const R: usize>(s: S, x: &mut [[f32; LANES]], distance: usize) -> usize {
    for x in x.chunks_exact_mut(R * distance) {
        for at in 0..distance {
            let mut v = [s.splat(0.0); R];
            for i in 0..R {
                v[i] = s.load(&x[at + i * distance]);
            }
            butterflies(s, &mut v);
            for i in 0..R {
                s.store(v[i], &mut x[at + i * distance]);
            }
        }
    }
    R
}

#[inline(always)]
fn butterflies<S: Simd, const R: usize>(s: S, v: &mut [S::F; R]) {
    let mut distance = 1;
    while distance < R {
        for i in 0..R {
            if i & distance == 0 {
                (v[i], v[i + distance]) = (s.add(v[i], v[i + distance]), s.sub(v[i], v[i + distance]));
            }
        }
        distance *= 2;
    }
}

/// The Hadamard matrix of order 12 over the parts of `x`, `stride` values each. Of its parts in fours of three, `A` sums three and `B`
/// takes twice each from their sum: `[[A, B, B, B], [-B, A, -B, B], [-B, B, A, -B], [-B, -B, B, A]]`.
#[inline(always)]
fn twelve<S: Simd>(s: S, x: &mut [f32], stride: usize) {
    let minus_two = s.splat(-2.0);
    for start in (0..stride).step_by(LANES) {
        let lanes = LANES.min(stride - start);
        let at = |part: usize| part * stride + start..part * stride + start + lanes;
        let mut a = [s.splat(0.0); 4];
        let mut b = [[s.splat(0.0); 3]; 4];
        for four in 0..4 {
            let v: [S::F; 3] = [
                s.load_some(&x[at(3 * four)], 0.0),
                s.load_some(&x[at(3 * four + 1)], 0.0),
                s.load_some(&x[at(3 * four + 2)], 0.0),
            ];
            a[four] = s.add(s.add(v[0], v[1]), v[2]);
            for i in 0..3 {
                b[four][i] = s.mul_add(v[i], minus_two, a[four]);
            }
        }
        for i in 0..3 {
            let [b0, b1, b2, b3] = [b[0][i], b[1][i], b[2][i], b[3][i]];
            s.store_some(s.add(s.add(a[0], b1), s.add(b2, b3)), &mut x[at(i)]);
            s.store_some(s.add(s.sub(a[1], b0), s.sub(b3, b2)), &mut x[at(3 + i)]);
            s.store_some(s.add(s.sub(a[2], b0), s.sub(b1, b3)), &mut x[at(6 + i)]);
            s.store_some(s.add(s.sub(a[3], b0), s.sub(b2, b1)), &mut x[at(9 + i)]);
        }
    }
}

/// `x - 2/p * sum of x` over the `p` parts of `x`, `stride` values each.
#[inline(always)]
fn reflect<S: Simd>(s: S, x: &mut [f32], stride: usize, order: usize) {
    let factor = s.splat(-2.0 / order as f32);
    for start in (0..stride).step_by(LANES) {
        let lanes = LANES.min(stride - start);
        let at = |part: usize| part * stride + start..part * stride + start + lanes;
        let mut sum = s.load_some(&x[at(0)], 0.0);
        for part in 1..order {
            sum = s.add(sum, s.load_some(&x[at(part)], 0.0));
        }
        for part in 0..order {
            let v = s.mul_add(sum, factor, s.load_some(&x[at(part)], 0.0));
            s.store_some(v, &mut x[at(part)]);
        }
    }
}

/// The product of a small matrix with the parts of `x`, `stride` values each.
#[inline(always)]
fn multiply<S: Simd>(
    s: S,
    x: &mut [f32],
    stride: usize,
    (order, matrix): (usize, &[f32]),
    memory: &mut [[f32; LANES]],
) {
    for start in (0..stride).step_by(LANES) {
        let lanes = LANES.min(stride - start);
        let at = |part: usize| part * stride + start..part * stride + start + lanes;
        for (out, row) in memory.iter_mut().zip(matrix.chunks_exact(order)) {
            let mut sum = s.splat(0.0);
            for (part, entry) in row.iter().enumerate() {
                sum = s.mul_add(s.splat(*entry), s.load_some(&x[at(part)], 0.0), sum);
            }
            s.store(sum, out);
        }
        for (part, out) in memory[..order].iter().enumerate() {
            x[at(part)].copy_from_slice(&out[..lanes]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zeropoint_core::Rng;

    /// Orders of real models and small ones, of every kind of factor.
    const ORDERS: [usize; 24] = [
        1, 2, 3, 4, 5, 7, 8, 12, 16, 20, 32, 36, 48, 64, 96, 128, 256, 384, 576, 768, 896, 1536, 4096, 11008,
    ];

    fn normal(rng: &mut Rng, len: usize) -> Vec<f32> {
        (0..len).map(|_| rng.normal() as f32).collect()
    }

    fn norm(x: &[f32]) -> f64 {
        x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
    }

    fn distance(x: &[f32], y: &[f32]) -> f64 {
        x.iter().zip(y).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum::<f64>().sqrt()
    }

    /// The Hadamard matrix of order 12, rows as signs.
    const TWELVE: [&str; 12] = [
        "+++-++-++-++",
        "++++-++-++-+",
        "+++++-++-++-",
        "+--++++---++",
        "-+-+++-+-+-+",
        "--++++--+++-",
        "+---++++++--",
        "-+-+-++++-+-",
        "--+++-+++--+",
        "+--+---+++++",
        "-+--+-+-++++",
        "--+--+++-+++",
    ];

    /// The entry of the matrix by its definition.
    fn entry(order: usize, least: usize, mut i: usize, mut j: usize) -> f64 {
        let mut power = 1 << order.trailing_zeros();
        let mut parts = Vec::new();
        for p in primes(order / power) {
            if p == 3 && power >= 4 * least {
                power /= 4;
                parts.push(12);
            } else {
                parts.push(p);
            }
        }
        let common = (i % power) & (j % power);
        let sign = if common.count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        let mut entry = sign / f64::from(power as u32).sqrt();
        (i, j) = (i / power, j / power);
        for p in parts.into_iter().rev() {
            let (a, b, n) = (i % p, j % p, p as f64);
            let angle = TAU * (a * b) as f64 / n;
            entry *= match p {
                12 if TWELVE[a].as_bytes()[b] == b'+' => 1.0 / n.sqrt(),
                12 => -1.0 / n.sqrt(),
                3 | 5 => f64::from(u8::from(a == b)) - 2.0 / n,
                _ => (angle.cos() + angle.sin()) / n.sqrt(),
            };
            (i, j) = (i / p, j / p);
        }
        entry
    }

    #[test]
    fn the_matrix_of_order_12_is_one_of_hadamard() {
        for (i, a) in TWELVE.iter().enumerate() {
            for (j, b) in TWELVE.iter().enumerate() {
                let agree = a.bytes().zip(b.bytes()).filter(|(a, b)| a == b).count();
                assert_eq!(agree, if i == j { 12 } else { 6 }, "{i} {j}");
            }
        }
    }

    #[test]
    fn rows_are_multiplied_with_the_matrix() {
        let mut rng = Rng::new(3);
        for order in ORDERS.into_iter().filter(|order| *order <= 1536) {
            let (x, factors) = (normal(&mut rng, 2 * order), normal(&mut rng, order));
            let rotation = ChannelRotation::with_factors(&factors).unwrap();
            assert_eq!(rotation.order(), order);
            let row = |x: &[f32]| -> Vec<f32> {
                let scaled: Vec<f64> =
                    x.iter().zip(&factors).map(|(x, f)| f64::from(*x) * f64::from(*f)).collect();
                let product =
                    |i| scaled.iter().enumerate().map(|(j, x)| entry(order, LANES, i, j) * x).sum::<f64>();
                (0..order).map(|i| product(i) as f32).collect()
            };
            let expected: Vec<f32> = x.chunks(order).flat_map(row).collect();
            for isa in Isa::available() {
                let mut found = x.clone();
                rotation.apply(isa, &mut found);
                let error = distance(&found, &expected) / norm(&expected).max(1.0);
                assert!(error < 1e-6, "{order} on {isa}: {error}");
            }
        }
    }

    #[test]
    fn angles_and_lengths_stay() {
        let dot = |x: &[f32], y: &[f32]| -> f64 {
            x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
        };
        let mut rng = Rng::new(4);
        for order in ORDERS {
            for rotation in [ChannelRotation::new(order), ChannelRotation::of_weights(order)] {
                let (x, y) = (normal(&mut rng, order), normal(&mut rng, order));
                let turned = |x: &[f32]| {
                    let mut x = x.to_vec();
                    rotation.as_ref().unwrap().apply(Isa::best(), &mut x);
                    x
                };
                let (a, b) = (turned(&x), turned(&y));
                assert!((norm(&a) / norm(&x) - 1.0).abs() < 1e-6, "{order}");
                assert!((dot(&a, &b) - dot(&x, &y)).abs() < 2e-6 * norm(&x) * norm(&y), "{order}");
            }
        }
    }

    #[test]
    fn rotations_of_weights_are_flat_where_a_hadamard_matrix_is_at_hand() {
        for order in [12, 48, 144, 576, 768, 1536, 4096] {
            let mut x = vec![0.0; order];
            x[order / 5] = 1.0;
            ChannelRotation::of_weights(order).unwrap().apply(Isa::best(), &mut x);
            let flat = 1.0 / (order as f32).sqrt();
            assert!(x.iter().all(|v| (v.abs() - flat).abs() < 1e-6), "{order}");
        }
    }

    #[test]
    fn an_outlier_is_spread_over_all_channels() {
        for (order, at_most) in [(4096, 1.01 / 64.0), (1536, 0.0256), (576, 0.05), (896, 0.06), (11008, 0.02)]
        {
            let mut x = vec![0.0; order];
            x[order / 3] = 1.0;
            ChannelRotation::new(order).unwrap().apply(Isa::best(), &mut x);
            let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
            assert!(largest <= at_most, "{order}: {largest}");
        }
    }

    #[test]
    fn orders_with_a_large_prime_are_refused() {
        assert!(ChannelRotation::new(0).is_none());
        assert!(ChannelRotation::new(4 * 263).is_none());
        assert!(ChannelRotation::new(4 * 257).is_some());
    }

    proptest! {
        #[test]
        fn every_instruction_set_gives_the_bits_of_the_scalar_one(
            order in 1usize..600, rows in 1usize..4, seed: u64,
        ) {
            let mut rng = Rng::new(seed);
            let factors = normal(&mut rng, order);
            let Some(rotation) = ChannelRotation::with_factors(&factors) else { return Ok(()) };
            let x = normal(&mut rng, rows * order);
            let bits = |isa: Isa| -> Vec<u32> {
                let mut x = x.clone();
                rotation.apply(isa, &mut x);
                x.iter().map(|v| v.to_bits()).collect()
            };
            let expected = bits(Isa::SCALAR);
            for isa in Isa::available() {
                prop_assert_eq!(&bits(isa), &expected, "{}", isa);
            }
        }
    }
}
