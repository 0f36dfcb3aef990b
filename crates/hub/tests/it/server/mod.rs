//! A hub of our own on this machine: repositories in memory, the routes that `hf-hub` uses, and faults on request.
//! HTTP/1.1 in std, one connection a request.
#![allow(dead_code, reason = "the tests of two crates use their own parts of it")]
#![allow(unreachable_pub, reason = "included by the tests of two crates")]

#[path = "../../../src/digest.rs"]
mod digest;
mod http;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};

use digest::{Digest, Sha1, Sha256};
use http::{Request, Response};

/// Entries in a page of a listing; a real hub has more, and pages all the same.
const PAGE: usize = 7;

/// A running hub; it ends with the test's process.
pub struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

/// What a server does wrong, once for each entry.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// The connection closes after so many bytes of the body.
    CutAfter(usize),
    /// Another status, with these headers.
    Status(u16, Vec<(&'static str, &'static str)>),
    /// One byte of the body is another.
    Flip(usize),
    /// Nothing is said at all until the client goes away.
    Silence,
    /// Nothing more is said after so many bytes of the body until the client goes away.
    HangAfter(usize),
    /// The body is said to have so many bytes.
    Claim(u64),
}

#[derive(Debug, Clone)]
struct File {
    content: Vec<u8>,
    /// In large-file storage.
    stored: bool,
}

impl File {
    fn sha256(&self) -> String {
        let mut digest = Digest::<Sha256>::new();
        digest.update(&self.content);
        digest.finish()
    }

    /// Its git object.
    fn oid(&self) -> String {
        let pointer = format!(
            "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n",
            self.sha256(),
            self.content.len()
        );
        let content = if self.stored { pointer.as_bytes() } else { &self.content };
        let mut digest = Digest::<Sha1>::new();
        digest.update(format!("blob {}\0", content.len()).as_bytes());
        digest.update(content);
        digest.finish()
    }

    fn etag(&self) -> String {
        if self.stored { self.sha256() } else { self.oid() }
    }

    fn entry(&self, path: &str) -> Value {
        let mut entry =
            json!({ "type": "file", "oid": self.oid(), "size": self.content.len(), "path": path });
        if self.stored {
            entry["lfs"] = json!({ "oid": self.sha256(), "size": self.content.len(), "pointerSize": 130 });
        }
        entry
    }
}

/// A repository.
#[derive(Debug, Clone, Default)]
pub struct Repo {
    commits: BTreeMap<String, BTreeMap<String, File>>,
    refs: BTreeMap<String, String>,
    private: bool,
    gated: bool,
    /// What its listing says instead of the truth.
    listing: Option<Value>,
    /// Commits made by pushes: revision and the lines of the request.
    pub pushed: Vec<(String, Vec<Value>)>,
}

#[derive(Default)]
struct State {
    /// By `models/owner/name` and `datasets/owner/name`.
    repos: BTreeMap<String, Repo>,
    log: Vec<String>,
    faults: Vec<(String, Fault)>,
    no_ranges: bool,
    token: Option<String>,
    /// What the large-file endpoint offers.
    transfer: &'static str,
}

