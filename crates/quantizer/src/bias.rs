//! Bias correction: what rounding changes of the mean of each output, taken off its bias (Nagel et al. 2019, "Data-Free
//! Quantization Through Weight Equalization and Bias Correction", equation 17, with means of calibration inputs).

use rayon::prelude::*;

use crate::QuantizedWeight;

/// What is added to the bias of each output: `sum over k of W[n, k] x[k] - W'[n, k] x'[k]`, with the float weight `W`,
/// `[outputs, inputs]`, and the mean `x` of its inputs, and both as they are quantised. The sums are in f64 and in order, whatever the
/// number of threads.
pub fn bias_correction(
    weight: &[f32],
    means: &[f64],
    quantized: &QuantizedWeight,
    quantized_means: &[f64],
) -> Vec<f32> {
    let inputs = quantized.inputs;
    assert_eq!((means.len(), quantized_means.len()), (inputs, inputs), "a mean for each input");
    let rows = weight.par_chunks_exact(inputs).zip(quantized.values.par_chunks_exact(inputs)).enumerate();
    rows.map(|(row, (weight, values))| {
        let scales = quantized.scales_of(row);
        let groups = values.chunks(quantized.group).zip(quantized_means.chunks(quantized.group)).zip(scales);
        let found: f64 = groups
            .map(|((q, x), scale)| {
                f64::from(*scale) * q.iter().zip(x).map(|(q, x)| f64::from(*q) * x).sum::<f64>()
            })
            .sum();
        let expected: f64 = weight.iter().zip(means).map(|(w, x)| f64::from(*w) * x).sum();
        (expected - found) as f32
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize_weight;
    use zeropoint_core::{Granularity, Rng, WeightBits, WeightScheme};
    use zeropoint_kernels::Isa;
    use zeropoint_observer::WeightObserver;

    #[test]
    fn with_it_the_mean_of_every_output_is_the_float_one() {
        let mut rng = Rng::new(3);
        let (outputs, inputs, rows) = (7, 24, 50);
        let weight: Vec<f32> = (0..outputs * inputs).map(|_| rng.normal() as f32).collect();
        let scheme = WeightScheme { bits: WeightBits::Four, granularity: Granularity::Group(8) };
        let rounded =
            quantize_weight(Isa::best(), &weight, outputs, inputs, scheme, WeightObserver::Mse).unwrap();
        let x: Vec<f64> = (0..rows * inputs).map(|_| 0.5 + rng.normal()).collect();
        // As an activation would be rounded.
        let coarse: Vec<f64> = x.iter().map(|x| (x * 4.0).round() / 4.0).collect();
        let mean = |x: &[f64]| -> Vec<f64> {
            (0..inputs).map(|k| (0..rows).map(|row| x[row * inputs + k]).sum::<f64>() / rows as f64).collect()
        };
        let correction = bias_correction(&weight, &mean(&x), &rounded, &mean(&coarse));
        let real = rounded.dequantize();
        for output in 0..outputs {
            let sum = |w: &[f32], x: &[f64]| -> f64 {
                let row = |row: usize| {
                    (0..inputs).map(move |k| f64::from(w[output * inputs + k]) * x[row * inputs + k])
                };
                (0..rows).flat_map(row).sum::<f64>() / rows as f64
            };
            let difference = sum(&weight, &x) - sum(&real, &coarse);
            assert!((f64::from(correction[output]) - difference).abs() < 1e-6, "{output}");
            assert!(difference.abs() > 1e-6);
        }
    }
}
