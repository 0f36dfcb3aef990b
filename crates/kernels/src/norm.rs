//! Layer normalisation.

use crate::Isa;
use crate::simd::{Kernel, LANES, Simd};

/// `out = (v - mean(v)) / sqrt(variance(v) + eps) * gamma + beta` for each row `v` of `x + residual`.
///
/// `x`, `residual` and `out` are `[rows, columns]`, `gamma` and `beta` have `columns` values. The variance (over
/// `columns`, not `columns - 1`) is taken around the mean and then corrected by the rounding of that mean (T. Chan and
/// others, "Algorithms for Computing the Sample Variance", The American Statistician 37, 1983), so that an offset common
/// to the row costs only what rounding `x + residual` itself does: the error is at most
/// `1e-6 * (|gamma| * (1 + |normalised| + |v| / sqrt(variance + eps)) + |beta|)`.
#[allow(clippy::too_many_arguments)]
pub fn layer_norm(
    isa: Isa,
    x: &[f32],
    residual: Option<&[f32]>,
    columns: usize,
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    assert!(columns > 0, "a row has at least one column");
    assert!(x.len().is_multiple_of(columns), "`x` is [rows, columns]");
    assert!(residual.is_none_or(|residual| residual.len() == x.len()), "`residual` is as long as `x`");
    assert!(
        gamma.len() == columns && beta.len() == columns,
        "`gamma` and `beta` have a value for each column"
    );
    assert_eq!(x.len(), out.len(), "`out` is as long as `x`");
    out.copy_from_slice(x);
    layer_norm_in_place(isa, out, residual, columns, gamma, beta, eps);
}

/// As [`layer_norm`] of `x + delta`, with the same bits, in the memory of `x`: the residual stream after a half of a block.
#[allow(clippy::too_many_arguments)]
pub fn layer_norm_in_place(
    isa: Isa,
    x: &mut [f32],
    delta: Option<&[f32]>,
    columns: usize,
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
) {
    assert!(columns > 0, "a row has at least one column");
    assert!(x.len().is_multiple_of(columns), "`x` is [rows, columns]");
    assert!(delta.is_none_or(|delta| delta.len() == x.len()), "`delta` is as long as `x`");
    assert!(
        gamma.len() == columns && beta.len() == columns,
        "`gamma` and `beta` have a value for each column"
    );
    isa.run(InPlace { x, delta, gamma, beta, eps });
}

struct InPlace<'a> {
    x: &'a mut [f32],
    delta: Option<&'a [f32]>,
    gamma: &'a [f32],
    beta: &'a [f32],
    eps: f32,
}

impl Kernel for InPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let columns = self.gamma.len();
        for (row, x) in self.x.chunks_exact_mut(columns).enumerate() {
            let sum = match self.delta {
                Some(delta) => add_and_sum(s, x, &delta[row * columns..][..columns]),
                None => sum_of(s, x),
            };
            normalise(s, x, sum, self.gamma, self.beta, self.eps);
        }
    }
}

/// Running sums of a row, so that an addition need not wait for the one before.
const SUMS: usize = 4;

/// The sum of all lanes.
#[inline(always)]
fn fold<S: Simd>(s: S, [a, b, c, d]: [S::F; SUMS]) -> f32 {
    s.sum(s.add(s.add(a, b), s.add(c, d)))
}

/// Values that a step of all sums takes.
const GROUP: usize = SUMS * LANES;

/// The sum of a row.
#[inline(always)]
fn sum_of<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut sums = [s.splat(0.0); SUMS];
    let (groups, rest) = x.as_chunks::<GROUP>();
    for group in groups {
        for (x, sum) in group.as_chunks::<LANES>().0.iter().zip(&mut sums) {
            *sum = s.add(*sum, s.load(x));
        }
    }
    for (x, sum) in rest.chunks(LANES).zip(&mut sums) {
        *sum = s.add(*sum, s.load_some(x, 0.0));
    }
    fold(s, sums)
}

/// `x += delta`, and the sum.
#[inline(always)]
fn add_and_sum<S: Simd>(s: S, x: &mut [f32], delta: &[f32]) -> f32 {
    let mut sums = [s.splat(0.0); SUMS];
    let (groups, rest) = x.as_chunks_mut::<GROUP>();
    let (delta_groups, delta_rest) = delta.as_chunks::<GROUP>();
    for (x, delta) in groups.iter_mut().zip(delta_groups) {
        let vectors = x.as_chunks_mut::<LANES>().0.iter_mut().zip(delta.as_chunks::<LANES>().0);
        for ((x, delta), sum) in vectors.zip(&mut sums) {
            let v = s.add(s.load(x), s.load(delta));
            s.store(v, x);
            *sum = s.add(*sum, v);
        }
    }
    for ((x, delta), sum) in rest.chunks_mut(LANES).zip(delta_rest.chunks(LANES)).zip(&mut sums) {
        let v = s.add(s.load_some(x, 0.0), s.load_some(delta, 0.0));
        s.store_some(v, x);
        *sum = s.add(*sum, v);
    }
    fold(s, sums)
}

