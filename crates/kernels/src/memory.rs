//! Memory that is used again and begins at a cache line.

use std::ops::Deref;

/// Bytes of a cache line, and of the widest vector.
const LINE: usize = 64;

/// Numbers that begin at a cache line, so that no vector of whole lines crosses one.
///
/// It grows to the largest use and keeps its memory. Dereferences to all of it.
#[derive(Debug, Clone, Default)]
pub struct AlignedMemory<T> {
    memory: Vec<T>,
}

impl<T: Copy + Default> AlignedMemory<T> {
    /// The first `len` numbers, whatever they hold.
    pub fn room(&mut self, len: usize) -> &mut [T] {
        let surplus = (LINE / size_of::<T>().max(1)).max(1);
        if self.memory.len() < len + surplus {
            // Nothing of the old is wanted: growing in place would copy it.
            self.memory.clear();
            self.memory.resize(len + surplus, T::default());
        }
        let start = self.start();
        &mut self.memory[start..start + len]
    }

    /// The first `len` numbers as they are; those that were not there before are zeros. Memory grows by half at least, so that
    /// growing number by number copies each a few times.
    pub fn kept(&mut self, len: usize) -> &mut [T] {
        let surplus = (LINE / size_of::<T>().max(1)).max(1);
        if self.memory.len() < len + surplus {
            let old = std::mem::take(&mut self.memory);
            let first = Self { memory: old };
            let kept: &[T] = &first;
            self.memory = vec![T::default(); len.max(kept.len() + kept.len() / 2) + surplus];
            let start = self.start();
            let kept = &kept[..kept.len().min(self.memory.len() - start)];
            self.memory[start..start + kept.len()].copy_from_slice(kept);
        }
        let start = self.start();
        &mut self.memory[start..start + len]
    }
}

impl<T> AlignedMemory<T> {
    /// Index of the first number at a cache line.
    fn start(&self) -> usize {
        let start = self.memory.as_ptr().align_offset(LINE);
        // A type whose size does not divide the line may have no such number; then nothing is aligned.
        if start <= self.memory.len() && start < LINE { start } else { 0 }
    }
}

impl<T> Deref for AlignedMemory<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.memory[self.start()..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_begin_at_a_line_and_are_kept() {
        let mut memory = AlignedMemory::<f32>::default();
        assert!(memory.is_empty());
        for len in [0, 1, 17, 1000, 3] {
            let room = memory.room(len);
            assert_eq!(room.len(), len);
            assert_eq!(room.as_ptr().addr() % LINE, 0, "{len}");
            room.fill(len as f32);
            assert!(memory[..len].iter().all(|&value| value == len as f32));
        }
        for len in 1..5000 {
            memory.kept(len)[len - 1] = len as f32;
        }
        assert!(memory[..4999].iter().enumerate().skip(1000).all(|(i, value)| *value == (i + 1) as f32));
        let before = memory.as_ptr();
        memory.room(1000);
        assert_eq!(memory.as_ptr(), before, "what is large enough stays");
        let mut bytes = AlignedMemory::<i8>::default();
        assert_eq!(bytes.room(5).as_ptr().addr() % LINE, 0);
    }
}
