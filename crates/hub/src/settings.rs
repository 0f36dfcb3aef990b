//! Where the cache is, who asks, whom, and how patiently; from the environment as Python's `huggingface_hub` reads it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::HubError;

/// The public hub.
const PUBLIC_HUB: &str = "https://huggingface.co";

/// Everything that a [`Hub`](crate::Hub) needs to know.
#[derive(Clone)]
pub struct HubSettings {
    /// The cache directory, the one with `models--OWNER--NAME` in it.
    pub cache: PathBuf,
    /// The access token. With `None`, `hf-hub` itself looks in the environment as [`HubSettings::from_env`] does.
    pub token: Option<String>,
    /// Where the hub is, such as `https://huggingface.co`.
    pub endpoint: String,
    /// Look at the cache only; no request is made.
    pub offline: bool,
    /// Files are fetched in parts of at most so many bytes, which is what a broken transfer loses; at least 1.
    pub part_bytes: u64,
    /// How failures that may pass are borne.
    pub patience: Patience,
}

/// How failures that may pass are borne.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Attempts for each request; at least 1.
    pub attempts: u32,
    /// The pause before the second attempt; it doubles with each one.
    pub pause: Duration,
    /// The longest `Retry-After` of a 429 that is waited for.
    pub longest_wait: Duration,
    /// A transfer without a single byte for so long is broken.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 4,
            pause: Duration::from_millis(500),
            longest_wait: Duration::from_secs(60),
            stall: Duration::from_secs(60),
        }
    }
}

/// The token stays out of logs.
impl std::fmt::Debug for HubSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubSettings")
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("endpoint", &self.endpoint)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl HubSettings {
    /// As the environment says: `HF_HUB_CACHE` or `HF_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH` or the token that `hf auth login`
    /// stored, `HF_ENDPOINT`, `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        Self::from_variables(&|name| std::env::var(name).ok())
    }

    /// As some variables say; an empty one is as good as unset.
    fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| get(name).map(|value| expand_home(&value, get("HOME").as_deref()));
        let home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .unwrap_or_else(|| expand_home("~/.cache/huggingface", get("HOME").as_deref()));
        let stored = |path: &Path| {
            let token = std::fs::read_to_string(path).ok()?.trim().to_owned();
            (!token.is_empty()).then_some(token)
        };
        let token = if get("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some() {
            None
        } else {
            get("HF_TOKEN")
                .map(|token| token.trim().to_owned())
                .filter(|token| !token.is_empty())
                .or_else(|| stored(&path("HF_TOKEN_PATH")?))
                .or_else(|| stored(&home.join("token")))
        };
        Self {
            cache: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| home.join("hub")),
            token,
            endpoint: get("HF_ENDPOINT").unwrap_or_else(|| PUBLIC_HUB.to_owned()),
            offline: ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
                .iter()
                .find_map(|name| get(name))
                .is_some_and(|value| is_true(&value)),
            part_bytes: 64 << 20,
            patience: Patience::default(),
        }
    }

    /// The endpoint without a slash at its end, when it can be one.
    pub(crate) fn checked_endpoint(&self) -> Result<String, HubError> {
        let endpoint = self.endpoint.trim_end_matches('/');
        let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
        match host {
            Some(host) if !host.is_empty() && !host.contains(char::is_whitespace) => Ok(endpoint.to_owned()),
            _ => Err(HubError::Endpoint { endpoint: self.endpoint.clone() }),
        }
    }
}

/// The words that `huggingface_hub` takes for yes.
fn is_true(value: &str) -> bool {
    matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
}

fn expand_home(path: &str, home: Option<&str>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => Path::new(home).join(rest),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> HubSettings {
        let find = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        HubSettings::from_variables(&find)
    }

    #[test]
    fn the_cache_is_where_python_puts_it() {
        for (variables, cache) in [
            (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/hf")], "/hf/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "~/hf")], "/h/hf/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")], "/c"),
            (&[("HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (&[("HOME", "/h"), ("HF_HUB_CACHE", ""), ("HF_HOME", "")], "/h/.cache/huggingface/hub"),
        ] {
            assert_eq!(from(variables).cache, Path::new(cache), "{variables:?}");
        }
    }

    #[test]
    fn the_token_comes_from_the_variable_before_the_files() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = dir.path().to_str().expect("UTF-8").to_owned();
        std::fs::write(dir.path().join("token"), " hf_stored\n").expect("file");
        std::fs::write(dir.path().join("other"), "hf_other\n").expect("file");
        let other = dir.path().join("other");
        let other = other.to_str().expect("UTF-8");
        let token = |more: &[(&str, &str)]| {
            let variables: Vec<_> = [("HF_HOME", home.as_str())].iter().chain(more).copied().collect();
            from(&variables).token
        };
        assert_eq!(token(&[]).as_deref(), Some("hf_stored"));
        assert_eq!(token(&[("HF_TOKEN_PATH", other)]).as_deref(), Some("hf_other"));
        assert_eq!(token(&[("HF_TOKEN", "hf_mine\n"), ("HF_TOKEN_PATH", other)]).as_deref(), Some("hf_mine"));
        assert_eq!(token(&[("HF_TOKEN", "")]).as_deref(), Some("hf_stored"));
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
    }

    #[test]
    fn offline_is_said_with_the_words_of_huggingface_hub() {
        for (value, offline) in [
            ("1", true),
            ("true", true),
            ("Yes", true),
            ("ON", true),
            ("0", false),
            ("", false),
            ("no", false),
        ] {
            assert_eq!(from(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value}");
        }
        assert!(from(&[("TRANSFORMERS_OFFLINE", "1")]).offline);
        assert!(!from(&[]).offline);
    }

    #[test]
    fn an_endpoint_is_an_http_address() {
        let endpoint = |value| from(&[("HF_ENDPOINT", value)]).checked_endpoint();
        assert_eq!(endpoint("").expect("the default"), "https://huggingface.co");
        assert_eq!(endpoint("http://127.0.0.1:8080/").expect("an address"), "http://127.0.0.1:8080");
        for bad in ["huggingface.co", "https://", "ftp://host", "https://a b"] {
            let message = endpoint(bad).expect_err("no address").to_string();
            assert!(message.contains(bad), "{message}");
        }
    }

    #[test]
    fn the_token_is_not_shown() {
        let shown = format!("{:?}", from(&[("HF_TOKEN", "hf_secret")]));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
