//! Layer normalisation and root mean square normalisation.

use crate::Isa;
use crate::simd::{Kernel, LANES, Simd};

/// `(v - mean(v)) / sqrt(variance(v) + eps) * gamma + beta` in the place of each row `v` of `x` (Ba and others, "Layer
/// Normalization", 2016).
///
/// `x` is `[rows, columns]`, `gamma` and `beta` have `columns` values. The variance (over `columns`, not `columns - 1`) is
/// taken around the mean and then corrected by the rounding of that mean (T. Chan and others, "Algorithms for Computing
/// the Sample Variance", The American Statistician 37, 1983), so that an offset common to the row costs little: the error
/// is at most `1e-6 * (|gamma| * (1 + |normalised| + |v| / sqrt(variance + eps)) + |beta|)`.
pub fn layer_norm(isa: Isa, x: &mut [f32], gamma: &[f32], beta: &[f32], eps: f32) {
    assert!(!gamma.is_empty(), "a row has at least one column");
    assert!(x.len().is_multiple_of(gamma.len()), "`x` is [rows, columns]");
    assert_eq!(beta.len(), gamma.len(), "`gamma` and `beta` have a value for each column");
    isa.run(Layer { x, gamma, beta, eps });
}

/// `v / sqrt(mean(v^2) + eps) * gamma` in the place of each row `v` of `x` (Zhang and Sennrich, "Root Mean Square Layer
/// Normalization", 2019, equation 4, with `eps` as decoders add it).
///
/// `x` is `[rows, columns]`, `gamma` has `columns` values. The relative error of a value is at most `1e-6` where `mean(v^2)` is
/// within f32's normal numbers.
pub fn rms_norm(isa: Isa, x: &mut [f32], gamma: &[f32], eps: f32) {
    assert!(!gamma.is_empty(), "a row has at least one column");
    assert!(x.len().is_multiple_of(gamma.len()), "`x` is [rows, columns]");
    isa.run(Rms { x, gamma, eps });
}

struct Layer<'a> {
    x: &'a mut [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
    eps: f32,
}

impl Kernel for Layer<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for x in self.x.chunks_exact_mut(self.gamma.len()) {
            let sum = sum_of(s, x);
            normalise(s, x, sum, self.gamma, self.beta, self.eps);
        }
    }
}

struct Rms<'a> {
    x: &'a mut [f32],
    gamma: &'a [f32],
    eps: f32,
}

impl Kernel for Rms<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let columns = self.gamma.len();
        for x in self.x.chunks_exact_mut(columns) {
            let mean = sum_of_squares(s, x) / columns as f32;
            let factor = s.splat(1.0 / (mean + self.eps).sqrt());
            for (x, gamma) in x.chunks_mut(LANES).zip(self.gamma.chunks(LANES)) {
                let v = s.mul(s.load_some(x, 0.0), factor);
                s.store_some(s.mul(v, s.load_some(gamma, 0.0)), x);
            }
        }
    }
}

