//! Every observer's range against what it promises.

use super::*;
use crate::{SampleRows, clipped_fraction, expected_error, measured_error};
use proptest::prelude::*;
use zeropoint_core::Rng;
use zeropoint_core::Symmetry::{Asymmetric, Symmetric};
use zeropoint_kernels::Isa;

/// One channel.
fn observed(x: &[f32]) -> ActivationStatistics {
    rows_of(1, x)
}

fn params(range: (f32, f32), symmetry: Symmetry) -> QuantParams {
    QuantParams::from_range(range.0, range.1, symmetry).unwrap()
}

fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    (0..count).map(|_| rng.normal() as f32).collect()
}

/// As GELU leaves them: a short side of small values, a long one of large.
fn gelu(count: usize) -> Vec<f32> {
    normal(count, 5).into_iter().map(|x| 2.0 * x / (1.0 + (-3.4 * x).exp())).collect()
}

fn heavy_tailed(count: usize) -> Vec<f32> {
    normal(count, 6).into_iter().map(|x| x * x * x * x.abs().exp()).collect()
}

const PERCENTILE: RangeObserver = RangeObserver::Percentile { percentile: 99.9 };
const PER_CHANNEL: RangeObserver = RangeObserver::PercentilePerChannel { percentile: 99.9 };
const AVERAGE: RangeObserver = RangeObserver::MovingAverage { constant: 0.01, batch: 1 };
const OUTLIER_AWARE: RangeObserver = RangeObserver::OutlierAware { ratio: 2.0, clipped_tokens: 1.0 };

const ALL: [RangeObserver; 7] = [
    RangeObserver::MinMax,
    AVERAGE,
    PERCENTILE,
    PER_CHANNEL,
    RangeObserver::Entropy,
    OUTLIER_AWARE,
    RangeObserver::Mse,
];

/// Rows of `channels` values, of which each is a sample of its own.
fn rows_of(channels: usize, x: &[f32]) -> ActivationStatistics {
    let samples: Vec<SampleRows> =
        (0..(x.len() / channels) as u32).map(|sample| SampleRows { sample, rows: 1 }).collect();
    let mut statistics = ActivationStatistics::new(channels);
    statistics.observe_samples(Isa::SCALAR, x, &samples).unwrap();
    statistics
}

#[test]
fn an_outlier_stretches_min_max_and_not_the_percentile() {
    let mut x = normal(20_000, 1);
    x[77] = 1000.0;
    let statistics = observed(&x);
    assert_eq!(RangeObserver::MinMax.range(&statistics, Symmetric), Ok((-1000.0, 1000.0)));
    for symmetry in [Symmetric, Asymmetric] {
        let (min, max) = PERCENTILE.range(&statistics, symmetry).unwrap();
        // 99.9% of |N(0, 1)| lie below 3.29; one bin is 1/4.
        assert!((3.0..3.6).contains(&max) && (-3.6..-3.0).contains(&min), "{symmetry} [{min}, {max}]");
    }
}

#[test]
fn percentiles_are_those_of_the_sorted_values_to_one_bin() {
    let mut x = heavy_tailed(5_000);
    let statistics = observed(&x);
    let bin = statistics.histogram().bin_width() as f32;
    for percentile in [60.0, 90.0, 99.0, 99.9, 100.0] {
        let rank = |q: f64| ((q * 5_000.0).ceil() as usize).max(1) - 1;
        let observer = RangeObserver::Percentile { percentile };
        x.sort_by(f32::total_cmp);
        let (min, max) = observer.range(&statistics, Asymmetric).unwrap();
        let cut = (100.0 - percentile) / 200.0;
        assert!((min - x[rank(cut)].min(0.0)).abs() <= bin, "{percentile}");
        assert!((max - x[rank(1.0 - cut)].max(0.0)).abs() <= bin, "{percentile}");
        x.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
        let (low, high) = observer.range(&statistics, Symmetric).unwrap();
        assert_eq!(low, -high);
        assert!((high - x[rank(percentile / 100.0)].abs()).abs() <= bin, "{percentile}");
    }
}

