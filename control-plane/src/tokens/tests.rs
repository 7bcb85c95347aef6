use cluster::quantity::Span;
use proptest::prelude::*;

use super::*;
use crate::store::VALUE_BYTES_MAX;

const NOW: u64 = 1_780_000_000_000;
const HOUR_MS: u64 = 3_600_000;

fn dice(n: u8) -> Dice {
    Dice {
        id: [n; ID_BYTES],
        secret: [n ^ 0xa5; SECRET_BYTES],
    }
}

fn request(name: &str, role: Role) -> TokenRequest {
    TokenRequest {
        name: name.into(),
        role,
        sites: match role {
            Role::Purge => vec!["www".into()],
            _ => vec![],
        },
        expires: None,
    }
}

fn made(n: u8, role: Role) -> (Token, Secret) {
    Token::make(
        &request(&format!("t{n}"), role),
        &dice(n),
        NOW,
        "this machine",
    )
}

fn set(roles: &[Role]) -> Tokens {
    let numbered = (1..).zip(roles);
    numbered.fold(Tokens::default(), |set, (n, role)| {
        set.with(made(n, *role).0).unwrap()
    })
}

#[test]
fn a_token_is_found_by_its_text_and_by_nothing_else() {
    let tokens = set(&[Role::Admin, Role::Read]);
    let (_, secret) = made(2, Role::Read);
    let text = secret.reveal();
    assert_eq!(
        text,
        format!("cdn_020202020202_{}", "a7".repeat(SECRET_BYTES))
    );
    assert_eq!(tokens.find(text, NOW).unwrap().name, "t2");
    let of_another = text.replace("cdn_02", "cdn_01").replacen("02", "01", 5);
    for wrong in [
        "",
        "cdn",
        "cdn_",
        "cdn__",
        "cdn_020202020202",
        "cdn_020202020202_",
        "Cdn_020202020202_",
        &text[..text.len() - 1],
        &text[1..],
        &format!("{text}0"),
        &text.replace("a7", "a8"),
        &of_another,
        &text.replace("020202020202", "030303030303"),
        &"x".repeat(10_000),
        "cdn_020202020202_é",
    ] {
        assert_eq!(tokens.find(wrong, NOW), Err(NotTaken::Unknown), "{wrong}");
    }
}

