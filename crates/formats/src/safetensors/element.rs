//! Elements as bytes: little-endian, of no particular alignment.

use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::Dtype;

/// Converts `bytes` of a floating-point `dtype` to f32, into `out`.
///
/// F64 rounds to the nearest f32; the others are exact and keep NaN payloads where the hardware does. `None` when the
/// dtype is not floating-point or `bytes` is not exactly `out.len()` elements long.
pub fn decode_floats(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Option<()> {
    if !dtype.is_float() || Some(bytes.len()) != out.len().checked_mul(dtype.size()) {
        return None;
    }
    match dtype {
        Dtype::F32 => zip(bytes, out, f32::from_le_bytes),
        Dtype::F64 => zip(bytes, out, |b| f64::from_le_bytes(b) as f32),
        Dtype::BF16 => zip(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        _ => {
            // Through a small aligned block, because `half` converts whole slices with the processor's instructions.
            let mut block = [f16::ZERO; 256];
            for (bytes, out) in bytes.chunks(512).zip(out.chunks_mut(256)) {
                let block = &mut block[..out.len()];
                zip(bytes, block, f16::from_le_bytes);
                block.convert_to_f32_slice(out);
            }
        }
    }
    Some(())
}

/// As [`decode_floats`], into a new vector.
pub fn floats_from_bytes(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let mut out = vec![0.0; bytes.len() / dtype.size()];
    decode_floats(dtype, bytes, &mut out).map(|()| out)
}

fn zip<const N: usize, T>(bytes: &[u8], out: &mut [T], convert: impl Fn([u8; N]) -> T) {
    for (element, out) in bytes.as_chunks().0.iter().zip(out) {
        *out = convert(*element);
    }
}

/// The values as little-endian f32.
pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The values as little-endian bf16, rounded to nearest, halves to even. NaN stays NaN, and values beyond the largest
/// bf16 by half a step or more become infinite.
pub fn bf16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect()
}

/// The values as little-endian f16, rounded to nearest, halves to even. NaN stays NaN; values of magnitude 65520 or
/// more become infinite.
pub fn f16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_bit_patterns() {
        let cases: [(Dtype, &[u8], f32); 9] = [
            (Dtype::F32, &[0, 0, 0x80, 0x3f], 1.0),
            (Dtype::F64, &[0, 0, 0, 0, 0, 0, 0x04, 0xc0], -2.5),
            (Dtype::BF16, &[0x80, 0x3f], 1.0),
            (Dtype::BF16, &[0x49, 0x40], 3.140_625),
            (Dtype::F16, &[0x00, 0x3c], 1.0),
            (Dtype::F16, &[0xff, 0x7b], 65504.0),
            (Dtype::F16, &[0x01, 0x00], 5.960_464_5e-8),
            (Dtype::F16, &[0x00, 0xfc], f32::NEG_INFINITY),
            (Dtype::BF16, &[0x80, 0x7f], f32::INFINITY),
        ];
        for (dtype, bytes, value) in cases {
            assert_eq!(floats_from_bytes(dtype, bytes), Some(vec![value]), "{dtype} {bytes:?}");
        }
    }

    #[test]
    fn rounding_to_bf16_is_to_nearest_even_and_keeps_nan() {
        let cases = [
            (1.0 + 1.0 / 256.0, 0x3f80u16),        // a tie, down to the even one
            (1.0 + 3.0 / 256.0, 0x3f82),           // a tie, up to the even one
            (f32::from_bits(0x3f80_8001), 0x3f81), // just above a tie
            (f32::MAX, 0x7f80),
            (-0.0, 0x8000),
            (f32::from_bits(0x0000_8001), 0x0001), // subnormal
        ];
        for (value, bits) in cases {
            assert_eq!(bf16_bytes(&[value]), bits.to_le_bytes(), "{value}");
        }
        // A NaN whose payload lies in the discarded bits must not become an infinity.
        for nan in [f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(0xff80_0001)] {
            assert!(floats_from_bytes(Dtype::BF16, &bf16_bytes(&[nan])).unwrap()[0].is_nan());
            assert!(floats_from_bytes(Dtype::F16, &f16_bytes(&[nan])).unwrap()[0].is_nan());
        }
    }

    #[test]
    fn integers_and_partial_elements_are_refused() {
        assert_eq!(floats_from_bytes(Dtype::I32, &[0; 4]), None);
        assert_eq!(floats_from_bytes(Dtype::F32, &[0; 5]), None);
        assert_eq!(decode_floats(Dtype::F16, &[0; 4], &mut [0.0; 3]), None);
    }

    proptest! {
        #[test]
        fn what_fits_survives_the_round_trip(bits in proptest::collection::vec(any::<u16>(), 0..700)) {
            for (dtype, encode) in [(Dtype::F16, f16_bytes as fn(&[f32]) -> Vec<u8>), (Dtype::BF16, bf16_bytes)] {
                // One odd byte in front: nothing may depend on alignment.
                let stored: Vec<u8> = std::iter::once(7).chain(bits.iter().flat_map(|b| b.to_le_bytes())).collect();
                let values = floats_from_bytes(dtype, &stored[1..]).unwrap();
                let again = floats_from_bytes(dtype, &encode(&values)).unwrap();
                for (a, b) in values.iter().zip(&again) {
                    prop_assert!(a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan());
                }
            }
        }

        #[test]
        fn f32_survives_bit_for_bit(bits in proptest::collection::vec(any::<u32>(), 0..100)) {
            let values: Vec<f32> = bits.iter().map(|&b| f32::from_bits(b)).collect();
            let again = floats_from_bytes(Dtype::F32, &f32_bytes(&values)).unwrap();
            prop_assert_eq!(again.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), bits);
        }
    }
}