/// The sum of a row's squares.
#[inline(always)]
fn sum_of_squares<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut sums = [s.splat(0.0); SUMS];
    let (groups, rest) = x.as_chunks::<GROUP>();
    for group in groups {
        for (x, sum) in group.as_chunks::<LANES>().0.iter().zip(&mut sums) {
            let v = s.load(x);
            *sum = s.mul_add(v, v, *sum);
        }
    }
    for (x, sum) in rest.chunks(LANES).zip(&mut sums) {
        let v = s.load_some(x, 0.0);
        *sum = s.mul_add(v, v, *sum);
    }
    fold(s, sums)
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

    const ROWS: usize = 3;
    const WIDTHS: [usize; 8] = [1, 2, 15, 16, 17, 100, 768, 4096];

    struct Case {
        columns: usize,
        offset: f64,
        spread: f64,
        eps: f32,
    }

    fn cases() -> impl Iterator<Item = Case> {
        WIDTHS.into_iter().flat_map(|columns| {
            [(0.0, 1.0), (3.0, 0.1), (-1000.0, 1.0), (0.0, 1e-4), (0.0, 1e4)].into_iter().flat_map(
                move |(offset, spread)| [1e-12, 1e-5].map(|eps| Case { columns, offset, spread, eps }),
            )
        })
    }

    fn normal(rng: &mut Rng, len: usize, offset: f64, spread: f64) -> Vec<f32> {
        (0..len).map(|_| (offset + spread * rng.normal()) as f32).collect()
    }

    /// Checks that all instruction sets agree, and every value of `norm` against `exact`: of a row and a column the right
    /// value and its bound.
    fn check(
        case: &Case,
        x: &[f32],
        norm: impl Fn(Isa, &mut [f32]),
        exact: impl Fn(&[f32], usize) -> (f64, f64),
    ) {
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            let mut out = x.to_vec();
            norm(isa, &mut out);
            for (row, out) in x.chunks_exact(case.columns).zip(out.chunks_exact(case.columns)) {
                for (c, &out) in out.iter().enumerate() {
                    let (exact, bound) = exact(row, c);
                    let error = (f64::from(out) - exact).abs();
                    assert!(
                        error <= bound,
                        "{isa}: {} columns, {} +- {}: {error:e} > {bound:e}",
                        case.columns,
                        case.offset,
                        case.spread
                    );
                }
            }
            assert_eq!(first.get_or_insert_with(|| out.clone()), &out, "{isa} has the bits of scalar");
        }
    }

    #[test]
    fn layer_norm_keeps_its_error_against_f64() {
        let mut rng = Rng::new(6);
        for case in cases() {
            let Case { columns, offset, spread, eps } = case;
            let x = normal(&mut rng, ROWS * columns, offset, spread);
            let (gamma, beta) = (normal(&mut rng, columns, 1.0, 0.3), normal(&mut rng, columns, 0.0, 0.3));
            check(
                &case,
                &x,
                |isa, x| layer_norm(isa, x, &gamma, &beta, eps),
                |row, c| {
                    let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / columns as f64;
                    let variance =
                        row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / columns as f64;
                    let factor = 1.0 / (variance + f64::from(eps)).sqrt();
                    let (v, g, b) = (f64::from(row[c]), f64::from(gamma[c]), f64::from(beta[c]));
                    let normalised = (v - mean) * factor;
                    let bound = 1e-6 * (g.abs() * (1.0 + normalised.abs() + v.abs() * factor) + b.abs());
                    (normalised * g + b, bound)
                },
            );
        }
    }

    #[test]
    fn rms_norm_keeps_its_error_against_f64() {
        let mut rng = Rng::new(7);
        for case in cases() {
            let Case { columns, offset, spread, eps } = case;
            let x = normal(&mut rng, ROWS * columns, offset, spread);
            let gamma = normal(&mut rng, columns, 1.0, 0.3);
            check(
                &case,
                &x,
                |isa, x| rms_norm(isa, x, &gamma, eps),
                |row, c| {
                    let mean = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / columns as f64;
                    let exact = f64::from(row[c]) / (mean + f64::from(eps)).sqrt() * f64::from(gamma[c]);
                    (exact, 1e-6 * exact.abs())
                },
            );
        }
    }

    #[test]
    fn what_is_not_finite_stays_in_its_row() {
        for isa in Isa::available() {
            for bad in [f32::NAN, f32::INFINITY] {
                let gamma = [1.0; 20];
                let mut x = vec![0.5; 60];
                x[23] = bad;
                let mut layer = x.clone();
                rms_norm(isa, &mut x, &gamma, 1e-6);
                layer_norm(isa, &mut layer, &gamma, &[0.0; 20], 1e-6);
                for out in [x, layer] {
                    let finite: Vec<bool> =
                        out.chunks(20).map(|row| row.iter().all(|v| v.is_finite())).collect();
                    assert_eq!(finite, [true, false, true], "{isa}");
                }
            }
        }
    }
}
