//! What the control plane says of its API is true: real answers fit their schemas, and nothing is described
//! that was not seen.

use std::collections::BTreeSet;

use anyhow::ensure;
use harness::{
    cluster::{Node, Plan},
    origin::{Answer, Origin},
    process::eventually,
    schema,
};
use http::Method;
use serde_json::{Value, json};

use crate::{
    admitting::{call, made},
    started,
};

/// Asks, and holds what is answered against what is described.
struct Reader<'a> {
    control: &'a Node,
    document: Value,
    token: String,
    /// Operations whose good answer was seen.
    seen: BTreeSet<String>,
}

impl Reader<'_> {
    /// Asks for `path`, which the description calls `template`, and gives the answer's body.
    async fn ask(
        &mut self,
        method: Method,
        template: &str,
        path: &str,
        body: Value,
        expected: u16,
    ) -> Value {
        let token = self.token.clone();
        self.ask_as(Some(&token), method, template, path, body, expected)
            .await
    }

    async fn ask_as(
        &mut self,
        token: Option<&str>,
        method: Method,
        template: &str,
        path: &str,
        body: Value,
        expected: u16,
    ) -> Value {
        let what = format!("{method} {path}");
        let name = method.as_str().to_ascii_lowercase();
        let operation = &self.document["paths"][template][&name];
        let id = operation["operationId"].as_str().expect("it is described");
        if let (Some(schema), 200..300) = (
            operation.pointer("/requestBody/content/application~1json/schema"),
            expected,
        ) {
            let is_needed = operation["requestBody"]["required"] == true;
            let fits = match body.is_null() && !is_needed {
                true => Ok(()),
                false => schema::check(&self.document, schema, &body),
            };
            fits.unwrap_or_else(|error| panic!("{what}: the request: {error:#}"));
        }
        let answer = call(self.control, method, path, token, &body).await;
        assert_eq!(answer.status, expected, "{what}: {}", answer.text());
        let mut described = &operation["responses"][expected.to_string()];
        if let Some(place) = described["$ref"].as_str() {
            described = self
                .document
                .pointer(&place[1..])
                .expect("it leads somewhere");
        }
        assert!(!described.is_null(), "{what}: {expected} is not described");
        let kind = answer.field("content-type").unwrap_or_default().to_owned();
        let kind = kind.split(';').next().unwrap_or_default();
        let content = &described["content"][kind];
        assert!(
            !content.is_null(),
            "{what}: {expected} is not {kind:?}: {described}"
        );
        let value = match kind {
            "application/json" => answer.json().unwrap(),
            _ => Value::String(answer.text()),
        };
        let fits = schema::check(&self.document, &content["schema"], &value);
        fits.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        let fields = described["headers"].as_object();
        for field in fields.into_iter().flat_map(|fields| fields.keys()) {
            assert!(answer.field(field).is_some(), "{what}: no {field}");
        }
        if expected < 300 {
            self.seen.insert(id.to_owned());
        }
        value
    }

    async fn get(&mut self, template: &str, path: &str) -> Value {
        self.ask(Method::GET, template, path, Value::Null, 200)
            .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_answered_is_what_is_described() {
    let origin = Origin::start().await.unwrap();
    origin.route("/a", Answer::bytes("a").max_age(600));
    let cluster = started(Plan::new(2, &origin.url())).await;
    cluster.settled().await.unwrap();
    let control = cluster.control.as_ref().unwrap();
    eventually("the control plane knows both edges", async || {
        let nodes = control.ask("/v1/nodes").await?.text();
        ensure!(nodes.matches(r#""phase":"ready""#).count() == 3, "{nodes}");
        Ok(())
    })
    .await
    .unwrap();
    let answer = control.ask("/v1/openapi.json").await.unwrap();
    let document = answer.json().unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let token = made(control, &["--name", "ops", "--role", "admin"], None).await;
    let mut reader = Reader {
        control,
        document,
        token,
        seen: BTreeSet::new(),
    };

    for path in ["/", "/metrics", "/livez", "/readyz", "/v1/openapi.json"] {
        reader.get(path, path).await;
    }
    reader.get("/v1/nodes", "/v1/nodes").await;
    reader.get("/v1/peers", "/v1/peers?node=edge-1").await;
    reader
        .get("/v1/edges", "/v1/edges?client=193.0.6.139")
        .await;
    reader.get("/v1/sites", "/v1/sites").await;
    reader.get("/v1/sites/{name}", "/v1/sites/site").await;
    for (template, path, status) in [
        ("/v1/peers", "/v1/peers?node=nobody", 404),
        ("/v1/peers", "/v1/peers?node=A B", 400),
        ("/v1/edges", "/v1/edges?client=here", 400),
        ("/v1/edges", "/v1/edges?client=192.0.2.1&limit=0", 400),
        ("/v1/sites/{name}", "/v1/sites/none", 404),
        ("/v1/warm/{id}", "/v1/warm/none", 404),
    ] {
        let path = path.replace(' ', "%20");
        let told = reader.ask(Method::GET, template, &path, Value::Null, status);
        assert!(told.await["error"].is_string());
    }

    // Jobs: one that fetches, and one URL that cannot be had.
    let job = json!({"site": "site", "urls": ["/a", "/none"], "nodes": ["edge-1"]});
    let taken = reader
        .ask(Method::POST, "/v1/warm", "/v1/warm", job, 202)
        .await;
    let path = format!("/v1/warm/{}", taken["id"].as_str().unwrap());
    eventually("the job is done", async || {
        let job = control.ask(&path).await?.json()?;
        ensure!(job["state"] == "done", "{job}");
        Ok(())
    })
    .await
    .unwrap();
    let done = reader.get("/v1/warm/{id}", &path).await;
    assert_eq!(done["nodes"][0]["failed"], 1, "{done}");
    reader.get("/v1/warm", "/v1/warm").await;
    reader
        .ask(Method::DELETE, "/v1/warm/{id}", &path, Value::Null, 200)
        .await;
    for (body, status) in [
        (json!({"site": "none"}), 400),
        (json!({"site": "site", "url": []}), 422),
    ] {
        reader
            .ask(Method::POST, "/v1/warm", "/v1/warm", body, status)
            .await;
    }

    // Sites.
    let (one, path) = ("/v1/sites/{name}", "/v1/sites/shop");
    let shop = |ttl: &str| json!({"hosts": ["shop.test"], "origins": ["http://192.0.2.9"], "default_ttl": ttl});
    let first = reader.ask(Method::PUT, one, path, shop("1s"), 201).await;
    reader.ask(Method::PUT, one, path, shop("2s"), 200).await;
    let (check, checked) = ("/v1/sites/{name}/check", "/v1/sites/shop/check");
    let told = reader
        .ask(Method::POST, check, checked, shop("3s"), 200)
        .await;
    assert_eq!(told["changed"], true, "{told}");
    let (rollback, back) = ("/v1/sites/{name}/rollback", "/v1/sites/shop/rollback");
    let to = json!({"version": first["version"]});
    reader.ask(Method::POST, rollback, back, to, 200).await;
    reader
        .ask(Method::POST, rollback, back, json!({"version": 1}), 404)
        .await;
    reader
        .get(one, &format!("{path}?version={}", first["version"]))
        .await;
    let history = reader
        .get("/v1/sites/{name}/history", "/v1/sites/shop/history")
        .await;
    assert_eq!(
        history["versions"].as_array().unwrap().len(),
        3,
        "{history}"
    );
    assert_eq!(history["versions"][0]["by"], "ops");
    reader
        .ask(Method::PUT, one, path, json!({"hosts": []}), 422)
        .await;
    let several = json!({"sites": [{"name": "shop", "hosts": ["shop.test"], "origins": ["http://192.0.2.8"]}],
        "versions": {"shop": history["versions"][0]["version"]}});
    let all = "/v1/sites";
    let looked = format!("{all}?check=true");
    reader
        .ask(Method::POST, all, &looked, several.clone(), 200)
        .await;
    let told = reader
        .ask(Method::POST, all, all, several.clone(), 200)
        .await;
    assert_eq!(told["sites"][0]["changed"], true, "{told}");
    reader.ask(Method::POST, all, all, several, 412).await;
    let of_file = "/v1/sites/site";
    reader.ask(Method::PUT, one, of_file, shop("1s"), 409).await;
    for status in [200, 404] {
        reader
            .ask(Method::DELETE, one, path, Value::Null, status)
            .await;
    }

    // Purges.
    let (all, one) = ("/v1/purges", "/v1/purges/{seq}");
    let wish = json!({"site": "site", "urls": ["/a"], "prefixes": ["http://site.test/b"], "tags": ["t"],
        "soft": true, "wait": "all"});
    let purged = reader.ask(Method::POST, all, all, wish, 200).await;
    assert_eq!(purged["complete"], true, "{purged}");
    assert_eq!(purged["by"], "ops");
    let everything = json!({"site": "site", "all": true});
    reader.ask(Method::POST, all, all, everything, 200).await;
    reader.get(all, "/v1/purges?after=0").await;
    let path = format!("{all}/{}", purged["seq"]);
    reader.get(one, &path).await;
    reader
        .ask(Method::GET, one, "/v1/purges/x", Value::Null, 404)
        .await;
    for (body, status) in [
        (json!({"site": "none", "all": true}), 404),
        (json!({"site": "site", "tag": "t"}), 422),
    ] {
        reader.ask(Method::POST, all, all, body, status).await;
    }
    for (template, path, body) in [
        (
            "/service/{site}/purge/{key}",
            "/service/site/purge/t",
            Value::Null,
        ),
        (
            "/service/{site}/purge",
            "/service/site/purge",
            json!({"surrogate_keys": ["t", "u"]}),
        ),
        (
            "/service/{site}/purge_all",
            "/service/site/purge_all",
            Value::Null,
        ),
    ] {
        reader.ask(Method::POST, template, path, body, 200).await;
    }

    // Tokens.
    let look = json!({"name": "look", "role": "read", "expires": "1d"});
    let tokens = "/v1/tokens";
    let made = reader
        .ask(Method::POST, tokens, tokens, look.clone(), 201)
        .await;
    reader.ask(Method::POST, tokens, tokens, look, 409).await;
    let id = made["id"].as_str().unwrap().to_owned();
    let look = made["token"].as_str().unwrap().to_owned();
    let rotate = format!("{tokens}/{id}/rotate");
    let template = "/v1/tokens/{id}/rotate";
    for (body, status) in [
        (json!({"grace": "1h"}), 200),
        (json!({"grace": "8d"}), 400),
        (json!({"for": "1h"}), 400),
    ] {
        reader
            .ask(Method::POST, template, &rotate, body, status)
            .await;
    }
    reader.get(tokens, tokens).await;
    for (token, status) in [(None, 401), (Some(&*look), 403), (Some("x"), 401)] {
        reader
            .ask_as(token, Method::GET, tokens, tokens, Value::Null, status)
            .await;
        let job = json!({"site": "site", "urls": ["/a"]});
        reader
            .ask_as(token, Method::POST, "/v1/warm", "/v1/warm", job, status)
            .await;
    }
    let (template, path) = ("/v1/tokens/{id}", format!("{tokens}/{id}"));
    for status in [200, 404] {
        reader
            .ask(Method::DELETE, template, &path, Value::Null, status)
            .await;
    }

    let paths = reader.document["paths"].as_object().unwrap();
    let described = paths
        .values()
        .flat_map(|path| path.as_object().unwrap().values());
    let described: BTreeSet<_> = described
        .map(|operation| operation["operationId"].as_str().unwrap().to_owned())
        .collect();
    let unseen: Vec<_> = described.difference(&reader.seen).collect();
    assert!(
        unseen.is_empty(),
        "nobody has seen a good answer of {unseen:?}"
    );
}
