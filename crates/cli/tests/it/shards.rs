//! `calibrate --shard`, `statistics merge` and `statistics show`: several processes give what one gives.

use std::fs;

use crate::scene::{self, Scene, data, stderr, stdout};

/// The embedded model with texts in ten batches.
fn scene() -> Scene {
    let scene = Scene::new();
    let config = format!(
        "version = 1\nmodel.source = 'embedded'\nquantization.scheme = 'w8a8-static'\n\
         [calibration]\ndata = ['{}']\nsamples = 40\nbatch_size = 4\n\
         [[evaluation.tasks]]\nkind = 'fidelity'\ndata = '{}'\nlimit = 40\n",
        data("topics-train.jsonl").display(),
        data("topics-test.jsonl").display(),
    );
    scene.write("config.toml", config);
    scene
}

/// Makes every shard in a process of its own, with one to three threads, and merges them, the last first.
fn merged(scene: &Scene, of: usize, out: &str) -> String {
    let mut files = Vec::new();
    for i in 1..=of {
        let (shard, file) = (format!("{i}/{of}"), format!("parts/{i}-of-{of}"));
        let threads = (1 + (i + of) % 3).to_string();
        let arguments =
            ["calibrate", "config.toml", "--shard", &shard, "--out", &file, "--threads", &threads];
        let told = stderr(&scene.succeeds(arguments));
        assert!(told.contains(&format!("Shard {shard} (")) && told.contains("statistics merge"), "{told}");
        files.push(file);
    }
    files.reverse();
    let arguments = ["statistics", "merge", "--out", out].into_iter().map(str::to_owned).chain(files);
    stderr(&scene.succeeds(arguments))
}

#[test]
fn processes_with_any_number_of_threads_merge_into_one_run() {
    let scene = scene();
    scene.succeeds(["calibrate", "config.toml", "--no-cache", "--out", "whole", "--threads", "4"]);
    let whole = fs::read(scene.path("whole")).expect("it is there");
    for of in [1, 3, 8] {
        let told = merged(&scene, of, "new/merged");
        assert!(told.contains(&format!("{of} shards merged: 40 samples, ")), "{told}");
        assert!(fs::read(scene.path("new/merged")).expect("it is there") == whole, "{of} shards");
    }
}

#[test]
fn a_model_from_merged_statistics_is_the_model_of_a_run() {
    let scene = scene();
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "run"]);
    merged(&scene, 2, "merged");
    scene.succeeds(["quantize", "config.toml", "--statistics", "merged", "--out", "quantized"]);
    let product = |out: &str| {
        let mut tree = scene.tree(out);
        tree.retain(|name, _| name.starts_with("model/") || name == "statistics.safetensors");
        // The card also tells what was measured, which `quantize` does not do.
        assert!(tree.remove("model/README.md").is_some());
        tree
    };
    scene::assert_same_tree(&product("quantized"), &product("run"));
}

#[test]
fn shards_and_the_cache_know_nothing_of_each_other() {
    let scene = scene();
    merged(&scene, 2, "merged");
    assert!(!scene.default_cache().exists(), "a shard is not kept");
    scene.succeeds(["calibrate", "config.toml", "--out", "whole"]);
    assert_eq!(scene::tree(&scene.default_cache()).len(), 1);
    let told = stderr(&scene.succeeds(["calibrate", "config.toml", "--shard", "1/2", "--out", "again"]));
    assert!(told.contains("Calibrating") && !told.contains("reused"), "{told}");
    let read = |name: &str| fs::read(scene.path(name)).expect("it is there");
    assert!(read("again") == read("parts/1-of-2"));
    assert!(read("whole") == read("merged"));

    // Were one put where the whole set's statistics are looked for, it would not be taken for them.
    let (name, kept) = scene::tree(&scene.default_cache()).pop_first().expect("there is one");
    fs::write(scene.default_cache().join(&name), read("again")).expect("it is writable");
    let told = stderr(&scene.succeeds(["calibrate", "config.toml", "--out", "whole"]));
    assert!(
        told.contains("warning: the cached statistics are not used: ") && told.contains("shard 1/2"),
        "{told}"
    );
    assert!(read("whole") == kept);
}

#[test]
fn a_statistics_file_is_shown_as_a_table_or_as_json() {
    let scene = scene();
    let mut document = String::new();
    for (shard, empty) in [("2/4", false), ("12/12", true)] {
        let told = stderr(&scene.succeeds(["calibrate", "config.toml", "--shard", shard, "--out", "part"]));
        assert_eq!(told.contains("there are no more than 10 batches to observe"), empty, "{told}");
        document += &stdout(&scene.succeeds(["statistics", "show", "part"]));
        document.push('\n');
    }
    scene.succeeds(["calibrate", "config.toml", "--no-cache", "--out", "whole"]);
    document += &stdout(&scene.succeeds(["statistics", "show", "whole"]));

    let mut settings = insta::Settings::clone_current();
    settings.add_filter("\\b[0-9a-f]{64}\\b", "[fingerprint]");
    settings.add_filter("scalar|avx2|avxvnni|avx512vnni|avx512bf16|neon-dotprod|neon", "[instruction set]");
    // With their padding: the last digits are the processor's.
    settings.add_filter("-?[0-9]+\\.[0-9]{4} *", "[value] ");
    settings.bind(|| insta::assert_snapshot!("show", document));

    let shown: serde_json::Value =
        serde_json::from_slice(&scene.succeeds(["statistics", "show", "whole", "--json"]).stdout)
            .expect("it is JSON");
    assert_eq!((&shown["samples"], &shown["shard"]), (&40.into(), &serde_json::Value::Null));
    let sites = shown["sites"].as_array().expect("a list");
    assert_eq!(sites.iter().filter(|site| site["rows"] == shown["tokens"]).count(), 12, "{sites:?}");
    assert!(sites.iter().all(|site| site["range"][0].as_f64() < site["range"][1].as_f64()), "{sites:?}");
    scene.succeeds(["calibrate", "config.toml", "--shard", "2/4", "--out", "part"]);
    let part: serde_json::Value =
        serde_json::from_slice(&scene.succeeds(["statistics", "show", "part", "--json"]).stdout)
            .expect("it is JSON");
    assert_eq!(part["shard"]["shard"], "2/4");
    assert_eq!(part["data_fingerprint"], shown["data_fingerprint"]);
}
