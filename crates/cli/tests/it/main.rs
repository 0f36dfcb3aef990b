//! The integration tests, in one program: each file alone would link the whole crate again.

mod bench;
mod calibration_data;
mod commands;
mod compare;
mod config_errors;
mod decoder_tasks;
mod embed;
mod errors;
mod full_disk;
mod generate;
mod help;
mod hub;
mod init;
mod interrupted;
mod minilm;
mod models;
mod packed;
mod reproducible;
mod resume;
mod run;
mod scene;
mod search;
#[path = "../../../hub/tests/it/server/mod.rs"]
mod server;
mod shards;
mod smollm2;
mod task_errors;
mod tasks;
mod vision;
