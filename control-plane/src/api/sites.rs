//! The site registry: `GET /v1/sites`, and `POST` for several sites in one commit; under `/v1/sites/{name}` one
//! site: `GET` (with `?version=N` as it was), `PUT`, `DELETE`, `GET …/history`, `POST …/rollback`, `POST …/check`.
//!
//! A site is sent as JSON or TOML, by `Content-Type`. Its version is its `ETag`: `If-Match` changes only what
//! was looked at, `If-None-Match: *` only what is not there.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Query, State, rejection::QueryRejection},
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode, Uri,
        header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH},
    },
    response::{IntoResponse, Response},
    routing::{get, post},
};
use cluster::{
    purge::{Purge, Scope},
    site::Site,
    wire::{SITES, SiteAction, SiteChanged, SiteHistory, SiteRollback, SitesPut, SitesPutAnswer},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    App,
    sent::{Named, Sent, meant},
};
use crate::{
    access::Caller,
    error::ApiError,
    sites::{ChangeError, Expected, Refusal, Wish},
    store::StoreError,
};

/// Largest request, in bytes: what is written in TOML with comments is longer than what is kept.
pub const REQUEST_BYTES_MAX: usize = 2 << 20;
/// Who makes a change, as the command tells it.
pub const BY_FIELD: HeaderName = HeaderName::from_static("cdn-by");
/// Longest such name.
const BY_BYTES_MAX: usize = 64;
/// The version of a site is that of the set in which it came.
const SET_VERSION_FIELD: HeaderName = HeaderName::from_static("cdn-set-version");

/// What answers under [`SITES`].
pub(super) fn routes() -> Router<Arc<App>> {
    let one = format!("{SITES}/{{name}}");
    Router::new()
        .route(SITES, get(all).post(replace_all))
        .route(&one, get(show).put(replace).delete(remove))
        .route(&format!("{one}/history"), get(history))
        .route(&format!("{one}/rollback"), post(roll_back))
        .route(&format!("{one}/check"), post(check))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
}

/// Answers with all sites and their version, and a MAC; or with 304 to who has this version.
async fn all(State(app): State<Arc<App>>, uri: Uri, fields: HeaderMap) -> Response {
    let now = app.sites.now();
    let etag = tag(now.version());
    let has_it = fields
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|tag| tag.trim().trim_start_matches("W/"))
        .any(|tag| tag == etag || tag == "*");
    let mut answer = if has_it {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        app.signed(&uri, now.json())
    };
    answer.headers_mut().insert(ETAG, etag);
    let no_cache = HeaderValue::from_static("no-cache");
    answer.headers_mut().insert(CACHE_CONTROL, no_cache);
    answer
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shown {
    version: Option<u64>,
}

/// Answers with one site, as it is or as it was.
async fn show(
    State(app): State<Arc<App>>,
    Named(name): Named,
    asked: Result<Query<Shown>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(Shown { version }) = asked.map_err(|e| ApiError::parameter("version", e))?;
    let now = app.sites.now();
    let (site, version) = match version {
        Some(version) => (app.sites.former(&name, version).await?, version),
        None => {
            let found = now.site(&name).cloned().zip(now.record(&name));
            let (site, record) = found.ok_or_else(|| Refusal::Unknown(shortened(&name)))?;
            (site, record.version)
        }
    };
    Ok(([(ETAG, tag(version))], Json(site)).into_response())
}

/// Answers with the versions of one site.
async fn history(
    State(app): State<Arc<App>>,
    Named(name): Named,
) -> Result<Json<SiteHistory>, ApiError> {
    let history = app.sites.history(&name).await?;
    let unknown = || Refusal::Unknown(shortened(&name)).into();
    history.map(Json).ok_or_else(unknown)
}

