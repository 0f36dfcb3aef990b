//! Model files on disk: safetensors as a stream, compressed-tensors in and out, and outputs that are complete or absent.
//!
//! This crate knows what bytes mean and where they lie, and no algorithm. It differs from the `safetensors` crate in
//! holding one tensor at a time, in reading and writing sharded checkpoints, and in knowing how a quantised Linear is
//! stored. Everything it reads is untrusted: no length in a file is believed before it has been checked.
//!
//! ```
//! use zeropoint_formats::{Checkpoint, CheckpointWriter, Dtype, TensorSpec, safetensors::element::f32_bytes};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let dir = tempfile::tempdir()?;
//! let specs = vec![TensorSpec::new("dense.weight", Dtype::F32, [1, 2])];
//! let mut writer = CheckpointWriter::create(dir.path(), specs, 5_000_000_000)?;
//! writer.write("dense.weight", &f32_bytes(&[0.5, -1.0]))?;
//! writer.finish()?;
//!
//! let checkpoint = Checkpoint::open(dir.path())?;
//! assert_eq!(checkpoint.read_f32("dense.weight")?, [0.5, -1.0]);
//! # Ok(())
//! # }
//! ```

pub mod compressed_tensors;
pub mod deployed;
mod error;
mod npy;
pub mod safetensors;
pub mod staged;

pub use compressed_tensors::{
    Group, QuantizationConfig, QuantizedLinear, linear_tensor_bytes, linear_tensor_specs, read_linear,
};
pub use deployed::{DeployedConfig, DirectoryFormat};
pub use error::FormatError;
pub use npy::NpyWriter;
pub use safetensors::{
    Checkpoint, CheckpointWriter, Dtype, PlannedCheckpoint, SafetensorsFile, SafetensorsWriter, TensorInfo,
    TensorSpec, planned_bytes,
};
pub use staged::{AtomicFile, StagedDir, copy_companions, write_file_atomically};
