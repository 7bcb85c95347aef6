//! The tokens of the cluster, in the store and in memory: they are looked up in a snapshot, and changed by
//! commits that hold only if nobody else has changed them meanwhile.
//!
//! All of them are one item, so that what must hold of the set ([`crate::tokens`]) holds of every revision,
//! whichever control plane changes it. Other control planes follow by a watch. A set that cannot be read lets
//! nobody in.
//!
//! Who has lost the administrator's token, but has the data directory, gets in: `control-plane tokens reset`
//! leaves a [`Rescue`] there, which a running control plane takes within a second, and a stopped one when it
//! starts. It holds a hash only, and adds a token; nothing is open in between.

use std::{path::Path, sync::Arc, time::Duration};

use cluster::clock::Clock;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{sleep, sleep_until},
};
use tracing::{error, info, warn};

use crate::{
    access::Caller,
    data_dir::DataDir,
    store::{Change, Committed, Condition, News, Store, StoreError},
    tokens::{Dice, NotChanged, Secret, Token, TokenRequest, Tokens},
};

/// What the store is watched for.
const FAMILY: &str = "tokens/";
/// The item with all tokens.
const KEY: &str = "tokens/all";
/// How often a change is tried that others' changes overtake.
const TRIES_MAX: usize = 8;
/// How long to wait before the store is asked again after it failed.
const RETRY: Duration = Duration::from_secs(1);
/// How often the data directory is looked into for a [`Rescue`].
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The file in the data directory.
const RESCUE_FILE: &str = "tokens.reset";

/// Why the tokens are not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// The change cannot be.
    #[error("{0}")]
    NotChanged(#[from] NotChanged),
    /// The store did not take it.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// Others change them all the time.
    #[error("others change the tokens at the same time: try again")]
    Overtaken,
    /// What is stored cannot be read.
    #[error("{UNREADABLE}")]
    Unreadable,
    /// There were none when the caller was let in, and now there are.
    #[error("a token was made at the same time: from now on one is needed")]
    NoLongerFirst,
}

const UNREADABLE: &str = "the stored tokens are damaged, so nobody is let in: make a new one with \
                          `control-plane tokens reset` on the machine of the control plane";

/// What is known of the tokens.
#[derive(Debug, Default)]
struct Known {
    /// `None`: what is stored cannot be read.
    tokens: Option<Arc<Tokens>>,
    /// The store's revision that they are of.
    revision: u64,
}

/// The tokens. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Keyring {
    store: Store,
    known: watch::Sender<Arc<Known>>,
    clock: Clock,
}

/// A new administrator's token on its way from the data directory into the store.
#[derive(Debug, Serialize, Deserialize)]
pub struct Rescue {
    token: Token,
    /// Whether all other tokens go.
    alone: bool,
}

