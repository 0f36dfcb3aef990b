//! Real models, from where the environment says that they lie.

use std::path::PathBuf;

use serde_json::Value;

use super::Scene;

/// What lies at `name` in the directory that an environment variable names.
pub(crate) fn from_environment(variable: &str, name: &str) -> PathBuf {
    let directory = std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set"));
    let path = PathBuf::from(directory).join(name).canonicalize();
    path.unwrap_or_else(|error| panic!("{variable} holds no {name}: {error}"))
}

/// The setting of a config that names a model.
pub(crate) fn source(name: &str) -> String {
    format!("model.source={}", from_environment("ZEROPOINT_MODELS", name).display())
}

pub(crate) fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// That a dry run of `config.toml` with a model of that name and more settings and arguments foretells the peak memory of the run
/// within a quarter.
pub(crate) fn foretells_its_memory(scene: &Scene, about: &str, name: &str, sets: &[&str], more: &[&str]) {
    let model = source(name);
    let arguments =
        ["run", "config.toml", "--no-cache", "--out", "out", "--force", "--json", "--set", &model];
    let mut arguments = arguments.to_vec();
    arguments.extend(sets.iter().flat_map(|set| ["--set", *set]));
    arguments.extend(more);
    let plan = scene.succeeds(arguments.iter().chain(&["--dry-run"]));
    let plan: Value = serde_json::from_slice(&plan.stdout).expect("it is JSON");
    scene.succeeds(&arguments);
    let report = scene.json("out/report.json");
    let (foretold, found) = (number(&plan["memory_bytes"]), number(&report["timing"]["peak_rss_bytes"]));
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    assert!(
        (0.75..=1.25).contains(&(foretold / found)),
        "{about}: {:.1} MiB foretold, {:.1} MiB found",
        mib(foretold),
        mib(found)
    );
}
