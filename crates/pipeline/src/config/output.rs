//! `[output]`: where the run goes and what is written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Problem, not_blank};

/// `[output]`: where the run goes and what is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Output {
    /// The run directory, relative to the current directory. By default `runs/MODEL-SCHEME`.
    pub dir: Option<String>,
    /// The format the model is written in, one.
    #[schemars(length(min = 1))]
    pub formats: Vec<OutputFormat>,
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

impl Default for Output {
    fn default() -> Self {
        Self { dir: None, formats: vec![OutputFormat::CompressedTensors] }
    }
}

impl Output {
    pub(super) fn check(&self) -> Result<(), Problem> {
        if let Some(dir) = &self.dir {
            not_blank("output.dir", dir)?;
        }
        match self.formats.as_slice() {
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

    /// The format of the directory.
    pub fn format(&self) -> OutputFormat {
        self.formats.first().copied().unwrap_or(OutputFormat::CompressedTensors)
    }
}
