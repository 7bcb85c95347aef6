//! What can go wrong: at start (the operator's to mend), and with one request (the asker's).

use std::{io, net::SocketAddr};

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use cluster::{geo::GeoError, membership::MembershipError, secret::SecretError, wire::ErrorAnswer};

use crate::{data_dir::DataDirError, sites::OpenError, store::StoreError};

/// Why a control plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error("node.data_dir: {0}")]
    DataDir(#[from] DataDirError),
    /// A file in it cannot be read or written.
    #[error("node.data_dir: {name}: {source}")]
    File {
        /// Its name.
        name: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The store cannot be opened.
    #[error("store: {0}")]
    Store(io::Error),
    /// The store does not answer.
    #[error("store: {0}")]
    StoreAway(#[from] StoreError),
    /// The tokens cannot be read from it.
    #[error("store: tokens cannot be read: {0}")]
    Tokens(StoreError),
    /// The cluster's secret cannot be used.
    #[error("cluster.secret_file: {0}")]
    Secret(#[from] SecretError),
    /// The address database cannot be used.
    #[error("geo.database: {0}")]
    Geo(#[from] GeoError),
    /// The site registry cannot be opened.
    #[error("{0}")]
    Sites(#[from] OpenError),
    /// A listener cannot be opened.
    #[error("{listener}: cannot listen at {at}: {}", why_not(source))]
    Bind {
        /// The key that configures it.
        listener: &'static str,
        /// Where it should have been.
        at: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The gossip cannot be joined.
    #[error("{}", gossip_reason(.0))]
    Gossip(#[from] MembershipError),
}

fn gossip_reason(error: &MembershipError) -> String {
    match error {
        MembershipError::Bind { at, source } => {
            format!("listen.gossip: cannot listen at {at}: {}", why_not(source))
        }
        MembershipError::Advertise { .. } | MembershipError::NoOutwardAddress(_) => {
            format!("advertise.gossip: {error}")
        }
        other => format!("cluster: {other}"),
    }
}

fn why_not(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "port in use".to_owned(),
        _ => error.to_string(),
    }
}

/// What a request is answered with when it is not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    answer: ErrorAnswer,
}

impl ApiError {
    /// The asker's mistake, in this parameter.
    pub fn parameter(field: &str, reason: impl ToString) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            answer: ErrorAnswer {
                error: format!("{field}: {}", reason.to_string()),
                field: Some(field.to_owned()),
            },
        }
    }

    /// The asker's mistake, in this field of what was sent, with this status.
    pub fn field(status: StatusCode, field: &str, reason: impl ToString) -> Self {
        Self {
            status,
            ..Self::parameter(field, reason)
        }
    }

    /// The same where the words tell the field already.
    pub fn of_field(status: StatusCode, field: &str, reason: impl ToString) -> Self {
        Self {
            status,
            answer: ErrorAnswer {
                error: reason.to_string(),
                field: Some(field.to_owned()),
            },
        }
    }

    /// The same, of a field of `outer`.
    pub fn within(mut self, outer: &str) -> Self {
        self.answer.error = format!("{outer}: {}", self.answer.error);
        self.answer.field = Some(match self.answer.field {
            Some(field) => format!("{outer}.{field}"),
            None => outer.to_owned(),
        });
        self
    }

    /// There is no such thing.
    pub fn not_found(reason: impl ToString) -> Self {
        Self::new(StatusCode::NOT_FOUND, reason)
    }

    /// Any other refusal.
    pub fn new(status: StatusCode, reason: impl ToString) -> Self {
        Self {
            status,
            answer: ErrorAnswer {
                error: reason.to_string(),
                field: None,
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.answer)).into_response()
    }
}
