//! Channels whose values dwarf the others'.

use crate::ActivationStatistics;

/// The channels whose absolute maximum exceeds `ratio` times the median absolute maximum of all channels, as
/// `(channel, absolute maximum)`, largest first.
///
/// A few such channels set the range of a whole tensor and take its resolution from all others: the reason why static
/// per-tensor activations lose accuracy in transformers, and what `SmoothQuant` moves into the weights. They are
/// described by Bondarenko, Nagel, Blankevoort, "Understanding and Overcoming the Challenges of Efficient Transformer
/// Quantization" (2021), and Dettmers et al., "`LLM.int8()`" (2022), who count magnitudes from 6 as outliers; a ratio to
/// the median needs no knowledge of the model's scale. With a median of 0 every channel that is not all zero counts.
pub fn outlier_channels(statistics: &ActivationStatistics, ratio: f32) -> Vec<(usize, f32)> {
    let absmax = statistics.channel_absmax();
    let threshold = f64::from(ratio) * median_absmax(statistics);
    let mut outliers: Vec<(usize, f32)> =
        absmax.iter().copied().enumerate().filter(|&(_, a)| f64::from(a) > threshold).collect();
    // The sort is stable: equal channels stay in order.
    outliers.sort_by(|a, b| b.1.total_cmp(&a.1));
    outliers
}

/// The median of the channels' absolute maxima, of an even number the mean of the middle two; 0 without channels.
pub fn median_absmax(statistics: &ActivationStatistics) -> f64 {
    median(statistics.channel_absmax())
}

/// Median, of an even number of values the mean of the middle two; 0 of none.
fn median(values: &[f32]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f32::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (n, half) if n % 2 == 1 => f64::from(sorted[half]),
        (_, half) => f64::midpoint(f64::from(sorted[half - 1]), f64::from(sorted[half])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zeropoint_kernels::Isa;

    #[test]
    fn outliers_are_relative_to_the_median_and_sorted() {
        struct Case {
            row: &'static [f32],
            ratio: f32,
            outliers: &'static [(usize, f32)],
        }
        let cases = [
            Case { row: &[1.0, -60.0, 2.0, 20.0, 1.5], ratio: 5.0, outliers: &[(1, 60.0), (3, 20.0)] },
            Case { row: &[1.0, -60.0, 2.0, 20.0, 1.5], ratio: 15.0, outliers: &[(1, 60.0)] },
            // The median of an even number lies between: 3.5 here, so 13 exceeds 3.5 times it and 12 does not.
            Case { row: &[1.0, 3.0, 4.0, 13.0], ratio: 3.5, outliers: &[(3, 13.0)] },
            Case { row: &[1.0, 3.0, 4.0, 12.0], ratio: 3.5, outliers: &[] },
            Case { row: &[7.0, 7.0, 1.0, 1.0, 1.0], ratio: 6.0, outliers: &[(0, 7.0), (1, 7.0)] },
            Case { row: &[2.0, 2.0, 2.0], ratio: 1.0, outliers: &[] },
            Case { row: &[0.0, 0.0, 0.0, 1e-6], ratio: 10.0, outliers: &[(3, 1e-6)] },
        ];
        for Case { row, ratio, outliers } in cases {
            let mut statistics = ActivationStatistics::new(row.len());
            statistics.observe(Isa::SCALAR, row).unwrap();
            assert_eq!(outlier_channels(&statistics, ratio), outliers, "{row:?}");
        }
        assert_eq!(outlier_channels(&ActivationStatistics::new(0), 5.0), []);
    }
}