/// The best error over a fine grid of ranges, on the values themselves.
fn brute_force(x: &[f32], symmetry: Symmetry) -> f64 {
    let statistics = observed(x);
    let (min, max) = RangeObserver::MinMax.range(&statistics, symmetry).unwrap();
    let steps = 60;
    let mut best = f64::INFINITY;
    for high in 1..=steps {
        let lows = if symmetry.is_symmetric() || min == 0.0 { high..=high } else { 1..=steps };
        for low in lows {
            let fraction = |i: i32| i as f32 / steps as f32;
            let params = params((min * fraction(low), max * fraction(high)), symmetry);
            best = best.min(measured_error(x, params).mean_squared_error);
        }
    }
    best
}

#[test]
fn the_mse_range_is_near_the_best_of_a_fine_grid_on_the_values() {
    // 3%: the histogram spreads each value over 1/16 of a min-max step, which blurs the ripples of a small
    // sample's error, and the grid itself is not the optimum.
    let relu: Vec<f32> = normal(2_000, 2).into_iter().map(|x| x.max(0.0)).collect();
    for (name, x) in
        [("normal", normal(2_000, 3)), ("relu", relu), ("gelu", gelu(2_000)), ("heavy", heavy_tailed(2_000))]
    {
        for symmetry in [Symmetric, Asymmetric] {
            let range = RangeObserver::Mse.range(&observed(&x), symmetry).unwrap();
            let chosen = measured_error(&x, params(range, symmetry)).mean_squared_error;
            let best = brute_force(&x, symmetry);
            assert!(chosen <= 1.03 * best, "{name} {symmetry}: {chosen:e} against {best:e}, {range:?}");
        }
    }
}

#[test]
fn mse_clips_a_rare_outlier() {
    // One value of 100 among a million normal ones. Kept, the step is 0.78 and the error 0.78^2 / 12 = 0.05.
    // Clipped at 25, the step is 0.2 and the errors are 0.003 and 75^2 / 10^6 = 0.006.
    let mut x = normal(1_000_000, 4);
    x[1] = 100.0;
    let statistics = observed(&x);
    for symmetry in [Symmetric, Asymmetric] {
        let range = RangeObserver::Mse.range(&statistics, symmetry).unwrap();
        assert!((10.0..50.0).contains(&range.1), "{range:?}");
        // An asymmetric range may also give up a little of the other tail.
        let clipped = clipped_fraction(&statistics, params(range, symmetry));
        assert!((0.99e-6..1e-3).contains(&clipped), "{clipped}");
        assert!(measured_error(&x, params(range, symmetry)).mean_squared_error < 0.012);
    }
}

#[test]
fn constant_zero_and_one_sided_values_have_ranges() {
    let relu: Vec<f32> = normal(500, 7).into_iter().map(|x| x.max(0.0)).collect();
    for observer in ALL {
        assert_eq!(observer.range(&observed(&[0.0; 9]), Asymmetric), Ok((0.0, 0.0)), "{observer}");
        let zero = observer.range(&observed(&[0.0; 9]), Symmetric).unwrap();
        assert_eq!(params(zero, Symmetric).zero_point, 0);
        for constant in [3.0f32, -3.0] {
            let statistics = observed(&[constant; 50]);
            for symmetry in [Symmetric, Asymmetric] {
                let range = observer.range(&statistics, symmetry).unwrap();
                let error = measured_error(&[constant], params(range, symmetry));
                assert!(error.mean_squared_error.sqrt() < 0.013, "{observer} {symmetry} {constant}");
            }
        }
        let (min, max) = observer.range(&observed(&relu), Asymmetric).unwrap();
        // The first sample, of one small value, weighs most in the moving average.
        let least = if observer == AVERAGE { 0.3 } else { 1.0 };
        assert!(min == 0.0 && max > least, "{observer} [{min}, {max}]");
        assert_eq!(params((min, max), Asymmetric).zero_point, -128);
    }
}

