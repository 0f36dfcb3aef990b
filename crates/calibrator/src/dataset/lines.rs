//! Text and its lines.

use super::{MAX_LINE_BYTES, Parsed, Problem};

/// The text of a file without its byte order mark, with every line checked for its length.
pub(super) fn decode(bytes: &[u8]) -> Parsed<&str> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes)
        .map_err(|error| (1 + ends(&bytes[..error.valid_up_to()]), Problem::NotUtf8))?;
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
