//! What is true in a run, and what each edge may answer because of it. Without clock or await.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use cluster::purge::{Position, Scope};

/// One object of the site.
pub(super) struct Object {
    /// Path and query.
    pub(super) target: &'static str,
    /// What the origin tags it with.
    pub(super) tags: &'static str,
    /// Whether the origin gives it an entity tag, so that it can be validated.
    pub(super) has_etag: bool,
    /// Whether it may be used stale while it is validated.
    pub(super) while_revalidating: bool,
    /// The length of its body.
    pub(super) bytes: u64,
}

const fn object(
    target: &'static str,
    tags: &'static str,
    has_etag: bool,
    while_revalidating: bool,
    bytes: u64,
) -> Object {
    Object {
        target,
        tags,
        has_etag,
        while_revalidating,
        bytes,
    }
}

/// All that there are.
pub(super) const OBJECTS: [Object; 6] = [
    object("/a/1", "one odd", true, false, 300),
    object("/a/2", "two even", false, false, 300),
    object("/a/3?x=1", "three odd", true, true, 70_000),
    object("/b/1", "four even", true, false, 70_000),
    object("/b/2?y", "five odd", false, false, 300),
    object("/c", "six even", true, false, 300),
];

/// For so long a way must be free until nothing excuses an edge any more: a check that hangs on a connection
/// from before takes 3 s, the next begins within one, and its answer counts for 2 s.
const FREE: Duration = Duration::from_secs(7);
/// The longest from a request's way to an edge on to the end of the check that the edge makes for it: two
/// messages for the connection, one for the request, and 340 ms until the check is given up.
const CHECKED: Duration = Duration::from_millis(500);
/// How long the site lets its edges answer without hearing of a control plane: longer than a fill takes.
pub(super) const LIMIT: Duration = Duration::from_secs(6);
/// From a purge's request being answered on, nobody is told by a control plane that there was none; what is on
/// the way then is there by this.
const ON_ITS_WAY: Duration = Duration::from_millis(100);
/// Why an edge must know what was purged longer ago than [`LIMIT`].
pub(super) const LONG_AGO: &str = "taken longer ago than the limit";
/// So long before a request the fetch may have begun whose body it gets: a home that falls silent (3 s), on each
/// level, and what the origin takes.
const FOLLOWED: Duration = Duration::from_secs(8);
/// After so long without anybody, an edge checks before it answers.
pub(super) const ALONE: Duration = Duration::from_millis(2_200);

/// A host, and since when it is as it is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Life {
    /// Whether it runs.
    pub(super) is_up: bool,
    /// Since when.
    pub(super) since: Duration,
    /// How often it has been started or killed.
    pub(super) count: u64,
}

/// A purge whose request was answered: it is in the log.
struct Taken {
    name: u64,
    /// When the answer was there.
    at: Duration,
    /// By object, the version that the origin had from the edit on.
    covers: [Option<u64>; OBJECTS.len()],
    soft: bool,
    /// Who has acknowledged it.
    by: BTreeSet<&'static str>,
    /// The log has lost it: nobody can know of it any more who did not.
    is_lost: bool,
}

/// What an edge must not go below, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bound {
    /// The least version.
    pub(super) version: u64,
    /// Why.
    pub(super) why: String,
}

/// What an answer must be like that begins now.
#[derive(Clone, Debug, Default)]
pub(super) struct Due {
    /// By purges after which it is gone.
    pub(super) hard: Bound,
    /// By purges after which it is stale.
    pub(super) soft: Bound,
    /// What the origin had.
    pub(super) version: u64,
    /// Since when the origin must have had something new, if the body is cut.
    pub(super) since: Duration,
    /// The edge's life.
    pub(super) life: Life,
}

/// What an edge that is asked learns before it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Learns {
    /// Nothing.
    Nothing,
    /// What it must have learnt since it was started, before it uses what it has.
    Started,
    /// What the check tells it that it makes for the request as well.
    All,
}

/// How often what happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Answers from an edge's own store.
    pub(super) hits: u64,
    /// From other edges, homes included.
    pub(super) peers: u64,
    /// From the origin.
    pub(super) origin: u64,
    /// Used stale while it was validated.
    pub(super) stale: u64,
    /// Answers that a purge said something of.
    pub(super) bound: u64,
    /// Of these, because of what an edge must have learnt without having acknowledged it.
    pub(super) learnt: u64,
    /// Of these, because it was purged longer ago than an edge may go without hearing of it.
    pub(super) limited: u64,
    /// Purges in the log.
    pub(super) purges: u64,
    /// Purges of which the control plane said nothing.
    pub(super) unanswered: u64,
    /// Receipts.
    pub(super) receipts: u64,
    /// Edges that gave none in time.
    pub(super) late: u64,
    /// Ways cut.
    pub(super) cuts: u64,
    /// Hosts killed.
    pub(super) kills: u64,
    /// Purge logs lost.
    pub(super) logs_lost: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.hits += other.hits;
        self.peers += other.peers;
        self.origin += other.origin;
        self.stale += other.stale;
        self.bound += other.bound;
        self.learnt += other.learnt;
        self.limited += other.limited;
        self.purges += other.purges;
        self.unanswered += other.unanswered;
        self.receipts += other.receipts;
        self.late += other.late;
        self.cuts += other.cuts;
        self.kills += other.kills;
        self.logs_lost += other.logs_lost;
    }
}