impl Keyring {
    /// Reads the tokens from the store.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub async fn open(store: Store, clock: Clock) -> Result<Self, StoreError> {
        let (known, _) = watch::channel(Arc::default());
        let keyring = Self {
            store,
            known,
            clock,
        };
        keyring.pull().await?;
        Ok(keyring)
    }

    /// All tokens now.
    ///
    /// # Errors
    ///
    /// What is stored cannot be read.
    pub fn tokens(&self) -> Result<Arc<Tokens>, KeyringError> {
        let known = self.known.borrow();
        known.tokens.clone().ok_or(KeyringError::Unreadable)
    }

    /// The time by which tokens expire, in Unix milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.clock.unix_ms()
    }

    /// Makes a token of what was asked for, which must have been checked.
    ///
    /// # Errors
    ///
    /// It cannot be, or the store failed.
    pub async fn create(
        &self,
        request: &TokenRequest,
        by: &Caller,
    ) -> Result<(Token, Secret), KeyringError> {
        let (token, secret) = Token::make(request, &Dice::throw(), self.now_ms(), &by.name);
        self.change(by, |tokens| Ok((tokens.with(token.clone())?, ())))
            .await?;
        info!(by = by.name, token = token.name, id = token.id, role = %token.role, "token made");
        Ok((token, secret))
    }

    /// Replaces the secret of a token; the present one stays good for `grace`.
    ///
    /// # Errors
    ///
    /// There is no such token, or the store failed.
    pub async fn rotate(
        &self,
        id: &str,
        grace: Duration,
        by: &Caller,
    ) -> Result<(Token, Secret), KeyringError> {
        let (dice, now) = (Dice::throw(), self.now_ms());
        let rotated = |tokens: &Tokens| {
            let (tokens, token, secret) = tokens.rotated(id, &dice, grace, now)?;
            Ok((tokens, (token, secret)))
        };
        let (token, secret) = self.change(by, rotated).await?;
        info!(
            by = by.name,
            token = token.name,
            id,
            "secret of token replaced"
        );
        Ok((token, secret))
    }

    /// Takes a token away.
    ///
    /// # Errors
    ///
    /// There is no such token, it is the last that could change the others, or the store failed.
    pub async fn revoke(&self, id: &str, by: &Caller) -> Result<Token, KeyringError> {
        let token = self.change(by, |tokens| tokens.without(id)).await?;
        info!(by = by.name, token = token.name, id, "token revoked");
        Ok(token)
    }

    /// Follows what other control planes change, and looks for a [`Rescue`], for as long as it runs.
    pub async fn keep(self, dir: Arc<DataDir>) {
        tokio::join!(self.follow(), self.look(&dir));
    }

    async fn follow(&self) {
        loop {
            let from = self.known.borrow().revision;
            if let Ok(mut watch) = self.store.watch(FAMILY, from).await {
                while let News::Commit { revision, changes } = watch.next().await {
                    if let Some(change) = changes.iter().find(|change| change.key() == KEY) {
                        self.learn(value(change), revision);
                    }
                }
            }
            sleep(RETRY).await;
            if let Err(error) = self.pull().await {
                warn!(%error, "tokens cannot be read again, going on with what is known");
            }
        }
    }

    async fn look(&self, dir: &Arc<DataDir>) {
        let mut next = tokio::time::Instant::now();
        loop {
            if let Err(error) = self.take_rescue(dir).await {
                error!(%error, "the reset of tokens is not taken yet");
            }
            next += LOOK_EVERY;
            sleep_until(next).await;
        }
    }

    /// Takes the rescue in the data directory, if there is one.
    ///
    /// # Errors
    ///
    /// The store or the disk refuses; the file is still there then.
    pub async fn take_rescue(&self, dir: &Arc<DataDir>) -> Result<(), KeyringError> {
        let disk = |e: std::io::Error| StoreError::Failed(format!("{RESCUE_FILE}: {e}"));
        let Some(bytes) = on_disk(dir, |dir| dir.read(RESCUE_FILE))
            .await
            .map_err(disk)?
        else {
            return Ok(());
        };
        let rescue = match serde_json::from_slice::<Rescue>(&bytes) {
            Ok(rescue) => rescue,
            Err(error) => {
                let aside = on_disk(dir, |dir| dir.set_aside(RESCUE_FILE)).await;
                let aside = aside.map_err(disk)?;
                warn!(%error, aside = %aside.display(), "a damaged reset of tokens is set aside");
                return Ok(());
            }
        };
        let mut tries = 0;
        loop {
            let (tokens, revision) = self.stored().await?;
            let tokens = tokens.unwrap_or_default();
            // Else it was taken before, and only the file is still there.
            let is_new = tokens.get(&rescue.token.id).is_none();
            let rescued = tokens.rescued(rescue.token.clone(), rescue.alone);
            if !is_new || self.commit(rescued, revision).await? {
                break;
            }
            tries += 1;
            if tries == TRIES_MAX {
                return Err(KeyringError::Overtaken);
            }
        }
        on_disk(dir, |dir| dir.remove(RESCUE_FILE))
            .await
            .map_err(disk)?;
        warn!(
            id = rescue.token.id,
            others_revoked = rescue.alone,
            "an administrator's token was made in the data directory, and is good from now on"
        );
        Ok(())
    }

    async fn change<T>(
        &self,
        by: &Caller,
        mut change: impl FnMut(&Tokens) -> Result<(Tokens, T), NotChanged>,
    ) -> Result<T, KeyringError> {
        for _ in 0..TRIES_MAX {
            let (tokens, revision) = self.stored().await?;
            let tokens = tokens.ok_or(KeyringError::Unreadable)?;
            if by.is_first() && !tokens.is_empty() {
                return Err(KeyringError::NoLongerFirst);
            }
            let (changed, told) = change(&tokens)?;
            if self.commit(changed, revision).await? {
                return Ok(told);
            }
        }
        Err(KeyringError::Overtaken)
    }

    /// Puts `tokens` in the place of those of `revision`. False: others were faster.
    async fn commit(&self, tokens: Tokens, revision: u64) -> Result<bool, KeyringError> {
        let change = Change::put(KEY, tokens.to_json());
        let condition = Condition::at(KEY, revision);
        match self.store.commit(vec![condition], vec![change]).await? {
            Committed::Conflict => Ok(false),
            Committed::At(revision) => {
                self.publish(Some(tokens), revision);
                Ok(true)
            }
        }
    }

    /// The tokens in the store, and the revision that put them; `None`: they cannot be read.
    async fn stored(&self) -> Result<(Option<Tokens>, u64), StoreError> {
        let item = self.store.get(KEY).await?;
        Ok(match item {
            None => (Some(Tokens::default()), 0),
            Some(item) => (Tokens::from_json(&item.value).ok(), item.revision),
        })
    }

    async fn pull(&self) -> Result<(), StoreError> {
        // Of a later revision than the item's own: what is watched from there misses nothing.
        let page = self.store.list(FAMILY, 1, None).await?;
        let item = page.items.first().filter(|item| item.key == KEY);
        self.learn(item.map(|item| &item.value[..]), page.revision);
        Ok(())
    }

    fn learn(&self, stored: Option<&[u8]>, revision: u64) {
        let tokens = match stored.map(Tokens::from_json) {
            None => Some(Tokens::default()),
            Some(Ok(tokens)) => Some(tokens),
            Some(Err(error)) => {
                error!(%error, "{UNREADABLE}");
                None
            }
        };
        self.publish(tokens, revision);
    }

    fn publish(&self, tokens: Option<Tokens>, revision: u64) {
        let known = Arc::new(Known {
            tokens: tokens.map(Arc::new),
            revision,
        });
        self.known.send_if_modified(|present| {
            let is_newer = revision >= present.revision;
            if is_newer {
                *present = known;
            }
            is_newer
        });
    }
}

