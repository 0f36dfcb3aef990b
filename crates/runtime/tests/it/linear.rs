//! An integer Linear is an exact sum and one epilogue, whatever the shape, the instruction set and the threads.

use rayon::ThreadPool;
use zeropoint_core::{QuantParams, Rng};
use zeropoint_formats::QuantizedLinear;
use zeropoint_kernels::{Activation, Isa, RowParams, activate, tanh_in_place};
use zeropoint_models::ActivationFn;
use zeropoint_runtime::IntegerLinear;

struct Case {
    stored: QuantizedLinear,
    bias: Option<Vec<f32>>,
    a: Vec<i8>,
    rows: usize,
    /// One for each row.
    params: Vec<QuantParams>,
}

fn int8(rng: &mut Rng, extremes: bool) -> i8 {
    // Now and then nothing but the ends of the range: the largest sums there can be.
    if extremes { if rng.below(2) == 0 { -128 } else { 127 } } else { rng.next_u64() as i8 }
}

impl Case {
    fn random(rows: usize, inputs: usize, outputs: usize, bias: bool, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let extremes = seed.is_multiple_of(3);
        let scales = |rng: &mut Rng, count: usize| -> Vec<f32> {
            (0..count).map(|_| (rng.normal() as f32).abs() * 0.01 + 1e-4).collect()
        };
        let weight = (0..outputs * inputs).map(|_| int8(&mut rng, extremes)).collect();
        let weight_scales = scales(&mut rng, outputs);
        let bias = bias.then(|| (0..outputs).map(|_| rng.normal() as f32).collect());
        let a = (0..rows * inputs).map(|_| int8(&mut rng, extremes)).collect();
        let params = scales(&mut rng, rows)
            .into_iter()
            .map(|scale| QuantParams { scale, zero_point: int8(&mut rng, false) })
            .collect();
        Self {
            stored: QuantizedLinear {
                weight,
                outputs,
                inputs,
                weight_scales,
                column_groups: None,
                input: None,
            },
            bias,
            a,
            rows,
            params,
        }
    }

    /// The sum in 64 bits, one value after the other, and the epilogue as documented: rounded to f32, times the input's
    /// scale, then times the weight's scale and plus the bias in one rounding.
    fn expected(&self, params: impl Fn(usize) -> QuantParams) -> Vec<f32> {
        let QuantizedLinear { outputs, inputs, weight, weight_scales, .. } = &self.stored;
        let mut out = Vec::with_capacity(self.rows * outputs);
        for row in 0..self.rows {
            let QuantParams { scale, zero_point } = params(row);
            let a = &self.a[row * inputs..][..*inputs];
            for output in 0..*outputs {
                let w = &weight[output * inputs..][..*inputs];
                let sum: i64 = a
                    .iter()
                    .zip(w)
                    .map(|(a, w)| (i64::from(*a) - i64::from(zero_point)) * i64::from(*w))
                    .sum();
                let bias = self.bias.as_ref().map_or(0.0, |bias| bias[output]);
                out.push((sum as f32 * scale).mul_add(weight_scales[output], bias));
            }
        }
        out
    }

    fn linear(&self, isa: Isa, activation: ActivationFn) -> IntegerLinear {
        IntegerLinear::new(isa, &self.stored, self.bias.clone(), activation).expect("it packs")
    }

    fn what(&self) -> String {
        format!("[{}, {}] x [{}, {}]", self.rows, self.stored.inputs, self.stored.outputs, self.stored.inputs)
    }
}

