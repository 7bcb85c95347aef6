//! Purges: what one hits, its place in the one purge log, and what is kept of it. Pure.
//!
//! Nothing is searched when a purge comes. Each [`Scope`] remembers the last place in the log that hit
//! it, and an object is good if its `as_of` (the place up to which it is known to be newer) is not
//! before that of any scope that covers it. What is remembered only ever grows: a record may come twice,
//! late, or in another order, and the result is the same.
//!
//! A [`Record`] names its scopes as somebody wrote them. [`scope`] makes of it a [`Step`], whose scopes are
//! hashes of what objects are named by; the [`Table`] keeps these. [`spoken`] is how others ask for purges.

pub mod scope;
pub mod spoken;
pub mod table;
#[cfg(test)]
mod tests;

pub use self::{
    scope::{Mark, Named, Naming, Step},
    table::{Hit, Object, Passage, Table, Verdict},
};

use serde::{Deserialize, Serialize};

/// Most scopes of one purge.
pub const SCOPES_MAX: usize = 1_000;
/// Longest text of a scope, in bytes.
pub const SCOPE_BYTES_MAX: usize = 2_048;

/// The fields of an origin's answer that give it tags: each that a request [as others send it](spoken) may name.
pub const TAG_FIELDS: [&str; 8] = [
    "surrogate-key",
    "cache-tag",
    "xkey",
    "x-magento-tags",
    "x-cache-tags",
    "x-cache-tag",
    "cache-tags",
    "purge-cache-tags",
];

/// A place in the purge log. Ordered: all of a later log comes after all of an earlier one.
///
/// A log has a number of its own because a control plane that lost its data begins with 1 again, and
/// nodes that know better must not take that for what they have applied long ago.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Position {
    /// Which log: when it was begun, in Unix milliseconds. 0: none.
    pub log: u64,
    /// The number within it: 0 before its first record.
    pub seq: u64,
}

/// What a purge hits within its site.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// One URL with all its variants: `//host/path?query`, or `/path?query` on every host of the site.
    Url(String),
    /// What begins with it: `//host/path`, or `/path` on every host of the site.
    Prefix(String),
    /// What the origin gave this tag, in one of the [`TAG_FIELDS`].
    Tag(String),
    /// All of the site.
    All,
}

/// An invalidation, as somebody asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purge {
    /// The site's name.
    pub site: String,
    /// What it hits; at least one, at most [`SCOPES_MAX`].
    pub scopes: Vec<Scope>,
    /// Only stale from now on, not gone: it may be validated, and used where stale answers may.
    #[serde(default)]
    pub soft: bool,
}

/// A purge that has its place in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its place. Numbers grow, but not by one.
    pub at: Position,
    /// The number of the record before it in the same log, 0 for the first: who has applied that one
    /// lacks nothing.
    pub prev: u64,
    /// What was asked for.
    pub purge: Purge,
    /// When the control plane took it, in Unix milliseconds.
    pub taken_at: u64,
    /// Who asked for it: a token's name, a node, `loopback`.
    pub by: String,
}
