//! Choosing by round trips against a real matrix, and whole clusters on it in virtual time.

#[cfg(test)]
mod choosing;
#[cfg(test)]
mod running;
