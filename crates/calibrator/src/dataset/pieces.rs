//! Long texts in pieces, cut where a tokenizer has a border anyway.
//!
//! A tokenizer holds a hundred times the text that it is given, so a text of any length goes through it in pieces. Tokenizers
//! first split a text into words and tokenise each alone; a cut between two words changes nothing. Where it lies around
//! white space differs: GPT-2 takes a space with the word behind it and leaves the rest of the white space before;
//! later ones (those of `tiktoken`, Llama 3 and Qwen) take line ends with what stands before them. The cuts here
//! are borders for both, if the text has any within the half of a piece.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use super::{BYTE_ORDER_MARK, DatasetError, MAX_FILE_BYTES, Parsed, Problem, lines};

/// The longest piece, in bytes.
pub const PIECE_BYTES: usize = 64 << 10;

/// The pieces of a text, which together are the text.
pub fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let piece;
        (piece, rest) = rest.split_at(first_piece(rest));
        (!piece.is_empty()).then_some(piece)
    })
}

/// Reads a whole file as one text in pieces, of which one is held at a time; together they are the text of
/// [`read_document`](super::read_document). An error of `each` ends it.
pub fn read_pieces<E: From<DatasetError>>(
    path: &Path,
    each: &mut dyn FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    let name: Arc<str> = path.display().to_string().into();
    let failed = |(line, problem)| DatasetError::new(&name, line, problem);
    let file = File::open(path).map_err(|error| failed((0, Problem::Io(error))))?;
    let mut pieces = Pieces::new(file);
    let mut any = false;
    while let Some(piece) = pieces.next_piece().map_err(failed)? {
        any |= !piece.trim().is_empty();
        each(piece)?;
    }
    if any { Ok(()) } else { Err(failed((0, Problem::Empty)).into()) }
}

/// The pieces of what a reader gives: those of [`split`].
pub struct Pieces<R> {
    reader: R,
    /// What has been read, from the piece that was given last on.
    buffer: Vec<u8>,
    /// Bytes of that piece.
    given: usize,
    /// Line ends before the buffer.
    lines: usize,
    bytes: u64,
    begun: bool,
}

impl<R: Read> Pieces<R> {
    /// Nothing is read yet.
    pub fn new(reader: R) -> Self {
        Self { reader, buffer: Vec::new(), given: 0, lines: 0, bytes: 0, begun: false }
    }

    /// The next piece of at most [`PIECE_BYTES`]; `None` at the end. An error comes with its line, from 1, or 0.
    pub fn next_piece(&mut self) -> Result<Option<&str>, (usize, Problem)> {
        self.lines += lines::ends(&self.buffer[..self.given]);
        self.buffer.drain(..self.given);
        self.given = 0;
        let ended = self.fill()?;
        if !self.begun && self.buffer.starts_with(BYTE_ORDER_MARK) {
            self.buffer.drain(..BYTE_ORDER_MARK.len());
        }
        self.begun = true;
        let valid = match std::str::from_utf8(&self.buffer) {
            Ok(_) => self.buffer.len(),
            // A character that goes on in what has not been read.
            Err(error) if error.error_len().is_none() && !ended => error.valid_up_to(),
            Err(error) => {
                let line = self.lines + 1 + lines::ends(&self.buffer[..error.valid_up_to()]);
                return Err((line, Problem::NotUtf8));
            }
        };
        let text = text(&self.buffer[..valid])?;
        let length = first_piece(text);
        self.given = length;
        Ok((length > 0).then_some(&text[..length]))
    }

    /// Reads until there is more than a piece, and a character more; whether that is all there is.
    fn fill(&mut self) -> Parsed<bool> {
        let wanted = PIECE_BYTES + BYTE_ORDER_MARK.len() + 4;
        let room = wanted.saturating_sub(self.buffer.len());
        let read = self.reader.by_ref().take(room as u64).read_to_end(&mut self.buffer);
        let read = read.map_err(|error| (0, Problem::Io(error)))?;
        self.bytes += read as u64;
        if self.bytes > MAX_FILE_BYTES { Err((0, Problem::TooLarge)) } else { Ok(read < room) }
    }
}

fn text(bytes: &[u8]) -> Parsed<&str> {
    std::str::from_utf8(bytes).map_err(|_| (0, Problem::NotUtf8))
}

/// Bytes of the first piece of a text, of which no more than a piece and the characters behind it has to be there.
fn first_piece(text: &str) -> usize {
    if text.len() <= PIECE_BYTES {
        return text.len();
    }
    let mut end = PIECE_BYTES;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    cut(&text[..end])
}

