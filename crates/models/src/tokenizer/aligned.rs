//! Tokens that know where in the text they come from.

use std::ops::Range;

use tokenizers::EncodeInput;

use super::Tokenizer;
use crate::ModelError;
use crate::batch::TokenSequence;

/// What a token comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextPart {
    /// Neither text: a token that the tokenizer adds.
    Special,
    /// The text, or the first of a pair.
    First,
    /// The second text of a pair.
    Second,
}

/// A text or pair as tokens at full length, each with its place in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlignedTokens {
    /// Token ids and segments, specials included; not cut.
    pub tokens: TokenSequence,
    /// Where each token comes from.
    pub parts: Vec<TextPart>,
    /// Bytes of that text which each token covers; `0..0` for specials.
    pub spans: Vec<Range<usize>>,
    /// Number of the word in that text to which each token belongs, by the tokenizer's own rule.
    pub words: Vec<Option<u32>>,
    /// Whether there are two texts.
    pub is_pair: bool,
}

impl Tokenizer {
    /// Token ids of a text of any length, without specials.
    pub fn token_ids(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let whole = self.whole();
        let encoding = self.library(|| whole.encode_fast(text, false))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The special tokens that are put before and behind a text.
    pub fn specials_around(&self) -> Result<(Vec<u32>, Vec<u32>), ModelError> {
        // Any text that has a token.
        let aligned = self.align("a", None)?;
        let text = aligned.part(TextPart::First);
        let ids = &aligned.tokens.ids;
        Ok((ids[..text.start].to_vec(), ids[text.end..].to_vec()))
    }

    /// The tokenizer that cuts nothing.
    pub(super) fn whole(&self) -> &tokenizers::Tokenizer {
        self.whole.get_or_init(|| {
            let mut whole = self.inner.clone();
            // Only a length can be refused.
            let _ = whole.with_truncation(None);
            whole
        })
    }

    /// Tokens of one text or a pair with their places in it. Unlike [`Tokenizer::encode`] it cuts nothing:
    /// [`AlignedTokens::split`] does.
    pub fn align(&self, text: &str, pair: Option<&str>) -> Result<AlignedTokens, ModelError> {
        let whole = self.whole();
        let input: EncodeInput<'_> = match pair {
            Some(pair) => (text, pair).into(),
            None => text.into(),
        };
        let encoding = self.library(|| whole.encode(input, true))?;
        let specials = encoding.get_special_tokens_mask();
        let mut aligned = AlignedTokens {
            tokens: TokenSequence {
                ids: encoding.get_ids().to_vec(),
                type_ids: self.type_ids(&encoding),
                prompt: 0,
            },
            parts: Vec::with_capacity(specials.len()),
            spans: Vec::with_capacity(specials.len()),
            words: Vec::with_capacity(specials.len()),
            is_pair: pair.is_some(),
        };
        let sequences = encoding.get_sequence_ids();
        for (i, &(start, end)) in encoding.get_offsets().iter().enumerate() {
            let part = match (specials[i], sequences[i], pair) {
                (0, Some(1), _) => TextPart::Second,
                // Without a pair there is only one text to come from.
                (0, Some(_), _) | (0, None, None) => TextPart::First,
                _ => TextPart::Special,
            };
            aligned.parts.push(part);
            aligned.words.push(encoding.get_word_ids()[i].filter(|_| part != TextPart::Special));
            aligned.spans.push(if part == TextPart::Special { 0..0 } else { start..end });
        }
        Ok(aligned)
    }
}

impl AlignedTokens {
    /// The tokens of a text, as a range: they are neighbours. Empty, at the end, when it has none.
    pub fn part(&self, part: TextPart) -> Range<usize> {
        let start = self.parts.iter().position(|found| *found == part);
        let end = self.parts.iter().rposition(|found| *found == part);
        let none = self.parts.len()..self.parts.len();
        start.zip(end).map_or(none, |(start, end)| start..end + 1)
    }

    /// A sequence with only the tokens `kept` of the last text, and all that stands before and behind that text.
    pub fn window(&self, kept: &Range<usize>) -> TokenSequence {
        let last = self.last_part();
        let take =
            |values: &[u32]| [&values[..last.start], &values[kept.clone()], &values[last.end..]].concat();
        TokenSequence { ids: take(&self.tokens.ids), type_ids: take(&self.tokens.type_ids), prompt: 0 }
    }

