//! Sharded checkpoints, and quantised Linears.

use std::path::Path;

use zeropoint_core::{ActivationMode, ActivationScheme, Granularity, Scheme, Symmetry, WeightBits};
use zeropoint_formats::{Checkpoint, QuantizedLinear, read_linear};

use crate::in_scratch;

/// A file with one small tensor of that name.
pub(crate) fn shard(tensor: &str) -> Vec<u8> {
    let header = format!(r#"{{"{tensor}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}"#);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes
}

/// `model.safetensors.index.json` beside two good shards: paths out of the directory, shards that are not there, tensors
/// that are in another file than the index says.
pub(crate) fn index(input: &[u8]) {
    in_scratch(|dir| {
        let dir = dir.join("sharded");
        if !dir.is_dir() {
            std::fs::create_dir(&dir).expect("a directory");
            write(&dir, "model-00001-of-00002.safetensors", &shard("a"));
            write(&dir, "model-00002-of-00002.safetensors", &shard("b"));
        }
        write(&dir, "model.safetensors.index.json", input);
        let Ok(checkpoint) = Checkpoint::open(&dir) else { return };
        for file in checkpoint.files() {
            assert!(file.starts_with(&dir), "{} is outside the directory", file.display());
        }
        let names: Vec<String> = checkpoint.tensors().map(|info| info.name.clone()).collect();
        for name in names {
            checkpoint.read_f32(&name).expect("a tensor of an accepted checkpoint");
        }
        let _ = checkpoint.content_fingerprint();
    });
}

/// A weight file that is read as a Linear `p` under several schemes: shapes that contradict each other, numbers that do not fit.
pub(crate) fn quantized_linear(input: &[u8]) {
    let activations = |mode, symmetry| ActivationScheme { mode, symmetry };
    let schemes = [
        Scheme::int8(Granularity::Channel, activations(ActivationMode::Dynamic, Symmetry::Symmetric)),
        Scheme::int8(Granularity::Tensor, activations(ActivationMode::Static, Symmetry::Asymmetric)),
        Scheme::weight_only(WeightBits::Four, Granularity::Group(4)),
        Scheme::weight_only(WeightBits::Four, Granularity::Channel),
        Scheme::weight_only(WeightBits::Eight, Granularity::Group(1)),
        Scheme::weight_only(WeightBits::Eight, Granularity::Tensor),
    ];
    in_scratch(|dir| {
        let dir = dir.join("linear");
        if !dir.is_dir() {
            std::fs::create_dir(&dir).expect("a directory");
        }
        write(&dir, "model.safetensors", input);
        let Ok(checkpoint) = Checkpoint::open(&dir) else { return };
        for scheme in schemes {
            let Ok(linear) = read_linear(&checkpoint, "p", scheme) else { continue };
            let QuantizedLinear { weight, outputs, inputs, weight_scales, column_groups, .. } = linear;
            assert_eq!(weight.len(), outputs * inputs);
            assert!(weight.iter().all(|value| scheme.weights.bits.holds(*value)));
            assert!(inputs.is_multiple_of(weight_scales.len() / outputs));
            assert!(column_groups.is_none_or(|groups| groups.len() == inputs));
        }
    });
}

fn write(dir: &Path, name: &str, content: &[u8]) {
    std::fs::write(dir.join(name), content).expect("the file can be written");
}
