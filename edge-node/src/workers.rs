//! What goes on beside the requests: each worker has one small job and a name.

pub mod gauges;
pub mod publish;
pub mod sites;
