//! Who asks, and what that lets them do. Pure: tokens, time and what a request carries are arguments.
//!
//! Until there is a token, whoever asks from this machine may change anything, and nobody else. From then on
//! every change needs one, from this machine too. Nodes of the cluster prove themselves by its secret: they
//! read what they serve by, and hand on purges that they were sent.
//!
//! **Invariant:** what is not listed in [`need`] needs an administrator. A new resource is closed until it
//! says otherwise.

use cluster::{auth::Denied, node::NodeId, purge::spoken::is_spoken, wire::PURGES};

use crate::tokens::{NotTaken, Role, Token, Tokens};

/// Tokens are made, listed and revoked here.
pub const TOKENS: &str = "/v1/tokens";
/// What the API can do, in OpenAPI.
pub const OPENAPI: &str = "/v1/openapi.json";

/// What a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing: health, metrics, the description of the API.
    Nothing,
    /// To read; open to everybody unless the configuration says otherwise.
    Read,
    /// To read what became of a purge: as [`Need::Read`], or whoever may purge.
    Receipt,
    /// To purge; which sites, is asked once they are known ([`Caller::check_site`]).
    Purge,
    /// An administrator.
    Admin,
}

/// What a request with this method and path needs.
pub fn need(method: &str, path: &str) -> Need {
    let below = |resource: &str| {
        let rest = path.strip_prefix(resource);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    match method {
        "GET" | "HEAD" => match path {
            "/livez" | "/readyz" | "/metrics" | OPENAPI => Need::Nothing,
            _ if below(TOKENS) => Need::Admin,
            _ if path.strip_prefix(PURGES).is_some_and(|r| r.len() > 1) => Need::Receipt,
            _ => Need::Read,
        },
        "POST" if path == PURGES => Need::Purge,
        _ if is_spoken(method, path) => Need::Purge,
        _ => Need::Admin,
    }
}

/// What a request carries of its sender.
#[derive(Debug)]
pub struct Credentials<'a> {
    /// A token, as sent.
    pub token: Option<&'a str>,
    /// Whether the cluster's secret proves which node it is, if it says that it is one.
    pub node: Option<Result<NodeId, Denied>>,
    /// Whether it comes from this machine, and not in somebody else's name.
    pub is_here: bool,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// A token's name, a node's, `loopback`, or `anybody`; stands as `by` in logs and receipts.
    pub name: String,
    rights: Rights,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rights {
    All,
    /// All, as long as there are no tokens.
    First,
    Sites(Vec<String>),
    Read,
    Node,
    /// Neither token nor proof, while there are tokens (`true`) or none.
    Nobody {
        tokens_exist: bool,
    },
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A token is needed, and there is none.
    #[error(
        "a token is needed: send `Authorization: Bearer cdn_…`; the commands take it from \
         CONTROL_PLANE_TOKEN or --token-file"
    )]
    NoToken,
    /// The token is not taken.
    #[error("{0}")]
    BadToken(#[from] NotTaken),
    /// It says that it is a node, and does not prove it.
    #[error("{0}")]
    NotANode(Denied),
    /// More signed requests than can be remembered.
    #[error("too many requests of nodes to remember: try again")]
    Busy,
    /// There are no tokens yet.
    #[error(
        "until there is a token this is possible only from the machine on which the control plane \
         runs: run the command there (`docker compose exec control-plane control-plane …`), or \
         make a token there: `control-plane tokens create --name NAME --role admin`"
    )]
    OnlyHere,
    /// The caller may not do this.
    #[error("{name} may not do this: it takes {needed}")]
    Role {
        /// Who asks.
        name: String,
        /// Who may.
        needed: &'static str,
    },
    /// The caller may not purge this site.
    #[error("{name} may not purge site {site:?}, only {allowed}")]
    Site {
        /// Who asks.
        name: String,
        /// The site.
        site: String,
        /// The sites that it may purge.
        allowed: String,
    },
}

/// Who asks.
///
/// # Errors
///
/// What it carries proves nothing. Whoever carries nothing is somebody, too.
pub fn caller(
    tokens: &Tokens,
    credentials: Credentials<'_>,
    now_ms: u64,
) -> Result<Caller, Refused> {
    if let Some(text) = credentials.token {
        return Ok(Caller::of(tokens.find(text, now_ms)?));
    }
    let (name, rights) = match credentials.node {
        Some(Ok(id)) => (id.to_string(), Rights::Node),
        Some(Err(Denied::Busy)) => return Err(Refused::Busy),
        Some(Err(denied)) => return Err(Refused::NotANode(denied)),
        None if credentials.is_here && tokens.is_empty() => return Ok(Caller::loopback()),
        None => {
            let tokens_exist = !tokens.is_empty();
            ("anybody".into(), Rights::Nobody { tokens_exist })
        }
    };
    Ok(Caller { name, rights })
}