#[test]
fn moving_averages_are_those_of_the_definition() {
    // Five samples of one to three rows, two channels, out of order and in two batches.
    let of = |sample, x: &[f32]| (SampleRows { sample, rows: x.len() / 2 }, x.to_vec());
    let samples = [
        of(0, &[1.0, -1.0]),
        of(1, &[0.5, 3.0, -2.0, 0.0]),
        of(2, &[0.25, 0.75]),
        of(3, &[-8.0, 1.0, 1.0, 1.0, 0.0, 16.0]),
        of(4, &[2.0, 2.0]),
    ];
    let mut statistics = ActivationStatistics::new(2);
    for batch in [&[3, 1][..], &[4, 0, 2]] {
        let (rows, x): (Vec<_>, Vec<_>) = batch.iter().map(|&i: &usize| samples[i].clone()).unzip();
        statistics.observe_samples(Isa::SCALAR, &x.concat(), &rows).unwrap();
    }
    let ends = [(-1.0, 1.0), (-2.0, 3.0), (0.25, 0.75), (-8.0, 16.0), (2.0, 2.0)];
    for (constant, batch) in [(0.01, 1), (0.5, 1), (1.0, 1), (0.25, 2), (0.1, 3), (0.3, 100)] {
        let mut steps = ends.chunks(batch).map(|step| {
            step.iter()
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &(min, max)| (a.min(min), b.max(max)))
        });
        let first = steps.next().unwrap();
        let (min, max) = steps.fold(first, |(a, b), (min, max)| {
            ((1.0 - constant) * a + constant * min, (1.0 - constant) * b + constant * max)
        });
        let observer = RangeObserver::MovingAverage { constant, batch: batch as u32 };
        let close =
            |found: f32, expected: f64| (f64::from(found) - expected).abs() < 1e-6 * (1.0 + expected.abs());
        let found = observer.range(&statistics, Asymmetric).unwrap();
        assert!(close(found.0, min.min(0.0)) && close(found.1, max), "{observer}: {found:?} [{min}, {max}]");
        let found = observer.range(&statistics, Symmetric).unwrap();
        assert!(found.0 == -found.1 && close(found.1, max.max(-min)), "{observer}: {found:?} [{min}, {max}]");
    }
}

#[test]
fn an_average_over_all_samples_at_once_is_min_max() {
    let statistics = observed(&heavy_tailed(300));
    for symmetry in [Symmetric, Asymmetric] {
        let average = RangeObserver::MovingAverage { constant: 0.01, batch: 300 };
        assert_eq!(average.range(&statistics, symmetry), RangeObserver::MinMax.range(&statistics, symmetry));
    }
}

#[test]
fn rows_of_no_known_sample_have_no_moving_average() {
    let mut statistics = observed(&[1.0, 2.0]);
    statistics.observe(Isa::SCALAR, &[3.0]).unwrap();
    assert_eq!(
        AVERAGE.range(&statistics, Symmetric),
        Err(ObserveError::NoSamples { rows: 3, attributed: 2 })
    );
}

/// Three ordinary channels and one of large values; in one row of 500 another channel reaches out even further.
fn with_outlier_channel_and_outlier_tokens() -> Vec<f32> {
    let mut x = normal(4 * 2_000, 9);
    for (i, row) in x.chunks_exact_mut(4).enumerate() {
        row[2] += 20.0;
        if i % 500 == 3 {
            row[0] = -100.0;
        }
    }
    x
}

#[test]
fn a_percentile_per_channel_keeps_outlier_channels_and_drops_outlier_tokens() {
    let statistics = rows_of(4, &with_outlier_channel_and_outlier_tokens());
    // The channel is a quarter of all values: far more than a percentile of all values would leave out.
    let range =
        RangeObserver::PercentilePerChannel { percentile: 99.0 }.range(&statistics, Asymmetric).unwrap();
    assert!((-4.0..-1.5).contains(&range.0) && (21.5..24.0).contains(&range.1), "{range:?}");
    let range =
        RangeObserver::PercentilePerChannel { percentile: 99.0 }.range(&statistics, Symmetric).unwrap();
    assert!((21.5..24.0).contains(&range.1), "{range:?}");
}

#[test]
fn percentiles_per_channel_are_those_of_the_sorted_channels_to_one_bin() {
    let factors = [1.0, 3.0, 1.0, 0.1];
    let mut x = heavy_tailed(4_000);
    x.chunks_exact_mut(4).for_each(|row| row.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor));
    let statistics = rows_of(4, &x);
    // The value of a rank in each channel.
    let at = |map: &dyn Fn(f32) -> f32, q: f64| -> Vec<f32> {
        let rank = ((q * 1_000.0).ceil() as usize).max(1) - 1;
        let of_channel = |channel| {
            let mut values: Vec<f32> = x.chunks(4).map(|row: &[f32]| map(row[channel])).collect();
            values.sort_by(f32::total_cmp);
            values[rank]
        };
        (0..4).map(of_channel).collect()
    };
    for percentile in [50.0, 90.0, 99.0, 99.9, 100.0] {
        let observer = RangeObserver::PercentilePerChannel { percentile };
        let (min, max) = observer.range(&statistics, Asymmetric).unwrap();
        let (_, absmax) = observer.range(&statistics, Symmetric).unwrap();
        let cut = 1.0 - percentile / 100.0;
        let close = |found: f32, expected: f32| (found - expected).abs() <= expected.abs() / 4.0;
        let expected = at(&|x| x, cut / 2.0).into_iter().fold(0.0, f32::min);
        assert!(close(min, expected), "{percentile}: {min} {expected}");
        let expected = at(&|x| x, 1.0 - cut / 2.0).into_iter().fold(0.0, f32::max);
        assert!(close(max, expected), "{percentile}: {max} {expected}");
        let expected = at(&f32::abs, 1.0 - cut).into_iter().fold(0.0, f32::max);
        assert!(close(absmax, expected), "{percentile}: {absmax} {expected}");
    }
}

