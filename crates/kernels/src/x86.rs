//! The instruction sets of x86-64.

// An intrinsic's name says where it comes from.
#![allow(clippy::wildcard_imports)]

mod avx2;
mod avx2_tile;
mod avx512;
mod avx512_tile;

pub(crate) use avx2::Avx2;
pub(crate) use avx512::Avx512Vnni;
