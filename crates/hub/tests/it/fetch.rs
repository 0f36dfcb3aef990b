//! Models and data files from a hub on this machine: the cache's layout, what is downloaded and what is not, broken
//! transfers, and life without the network.

use std::fs;
use std::path::Path;

use zeropoint_hub::{DataRef, Hub, HubError, HubEvent, HubSettings, Revision, Weights};

use crate::scene::{self, MODEL, Scene, Seen, files, revision, tiny, weights};
use crate::server::Fault;

fn main() -> Revision {
    Revision::default()
}

fn downloads(log: &[String]) -> Vec<&String> {
    log.iter().filter(|line| line.starts_with("GET") && !line.contains("/api/")).collect()
}

fn error(result: Result<impl Sized, HubError>) -> HubError {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error,
    }
}

#[test]
fn the_first_fetch_makes_pythons_cache_layout_with_the_needed_files_only() {
    let (scene, commit) = Scene::with_model();
    let model = scene.hub().fetch_model(&tiny(), &main(), Weights::Whole, &()).expect("fetched");
    assert_eq!(model.commit(), commit);
    let root = scene.cache().join("models--owner--tiny");
    assert_eq!(model.path(), root.join("snapshots").join(&commit));
    assert_eq!(fs::read_to_string(root.join("refs/main")).expect("a ref"), commit);

    let tree = scene.tree();
    let snapshot = format!("models--owner--tiny/snapshots/{commit}/");
    let links: Vec<(&str, &String)> =
        tree.iter().filter_map(|(path, what)| Some((path.strip_prefix(&snapshot)?, what))).collect();
    let names: Vec<&str> = links.iter().map(|(name, _)| *name).collect();
    let needed = [
        "1_Pooling/config.json",
        "LICENSE",
        "README.md",
        "config.json",
        "model.safetensors",
        "modules.json",
        "tokenizer.json",
    ];
    assert_eq!(names, needed);
    for (name, target) in links {
        let up = if name.contains('/') { "-> ../../../blobs/" } else { "-> ../../blobs/" };
        let blob = target.strip_prefix(up).unwrap_or_else(|| panic!("{name} {target}"));
        // SHA-1 for what git keeps, SHA-256 for what is in large-file storage, as the hub's ETags are.
        assert_eq!(blob.len(), if name == "model.safetensors" { 64 } else { 40 }, "{name}");
    }
    assert!(!tree.keys().any(|name| name.ends_with(".incomplete")), "{tree:?}");
    for (name, content) in files().iter().filter(|(name, _)| needed.contains(name)) {
        assert_eq!(fs::read(model.path().join(name)).expect("a file"), *content, "{name}");
    }
}

#[test]
fn a_second_fetch_downloads_nothing() {
    let (scene, _) = Scene::with_model();
    let fetch =
        |seen: &Seen| scene.hub().fetch_model(&tiny(), &main(), Weights::Whole, seen).expect("fetched");
    let first = Seen::default();
    fetch(&first);
    assert_eq!(downloads(&scene.server.take_log()).len(), 8, "seven files, one of them by way of a redirect");
    let sizes: usize = weights().len() + 34 + 3 + 6 + 2 + 2 + 13;
    let events = first.events.borrow();
    assert!(
        matches!(&events[0], HubEvent::Fetching { files: 7, bytes, .. } if *bytes == sizes as u64),
        "{events:?}"
    );

    let before = scene.tree();
    let second = Seen::default();
    fetch(&second);
    assert_eq!(downloads(&scene.server.take_log()), [] as [&String; 0]);
    assert_eq!(*second.events.borrow(), []);
    assert_eq!(scene.tree(), before);
}

