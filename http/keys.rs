//! Backend keys: who may ask for tickets, and how much each may have under way.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use engine::tickets::is_same_secret;

/// One web app's key, as its operator set it.
#[derive(Clone, PartialEq, Eq)]
pub struct BackendKey {
    /// Names it in tickets, logs and answers.
    pub name: String,
    /// What requests carry.
    pub key: String,
    /// Of the declared lengths of uploads that are not over.
    pub quota_bytes: Option<u64>,
    /// Tickets that are not over.
    pub tickets_max: Option<u32>,
}

/// The keys of a run, and what all cores together count for each.
#[derive(Debug, Default)]
pub struct BackendKeys {
    keys: Vec<(BackendKey, Usage)>,
}

/// One of the keys of this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyId(u16);

/// The request carries no key that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAuthorized;

/// More than the key may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitReached;

#[derive(Debug, Default)]
struct Usage {
    ticket_count: AtomicU32,
    declared_bytes: AtomicU64,
}

impl BackendKeys {
    pub fn new(keys: impl IntoIterator<Item = BackendKey>) -> Self {
        Self { keys: keys.into_iter().map(|it| (it, Usage::default())).collect() }
    }

    /// Requests need none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whose request it is, by its `Authorization` (RFC 6750 section 2.1). `None`: there are no
    /// keys, and so nobody needs one.
    ///
    /// # Errors
    /// There are keys, and it is none of them.
    pub fn authorize(&self, authorization: Option<&str>) -> Result<Option<KeyId>, NotAuthorized> {
        if self.is_empty() {
            return Ok(None);
        }
        let given = authorization.and_then(|it| it.split_once(' '));
        let given = given.filter(|it| it.0.eq_ignore_ascii_case("Bearer")).map(|it| it.1.trim());
        // All of them are compared, so that the time tells nothing.
        let found = self.keys.iter().enumerate().fold(None, |found, (index, (it, _))| {
            let is_same = is_same_secret(&it.key, given.unwrap_or(""));
            if is_same { Some(KeyId(index as u16)) } else { found }
        });
        found.map(Some).ok_or(NotAuthorized)
    }

    pub fn name(&self, key: KeyId) -> &str {
        &self.key(key).0.name
    }

    /// The key of this name, if this run has one.
    pub fn find(&self, name: &str) -> Option<KeyId> {
        let index = self.keys.iter().position(|it| it.0.name == name)?;
        Some(KeyId(index as u16))
    }

    /// Counts one more ticket.
    ///
    /// # Errors
    /// It may have no more.
    pub fn add_ticket(&self, key: KeyId) -> Result<(), LimitReached> {
        let (key, usage) = self.key(key);
        let most = key.tickets_max.unwrap_or(u32::MAX);
        let more = |count| (count < most).then_some(count + 1);
        let added = usage.ticket_count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        added.map(drop).map_err(|_| LimitReached)
    }

    /// An upload has declared `new_bytes`, and before that `old_bytes`.
    ///
    /// # Errors
    /// It may not have so much.
    pub fn declare(&self, key: KeyId, old_bytes: u64, new_bytes: u64) -> Result<(), LimitReached> {
        let (key, usage) = self.key(key);
        let most = key.quota_bytes.unwrap_or(u64::MAX);
        let more = |sum: u64| (sum - old_bytes).checked_add(new_bytes).filter(|it| *it <= most);
        let added = usage.declared_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        added.map(drop).map_err(|_| LimitReached)
    }

    /// A ticket of an earlier run goes on, whatever its key may have now.
    pub fn restore(&self, key: KeyId, declared_bytes: u64) {
        let usage = &self.key(key).1;
        usage.ticket_count.fetch_add(1, Ordering::Relaxed);
        usage.declared_bytes.fetch_add(declared_bytes, Ordering::Relaxed);
    }

