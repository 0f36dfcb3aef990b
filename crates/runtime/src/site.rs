//! A site in integers: one quantised activation for all Linears that read it.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;
use zeropoint_core::QuantParams;
use zeropoint_kernels::{Isa, NonFinite, RowParams, quantize_static, quantize_tokens};
use zeropoint_models::{ActivationQuantizer, FloatLinear, SiteOp, rows_of};

use crate::{IntegerLinear, WeightOnlyLinear};

/// Rows that one task quantises.
const ROWS_PER_TASK: usize = 32;

/// A Linear of a site: integer with its activation quantiser, with a quantised weight alone, or float as in the source.
pub(crate) enum Reader {
    Integer(ActivationQuantizer, Arc<IntegerLinear>),
    WeightOnly(WeightOnlyLinear),
    Float(FloatLinear),
}

/// The operator of a site whose Linears are quantised, all or some.
pub struct IntegerSite {
    isa: Isa,
    readers: Vec<Reader>,
}

/// An activation in INT8.
struct QuantizedRows {
    values: Vec<i8>,
    /// One for each row, of which a static quantiser uses none.
    params: Vec<QuantParams>,
}

/// The parameters of rows that `quantizer` has quantised.
pub(crate) fn params_of(quantizer: ActivationQuantizer, rows: &[QuantParams]) -> RowParams<'_> {
    match quantizer {
        ActivationQuantizer::Static(params) => RowParams::PerTensor(params),
        ActivationQuantizer::Dynamic(_) => RowParams::PerToken(rows),
    }
}

impl IntegerSite {
    pub(crate) fn new(isa: Isa, readers: Vec<Reader>) -> Self {
        Self { isa, readers }
    }

    /// The Linears with their quantiser, where all are integer and read the activation quantised alike.
    pub(crate) fn uniform(&self) -> Option<(ActivationQuantizer, Vec<Arc<IntegerLinear>>)> {
        let mut shared = None;
        let mut linears = Vec::with_capacity(self.readers.len());
        for reader in &self.readers {
            let Reader::Integer(quantizer, linear) = reader else { return None };
            if *shared.get_or_insert(*quantizer) != *quantizer {
                return None;
            }
            linears.push(Arc::clone(linear));
        }
        Some((shared?, linears))
    }

    fn quantize(&self, x: &[f32], columns: usize, quantizer: ActivationQuantizer) -> Result<QuantizedRows> {
        let mut values = vec![0i8; x.len()];
        let mut params = vec![QuantParams { scale: 1.0, zero_point: 0 }; x.len() / columns];
        let task = columns * ROWS_PER_TASK;
        values
            .par_chunks_mut(task)
            .zip(x.par_chunks(task))
            .zip(params.par_chunks_mut(ROWS_PER_TASK))
            .try_for_each(|((out, x), params)| quantize_rows(self.isa, quantizer, x, columns, out, params))
            .map_err(candle_core::Error::wrap)?;
        Ok(QuantizedRows { values, params })
    }
}

/// Quantises some rows in one way; `params` has room for one a row.
pub(crate) fn quantize_rows(
    isa: Isa,
    quantizer: ActivationQuantizer,
    x: &[f32],
    columns: usize,
    out: &mut [i8],
    params: &mut [QuantParams],
) -> std::result::Result<(), NonFinite> {
    match quantizer {
        ActivationQuantizer::Static(shared) => quantize_static(isa, x, columns, shared, out),
        ActivationQuantizer::Dynamic(symmetry) => quantize_tokens(isa, x, columns, symmetry, out, params),
    }
}