impl Server {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State { transfer: "basic", ..State::default() }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || {
                    http::serve(stream, |request| answer(&state, address, request));
                });
            }
        });
        Self { address, state }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no handler has panicked")
    }

    /// Commits files to a repository, `models/owner/name` or `datasets/owner/name`, as the head of a branch; gives the
    /// commit. Files whose name ends in `.safetensors`, `.bin` or `.parquet` go to large-file storage.
    pub fn commit(&self, repo: &str, branch: &str, files: &[(&str, &[u8])]) -> String {
        let files: BTreeMap<String, File> = files
            .iter()
            .map(|(path, content)| {
                let stored = [".safetensors", ".bin", ".parquet"].iter().any(|end| path.ends_with(end));
                ((*path).to_owned(), File { content: content.to_vec(), stored })
            })
            .collect();
        let mut state = self.state();
        let repo = state.repos.entry(repo.to_owned()).or_default();
        let mut digest = Digest::<Sha1>::new();
        digest.update(format!("{} {branch} {files:?}", repo.commits.len()).as_bytes());
        let commit = digest.finish();
        repo.commits.insert(commit.clone(), files);
        repo.refs.insert(branch.to_owned(), commit.clone());
        commit
    }

    pub fn make_gated(&self, repo: &str) {
        self.state().repos.get_mut(repo).expect("it is there").gated = true;
    }

    pub fn make_private(&self, repo: &str) {
        self.state().repos.get_mut(repo).expect("it is there").private = true;
    }

    /// What the listing of a repository says from now on.
    pub fn lie_about(&self, repo: &str, listing: Value) {
        self.state().repos.get_mut(repo).expect("it is there").listing = Some(listing);
    }

    /// The one token that opens everything.
    pub fn know_token(&self, token: &str) {
        self.state().token = Some(token.to_owned());
    }

    /// The next request whose log line contains every word of `part` gets this fault.
    pub fn fault(&self, part: &str, fault: Fault) {
        self.state().faults.push((part.to_owned(), fault));
    }

    /// Answers every request for a range with the whole file.
    pub fn forget_ranges(&self) {
        self.state().no_ranges = true;
    }

    /// Every request so far, as `METHOD PATH` and the range, and forgets them. A token that went to the other host shows.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.state().log)
    }

    pub fn repo(&self, repo: &str) -> Repo {
        self.state().repos.get(repo).cloned().unwrap_or_default()
    }

    pub fn is_private(&self, repo: &str) -> bool {
        self.repo(repo).private
    }
}

fn refused(status: u16, code: &str, message: &str) -> Response {
    Response::json(status, &json!({ "error": message })).header("X-Error-Code", code)
}

fn answer(state: &Mutex<State>, address: SocketAddr, request: &Request) -> Response {
    let mut state = state.lock().expect("no handler has panicked");
    let range = request.header("range").map(|range| format!(" {range}")).unwrap_or_default();
    let leak = request.path.starts_with("/cdn/") && request.header("authorization").is_some();
    let leak = if leak { " WITH A TOKEN" } else { "" };
    let line = format!("{} {}{range}{leak}", request.method, request.path);
    state.log.push(line.clone());
    let fault = state.faults.iter().position(|(part, _)| part.split(' ').all(|word| line.contains(word)));
    let fault = fault.map(|at| state.faults.remove(at).1);
    if let Some(Fault::Status(status, headers)) = &fault {
        let refusal = Response::json(*status, &json!({ "error": "a fault that the test asked for" }));
        return headers.iter().fold(refusal, |response, (name, value)| response.header(name, value));
    }
    let mut response = route(&mut state, address, request);
    match fault {
        Some(Fault::CutAfter(bytes)) => response.cut = Some(bytes),
        Some(Fault::Silence) => response.silent = true,
        Some(Fault::HangAfter(bytes)) => response.hang = Some(bytes),
        Some(Fault::Claim(bytes)) => response.length = Some(bytes),
        Some(Fault::Flip(at)) => {
            if let Some(byte) = response.body.get_mut(at) {
                *byte ^= 1;
            }
        }
        _ => {}
    }
    response
}