async fn replace(
    State(app): State<Arc<App>>,
    caller: Caller,
    Named(name): Named,
    fields: HeaderMap,
    Sent(body): Sent,
) -> Result<Response, ApiError> {
    let wish = put_of(&name, &caller, &fields, &body)?;
    let is_new = app.sites.now().site(&name).is_none();
    let expected = expected(&fields)?;
    purge_former(&app, std::slice::from_ref(&name), &wish.by).await?;
    let changed = app.sites.change(wish, expected, nodes(&app)).await?;
    let status = match is_new && changed.changed {
        true => StatusCode::CREATED,
        false => StatusCode::OK,
    };
    Ok(told(status, changed))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Several {
    /// Whether they are only looked at.
    #[serde(default)]
    check: bool,
}

/// Makes or replaces several sites in one commit.
async fn replace_all(
    State(app): State<Arc<App>>,
    caller: Caller,
    asked: Result<Query<Several>, QueryRejection>,
    fields: HeaderMap,
    Sent(body): Sent,
) -> Result<Json<SitesPutAnswer>, ApiError> {
    let Query(Several { check }) = asked.map_err(|e| ApiError::parameter("check", e))?;
    let SitesPut { sites, versions } = read(Written::Json, &body)?;
    let by = by(&caller, &fields);
    let wished = sites.into_iter().enumerate().map(|(n, fields)| {
        let site: Site = meant(Value::from(fields), serde_json::Error::to_string)
            .map_err(|error| error.within(&format!("sites[{n}]")))?;
        let expected = match versions.get(&site.name) {
            None => Expected::Anything,
            Some(0) => Expected::Absent,
            Some(version) => Expected::Versions(vec![*version]),
        };
        let wish = Wish {
            name: site.name.clone(),
            site: Some(site),
            action: SiteAction::Put,
            by: by.clone(),
        };
        Ok((wish, expected))
    });
    let wished = wished.collect::<Result<Vec<_>, ApiError>>()?;
    let sites = match check {
        true => app.sites.check_all(wished, nodes(&app)).await?,
        false => {
            let names = wished.iter().map(|(wish, _)| wish.name.clone());
            purge_former(&app, &names.collect::<Vec<_>>(), &by).await?;
            app.sites.change_all(wished, nodes(&app)).await?
        }
    };
    Ok(Json(SitesPutAnswer { sites }))
}

/// Purges all that edges may still have of sites that were deleted, before there are such sites again: what was
/// cached for them then is not what they are now. One that is not made after all has been purged for nothing.
async fn purge_former(app: &App, names: &[String], by: &str) -> Result<(), ApiError> {
    for name in names {
        if app.sites.now().site(name).is_some() || app.sites.history(name).await?.is_none() {
            continue;
        }
        let purge = Purge {
            site: name.clone(),
            scopes: vec![Scope::All],
            soft: false,
        };
        let taken = app.purge_log.append(purge, by.to_owned()).await;
        taken.map_err(|error| {
            let reason =
                format!("{name:?} was deleted, and what is left of it is not purged: {error}");
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, reason)
        })?;
    }
    Ok(())
}

async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller,
    Named(name): Named,
    fields: HeaderMap,
) -> Result<Response, ApiError> {
    let wish = Wish {
        site: None,
        action: SiteAction::Delete,
        by: by(&caller, &fields),
        name,
    };
    let expected = match expected(&fields)? {
        Expected::Anything => Expected::There,
        expected => expected,
    };
    let changed = app.sites.change(wish, expected, nodes(&app)).await?;
    Ok(told(StatusCode::OK, changed))
}

async fn roll_back(
    State(app): State<Arc<App>>,
    caller: Caller,
    Named(name): Named,
    fields: HeaderMap,
    Sent(body): Sent,
) -> Result<Response, ApiError> {
    let SiteRollback { version } = read(Written::Json, &body)?;
    let (by, expected) = (by(&caller, &fields), expected(&fields)?);
    purge_former(&app, std::slice::from_ref(&name), &by).await?;
    let changed = app
        .sites
        .roll_back(&name, version, by, expected, nodes(&app));
    Ok(told(StatusCode::OK, changed.await?))
}

async fn check(
    State(app): State<Arc<App>>,
    caller: Caller,
    Named(name): Named,
    fields: HeaderMap,
    Sent(body): Sent,
) -> Result<Json<SiteChanged>, ApiError> {
    let wish = put_of(&name, &caller, &fields, &body)?;
    let checked = app
        .sites
        .check(wish, expected(&fields)?, nodes(&app))
        .await?;
    Ok(Json(checked))
}

fn told(status: StatusCode, changed: SiteChanged) -> Response {
    let fields = [
        (ETAG, tag(changed.version)),
        (SET_VERSION_FIELD, HeaderValue::from(changed.set_version)),
    ];
    (status, fields, Json(changed)).into_response()
}

fn tag(version: u64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).expect("digits in quotes")
}