#[test]
fn a_new_commit_fetches_only_what_changed() {
    let (scene, old) = Scene::with_model();
    let fetch = || scene.hub().fetch_model(&tiny(), &main(), Weights::Whole, &()).expect("fetched");
    fetch();
    let changed: Vec<_> = files()
        .into_iter()
        .map(
            |(name, content)| {
                if name == "README.md" { (name, &b"# tiny, revised"[..]) } else { (name, content) }
            },
        )
        .collect();
    let new = scene.server.commit(MODEL, "main", &changed);
    scene.server.take_log();
    let model = fetch();
    assert_ne!(old, new);
    assert_eq!(model.commit(), new);
    assert_eq!(fs::read(model.path().join("model.safetensors")).expect("linked"), weights());
    let log = scene.server.take_log();
    assert_eq!(downloads(&log), [&format!("GET /owner/tiny/resolve/{new}/README.md")]);
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let (scene, _) = Scene::with_model();
    scene.server.make_private(MODEL);
    scene.server.know_token("hf_good");
    let settings = HubSettings { token: Some("hf_good".to_owned()), ..scene.settings() };
    Hub::new(settings).expect("a hub").fetch_model(&tiny(), &main(), Weights::Whole, &()).expect("fetched");
    let log = scene.server.take_log();
    assert!(log.iter().any(|line| line.contains("GET /cdn/")), "{log:?}");
    assert!(!log.iter().any(|line| line.contains("WITH A TOKEN")), "{log:?}");
}

#[test]
fn a_pinned_commit_stays_what_it_is_while_its_branch_moves() {
    let (scene, pinned) = Scene::with_model();
    scene.server.commit(
        MODEL,
        "main",
        &[("config.json", b"{\"other\": 1}"), ("model.safetensors", b"other")],
    );
    for name in [pinned.as_str(), "v1"] {
        let model = scene.hub().fetch_model(&tiny(), &revision(name), Weights::Whole, &());
        if name == "v1" {
            assert!(matches!(error(model), HubError::Revision { .. }));
            continue;
        }
        let model = model.expect("fetched");
        assert_eq!(model.commit(), pinned);
        assert_eq!(fs::read_to_string(model.path().join("config.json")).expect("a file"), "{}");
    }
    // A commit needs no name of its own in refs/.
    assert!(!scene.tree().keys().any(|name| name.contains("/refs/")));
    assert_eq!(
        scene
            .offline()
            .fetch_model(&tiny(), &revision(&pinned), Weights::Whole, &())
            .expect("cached")
            .commit(),
        pinned
    );
}

#[test]
fn shards_are_those_of_the_index() {
    let index = br#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    let scene = Scene::new();
    let mut files: Vec<(&str, &[u8])> = vec![
        ("config.json", b"{}"),
        ("consolidated.safetensors", b"everything once more"),
        ("model-00001-of-00002.safetensors", b"one"),
        ("model-00002-of-00002.safetensors", b"two"),
        ("model.safetensors.index.json", index),
    ];
    scene.server.commit(MODEL, "main", &files);
    let model = scene.hub().fetch_model(&tiny(), &main(), Weights::Whole, &()).expect("fetched");
    let names: Vec<String> =
        scene.tree().keys().filter_map(|name| Some(name.split_once(model.commit())?.1.to_owned())).collect();
    assert_eq!(
        names,
        [
            "/config.json",
            "/model-00001-of-00002.safetensors",
            "/model-00002-of-00002.safetensors",
            "/model.safetensors.index.json",
        ]
    );
    files.remove(3);
    scene.server.commit(MODEL, "main", &files);
    let message = error(scene.hub().fetch_model(&tiny(), &main(), Weights::Whole, &())).to_string();
    assert!(
        message.contains("names `model-00002-of-00002.safetensors`, which the commit does not have"),
        "{message}"
    );
}