/// All that is true.
#[derive(Default)]
pub(super) struct Facts {
    /// What the origin has.
    pub(super) versions: [u64; OBJECTS.len()],
    /// When that was changed last.
    pub(super) changed: [Duration; OBJECTS.len()],
    /// Hosts by name.
    pub(super) lives: BTreeMap<&'static str, Life>,
    /// Ways that are cut, or were.
    ways: BTreeMap<(&'static str, &'static str), (bool, Duration)>,
    /// When ways were lost, by a cut or because an end of them was killed.
    lost: Vec<(&'static str, &'static str, Duration)>,
    /// When an edge was cut off from all others for the last time: from when, and until when.
    alone: BTreeMap<&'static str, (Duration, Duration)>,
    taken: Vec<Taken>,
    /// Where the log ends, once all is well again.
    pub(super) head: Position,
    unanswered: Vec<[Option<u64>; OBJECTS.len()]>,
    is_all_due: bool,
    /// What happened.
    pub(super) trace: Vec<String>,
    /// How often.
    pub(super) counts: Counts,
}

impl Facts {
    /// Notes what happens.
    pub(super) fn note(&mut self, now: Duration, what: impl fmt::Display) {
        self.trace.push(format!("{:8.3} {what}", now.as_secs_f64()));
    }

    /// A host runs from now on, or does not.
    pub(super) fn lives(&mut self, host: &'static str, is_up: bool, now: Duration) {
        let life = self.lives.entry(host).or_default();
        life.is_up = is_up;
        life.since = now;
        life.count += 1;
        if !is_up {
            self.lost.push((host, "", now));
        }
        self.counts.kills += u64::from(!is_up);
        self.note(
            now,
            format_args!("{host} {}", if is_up { "starts" } else { "is killed" }),
        );
    }

    /// Whether a host runs.
    pub(super) fn is_up(&self, host: &str) -> bool {
        self.lives.get(host).is_some_and(|life| life.is_up)
    }

    /// A way is cut from now on, or free again.
    pub(super) fn way(
        &mut self,
        one: &'static str,
        other: &'static str,
        is_cut: bool,
        now: Duration,
    ) {
        self.ways.insert(ends(one, other), (is_cut, now));
        if is_cut {
            let (one, other) = ends(one, other);
            self.lost.push((one, other, now));
        }
        self.counts.cuts += u64::from(is_cut);
        let word = if is_cut { "cut" } else { "free" };
        self.note(now, format_args!("{one} - {other} is {word}"));
    }

    /// Ways that are cut.
    pub(super) fn cut(&self) -> Vec<(&'static str, &'static str)> {
        let cut = self.ways.iter().filter(|(_, (is_cut, _))| *is_cut);
        cut.map(|(way, _)| *way).collect()
    }

    /// An edge was cut off from everybody in between.
    pub(super) fn was_alone(&mut self, edge: &'static str, from: Duration, until: Duration) {
        self.alone.insert(edge, (from, until));
    }

    /// The origin has new versions of what these scopes hit; returns them by object.
    pub(super) fn edit(&mut self, scopes: &[Scope], now: Duration) -> [Option<u64>; OBJECTS.len()] {
        let mut covers = [None; OBJECTS.len()];
        for (n, object) in OBJECTS.iter().enumerate() {
            if scopes.iter().any(|scope| hits(scope, object)) {
                self.versions[n] += 1;
                self.changed[n] = now;
                covers[n] = Some(self.versions[n]);
            }
        }
        covers
    }

    /// A purge is in the log that it was sent to, after so many were lost. Returns its place among all, for
    /// [`Facts::acknowledged`].
    pub(super) fn took(
        &mut self,
        name: u64,
        covers: [Option<u64>; OBJECTS.len()],
        soft: bool,
        logs_lost: u64,
        now: Duration,
    ) -> usize {
        self.counts.purges += 1;
        self.taken.push(Taken {
            name,
            at: now,
            covers,
            soft,
            by: BTreeSet::new(),
            // Seed 1006: the log was lost while the answer was on its way.
            is_lost: logs_lost < self.counts.logs_lost,
        });
        self.taken.len() - 1
    }

    /// An edge has acknowledged a purge.
    pub(super) fn acknowledged(&mut self, purge: usize, edge: &'static str) {
        self.counts.receipts += u64::from(self.taken[purge].by.insert(edge));
    }

