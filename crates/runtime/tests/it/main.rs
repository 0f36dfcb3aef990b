//! The integration tests, in one program: each file alone would link the whole crate again.

mod deployed;
mod kv_cache;
mod linear;
mod load;
mod weight_only;