#[test]
fn headers_are_enough_for_a_plan_and_the_weights_stay_where_they_are() {
    let (scene, _) = Scene::with_model();
    let model = scene.hub().fetch_model(&tiny(), &main(), Weights::Headers, &()).expect("fetched");
    assert_eq!(model.bytes_missing(), weights().len() as u64);
    let dir = model.path().to_owned();
    let file = fs::read(dir.join("model.safetensors")).expect("a file");
    assert_eq!(file.len(), weights().len());
    assert_eq!(file[..10], weights()[..10]);
    assert!(file[10..].iter().all(|byte| *byte == 0));
    assert!(dir.join("1_Pooling/config.json").is_file());
    assert!(!scene.tree().keys().any(|name| name.contains("model.safetensors")), "{:?}", scene.tree());
    let log = scene.server.take_log();
    let ranges: Vec<&str> = log
        .iter()
        .filter_map(|line| line.split_once("/cdn/")?.1.split_once(' '))
        .map(|(_, range)| range)
        .collect();
    assert_eq!(ranges, ["bytes=0-7", "bytes=8-9"]);
    drop(model);
    assert!(!dir.exists());

    // With the weights in the cache they are used.
    scene.hub().fetch_model(&tiny(), &main(), Weights::Whole, &()).expect("fetched");
    let model = scene.hub().fetch_model(&tiny(), &main(), Weights::Headers, &()).expect("fetched");
    assert_eq!((model.bytes_missing(), model.path().starts_with(scene.cache())), (0, true));
}

#[test]
fn a_broken_transfer_goes_on_where_it_broke() {
    let (scene, _) = Scene::with_model();
    let settings = HubSettings { part_bytes: 1000, ..scene.settings() };
    scene.server.fault("/cdn/ bytes=2000-2999", Fault::CutAfter(500));
    let seen = Seen::default();
    let model = Hub::new(settings).expect("a hub").fetch_model(&tiny(), &main(), Weights::Whole, &seen);
    let model = model.expect("fetched");
    assert_eq!(fs::read(model.path().join("model.safetensors")).expect("a file"), weights());
    let log = scene.server.take_log();
    let starts: Vec<&str> = log
        .iter()
        .filter(|l| l.starts_with("GET /cdn/"))
        .filter_map(|l| l.split_once("bytes=")?.1.split('-').next())
        .collect();
    assert_eq!(starts, ["0", "1000", "2000", "2000", "3000", "4000", "5000"]);
    let events = seen.events.borrow();
    let last = events
        .iter()
        .rfind(|event| matches!(event, HubEvent::Downloaded { file, .. } if file == "model.safetensors"));
    let total = weights().len() as u64;
    assert_eq!(
        last,
        Some(&HubEvent::Downloaded { file: "model.safetensors".to_owned(), done: total, total })
    );
}

#[test]
fn a_fetch_that_failed_is_taken_up_by_the_next_one() {
    let (scene, _) = Scene::with_model();
    let settings = HubSettings { part_bytes: 1000, ..scene.settings() };
    let fetch =
        || Hub::new(settings.clone()).expect("a hub").fetch_model(&tiny(), &main(), Weights::Whole, &());
    for _ in 0..3 {
        scene.server.fault("/cdn/ bytes=2000-2999", Fault::CutAfter(500));
    }
    assert!(matches!(error(fetch()), HubError::Transfer { .. }));
    let snapshot = |scene: &Scene| scene.tree().keys().any(|name| name.ends_with("/model.safetensors"));
    assert!(!snapshot(&scene), "nothing half-fetched is in the snapshot");
    scene.server.take_log();
    fetch().expect("fetched");
    assert!(snapshot(&scene));
    let log = scene.server.take_log();
    let first = log.iter().find(|line| line.starts_with("GET /cdn/")).expect("a download");
    assert!(first.ends_with("bytes=2000-2999"), "{first}");
    assert!(!scene.tree().keys().any(|name| name.ends_with(".incomplete")));
}

#[test]
fn damaged_content_never_gets_a_name_in_the_cache() {
    for file in ["tokenizer.json", "model.safetensors"] {
        // Once: the file is fetched again. Twice: it is refused.
        for (times, fine) in [(1, true), (2, false)] {
            let (scene, commit) = Scene::with_model();
            let part = match file {
                "model.safetensors" => "GET /cdn/".to_owned(),
                _ => format!("GET /owner/tiny/resolve/{commit}/{file}"),
            };
            for _ in 0..times {
                scene.server.fault(&part, Fault::Flip(7));
            }
            let model = scene.hub().fetch_model(&tiny(), &main(), Weights::Whole, &());
            assert_eq!(model.is_ok(), fine, "{file}, {times} times");
            assert_eq!(scene.tree().keys().any(|name| name.ends_with(&format!("/{file}"))), fine);
            assert!(!scene.tree().keys().any(|name| name.ends_with(".incomplete")));
            if let Err(error) = model {
                assert!(error.to_string().contains("its hash is another"), "{error}");
            }
        }
    }
}

