//! A pull of the purge log, page by page, which goes on where it was broken off. Pure.
//!
//! A page leaves out what a later one hits again. So only all pages together say that nothing is missing, up
//! to the furthest end of the log that any of them has told of: of several control planes one may be behind,
//! and its log end before what an earlier page relied on. Until then their records count, and that is all.

use cluster::{
    purge::{Passage, Position, Record},
    wire::PurgePage,
};

/// How far a pull has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pull {
    /// Who had everything up to here, and has applied the pages since …
    from: Position,
    /// … up to here, lacks only what pages behind it make up for …
    after: Position,
    /// … at the latest one that reaches this.
    furthest: Position,
}

/// What to apply of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Batch {
    /// Nothing of it is news.
    Nothing,
    /// The one page that there is: all of it at once.
    Whole(Vec<Record>, Passage),
    /// One of several: its records first; then, if it was the last one, that nothing was left out.
    Part(Vec<Record>, Option<Passage>),
}

impl Pull {
    /// One of what comes behind `applied`.
    fn behind(applied: Position) -> Self {
        Self {
            from: applied,
            after: applied,
            furthest: applied,
        }
    }

    /// The next one of a node that has applied everything up to `applied`. It goes on where another was
    /// `broken_off`, if that is of any use.
    pub fn begin(applied: Position, broken_off: Option<Self>) -> Self {
        let is_ahead =
            |pull: &Self| pull.after > applied && (pull.from <= applied || pull.from.seq == 0);
        broken_off
            .filter(is_ahead)
            .unwrap_or_else(|| Self::behind(applied))
    }

    /// Where the next page begins.
    pub fn after(&self) -> Position {
        self.after
    }

    /// The further of two.
    pub fn further(self, other: Option<Self>) -> Self {
        other
            .filter(|other| other.after > self.after)
            .unwrap_or(self)
    }

    /// Takes in a page that was asked for behind [`Pull::after`], and says what to apply of it, before
    /// anything else is done with this pull.
    pub fn turn(&mut self, mut page: PurgePage) -> Batch {
        let (log, before) = (page.log, self.after);
        if log < before.log {
            // It says nothing of the log that is in force.
            return Batch::Nothing;
        }
        let place = |seq| Position { log, seq };
        if log > self.from.log {
            self.from = place(0);
        }
        let is_first = log > before.log || self.from == before;
        self.after = before.max(place(page.through));
        self.furthest = self.furthest.max(place(page.head));
        let passage = self.is_through().then_some(Passage {
            from: self.from,
            to: self.after,
        });
        let is_news = passage.is_some_and(|passage| passage.to > before || !is_first);
        match passage {
            _ if page.records.is_empty() && !is_news => Batch::Nothing,
            Some(passage) if is_first => Batch::Whole(page.records, passage),
            passage => {
                page.unlink();
                Batch::Part(page.records, passage)
            }
        }
    }

    /// Whether no page is missing of all that it was told of.
    pub fn is_through(&self) -> bool {
        self.after >= self.furthest
    }

    /// Up to which place it leads at least.
    pub fn furthest(&self) -> Position {
        self.furthest
    }
}

#[cfg(test)]
mod tests {
    use cluster::purge::{Purge, Scope};

    use super::*;

    const fn at(log: u64, seq: u64) -> Position {
        Position { log, seq }
    }

    fn page(log: u64, head: u64, through: u64, seqs: &[u64]) -> PurgePage {
        let record = |seq: &u64| Record {
            at: at(log, *seq),
            prev: 0,
            purge: Purge {
                site: "a".into(),
                scopes: vec![Scope::All],
                soft: false,
            },
            taken_at: 0,
            by: String::new(),
        };
        PurgePage {
            log,
            head,
            through,
            records: seqs.iter().map(record).collect(),
            age_ms: None,
            now_ms: None,
        }
    }

    /// The numbers of the records with those said to be before them, and the passage.
    type Told = (Vec<(u64, u64)>, Option<(Position, Position)>);

