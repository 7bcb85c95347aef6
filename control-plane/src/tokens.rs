//! Bearer tokens: who may change what. Pure: time and random bytes are arguments.
//!
//! A token reads `cdn_<id>_<secret>`. The id is public: it names the token in lists, logs and commands.
//! The secret is 256 random bits and is shown once; only its hash is kept.
//!
//! The hash is BLAKE3 in key derivation mode, not a slow one made for passwords. A slow hash makes
//! guessing dear where secrets are guessable; 256 random bits are not, however fast each guess is. And
//! whoever sends rubbish would make the control plane work for it. Hashes are compared in constant time,
//! and the id by which a token is found is no secret.
//!
//! **Invariant:** a set that holds tokens holds one of an administrator that does not expire: it is the first
//! to be made, and the last to be revoked. Else nobody could change anything any more.

mod words;

use std::{collections::HashMap, fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

pub use words::{TokenList, TokenMade, TokenRequest, TokenRotation, TokenStatus};

/// Most tokens of a cluster. With [`SITES_MAX`] they stay below what the store takes as one value.
pub const TOKENS_MAX: usize = 500;
/// Most sites that one token names.
pub const SITES_MAX: usize = 20;
/// Longest name of a token, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest life of a token that expires: who wants more wants one that does not.
pub const LIFE_MAX: Duration = Duration::from_secs(3_650 * 86_400);
/// How long a replaced secret stays valid unless the request says otherwise.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(3_600);
/// The longest that it may: a secret that leaked must not live on for ever.
pub const GRACE_MAX: Duration = Duration::from_secs(7 * 86_400);
/// Longest header value that can be a token; longer ones are not looked at.
const TOKEN_BYTES_MAX: usize = 256;

/// What tokens begin with, so that scanners for leaked secrets find them.
const PREFIX: &str = "cdn";
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 32;
const HASH_CONTEXT: &str = "geo cdn 2025 api token v1";

/// What a token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything, tokens included.
    Admin,
    /// Purging the sites that the token names, and reading what became of purges.
    Purge,
    /// Reading: sites, nodes, purges, jobs.
    Read,
}

impl Role {
    /// Its name, as in JSON and on the command line.
    pub fn label(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Purge => "purge",
            Self::Read => "read",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Admin, Self::Purge, Self::Read]
            .into_iter()
            .find(|role| role.label() == text)
            .ok_or_else(|| format!("{text:?} is none of admin, purge, read"))
    }
}

/// A token as it is kept: all but its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its public name: 12 hex digits.
    pub id: String,
    /// What people call it; stands as `by` in logs and receipts.
    pub name: String,
    /// What it is good for.
    pub role: Role,
    /// The sites that a [`Role::Purge`] token may purge; empty for the other roles.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<String>,
    /// When it was made, in Unix milliseconds.
    pub created_at: u64,
    /// Who made it.
    pub created_by: String,
    /// From when on it is no longer good, in Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u64>,
    /// When its secret was last replaced, in Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotated_at: Option<u64>,
    /// The hash of its secret.
    secret: SecretHash,
    /// The hash of the secret before that, for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    former: Option<Former>,
}

/// A replaced secret that is still good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Former {
    secret: SecretHash,
    until: u64,
}

/// The hash of a secret, as hex in JSON. Equality takes constant time.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct SecretHash(blake3::Hash);

impl SecretHash {
    fn of(secret: &[u8; SECRET_BYTES]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(HASH_CONTEXT);
        hasher.update(secret);
        Self(hasher.finalize())
    }
}

impl TryFrom<String> for SecretHash {
    type Error = String;

    fn try_from(hex: String) -> Result<Self, String> {
        let hash = blake3::Hash::from_hex(hex);
        hash.map(Self)
            .map_err(|_| "not the hash of a secret".into())
    }
}

impl From<SecretHash> for String {
    fn from(hash: SecretHash) -> Self {
        hash.0.to_hex().to_string()
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash")
    }
}

/// The random bytes of a new token, or of a new secret.
#[derive(Clone, Copy)]
pub struct Dice {
    id: [u8; ID_BYTES],
    secret: [u8; SECRET_BYTES],
}

