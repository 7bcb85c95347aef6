//! Configuration: one TOML file, overlaid by the environment, overlaid by flags, read into one
//! checked struct. The same for every process.
//!
//! A value keeps the memory of where it was written, so that what is refused is refused with the
//! file and line, the variable or the flag, the key, the value and the reason. What comes from the
//! environment is text until a field asks for it: `EDGE_NODE__ID=7` is the name `"7"`,
//! `EDGE_LIMITS__CLIENTS=7` the number. A list may be a TOML array or names with commas between.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
};

use serde::{
    de::{
        DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess,
        SeqAccess, Unexpected, Visitor,
        value::{MapAccessDeserializer, StrDeserializer},
    },
    forward_to_deserialize_any,
};
use toml::{
    Value,
    de::{DeTable, DeValue},
};

/// Largest configuration file: [`crate::site::SITES_MAX`] generous sites fit many times over.
pub const FILE_BYTES_MAX: u64 = 64 << 20;
/// Longest part of an offending value that an error repeats.
const SHOWN_CHARS_MAX: usize = 120;

/// Reads `file` (if any), overlays the variables of `env` whose names begin with `env_prefix`
/// (`__` between levels: `EDGE_CACHE__MEMORY` is `cache.memory`), then `flags` (dotted paths).
///
/// `T` should carry `#[serde(deny_unknown_fields)]` on every level: that is what refuses unknown
/// keys, and unknown variables with the prefix.
///
/// # Errors
///
/// The first thing that cannot be read or meant, and where it was written.
pub fn load<T: DeserializeOwned>(
    file: Option<&Path>,
    env_prefix: &str,
    env: impl Iterator<Item = (String, String)>,
    flags: Vec<(String, Value)>,
) -> Result<T, SettingsError> {
    let mut root = Node {
        kind: Kind::Table(BTreeMap::new()),
        origin: Origin::Nowhere,
    };
    if let Some(path) = file {
        root = read_file(path)?;
    }
    // The environment has no order of its own; the same mistake is always the one reported.
    let variables: BTreeMap<String, String> = env
        .filter(|(name, _)| name.starts_with(env_prefix))
        .collect();
    for (name, text) in variables {
        let path = name[env_prefix.len()..].to_lowercase().replace("__", ".");
        let origin = Origin::Variable(name);
        overlay(
            &mut root,
            &path,
            Node {
                kind: Kind::Text(text),
                origin,
            },
        )?;
    }
    for (path, value) in flags {
        let origin = Origin::Flag(path.clone());
        overlay(&mut root, &path, Node::from_value(value, &origin))?;
    }
    T::deserialize(&root).map_err(|refusal| refusal.into_error(&root.origin))
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no TOML.
    #[error("{}:{line}: {reason}", path.display())]
    NotToml {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        reason: String,
    },
    /// A value that cannot be meant, or a key that does not exist or is missing.
    #[error("{origin}: {key}{}: {reason}", shown_value(value.as_deref()))]
    Refused {
        /// Where it was written.
        origin: Origin,
        /// The dotted path of the key.
        key: String,
        /// The value, shortened, when it is a single one.
        value: Option<String>,
        /// What is wrong with it.
        reason: String,
    },
}

fn shown_value(value: Option<&str>) -> String {
    value.map_or_else(String::new, |v| format!(" = {v}"))
}

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: it is missing.
    Nowhere,
    /// A file, at a line counted from 1.
    File(PathBuf, usize),
    /// An environment variable.
    Variable(String),
    /// A flag for this key.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => f.write_str("configuration"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Flag(key) => write!(f, "flag for {key}"),
        }
    }
}

/// A value that remembers where it was written.
#[derive(Debug)]
struct Node {
    kind: Kind,
    origin: Origin,
}

#[derive(Debug)]
enum Kind {
    Table(BTreeMap<String, Node>),
    Array(Vec<Node>),
    Scalar(Value),
    /// From the environment: becomes what the field that reads it wants.
    Text(String),
}