impl Rescue {
    /// A new administrator's token of this name for the control plane whose data directory this is; it
    /// replaces an earlier one that was not taken yet. Returns its secret. Blocks.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn leave(
        path: &Path,
        request: &TokenRequest,
        alone: bool,
        now_ms: u64,
    ) -> std::io::Result<Secret> {
        let (token, secret) = Token::make(request, &Dice::throw(), now_ms, "tokens reset");
        let json = serde_json::to_vec(&Self { token, alone }).expect("a token is plain data");
        DataDir::leave(path, RESCUE_FILE, &json)?;
        Ok(secret)
    }

    /// Whether what was left in this data directory has been taken. Blocks.
    pub fn is_taken(path: &Path) -> bool {
        !path.join(RESCUE_FILE).exists()
    }
}

fn value(change: &Change) -> Option<&[u8]> {
    match change {
        Change::Put { value, .. } => Some(value),
        Change::Delete { .. } => None,
    }
}

async fn on_disk<T: Send + 'static>(
    dir: &Arc<DataDir>,
    work: impl FnOnce(&DataDir) -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    let dir = dir.clone();
    tokio::task::spawn_blocking(move || work(&dir))
        .await
        .expect("file operations neither panic nor are aborted")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::Role;

    fn request(name: &str, role: Role) -> TokenRequest {
        TokenRequest {
            name: name.into(),
            role,
            sites: vec![],
            expires: None,
        }
    }

    async fn keyring(store: &Store) -> Keyring {
        Keyring::open(store.clone(), Clock::system()).await.unwrap()
    }

    fn names(keyring: &Keyring) -> Vec<String> {
        let tokens = keyring.tokens().unwrap();
        let tokens = tokens.in_order();
        tokens.iter().map(|token| token.name.clone()).collect()
    }

    async fn eventually(mut holds: impl FnMut() -> bool) {
        for _ in 0..500 {
            if holds() {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("not within five seconds");
    }

    #[tokio::test]
    async fn of_two_that_would_be_first_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::embedded(&dir.path().join("store")).unwrap();
        // Neither follows the other.
        let (one, two) = (keyring(&store).await, keyring(&store).await);
        let here = Caller::loopback();
        let first = one.create(&request("a", Role::Admin), &here).await;
        first.unwrap();
        let second = two.create(&request("b", Role::Admin), &here).await;
        assert_eq!(second.unwrap_err(), KeyringError::NoLongerFirst);
        assert_eq!((names(&one), names(&two)), (vec!["a".to_owned()], vec![]));
    }

    #[tokio::test]
    async fn what_one_changes_the_other_follows_and_changes_meet() {
        let parent = tempfile::tempdir().unwrap();
        let dir = Arc::new(DataDir::open(parent.path()).unwrap());
        let store = Store::embedded(&parent.path().join("store")).unwrap();
        let (one, two) = (keyring(&store).await, keyring(&store).await);
        let keeping = tokio::spawn(two.clone().keep(dir.clone()));
        let here = Caller::loopback();
        let (token, secret) = one
            .create(&request("ops", Role::Admin), &here)
            .await
            .unwrap();
        eventually(|| names(&two) == ["ops"]).await;
        let tokens = two.tokens().unwrap();
        let credentials = crate::access::Credentials {
            token: Some(secret.reveal()),
            node: None,
            is_here: false,
        };
        let ops = crate::access::caller(&tokens, credentials, two.now_ms()).unwrap();
        let (left, right) = (request("left", Role::Read), request("right", Role::Read));
        let (left, right) = tokio::join!(one.create(&left, &ops), two.create(&right, &ops));
        let (left, _) = (left.unwrap(), right.unwrap());
        assert_eq!(left.0.created_by, "ops");
        eventually(|| names(&two).len() == 3).await;
        let (_, new) = one.rotate(&token.id, Duration::ZERO, &ops).await.unwrap();
        one.revoke(&left.0.id, &ops).await.unwrap();
        let is_good = |text: &str| two.tokens().unwrap().find(text, two.now_ms()).is_ok();
        eventually(|| is_good(new.reveal()) && !is_good(secret.reveal())).await;
        eventually(|| names(&two).len() == 2).await;
        keeping.abort();
    }

    #[tokio::test]
    async fn what_cannot_be_read_lets_nobody_in_until_it_is_reset() {
        let parent = tempfile::tempdir().unwrap();
        let dir = Arc::new(DataDir::open(parent.path()).unwrap());
        let store = Store::embedded(&parent.path().join("store")).unwrap();
        let damage = vec![Change::put(KEY, "[{}]")];
        store.commit(vec![], damage).await.unwrap();
        let keyring = keyring(&store).await;
        assert_eq!(keyring.tokens().unwrap_err(), KeyringError::Unreadable);
        let here = Caller::loopback();
        let made = keyring.create(&request("a", Role::Admin), &here).await;
        assert_eq!(made.unwrap_err(), KeyringError::Unreadable);
        let rescue = request("reset", Role::Admin);
        let secret = Rescue::leave(parent.path(), &rescue, false, keyring.now_ms()).unwrap();
        assert!(!Rescue::is_taken(parent.path()));
        let kept = dir.read(RESCUE_FILE).unwrap().unwrap();
        assert!(!String::from_utf8_lossy(&kept).contains(secret.reveal()));
        for _ in 0..2 {
            keyring.take_rescue(&dir).await.unwrap();
            assert!(Rescue::is_taken(parent.path()));
            assert_eq!(names(&keyring), ["reset"]);
            // Killed before the file was removed: it is taken once.
            DataDir::leave(parent.path(), RESCUE_FILE, &kept).unwrap();
        }
        let tokens = keyring.tokens().unwrap();
        assert!(tokens.find(secret.reveal(), keyring.now_ms()).is_ok());
    }
}
