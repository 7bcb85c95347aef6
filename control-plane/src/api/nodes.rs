//! `GET /v1/nodes`: everybody, the living first.

use std::sync::Arc;

use axum::{Json, extract::State};
use cluster::wire::NodesAnswer;

use super::App;

/// Answers with everybody.
pub(super) async fn all(State(app): State<Arc<App>>) -> Json<NodesAnswer> {
    Json(NodesAnswer {
        nodes: app.atlas().statuses(),
        clocks_off: app.clocks.off(app.clock.unix_ms()),
    })
}