#[test]
fn nothing_that_is_kept_or_printed_holds_a_secret() {
    let (token, secret) = made(1, Role::Admin);
    let half = &secret.reveal()[20..50];
    let tokens = Tokens::default().with(token.clone()).unwrap();
    let kept = String::from_utf8(tokens.to_json()).unwrap();
    assert!(!kept.contains(half), "{kept}");
    assert!(kept.contains(r#""secret":""#), "{kept}");
    let printed = format!("{token:?} {secret:?} {:?} {tokens:?}", dice(1));
    assert!(!printed.contains(half) && !printed.contains("a4a4"));
    let told = serde_json::to_string(&token.status(NOW)).unwrap();
    assert!(!told.contains("secret") && !told.contains(half), "{told}");
    assert_eq!(Tokens::from_json(kept.as_bytes()).unwrap(), tokens);
    for damaged in ["", "{", "{}", r#"[{"id": "1"}]"#] {
        assert!(Tokens::from_json(damaged.as_bytes()).is_err(), "{damaged}");
    }
    let short = kept.replacen(r#""secret":""#, r#""secret":"00"#, 1);
    let error = Tokens::from_json(short.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("not the hash of a secret"), "{error}");
}

#[test]
fn an_expired_token_says_so_to_who_has_it_only() {
    let asked = TokenRequest {
        expires: Some(Span(Duration::from_secs(3_600))),
        ..request("short", Role::Read)
    };
    let (token, secret) = Token::make(&asked, &dice(9), NOW, "t1");
    assert_eq!(token.expires_at, Some(NOW + HOUR_MS));
    let tokens = set(&[Role::Admin]).with(token).unwrap();
    let find = |text: &str, at| tokens.find(text, at).map(|token| token.name.as_str());
    assert_eq!(find(secret.reveal(), NOW + HOUR_MS - 1), Ok("short"));
    assert_eq!(find(secret.reveal(), NOW + HOUR_MS), Err(NotTaken::Expired));
    let guess = format!("cdn_{}_{}", "09".repeat(6), "00".repeat(32));
    assert_eq!(find(&guess, NOW + HOUR_MS), Err(NotTaken::Unknown));
}

#[test]
fn a_replaced_secret_is_good_for_its_grace_and_a_second_one_ends_it() {
    let tokens = set(&[Role::Admin]);
    let (token, first) = made(1, Role::Admin);
    let grace = Duration::from_secs(3_600);
    let (tokens, status, second) = tokens.rotated(&token.id, &dice(2), grace, NOW).unwrap();
    assert_eq!(status.rotated_at, Some(NOW));
    assert_eq!(status.status(NOW).former_until, Some(NOW + HOUR_MS));
    assert_eq!(status.status(NOW + HOUR_MS).former_until, None);
    assert!(second.reveal().starts_with("cdn_010101010101_"));
    assert!(tokens.find(first.reveal(), NOW + HOUR_MS - 1).is_ok());
    assert!(tokens.find(first.reveal(), NOW + HOUR_MS).is_err());
    assert!(tokens.find(second.reveal(), NOW + 2 * HOUR_MS).is_ok());

    let (tokens, _, third) = tokens.rotated(&token.id, &dice(3), grace, NOW).unwrap();
    let good = |text: &Secret| tokens.find(text.reveal(), NOW).is_ok();
    assert!(!good(&first) && good(&second) && good(&third));
    let at_once = tokens.rotated(&token.id, &dice(4), Duration::ZERO, NOW);
    let (tokens, ..) = at_once.unwrap();
    assert!(tokens.find(third.reveal(), NOW).is_err());
    let nobody = tokens.rotated("0", &dice(5), grace, NOW).unwrap_err();
    assert_eq!(nobody, NotChanged::NoToken);
}

#[test]
fn nobody_is_locked_out_by_a_change() {
    let none = Tokens::default();
    for role in [Role::Read, Role::Purge] {
        assert_eq!(none.with(made(1, role).0), Err(NotChanged::NoAdmin));
    }
    let for_a_day = TokenRequest {
        expires: Some(Span(Duration::from_secs(86_400))),
        ..request("day", Role::Admin)
    };
    let (for_a_day, _) = Token::make(&for_a_day, &dice(7), NOW, "t1");
    assert_eq!(none.with(for_a_day.clone()), Err(NotChanged::NoAdmin));

    let tokens = set(&[Role::Admin, Role::Read]).with(for_a_day).unwrap();
    let ids: Vec<_> = tokens.in_order().iter().map(|t| t.id.clone()).collect();
    assert_eq!(tokens.without(&ids[0]).unwrap_err(), NotChanged::LastAdmin);
    assert_eq!(tokens.without("0").unwrap_err(), NotChanged::NoToken);
    let two = tokens.with(made(8, Role::Admin).0).unwrap();
    assert!(two.without(&ids[0]).is_ok());
    // All others first, then the last one.
    let (rest, _) = tokens.without(&ids[1]).unwrap();
    let (rest, _) = rest.without(&ids[2]).unwrap();
    let (rest, last) = rest.without(&ids[0]).unwrap();
    assert!(rest.is_empty() && last.id == ids[0]);
}

#[test]
fn names_are_told_apart_and_tokens_are_bounded() {
    let tokens = set(&[Role::Admin]);
    let same = Token::make(&request("t1", Role::Read), &dice(9), NOW, "t1").0;
    let error = tokens.with(same).unwrap_err();
    assert_eq!(error, NotChanged::SameName { id: "01".repeat(6) });
    let mut many = tokens;
    for n in 1..TOKENS_MAX {
        let mut dice = dice(0);
        dice.id[..2].copy_from_slice(&u16::try_from(n).unwrap().to_be_bytes());
        let mut long = request(&format!("{n:0>64}"), Role::Purge);
        long.sites = (0..SITES_MAX).map(|n| format!("{n:0>64}")).collect();
        many = many.with(Token::make(&long, &dice, NOW, "x").0).unwrap();
    }
    let one_more = made(99, Role::Read).0;
    assert_eq!(many.with(one_more), Err(NotChanged::TooMany));
    let bytes = many.to_json().len();
    assert!(bytes < VALUE_BYTES_MAX, "{bytes}");
}

#[test]
fn the_owner_of_the_data_directory_gets_in() {
    let tokens = set(&[Role::Admin, Role::Read]);
    let (rescue, secret) = Token::make(&request("t1", Role::Admin), &dice(9), NOW, "x");
    let with_others = tokens.rescued(rescue.clone(), false);
    let found = with_others.find(secret.reveal(), NOW).unwrap();
    assert_eq!((found.name.as_str(), with_others.0.len()), ("t1-2", 3));
    let alone = tokens.rescued(rescue, true);
    assert_eq!(alone.find(secret.reveal(), NOW).unwrap().name, "t1");
    assert_eq!(alone.0.len(), 1);
}

#[test]
fn what_cannot_be_meant_is_named() {
    let good = request("ci@build-1.example", Role::Purge);
    assert_eq!(good.check(), Ok(()));
    let sites = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    for (field, bad) in [
        ("name", request("", Role::Read)),
        ("name", request(&"x".repeat(65), Role::Read)),
        ("name", request("a b", Role::Read)),
        ("name", request("a\n", Role::Read)),
        (
            "sites",
            TokenRequest {
                sites: vec![],
                ..good.clone()
            },
        ),
        (
            "sites",
            TokenRequest {
                sites: sites(&["a", "b", "a"]),
                ..good.clone()
            },
        ),
        (
            "sites",
            TokenRequest {
                sites: vec!["a".into(); SITES_MAX + 1],
                ..good.clone()
            },
        ),
        (
            "sites",
            TokenRequest {
                sites: sites(&["a"]),
                ..request("a", Role::Admin)
            },
        ),
        (
            "expires",
            TokenRequest {
                expires: Some(Span(Duration::ZERO)),
                ..good.clone()
            },
        ),
        (
            "expires",
            TokenRequest {
                expires: Some(Span(LIFE_MAX + Duration::from_secs(1))),
                ..good
            },
        ),
    ] {
        assert_eq!(bad.check().unwrap_err().0, field, "{bad:?}");
    }
    let long = TokenRotation {
        grace: Some(Span(GRACE_MAX + Duration::from_secs(1))),
    };
    assert_eq!(long.check().unwrap_err().0, "grace");
    for text in [
        r#"{"name": "a"}"#,
        r#"{"name": "a", "role": "root"}"#,
        r#"{"name": "a", "role": "read", "site": ["x"]}"#,
        r#"{"name": "a", "role": "read", "expires": "soon"}"#,
    ] {
        assert!(
            serde_json::from_str::<TokenRequest>(text).is_err(),
            "{text}"
        );
    }
}

proptest! {
    /// Whatever is done to a set, somebody can change it again as long as there is anything in it.
    #[test]
    fn there_is_always_an_administrator(steps in prop::collection::vec((0_u8..4, 0_u8..6), 0..40)) {
        let mut tokens = Tokens::default();
        let mut names = 0;
        for (what, which) in steps {
            let ids: Vec<_> = tokens.in_order().iter().map(|t| t.id.clone()).collect();
            let id = ids.get(usize::from(which)).cloned().unwrap_or_default();
            names += 1;
            let role = [Role::Admin, Role::Purge, Role::Read][usize::from(which) % 3];
            let mut asked = request(&format!("t{names}"), role);
            asked.expires = (which > 3).then_some(Span(Duration::from_secs(60)));
            let changed = match what {
                0 | 1 => tokens.with(Token::make(&asked, &dice(names), NOW, "x").0),
                2 => tokens.without(&id).map(|(rest, _)| rest),
                _ => tokens
                    .rotated(&id, &dice(names), GRACE_DEFAULT, NOW)
                    .map(|(set, ..)| set),
            };
            if let Ok(changed) = changed {
                tokens = changed;
            }
            prop_assert!(tokens.is_empty() || tokens.0.values().any(is_lasting_admin));
            prop_assert_eq!(&Tokens::from_json(&tokens.to_json()).unwrap(), &tokens);
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in ".*") {
        prop_assert!(set(&[Role::Admin]).find(&text, NOW).is_err());
    }
}
