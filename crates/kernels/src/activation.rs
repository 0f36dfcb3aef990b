//! Activation functions, from exponentials of our own and tables.
//!
//! The coefficients were fitted for this file: least squares over Chebyshev nodes, reweighted until the relative error
//! was level, then rounded to f32.

mod gelu;

pub(crate) use gelu::{GeluErf, GeluTanh};

use crate::simd::{Kernel, LANES, Simd};
use crate::{Isa, RowMagnitudes};

/// The function after a Linear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// The identity.
    #[default]
    None,
    /// `max(x, 0)`, exact.
    Relu,
    /// `x/2 * (1 + erf(x / sqrt 2))`: the Gaussian error linear unit. Error: `5e-7` relative for `x > -3`, below which the
    /// result is small, `5e-9` absolute.
    GeluErf,
    /// `x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`: its approximation by a tanh (D. Hendrycks, K. Gimpel,
    /// "Gaussian Error Linear Units", 2016). Error: `5e-7` relative for `x > -3`, below which the result is small, `5e-9` absolute.
    GeluTanh,
}

/// Applies `activation` to each value; NaN stays NaN.
pub fn activate(isa: Isa, x: &mut [f32], activation: Activation) {
    match activation {
        Activation::None => {}
        Activation::Relu => isa.run(InPlace { x, map: Relu }),
        Activation::GeluErf => isa.run(InPlace { x, map: GeluErf }),
        Activation::GeluTanh => isa.run(InPlace { x, map: GeluTanh }),
    }
}

/// Replaces each value by its hyperbolic tangent; the error is `1e-6` relative. NaN stays NaN.
pub fn tanh_in_place(isa: Isa, x: &mut [f32]) {
    isa.run(InPlace { x, map: Tanh });
}

/// Replaces each value by `cap * tanh(x / cap)` for a positive and finite `cap`; the error is `2e-6` relative. NaN stays NaN.
pub fn soft_cap_in_place(isa: Isa, x: &mut [f32], cap: f32) {
    assert!(cap > 0.0 && cap.is_finite(), "`cap` is positive and finite");
    isa.run(InPlace { x, map: SoftCap { cap } });
}

/// Replaces each value by `1 / (1 + exp(-x))`; the error is `1e-6` relative for `x > -87`, below which the result is 0.
/// NaN stays NaN.
pub fn sigmoid_in_place(isa: Isa, x: &mut [f32]) {
    isa.run(InPlace { x, map: Sigmoid });
}

/// Replaces each value, none above 0, by `exp(x)`: the error is `1e-7` relative, and what is below `2^-126` becomes 0. NaN
/// stays NaN.
pub fn exp_nonpositive_in_place(isa: Isa, x: &mut [f32]) {
    isa.run(InPlace { x, map: ExpNonpositive });
}

/// Replaces each value by `x / (1 + exp(-beta * x))`: `beta` 1 is `SiLU`, 1.702 the approximation of GELU that CLIP uses
/// (D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units", 2016). `beta` is between 1 and 2; the error is `2e-5`
/// relative for `beta * x > -86` and `1e-35` absolute. NaN stays NaN.
pub fn swish_in_place(isa: Isa, x: &mut [f32], beta: f32) {
    assert!((1.0..=2.0).contains(&beta), "`beta` is between 1 and 2");
    isa.run(InPlace { x, map: Swish { beta } });
}

/// `out[i] = swish(gate[i]) * up[i]`, `swish` as [`swish_in_place`] has it, and the largest magnitude of `out`, as
/// [`quantize_measured`](crate::quantize_measured) reads it for one row: what a gated feed-forward half does between its products.
pub fn swish_gate(
    isa: Isa,
    gate: &[f32],
    up: &[f32],
    beta: f32,
    out: &mut [f32],
    magnitude: &mut RowMagnitudes,
) {
    assert!((1.0..=2.0).contains(&beta), "`beta` is between 1 and 2");
    assert!(gate.len() == out.len() && up.len() == out.len(), "`gate`, `up` and `out` are equally long");
    isa.run(Gate { x: gate, up, map: Swish { beta }, out, magnitude: &mut magnitude.begin(1)[0] });
}

