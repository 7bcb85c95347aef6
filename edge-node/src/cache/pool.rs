//! A pool of threads for calls that block: reads of the disk, hashing of what was read.
//!
//! It is separate from tokio's blocking pool so that nothing else can queue ahead of a read, and
//! bounded so that a slow disk is felt by those who wait for it and by nobody's memory.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use tokio::sync::{Semaphore, oneshot};

/// Jobs that may wait per thread. At 0.1 ms a read this is a wait of some 6 ms; whoever finds the
/// queue full waits as a task, which costs no memory of ours.
const QUEUED_PER_THREAD: usize = 64;
/// Most threads of a pool: more would only queue in the kernel.
pub const THREADS_MAX: usize = 256;

/// A clone-able handle on the pool; its threads end when the last handle is dropped.
#[derive(Clone)]
pub struct Pool(Option<Arc<Handle>>);

/// The pool was shut down before the job ran, or the job panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the job was not finished: the pool is closed or the job panicked")]
pub struct PoolClosed;

impl Pool {
    /// A pool of `threads` threads called `name-N`, at most [`THREADS_MAX`]. With 0 threads every
    /// job runs at once on its caller: for simulations, where a second thread would make time
    /// unpredictable.
    ///
    /// # Errors
    ///
    /// The system refused a thread.
    pub fn new(name: &str, threads: usize) -> io::Result<Self> {
        if threads == 0 {
            return Ok(Self(None));
        }
        let threads = threads.min(THREADS_MAX);
        let queue = Arc::new(Queue::default());
        let handle = Handle {
            queue: Arc::clone(&queue),
            room: Arc::new(Semaphore::new(threads * QUEUED_PER_THREAD)),
        };
        for n in 0..threads {
            let queue = Arc::clone(&queue);
            thread::Builder::new()
                .name(format!("{name}-{n}"))
                .spawn(move || queue.work())?;
        }
        Ok(Self(Some(Arc::new(handle))))
    }

    /// Runs `job` on one of the threads and gives back what it returns. Waits while the queue is
    /// full. A caller that stops waiting takes a job back that has not begun.
    pub fn run<T, F>(&self, job: F) -> impl Future<Output = Result<T, PoolClosed>> + Send + 'static
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let handle = self.0.clone();
        async move {
            let Some(handle) = handle else {
                return catch_unwind(AssertUnwindSafe(job)).map_err(|_| PoolClosed);
            };
            let permit = Arc::clone(&handle.room)
                .acquire_owned()
                .await
                .map_err(|_| PoolClosed)?;
            let (reply, answer) = oneshot::channel();
            handle.queue.push(Box::new(move || {
                drop(permit);
                if !reply.is_closed() {
                    // The receiver may have left meanwhile; then nobody wants the answer.
                    let _ = reply.send(job());
                }
            }));
            answer.await.map_err(|_| PoolClosed)
        }
    }
}

struct Handle {
    queue: Arc<Queue>,
    room: Arc<Semaphore>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.wake.notify_all();
    }
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No job runs under this lock, so a poisoned one still guards a whole queue.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, job: Job) {
        self.lock().jobs.push_back(job);
        self.wake.notify_one();
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            // The panic hook has told of it; the caller sees `PoolClosed`; the thread lives on.
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state = self
                .wake
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{atomic::AtomicUsize, atomic::Ordering, mpsc},
        time::Duration,
    };

    use super::*;

    #[tokio::test]
    async fn jobs_run_elsewhere_and_answer() {
        let pool = Pool::new("test", 2).unwrap();
        let here = thread::current().id();
        let there = pool.run(move || thread::current().id()).await.unwrap();
        assert_ne!(here, there);
        let inline = Pool::new("test", 0).unwrap();
        assert_eq!(
            here,
            inline.run(move || thread::current().id()).await.unwrap()
        );
    }

    #[tokio::test]
    async fn a_panicking_job_costs_no_thread() {
        for threads in [0, 1] {
            let pool = Pool::new("test", threads).unwrap();
            for _ in 0..3 {
                assert_eq!(
                    pool.run(|| panic!("on purpose")).await,
                    Err::<(), _>(PoolClosed)
                );
            }
            assert_eq!(pool.run(|| 7).await, Ok(7));
        }
    }

    #[tokio::test]
    async fn the_queue_is_bounded_and_abandoned_jobs_do_not_run() {
        let pool = Pool::new("test", 1).unwrap();
        let (release, held) = mpsc::channel::<()>();
        let (began, begun) = oneshot::channel();
        let blocker = tokio::spawn(pool.run(move || {
            began.send(()).unwrap();
            held.recv().unwrap();
        }));
        begun.await.unwrap();
        let ran = Arc::new(AtomicUsize::new(0));
        let mut waiting: Vec<_> = (0..QUEUED_PER_THREAD + 10)
            .map(|_| {
                let ran = Arc::clone(&ran);
                tokio::spawn(pool.run(move || ran.fetch_add(1, Ordering::SeqCst)))
            })
            .collect();
        // Everybody has asked once; ten find no room.
        while pool.0.as_ref().unwrap().room.available_permits() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(
            pool.0.as_ref().unwrap().queue.lock().jobs.len(),
            QUEUED_PER_THREAD
        );
        let abandoned = waiting.remove(0);
        abandoned.abort();
        let _ = abandoned.await;
        release.send(()).unwrap();
        blocker.await.unwrap().unwrap();
        for job in waiting {
            job.await.unwrap().unwrap();
        }
        assert_eq!(ran.load(Ordering::SeqCst), QUEUED_PER_THREAD + 9);
    }
}
