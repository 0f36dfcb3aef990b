//! Token sequences of one length out of texts of any length, drawn while the texts are read.
//!
//! Texts are tokenised piece by piece and cut into sequences, of which a seeded few are kept: what is held is the drawn
//! sequences and about a megabyte of text, however much there is to read. The draw is reservoir sampling (Vitter, "Random
//! sampling with a reservoir", ACM TOMS 1985, algorithm R): it depends on the sequences in their order, their number and
//! the seed, and on nothing else.

use std::sync::Arc;

use rayon::prelude::*;
use zeropoint_core::Rng;
use zeropoint_models::{ModelError, Tokenizer};

use crate::dataset::{Sample, split};

/// Bytes of text that are tokenised at once, on all threads.
const QUEUED_BYTES: usize = 1 << 20;

/// How texts become sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sequences {
    /// Each text on its own, with the tokenizer's special tokens around it; a text that is longer than a sequence is
    /// several, one behind the other, of which the last may be shorter.
    Chunked,
    /// All texts one behind the other, without special tokens but for the separator between two texts, in sequences of
    /// exactly one length. What is left over at the end is dropped, unless it is all there is.
    Packed {
        /// Between two texts.
        separator: Option<u32>,
    },
}

/// Cuts texts into sequences and draws some of them.
pub struct SequenceDraw<'a> {
    tokenizer: &'a Tokenizer,
    sequences: Sequences,
    /// Special tokens before and behind a text.
    around: (Vec<u32>, Vec<u32>),
    queue: Vec<Queued>,
    queued_bytes: usize,
    /// Tokens that are not a whole sequence yet.
    open: Vec<u32>,
    /// The text that they begin in.
    place: (Arc<str>, usize),
    /// Whether a text with tokens came before.
    any: bool,
    reservoir: Reservoir,
}

/// What is not tokenised yet, in order.
enum Queued {
    Begin { file: Arc<str>, line: usize, specials: bool },
    Text(String),
    Tokens(Vec<u32>),
    End { specials: bool },
}

/// The sequences that were drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawnSequences {
    /// As samples with tokens, in the order of the texts; each names the file and line of the text that it begins in.
    pub samples: Vec<Sample>,
    /// How many sequences there were to draw from.
    pub available: usize,
}

impl<'a> SequenceDraw<'a> {
    /// Sequences of at most the tokenizer's maximum length, of which `samples` are drawn.
    ///
    /// # Errors
    ///
    /// A tokenizer that fails on any text.
    pub fn new(
        tokenizer: &'a Tokenizer,
        sequences: Sequences,
        samples: usize,
        seed: u64,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            tokenizer,
            sequences,
            around: tokenizer.specials_around()?,
            queue: Vec::new(),
            queued_bytes: 0,
            open: Vec::new(),
            place: ("".into(), 0),
            any: false,
            reservoir: Reservoir { room: samples, seen: 0, rng: Rng::new(seed), kept: Vec::new() },
        })
    }

    /// Takes a sample: its first text, or its tokens where it has them.
    pub fn sample(&mut self, sample: Sample) -> Result<(), ModelError> {
        match sample.tokens {
            Some(tokens) => {
                self.push(Queued::Begin { file: sample.file, line: sample.line, specials: false });
                self.push(Queued::Tokens(tokens));
                self.push(Queued::End { specials: false });
                self.flush_if_full()
            }
            None => {
                self.begin(sample.file, sample.line);
                self.text(&sample.text_a)?;
                self.end();
                self.flush_if_full()
            }
        }
    }

    /// Begins a text that comes in pieces, at a line of a file.
    pub fn begin(&mut self, file: Arc<str>, line: usize) {
        self.push(Queued::Begin { file, line, specials: true });
    }

    /// Takes the next piece of a text. A long piece is cut as [`split`] cuts it.
    ///
    /// # Errors
    ///
    /// Texts that the tokenizer refuses, this one or an earlier one.
    pub fn text(&mut self, text: &str) -> Result<(), ModelError> {
        for piece in split(text) {
            self.push(Queued::Text(piece.to_owned()));
            self.flush_if_full()?;
        }
        Ok(())
    }

    /// Ends a text that came in pieces.
    pub fn end(&mut self) {
        self.push(Queued::End { specials: true });
    }

    /// The sequences that were drawn of all texts.
    ///
    /// # Errors
    ///
    /// Texts that the tokenizer refuses.
    pub fn finish(mut self) -> Result<DrawnSequences, ModelError> {
        self.flush()?;
        if self.reservoir.seen == 0 && !self.open.is_empty() {
            let all = self.open.len();
            self.close(all);
        }
        let mut kept = self.reservoir.kept;
        kept.sort_unstable_by_key(|(number, _)| *number);
        Ok(DrawnSequences {
            samples: kept.into_iter().map(|(_, sample)| sample).collect(),
            available: usize::try_from(self.reservoir.seen).unwrap_or(usize::MAX),
        })
    }

    fn push(&mut self, queued: Queued) {
        self.queued_bytes += size_of::<Queued>()
            + match &queued {
                Queued::Text(text) => text.len(),
                Queued::Tokens(tokens) => size_of_val(tokens.as_slice()),
                Queued::Begin { .. } | Queued::End { .. } => 0,
            };
        self.queue.push(queued);
    }

    fn flush_if_full(&mut self) -> Result<(), ModelError> {
        if self.queued_bytes < QUEUED_BYTES { Ok(()) } else { self.flush() }
    }

    /// Tokenises what is queued, in parallel, and cuts it in order.
    fn flush(&mut self) -> Result<(), ModelError> {
        let tokenizer = self.tokenizer;
        self.queued_bytes = 0;
        let tokenised: Vec<Queued> = std::mem::take(&mut self.queue)
            .into_par_iter()
            .map(|queued| match queued {
                Queued::Text(text) => tokenizer.token_ids(&text).map(Queued::Tokens),
                other => Ok(other),
            })
            .collect::<Result<_, ModelError>>()?;
        for queued in tokenised {
            self.take(queued);
        }
        Ok(())
    }

    fn take(&mut self, queued: Queued) {
        match (queued, self.sequences) {
            (Queued::Begin { file, line, specials }, Sequences::Chunked) => {
                self.place = (file, line);
                if specials {
                    self.open.extend(&self.around.0);
                }
            }
            (Queued::Begin { file, line, .. }, Sequences::Packed { separator }) => {
                if let Some(separator) = separator.filter(|_| self.any) {
                    self.open.push(separator);
                    self.close_whole();
                }
                if self.open.is_empty() {
                    self.place = (file, line);
                }
            }
            (Queued::Tokens(tokens), _) => {
                self.any |= !tokens.is_empty();
                self.open.extend(tokens);
                self.close_whole();
            }
            (Queued::End { specials }, Sequences::Chunked) => {
                if specials {
                    self.open.extend(&self.around.1);
                }
                self.close_whole();
                let rest = self.open.len();
                self.close(rest);
            }
            // Texts are tokenised before.
            (Queued::End { .. }, Sequences::Packed { .. }) | (Queued::Text(_), _) => {}
        }
    }

    /// Offers every whole sequence.
    fn close_whole(&mut self) {
        let length = self.tokenizer.max_length();
        while self.open.len() >= length {
            self.close(length);
        }
    }

    /// Offers the first `length` tokens as a sequence, unless there are none.
    fn close(&mut self, length: usize) {
        if length == 0 {
            return;
        }
        let tokens: Vec<u32> = self.open.drain(..length).collect();
        let (file, line) = self.place.clone();
        self.reservoir.offer(Sample { tokens: Some(tokens), file, line, ..Sample::default() });
    }
}

