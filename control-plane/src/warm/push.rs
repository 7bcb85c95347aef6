//! One batch to one edge: a signed request to its peer listener, and an answer that tells of one URL
//! after the other while they come in.

use std::{sync::Arc, time::Duration};

use bytes::{Buf as _, Bytes, BytesMut};
use cluster::{
    auth::{self, Signer},
    clock::Clock,
    net::Net,
    node::NodeId,
    wire::{WARM, WARM_SILENCE_MAX_S, WarmBatch, WarmStep},
};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{task::JoinSet, time::timeout};

/// For a connection to an edge.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest silence of an edge: before its answer, and within.
const SILENCE_MAX: Duration = Duration::from_secs(WARM_SILENCE_MAX_S);
/// Longest line of an answer: a result, with a reason in it.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Hands batches to edges. Cheap to clone.
#[derive(Clone)]
pub(super) struct Pusher {
    pub(super) net: Arc<dyn Net>,
    pub(super) signer: Signer,
    pub(super) clock: Clock,
}

impl Pusher {
    /// Has `node`, whose peer listener is at `at`, fetch a batch, and tells `told` of each URL. Dropping
    /// the future has the edge begin no further one.
    ///
    /// # Errors
    ///
    /// What went wrong before the answer came to its end; what was told until then holds.
    pub(super) async fn push(
        &self,
        node: &NodeId,
        at: &str,
        batch: &WarmBatch,
        mut told: impl FnMut(WarmStep),
    ) -> Result<(), String> {
        let stream = timeout(CONNECT_TIMEOUT, self.net.connect(at))
            .await
            .map_err(|_| format!("no connection to {at} in {CONNECT_TIMEOUT:?}"))?
            .map_err(|error| format!("{at} cannot be reached: {error}"))?;
        let failed = |error: hyper::Error| match error.is_incomplete_message() {
            // This is how a node sends away who does not know its secret.
            true => format!("{at} closed the connection: another secret, or a clock that is off?"),
            false => format!("{at}: {error}"),
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        // Ends with this future.
        let mut connections = JoinSet::new();
        connections.spawn(connection);
        let body = serde_json::to_vec(batch).expect("plain data with text keys");
        let path = format!("{WARM}?{}", auth::body_parameter(&body));
        let mut request = Request::post(&path).header(header::HOST, at);
        for (name, value) in self.signer.sign(node, "POST", &path, self.clock.unix_ms()) {
            request = request.header(name, value);
        }
        let request = request
            .body(Full::<Bytes>::from(body))
            .map_err(|error| format!("{at}: {error}"))?;
        let silent = |_| format!("{at} has been silent for {SILENCE_MAX:?}");
        let answer = timeout(SILENCE_MAX, sender.send_request(request))
            .await
            .map_err(silent)?
            .map_err(failed)?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::SERVICE_UNAVAILABLE => return Err("has enough to do".to_owned()),
            status => return Err(format!("{at} answered {status}: is it an older version?")),
        }
        let (mut body, mut text) = (answer.into_body(), BytesMut::new());
        while let Some(frame) = timeout(SILENCE_MAX, body.frame()).await.map_err(silent)? {
            let frame = frame.map_err(|error| format!("{at}: the answer broke off: {error}"))?;
            text.extend_from_slice(frame.data_ref().map_or(&[], |bytes| &**bytes));
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line = text.split_to(end);
                text.advance(1);
                if !line.is_empty() {
                    let step = serde_json::from_slice::<WarmStep>(&line);
                    told(step.map_err(|error| format!("{at} is not understood: {error}"))?);
                }
            }
            if text.len() > LINE_BYTES_MAX {
                return Err(format!("{at} is not understood: a line without end"));
            }
        }
        Ok(())
    }
}