fn read_file(path: &Path) -> Result<Node, SettingsError> {
    let unreadable = |source| SettingsError::Unreadable {
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(unreadable)?.len() > FILE_BYTES_MAX {
        let reason = format!("larger than {FILE_BYTES_MAX} bytes");
        return Err(unreadable(io::Error::new(
            io::ErrorKind::FileTooLarge,
            reason,
        )));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let line_of = |offset: usize| 1 + text.bytes().take(offset).filter(|&b| b == b'\n').count();
    let not_toml = |error: toml::de::Error| SettingsError::NotToml {
        path: path.to_owned(),
        line: error.span().map_or(1, |span| line_of(span.start)),
        reason: error.message().to_owned(),
    };
    let values: toml::Table = text.parse().map_err(not_toml)?;
    let spans = DeTable::parse(&text).map_err(not_toml)?;
    let at = |line| Origin::File(path.to_owned(), line);
    Ok(Node {
        kind: Kind::Table(table_of(values, spans.get_ref(), &|offset| {
            at(line_of(offset))
        })),
        origin: at(1),
    })
}

/// Walks the values and their places in the file side by side.
fn table_of(
    values: toml::Table,
    spans: &DeTable<'_>,
    at: &dyn Fn(usize) -> Origin,
) -> BTreeMap<String, Node> {
    let mut table = BTreeMap::new();
    for (key, value) in values {
        let Some((key_span, span)) = spans.get_key_value(key.as_str()) else {
            continue; // Both came from the same text.
        };
        let node = node_of(value, span.get_ref(), key_span.span().start, at);
        table.insert(key, node);
    }
    table
}

fn node_of(value: Value, span: &DeValue<'_>, offset: usize, at: &dyn Fn(usize) -> Origin) -> Node {
    let kind = match (value, span) {
        (Value::Table(values), DeValue::Table(spans)) => Kind::Table(table_of(values, spans, at)),
        (Value::Array(values), DeValue::Array(spans)) => Kind::Array(
            values
                .into_iter()
                .zip(spans.iter())
                .map(|(value, span)| node_of(value, span.get_ref(), span.span().start, at))
                .collect(),
        ),
        (scalar, _) => Kind::Scalar(scalar),
    };
    Node {
        kind,
        origin: at(offset),
    }
}

/// Puts `leaf` at `path`, making tables on the way.
fn overlay(root: &mut Node, path: &str, leaf: Node) -> Result<(), SettingsError> {
    let refused = |value: Option<String>, reason: String| SettingsError::Refused {
        origin: leaf.origin.clone(),
        key: path.to_owned(),
        value,
        reason,
    };
    if path.split('.').any(str::is_empty) {
        return Err(refused(leaf.shown(), "no such key".into()));
    }
    let mut steps = path.split('.').peekable();
    let mut here = root;
    while let Some(step) = steps.next() {
        let below = here.origin.clone();
        let Kind::Table(table) = &mut here.kind else {
            let reason = format!("there is no key within the value written at {below}");
            return Err(refused(leaf.shown(), reason));
        };
        if steps.peek().is_none() {
            table.insert(step.to_owned(), leaf);
            return Ok(());
        }
        here = table.entry(step.to_owned()).or_insert_with(|| Node {
            kind: Kind::Table(BTreeMap::new()),
            origin: leaf.origin.clone(),
        });
    }
    Ok(())
}

impl Node {
    fn from_value(value: Value, origin: &Origin) -> Self {
        let kind = match value {
            Value::Table(table) => Kind::Table(
                table
                    .into_iter()
                    .map(|(key, value)| (key, Self::from_value(value, origin)))
                    .collect(),
            ),
            Value::Array(items) => Kind::Array(
                items
                    .into_iter()
                    .map(|value| Self::from_value(value, origin))
                    .collect(),
            ),
            scalar => Kind::Scalar(scalar),
        };
        Self {
            kind,
            origin: origin.clone(),
        }
    }

    /// The value as an error repeats it; tables and arrays are not.
    fn shown(&self) -> Option<String> {
        let text = match &self.kind {
            Kind::Scalar(value) => value.to_string(),
            Kind::Text(text) => format!("{text:?}"),
            Kind::Table(_) | Kind::Array(_) => return None,
        };
        if text.chars().count() <= SHOWN_CHARS_MAX {
            return Some(text);
        }
        Some(text.chars().take(SHOWN_CHARS_MAX).chain(['…']).collect())
    }

    /// What the text of a variable is when no field says what it wants: TOML if it reads as TOML.
    fn parsed(&self, text: &str) -> Option<Self> {
        let value = text.parse::<Value>().ok()?;
        Some(Self::from_value(value, &self.origin))
    }
}

/// A refusal on its way up to the root, gathering the path as it goes.
#[derive(Debug)]
struct Refusal {
    reason: String,
    /// Innermost step first.
    steps: Vec<String>,
    origin: Option<Origin>,
    value: Option<String>,
}

impl Refusal {
    /// Remembers `node` as the place of the refusal, unless it was within it that it happened.
    fn within(mut self, node: &Node, step: String) -> Self {
        if self.origin.is_none() {
            self.origin = Some(node.origin.clone());
            self.value = node.shown();
        }
        self.steps.push(step);
        self
    }

    fn into_error(self, root: &Origin) -> SettingsError {
        let mut key = String::new();
        for step in self.steps.iter().rev() {
            if !key.is_empty() && !step.starts_with('[') {
                key.push('.');
            }
            key.push_str(step);
        }
        if key.is_empty() {
            key.push_str("top level");
        }
        SettingsError::Refused {
            origin: self.origin.unwrap_or_else(|| root.clone()),
            key,
            value: self.value,
            reason: self.reason,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Refusal {}

impl serde::de::Error for Refusal {
    fn custom<M: fmt::Display>(reason: M) -> Self {
        Self {
            reason: reason.to_string(),
            steps: Vec::new(),
            origin: None,
            value: None,
        }
    }
}

/// A number or a switch, when a field asks for one and the value is text from the environment.
macro_rules! from_text {
    ($($method:ident => $visit:ident: $type:ty),* $(,)?) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
            match &self.kind {
                Kind::Text(text) => match text.trim().parse::<$type>() {
                    Ok(value) => visitor.$visit(value),
                    Err(_) => Err(Refusal::invalid_value(Unexpected::Str(text), &visitor)),
                },
                _ => self.deserialize_any(visitor),
            }
        })*
    };
}

impl<'de> Deserializer<'de> for &Node {
    type Error = Refusal;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match &self.kind {
            Kind::Table(table) => visitor.visit_map(TableReader {
                entries: table.iter(),
                value: None,
            }),
            Kind::Array(items) => visitor.visit_seq(ArrayReader { items, next: 0 }),
            Kind::Scalar(Value::String(text)) => visitor.visit_str(text),
            Kind::Scalar(Value::Integer(number)) => visitor.visit_i64(*number),
            Kind::Scalar(Value::Float(number)) => visitor.visit_f64(*number),
            Kind::Scalar(Value::Boolean(switch)) => visitor.visit_bool(*switch),
            Kind::Scalar(other) => visitor.visit_string(other.to_string()),
            Kind::Text(text) => match self.parsed(text) {
                Some(node)
                    if !matches!(
                        node.kind,
                        Kind::Scalar(Value::String(_) | Value::Datetime(_))
                    ) =>
                {
                    node.deserialize_any(visitor)
                }
                _ => visitor.visit_str(text),
            },
        }
    }

    from_text! {
        deserialize_bool => visit_bool: bool,
        deserialize_i8 => visit_i64: i64, deserialize_i16 => visit_i64: i64,
        deserialize_i32 => visit_i64: i64, deserialize_i64 => visit_i64: i64,
        deserialize_u8 => visit_u64: u64, deserialize_u16 => visit_u64: u64,
        deserialize_u32 => visit_u64: u64, deserialize_u64 => visit_u64: u64,
        deserialize_f32 => visit_f64: f64, deserialize_f64 => visit_f64: f64,
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match &self.kind {
            Kind::Text(text) => visitor.visit_str(text),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        let Kind::Text(text) = &self.kind else {
            return self.deserialize_any(visitor);
        };
        let items = match self.parsed(text).map(|node| node.kind) {
            Some(Kind::Array(items)) => items,
            _ => text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| Node {
                    kind: Kind::Text(item.to_owned()),
                    origin: self.origin.clone(),
                })
                .collect(),
        };
        visitor.visit_seq(ArrayReader {
            items: &items,
            next: 0,
        })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        if let Kind::Text(text) = &self.kind
            && let Some(Node {
                kind: Kind::Table(table),
                ..
            }) = self.parsed(text)
        {
            return visitor.visit_map(TableReader {
                entries: table.iter(),
                value: None,
            });
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        match &self.kind {
            Kind::Text(text) | Kind::Scalar(Value::String(text)) => {
                let text: StrDeserializer<'_, Refusal> = text.as_str().into_deserializer();
                text.deserialize_enum(name, variants, visitor)
            }
            Kind::Table(table) => MapAccessDeserializer::new(TableReader {
                entries: table.iter(),
                value: None,
            })
            .deserialize_enum(name, variants, visitor),
            _ => self.deserialize_any(visitor),
        }
    }

    forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

struct TableReader<'a> {
    entries: std::collections::btree_map::Iter<'a, String, Node>,
    value: Option<(&'a String, &'a Node)>,
}

impl<'de> MapAccess<'de> for TableReader<'_> {
    type Error = Refusal;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Refusal> {
        let Some((key, node)) = self.entries.next() else {
            return Ok(None);
        };
        self.value = Some((key, node));
        let text: StrDeserializer<'_, Refusal> = key.as_str().into_deserializer();
        seed.deserialize(text)
            .map(Some)
            .map_err(|refusal| refusal.within(node, key.clone()))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Refusal> {
        let (key, node) = self.value.take().ok_or_else(|| Refusal::custom("no key"))?;
        seed.deserialize(node)
            .map_err(|refusal| refusal.within(node, key.clone()))
    }
}

struct ArrayReader<'a> {
    items: &'a [Node],
    next: usize,
}

impl<'de> SeqAccess<'de> for ArrayReader<'_> {
    type Error = Refusal;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Refusal> {
        let Some(node) = self.items.get(self.next) else {
            return Ok(None);
        };
        let step = format!("[{}]", self.next);
        self.next += 1;
        seed.deserialize(node)
            .map(Some)
            .map_err(|refusal| refusal.within(node, step))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use serde::Deserialize;

    use super::*;
    use crate::quantity::Bytes;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[serde(default)]
        node: Node,
        cache: Cache,
        #[serde(default)]
        site: Vec<Site>,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Node {
        id: Option<String>,
        latitude: Option<f64>,
        seeds: Vec<String>,
        listen: Option<SocketAddr>,
        mode: Option<Mode>,
        on: bool,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        Fast,
        Safe,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Cache {
        memory: Bytes,
        #[serde(default)]
        clients: u16,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Site {
        name: String,
        size: Option<Bytes>,
    }

    const FILE: &str = "[cache]\nmemory = \"1MiB\"\nclients = 5\n\n[[site]]\nname = \"a\"\n\n[[site]]\nname = \"b\"\nsize = 7\n";

    fn read(
        file: Option<&str>,
        env: &[(&str, &str)],
        flags: Vec<(String, Value)>,
    ) -> Result<Sample, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.toml");
        if let Some(text) = file {
            std::fs::write(&path, text).unwrap();
        }
        let env = env.iter().map(|&(k, v)| (k.to_owned(), v.to_owned()));
        load(file.map(|_| path.as_path()), "EDGE_", env, flags).map_err(|e| {
            let text = e.to_string();
            text.replace(&format!("{}/", dir.path().display()), "")
        })
    }

    #[test]
    fn flags_beat_environment_beats_file() {
        let env = [("EDGE_CACHE__MEMORY", "2MiB"), ("EDGE_CACHE__CLIENTS", "6")];
        let flags = vec![("cache.clients".to_owned(), Value::Integer(7))];
        let got = read(Some(FILE), &env, flags).unwrap();
        assert_eq!(got.cache.memory, Bytes(2 << 20));
        assert_eq!(got.cache.clients, 7);
        assert_eq!(got.site[1].size, Some(Bytes(7)));
    }

    #[test]
    fn no_file_is_needed_and_other_variables_are_not_looked_at() {
        let env = [
            ("EDGE_CACHE__MEMORY", "4096"),
            ("HOME", "/"),
            ("EDGES", "x"),
        ];
        assert_eq!(read(None, &env, vec![]).unwrap().cache.memory, Bytes(4096));
    }

    #[test]
    fn a_variable_becomes_what_its_field_wants() {
        let node = |name: &str, value: &str| {
            let name = format!("EDGE_NODE__{name}");
            read(Some(FILE), &[(name.as_str(), value)], vec![])
                .unwrap()
                .node
        };
        assert_eq!(node("ID", "007").id.as_deref(), Some("007"));
        assert_eq!(node("ID", "true").id.as_deref(), Some("true"));
        assert_eq!(node("LATITUDE", "7").latitude, Some(7.0));
        assert!(node("ON", "true").on);
        assert_eq!(node("MODE", "safe").mode, Some(Mode::Safe));
        assert_eq!(node("SEEDS", "a:1, b:2,").seeds, ["a:1", "b:2"]);
        assert_eq!(node("SEEDS", r#"["a:1"]"#).seeds, ["a:1"]);
        assert!(node("SEEDS", "").seeds.is_empty());
        assert_eq!(
            node("LISTEN", "[::1]:80").listen,
            Some("[::1]:80".parse().unwrap())
        );
        let sites = [("EDGE_SITE", r#"[{ name = "x", size = "1kB" }]"#)];
        let sites = read(Some(FILE), &sites, vec![]).unwrap().site;
        assert_eq!(sites[0].size, Some(Bytes(1000)));
    }

    /// Each refusal names the place, the key, the value and the reason.
    #[test]
    fn what_is_refused_is_named() {
        for (file, env, told) in [
            (
                "[cache]\nmemory = \"1XB\"",
                ("", ""),
                vec!["f.toml:2: cache.memory = \"1XB\": ", "is not a size"],
            ),
            (
                "[cache]\nmemory = 1\nclients = 70000",
                ("", ""),
                vec!["f.toml:3: cache.clients = 70000: ", "expected u16"],
            ),
            (
                "[cache]\nmemory = 1\n\nmemroy = 2",
                ("", ""),
                vec!["f.toml:4: cache.memroy = 2: unknown field", "`memory`"],
            ),
            (
                "[cache]\nmemory = 1\n[[site]]\nname='a'\n[[site]]\nname='b'\nsize='x'",
                ("", ""),
                vec!["f.toml:7: site[1].size = \"x\": ", "is not a size"],
            ),
            (
                "[cache]\nmemory = 1\n[[site]]\nsize='1kB'",
                ("", ""),
                vec!["f.toml:3: site[0]: missing field `name`"],
            ),
            (
                "[node]\non = true",
                ("", ""),
                vec!["f.toml:1: top level: missing field `cache`"],
            ),
            ("[cache]\nmemory = ", ("", ""), vec!["f.toml:2: "]),
            (
                FILE,
                ("EDGE_CACHE__CLIENTS", "many"),
                vec![
                    "environment variable EDGE_CACHE__CLIENTS: cache.clients = \"many\": ",
                    "u16",
                ],
            ),
            (
                FILE,
                ("EDGE_CACHE__COLOUR", "red"),
                vec![
                    "environment variable EDGE_CACHE__COLOUR: cache.colour = \"red\": unknown field",
                ],
            ),
            (
                FILE,
                ("EDGE_TYPO", "1"),
                vec!["environment variable EDGE_TYPO: typo = \"1\": unknown field `typo`"],
            ),
            (FILE, ("EDGE_", "1"), vec!["environment variable EDGE_: "]),
            (
                FILE,
                ("EDGE_CACHE__MEMORY__X", "1"),
                vec![
                    "EDGE_CACHE__MEMORY__X: cache.memory.x = \"1\": ",
                    "f.toml:2",
                ],
            ),
            (
                FILE,
                ("EDGE_NODE", "{ mode = 'x' }"),
                vec![
                    "environment variable EDGE_NODE: node.mode = ",
                    "unknown variant `x`",
                ],
            ),
        ] {
            let env = [env];
            let env = if env[0].0.is_empty() { &[][..] } else { &env };
            let error = read(Some(file), env, vec![]).unwrap_err();
            for part in told {
                assert!(error.contains(part), "{error:?} should tell {part:?}");
            }
        }
        let flags = vec![("cache.memory".to_owned(), Value::String("x".into()))];
        let error = read(Some(FILE), &[], flags).unwrap_err();
        assert!(
            error.starts_with("flag for cache.memory: cache.memory = \"x\": "),
            "{error}"
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let path = Path::new("/does/not/exist.toml");
        let error = load::<Sample>(Some(path), "EDGE_", [].into_iter(), vec![]).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("/does/not/exist.toml: cannot be read: ")
        );
    }
}
