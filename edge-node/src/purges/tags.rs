//! The tags that an origin gives a response. Pure.

use cluster::purge::TAG_FIELDS;
use http::HeaderMap;

/// The tags of a response, as its fields may be read: separated by spaces, by commas, or by both.
pub fn tags(headers: &HeaderMap) -> Vec<&[u8]> {
    let mut tags: Vec<&[u8]> = Vec::new();
    for name in TAG_FIELDS {
        for value in headers.get_all(name) {
            let value = value.as_bytes();
            let mut add = |separates: fn(u8) -> bool| {
                let parts = value.split(|byte| separates(*byte));
                let parts = parts.map(<[u8]>::trim_ascii);
                tags.extend(parts.filter(|tag| !tag.is_empty()));
            };
            add(|byte| matches!(byte, b' ' | b'\t' | b','));
            // Rare: a comma in a tag among spaces, or the other way round.
            let has = |wanted: &[u8]| value.iter().any(|byte| wanted.contains(byte));
            if has(b",") && has(b" \t") {
                add(|byte| byte == b',');
            }
            if has(b",") {
                add(|byte| matches!(byte, b' ' | b'\t'));
            }
        }
    }
    tags
}

/// The same as text, each once.
pub fn tag_names(headers: &HeaderMap) -> Vec<String> {
    let names = tags(headers).into_iter();
    let mut names: Vec<_> = names
        .map(|tag| String::from_utf8_lossy(tag).into_owned())
        .collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_read_in_every_way_that_they_may_be_meant() {
        for (name, value, expected) in [
            ("surrogate-key", "a b  B", &["B", "a", "b"][..]),
            ("surrogate-key", "a,b", &["a", "a,b", "b"]),
            ("cache-tag", "a,b , c", &[",", "a", "a,b", "b", "c"]),
            (
                "cache-tag",
                "new york,b",
                &["b", "new", "new york", "york", "york,b"],
            ),
            ("xkey", "a", &["a"]),
            (
                "x-magento-tags",
                "cat_p_1,store",
                &["cat_p_1", "cat_p_1,store", "store"],
            ),
            ("xkey", " ", &[]),
            ("other", "a", &[]),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            assert_eq!(tag_names(&headers), expected, "{name}: {value}");
        }
    }
}