/// `x[i] += y[i]`.
pub fn add_in_place(isa: Isa, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "`x` and `y` are equally long");
    isa.run(Add { x, y });
}

/// A function of one value, on sixteen at once.
pub(crate) trait Map: Copy {
    fn apply<S: Simd>(self, s: S, x: S::F) -> S::F;
}

#[derive(Clone, Copy)]
pub(crate) struct Identity;
#[derive(Clone, Copy)]
pub(crate) struct Relu;
#[derive(Clone, Copy)]
struct Tanh;
#[derive(Clone, Copy)]
struct Sigmoid;
#[derive(Clone, Copy)]
struct ExpNonpositive;
#[derive(Clone, Copy)]
struct Swish {
    beta: f32,
}
#[derive(Clone, Copy)]
struct SoftCap {
    cap: f32,
}

impl Map for Identity {
    #[inline(always)]
    fn apply<S: Simd>(self, _s: S, x: S::F) -> S::F {
        x
    }
}

impl Map for Relu {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::F) -> S::F {
        s.max(s.splat(0.0), x)
    }
}

impl Map for Tanh {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::F) -> S::F {
        tanh(s, x)
    }
}

impl Map for SoftCap {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::F) -> S::F {
        s.mul(s.splat(self.cap), tanh(s, s.mul(x, s.splat(1.0 / self.cap))))
    }
}

/// `tanh |x| = -m / (2 + m)` with `m = exp(-2 |x|) - 1`.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let magnitude = s.min(s.abs(x), s.splat(16.0));
    let Parts { power, fraction } = exp_parts(s, s.mul(magnitude, s.splat(-2.0)));
    let m = s.mul_add(power, fraction, s.sub(power, s.splat(1.0)));
    let tanh = s.div(m, s.add(m, s.splat(2.0)));
    // NaN has left `magnitude`, which took 16 instead; adding 0 * x brings it back, and only it: infinities first.
    let finite = s.max(s.splat(-16.0), s.min(s.splat(16.0), x));
    s.mul_add(finite, s.splat(0.0), s.copysign(tanh, x))
}

impl Map for Sigmoid {
    /// `exp(-|x|) / (1 + exp(-|x|))` below zero and `1 / (1 + exp(-|x|))` above: nothing cancels.
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::F) -> S::F {
        let (zero, one) = (s.splat(0.0), s.splat(1.0));
        let power = exp_nonpositive(s, s.sub(zero, s.abs(x)));
        s.div(s.select_less(x, zero, power, one), s.add(one, power))
    }
}

impl Map for ExpNonpositive {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::F) -> S::F {
        exp_nonpositive(s, x)
    }
}

impl Map for Swish {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::F) -> S::F {
        // From here on the result is 0; negative infinity times 0 would be NaN.
        let x = s.max(s.splat(-128.0), x);
        s.mul(x, Sigmoid.apply(s, s.mul(x, s.splat(self.beta))))
    }
}

/// `exp(x) = power * (1 + fraction)`.
struct Parts<F> {
    power: F,
    fraction: F,
}