/// Where to cut: behind a line if that can be, otherwise at white space, and in a text without any at its end.
fn cut(text: &str) -> usize {
    let (mut at_space, mut behind_lines) = (None, None);
    // The white space before each word, from the end on.
    let mut rest = text.trim_end();
    while let Some(last) = rest.rfind(char::is_whitespace) {
        // A character of white space may have several bytes.
        let word = last + rest[last..].chars().next().map_or(1, char::len_utf8);
        let run_start = rest[..word].trim_end().len();
        let run = &rest[run_start..word];
        if run_start == 0 || last < text.len() / 2 {
            break;
        }
        let has_line_end = run.contains('\n');
        let ends_in_line_end = run.ends_with(['\n', '\r']);
        let border = if !ends_in_line_end {
            Some(last)
        } else if run == "\n" {
            Some(word)
        } else {
            behind_lines = behind_lines.or(Some(word));
            None
        };
        if let Some(border) = border {
            if has_line_end {
                return border;
            }
            at_space = at_space.or(Some(border));
        }
        rest = &rest[..run_start];
    }
    at_space.or(behind_lines).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Gives a text again and again, a few bytes at a time, and knows how many it has given.
    struct Endless<'a> {
        text: &'a [u8],
        given: u64,
        limit: u64,
        at_once: usize,
    }

    impl Read for &mut Endless<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let from = (self.given % self.text.len().max(1) as u64) as usize;
            let left = usize::try_from(self.limit - self.given).unwrap_or(usize::MAX);
            let count = buffer.len().min(self.at_once).min(self.text.len() - from).min(left);
            buffer[..count].copy_from_slice(&self.text[from..from + count]);
            self.given += count as u64;
            Ok(count)
        }
    }

    fn pieces_of(text: &[u8], at_once: usize) -> Result<Vec<String>, (usize, String)> {
        let mut source = Endless { text, given: 0, limit: text.len() as u64, at_once };
        let mut pieces = Pieces::new(&mut source);
        let mut all = Vec::new();
        while let Some(piece) = pieces.next_piece().map_err(|(line, problem)| (line, problem.to_string()))? {
            all.push(piece.to_owned());
        }
        Ok(all)
    }

    #[test]
    fn a_text_is_cut_where_tokenizers_have_a_border() {
        for (text, piece) in [
            // Behind a line, before a space that belongs to the next word, and at last anywhere.
            ("one two three\nfour five", "one two three\n"),
            ("one two three \n four five", "one two three \n"),
            ("one two\n    three", "one two\n   "),
            ("one two three", "one two"),
            ("one\n\ntwo", "one\n\n"),
            // Line ends stand with the sentence before them or alone: a space is better.
            ("a.\n\nb c\n\nd", "a.\n\nb"),
            ("onetwothree", "onetwothree"),
            ("\u{6c34}\u{6c34}\u{3000}\u{6c34}", "\u{6c34}\u{6c34}"),
        ] {
            assert_eq!(&text[..cut(text)], piece, "{text:?}");
        }
    }

    #[test]
    fn a_piece_ends_in_its_second_half() {
        let text = "a\n".to_owned() + &"b".repeat(PIECE_BYTES);
        assert_eq!(split(&text).map(str::len).collect::<Vec<_>>(), [PIECE_BYTES, 2]);
    }

    #[test]
    fn of_an_endless_text_a_piece_is_held() {
        let text = "Eine Zeile mit \u{dc}ml\u{e4}uten und sonst nichts.\n";
        let limit = (20 << 20) / text.len() as u64 * text.len() as u64;
        let mut source = Endless { text: text.as_bytes(), given: 0, limit, at_once: 1000 };
        let mut pieces = Pieces::new(&mut source);
        let mut taken = 0;
        while let Some(piece) = pieces.next_piece().expect("good text") {
            taken += piece.len() as u64;
            assert!(piece.len() <= PIECE_BYTES);
            assert!(pieces.reader.given - taken <= PIECE_BYTES as u64 + 16, "at {taken}");
            assert!(pieces.buffer.capacity() <= 4 * PIECE_BYTES);
        }
        assert_eq!(taken, limit);
    }

    #[test]
    fn what_is_no_utf8_is_said_with_its_line() {
        let long = "line\n".repeat(PIECE_BYTES).into_bytes();
        let broken = [&long[..], b"\xff\n"].concat();
        assert_eq!(pieces_of(&broken, 999).unwrap_err().0, PIECE_BYTES + 1);
        assert_eq!(pieces_of(b"a\nb\xc3", 2).unwrap_err().0, 2);
        assert_eq!(pieces_of(b"\xef\xbb\xbfa", 2).unwrap(), ["a"]);
        assert_eq!(pieces_of(b"", 2).unwrap(), [""; 0]);
    }

    proptest! {
        #[test]
        fn pieces_are_the_text_however_it_is_read(
            word in "[a-z\u{e4}\u{6c34} \n\r\t.]{1,12}", times in 1usize..20_000, at_once in 1usize..70_000,
        ) {
            let text = word.repeat(times);
            let pieces: Vec<&str> = split(&text).collect();
            prop_assert_eq!(pieces.concat(), text.as_str());
            prop_assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= PIECE_BYTES));
            prop_assert_eq!(pieces_of(text.as_bytes(), at_once).unwrap(), pieces);
        }
    }
}
