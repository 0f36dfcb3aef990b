//! Run directories side by side: their reports read with suspicion, the comparison written as a directory.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use zeropoint_evaluator::compare::{Comparison, MetricName, Run};
use zeropoint_evaluator::report::Report;
use zeropoint_formats::staged::StagedDir;
use zeropoint_formats::write_file_atomically;

use crate::PipelineError;

/// The file that says a directory holds a comparison of ours, which the next one may replace. It is not the marker of a
/// run: a comparison never takes a run's place.
pub const COMPARE_MARKER: &str = ".zeropoint-compare";

/// The report of a model with 10,000 layers and as many outliers as are named has some 20 MB.
const LARGEST_REPORT: u64 = 64 << 20;

/// Compares run directories on a metric, or on the one that most of them have.
pub fn compare(runs: &[PathBuf], metric: Option<&MetricName>) -> Result<Comparison, PipelineError> {
    let runs: Vec<Run> = runs
        .iter()
        .map(|dir| Ok(Run { name: name(dir), report: report(dir)? }))
        .collect::<Result<_, PipelineError>>()?;
    Ok(Comparison::new(&runs, metric)?)
}

/// Writes `compare.html`, `compare.csv`, `compare.json` and `compare.svg` as a directory that is complete or absent. An
/// earlier comparison is replaced, anything else is not.
pub fn write_comparison(comparison: &Comparison, dir: &Path) -> Result<PathBuf, PipelineError> {
    let staged = StagedDir::create(dir, COMPARE_MARKER, true)?;
    for (file, content) in [
        ("compare.html", comparison.to_html()),
        ("compare.csv", comparison.to_csv()),
        ("compare.json", comparison.to_json()),
        ("compare.svg", comparison.to_svg()),
    ] {
        write_file_atomically(staged.path().join(file), content)?;
    }
    staged.publish()?;
    Ok(dir.to_owned())
}

/// The directory as given, without `.` and needless separators.
fn name(dir: &Path) -> String {
    let plain: PathBuf = dir.components().filter(|part| *part != Component::CurDir).collect();
    let plain = if plain.as_os_str().is_empty() { Path::new(".") } else { &plain };
    plain.to_string_lossy().into_owned()
}

fn report(dir: &Path) -> Result<Report, PipelineError> {
    let path = dir.join("report.json");
    let io = |source| PipelineError::Io { path: path.clone(), source };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(PipelineError::NotARun { path: dir.to_owned() });
        }
        Err(error) => return Err(io(error)),
    };
    let bytes = file.metadata().map_err(io)?.len();
    let mut text = Vec::new();
    // One byte more than allowed: a file may be longer than it says, such as a pipe.
    let read = file.take(LARGEST_REPORT + 1).read_to_end(&mut text).map_err(io)? as u64;
    if read > LARGEST_REPORT {
        return Err(PipelineError::ReportSize { path, bytes: bytes.max(read), limit: LARGEST_REPORT });
    }
    // What is not UTF-8 is not JSON either, and the reader of JSON says where.
    Report::from_json(&String::from_utf8_lossy(&text))
        .map_err(|source| PipelineError::Report { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_beyond_all_bounds_is_refused_by_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        // A hole: nothing is stored.
        File::create(&path).unwrap().set_len(LARGEST_REPORT + 1).unwrap();
        let error = report(dir.path()).unwrap_err();
        assert!(
            matches!(error, PipelineError::ReportSize { bytes, .. } if bytes == LARGEST_REPORT + 1),
            "{error}"
        );
    }

    #[test]
    fn names_are_directories_without_their_end() {
        for (given, expected) in
            [("runs/a/", "runs/a"), ("a", "a"), ("./a//b/", "a/b"), (".", "."), ("/", "/")]
        {
            assert_eq!(name(Path::new(given)), expected, "{given}");
        }
    }
}
