//! Memory in large pages: a product with few rows takes as long as reading its weights does, and from pages of 4 KiB a
//! processor reads a quarter slower than from pages of 2 MiB.
//!
//! On Linux memory is asked to lie in large pages (`madvise`), which the system may refuse, and which helps where it has not been
//! written before; elsewhere it is ordinary memory.

use std::alloc::{Layout, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::gemm::Line;

/// Bytes of a large page.
const PAGE: usize = 2 << 20;

/// Bytes of a slab that weights share, most of them smaller than a page.
const SLAB: usize = 32 << 20;

/// An empty vector with room for `capacity` values, in large pages where it holds some and the system has them.
#[must_use]
pub fn with_large_pages<T>(capacity: usize) -> Vec<T> {
    let mut values = Vec::with_capacity(capacity);
    let room = values.spare_capacity_mut();
    ask_for_large_pages(room.as_mut_ptr().cast(), size_of_val(room));
    values
}

/// Asks that the whole pages of some memory be large ones.
#[cfg(target_os = "linux")]
fn ask_for_large_pages(memory: *mut u8, bytes: usize) {
    let before = memory.align_offset(PAGE);
    let whole = bytes.saturating_sub(before) / PAGE * PAGE;
    if whole > 0 {
        // SAFETY: the pages lie within the memory, and the advice changes nothing that it holds. A refusal is not an error.
        let _ = unsafe {
            rustix::mm::madvise(memory.add(before).cast(), whole, rustix::mm::Advice::LinuxHugepage)
        };
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_large_pages(_memory: *mut u8, _bytes: usize) {}

/// Memory that several [`Lines`] have parts of, and begins at a page.
struct Slab {
    memory: NonNull<Line>,
    mapping: Mapping,
}

// SAFETY: a slab gives access to none of its memory: `Lines` do, each to its own part.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

impl Slab {
    fn new(lines: usize) -> Self {
        let bytes = lines.checked_mul(size_of::<Line>()).expect("weights fit into memory");
        let mapping = Mapping::new(bytes);
        let memory = mapping.pages();
        ask_for_large_pages(memory.as_ptr().cast(), bytes);
        Self { memory, mapping }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: the last `Lines` in it is gone, and the slab itself goes.
        unsafe { self.mapping.give_back() };
    }
}

/// Where the memory of a slab comes from: on Linux from the system itself, since what an allocator has handed out before may lie
/// in small pages already.
#[cfg(target_os = "linux")]
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

#[cfg(target_os = "linux")]
impl Mapping {
    /// Of as many bytes and a page, which is at least one.
    fn new(bytes: usize) -> Self {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

        let bytes = bytes.checked_add(PAGE).expect("weights fit into memory");
        // SAFETY: the system chooses the place, so that nothing is mapped there before.
        let start = unsafe {
            mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        };
        let start = start.ok().and_then(|start| NonNull::new(start.cast::<u8>()));
        let Some(start) = start else {
            handle_alloc_error(Layout::from_size_align(bytes, PAGE).expect("a page is a power of two"))
        };
        Self { start, bytes }
    }

    /// Its first page.
    fn pages(&self) -> NonNull<Line> {
        let before = self.start.align_offset(PAGE);
        // SAFETY: less than a page lies before the first one, and the mapping is longer than that.
        unsafe { self.start.add(before) }.cast()
    }

    /// # Safety
    ///
    /// Nothing refers to its memory any more, and nothing will.
    unsafe fn give_back(&self) {
        // SAFETY: the mapping has this place and this length. What cannot be given back stays.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(not(target_os = "linux"))]
struct Mapping {
    start: NonNull<u8>,
    layout: Layout,
}

#[cfg(not(target_os = "linux"))]
impl Mapping {
    fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes.max(1), PAGE).expect("weights fit into memory");
        // SAFETY: the size is not 0.
        let start = unsafe { std::alloc::alloc(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, layout }
    }

    fn pages(&self) -> NonNull<Line> {
        self.start.cast()
    }

    /// # Safety
    ///
    /// Nothing refers to its memory any more, and nothing will.
    unsafe fn give_back(&self) {
        // SAFETY: it was allocated with this layout.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// The slab in which small weights are laid now, and how many of its lines are taken. It lives as long as weights in it do.
static CURRENT: Mutex<(Weak<Slab>, usize)> = Mutex::new((Weak::new(), 0));

/// Lines of packed weights, one after the other in large pages; small ones share a page with others.
pub(crate) struct Lines {
    first: NonNull<Line>,
    len: usize,
    /// Owns the memory; `None` without lines.
    _slab: Option<Arc<Slab>>,
}

// SAFETY: lines are plain numbers that this value alone reaches, as if it owned a vector of them.
unsafe impl Send for Lines {}
// SAFETY: as above.
unsafe impl Sync for Lines {}

impl Lines {
    /// As many copies of `line`.
    pub(crate) fn filled(line: Line, len: usize) -> Self {
        if len == 0 {
            return Self { first: NonNull::dangling(), len, _slab: None };
        }
        let (slab, start) = Self::room(len);
        // SAFETY: `room` gives lines of the slab that no other value has.
        let first = unsafe { slab.memory.add(start) };
        for at in 0..len {
            // SAFETY: as above; the memory is not initialised yet and is written, not read.
            unsafe { first.add(at).write(line) };
        }
        Self { first, len, _slab: Some(slab) }
    }

    /// A slab and the first of `len` lines in it that nothing else has.
    fn room(len: usize) -> (Arc<Slab>, usize) {
        let per_slab = SLAB / size_of::<Line>();
        if len >= per_slab / 2 {
            return (Arc::new(Slab::new(len.next_multiple_of(PAGE / size_of::<Line>()))), 0);
        }
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let (slab, taken) = &mut *current;
        if let Some(slab) = slab.upgrade().filter(|_| *taken + len <= per_slab) {
            *taken += len;
            return (slab, *taken - len);
        }
        let next = Arc::new(Slab::new(per_slab));
        (*slab, *taken) = (Arc::downgrade(&next), len);
        (next, 0)
    }
}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        // SAFETY: `filled` has written so many lines from `first` on, which the slab keeps and nobody else writes.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        // SAFETY: as in `deref`; no other value has these lines.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }
}

impl Clone for Lines {
    fn clone(&self) -> Self {
        let mut copy = Self::filled(Line([0; 64]), self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_apart_from_each_other_while_others_come_and_go() {
        let sizes = [1, 3, 1000, 0, SLAB / 64 - 5, 2, SLAB / 64, 300_000, 7];
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                std::thread::spawn(move || {
                    let mut kept: Vec<(i8, Lines)> = Vec::new();
                    for round in 0..12 {
                        let value = thread * 12 + round;
                        let mut lines = Lines::filled(Line([0; 64]), sizes[round as usize % sizes.len()]);
                        assert!(lines.iter().all(|line| line.0 == [0; 64]));
                        lines.fill(Line([value; 64]));
                        if round % 3 == 1 {
                            kept.remove(0);
                        }
                        kept.push((value, lines));
                        for (value, lines) in &kept {
                            assert!(lines.iter().all(|line| line.0 == [*value; 64]), "{value}");
                        }
                    }
                    kept
                })
            })
            .collect();
        for thread in threads {
            for (value, lines) in thread.join().unwrap() {
                assert!(lines.clone().iter().all(|line| line.0 == [value; 64]), "{value}");
            }
        }
    }

    #[test]
    fn lines_begin_at_a_cache_line_and_large_ones_at_a_page() {
        for (len, alignment) in [(1, 64), (5, 64), (SLAB / 64, PAGE)] {
            assert!(Lines::filled(Line([1; 64]), len).as_ptr().addr().is_multiple_of(alignment), "{len}");
        }
    }

    #[test]
    fn a_vector_has_the_room_that_it_is_asked_for() {
        for capacity in [0, 1, 100, 3 << 20] {
            let mut values = with_large_pages::<f32>(capacity);
            assert!(values.is_empty() && values.capacity() >= capacity);
            values.resize(capacity, 1.5);
            assert!(values.iter().all(|value| *value == 1.5));
        }
    }
}