impl Caller {
    /// Who asks from this machine while there are no tokens.
    pub fn loopback() -> Self {
        Self {
            name: "loopback".into(),
            rights: Rights::First,
        }
    }

    fn of(token: &Token) -> Self {
        Self {
            name: token.name.clone(),
            rights: match token.role {
                Role::Admin => Rights::All,
                Role::Purge => Rights::Sites(token.sites.clone()),
                Role::Read => Rights::Read,
            },
        }
    }

    /// Whether it was let in because there are no tokens.
    pub fn is_first(&self) -> bool {
        self.rights == Rights::First
    }

    /// Whether it is a node of the cluster.
    pub fn is_node(&self) -> bool {
        self.rights == Rights::Node
    }

    /// Whether it has what a request needs; reading needs nothing where `public_read` says so.
    ///
    /// # Errors
    ///
    /// It has not, and who has.
    pub fn check(&self, need: Need, public_read: bool) -> Result<(), Refused> {
        let all = matches!(self.rights, Rights::All | Rights::First);
        let (has_it, needed) = match need {
            Need::Nothing => (true, ""),
            Need::Read => (
                all || public_read || matches!(self.rights, Rights::Read | Rights::Node),
                "a token with role read or admin",
            ),
            Need::Receipt => (
                public_read || !matches!(self.rights, Rights::Nobody { .. }),
                "any token",
            ),
            Need::Purge => (
                all || matches!(self.rights, Rights::Sites(_) | Rights::Node),
                "a token with role admin, or purge for the site",
            ),
            Need::Admin => (all, "a token with role admin"),
        };
        match (has_it, &self.rights) {
            (true, _) => Ok(()),
            (false, Rights::Nobody { tokens_exist: true }) => Err(Refused::NoToken),
            (false, Rights::Nobody { .. }) => Err(Refused::OnlyHere),
            (false, _) => Err(Refused::Role {
                name: self.name.clone(),
                needed,
            }),
        }
    }

