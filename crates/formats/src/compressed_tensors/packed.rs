//! Weights of 4 or 8 bits packed into 32-bit words, the layout of `pack-quantized`.
//!
//! The stored value of q is the unsigned `u = q + 2^(b-1)`. Element j of a row takes bits `[j*b, (j+1)*b)` of a
//! little-endian stream of 32-bit words, low bits first, and each row is padded with zero bits to a whole word:
//! word i is `sum u[4i + k] << 8k` for b = 8 and `sum u[8i + k] << 4k` for b = 4.

use zeropoint_core::WeightBits;

use crate::FormatError;

/// Elements in one word.
const fn per_word(bits: WeightBits) -> usize {
    32 / bits.width()
}

/// Words of a row of that many columns: `ceil(columns * b / 32)`.
pub const fn row_words(columns: usize, bits: WeightBits) -> usize {
    columns.div_ceil(per_word(bits))
}

/// `2^(b-1)`, what is added to a value before it is stored.
const fn offset(bits: WeightBits) -> i32 {
    1 << (bits.width() - 1)
}

/// Packs a row-major matrix of `columns` columns, row by row. The words, little-endian, are the I32 tensor
/// `weight_packed` of shape `[rows, row_words(columns, bits)]`.
///
/// Refused: a length that is not a whole number of rows, values that do not fit the width.
pub fn pack(values: &[i8], columns: usize, bits: WeightBits) -> Result<Vec<u32>, FormatError> {
    if columns == 0 || !values.len().is_multiple_of(columns) {
        let reason = format!("{} values are not a whole number of rows of {columns}", values.len());
        return Err(FormatError::Packing { reason });
    }
    let mut words = Vec::with_capacity(values.len() / columns * row_words(columns, bits));
    for row in values.chunks_exact(columns) {
        for elements in row.chunks(per_word(bits)) {
            let mut word = 0;
            for (k, &q) in elements.iter().enumerate() {
                let stored =
                    u32::try_from(i32::from(q) + offset(bits)).ok().filter(|u| u >> bits.width() == 0);
                let Some(stored) = stored else {
                    let (low, high) = (-offset(bits), offset(bits) - 1);
                    let reason = format!(
                        "the value {q} is outside the {} bits that hold {low}..={high}",
                        bits.width()
                    );
                    return Err(FormatError::Packing { reason });
                };
                word |= stored << (k * bits.width());
            }
            words.push(word);
        }
    }
    Ok(words)
}

/// The inverse of [`pack`]: the values of `rows` rows of `columns` columns. Padding bits are not looked at.
///
/// Refused: a number of words that is not `rows * row_words(columns, bits)`.
pub fn unpack(words: &[u32], rows: usize, columns: usize, bits: WeightBits) -> Result<Vec<i8>, FormatError> {
    let row_words = row_words(columns, bits);
    if rows.checked_mul(row_words) != Some(words.len()) {
        let reason = format!(
            "{} words were given where {rows} rows of {columns} values at {} bits take {row_words} each",
            words.len(),
            bits.width()
        );
        return Err(FormatError::Packing { reason });
    }
    if columns == 0 {
        return Ok(Vec::new());
    }
    let mask = (1u32 << bits.width()) - 1;
    let elements = |word: &u32| {
        let word = *word;
        (0..per_word(bits)).map(move |k| ((word >> (k * bits.width()) & mask) as i32 - offset(bits)) as i8)
    };
    let mut values = Vec::with_capacity(rows * columns);
    for row in words.chunks_exact(row_words) {
        values.extend(row.iter().flat_map(elements).take(columns));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_of_the_formulas() {
        use WeightBits::{Eight, Four};
        let cases: [(&[i8], usize, WeightBits, &[u32]); 7] = [
            (&[-8, -7, -6, -5, -4, -3, -2, -1], 8, Four, &[0x7654_3210]),
            (&[0, 1, 2, 3, 4, 5, 6, 7], 8, Four, &[0xfedc_ba98]),
            (&[-128, -127, 0, 127], 4, Eight, &[0xff80_0100]),
            // A row is padded to a whole word, with zero bits.
            (&[7], 1, Four, &[0xf]),
            (&[-8, 7, -8, 7, -8, 7], 3, Four, &[0x0f0, 0xf0f]),
            (&[0, 1, 2, 3, 4], 5, Eight, &[0x8382_8180, 0x84]),
            (&[], 3, Eight, &[]),
        ];
        for (values, columns, bits, words) in cases {
            assert_eq!(pack(values, columns, bits).unwrap(), words, "{values:?}");
            assert_eq!(unpack(words, values.len() / columns, columns, bits).unwrap(), values);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let cases = [
            (pack(&[8], 1, WeightBits::Four).map(drop), "the value 8"),
            (pack(&[-9], 1, WeightBits::Four).map(drop), "the value -9"),
            (pack(&[1, 2, 3], 2, WeightBits::Four).map(drop), "whole number of rows"),
            (pack(&[], 0, WeightBits::Four).map(drop), "whole number of rows"),
            (unpack(&[0], 1, 9, WeightBits::Four).map(drop), "1 words"),
            (unpack(&[0], usize::MAX, 64, WeightBits::Four).map(drop), "1 words"),
        ];
        for (result, expected) in cases {
            assert!(result.unwrap_err().to_string().contains(expected), "{expected}");
        }
        assert!(unpack(&[], usize::MAX, 0, WeightBits::Eight).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn packing_is_invertible_and_each_element_lies_at_its_bits(
            rows in 1usize..5, columns in 1usize..40, eight: bool, seed in proptest::collection::vec(any::<i8>(), 4 * 39),
        ) {
            let bits = if eight { WeightBits::Eight } else { WeightBits::Four };
            let values: Vec<i8> =
                seed.iter().take(rows * columns).map(|&q| if eight { q } else { q >> 4 }).collect();
            let words = pack(&values, columns, bits).unwrap();
            prop_assert_eq!(words.len(), rows * row_words(columns, bits));
            prop_assert_eq!(&unpack(&words, rows, columns, bits).unwrap(), &values);
            // The definition itself, bit by bit.
            let (width, row_bits) = (bits.width(), row_words(columns, bits) * 32);
            let bit = |i: usize| words[i / 32] >> (i % 32) & 1;
            for (index, &q) in values.iter().enumerate() {
                let first = index / columns * row_bits + index % columns * width;
                let stored: u32 = (0..width).map(|b| bit(first + b) << b).sum();
                prop_assert_eq!(stored as i32, i32::from(q) + (1 << (width - 1)));
            }
        }
    }
}
