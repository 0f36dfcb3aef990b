use super::*;
use crate::Isa;
use crate::activation::activate;
use crate::{add_in_place, quantize_measured, quantize_static, quantize_tokens};
use zeropoint_core::{Rng, Symmetry};

struct Layer {
    a: Vec<i8>,
    w: Vec<i8>,
    params: Vec<QuantParams>,
    scales: Vec<f32>,
    bias: Vec<f32>,
}

fn layer(rng: &mut Rng, rows: usize, inputs: usize, outputs: usize) -> Layer {
    let mut integers = |len| (0..len).map(|_| rng.next_u64() as i8).collect::<Vec<i8>>();
    let (a, w, zero_points) = (integers(rows * inputs), integers(outputs * inputs), integers(rows));
    let mut positive = |len| (0..len).map(|_| 1e-4 + 0.01 * rng.uniform() as f32).collect::<Vec<f32>>();
    let (input_scales, scales) = (positive(rows), positive(outputs));
    let params = input_scales.iter().zip(&zero_points);
    let params = params.map(|(&scale, &zero_point)| QuantParams { scale, zero_point }).collect();
    Layer { a, w, params, scales, bias: (0..outputs).map(|_| rng.normal() as f32).collect() }
}

#[test]
fn the_epilogue_alone_gives_the_bits_of_the_whole() {
    let (rows, inputs, outputs) = (3, 97, 130);
    let l = layer(&mut Rng::new(4), rows, inputs, outputs);
    for isa in Isa::available() {
        for bias in [None, Some(l.bias.as_slice())] {
            let packed = PackedWeights::pack(isa, &l.w, outputs, inputs).unwrap();
            let input = RowParams::PerToken(&l.params[..rows]);
            let epilogue = Epilogue { input, weight_scales: &l.scales, bias, activation: Activation::None };
            let mut whole = vec![0.0; rows * outputs];
            linear(&l.a, rows, &packed, 0..outputs, &epilogue, &mut whole, outputs);
            for (r, whole) in whole.chunks(outputs).enumerate() {
                let p = l.params[r];
                let a = &l.a[r * inputs..][..inputs];
                let sums: Vec<i32> =
                    l.w.chunks(inputs)
                        .map(|w| {
                            a.iter()
                                .zip(w)
                                .map(|(&a, &w)| (i32::from(a) - i32::from(p.zero_point)) * i32::from(w))
                                .sum()
                        })
                        .collect();
                let mut alone = vec![0.0; outputs];
                dequantize_sums(isa, &sums, p.scale, &l.scales, bias, &mut alone);
                assert_eq!(alone, whole, "{isa}");
            }
        }
    }
}

#[test]
fn the_epilogue_keeps_its_error_bound_against_f64() {
    let (rows, inputs, outputs) = (8, 97, 130);
    let l = layer(&mut Rng::new(3), rows, inputs, outputs);
    for isa in Isa::available() {
        let packed = PackedWeights::pack(isa, &l.w, outputs, inputs).unwrap();
        for input in [RowParams::PerToken(&l.params), RowParams::PerTensor(l.params[1])] {
            for bias in [None, Some(l.bias.as_slice())] {
                let epilogue =
                    Epilogue { input, weight_scales: &l.scales, bias, activation: Activation::None };
                let mut out = vec![f32::NAN; rows * outputs];
                linear(&l.a, rows, &packed, 0..outputs, &epilogue, &mut out, outputs);
                for (i, &y) in out.iter().enumerate() {
                    let (r, c) = (i / outputs, i % outputs);
                    let p = match input {
                        RowParams::PerTensor(p) => p,
                        RowParams::PerToken(p) => p[r],
                    };
                    let sum: i64 = (0..inputs)
                        .map(|k| {
                            let a = i64::from(l.a[r * inputs + k]) - i64::from(p.zero_point);
                            a * i64::from(l.w[c * inputs + k])
                        })
                        .sum();
                    let product = sum as f64 * f64::from(p.scale) * f64::from(l.scales[c]);
                    let exact = product + bias.map_or(0.0, |bias| f64::from(bias[c]));
                    let bound = (2.01 * product.abs() + exact.abs()) * 0.5f64.powi(24);
                    assert!((f64::from(y) - exact).abs() <= bound, "{isa}: {y} for {exact} at [{r}, {c}]");
                }
            }
        }
    }
}

#[test]
fn the_widest_sums_survive_the_zero_point() {
    let inputs = 65_536;
    for (x, zero_point, w) in [(-128i8, 127, -128i8), (127, -128, -128), (-128, 127, 127), (127, -128, 127)] {
        let exact = (i64::from(x) - i64::from(zero_point)) * i64::from(w) * inputs as i64;
        for isa in Isa::available() {
            let packed = PackedWeights::pack(isa, &vec![w; inputs], 1, inputs).unwrap();
            let epilogue = Epilogue {
                input: RowParams::PerTensor(QuantParams { scale: 1.0, zero_point }),
                weight_scales: &[1.0],
                bias: None,
                activation: Activation::None,
            };
            let mut out = [0.0];
            linear(&vec![x; inputs], 1, &packed, 0..1, &epilogue, &mut out, 1);
            assert_eq!(out[0], exact as f32, "{isa}");
        }
    }
}

