//! The operations around the matrix products, as candle operators over the fast code of `zeropoint-kernels`.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, InplaceOp1, InplaceOp2, Layout, Result, Shape, Tensor, bail,
};
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use zeropoint_kernels::{self as kernels, Activation, Isa, RowMagnitudes};

use crate::spec::{ActivationFn, NormKind};

/// Rows handled by one task. Fixed, so that the split never depends on the number of threads.
pub(crate) const ROWS_PER_TASK: usize = 32;

fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(data) = storage else { bail!("an f32 tensor is expected") };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => bail!("a contiguous tensor is expected"),
    }
}

pub(crate) fn contiguous_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let CpuStorage::F32(data) = storage else { bail!("an f32 tensor is expected") };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&mut data[start..end]),
        None => bail!("a contiguous tensor is expected"),
    }
}

/// Calls `f` with the values of a contiguous f32 tensor on the CPU, row-major, without a copy.
pub fn rows_of<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    let candle_core::Storage::Cpu(storage) = &*storage else { bail!("a tensor in main memory is expected") };
    Ok(f(contiguous(storage, layout)?))
}

/// As [`rows_of`], with the bits of the values of a bfloat16 tensor.
pub(crate) fn halves_of<T>(tensor: &Tensor, f: impl FnOnce(&[u16]) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (candle_core::Storage::Cpu(CpuStorage::BF16(data)), Some((start, end))) => {
            Ok(f(data[start..end].reinterpret_cast()))
        }
        _ => bail!("a contiguous bfloat16 tensor in main memory is expected"),
    }
}

/// A norm, of the input or of the sum of input and residual.
#[derive(Debug, Clone)]
pub struct Norm {
    /// The instruction set that it runs on.
    pub isa: Isa,
    /// What it computes.
    pub kind: NormKind,
    /// Factor of each channel.
    pub gain: Vec<f32>,
    /// Added to each channel; zeros where the kind adds nothing.
    pub shift: Vec<f32>,
    /// Added to the variance, or to the mean square.
    pub eps: f32,
}

impl Norm {
    /// Normalises the rows of `x` in place, on the calling thread.
    pub fn apply(&self, x: &mut [f32]) {
        match self.kind {
            NormKind::Layer => kernels::layer_norm(self.isa, x, &self.gain, &self.shift, self.eps),
            NormKind::Rms => kernels::rms_norm(self.isa, x, &self.gain, self.eps),
        }
    }

    /// As [`Norm::apply`], on all threads.
    pub(crate) fn in_place(&self, x: &mut [f32]) {
        x.par_chunks_mut(self.gain.len() * ROWS_PER_TASK).for_each(|x| self.apply(x));
    }

    fn run(&self, x: &[f32], residual: Option<&[f32]>) -> Vec<f32> {
        let task = self.gain.len() * ROWS_PER_TASK;
        let mut out = x.to_vec();
        out.par_chunks_mut(task).enumerate().for_each(|(i, out)| {
            if let Some(residual) = residual {
                kernels::add_in_place(self.isa, out, &residual[i * task..][..out.len()]);
            }
            self.apply(out);
        });
        out
    }

    pub(crate) fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        match residual {
            Some(residual) => x.apply_op2_no_bwd(residual, self),
            None => x.apply_op1_no_bwd(self),
        }
    }
}

impl CustomOp1 for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.run(contiguous(x, layout)?, None)), layout.shape().clone()))
    }
}

impl CustomOp2 for Norm {
    fn name(&self) -> &'static str {
        "residual-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        r: &CpuStorage,
        lr: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = self.run(contiguous(x, lx)?, Some(contiguous(r, lr)?));
        Ok((CpuStorage::F32(out), lx.shape().clone()))
    }
}

/// Adds a bias to each row and applies the non-linearity, in place.
pub(crate) struct BiasActivation<'a> {
    pub(crate) isa: Isa,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) activation: ActivationFn,
}

impl InplaceOp1 for BiasActivation<'_> {
    fn name(&self) -> &'static str {
        "bias-activation"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let columns = layout.dims().last().copied().unwrap_or(1);
        let x = contiguous_mut(storage, layout)?;
        x.par_chunks_mut((columns * ROWS_PER_TASK).max(1)).for_each(|rows| {
            if let Some(bias) = self.bias {
                for row in rows.chunks_exact_mut(columns) {
                    kernels::add_in_place(self.isa, row, bias);
                }
            }
            apply_activation(self.isa, rows, self.activation);
        });
        Ok(())
    }
}

