//! `GET /v1/peers?node=ID&limit=K`: the ranked peers of one node.

use std::sync::Arc;

use axum::{
    extract::{Query, State, rejection::QueryRejection},
    http::Uri,
    response::Response,
};
use cluster::{node::NodeId, wire::PeersAnswer};

use super::{App, Asked, json};
use crate::{error::ApiError, rank};

/// How long a ranking may be used. Places do not move; load does, but edges hear of it by gossip.
const TTL_S: u64 = 30;

/// Answers with the peers of one node, best first, and a MAC.
pub(super) async fn ranked(
    State(app): State<Arc<App>>,
    uri: Uri,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, ApiError> {
    let asked = Asked::read("node", query)?;
    let id: NodeId = asked
        .whom
        .parse()
        .map_err(|e| ApiError::parameter("node", e))?;
    let atlas = app.atlas();
    let me = atlas
        .seat(&id)
        .ok_or_else(|| ApiError::not_found(format!("no node {id} is alive")))?;
    let answer = PeersAnswer {
        peers: rank::peers_for(&me, atlas.seats(), asked.limit),
        node: id,
        generated_at: app.clock.unix_ms(),
        ttl_s: TTL_S,
    };
    Ok(app.signed(&uri, json(&answer)))
}
