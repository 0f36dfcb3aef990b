//! Vectors of texts that come one a line, as they come.

use std::io::{BufRead, Read as _};
use std::sync::Arc;

use zeropoint_calibrator::dataset::{DatasetError, MAX_LINE_BYTES, Problem, Sample};
use zeropoint_models::{ModelError, Task};
use zeropoint_runtime::QuantizedModel;

use crate::PipelineError;
use crate::encode::{EncodeOptions, Encoded, Encoder};
use crate::events::{Cancel, Event, Events};

/// Batches of lines that are read before they are embedded, so that lines of like length go together. The number is fixed:
/// which texts share a batch does not depend on how fast they come.
const BATCHES_AT_ONCE: usize = 32;

/// Embeds each line and passes on its vector, in order; of the lines a few batches are held at a time. An empty line is a
/// text without words and has its vector, so that vectors stay beside their lines. Returns the number of lines.
///
/// `name` is what messages call the lines. They are UTF-8, end in LF or CRLF, and have at most [`MAX_LINE_BYTES`].
///
/// # Errors
///
/// A model that gives no vectors, a line that is not UTF-8 or too long, no line at all, and what `each` fails with.
pub fn embed(
    model: &QuantizedModel,
    lines: &mut dyn BufRead,
    name: &str,
    options: &EncodeOptions,
    (events, cancel): (&dyn Events, &Cancel),
    each: &mut dyn FnMut(&[f32]) -> Result<(), PipelineError>,
) -> Result<u64, PipelineError> {
    let spec = model.directory().spec();
    if spec.head().task() != Task::Embedding || spec.text().is_none() {
        let reason = format!("{} gives no vectors of texts; `zeropoint encode` runs it", spec.architecture);
        return Err(ModelError::Sample { reason }.into());
    }
    let encoder = Encoder::new(model, options)?;
    let mut lines = Lines { reader: lines, file: name.into(), number: 0 };
    let mut done = 0;
    loop {
        let samples = lines.some(options.batch_size.max(1) * BATCHES_AT_ONCE)?;
        if samples.is_empty() {
            break;
        }
        for record in encoder.records(&samples, options.batch_size, cancel)? {
            let Encoded::Embedding { embedding } = record.output else {
                unreachable!("a sentence encoder gives vectors")
            };
            each(&embedding)?;
        }
        done += samples.len() as u64;
        events.event(Event::Embedded { done });
    }
    if done == 0 {
        return Err(DatasetError { file: lines.file, line: 0, problem: Problem::Empty }.into());
    }
    Ok(done)
}

/// Lines as samples.
struct Lines<'a> {
    reader: &'a mut dyn BufRead,
    file: Arc<str>,
    number: usize,
}

impl Lines<'_> {
    /// The next lines, at most so many; none at the end.
    fn some(&mut self, most: usize) -> Result<Vec<Sample>, DatasetError> {
        let mut samples = Vec::new();
        while samples.len() < most {
            let Some(text) = self.next()? else { break };
            samples.push(Sample {
                text_a: text,
                file: Arc::clone(&self.file),
                line: self.number,
                ..Sample::default()
            });
        }
        Ok(samples)
    }

    fn next(&mut self) -> Result<Option<String>, DatasetError> {
        const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
        self.number += 1;
        let wrong = |problem| DatasetError { file: Arc::clone(&self.file), line: self.number, problem };
        let mut line = Vec::new();
        // One byte more than is allowed shows that there is more.
        let mut limited = (&mut *self.reader).take(MAX_LINE_BYTES as u64 + 1);
        limited.read_until(b'\n', &mut line).map_err(|error| wrong(Problem::Io(error)))?;
        if line.is_empty() {
            return Ok(None);
        }
        if line.len() > MAX_LINE_BYTES {
            return Err(wrong(Problem::LongLine));
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let text = if self.number == 1 { text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text) } else { text };
        String::from_utf8(text.to_vec()).map(Some).map_err(|_| wrong(Problem::NotUtf8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], most: usize) -> Result<Vec<Vec<(usize, String)>>, String> {
        let mut bytes = bytes;
        let mut lines = Lines { reader: &mut bytes, file: "in".into(), number: 0 };
        let mut parts = Vec::new();
        loop {
            let part = lines.some(most).map_err(|error| error.to_string())?;
            if part.is_empty() {
                return Ok(parts);
            }
            parts.push(part.into_iter().map(|sample| (sample.line, sample.text_a)).collect());
        }
    }

    #[test]
    fn lines_keep_their_places() {
        let line = |number: usize, text: &str| (number, text.to_owned());
        assert_eq!(read(b"", 2), Ok(vec![]));
        assert_eq!(
            read(b"\xef\xbb\xbfa\r\n\n b \nlast", 3),
            Ok(vec![vec![line(1, "a"), line(2, ""), line(3, " b ")], vec![line(4, "last")]])
        );
        assert_eq!(read(b"a\n\n", 8), Ok(vec![vec![line(1, "a"), line(2, "")]]));
        let error = read(b"a\n\xff\n", 8).unwrap_err();
        assert_eq!(error, "in:2: the text is not valid UTF-8; convert the file to UTF-8");
        let long = [vec![b'a'; MAX_LINE_BYTES], b"\n".to_vec()].concat();
        assert!(read(&long, 8).unwrap_err().starts_with("in:1: "));
        assert_eq!(read(&long[1..], 8).map(|parts| parts[0][0].1.len()), Ok(MAX_LINE_BYTES - 1));
    }
}
