//! Activations that are rotated before Linears read them.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;
use serde_json::Value;
use zeropoint_formats::deployed::{
    DirectoryFormat, INPUT_DIVISORS, InputRotation, format_of, input_divisors,
};
use zeropoint_formats::{Checkpoint, DeployedConfig, TensorInfo};
use zeropoint_kernels::{ChannelRotation, Isa};

use crate::ModelError;
use crate::ops::{ROWS_PER_TASK, rows_of};
use crate::read::read_finite;
use crate::spec::{ModelSpec, Site, SiteRotation};

impl Site {
    /// What rotates the activation, where anything does.
    ///
    /// Fails where its number of channels has no rotation, and of divisors that are not positive.
    pub fn read_rotation(
        &self,
        checkpoint: &Checkpoint,
    ) -> std::result::Result<Option<Arc<ChannelRotation>>, ModelError> {
        let Some(rotation) = &self.rotation else { return Ok(None) };
        let factors = match &rotation.divisors {
            None => vec![1.0; self.channels],
            Some(tensor) => {
                let divisors = read_finite(checkpoint, tensor)?;
                let bad = |reason: String| ModelError::Tensor {
                    path: checkpoint.dir().to_owned(),
                    tensor: tensor.clone(),
                    reason,
                };
                if divisors.len() != self.channels {
                    return Err(bad(format!("has {} values for {} channels", divisors.len(), self.channels)));
                }
                if let Some(divisor) = divisors.iter().find(|divisor| !is_divisor(**divisor)) {
                    return Err(bad(format!("holds {divisor}; channels are divided by positive numbers")));
                }
                divisors.iter().map(|divisor| 1.0 / divisor).collect()
            }
        };
        let rotation = ChannelRotation::with_factors(&factors).ok_or_else(|| ModelError::Site {
            site: self.id.clone(),
            reason: format!("{} channels cannot be rotated", self.channels),
        })?;
        Ok(Some(Arc::new(rotation)))
    }
}

/// Whether a channel can be divided by it, and the quotient of 1 is a normal number.
pub fn is_divisor(divisor: f32) -> bool {
    divisor > 0.0 && divisor.is_normal() && (1.0 / divisor).is_normal()
}

/// The activation `[rows, channels]` rotated.
pub(crate) fn rotated(isa: Isa, rotation: &ChannelRotation, input: &Tensor) -> Result<Tensor> {
    let mut values = rows_of(input, <[f32]>::to_vec)?;
    let task = rotation.order() * ROWS_PER_TASK;
    values.par_chunks_mut(task).for_each(|rows| rotation.apply(isa, rows));
    Tensor::from_vec(values, input.dims2()?, &Device::Cpu)
}

impl ModelSpec {
    /// Takes rotations, of Linears by their module paths, into the description.
    ///
    /// # Errors
    ///
    /// A reason, of Linears that are not those of one activation.
    pub(crate) fn rotate(&mut self, rotations: &[InputRotation]) -> std::result::Result<(), String> {
        for InputRotation { linears, divided } in rotations {
            let first = &linears[0];
            let reason = |what: &str| {
                let shown: String = first.escape_debug().take(120).collect();
                format!("the rotation of `{shown}` {what}")
            };
            let (_, linear) =
                self.linear(first).ok_or_else(|| reason("names no Linear of the architecture"))?;
            let site = linear.site.ok_or_else(|| reason("is of a Linear that the task does not run"))?;
            let divisors = divided.then(|| input_divisors(&linear.tensor));
            let paths = self.sites[site].consumers.iter().map(|id| &self.linears[*id].path);
            if !paths.eq(linears) {
                return Err(reason("does not name the Linears that read its activation, in their order"));
            }
            let site = &mut self.sites[site];
            if site.rotation.is_some() {
                return Err(reason("is there twice"));
            }
            if ChannelRotation::new(site.channels).is_none() {
                return Err(reason(&format!("is of {} channels, which have none", site.channels)));
            }
            site.rotation = Some(SiteRotation { divisors });
        }
        Ok(())
    }
}

impl ModelSpec {
    /// Refuses divisors that no rotation reads: without them the model would compute something else.
    pub(crate) fn check_divisors(&self, checkpoint: &Checkpoint) -> std::result::Result<(), String> {
        let known = |name: &str| {
            let rotations = self.sites.iter().filter_map(|site| site.rotation.as_ref());
            rotations.filter_map(|rotation| rotation.divisors.as_deref()).any(|divisors| divisors == name)
        };
        let is_unread = |info: &&TensorInfo| {
            let last = info.name.rsplit('.').next();
            last == Some(INPUT_DIVISORS) && !known(&info.name)
        };
        match checkpoint.tensors().find(is_unread) {
            None => Ok(()),
            Some(info) => Err(format!(
                "no rotation is named that reads the tensor `{}`; was config.json changed?",
                info.name.escape_debug()
            )),
        }
    }
}

/// The rotations that config.json of a directory in our own format names.
pub(crate) fn named_rotations(config: &Value) -> std::result::Result<Vec<InputRotation>, ModelError> {
    if format_of(config) != DirectoryFormat::Zeropoint {
        return Ok(Vec::new());
    }
    Ok(DeployedConfig::from_config(config)?.map_or_else(Vec::new, |config| config.rotations))
}
