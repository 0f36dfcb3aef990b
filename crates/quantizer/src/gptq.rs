//! GPTQ: weights rounded column by column, the error of each made good by the columns that follow (Frantar et al. 2022, "GPTQ:
//! Accurate Post-Training Quantization for Generative Pre-trained Transformers").

use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{Mat, Par, Side};
use rayon::prelude::*;
use thiserror::Error;
use zeropoint_core::WeightScheme;
use zeropoint_kernels::{Isa, ROUNDED_ROWS, RoundingGrid, round_and_compensate};
use zeropoint_observer::WeightObserver;

use crate::weights::{check_weight, chosen_scales, group_of, rounding_error, scales_of};
use crate::{QuantizedWeight, WeightError};

/// How often a factorisation that fails is tried again, with ten times the damping each time.
const ATTEMPTS: i32 = 8;

/// What the inputs of a Linear say of its columns: in which order they are rounded, and how the error of one is made good by
/// others.
#[derive(Debug, Clone)]
pub struct Curvature {
    /// Columns in the order in which they are rounded: those of the largest second moment first (act-order).
    order: Vec<usize>,
    /// The lower triangle of the transpose of the upper Cholesky factor of the inverse second moments, in that order.
    lower: Vec<f32>,
    /// What was added to the diagonal, as a fraction of its mean.
    pub damping: f64,
    /// Columns whose inputs were always 0.
    pub dead: usize,
}

/// Why second moments tell nothing.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum CurvatureError {
    /// They are not numbers.
    #[error("the second moments of its inputs hold NaN or infinity")]
    NotFinite,
    /// No damping makes them positive definite.
    #[error(
        "the second moments of its inputs have no Cholesky factor, with {damping} of their mean diagonal added either"
    )]
    NotPositive {
        /// The last that was tried.
        damping: f64,
    },
}

impl Curvature {
    /// Of the sum of `x x^T` over rows of inputs, `[inputs, inputs]`, of which the lower triangle is read. `damping` times the
    /// mean of its diagonal is added there, and ten times that each time the factorisation fails.
    pub fn new(moments: &[f32], inputs: usize, damping: f64) -> Result<Self, CurvatureError> {
        assert_eq!(moments.len(), inputs * inputs, "`moments` is [inputs, inputs]");
        let at = |i: usize, j: usize| f64::from(moments[i.max(j) * inputs + i.min(j)]);
        let diagonal: Vec<f64> = (0..inputs).map(|i| at(i, i)).collect();
        if (0..inputs).any(|i| (0..=i).any(|j| !at(i, j).is_finite())) {
            return Err(CurvatureError::NotFinite);
        }
        let dead = diagonal.iter().filter(|square| **square == 0.0).count();
        let mean = diagonal.iter().sum::<f64>() / inputs as f64;
        let mut order: Vec<usize> = (0..inputs).collect();
        order.sort_by(|&i, &j| diagonal[j].total_cmp(&diagonal[i]).then(i.cmp(&j)));
        let mut damping = damping;
        for _ in 0..ATTEMPTS {
            // A column that is never used is alone, and rounded to nearest.
            let entry = |i: usize, j: usize| match (i == j, at(i, i) == 0.0) {
                (true, true) => mean.max(f64::MIN_POSITIVE) * (1.0 + damping),
                (true, false) => at(i, i) + damping * mean,
                (false, _) => at(i, j),
            };
            if let Some(lower) = factor(&order, entry) {
                return Ok(Self { order, lower, damping, dead });
            }
            damping = (damping * 10.0).max(1e-6);
        }
        Err(CurvatureError::NotPositive { damping })
    }
}

/// The triangle of [`Curvature`]. With `J` reversing the order, `J H J = L L^T` gives the inverse as `U^T U` with the upper triangle
/// `U = J L^-1 J`: one factorisation and one inverse of a triangle.
fn factor(order: &[usize], entry: impl Fn(usize, usize) -> f64) -> Option<Vec<f32>> {
    let last = order.len() - 1;
    let reversed = Mat::from_fn(order.len(), order.len(), |i, j| entry(order[last - i], order[last - j]));
    let cholesky = reversed.llt(Side::Lower).ok()?;
    let mut inverse = Mat::<f64>::zeros(order.len(), order.len());
    invert_lower_triangular(inverse.as_mut(), cholesky.L(), Par::Seq);
    let rows = (0..order.len()).flat_map(|j| (0..=j).map(move |i| (i, j)));
    let lower: Vec<f32> = rows.map(|(i, j)| inverse[(last - i, last - j)] as f32).collect();
    lower.iter().all(|value| value.is_finite()).then_some(lower)
}

