//! A run that is killed, at any stage or any moment, and goes on: no half-written output bears the name, and the end is the
//! bytes of an uninterrupted run.
#![cfg(unix)]

use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::scene::{self, Scene, Tree, data};

const RUN: [&str; 5] = ["run", "config.toml", "--no-cache", "--out", "out"];
/// Kills at random moments in the test that always runs, and in the long one.
const KILLS: (usize, usize) = (8, 50);

/// The embedded model with several checkpoints of its observing pass (one every 64 batches) and two tasks.
fn scene() -> Scene {
    let scene = Scene::new();
    let config = format!(
        "version = 1\nmodel.source = 'embedded'\nquantization.scheme = 'w8a8-static'\n\
         [calibration]\ndata = ['{}']\nsamples = 400\nbatch_size = 1\n\
         [[evaluation.tasks]]\nkind = 'classification'\ndata = '{test}'\nlimit = 60\n\
         [[evaluation.tasks]]\nkind = 'fidelity'\ndata = '{test}'\nlimit = 60\n",
        data("topics-train.jsonl").display(),
        test = data("topics-test.jsonl").display(),
    );
    scene.write("config.toml", config);
    scene
}

/// A decoder of which one block is in memory at a time, and no hidden state of a text.
fn decoder() -> Scene {
    decoder_of("llama-causal", "")
}

fn decoder_of(fixture: &str, quantization: &str) -> Scene {
    let scene = Scene::new();
    scene.copy_fixture(fixture, "model");
    let config = format!(
        "version = 1\nmodel.source = 'model'\nquantization.scheme = 'w8a8-static'\n{quantization}\
         [calibration]\ndata = ['{}']\nsamples = 100\nbatch_size = 1\n\
         [[evaluation.tasks]]\nkind = 'fidelity'\ndata = '{}'\nlimit = 20\n",
        data("topics-train.jsonl").display(),
        data("topics-test.jsonl").display(),
    );
    scene.write("config.toml", config);
    scene
}

const BY_PARTS: [&str; 2] = ["--memory", "0"];

/// Everything but the report's timings and the config's name of the output.
fn product(scene: &Scene, out: &str) -> (Tree, Value) {
    let mut tree = scene.tree(out);
    for name in ["report.json", "report.md", "report.html", "config.toml"] {
        tree.remove(name).expect("a run directory is complete");
    }
    let mut report = scene.json(&format!("{out}/report.json"));
    report.as_object_mut().expect("an object").remove("timing").expect("it is there");
    (tree, report)
}

#[track_caller]
fn assert_same(found: &(Tree, Value), expected: &(Tree, Value)) {
    scene::assert_same_tree(&found.0, &expected.0);
    assert_eq!(found.1, expected.1);
}

fn start(scene: &Scene, more: &[&str]) -> Child {
    let mut command = scene.zeropoint(RUN.iter().chain(more));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("the program starts")
}

/// Kills the program; whether that came before its end.
fn kill(mut child: Child) -> bool {
    child.kill().expect("it is ours");
    child.wait().expect("it ends").code().is_none()
}

/// Runs the program and kills it as soon as its journal holds `lines` whole lines.
fn killed_after(scene: &Scene, lines: usize, more: &[&str]) -> String {
    let journal = scene.path("out.partial/journal.jsonl");
    let mut child = start(scene, more);
    loop {
        let text = std::fs::read_to_string(&journal).unwrap_or_default();
        if text.matches('\n').count() >= lines {
            break;
        }
        assert!(child.try_wait().expect("it is ours").is_none(), "it ended before line {lines}: {text}");
        std::thread::sleep(Duration::from_micros(200));
    }
    kill(child);
    std::fs::read_to_string(&journal).unwrap_or_default()
}

