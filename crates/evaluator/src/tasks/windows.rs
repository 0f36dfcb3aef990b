//! A text as tokens, cut into windows, and which tokens of a window count.

use zeropoint_models::TokenSequence;

/// Which tokens of a window are told from those before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Counting {
    /// Every one but the first.
    #[default]
    EveryToken,
    /// Those of the second half but its first, as `llama-perplexity` of llama.cpp has it: half a window is always there to tell
    /// from, and windows begin with the token that the tokenizer puts before a text, if there is one.
    LlamaCpp,
}

impl Counting {
    /// The first row that counts in a window of so many tokens. A row is about the token after it.
    pub fn first_row(self, window: usize) -> usize {
        match self {
            Self::EveryToken => 0,
            Self::LlamaCpp => window / 2,
        }
    }
}

/// A text as tokens, cut into windows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Windows {
    /// The tokens of each window, at least two.
    pub tokens: Vec<Vec<u32>>,
    /// Which of them count.
    pub counting: Counting,
}

impl Windows {
    /// Windows of `window` tokens, each begun `stride` tokens after the one before, at most `most`. Tokens at the end that
    /// fill no window are left out; a text of fewer is one window.
    pub fn new(ids: &[u32], window: usize, stride: usize, most: usize) -> Self {
        let tokens = if ids.len() <= window {
            vec![ids.to_vec()]
        } else {
            ids.windows(window).step_by(stride.max(1)).take(most).map(<[u32]>::to_vec).collect()
        };
        Self { tokens, counting: Counting::EveryToken }
    }

    /// Windows as llama.cpp cuts them: one after the other, at most `most`, out of the tokens `before` that the tokenizer puts
    /// before the text and those of the text. Where there are any before, the first token of each window becomes the first
    /// of them.
    ///
    /// Source: `perplexity` in `tools/perplexity/perplexity.cpp` of llama.cpp.
    pub fn llama_cpp(before: &[u32], ids: &[u32], window: usize, most: usize) -> Self {
        let all = [before, ids].concat();
        let mut tokens: Vec<Vec<u32>> =
            all.chunks_exact(window.max(1)).take(most).map(<[u32]>::to_vec).collect();
        if let Some(first) = before.first() {
            tokens.iter_mut().for_each(|window| window[0] = *first);
        }
        Self { tokens, counting: Counting::LlamaCpp }
    }

    pub(super) fn sequences(&self) -> Vec<TokenSequence> {
        let sequence =
            |ids: &Vec<u32>| TokenSequence { ids: ids.clone(), type_ids: vec![0; ids.len()], prompt: 0 };
        self.tokens.iter().map(sequence).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_whole_and_begin_at_every_stride() {
        let ids: Vec<u32> = (0..10).collect();
        let windows = |window, stride, most| Windows::new(&ids, window, stride, most).tokens;
        assert_eq!(windows(4, 4, 9), [vec![0, 1, 2, 3], vec![4, 5, 6, 7]]);
        assert_eq!(windows(4, 3, 9), [vec![0, 1, 2, 3], vec![3, 4, 5, 6], vec![6, 7, 8, 9]]);
        assert_eq!(windows(4, 4, 1), [vec![0, 1, 2, 3]]);
        assert_eq!(windows(20, 20, 9), std::slice::from_ref(&ids));
    }

    #[test]
    fn windows_of_llama_cpp_begin_with_the_token_before_a_text() {
        let ids: Vec<u32> = (10..20).collect();
        let windows = |before: &[u32], most| Windows::llama_cpp(before, &ids, 4, most).tokens;
        assert_eq!(windows(&[], 9), [vec![10, 11, 12, 13], vec![14, 15, 16, 17]]);
        // The text is shifted by the first token, whose place in the second window takes that of a token of the text.
        assert_eq!(windows(&[1], 9), [vec![1, 10, 11, 12], vec![1, 14, 15, 16]]);
        assert_eq!(windows(&[1], 1), [vec![1, 10, 11, 12]]);
        // Of 512 tokens it scores 255, of 5 tokens 2.
        assert_eq!(511 - Counting::LlamaCpp.first_row(512), 255);
        assert_eq!(4 - Counting::LlamaCpp.first_row(5), 2);
        assert_eq!(Counting::EveryToken.first_row(512), 0);
    }
}