#[test]
fn stale_parts_of_another_content_do_no_harm() {
    let (scene, _) = Scene::with_model();
    let settings = HubSettings { part_bytes: 1000, ..scene.settings() };
    let hub = Hub::new(settings).expect("a hub");
    for _ in 0..3 {
        scene.server.fault("/cdn/ bytes=3000-3999", Fault::CutAfter(1));
    }
    assert!(hub.fetch_model(&tiny(), &main(), Weights::Whole, &()).is_err());
    let blobs = scene.cache().join("models--owner--tiny/blobs");
    let partial = fs::read_dir(&blobs).expect("blobs").flatten().map(|entry| entry.path());
    let partial = partial.into_iter().find(|path| path.extension().is_some_and(|end| end == "incomplete"));
    let partial = partial.expect("a partial file");
    for damage in [vec![0; 3000], vec![1; 9999]] {
        fs::write(&partial, damage).expect("written");
        let model = hub.fetch_model(&tiny(), &main(), Weights::Whole, &()).expect("fetched all the same");
        assert_eq!(fs::read(model.path().join("model.safetensors")).expect("a file"), weights());
        fs::remove_dir_all(scene.cache().join("models--owner--tiny/snapshots")).expect("removed");
        for blob in fs::read_dir(&blobs).expect("blobs").flatten() {
            fs::remove_file(blob.path()).expect("removed");
        }
    }
}

#[test]
fn a_server_without_ranges_gives_whole_files() {
    let (scene, _) = Scene::with_model();
    scene.server.forget_ranges();
    let hub = Hub::new(HubSettings { part_bytes: 1000, ..scene.settings() }).expect("a hub");
    let model = hub.fetch_model(&tiny(), &main(), Weights::Headers, &()).expect("fetched");
    assert_eq!(fs::read(model.path().join("model.safetensors")).expect("a file")[..10], weights()[..10]);
    let model = hub.fetch_model(&tiny(), &main(), Weights::Whole, &()).expect("fetched");
    assert_eq!(fs::read(model.path().join("model.safetensors")).expect("a file"), weights());
}

#[test]
fn of_a_whole_file_no_more_is_heard_than_the_header() {
    let (scene, _) = Scene::with_model();
    scene.server.forget_ranges();
    // The rest never comes; who waits for it, or keeps it, waits for ever.
    for _ in 0..2 {
        scene.server.fault("GET /cdn/", Fault::HangAfter(100));
    }
    let model = scene.hub().fetch_model(&tiny(), &main(), Weights::Headers, &()).expect("fetched");
    let file = fs::read(model.path().join("model.safetensors")).expect("a file");
    assert_eq!((file.len(), &file[..10]), (weights().len(), &weights()[..10]));
    let log = scene.server.take_log();
    assert_eq!(log.iter().filter(|line| line.starts_with("GET /cdn/")).count(), 2, "{log:?}");
}

#[test]
fn a_whole_file_that_breaks_goes_on_where_it_broke() {
    let (scene, _) = Scene::with_model();
    scene.server.forget_ranges();
    scene.server.fault("GET /cdn/", Fault::CutAfter(3000));
    let hub = Hub::new(HubSettings { part_bytes: 1000, ..scene.settings() }).expect("a hub");
    let model = hub.fetch_model(&tiny(), &main(), Weights::Whole, &()).expect("fetched");
    assert_eq!(fs::read(model.path().join("model.safetensors")).expect("a file"), weights());
    let log = scene.server.take_log();
    let asked: Vec<&str> = log
        .iter()
        .filter(|line| line.starts_with("GET /cdn/"))
        .filter_map(|line| Some(line.split_once("bytes=")?.1))
        .collect();
    assert_eq!(asked, ["0-999", "3000-3999"]);
}