impl SiteOp for IntegerSite {
    fn forward(&self, input: &Tensor) -> Result<Vec<Tensor>> {
        let (rows, columns) = input.dims2()?;
        let mut ready: Option<(ActivationQuantizer, QuantizedRows)> = None;
        let mut outputs = Vec::with_capacity(self.readers.len());
        for reader in &self.readers {
            outputs.push(match reader {
                Reader::Float(linear) => linear.forward(self.isa, input)?,
                Reader::WeightOnly(linear) => {
                    let out = rows_of(input, |x| linear.forward(x, rows))?;
                    Tensor::from_vec(out, (rows, linear.outputs()), &Device::Cpu)?
                }
                Reader::Integer(quantizer, linear) => {
                    let quantized = match ready.take() {
                        Some((done, quantized)) if done == *quantizer => quantized,
                        _ => rows_of(input, |x| self.quantize(x, columns, *quantizer))??,
                    };
                    let params = params_of(*quantizer, &quantized.params);
                    let out = linear.forward(&quantized.values, rows, params);
                    ready = Some((*quantizer, quantized));
                    Tensor::from_vec(out, (rows, linear.outputs()), &Device::Cpu)?
                }
            });
        }
        Ok(outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zeropoint_core::{Rng, Symmetry};
    use zeropoint_formats::QuantizedLinear;
    use zeropoint_models::{ActivationFn, SimulatedLinear, SimulatedReader, SimulatedSite};

    /// How a reader of the site under test is quantised; `None` leaves it float.
    type ReaderKind = Option<ActivationQuantizer>;

    fn quantizers() -> impl Strategy<Value = ActivationQuantizer> {
        prop_oneof![
            (1e-3f32..0.2)
                .prop_map(|scale| ActivationQuantizer::Static(QuantParams { scale, zero_point: 0 })),
            (1e-3f32..0.2, any::<i8>()).prop_map(|(scale, zero_point)| {
                ActivationQuantizer::Static(QuantParams { scale, zero_point })
            }),
            Just(ActivationQuantizer::Dynamic(Symmetry::Symmetric)),
            Just(ActivationQuantizer::Dynamic(Symmetry::Asymmetric)),
        ]
    }

    /// Readers of one site: all alike, as in a plan for vLLM, or each in its own way, some of them float.
    fn readers() -> impl Strategy<Value = Vec<ReaderKind>> {
        prop_oneof![
            (quantizers(), 1usize..4).prop_map(|(quantizer, count)| vec![Some(quantizer); count]),
            prop::collection::vec(prop::option::weighted(0.7, quantizers()), 1..5),
        ]
    }

    /// Widths around the vectors of the kernels and around the 512 inputs whose sums f32 holds exactly.
    fn widths() -> impl Strategy<Value = usize> {
        prop_oneof![1usize..70, 500usize..530, 1020usize..1100]
    }

    /// Values of order 1 in which a few channels are outliers, and a few rows are zero or tiny.
    fn activation(rows: usize, columns: usize, rng: &mut Rng) -> Vec<f32> {
        let loud: Vec<f32> = (0..columns).map(|_| if rng.below(20) == 0 { 60.0 } else { 1.0 }).collect();
        let mut x = Vec::with_capacity(rows * columns);
        for _ in 0..rows {
            let row = [1.0, 1.0, 1.0, 1.0, 1e-20, 0.0][rng.below(6) as usize];
            x.extend(loud.iter().map(|channel| rng.normal() as f32 * channel * row));
        }
        x
    }

    const ACTIVATIONS: [ActivationFn; 5] = [
        ActivationFn::Identity,
        ActivationFn::Relu,
        ActivationFn::GeluErf,
        ActivationFn::GeluTanh,
        ActivationFn::Tanh,
    ];

    /// The same site in two lives.
    fn sites(
        isa: Isa,
        kinds: &[ReaderKind],
        columns: usize,
        outputs: usize,
        rng: &mut Rng,
    ) -> (IntegerSite, SimulatedSite) {
        let (mut integer, mut simulated) = (Vec::new(), Vec::new());
        for kind in kinds {
            let activation = ACTIVATIONS[rng.below(5) as usize];
            let bias =
                (rng.below(3) > 0).then(|| (0..outputs).map(|_| rng.normal() as f32).collect::<Vec<f32>>());
            let q: Vec<i8> = (0..outputs * columns).map(|_| rng.next_u64() as i8).collect();
            let real: Vec<f32> = q.iter().map(|q| f32::from(*q)).collect();
            let weight = Tensor::from_vec(real, (outputs, columns), &Device::Cpu).unwrap();
            if let Some(quantizer) = *kind {
                let scales: Vec<f32> =
                    (0..outputs).map(|_| (rng.normal() as f32).abs() * 1e-3 + 1e-5).collect();
                let stored = QuantizedLinear {
                    weight: q,
                    outputs,
                    inputs: columns,
                    weight_scales: scales.clone(),
                    column_groups: None,
                    input: None,
                };
                let packed = IntegerLinear::new(isa, &stored, bias.clone(), activation).unwrap();
                integer.push(Reader::Integer(quantizer, Arc::new(packed)));
                let linear = SimulatedLinear { quantizer, weight, weight_scales: scales, bias, activation };
                simulated.push(SimulatedReader::Integer(linear));
            } else {
                let float = || FloatLinear::new(weight.clone(), bias.clone(), activation);
                integer.push(Reader::Float(float()));
                simulated.push(SimulatedReader::Float(float()));
            }
        }
        (IntegerSite::new(isa, integer), SimulatedSite { isa, readers: simulated })
    }

    fn bits(outputs: &[Tensor]) -> Vec<Vec<u32>> {
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        outputs.iter().map(|tensor| values(tensor).iter().map(|v| v.to_bits()).collect()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn the_integers_are_the_simulation_bit_for_bit(
            kinds in readers(), rows in 1usize..70, columns in widths(), outputs in 1usize..150, seed: u64,
        ) {
            let x = activation(rows, columns, &mut Rng::new(seed));
            let input = Tensor::from_vec(x, (rows, columns), &Device::Cpu).unwrap();
            for isa in Isa::available() {
                let (integer, simulated) = sites(isa, &kinds, columns, outputs, &mut Rng::new(seed ^ 1));
                let (integer, simulated) = (integer.forward(&input).unwrap(), simulated.forward(&input).unwrap());
                prop_assert_eq!(integer.len(), kinds.len());
                for (found, expected) in integer.iter().zip(&simulated) {
                    prop_assert_eq!(found.dims(), &[rows, outputs]);
                    prop_assert_eq!(expected.dims(), &[rows, outputs]);
                }
                prop_assert_eq!(bits(&integer), bits(&simulated), "{}", isa);
            }
        }
    }

    #[test]
    fn a_row_that_is_not_finite_stops_quantisation_in_both_lives() {
        let quantizers = [
            ActivationQuantizer::Dynamic(Symmetry::Symmetric),
            ActivationQuantizer::Dynamic(Symmetry::Asymmetric),
            ActivationQuantizer::Static(QuantParams { scale: 0.1, zero_point: 3 }),
        ];
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for quantizer in quantizers {
                let kinds = [Some(quantizer)];
                let mut x = vec![1.0; 40 * 3];
                x[37 * 3 + 1] = bad;
                let input = Tensor::from_vec(x, (40, 3), &Device::Cpu).unwrap();
                let (integer, simulated) = sites(Isa::best(), &kinds, 3, 8, &mut Rng::new(1));
                assert!(integer.forward(&input).unwrap_err().to_string().contains("holds NaN or infinity"));
                assert!(simulated.forward(&input).unwrap_err().to_string().contains("is not finite"));
            }
        }
    }

    #[test]
    fn the_number_of_threads_does_not_show() {
        let kinds: Vec<ReaderKind> = vec![
            Some(ActivationQuantizer::Dynamic(Symmetry::Asymmetric)),
            Some(ActivationQuantizer::Static(QuantParams { scale: 0.03, zero_point: -7 })),
        ];
        for rows in [1, 33, 100] {
            let x = activation(rows, 130, &mut Rng::new(9));
            let input = Tensor::from_vec(x, (rows, 130), &Device::Cpu).unwrap();
            let with = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let (integer, _) = sites(Isa::best(), &kinds, 130, 300, &mut Rng::new(4));
                bits(&pool.install(|| integer.forward(&input)).unwrap())
            };
            assert_eq!(with(1), with(2));
            assert_eq!(with(1), with(3));
        }
    }
}
