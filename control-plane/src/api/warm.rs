//! `POST /v1/warm`, `GET /v1/warm`, `GET /v1/warm/{id}` and `DELETE /v1/warm/{id}`: jobs that have edges
//! fetch URLs ahead of demand.

use std::{collections::HashSet, sync::Arc};

use axum::{
    Json, Router,
    extract::{
        DefaultBodyLimit, State,
        rejection::{BytesRejection, JsonRejection},
    },
    http::{
        HeaderValue, StatusCode, Uri,
        header::{LOCATION, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use cluster::{
    node::{NodeId, Role},
    site::Site,
    wire::{NodeStatus, WARM, WARM_URL_BYTES_MAX, WarmList, WarmRequest, WarmStatus},
};

use super::{
    App,
    sent::{Named, not_json},
};
use crate::{error::ApiError, sites::snapshot::Snapshot, warm::NotTaken};

/// Most URLs of one job; a longer list makes several.
pub const URLS_MAX: usize = 100_000;
/// Largest request, in bytes: [`URLS_MAX`] URLs of 160 bytes.
pub const REQUEST_BYTES_MAX: usize = 16 << 20;
/// When to come back when too many jobs run, in seconds.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("30");

/// What answers under [`WARM`].
pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route(WARM, get(all).post(take))
        .route(&format!("{WARM}/{{id}}"), get(one).delete(cancel))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
}

async fn take(
    State(app): State<Arc<App>>,
    request: Result<Json<WarmRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(request) = request.map_err(unreadable)?;
    let urls = urls(&request, &app.sites.now())?;
    let nodes = nodes(&request, &app.atlas().statuses())?;
    match app.warming.take(request.site, urls, nodes).await {
        Ok(status) => {
            let at = HeaderValue::try_from(format!("{WARM}/{}", status.id));
            let at = at.expect("an id is digits and letters");
            Ok((StatusCode::ACCEPTED, [(LOCATION, at)], Json(status)).into_response())
        }
        Err(error @ NotTaken::TooMany) => {
            let mut answer = ApiError::new(StatusCode::TOO_MANY_REQUESTS, error).into_response();
            answer.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_S);
            Ok(answer)
        }
        Err(error @ NotTaken::Disk(_)) => {
            Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error))
        }
    }
}

async fn all(State(app): State<Arc<App>>) -> Json<WarmList> {
    let jobs = app.warming.statuses();
    Json(WarmList { jobs })
}

async fn one(State(app): State<Arc<App>>, Named(id): Named) -> Result<Json<WarmStatus>, ApiError> {
    app.warming.status(&id).map(Json).ok_or_else(|| no_job(&id))
}

async fn cancel(
    State(app): State<Arc<App>>,
    Named(id): Named,
) -> Result<Json<WarmStatus>, ApiError> {
    let cancelled = app.warming.cancel(&id).await.map_err(|error| {
        let reason = format!("cancelled, but that could not be written down: {error}");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, reason)
    })?;
    cancelled.map(Json).ok_or_else(|| no_job(&id))
}

fn no_job(id: &str) -> ApiError {
    let id: String = id.chars().take(64).collect();
    ApiError::not_found(format!("no warming job {id:?}; GET {WARM} lists them"))
}

fn unreadable(rejection: JsonRejection) -> ApiError {
    match &rejection {
        JsonRejection::BytesRejection(BytesRejection::FailedToBufferBody(_))
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE =>
        {
            let reason = format!("larger than {REQUEST_BYTES_MAX} bytes: make several jobs of it");
            ApiError::new(rejection.status(), reason)
        }
        _ => not_json(&rejection),
    }
}

