//! Sharded checkpoints.

use std::path::Path;

use zeropoint_formats::Checkpoint;

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

fn write(dir: &Path, name: &str, content: &[u8]) {
    std::fs::write(dir.join(name), content).expect("the file can be written");
}
