//! Panics of libraries that are given files from outside.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Calls a library that panics on damaged input where it should return an error, and returns what it panicked with.
///
/// Nothing is printed: the first call puts a hook before the process's panic hook, which sees every panic but those of `f`
/// on the thread of the call. What `f` was changing may be half changed afterwards; the caller must not use it again.
///
/// # Errors
///
/// The message of the panic, in the library's words.
///
/// ```
/// let damaged = zeropoint_core::contain(|| "twelve".parse::<u8>().unwrap());
/// assert!(damaged.unwrap_err().contains("InvalidDigit"));
/// ```
pub fn contain<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let outer = take_hook();
        set_hook(Box::new(move |info| {
            if !CONTAINED.get() {
                outer(info);
            }
        }));
    });
    let before = CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    CONTAINED.set(before);
    result.map_err(|payload| message(payload.as_ref()))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text =
        payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(|s| &**s));
    text.unwrap_or("it panicked").to_owned()
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_panic_is_an_error_and_only_others_reach_the_hook() {
        let seen = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&seen);
        set_hook(Box::new(move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
        }));
        assert_eq!(contain(|| 7), Ok(7));
        assert_eq!(contain(|| panic!("{} of them", 3)), Err::<(), _>("3 of them".to_owned()));
        assert_eq!(contain(|| panic!("plain")), Err::<(), _>("plain".to_owned()));
        let nested = contain(|| {
            contain(|| panic!("inner")).unwrap_or(());
            panic!("outer")
        });
        assert_eq!(nested, Err::<(), _>("outer".to_owned()));
        assert_eq!(seen.load(Ordering::SeqCst), 0);
        assert!(catch_unwind(|| panic!("seen")).is_err());
        assert_eq!(seen.load(Ordering::SeqCst), 1);
    }
}