fn pools() -> Vec<ThreadPool> {
    (1..=3).map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("a pool")).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn every_shape_is_the_64_bit_sum_and_the_epilogue_bit_for_bit() {
    let pools = pools();
    let mut seed = 0u64;
    for rows in [1, 2, 31, 47, 48, 49, 100] {
        for (inputs, outputs) in [(1, 1), (3, 65), (31, 64), (64, 127), (130, 200), (33, 384), (257, 20)] {
            seed += 1;
            let case = Case::random(rows, inputs, outputs, seed.is_multiple_of(2), seed);
            let shared = case.params[0];
            let (per_token, per_tensor) = (case.expected(|row| case.params[row]), case.expected(|_| shared));
            for isa in Isa::available() {
                let linear = case.linear(isa, ActivationFn::Identity);
                assert_eq!((linear.outputs(), linear.inputs()), (outputs, inputs));
                for pool in &pools {
                    let what =
                        || format!("{} on {isa} with {} threads", case.what(), pool.current_num_threads());
                    let found =
                        pool.install(|| linear.forward(&case.a, rows, RowParams::PerToken(&case.params)));
                    assert_eq!(bits(&found), bits(&per_token), "{}, per token", what());
                    let found = pool.install(|| linear.forward(&case.a, rows, RowParams::PerTensor(shared)));
                    assert_eq!(bits(&found), bits(&per_tensor), "{}, per tensor", what());
                }
            }
        }
    }
}

#[test]
fn the_longest_sums_are_exact() {
    let inputs = 65_536;
    for zero_point in [-128, 127] {
        let stored = QuantizedLinear {
            weight: vec![-128; inputs],
            outputs: 1,
            inputs,
            weight_scales: vec![1.0],
            column_groups: None,
            input: None,
        };
        let a = vec![if zero_point < 0 { 127 } else { -128 }; inputs];
        let params = QuantParams { scale: 1.0, zero_point };
        let case = Case { stored, bias: None, a, rows: 1, params: vec![params] };
        for isa in Isa::available() {
            let found =
                case.linear(isa, ActivationFn::Identity).forward(&case.a, 1, RowParams::PerTensor(params));
            assert_eq!(found, case.expected(|_| params), "{isa}");
            assert_eq!(found[0].abs(), 255.0 * 128.0 * 65_536.0);
        }
    }
}

#[test]
fn the_non_linearity_follows_the_epilogue() {
    type Apply = fn(&mut [f32]);
    let activations: [(ActivationFn, Apply); 5] = [
        (ActivationFn::Identity, |_| ()),
        (ActivationFn::Relu, |x| x.iter_mut().for_each(|x| *x = x.max(0.0))),
        (ActivationFn::GeluErf, |x| activate(Isa::SCALAR, x, Activation::GeluErf)),
        (ActivationFn::GeluTanh, |x| activate(Isa::SCALAR, x, Activation::GeluTanh)),
        (ActivationFn::Tanh, |x| tanh_in_place(Isa::SCALAR, x)),
    ];
    for rows in [5, 60] {
        let case = Case::random(rows, 40, 150, true, 7);
        for (activation, apply) in activations {
            let mut expected = case.expected(|row| case.params[row]);
            assert!(expected.iter().any(|x| *x < 0.0) && expected.iter().any(|x| *x > 0.0));
            apply(&mut expected);
            for isa in Isa::available() {
                for pool in pools() {
                    let found = pool.install(|| {
                        case.linear(isa, activation).forward(&case.a, rows, RowParams::PerToken(&case.params))
                    });
                    assert_eq!(bits(&found), bits(&expected), "{activation:?}, {rows} rows on {isa}");
                }
            }
        }
    }
}

#[test]
fn weights_that_cannot_be_packed_are_refused() {
    let stored = |weight: usize, outputs, inputs| QuantizedLinear {
        weight: vec![0; weight],
        outputs,
        inputs,
        weight_scales: vec![1.0; outputs],
        column_groups: None,
        input: None,
    };
    for (stored, says) in [
        (stored(5, 2, 3), "a weight of 2 outputs and 3 inputs cannot have 5 values"),
        (stored(0, 2, 0), "has no values: both must be at least 1"),
        (stored(65_537, 1, 65_537), "is too wide: i32 sums are safe up to 65536 inputs"),
    ] {
        let error =
            IntegerLinear::new(Isa::best(), &stored, None, ActivationFn::Identity).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
