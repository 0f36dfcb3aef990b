//! A hub in this process, an empty cache, and what passes between them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use zeropoint_hub::{Hub, HubEvent, HubSettings, Patience, RepoId, Revision, Watch};

use crate::server::Server;

/// A model of a few files: small ones kept by git, weights in large-file storage, and what nobody needs.
pub(crate) const MODEL: &str = "models/owner/tiny";

pub(crate) struct Scene {
    pub(crate) server: Server,
    dir: TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self { server: Server::start(), dir: TempDir::new().expect("a temporary directory") }
    }

    /// With the model [`MODEL`]; gives its commit.
    pub(crate) fn with_model() -> (Self, String) {
        let scene = Self::new();
        let commit = scene.server.commit(MODEL, "main", &files());
        (scene, commit)
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    pub(crate) fn settings(&self) -> HubSettings {
        HubSettings {
            cache: self.cache(),
            token: None,
            endpoint: self.server.endpoint(),
            offline: false,
            part_bytes: 1 << 20,
            patience: Patience {
                attempts: 3,
                pause: Duration::from_millis(1),
                longest_wait: Duration::from_secs(2),
                stall: Duration::from_secs(20),
            },
        }
    }

    pub(crate) fn hub(&self) -> Hub {
        Hub::new(self.settings()).expect("settings that make sense")
    }

    pub(crate) fn offline(&self) -> Hub {
        Hub::new(HubSettings { offline: true, ..self.settings() }).expect("settings that make sense")
    }

    /// The cache's files and links by their path; a link as an arrow and its target.
    pub(crate) fn tree(&self) -> BTreeMap<String, String> {
        tree_of(&self.cache())
    }
}

pub(crate) fn tree_of(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    walk(dir, "", &mut found);
    found
}

fn walk(dir: &Path, prefix: &str, found: &mut BTreeMap<String, String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries {
        let path = entry.expect("it can be listed").path();
        let name = format!("{prefix}{}", path.file_name().unwrap_or_default().to_string_lossy());
        if let Ok(target) = fs::read_link(&path) {
            found.insert(name, format!("-> {}", target.display()));
        } else if path.is_dir() {
            walk(&path, &format!("{name}/"), found);
        } else {
            let content = fs::read(&path).expect("it can be read");
            found.insert(name, format!("{} bytes", content.len()));
        }
    }
}

/// Weights that look like safetensors: an empty header object, then numbers.
pub(crate) fn weights() -> Vec<u8> {
    let mut weights = vec![2, 0, 0, 0, 0, 0, 0, 0, b'{', b'}'];
    weights.extend((0..5000u32).map(|i| (i * 31 % 251) as u8));
    weights
}

pub(crate) fn files() -> [(&'static str, &'static [u8]); 11] {
    let weights: &'static [u8] = weights().leak();
    [
        (".gitattributes", b"*.safetensors filter=lfs"),
        ("1_Pooling/config.json", b"{\"pooling_mode_mean_tokens\": true}"),
        ("LICENSE", b"MIT"),
        ("README.md", b"# tiny"),
        ("config.json", b"{}"),
        ("model.safetensors", weights),
        ("modules.json", b"[]"),
        ("onnx/model.onnx", b"onnx"),
        ("pytorch_model.bin", b"pickle"),
        ("tokenizer.json", b"{\"model\": {}}"),
        ("train.py", b"import torch"),
    ]
}

pub(crate) fn tiny() -> RepoId {
    RepoId::model("owner/tiny").expect("a name")
}

pub(crate) fn revision(name: &str) -> Revision {
    Revision::parse(name).expect("a name")
}

/// Keeps every event; stops when told.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) events: RefCell<Vec<HubEvent>>,
    pub(crate) stop_at_bytes: Option<u64>,
}

impl Watch for Seen {
    fn event(&self, event: HubEvent) {
        self.events.borrow_mut().push(event);
    }

    fn is_cancelled(&self) -> bool {
        let Some(limit) = self.stop_at_bytes else { return false };
        self.events
            .borrow()
            .iter()
            .any(|event| matches!(event, HubEvent::Downloaded { done, .. } if *done >= limit))
    }
}
