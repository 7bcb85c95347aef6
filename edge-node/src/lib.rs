//! An edge node: an HTTP cache that asks its peers before the origin.
//!
//! # The journey of one request
//!
//! [`serve`] accepts a connection and bounds it. [`proxy`] turns the request into a cache key and
//! asks the [`cache`] once; the answer is one enum, [`cache::Lookup`], and `proxy` one match on it.
//! What is missing is fetched by a task of its own: from the best-ranked holder that the
//! [`upstream`]'s digests name, else from the origin. Client and fetch meet in an
//! [entry](cache::entry::Entry), whose body may still be growing; [`deliver`] decides what part of
//! it this request gets, and [`payload`] sends it and counts. What the site's owner has to say in all
//! of this is compiled into a [`ruling`], one for each of the [`sites`].
//!
//! What is stored is judged by the [`purges`] before it goes out.
//!
//! [`hold`] answers other edges, from storage only; [`warm`] begins journeys that nobody waits for, ahead
//! of demand; [`offering`] tells a region's other nodes what is hot there, by the [`demand`]. [`admin`] answers the operator. [`workers`] tell
//! the cluster how this node is and follow the site registry. [`edge`] puts all of it together.
//!
//! **Invariant:** arrows point one way: `main → edge → {serve, admin, hold, workers} → proxy →
//! {cache, upstream, deliver} → cluster`. `cache` and `upstream` never know each other.

pub mod admin;
mod alarm;
pub mod cache;
pub mod config;
pub mod deliver;
pub mod demand;
pub mod edge;
pub mod error;
pub mod forward;
pub mod hold;
pub mod metrics;
pub mod offering;
pub mod payload;
pub mod proxy;
pub mod purges;
pub mod ruling;
pub mod serve;
pub mod sites;
pub mod upstream;
pub mod warm;
pub mod workers;
