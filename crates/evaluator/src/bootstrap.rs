//! The standard error of a loss, by paired bootstrap.
//!
//! Original and quantised model are measured on the same samples, so their metrics rise and fall together; the
//! uncertainty of their difference is much smaller than that of either. Each resample therefore draws one set of rows,
//! with replacement, for both.
//!
//! Source: B. Efron, R. J. Tibshirani, "An Introduction to the Bootstrap", Chapman & Hall, 1993, chapter 6
//! (algorithm 6.1) for the standard error, chapter 8 for paired data.

use rayon::prelude::*;
use zeropoint_core::Rng;

/// Resamples that settle a standard error to about 2 %; Efron and Tibshirani advise 50 to 200 as a minimum.
pub const DEFAULT_RESAMPLES: usize = 1000;

/// The standard error of `statistic` over samples `0..n`: the standard deviation (with `B - 1`) of its values on
/// `resamples` sets of `n` rows drawn with replacement.
///
/// `statistic` is given the rows of one resample and returns the difference of the metric, quantised minus original, on
/// these rows; `None` where the metric has no value (one class only, a constant side), and such a resample is left out.
/// NaN when fewer than two resamples have a value, and when `n` is below 2: every resample of one row is that row.
///
/// Resamples run on rayon's current pool. Each has its own generator, seeded from `seed` and its place in the sequence,
/// and the values are summed in that order: the result does not depend on the number of threads.
pub fn paired_standard_error<F>(n: usize, resamples: usize, seed: u64, statistic: F) -> f64
where
    F: Fn(&[usize]) -> Option<f64> + Sync,
{
    if n < 2 {
        return f64::NAN;
    }
    let mut master = Rng::new(seed);
    let seeds: Vec<u64> = (0..resamples).map(|_| master.next_u64()).collect();
    let replicates: Vec<Option<f64>> = seeds
        .par_iter()
        .map_init(
            || vec![0; n],
            |rows, &seed| {
                let mut rng = Rng::new(seed);
                rows.fill_with(|| rng.below(n as u64) as usize);
                statistic(rows)
            },
        )
        .collect();
    let replicates: Vec<f64> = replicates.into_iter().flatten().collect();
    if replicates.len() < 2 {
        return f64::NAN;
    }
    let mean = replicates.iter().sum::<f64>() / replicates.len() as f64;
    let squares: f64 = replicates.iter().map(|r| (r - mean) * (r - mean)).sum();
    (squares / (replicates.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::correlation::spearman;

    fn normals(n: usize, seed: u64) -> Vec<f64> {
        let mut rng = Rng::new(seed);
        (0..n).map(|_| rng.normal()).collect()
    }

    fn mean_over(values: &[f64], rows: &[usize]) -> f64 {
        rows.iter().map(|&row| values[row]).sum::<f64>() / rows.len() as f64
    }

    #[test]
    fn the_standard_error_of_a_mean_is_known() {
        // For the mean the ideal bootstrap has a closed form: the population standard deviation over sqrt(n).
        let values = normals(400, 3);
        let mean = values.iter().sum::<f64>() / 400.0;
        let ideal = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 400.0).sqrt() / 20.0;
        let stderr = paired_standard_error(400, 4000, 1, |rows| Some(mean_over(&values, rows)));
        assert!((stderr / ideal - 1.0).abs() < 0.05, "{stderr} {ideal}");
    }

    #[test]
    fn pairing_removes_what_both_sides_share() {
        let original = normals(300, 5);
        let quantized: Vec<f64> = original.iter().map(|v| v - 0.25).collect();
        let paired = paired_standard_error(300, 500, 9, |rows| {
            Some(mean_over(&quantized, rows) - mean_over(&original, rows))
        });
        assert!(paired < 1e-12, "{paired}");
    }

    #[test]
    fn the_result_depends_on_the_seed_and_not_on_the_threads() {
        let (gold, scores) = (normals(200, 1), normals(200, 2));
        let run = |threads: usize, seed: u64| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
            pool.install(|| {
                paired_standard_error(200, 100, seed, |rows| {
                    let take = |values: &[f64]| rows.iter().map(|&row| values[row]).collect::<Vec<_>>();
                    spearman(&take(&gold), &take(&scores))
                })
            })
        };
        assert_eq!(run(1, 7).to_bits(), run(3, 7).to_bits());
        assert_ne!(run(1, 7).to_bits(), run(1, 8).to_bits());
    }

    #[test]
    fn resamples_without_a_value_are_left_out() {
        // Two samples: half of all resamples hold one row twice and have no value, the others have 1.
        let varied = |rows: &[usize]| (rows[0] != rows[1]).then_some(1.0);
        assert_eq!(paired_standard_error(2, 100, 1, varied), 0.0);
        assert!(paired_standard_error(2, 100, 1, |_| None).is_nan());
        assert!(paired_standard_error(0, 100, 1, |_| Some(1.0)).is_nan());
        assert!(paired_standard_error(5, 1, 1, |_| Some(1.0)).is_nan());
    }
}
