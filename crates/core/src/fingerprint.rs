//! Fingerprints: 256-bit BLAKE3 hashes over named fields.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A BLAKE3 hash that names a graph, a data set, a config or a file by its content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Starts a fingerprint of a kind; different kinds never collide.
    pub fn builder(kind: &str) -> FingerprintBuilder {
        let mut builder = FingerprintBuilder(blake3::Hasher::new());
        builder.field("kind", kind.as_bytes());
        builder
    }

    /// The first 12 hexadecimal digits, for messages.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({})", self.short())
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        blake3::Hash::from_hex(&text)
            .map(|hash| Self(*hash.as_bytes()))
            .map_err(|_| format!("`{text}` is not a fingerprint: 64 hexadecimal digits are expected"))
    }
}

/// Collects the fields of a [`Fingerprint`]. Names and values are length-prefixed, so no two field lists run together.
#[derive(Debug, Clone)]
pub struct FingerprintBuilder(blake3::Hasher);

impl FingerprintBuilder {
    /// Adds a named field.
    pub fn field(&mut self, name: &str, value: impl AsRef<[u8]>) -> &mut Self {
        for part in [name.as_bytes(), value.as_ref()] {
            self.0.update(&(part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// The fingerprint of all fields so far.
    pub fn finish(&self) -> Fingerprint {
        Fingerprint(*self.0.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_run_together() {
        let of = |fields: &[(&str, &str)]| {
            let mut builder = Fingerprint::builder("test");
            for (name, value) in fields {
                builder.field(name, value);
            }
            builder.finish()
        };
        assert_ne!(of(&[("a", "bc")]), of(&[("ab", "c")]));
        assert_ne!(of(&[("a", "b"), ("c", "d")]), of(&[("c", "d"), ("a", "b")]));
        assert_eq!(of(&[("a", "b")]), of(&[("a", "b")]));
    }

    #[test]
    fn text_form_round_trips() {
        let fingerprint = Fingerprint::builder("x").finish();
        assert_eq!(Fingerprint::try_from(fingerprint.to_string()), Ok(fingerprint));
        assert!(Fingerprint::try_from("12".to_owned()).is_err());
    }
}
