//! The control plane: it knows where every node is, ranks peers for edges, steers clients to the
//! nearest edge, and hands out sites. Edges go on without it.
//!
//! What happens, in reading order:
//!
//! - [`config`]: what the operator wrote, checked once;
//! - [`control`]: the composition root: joins the gossip as an observer, opens the listeners, ends
//!   in reverse order;
//! - [`atlas`]: a snapshot of everybody and where they are, made anew whenever gossip tells
//!   something; [`places`] turns addresses into places,
//!   by the operator's networks and an address database;
//! - [`rank`] (pure): which peer or edge comes first, and why; [`steer`] (pure): where a client's
//!   request is sent;
//! - [`store`]: the transactional map in which a control plane keeps what it answers for; [`tls`]: how it and the
//!   commands are believed, and believe;
//! - [`sites`]: the site registry: its versions, who made them, and what may be; [`nudge`] tells the edges
//!   of a new one;
//! - [`tokens`] (pure): bearer tokens, their secrets and their roles; [`access`] (pure): who asks, and what
//!   that lets them do; [`keyring`]: the tokens of the cluster, in the store;
//! - [`purge_log`]: purges in their order; [`fanout`]: how every edge gets them; [`receipts`]: what became
//!   of each of them at each edge;
//! - [`warm`]: jobs that have edges fetch URLs ahead of demand;
//! - [`api`]: one file per resource; [`serve`]: connections, their limits and their end;
//! - [`cli`]: the operator's commands against a running control plane.
//!
//! **Invariants:** no question waits for the network, a disk or a lock: all are answered from
//! snapshots. What changes something is on disk before it is acknowledged. The control plane knows edges only through gossip and [`cluster::wire`].

pub mod access;
pub mod api;
pub mod atlas;
pub mod cli;
pub mod config;
pub mod control;
pub mod data_dir;
pub mod error;
pub mod fanout;
pub mod keyring;
pub mod metrics;
pub mod nudge;
pub mod places;
pub mod purge_log;
pub mod rank;
pub mod receipts;
pub mod serve;
pub mod sites;
pub mod steer;
pub mod store;
pub mod tls;
pub mod tokens;
pub mod warm;