#[inline(always)]
fn normalise<S: Simd>(s: S, row: &mut [f32], sum: f32, gamma: &[f32], beta: &[f32], eps: f32) {
    let count = row.len() as f32;
    let mean = sum / count;
    let centre = s.splat(mean);
    let (mut first, mut second) = ([s.splat(0.0); SUMS], [s.splat(0.0); SUMS]);
    let (groups, rest) = row.as_chunks::<GROUP>();
    for group in groups {
        for ((v, first), second) in group.as_chunks::<LANES>().0.iter().zip(&mut first).zip(&mut second) {
            let distance = s.sub(s.load(v), centre);
            *first = s.add(*first, distance);
            *second = s.mul_add(distance, distance, *second);
        }
    }
    for ((v, first), second) in rest.chunks(LANES).zip(&mut first).zip(&mut second) {
        let distance = s.sub(s.load_some(v, mean), centre);
        *first = s.add(*first, distance);
        *second = s.mul_add(distance, distance, *second);
    }
    let shift = fold(s, first) / count;
    let variance = (fold(s, second) / count - shift * shift).max(0.0);
    let (shift, factor) = (s.splat(shift), s.splat(1.0 / (variance + eps).sqrt()));
    let (vectors, rest) = row.as_chunks_mut::<LANES>();
    let ((gammas, gamma_rest), (betas, beta_rest)) = (gamma.as_chunks::<LANES>(), beta.as_chunks::<LANES>());
    for ((v, gamma), beta) in vectors.iter_mut().zip(gammas).zip(betas) {
        let distance = s.sub(s.sub(s.load(v), centre), shift);
        s.store(s.mul_add(s.mul(distance, factor), s.load(gamma), s.load(beta)), v);
    }
    if !rest.is_empty() {
        let distance = s.sub(s.sub(s.load_tail(rest, 0.0), centre), shift);
        let (gamma, beta) = (s.load_tail(gamma_rest, 0.0), s.load_tail(beta_rest, 0.0));
        s.store_tail(s.mul_add(s.mul(distance, factor), gamma, beta), rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zeropoint_core::Rng;

    struct Case {
        columns: usize,
        offset: f64,
        spread: f64,
        eps: f32,
        residual: bool,
    }

    #[test]
    fn layer_norm_keeps_its_error_against_f64() {
        let mut rng = Rng::new(6);
        for columns in [1, 2, 15, 16, 17, 100, 768, 4096] {
            for (offset, spread) in [(0.0, 1.0), (3.0, 0.1), (-1000.0, 1.0), (0.0, 1e-4), (0.0, 1e4)] {
                for (eps, residual) in [(1e-12, false), (1e-5, true)] {
                    check(&mut rng, &Case { columns, offset, spread, eps, residual });
                }
            }
        }
    }

    fn check(rng: &mut Rng, case: &Case) {
        let &Case { columns, offset, spread, eps, residual } = case;
        let rows = 3;
        let mut normal = |len: usize, offset: f64, spread: f64| {
            (0..len).map(|_| (offset + spread * rng.normal()) as f32).collect::<Vec<f32>>()
        };
        let x = normal(rows * columns, offset, spread);
        let y = residual.then(|| normal(rows * columns, 0.0, spread));
        let (gamma, beta) = (normal(columns, 1.0, 0.3), normal(columns, 0.0, 0.3));
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            let mut out = vec![f32::NAN; x.len()];
            layer_norm(isa, &x, y.as_deref(), columns, &gamma, &beta, eps, &mut out);
            for (r, out) in out.chunks_exact(columns).enumerate() {
                let at = |c: usize| {
                    let i = r * columns + c;
                    f64::from(x[i]) + y.as_ref().map_or(0.0, |y| f64::from(y[i]))
                };
                let mean = (0..columns).map(at).sum::<f64>() / columns as f64;
                let variance = (0..columns).map(|c| (at(c) - mean).powi(2)).sum::<f64>() / columns as f64;
                let factor = 1.0 / (variance + f64::from(eps)).sqrt();
                for (c, &out) in out.iter().enumerate() {
                    let (g, b) = (f64::from(gamma[c]), f64::from(beta[c]));
                    let normalised = (at(c) - mean) * factor;
                    let bound = 1e-6 * (g.abs() * (1.0 + normalised.abs() + at(c).abs() * factor) + b.abs());
                    let error = (f64::from(out) - (normalised * g + b)).abs();
                    assert!(
                        error <= bound,
                        "{isa}: {columns} columns, {offset} +- {spread}: {error:e} > {bound:e}"
                    );
                }
            }
            assert_eq!(first.get_or_insert_with(|| out.clone()), &out, "{isa} has the bits of scalar");
        }
    }
}