/// Of all rows, those with a value outside the range.
fn clipped_rows(channels: usize, x: &[f32], (min, max): (f32, f32)) -> f64 {
    let outside = x.chunks(channels).filter(|row| row.iter().any(|&x| x < min || x > max)).count();
    outside as f64 / (x.len() / channels) as f64
}

#[test]
fn outlier_tokens_are_clipped_and_outlier_channels_are_not() {
    let x = with_outlier_channel_and_outlier_tokens();
    let statistics = rows_of(4, &x);
    let (min, max) = OUTLIER_AWARE.range(&statistics, Asymmetric).unwrap();
    let widest = RangeObserver::MinMax.range(&statistics, Asymmetric).unwrap();
    assert!(widest.0 == -100.0 && (-10.0..-2.0).contains(&min) && max == widest.1, "[{min}, {max}]");
    let (_, absmax) = OUTLIER_AWARE.range(&statistics, Symmetric).unwrap();
    assert!((widest.1..45.0).contains(&absmax), "{absmax}");
    // One token in 500 may not be clipped where one in 1000 is allowed.
    for clipped_tokens in [0.0, 0.1] {
        let none = RangeObserver::OutlierAware { ratio: 2.0, clipped_tokens };
        for symmetry in [Symmetric, Asymmetric] {
            assert_eq!(none.range(&statistics, symmetry), RangeObserver::MinMax.range(&statistics, symmetry));
        }
    }
}

#[test]
fn without_outlier_tokens_outlier_aware_is_min_max_where_others_clip() {
    // Every token reaches 8 in one of its channels, where few values are: percentiles and entropy give them up.
    let mut x: Vec<f32> = normal(100 * 200, 10).iter().map(|x| x.clamp(-2.0, 2.0)).collect();
    for (i, row) in x.chunks_exact_mut(100).enumerate() {
        (row[i % 100], row[(i + 1) % 100]) = (8.0, -8.0);
    }
    let statistics = rows_of(100, &x);
    for symmetry in [Symmetric, Asymmetric] {
        let widest = RangeObserver::MinMax.range(&statistics, symmetry);
        assert_eq!(OUTLIER_AWARE.range(&statistics, symmetry), widest);
        assert_ne!(RangeObserver::Percentile { percentile: 97.0 }.range(&statistics, symmetry), widest);
    }
}

#[test]
fn the_outlier_aware_range_is_that_of_the_sorted_tokens_to_one_bin() {
    let x = heavy_tailed(8 * 1_000);
    let statistics = rows_of(8, &x);
    let sorted = |f: &dyn Fn(&[f32]) -> f32| {
        let mut of_rows: Vec<f32> = x.chunks(8).map(f).collect();
        of_rows.sort_by(f32::total_cmp);
        of_rows
    };
    let maxima = sorted(&|row| row.iter().copied().fold(f32::MIN, f32::max));
    let magnitudes = sorted(&|row| row.iter().fold(0.0, |a, x| a.max(x.abs())));
    for (ratio, clipped_tokens) in [(1.0, 10.0), (2.0, 5.0), (4.0, 1.0), (3.0, 40.0), (1.5, 20.0)] {
        let observer = RangeObserver::OutlierAware { ratio, clipped_tokens };
        let expected = |of_rows: &[f32], clipped: f64| {
            let kept = of_rows.len() - 1 - (clipped / 100.0 * of_rows.len() as f64) as usize;
            f64::from(of_rows[kept]).max(ratio * f64::from(of_rows[499])).min(f64::from(of_rows[999]))
        };
        let close = |found: f32, expected: f64| (f64::from(found) / expected - 1.0).abs() < 1.0 / 16.0;
        let (_, max) = observer.range(&statistics, Asymmetric).unwrap();
        assert!(close(max, expected(&maxima, clipped_tokens / 2.0)), "{observer}: {max}");
        let (_, absmax) = observer.range(&statistics, Symmetric).unwrap();
        assert!(close(absmax, expected(&magnitudes, clipped_tokens)), "{observer}: {absmax}");
    }
}

