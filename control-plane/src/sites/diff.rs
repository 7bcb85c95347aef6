//! What differs between two versions of a site, field by field. Pure.

use cluster::{site::Site, wire::SiteDifference};
use serde_json::{Map, Value};

/// Most differences that are told; the rest is counted.
pub const DIFFERENCES_MAX: usize = 200;

/// What `after` says otherwise than `before`; an absent one says nothing. Lists are compared by their
/// members, and their order only where these are the same.
pub fn between(before: Option<&Site>, after: Option<&Site>) -> Vec<SiteDifference> {
    let mut found = Vec::new();
    objects("", &fields(before), &fields(after), &mut found);
    if found.len() > DIFFERENCES_MAX {
        let more = found.len() - DIFFERENCES_MAX;
        found.truncate(DIFFERENCES_MAX);
        found.push(SiteDifference {
            field: format!("and {more} more"),
            removed: None,
            added: None,
        });
    }
    found
}

fn fields(site: Option<&Site>) -> Map<String, Value> {
    let written = site.and_then(|site| serde_json::to_value(site).ok());
    match written {
        Some(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

fn objects(
    at: &str,
    before: &Map<String, Value>,
    after: &Map<String, Value>,
    found: &mut Vec<SiteDifference>,
) {
    let mut names: Vec<_> = before.keys().chain(after.keys()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let field = match at {
            "" => name.clone(),
            at => format!("{at}.{name}"),
        };
        match (before.get(name), after.get(name)) {
            (before, after) if before == after => {}
            (Some(Value::Object(before)), Some(Value::Object(after))) => {
                objects(&field, before, after, found);
            }
            (Some(Value::Array(before)), Some(Value::Array(after))) => {
                lists(&field, before, after, found);
            }
            (Some(Value::Array(before)), None) => lists(&field, before, &[], found),
            (None, Some(Value::Array(after))) => lists(&field, &[], after, found),
            (removed, added) => found.push(SiteDifference {
                field,
                removed: removed.cloned(),
                added: added.cloned(),
            }),
        }
    }
}

fn lists(field: &str, before: &[Value], after: &[Value], found: &mut Vec<SiteDifference>) {
    let differs = |removed: Option<&Value>, added: Option<&Value>| SiteDifference {
        field: field.to_owned(),
        removed: removed.cloned(),
        added: added.cloned(),
    };
    let removed = missing(before, after);
    let added = missing(after, before);
    if removed.is_empty() && added.is_empty() {
        let (before, after) = (Value::from(before), Value::from(after));
        return found.push(differs(Some(&before), Some(&after)));
    }
    found.extend(removed.into_iter().map(|value| differs(Some(value), None)));
    found.extend(added.into_iter().map(|value| differs(None, Some(value))));
}

/// Members of `of` that are not `among`, as often as they are not.
fn missing<'a>(of: &'a [Value], among: &[Value]) -> Vec<&'a Value> {
    let mut counts = std::collections::HashMap::<String, usize>::new();
    for value in among {
        *counts.entry(value.to_string()).or_default() += 1;
    }
    let is_missing = |value: &&Value| match counts.get_mut(&value.to_string()) {
        Some(count) if *count > 0 => {
            *count -= 1;
            false
        }
        _ => true,
    };
    of.iter().filter(is_missing).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(before: Option<&str>, after: Option<&str>) -> Vec<String> {
        let read = |text: &str| {
            let known = "name = 'a'\nhosts = ['a.test']\norigins = ['http://o']\n";
            toml::from_str::<Site>(&format!("{known}{text}")).unwrap()
        };
        let (before, after) = (before.map(read), after.map(read));
        let found = between(before.as_ref(), after.as_ref());
        let words =
            |value: &Option<Value>| value.as_ref().map_or_else(|| "-".into(), Value::to_string);
        found
            .iter()
            .map(|d| format!("{}: {} > {}", d.field, words(&d.removed), words(&d.added)))
            .collect()
    }

    #[test]
    fn what_differs_is_told_by_field() {
        for (before, after, expected) in [
            ("", "", &[][..]),
            (
                "default_ttl = '1s'",
                "default_ttl = '2s'",
                &[r#"default_ttl: "1s" > "2s""#],
            ),
            ("", "shield = 'none'", &[r#"shield: - > "none""#]),
            ("[query]\nsort = true", "", &[r#"query: {"sort":true} > -"#]),
            (
                "[query]\nsort = true\nignore = ['a']",
                "[query]\nsort = true\nignore = ['b']",
                &[r#"query.ignore: "a" > -"#, r#"query.ignore: - > "b""#],
            ),
            (
                "failover = [500, 502]",
                "failover = [502, 500]",
                &["failover: [500,502] > [502,500]"],
            ),
            (
                "",
                "failover = [500, 500]",
                &["failover: - > 500", "failover: - > 500"],
            ),
            (
                "failover = [500, 500]",
                "failover = [500]",
                &["failover: 500 > -"],
            ),
        ] {
            assert_eq!(
                told(Some(before), Some(after)),
                expected,
                "{before} > {after}"
            );
        }
        assert_eq!(told(None, Some("")).len(), 7);
        assert_eq!(told(Some(""), None)[4], r#"hosts: "a.test" > -"#);
    }

    #[test]
    fn a_long_list_of_differences_is_cut() {
        let mut site = Site::new("a", &["a.test"], &["http://o"]);
        let before = site.clone();
        site.hosts = (0..900).map(|n| format!("{n}.test")).collect();
        let found = between(Some(&before), Some(&site));
        assert_eq!(found.len(), DIFFERENCES_MAX + 1);
        assert_eq!(found.last().unwrap().field, "and 701 more");
    }
}
