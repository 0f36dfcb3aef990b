//! SHA-1 and SHA-256 (FIPS 180-4), which name the files of a repository: SHA-1 what git keeps itself, SHA-256 what it
//! keeps in large-file storage. Checksums here, not security: the server that gives the hash gives the file.

/// Bytes of a block, for both.
const BLOCK: usize = 64;

/// The part in which the two differ.
pub(crate) trait Compress {
    /// The first state.
    const START: Self;
    /// Takes a block in.
    fn block(&mut self, block: &[u8; BLOCK]);
    /// The words of the digest.
    fn words(&self) -> &[u32];
}

/// SHA-1.
pub(crate) struct Sha1([u32; 5]);

/// SHA-256.
pub(crate) struct Sha256([u32; 8]);

/// A digest in the making.
pub(crate) struct Digest<C> {
    state: C,
    pending: [u8; BLOCK],
    held: usize,
    bytes: u64,
}

impl<C: Compress> Digest<C> {
    pub(crate) fn new() -> Self {
        Self { state: C::START, pending: [0; BLOCK], held: 0, bytes: 0 }
    }

    pub(crate) fn update(&mut self, mut data: &[u8]) {
        self.bytes = self.bytes.wrapping_add(data.len() as u64);
        if self.held > 0 {
            let take = data.len().min(BLOCK - self.held);
            self.pending[self.held..self.held + take].copy_from_slice(&data[..take]);
            self.held += take;
            data = &data[take..];
            if self.held < BLOCK {
                return;
            }
            let block = self.pending;
            self.state.block(&block);
        }
        let (blocks, rest) = data.as_chunks::<BLOCK>();
        for block in blocks {
            self.state.block(block);
        }
        self.pending[..rest.len()].copy_from_slice(rest);
        self.held = rest.len();
    }

    /// The digest in lower-case hexadecimal.
    pub(crate) fn finish(mut self) -> String {
        use std::fmt::Write as _;
        let bits = self.bytes.wrapping_mul(8);
        self.update(&[0x80]);
        while self.held != BLOCK - 8 {
            self.update(&[0]);
        }
        self.update(&bits.to_be_bytes());
        let mut text = String::new();
        for word in self.state.words() {
            let _ = write!(text, "{word:08x}");
        }
        text
    }
}

