//! Names: repositories, revisions, files in them. What comes from a server or a config is checked before it becomes part
//! of a path or an address.

use std::fmt;
use std::path::PathBuf;

use crate::HubError;

/// What a data file of the hub begins with in a config.
pub const DATA_PREFIX: &str = "hub:";

const MAX_ID: usize = 96;
const MAX_REVISION: usize = 250;
const MAX_PATH: usize = 1024;

/// What kind of repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RepoKind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

impl RepoKind {
    fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }
}

/// A repository of the hub: its kind and `owner/name`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RepoId {
    kind: RepoKind,
    owner: String,
    name: String,
}

impl RepoId {
    /// The model `owner/name`.
    pub fn model(id: &str) -> Result<Self, HubError> {
        Self::new(RepoKind::Model, id)
    }

    /// The data set `owner/name`.
    pub fn dataset(id: &str) -> Result<Self, HubError> {
        Self::new(RepoKind::Dataset, id)
    }

    fn new(kind: RepoKind, id: &str) -> Result<Self, HubError> {
        let bad = |reason| HubError::Id { id: id.to_owned(), reason };
        let (owner, name) = id.split_once('/').ok_or_else(|| bad("it has no slash"))?;
        for part in [owner, name] {
            if part.is_empty() {
                return Err(bad("one side of the slash is empty"));
            }
            if !part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
                return Err(bad("letters, digits, `-`, `_` and `.` are allowed on both sides of one slash"));
            }
            if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) {
                return Err(bad("neither side begins or ends with `-` or `.`"));
            }
            if part.contains("--") || part.contains("..") {
                return Err(bad("`--` and `..` are not allowed"));
            }
        }
        if id.len() > MAX_ID {
            return Err(bad("it is longer than 96 characters"));
        }
        if name.to_ascii_lowercase().ends_with(".git") {
            return Err(bad("it ends in `.git`"));
        }
        Ok(Self { kind, owner: owner.to_owned(), name: name.to_owned() })
    }

    /// What kind of repository.
    pub fn kind(&self) -> RepoKind {
        self.kind
    }

    /// The user or organisation.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The name without its owner.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `owner/name`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// Its folder in the cache: `models--owner--name`.
    pub(crate) fn folder(&self) -> String {
        format!("{}--{}--{}", self.kind.plural(), self.owner, self.name)
    }

    /// Its page on the hub.
    pub(crate) fn page(&self, endpoint: &str) -> String {
        let prefix = match self.kind {
            RepoKind::Model => "",
            RepoKind::Dataset => "datasets/",
        };
        format!("{endpoint}/{prefix}{}", self.path())
    }
}

/// `model owner/name` or `data set owner/name`.
impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            RepoKind::Model => "model",
            RepoKind::Dataset => "data set",
        };
        write!(f, "{kind} {}/{}", self.owner, self.name)
    }
}

/// A branch, a tag or a commit; `main` by default.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Revision(String);

impl Default for Revision {
    fn default() -> Self {
        Self("main".to_owned())
    }
}

