//! Who is let in: reads what a request carries of its sender, and refuses what [`crate::access`] does not
//! allow before anything of its body is read.
//!
//! A token comes as `Authorization: Bearer …`, as the password of `Authorization: Basic …` (browsers, and
//! programs that know nothing else), or as `Fastly-Key`.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    body::{Body, to_bytes},
    extract::{ConnectInfo, FromRequestParts, Request, State},
    http::{
        HeaderMap, HeaderValue, Method, StatusCode,
        header::{AUTHORIZATION, FORWARDED, WWW_AUTHENTICATE},
        request::Parts,
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use cluster::{
    auth::{self, Denied, TIME_WINDOW},
    wire::{MAC_FIELD, NODE_FIELD, PURGE_PAGE_BYTES_MAX, TIME_FIELD},
};
use tracing::info;

use super::App;
use crate::{
    access::{self, Caller, Credentials, Need, Refused},
    error::ApiError,
    keyring::KeyringError,
};

/// Where clients of Fastly's API put their token.
const FASTLY_KEY: &str = "fastly-key";
/// Largest body of a signed request, in bytes: the hash in its query must be checked before it is used.
const SIGNED_BYTES_MAX: usize = PURGE_PAGE_BYTES_MAX;

/// Lets through who may do what the request asks for, and tells the handlers who it is.
pub(super) async fn admitted(
    State(app): State<Arc<App>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let (mut request, caller) = match identified(&app, from, request).await {
        Ok(admitted) => admitted,
        Err(refusal) => return *refusal,
    };
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let told = (!reads).then(|| (request.method().clone(), request.uri().path().to_owned()));
    let by = caller.name.clone();
    request.extensions_mut().insert(caller);
    let answer = next.run(request).await;
    if let Some((method, path)) = told {
        let path: String = path.chars().take(200).collect();
        info!(by, %method, path, status = answer.status().as_u16(), "asked to change");
    }
    answer
}

async fn identified(
    app: &App,
    from: SocketAddr,
    request: Request,
) -> Result<(Request, Caller), Box<Response>> {
    let needed = access::need(request.method().as_str(), request.uri().path());
    let fields = request.headers();
    let token = token(fields);
    let target = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let now = app.keyring.now_ms();
    // What everybody may have is not kept from a node whose clock is wrong.
    let is_open = match needed {
        Need::Nothing => true,
        Need::Read | Need::Receipt => app.public_read,
        Need::Purge | Need::Admin => false,
    };
    let node = (!is_open && fields.contains_key(MAC_FIELD)).then(|| {
        let field = |name: &str| fields.get(name)?.to_str().ok();
        let method = request.method().as_str();
        app.verifier.verify(method, target, field, now)
    });
    if fields.contains_key(MAC_FIELD) {
        note_clock(app, request.method().as_str(), target, fields, now);
    }
    let tokens = match app.keyring.tokens() {
        Ok(tokens) => tokens,
        // Health and metrics are needed most when something is wrong.
        Err(_) if needed == Need::Nothing => Arc::default(),
        Err(error) => return Err(Box::new(refused_by_keyring(&error).into_response())),
    };
    let credentials = Credentials {
        // A wrong token does not keep anybody from seeing that this process is alive.
        token: token.as_deref().filter(|_| needed != Need::Nothing),
        node,
        is_here: is_here(from, fields),
    };
    let caller = access::caller(&tokens, credentials, now)
        .and_then(|caller| caller.check(needed, app.public_read).map(|()| caller))
        .map_err(|refused| Box::new(refusal(&refused, request.method(), request.uri().path())))?;
    match caller.is_node() && request.method() != Method::GET {
        true => Ok((with_proven_body(request).await?, caller)),
        false => Ok((request, caller)),
    }
}

/// Notes whose clock is off that proves who it is by a request that is out of its time. One that is in its time is
/// not looked at: that would use it up.
fn note_clock(app: &App, method: &str, target: &str, fields: &HeaderMap, now_ms: u64) {
    let field = |name: &str| fields.get(name)?.to_str().ok();
    let said = field(TIME_FIELD).and_then(|said| said.parse::<u64>().ok());
    let node = field(NODE_FIELD).and_then(|node| node.parse().ok());
    if let (Some(said_ms), Some(node)) = (said, node)
        && u128::from(now_ms.abs_diff(said_ms)) > TIME_WINDOW.as_millis()
        && let Err(Denied::WrongTime { .. }) = app.verifier.verify(method, target, field, now_ms)
    {
        app.clocks.note(node, said_ms, now_ms);
    }
}

/// A signed request proves its body by a hash in its query.
async fn with_proven_body(request: Request) -> Result<Request, Box<Response>> {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, SIGNED_BYTES_MAX).await else {
        let reason = format!("a signed request has at most {SIGNED_BYTES_MAX} bytes");
        let error = ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, reason);
        return Err(Box::new(error.into_response()));
    };
    let proof = auth::body_parameter(&body);
    let mut query = parts.uri.query().unwrap_or_default().split('&');
    if !query.any(|parameter| parameter == proof) {
        let reason = "the query must carry the hash of the body that was sent";
        let error = ApiError::field(StatusCode::FORBIDDEN, "body", reason);
        return Err(Box::new(error.into_response()));
    }
    Ok(Request::from_parts(parts, Body::from(body)))
}

