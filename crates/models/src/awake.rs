//! Threads that stay awake between the parts of a short piece of work.

use std::cell::Cell;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::Yield;

/// How often in a row a helper may find nothing to do before it goes back to sleep: a few milliseconds. So a piece of work that
/// takes long by itself does not keep a processor busy for nothing, and no wait for a helper can last.
const PATIENCE: usize = 1 << 14;

thread_local! {
    /// Whether this thread is the one that does the work, or waits within it.
    static WORKING: Cell<bool> = const { Cell::new(false) };
}

/// Ends the helpers, however the work ends.
struct Done<'a>(&'a AtomicBool, bool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
        WORKING.set(self.1);
    }
}

/// Does `work` in the pool of this thread, whose other threads look for parts of it until it is done.
///
/// Work of a few milliseconds with hundreds of parallel parts, as a decoder's step is, would otherwise wait again and again for
/// threads to wake up.
pub(crate) fn awake<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    if rayon::current_num_threads() == 1 {
        return work();
    }
    let done = AtomicBool::new(false);
    rayon::scope(|scope| {
        let _done = Done(&done, WORKING.replace(true));
        scope.spawn_broadcast(|_, _| help(&done));
        work()
    })
}

fn help(done: &AtomicBool) {
    let mut idle = 0;
    while !WORKING.get() && !done.load(Ordering::Acquire) && idle < PATIENCE {
        if matches!(rayon::yield_now(), Some(Yield::Executed)) {
            idle = 0;
        } else {
            idle += 1;
            spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    fn sum(parts: usize) -> usize {
        (0..parts)
            .into_par_iter()
            .with_max_len(1)
            .map(|i| (0..50).into_par_iter().map(|j| i * j).sum::<usize>())
            .sum()
    }

    #[test]
    fn work_is_done_alone_within_other_work_and_at_once_with_it() {
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let expected = sum(40);
            for _ in 0..50 {
                assert_eq!(pool.install(|| awake(|| sum(40))), expected);
                assert_eq!(pool.install(|| awake(|| awake(|| sum(40)))), expected);
                let many = || (0..8).into_par_iter().map(|_| awake(|| sum(40))).collect::<Vec<_>>();
                assert_eq!(pool.install(many), vec![expected; 8]);
            }
        }
        assert_eq!(awake(|| sum(3)), sum(3), "from outside of a pool");
    }

    #[test]
    fn helpers_end_with_work_that_panics() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let panics = || pool.install(|| awake(|| assert_eq!(sum(2), 7, "it is not")));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
        assert_eq!(pool.install(|| awake(|| sum(9))), sum(9));
    }
}
