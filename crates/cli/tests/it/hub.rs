//! Models and data of the Hugging Face hub, and pushes to it, against a hub on this machine.

use std::process::{Command, Output};

use serde_json::Value;

use crate::scene::{self, Scene, assert_same_tree, data, expect_code, fixture, stderr, stdout, tree};
use crate::server::{Fault, Server};

const MODEL: &str = "models/owner/bert-mean";

/// A scene beside a hub that has the fixture `bert-mean`, texts, and a torch file that nobody needs; gives its commit.
fn with_hub() -> (Scene, Server, String) {
    let server = Server::start();
    let mut files = tree(&fixture("bert-mean"));
    files.insert("pytorch_model.bin".to_owned(), b"pickle".to_vec());
    let commit = commit(&server, MODEL, &files);
    let texts = std::fs::read(data("topics-test.jsonl")).expect("texts");
    server.commit("datasets/owner/texts", "main", &[("data/test.jsonl", &texts)]);
    let scene = Scene::new();
    scene.write("config.toml", config("owner/bert-mean", "hub:owner/texts/data/test.jsonl"));
    (scene, server, commit)
}

fn commit(server: &Server, repo: &str, files: &scene::Tree) -> String {
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .filter(|(name, _)| !name.ends_with('/'))
        .map(|(name, content)| (name.as_str(), content.as_slice()))
        .collect();
    server.commit(repo, "main", &files)
}

fn config(model: &str, texts: &str) -> String {
    format!(
        "version = 1\nmodel.source = '{model}'\n[calibration]\ndata = ['{texts}']\nsamples = 16\n\
         [[evaluation.tasks]]\nkind = 'fidelity'\ndata = '{texts}'\nlimit = 20\n"
    )
}

fn online(scene: &Scene, server: &Server, arguments: &[&str]) -> Command {
    let mut command = scene.zeropoint(arguments);
    command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", server.endpoint());
    command
}

fn succeeds(scene: &Scene, server: &Server, arguments: &[&str]) -> Output {
    expect_code(&mut online(scene, server, arguments), 0)
}

const RUN: [&str; 5] = ["run", "config.toml", "--no-cache", "--out", "out"];

#[test]
fn a_run_of_a_model_of_the_hub_is_pinned_and_can_be_repeated_offline() {
    let (scene, server, commit) = with_hub();
    let shown = stderr(&succeeds(&scene, &server, &RUN));
    assert!(shown.contains(&format!("Fetching owner/bert-mean at {}: ", &commit[..7])), "{shown}");
    assert!(shown.contains("Fetching owner/texts at "), "{shown}");
    let log = server.take_log().join("\n");
    assert!(!log.contains("pytorch_model.bin"), "{log}");
    let report = scene.json("out/report.json");
    assert_eq!(
        (&report["model"]["source"], &report["model"]["revision"]),
        (&"owner/bert-mean".into(), &commit.as_str().into())
    );
    assert!(scene.text("out/report.md").contains(&commit));
    let pinned = scene.text("out/config.toml");
    assert!(pinned.contains(&format!("revision = \"{commit}\"")), "{pinned}");
    assert_eq!(pinned.matches("hub:owner/texts@").count(), 2, "{pinned}");
    assert!(scene.text("out/model/README.md").contains("base_model: owner/bert-mean"));

    // The branch moves; the cache and the pinned config do not.
    let first = scene.tree("out/model");
    server.commit(MODEL, "main", &[("config.json", b"{}"), ("model.safetensors", b"another")]);
    scene.succeeds(RUN.iter().chain(&["--offline", "--force"]));
    assert_same_tree(&scene.tree("out/model"), &first);
    scene.write("again.toml", pinned);
    succeeds(&scene, &server, &["run", "again.toml", "--no-cache", "--out", "again"]);
    assert_same_tree(&scene.tree("again/model"), &first);
    assert!(!server.take_log().iter().any(|line| line.contains("/cdn/")), "everything was in the cache");

    // The same model from a directory computes the same; only where it comes from is another.
    scene.copy_fixture("bert-mean", "copy");
    let texts = data("topics-test.jsonl");
    scene.write("local.toml", config("copy", texts.to_str().expect("UTF-8")));
    scene.succeeds(["run", "local.toml", "--no-cache", "--out", "local"]);
    assert_eq!(scene.tree("local/model")["model.safetensors"], first["model.safetensors"]);
}

