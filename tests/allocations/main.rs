//! What the edge allocates, counted exactly; a program of its own, for it has an allocator of its own.

#[cfg(test)]
mod hits;
