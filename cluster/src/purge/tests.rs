use proptest::prelude::*;

use super::*;

const LOG: u64 = 1_000;

fn at(seq: u64) -> Position {
    Position { log: LOG, seq }
}

/// Sites whose objects are named as sent; `ruled` without its query, and `unknown` not at all.
struct Plainly;

impl Naming for Plainly {
    fn name(&self, site: &str, sent: &str) -> Named {
        let canonical = match sent {
            "" => b"/".to_vec(),
            sent => sent.as_bytes().to_vec(),
        };
        match site {
            "ruled" => Named::Ruled {
                ruled: sent
                    .split('?')
                    .next()
                    .unwrap_or_default()
                    .as_bytes()
                    .to_vec(),
                canonical,
            },
            "unknown" => Named::Unknown(canonical),
            _ => Named::AsSent(canonical),
        }
    }
}

fn record(seq: u64, site: &str, scopes: &[Scope], soft: bool) -> Record {
    Record {
        at: at(seq),
        prev: seq - 1,
        purge: Purge {
            site: site.to_owned(),
            scopes: scopes.to_vec(),
            soft,
        },
        taken_at: 0,
        by: "test".to_owned(),
    }
}

fn step(record: &Record) -> Step {
    Step::of(record, &Plainly)
}

fn table(records: &[Record]) -> Table {
    let mut table = Table::new(1_000);
    for record in records {
        table.take(&step(record));
    }
    table
}

fn object<'a>(site: &'a str, host: &'a str, target: &'a str, tags: &'a [&'a [u8]]) -> Object<'a> {
    Object {
        site,
        host,
        target: target.as_bytes(),
        tags,
        as_of: at(0),
    }
}

fn url(text: &str) -> Scope {
    Scope::Url(text.to_owned())
}

fn prefix(text: &str) -> Scope {
    Scope::Prefix(text.to_owned())
}

fn tag(text: &str) -> Scope {
    Scope::Tag(text.to_owned())
}

#[test]
fn a_scope_hits_what_it_names_and_nothing_else() {
    for (scope, hits, misses) in [
        (
            url("/a?b=1"),
            &[("a.test", "/a?b=1"), ("b.test", "/a?b=1")][..],
            &[
                ("a.test", "/a"),
                ("a.test", "/a?b=1&c"),
                ("a.test", "/A?b=1"),
            ][..],
        ),
        (
            url("//A.test.:8080/a"),
            &[("a.test", "/a")],
            &[
                ("b.test", "/a"),
                ("a.test", "/ab"),
                ("a.test", "//A.test/a"),
            ],
        ),
        (url("//a.test"), &[("a.test", "/")], &[("b.test", "/")]),
        (
            prefix("/img/"),
            &[("a.test", "/img/"), ("b.test", "/img/x?y")],
            &[("a.test", "/img"), ("a.test", "/im"), ("a.test", "/x/img/")],
        ),
        (
            prefix("//a.test/img"),
            &[("a.test", "/img"), ("a.test", "/imgs")],
            &[("b.test", "/img"), ("a.test", "/im")],
        ),
        (
            prefix("//a.test"),
            &[("a.test", "/"), ("a.test", "/x?y")],
            &[("b.test", "/")],
        ),
        (
            prefix("/a?b"),
            &[("a.test", "/a?b"), ("a.test", "/a?bc")],
            &[("a.test", "/a"), ("a.test", "/a?c")],
        ),
        (Scope::All, &[("a.test", "/"), ("b.test", "/x")], &[]),
    ] {
        for soft in [false, true] {
            let table = table(&[record(7, "site", std::slice::from_ref(&scope), soft)]);
            let hit = if soft { Verdict::Stale } else { Verdict::Gone };
            for (host, target) in hits {
                let old = object("site", host, target, &[]);
                assert_eq!(table.judge(&old), hit, "{scope:?} {host}{target}");
                assert_eq!(table.hits(&old).len(), 1, "{scope:?} {host}{target}");
                assert_eq!(table.hits(&old)[0].at, at(7));
                let new = Object {
                    as_of: at(7),
                    ..old
                };
                assert_eq!(table.judge(&new), Verdict::Good, "{scope:?} {host}{target}");
                assert!(table.hits(&new).is_empty());
                let other = Object {
                    site: "other",
                    ..old
                };
                assert_eq!(table.judge(&other), Verdict::Good);
            }
            for (host, target) in misses {
                let other = object("site", host, target, &[]);
                assert_eq!(
                    table.judge(&other),
                    Verdict::Good,
                    "{scope:?} {host}{target}"
                );
            }
        }
    }
}