#[test]
fn dry_run_and_inspect_leave_the_weights_on_the_hub() {
    let (scene, server, _) = with_hub();
    let plan = succeeds(&scene, &server, &[&RUN[..], &["--dry-run", "--json"]].concat());
    let plan: Value = serde_json::from_slice(&plan.stdout).expect("the plan is JSON");
    let warnings = plan["warnings"].to_string();
    assert!(warnings.contains("are not in the cache: a run downloads them"), "{warnings}");
    let inspected = |output: &Output| -> Value { serde_json::from_slice(&output.stdout).expect("JSON") };
    let hub = inspected(&succeeds(&scene, &server, &["inspect", "owner/bert-mean", "--json"]));
    let local = fixture("bert-mean");
    assert_eq!(hub, inspected(&scene.succeeds(["inspect", local.to_str().expect("UTF-8"), "--json"])));
    let cached = tree(&scene.hub_cache());
    assert!(cached.keys().any(|name| name.ends_with("tokenizer.json")));
    assert!(!cached.keys().any(|name| name.ends_with("model.safetensors")), "{:?}", cached.keys());
    assert_eq!(scene.temporary_files(), [] as [&str; 0]);

    let source = "model.source=".to_owned() + local.to_str().expect("UTF-8");
    let here = succeeds(&scene, &server, &[&RUN[..], &["--dry-run", "--json", "--set", &source]].concat());
    let here: Value = serde_json::from_slice(&here.stdout).expect("JSON");
    for key in ["layers", "original_bytes", "quantized_bytes", "samples", "tokens"] {
        assert_eq!(plan[key], here[key], "{key}");
    }
}

#[test]
fn every_command_takes_what_is_on_the_hub() {
    let (scene, server, _) = with_hub();
    succeeds(&scene, &server, &["calibrate", "config.toml", "--out", "s.safetensors", "--no-cache"]);
    succeeds(&scene, &server, &["quantize", "config.toml", "--statistics", "s.safetensors", "--out", "out"]);
    commit(&server, "models/owner/bert-int8", &tree(&scene.path("out/model")));
    succeeds(&scene, &server, &["evaluate", "config.toml", "--model", "owner/bert-int8"]);
    let texts = "hub:owner/texts/data/test.jsonl";
    let hub = succeeds(&scene, &server, &["encode", "owner/bert-int8", "--data", texts]);
    let local = data("topics-test.jsonl");
    let config = stdout(&succeeds(&scene, &server, &["init", "owner/bert-mean"]));
    assert!(config.contains("source = \"owner/bert-mean\""), "{config}");
    let here = scene.succeeds(["encode", "out/model", "--data", local.to_str().expect("UTF-8")]);
    assert_eq!(stdout(&hub), stdout(&here));
}

#[test]
fn what_is_not_there_is_one_sentence_and_a_hint() {
    let (scene, server, _) = with_hub();
    for (code, arguments, sentence, hint) in [
        (
            2,
            &["inspect", "owner/absent"][..],
            "`owner/absent` is no directory here, and the hub has no model owner/absent, or it is private",
            "check the spelling",
        ),
        (
            2,
            &["inspect", "owner/bert-mean", "--revision", "v9"],
            "model owner/bert-mean has no revision `v9`",
            "40 digits",
        ),
        (
            1,
            &["inspect", "owner/bert-mean", "--offline"],
            "the cache does not have model owner/bert-mean at revision `main`",
            "run once without --offline",
        ),
        (
            2,
            &["run", "config.toml", "--set", "calibration.data=['hub:owner/texts/no.jsonl']"],
            "data set owner/texts has no file `no.jsonl`",
            "",
        ),
        (
            2,
            &["run", "config.toml", "--set", "calibration.data=['hub:owner/texts.jsonl']"],
            "does not name a file of a data set",
            "write hub:owner/name/path",
        ),
    ] {
        let shown = stderr(&expect_code(&mut online(&scene, &server, arguments), code));
        assert!(shown.contains(sentence) && shown.contains(hint), "{arguments:?}: {shown}");
    }
    // Damaged on the way, every time: nothing half-fetched is left in the snapshot, nothing is written.
    for _ in 0..2 {
        server.fault("GET /cdn/", Fault::Flip(100));
    }
    let shown = stderr(&expect_code(&mut online(&scene, &server, &RUN), 1));
    assert!(shown.contains("its hash is another"), "{shown}");
    assert!(!scene.path("out").exists());
    assert!(!tree(&scene.hub_cache()).keys().any(|name| name.ends_with("model.safetensors")));
}

