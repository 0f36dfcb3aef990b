//! What a target or an ignored name stands for.

use regex::Regex;

/// The class of every module that this crate stores.
pub(crate) const LINEAR: &str = "Linear";
/// Its base class in torch, which the format's own matching accepts as well.
const MODULE: &str = "Module";
const PATTERN: &str = "re:";

/// A target as it is written: a name that may be a class as well, or a pattern.
pub(crate) enum Target<'a> {
    Name(&'a str),
    Pattern(Regex),
}

impl<'a> Target<'a> {
    /// Compiles a target; the error is the reason why its pattern does not compile.
    pub(crate) fn parse(text: &'a str) -> Result<Self, String> {
        let Some(pattern) = text.strip_prefix(PATTERN) else {
            return Ok(Self::Name(text));
        };
        // Anchored at the start only, as Python's `re.match` is. The pattern must compile on its own first: a stray `)`
        // would close our group.
        Regex::new(pattern)
            .and_then(|_| Regex::new(&format!("\\A(?:{pattern})")))
            .map(Self::Pattern)
            .map_err(|e| e.to_string())
    }

    /// Whether the Linear of that name is meant.
    pub(crate) fn matches(&self, module_name: &str) -> bool {
        match self {
            Self::Name(text) => *text == module_name || *text == LINEAR || *text == MODULE,
            Self::Pattern(regex) => regex.is_match(module_name),
        }
    }

    /// Precedence of a matching target, lowest first: exact names, patterns, classes.
    pub(crate) fn rank(text: &str) -> u8 {
        match text {
            LINEAR | MODULE => 2,
            _ => u8::from(text.starts_with(PATTERN)),
        }
    }
}
