//! What a target or an ignored name stands for.

use super::pattern::{Pattern, PatternError};

/// The class of every module that this crate stores.
pub(crate) const LINEAR: &str = "Linear";
/// Its base class in torch, which the format's own matching accepts as well.
const MODULE: &str = "Module";

/// A target as it is written: a name that may be a class as well, or a pattern.
pub(crate) struct Target(Pattern);

impl Target {
    /// Compiles a target.
    pub(crate) fn parse(text: &str) -> Result<Self, PatternError> {
        Pattern::parse(text).map(Self)
    }

    /// Whether the Linear of that name is meant.
    pub(crate) fn matches(&self, module_name: &str) -> bool {
        self.is_class() || self.0.matches(module_name)
    }

    /// Precedence of a matching target, lowest first: exact names, patterns, classes.
    pub(crate) fn rank(&self) -> u8 {
        if self.is_class() { 2 } else { u8::from(self.0.is_expression()) }
    }

    fn is_class(&self) -> bool {
        [LINEAR, MODULE].contains(&self.0.as_str())
    }
}
