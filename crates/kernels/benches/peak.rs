//! What one thread multiplies at most: `vpdpbusd` on registers alone, the roof above every product on AVX-512 VNNI.
//!
//! ```sh
//! cargo bench -p zeropoint-kernels --bench peak
//! ```
//!
//! Rates are operations per second: an instruction multiplies 64 pairs of bytes and adds 64 times, which is 128. The
//! samples are short and many, so that the fastest of them has the core to itself. Ignored where the machine lacks the
//! instruction.

fn main() {
    divan::main();
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{_mm512_dpbusd_epi32, _mm512_set1_epi8, _mm512_setzero_si512};
    use std::hint::black_box;

    use divan::Bencher;
    use divan::counter::ItemsCount;

    /// Sums that do not wait for each other: more than a core has such instructions under way, and few enough that they
    /// and both factors stay in the 32 registers.
    const CHAINS: usize = 24;
    /// Instructions of one chain in a sample.
    const ROUNDS: usize = 4000;

    fn available() -> bool {
        is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni")
    }

    /// `ROUNDS` instructions on each of the chains, none of which the compiler can foresee.
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn multiply() {
        let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(-5)));
        // Each its own: equal chains would be one.
        let mut sums = black_box([_mm512_setzero_si512(); CHAINS]);
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[divan::bench(ignore = !available(), sample_count = 20_000, sample_size = 1)]
    fn vpdpbusd_without_loads(bencher: Bencher<'_, '_>) {
        assert!(available(), "this machine lacks AVX-512 VNNI");
        bencher.counter(ItemsCount::new(2 * 64 * CHAINS * ROUNDS)).bench_local(|| {
            // SAFETY: the machine has both features.
            unsafe { multiply() }
        });
    }
}
