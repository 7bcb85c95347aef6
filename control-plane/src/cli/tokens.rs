//! `control-plane tokens`: makes, lists, replaces and revokes tokens; and lets in who has lost theirs.

use std::{
    ffi::OsString,
    io::{self, Write},
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use axum::http::Method;
use bytes::Bytes;
use clap::{Args, Subcommand};
use cluster::{clock::Clock, quantity::Span};

use super::{Asking, ServeArguments, ago, print, table};
use crate::{
    access::TOKENS,
    keyring::Rescue,
    tokens::{Role, TokenList, TokenMade, TokenRequest, TokenRotation, TokenStatus},
};

/// How long a running control plane gets to take a reset before it is taken for a stopped one.
const TAKEN_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one, once")]
pub(super) enum Tokens {
    /// Make a token. It is shown once.
    Create {
        /// What to call it; stands in logs for whoever uses it.
        #[arg(long)]
        name: String,
        /// What it is good for: admin (everything), purge (for the sites that are named), read.
        #[arg(long)]
        role: Role,
        /// A site that it may purge; may be given several times.
        #[arg(long)]
        site: Vec<String>,
        /// How long it is good (90d); for ever without.
        #[arg(long)]
        expires: Option<Span>,
        #[command(flatten)]
        asking: Asking,
    },
    /// All of them, without their secrets.
    List(Asking),
    /// Replace a token's secret. The new one is shown once.
    Rotate {
        /// The token's id.
        id: String,
        /// How long the present secret stays good: 1h without, at most 7d, 0s for not at all.
        #[arg(long)]
        grace: Option<Span>,
        #[command(flatten)]
        asking: Asking,
    },
    /// Take a token away, at once.
    Revoke {
        /// The token's id.
        id: String,
        #[command(flatten)]
        asking: Asking,
    },
    /// Make an admin token without having one, on the machine and as the user of the control plane
    /// (or as root). It is shown once.
    Reset(Reset),
}

#[derive(Debug, Args)]
pub(super) struct Reset {
    /// What to call it.
    #[arg(long, default_value = "reset")]
    name: String,
    /// Revoke all other tokens.
    #[arg(long)]
    revoke_others: bool,
    /// As JSON, for scripts.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    of: ServeArguments,
}

impl Tokens {
    pub(super) fn run(self, env: impl Iterator<Item = (OsString, OsString)>) -> anyhow::Result<()> {
        match self {
            Self::Create {
                name,
                role,
                site,
                expires,
                asking,
            } => {
                let request = TokenRequest {
                    name,
                    role,
                    sites: site,
                    expires,
                };
                let made = asking.send(Method::POST, TOKENS, as_json(&request)?)?;
                show(&made, &asking, "made")
            }
            Self::List(asking) => asking.tell(TOKENS, |list| tokens_table(&list, now_ms())),
            Self::Rotate { id, grace, asking } => {
                let path = format!("{}/rotate", at(&id));
                let rotation = as_json(&TokenRotation { grace })?;
                let made = asking.send(Method::POST, &path, rotation)?;
                show(&made, &asking, "has a new secret")
            }
            Self::Revoke { id, asking } => {
                let told = asking.send(Method::DELETE, &at(&id), Bytes::new())?;
                if asking.json {
                    return print(&format!("{}\n", String::from_utf8_lossy(&told)));
                }
                let status: TokenStatus = parsed(&told)?;
                print(&format!(
                    "token {} ({}) is revoked\n",
                    status.id, status.name
                ))
            }
            Self::Reset(reset) => reset.run(env),
        }
    }
}

impl Reset {
    #[expect(
        clippy::disallowed_methods,
        reason = "a command has one thread, and no runtime to hold up"
    )]
    fn run(self, env: impl Iterator<Item = (OsString, OsString)>) -> anyhow::Result<()> {
        let request = TokenRequest {
            name: self.name,
            role: Role::Admin,
            sites: Vec::new(),
            expires: None,
        };
        if let Err((field, reason)) = request.check() {
            bail!("--{field}: {reason}");
        }
        let dir = self.of.file(env)?.node.data_dir;
        let secret = Rescue::leave(&dir, &request, self.revoke_others, now_ms())
            .with_context(|| advice(&dir))?;
        let looks = TAKEN_WITHIN.as_millis() / LOOK_EVERY.as_millis();
        let taken = (0..looks).any(|_| {
            thread::sleep(LOOK_EVERY);
            Rescue::is_taken(&dir)
        });
        if self.json {
            let told = serde_json::json!({"token": secret, "taken": taken});
            return print(&format!("{told}\n"));
        }
        let when = match taken {
            true => "the running control plane has taken it",
            false => "no control plane is running here; the next that starts takes it",
        };
        aside(&format!(
            "An admin token was made, and is shown only now; {when}."
        ));
        print(&format!("{}\n", secret.reveal()))
    }
}

