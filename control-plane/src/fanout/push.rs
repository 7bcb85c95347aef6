//! A connection to the peer listener of an edge, kept, and one push over it.

use std::time::Duration;

use bytes::Bytes;
use cluster::{
    auth::{self, Signer},
    net::Net,
    node::NodeId,
    purge::Position,
    wire::{PURGES, PurgeApplied},
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{task::JoinSet, time::timeout};

/// For a connection to an edge.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// For an edge to apply what it is sent, to have it on disk, and to say so.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer: it is one place in the log.
const ANSWER_BYTES_MAX: usize = 4 << 10;

/// A connection to one edge. Dropping it closes it.
pub(super) struct Link {
    address: String,
    sender: http1::SendRequest<Full<Bytes>>,
    /// What drives it; empty once it has ended.
    driver: JoinSet<()>,
}

impl Link {
    /// Connects to the peer listener at `address`.
    pub(super) async fn open(net: &dyn Net, address: &str) -> Result<Self, String> {
        let stream = timeout(CONNECT_TIMEOUT, net.connect(address))
            .await
            .map_err(|_| format!("no connection to {address} in {CONNECT_TIMEOUT:?}"))?
            .map_err(|error| format!("{address} cannot be reached: {error}"))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("{address}: {error}"))?;
        let mut driver = JoinSet::new();
        driver.spawn(async {
            // What went wrong is told to who sends.
            let _ = connection.await;
        });
        Ok(Self {
            address: address.to_owned(),
            sender,
            driver,
        })
    }

    pub(super) fn leads_to(&self, address: &str) -> bool {
        self.address == address
    }

    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Waits for its end.
    pub(super) async fn ended(&mut self) {
        while self.driver.join_next().await.is_some() {}
    }

    /// Hands `node` a batch of records, as JSON, and gives the place up to which it lacks nothing.
    pub(super) async fn push(
        &mut self,
        signer: &Signer,
        node: &NodeId,
        now_ms: u64,
        body: Bytes,
    ) -> Result<Position, String> {
        let at = &self.address;
        let failed = |error: hyper::Error| match error.is_incomplete_message() {
            // This is how a node sends away who does not know its secret.
            true => format!("{at} closed the connection: another secret, or a clock that is off?"),
            false => format!("{at}: {error}"),
        };
        let path = format!("{PURGES}?{}", auth::body_parameter(&body));
        let mut request = Request::post(&path)
            .header(header::HOST, at)
            .header(header::CONTENT_TYPE, "application/json");
        for (name, value) in signer.sign(node, "POST", &path, now_ms) {
            request = request.header(name, value);
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| format!("{at}: {error}"))?;
        let exchange = async {
            self.sender.ready().await.map_err(failed)?;
            let answer = self.sender.send_request(request).await.map_err(failed)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect();
            let body = body
                .await
                .map_err(|error| format!("{at}: the answer broke off: {error}"))?;
            match status {
                StatusCode::OK => {}
                StatusCode::SERVICE_UNAVAILABLE => return Err("has enough to do".to_owned()),
                status => return Err(format!("{at} answered {status}: is it an older version?")),
            }
            let applied: PurgeApplied = serde_json::from_slice(&body.to_bytes())
                .map_err(|error| format!("{at} is not understood: {error}"))?;
            Ok(applied.applied)
        };
        timeout(ANSWER_TIMEOUT, exchange)
            .await
            .map_err(|_| format!("{at} has been silent for {ANSWER_TIMEOUT:?}"))?
    }
}