/// The URLs of a job, absolute, none twice.
fn urls(request: &WarmRequest, sites: &Snapshot) -> Result<Vec<String>, ApiError> {
    if request.site.is_empty() {
        return Err(ApiError::parameter("site", "missing"));
    }
    let Some(site) = sites.site(&request.site) else {
        let reason = format!("no site {:?}; GET /v1/sites lists them", request.site);
        return Err(ApiError::parameter("site", reason));
    };
    let listed = request.list.lines().map(str::trim).enumerate();
    let listed = listed.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let given = request.urls.iter().enumerate();
    let given = given.map(|(index, url)| (format!("urls[{index}]"), url.as_str()));
    let all = given.chain(listed.map(|(index, line)| (format!("list line {}", index + 1), line)));
    let (mut urls, mut known) = (Vec::new(), HashSet::new());
    for (place, url) in all {
        let field = if place.starts_with("urls") {
            "urls"
        } else {
            "list"
        };
        let url = absolute(url, site, sites)
            .map_err(|reason| ApiError::parameter(field, format!("{place}: {reason}")))?;
        if known.insert(url.clone()) {
            urls.push(url);
        }
        if urls.len() > URLS_MAX {
            let reason = format!("more than {URLS_MAX} URLs: make several jobs of them");
            return Err(ApiError::field(
                StatusCode::PAYLOAD_TOO_LARGE,
                field,
                reason,
            ));
        }
    }
    if urls.is_empty() {
        return Err(ApiError::parameter("urls", "none, and no list either"));
    }
    Ok(urls)
}

/// `url` if it belongs to the site; a path is one on the site's first host.
fn absolute(url: &str, site: &Site, sites: &Snapshot) -> Result<String, String> {
    if url.len() > WARM_URL_BYTES_MAX {
        return Err(format!("longer than {WARM_URL_BYTES_MAX} bytes"));
    }
    let whole = match (url.starts_with('/'), site.hosts.first()) {
        (true, Some(host)) if host.contains('*') => {
            return Err(format!(
                "a whole URL is needed, because {host} is no single host"
            ));
        }
        (true, Some(host)) => format!("http://{host}{url}"),
        _ => url.to_owned(),
    };
    let parsed: Uri = whole.parse().map_err(|error| format!("{url:?}: {error}"))?;
    let (Some("http" | "https"), Some(host)) = (parsed.scheme_str(), parsed.authority()) else {
        return Err(format!("{url:?} is neither http://host/path nor /path"));
    };
    match sites.map().select(host.as_str()) {
        Some(selected) if selected.site.name == site.name => Ok(whole),
        _ => Err(format!("{host} is not a host of site {:?}", site.name)),
    }
}

/// The edges of a job.
fn nodes(request: &WarmRequest, known: &[NodeStatus]) -> Result<Vec<NodeId>, ApiError> {
    let edges = || known.iter().filter(|node| node.role == Role::Edge);
    if let Some(stranger) = request
        .nodes
        .iter()
        .find(|id| !edges().any(|edge| edge.id == **id))
    {
        let reason = format!("no edge {stranger}; GET /v1/nodes lists them");
        return Err(ApiError::parameter("nodes", reason));
    }
    let alive = || edges().filter(|edge| edge.alive);
    if let Some(nowhere) = request
        .regions
        .iter()
        .find(|region| !alive().any(|edge| edge.region == **region))
    {
        let reason = format!("no edge is in region {nowhere:?}; GET /v1/nodes lists them");
        return Err(ApiError::parameter("regions", reason));
    }
    let is_meant = |edge: &&NodeStatus| {
        let everywhere = request.nodes.is_empty() && request.regions.is_empty();
        let by_region = edge.alive && (everywhere || request.regions.contains(&edge.region));
        by_region || request.nodes.contains(&edge.id)
    };
    let meant: Vec<_> = edges()
        .filter(is_meant)
        .map(|edge| edge.id.clone())
        .collect();
    match meant.is_empty() {
        true => Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "there is no edge in the cluster now",
        )),
        false => Ok(meant),
    }
}

#[cfg(test)]
mod tests {
    use cluster::{
        node::{Load, Phase},
        wire::SiteAction,
    };

    use super::*;
    use crate::sites::snapshot::Record;

    fn sites() -> Snapshot {
        let sites = vec![
            Site::new("www", &["www.test", "*.www.test"], &["http://o:80"]),
            Site::new("any", &["*.any.test"], &["http://o:80"]),
        ];
        let record = |site: Site| Record {
            version: 1,
            at_ms: 0,
            by: String::new(),
            action: SiteAction::Put,
            in_file_of: None,
            site: Some(Arc::new(site)),
        };
        let records = sites
            .into_iter()
            .map(|site| (site.name.clone(), record(site)));
        Snapshot::new(1, 1, records.collect()).unwrap()
    }