fn advice(dir: &Path) -> String {
    format!(
        "node.data_dir: {}: give the --config or --data-dir that the control plane runs with",
        dir.display()
    )
}

fn show(told: &Bytes, asking: &Asking, what: &str) -> anyhow::Result<()> {
    if asking.json {
        return print(&format!("{}\n", String::from_utf8_lossy(told)));
    }
    let made: TokenMade = parsed(told)?;
    let TokenStatus { id, name, role, .. } = &made.status;
    aside(&format!(
        "Token {id} ({name}, {role}) {what}. It is shown only now: keep it, and send it as\n\
         `Authorization: Bearer …`; commands take it from CONTROL_PLANE_TOKEN or --token-file."
    ));
    print(&format!("{}\n", made.token.reveal()))
}

/// Says something beside the output, which is the token and nothing else.
fn aside(text: &str) {
    // Who cannot see it still has the output.
    let _ = writeln!(io::stderr(), "{text}");
}

fn at(id: &str) -> String {
    let id: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{TOKENS}/{id}")
}

fn as_json(request: &impl serde::Serialize) -> anyhow::Result<Bytes> {
    Ok(serde_json::to_vec(request)?.into())
}

fn parsed<T: serde::de::DeserializeOwned>(told: &Bytes) -> anyhow::Result<T> {
    serde_json::from_slice(told).context("this is not what a control plane answers")
}

fn now_ms() -> u64 {
    Clock::system().unix_ms()
}

fn tokens_table(list: &TokenList, now_ms: u64) -> String {
    if list.tokens.is_empty() {
        return "no tokens: only this machine may change anything\n".into();
    }
    let rows = list.tokens.iter().map(|token| {
        let expires = match token.expires_at {
            _ if token.expired => "expired".into(),
            None => "never".into(),
            Some(at) => format!("in {}", ago(now_ms, at)),
        };
        let secret = match (token.former_until, token.rotated_at) {
            (Some(until), _) => format!("two, {} more", ago(now_ms, until)),
            (None, Some(at)) => format!("{} old", ago(at, now_ms)),
            (None, None) => format!("{} old", ago(token.created_at, now_ms)),
        };
        [
            token.id.clone(),
            token.name.clone(),
            token.role.to_string(),
            match token.role {
                Role::Purge => token.sites.join(" "),
                Role::Admin | Role::Read => "all".into(),
            },
            token.created_by.clone(),
            secret,
            expires,
        ]
    });
    table(
        [
            "ID", "NAME", "ROLE", "SITES", "MADE BY", "SECRET", "EXPIRES",
        ],
        rows,
        [12, 14, 5, 12, 10, 13, 8],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_780_000_000_000;
    const DAY_MS: u64 = 86_400_000;

    fn status(role: Role) -> TokenStatus {
        TokenStatus {
            id: "0123456789ab".into(),
            name: "x".repeat(64),
            role,
            sites: vec!["shop".into(), "y".repeat(64)],
            created_at: NOW - 400 * DAY_MS,
            created_by: "z".repeat(64),
            expires_at: Some(NOW + 3_650 * DAY_MS),
            rotated_at: None,
            former_until: Some(NOW + 7 * DAY_MS),
            expired: false,
        }
    }

    #[test]
    fn the_table_fits_80_columns() {
        let expired = TokenStatus {
            expired: true,
            former_until: None,
            rotated_at: Some(NOW - 3_600_000),
            ..status(Role::Admin)
        };
        let list = TokenList {
            tokens: vec![status(Role::Purge), expired],
        };
        let table = tokens_table(&list, NOW);
        for line in table.lines() {
            assert!(line.chars().count() <= 80, "{line:?}");
        }
        let lines: Vec<_> = table.lines().collect();
        assert!(lines[1].contains("shop yyyyyy…"), "{table}");
        assert!(lines[1].ends_with("two, 7d more in 3650d"), "{table}");
        assert!(lines[2].ends_with("1h old       expired"), "{table}");
        let none = TokenList { tokens: vec![] };
        assert!(tokens_table(&none, NOW).starts_with("no tokens"));
    }

    #[test]
    fn a_token_in_a_path_is_its_id() {
        assert_eq!(at("01/../x?y"), "/v1/tokens/01xy");
    }
}
