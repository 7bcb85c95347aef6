//! The latest records, for peers that miss some while no control plane answers. Pure.

use std::collections::BTreeMap;

use cluster::{
    purge::{Passage, Position, Record, Scope},
    wire::PurgePage,
};

/// Records kept at most: some minutes of many purges.
const RECORDS_MAX: usize = 16_384;
/// Bytes that their scopes take at most.
const BYTES_MAX: usize = 16 << 20;
/// What a record takes besides the text of its scopes, in memory and on the wire.
const RECORD_BYTES: usize = 160;
const SCOPE_BYTES: usize = 40;

/// Links of the log, each from one place to the next.
#[derive(Debug, Default)]
pub struct Recent {
    /// By where they lead.
    links: BTreeMap<Position, Link>,
    bytes: usize,
}

#[derive(Debug)]
struct Link {
    /// Who has everything up to this number of the same log, and the record, lacks nothing.
    from: u64,
    /// `None`: what was between said nothing that a later one does not say.
    record: Option<Record>,
}

impl Recent {
    /// Remembers `records`; with a passage, they are all that there is between its ends.
    pub fn add(&mut self, records: Vec<Record>, passage: Option<Passage>) {
        let mut last = passage.map(|passage| passage.from);
        for record in records {
            let at = record.at;
            let through = last.filter(|last| last.log == at.log && last.seq < at.seq);
            let from = through.map_or(record.prev, |last| last.seq.min(record.prev));
            if let Some(last) = &mut last {
                *last = at;
            }
            self.link(at, from, Some(record));
        }
        if let (Some(last), Some(Passage { to, .. })) = (last, passage)
            && last.log == to.log
            && last.seq < to.seq
            && !self.knows_between(last, to)
        {
            self.link(to, last.seq, None);
        }
        while self.links.len() > RECORDS_MAX || self.bytes > BYTES_MAX {
            let Some((_, link)) = self.links.pop_first() else {
                return;
            };
            self.bytes -= link.bytes();
        }
    }

    /// Whether there are records in between: then a passage was one of several pages, which say more of the
    /// way than its ends do.
    fn knows_between(&self, from: Position, to: Position) -> bool {
        let behind = Position {
            seq: from.seq.saturating_add(1),
            ..from
        };
        behind < to && self.links.range(behind..to).next().is_some()
    }

    fn link(&mut self, to: Position, from: u64, record: Option<Record>) {
        let link = match self.links.remove(&to) {
            Some(known) => {
                self.bytes -= known.bytes();
                Link {
                    from: known.from.min(from),
                    record: known.record.or(record),
                }
            }
            None => Link { from, record },
        };
        self.bytes += link.bytes();
        self.links.insert(to, link);
    }

    /// What comes behind number `after` of `log`, or, of another log, from the beginning; as far as it is
    /// known here without a gap, and up to so many records and bytes. `applied` is the node's place.
    pub fn page(
        &self,
        applied: Position,
        log: u64,
        after: u64,
        limit: usize,
        bytes_max: usize,
    ) -> PurgePage {
        let mut through = if log == applied.log { after } else { 0 };
        let (mut records, mut bytes) = (Vec::new(), 0);
        let behind = Position {
            seq: through.saturating_add(1),
            ..applied
        };
        let links = match behind <= applied {
            true => Some(self.links.range(behind..=applied)),
            false => None,
        };
        for (at, link) in links.into_iter().flatten() {
            bytes += link.bytes();
            if link.from > through || records.len() >= limit || bytes > bytes_max {
                break;
            }
            through = at.seq;
            records.extend(link.record.clone());
        }
        PurgePage {
            log: applied.log,
            head: applied.seq,
            through,
            records,
            age_ms: None,
            now_ms: None,
        }
    }
}

impl Link {
    fn bytes(&self) -> usize {
        let scopes = self.record.iter().flat_map(|record| &record.purge.scopes);
        let texts = scopes.map(|scope| {
            SCOPE_BYTES
                + match scope {
                    // What JSON makes of it may be six times as long.
                    Scope::Url(text) | Scope::Prefix(text) | Scope::Tag(text) => 2 * text.len(),
                    Scope::All => 0,
                }
        });
        RECORD_BYTES + texts.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use cluster::purge::Purge;

    use super::*;

    fn at(seq: u64) -> Position {
        Position { log: 5, seq }
    }

    fn record(seq: u64, prev: u64) -> Record {
        Record {
            at: at(seq),
            prev,
            purge: Purge {
                site: "a".into(),
                scopes: vec![Scope::Tag(format!("t{seq}"))],
                soft: false,
            },
            taken_at: 0,
            by: String::new(),
        }
    }

    fn seqs(page: &PurgePage) -> Vec<u64> {
        page.records.iter().map(|record| record.at.seq).collect()
    }

    #[test]
    fn a_page_goes_as_far_as_there_is_no_gap() {
        let mut recent = Recent::default();
        for (seq, prev) in [(2, 0), (5, 2), (9, 5), (20, 15), (22, 20)] {
            recent.add(vec![record(seq, prev)], None);
        }
        let page = |log, after, limit| recent.page(at(22), log, after, limit, 1 << 20);
        for (log, after, limit, expected, through) in [
            (5, 0, 10, &[2, 5, 9][..], 9),
            (5, 2, 10, &[5, 9], 9),
            (5, 3, 10, &[5, 9], 9),
            (5, 0, 2, &[2, 5], 5),
            (5, 9, 10, &[], 9),
            (5, 15, 10, &[20, 22], 22),
            (5, 22, 10, &[], 22),
            (5, 99, 10, &[], 99),
            (4, 7, 10, &[2, 5, 9], 9),
        ] {
            let page = page(log, after, limit);
            assert_eq!(
                (&seqs(&page)[..], page.through),
                (expected, through),
                "{log} {after}"
            );
            assert_eq!((page.log, page.head), (5, 22));
        }
        // What is not applied here is not told of.
        let page = recent.page(at(9), 5, 2, 10, 1 << 20);
        assert_eq!((seqs(&page), page.through), (vec![5, 9], 9));
    }

    #[test]
    fn what_a_page_left_out_is_passed_over() {
        let mut recent = Recent::default();
        let passage = Passage {
            from: at(3),
            to: at(12),
        };
        recent.add(vec![record(6, 5), record(8, 7)], Some(passage));
        let page = recent.page(at(12), 5, 3, 10, 1 << 20);
        assert_eq!((seqs(&page), page.through), (vec![6, 8], 12));
        let page = recent.page(at(12), 5, 2, 10, 1 << 20);
        assert_eq!((seqs(&page), page.through), (vec![], 2));
    }

    #[test]
    fn it_is_bounded() {
        let mut recent = Recent::default();
        for seq in 1..=20_000 {
            recent.add(vec![record(seq, seq - 1)], None);
        }
        assert_eq!(recent.links.len(), RECORDS_MAX);
        let mut large = record(20_001, 20_000);
        large.purge.scopes = vec![Scope::Url("/".repeat(9 << 20))];
        recent.add(vec![large], None);
        assert!(recent.bytes <= BYTES_MAX);
        let left: usize = recent.links.values().map(Link::bytes).sum();
        assert_eq!(left, recent.bytes);
    }
}
