//! What the edge allocates, counted exactly; a program of its own, for it has an allocator of its own.
//!
//! The edge runs on one runtime thread, and the counting allocator counts by thread. The client is
//! another thread with a blocking socket, so nothing that is its own is counted, and nothing has to be
//! subtracted. What the edge does by the clock (gauges, digests) may fall into one batch of requests, but
//! not into every one: one batch within the budget shows that they keep to it.

#[cfg(test)]
mod hits;
#[cfg(test)]
mod measuring;
#[cfg(test)]
mod misses;
