//! The steering listener: any request for a site's host is sent to the nearest healthy edge.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use axum::{
    Router,
    extract::{ConnectInfo, Request, State},
    http::{
        HeaderMap, HeaderValue, StatusCode, Uri,
        header::{CACHE_CONTROL, HOST, LOCATION, RETRY_AFTER},
        uri::Authority,
    },
    response::{IntoResponse, Response},
};
use tracing::debug;

use super::App;
use crate::{
    rank::{self, Vantage},
    steer::{self, Reason},
};

/// When to ask again while there is no edge: about as long as gossip takes to see a new one.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("3");
/// How many of the ranked edges may take turns.
const CANDIDATES_MAX: usize = 64;

/// Everything on the steering listener.
pub fn router(app: Arc<App>) -> Router {
    Router::new().fallback(steered).with_state(app)
}

async fn steered(
    State(app): State<Arc<App>>,
    ConnectInfo(socket): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let mut answer = answer(&app, socket, &request).unwrap_or_else(|refused| {
        app.metrics.not_steered(refused.label());
        refused.into_response()
    });
    let no_store = HeaderValue::from_static("no-store");
    answer.headers_mut().insert(CACHE_CONTROL, no_store);
    answer
}

fn answer(app: &App, socket: SocketAddr, request: &Request) -> Result<Response, Refused> {
    let host = host_of(request.uri(), request.headers()).ok_or(Refused::BadHost)?;
    let sites = app.sites.now();
    let map = sites.map();
    if map.sites().is_empty() {
        return Err(Refused::NoSites);
    }
    let selected = map.select(host).ok_or(Refused::UnknownHost)?;

    let forwarded_for = request.headers().get_all("x-forwarded-for").iter();
    let forwarded_for = forwarded_for.filter_map(|v| v.to_str().ok());
    let client = steer::client_address(socket.ip(), forwarded_for, &app.trust_forwarded);
    let known = app.places.of(client);
    app.metrics.looked_up(known.source());
    let vantage = Vantage {
        point: known.point(),
        region: &known.region,
    };
    let ranked = rank::edges_for(vantage, app.atlas().seats(), CANDIDATES_MAX);
    let turn = app.turn.fetch_add(1, Ordering::Relaxed);
    let edge = steer::choose(&ranked, turn).ok_or(Refused::NoEdge)?;
    let reason = match edge.distance_km {
        Some(_) => Reason::Nearest,
        None => Reason::Unplaced,
    };

    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let location = steer::location(&edge.http, &selected.host, path);
    let text = format!("see {location}\n");
    let location = HeaderValue::try_from(location).map_err(|_| Refused::BadHost)?;
    app.metrics.steered(&edge.id, reason.as_str());
    debug!(edge = %edge.id, site = selected.site.name, reason = reason.as_str(), "client steered");
    Ok((StatusCode::TEMPORARY_REDIRECT, [(LOCATION, location)], text).into_response())
}

/// The host a request is for: that of its target if it has one, else its only `Host`
/// (RFC 9112 §3.2, §3.2.2).
fn host_of<'a>(uri: &'a Uri, fields: &'a HeaderMap) -> Option<&'a str> {
    let mut hosts = fields.get_all(HOST).iter();
    let field = hosts.next().map(|host| host.to_str().ok());
    if hosts.next().is_some() {
        return None;
    }
    let host = match uri.authority() {
        Some(authority) => authority.as_str(),
        None => field??,
    };
    let authority: Authority = host.parse().ok()?;
    (!authority.host().is_empty() && !host.contains('@')).then_some(host)
}

/// Why a client is sent nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    /// The client's mistake.
    BadHost,
    /// No site has this host.
    UnknownHost,
    /// There is no site at all.
    NoSites,
    /// No edge is ready.
    NoEdge,
}

impl Refused {
    fn label(self) -> &'static str {
        match self {
            Self::BadHost => "bad-host",
            Self::UnknownHost => "unknown-host",
            Self::NoSites => "no-sites",
            Self::NoEdge => "no-edge",
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::BadHost => (
                StatusCode::BAD_REQUEST,
                "the request needs one valid Host\n",
            ),
            Self::UnknownHost => (StatusCode::MISDIRECTED_REQUEST, "no site has this host\n"),
            Self::NoSites => (StatusCode::NOT_FOUND, "there are no sites here\n"),
            Self::NoEdge => {
                let fields = [(RETRY_AFTER, RETRY_AFTER_S)];
                let text = "no edge is ready, try again\n";
                return (StatusCode::SERVICE_UNAVAILABLE, fields, text).into_response();
            }
        };
        (status, text).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_the_targets_else_the_only_field() {
        for (target, fields, host) in [
            ("/", &["www.a.test:80"][..], Some("www.a.test:80")),
            ("http://b.test/x", &["a.test"], Some("b.test")),
            ("/", &["[::1]:8080"], Some("[::1]:8080")),
            ("/", &[], None),
            ("/", &["a.test", "b.test"], None),
            ("http://b.test/x", &["a.test", "b.test"], None),
            ("/", &[""], None),
            ("/", &["a b"], None),
            ("/", &["a/../b"], None),
            ("/", &["u@a.test"], None),
        ] {
            let uri: Uri = target.parse().unwrap();
            let mut map = HeaderMap::new();
            for field in fields {
                map.append(HOST, field.parse().unwrap());
            }
            assert_eq!(host_of(&uri, &map), host, "{target} {fields:?}");
        }
    }
}