/// Some of a stream of samples, every subset equally likely.
struct Reservoir {
    room: usize,
    seen: u64,
    rng: Rng,
    /// With their numbers in the stream.
    kept: Vec<(u64, Sample)>,
}

impl Reservoir {
    fn offer(&mut self, sample: Sample) {
        let number = self.seen;
        self.seen += 1;
        if self.kept.len() < self.room {
            self.kept.push((number, sample));
            return;
        }
        let at = usize::try_from(self.rng.below(self.seen)).unwrap_or(usize::MAX);
        if let Some(slot) = self.kept.get_mut(at) {
            *slot = (number, sample);
        }
    }
}

#[cfg(test)]
mod tests {
    use zeropoint_models::{ModelDirectory, SourceRef, Task};

    use super::*;
    use crate::dataset::PIECE_BYTES;

    const SEPARATOR: u32 = 7;

    fn tokenizer(length: usize) -> Tokenizer {
        let directory = ModelDirectory::open(&SourceRef::Embedded, Task::Auto).expect("the embedded model");
        directory.tokenizer(Some(length)).expect("its tokenizer")
    }

    fn text(words: usize) -> String {
        let words = (0..words).map(|i| ["river", "moon", "bread", "seven", "of"][i * i % 5]);
        words.collect::<Vec<_>>().join(" ")
    }

    fn sample(text_a: String, line: usize) -> Sample {
        Sample { text_a, file: "data".into(), line, ..Sample::default() }
    }

    fn draw(
        texts: &[String],
        how: Sequences,
        tokenizer: &Tokenizer,
        count: usize,
        seed: u64,
    ) -> DrawnSequences {
        let mut draw = SequenceDraw::new(tokenizer, how, count, seed).expect("a tokenizer");
        for (index, text) in texts.iter().enumerate() {
            draw.sample(sample(text.clone(), index + 1)).expect("a text");
        }
        draw.finish().expect("texts")
    }

    fn tokens(drawn: &DrawnSequences) -> Vec<&[u32]> {
        drawn.samples.iter().map(|sample| sample.tokens.as_deref().expect("tokens")).collect()
    }

