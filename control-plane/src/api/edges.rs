//! `GET /v1/edges?client=IP&limit=K`: the ranked edges for one client.

use std::{net::IpAddr, sync::Arc};

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use cluster::wire::EdgesAnswer;

use super::{App, Asked};
use crate::{error::ApiError, rank, rank::Vantage};

/// Answers with the edges for one client address, best first.
pub(super) async fn ranked(
    State(app): State<Arc<App>>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Json<EdgesAnswer>, ApiError> {
    let asked = Asked::read("client", query)?;
    let client: IpAddr = asked.whom.parse().map_err(|_| {
        let given: String = asked.whom.chars().take(80).collect();
        ApiError::parameter("client", format!("{given:?} is not an IP address"))
    })?;
    let known = app.places.of(client);
    app.metrics.looked_up(known.source());
    let vantage = Vantage {
        point: known.point(),
        region: &known.region,
    };
    let edges = rank::edges_for(vantage, app.atlas().seats(), asked.limit);
    Ok(Json(EdgesAnswer {
        client: client.to_string(),
        location: known.place,
        edges,
    }))
}
