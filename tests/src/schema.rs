//! Whether a JSON value is as a schema says: the part of JSON Schema that the project's own description of its
//! API uses. A keyword that is not known is an error, so that none is passed over.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Checks `value` against `schema`, whose references are looked up in `document`.
///
/// # Errors
///
/// Where it differs, and how.
pub fn check(document: &Value, schema: &Value, value: &Value) -> Result<()> {
    let keywords = schema.as_object().context("a schema is an object")?;
    for (keyword, meant) in keywords {
        match keyword.as_str() {
            "$ref" => {
                let place = meant.as_str().and_then(|text| text.strip_prefix('#'));
                let target = document.pointer(place.context("a foreign reference")?);
                check(document, target.context("it leads nowhere")?, value)?;
            }
            "type" => {
                let types = match meant {
                    Value::Array(types) => types.iter().collect(),
                    one => vec![one],
                };
                let fits = types.iter().any(|t| is_of(value, t.as_str().unwrap_or("")));
                ensure!(fits, "is {value}, not of type {meant}");
            }
            "enum" => {
                let values = meant.as_array().context("an enum is a list")?;
                ensure!(values.contains(value), "is {value}, none of {meant}");
            }
            "oneOf" => {
                let schemas = meant.as_array().context("oneOf is a list")?;
                let fits = schemas.iter().map(|one| check(document, one, value));
                let (good, bad): (Vec<_>, Vec<_>) = fits.partition(Result::is_ok);
                ensure!(
                    good.len() == 1,
                    "is {value}: fits {} of {meant}: {bad:?}",
                    good.len()
                );
            }
            "required" => {
                for name in meant.as_array().context("required is a list")? {
                    let name = name.as_str().unwrap_or_default();
                    ensure!(value.get(name).is_some(), "lacks {name:?}: {value}");
                }
            }
            "properties" => {
                for (name, schema) in meant.as_object().context("properties are an object")? {
                    if let Some(value) = value.get(name) {
                        check(document, schema, value).with_context(|| name.clone())?;
                    }
                }
            }
            "additionalProperties" => {
                for (name, value) in value.as_object().context("is no object")? {
                    if keywords
                        .get("properties")
                        .is_some_and(|p| p.get(name).is_some())
                    {
                        continue;
                    }
                    match meant {
                        Value::Bool(false) => bail!("has {name:?}, which is not described"),
                        Value::Bool(true) => {}
                        schema => check(document, schema, value).with_context(|| name.clone())?,
                    }
                }
            }
            "items" => {
                let items = value.as_array().into_iter().flatten().enumerate();
                for (n, value) in items {
                    check(document, meant, value).with_context(|| format!("[{n}]"))?;
                }
            }
            "minimum" => {
                if let (Some(value), Some(least)) = (value.as_f64(), meant.as_f64()) {
                    ensure!(value >= least, "is {value}, less than {least}");
                }
            }
            "maximum" => {
                if let (Some(value), Some(most)) = (value.as_f64(), meant.as_f64()) {
                    ensure!(value <= most, "is {value}, more than {most}");
                }
            }
            "maxLength" => {
                let length = value.as_str().map_or(0, |text| text.chars().count()) as u64;
                ensure!(
                    Some(length) <= meant.as_u64(),
                    "is {length} characters long"
                );
            }
            // Patterns are for who reads them.
            "description" | "pattern" => {}
            other => bail!("keyword {other:?} is not known here"),
        }
    }
    Ok(())
}

fn is_of(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_differs_is_found_and_named() {
        let document = json!({"a": {"type": "object", "required": ["n"], "additionalProperties": false,
            "properties": {"n": {"type": ["integer", "null"], "minimum": 1}, "s": {"enum": ["x"]},
                "l": {"type": "array", "items": {"$ref": "#/a"}},
                "o": {"oneOf": [{"$ref": "#/a"}, {"type": "null"}]}}}});
        let schema = json!({"$ref": "#/a"});
        let checked = |value: Value| check(&document, &schema, &value);
        for good in [
            json!({"n": 1}),
            json!({"n": null, "s": "x", "l": [{"n": 2}], "o": null}),
            json!({"n": 1, "o": {"n": 3}}),
        ] {
            checked(good).unwrap();
        }
        for (bad, told) in [
            (json!([]), "is no object"),
            (json!({}), "lacks \"n\""),
            (json!({"n": 0}), "less than 1"),
            (json!({"n": 1.5}), "not of type"),
            (json!({"n": 1, "m": 1}), "has \"m\""),
            (json!({"n": 1, "s": "y"}), "none of"),
            (json!({"n": 1, "l": [{"n": 1}, {}]}), "[1]"),
            (json!({"n": 1, "o": 3}), "fits 0"),
        ] {
            let error = format!("{:#}", checked(bad.clone()).unwrap_err());
            assert!(error.contains(told), "{bad}: {error}");
        }
        let unknown = check(&document, &json!({"format": "date"}), &json!(1));
        assert!(unknown.is_err());
    }
}