#[test]
fn a_length_that_cannot_be_is_an_error_and_no_memory() {
    let (scene, _) = Scene::with_model();
    for (how, asked) in [(Weights::Headers, 8), (Weights::Whole, weights().len())] {
        scene.server.fault("GET /cdn/", Fault::Claim(1 << 50));
        let refused = error(scene.hub().fetch_model(&tiny(), &main(), how, &()));
        assert!(matches!(refused, HubError::Answer { .. }), "{refused}");
        let sentence =
            format!("{asked} bytes of `model.safetensors` were asked for, 1125899906842624 are announced");
        assert!(refused.to_string().contains(&sentence), "{refused}");
    }
    // Nothing of it was kept.
    scene.hub().fetch_model(&tiny(), &main(), Weights::Whole, &()).expect("fetched");
}

#[test]
fn a_busy_hub_is_waited_for_as_long_as_it_asks() {
    let (scene, _) = Scene::with_model();
    scene.server.fault("/revision/main", Fault::Status(429, vec![("Retry-After", "1")]));
    scene.server.fault("/tree/", Fault::Status(503, vec![]));
    scene.server.fault("config.json", Fault::Status(429, vec![]));
    let seen = Seen::default();
    scene.hub().fetch_model(&tiny(), &main(), Weights::Whole, &seen).expect("fetched");
    assert_eq!(seen.events.borrow()[0], HubEvent::Waiting { seconds: 1 });
    // Not for ever.
    scene.server.fault("/revision/main", Fault::Status(429, vec![("Retry-After", "300")]));
    let refused = error(scene.hub().fetch_model(&tiny(), &main(), Weights::Whole, &()));
    assert!(matches!(refused, HubError::RateLimited { seconds: 300 }), "{refused}");
}

#[test]
fn a_silent_hub_is_given_up() {
    let (scene, _) = Scene::with_model();
    let mut settings = scene.settings();
    settings.patience.attempts = 2;
    settings.patience.stall = std::time::Duration::from_millis(300);
    scene.server.fault("GET /cdn/", Fault::Silence);
    let hub = Hub::new(settings).expect("a hub");
    hub.fetch_model(&tiny(), &main(), Weights::Whole, &()).expect("the second attempt is answered");
    for _ in 0..2 {
        scene.server.fault("/revision/main", Fault::Silence);
    }
    let refused = error(hub.fetch_model(&tiny(), &main(), Weights::Whole, &()));
    assert!(matches!(refused, HubError::Network { .. }), "{refused}");
}

#[test]
fn a_fetch_stops_when_asked_to_and_keeps_what_it_has() {
    let (scene, _) = Scene::with_model();
    let hub = Hub::new(HubSettings { part_bytes: 1000, ..scene.settings() }).expect("a hub");
    let seen = Seen { stop_at_bytes: Some(2000), ..Seen::default() };
    let stopped = error(hub.fetch_model(&tiny(), &main(), Weights::Whole, &seen));
    assert!(matches!(stopped, HubError::Cancelled), "{stopped}");
    assert!(scene.tree().keys().any(|name| name.ends_with(".incomplete")));
    hub.fetch_model(&tiny(), &main(), Weights::Whole, &()).expect("the next one finishes");
}

/// The layout as `huggingface_hub` writes it, by hand.
fn cache_of_python(scene: &Scene, commit: &str, files: &[(&str, &[u8])]) {
    let root = scene.cache().join("models--owner--tiny");
    for (number, (name, content)) in files.iter().enumerate() {
        let blob = format!("{number:040x}");
        fs::create_dir_all(root.join("blobs")).expect("directory");
        fs::write(root.join("blobs").join(&blob), content).expect("blob");
        let link = root.join("snapshots").join(commit).join(name);
        fs::create_dir_all(link.parent().expect("a parent")).expect("directory");
        let up = "../".repeat(2 + name.matches('/').count());
        std::os::unix::fs::symlink(format!("{up}blobs/{blob}"), link).expect("link");
    }
    fs::create_dir_all(root.join("refs")).expect("directory");
    fs::write(root.join("refs/main"), commit).expect("ref");
}