/// Applies a non-linearity, in place.
pub(crate) struct ActivateInPlace {
    pub(crate) isa: Isa,
    pub(crate) activation: ActivationFn,
}

impl InplaceOp1 for ActivateInPlace {
    fn name(&self) -> &'static str {
        "activate-in-place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let columns = layout.dims().last().copied().unwrap_or(1);
        let x = contiguous_mut(storage, layout)?;
        x.par_chunks_mut((columns * ROWS_PER_TASK).max(1))
            .for_each(|rows| apply_activation(self.isa, rows, self.activation));
        Ok(())
    }
}

/// Keeps values softly below `cap`, in place.
pub(crate) struct SoftCapInPlace {
    pub(crate) isa: Isa,
    pub(crate) cap: f32,
}

impl InplaceOp1 for SoftCapInPlace {
    fn name(&self) -> &'static str {
        "soft-cap-in-place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let columns = layout.dims().last().copied().unwrap_or(1);
        let x = contiguous_mut(storage, layout)?;
        x.par_chunks_mut((columns * ROWS_PER_TASK).max(1))
            .for_each(|rows| kernels::soft_cap_in_place(self.isa, rows, self.cap));
        Ok(())
    }
}

/// Applies a non-linearity to each value.
pub fn apply_activation(isa: Isa, x: &mut [f32], activation: ActivationFn) {
    match activation {
        ActivationFn::Identity => {}
        ActivationFn::Relu => kernels::activate(isa, x, Activation::Relu),
        ActivationFn::GeluErf => kernels::activate(isa, x, Activation::GeluErf),
        ActivationFn::GeluTanh => kernels::activate(isa, x, Activation::GeluTanh),
        ActivationFn::QuickGelu => kernels::swish_in_place(isa, x, 1.702),
        ActivationFn::Silu => kernels::swish_in_place(isa, x, 1.0),
        ActivationFn::Tanh => kernels::tanh_in_place(isa, x),
        ActivationFn::Sigmoid => kernels::sigmoid_in_place(isa, x),
    }
}

/// `out = activation(gate) * up`, all of one row; the largest magnitude where the kernel finds it on the way.
pub fn apply_gate<'a>(
    isa: Isa,
    gate: &[f32],
    up: &[f32],
    activation: ActivationFn,
    out: &mut [f32],
    magnitude: &'a mut RowMagnitudes,
) -> Option<&'a RowMagnitudes> {
    let beta = match activation {
        ActivationFn::Silu => 1.0,
        ActivationFn::QuickGelu => 1.702,
        _ => {
            out.copy_from_slice(gate);
            apply_activation(isa, out, activation);
            out.iter_mut().zip(up).for_each(|(out, up)| *out *= up);
            return None;
        }
    };
    kernels::swish_gate(isa, gate, up, beta, out, magnitude);
    Some(magnitude)
}

/// `x *= y`, in place.
pub(crate) struct MultiplyInPlace;

impl InplaceOp2 for MultiplyInPlace {
    fn name(&self) -> &'static str {
        "multiply-in-place"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, lx: &Layout, y: &CpuStorage, ly: &Layout) -> Result<()> {
        let (x, y) = (contiguous_mut(x, lx)?, contiguous(y, ly)?);
        let task = lx.dims().last().copied().unwrap_or(1).max(1) * ROWS_PER_TASK;
        x.par_chunks_mut(task).zip(y.par_chunks(task)).for_each(|(x, y)| {
            x.iter_mut().zip(y).for_each(|(x, y)| *x *= y);
        });
        Ok(())
    }
}

/// `x += y`, in place.
pub(crate) struct AddInPlace(pub(crate) Isa);

impl InplaceOp2 for AddInPlace {
    fn name(&self) -> &'static str {
        "add-in-place"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, lx: &Layout, y: &CpuStorage, ly: &Layout) -> Result<()> {
        kernels::add_in_place(self.0, contiguous_mut(x, lx)?, contiguous(y, ly)?);
        Ok(())
    }
}