fn push<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["push", "out", "me/bert-int8"], more].concat()
}

#[test]
fn a_push_is_checked_listed_and_sent_whole() {
    let (scene, server, _) = with_hub();
    succeeds(&scene, &server, &RUN);
    server.take_log();
    // The plan needs neither the network nor a token.
    let plan = scene.succeeds(push(&["--dry-run", "--json"]));
    let shown = stderr(&plan);
    assert!(
        shown.contains("the card's front matter has no `license`") && !shown.contains("base_model"),
        "{shown}"
    );
    let plan: Value = serde_json::from_slice(&plan.stdout).expect("JSON");
    let planned: Vec<&str> =
        plan["files"].as_array().into_iter().flatten().filter_map(|file| file[0].as_str()).collect();
    let files: Vec<String> =
        scene.tree("out/model").into_keys().filter(|name| !name.ends_with('/')).collect();
    assert_eq!(planned, files);
    assert_eq!((&plan["public"], &plan["target"]), (&false.into(), &"me/bert-int8".into()));
    let text = stdout(&scene.succeeds(push(&["--dry-run"])));
    assert!(text.contains("model.safetensors") && text.contains("me/bert-int8 at main, private"), "{text}");
    assert_eq!(server.take_log(), [] as [String; 0]);

    let refused = stderr(&expect_code(&mut online(&scene, &server, &push(&[])), 1));
    assert!(
        refused.contains("needs a token with write access") && refused.contains("set HF_TOKEN"),
        "{refused}"
    );
    let refused = stderr(&scene.ends_with(1, push(&[])));
    assert!(refused.contains("needs the network"), "{refused}");

    server.know_token("hf_good");
    let shown = stderr(&expect_code(online(&scene, &server, &push(&[])).env("HF_TOKEN", "hf_good"), 0));
    assert!(shown.contains(&format!("Pushed to {}/me/bert-int8", server.endpoint())), "{shown}");
    assert!(server.is_private("models/me/bert-int8"));
    let pushed = server.repo("models/me/bert-int8").pushed;
    let sent: Vec<&str> = pushed[0].1[1..].iter().filter_map(|line| line["value"]["path"].as_str()).collect();
    assert_eq!((pushed.len(), sent), (1, planned));
}

#[test]
fn what_is_no_quantised_model_is_not_pushed() {
    let (scene, server, _) = with_hub();
    succeeds(&scene, &server, &RUN);
    let refused = |arguments: &[&str], sentence: &str| {
        let shown = stderr(&scene.ends_with(2, arguments));
        assert!(shown.contains(sentence), "{arguments:?}: {shown}");
    };
    let float = fixture("bert-mean");
    refused(&["push", float.to_str().expect("UTF-8"), "me/x", "--dry-run"], "is not quantised");
    refused(&["push", "nowhere", "me/x", "--dry-run"], "nowhere: holds no config.json");
    refused(&["push", "out", "x", "--dry-run"], "`x` is not the name of a repository");
    for stray in ["optimizer.pt", ".DS_Store", "checkpoint/state.bin"] {
        scene.write(&format!("out/model/{stray}"), "");
        refused(&push(&["--dry-run"]), stray);
        std::fs::remove_file(scene.path(&format!("out/model/{stray}"))).expect("removed");
    }
    scene.write("out/model/model-00001-of-00002.safetensors", "");
    refused(&push(&["--dry-run"]), "which its index does not name");
    std::fs::remove_file(scene.path("out/model/model-00001-of-00002.safetensors")).expect("removed");
    let weights = scene.tree("out/model")["model.safetensors"].clone();
    scene.write("out/model/model.safetensors", &weights[..weights.len() - 1]);
    let shown = stderr(&scene.ends_with(1, push(&["--dry-run"])));
    assert!(shown.contains("model.safetensors"), "{shown}");
    scene.write("out/model/model.safetensors", weights);
    std::fs::remove_file(scene.path("out/model/README.md")).expect("removed");
    refused(&push(&["--dry-run"]), "holds no model card");
}