/// For `x` in `[-87.3, 88]`.
#[inline(always)]
fn exp_parts<S: Simd>(s: S, x: S::F) -> Parts<S::F> {
    /// `(exp(r) - 1 - r) / r^2` for `|r| <= ln(2) / 2`; the relative error of `exp` is 3.1e-9.
    const EXP: [f32; 5] = [0.499_999_94, 0.166_665_21, 0.041_668_39, 0.008_368_745, 0.001_381_454];
    // ln 2 as a sum of two f32, the first with few enough bits that its multiples by n are exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -0.000_212_194_44;
    let n = s.to_i32(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let steps = s.to_f32(n);
    let r = s.mul_add(steps, s.splat(-LN_2_HIGH), x);
    let r = s.mul_add(steps, s.splat(-LN_2_LOW), r);
    let fraction = s.mul_add(s.mul(r, r), polynomial(s, r, &EXP), r);
    Parts { power: s.exp2_i32(n), fraction }
}

/// `exp(x)` for `x <= 0` (a little above is fine): relative error `1e-7`; results below `2^-126` become 0; NaN stays.
#[inline(always)]
pub(crate) fn exp_nonpositive<S: Simd>(s: S, x: S::F) -> S::F {
    /// `ln(2^-126)`, towards zero.
    const LOWEST: f32 = -87.336_54;
    let Parts { power, fraction } = exp_parts(s, s.max(s.splat(LOWEST), x));
    s.select_less(x, s.splat(LOWEST), s.splat(0.0), s.mul_add(power, fraction, power))
}

/// `2^x` for `x <= 0` (a little above is fine): relative error `2e-7`; results below `2^-126` become 0; NaN stays.
#[inline(always)]
pub(crate) fn exp2_nonpositive<S: Simd>(s: S, x: S::F) -> S::F {
    /// `(2^r - 1) / r` for `|r| <= 1/2`; the relative error of `2^r` is 1.1e-7.
    #[expect(clippy::approx_constant, reason = "fitted, near the first of the series")]
    const EXP2: [f32; 5] = [0.693_147, 0.240_222_42, 0.055_507_336, 0.009_671_513, 0.001_326_472_6];
    const LOWEST: f32 = -126.0;
    let within = s.max(s.splat(LOWEST), x);
    let n = s.round(within);
    let r = s.sub(within, n);
    let fraction = s.mul_add(polynomial(s, r, &EXP2), r, s.splat(1.0));
    s.select_less(x, s.splat(LOWEST), s.splat(0.0), s.scale_by_exp2(fraction, n))
}

/// Horner's rule, lowest coefficient first.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, x: S::F, coefficients: &[f32; N]) -> S::F {
    let mut sum = s.splat(coefficients[N - 1]);
    let mut i = N - 1;
    while i > 0 {
        i -= 1;
        sum = s.mul_add(sum, x, s.splat(coefficients[i]));
    }
    sum
}

struct InPlace<'a, M> {
    x: &'a mut [f32],
    map: M,
}

impl<M: Map> Kernel for InPlace<'_, M> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (vectors, tail) = self.x.as_chunks_mut::<LANES>();
        for x in vectors {
            s.store(self.map.apply(s, s.load(x)), x);
        }
        s.store_tail(self.map.apply(s, s.load_tail(tail, 0.0)), tail);
    }
}

struct Gate<'a, M> {
    x: &'a [f32],
    up: &'a [f32],
    map: M,
    out: &'a mut [f32],
    magnitude: &'a mut [i32; LANES],
}

impl<M: Map> Kernel for Gate<'_, M> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut magnitude = s.splat_i32(0);
        let inputs = self.x.chunks(LANES).zip(self.up.chunks(LANES));
        for ((x, up), out) in inputs.zip(self.out.chunks_mut(LANES)) {
            let product = s.mul(self.map.apply(s, s.load_some(x, 0.0)), s.load_some(up, 0.0));
            magnitude = s.max_i32(magnitude, s.magnitude_bits(product));
            s.store_some(product, out);
        }
        s.store_i32(magnitude, self.magnitude);
    }
}

struct Add<'a> {
    x: &'a mut [f32],
    y: &'a [f32],
}

