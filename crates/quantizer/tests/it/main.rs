//! The integration tests, in one program: each file alone would link the whole crate again.

mod plan;
mod weights;