impl Dice {
    /// Throws them.
    pub fn throw() -> Self {
        Self {
            id: rand::random(),
            secret: rand::random(),
        }
    }
}

impl fmt::Debug for Dice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dice")
    }
}

/// A token's text, which is its secret. Never logged: its `Debug` says nothing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    fn new(id: &str, secret: &[u8; SECRET_BYTES]) -> Self {
        Self(format!("{PREFIX}_{id}_{}", hex(secret)))
    }

    /// The text, to be shown to who made the token, once.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Token {
    /// Makes a token of what was asked for, which must have been checked.
    pub fn make(request: &TokenRequest, dice: &Dice, now_ms: u64, by: &str) -> (Self, Secret) {
        let id = hex(&dice.id);
        let secret = Secret::new(&id, &dice.secret);
        let life = request.expires.map(|span| millis(span.0));
        let token = Self {
            id,
            name: request.name.clone(),
            role: request.role,
            sites: request.sites.clone(),
            created_at: now_ms,
            created_by: by.to_owned(),
            expires_at: life.map(|life| now_ms.saturating_add(life)),
            rotated_at: None,
            secret: SecretHash::of(&dice.secret),
            former: None,
        };
        (token, secret)
    }

    /// Replaces its secret; the present one stays good for `grace`, one that was replaced before ends now.
    pub fn rotate(&mut self, dice: &Dice, grace: Duration, now_ms: u64) -> Secret {
        let present = std::mem::replace(&mut self.secret, SecretHash::of(&dice.secret));
        self.former = (!grace.is_zero()).then(|| Former {
            secret: present,
            until: now_ms.saturating_add(millis(grace)),
        });
        self.rotated_at = Some(now_ms);
        Secret::new(&self.id, &dice.secret)
    }

    /// Whether it is no longer good.
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_at.is_some_and(|at| at <= now_ms)
    }

    /// What may be told of it.
    pub fn status(&self, now_ms: u64) -> TokenStatus {
        let former = self.former.as_ref().map(|former| former.until);
        TokenStatus {
            id: self.id.clone(),
            name: self.name.clone(),
            role: self.role,
            sites: self.sites.clone(),
            created_at: self.created_at,
            created_by: self.created_by.clone(),
            expires_at: self.expires_at,
            rotated_at: self.rotated_at,
            former_until: former.filter(|until| *until > now_ms),
            expired: self.is_expired(now_ms),
        }
    }

    fn answers_to(&self, secret: &SecretHash, now_ms: u64) -> bool {
        let former = self.former.as_ref().filter(|f| f.until > now_ms);
        // No short cut: which of the two it was shall not show in the time this takes.
        let present = self.secret == *secret;
        former.is_some_and(|former| former.secret == *secret) | present
    }
}

/// Why a token is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// It is not one, or its secret is another's: which of them is not told.
    #[error("unknown token: it is misspelt, or was revoked or replaced")]
    Unknown,
    /// Its time is over.
    #[error("this token has expired: have a new one made with `control-plane tokens create`")]
    Expired,
}

/// Why a set of tokens is not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotChanged {
    /// There are [`TOKENS_MAX`].
    #[error("there are {TOKENS_MAX} tokens, which is the most there can be: revoke some")]
    TooMany,
    /// Nobody could change anything after that.
    #[error(
        "the first token must be an admin's that does not expire: from then on nothing can be \
         changed without one"
    )]
    NoAdmin,
    /// Nobody could change anything after that.
    #[error(
        "this is the last admin token that does not expire: create another before, or revoke all \
         others before"
    )]
    LastAdmin,
    /// Another token has this name, and logs would not tell them apart.
    #[error("token {id} has this name already: revoke it, or choose another name")]
    SameName {
        /// The other one.
        id: String,
    },
    /// There is none of this id.
    #[error("no such token; `control-plane tokens list` lists them")]
    NoToken,
}

/// All tokens of a cluster. A snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens(HashMap<String, Token>);

