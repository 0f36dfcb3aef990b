//! One quantised Linear for models that are built by hand on candle.

use std::sync::Arc;

use candle_core::{Module, Result, Tensor};
use zeropoint_core::Scheme;
use zeropoint_formats::DeployedConfig;
use zeropoint_kernels::{ChannelRotation, Isa};
use zeropoint_models::{ModelDirectory, ModelError, SiteOp};

use crate::RuntimeError;
use crate::model::{reader, scheme_of};
use crate::site::IntegerSite;

/// A quantised Linear as a candle module. In INT8 its input is quantised as the directory says, the product is exact in
/// integers, and scales, bias and non-linearity are applied in one pass; where its weight alone is quantised, its input stays
/// float.
///
/// ```no_run
/// use candle_core::{Device, Module, Tensor};
/// use zeropoint_models::{ModelDirectory, SourceRef, Task};
/// use zeropoint_runtime::Int8Linear;
///
/// let directory = ModelDirectory::open(&SourceRef::Directory("runs/minilm/model".into()), Task::Auto)?;
/// let query = Int8Linear::load(&directory, "encoder.layer.0.attention.self.query")?;
/// let y = query.forward(&Tensor::zeros((2, 7, 384), candle_core::DType::F32, &Device::Cpu)?)?;
/// assert_eq!(y.dims(), [2, 7, 384]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Int8Linear {
    site: IntegerSite,
    isa: Isa,
    rotation: Option<Arc<ChannelRotation>>,
    outputs: usize,
    scheme: Scheme,
}

impl Int8Linear {
    /// Reads one Linear of a quantised directory, by its module path.
    ///
    /// # Errors
    ///
    /// A directory that is not quantised, a path that it does not have, and a Linear that is float there.
    pub fn load(directory: &ModelDirectory, path: &str) -> std::result::Result<Self, RuntimeError> {
        let Some(DeployedConfig { linears: config, .. }) = DeployedConfig::from_config(directory.config())?
        else {
            return Err(RuntimeError::NotQuantized { path: directory.path().to_owned() });
        };
        let bad = |reason: String| ModelError::Tensor {
            path: directory.path().to_owned(),
            tensor: path.to_owned(),
            reason,
        };
        let (_, linear) = directory
            .spec()
            .linear(path)
            .ok_or_else(|| bad("is not a Linear of this model; `zeropoint inspect` lists them".to_owned()))?;
        let scheme = scheme_of(&config, linear)
            .ok_or_else(|| bad("is not quantised; candle_nn::Linear runs it".to_owned()))?;
        let isa = Isa::active().map_err(ModelError::from)?;
        let readers = vec![reader(directory, isa, linear, Some(scheme))?];
        let site = linear.site.map(|site| &directory.spec().sites[site]);
        let rotation = site.map(|site| site.read_rotation(directory.checkpoint())).transpose()?.flatten();
        Ok(Self { site: IntegerSite::new(isa, readers), isa, rotation, outputs: linear.outputs, scheme })
    }

    /// How weights and activations are quantised.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }
}

impl Module for Int8Linear {
    /// `[.., inputs]` in f32 to `[.., outputs]`. An input that is not finite is an error where it is quantised.
    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let mut dims = input.dims().to_vec();
        let Some(inputs) = dims.pop() else {
            candle_core::bail!("a Linear takes [.., inputs], not a scalar")
        };
        let mut rows = input.contiguous()?.reshape(((), inputs))?;
        if let Some(rotation) = &self.rotation {
            if rotation.order() != inputs {
                candle_core::bail!("the Linear has {} inputs, not {inputs}", rotation.order());
            }
            let mut values = rows.flatten_all()?.to_vec1::<f32>()?;
            rotation.apply(self.isa, &mut values);
            rows = Tensor::from_vec(values, rows.shape(), rows.device())?;
        }
        let mut outputs = self.site.forward(&rows)?;
        dims.push(self.outputs);
        outputs.remove(0).reshape(dims)
    }
}