#[test]
fn a_tag_hits_what_has_it() {
    let table = table(&[record(1, "site", &[tag("News")], false)]);
    let judged = |tags: &[&[u8]]| table.judge(&object("site", "a.test", "/News", tags));
    assert_eq!(judged(&[b"x", b"News"]), Verdict::Gone);
    assert_eq!(judged(&[b"news", b"New", b"News2"]), Verdict::Good);
    let hits = table.hits(&object("site", "a.test", "/", &[b"News"]));
    assert_eq!(hits[0].scope, "tag News");
}

#[test]
fn what_rules_make_of_a_query_is_hit_as_well_and_what_is_unclear_rather_than_not() {
    let judged = |site: &str, scope: Scope, target: &str| {
        table(&[record(1, site, &[scope], false)]).judge(&object(site, "a.test", target, &[]))
    };
    assert_eq!(judged("ruled", url("/a?utm=1"), "/a"), Verdict::Gone);
    assert_eq!(judged("ruled", url("/a?utm=1"), "/a?utm=1"), Verdict::Gone);
    assert_eq!(judged("ruled", url("/a?utm=1"), "/a?b"), Verdict::Good);
    assert_eq!(judged("ruled", prefix("/a?utm"), "/a"), Verdict::Gone);
    assert_eq!(judged("ruled", prefix("/a?utm"), "/a?b"), Verdict::Gone);
    assert_eq!(judged("ruled", prefix("/a?utm"), "/ab"), Verdict::Good);
    assert_eq!(judged("unknown", url("/a?x"), "/a"), Verdict::Gone);
    assert_eq!(judged("unknown", url("/a?x"), "/a?y"), Verdict::Gone);
    assert_eq!(judged("unknown", url("/a?x"), "/ab"), Verdict::Good);
    assert_eq!(judged("unknown", url("/a"), "/a?y"), Verdict::Good);
}

#[test]
fn a_hard_purge_counts_before_a_soft_one() {
    let table = table(&[
        record(1, "site", &[tag("a")], false),
        record(2, "site", &[tag("a")], true),
    ]);
    let of = |seq| Object {
        as_of: at(seq),
        ..object("site", "a.test", "/", &[b"a"])
    };
    assert_eq!(table.judge(&of(0)), Verdict::Gone);
    assert_eq!(table.judge(&of(1)), Verdict::Stale);
    assert_eq!(table.judge(&of(2)), Verdict::Good);
    let hits = table.hits(&of(0));
    assert_eq!([hits[0].soft, hits[1].soft], [true, false]);
}

#[test]
fn nothing_is_applied_behind_a_gap_and_all_of_it_is_in_force() {
    let mut table = Table::new(100);
    let take = |table: &mut Table, seq: u64, prev: u64, name: &str| {
        let record = Record {
            prev,
            ..record(seq, "site", &[tag(name)], false)
        };
        table.take(&step(&record))
    };
    assert!(take(&mut table, 10, 4, "b"));
    assert!(!take(&mut table, 10, 4, "b"));
    assert_eq!(table.applied(), Position::default());
    assert!(table.has_gap());
    let old = object("site", "a.test", "/", &[b"b"]);
    assert_eq!(table.judge(&old), Verdict::Gone);
    take(&mut table, 4, 0, "a");
    assert_eq!(table.applied(), at(10));
    assert!(!table.has_gap());
    // Numbers need not be contiguous; what comes late changes nothing.
    take(&mut table, 70, 11, "c");
    assert_eq!(table.applied(), at(10));
    table.pass(Passage {
        from: at(11),
        to: at(69),
    });
    assert_eq!(table.applied(), at(10), "nobody knows what was before 11");
    table.pass(Passage {
        from: at(7),
        to: at(50),
    });
    assert_eq!(table.applied(), at(70));
    table.pass(Passage {
        from: at(0),
        to: at(60),
    });
    assert_eq!(table.applied(), at(70));
}

