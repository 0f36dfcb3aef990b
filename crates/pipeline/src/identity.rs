//! What decides the bytes of a run, part by part, so that an interrupted run is continued with nothing but itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use zeropoint_core::Fingerprint;
use zeropoint_formats::staged::{companion_files, file_digest};

use crate::deploy::{DENSE_WEIGHTS, dense_folders, is_output};
use crate::{PipelineError, Prepared, config};

/// Identifies all weights of a model: those of the checkpoint, and those of Dense modules behind it, which have files of
/// their own. It reads them all.
pub(crate) fn model_weights(prepared: &Prepared) -> Result<Fingerprint, PipelineError> {
    let checkpoint = prepared.directory.checkpoint().content_fingerprint()?;
    let mut folders = dense_folders(prepared).peekable();
    if folders.peek().is_none() {
        return Ok(checkpoint);
    }
    let mut builder = Fingerprint::builder("model-weights");
    builder.field("checkpoint", checkpoint.to_string());
    for folder in folders {
        let file = prepared.directory.path().join(folder).join(DENSE_WEIGHTS);
        builder.field("dense", file_digest(file)?.blake3.to_string());
    }
    Ok(builder.finish())
}

/// Everything that the output of a run is a function of. Not in it: threads, cache, what the report has besides, and where
/// the output goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    version: String,
    instruction_set: String,
    /// `run`, or `quantize` with statistics from a file.
    command: String,
    /// The resolved config as TOML, without the output directory and what the report has besides.
    config: String,
    /// The model's files that are not weights, by their path.
    model_files: BTreeMap<String, Fingerprint>,
    /// `None` in a dry run, which reads no weights.
    weights: Option<Fingerprint>,
    calibration: Fingerprint,
    /// Of the file that `quantize` is given.
    statistics: Option<Fingerprint>,
    /// The samples of each evaluation task.
    tasks: Vec<Fingerprint>,
}

