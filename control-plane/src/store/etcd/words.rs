//! What is said to etcd and what it says: the parts of its JSON that are used. Numbers of 64 bits are text
//! there, bytes are base64, and what is zero or empty is left out.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// Where a range of all keys ends that begin with `prefix`: before the first key that does not.
pub(super) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    // There is none: up to the last key.
    vec![0]
}

/// `POST /v3/kv/range`
#[derive(Clone, Debug, Default)]
pub(super) struct Range {
    pub(super) key: Vec<u8>,
    /// Empty: the key alone.
    pub(super) range_end: Vec<u8>,
    /// 0: all.
    pub(super) limit: usize,
    /// 0: the newest.
    pub(super) revision: u64,
    pub(super) min_mod_revision: u64,
    /// 0: without end.
    pub(super) max_mod_revision: u64,
    /// In the order of the revisions; else of the keys.
    pub(super) by_revision: bool,
}

impl Range {
    pub(super) fn of_key(key: Vec<u8>) -> Self {
        Self {
            key,
            ..Self::default()
        }
    }
}

impl Serialize for Range {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut said = serde_json::json!({
            "key": STANDARD.encode(&self.key),
            "range_end": STANDARD.encode(&self.range_end),
            "limit": self.limit,
            "revision": self.revision,
            "min_mod_revision": self.min_mod_revision,
            "max_mod_revision": self.max_mod_revision,
        });
        if self.by_revision {
            said["sort_order"] = "ASCEND".into();
            said["sort_target"] = "MOD".into();
        }
        said.serialize(serializer)
    }
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Header {
    #[serde(default, deserialize_with = "number")]
    pub(super) revision: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Ranged {
    #[serde(default)]
    pub(super) header: Header,
    #[serde(default)]
    pub(super) kvs: Vec<KeyValue>,
    #[serde(default)]
    pub(super) more: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct KeyValue {
    #[serde(default, deserialize_with = "bytes")]
    pub(super) key: Vec<u8>,
    #[serde(default, deserialize_with = "bytes")]
    pub(super) value: Vec<u8>,
    #[serde(default, deserialize_with = "number")]
    pub(super) mod_revision: u64,
}

/// `POST /v3/kv/txn`
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Txn {
    compare: Vec<serde_json::Value>,
    success: Vec<serde_json::Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failure: Vec<serde_json::Value>,
}

impl Txn {
    /// Only if `key` was last put by `revision`; 0: it holds nothing.
    pub(super) fn last_put_by(&mut self, key: Vec<u8>, revision: u64) {
        self.compare.push(serde_json::json!({
            "key": STANDARD.encode(key),
            "target": "MOD",
            "result": "EQUAL",
            "mod_revision": revision,
        }));
    }

    pub(super) fn put(&mut self, key: Vec<u8>, value: Bytes) {
        let (key, value) = (STANDARD.encode(key), STANDARD.encode(value));
        self.success
            .push(serde_json::json!({"request_put": {"key": key, "value": value}}));
    }

    pub(super) fn delete(&mut self, key: Vec<u8>) {
        let key = STANDARD.encode(key);
        self.success
            .push(serde_json::json!({"request_delete_range": {"key": key}}));
    }

    /// Where a condition does not hold, what `key` holds is told.
    pub(super) fn or_else_get(&mut self, key: Vec<u8>) {
        let key = STANDARD.encode(key);
        self.failure
            .push(serde_json::json!({"request_range": {"key": key}}));
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct TxnDone {
    pub(super) header: Header,
    #[serde(default)]
    pub(super) succeeded: bool,
    #[serde(default)]
    responses: Vec<Response>,
}

impl TxnDone {
    /// What was found by [`Txn::or_else_get`].
    pub(super) fn found(&self) -> Option<&KeyValue> {
        let mut ranges = self
            .responses
            .iter()
            .filter_map(|one| one.response_range.as_ref());
        ranges.next()?.kvs.first()
    }
}

#[derive(Debug, Deserialize)]
struct Response {
    response_range: Option<Ranged>,
}

/// `POST /v3/watch`
#[derive(Debug, Serialize)]
pub(super) struct WatchRequest {
    create_request: serde_json::Value,
}

impl WatchRequest {
    /// Of all keys from `key` up to `end`, from `start` on.
    pub(super) fn new(end: Vec<u8>, key: Vec<u8>, start: u64) -> Self {
        Self {
            create_request: serde_json::json!({
                "key": STANDARD.encode(key),
                "range_end": STANDARD.encode(end),
                "start_revision": start,
            }),
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Events {
    #[serde(default)]
    pub(super) header: Header,
    #[serde(default)]
    pub(super) created: bool,
    #[serde(default)]
    pub(super) canceled: bool,
    #[serde(default)]
    pub(super) cancel_reason: String,
    #[serde(default, deserialize_with = "number")]
    pub(super) compact_revision: u64,
    #[serde(default)]
    pub(super) events: Vec<Event>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Event {
    /// Nothing for a put, `DELETE` else.
    #[serde(default, rename = "type", deserialize_with = "is_delete")]
    pub(super) is_delete: bool,
    pub(super) kv: KeyValue,
}

/// `POST /v3/auth/authenticate`
#[derive(Debug, Serialize)]
pub(super) struct Login<'a> {
    pub(super) name: &'a str,
    pub(super) password: &'a str,
}

#[derive(Debug, Deserialize)]
pub(super) struct LoggedIn {
    pub(super) token: String,
}

/// What a stream says line by line.
#[derive(Debug, Deserialize)]
pub(super) struct Streamed<T> {
    pub(super) result: Option<T>,
    pub(super) error: Option<Complaint>,
}

/// Why it did not do what it was asked for.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Complaint {
    #[serde(default)]
    pub(super) message: String,
    /// gRPC's code.
    #[serde(default, alias = "grpc_code")]
    pub(super) code: u32,
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Text(String),
        Number(u64),
    }
    match Written::deserialize(deserializer)? {
        Written::Number(number) => Ok(number),
        Written::Text(text) => text.parse().map_err(D::Error::custom),
    }
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    STANDARD.decode(text).map_err(D::Error::custom)
}

fn is_delete<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(String::deserialize(deserializer)? == "DELETE")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_first_key_that_does_not_begin_with_it() {
        for (prefix, end) in [
            (&b"a/"[..], &b"a0"[..]),
            (b"a\xff", b"b"),
            (b"\xff\xff", b"\0"),
            (b"", b"\0"),
        ] {
            assert_eq!(end_of(prefix), end, "{prefix:?}");
        }
    }

    /// As etcd 3.4 says it.
    #[test]
    fn what_etcd_says_is_understood() {
        let events: Streamed<Events> = serde_json::from_str(
            r#"{"result":{"header":{"cluster_id":"1","member_id":"3","revision":"3","raft_term":"2"},
                "events":[{"kv":{"key":"YQ==","create_revision":"2","mod_revision":"2","version":"1",
                "value":"dg=="}},{"type":"DELETE","kv":{"key":"YQ==","mod_revision":"3"}}]}}"#,
        )
        .unwrap();
        let events = events.result.unwrap();
        assert_eq!((events.header.revision, events.events.len()), (3, 2));
        let [put, delete] = &events.events[..] else {
            panic!("{events:?}")
        };
        assert!(!put.is_delete && delete.is_delete);
        assert_eq!((&put.kv.key[..], &put.kv.value[..]), (&b"a"[..], &b"v"[..]));
        assert_eq!(delete.kv.mod_revision, 3);

        let cut: Streamed<Events> = serde_json::from_str(
            r#"{"result":{"header":{"raft_term":"2"},"canceled":true,"compact_revision":"3"}}"#,
        )
        .unwrap();
        let cut = cut.result.unwrap();
        assert!(cut.canceled && cut.compact_revision == 3);

        let conflict: TxnDone = serde_json::from_str(r#"{"header":{"revision":"2"}}"#).unwrap();
        assert!(!conflict.succeeded && conflict.header.revision == 2);
        let none: Ranged = serde_json::from_str(r#"{"header":{"revision":"1"}}"#).unwrap();
        assert!(none.kvs.is_empty() && !none.more);
        let error: Complaint =
            serde_json::from_str(r#"{"error":"x","message":"etcdserver: no leader","code":14}"#)
                .unwrap();
        assert_eq!(
            (error.message.as_str(), error.code),
            ("etcdserver: no leader", 14)
        );
    }
}