/// Where the cluster's nodes listen, as base URLs.
fn nodes(app: &App) -> Vec<String> {
    let nodes = app.atlas().statuses();
    let places = nodes.into_iter().flat_map(|node| {
        let peer = (!node.peer.is_empty()).then(|| format!("http://{}", node.peer));
        [Some(node.http), peer]
    });
    places.flatten().collect()
}

/// How a site is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    Json,
    Toml,
}

/// What shall be, by a request's body.
fn put_of(name: &str, caller: &Caller, fields: &HeaderMap, body: &[u8]) -> Result<Wish, ApiError> {
    let content_type = fields
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = content_type.map(|value| value.split(';').next().unwrap_or_default().trim());
    let written = match essence.map(str::to_ascii_lowercase).as_deref() {
        Some("application/json") => Written::Json,
        Some("application/toml" | "text/toml" | "text/x-toml") => Written::Toml,
        _ => {
            return Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "a site is sent as `Content-Type: application/json` or `application/toml`",
            ));
        }
    };
    let site: Site = read_site(name, written, body)?;
    Ok(Wish {
        name: name.to_owned(),
        site: Some(site),
        action: SiteAction::Put,
        by: by(caller, fields),
    })
}

/// A site, whose name need not be repeated in the body.
fn read_site(name: &str, written: Written, body: &[u8]) -> Result<Site, ApiError> {
    let site: Site = match written {
        Written::Json => {
            let mut fields: serde_json::Map<String, Value> = read(written, body)?;
            fields.entry("name").or_insert_with(|| name.into());
            meant(Value::from(fields), |error| error.to_string())?
        }
        Written::Toml => {
            let mut fields: toml::Table = read(written, body)?;
            fields.entry("name").or_insert_with(|| name.into());
            meant(toml::Value::from(fields), |error| {
                error.message().to_owned()
            })?
        }
    };
    if site.name != name {
        let reason = format!(
            "{:?} in the body, {name:?} in the path",
            shortened(&site.name)
        );
        return Err(ApiError::field(
            StatusCode::UNPROCESSABLE_ENTITY,
            "name",
            reason,
        ));
    }
    Ok(site)
}

fn read<T: DeserializeOwned>(written: Written, body: &[u8]) -> Result<T, ApiError> {
    let malformed = |error: String| ApiError::new(StatusCode::BAD_REQUEST, error);
    match written {
        Written::Json => serde_json::from_slice(body)
            .map_err(|error| malformed(format!("not the JSON expected: {error}"))),
        Written::Toml => {
            let text = std::str::from_utf8(body).map_err(|_| malformed("not UTF-8".to_owned()))?;
            toml::from_str(text).map_err(|error| malformed(format!("not TOML: {error}")))
        }
    }
}

/// What must hold before a change (RFC 9110 §13.1).
fn expected(fields: &HeaderMap) -> Result<Expected, ApiError> {
    let text = |name: HeaderName| -> Result<Option<String>, ApiError> {
        let lines: Vec<_> = fields.get_all(&name).iter().collect();
        if lines.is_empty() {
            return Ok(None);
        }
        let lines: Option<Vec<_>> = lines.iter().map(|line| line.to_str().ok()).collect();
        lines
            .map(|lines| Some(lines.join(",")))
            .ok_or_else(|| ApiError::parameter(name.as_str(), "not text"))
    };
    let none_match = text(IF_NONE_MATCH)?;
    match none_match.as_deref().map(str::trim) {
        None => {}
        Some("*") => return Ok(Expected::Absent),
        Some(_) => {
            return Err(ApiError::parameter(
                "if-none-match",
                "only * makes sense for a change",
            ));
        }
    }
    let Some(tags) = text(IF_MATCH)? else {
        return Ok(Expected::Anything);
    };
    if tags.trim() == "*" {
        return Ok(Expected::There);
    }
    let version = |tag: &str| {
        let inside = tag.trim().strip_prefix('"')?.strip_suffix('"')?;
        inside.parse().ok()
    };
    let versions: Option<Vec<u64>> = tags.split(',').map(version).collect();
    let reason = "not the ETag of a site, such as \"1700000000\" in quotes";
    versions
        .map(Expected::Versions)
        .ok_or_else(|| ApiError::parameter("if-match", reason))
}

