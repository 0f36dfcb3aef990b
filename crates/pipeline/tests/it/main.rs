//! The integration tests, in one program: each file alone would link the whole crate again.

mod documentation;
mod experts;
mod families;
mod run;
mod search;
mod shards;