fn route(state: &mut State, address: SocketAddr, request: &Request) -> Response {
    let path = request.path.trim_start_matches('/').to_owned();
    let (path, query) = path.split_once('?').unwrap_or((&path, ""));
    let parts: Vec<String> = path.split('/').map(http::decode).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let known = state.token.as_ref().map(|token| format!("Bearer {token}"));
    let authorized = known.is_some() && request.header("authorization") == known.as_deref();
    match (request.method.as_str(), &parts[..]) {
        (_, ["cdn", sha256]) => content(state, request, sha256),
        ("POST", ["api", "repos", "create"]) if authorized => create(state, request),
        (_, ["api", kind @ ("models" | "datasets"), owner, name, rest @ ..]) => {
            let key = format!("{kind}/{owner}/{name}");
            match visible(state, &key, authorized) {
                Ok(()) => api(state, address, &key, rest, query, request, authorized),
                Err(refusal) => refusal,
            }
        }
        ("POST", [_, _, "info", "lfs", "objects", "batch"]) if authorized => {
            Response::json(200, &json!({ "transfer": state.transfer, "objects": [] }))
        }
        (_, ["datasets", owner, name, "resolve", revision, file @ ..]) => resolve(
            state,
            address,
            &format!("datasets/{owner}/{name}"),
            revision,
            &file.join("/"),
            authorized,
            request,
        ),
        (_, [owner, name, "resolve", revision, file @ ..]) => resolve(
            state,
            address,
            &format!("models/{owner}/{name}"),
            revision,
            &file.join("/"),
            authorized,
            request,
        ),
        _ => refused(401, "", "Invalid username or password."),
    }
}

/// A private repository is hidden as one that does not exist, and to those without a token both are a 401.
fn visible(state: &State, key: &str, authorized: bool) -> Result<(), Response> {
    match state.repos.get(key) {
        Some(repo) if !repo.private || authorized => Ok(()),
        _ => Err(refused(if authorized { 404 } else { 401 }, "RepoNotFound", "Repository not found")),
    }
}

fn commit_of(repo: &Repo, revision: &str) -> Option<String> {
    let commit = repo.refs.get(revision).cloned().unwrap_or_else(|| revision.to_owned());
    repo.commits.contains_key(&commit).then_some(commit)
}

