//! Safetensors, read and written as a stream: one tensor in memory at a time.
//!
//! [`Checkpoint`] reads a model directory, sharded or not; [`CheckpointWriter`] writes one. [`SafetensorsFile`] and
//! [`SafetensorsWriter`] are their single-file halves, and [`element`] turns bytes into numbers.

mod checkpoint;
mod checkpoint_writer;
mod dtype;
pub mod element;
mod file;
mod header;
mod layout;
mod overlay;
mod positioned;
mod writer;

pub use checkpoint::Checkpoint;
pub use checkpoint_writer::{CheckpointWriter, PlannedCheckpoint};
pub use dtype::Dtype;
pub use file::SafetensorsFile;
pub use header::{MAX_HEADER_BYTES, TensorInfo};
pub use layout::{TensorSpec, planned_bytes};
pub use overlay::Overlay;
pub use writer::SafetensorsWriter;

/// File name of an unsharded checkpoint.
pub const SINGLE_FILE: &str = "model.safetensors";
/// File name of the index of a sharded checkpoint.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
