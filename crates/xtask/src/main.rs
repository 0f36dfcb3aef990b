//! Chores of the workspace: generated files and their drift check, the training of the embedded model, checkpoints for tests of
//! scale.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::exit, reason = "a command for developers")]

mod fixture;
mod generated;
mod rules;
mod synth;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

type Error = Box<dyn std::error::Error + Send + Sync>;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  generate                    write the files that are made from the code: the config's JSON Schema and docs/cli.md
  check                       compare those files with the code, and the embedded model with its limits
  train-fixture [--out DIR]   train the embedded model (reproducible; about a minute with --release);
                              DIR defaults to crates/models/embedded
  synth-checkpoint --like SHAPES --out DIR [--blocks N]
                              write a sharded bfloat16 checkpoint of random weights, for tests of scale; SHAPES is
                              llama-7b (13.5 GB) or llama-3-8b (16.1 GB), --blocks takes the first N blocks alone";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["generate"] => generated::generate(&root()),
        ["check"] => check(&root()),
        ["train-fixture"] => fixture::train(&root(), &root().join("crates/models/embedded")),
        ["train-fixture", "--out", dir] => fixture::train(&root(), Path::new(dir)),
        ["synth-checkpoint", "--like", shapes, "--out", dir] => synth::write(shapes, None, Path::new(dir)),
        ["synth-checkpoint", "--like", shapes, "--out", dir, "--blocks", blocks]
        | ["synth-checkpoint", "--like", shapes, "--blocks", blocks, "--out", dir] => match blocks.parse() {
            Ok(blocks) => synth::write(shapes, Some(blocks), Path::new(dir)),
            Err(_) => Err(format!("--blocks takes a number, not `{blocks}`").into()),
        },
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints every problem of the repository; an error if there is one.
fn check(root: &Path) -> Result<(), Error> {
    let mut problems = generated::drift(root)?;
    problems.extend(rules::violations(root)?);
    for problem in &problems {
        eprintln!("{problem}");
    }
    match problems.len() {
        0 => {
            println!("generated files, embedded model and ignored tests are as they should be");
            Ok(())
        }
        count => Err(format!("cargo xtask check found {count} problem(s)").into()),
    }
}

/// The workspace's root: two levels above this crate.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
