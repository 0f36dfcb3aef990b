//! One Linear with a bias, f32 in and f32 out, by four engines on one thread.
//!
//! ```sh
//! RAYON_NUM_THREADS=1 RUSTFLAGS='-C target-cpu=native' cargo bench -p zeropoint-runtime --bench linear [-- FILTER]
//! ```
//!
//! Cases are rows x inputs x outputs and the engine; rates are operations per second (a multiplication and an addition
//! are two), of which quantising and scaling count none. The engines of one shape run one after another:
//!
//! - `zeropoint`: each row to symmetric INT8, then the product. Memory is used again, as in the runtime.
//! - `candle f32`: `candle_nn::Linear`, which allocates its output.
//! - `candle q8_0`: `QMatMul` on weights in blocks of 32 with a scale, which quantises its input alike, and the bias
//!   added to its output; each allocates.
//! - `rten u8i8`: rten-gemm's product of u8 and packed i8. What makes u8 of the input and f32 of the sums, with scales
//!   and bias, are plain loops in this file, which the compiler vectorises. Memory is used again.
//! - `rten u8i8 unpacked`: the same on weights as they are, for one row alone, where rten-gemm has a product of its
//!   own.
//!
//! The f32 product of candle and rten-gemm would split over rayon's threads, candle's `q8_0` over threads of its own.
//! candle takes their number from `RAYON_NUM_THREADS`; unless it is 1, nothing is measured. (`CANDLE_NUM_THREADS` goes
//! before it and stays unset.) rayon's one thread is that which measures, so that no engine waits for another thread.
//!
//! rten-gemm is the last version for Rust 1.89. Each engine's output is compared with f64 before it is timed.

// What a benchmark prints is its result.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::fmt;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use candle_nn::Linear;
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use rayon::ThreadPoolBuilder;
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedBMatrix};
use rten_tensor::Matrix;
use zeropoint_core::{QuantParams, Rng, Symmetry};
use zeropoint_kernels::{
    Activation, AlignedMemory, Epilogue, Isa, PackedWeights, RowParams, linear, quantize_tokens,
};

/// Rows, inputs and outputs: the Linears of a small BERT (384 wide) and of a base BERT (768), for one token and for
/// 128, and of a layer of a 7B decoder, from one token to a prompt of 128.
const SHAPES: [(usize, usize, usize); 16] = [
    (1, 384, 384),
    (1, 384, 1536),
    (1, 1536, 384),
    (128, 384, 384),
    (128, 384, 1536),
    (128, 1536, 384),
    (1, 768, 768),
    (1, 768, 3072),
    (1, 3072, 768),
    (128, 768, 768),
    (128, 768, 3072),
    (128, 3072, 768),
    (1, 4096, 4096),
    (1, 4096, 11_008),
    (32, 4096, 4096),
    (128, 4096, 4096),
];

/// Outputs that are compared with f64.
const COMPARED: usize = 1024;
/// How far from f64 each of them may be. Their root mean square is about 1, and INT8 errs by a standard deviation of
/// 0.006, or 0.009 with weights of 7 bits.
const TOLERANCE: f64 = 0.05;

fn main() {
    if std::env::var_os("RAYON_NUM_THREADS").is_none_or(|threads| threads != "1") {
        eprintln!("nothing is measured without RAYON_NUM_THREADS=1");
        return;
    }
    let pool = ThreadPoolBuilder::new().num_threads(1).use_current_thread().build_global();
    pool.expect("no pool has been built before");
    println!("zeropoint: {}, rten: {}", isa(), GemmExecutor::<u8, i8, i32>::new().kernel_name());
    divan::main();
}

fn isa() -> Isa {
    Isa::active().expect("ZEROPOINT_ISA names an instruction set of this machine, or nothing")
}

/// Engines, in the order of the list above.
#[derive(Clone, Copy, PartialEq, Eq)]
enum EngineKind {
    Zeropoint,
    CandleF32,
    CandleQ8,
    Rten,
    RtenUnpacked,
}

impl EngineKind {
    const ALL: [Self; 5] = [Self::Zeropoint, Self::CandleF32, Self::CandleQ8, Self::Rten, Self::RtenUnpacked];

