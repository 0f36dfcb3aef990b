//! `[output]`: where the run goes and what is written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Problem, not_blank};
use super::size::byte_size;

/// `[output]`: where the run goes and what is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Output {
    /// The run directory, relative to the current directory. By default `runs/MODEL-SCHEME`.
    pub dir: Option<String>,
    /// The format the model is written in, one. By default "compressed-tensors"; of the scheme "best-int8-runtime", which it does not
    /// carry, "zeropoint".
    #[schemars(length(min = 1))]
    pub formats: Option<Vec<OutputFormat>>,
    /// Most bytes of tensors in one weight file, such as `"5GB"` or `"500MiB"`; a larger tensor has a file of its own.
    #[schemars(regex(pattern = r"^[0-9]+ ?([kKMGT]?i?B)?$"))]
    pub max_shard_size: String,
    /// Whether what was written is loaded back and run beside a simulation of the plan, which also measures each layer's own
    /// error. Without it nothing runs the result before it is published.
    pub self_check: bool,
}

/// A format the quantised model is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OutputFormat {
    /// A Hugging Face directory that transformers (with the compressed-tensors package) and vLLM load.
    CompressedTensors,
    /// A directory that Zeropoint's runtime alone loads: it may hold INT8 embedding tables, and INT8 weights of modules that are no
    /// torch Linear.
    Zeropoint,
}

/// As `transformers` splits by default.
const MAX_SHARD_SIZE: &str = "5GB";

impl Default for Output {
    fn default() -> Self {
        Self { dir: None, formats: None, max_shard_size: MAX_SHARD_SIZE.to_owned(), self_check: true }
    }
}

impl Output {
    /// [`Output::max_shard_size`] in bytes.
    pub fn max_shard_bytes(&self) -> u64 {
        // What `check` refuses does not come here.
        byte_size(&self.max_shard_size).unwrap_or(5_000_000_000)
    }

    pub(super) fn check(&self) -> Result<(), Problem> {
        if byte_size(&self.max_shard_size).is_none_or(|bytes| bytes == 0) {
            let found = &self.max_shard_size;
            let message = format!("`output.max_shard_size` must be a number of bytes, but is \"{found}\"");
            return Err(Problem::new("output.max_shard_size", message)
                .label("not a size")
                .hint("for example \"5GB\", \"500MB\" or \"2GiB\""));
        }
        if let Some(dir) = &self.dir {
            not_blank("output.dir", dir)?;
        }
        match self.formats.as_deref().unwrap_or(&[OutputFormat::CompressedTensors]) {
            [] => Err(Problem::new("output.formats", "`output.formats` names no format")
                .label("empty")
                .hint("allowed: [\"compressed-tensors\"], [\"zeropoint\"]")),
            [_] => Ok(()),
            [first, rest @ ..] if rest.iter().all(|format| format == first) => {
                Err(Problem::new("output.formats", "`output.formats` names a format twice")
                    .label("named twice")
                    .hint("name each format once"))
            }
            _ => Err(Problem::new(
                "output.formats",
                "`output.formats` names two formats: a run writes one directory",
            )
            .label("one of them")
            .hint(
                "run twice, with `--set output.formats=[\"zeropoint\"]` and another `--out` the second time",
            )),
        }
    }
}