fn word(block: &[u8; BLOCK], index: usize) -> u32 {
    let at = index * 4;
    u32::from_be_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

impl Compress for Sha1 {
    const START: Self = Self([0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0]);

    fn block(&mut self, block: &[u8; BLOCK]) {
        let mut w = [0u32; 80];
        for (i, slot) in w.iter_mut().enumerate().take(16) {
            *slot = word(block, i);
        }
        for i in 16..80 {
            w[i] = (w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = self.0;
        for (i, &w) in w.iter().enumerate() {
            let (f, k) = match i {
                0..20 => ((b & c) | (!b & d), 0x5a82_7999),
                20..40 => (b ^ c ^ d, 0x6ed9_eba1),
                40..60 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6u32),
            };
            let next = a.rotate_left(5).wrapping_add(f).wrapping_add(e).wrapping_add(k).wrapping_add(w);
            (a, b, c, d, e) = (next, a, b.rotate_left(30), c, d);
        }
        for (state, value) in self.0.iter_mut().zip([a, b, c, d, e]) {
            *state = state.wrapping_add(value);
        }
    }

    fn words(&self) -> &[u32] {
        &self.0
    }
}

/// The first 32 bits of the fractional parts of the cube roots of the first 64 primes.
const K: [u32; 64] = [
    0x428a_2f98,
    0x7137_4491,
    0xb5c0_fbcf,
    0xe9b5_dba5,
    0x3956_c25b,
    0x59f1_11f1,
    0x923f_82a4,
    0xab1c_5ed5,
    0xd807_aa98,
    0x1283_5b01,
    0x2431_85be,
    0x550c_7dc3,
    0x72be_5d74,
    0x80de_b1fe,
    0x9bdc_06a7,
    0xc19b_f174,
    0xe49b_69c1,
    0xefbe_4786,
    0x0fc1_9dc6,
    0x240c_a1cc,
    0x2de9_2c6f,
    0x4a74_84aa,
    0x5cb0_a9dc,
    0x76f9_88da,
    0x983e_5152,
    0xa831_c66d,
    0xb003_27c8,
    0xbf59_7fc7,
    0xc6e0_0bf3,
    0xd5a7_9147,
    0x06ca_6351,
    0x1429_2967,
    0x27b7_0a85,
    0x2e1b_2138,
    0x4d2c_6dfc,
    0x5338_0d13,
    0x650a_7354,
    0x766a_0abb,
    0x81c2_c92e,
    0x9272_2c85,
    0xa2bf_e8a1,
    0xa81a_664b,
    0xc24b_8b70,
    0xc76c_51a3,
    0xd192_e819,
    0xd699_0624,
    0xf40e_3585,
    0x106a_a070,
    0x19a4_c116,
    0x1e37_6c08,
    0x2748_774c,
    0x34b0_bcb5,
    0x391c_0cb3,
    0x4ed8_aa4a,
    0x5b9c_ca4f,
    0x682e_6ff3,
    0x748f_82ee,
    0x78a5_636f,
    0x84c8_7814,
    0x8cc7_0208,
    0x90be_fffa,
    0xa450_6ceb,
    0xbef9_a3f7,
    0xc671_78f2,
];

impl Compress for Sha256 {
    const START: Self = Self([
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19,
    ]);

    fn block(&mut self, block: &[u8; BLOCK]) {
        let mut w = [0u32; 64];
        for (i, slot) in w.iter_mut().enumerate().take(16) {
            *slot = word(block, i);
        }
        for i in 16..64 {
            let (x, y) = (w[i - 15], w[i - 2]);
            let s0 = x.rotate_right(7) ^ x.rotate_right(18) ^ (x >> 3);
            let s1 = y.rotate_right(17) ^ y.rotate_right(19) ^ (y >> 10);
            w[i] = w[i - 16].wrapping_add(s0).wrapping_add(w[i - 7]).wrapping_add(s1);
        }
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = self.0;
        for (&w, &k) in w.iter().zip(&K) {
            let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
            let choice = (e & f) ^ (!e & g);
            let first = h.wrapping_add(s1).wrapping_add(choice).wrapping_add(k).wrapping_add(w);
            let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
            let majority = (a & b) ^ (a & c) ^ (b & c);
            let second = s0.wrapping_add(majority);
            (h, g, f, e) = (g, f, e, d.wrapping_add(first));
            (d, c, b, a) = (c, b, a, first.wrapping_add(second));
        }
        for (state, value) in self.0.iter_mut().zip([a, b, c, d, e, f, g, h]) {
            *state = state.wrapping_add(value);
        }
    }

    fn words(&self) -> &[u32] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex<C: Compress>(parts: &[&[u8]]) -> String {
        let mut digest = Digest::<C>::new();
        for part in parts {
            digest.update(part);
        }
        digest.finish()
    }

    /// The examples of FIPS 180-4, and its million of `a`.
    #[test]
    fn the_published_examples() {
        let two_blocks = b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
        let million = vec![b'a'; 1_000_000];
        for (text, sha1, sha256) in [
            (
                &b""[..],
                "da39a3ee5e6b4b0d3255bfef95601890afd80709",
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            ),
            (
                b"abc",
                "a9993e364706816aba3e25717850c26c9cd0d89d",
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            (
                two_blocks,
                "84983e441c3bd26ebaae4aa1f95129e5e54670f1",
                "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
            ),
            (
                &million,
                "34aa973cd4c4daa4f61eeb2bdbad27316534016f",
                "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
            ),
        ] {
            assert_eq!(hex::<Sha1>(&[text]), sha1);
            assert_eq!(hex::<Sha256>(&[text]), sha256);
        }
    }

    #[test]
    fn pieces_make_the_same_digest_as_the_whole() {
        let data: Vec<u8> = (0..300u32).map(|i| (i * 7 % 251) as u8).collect();
        for length in [0, 1, 55, 56, 63, 64, 65, 119, 128, 300] {
            let whole = (hex::<Sha1>(&[&data[..length]]), hex::<Sha256>(&[&data[..length]]));
            for cut in [0, 1, 63, 64, 100] {
                let (a, b) = data[..length].split_at(cut.min(length));
                assert_eq!(
                    (hex::<Sha1>(&[a, b]), hex::<Sha256>(&[a, b])),
                    whole,
                    "{length} bytes cut at {cut}"
                );
            }
        }
    }
}
