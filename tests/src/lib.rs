//! What the tests and the lab stand on: a real origin that does as it is told, clients that measure,
//! the real binaries as processes, and lines between them that can be made slow or cut.
//!
//! Modules in reading order:
//!
//! - [`region`]: places on Earth, and how long a packet takes between them;
//! - [`pattern`]: bodies of any size that need no storage;
//! - [`origin`]: an HTTP/1.1 origin by script or from a directory;
//! - [`client`] and [`cache_status`]: asks, measures, and reads what the edge says it did;
//! - [`wire`]: connections that a test speaks on byte by byte;
//! - [`proxy`]: a TCP line with delay, limited rate, stalls and cuts;
//! - [`process`] and [`cluster`]: the real binaries, alone and together; [`etcd`]: one that is real;
//! - [`purger`]: a purge log that does as it is told;
//! - [`mirror`]: fetches a whole directory through an edge and compares every byte;
//! - [`schema`]: whether JSON is as a schema says;
//! - [`simulation`]: the network as a simulation;
//! - [`planet`]: many nodes at real sites, in virtual time;
//! - [`hostile`]: what arrives from the network, as functions of arbitrary bytes.

pub mod cache_status;
pub mod client;
pub mod cluster;
pub mod etcd;
pub mod hostile;
pub mod mirror;
pub mod origin;
pub mod pattern;
pub mod planet;
pub mod process;
pub mod proxy;
pub mod purger;
pub mod region;
pub mod schema;
pub mod simulation;
pub mod wire;
