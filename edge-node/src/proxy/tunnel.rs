//! Upgrades (RFC 9110 §7.8): a WebSocket handshake goes to the origin, and when it agrees, bytes go
//! both ways until either side ends.

use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tracing::debug;

use super::{Asked, Proxy, answer::response, fetch};
use crate::{
    cache::policy,
    deliver::cache_status::Fwd,
    error::ServeError,
    forward,
    metrics::{Outcome, Source},
    payload::Payload,
    upstream::pool,
};

const KEEP: [HeaderName; 2] = [header::CONNECTION, header::UPGRADE];

/// The handle to take the connection over with, if the request asks for another protocol.
pub(super) fn requested(request: &mut Request<Incoming>) -> Option<OnUpgrade> {
    // RFC 9113 §8.2.2: HTTP/2 knows no Upgrade; and h2c is for the next hop only, where it would lead
    // around everything that is decided here.
    let mut wanted = request.headers().get_all(header::UPGRADE).iter().peekable();
    wanted.peek()?;
    let is_h2c = wanted
        .flat_map(|value| value.as_bytes().split(|&b| b == b','))
        .any(|protocol| protocol.trim_ascii().eq_ignore_ascii_case(b"h2c"));
    let named = request
        .headers()
        .get_all(header::CONNECTION)
        .iter()
        .any(|value| {
            let tokens = value.as_bytes().split(|&b| b == b',');
            tokens
                .into_iter()
                .any(|t| t.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
        });
    // Without content only: its bytes could not be told from those of the new protocol. And GET only, as
    // WebSocket has it; whoever changes something is answered in HTTP.
    let fits = request.version() == Version::HTTP_11
        && request.method() == Method::GET
        && request.body().is_end_stream()
        && !request.headers().contains_key(header::CONTENT_LENGTH)
        && !request.headers().contains_key(header::TRANSFER_ENCODING)
        && named
        && !is_h2c;
    fits.then(|| hyper::upgrade::on(request))
}

impl Proxy {
    pub(super) async fn tunnel(
        &self,
        asked: &Asked,
        client: OnUpgrade,
    ) -> Result<Response<Payload>, ServeError> {
        let mut headers = asked.headers.clone();
        let protocol = headers.get(header::UPGRADE).cloned();
        policy::strip_hop_by_hop(&mut headers);
        forward::add_hop(&mut headers, &self.hop(asked));
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = protocol {
            headers.insert(header::UPGRADE, protocol);
        }
        let place = self.origin_place(asked).await?;
        asked.forwarded.get_or_init(|| Fwd::Bypass);
        asked.open_interim();
        let request = asked.onward(asked.method.clone(), headers, pool::empty());
        let mut answer = self
            .shared
            .upstream
            .origin(&asked.site, asked.key, &asked.host, request, place)
            .await
            .map_err(fetch::origin_failed)?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(self.passed(asked, answer, Fwd::Bypass));
        }
        let origin = hyper::upgrade::on(&mut answer);
        let uri = asked.uri.clone();
        tokio::spawn(async move {
            let (client, origin) = match tokio::try_join!(client, origin) {
                Ok(both) => both,
                Err(error) => return debug!(%uri, %error, "upgrade failed"),
            };
            let (mut client, mut origin) = (TokioIo::new(client), TokioIo::new(origin));
            match tokio::io::copy_bidirectional(&mut client, &mut origin).await {
                Ok((up, down)) => debug!(%uri, up, down, "tunnel ended"),
                Err(error) => debug!(%uri, %error, "tunnel broke"),
            }
        });
        let mut headers = answer.headers().clone();
        let kept = KEEP.map(|name| headers.get(&name).cloned().map(|value| (name, value)));
        policy::strip_hop_by_hop(&mut headers);
        for (name, value) in kept.into_iter().flatten() {
            headers.insert(name, value);
        }
        let status = StatusCode::SWITCHING_PROTOCOLS;
        let trace = self.trace(Some(asked), Outcome::Pass, Source::Origin, status);
        let mut response = response(status, headers, Payload::empty(trace));
        *response.extensions_mut() = std::mem::take(answer.extensions_mut());
        Ok(response)
    }
}
