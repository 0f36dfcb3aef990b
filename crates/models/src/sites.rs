//! Sites at work: the Linears that read one activation, in one of their lives.

use candle_core::{Device, Result, Tensor};
use zeropoint_core::{ActivationMode, QuantParams, Symmetry, dequantize, quantize, quantize_with_reciprocal};
use zeropoint_kernels::Isa;

use crate::ops::{BiasActivation, rows_of};
use crate::spec::ActivationFn;

/// Runs all Linears that read one site: `[rows, channels]` in, one `[rows, outputs]` for each consumer out, in the
/// order of [`crate::Site::consumers`], each with its bias and non-linearity applied.
pub trait SiteOp: Send + Sync {
    /// The outputs of the consumers for contiguous f32 `input`.
    fn forward(&self, input: &Tensor) -> Result<Vec<Tensor>>;
}

/// One Linear in f32.
pub struct FloatLinear {
    /// `[outputs, inputs]`.
    pub weight: Tensor,
    /// `[outputs]`.
    pub bias: Option<Vec<f32>>,
    /// Applied to the sum.
    pub activation: ActivationFn,
}

impl FloatLinear {
    /// `activation(input * weight^T + bias)`.
    pub fn forward(&self, isa: Isa, input: &Tensor) -> Result<Tensor> {
        let out = input.matmul(&self.weight.t()?)?;
        out.inplace_op1(&BiasActivation { isa, bias: self.bias.as_deref(), activation: self.activation })?;
        Ok(out)
    }
}

/// The f32 life: the original.
pub struct FloatSite {
    /// For the epilogue.
    pub isa: Isa,
    /// The consumers in order.
    pub linears: Vec<FloatLinear>,
}

impl SiteOp for FloatSite {
    fn forward(&self, input: &Tensor) -> Result<Vec<Tensor>> {
        self.linears.iter().map(|linear| linear.forward(self.isa, input)).collect()
    }
}

/// How the activation of a site becomes INT8.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ActivationQuantizer {
    /// With these parameters, found in calibration.
    Static(QuantParams),
    /// With parameters from each row itself.
    Dynamic(Symmetry),
}

impl ActivationQuantizer {
    /// Static or dynamic.
    pub fn mode(&self) -> ActivationMode {
        match self {
            Self::Static(_) => ActivationMode::Static,
            Self::Dynamic(_) => ActivationMode::Dynamic,
        }
    }

    /// `dequantize(quantize(x))` of `[rows, columns]` in place, by the scalar specification.
    pub fn simulate(&self, x: &mut [f32], columns: usize) -> std::result::Result<(), zeropoint_core::ParamsError> {
        match *self {
            Self::Static(params) => x.iter_mut().for_each(|v| *v = dequantize(quantize(*v, params), params)),
            Self::Dynamic(symmetry) => {
                for row in x.chunks_exact_mut(columns) {
                    let (min, max) = row.iter().fold((0f32, 0f32), |(low, high), v| (low.min(*v), high.max(*v)));
                    if let Some(bad) = row.iter().find(|v| !v.is_finite()) {
                        return Err(zeropoint_core::ParamsError::NotFinite { min: *bad, max: *bad });
                    }
                    let params = QuantParams::from_range(min, max, symmetry)?;
                    let reciprocal = 1.0 / params.scale;
                    for v in row {
                        *v = dequantize(quantize_with_reciprocal(*v, reciprocal, params.zero_point), params);
                    }
                }
            }
        }
        Ok(())
    }
}

/// The simulated life: activations and weights rounded to what INT8 can say, the product in f32.
///
/// Consumers of one site may differ: those without a quantiser run on the original activation.
pub struct SimulatedSite {
    /// For the epilogue.
    pub isa: Isa,
    /// The consumers in order: their activation quantiser (`None`: float), and the Linear with its weight already
    /// dequantised.
    pub linears: Vec<(Option<ActivationQuantizer>, FloatLinear)>,
}

impl SiteOp for SimulatedSite {
    fn forward(&self, input: &Tensor) -> Result<Vec<Tensor>> {
        let mut simulated: Option<(ActivationQuantizer, Tensor)> = None;
        self.linears
            .iter()
            .map(|(quantizer, linear)| {
                let Some(quantizer) = *quantizer else { return linear.forward(self.isa, input) };
                if simulated.as_ref().is_none_or(|(done, _)| *done != quantizer) {
                    simulated = Some((quantizer, simulate(input, quantizer)?));
                }
                match &simulated {
                    Some((_, rounded)) => linear.forward(self.isa, rounded),
                    None => linear.forward(self.isa, input),
                }
            })
            .collect()
    }
}

fn simulate(input: &Tensor, quantizer: ActivationQuantizer) -> Result<Tensor> {
    let (rows, columns) = input.dims2()?;
    let mut values = rows_of(input, <[f32]>::to_vec)?;
    quantizer.simulate(&mut values, columns).map_err(candle_core::Error::wrap)?;
    Tensor::from_vec(values, (rows, columns), &Device::Cpu)
}