#[test]
fn a_later_log_comes_after_all_of_an_earlier_one() {
    let later = |seq, prev| Record {
        at: Position { log: LOG + 1, seq },
        prev,
        ..record(seq, "site", &[tag("a")], false)
    };
    let mut table = table(&[record(1, "site", &[tag("a")], false)]);
    let fetched = Object {
        as_of: at(900),
        ..object("site", "a.test", "/", &[b"a"])
    };
    assert_eq!(table.judge(&fetched), Verdict::Good);
    table.take(&step(&later(5, 3)));
    assert_eq!(table.judge(&fetched), Verdict::Gone);
    assert_eq!(table.applied(), at(1), "3 of the later log is missing");
    // Its beginning is what counts, not that of the one before.
    table.pass(Passage {
        from: Position {
            log: LOG + 1,
            seq: 0,
        },
        to: Position {
            log: LOG + 1,
            seq: 3,
        },
    });
    assert_eq!(table.applied(), later(5, 3).at);
    table.take(&step(&record(2, "site", &[tag("a")], false)));
    assert_eq!(table.applied(), later(5, 3).at);
}

#[test]
fn a_full_table_forgets_the_oldest_of_the_largest_site_and_is_never_wrong() {
    let mut table = Table::new(800);
    table.take(&step(&record(1, "small", &[tag("a")], false)));
    for seq in 2..=1_500 {
        let name = format!("t{seq}");
        table.take(&step(&record(seq, "large", &[tag(&name)], false)));
        assert!(table.scopes() <= 800);
    }
    let judged = |site, tag: &[u8], seq| {
        table.judge(&Object {
            as_of: at(seq),
            ..object(site, "a.test", "/", &[tag])
        })
    };
    // Only what is from before what was forgotten is hit without cause.
    assert_eq!(judged("large", b"t3", 2), Verdict::Gone);
    assert_eq!(judged("large", b"other", 500), Verdict::Gone);
    assert_eq!(judged("large", b"other", 900), Verdict::Good);
    assert_eq!(judged("large", b"t1400", 1_399), Verdict::Gone);
    assert_eq!(judged("large", b"t1400", 1_400), Verdict::Good);
    assert_eq!(judged("small", b"b", 0), Verdict::Good);
    assert_eq!(judged("small", b"a", 0), Verdict::Gone);
}

#[test]
fn all_of_a_site_takes_the_place_of_its_scopes() {
    let mut table = Table::new(800);
    for seq in 1..=300 {
        table.take(&step(&record(
            seq,
            "site",
            &[tag(&format!("t{seq}"))],
            false,
        )));
    }
    assert_eq!(table.scopes(), 301);
    table.take(&step(&record(301, "site", &[Scope::All], false)));
    assert_eq!(table.scopes(), 1);
    // One from before says nothing new.
    assert!(!table.take(&step(&record(4, "site", &[tag("late")], false))));
    assert_eq!(table.scopes(), 1);
}

#[test]
fn names_of_sites_are_bounded_as_well() {
    let mut table = Table::new(10);
    for seq in 1..=100 {
        let name = format!("site-{seq}");
        table.take(&step(&record(seq, &name, &[Scope::All], false)));
        assert!(table.scopes() <= 10);
    }
    for seq in 1..=100 {
        let name = format!("site-{seq}");
        let old = Object {
            as_of: at(seq - 1),
            ..object(&name, "a.test", "/", &[])
        };
        assert_eq!(table.judge(&old), Verdict::Gone);
    }
}

#[test]
fn a_scope_takes_some_sixty_bytes() {
    let mut table = Table::new(1_000_000);
    for seq in 1..=200_000 {
        let mark = Mark::Exact(scope::hash(
            scope::Kind::Tag,
            "",
            &seq.to_string().into_bytes(),
        ));
        let step = Step {
            marks: vec![mark],
            ..step(&record(seq, "site", &[], false))
        };
        table.take(&step);
    }
    assert_eq!(table.scopes(), 200_001);
    assert!(table.bytes() < 200_000 * 72, "{}", table.bytes());
    let bytes = table.to_bytes();
    let read = Table::from_bytes(&bytes, 1_000_000).unwrap();
    assert_eq!(read.said(), table.said());
}

