//! What a target or an ignored name stands for.

use super::pattern::{Pattern, PatternError};

/// The class of every module that this crate stores.
pub(crate) const LINEAR: &str = "Linear";
/// Its base class in torch, which the format's own matching accepts as well.
const MODULE: &str = "Module";

/// What a scheme applies to, or what is left in floating point: the name of a module, a class of modules, or a `re:`
/// pattern matched from the start of the name. It is compiled once, when it is read.
///
/// Two targets are equal when they are written alike.
#[derive(Debug, Clone)]
pub struct Target(Pattern);

impl Target {
    /// Compiles a target.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        Pattern::parse(text).map(Self)
    }

    /// A module by its name, or a class.
    pub fn exact(name: impl Into<String>) -> Self {
        Self(Pattern::exact(name.into()))
    }

    /// The target as it is written.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Whether it is a regular expression.
    pub fn is_expression(&self) -> bool {
        self.0.is_expression()
    }

    /// Whether the Linear of that name is meant.
    pub fn matches(&self, module_name: &str) -> bool {
        self.is_class() || self.0.matches(module_name)
    }

    /// Precedence of a matching target, lowest first: exact names, patterns, classes.
    pub(crate) fn rank(&self) -> u8 {
        if self.is_class() { 2 } else { u8::from(self.is_expression()) }
    }

    fn is_class(&self) -> bool {
        [LINEAR, MODULE].contains(&self.0.as_str())
    }
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Target {}