    fn name(self) -> &'static str {
        match self {
            Self::Zeropoint => "zeropoint",
            Self::CandleF32 => "candle f32",
            Self::CandleQ8 => "candle q8_0",
            Self::Rten => "rten u8i8",
            Self::RtenUnpacked => "rten u8i8 unpacked",
        }
    }

    fn prepare(self, layer: &Layer) -> Box<dyn Engine> {
        match self {
            Self::Zeropoint => Box::new(Zeropoint::new(layer)),
            Self::CandleF32 => Box::new(CandleF32::new(layer)),
            Self::CandleQ8 => Box::new(CandleQ8::new(layer)),
            Self::Rten => Box::new(Rten::new(layer, true)),
            Self::RtenUnpacked => Box::new(Rten::new(layer, false)),
        }
    }
}

/// One line of the results.
#[derive(Clone, Copy)]
struct Case {
    shape: (usize, usize, usize),
    engine: EngineKind,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rows, inputs, outputs) = self.shape;
        write!(f, "{rows}x{inputs}x{outputs} {}", self.engine.name())
    }
}

fn cases() -> Vec<Case> {
    let of = |shape| EngineKind::ALL.map(|engine| Case { shape, engine });
    let exists = |case: &Case| case.engine != EngineKind::RtenUnpacked || case.shape.0 == 1;
    SHAPES.into_iter().flat_map(of).filter(exists).collect()
}

#[divan::bench(args = cases(), min_time = 0.3, max_time = 3.0)]
fn f32_to_f32(bencher: Bencher<'_, '_>, case: Case) {
    let (rows, inputs, outputs) = case.shape;
    let mut engine = {
        let layer = Layer::random(case.shape);
        let mut engine = case.engine.prepare(&layer);
        engine.run();
        layer.assert_near(&case, &engine.output());
        engine
    };
    bencher.counter(ItemsCount::new(2 * rows * inputs * outputs)).bench_local(|| engine.run());
}

/// A Linear and an input of its own.
struct Layer {
    rows: usize,
    inputs: usize,
    outputs: usize,
    /// `[rows, inputs]`.
    x: Vec<f32>,
    /// `[outputs, inputs]`.
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Layer {
    /// Uniform values, with which the products have a standard deviation of 1.
    fn random((rows, inputs, outputs): (usize, usize, usize)) -> Self {
        let mut rng = Rng::new(1);
        let mut uniform = |len: usize, absmax: f64| -> Vec<f32> {
            (0..len).map(|_| (absmax * (2.0 * rng.uniform() - 1.0)) as f32).collect()
        };
        Self {
            rows,
            inputs,
            outputs,
            x: uniform(rows * inputs, 1.0),
            weight: uniform(outputs * inputs, 3.0 / (inputs as f64).sqrt()),
            bias: uniform(outputs, 1.0),
        }
    }

    /// INT8 weights and a scale for each output.
    fn quantized_weight(&self) -> (Vec<i8>, Vec<f32>) {
        let mut q = vec![0; self.weight.len()];
        let mut params = vec![QuantParams { scale: 1.0, zero_point: 0 }; self.outputs];
        quantize_tokens(isa(), &self.weight, self.inputs, Symmetry::Symmetric, &mut q, &mut params)
            .expect("weights are finite");
        (q, params.iter().map(|params| params.scale).collect())
    }

    fn input_tensor(&self) -> Tensor {
        tensor(&self.x, self.rows, self.inputs)
    }

    fn weight_tensor(&self) -> Tensor {
        tensor(&self.weight, self.outputs, self.inputs)
    }

    fn bias_tensor(&self) -> Tensor {
        tensor(&self.bias, 1, self.outputs).squeeze(0).expect("there is one row")
    }

    /// One output in f64.
    fn expected(&self, row: usize, output: usize) -> f64 {
        let x = &self.x[row * self.inputs..][..self.inputs];
        let weight = &self.weight[output * self.inputs..][..self.inputs];
        let products = x.iter().zip(weight).map(|(x, weight)| f64::from(*x) * f64::from(*weight));
        products.sum::<f64>() + f64::from(self.bias[output])
    }

    /// Compares some outputs, drawn by chance, with f64: the time of a wrong product says nothing.
    fn assert_near(&self, case: &Case, found: &[f32]) {
        assert_eq!(found.len(), self.rows * self.outputs, "{case}: not as many outputs as there should be");
        let mut rng = Rng::new(2);
        for _ in 0..COMPARED {
            let (row, output) =
                (rng.below(self.rows as u64) as usize, rng.below(self.outputs as u64) as usize);
            let expected = self.expected(row, output);
            let found = f64::from(found[row * self.outputs + output]);
            assert!(
                (found - expected).abs() <= TOLERANCE,
                "{case}: output {output} of row {row} is {found}, not near {expected}: nothing is worth timing"
            );
        }
    }
}

fn tensor(values: &[f32], rows: usize, columns: usize) -> Tensor {
    Tensor::from_slice(values, (rows, columns), &Device::Cpu).expect("a rectangle")
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("the output is f32")
}

/// A Linear laid out as an engine wants it, with the input.
trait Engine {
    /// What is timed.
    fn run(&mut self);

