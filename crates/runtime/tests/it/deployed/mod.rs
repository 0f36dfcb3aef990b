//! A fixture with some of its Linears quantised, as a deployable directory, and what it is compared with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use tempfile::TempDir;
use zeropoint_core::{Granularity, QuantParams, Scheme, WeightBits, quantize};
use zeropoint_formats::{
    CheckpointWriter, Dtype, QuantizationConfig, QuantizedLinear, TensorSpec, linear_tensor_bytes,
    linear_tensor_specs, safetensors::element::f32_bytes,
};
use zeropoint_models::{
    ActivationQuantizer, INT8_ATTENTION, Model, ModelDirectory, ModelError, PackedBatch, SimulatedLinear,
    SimulatedReader, SimulatedSite, SiteOp, SourceRef, Tables, Task,
};
use zeropoint_runtime::QuantizedModel;

pub(crate) const TEXTS: [&str; 4] =
    ["the river is on fire", "models", "What was that, and when can we use it?", ""];

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

pub(crate) fn open(path: &Path) -> ModelDirectory {
    ModelDirectory::open(&SourceRef::Directory(path.to_owned()), Task::Auto).expect("the directory opens")
}

/// A weight rounded to nearest, and parameters for the activation that are no more than plausible.
fn quantized(weight: &[f32], outputs: usize, inputs: usize, scheme: Scheme) -> QuantizedLinear {
    let absmax = |values: &[f32]| values.iter().fold(0f32, |max, w| max.max(w.abs()));
    let weights = scheme.weights;
    let of_range = |absmax: f32| match weights.bits {
        WeightBits::Eight => QuantParams::symmetric(absmax).expect("finite weights"),
        WeightBits::Four => QuantParams { scale: absmax / 7.5, zero_point: 0 },
    };
    let round = |w: &f32, params: QuantParams| match weights.bits {
        WeightBits::Eight => quantize(*w, params),
        WeightBits::Four => (w / params.scale).round_ties_even().clamp(-8.0, 7.0) as i8,
    };
    let groups = weights.granularity.groups(inputs).expect("whole groups");
    let mut stored = QuantizedLinear {
        weight: Vec::new(),
        outputs,
        inputs,
        weight_scales: Vec::new(),
        column_groups: None,
        input: None,
    };
    for group in weight.chunks(inputs / groups) {
        let per_tensor = weights.granularity == Granularity::Tensor;
        let params = of_range(absmax(if per_tensor { weight } else { group }));
        stored.weight.extend(group.iter().map(|w| round(w, params)));
        stored.weight_scales.push(params.scale);
    }
    if let Some(activations) = scheme.activations.filter(|_| scheme.is_static()) {
        stored.input = Some(QuantParams::from_range(-3.0, 4.0, activations.symmetry).expect("a range"));
    }
    stored
}

/// Its real values.
pub(crate) fn dequantized(stored: &QuantizedLinear) -> Vec<f32> {
    let group = stored.weight.len() / stored.weight_scales.len();
    let groups = stored.weight.chunks(group).zip(&stored.weight_scales);
    groups.flat_map(|(values, scale)| values.iter().map(move |q| f32::from(*q) * scale)).collect()
}

/// Tensors by name.
pub(crate) type Tensors = BTreeMap<String, (TensorSpec, Vec<u8>)>;

/// A fixture with Linears that are quantised, as a deployable directory.
pub(crate) struct Deployed {
    pub(crate) dir: TempDir,
    fixture: &'static str,
    /// By module path.
    pub(crate) linears: BTreeMap<String, (QuantizedLinear, Scheme)>,
}

impl Deployed {
    /// `scheme_of` says how a Linear is quantised; `None` leaves it float.
    pub(crate) fn new(fixture_name: &'static str, scheme_of: impl Fn(&str) -> Option<Scheme>) -> Self {
        Self::damaged(fixture_name, scheme_of, |_, _| ())
    }