    /// Tokens of [`AlignedTokens::window`] that are not of the last text.
    pub fn around(&self) -> usize {
        self.tokens.len() - self.last_part().len()
    }

    /// The tokens of the second text, or of the only one.
    pub fn last_part(&self) -> Range<usize> {
        self.part(if self.is_pair { TextPart::Second } else { TextPart::First })
    }

    /// Cuts the last text into ranges of at most `room` tokens (at least 1), one after the other, between tokens whose
    /// `unit` differs where there are any.
    pub fn split<T: PartialEq>(&self, room: usize, unit: impl Fn(usize) -> T) -> Vec<Range<usize>> {
        let last = self.last_part();
        let mut ranges = Vec::new();
        let mut start = last.start;
        while start < last.end {
            let mut end = last.end.min(start + room.max(1));
            if end < last.end {
                let border = (start + 1..=end).rev().find(|&at| unit(at - 1) != unit(at));
                end = border.unwrap_or(end);
            }
            ranges.push(start..end);
            start = end;
        }
        ranges
    }

    /// Windows of at most `room` tokens (at least 1) over the last text, each beginning with the last `overlap` tokens of
    /// the one before; one when all fits.
    pub fn windows(&self, room: usize, overlap: usize) -> Vec<Range<usize>> {
        let last = self.last_part();
        let room = room.max(1);
        let step = room - overlap.min(room - 1);
        let mut ranges = Vec::new();
        let mut start = last.start;
        loop {
            let end = last.end.min(start + room);
            ranges.push(start..end);
            if end == last.end {
                return ranges;
            }
            start += step;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn aligned(words: &[u32]) -> AlignedTokens {
        let inner = words.len();
        let mut parts = vec![TextPart::Special];
        parts.extend(vec![TextPart::First; inner]);
        parts.push(TextPart::Special);
        let ids = (0..inner as u32 + 2).collect();
        let mut all = vec![None];
        all.extend(words.iter().map(|word| Some(*word)));
        all.push(None);
        AlignedTokens {
            tokens: TokenSequence { ids, type_ids: vec![0; inner + 2], prompt: 0 },
            parts,
            spans: vec![0..0; inner + 2],
            words: all,
            is_pair: false,
        }
    }

    #[test]
    fn a_text_is_cut_between_words_where_it_can_be() {
        let tokens = aligned(&[0, 0, 1, 1, 1, 1, 1, 2]);
        let by_word = |room| tokens.split(room, |i| tokens.words[i]);
        assert_eq!(by_word(8), std::slice::from_ref(&(1..9)));
        assert_eq!(by_word(7), [1..8, 8..9]);
        assert_eq!(by_word(4), [1..3, 3..7, 7..9], "the second word is longer than the room");
        assert_eq!(tokens.window(&(3..7)).ids, [0, 3, 4, 5, 6, 9]);
        assert_eq!(tokens.around(), 2);
    }

    #[test]
    fn of_a_pair_the_second_text_is_the_last_even_without_a_token() {
        let tokens = AlignedTokens { is_pair: true, ..aligned(&[0, 1]) };
        assert_eq!(tokens.last_part(), 4..4);
        assert_eq!(tokens.windows(5, 1), std::slice::from_ref(&(4..4)));
        assert_eq!(tokens.window(&(4..4)).ids, tokens.tokens.ids);
    }

    proptest! {
        #[test]
        fn windows_cover_the_text_and_overlap_as_asked(
            tokens in 1usize..60, room in 1usize..20, overlap in 0usize..25,
        ) {
            let text = aligned(&vec![0; tokens]);
            let windows = text.windows(room, overlap);
            prop_assert_eq!(windows[0].start, 1);
            prop_assert_eq!(windows.last().unwrap().end, tokens + 1);
            prop_assert!(windows.iter().all(|window| window.len() <= room && !window.is_empty()));
            for pair in windows.windows(2) {
                prop_assert_eq!(pair[0].end - pair[1].start, overlap.min(room - 1));
            }
        }

        #[test]
        fn pieces_are_the_text_once(words in prop::collection::vec(0u32..4, 1..40), room in 1usize..9) {
            let text = aligned(&words);
            let pieces = text.split(room, |i| text.words[i]);
            prop_assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= room));
            let all: Vec<usize> = pieces.into_iter().flatten().collect();
            prop_assert_eq!(all, (1..=words.len()).collect::<Vec<_>>());
        }
    }
}