impl Kernel for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, y) in self.x.chunks_mut(LANES).zip(self.y.chunks(LANES)) {
            s.store_some(s.add(s.load_some(x, 0.0), s.load_some(y, 0.0)), x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{quantize_measured, quantize_tokens};
    use proptest::prelude::*;
    use zeropoint_core::{QuantParams, Symmetry};

    /// The upper tail of the normal distribution in f64: a series near zero, Lentz's continued fraction beyond.
    fn normal_tail(x: f64) -> f64 {
        let density = (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
        if x < 3.0 {
            let (mut term, mut sum, mut k) = (x, x, 1.0);
            while term.abs() > 1e-18 {
                k += 2.0;
                term *= x * x / k;
                sum += term;
            }
            0.5 - density * sum
        } else {
            let fraction = (1..=200).rev().fold(x, |below, k| x + f64::from(k) / below);
            density / fraction
        }
    }

    fn gelu_erf(x: f64) -> f64 {
        x.max(0.0) - x.abs() * normal_tail(x.abs())
    }

    fn gelu_tanh(x: f64) -> f64 {
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
        // x * sigmoid(2u), without the cancellation of 1 + tanh.
        x / (1.0 + (-2.0 * u).exp())
    }

    /// All magnitudes, dense where the functions bend.
    fn inputs() -> Vec<f32> {
        let dense = (-30_000..=30_000).map(|i| i as f32 * 0.000_7);
        let wide = (0..2_000).map(|i| 10f32.powf(i as f32 * 0.038 - 38.0));
        dense.chain(wide.clone()).chain(wide.map(|x| -x)).collect()
    }

    fn each_value(f: impl Fn(Isa, &mut [f32]), check: impl Fn(f32, f32) -> bool) {
        let x = inputs();
        let mut expected: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            let mut y = x.clone();
            f(isa, &mut y);
            for (&x, &y) in x.iter().zip(&y) {
                assert!(check(x, y), "{isa}: f({x:e}) = {y:e}");
            }
            let expected = expected.get_or_insert_with(|| y.clone());
            assert!(
                y.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits()),
                "{isa} has the bits of scalar"
            );
        }
    }

    #[test]
    fn gelu_by_erf_keeps_its_error() {
        each_value(
            |isa, x| activate(isa, x, Activation::GeluErf),
            |x, y| {
                let exact = gelu_erf(f64::from(x));
                let error = (f64::from(y) - exact).abs();
                error <= if x > -3.0 { 5e-7 * exact.abs() + 1e-44 } else { 5e-9 }
            },
        );
    }

    #[test]
    fn gelu_by_tanh_keeps_its_error() {
        each_value(
            |isa, x| activate(isa, x, Activation::GeluTanh),
            |x, y| {
                let exact = gelu_tanh(f64::from(x));
                let error = (f64::from(y) - exact).abs();
                error <= if x > -3.0 { 5e-7 * exact.abs() + 1e-44 } else { 5e-9 }
            },
        );
    }

    #[test]
    fn a_soft_cap_keeps_its_error() {
        for cap in [0.5, 30.0] {
            each_value(
                |isa, x| soft_cap_in_place(isa, x, cap),
                |x, y| {
                    let cap = f64::from(cap);
                    let exact = cap * (f64::from(x) / cap).tanh();
                    (f64::from(y) - exact).abs() <= 2e-6 * exact.abs() + 1e-44
                },
            );
        }
    }

    #[test]
    fn tanh_keeps_its_error() {
        each_value(tanh_in_place, |x, y| {
            let exact = f64::from(x).tanh();
            (f64::from(y) - exact).abs() <= 1e-6 * exact.abs()
        });
    }

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    #[test]
    fn sigmoid_keeps_its_error() {
        each_value(sigmoid_in_place, |x, y| {
            let exact = sigmoid(f64::from(x));
            (f64::from(y) - exact).abs() <= if x > -87.0 { 1e-6 * exact } else { 2e-38 }
        });
    }

    #[test]
    fn exp_below_zero_keeps_its_error() {
        let negative = |isa: Isa, x: &mut [f32]| {
            for x in x.iter_mut() {
                *x = -x.abs();
            }
            exp_nonpositive_in_place(isa, x);
        };
        each_value(negative, |x, y| {
            let exact = (-f64::from(x).abs()).exp();
            (f64::from(y) - exact).abs() <= 1e-7 * exact + if x.abs() > 87.0 { 2e-38 } else { 0.0 }
        });
    }

    #[test]
    fn swish_keeps_its_error() {
        for beta in [1.0f32, 1.702] {
            each_value(
                |isa, x| swish_in_place(isa, x, beta),
                |x, y| {
                    let exact = f64::from(x) * sigmoid(f64::from(beta) * f64::from(x));
                    let relative = if beta * x > -86.0 { 2e-5 } else { 0.0 };
                    (f64::from(y) - exact).abs() <= relative * exact.abs() + 1e-35
                },
            );
        }
    }

