//! The rule by which this node sheds what is too much, from the first to the last: fetches for which
//! nobody waits, such as validations behind an answer that was stale; then new misses, and what passes
//! through. What is stored is served as ever: a hit needs none of the places that are given here.

use std::{sync::Arc, time::Duration};

use cluster::node::NodeId;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{Asked, Proxy};
use crate::{
    cache::Filler,
    error::{Kind, ServeError},
    metrics::Shed,
    upstream::gate::{Place, Refused},
};

/// At the end of this process, for fills whose clients have all they want: a body that has come whole is
/// committed in far less, and one that has not is not waited for.
const SETTLE_MAX: Duration = Duration::from_secs(1);

/// The places of fills on this node.
#[derive(Clone, Debug)]
pub(super) struct Fills {
    places: Arc<Semaphore>,
    most: u32,
}

impl Fills {
    pub(super) fn new(most: usize) -> Self {
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        Self {
            places: Arc::new(Semaphore::new(most as usize)),
            most,
        }
    }

    /// Whether there is room for what nobody has asked for: at least half of the places are free.
    pub(super) fn have_room(&self) -> bool {
        self.places.available_permits() * 2 >= self.most as usize
    }
}

/// The right to fill. Dropping it lets another fill begin.
pub(super) type FillPlace = OwnedSemaphorePermit;

impl Proxy {
    /// A place for one more fill; nobody waits for one.
    pub(super) fn fill_place(&self) -> Result<FillPlace, ServeError> {
        let taken = self.shared.fills.places.clone().try_acquire_owned();
        taken.map_err(|_| self.shed(Shed::Fills, "as many fills as there may be"))
    }

    /// The same, for who can do without.
    pub(super) fn fill_place_at_once(&self) -> Option<FillPlace> {
        self.shared.fills.places.clone().try_acquire_owned().ok()
    }

    /// Waits until no fill is under way, but not for long (`SETTLE_MAX`); none can begin any more.
    pub async fn settle(&self) {
        let Fills { places, most } = &self.shared.fills;
        let all = timeout(SETTLE_MAX, places.acquire_many(*most)).await;
        places.close();
        drop(all);
    }

    /// A place at the site's origins, in turn.
    pub(super) async fn origin_place(&self, asked: &Asked) -> Result<Place, ServeError> {
        let entered = self.shared.upstream.place(&asked.site).await;
        entered.map_err(|refused| {
            let reason = match refused {
                Refused::Full => Shed::OriginQueueFull,
                Refused::Late => Shed::OriginQueueTimeout,
            };
            self.shed_for(Kind::OriginBusy, reason, refused)
        })
    }

    /// The same for a fill. One for which nobody waits does not stand in line either: a validation behind
    /// an answer that was stale, or what was asked for by clients who have left since.
    pub(super) async fn fill_origin_place(
        &self,
        asked: &Asked,
        filler: &Filler,
    ) -> Result<Place, ServeError> {
        tokio::select! {
            biased;
            place = self.origin_place(asked) => place,
            () = filler.deserted() => Err(self.shed(Shed::Unwanted, "nobody waits for it")),
        }
    }

    /// What a home has too much of is not done from here instead: then nodes that ask for a crowd would
    /// have as many requests at the origin as they are many times the home's limits.
    pub(super) fn shed_by_home(&self, home: &NodeId, kind: Kind) -> ServeError {
        let detail = format!("home {home} has too much to do");
        self.shed_for(kind, Shed::Home, detail)
    }

    /// Whether this process is about to end, and begins no fill any more.
    pub(super) fn is_ending(&self) -> bool {
        self.shared.fills.places.is_closed()
    }

    fn shed(&self, reason: Shed, detail: impl ToString) -> ServeError {
        self.shed_for(Kind::Overloaded, reason, detail)
    }

    fn shed_for(&self, kind: Kind, reason: Shed, detail: impl ToString) -> ServeError {
        self.shared.metrics.shed(reason);
        ServeError::new(kind, detail)
    }
}
