//! The integration tests, in one program: each file alone would link the whole crate again.

mod errors;
mod fetch;
mod push;
mod scene;
mod server;