    /// The control plane has lost its log.
    pub(super) fn log_lost(&mut self, now: Duration) {
        self.counts.logs_lost += 1;
        self.note(now, "the purge log is lost");
        self.taken.iter_mut().for_each(|taken| taken.is_lost = true);
    }

    /// Nobody said that this is in the log.
    pub(super) fn unanswered(&mut self, covers: [Option<u64>; OBJECTS.len()]) {
        self.counts.unanswered += 1;
        self.unanswered.push(covers);
    }

    /// What was purged, and not all of `edges` need to know.
    pub(super) fn unknown(&self, edges: &[&'static str]) -> BTreeSet<usize> {
        let is_unknown =
            |taken: &&Taken| taken.is_lost && !edges.iter().all(|edge| taken.by.contains(edge));
        let taken = self
            .taken
            .iter()
            .filter(is_unknown)
            .map(|taken| &taken.covers);
        let covers = taken.chain(&self.unanswered);
        covers
            .flat_map(|covers| (0..OBJECTS.len()).filter(move |n| covers[*n].is_some()))
            .collect()
    }

    /// Everybody knows of all, and has looked whether what is stale still holds.
    pub(super) fn all_is_due(&mut self) {
        self.is_all_due = true;
    }

    /// Whether `edge` lost its way to the control plane before a check for a request could end that was sent
    /// `then`, and answered by `now`: nothing told it from one that is cut off still, which may answer until
    /// [`LIMIT`].
    pub(super) fn is_lost_behind(&self, edge: &'static str, then: Duration, now: Duration) -> bool {
        let way = ends(edge, "control");
        let lost = self.lost.iter();
        lost.filter(|(_, _, when)| (then..=now.min(then + CHECKED)).contains(when))
            .any(|(one, other, _)| (*one, *other) == way || *one == "control")
    }

    /// What an answer of `edge` for object `n` must be like that begins now: by receipts, by what it must know
    /// before it is asked, and by what it `learns` then.
    pub(super) fn due(&self, edge: &'static str, n: usize, now: Duration, learns: Learns) -> Due {
        let mut due = Due {
            version: self.versions[n],
            since: now.saturating_sub(FOLLOWED),
            life: self.lives.get(edge).copied().unwrap_or_default(),
            ..Due::default()
        };
        if self.is_all_due {
            due.hard = Bound {
                version: due.version,
                why: "all is well again".to_owned(),
            };
        }
        for taken in &self.taken {
            let Some(version) = taken.covers[n] else {
                continue;
            };
            let bound = if taken.soft {
                &mut due.soft
            } else {
                &mut due.hard
            };
            if version <= bound.version {
                continue;
            }
            let why = match taken.by.contains(edge) {
                true => Some("acknowledged"),
                false if taken.is_lost => None,
                false => self.must_know(edge, taken.at, now, learns),
            };
            if let Some(why) = why {
                *bound = Bound {
                    version,
                    why: format!("purge {} {why}", taken.name),
                };
            }
        }
        due
    }

    /// Why `edge` must know of what was in the log `at` then, if it answers from now on; or `learns` of it then.
    fn must_know(
        &self,
        edge: &'static str,
        at: Duration,
        now: Duration,
        learns: Learns,
    ) -> Option<&'static str> {
        if at + ON_ITS_WAY + LIMIT < now {
            // Whatever is cut: who has not heard of it by then has heard of nobody for as long.
            return Some(LONG_AGO);
        }
        let (is_cut, way_since) = self
            .ways
            .get(&ends(edge, "control"))
            .copied()
            .unwrap_or_default();
        let control = self.lives.get("control").copied().unwrap_or_default();
        let life = self.lives.get(edge).copied().unwrap_or_default();
        if is_cut || !control.is_up || !life.is_up {
            return None;
        }
        let free = way_since.max(control.since);
        if free.max(life.since).max(at) + FREE <= now {
            return Some("in reach for long");
        }
        if learns < Learns::Started {
            return None;
        }
        if at <= life.since && free <= life.since {
            return Some("taken before it started");
        }
        if learns < Learns::All {
            return None;
        }
        let (from, until) = self.alone.get(edge).copied().unwrap_or_default();
        // Nothing else happened since it was alone.
        if from + ALONE <= until && at <= until && free <= until && life.since <= from {
            return Some("taken while it was alone");
        }
        None
    }
}

/// Both ends of a way, in one order.
pub(super) fn ends(one: &'static str, other: &'static str) -> (&'static str, &'static str) {
    if one < other {
        (one, other)
    } else {
        (other, one)
    }
}

/// Whether a scope hits an object, by what its words mean.
fn hits(scope: &Scope, object: &Object) -> bool {
    let local = |text: &str| text.strip_prefix("//site.test").unwrap_or(text).to_owned();
    match scope {
        Scope::Url(url) => local(url) == object.target,
        Scope::Prefix(prefix) => object.target.starts_with(&local(prefix)),
        Scope::Tag(tag) => object.tags.split(' ').any(|own| own == tag),
        Scope::All => true,
    }
}
