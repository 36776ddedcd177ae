//! The atomics of memory that several threads share, and the pointer that publishes a table: those
//! of the standard library and of arc-swap.
//!
//! `RUSTFLAGS="--cfg holdfast_loom"` replaces them by those of [loom], which runs a model in every
//! order of its threads' steps and with every value that a load may return (docs/SECURITY.md,
//! "Models"). What is not modelled uses the standard library directly.
//!
//! [loom]: https://docs.rs/loom

#[cfg(not(holdfast_loom))]
pub use std::{
    hint::spin_loop,
    sync::atomic::{AtomicU64, Ordering, fence},
};

#[cfg(not(holdfast_loom))]
pub use arc_swap::{ArcSwap, Cache};

#[cfg(all(test, holdfast_loom))]
pub(crate) use self::modelled::check;
#[cfg(holdfast_loom)]
pub use self::modelled::{ArcSwap, AtomicU64, Cache};
#[cfg(holdfast_loom)]
pub use loom::{
    hint::spin_loop,
    sync::atomic::{Ordering, fence},
};

#[cfg(holdfast_loom)]
mod modelled {
    use std::mem;
    use std::ops::Deref;
    use std::sync::{Arc, PoisonError};

    use loom::sync::atomic::{self, Ordering, fence};
    use loom::sync::{Mutex, MutexGuard};

    /// loom's atomic, with what loom lacks:
    ///
    /// - Sequentially consistent accesses. loom has only fences of that kind, and takes `SeqCst` of
    ///   an access for `AcqRel`. A fence before each such access puts them into one order.
    /// - No store between the two halves of a read-modify-write. loom leaves open which of two
    ///   threads' writes is the later one, also if one of them has replaced the value that was there
    ///   before the other. A store is therefore a swap: writes are in the order of their execution,
    ///   of which loom tries every one. A reader is so synchronized with the writes before the store,
    ///   too, on which nothing here relies.
    #[derive(Debug, Default)]
    pub struct AtomicU64(atomic::AtomicU64);

    /// Returns `order`, or `access` behind a fence in place of `SeqCst`.
    fn behind_fence(order: Ordering, access: Ordering) -> Ordering {
        if order == Ordering::SeqCst {
            fence(Ordering::SeqCst);
            return access;
        }
        order
    }

    #[expect(missing_docs, reason = "the functions of std::sync::atomic::AtomicU64")]
    impl AtomicU64 {
        #[track_caller]
        pub fn new(value: u64) -> Self {
            Self(atomic::AtomicU64::new(value))
        }

        #[track_caller]
        pub fn load(&self, order: Ordering) -> u64 {
            self.0.load(behind_fence(order, Ordering::Acquire))
        }

        #[track_caller]
        pub fn store(&self, value: u64, order: Ordering) {
            self.0.swap(value, behind_fence(order, Ordering::Release));
        }

        #[track_caller]
        pub fn swap(&self, value: u64, order: Ordering) -> u64 {
            self.0.swap(value, behind_fence(order, Ordering::AcqRel))
        }

        #[track_caller]
        pub fn compare_exchange(
            &self,
            old: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            self.0.compare_exchange(old, new, behind_fence(success, Ordering::AcqRel), failure)
        }

        /// Never fails without a reason: loom has no such failures.
        #[track_caller]
        pub fn compare_exchange_weak(
            &self,
            old: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            self.compare_exchange(old, new, success, failure)
        }

        #[track_caller]
        pub fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
            self.0.fetch_add(value, behind_fence(order, Ordering::AcqRel))
        }

        #[track_caller]
        pub fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
            self.0.fetch_or(value, behind_fence(order, Ordering::AcqRel))
        }

        #[track_caller]
        pub fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
            self.0.fetch_and(value, behind_fence(order, Ordering::AcqRel))
        }
    }

    /// Stands in for `arc_swap::ArcSwap`, which loom cannot look into: a value behind a lock.
    #[derive(Debug)]
    pub struct ArcSwap<T> {
        swaps: AtomicU64,
        current: Mutex<Arc<T>>,
    }

    #[expect(missing_docs, reason = "the functions of arc_swap::ArcSwap")]
    impl<T> ArcSwap<T> {
        pub fn from_pointee(value: T) -> Self {
            Self { swaps: AtomicU64::new(0), current: Mutex::new(Arc::new(value)) }
        }

        pub fn load_full(&self) -> Arc<T> {
            Arc::clone(&self.lock())
        }

        pub fn swap(&self, new: Arc<T>) -> Arc<T> {
            let mut current = self.lock();
            self.swaps.fetch_add(1, Ordering::Relaxed);
            mem::replace(&mut current, new)
        }

        fn lock(&self) -> MutexGuard<'_, Arc<T>> {
            self.current.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// Stands in for `arc_swap::Cache`, which compares the pointer by a relaxed load: a load may
    /// return an old value for a while.
    #[derive(Debug, Clone)]
    pub struct Cache<A, T> {
        shared: A,
        swaps: u64,
        cached: T,
    }

    #[expect(missing_docs, reason = "the functions of arc_swap::Cache")]
    impl<A: Deref<Target = ArcSwap<T>>, T> Cache<A, Arc<T>> {
        pub fn new(shared: A) -> Self {
            let (swaps, cached) = (shared.swaps.load(Ordering::Relaxed), shared.load_full());
            Self { shared, swaps, cached }
        }

        /// # Panics
        /// When the value that is replaced would be freed here: its publisher frees it.
        pub fn load(&mut self) -> &Arc<T> {
            let swaps = self.shared.swaps.load(Ordering::Relaxed);
            if swaps != self.swaps {
                self.swaps = swaps;
                let new = self.shared.load_full();
                let old = mem::replace(&mut self.cached, new);
                assert!(Arc::strong_count(&old) > 1, "a reader frees the value");
            }
            &self.cached
        }
    }

    /// Runs a model in every order of its threads' steps with at most `preemptions` switches away
    /// from a thread that could go on; prints the number of runs.
    #[cfg(test)]
    pub(crate) fn check<F: Fn() + Send + Sync + 'static>(preemptions: usize, model: F) {
        use std::sync::atomic::AtomicU64;
        use std::time::Instant;

        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        // Steps of one run: those before the threads begin count, too.
        builder.max_branches = 50_000;
        let (runs, begin) = (Arc::new(AtomicU64::new(0)), Instant::now());
        let (counted, model) = (Arc::clone(&runs), Arc::new(model));
        builder.check(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            let model = Arc::clone(&model);
            // A thread of its own: loom gives the first one 32 KiB of stack, too little for the
            // functions that make a table.
            let thread = loom::thread::Builder::new().stack_size(STACK_WORDS);
            let run = thread.spawn(move || model()).map(|thread| thread.join());
            assert!(matches!(run, Ok(Ok(()))), "the model ends");
        });
        // The closure's name is the test's.
        let name = std::any::type_name::<F>().trim_end_matches("::{{closure}}");
        let seconds = begin.elapsed().as_secs_f64();
        println!("model {name}: {} runs, {seconds:.1} s", runs.load(Ordering::Relaxed));
    }

    /// Stack of a model's first thread, in words.
    #[cfg(test)]
    const STACK_WORDS: usize = 32 << 10;
}
