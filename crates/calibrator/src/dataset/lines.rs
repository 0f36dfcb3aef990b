//! Text and its lines, of a whole file or as it is read.

use std::io::{BufRead as _, BufReader, Read};

use super::{BYTE_ORDER_MARK, MAX_FILE_BYTES, MAX_LINE_BYTES, Parsed, Problem};

/// The text of a file without its byte order mark.
pub(super) fn text(bytes: &[u8]) -> Parsed<&str> {
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| (1 + ends(&bytes[..error.valid_up_to()]), Problem::NotUtf8))
}

/// The text of a file without its byte order mark, with every line checked for its length.
pub(super) fn decode(bytes: &[u8]) -> Parsed<&str> {
    let text = text(bytes)?;
    match text.split('\n').position(|line| line.len() > MAX_LINE_BYTES) {
        Some(index) => Err((index + 1, Problem::LongLine)),
        None => Ok(text),
    }
}

/// The lines that hold more than white space, with their numbers from 1 and without their ends.
pub(super) fn non_blank(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(index, line)| (index + 1, line))
}

/// How many lines end in these bytes.
pub(super) fn ends(bytes: &[u8]) -> usize {
    bytes.iter().map(|&byte| usize::from(byte == b'\n')).sum()
}

/// The lines of a reader, of which one is held at a time.
pub(super) struct Lines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    number: usize,
    bytes: u64,
}

impl<R: Read> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader: BufReader::new(reader), line: Vec::new(), number: 0, bytes: 0 }
    }

    /// The next line that holds more than white space, with its number from 1 and without its end.
    pub(super) fn next_non_blank(&mut self) -> Parsed<Option<(usize, &str)>> {
        loop {
            self.line.clear();
            self.number += 1;
            let mut limited = self.reader.by_ref().take(MAX_LINE_BYTES as u64 + 1);
            let read = limited.read_until(b'\n', &mut self.line).map_err(|error| (0, Problem::Io(error)))?;
            if read == 0 {
                return Ok(None);
            }
            self.bytes += read as u64;
            if self.bytes > MAX_FILE_BYTES {
                return Err((0, Problem::TooLarge));
            }
            if self.line.ends_with(b"\n") {
                self.line.pop();
                // A carriage return ends a line together with what follows it only.
                self.line.pop_if(|last| *last == b'\r');
            } else if self.line.len() > MAX_LINE_BYTES {
                return Err((self.number, Problem::LongLine));
            }
            if self.number == 1 && self.line.starts_with(BYTE_ORDER_MARK) {
                self.line.drain(..BYTE_ORDER_MARK.len());
            }
            let text = std::str::from_utf8(&self.line).map_err(|_| (self.number, Problem::NotUtf8))?;
            if !text.trim().is_empty() {
                break;
            }
        }
        // Checked above; a borrow cannot leave a loop that goes on.
        let text = std::str::from_utf8(&self.line).map_err(|_| (self.number, Problem::NotUtf8))?;
        Ok(Some((self.number, text)))
    }
}