    fn request(text: &str) -> WarmRequest {
        serde_json::from_str(text).unwrap()
    }

    /// The answer's status, its field and its words.
    fn told(error: ApiError) -> String {
        format!("{error:?}")
    }

    #[test]
    fn urls_and_the_list_are_one_list_of_urls_each_once() {
        let asked = request(
            r#"{"site": "www", "urls": ["http://www.test/a", "/b?c", "https://x.www.test:8443/d"],
                "list": "\# no\n/b?c\r\n\n  /e  \n"}"#
                .replace("\\#", "#")
                .as_str(),
        );
        assert_eq!(
            urls(&asked, &sites()).unwrap(),
            [
                "http://www.test/a",
                "http://www.test/b?c",
                "https://x.www.test:8443/d",
                "http://www.test/e",
            ]
        );
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        let long = format!(r#"{{"site": "www", "urls": ["/{}"]}}"#, "x".repeat(9_000));
        for (text, field, words) in [
            ("{}", "site", "missing"),
            (r#"{"site": "w"}"#, "site", "no site"),
            (r#"{"site": "www"}"#, "urls", "none, and no list either"),
            (
                r#"{"site": "www", "urls": ["/", "b"]}"#,
                "urls",
                "urls[1]: ",
            ),
            (
                r#"{"site": "www", "urls": ["ftp://www.test/"]}"#,
                "urls",
                "neither",
            ),
            (
                r#"{"site": "www", "urls": ["http://a.any.test/"]}"#,
                "urls",
                "a.any.test is not a host of site",
            ),
            (
                r#"{"site": "www", "list": "/\n\n/a b"}"#,
                "list",
                "list line 3",
            ),
            (
                r#"{"site": "any", "urls": ["/"]}"#,
                "urls",
                "a whole URL is needed",
            ),
            (&long, "urls", "longer than 8192 bytes"),
        ] {
            let error = told(urls(&request(text), &sites()).unwrap_err());
            assert!(
                error.contains(&format!("field: Some({field:?})")),
                "{text}: {error}"
            );
            assert!(error.contains(words), "{text}: {error}");
            assert!(error.contains("status: 400"), "{text}: {error}");
        }
        let lines: String = (0..=URLS_MAX).map(|n| format!("/{n}\n")).collect();
        let many = WarmRequest {
            site: "www".into(),
            list: lines,
            ..WarmRequest::default()
        };
        let error = told(urls(&many, &sites()).unwrap_err());
        assert!(
            error.contains("status: 413") && error.contains("list: more than"),
            "{error}"
        );
    }

    #[test]
    fn the_edges_are_all_or_those_that_are_named() {
        let node = |id: &str, role, region: &str, alive| NodeStatus {
            id: id.parse().unwrap(),
            role,
            alive,
            phase: Phase::Ready,
            region: region.into(),
            location: None,
            http: String::new(),
            peer: String::new(),
            load: Load::default(),
            sites_version: 0,
            purge_seq: 0,
            clock_ahead_s: 0,
        };
        let known = [
            node("control", Role::Control, "eu", true),
            node("e1", Role::Edge, "eu", true),
            node("e2", Role::Edge, "us", true),
            node("e3", Role::Edge, "eu", false),
        ];
        let meant = |text| {
            let meant = nodes(&request(text), &known);
            meant.map(|ids| {
                ids.iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" ")
            })
        };
        assert_eq!(meant("{}").unwrap(), "e1 e2");
        assert_eq!(meant(r#"{"regions": ["eu"]}"#).unwrap(), "e1");
        // Who is named is waited for.
        assert_eq!(meant(r#"{"nodes": ["e3"]}"#).unwrap(), "e3");
        assert_eq!(
            meant(r#"{"nodes": ["e3"], "regions": ["us"]}"#).unwrap(),
            "e2 e3"
        );
        let error = told(meant(r#"{"nodes": ["control"]}"#).unwrap_err());
        assert!(error.contains("nodes: no edge control"), "{error}");
        let error = told(meant(r#"{"regions": ["asia"]}"#).unwrap_err());
        assert!(error.contains("regions: no edge is in region"), "{error}");
        let error = told(nodes(&request("{}"), &known[..1]).unwrap_err());
        assert!(error.contains("status: 503"), "{error}");
    }
}
