//! Instruction sets: found once, carried as proof, chosen by the user or by the machine.

use std::fmt;
use std::sync::OnceLock;

use thiserror::Error;

#[cfg(target_arch = "aarch64")]
use crate::aarch64::{Neon, NeonDotprod};
use crate::scalar::Scalar;
use crate::simd::Kernel;
#[cfg(target_arch = "x86_64")]
use crate::x86::{Avx2, Avx512, AvxVnni};

/// The environment variable that overrides [`Isa::best`] in [`Isa::active`].
const VARIABLE: &str = "ZEROPOINT_ISA";

/// Every name that [`Isa::from_name`] knows on some machine.
const NAMES: [&str; 7] = ["scalar", "avx2", "avxvnni", "avx512vnni", "avx512bf16", "neon", "neon-dotprod"];

/// Proof that the machine has an instruction set.
///
/// | name | what it needs |
/// |---|---|
/// | `scalar` | nothing: plain Rust, compiled for the target's baseline |
/// | `avx2` | AVX2 and FMA |
/// | `avxvnni` | AVX2, FMA and VNNI on 256 bits: AVX-VNNI, or AVX-512 VNNI with VL |
/// | `avx512vnni` | AVX-512 F, BW, DQ, VL and VNNI |
/// | `avx512bf16` | the same and BF16 |
/// | `neon` | 64-bit Arm with NEON, little-endian |
/// | `neon-dotprod` | the same and the dot product instructions (`FEAT_DotProd`) |
///
/// Every function of this crate gives the same bits on each of them, but for what [`attend`](crate::attend) says of bfloat16.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(AvxVnni),
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512<false>),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512<true>),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    #[cfg(target_arch = "aarch64")]
    NeonDotprod(NeonDotprod),
}

/// Why a name gives no instruction set.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IsaError {
    /// No instruction set has this name.
    #[error("`{name}` is not an instruction set: use one of {}, or leave it out to take the best", NAMES.join(", "))]
    Unknown {
        /// The name as given.
        name: String,
    },
    /// The name is right, but this machine lacks the instruction set.
    #[error("this machine does not have `{name}`: use one of {available}, or leave it out to take the best")]
    Missing {
        /// The name as given.
        name: String,
        /// The names that would be accepted here.
        available: String,
    },
}

impl Isa {
    /// Plain Rust, on every machine.
    pub const SCALAR: Self = Self(Kind::Scalar);

    /// The instruction sets of this machine, scalar first, the best last.
    pub fn available() -> Vec<Self> {
        let kinds = [
            Some(Kind::Scalar),
            #[cfg(target_arch = "x86_64")]
            Avx2::detect().map(Kind::Avx2),
            #[cfg(target_arch = "x86_64")]
            AvxVnni::detect().map(Kind::AvxVnni),
            #[cfg(target_arch = "x86_64")]
            Avx512::detect().map(Kind::Avx512Vnni),
            #[cfg(target_arch = "x86_64")]
            Avx512::detect().map(Kind::Avx512Bf16),
            #[cfg(target_arch = "aarch64")]
            Neon::detect().map(Kind::Neon),
            #[cfg(target_arch = "aarch64")]
            NeonDotprod::detect().map(Kind::NeonDotprod),
        ];
        kinds.into_iter().flatten().map(Self).collect()
    }

    /// The fastest instruction set of this machine.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::SCALAR)
    }

    /// The instruction set called `name`, if this machine has it.
    pub fn from_name(name: &str) -> Result<Self, IsaError> {
        let available = Self::available();
        match available.iter().find(|isa| isa.name() == name) {
            Some(isa) => Ok(*isa),
            None if NAMES.contains(&name) => Err(IsaError::Missing {
                name: name.to_owned(),
                available: available.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "),
            }),
            None => Err(IsaError::Unknown { name: name.to_owned() }),
        }
    }

    /// What the environment variable `ZEROPOINT_ISA` names, or [`Isa::best`] where it is unset or empty. Read once per
    /// process.
    pub fn active() -> Result<Self, IsaError> {
        static ACTIVE: OnceLock<Result<Isa, IsaError>> = OnceLock::new();
        let choose = || match std::env::var_os(VARIABLE) {
            Some(name) if !name.is_empty() => Self::from_name(&name.to_string_lossy()),
            _ => Ok(Self::best()),
        };
        ACTIVE.get_or_init(choose).clone()
    }

    /// Its name in the table above.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni(_) => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni(_) => "avx512vnni",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Bf16(_) => "avx512bf16",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(_) => "neon",
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDotprod(_) => "neon-dotprod",
        }
    }

    /// Runs `kernel`, compiled for this instruction set. Of sets that differ in the integer product alone, the first stands for
    /// both where the kernel has none.
    // Not to be inlined: every caller would get a copy of the scalar version.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Kind::Scalar => kernel.run(Scalar),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(token) => token.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni(token) if !K::USES_PRODUCT => token.without_product().run(kernel),
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni(token) => token.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni(token) => token.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Bf16(token) => token.run(kernel),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(token) => token.run(kernel),
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDotprod(token) if !K::USES_PRODUCT => token.without_product().run(kernel),
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDotprod(token) => token.run(kernel),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Isa({})", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_available_set_is_found_by_its_name() {
        let available = Isa::available();
        assert_eq!(available[0], Isa::SCALAR);
        assert_eq!(available.last(), Some(&Isa::best()));
        for isa in available {
            assert_eq!(Isa::from_name(&isa.to_string()), Ok(isa));
        }
    }

    #[test]
    fn a_refused_name_is_answered_with_those_that_work() {
        let message = Isa::from_name("sse9").unwrap_err().to_string();
        assert_eq!(
            message,
            "`sse9` is not an instruction set: use one of scalar, avx2, avxvnni, avx512vnni, avx512bf16, neon, \
             neon-dotprod, or leave it out to take the best"
        );
        let missing = IsaError::Missing { name: "avx2".into(), available: "scalar".into() };
        assert_eq!(
            missing.to_string(),
            "this machine does not have `avx2`: use one of scalar, or leave it out to take the best"
        );
        for name in NAMES {
            match Isa::from_name(name) {
                Ok(isa) => assert_eq!(isa.name(), name),
                Err(error) => assert!(matches!(error, IsaError::Missing { .. }), "{error}"),
            }
        }
    }
}