fn api(
    state: &mut State,
    address: SocketAddr,
    key: &str,
    rest: &[&str],
    query: &str,
    request: &Request,
    authorized: bool,
) -> Response {
    let repo = state.repos.get_mut(key).expect("it was found visible");
    let no_revision = || refused(404, "RevisionNotFound", "Invalid rev id");
    let id = key.split_once('/').map_or("", |(_, id)| id);
    match (request.method.as_str(), rest) {
        ("GET", []) => Response::json(200, &json!({ "_id": "0", "id": id, "private": repo.private })),
        ("GET", ["revision", revision]) => match commit_of(repo, revision) {
            Some(commit) => Response::json(
                200,
                &json!({ "_id": "0", "id": id, "sha": commit, "private": repo.private, "tags": [] }),
            ),
            None => no_revision(),
        },
        ("GET", ["tree", revision]) => {
            let Some(commit) = commit_of(repo, revision) else { return no_revision() };
            if let Some(listing) = &repo.listing {
                return Response::json(200, listing);
            }
            let entries: Vec<Value> =
                repo.commits[&commit].iter().map(|(path, file)| file.entry(path)).collect();
            let page = query.split('&').find_map(|pair| pair.strip_prefix("cursor="));
            let start = page.and_then(|page| page.parse::<usize>().ok()).unwrap_or(0);
            let end = entries.len().min(start + PAGE);
            let response = Response::json(200, &Value::Array(entries[start..end].to_vec()));
            if end == entries.len() {
                return response;
            }
            let next = format!(
                "<http://{address}/api/{key}/tree/{revision}?recursive=true&cursor={end}>; rel=\"next\""
            );
            response.header("Link", &next)
        }
        ("POST", ["paths-info", revision]) => {
            let Some(commit) = commit_of(repo, revision) else { return no_revision() };
            let asked = request.json();
            let paths = asked["paths"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let found = paths.filter_map(|path| Some(repo.commits[&commit].get(path)?.entry(path))).collect();
            Response::json(200, &Value::Array(found))
        }
        ("POST", ["preupload", _]) if authorized => {
            let asked = request.json();
            let files = asked["files"].as_array().into_iter().flatten();
            let mode = |path: &Value| {
                let large = path.as_str().is_some_and(|path| path.ends_with(".safetensors"));
                if large { "lfs" } else { "regular" }
            };
            let files: Vec<Value> = files
                .map(|file| json!({ "path": file["path"], "uploadMode": mode(&file["path"]) }))
                .collect();
            Response::json(200, &json!({ "files": files }))
        }
        ("POST", ["branch", branch]) if authorized => {
            if repo.refs.insert((*branch).to_owned(), "0".repeat(40)).is_some() {
                return refused(409, "", "Reference already exists");
            }
            Response::json(200, &json!({}))
        }
        ("POST", ["commit", revision]) if authorized => {
            let lines = request.body.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
            let lines = lines.map(|line| serde_json::from_slice(line).expect("a line of JSON")).collect();
            repo.pushed.push(((*revision).to_owned(), lines));
            let oid = "c0ffee".repeat(7)[..40].to_owned();
            Response::json(200, &json!({ "commitOid": oid, "commitUrl": "", "success": true }))
        }
        _ => refused(403, "", "you need a token with write access"),
    }
}

fn create(state: &mut State, request: &Request) -> Response {
    let asked = request.json();
    let text = |key: &str| asked[key].as_str().unwrap_or_default().to_owned();
    let key = format!("{}s/{}/{}", text("type"), text("organization"), text("name"));
    if state.repos.contains_key(&key) {
        return refused(409, "", "You already created this model repo");
    }
    let private = asked["private"].as_bool().unwrap_or(false);
    state.repos.insert(key.clone(), Repo { private, ..Repo::default() });
    Response::json(200, &json!({ "url": format!("http://hub/{key}") }))
}

fn resolve(
    state: &State,
    address: SocketAddr,
    key: &str,
    revision: &str,
    path: &str,
    authorized: bool,
    request: &Request,
) -> Response {
    if let Err(refusal) = visible(state, key, authorized) {
        return refusal;
    }
    let repo = &state.repos[key];
    if repo.gated && !authorized {
        let status = if request.header("authorization").is_some() { 403 } else { 401 };
        return refused(status, "GatedRepo", "Access to this model is restricted");
    }
    let Some(commit) = commit_of(repo, revision) else {
        return refused(404, "RevisionNotFound", "Invalid rev id");
    };
    let Some(file) = repo.commits[&commit].get(path) else {
        return refused(404, "EntryNotFound", "Entry not found").header("X-Repo-Commit", &commit);
    };
    let etag = format!("\"{}\"", file.etag());
    if file.stored {
        return Response::empty(302)
            // By another name: another host to the client, as the hub's content network is.
            .header("Location", &format!("http://localhost:{}/cdn/{}", address.port(), file.sha256()))
            .header("X-Repo-Commit", &commit)
            .header("X-Linked-Etag", &etag)
            .header("X-Linked-Size", &file.content.len().to_string());
    }
    ranged(&file.content, request, state.no_ranges).header("ETag", &etag).header("X-Repo-Commit", &commit)
}

/// The other host, which knows contents only.
fn content(state: &State, request: &Request, sha256: &str) -> Response {
    let files = state.repos.values().flat_map(|repo| repo.commits.values()).flat_map(BTreeMap::values);
    match files.into_iter().find(|file| file.stored && file.sha256() == sha256) {
        Some(file) => ranged(&file.content, request, state.no_ranges),
        None => refused(404, "", "no such content"),
    }
}

fn ranged(content: &[u8], request: &Request, no_ranges: bool) -> Response {
    let range = request.header("range").and_then(|range| {
        let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((start.parse::<usize>().ok()?, end.parse::<usize>().ok()?))
    });
    match range {
        Some((start, end)) if !no_ranges && start <= end && start < content.len() => {
            let end = end.min(content.len() - 1);
            Response::bytes(206, content[start..=end].to_vec())
                .header("Content-Range", &format!("bytes {start}-{end}/{}", content.len()))
        }
        _ => Response::bytes(200, content.to_vec()),
    }
}