#[test]
#[cfg(unix)]
fn a_cache_that_python_wrote_is_read_offline() {
    let scene = Scene::new();
    let commit = "0123456789".repeat(4);
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors", b"weights")];
    cache_of_python(&scene, &commit, &files);
    for name in ["main", commit.as_str()] {
        let model =
            scene.offline().fetch_model(&tiny(), &revision(name), Weights::Whole, &()).expect("cached");
        assert_eq!(model.commit(), commit);
        assert_eq!(fs::read(model.path().join("model.safetensors")).expect("a file"), b"weights");
    }
    assert_eq!(scene.server.take_log(), [] as [String; 0], "offline asks nobody");
}

#[test]
#[cfg(unix)]
fn a_cache_that_python_wrote_is_completed_online_and_nothing_is_fetched_twice() {
    let scene = Scene::new();
    let weights = weights();
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors", &weights)];
    let mut all = files.to_vec();
    all.push(("tokenizer.json", b"{}"));
    let commit = scene.server.commit(MODEL, "main", &all);
    cache_of_python(&scene, &commit, &files);
    let model = scene.hub().fetch_model(&tiny(), &main(), Weights::Whole, &()).expect("fetched");
    assert!(model.path().join("tokenizer.json").is_file());
    let log = scene.server.take_log();
    assert_eq!(downloads(&log), [&format!("GET /owner/tiny/resolve/{commit}/tokenizer.json")]);
}

