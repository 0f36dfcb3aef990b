//! `[sweep]`: the schemes that one command makes and compares.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::Problem;

/// `[sweep]`: the schemes that `zeropoint sweep` makes and compares; `zeropoint run` leaves it out of account.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sweep {
    /// Axes, of which every combination is made. Each is a list of changes of the config as `--set` takes them, such as
    /// `["quantization.scheme=w8a8-dynamic", "quantization.scheme=w8a8-static"]`.
    pub grid: Vec<Vec<String>>,
    /// Schemes one by one.
    pub runs: Vec<SweepRun>,
}

/// One scheme of a sweep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SweepRun {
    /// What it is called, and the directory of its run: letters, digits, `-`, `_` and `.`.
    #[schemars(regex(pattern = "^[A-Za-z0-9_][A-Za-z0-9_.-]*$"))]
    pub name: String,
    /// Changes of the config as `--set` takes them.
    pub set: Vec<String>,
}

/// Most schemes of a sweep.
const MOST: usize = 1000;

/// The directory of a sweep's comparison, beside those of its runs.
pub const COMPARISON: &str = "comparison";

/// What a sweep may change: how the model is quantised. Everything is then measured on the same data.
const TABLES: [&str; 2] = ["quantization", "output.formats"];

impl Sweep {
    /// Whether there is nothing to make.
    pub fn is_empty(&self) -> bool {
        self.grid.is_empty() && self.runs.is_empty()
    }

    /// Every scheme: the combinations of the grid, its last axis the fastest, and those that are named.
    pub fn points(&self) -> Vec<SweepRun> {
        let mut combinations = vec![Vec::new()];
        for axis in &self.grid {
            let with = |set: &Vec<String>, change: &String| set.iter().chain([change]).cloned().collect();
            combinations = combinations
                .iter()
                .flat_map(|set| axis.iter().map(move |change| with(set, change)))
                .collect();
        }
        let named = self.runs.iter().map(|run| run.name.clone());
        let mut taken: BTreeSet<String> = named.chain([COMPARISON.to_owned()]).collect();
        let combinations = combinations.into_iter().filter(|set| !set.is_empty()).map(|set| {
            let values: Vec<String> = set.iter().map(|change| value_in_name(change)).collect();
            let stem = values.join("_");
            let numbered = (2..).map(|number| format!("{stem}_{number}"));
            let name = [stem.clone()].into_iter().chain(numbered).find(|name| taken.insert(name.clone()));
            SweepRun { name: name.unwrap_or(stem), set }
        });
        let combinations: Vec<SweepRun> = combinations.collect();
        combinations.into_iter().chain(self.runs.iter().cloned()).collect()
    }

    pub(super) fn check(&self) -> Result<(), Problem> {
        let axes = self.grid.iter().enumerate();
        let mut count = 1usize;
        for (axis, changes) in axes {
            if changes.is_empty() {
                let path = format!("sweep.grid.{axis}");
                return Err(Problem::new(path.clone(), format!("`{path}` has no change"))
                    .label("empty")
                    .hint("remove it, or name changes such as \"quantization.scheme=w8a8-static\""));
            }
            count = count.saturating_mul(changes.len());
            for (index, change) in changes.iter().enumerate() {
                check_change(&format!("sweep.grid.{axis}.{index}"), change)?;
            }
        }
        let count = if self.grid.is_empty() { 0 } else { count }.saturating_add(self.runs.len());
        if count > MOST {
            let message = format!("`sweep` asks for {count} schemes; {MOST} are the most");
            return Err(Problem::new("sweep", message).label("too many").hint("take axes or changes out"));
        }
        let mut names = BTreeSet::new();
        for (index, run) in self.runs.iter().enumerate() {
            let path = format!("sweep.runs.{index}.name");
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if run.name.is_empty() || run.name.starts_with(['.', '-']) || !run.name.chars().all(is_plain) {
                let message = format!("`{path}` must be a plain name, but is {:?}", run.name);
                return Err(Problem::new(path, message)
                    .label("names a directory")
                    .hint("allowed: letters, digits, `-`, `_` and `.`, not `-` or `.` at the beginning"));
            }
            if run.name == COMPARISON {
                let message = format!("`{path}` is \"{COMPARISON}\", where the comparison of all runs goes");
                return Err(Problem::new(path, message).label("taken").hint("choose another name"));
            }
            if !names.insert(&run.name) {
                let message = format!("`{path}` is \"{}\", as that of another", run.name);
                return Err(Problem::new(path, message).label("named twice").hint("give each its own name"));
            }
            for (change, text) in run.set.iter().enumerate() {
                check_change(&format!("sweep.runs.{index}.set.{change}"), text)?;
            }
        }
        Ok(())
    }
}

fn check_change(path: &str, change: &str) -> Result<(), Problem> {
    let key = change.split('=').next().unwrap_or_default().trim();
    let allowed =
        |table: &&str| key.strip_prefix(*table).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    if change.contains('=') && TABLES.iter().any(allowed) {
        return Ok(());
    }
    let message = format!("`{path}` is {change:?}, which a sweep does not change");
    Err(Problem::new(path, message)
        .label("not of the scheme")
        .hint("write KEY=VALUE with a key of `quantization`, or `output.formats`: all runs are measured on the same data"))
}

/// The value of a change as a part of a name.
fn value_in_name(change: &str) -> String {
    let value = change.split_once('=').map_or(change, |(_, value)| value);
    let mut name = String::new();
    for c in value.chars() {
        match c {
            c if c.is_ascii_alphanumeric() || c == '.' => name.push(c),
            _ if name.is_empty() || name.ends_with('-') => {}
            _ => name.push('-'),
        }
    }
    let name: String = name.trim_matches(['-', '.']).chars().take(48).collect();
    if name.is_empty() { "none".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_is_every_combination_under_a_name_of_its_own() {
        let axis = |changes: &[&str]| changes.iter().map(|change| (*change).to_owned()).collect::<Vec<_>>();
        let named =
            SweepRun { name: "w8a8-static_mse".to_owned(), set: axis(&["quantization.scheme=w8a16"]) };
        let sweep = Sweep {
            grid: vec![
                axis(&["quantization.scheme=w8a8-dynamic", "quantization.scheme=w8a8-static"]),
                axis(&[
                    "quantization.weights.observer=mse",
                    "quantization.transforms=[{ kind = 'rotation' }]",
                ]),
            ],
            runs: vec![named.clone()],
        };
        sweep.check().unwrap();
        let points = sweep.points();
        let names: Vec<&str> = points.iter().map(|run| run.name.as_str()).collect();
        let expected = [
            "w8a8-dynamic_mse",
            "w8a8-dynamic_kind-rotation",
            "w8a8-static_mse_2",
            "w8a8-static_kind-rotation",
            "w8a8-static_mse",
        ];
        assert_eq!(names, expected);
        assert_eq!(
            points[1].set,
            ["quantization.scheme=w8a8-dynamic", "quantization.transforms=[{ kind = 'rotation' }]"]
        );
        assert_eq!(points[4], named);
        assert!(Sweep::default().points().is_empty() && Sweep::default().is_empty());
    }
}
