//! What `check` asks of the repository beside the generated files.

use std::ffi::OsStr;
use std::path::Path;

use serde_json::Value;

use crate::Error;

/// The embedded model is part of every clone and every binary.
const EMBEDDED: &str = "crates/models/embedded";
const EMBEDDED_BYTES: u64 = 2 << 20;
const EMBEDDED_LABELS: usize = 12;

/// How an ignored test says what it is waiting for: the environment variable that lets it run.
const IGNORE_REASON: &str = "#[ignore = \"needs ZEROPOINT_";

/// A sentence for each rule that the repository breaks.
pub(crate) fn violations(root: &Path) -> Result<Vec<String>, Error> {
    let mut problems = embedded_model(&root.join(EMBEDDED))?;
    ignored_tests(root, Path::new("crates"), &mut problems)?;
    unmerged_files(root, Path::new(""), &mut problems)?;
    problems.sort();
    Ok(problems)
}

fn embedded_model(dir: &Path) -> Result<Vec<String>, Error> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        bytes += entry?.metadata()?.len();
    }
    let config = serde_json::from_slice(&std::fs::read(dir.join("config.json"))?)?;
    Ok(embedded_problems(bytes, &config))
}

/// `bytes` of all files of the embedded model, and its config.json.
fn embedded_problems(bytes: u64, config: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    if bytes > EMBEDDED_BYTES {
        problems.push(format!(
            "{EMBEDDED}: holds {bytes} bytes, {EMBEDDED_BYTES} are allowed; make the model smaller in \
             crates/xtask/src/fixture and run `cargo xtask train-fixture`"
        ));
    }
    let labels = config["id2label"].as_object().map_or(0, serde_json::Map::len);
    if labels != EMBEDDED_LABELS {
        problems.push(format!(
            "{EMBEDDED}/config.json: lists {labels} labels, but there are {EMBEDDED_LABELS} topics; run `cargo xtask \
             train-fixture`"
        ));
    }
    problems
}

/// Every ignored test of the `.rs` files below `dir` must wait for an environment variable; others are not run by anyone.
fn ignored_tests(root: &Path, dir: &Path, problems: &mut Vec<String>) -> Result<(), Error> {
    for entry in std::fs::read_dir(root.join(dir))? {
        let entry = entry?;
        let path = dir.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            ignored_tests(root, &path, problems)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(root.join(&path))?;
            for line in unexplained_ignores(&text) {
                problems.push(format!(
                    "{}:{line}: an ignored test names the variable it needs, as in `{IGNORE_REASON}MODELS\"]`",
                    path.display()
                ));
            }
        }
    }
    Ok(())
}

/// No text of the repository holds what a merge could not decide.
fn unmerged_files(root: &Path, dir: &Path, problems: &mut Vec<String>) -> Result<(), Error> {
    const TEXTS: [&str; 6] = ["md", "toml", "py", "sh", "jinja", "json"];
    for entry in std::fs::read_dir(root.join(dir))? {
        let entry = entry?;
        let (name, path) = (entry.file_name(), dir.join(entry.file_name()));
        let is_built = name == "target" || name.to_string_lossy().starts_with('.');
        if entry.file_type()?.is_dir() {
            if !is_built {
                unmerged_files(root, &path, problems)?;
            }
        } else if path.extension().and_then(OsStr::to_str).is_some_and(|extension| TEXTS.contains(&extension))
        {
            for line in conflicts(&std::fs::read_to_string(root.join(&path))?) {
                problems.push(format!("{}:{line}: a merge left both sides here; choose", path.display()));
            }
        }
    }
    Ok(())
}

/// Lines, from 1, that mark where a side of a conflict begins or ends.
fn conflicts(text: &str) -> Vec<usize> {
    let is_mark = |line: &str| line.starts_with("<<<<<<< ") || line.starts_with(">>>>>>> ");
    text.lines().enumerate().filter(|(_, line)| is_mark(line)).map(|(index, _)| index + 1).collect()
}

/// Lines, from 1, with an `ignore` attribute that does not say what the test needs.
fn unexplained_ignores(text: &str) -> Vec<usize> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| line.trim_start().starts_with("#[ignore") && !line.contains(IGNORE_REASON))
        .map(|(index, _)| index + 1)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_merge_could_not_decide_is_found() {
        let text = "a\n<<<<<<< HEAD\nb\n=======\nc\n>>>>>>> main\n<<<<<<<\n    >>>>>>> \n";
        assert_eq!(conflicts(text), [2, 6]);
    }

    #[test]
    fn the_repository_keeps_its_rules() {
        assert_eq!(violations(&crate::root()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_model_that_is_too_large_or_lacks_labels_is_named() {
        let labels = |count: usize| {
            let map: serde_json::Map<_, _> = (0..count).map(|i| (i.to_string(), "topic".into())).collect();
            serde_json::json!({ "id2label": map })
        };
        let cases = [
            (EMBEDDED_BYTES, labels(12), &[][..]),
            (EMBEDDED_BYTES + 1, labels(12), &["holds 2097153 bytes"]),
            (1, labels(11), &["lists 11 labels"]),
            (u64::MAX, serde_json::json!({}), &["bytes", "lists 0 labels"]),
        ];
        for (bytes, config, expected) in cases {
            let problems = embedded_problems(bytes, &config);
            assert_eq!(problems.len(), expected.len(), "{problems:?}");
            for (problem, part) in problems.iter().zip(expected) {
                assert!(problem.contains(part), "{problem}");
            }
        }
    }

    #[test]
    fn a_test_is_ignored_for_a_variable_only() {
        let text = "#[test]\n#[ignore = \"needs ZEROPOINT_MODELS\"]\nfn a() {}\n    #[ignore]\n#[ignore = \"slow\"]\n";
        assert_eq!(unexplained_ignores(text), [4, 5]);
    }
}