    /// What the last run gave, `[rows, outputs]`.
    fn output(&self) -> Vec<f32>;
}

struct Zeropoint {
    x: Vec<f32>,
    weight: PackedWeights,
    weight_scales: Vec<f32>,
    bias: Vec<f32>,
    quantized: AlignedMemory<i8>,
    /// One for each row.
    params: Vec<QuantParams>,
    out: AlignedMemory<f32>,
}

impl Zeropoint {
    fn new(layer: &Layer) -> Self {
        let (q, weight_scales) = layer.quantized_weight();
        Self {
            x: layer.x.clone(),
            weight: PackedWeights::pack(isa(), &q, layer.outputs, layer.inputs).expect("valid sizes"),
            weight_scales,
            bias: layer.bias.clone(),
            quantized: AlignedMemory::default(),
            params: vec![QuantParams { scale: 1.0, zero_point: 0 }; layer.rows],
            out: AlignedMemory::default(),
        }
    }
}

impl Engine for Zeropoint {
    fn run(&mut self) {
        let (rows, inputs, outputs) = (self.params.len(), self.weight.inputs(), self.weight.outputs());
        let x = black_box(self.x.as_slice());
        let quantized = self.quantized.room(x.len());
        quantize_tokens(self.weight.isa(), x, inputs, Symmetry::Symmetric, quantized, &mut self.params)
            .expect("the input is finite");
        let epilogue = Epilogue {
            input: RowParams::PerToken(&self.params),
            weight_scales: &self.weight_scales,
            bias: Some(&self.bias),
            activation: Activation::None,
        };
        let out = self.out.room(rows * outputs);
        linear(quantized, rows, &self.weight, 0..outputs, &epilogue, out, outputs);
    }

    fn output(&self) -> Vec<f32> {
        self.out[..self.params.len() * self.weight.outputs()].to_vec()
    }
}

struct CandleF32 {
    x: Tensor,
    linear: Linear,
    out: Option<Tensor>,
}

impl CandleF32 {
    fn new(layer: &Layer) -> Self {
        let linear = Linear::new(layer.weight_tensor(), Some(layer.bias_tensor()));
        Self { x: layer.input_tensor(), linear, out: None }
    }
}

impl Engine for CandleF32 {
    fn run(&mut self) {
        // Freed first, so that the allocator can give the same memory again.
        self.out = None;
        self.out = Some(self.linear.forward(black_box(&self.x)).expect("candle runs"));
    }

    fn output(&self) -> Vec<f32> {
        self.out.as_ref().map(values).unwrap_or_default()
    }
}

struct CandleQ8 {
    x: Tensor,
    weight: QMatMul,
    bias: Tensor,
    out: Option<Tensor>,
}

impl CandleQ8 {
    fn new(layer: &Layer) -> Self {
        let weight =
            QTensor::quantize(&layer.weight_tensor(), GgmlDType::Q8_0).and_then(QMatMul::from_qtensor);
        let weight = weight.expect("inputs are a multiple of the block");
        Self { x: layer.input_tensor(), weight, bias: layer.bias_tensor(), out: None }
    }
}

impl Engine for CandleQ8 {
    fn run(&mut self) {
        self.out = None;
        let product = self.weight.forward(black_box(&self.x)).expect("candle runs");
        self.out = Some(product.broadcast_add(&self.bias).expect("candle adds"));
    }

