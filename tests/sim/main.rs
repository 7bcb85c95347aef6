//! The cluster in simulated time: what holds whatever the network does.

#[cfg(test)]
#[cfg(test)]
mod membership;
#[cfg(test)]
#[cfg(test)]
mod nodes;
