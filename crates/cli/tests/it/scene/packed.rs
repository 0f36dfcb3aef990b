//! Model directories with packed weights, as other programs write them.

use std::collections::BTreeMap;

use serde_json::Value;
use zeropoint_core::Scheme;
use zeropoint_formats::{
    Checkpoint, CheckpointWriter, QuantizationConfig, QuantizedLinear, TensorSpec, linear_tensor_bytes,
    linear_tensor_specs,
};

use super::{Scene, fixture};

/// Tensors by name.
pub(crate) type Tensors = BTreeMap<String, (TensorSpec, Vec<u8>)>;

impl Scene {
    /// A copy of a fixture, its matrices of the blocks rounded to nearest under a weight-only scheme, after a change of its
    /// tensors and of its config.
    pub(crate) fn pack_fixture(
        &self,
        fixture_name: &str,
        to: &str,
        scheme: Scheme,
        change: impl FnOnce(&mut Tensors, &mut Value),
    ) {
        self.copy_fixture(fixture_name, to);
        let checkpoint = Checkpoint::open(fixture(fixture_name)).expect("the fixture opens");
        let (mut tensors, mut packed, mut float) = (Tensors::new(), Vec::new(), Vec::new());
        for info in checkpoint.tensors() {
            let bytes = checkpoint.read_bytes(&info.name).expect("the fixture reads");
            let module = info.name.strip_suffix(".weight").filter(|_| info.shape.len() == 2);
            match module.filter(|module| !module.contains("embed")) {
                Some(module) if module.contains("layer") => {
                    let weight = checkpoint.read_f32(&info.name).expect("floats");
                    let linear = rounded(&weight, (info.shape[0], info.shape[1]), scheme);
                    let specs = linear_tensor_specs(module, linear.outputs, linear.inputs, scheme);
                    let parts = linear_tensor_bytes(module, &linear, scheme).expect("a Linear");
                    for (spec, (name, bytes)) in specs.into_iter().zip(parts) {
                        tensors.insert(name, (spec, bytes.into_owned()));
                    }
                    packed.push((module.to_owned(), scheme));
                }
                module => {
                    float.extend(module.map(str::to_owned));
                    tensors.insert(info.name.clone(), (info.into(), bytes));
                }
            }
        }
        let mut config = self.json(&format!("{to}/config.json"));
        config["quantization_config"] = QuantizationConfig::for_modules(packed, float).to_json();
        change(&mut tensors, &mut config);
        self.write(&format!("{to}/config.json"), config.to_string());
        std::fs::remove_file(self.path(&format!("{to}/model.safetensors"))).expect("it was there");
        let specs = tensors.values().map(|(spec, _)| spec.clone()).collect();
        let mut writer = CheckpointWriter::create(self.path(to), specs, u64::MAX).expect("a writer");
        for (name, (_, bytes)) in &tensors {
            writer.write(name, bytes).expect("written");
        }
        writer.finish().expect("finished");
    }
}

fn rounded(weight: &[f32], (outputs, inputs): (usize, usize), scheme: Scheme) -> QuantizedLinear {
    let groups = scheme.weights.granularity.groups(inputs).expect("whole groups");
    let steps = 2f32.powi(scheme.weights.bits.width() as i32 - 1);
    let (mut values, mut weight_scales) = (Vec::new(), Vec::new());
    for group in weight.chunks(inputs / groups) {
        let scale = group.iter().fold(0f32, |max, w| max.max(w.abs())) / (steps - 0.5);
        values.extend(group.iter().map(|w| (w / scale).round_ties_even().clamp(-steps, steps - 1.0) as i8));
        weight_scales.push(scale);
    }
    QuantizedLinear { weight: values, outputs, inputs, weight_scales, column_groups: None, input: None }
}