    /// As [`Deployed::new`], after a change of the tensors and of the text of config.json.
    pub(crate) fn damaged(
        fixture_name: &'static str,
        scheme_of: impl Fn(&str) -> Option<Scheme>,
        damage: impl FnOnce(&mut Tensors, &mut String),
    ) -> Self {
        let source = open(&fixture(fixture_name));
        let checkpoint = source.checkpoint();
        let mut tensors = tensors_of(&source);
        let (mut linears, mut ignore) = (BTreeMap::new(), Vec::new());
        for linear in &source.spec().linears {
            let Some(scheme) = linear.site.and_then(|_| scheme_of(&linear.path)) else {
                ignore.push(linear.path.clone());
                continue;
            };
            let weight = checkpoint.read_f32(&linear.weight).expect("a weight");
            let stored = quantized(&weight, linear.outputs, linear.inputs, scheme);
            let specs = linear_tensor_specs(&linear.tensor, linear.outputs, linear.inputs, scheme);
            let parts = linear_tensor_bytes(&linear.tensor, &stored, scheme).expect("a Linear");
            tensors.remove(&linear.weight);
            for (spec, (name, bytes)) in specs.into_iter().zip(parts) {
                tensors.insert(name, (spec, bytes.into_owned()));
            }
            linears.insert(linear.path.clone(), (stored, scheme));
        }
        let modules =
            source.spec().linears.iter().filter_map(|l| Some((l.path.clone(), linears.get(&l.path)?.1)));
        let mut config = source.config().clone();
        config["quantization_config"] = QuantizationConfig::for_modules(modules, ignore).to_json();
        let mut config = config.to_string();
        damage(&mut tensors, &mut config);

        let dir = written(fixture_name, &config, &tensors);
        Self { dir, fixture: fixture_name, linears }
    }

    pub(crate) fn load(&self) -> Result<QuantizedModel, String> {
        QuantizedModel::load(self.dir.path(), Task::Auto).map_err(|error| error.to_string())
    }

    /// A float checkpoint of the same real values.
    pub(crate) fn dequantized(&self) -> TempDir {
        let source = open(&fixture(self.fixture));
        let mut tensors = tensors_of(&source);
        for (path, (stored, _)) in &self.linears {
            let (_, linear) = source.spec().linear(path).expect("a Linear");
            let spec = TensorSpec::new(&linear.weight, Dtype::F32, [stored.outputs, stored.inputs]);
            tensors.insert(linear.weight.clone(), (spec, f32_bytes(&dequantized(stored))));
        }
        written(self.fixture, &source.config().to_string(), &tensors)
    }

    /// The float model with the same decisions in the simulated life.
    pub(crate) fn simulation(&self) -> Model {
        // Opened without modules.json, as the deployed directory is, so that the heads are the same.
        let directory = open(self.dir.path());
        let float = open(&fixture(self.fixture));
        let (spec, checkpoint) = (directory.spec().clone(), float.checkpoint());
        let mut factory = |site: usize| -> Result<Option<Box<dyn SiteOp>>, ModelError> {
            let mut readers = Vec::new();
            for &id in &spec.sites[site].consumers {
                let linear = &spec.linears[id];
                readers.push(match self.linears.get(&linear.path) {
                    None => SimulatedReader::Float(linear.read_float(checkpoint)?),
                    Some((stored, scheme)) => SimulatedReader::Integer(SimulatedLinear {
                        quantizer: match (scheme.activations, stored.input) {
                            (_, Some(params)) => ActivationQuantizer::Static(params),
                            (Some(activations), None) => ActivationQuantizer::Dynamic(activations.symmetry),
                            (None, None) => panic!("weight-only Linears have no simulation"),
                        },
                        weight: Tensor::from_iter(stored.weight.iter().map(|q| f32::from(*q)), &Device::Cpu)?
                            .reshape((stored.outputs, stored.inputs))?,
                        weight_scales: stored.weight_scales.clone(),
                        bias: linear.read_bias(checkpoint)?,
                        activation: linear.activation,
                    }),
                });
            }
            let isa = zeropoint_kernels::Isa::active()?;
            Ok(Some(Box::new(SimulatedSite { isa, readers })))
        };
        let mut model =
            Model::load_with(&spec, checkpoint, &mut factory, Tables::Read).expect("the simulation loads");
        model.set_attention_precision(INT8_ATTENTION);
        model
    }
}

/// The tensors of a directory.
fn tensors_of(source: &ModelDirectory) -> Tensors {
    let checkpoint = source.checkpoint();
    let bytes = |name: &str| checkpoint.read_bytes(name).expect("the fixture reads");
    checkpoint.tensors().map(|info| (info.name.clone(), (info.into(), bytes(&info.name)))).collect()
}

/// A directory of these tensors and the tokenizer of the fixture.
fn written(fixture_name: &str, config: &str, tensors: &Tensors) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("config.json"), config).expect("written");
    let specs = tensors.values().map(|(spec, _)| spec.clone()).collect();
    let mut writer = CheckpointWriter::create(dir.path(), specs, u64::MAX).expect("a writer");
    for (name, (_, bytes)) in tensors {
        writer.write(name, bytes).expect("written");
    }
    writer.finish().expect("finished");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture(fixture_name).join(file), dir.path().join(file)).expect("copied");
    }
    dir
}

pub(crate) fn batch(directory: &ModelDirectory) -> PackedBatch {
    let tokenizer = directory.tokenizer(None).expect("a tokenizer");
    PackedBatch::new(&tokenizer.encode_all(&TEXTS.map(|text| (text, None))).expect("tokens"))
        .expect("a batch")
}
