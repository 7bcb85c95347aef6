//! The cluster in simulated time: what holds whatever the network does.

#[cfg(test)]
mod homes;
#[cfg(test)]
mod membership;
#[cfg(test)]
mod nodes;
#[cfg(test)]
mod purges;
#[cfg(test)]
mod tables;