/// The divergence of a range of bins as the source describes it, with whole distributions written out: bins of P, bins
/// of Q, one term after the other.
fn divergence_by_definition(counts: &[f64], lo: usize, hi: usize, levels: usize) -> f64 {
    let mut p = counts[lo..hi].to_vec();
    p[0] += counts[..lo].iter().sum::<f64>();
    p[hi - lo - 1] += counts[hi..].iter().sum::<f64>();
    let kept = &counts[lo..hi];
    if kept.iter().sum::<f64>() == 0.0 {
        return f64::INFINITY;
    }
    let mut q = vec![0.0; p.len()];
    for level in 0..levels {
        let bins = level * p.len() / levels..(level + 1) * p.len() / levels;
        let filled = p[bins.clone()].iter().filter(|&&p| p > 0.0).count() as f64;
        for i in bins.clone().filter(|&i| p[i] > 0.0) {
            q[i] = kept[bins.clone()].iter().sum::<f64>() / filled;
        }
    }
    let (p_sum, q_sum) = (p.iter().sum::<f64>(), q.iter().sum::<f64>());
    let filled = p.iter().filter(|&&p| p > 0.0).count() as f64;
    p.iter()
        .zip(&q)
        .filter(|&(&p, _)| p > 0.0)
        .map(|(p, q)| {
            let (p, q) = (p / p_sum, (1.0 - 1e-4) * q / q_sum + 1e-4 / filled);
            p * (p / q).ln()
        })
        .sum()
}

#[test]
fn the_symmetric_entropy_range_is_the_best_of_all_by_the_definition() {
    for (name, x) in [("normal", normal(3_000, 3)), ("gelu", gelu(3_000)), ("heavy", heavy_tailed(3_000))] {
        let statistics = observed(&x);
        let width = statistics.histogram().bin_width();
        let mut counts = vec![0.0; 4096];
        for x in &x {
            // Of a negative value the bin's upper end is closed.
            let bin = f64::from(x.abs()) / width;
            counts[if *x < 0.0 { bin.ceil() as usize - 1 } else { bin.floor() as usize }] += 1.0;
        }
        counts[0] = f64::min(counts[0], counts[1]);
        let cost = |hi: usize| divergence_by_definition(&counts, 0, hi, 128);
        // Every bin is tried by the code, every seventh here.
        let least = (128..=4096).step_by(7).map(cost).fold(f64::INFINITY, f64::min);
        let (_, max) = RangeObserver::Entropy.range(&statistics, Symmetric).unwrap();
        let chosen =
            if max == statistics.absmax() { 4096 } else { (f64::from(max) / width).round() as usize };
        assert!(cost(chosen) <= least + 1e-9, "{name}: {} against {least}", cost(chosen));
    }
}

#[test]
fn the_asymmetric_entropy_range_is_near_the_best_of_a_grid_by_the_definition() {
    for (name, x) in [("normal", normal(3_000, 3)), ("gelu", gelu(3_000)), ("heavy", heavy_tailed(3_000))] {
        let statistics = observed(&x);
        let (width, counts) = (statistics.histogram().bin_width(), statistics.histogram().counts());
        let first = counts.iter().position(|&count| count > 0).unwrap();
        let last = counts.iter().rposition(|&count| count > 0).unwrap();
        let mut counts: Vec<f64> = counts[first..=last].iter().map(|&count| count as f64).collect();
        let zero = 4096 - first;
        counts[zero] = counts[zero].min(counts[zero - 1].max(counts[zero + 1]));
        let cost = |lo: usize, hi: usize| {
            if hi < lo + 256 { f64::INFINITY } else { divergence_by_definition(&counts, lo, hi, 256) }
        };
        let mut least = cost(0, counts.len());
        for i in 0..24 {
            for j in 0..24 {
                least = least.min(cost(zero * i / 24, counts.len() - (counts.len() - zero) * j / 24));
            }
        }
        let (min, max) = RangeObserver::Entropy.range(&statistics, Asymmetric).unwrap();
        let lo = (zero as f64 + (f64::from(min) / width).floor()).max(0.0) as usize;
        let hi = zero + (f64::from(max) / width).ceil() as usize;
        let chosen = cost(lo, hi.min(counts.len()));
        assert!(chosen <= 1.15 * least, "{name}: {chosen} against {least}");
    }
}

