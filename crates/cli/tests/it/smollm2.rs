//! SmolLM2-135M, a decoder: the same bytes with any number of threads, and the memory that a dry run foretells.
//!
//! `ZEROPOINT_MODELS` is a directory with `smollm2/` in it.

use crate::scene::real::{foretells_its_memory, source};
use crate::scene::{self, Scene};

/// A scene with a text and a config whose model is to be replaced.
fn scene() -> Scene {
    let scene = Scene::new();
    scene.write(
        "text.txt",
        "The doctor sent the tax bill by train to the garden, where it rained.\n".repeat(400),
    );
    scene.write(
        "config.toml",
        "version = 1\nmodel.source = 'replaced'\n[calibration]\ndata = [{ path = 'text.txt', format = 'document' }]\n\
         samples = 6\nmax_length = 128\nbatch_size = 4\n",
    );
    scene
}

#[test]
#[ignore = "needs ZEROPOINT_MODELS"]
fn the_bytes_do_not_depend_on_the_threads() {
    let scene = scene();
    let run = |threads: &str| {
        scene.succeeds([
            "run",
            "config.toml",
            "--no-cache",
            "--out",
            threads,
            "--threads",
            threads,
            "--set",
            &source("smollm2"),
            "--set",
            "quantization.scheme=w8a8-static",
            "--set",
            "evaluation.tasks=[]",
        ]);
        let mut tree = scene.tree(threads);
        tree.retain(|name, _| name.starts_with("model/") || name == "statistics.safetensors");
        tree
    };
    scene::assert_same_tree(&run("1"), &run("2"));
}

#[test]
#[ignore = "needs ZEROPOINT_MODELS"]
fn a_dry_run_foretells_the_memory() {
    let fixed = "quantization.scheme=w8a8-static";
    let none = "evaluation.tasks=[]";
    let evaluated = "evaluation.tasks=[{kind='perplexity',data='text.txt',window=256,windows=2}]";
    let unchecked = "output.self_check=false";
    let cases: [(&str, &[&str], &[&str]); 4] = [
        ("part by part", &[fixed, none], &[]),
        ("with hidden states in a file, unchecked", &[fixed, none, unchecked], &["--memory", "0"]),
        ("evaluated part by part, unchecked", &[evaluated, unchecked], &[]),
        ("whole, with an INT8 head", &[none, "quantization.lm_head=int8"], &["--memory", "8GiB"]),
    ];
    for (about, sets, more) in cases {
        let few = ["calibration.samples=3"];
        foretells_its_memory(&scene(), about, "smollm2", &[sets, &few].concat(), more);
    }
}