    /// Whether it may purge this site, and read what became of purges of it.
    ///
    /// # Errors
    ///
    /// It may not.
    pub fn check_site(&self, site: &str) -> Result<(), Refused> {
        match &self.rights {
            Rights::Sites(sites) if !sites.iter().any(|mine| mine == site) => Err(Refused::Site {
                name: self.name.clone(),
                site: site.chars().take(64).collect(),
                allowed: sites.join(", "),
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::{Dice, Secret, TokenRequest};

    const NOW: u64 = 1_780_000_000_000;

    fn made(tokens: &Tokens, role: Role) -> (Tokens, Secret) {
        let request = TokenRequest {
            name: format!("{role}-token"),
            role,
            sites: match role {
                Role::Purge => vec!["www".into(), "shop".into()],
                _ => vec![],
            },
            expires: None,
        };
        let (token, secret) = Token::make(&request, &Dice::throw(), NOW, "x");
        (tokens.with(token).unwrap(), secret)
    }

    fn carrying(token: Option<&str>) -> Credentials<'_> {
        Credentials {
            token,
            node: None,
            is_here: false,
        }
    }

    /// Everybody there is, by name, with tokens and without.
    fn everybody() -> Vec<(&'static str, Caller)> {
        let (tokens, admin) = made(&Tokens::default(), Role::Admin);
        let (tokens, purge) = made(&tokens, Role::Purge);
        let (tokens, read) = made(&tokens, Role::Read);
        let with = |token: &Secret| {
            let text = token.reveal().to_owned();
            caller(&tokens, carrying(Some(&text)), NOW).unwrap()
        };
        let node = Credentials {
            node: Some(Ok("edge-1".parse().unwrap())),
            ..carrying(None)
        };
        let here = || Credentials {
            is_here: true,
            ..carrying(None)
        };
        let none = Tokens::default();
        vec![
            ("admin", with(&admin)),
            ("purge", with(&purge)),
            ("read", with(&read)),
            ("node", caller(&tokens, node, NOW).unwrap()),
            ("nobody", caller(&tokens, carrying(None), NOW).unwrap()),
            ("nobody here", caller(&tokens, here(), NOW).unwrap()),
            ("first", caller(&none, here(), NOW).unwrap()),
            ("stranger", caller(&none, carrying(None), NOW).unwrap()),
        ]
    }

    #[test]
    fn who_may_do_what() {
        let all: Vec<_> = everybody().iter().map(|(name, _)| *name).collect();
        for (need, public_read, may) in [
            (Need::Nothing, false, &all[..]),
            (Need::Read, true, &all[..]),
            (Need::Receipt, true, &all[..]),
            (Need::Read, false, &["admin", "read", "node", "first"][..]),
            (
                Need::Receipt,
                false,
                &["admin", "purge", "read", "node", "first"],
            ),
            (Need::Purge, true, &["admin", "purge", "node", "first"]),
            (Need::Admin, true, &["admin", "first"]),
        ] {
            for (name, caller) in everybody() {
                let checked = caller.check(need, public_read);
                assert_eq!(checked.is_ok(), may.contains(&name), "{name}: {need:?}");
                match (checked, name) {
                    (Ok(()), _) => {}
                    (Err(Refused::NoToken), "nobody" | "nobody here") => {}
                    (Err(Refused::OnlyHere), "stranger") => {}
                    (Err(Refused::Role { name: told, .. }), "purge" | "read" | "node") => {
                        assert_eq!(told, caller.name);
                    }
                    (other, _) => panic!("{name}: {need:?}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn a_purge_token_is_good_for_its_sites_only() {
        for (name, caller) in everybody() {
            assert_eq!(caller.check_site("www"), Ok(()), "{name}");
            let other = caller.check_site("blog");
            assert_eq!(other.is_err(), name == "purge", "{name}");
            if let Err(error) = other {
                let told = error.to_string();
                let words = "purge-token may not purge site \"blog\", only www, shop";
                assert_eq!(told, words);
            }
        }
    }

    #[test]
    fn what_proves_nothing_is_refused_even_where_nothing_is_needed() {
        let (tokens, admin) = made(&Tokens::default(), Role::Admin);
        let refused = |tokens: &Tokens, credentials| caller(tokens, credentials, NOW).unwrap_err();
        assert_eq!(
            refused(&tokens, carrying(Some("cdn_x"))),
            Refused::BadToken(NotTaken::Unknown)
        );
        // From this machine, too, and when there are none.
        let here = Credentials {
            is_here: true,
            ..carrying(Some(admin.reveal()))
        };
        assert_eq!(
            refused(&Tokens::default(), here),
            Refused::BadToken(NotTaken::Unknown)
        );
        let node = |denied| Credentials {
            node: Some(Err(denied)),
            is_here: true,
            ..carrying(None)
        };
        assert_eq!(
            refused(&Tokens::default(), node(Denied::Replayed)),
            Refused::NotANode(Denied::Replayed)
        );
        assert_eq!(
            refused(&Tokens::default(), node(Denied::Busy)),
            Refused::Busy
        );
    }

    #[test]
    fn every_resource_says_what_it_needs_and_others_need_an_administrator() {
        for (method, path, needed) in [
            ("GET", "/metrics", Need::Nothing),
            ("GET", "/livez", Need::Nothing),
            ("HEAD", "/readyz", Need::Nothing),
            ("GET", "/v1/openapi.json", Need::Nothing),
            ("GET", "/", Need::Read),
            ("GET", "/v1/nodes", Need::Read),
            ("GET", "/v1/sites", Need::Read),
            ("GET", "/v1/sites/www/history", Need::Read),
            ("GET", "/v1/purges", Need::Read),
            ("GET", "/v1/purges/42", Need::Receipt),
            ("GET", "/v1/tokens", Need::Admin),
            ("GET", "/v1/tokens/ab", Need::Admin),
            ("GET", "/v1/tokensandmore", Need::Read),
            ("POST", "/v1/purges", Need::Purge),
            ("POST", "/service/www/purge/a", Need::Purge),
            ("POST", "/purge/www.test/a", Need::Purge),
            ("PUT", "/service/www/purge/a", Need::Admin),
            ("PURGETAGS", "/", Need::Purge),
            ("PURGE", "/a/b", Need::Purge),
            ("PURGE", "/v1/tokens", Need::Purge),
            ("BAN", "/", Need::Purge),
            ("PURGEKEYS", "/", Need::Purge),
            ("PURGETAGS", "/", Need::Purge),
            ("POST", "/purge", Need::Admin),
            ("purge", "/", Need::Admin),
            ("POST", "/v1/purges/", Need::Admin),
            ("POST", "/v1/warm", Need::Admin),
            ("DELETE", "/v1/warm/1", Need::Admin),
            ("PUT", "/v1/sites/www", Need::Admin),
            ("DELETE", "/v1/purges", Need::Admin),
            ("POST", "/v1/tokens", Need::Admin),
            ("POST", "/v1/tokens/ab/rotate", Need::Admin),
            ("POST", "/metrics", Need::Admin),
            ("OPTIONS", "/", Need::Admin),
            ("TRACE", "/v1/nodes", Need::Admin),
        ] {
            assert_eq!(need(method, path), needed, "{method} {path}");
        }
    }
}
