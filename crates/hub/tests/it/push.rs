//! A directory to a hub on this machine.

use std::fs;
use std::path::Path;

use serde_json::Value;
use zeropoint_hub::{Hub, HubError, HubSettings, PushFile, RepoId, Revision, Upload};

use crate::scene::Scene;
use crate::server::Fault;

const REPO: &str = "models/me/tiny-int8";

fn upload(dir: &Path, public: bool) -> Upload {
    fs::create_dir_all(dir.join("1_Pooling")).expect("directory");
    let files = ["README.md", "1_Pooling/config.json", "model.safetensors"].map(|name| {
        fs::write(dir.join(name), format!("content of {name}")).expect("file");
        PushFile { path: name.to_owned(), source: dir.join(name) }
    });
    Upload {
        repo: RepoId::model("me/tiny-int8").expect("a name"),
        revision: Revision::default(),
        public,
        message: "INT8".to_owned(),
        files: files.to_vec(),
    }
}

fn hub(scene: &Scene) -> Hub {
    scene.server.know_token("hf_good");
    Hub::new(HubSettings { token: Some("hf_good".to_owned()), ..scene.settings() }).expect("a hub")
}

#[test]
fn a_push_makes_a_private_repository_and_one_commit_with_every_file() {
    let scene = Scene::new();
    let upload = upload(&scene.cache(), false);
    let pushed = hub(&scene).push(&upload, &()).expect("pushed");
    assert_eq!(pushed.url, format!("{}/me/tiny-int8", scene.server.endpoint()));
    assert_eq!(pushed.commit.map(|commit| commit.len()), Some(40));
    assert!(scene.server.is_private(REPO));
    let repo = scene.server.repo(REPO);
    let [(branch, lines)] = &repo.pushed[..] else { panic!("{:?}", repo.pushed) };
    assert_eq!(branch, "main");
    assert_eq!(lines[0]["value"]["summary"], "INT8");
    let files: Vec<&Value> = lines[1..].iter().map(|line| &line["value"]["path"]).collect();
    assert_eq!(files, ["README.md", "1_Pooling/config.json", "model.safetensors"]);
    // "content of README.md"
    assert_eq!(lines[1]["value"]["content"], "Y29udGVudCBvZiBSRUFETUUubWQ=");
}

#[test]
fn what_was_to_be_private_does_not_go_where_everyone_sees_it() {
    let scene = Scene::new();
    scene.server.commit(REPO, "main", &[]);
    let refused = hub(&scene).push(&upload(&scene.cache(), false), &()).expect_err("refused");
    assert!(matches!(refused, HubError::Public { .. }), "{refused}");
    assert!(scene.server.repo(REPO).pushed.is_empty());
    hub(&scene).push(&upload(&scene.cache(), true), &()).expect("pushed when it may be public");
    assert_eq!(scene.server.repo(REPO).pushed.len(), 1);
}

#[test]
fn a_token_that_may_write_and_not_create_pushes_to_what_is_there() {
    let scene = Scene::new();
    let forbid = || scene.server.fault("/api/repos/create", Fault::Status(403, vec![]));
    // Where nothing is, that it may not create is what the user has to know.
    forbid();
    let refused = hub(&scene).push(&upload(&scene.cache(), false), &()).expect_err("refused");
    assert!(matches!(refused, HubError::Forbidden { .. }), "{refused}");
    scene.server.commit(REPO, "main", &[]);
    forbid();
    let refused = hub(&scene).push(&upload(&scene.cache(), false), &()).expect_err("it is public");
    assert!(matches!(refused, HubError::Public { .. }), "{refused}");
    assert!(scene.server.repo(REPO).pushed.is_empty());
    scene.server.make_private(REPO);
    forbid();
    hub(&scene).push(&upload(&scene.cache(), false), &()).expect("pushed");
    assert_eq!(scene.server.repo(REPO).pushed.len(), 1);
}

#[test]
fn a_branch_is_made_when_it_is_not_there() {
    let scene = Scene::new();
    let upload =
        Upload { revision: Revision::parse("w8a8").expect("a name"), ..upload(&scene.cache(), false) };
    for _ in 0..2 {
        hub(&scene).push(&upload, &()).expect("pushed");
    }
    let branches: Vec<String> =
        scene.server.repo(REPO).pushed.into_iter().map(|(branch, _)| branch).collect();
    assert_eq!(branches, ["w8a8", "w8a8"]);
}

#[test]
fn a_busy_hub_is_waited_for_and_the_commit_made_once() {
    let scene = Scene::new();
    scene.server.fault("/commit/main", Fault::Status(429, vec![("Retry-After", "1")]));
    hub(&scene).push(&upload(&scene.cache(), false), &()).expect("pushed");
    assert_eq!(scene.server.repo(REPO).pushed.len(), 1);
}

#[test]
fn without_a_token_or_the_network_nothing_is_asked() {
    let scene = Scene::new();
    let upload = upload(&scene.cache(), false);
    let refused = scene.hub().push(&upload, &()).expect_err("refused");
    assert!(matches!(refused, HubError::NoToken { .. }), "{refused}");
    let refused = scene.offline().push(&upload, &()).expect_err("refused");
    assert!(matches!(refused, HubError::PushOffline { .. }), "{refused}");
    assert_eq!(scene.server.take_log(), [] as [String; 0]);
    let settings = HubSettings { token: Some("hf_other".to_owned()), ..scene.settings() };
    let refused = Hub::new(settings).expect("a hub").push(&upload, &()).expect_err("refused");
    assert!(matches!(refused, HubError::Unauthorized { token: true, .. }), "{refused}");
}