#[test]
fn parts_of_the_columns_give_the_bits_of_the_whole_and_touch_nothing_else() {
    let (rows, inputs, outputs) = (7, 50, 200);
    let l = layer(&mut Rng::new(4), rows, inputs, outputs);
    let mut whole_by_isa = Vec::new();
    for isa in Isa::available() {
        let packed = PackedWeights::pack(isa, &l.w, outputs, inputs).unwrap();
        let epilogue = Epilogue {
            input: RowParams::PerToken(&l.params),
            weight_scales: &l.scales,
            bias: Some(&l.bias),
            activation: Activation::None,
        };
        let mut whole = vec![0.0; rows * outputs];
        linear(&l.a, rows, &packed, 0..outputs, &epilogue, &mut whole, outputs);
        for columns in [0..64, 64..200, 128..130, 64..128, 192..192] {
            let (width, stride) = (columns.len(), columns.len() + 3);
            let mut part = vec![-7.0; rows * stride];
            linear(&l.a, rows, &packed, columns.clone(), &epilogue, &mut part, stride);
            for (r, row) in part.chunks_exact(stride).enumerate() {
                assert_eq!(row[..width], whole[r * outputs..][columns.clone()], "{isa}: {columns:?}");
                assert_eq!(row[width..], [-7.0; 3], "{isa}: {columns:?}");
            }
        }
        whole_by_isa.push(whole);
    }
    assert!(whole_by_isa.iter().all(|whole| *whole == whole_by_isa[0]), "all instruction sets agree");
}

#[test]
fn what_is_done_at_once_is_what_is_done_after() {
    for (rows, inputs, outputs) in [(7, 50, 200), (13, 64, 64), (1, 9, 3), (2, 5, 129)] {
        let mut l = layer(&mut Rng::new(6), rows, inputs, outputs);
        for (isa, bad) in Isa::available().into_iter().flat_map(|isa| [(isa, None), (isa, Some(rows - 1))]) {
            if let Some(row) = bad {
                l.params[row].scale = f32::INFINITY;
            }
            for activation in [Activation::None, Activation::GeluErf] {
                let packed = PackedWeights::pack(isa, &l.w, outputs, inputs).unwrap();
                let input = RowParams::PerToken(&l.params);
                let epilogue = Epilogue { input, weight_scales: &l.scales, bias: Some(&l.bias), activation };
                let mut whole = vec![0.0; rows * outputs];
                linear(&l.a, rows, &packed, 0..outputs, &epilogue, &mut whole, outputs);
                let (mut out, mut expected) = (vec![0; whole.len()], vec![1; whole.len()]);
                let mut magnitudes = RowMagnitudes::default();

                let params = QuantParams { scale: 0.03, zero_point: -5 };
                let found =
                    linear_quantized(&l.a, rows, &packed, &epilogue, params, &mut out, &mut magnitudes);
                let after = quantize_static(isa, &whole, outputs, params, &mut expected);
                assert_eq!((found, &out), (after, &expected), "{isa}");

                let mut measured = vec![0.0; rows * outputs];
                linear_measured(&l.a, rows, &packed, &epilogue, &mut measured, &mut magnitudes);
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&measured), bits(&whole), "{isa}");
                let (mut sum, mut added) = (vec![0.25; rows * outputs], vec![0.25; rows * outputs]);
                linear_added(&l.a, rows, &packed, &epilogue, &mut added);
                add_in_place(isa, &mut sum, &whole);
                assert_eq!(bits(&added), bits(&sum), "{isa}");

                let mut of_rows = [vec![params; rows], vec![params; rows]];
                let [found_params, params] = &mut of_rows;
                let found = quantize_measured(isa, &measured, outputs, &magnitudes, &mut out, found_params);
                let after = quantize_tokens(isa, &whole, outputs, Symmetry::Symmetric, &mut expected, params);
                assert_eq!((found, found_params, &out), (after, params, &expected), "{isa}");
                assert_eq!(found.is_err(), bad.is_some(), "{isa}");
            }
            l = layer(&mut Rng::new(6), rows, inputs, outputs);
        }
    }
}

#[test]
fn the_fused_activation_is_the_separate_one() {
    let (rows, inputs, outputs) = (3, 20, 70);
    let l = layer(&mut Rng::new(5), rows, inputs, outputs);
    for isa in Isa::available() {
        let packed = PackedWeights::pack(isa, &l.w, outputs, inputs).unwrap();
        let run = |activation| {
            let input = RowParams::PerToken(&l.params);
            let epilogue = Epilogue { input, weight_scales: &l.scales, bias: Some(&l.bias), activation };
            let mut out = vec![0.0; rows * outputs];
            linear(&l.a, rows, &packed, 0..outputs, &epilogue, &mut out, outputs);
            out
        };
        for activation in [Activation::Relu, Activation::GeluErf, Activation::GeluTanh] {
            let mut separate = run(Activation::None);
            activate(isa, &mut separate, activation);
            assert_eq!(run(activation), separate, "{isa}: {activation:?}");
        }
    }
}