/// With `huggingface_hub` itself: `ZEROPOINT_PYTHON=python3 cargo test --workspace python_and_zeropoint -- --ignored`.
#[test]
#[ignore = "needs ZEROPOINT_PYTHON with huggingface_hub"]
fn python_and_zeropoint_share_a_cache() {
    const SCRIPT: &str = "
import sys
from huggingface_hub import snapshot_download
cache, offline = sys.argv[1], sys.argv[2] == 'offline'
print(snapshot_download('owner/tiny', cache_dir=cache, local_files_only=offline, ignore_patterns=['onnx/*', '*.bin', '*.py', '.git*']))
";
    let python = |scene: &Scene, cache: &Path, how: &str| {
        let python = std::env::var_os("ZEROPOINT_PYTHON").expect("ZEROPOINT_PYTHON names an interpreter");
        let output = std::process::Command::new(python)
            .args(["-c", SCRIPT])
            .args([cache.as_os_str(), how.as_ref()])
            .env("HF_ENDPOINT", scene.server.endpoint())
            .env("HF_HUB_DISABLE_XET", "1")
            .env_remove("HF_HUB_OFFLINE")
            .output()
            .expect("it starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    };
    let (scene, _) = Scene::with_model();
    let model = scene.hub().fetch_model(&tiny(), &main(), Weights::Whole, &()).expect("fetched");
    let ours = scene.tree();
    // Python takes our cache for its own, offline and online, and finds nothing to download.
    scene.server.take_log();
    for how in ["offline", "online"] {
        assert_eq!(Path::new(&python(&scene, &scene.cache(), how)), model.path());
    }
    assert_eq!(downloads(&scene.server.take_log()), [] as [&String; 0]);
    // What it writes itself has the same names in the same places; its locks and markers aside.
    let other = tempfile::TempDir::new().expect("a directory");
    python(&scene, other.path(), "online");
    let theirs = scene::tree_of(other.path());
    let kept = |tree: &std::collections::BTreeMap<String, String>| {
        let ours = |(name, what): (&String, &String)| {
            let inside = ["/blobs/", "/refs/", "/snapshots/"].iter().any(|part| name.contains(part));
            inside.then(|| (name.clone(), what.clone()))
        };
        tree.iter().filter_map(ours).collect::<Vec<_>>()
    };
    assert_eq!(kept(&theirs), kept(&ours));
    // And we read what it wrote.
    let settings = HubSettings { cache: other.path().to_owned(), offline: true, ..scene.settings() };
    let model = Hub::new(settings).expect("a hub").fetch_model(&tiny(), &main(), Weights::Whole, &());
    assert_eq!(fs::read(model.expect("cached").path().join("model.safetensors")).expect("a file"), weights());
}

#[test]
fn offline_says_what_is_missing() {
    let (scene, commit) = Scene::with_model();
    let miss =
        |what: &Revision| error(scene.offline().fetch_model(&tiny(), what, Weights::Whole, &())).to_string();
    assert!(miss(&main()).contains("no file of this revision was ever fetched"), "{}", miss(&main()));
    scene.hub().fetch_model(&tiny(), &main(), Weights::Whole, &()).expect("fetched");
    scene.server.take_log();
    scene.offline().fetch_model(&tiny(), &main(), Weights::Whole, &()).expect("a hit");
    let snapshot = scene.cache().join("models--owner--tiny/snapshots").join(&commit);
    fs::remove_file(snapshot.join("model.safetensors")).expect("removed");
    assert!(miss(&main()).contains("the weights (`model.safetensors` or `model.safetensors.index.json`)"));
    fs::remove_file(snapshot.join("config.json")).expect("removed");
    assert!(miss(&revision(&commit)).contains("`config.json`, the weights"));
    let data = DataRef::parse("hub:owner/texts/train.jsonl").expect("a reference").expect("a good one");
    assert!(matches!(error(scene.offline().fetch_data(&data, &())), HubError::Offline { .. }));
    assert_eq!(scene.server.take_log(), [] as [String; 0]);
}

#[test]
fn a_file_of_a_data_set() {
    let scene = Scene::new();
    let old = scene.server.commit(
        "datasets/owner/texts",
        "main",
        &[("data/train.jsonl", b"{\"text\": \"one\"}\n")],
    );
    scene.server.commit("datasets/owner/texts", "refs/convert/parquet", &[("default/0.parquet", b"PAR1")]);
    let fetch = |hub: &Hub, text: &str| {
        let data = DataRef::parse(text).expect("a reference").expect("a good one");
        hub.fetch_data(&data, &())
    };
    let read = |path: &Path| fs::read(path).expect("a file");
    let file = fetch(&scene.hub(), "hub:owner/texts/data/train.jsonl").expect("fetched");
    assert_eq!((read(&file.path), file.commit.as_str()), (b"{\"text\": \"one\"}\n".to_vec(), old.as_str()));
    assert!(file.path.starts_with(scene.cache().join("datasets--owner--texts/snapshots").join(&old)));
    let parquet =
        fetch(&scene.hub(), "hub:owner/texts@refs/convert/parquet/default/0.parquet").expect("fetched");
    assert_eq!(read(&parquet.path), b"PAR1");

    scene.server.commit("datasets/owner/texts", "main", &[("data/train.jsonl", b"{\"text\": \"two\"}\n")]);
    let pinned = format!("hub:owner/texts@{old}/data/train.jsonl");
    scene.server.take_log();
    assert_eq!(read(&fetch(&scene.hub(), &pinned).expect("cached").path), b"{\"text\": \"one\"}\n");
    assert_eq!(scene.server.take_log(), [] as [String; 0], "a commit in the cache needs nobody");
    assert_eq!(
        read(&fetch(&scene.offline(), "hub:owner/texts/data/train.jsonl").expect("cached").path),
        b"{\"text\": \"one\"}\n"
    );
    let new = fetch(&scene.hub(), "hub:owner/texts/data/train.jsonl").expect("fetched");
    assert_eq!(read(&new.path), b"{\"text\": \"two\"}\n");
    assert!(matches!(error(fetch(&scene.hub(), "hub:owner/texts/test.jsonl")), HubError::File { .. }));
}

#[test]
fn two_fetches_at_once_share_the_work() {
    let (scene, _) = Scene::with_model();
    std::thread::scope(|scope| {
        let fetches: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| scene.hub().fetch_model(&tiny(), &main(), Weights::Whole, &()).map(|_| ()))
            })
            .collect();
        for fetch in fetches {
            fetch.join().expect("no panic").expect("fetched");
        }
    });
    let log = scene.server.take_log();
    assert_eq!(log.iter().filter(|line| line.starts_with("GET /cdn/")).count(), 1, "{log:?}");
}