impl Revision {
    /// Checks that a name can be one of git's, and with it a path below `refs/` of the cache.
    pub fn parse(revision: &str) -> Result<Self, HubError> {
        let bad = |reason| HubError::RevisionName { revision: revision.to_owned(), reason };
        if revision.is_empty() || revision.len() > MAX_REVISION {
            return Err(bad("its length is not between 1 and 250"));
        }
        let allowed =
            |c: char| !c.is_control() && !matches!(c, ' ' | '\\' | '~' | '^' | ':' | '?' | '*' | '[');
        if !revision.chars().all(allowed) {
            return Err(bad("it holds a character that git does not allow"));
        }
        if revision.split('/').any(|part| part.is_empty() || part.starts_with('.') || part.ends_with('.'))
            || revision.contains("..")
        {
            return Err(bad("none of its parts may be empty or begin or end with `.`"));
        }
        Ok(Self(revision.to_owned()))
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a commit with all its digits, which names the same files for ever.
    pub fn is_commit(&self) -> bool {
        is_oid(&self.0)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A git object's name: 40 lower-case hexadecimal digits.
pub(crate) fn is_oid(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

/// A SHA-256: 64 lower-case hexadecimal digits.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && is_hex(text)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The path of a file in a repository as a path below a directory; `None` when it would leave it or is not portable.
pub(crate) fn safe_path(path: &str) -> Option<PathBuf> {
    let fine = path.len() <= MAX_PATH
        && !path.chars().any(|c| c.is_control() || c == '\\')
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    // A drive letter would make the path absolute elsewhere.
    let drive = path.as_bytes().get(1) == Some(&b':');
    (fine && !drive).then(|| path.split('/').collect())
}

/// A file of a data set as a config names it: `hub:owner/name/path` or `hub:owner/name@revision/path`.
///
/// A revision that begins with `refs/` takes three parts, as in `hub:owner/name@refs/convert/parquet/default/train/0.parquet`;
/// in other names of branches a slash is written `%2F`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataRef {
    /// The data set.
    pub repo: RepoId,
    /// The revision.
    pub revision: Revision,
    /// The path in it.
    pub file: String,
}

impl DataRef {
    /// Reads a reference; `None` when the text does not begin with `hub:` and is a path of this machine.
    pub fn parse(text: &str) -> Option<Result<Self, HubError>> {
        let rest = text.strip_prefix(DATA_PREFIX)?;
        Some(Self::parse_rest(text, rest))
    }

    fn parse_rest(text: &str, rest: &str) -> Result<Self, HubError> {
        let bad = |reason: &str| HubError::DataRef { reference: text.to_owned(), reason: reason.to_owned() };
        let mut parts = rest.splitn(3, '/');
        let (Some(owner), Some(name), Some(file)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(bad("it lacks the owner, the name or the path"));
        };
        let (name, revision) = match name.split_once('@') {
            None => (name, None),
            Some((name, revision)) => (name, Some(revision)),
        };
        let (revision, file) = match revision {
            Some("refs") => {
                let mut parts = file.splitn(3, '/');
                match (parts.next(), parts.next(), parts.next()) {
                    (Some(kind), Some(which), Some(file)) => (Some(format!("refs/{kind}/{which}")), file),
                    _ => return Err(bad("a revision below `refs/` has three parts, and a path follows")),
                }
            }
            other => (other.map(|revision| revision.replace("%2F", "/").replace("%2f", "/")), file),
        };
        if safe_path(file).is_none() {
            return Err(bad("its path must lie inside the data set"));
        }
        Ok(Self {
            repo: RepoId::dataset(&format!("{owner}/{name}"))?,
            revision: revision.map_or_else(|| Ok(Revision::default()), |name| Revision::parse(&name))?,
            file: file.to_owned(),
        })
    }

    /// The reference with a commit in the place of its revision.
    pub fn pinned(&self, commit: &str) -> String {
        format!("{DATA_PREFIX}{}@{commit}/{}", self.repo.path(), self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_repositories_are_those_of_the_hub() {
        let id = RepoId::model("sentence-transformers/all-MiniLM-L6-v2").expect("a name");
        assert_eq!(id.folder(), "models--sentence-transformers--all-MiniLM-L6-v2");
        assert_eq!(id.page("https://h"), "https://h/sentence-transformers/all-MiniLM-L6-v2");
        assert_eq!(RepoId::dataset("a/b").expect("a name").page("https://h"), "https://h/datasets/a/b");
        for bad in [
            "", "gpt2", "/", "a/", "/b", "a/b/c", "../etc", "a/..", "a/b..c", "a/-b", "a/b-", "a/b--c",
            "a/b c", "a/b.git", "a/b%2f", "ä/b",
        ] {
            assert!(RepoId::model(bad).is_err(), "{bad}");
        }
        assert!(RepoId::model(&format!("a/{}", "b".repeat(95))).is_err());
    }

    #[test]
    fn revisions_cannot_leave_the_cache() {
        for good in ["main", "v1.0", "refs/pr/1", "feature/x", &"0123456789".repeat(4)] {
            assert!(Revision::parse(good).is_ok(), "{good}");
        }
        for bad in
            ["", "..", "../x", "a/../b", "/main", "main/", "a//b", ".hidden", "a b", "a\\b", "a\nb", "a:b"]
        {
            assert!(Revision::parse(bad).is_err(), "{bad}");
        }
        assert!(Revision::parse(&"0123456789".repeat(4)).expect("a commit").is_commit());
        assert!(!Revision::parse("0123456").expect("a short one").is_commit());
    }

    #[test]
    fn paths_stay_below_their_directory() {
        for good in ["config.json", "1_Pooling/config.json", "a b.txt", "..a", "data/train-00000.parquet"] {
            assert!(safe_path(good).is_some(), "{good}");
        }
        for bad in
            ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", "./a", "a\\..\\b", "C:/x", "a\0b", "a\nb"]
        {
            assert!(safe_path(bad).is_none(), "{bad:?}");
        }
        assert!(safe_path(&"a".repeat(2000)).is_none());
    }

    #[test]
    fn data_references() {
        let parse = |text: &str| DataRef::parse(text).expect("begins with hub:");
        for (text, repo, revision, file) in [
            ("hub:a/b/c.jsonl", "a/b", "main", "c.jsonl"),
            ("hub:a/b/d/e/c.csv", "a/b", "main", "d/e/c.csv"),
            ("hub:a/b@v1/c.jsonl", "a/b", "v1", "c.jsonl"),
            ("hub:a/b@x%2Fy/c.jsonl", "a/b", "x/y", "c.jsonl"),
            (
                "hub:a/b@refs/convert/parquet/default/0.parquet",
                "a/b",
                "refs/convert/parquet",
                "default/0.parquet",
            ),
        ] {
            let data = parse(text).expect(text);
            assert_eq!(
                (data.repo.path().as_str(), data.revision.as_str(), data.file.as_str()),
                (repo, revision, file)
            );
            let commit = "0123456789".repeat(4);
            let again = parse(&data.pinned(&commit)).expect("a pinned reference is one");
            assert_eq!((again.file, again.revision.is_commit()), (data.file, true));
        }
        for bad in
            ["hub:", "hub:a/b", "hub:a/b/", "hub:a/b/../c", "hub:a/b@/c", "hub:a/b@refs/pr/1", "hub:-a/b/c"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(DataRef::parse("data/train.jsonl").is_none());
    }
}
