//! `zeropoint sweep` and `zeropoint auto` as a user meets them.

use crate::scene::answers::Answers;
use crate::scene::{Scene, stdout};

const SWEEP: &str = "model.source = 'embedded'\n[calibration]\nsamples = 8\n[sweep]\n\
    grid = [['quantization.scheme=w8a8-dynamic', 'quantization.scheme=w8a16']]\n";

#[test]
fn a_sweep_lists_its_runs_makes_them_and_takes_what_is_there() {
    let scene = Scene::new();
    scene.write("sweep.toml", SWEEP);
    let planned = scene.succeeds(["sweep", "sweep.toml", "--out", "runs", "--dry-run"]);
    let planned = stdout(&planned);
    assert!(planned.lines().nth(1).is_some_and(|line| line.starts_with("w8a8-dynamic  ")), "{planned}");
    assert!(!scene.path("runs").exists());
    scene.write("many.toml", SWEEP.replace("samples = 8", "samples = 5000"));
    let warned = stdout(&scene.succeeds(["sweep", "many.toml", "--out", "runs", "--dry-run"]));
    assert_eq!(warned.matches("warning: ").count(), 1, "both runs are warned of the same: {warned}");
    assert!(warned.contains("5000 were asked for"), "{warned}");

    let made = stdout(&scene.succeeds(["sweep", "sweep.toml", "--out", "runs"]));
    assert!(made.contains("runs/w8a16") && made.contains("original"), "{made}");
    for file in ["w8a8-dynamic/model/model.safetensors", "w8a16/report.html", "comparison/compare.html"] {
        assert!(scene.path("runs").join(file).is_file(), "{file}");
    }
    scene.write("grid.toml", "[[runs]]\nname = 'four'\nset = ['quantization={ scheme = \"w4a16\" }']\n");
    let more = scene.succeeds(["sweep", "sweep.toml", "--grid", "grid.toml", "--out", "runs", "--json"]);
    let more: serde_json::Value = serde_json::from_str(&stdout(&more)).expect("JSON");
    assert_eq!(more["runs"].as_array().map(Vec::len), Some(1));
    let again = scene.succeeds(["sweep", "sweep.toml", "--out", "runs"]);
    let told = String::from_utf8_lossy(&again.stderr).into_owned();
    assert_eq!(told.matches("is there already, of the same config").count(), 2, "{told}");
}

#[test]
fn a_budget_gives_a_run_and_its_config() {
    let scene = Scene::new();
    scene.write("auto.toml", "model.source = 'embedded'\ncalibration.samples = 8\n");
    let found = scene.succeeds(["auto", "auto.toml", "--max-drop", "0.5", "--out", "auto", "--json"]);
    let found: serde_json::Value = serde_json::from_str(&stdout(&found)).expect("JSON");
    assert_eq!(found["tries"][0]["met"], true);
    assert_eq!(found["tries"][0]["linears"]["w8a8-static"], 18);
    assert_eq!(found["report"]["gates"][0]["passed"], true);
    scene.succeeds(["run", "auto/config.toml", "--out", "again"]);
    let weights =
        |dir: &str| std::fs::read(scene.path(dir).join("model/model.safetensors")).expect("it is there");
    assert!(weights("auto") == weights("again"));

    let strict = ["auto", "auto.toml", "--max-drop", "0", "--candidates", "w4a16", "--out", "strict"];
    let output = scene.zeropoint(strict).output().expect("runs");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(scene.path("strict/model").is_dir(), "it is kept");
}

#[test]
fn mistakes() {
    let mut answers = Answers::new();
    answers.scene.write("plain.toml", "model.source = 'embedded'\n");
    answers.scene.write("sweep.toml", SWEEP);
    answers
        .scene
        .write("other.toml", "model.source = 'embedded'\nsweep.grid = [['calibration.samples=3']]\n");
    answers.scene.write("names.toml", "[[runs]]\nname = 'a/b'\nset = []\n");
    answers.scene.write(
        "groups.toml",
        "model.source = 'embedded'\nquantization = { scheme = 'w4a16', weights.group_size = 48 }\n",
    );
    for (mistake, arguments) in [
        ("no sweep", &["sweep", "plain.toml"][..]),
        ("a sweep of what is measured", &["sweep", "other.toml"]),
        ("a name that is no directory's", &["sweep", "plain.toml", "--grid", "names.toml"]),
        ("no limit", &["auto", "plain.toml"]),
        ("two limits", &["auto", "plain.toml", "--max-drop", "1", "--target-bytes", "1MB"]),
        ("a limit below nothing", &["auto", "plain.toml", "--max-drop=-1"]),
        ("a scheme that there is not", &["auto", "plain.toml", "--max-drop", "1", "--candidates", "w2a2"]),
        (
            "a metric that nothing measures",
            &["auto", "plain.toml", "--max-drop", "1", "--metric", "sts.pearson"],
        ),
        ("bytes that cannot be reached", &["auto", "plain.toml", "--target-bytes", "100kB"]),
        ("groups that do not divide", &["run", "groups.toml"]),
    ] {
        answers.refused(2, mistake, arguments);
    }
    answers.compare("search__mistakes");
}
