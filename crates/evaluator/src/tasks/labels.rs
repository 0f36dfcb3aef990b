//! Labels as they are written to labels of the model.

use super::TaskError;

/// Labels with their file and line.
pub(super) type Written<'a> = (&'a str, (&'a str, usize));

/// Indices of labels: all are names of the model's, or all are indices into them.
pub(super) fn label_indices(
    task: &str,
    written: &[Written<'_>],
    labels: &[String],
) -> Result<Vec<usize>, TaskError> {
    let by_name = |label: &str| labels.iter().position(|known| known == label);
    let by_index = |label: &str| label.parse().ok().filter(|index: &usize| *index < labels.len());
    let all = |of: &dyn Fn(&str) -> Option<usize>| {
        written.iter().map(|(label, _)| of(label)).collect::<Option<Vec<_>>>()
    };
    if let Some(indices) = all(&by_name).or_else(|| all(&by_index)) {
        return Ok(indices);
    }
    // Best shown is a label that is neither; in a mixture, the first that is no name.
    let neither = |(label, _): &Written<'_>| by_name(label).is_none() && by_index(label).is_none();
    let at = written
        .iter()
        .position(neither)
        .or_else(|| written.iter().position(|(label, _)| by_name(label).is_none()));
    let (label, (origin, line)) = written[at.unwrap_or(0)];
    Err(TaskError::Label {
        task: task.to_owned(),
        origin: origin.to_owned(),
        line,
        label: label.to_owned(),
        count: labels.len(),
        known: first_few(labels),
    })
}

fn first_few(labels: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut text = labels.iter().take(SHOWN).map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
    if labels.len() > SHOWN {
        text.push_str(", ...");
    }
    text
}
