//! A quantised weight is what a plain loop over the scalar specification gives.

use proptest::prelude::*;
use zeropoint_core::{
    Granularity, QuantParams, Rng, WeightBits, WeightScheme, dequantize,
    quantize_weight as quantize_weight_value,
};
use zeropoint_kernels::Isa;
use zeropoint_observer::WeightObserver;
use zeropoint_quantizer::{QuantizedWeight, WeightError, quantize_weight};

const CHANNEL: WeightScheme = WeightScheme::int8(Granularity::Channel);
const TENSOR: WeightScheme = WeightScheme::int8(Granularity::Tensor);

fn absmax(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max, w| w.abs().max(max))
}

/// Round to nearest under min-max scales, one value after the other.
fn naive(weight: &[f32], outputs: usize, inputs: usize, scheme: WeightScheme) -> QuantizedWeight {
    let per_tensor = scheme.granularity == Granularity::Tensor;
    let group = inputs / scheme.granularity.groups(inputs).expect("whole groups");
    let (mut values, mut scales) = (Vec::new(), Vec::new());
    let (mut signal, mut noise) = (0.0, 0.0);
    for part in weight.chunks(group) {
        let range = absmax(if per_tensor { weight } else { part });
        let steps = if scheme.bits == WeightBits::Four { 7.5 } else { 127.5 };
        let scale = if range / steps < f32::MIN_POSITIVE { f32::EPSILON } else { range / steps };
        for w in part {
            let q = quantize_weight_value(*w, scale, scheme.bits);
            values.push(q);
            signal += f64::from(*w).powi(2);
            noise += f64::from(*w - dequantize(q, QuantParams { scale, zero_point: 0 })).powi(2);
        }
        scales.push(scale);
    }
    if per_tensor {
        scales.truncate(1);
    }
    QuantizedWeight { values, scales, outputs, inputs, group, signal, noise }
}

/// The schemes that a weight of so many columns can have.
fn schemes(inputs: usize) -> Vec<WeightScheme> {
    let group = (1..=inputs).filter(|size| inputs.is_multiple_of(*size)).nth(1).unwrap_or(1);
    let granularities = [Granularity::Channel, Granularity::Tensor, Granularity::Group(group)];
    let bits = [WeightBits::Four, WeightBits::Eight];
    let of = |bits| granularities.map(|granularity| WeightScheme { bits, granularity });
    bits.into_iter().flat_map(of).collect()
}

/// Weights with rows of every magnitude, ties, zeros and outliers.
fn weights() -> impl Strategy<Value = (usize, usize, Vec<f32>)> {
    let value = prop_oneof![
        6 => -1f32..1.0,
        2 => (-255i32..=255).prop_map(|halves| halves as f32 / 2.0),
        1 => Just(0.0f32),
        1 => -300f32..300.0,
        1 => -1e-30f32..1e-30,
    ];
    (1usize..24, 1usize..90).prop_flat_map(move |(outputs, inputs)| {
        let rows = prop::collection::vec(prop::sample::select(vec![0.0f32, 1e-3, 1.0, 1e3]), outputs);
        (rows, prop::collection::vec(value.clone(), outputs * inputs)).prop_map(move |(rows, mut weight)| {
            for (row, factor) in weight.chunks_mut(inputs).zip(rows) {
                for w in row {
                    *w *= factor;
                }
            }
            (outputs, inputs, weight)
        })
    })
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-12 * a.abs().max(b.abs())
}