impl Identity {
    pub(crate) fn of(
        prepared: &Prepared,
        weights: Option<Fingerprint>,
        statistics: Option<&Path>,
    ) -> Result<Self, PipelineError> {
        let source = prepared.directory.path();
        let model_files = companion_files(source, |path| is_output(source, path))?
            .into_iter()
            .map(|path| Ok((path.to_string_lossy().into_owned(), file_digest(source.join(path))?.blake3)))
            .collect::<Result<_, PipelineError>>()?;
        let mut config = prepared.config.clone();
        config.output.dir = Some(String::new());
        config.report = config::Report::default();
        let isa = zeropoint_kernels::Isa::active().map_err(zeropoint_models::ModelError::from)?;
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instruction_set: isa.to_string(),
            command: if statistics.is_some() { "quantize" } else { "run" }.to_owned(),
            config: config.to_toml(),
            model_files,
            weights,
            calibration: prepared.calibration.fingerprint(),
            statistics: statistics
                .map(|path| Ok::<_, PipelineError>(file_digest(path)?.blake3))
                .transpose()?,
            tasks: prepared.tasks.iter().map(|task| task.data.fingerprint()).collect(),
        })
    }

    /// Identifies what the model computes: its weights, and every file of JSON, of the tokenizer or of the modules beside
    /// them. Cards and licences are not in it.
    ///
    /// `weights` are what was found out later, of a run that does not read them before.
    pub(crate) fn model(&self, weights: Option<Fingerprint>) -> Fingerprint {
        let decides = |name: &str| {
            let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("json" | "txt" | "model")) && !name.starts_with("LICENSE")
        };
        let mut builder = Fingerprint::builder("model");
        if let Some(weights) = &self.weights.or(weights) {
            builder.field("weights", weights.to_string());
        }
        for (name, digest) in self.model_files.iter().filter(|(name, _)| decides(name)) {
            builder.field("name", name).field("digest", digest.to_string());
        }
        builder.finish()
    }

    /// What is other now than it was for `earlier`, as a sentence without its end; `None` when nothing is.
    pub(crate) fn difference(&self, earlier: &Self) -> Option<String> {
        let was = |what: &str, then: &str, now: &str| {
            (then != now).then(|| format!("{what} was {then} and is {now} now"))
        };
        was("the version of zeropoint", &earlier.version, &self.version)
            .or_else(|| was("the instruction set", &earlier.instruction_set, &self.instruction_set))
            .or_else(|| was("the command", &earlier.command, &self.command))
            .or_else(|| config_difference(&earlier.config, &self.config))
            .or_else(|| {
                let names: BTreeSet<&String> =
                    earlier.model_files.keys().chain(self.model_files.keys()).collect();
                names.into_iter().find_map(|name| {
                    match (earlier.model_files.get(name), self.model_files.get(name)) {
                        (Some(then), Some(now)) if then == now => None,
                        (Some(_), Some(_)) => Some(format!("the model's file {name} has changed")),
                        (Some(_), None) => Some(format!("the model's file {name} is gone")),
                        _ => Some(format!("the model has a new file {name}")),
                    }
                })
            })
            .or_else(|| {
                let known = self.weights.is_some() && earlier.weights.is_some();
                (known && self.weights != earlier.weights)
                    .then(|| "the weights of the model have changed".to_owned())
            })
            .or_else(|| {
                (self.calibration != earlier.calibration)
                    .then(|| "the calibration data have changed".to_owned())
            })
            .or_else(|| {
                (self.statistics != earlier.statistics).then(|| "the statistics file has changed".to_owned())
            })
            .or_else(|| {
                let task = self.tasks.iter().zip(&earlier.tasks).position(|(now, then)| now != then)?;
                Some(format!("the data of evaluation task {} have changed", task + 1))
            })
            // What has no name of its own above.
            .or_else(|| {
                let weights = if self.weights.is_some() { earlier.weights } else { None };
                (*self != Self { weights, ..earlier.clone() }).then(|| "the run is another one".to_owned())
            })
    }
}

/// The first key whose value is another one.
fn config_difference(then: &str, now: &str) -> Option<String> {
    if then == now {
        return None;
    }
    let parse = |text: &str| toml::from_str::<toml::Table>(text).unwrap_or_default();
    let difference = table_difference("", &toml::Value::Table(parse(then)), &toml::Value::Table(parse(now)));
    Some(difference.unwrap_or_else(|| "the config has changed".to_owned()))
}

fn table_difference(key: &str, then: &toml::Value, now: &toml::Value) -> Option<String> {
    if then == now {
        return None;
    }
    let join = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match (then, now) {
        (toml::Value::Table(then), toml::Value::Table(now)) => {
            let names: BTreeSet<&String> = then.keys().chain(now.keys()).collect();
            names.into_iter().find_map(|name| match (then.get(name), now.get(name)) {
                (Some(then), Some(now)) => table_difference(&join(name), then, now),
                (Some(_), None) => Some(format!("`{}` was given and is not now", join(name))),
                _ => Some(format!("`{}` is given and was not", join(name))),
            })
        }
        (toml::Value::Array(then), toml::Value::Array(now)) if then.len() == now.len() => {
            let mut pairs = then.iter().zip(now).enumerate();
            pairs.find_map(|(index, (then, now))| table_difference(&join(&index.to_string()), then, now))
        }
        _ => Some(format!("`{key}` was {} and is {} now", short(then), short(now))),
    }
}