    fn output(&self) -> Vec<f32> {
        self.out.as_ref().map(values).unwrap_or_default()
    }
}

/// The i8 operand, which is `[inputs, outputs]` to rten-gemm.
enum RtenWeight {
    Packed(PackedBMatrix<i8>),
    /// `[outputs, inputs]`.
    Unpacked(Vec<i8>),
}

struct Rten {
    gemm: GemmExecutor<u8, i8, i32>,
    x: Vec<f32>,
    weight: RtenWeight,
    weight_scales: Vec<f32>,
    bias: Vec<f32>,
    quantized: Vec<u8>,
    /// One for each row, as are the zero points, all of them [`RTEN_ZERO_POINT`].
    scales: Vec<f32>,
    zero_points: Vec<u8>,
    sums: Vec<i32>,
    out: Vec<f32>,
}

/// The u8 that stands for 0.0.
const RTEN_ZERO_POINT: u8 = 128;

/// Added to a number from -127 to 127, it leaves that number, rounded, plus the zero point in the lowest byte: from
/// 2^23 to 2^24, f32 has the integers and nothing between them.
const ROUNDING: f32 = 12_582_912.0 + RTEN_ZERO_POINT as f32;

/// Quantises a row symmetrically and returns its scale.
fn quantize_to_u8(x: &[f32], q: &mut [u8]) -> f32 {
    // Without their signs, bits are ordered as the numbers are, and the maximum of integers is a vector instruction.
    let absmax = f32::from_bits(x.iter().fold(0u32, |most, x| most.max(x.abs().to_bits())));
    let scale = absmax.max(1e-30) / 127.0;
    let steps = scale.recip();
    for (q, x) in q.iter_mut().zip(x) {
        *q = (x * steps + ROUNDING).to_bits() as u8;
    }
    scale
}

impl Rten {
    fn new(layer: &Layer, packed: bool) -> Self {
        let gemm = GemmExecutor::<u8, i8, i32>::new();
        let (mut q, mut weight_scales) = layer.quantized_weight();
        if gemm.may_saturate() {
            // Without VNNI two products are added in i16, which holds them for weights of 7 bits.
            for value in &mut q {
                *value = ((i16::from(*value) + 1) >> 1) as i8;
            }
            for scale in &mut weight_scales {
                *scale *= 2.0;
            }
        }
        let weight = if packed {
            let matrix = Matrix::<i8>::from_data([layer.outputs, layer.inputs], q.as_slice());
            RtenWeight::Packed(gemm.prepack_b(matrix.transposed()))
        } else {
            RtenWeight::Unpacked(q)
        };
        Self {
            gemm,
            x: layer.x.clone(),
            weight,
            weight_scales,
            bias: layer.bias.clone(),
            quantized: vec![0; layer.x.len()],
            scales: vec![0.0; layer.rows],
            zero_points: vec![RTEN_ZERO_POINT; layer.rows],
            sums: vec![0; layer.rows * layer.outputs],
            out: vec![0.0; layer.rows * layer.outputs],
        }
    }
}

impl Engine for Rten {
    fn run(&mut self) {
        let (rows, outputs) = (self.scales.len(), self.bias.len());
        let x = black_box(self.x.as_slice());
        let inputs = x.len() / rows;
        let quantized = self.quantized.chunks_exact_mut(inputs);
        for ((x, q), scale) in x.chunks_exact(inputs).zip(quantized).zip(&mut self.scales) {
            *scale = quantize_to_u8(x, q);
        }

        let a = Matrix::<u8>::from_data([rows, inputs], self.quantized.as_slice());
        let b = match &self.weight {
            RtenWeight::Packed(packed) => GemmInputB::Packed(packed),
            RtenWeight::Unpacked(q) => {
                GemmInputB::Unpacked(Matrix::<i8>::from_data([outputs, inputs], q.as_slice()).transposed())
            }
        };
        let zero_point = rten_gemm::QuantParams { zero_point: self.zero_points.as_slice() };
        let options = GemmOptions { a_quant: Some(zero_point), ..GemmOptions::default() };
        self.gemm.gemm(&mut self.sums, GemmInputA::Unpacked(a), b, options).expect("the sizes agree");

        let rows = self.out.chunks_exact_mut(outputs).zip(self.sums.chunks_exact(outputs));
        for ((out, sums), scale) in rows.zip(&self.scales) {
            let columns = sums.iter().zip(&self.weight_scales).zip(&self.bias);
            for (out, ((sum, weight_scale), bias)) in out.iter_mut().zip(columns) {
                *out = *sum as f32 * (scale * weight_scale) + bias;
            }
        }
    }

    fn output(&self) -> Vec<f32> {
        self.out.clone()
    }
}