#[test]
fn a_run_that_is_killed_after_any_line_of_its_journal_ends_in_the_same_bytes() {
    let scene = scene();
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "reference"]);
    let expected = product(&scene, "reference");
    // The identity; checkpoints after 64, 128, ... 384 batches; statistics; the tensors; the model; two tasks. A run that goes
    // on begins its journal anew with what still counts, so each of these is reached by one run alone.
    let done =
        |text: &str| text.lines().skip(1).filter_map(|line| serde_json::from_str::<Value>(line).ok()).last();
    let stages = ["checkpoint", "statistics", "part", "model", "task"];
    let rank = |name: &str| stages.iter().position(|stage| *stage == name).expect("a stage");
    for (lines, least) in [
        (1, None),
        (2, Some("checkpoint")),
        (5, Some("checkpoint")),
        (7, Some("checkpoint")),
        (8, Some("statistics")),
        (9, Some("part")),
        (10, Some("model")),
        (11, Some("task")),
        (12, Some("task")),
    ] {
        let text = killed_after(&scene, lines, &[]);
        assert!(!scene.path("out").exists() || lines == 12, "only what is whole has the name");
        if let (Some(least), Some(last)) = (least, done(&text)) {
            assert!(rank(last["done"].as_str().expect("a name")) >= rank(least), "{least}: {last}");
        }
        if !scene.path("out").exists() {
            let output = scene.succeeds(RUN);
            let said = scene::stderr(&output);
            assert_eq!(
                said.contains("Going on with the interrupted run in"),
                done(&text).is_some(),
                "{said}"
            );
        }
        assert_same(&product(&scene, "out"), &expected);
        let names: Vec<String> = scene.tree("").into_keys().filter(|name| !name.contains('/')).collect();
        assert_eq!(names, ["config.toml"], "nothing is left beside the outputs");
        std::fs::remove_dir_all(scene.path("out")).expect("it is there");
    }
}

#[test]
fn a_decoder_that_is_killed_after_any_part_goes_on_at_the_next_one() {
    let scene = decoder();
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "reference"]);
    let expected = product(&scene, "reference");
    // The identity; checkpoints after the input, the first and the second block; statistics; four parts; the model; a task.
    for (lines, next) in [
        (2, "calibration, part 2 of 4 of the model"),
        (3, "calibration, part 3 of 4 of the model"),
        (4, "calibration, part 4 of 4 of the model"),
        (5, "quantisation"),
        (6, "quantisation, part 2 of 4 of the model"),
        (7, "quantisation, part 3 of 4 of the model"),
        (8, "quantisation, part 4 of 4 of the model"),
    ] {
        let text = killed_after(&scene, lines, &BY_PARTS);
        let output = scene.succeeds(RUN.iter().chain(&BY_PARTS));
        let said = scene::stderr(&output);
        assert!(said.contains("Going on with the interrupted run in"), "{said}");
        // A fast machine may have come further before it was killed.
        assert!(said.contains(next) || text.lines().count() > lines, "after {lines} lines: {said}");
        assert_same(&product(&scene, "out"), &expected);
        std::fs::remove_dir_all(scene.path("out")).expect("it is there");
    }
}

/// The original is observed, then the model with its transforms; weights are rounded for what the parts before give.
#[test]
fn transforms_and_gptq_outlive_a_kill_after_any_line() {
    const LINES: usize = 14;
    let quantization = "quantization.transforms = [{ kind = 'smoothquant', search = true }]\n\
                        quantization.algorithm = { kind = 'gptq' }\n";
    let scene = decoder_of("llama-causal", quantization);
    let config = std::fs::read_to_string(scene.path("config.toml")).expect("it was written");
    // The first pass is over a part of the samples.
    scene.write(
        "config.toml",
        config.replace("batch_size = 1\n", "batch_size = 1\ntransform_tokens = 2000\n"),
    );
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "reference"]);
    let expected = product(&scene, "reference");
    assert!(expected.0.contains_key("statistics-original.safetensors"));
    let observed = expected.1["calibration"]["transform_samples"].as_u64().expect("a number");
    assert!((1..100).contains(&observed), "{observed}");
    for lines in 2..LINES {
        killed_after(&scene, lines, &BY_PARTS);
        if !scene.path("out").exists() {
            scene.succeeds(RUN.iter().chain(&BY_PARTS));
        }
        assert_same(&product(&scene, "out"), &expected);
        std::fs::remove_dir_all(scene.path("out")).expect("it is there");
    }
}

