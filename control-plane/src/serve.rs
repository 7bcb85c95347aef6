//! Connections: how many, how long, and how they end. HTTP/1.1 only: every client here is a node, a
//! tool or a browser on its way to an edge.
//!
//! A connection carries one request at a time, so the bound on connections bounds requests as well.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{Request, StatusCode},
    response::IntoResponse,
};
use cluster::net::{BoxStream, Listener};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::ServiceExt;
use tracing::{debug, warn};

use crate::error::ApiError;

/// Longest time for a request head, and longest silence between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest request head in bytes: URLs and cookies of sites pass through the steering listener.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Longest time to make an answer. Nearly all are made from snapshots; a purge waits for edges, at most
/// for [`crate::receipts::WAIT_MAX`].
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest life of a connection: whoever takes nothing of what is sent holds no place for ever.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(300);
/// Pause after a connection could not be accepted: too many open files do not pass at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One listener and what answers on it.
pub struct Server {
    /// Its name, in logs.
    pub name: &'static str,
    /// Where clients come in.
    pub listener: Box<dyn Listener>,
    /// What answers them.
    pub router: Router,
    /// Most connections at once; more wait in the system's queue.
    pub connections_max: usize,
    /// How long requests may take to finish once it is to stop.
    pub drain_time: Duration,
}

impl Server {
    /// Serves until `stop` says so, then lets running requests finish.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let places = Arc::new(Semaphore::new(self.connections_max));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
                accepted = async {
                    let place = places.clone().acquire_owned().await;
                    (self.listener.accept().await, place)
                } => accepted,
            };
            match accepted {
                (Ok((stream, from)), place) => {
                    let connection = connection(
                        stream,
                        from,
                        self.router.clone(),
                        stop.clone(),
                        self.drain_time,
                    );
                    connections.spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                (Err(error), _) => {
                    warn!(listener = self.name, %error, "connection not accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.listener);
        let left = async { while connections.join_next().await.is_some() {} };
        if timeout(self.drain_time, left).await.is_err() {
            warn!(listener = self.name, "connections cut off at shutdown");
        }
    }
}

/// Waits until `stop` is true, or nobody is left to say so.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn connection(
    stream: BoxStream,
    from: SocketAddr,
    router: Router,
    mut stop: watch::Receiver<bool>,
    drain_time: Duration,
) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(from));
        let answer = router.clone().oneshot(request.map(Body::new));
        async move {
            Ok::<_, Infallible>(match timeout(ANSWER_TIMEOUT, answer).await {
                Ok(Ok(answer)) => answer,
                Err(_) => {
                    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "took too long").into_response()
                }
            })
        }
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = async {
            tokio::select! {
                () = stopped(&mut stop) => {}
                () = sleep(CONNECTION_TIME_MAX) => {}
            }
        } => {
            connection.as_mut().graceful_shutdown();
            match timeout(drain_time, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        debug!(%from, %error, "connection ended early");
    }
}
