//! The integration tests, in one program: each file alone would link the whole crate again.

mod copies;
mod errors;
mod experts;
mod fixtures;
mod minilm;
mod prompts;
mod tokenizers;
mod vision;