    #[test]
    fn a_text_is_a_sample_and_a_long_one_several() {
        let tokenizer = tokenizer(16);
        let texts = [text(5), text(100), text(14)];
        let drawn = draw(&texts, Sequences::Chunked, &tokenizer, 1000, 1);
        let whole: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.prompt_ids(text).unwrap()).collect();
        let expected: Vec<&[u32]> = whole.iter().flat_map(|ids| ids.chunks(16)).collect();
        assert_eq!(tokens(&drawn), expected);
        assert_eq!(drawn.available, expected.len());
        let lines: Vec<usize> = drawn.samples.iter().map(|sample| sample.line).collect();
        assert_eq!((lines[0], lines[1], *lines.last().unwrap()), (1, 2, 3));
        // Short texts are what they are to every other task.
        assert_eq!(tokens(&drawn)[0], tokenizer.encode(&texts[0], None).unwrap().ids);
    }

    #[test]
    fn packed_texts_are_samples_of_one_length() {
        let tokenizer = tokenizer(16);
        let texts = [text(5), String::new(), text(100), text(14)];
        let drawn = draw(&texts, Sequences::Packed { separator: Some(SEPARATOR) }, &tokenizer, 1000, 1);
        let ids: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.token_ids(text).unwrap()).collect();
        let all = ids.join(&SEPARATOR);
        assert_eq!(tokens(&drawn), all.chunks_exact(16).collect::<Vec<_>>());
        let plain = draw(&texts, Sequences::Packed { separator: None }, &tokenizer, 1000, 1);
        assert_eq!(tokens(&plain), ids.concat().chunks_exact(16).collect::<Vec<_>>());
        let short = draw(&texts[..1], Sequences::Packed { separator: None }, &tokenizer, 1000, 1);
        assert_eq!((tokens(&short), short.available), (vec![ids[0].as_slice()], 1));
    }

    #[test]
    fn tokens_are_taken_as_they_are() {
        let tokenizer = tokenizer(16);
        let mut draw = SequenceDraw::new(&tokenizer, Sequences::Chunked, 10, 1).unwrap();
        draw.sample(Sample { tokens: Some((0..20).collect()), ..Sample::default() }).unwrap();
        let drawn = draw.finish().unwrap();
        assert_eq!(tokens(&drawn), [(0..16).collect::<Vec<u32>>(), (16..20).collect()]);
    }

    #[test]
    fn the_draw_is_seeded_and_the_same_for_any_threads() {
        let tokenizer = tokenizer(16);
        let texts: Vec<String> = (0..300).map(|i| text(20 + i % 7 * 300)).collect();
        let how = Sequences::Packed { separator: Some(SEPARATOR) };
        let all = draw(&texts, how, &tokenizer, usize::MAX, 1);
        let drawn = draw(&texts, how, &tokenizer, 20, 1);
        assert_eq!((drawn.samples.len(), drawn.available), (20, all.samples.len()));
        // In the order of the texts; several sequences of a text may have the same tokens.
        let mut others = all.samples.iter().enumerate();
        let mut place = |sample| others.find(|(_, other)| *other == sample).expect("one of them").0;
        let places: Vec<usize> = drawn.samples.iter().map(&mut place).collect();
        assert!(*places.last().unwrap() > all.samples.len() / 2, "{places:?}");
        assert_ne!(draw(&texts, how, &tokenizer, 20, 2), drawn);
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| draw(&texts, how, &tokenizer, 20, 1)), drawn, "{threads} threads");
        }
    }

    #[test]
    fn every_sequence_is_drawn_about_equally_often() {
        let mut counts = [0; 10];
        for seed in 0..3000 {
            let rng = Rng::new(seed);
            let mut reservoir = Reservoir { room: 3, seen: 0, rng, kept: Vec::new() };
            for line in 0..10 {
                reservoir.offer(Sample { line, ..Sample::default() });
            }
            reservoir.kept.iter().for_each(|(_, sample)| counts[sample.line] += 1);
        }
        // 900 are expected of each; five standard deviations of a binomial count are 126.
        assert!(counts.iter().all(|count| (774..=1026).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_text_of_many_pieces_has_the_tokens_of_the_whole() {
        let tokenizer = tokenizer(16);
        let long = (text(40) + "\n").repeat(3000);
        assert!(long.len() > 8 * PIECE_BYTES);
        let drawn = draw(std::slice::from_ref(&long), Sequences::Chunked, &tokenizer, usize::MAX, 1);
        assert_eq!(tokens(&drawn).concat(), tokenizer.prompt_ids(&long).unwrap());
    }

    #[test]
    #[ignore = "needs ZEROPOINT_MODELS"]
    fn pieces_of_an_encyclopaedia_have_the_tokens_of_the_whole() {
        let folder = |name: &str| std::path::PathBuf::from(std::env::var(name).expect("the variable is set"));
        let source = SourceRef::Directory(folder("ZEROPOINT_MODELS").join("smollm2"));
        let directory = ModelDirectory::open(&source, Task::Auto).expect("a model");
        let tokenizer = directory.tokenizer(None).expect("its tokenizer");
        let text =
            std::fs::read_to_string(folder("ZEROPOINT_DATA").join("wikitext2-valid.txt")).expect("a text");
        let pieces: Vec<u32> =
            split(&text).flat_map(|piece| tokenizer.token_ids(piece).expect("tokens")).collect();
        assert_eq!(pieces, tokenizer.token_ids(&text).expect("tokens"));
    }
}