proptest! {
    #[test]
    fn min_max_is_the_scalar_loop((outputs, inputs, weight) in weights()) {
        for scheme in schemes(inputs) {
            let expected = naive(&weight, outputs, inputs, scheme);
            for isa in Isa::available() {
                let found = quantize_weight(isa, &weight, outputs, inputs, scheme, WeightObserver::MinMax).unwrap();
                prop_assert_eq!(&found.values, &expected.values, "{}", isa);
                prop_assert_eq!(&found.scales, &expected.scales, "{}", isa);
                prop_assert_eq!((found.outputs, found.inputs, found.group), (outputs, inputs, expected.group));
                prop_assert!(close(found.signal, expected.signal), "{} {}", found.signal, expected.signal);
                prop_assert!(close(found.noise, expected.noise), "{} {}", found.noise, expected.noise);
                let real: Vec<f32> = found.dequantize();
                let noise = weight.iter().zip(&real).map(|(w, r)| f64::from(w - r).powi(2)).sum::<f64>();
                prop_assert!(close(found.noise, noise), "the noise is that of the dequantised values");
            }
        }
    }

    #[test]
    fn a_clipped_range_is_quantised_by_the_scalar_function((outputs, inputs, weight) in weights()) {
        for scheme in schemes(inputs) {
            let found =
                quantize_weight(Isa::best(), &weight, outputs, inputs, scheme, WeightObserver::Mse).unwrap();
            for (i, w) in weight.iter().enumerate() {
                let scale = found.scales_of(i / inputs)[i % inputs / found.group];
                prop_assert_eq!(found.values[i], quantize_weight_value(*w, scale, scheme.bits));
            }
        }
    }

    #[test]
    fn mse_is_never_worse_than_min_max((outputs, inputs, weight) in weights()) {
        for scheme in schemes(inputs) {
            let noise = |observer| {
                let weight = quantize_weight(Isa::best(), &weight, outputs, inputs, scheme, observer).unwrap();
                let rows = weight.scales.clone();
                (weight.noise, rows)
            };
            let (clipped, whole) = (noise(WeightObserver::Mse), noise(WeightObserver::MinMax));
            prop_assert!(clipped.0 <= whole.0, "{} > {}", clipped.0, whole.0);
            prop_assert!(clipped.1.iter().zip(&whole.1).all(|(a, b)| a <= b), "a range is never widened");
        }
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_named(
        (outputs, inputs, mut weight) in weights(), at: prop::sample::Index, later: prop::sample::Index,
        value in prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]), mse: bool, tensor: bool,
    ) {
        let at = at.index(weight.len());
        let later = at + later.index(weight.len() - at);
        weight[later] = f32::NAN;
        weight[at] = value;
        let observer = if mse { WeightObserver::Mse } else { WeightObserver::MinMax };
        let scheme = if tensor { TENSOR } else { CHANNEL };
        let error = quantize_weight(Isa::best(), &weight, outputs, inputs, scheme, observer).unwrap_err();
        let says = format!(
            "holds {value} at row {}, column {}; weights must be finite: the source is damaged", at / inputs, at % inputs
        );
        prop_assert_eq!(error.to_string(), says);
    }
}

#[test]
fn per_channel_keeps_the_small_rows_that_per_tensor_loses() {
    let weight = [[100.0f32, -50.0, 25.0], [0.1, -0.05, 0.025]].concat();
    let of = |scheme| quantize_weight(Isa::best(), &weight, 2, 3, scheme, WeightObserver::MinMax).unwrap();
    let (channel, tensor) = (of(CHANNEL), of(TENSOR));
    assert_eq!(tensor.scales, [100.0 / 127.5]);
    assert_eq!(channel.scales, [100.0 / 127.5, 0.1 / 127.5]);
    assert_eq!(tensor.values, [127, -64, 32, 0, 0, 0]);
    assert_eq!(channel.values, [127, -64, 32, 127, -64, 32]);
    assert_eq!((tensor.scales_of(1), channel.scales_of(1)), (&tensor.scales[..], &channel.scales[1..]));
    assert_eq!(tensor.scales_by_row(), [tensor.scales[0]; 2]);
    assert!(channel.noise < tensor.noise);
}

#[test]
fn mse_clips_an_outlier() {
    let mut rng = Rng::new(5);
    let mut weight: Vec<f32> = (0..512).map(|_| rng.normal() as f32 * 0.02).collect();
    weight[100] = 0.3;
    let of = |observer| quantize_weight(Isa::best(), &weight, 1, 512, CHANNEL, observer).unwrap();
    let (clipped, whole) = (of(WeightObserver::Mse), of(WeightObserver::MinMax));
    assert!(clipped.scales[0] < whole.scales[0] && clipped.noise < whole.noise);
    assert_eq!(clipped.values[100], 127);
}

#[test]
fn the_number_of_threads_does_not_show() {
    let (outputs, inputs) = (301, 130);
    let mut rng = Rng::new(11);
    let weight: Vec<f32> = (0..outputs * inputs).map(|_| rng.normal() as f32).collect();
    for scheme in [CHANNEL, TENSOR] {
        for observer in [WeightObserver::MinMax, WeightObserver::Mse] {
            let with = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    quantize_weight(Isa::best(), &weight, outputs, inputs, scheme, observer).unwrap()
                })
            };
            let (one, three) = (with(1), with(3));
            assert_eq!(one.signal.to_bits(), three.signal.to_bits());
            assert_eq!(one.noise.to_bits(), three.noise.to_bits());
            assert_eq!(one, three);
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    for (outputs, inputs) in [(2, 3), (0, 5), (5, 0), (usize::MAX, 2)] {
        let result =
            quantize_weight(Isa::SCALAR, &[1.0; 5], outputs, inputs, CHANNEL, WeightObserver::MinMax);
        assert_eq!(result, Err(WeightError::Shape { len: 5, outputs, inputs }));
    }
}

#[test]
fn a_scheme_that_is_not_made_is_refused() {
    for (scheme, says) in [
        (WeightScheme { bits: WeightBits::Four, granularity: Granularity::Group(3) }, "int4 per-group of 3"),
        (WeightScheme::int8(Granularity::Token), "int8 per-token"),
    ] {
        let error =
            quantize_weight(Isa::SCALAR, &[1.0; 4], 2, 2, scheme, WeightObserver::MinMax).unwrap_err();
        assert!(
            error.to_string().starts_with(&format!("has 2 inputs, which are no whole groups of {says}")),
            "{error}"
        );
    }
}