/// Rounds `weight`, `[outputs, inputs]`, symmetric under scales chosen by `observer`, each column's error made good by the
/// columns behind it. Rows are worked on in parallel; the result does not depend on the number of threads.
pub fn quantize_weight_gptq(
    isa: Isa,
    weight: &[f32],
    outputs: usize,
    inputs: usize,
    (scheme, observer): (WeightScheme, WeightObserver),
    curvature: &Curvature,
) -> Result<QuantizedWeight, WeightError> {
    check_weight(isa, weight, outputs, inputs)?;
    assert_eq!(curvature.order.len(), inputs, "the curvature is of the same inputs");
    let group = group_of(inputs, scheme)?;
    // Those of the weight as it was: columns of a group are not rounded one after the other.
    let scales = chosen_scales(weight, group, scheme, observer)?;
    let groups: Vec<u32> = match inputs / group {
        1 => Vec::new(),
        _ => curvature.order.iter().map(|column| (column / group) as u32).collect(),
    };
    let mut values = vec![0i8; weight.len()];
    let noise: Vec<(f64, f64)> = values
        .par_chunks_mut(inputs * ROUNDED_ROWS)
        .zip(weight.par_chunks(inputs * ROUNDED_ROWS))
        .enumerate()
        .map_init(
            || (vec![[0f32; ROUNDED_ROWS]; inputs], vec![[0i8; ROUNDED_ROWS]; inputs], vec![0f32; inputs]),
            |(columns, rounded, real), (at, (values, weight))| {
                let rows = weight.len() / inputs;
                let of_lane =
                    |lane: usize| scales_of(&scales, inputs / group, at * ROUNDED_ROWS + lane.min(rows - 1));
                let by_group: Vec<[f32; ROUNDED_ROWS]> = (0..inputs / group)
                    .map(|group| std::array::from_fn(|lane| of_lane(lane)[group]))
                    .collect();
                for (column, at) in columns.iter_mut().zip(&curvature.order) {
                    *column = std::array::from_fn(|lane| weight[lane.min(rows - 1) * inputs + at]);
                }
                let grid = RoundingGrid { bits: scheme.bits, scales: &by_group, groups: &groups };
                round_and_compensate(isa, columns, &curvature.lower, grid, rounded);
                for (lane, values) in values.chunks_exact_mut(inputs).enumerate() {
                    for (rounded, at) in rounded.iter().zip(&curvature.order) {
                        values[*at] = rounded[lane];
                    }
                }
                let rows = values.chunks_exact(inputs).zip(weight.chunks_exact(inputs)).enumerate();
                rows.fold((0.0, 0.0), |sums, (lane, (values, weight))| {
                    let (signal, noise) = rounding_error(isa, weight, values, of_lane(lane), real);
                    (sums.0 + signal, sums.1 + noise)
                })
            },
        )
        .collect();
    let (signal, noise) = noise.iter().fold((0.0, 0.0), |(s, n), part| (s + part.0, n + part.1));
    Ok(QuantizedWeight { values, scales, outputs, inputs, group, signal, noise })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize_weight;
    use zeropoint_core::{Granularity, Rng, WeightBits};

    /// Inputs whose channels are correlated, `[rows, inputs]`, and their second moments.
    fn inputs(rng: &mut Rng, rows: usize, inputs: usize) -> (Vec<f32>, Vec<f32>) {
        let mut x = Vec::new();
        for _ in 0..rows {
            let common = rng.normal() as f32;
            x.extend((0..inputs).map(|i| common + rng.normal() as f32 * (0.2 + i as f32 / inputs as f32)));
        }
        let mut moments = vec![0f32; inputs * inputs];
        for row in x.chunks_exact(inputs) {
            for i in 0..inputs {
                for j in 0..inputs {
                    moments[i * inputs + j] += row[i] * row[j];
                }
            }
        }
        (x, moments)
    }

    /// Squared error of the outputs.
    fn output_error(x: &[f32], inputs: usize, weight: &[f32], quantized: &QuantizedWeight) -> f64 {
        let real = quantized.dequantize();
        let dot =
            |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
        let rows = x.chunks_exact(inputs);
        let of_row = |x: &[f32]| {
            let each = weight.chunks_exact(inputs).zip(real.chunks_exact(inputs));
            each.map(|(w, q)| (dot(x, w) - dot(x, q)).powi(2)).sum::<f64>()
        };
        rows.map(of_row).sum()
    }

    #[test]
    fn the_error_of_outputs_is_less_than_of_rounding_to_nearest() {
        let mut rng = Rng::new(5);
        for (outputs, count) in [(1, 7), (16, 48), (37, 130)] {
            let (x, moments) = inputs(&mut rng, 400, count);
            let weight: Vec<f32> = (0..outputs * count).map(|_| rng.normal() as f32).collect();
            let curvature = Curvature::new(&moments, count, 0.01).unwrap();
            assert_eq!((curvature.damping, curvature.dead), (0.01, 0));
            let observer = WeightObserver::MinMax;
            let isa = Isa::best();
            let group = if count == 7 { 7 } else { count / 2 };
            for scheme in [
                WeightScheme::int8(Granularity::Channel),
                WeightScheme::int8(Granularity::Group(group)),
                WeightScheme { bits: WeightBits::Four, granularity: Granularity::Group(group) },
            ] {
                let nearest = quantize_weight(isa, &weight, outputs, count, scheme, observer).unwrap();
                let found =
                    quantize_weight_gptq(isa, &weight, outputs, count, (scheme, observer), &curvature)
                        .unwrap();
                assert_eq!((&found.scales, found.group), (&nearest.scales, nearest.group));
                assert!(found.values.iter().all(|q| scheme.bits.holds(*q)));
                let [found, nearest] = [&found, &nearest].map(|q| output_error(&x, count, &weight, q));
                assert!(found < 0.7 * nearest, "{outputs} x {count}, {scheme}: {found} {nearest}");
            }
        }
    }

    #[test]
    fn dead_columns_are_rounded_to_nearest_and_moments_of_low_rank_are_damped() {
        let mut rng = Rng::new(6);
        let (outputs, count) = (20, 40);
        // Fewer rows than columns, one of which is never used.
        let (mut x, _) = inputs(&mut rng, 10, count);
        x.chunks_exact_mut(count).for_each(|row| row[3] = 0.0);
        let mut moments = vec![0f32; count * count];
        for row in x.chunks_exact(count) {
            for i in 0..count {
                (0..count).for_each(|j| moments[i * count + j] += row[i] * row[j]);
            }
        }
        let curvature = Curvature::new(&moments, count, 0.0).unwrap();
        assert!(curvature.damping > 0.0 && curvature.dead == 1, "{}", curvature.damping);
        let weight: Vec<f32> = (0..outputs * count).map(|_| rng.normal() as f32).collect();
        let scheme = (WeightScheme::int8(Granularity::Channel), WeightObserver::MinMax);
        let isa = Isa::best();
        let found = quantize_weight_gptq(isa, &weight, outputs, count, scheme, &curvature).unwrap();
        let nearest = quantize_weight(isa, &weight, outputs, count, scheme.0, scheme.1).unwrap();
        for row in 0..outputs {
            assert_eq!(found.values[row * count + 3], nearest.values[row * count + 3]);
        }
        assert_eq!(Curvature::new(&[f32::NAN], 1, 0.01).unwrap_err(), CurvatureError::NotFinite);
        assert!(matches!(
            Curvature::new(&[1.0, 0.0, 9e9, 1.0], 2, 1e-9),
            Err(CurvatureError::NotPositive { .. })
        ));
    }

    #[test]
    fn the_number_of_threads_does_not_show() {
        let mut rng = Rng::new(7);
        let (_, moments) = inputs(&mut rng, 100, 60);
        let weight: Vec<f32> = (0..50 * 60).map(|_| rng.normal() as f32).collect();
        let curvature = Curvature::new(&moments, 60, 0.01).unwrap();
        let scheme = (WeightScheme::int8(Granularity::Tensor), WeightObserver::Mse);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| quantize_weight_gptq(Isa::best(), &weight, 50, 60, scheme, &curvature).unwrap())
        };
        assert_eq!(with(1), with(3));
    }
}
