//! What the user reads when a fetch fails.

use serde_json::json;
use zeropoint_hub::{DataRef, Hub, HubError, HubSettings, RepoId, Revision, Weights};

use crate::scene::{MODEL, Scene, files, revision, tiny};
use crate::server::Fault;

fn sentence(scene: &Scene, error: &HubError) -> String {
    let hint = error.hint().map_or(String::new(), |hint| format!("\n  hint: {hint}"));
    format!("{error}{hint}").replace(&scene.server.endpoint(), "http://HUB")
}

fn fetch(scene: &Scene, hub: &Hub, id: &str, name: &str) -> String {
    let repo = RepoId::model(id).expect("a name");
    match hub.fetch_model(&repo, &revision(name), Weights::Whole, &()) {
        Ok(_) => "fetched".to_owned(),
        Err(error) => sentence(scene, &error),
    }
}

#[test]
fn repositories_revisions_and_access() {
    let (scene, _) = Scene::with_model();
    let with_token = |token: &str| {
        Hub::new(HubSettings { token: Some(token.to_owned()), ..scene.settings() }).expect("a hub")
    };
    scene.server.commit("models/owner/gated", "main", &files());
    scene.server.make_gated("models/owner/gated");
    scene.server.commit("models/owner/secret", "main", &files());
    scene.server.make_private("models/owner/secret");
    scene.server.know_token("hf_good");
    let hub = scene.hub();
    let mut text = String::new();
    let mut add = |case: &str, line: String| text.push_str(&[case, "\n", &line, "\n\n"].concat());
    add("no such repository", fetch(&scene, &hub, "owner/absent", "main"));
    add("no such repository, with a token", fetch(&scene, &with_token("hf_good"), "owner/absent", "main"));
    add("a private one", fetch(&scene, &hub, "owner/secret", "main"));
    add("a private one, with its token", fetch(&scene, &with_token("hf_good"), "owner/secret", "main"));
    add("a gated one", fetch(&scene, &hub, "owner/gated", "main"));
    add("a gated one, with another token", fetch(&scene, &with_token("hf_other"), "owner/gated", "main"));
    add("a gated one, with its token", fetch(&scene, &with_token("hf_good"), "owner/gated", "main"));
    add("no such branch", fetch(&scene, &hub, "owner/tiny", "v9"));
    scene.server.fault("/revision/main", Fault::Status(401, vec![]));
    add("a token that the hub does not know", fetch(&scene, &with_token("hf_bad"), "owner/tiny", "main"));
    scene.server.fault("/revision/main", Fault::Status(403, vec![]));
    add("a token that may not", fetch(&scene, &with_token("hf_bad"), "owner/tiny", "main"));
    insta::assert_snapshot!(text);
}

#[test]
fn what_the_network_does() {
    let (scene, _) = Scene::with_model();
    let hub = scene.hub();
    let mut text = String::new();
    let mut add = |case: &str, line: String| text.push_str(&[case, "\n", &line, "\n\n"].concat());
    for _ in 0..3 {
        scene.server.fault("/revision/main", Fault::Status(429, vec![("Retry-After", "2")]));
    }
    add("too many requests", fetch(&scene, &hub, "owner/tiny", "main"));
    for _ in 0..3 {
        scene.server.fault("/revision/main", Fault::Status(503, vec![]));
    }
    add("out of order", fetch(&scene, &hub, "owner/tiny", "main"));
    for _ in 0..3 {
        scene.server.fault("GET /owner/tiny/resolve", Fault::CutAfter(0));
    }
    add(
        "a transfer that breaks every time",
        fetch(&scene, &hub, "owner/tiny", "main").replace(char::is_numeric, "N"),
    );
    // Nobody listens on port 1.
    let nowhere = |scene: &Scene| {
        let settings = HubSettings { endpoint: "http://127.0.0.1:1".to_owned(), ..scene.settings() };
        fetch(scene, &Hub::new(settings).expect("a hub"), "owner/tiny", "main")
    };
    add("no network", nowhere(&scene));
    let (other, _) = Scene::with_model();
    other.hub().fetch_model(&tiny(), &Revision::default(), Weights::Whole, &()).expect("fetched");
    add("no network, and a cache that has it", nowhere(&other));
    add("offline", fetch(&scene, &scene.offline(), "owner/tiny", "main"));
    insta::assert_snapshot!(text);
}

#[test]
fn what_repositories_hold() {
    let scene = Scene::new();
    let mut text = String::new();
    let mut add = |case: &str, line: String| text.push_str(&[case, "\n", &line, "\n\n"].concat());
    let mut other = |case: &str, name: &str, files: &[(&str, &[u8])]| {
        let commit = scene.server.commit(&format!("models/owner/{name}"), "main", files);
        let line = fetch(&scene, &scene.hub(), &format!("owner/{name}"), "main");
        add(case, line.replace(&commit, "COMMIT"));
    };
    other(
        "torch only",
        "torch",
        &[("config.json", b"{}"), ("pytorch_model.bin", b"x"), ("tf_model.h5", b"x")],
    );
    other("nothing", "nothing", &[("README.md", b"# soon")]);
    let index =
        |text: &'static str| [("config.json", &b"{}"[..]), ("model.safetensors.index.json", text.as_bytes())];
    other("an index that is none", "index", &index("[]"));
    other("an index that leaves", "leaves", &index(r#"{"weight_map": {"a": "../../../etc/passwd"}}"#));
    let oid = "0123456789".repeat(4);
    let file = |path: &str, oid: &str| json!([{ "type": "file", "oid": oid, "size": 3, "path": path }]);
    for (case, listing) in [
        ("a path that leaves", file("../../../.bashrc", &oid)),
        ("an absolute path", file("/etc/passwd", &oid)),
        ("an object that is no hash", file("config.json", "../../x")),
        ("a listing that is none", json!({ "files": [] })),
    ] {
        scene.server.commit(MODEL, "main", &files());
        scene.server.lie_about(MODEL, listing);
        add(case, fetch(&scene, &scene.hub(), "owner/tiny", "main"));
    }
    assert_eq!(scene.tree().keys().filter(|name| name.contains("bashrc")).count(), 0);
    let data = |text: &str| match DataRef::parse(text).expect("a reference") {
        Err(error) => sentence(&scene, &error),
        Ok(data) => sentence(&scene, &scene.hub().fetch_data(&data, &()).expect_err("it is not there")),
    };
    scene.server.commit("datasets/owner/texts", "main", &[("train.jsonl", b"{}")]);
    for text in [
        "hub:texts",
        "hub:owner/texts/../x",
        "hub:owner/texts/test.jsonl",
        "hub:owner/no/test.jsonl",
        "hub:owner/texts@v1/train.jsonl",
    ] {
        add(text, data(text));
    }
    insta::assert_snapshot!(text);
}