    #[test]
    fn the_ends_of_the_line_are_limits_and_nan_stays() {
        let x = [f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0, f32::NAN];
        for isa in Isa::available() {
            for activation in [Activation::Relu, Activation::GeluErf, Activation::GeluTanh] {
                let mut y = x;
                activate(isa, &mut y, activation);
                let limits = [f32::INFINITY, 0.0, f32::MAX, 0.0, 0.0];
                for (y, limit) in y.iter().zip(limits) {
                    assert!(*y == limit || (y - limit).abs() <= 5e-9, "{isa}: {activation:?}: {y}");
                }
                assert!(y[5].is_nan(), "{isa}: {activation:?}");
            }
            for beta in [1.0, 1.702] {
                let mut y = x;
                swish_in_place(isa, &mut y, beta);
                assert_eq!(y[..5], [f32::INFINITY, 0.0, f32::MAX, 0.0, 0.0], "{isa}: swish {beta}");
                assert!(y[5].is_nan(), "{isa}: swish {beta}");
            }
            let mut y = x;
            sigmoid_in_place(isa, &mut y);
            assert_eq!(y[..5], [1.0, 0.0, 1.0, 0.0, 0.5], "{isa}");
            assert!(y[5].is_nan(), "{isa}");
            let mut y = [0.0, f32::NEG_INFINITY, f32::MIN, f32::NAN];
            exp_nonpositive_in_place(isa, &mut y);
            assert_eq!(y[..3], [1.0, 0.0, 0.0], "{isa}");
            assert!(y[3].is_nan(), "{isa}");
            let mut y = x;
            tanh_in_place(isa, &mut y);
            assert_eq!(y[..5], [1.0, -1.0, 1.0, -1.0, 0.0], "{isa}");
            assert!(y[5].is_nan(), "{isa}");
        }
    }

    proptest! {
        #[test]
        fn a_gate_has_the_bits_of_its_steps(
            columns in prop_oneof![1usize..40, 120usize..140], special in prop::option::of(any::<f32>()), seed: u64,
        ) {
            let mut rng = zeropoint_core::Rng::new(seed);
            let mut normal = || -> Vec<f32> { (0..columns).map(|_| 8.0 * rng.normal() as f32).collect() };
            let (mut gate, up) = (normal(), normal());
            if let Some(special) = special {
                gate[seed as usize % columns] = special;
            }
            for isa in Isa::available() {
                let mut steps = gate.clone();
                swish_in_place(isa, &mut steps, 1.702);
                steps.iter_mut().zip(&up).for_each(|(gate, up)| *gate *= up);
                let (mut out, mut found) = (vec![0.0; columns], RowMagnitudes::default());
                swish_gate(isa, &gate, &up, 1.702, &mut out, &mut found);
                let same = out.iter().zip(&steps).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()));
                prop_assert!(same, "{isa}: {out:?} {steps:?}");
                // Quantised by what was found it is as quantised anew.
                let empty = QuantParams { scale: 1.0, zero_point: 0 };
                let [mut measured, mut anew] = [(vec![0i8; columns], [empty]), (vec![0i8; columns], [empty])];
                let first = quantize_measured(isa, &out, columns, &found, &mut measured.0, &mut measured.1);
                let second = quantize_tokens(isa, &out, columns, Symmetry::Symmetric, &mut anew.0, &mut anew.1);
                prop_assert_eq!(first, second);
                prop_assert_eq!(measured, anew);
            }
        }

        #[test]
        fn lengths_do_not_matter(x in prop::collection::vec(-4f32..4.0, 0..70)) {
            for isa in Isa::available() {
                let mut whole = x.clone();
                activate(isa, &mut whole, Activation::GeluErf);
                let mut alone = x.clone();
                alone.chunks_mut(1).for_each(|x| activate(isa, x, Activation::GeluErf));
                prop_assert_eq!(&whole, &alone);
                let mut sum = x.clone();
                add_in_place(isa, &mut sum, &whole);
                prop_assert!(sum.iter().zip(x.iter().zip(&whole)).all(|(s, (x, y))| *s == x + y));
            }
        }
    }
}
