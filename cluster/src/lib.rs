//! The facts every node must agree on: who is in the cluster, where everybody is, what a site is,
//! and how nodes speak to each other. No HTTP server and no disk live here.
//!
//! Modules in reading order:
//!
//! - [`node`] and [`view`]: one node as the others see it, and an immutable snapshot of all of them;
//! - [`placement`]: which nodes are the homes of a key;
//! - [`membership`]: chitchat underneath, a `watch` of views above; [`seal`] is what its datagrams
//!   look like on the wire;
//! - [`secret`] and [`auth`]: the cluster's secret, and how a request between nodes proves that its
//!   sender knows it;
//! - [`site`]: what is served, from where, under which rules;
//! - [`purge`]: what an invalidation hits, and its place in the log;
//! - [`path`]: paths without dot segments; [`key`]: the name of an object; [`manifest`]: an object without its bytes; [`digest`]: a node's compact summary of what it holds;
//! - [`geo`]: points, distances and address databases; [`network`]: blocks of addresses;
//! - [`coordinates`]: where a node is by round trips; [`proximity`]: what asking another one costs;
//! - [`wire`]: paths, header fields and bodies that nodes exchange;
//! - [`net`], [`clock`]: the world as a parameter, so that a simulation can stand in for it;
//! - [`settings`], [`quantity`], [`process`]: how every process of the project is configured, and
//!   how it is born and dies.
//!
//! **Invariant:** nothing here knows of caches, of HTTP servers or of files other than
//! configuration, secrets and geo databases.

pub mod auth;
pub mod clock;
pub mod coordinates;
pub mod digest;
pub mod geo;
pub mod key;
pub mod manifest;
pub mod membership;
pub mod net;
pub mod network;
pub mod node;
pub mod path;
pub mod placement;
pub mod process;
pub mod proximity;
pub mod purge;
pub mod quantity;
pub mod seal;
pub mod secret;
pub mod settings;
pub mod site;
pub mod view;
pub mod wire;
