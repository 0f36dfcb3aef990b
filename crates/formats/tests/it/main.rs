//! The integration tests, in one program: each file alone would link the whole crate again.

mod compressed_tensors;
mod quantized_linear;
mod safetensors;
mod schemes;
