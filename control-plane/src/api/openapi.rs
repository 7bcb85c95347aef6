//! `GET /v1/openapi.json`: what this API can do, written by hand in `openapi/`, a file for each resource.
//! Tests hold it to the routes, to who may use them ([`crate::access`]), and to what is really answered.

use axum::{
    body::Body,
    http::{HeaderValue, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde_json::{Map, Value, json};

/// A file each: `paths`, `schemas` and `responses`.
const PARTS: [&str; 7] = [
    include_str!("openapi/common.json"),
    include_str!("openapi/nodes.json"),
    include_str!("openapi/sites.json"),
    include_str!("openapi/purges.json"),
    include_str!("openapi/warm.json"),
    include_str!("openapi/tokens.json"),
    include_str!("openapi/health.json"),
];

/// The description, as it is served.
#[derive(Clone, Debug)]
pub(super) struct Description(Bytes);

impl Description {
    /// Puts the parts together.
    pub(super) fn new() -> Self {
        Self(document().to_string().into())
    }

    pub(super) fn answer(&self) -> Response {
        let json = HeaderValue::from_static("application/json");
        ([(CONTENT_TYPE, json)], Body::from(self.0.clone())).into_response()
    }
}

fn document() -> Value {
    let mut all = [(); 3].map(|()| Map::new());
    for part in PARTS {
        let mut part: Value = serde_json::from_str(part).expect("it is a part of this program");
        for (name, all) in ["paths", "schemas", "responses"].iter().zip(&mut all) {
            if let Some(Value::Object(part)) = part.get_mut(name).map(Value::take) {
                all.extend(part);
            }
        }
    }
    let [paths, schemas, responses] = all;
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "control plane of a geo-aware CDN",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0 OR MIT", "identifier": "Apache-2.0 OR MIT"},
            "description": "Sites, purges, tokens, and where everybody is. Until there is a token, \
                            whatever changes something must be asked for from the machine of the \
                            control plane; from then on it takes one. The name behind `token` is \
                            the role that it takes; an admin's is good for everything. Where the \
                            configuration says `public_read = false`, reading takes one, too. \
                            `PURGE`, `BAN`, `PURGEKEYS` and `PURGETAGS` at any path purge as \
                            Varnish and the plugins for it do, which OpenAPI has no words for.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": responses,
            "securitySchemes": {"token": {
                "type": "http",
                "scheme": "bearer",
                "description": "`Authorization: Bearer cdn_…`; the same as the password of Basic, \
                                or as `Fastly-Key`.",
            }},
        },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use cluster::purge::spoken::is_spoken;

    use super::*;
    use crate::{
        access::{Need, need},
        api::resources,
    };

    /// The paths and methods of the real router, out of what it says of itself.
    fn routes() -> BTreeMap<String, BTreeSet<String>> {
        let told = format!("{:?}", resources());
        let (told, _) = told.split_once("fallback_router").unwrap();
        let (methods, paths) = told.split_once("paths: {").unwrap();
        let id = |text: &str| text.split(')').next().unwrap().to_owned();
        let methods: BTreeMap<_, _> = methods
            .split("RouteId(")
            .skip(1)
            .map(|route| {
                let allowed = route.split("allow_header: Bytes(b\"").nth(1).unwrap();
                let allowed = allowed.split('"').next().unwrap();
                let allowed = allowed.split(',').map(str::to_ascii_lowercase);
                (id(route), allowed.filter(|m| m != "head").collect())
            })
            .collect();
        let paths = paths.split("RouteId(").skip(1);
        paths
            .map(|route| {
                let path = route.split('"').nth(1).unwrap().to_owned();
                (path, BTreeSet::clone(&methods[&id(route)]))
            })
            .collect()
    }

    fn object(value: &Value) -> &Map<String, Value> {
        value.as_object().unwrap()
    }

    #[test]
    fn what_is_described_is_what_is_there() {
        let document = document();
        let described: BTreeMap<String, BTreeSet<String>> = object(&document["paths"])
            .iter()
            .map(|(path, methods)| (path.clone(), object(methods).keys().cloned().collect()))
            .collect();
        let routes = routes();
        assert!(routes.len() > 10, "{routes:?}");
        // What others' clients send is no route: it is looked at before there are any.
        let (spoken, described): (BTreeMap<_, _>, BTreeMap<_, _>) = described
            .into_iter()
            .partition(|(path, _)| is_spoken("POST", path));
        assert_eq!(spoken.len(), 3, "{spoken:?}");
        assert!(spoken.values().all(|methods| methods.iter().eq(["post"])));
        assert_eq!(described, routes);
    }

    #[test]
    fn what_is_described_says_who_may_do_it() {
        let document = document();
        let mut ids = BTreeSet::new();
        for (path, methods) in object(&document["paths"]) {
            for (method, operation) in object(methods) {
                let id = operation["operationId"].as_str().unwrap();
                assert!(ids.insert(id.to_owned()), "{id} is there twice");
                let needed = need(&method.to_ascii_uppercase(), path);
                let told = match needed {
                    Need::Nothing => json!([{}]),
                    Need::Read => json!([{}, {"token": ["read"]}]),
                    Need::Receipt => json!([{}, {"token": ["read"]}, {"token": ["purge"]}]),
                    Need::Purge => json!([{"token": ["purge"]}]),
                    Need::Admin => json!([{"token": ["admin"]}]),
                };
                assert_eq!(operation["security"], told, "{method} {path}");
                let answers = object(&operation["responses"]);
                for status in ["401", "403"] {
                    let is_told = answers.contains_key(status);
                    assert_eq!(
                        is_told,
                        needed != Need::Nothing,
                        "{method} {path}: {status}"
                    );
                }
                let named = path.matches('{').count();
                let parameters = operation["parameters"].as_array();
                let parameters = parameters.into_iter().flatten();
                let in_path = parameters.filter(|p| p["in"] == "path");
                assert_eq!(in_path.count(), named, "{method} {path}");
            }
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_schema_is_used() {
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(fields) => {
                    found.extend(fields.get("$ref").and_then(Value::as_str));
                    fields.values().for_each(|value| references(value, found));
                }
                Value::Array(values) => values.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        for reference in &found {
            let place = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(place).is_some(), "{reference}");
        }
        for kind in ["schemas", "responses"] {
            for name in object(&document["components"][kind]).keys() {
                let reference = format!("#/components/{kind}/{name}");
                assert!(
                    found.contains(&&*reference),
                    "nothing refers to {reference}"
                );
            }
        }
    }
}
