//! The cluster on a planet: a discrete simulation over virtual time of up to some thousand nodes at real
//! sites, with the project's own code for what is decided: digests, ranking, selection, health,
//! coordinates, placement.
//!
//! In reading order: [`world`] where everybody is; [`demand`] what clients want; [`plan`] what is simulated;
//! `edge` one node; [`run`] the events; [`outcome`] what came of it; [`report`] tables and plots.
//!
//! **Simplified**: one way of a message is half a round trip; a node sends what is asked of it one byte
//! after the other, each transfer at most as fast as one window per round trip; what a node was sending
//! when it dies arrives, as if the next holder had taken over; gossip and digests reach everybody every
//! two seconds; round trips that others measured are not used.

pub mod demand;
mod edge;
pub mod outcome;
pub mod plan;
pub mod report;
mod run;
pub mod world;

pub use run::run;