    /// A ticket is over.
    pub fn release(&self, key: KeyId, declared_bytes: u64) {
        let usage = &self.key(key).1;
        usage.ticket_count.fetch_sub(1, Ordering::Relaxed);
        usage.declared_bytes.fetch_sub(declared_bytes, Ordering::Relaxed);
    }

    /// Tickets that are not over, and the bytes that their browsers have declared.
    pub fn usage(&self, key: KeyId) -> (u32, u64) {
        let usage = &self.key(key).1;
        let count = usage.ticket_count.load(Ordering::Relaxed);
        (count, usage.declared_bytes.load(Ordering::Relaxed))
    }

    pub fn ids(&self) -> impl Iterator<Item = KeyId> + use<> {
        (0..self.keys.len() as u16).map(KeyId)
    }

    fn key(&self, key: KeyId) -> &(BackendKey, Usage) {
        &self.keys[usize::from(key.0)]
    }
}

/// Without the key itself.
impl fmt::Debug for BackendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendKey")
            .field("name", &self.name)
            .field("quota_bytes", &self.quota_bytes)
            .field("tickets_max", &self.tickets_max)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> BackendKeys {
        let key = |name: &str, quota_bytes, tickets_max| BackendKey {
            name: name.to_owned(),
            key: format!("key-of-{name}-123456"),
            quota_bytes,
            tickets_max,
        };
        BackendKeys::new([key("shop", Some(1000), Some(2)), key("press", None, None)])
    }

    #[test]
    fn authorization() {
        let keys = keys();
        for (given, name) in [
            (Some("Bearer key-of-shop-123456"), Some("shop")),
            (Some("bearer  key-of-press-123456"), Some("press")),
            (Some("Bearer key-of-press-123457"), None),
            (Some("Bearer key-of-press-12345"), None),
            (Some("Bearer key-of-press-1234567"), None),
            (Some("key-of-press-123456"), None),
            (Some("Basic key-of-press-123456"), None),
            (Some("Bearer "), None),
            (Some("Bearer"), None),
            (None, None),
        ] {
            let found = keys.authorize(given).ok().flatten();
            assert_eq!(found.map(|it| keys.name(it)), name, "{given:?}");
        }
        assert_eq!(BackendKeys::default().authorize(None), Ok(None));
        assert_eq!(BackendKeys::default().authorize(Some("Bearer x")), Ok(None));
    }

    #[test]
    fn limits() {
        let keys = keys();
        let [shop, press] = [0, 1].map(KeyId);
        assert_eq!([shop, press].map(|it| keys.find(keys.name(it))), [Some(shop), Some(press)]);
        assert_eq!((keys.find("app"), keys.find("")), (None, None));
        assert_eq!(keys.add_ticket(shop), Ok(()));
        assert_eq!(keys.declare(shop, 0, 600), Ok(()));
        assert_eq!(keys.add_ticket(shop), Ok(()));
        assert_eq!(keys.add_ticket(shop), Err(LimitReached));
        assert_eq!(keys.declare(shop, 0, 401), Err(LimitReached));
        assert_eq!(keys.declare(shop, 0, u64::MAX), Err(LimitReached));
        assert_eq!(keys.declare(shop, 0, 400), Ok(()));
        assert_eq!(keys.declare(shop, 400, 401), Err(LimitReached));
        assert_eq!(keys.declare(shop, 400, 300), Ok(()));
        assert_eq!(keys.usage(shop), (2, 900));
        // What is there already goes on.
        keys.restore(shop, 5000);
        assert_eq!(keys.usage(shop), (3, 5900));
        assert_eq!(keys.declare(shop, 0, 1), Err(LimitReached));
        for bytes in [5000, 600, 300] {
            keys.release(shop, bytes);
        }
        assert_eq!(keys.usage(shop), (0, 0));
        // Nobody else notices.
        assert_eq!(keys.declare(press, 0, 1 << 60), Ok(()));
        assert_eq!(keys.usage(press), (0, 1 << 60));
    }
}
