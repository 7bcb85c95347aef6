//! What is said about tokens over HTTP, and what of it cannot be meant.

use cluster::quantity::Span;
use serde::{Deserialize, Serialize};

use super::{GRACE_MAX, LIFE_MAX, NAME_BYTES_MAX, Role, SITES_MAX, Secret};

/// The body of `POST /v1/tokens`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// What to call it: letters, digits, `.`, `_`, `-` and `@`.
    pub name: String,
    /// What it is good for.
    pub role: Role,
    /// The sites that it may purge; only with [`Role::Purge`], and there at least one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<String>,
    /// How long it is good; for ever without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Span>,
}

impl TokenRequest {
    /// Checks what can be checked without knowing the sites.
    ///
    /// # Errors
    ///
    /// The first field that cannot be meant, and why.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX || !self.name.chars().all(fits)
        {
            let reason =
                format!("1 to {NAME_BYTES_MAX} letters, digits, dots, dashes, underscores and @");
            return Err(("name", reason));
        }
        match (self.role, self.sites.len()) {
            (Role::Purge, 0) => {
                return Err(("sites", "a purge token names the sites it may purge".into()));
            }
            (Role::Purge, count) if count > SITES_MAX => {
                return Err(("sites", format!("at most {SITES_MAX}, not {count}")));
            }
            (Role::Admin | Role::Read, 1..) => {
                let reason = format!("only a purge token names sites, not one for {}", self.role);
                return Err(("sites", reason));
            }
            _ => {}
        }
        if let Some(site) = twice(&self.sites) {
            return Err(("sites", format!("{site:?} is there twice")));
        }
        match self.expires {
            Some(Span(life)) if life.is_zero() || life > LIFE_MAX => {
                Err(("expires", format!("1ms to {}", Span(LIFE_MAX))))
            }
            _ => Ok(()),
        }
    }
}

fn twice(names: &[String]) -> Option<&String> {
    let mut rest = names.iter();
    std::iter::from_fn(|| rest.next().map(|name| (name, rest.clone())))
        .find(|(name, others)| others.clone().any(|other| other == *name))
        .map(|(name, _)| name)
}

/// The body of `POST /v1/tokens/{id}/rotate`; none at all is one with nothing in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRotation {
    /// How long the present secret stays good; [`super::GRACE_DEFAULT`] without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace: Option<Span>,
}

impl TokenRotation {
    /// Checks it.
    ///
    /// # Errors
    ///
    /// The field that cannot be meant, and why.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        match self.grace {
            Some(Span(grace)) if grace > GRACE_MAX => {
                Err(("grace", format!("at most {}", Span(GRACE_MAX))))
            }
            _ => Ok(()),
        }
    }
}

/// What may be told of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenStatus {
    /// Its public name.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What it is good for.
    pub role: Role,
    /// The sites that it may purge.
    pub sites: Vec<String>,
    /// When it was made, in Unix milliseconds.
    pub created_at: u64,
    /// Who made it.
    pub created_by: String,
    /// From when on it is no longer good, in Unix milliseconds.
    pub expires_at: Option<u64>,
    /// When its secret was last replaced, in Unix milliseconds.
    pub rotated_at: Option<u64>,
    /// Until when the secret before that is good as well, in Unix milliseconds.
    pub former_until: Option<u64>,
    /// Whether it is no longer good.
    pub expired: bool,
}

/// The answer to `GET /v1/tokens`, in the order in which they were made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenList {
    /// The tokens.
    pub tokens: Vec<TokenStatus>,
}

/// The answer to making a token, or to replacing its secret: the only time that it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenMade {
    /// What to send as `Authorization: Bearer …`.
    pub token: Secret,
    /// The rest.
    #[serde(flatten)]
    pub status: TokenStatus,
}