fn scopes() -> impl Strategy<Value = Scope> {
    prop_oneof![
        "(//[ab]\\.test)?/[ab]{0,2}(\\?[ab])?".prop_map(Scope::Url),
        "(//[ab]\\.test)?/[ab]{0,2}(\\?[ab])?".prop_map(Scope::Prefix),
        "[ab]".prop_map(Scope::Tag),
        Just(Scope::All),
    ]
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    let one = (
        "site|ruled|unknown",
        prop::collection::vec(scopes(), 1..3),
        any::<bool>(),
    );
    prop::collection::vec(one, 1..20).prop_map(|purges| {
        let numbered = purges.into_iter().zip(1..);
        numbered
            .map(|((site, scopes, soft), seq)| record(seq, &site, &scopes, soft))
            .collect()
    })
}

/// What the rules say of an object, by looking at every record.
fn by_definition(records: &[Record], object: &Object<'_>) -> Verdict {
    let covers = |record: &Record| {
        let marks = step(record).marks;
        let url = |host: &str| Mark::Exact(scope::hash(scope::Kind::Url, host, object.target));
        record.purge.site == object.site
            && record.at > object.as_of
            && marks.iter().any(|mark| match mark {
                Mark::All => true,
                Mark::Exact(_) => {
                    *mark == url("")
                        || *mark == url(object.host)
                        || object
                            .tags
                            .iter()
                            .any(|tag| *mark == Mark::Exact(scope::hash(scope::Kind::Tag, "", tag)))
                }
                Mark::Prefix { hash, length } => ["", object.host].iter().any(|host| {
                    let begins = object.target.get(..usize::from(*length));
                    begins.is_some_and(|b| scope::hash(scope::Kind::Prefix, host, b) == *hash)
                }),
            })
    };
    let hit = |soft| records.iter().any(|r| r.purge.soft == soft && covers(r));
    match (hit(false), hit(true)) {
        (true, _) => Verdict::Gone,
        (false, true) => Verdict::Stale,
        (false, false) => Verdict::Good,
    }
}

proptest! {
    #[test]
    fn the_order_of_records_and_how_often_they_come_make_no_difference(
        (records, shuffled) in records().prop_flat_map(|records| {
            let twice = [&records[..], &records[..]].concat();
            (Just(records), Just(twice).prop_shuffle())
        }),
        cut in 0_usize..40,
    ) {
        let in_order = table(&records);
        let mut other = Table::new(1_000);
        for (index, record) in shuffled.iter().enumerate() {
            if index == cut {
                // Through a file, midway.
                other = Table::from_bytes(&other.to_bytes(), 1_000).unwrap();
            }
            other.take(&step(record));
        }
        prop_assert_eq!(other.said(), in_order.said());
        prop_assert_eq!(in_order.applied(), at(records.len() as u64));
        let again = Table::from_bytes(&other.to_bytes(), 1_000).unwrap();
        prop_assert_eq!(again.said(), in_order.said());
    }

    #[test]
    fn the_verdict_is_that_of_the_definition(
        records in records(),
        site in "site|ruled|unknown",
        host in "[ab]\\.test",
        target in "/[ab]{0,3}(\\?[ab])?",
        tags in prop::collection::vec("[abc]", 0..2),
        as_of in 0_u64..20,
        scopes_max in 1_usize..40,
    ) {
        let tags: Vec<&[u8]> = tags.iter().map(|tag| tag.as_bytes()).collect();
        let object = Object { as_of: at(as_of), ..object(&site, &host, &target, &tags) };
        let expected = by_definition(&records, &object);
        prop_assert_eq!(table(&records).judge(&object), expected);
        let hits = table(&records).hits(&object);
        prop_assert_eq!(hits.is_empty(), expected == Verdict::Good);
        // One that is too small says the same, or worse.
        let mut small = Table::new(scopes_max);
        for record in &records {
            small.take(&step(record));
            prop_assert!(small.scopes() <= scopes_max);
        }
        let judged = small.judge(&object);
        prop_assert!(judged == Verdict::Gone || judged == expected);
    }
}