#[test]
fn entropy_clips_what_is_rare_and_is_not_misled_by_zeros() {
    let mut x = normal(50_000, 12);
    x[5] = 40.0;
    for symmetry in [Symmetric, Asymmetric] {
        let (_, max) = RangeObserver::Entropy.range(&observed(&x), symmetry).unwrap();
        assert!((2.0..12.0).contains(&max), "{symmetry}: {max}");
    }
    // Nine zeros of ten values, as a sparse ReLU leaves them, change nothing.
    let positive: Vec<f32> = x.iter().map(|x| x.abs()).collect();
    let sparse = [positive.clone(), vec![0.0; 450_000]].concat();
    for symmetry in [Symmetric, Asymmetric] {
        let dense = RangeObserver::Entropy.range(&observed(&positive), symmetry).unwrap();
        let (_, max) = RangeObserver::Entropy.range(&observed(&sparse), symmetry).unwrap();
        assert!((max / dense.1 - 1.0).abs() < 0.1, "{symmetry}: {max} against {dense:?}");
    }
}

#[test]
fn every_observer_has_a_range_for_the_smallest_and_the_largest_numbers() {
    for x in [
        &[1e-45f32][..],
        &[-1e-40, 1e-42],
        &[f32::MAX, f32::MIN, 0.0],
        &[f32::MAX],
        &[f32::MIN_POSITIVE, 1e30],
    ] {
        for observer in ALL {
            for symmetry in [Symmetric, Asymmetric] {
                let statistics = observed(x);
                let (min, max) = observer.range(&statistics, symmetry).unwrap();
                let (low, high) = RangeObserver::MinMax.range(&statistics, symmetry).unwrap();
                assert!(
                    low <= min && min <= 0.0 && 0.0 <= max && max <= high,
                    "{observer} {x:?}: [{min}, {max}]"
                );
                // Of one value nothing may be lost.
                assert!(x.len() > 1 || max >= 0.8 * high, "{observer} {x:?}: {max}");
            }
        }
    }
}

#[test]
fn what_has_no_range_says_why() {
    let some = observed(&[1.0]);
    for percentile in [49.9, 0.0, -1.0, 100.1, f64::NAN] {
        for observer in
            [RangeObserver::Percentile { percentile }, RangeObserver::PercentilePerChannel { percentile }]
        {
            let error = observer.range(&some, Symmetric).unwrap_err();
            assert!(matches!(error, ObserveError::Percentile { .. }), "{percentile}");
        }
    }
    for constant in [0.0, -0.1, 1.1, f64::NAN] {
        let error = RangeObserver::MovingAverage { constant, batch: 1 }.range(&some, Symmetric).unwrap_err();
        assert!(matches!(error, ObserveError::AveragingConstant { .. }), "{constant}");
    }
    let never = RangeObserver::MovingAverage { constant: 0.1, batch: 0 };
    assert_eq!(never.range(&some, Symmetric), Err(ObserveError::AveragingBatch));
    for ratio in [0.9, -2.0, f64::INFINITY, f64::NAN] {
        let observer = RangeObserver::OutlierAware { ratio, clipped_tokens: 1.0 };
        let error = observer.range(&some, Symmetric).unwrap_err();
        assert!(matches!(error, ObserveError::OutlierRatio { .. }), "{ratio}");
    }
    for clipped_tokens in [-0.1, 50.1, f64::NAN] {
        let error =
            RangeObserver::OutlierAware { ratio: 2.0, clipped_tokens }.range(&some, Symmetric).unwrap_err();
        assert!(matches!(error, ObserveError::ClippedTokens { .. }), "{clipped_tokens}");
    }
    for observer in ALL {
        let empty = ActivationStatistics::new(1);
        assert_eq!(observer.range(&empty, Symmetric), Err(ObserveError::Empty));
    }
}

