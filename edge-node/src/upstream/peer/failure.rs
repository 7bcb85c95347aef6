//! Why a peer gave no (complete) object.

use cluster::node::NodeId;

use crate::upstream::pool::{self, Fault};

/// Why a peer gave no (complete) object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It does not hold it.
    #[error("does not hold it")]
    Miss,
    /// It holds it, but would not serve it any more.
    #[error("holds it, but no longer fresh")]
    Stale,
    /// It holds something else under that key.
    #[error("holds another version")]
    Other,
    /// The site has taken it down, as far as it knows.
    #[error("says that it is taken down")]
    TakenDown,
    /// What was asked for has not come in there yet.
    #[error("does not have it yet")]
    NotYet,
    /// Another has it.
    #[error("says that {0} has it")]
    Elsewhere(NodeId),
    /// It has too much to do.
    #[error("is busy")]
    Busy,
    /// It failed lately; it was not asked.
    #[error("is ejected")]
    Ejected,
    /// No connection.
    #[error("cannot be reached: {0}")]
    Connect(String),
    /// No answer in time.
    #[error("does not answer in time")]
    Timeout,
    /// It fell silent within its answer, or drips.
    #[error("stalls within its answer")]
    Stalled,
    /// It does not take us for a member of the cluster.
    #[error("refuses this node")]
    Denied,
    /// It closed the connection before the end. A node that does not take us for a member does so
    /// without a word.
    #[error("closed the connection early")]
    ClosedEarly,
    /// A piece is not what the manifest says.
    #[error("sent a wrong piece {piece}")]
    Corrupt {
        /// Which one.
        piece: u32,
    },
    /// What it says cannot be understood.
    #[error("sent what cannot be understood: {0}")]
    Garbage(String),
}

impl PeerError {
    /// One word, for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Miss => "miss",
            Self::Stale => "stale",
            Self::Other => "other",
            Self::TakenDown => "taken_down",
            Self::NotYet => "not_yet",
            Self::Elsewhere(_) => "elsewhere",
            Self::Busy => "busy",
            Self::Ejected => "ejected",
            Self::Connect(_) => "connect",
            Self::Timeout => "timeout",
            Self::Stalled => "stalled",
            Self::Denied => "denied",
            Self::ClosedEarly => "closed_early",
            Self::Corrupt { .. } => "corrupt",
            Self::Garbage(_) => "garbage",
        }
    }
}

impl From<pool::SendError> for PeerError {
    fn from(error: pool::SendError) -> Self {
        match error.fault {
            Fault::Connect | Fault::ConnectTimeout | Fault::Tls => Self::Connect(error.to_string()),
            Fault::HeadTimeout => Self::Timeout,
            Fault::BodyTimeout => Self::Stalled,
            Fault::ClosedEarly | Fault::RequestBody => Self::ClosedEarly,
            Fault::Garbage | Fault::TooLarge => Self::Garbage(error.to_string()),
        }
    }
}