    fn told(batch: Batch) -> Told {
        let (records, passage) = match batch {
            Batch::Nothing => (Vec::new(), None),
            Batch::Whole(records, passage) => (records, Some(passage)),
            Batch::Part(records, passage) => (records, passage),
        };
        let numbers = records.iter().map(|record| (record.prev, record.at.seq));
        (
            numbers.collect(),
            passage.map(|Passage { from, to }| (from, to)),
        )
    }

    #[test]
    fn one_page_says_all_there_is() {
        let mut pull = Pull::begin(at(5, 3), None);
        assert_eq!(pull.after(), at(5, 3));
        let batch = pull.turn(page(5, 9, 9, &[4, 9]));
        assert!(matches!(batch, Batch::Whole(..)));
        let expected = (vec![(0, 4), (0, 9)], Some((at(5, 3), at(5, 9))));
        assert_eq!(told(batch), expected);
        assert!(pull.is_through());
        // Of who has everything, or more.
        for head in [2, 3] {
            let mut pull = Pull::begin(at(5, 3), None);
            assert_eq!(pull.turn(page(5, head, head, &[])), Batch::Nothing);
            assert!(pull.is_through() && pull.furthest() == at(5, 3));
        }
        // Of another log, and of one that is in force no more.
        let mut pull = Pull::begin(at(5, 3), None);
        let passage = told(pull.turn(page(6, 2, 2, &[2]))).1;
        assert_eq!(passage, Some((at(6, 0), at(6, 2))));
        let mut pull = Pull::begin(at(5, 3), None);
        assert_eq!(pull.turn(page(4, 9, 9, &[9])), Batch::Nothing);
    }

    #[test]
    fn a_pull_that_was_broken_off_goes_on_where_it_was() {
        let mut pull = Pull::begin(at(5, 3), None);
        let batch = pull.turn(page(5, 9, 6, &[4, 6]));
        assert!(matches!(batch, Batch::Part(..)));
        assert_eq!(told(batch), (vec![(3, 4), (5, 6)], None));
        assert!(!pull.is_through());
        for applied in [at(5, 3), at(5, 4)] {
            let mut next = Pull::begin(applied, Some(pull));
            assert_eq!(next.after(), at(5, 6));
            let expected = (vec![(7, 8), (10, 11)], Some((at(5, 3), at(5, 11))));
            assert_eq!(told(next.turn(page(5, 11, 11, &[8, 11]))), expected);
        }
        // What it was for has come another way; or there is another log.
        for applied in [at(5, 6), at(5, 9), at(6, 0)] {
            assert_eq!(Pull::begin(applied, Some(pull)).after(), applied);
        }
        // Of a log of which nothing is applied yet.
        let mut pull = Pull::begin(at(5, 3), None);
        pull.turn(page(6, 9, 4, &[4]));
        let mut next = Pull::begin(at(5, 3), Some(pull));
        assert_eq!(next.after(), at(6, 4));
        let passage = told(next.turn(page(6, 9, 9, &[9]))).1;
        assert_eq!(passage, Some((at(6, 0), at(6, 9))));
    }

    #[test]
    fn a_control_plane_that_is_behind_does_not_end_a_pull() {
        // Number 1 was left out of the first page, because 9 hits the same; of which the second knows nothing.
        let mut pull = Pull::begin(at(5, 0), None);
        assert_eq!(told(pull.turn(page(5, 9, 4, &[4]))), (vec![(3, 4)], None));
        for (head, seqs) in [(3, &[][..]), (4, &[]), (6, &[6])] {
            let mut other = pull;
            let passage = told(other.turn(page(5, head, head, seqs))).1;
            assert_eq!(passage, None, "{head}");
            assert!(!other.is_through());
            assert_eq!(other.furthest(), at(5, 9));
        }
        let passage = told(pull.turn(page(5, 9, 9, &[9]))).1;
        assert_eq!(passage, Some((at(5, 0), at(5, 9))));
    }
}
