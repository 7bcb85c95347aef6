//! The cluster in simulated time: what holds whatever the network does.

mod membership;
mod nodes;