/// Kills runs at random moments, replacing an older output, until so many have died; each is then run to its end.
/// The head is made of the table, which the first part has, and runs in the last one.
#[test]
fn an_int8_head_on_a_table_outlives_a_kill_between_the_two() {
    const PARTS: usize = 6;
    let scene = decoder_of("smollm3-causal", "quantization.lm_head = 'int8'\n");
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "reference"]);
    let expected = product(&scene, "reference");
    assert!(expected.0.contains_key("model/zeropoint/model.safetensors"));
    // Behind the identity, the checkpoints and the statistics: each part.
    for lines in PARTS + 2..2 * PARTS + 2 {
        killed_after(&scene, lines, &BY_PARTS);
        if !scene.path("out").exists() {
            scene.succeeds(RUN.iter().chain(&BY_PARTS));
        }
        assert_same(&product(&scene, "out"), &expected);
        std::fs::remove_dir_all(scene.path("out")).expect("it is there");
    }
}

fn kill_at_random(scene: &Scene, kills: usize, more: &[&str]) {
    let clock = Instant::now();
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "reference"].iter().chain(more));
    let length = clock.elapsed();
    let expected = product(scene, "reference");
    scene.succeeds(RUN.iter().chain(&["--set", "quantization.scheme=w8a8-dynamic"]));
    let old = scene.tree("out");
    let more: Vec<&str> = more.iter().copied().chain(["--force"]).collect();
    let mut random =
        SystemTime::now().duration_since(UNIX_EPOCH).expect("it is past 1970").as_nanos() as u64 | 1;
    let mut killed = 0;
    while killed < kills {
        // Several kills in a row, with new work between them.
        for _ in 0..=killed % 3 {
            // Marsaglia's xorshift64.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let moment = length.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64);
            let child = start(scene, &more);
            std::thread::sleep(moment);
            if kill(child) {
                killed += 1;
            }
            if scene.tree("out") == old {
                continue;
            }
            // What is not the old output is the new one.
            assert_same(&product(scene, "out"), &expected);
        }
        scene.succeeds(RUN.iter().chain(&more));
        assert_same(&product(scene, "out"), &expected);
        // The old output again, for the next one to replace.
        std::fs::remove_dir_all(scene.path("out")).expect("it is there");
        for (name, content) in &old {
            if !name.ends_with('/') {
                scene.write(&format!("out/{name}"), content);
            }
        }
    }
    let left: Vec<String> = scene
        .tree("")
        .into_keys()
        .filter(|name| {
            !["config.toml", "model/", "out/", "reference/"].iter().any(|known| name.starts_with(known))
        })
        .collect();
    assert_eq!(left, [] as [&str; 0]);
}

#[test]
fn runs_that_are_killed_at_random_moments_end_in_the_same_bytes() {
    kill_at_random(&scene(), KILLS.0, &[]);
}

#[test]
fn decoders_that_are_killed_at_random_moments_end_in_the_same_bytes() {
    kill_at_random(&decoder(), KILLS.0, &BY_PARTS);
}

#[test]
#[ignore = "needs ZEROPOINT_MODELS: long, as the tests on real models are"]
fn fifty_runs_that_are_killed_at_random_moments_end_in_the_same_bytes() {
    kill_at_random(&scene(), KILLS.1, &[]);
    kill_at_random(&decoder(), KILLS.1, &BY_PARTS);
}

