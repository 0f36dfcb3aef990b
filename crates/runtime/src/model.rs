//! A deployable directory as a model that runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use zeropoint_core::{ActivationMode, ActivationScheme, Scheme};
use zeropoint_formats::FormatError;
use zeropoint_formats::compressed_tensors::{QuantizationConfig, read_linear};
use zeropoint_kernels::{Isa, PackError};
use zeropoint_models::{
    ActivationQuantizer, INT8_ATTENTION, LinearSpec, Model, ModelDirectory, ModelError, Outputs, PackedBatch,
    SiteOp, SourceRef, Tables, Task,
};

use crate::engine::{Engine, FloatParts};
use crate::site::{IntegerSite, Reader};
use crate::{IntegerLinear, WeightOnlyLinear};

/// Why a directory cannot be loaded or run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The directory is not a quantised model.
    #[error(
        "{path}: config.json has no `quantization_config`; a directory written by `zeropoint run` is expected"
    )]
    NotQuantized {
        /// The directory.
        path: PathBuf,
    },
    /// Its files.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Its description, or running it.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// A quantised model, ready to run.
pub struct QuantizedModel {
    directory: ModelDirectory,
    model: Model,
    quantized: usize,
}

impl QuantizedModel {
    /// Loads a directory of compressed-tensors: INT8 (`int-quantized`), weight-only (`pack-quantized`), or both beside each
    /// other.
    ///
    /// Attention multiplies numbers of [`INT8_ATTENTION`] where any Linear quantises its activation, otherwise f32: a
    /// weight-only model rounds no activation.
    pub fn load(path: &Path, task: Task) -> Result<Self, RuntimeError> {
        let directory = ModelDirectory::open(&SourceRef::Directory(path.to_owned()), task)?;
        Self::from_directory(directory)
    }

    /// As [`QuantizedModel::load`], from a directory that is open already.
    pub fn from_directory(directory: ModelDirectory) -> Result<Self, RuntimeError> {
        let Some(config) = directory.quantization_config() else {
            return Err(RuntimeError::NotQuantized { path: directory.path().to_owned() });
        };
        let config = QuantizationConfig::from_json(config)?;
        let isa = Isa::active().map_err(ModelError::from)?;
        let spec = directory.spec().clone();
        let (mut quantized, mut activations) = (0, 0);
        let mut sites: Vec<Option<Arc<IntegerSite>>> = vec![None; spec.sites.len()];
        let mut factory = |site: usize| -> Result<Option<Box<dyn SiteOp>>, ModelError> {
            let linears: Vec<&LinearSpec> =
                spec.sites[site].consumers.iter().map(|&id| &spec.linears[id]).collect();
            let schemes: Vec<Option<Scheme>> =
                linears.iter().map(|linear| scheme_of(&config, linear)).collect();
            if schemes.iter().all(Option::is_none) {
                return Ok(None);
            }
            quantized += schemes.iter().flatten().count();
            activations += schemes.iter().flatten().filter(|scheme| !scheme.is_weight_only()).count();
            let readers = linears
                .iter()
                .zip(&schemes)
                .map(|(linear, scheme)| reader(&directory, isa, linear, *scheme))
                .collect::<Result<_, _>>()?;
            let op = Arc::new(IntegerSite::new(isa, readers));
            sites[site] = Some(Arc::clone(&op));
            Ok(Some(Box::new(op)))
        };
        let mut model = Model::load_with(&spec, directory.checkpoint(), &mut factory, Tables::Read)?;
        if activations > 0 {
            model.set_attention_precision(INT8_ATTENTION);
        }
        for (i, tower) in spec.towers.iter().enumerate() {
            let parts = FloatParts::read(tower, directory.checkpoint(), isa)?;
            if let Some(engine) = Engine::new(isa, &spec, tower, parts, &sites) {
                model.set_block_runner(i, Box::new(engine));
            } else {
                tracing::info!(tower = i, "not all Linears of the blocks are INT8: they run one by one");
            }
        }
        tracing::info!(%isa, quantized, weight_only = quantized - activations, "quantised model loaded");
        Ok(Self { directory, model, quantized })
    }

    /// The directory it was loaded from.
    pub fn directory(&self) -> &ModelDirectory {
        &self.directory
    }

    /// The model, its quantised Linears as they are stored.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// How many of the Linears that the task runs are quantised.
    pub fn quantized_linears(&self) -> usize {
        self.quantized
    }

    /// Sentence vectors or logits, one row a sequence.
    pub fn forward(&self, batch: &PackedBatch) -> Result<Outputs, ModelError> {
        self.model.forward(batch)
    }
}

/// How a Linear is quantised. The config's targets are modules of the class `Linear`, which a convolution is not.
pub(crate) fn scheme_of(config: &QuantizationConfig, linear: &LinearSpec) -> Option<Scheme> {
    if linear.is_torch_linear() { config.scheme_of(&linear.path) } else { None }
}

/// A Linear as the directory has it: quantised by `scheme`, or float without one.
pub(crate) fn reader(
    directory: &ModelDirectory,
    isa: Isa,
    linear: &LinearSpec,
    scheme: Option<Scheme>,
) -> Result<Reader, ModelError> {
    let checkpoint = directory.checkpoint();
    let Some(scheme) = scheme else { return Ok(Reader::Float(linear.read_float(checkpoint)?)) };
    let bad = |reason: String| ModelError::Tensor {
        path: directory.path().to_owned(),
        tensor: linear.weight.clone(),
        reason,
    };
    let stored = read_linear(checkpoint, &linear.tensor, scheme)?;
    let (found, expected) = ([stored.outputs, stored.inputs], [linear.outputs, linear.inputs]);
    if found != expected {
        return Err(bad(format!(
            "is of shape {found:?} by its `weight_shape`; config.json says {expected:?}"
        )));
    }
    let bias = linear.read_bias(checkpoint)?;
    let unpackable = |error: PackError| bad(format!("cannot be packed: {error}"));
    let Some(ActivationScheme { mode, symmetry }) = scheme.activations else {
        let bits = scheme.weights.bits;
        let packed =
            WeightOnlyLinear::new(isa, &stored, bits, bias, linear.activation).map_err(unpackable)?;
        return Ok(Reader::WeightOnly(packed));
    };
    let quantizer = match (mode, stored.input) {
        (ActivationMode::Static, Some(params)) => ActivationQuantizer::Static(params),
        (ActivationMode::Static, None) => return Err(bad("has no `input_scale` beside it".to_owned())),
        (ActivationMode::Dynamic, _) => ActivationQuantizer::Dynamic(symmetry),
    };
    let packed = IntegerLinear::new(isa, &stored, bias, linear.activation).map_err(unpackable)?;
    Ok(Reader::Integer(quantizer, Arc::new(packed)))
}