/// Who asks: a token's name. As long as there are no tokens, a change is taken from this machine only, and who
/// that is, is believed.
fn by(caller: &Caller, fields: &HeaderMap) -> String {
    let told = fields.get(BY_FIELD).and_then(|value| value.to_str().ok());
    let told = told.map(str::trim).filter(|told| !told.is_empty());
    match told {
        Some(told) if caller.is_first() => {
            let told: String = told.chars().take(BY_BYTES_MAX).collect();
            format!("{told} on this machine")
        }
        _ => caller.name.clone(),
    }
}

fn shortened(name: &str) -> String {
    name.chars().take(64).collect()
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let status = match &refusal {
            Refusal::Bad(bad) => {
                return Self::of_field(StatusCode::UNPROCESSABLE_ENTITY, bad.field, &refusal);
            }
            Refusal::TooLarge { .. }
            | Refusal::TooLargeTogether(_)
            | Refusal::TooMany(_)
            | Refusal::TooLargeAtOnce(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::Twice(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Refusal::Unknown(_) => StatusCode::NOT_FOUND,
            Refusal::Outdated { .. } => StatusCode::PRECONDITION_FAILED,
            Refusal::InFile { .. } => StatusCode::CONFLICT,
        };
        Self::new(status, refusal)
    }
}

impl From<ChangeError> for ApiError {
    fn from(error: ChangeError) -> Self {
        let status = match error {
            ChangeError::Refused(refusal) => return refusal.into(),
            ChangeError::NoVersion { .. } => StatusCode::NOT_FOUND,
            ChangeError::Busy | ChangeError::Store(StoreError::Failed(_)) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            ChangeError::Store(StoreError::Refused(_)) => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn a_site_is_read_as_it_is_written() {
        let json = ("content-type", "application/json; charset=utf-8");
        let toml = ("content-type", "application/toml");
        let wish = |field, body: &str| {
            put_of("a", &Caller::loopback(), &fields(&[field]), body.as_bytes())
        };
        let by_json = wish(json, r#"{"hosts": ["a.test"], "origins": ["http://o"]}"#).unwrap();
        let by_toml = wish(
            toml,
            "name = 'a'\nhosts = ['a.test']\norigins = ['http://o']",
        )
        .unwrap();
        assert_eq!(by_json.site, by_toml.site);
        for (field, body, status, words) in [
            (("accept", "x"), "", 415, "Content-Type: application/json"),
            (("content-type", "text/plain"), "", 415, "application/toml"),
            (json, "{", 400, "not the JSON"),
            (json, "[]", 400, "not the JSON"),
            (toml, "a = ", 400, "not TOML"),
            (json, "{}", 422, "field: Some(\"hosts\")"),
            (
                json,
                r#"{"hosts": [], "origins": [], "x": 1}"#,
                422,
                "field: Some(\"x\")",
            ),
            (
                toml,
                "name = 'b'\nhosts = []\norigins = []",
                422,
                "field: Some(\"name\")",
            ),
            (toml, "hosts = []\norigins = [1]", 422, "an origin's URL"),
        ] {
            let refused = format!("{:?}", wish(field, body).unwrap_err());
            assert!(
                refused.contains(&format!("status: {status}")),
                "{body}: {refused}"
            );
            assert!(refused.contains(words), "{body}: {refused}");
        }
    }

    #[test]
    fn what_is_expected_stands_in_the_fields() {
        for (pairs, found) in [
            (&[][..], Expected::Anything),
            (&[("if-none-match", "*")], Expected::Absent),
            (&[("if-match", "*")], Expected::There),
            (&[("if-match", "\"7\"")], Expected::Versions(vec![7])),
            (
                &[("if-match", "\"7\", \"8\"")],
                Expected::Versions(vec![7, 8]),
            ),
        ] {
            assert_eq!(expected(&fields(pairs)).unwrap(), found, "{pairs:?}");
        }
        for pairs in [
            &[("if-match", "7")][..],
            &[("if-match", "W/\"7\"")],
            &[("if-match", "\"a\"")],
            &[("if-none-match", "\"7\"")],
        ] {
            assert!(expected(&fields(pairs)).is_err(), "{pairs:?}");
        }
    }

    #[test]
    fn who_asks_is_told_in_one_line() {
        let told = |pairs: &[(&'static str, &str)]| by(&Caller::loopback(), &fields(pairs));
        assert_eq!(told(&[]), "loopback");
        assert_eq!(told(&[("cdn-by", " alice ")]), "alice on this machine");
        assert!(told(&[("cdn-by", &"x".repeat(100))]).len() < 90);
    }
}