#[test]
fn the_settings_have_a_text_form() {
    let cases = [
        (RangeObserver::MinMax, r#"{"kind":"min-max"}"#, "min-max"),
        (PERCENTILE, r#"{"kind":"percentile","percentile":99.9}"#, "percentile 99.9"),
        (RangeObserver::Mse, r#"{"kind":"mse"}"#, "mse"),
        (RangeObserver::Entropy, r#"{"kind":"entropy"}"#, "entropy"),
        (
            PER_CHANNEL,
            r#"{"kind":"percentile-per-channel","percentile":99.9}"#,
            "percentile 99.9 per channel",
        ),
        (AVERAGE, r#"{"kind":"moving-average","constant":0.01,"batch":1}"#, "moving average 0.01"),
        (
            RangeObserver::MovingAverage { constant: 0.5, batch: 16 },
            r#"{"kind":"moving-average","constant":0.5,"batch":16}"#,
            "moving average 0.5 over batches of 16",
        ),
        (
            OUTLIER_AWARE,
            r#"{"kind":"outlier-aware","ratio":2.0,"clipped_tokens":1.0}"#,
            "outlier-aware 2x, at most 1% of tokens",
        ),
    ];
    for (observer, json, display) in cases {
        assert_eq!(serde_json::to_string(&observer).unwrap(), json);
        assert_eq!(serde_json::from_str::<RangeObserver>(json).unwrap(), observer);
        assert_eq!(observer.to_string(), display);
    }
    assert!(serde_json::from_str::<RangeObserver>(r#"{"kind":"percentile"}"#).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn ranges_are_inside_the_values_and_mse_is_never_worse_than_min_max(
        x in prop::collection::vec(-1f32..1.0, 1..60), channels in 1usize..4, shift in -2f32..2.0,
        exponent in -120i32..120, asymmetric: bool, percentile in 50f64..100.0, clipped_tokens in 0f64..50.0,
        constant in 0.001f64..1.0, batch in 1u32..9, ratio in 1f64..3.0,
    ) {
        let symmetry = Symmetry::from_flag(!asymmetric);
        let unit = crate::histogram::power_of_two(exponent) as f32;
        let x: Vec<f32> = x.iter().map(|x| (x * x * x + shift) * unit).collect();
        let x = x.repeat(channels);
        let statistics = rows_of(channels, &x);
        let widest = RangeObserver::MinMax.range(&statistics, symmetry).unwrap();
        let outlier_aware = RangeObserver::OutlierAware { ratio, clipped_tokens };
        for observer in [
            RangeObserver::Percentile { percentile },
            RangeObserver::PercentilePerChannel { percentile },
            RangeObserver::MovingAverage { constant, batch },
            RangeObserver::Entropy,
            outlier_aware,
            RangeObserver::Mse,
        ] {
            let (min, max) = observer.range(&statistics, symmetry).unwrap();
            prop_assert!(widest.0 <= min && min <= 0.0 && 0.0 <= max && max <= widest.1, "{}", observer);
            prop_assert!(asymmetric || min == -max, "{}", observer);
        }
        let error = |range| expected_error(&statistics, params(range, symmetry)).mean_squared_error;
        let mse = RangeObserver::Mse.range(&statistics, symmetry).unwrap();
        prop_assert!(error(mse) <= error(widest));
        let by_tokens = outlier_aware.range(&statistics, symmetry).unwrap();
        prop_assert!(clipped_rows(channels, &x, by_tokens) <= clipped_tokens / 100.0);
    }

    #[test]
    fn a_power_of_two_scales_every_range_and_the_order_of_rows_changes_none(
        rows in prop::collection::vec(prop::array::uniform3(-1f32..1.0), 1..40), exponent in -20i32..20,
        asymmetric: bool,
    ) {
        let symmetry = Symmetry::from_flag(!asymmetric);
        let unit = crate::histogram::power_of_two(exponent) as f32;
        let x: Vec<f32> = rows.iter().flatten().map(|x| x * x * x).collect();
        let statistics = rows_of(3, &x);
        // Backwards, each row with the number of its sample.
        let mut scaled = ActivationStatistics::new(3);
        for (i, row) in x.chunks(3).enumerate().rev() {
            let row: Vec<f32> = row.iter().map(|x| x * unit).collect();
            scaled.observe_samples(Isa::best(), &row, &[SampleRows { sample: i as u32, rows: 1 }]).unwrap();
        }
        for observer in ALL {
            let (min, max) = observer.range(&statistics, symmetry).unwrap();
            prop_assert_eq!(observer.range(&scaled, symmetry).unwrap(), (min * unit, max * unit), "{}", observer);
        }
    }
}