#[test]
fn what_has_changed_since_an_interruption_is_named() {
    let scene = scene();
    scene.copy_fixture("bert-mean", "model");
    let config = |samples: u32| {
        let text = format!(
            "version = 1\nmodel.source = 'model'\n[calibration]\ndata = ['texts.txt']\nsamples = {samples}\n\
             batch_size = 1\n[[evaluation.tasks]]\nkind = 'fidelity'\ndata = 'test.txt'\n"
        );
        scene.write("config.toml", text);
    };
    let texts = |last: &str| {
        let mut text = "the cat sat on the mat\n".repeat(300);
        text.push_str(last);
        scene.write("texts.txt", text);
    };
    let test = |text: &str| scene.write("test.txt", text);
    let all = || {
        config(300);
        texts("a dog\n");
        test("one\ntwo\n");
        for file in ["tokenizer.json", "model.safetensors"] {
            std::fs::copy(scene::fixture("bert-mean").join(file), scene.path(&format!("model/{file}")))
                .expect("it is there");
        }
    };
    all();
    killed_after(&scene, 2, &[]);
    let before = scene.tree("out.partial");
    let weights = |scene: &Scene| {
        let path = scene.path("model/model.safetensors");
        let mut file = scene::safetensors::Safetensors::read(&path);
        file.poke("encoder.layer.0.attention.self.query.weight", 3, 0.125);
        scene.write("model/model.safetensors", file.to_bytes());
    };
    let cases: [(&dyn Fn(), &str); 5] = [
        (&|| config(299), "`calibration.samples` was 300 and is 299 now"),
        (&|| texts("a cat\n"), "the calibration data have changed"),
        (&|| test("one\nthree\n"), "the data of evaluation task 1 have changed"),
        (&|| scene.write("model/notes.txt", "new\n"), "the model has a new file notes.txt"),
        (&|| weights(&scene), "the weights of the model have changed"),
    ];
    for (change, difference) in cases {
        change();
        let said = scene::stderr(&scene.ends_with(1, RUN));
        assert!(said.contains(difference) && said.contains("--restart"), "{said}");
        if !difference.contains("weights") {
            let plan = scene::stdout(&scene.succeeds(RUN.iter().chain(&["--dry-run"])));
            assert!(plan.contains("cannot be continued") && plan.contains(difference), "{plan}");
        }
        scene::assert_same_tree(&scene.tree("out.partial"), &before);
        all();
        let _ = std::fs::remove_file(scene.path("model/notes.txt"));
    }
    // A file that an interrupted run has left is not removed for the sake of a run that would read it.
    scene.write("out.partial/statistics.safetensors", "kept");
    let quantize = ["quantize", "config.toml", "--out", "out", "--restart"];
    let given = ["--statistics", "out.partial/statistics.safetensors"];
    let said = scene::stderr(&scene.ends_with(2, quantize.iter().chain(&given)));
    assert!(said.contains("replacing it would remove") && said.contains("which is read here"), "{said}");
    assert_eq!(scene.text("out.partial/statistics.safetensors"), "kept");
    let plan = scene::stdout(&scene.succeeds(RUN.iter().chain(&["--dry-run"])));
    assert!(plan.contains("would be gone on with: calibration, batch "), "{plan}");
    let said = scene::stderr(&scene.succeeds(RUN));
    assert!(said.contains("Going on with the interrupted run in"), "{said}");
}

#[test]
fn changed_weights_of_a_dense_module_are_another_run() {
    let scene = scene();
    scene.copy_fixture("bert-dense", "model");
    scene.write("texts.txt", "the cat sat on the mat\n".repeat(300));
    scene.write(
        "config.toml",
        "version = 1\nmodel.source = 'model'\n[calibration]\ndata = ['texts.txt']\nsamples = 300\nbatch_size = 1\n",
    );
    killed_after(&scene, 2, &[]);
    let path = "model/2_Dense/model.safetensors";
    let mut file = scene::safetensors::Safetensors::read(&scene.path(path));
    file.poke("linear.weight", 3, 0.125);
    scene.write(path, file.to_bytes());
    let said = scene::stderr(&scene.ends_with(1, RUN));
    assert!(said.contains("the weights of the model have changed"), "{said}");
}