impl Tokens {
    /// Reads what [`Tokens::to_json`] wrote.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        let tokens: Vec<Token> = serde_json::from_slice(json)?;
        let by_id = tokens.into_iter().map(|token| (token.id.clone(), token));
        Ok(Self(by_id.collect()))
    }

    /// All of them as they are kept, in the order in which they were made.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(&self.in_order()).expect("tokens are plain data")
    }

    /// Whether there are none: then only this machine may change anything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The token of this text.
    ///
    /// # Errors
    ///
    /// There is none, or its time is over.
    pub fn find(&self, text: &str, now_ms: u64) -> Result<&Token, NotTaken> {
        let (id, secret) = parts(text).ok_or(NotTaken::Unknown)?;
        let hash = SecretHash::of(&secret);
        let token = self.0.get(id).ok_or(NotTaken::Unknown)?;
        if !token.answers_to(&hash, now_ms) {
            return Err(NotTaken::Unknown);
        }
        // Only who has the secret learns that it has expired.
        match token.is_expired(now_ms) {
            true => Err(NotTaken::Expired),
            false => Ok(token),
        }
    }

    /// All of them, in the order in which they were made.
    pub fn in_order(&self) -> Vec<&Token> {
        let mut tokens: Vec<&Token> = self.0.values().collect();
        tokens.sort_by_key(|token| (token.created_at, &token.id));
        tokens
    }

    /// This one.
    pub fn get(&self, id: &str) -> Option<&Token> {
        self.0.get(id)
    }

    /// The set with another token.
    ///
    /// # Errors
    ///
    /// There would be too many, two of one name, or none that could change anything.
    pub fn with(&self, token: Token) -> Result<Self, NotChanged> {
        if self.0.len() >= TOKENS_MAX {
            return Err(NotChanged::TooMany);
        }
        if self.is_empty() && !is_lasting_admin(&token) {
            return Err(NotChanged::NoAdmin);
        }
        if let Some(other) = self.0.values().find(|other| other.name == token.name) {
            let id = other.id.clone();
            return Err(NotChanged::SameName { id });
        }
        let mut tokens = self.clone();
        tokens.0.insert(token.id.clone(), token);
        Ok(tokens)
    }

    /// The set without this token, and the token.
    ///
    /// # Errors
    ///
    /// There is no such token, or the others could not be changed by anybody.
    pub fn without(&self, id: &str) -> Result<(Self, Token), NotChanged> {
        let mut tokens = self.clone();
        let token = tokens.0.remove(id).ok_or(NotChanged::NoToken)?;
        if !tokens.is_empty() && !tokens.0.values().any(is_lasting_admin) {
            return Err(NotChanged::LastAdmin);
        }
        Ok((tokens, token))
    }

    /// The set with a new secret of this token, the token, and the secret.
    ///
    /// # Errors
    ///
    /// There is no such token.
    pub fn rotated(
        &self,
        id: &str,
        dice: &Dice,
        grace: Duration,
        now_ms: u64,
    ) -> Result<(Self, Token, Secret), NotChanged> {
        let mut tokens = self.clone();
        let token = tokens.0.get_mut(id).ok_or(NotChanged::NoToken)?;
        let secret = token.rotate(dice, grace, now_ms);
        let token = token.clone();
        Ok((tokens, token, secret))
    }

    /// The set with an administrator's token that the owner of the data directory has made, and without
    /// all others if so asked. It goes by its name with a number behind it if that is taken.
    pub fn rescued(&self, mut token: Token, alone: bool) -> Self {
        let mut tokens = if alone { Self::default() } else { self.clone() };
        let taken = |name: &str| tokens.0.values().any(|other| other.name == name);
        let name = token.name.clone();
        let mut number = 2;
        while taken(&token.name) {
            token.name = format!("{name}-{number}");
            number += 1;
        }
        tokens.0.insert(token.id.clone(), token);
        tokens
    }
}

fn is_lasting_admin(token: &Token) -> bool {
    token.role == Role::Admin && token.expires_at.is_none()
}

/// The id and the secret of a token's text.
fn parts(text: &str) -> Option<(&str, [u8; SECRET_BYTES])> {
    if text.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let (id, secret) = text
        .strip_prefix(PREFIX)?
        .strip_prefix('_')?
        .split_once('_')?;
    // A hash has as many bytes as a secret, and reads hex of either case.
    let secret = *blake3::Hash::from_hex(secret).ok()?.as_bytes();
    Some((id, secret))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