/// The token that a request carries; one that cannot be read is none that there is.
fn token(fields: &HeaderMap) -> Option<String> {
    if let Some(value) = fields.get(FASTLY_KEY) {
        return Some(value.to_str().unwrap_or_default().trim().to_owned());
    }
    let value = fields.get(AUTHORIZATION)?.to_str().unwrap_or_default();
    let (scheme, rest) = value.trim().split_once(' ').unwrap_or((value, ""));
    let token = match scheme.to_ascii_lowercase().as_str() {
        "bearer" => Some(rest.trim().to_owned()),
        "basic" => STANDARD
            .decode(rest.trim())
            .ok()
            .and_then(|pair| String::from_utf8(pair).ok())
            .and_then(|pair| Some(pair.split_once(':')?.1.to_owned())),
        _ => None,
    };
    Some(token.unwrap_or_default())
}

/// Whether a request comes from this machine, and not in somebody else's name.
fn is_here(from: SocketAddr, fields: &HeaderMap) -> bool {
    from.ip().to_canonical().is_loopback()
        && !fields.contains_key(FORWARDED)
        && !fields.contains_key("x-forwarded-for")
}

fn refusal(refused: &Refused, method: &Method, path: &str) -> Response {
    let (status, field, challenge) = match refused {
        Refused::NoToken => (StatusCode::UNAUTHORIZED, "authorization", r#""#),
        Refused::BadToken(_) => (
            StatusCode::UNAUTHORIZED,
            "authorization",
            r#", error="invalid_token""#,
        ),
        Refused::NotANode(_) => (StatusCode::UNAUTHORIZED, MAC_FIELD, ""),
        Refused::Busy => {
            return ApiError::new(StatusCode::SERVICE_UNAVAILABLE, refused).into_response();
        }
        Refused::OnlyHere => return ApiError::new(StatusCode::FORBIDDEN, refused).into_response(),
        Refused::Role { .. } => return ApiError::from(refused.clone()).into_response(),
        Refused::Site { .. } => return ApiError::from(refused.clone()).into_response(),
    };
    let mut answer = ApiError::field(status, field, refused).into_response();
    let bearer = format!(r#"Bearer realm="control-plane"{challenge}"#);
    let bearer = HeaderValue::try_from(bearer).expect("words in quotes");
    answer.headers_mut().append(WWW_AUTHENTICATE, bearer);
    if method == Method::GET && path == "/" {
        // So a browser asks for it: any user, the token as password.
        let basic = HeaderValue::from_static(r#"Basic realm="control-plane""#);
        answer.headers_mut().append(WWW_AUTHENTICATE, basic);
    }
    answer
}

pub(super) fn refused_by_keyring(error: &KeyringError) -> ApiError {
    use crate::tokens::NotChanged;
    let status = match error {
        KeyringError::NotChanged(NotChanged::NoToken) => StatusCode::NOT_FOUND,
        KeyringError::NotChanged(NotChanged::NoAdmin) => {
            return ApiError::field(StatusCode::CONFLICT, "role", error);
        }
        KeyringError::NotChanged(NotChanged::SameName { .. }) => {
            return ApiError::field(StatusCode::CONFLICT, "name", error);
        }
        KeyringError::NotChanged(_) | KeyringError::Overtaken => StatusCode::CONFLICT,
        KeyringError::NoLongerFirst => StatusCode::UNAUTHORIZED,
        KeyringError::Store(_) | KeyringError::Unreadable => StatusCode::SERVICE_UNAVAILABLE,
    };
    ApiError::new(status, error)
}

impl From<Refused> for ApiError {
    /// For who is known, and may not do what was asked for.
    fn from(refused: Refused) -> Self {
        let field = match refused {
            Refused::Site { .. } => "site",
            _ => "role",
        };
        Self::field(StatusCode::FORBIDDEN, field, refused)
    }
}

/// A handler takes the caller as an argument.
impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Self>().cloned();
        // A route beside the gate would be a mistake of ours, and lets nobody in.
        caller.ok_or_else(|| ApiError::new(StatusCode::FORBIDDEN, "nobody is let in here"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| {
                let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
                (axum::http::HeaderName::from_static(name), value)
            })
            .collect()
    }

    #[test]
    fn a_token_comes_in_three_ways() {
        for (pairs, expected) in [
            (&[][..], None),
            (&[("authorization", "Bearer cdn_a_b")], Some("cdn_a_b")),
            (&[("authorization", "bEARER   cdn_a_b ")], Some("cdn_a_b")),
            // `any:cdn_a_b`
            (
                &[("authorization", "Basic YW55OmNkbl9hX2I=")],
                Some("cdn_a_b"),
            ),
            (&[("fastly-key", "cdn_a_b")], Some("cdn_a_b")),
            // What cannot be read is not nothing: it is refused.
            (&[("authorization", "Basic ***")], Some("")),
            (&[("authorization", "Basic YW55")], Some("")),
            (&[("authorization", "Digest x")], Some("")),
            (&[("authorization", "")], Some("")),
            (&[("authorization", "Bearer é")], Some("")),
        ] {
            assert_eq!(token(&fields(pairs)).as_deref(), expected, "{pairs:?}");
        }
    }

    #[test]
    fn here_is_loopback_and_nobody_elses_name() {
        for (from, pairs, expected) in [
            ("127.0.0.1:1", &[][..], true),
            ("127.9.9.9:1", &[], true),
            ("[::1]:1", &[], true),
            ("[::ffff:127.0.0.1]:1", &[], true),
            ("10.0.0.1:1", &[], false),
            ("127.0.0.1:1", &[("x-forwarded-for", "10.0.0.1")], false),
            ("127.0.0.1:1", &[("forwarded", "for=10.0.0.1")], false),
        ] {
            let here = is_here(from.parse().unwrap(), &fields(pairs));
            assert_eq!(here, expected, "{from} {pairs:?}");
        }
    }
}