/// A value for a sentence.
fn short(value: &toml::Value) -> String {
    const SHOWN: usize = 60;
    let text = value.to_string();
    if text.chars().count() <= SHOWN {
        return text;
    }
    text.chars().take(SHOWN).chain("...".chars()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use zeropoint_calibrator::dataset::Sample;
    use zeropoint_evaluator::tasks::TaskData;

    use super::*;

    fn fingerprint(text: &str) -> Fingerprint {
        Fingerprint::builder("test").field("text", text).finish()
    }

    pub(crate) fn identity() -> Identity {
        Identity {
            version: "1.2.3".to_owned(),
            instruction_set: "avx2".to_owned(),
            command: "run".to_owned(),
            config: "version = 1\n[calibration]\nsamples = 8\n[[evaluation.tasks]]\nname = \"a\"\n"
                .to_owned(),
            model_files: [("config.json".to_owned(), fingerprint("c"))].into(),
            weights: Some(fingerprint("w")),
            calibration: fingerprint("d"),
            statistics: None,
            tasks: vec![fingerprint("t"), fingerprint("u")],
        }
    }

    type Change = fn(&mut Identity);

    #[test]
    fn a_difference_is_named() {
        assert_eq!(identity().difference(&identity()), None);
        let cases: [(Change, &str); 15] = [
            (|i| i.version = "2.0.0".into(), "the version of zeropoint was 1.2.3 and is 2.0.0 now"),
            (|i| i.instruction_set = "scalar".into(), "the instruction set was avx2 and is scalar now"),
            (|i| i.command = "quantize".into(), "the command was run and is quantize now"),
            (|i| i.config = i.config.replace('8', "9"), "`calibration.samples` was 8 and is 9 now"),
            (|i| i.config.push_str("limit = 3\n"), "`evaluation.tasks.0.limit` is given and was not"),
            (
                |i| i.config = i.config.replace("samples = 8", ""),
                "`calibration.samples` was given and is not now",
            ),
            (|i| i.config = i.config.replace('a', "b"), "`calibration` was given and is not now"),
            (
                |i| i.config.push_str("[[evaluation.tasks]]\nname = \"b\"\n"),
                "`evaluation.tasks` was [{ name = \"a\" }] and is [{ name = \"a\" }, { name = \"b\" }] now",
            ),
            (
                |i| i.model_files = [("config.json".to_owned(), fingerprint("x"))].into(),
                "the model's file config.json has changed",
            ),
            (
                |i| i.model_files.extend([("vocab.txt".to_owned(), fingerprint("x"))]),
                "the model has a new file vocab.txt",
            ),
            (|i| i.model_files.clear(), "the model's file config.json is gone"),
            (|i| i.weights = Some(fingerprint("x")), "the weights of the model have changed"),
            (|i| i.calibration = fingerprint("x"), "the calibration data have changed"),
            (|i| i.statistics = Some(fingerprint("x")), "the statistics file has changed"),
            (|i| i.tasks[1] = fingerprint("x"), "the data of evaluation task 2 have changed"),
        ];
        for (change, expected) in cases {
            let mut now = identity();
            change(&mut now);
            assert_eq!(now.difference(&identity()).as_deref(), Some(expected));
        }
    }

    #[test]
    fn weights_that_were_not_read_are_no_difference() {
        let unread = Identity { weights: None, ..identity() };
        assert_eq!(unread.difference(&identity()), None);
        let fewer = Identity { tasks: vec![fingerprint("t")], ..identity() };
        assert_eq!(fewer.difference(&identity()).as_deref(), Some("the run is another one"));
    }

    #[test]
    fn samples_do_not_run_together() {
        let sample = |a: &str, b: Option<&str>, label: Option<&str>| Sample {
            text_a: a.to_owned(),
            text_b: b.map(str::to_owned),
            label: label.map(str::to_owned),
            ..Sample::default()
        };
        let cases = [
            vec![sample("a", Some("b"), None)],
            vec![sample("a", None, Some("b"))],
            vec![sample("a", None, None), sample("b", None, None)],
            vec![sample("ab", None, None)],
        ];
        let count = cases.len();
        let all: BTreeSet<Fingerprint> =
            cases.into_iter().map(|samples| TaskData::Fidelity(samples).fingerprint()).collect();
        assert_eq!(all.len(), count);
    }
}
