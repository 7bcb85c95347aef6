//! Who may change what, and who may not: tokens, from the first to the last, over HTTP and by command.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use harness::{
    client::{Client, Response},
    cluster::{Node, Plan},
    origin::{Answer, Origin},
    process::{eventually, run},
};
use http::Method;
use serde_json::{Value, json};

use crate::{SECOND, started};

const JSON: (&str, &str) = ("content-type", "application/json");

/// A request to a control plane, with a token or without.
pub(crate) async fn call(
    control: &Node,
    method: Method,
    path: &str,
    token: Option<&str>,
    body: &Value,
) -> Response {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let fields: Vec<_> = [JSON]
        .into_iter()
        .chain(bearer.as_deref().map(|bearer| ("authorization", bearer)))
        .collect();
    let body = match body {
        Value::Null => Bytes::new(),
        body => Bytes::from(body.to_string()),
    };
    let url = control.url(path);
    let sent = Client::new().send(method, &url, &fields, body).await;
    sent.unwrap()
}

async fn get(control: &Node, path: &str, token: Option<&str>) -> Response {
    call(control, Method::GET, path, token, &Value::Null).await
}

/// Runs a command of the operator's; its exit code and what it said.
async fn command(control: &Node, arguments: &[&str], token: Option<&str>) -> (i32, String) {
    let api = control.url("");
    let mut env = vec![("CONTROL_PLANE_API", api.as_str())];
    env.extend(token.map(|token| ("CONTROL_PLANE_TOKEN", token)));
    let (status, said) = run(&control.binary, arguments, &env).await.unwrap();
    (status.code().unwrap_or(-1), said)
}

/// The one line that is a token.
fn shown(said: &str) -> String {
    let tokens: Vec<_> = said.lines().filter(|l| l.starts_with("cdn_")).collect();
    let [token] = tokens[..] else {
        panic!("no token, or several: {said}");
    };
    token.to_owned()
}

/// Makes a token by command.
pub(crate) async fn made(control: &Node, arguments: &[&str], token: Option<&str>) -> String {
    let arguments = [&["tokens", "create"][..], arguments].concat();
    let (code, said) = command(control, &arguments, token).await;
    assert_eq!(code, 0, "{said}");
    shown(&said)
}

fn id(token: &str) -> &str {
    token.split('_').nth(1).unwrap()
}

fn field(answer: &Response) -> String {
    let answer = answer.json().unwrap();
    answer["field"].as_str().unwrap_or_default().to_owned()
}

/// How many jobs there are: a refused one must not be among them.
async fn jobs(control: &Node, token: Option<&str>) -> usize {
    let answer = get(control, "/v1/warm", token).await;
    answer.json().unwrap()["jobs"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn from_the_first_token_on_every_change_needs_one_that_is_good_for_it() {
    let origin = Origin::start().await.unwrap();
    origin.route("/a", Answer::bytes("a").max_age(600));
    let cluster = started(Plan::new(1, &origin.url())).await;
    let control = cluster.control.as_ref().unwrap();
    let job = json!({"site": "site", "urls": ["/a"], "nodes": ["edge-1"]});
    let warm =
        async |token: Option<&str>| call(control, Method::POST, "/v1/warm", token, &job).await;
    eventually("the control plane knows the edge", async || {
        let nodes = control.ask("/v1/nodes").await?.text();
        ensure!(nodes.contains("edge-1"), "{nodes}");
        Ok(())
    })
    .await
    .unwrap();

    // Until then: whoever is here, in nobody else's name.
    assert_eq!(warm(None).await.status, 202);
    let forwarded = [JSON, ("x-forwarded-for", "192.0.2.1")];
    for path in ["/v1/warm", "/v1/tokens"] {
        let body = Bytes::from(job.to_string());
        let url = control.url(path);
        let client = Client::new();
        let sent = client.send(Method::POST, &url, &forwarded, body).await;
        let refused = sent.unwrap();
        assert_eq!(refused.status, 403, "{path}");
        assert!(refused.text().contains("until there is a token"));
    }
    let list = get(control, "/v1/tokens", None).await.json().unwrap();
    assert_eq!(list, json!({"tokens": []}));
    for (body, status, named) in [
        (json!({"name": "a", "role": "read"}), 409, "role"),
        (json!({"name": "a b", "role": "admin"}), 400, "name"),
        (
            json!({"name": "a", "role": "purge", "sites": ["nil"]}),
            400,
            "sites",
        ),
        (json!({"name": "a", "role": "root"}), 422, "role"),
        (
            json!({"name": "a", "role": "admin", "expires": "0s"}),
            400,
            "expires",
        ),
        (
            json!({"name": "a", "role": "admin", "expires": "1d"}),
            409,
            "role",
        ),
    ] {
        let refused = call(control, Method::POST, "/v1/tokens", None, &body).await;
        assert_eq!(refused.status, status, "{body}: {}", refused.text());
        assert_eq!(field(&refused), named, "{body}: {}", refused.text());
    }

    let admin = made(control, &["--name", "ops", "--role", "admin"], None).await;
    let (code, said) = command(control, &["tokens", "list"], None).await;
    assert!(code == 1 && said.contains("a token is needed"), "{said}");
    let some = Some(&*admin);
    let purge = ["--name", "cms", "--role", "purge", "--site", "site"];
    let purge = made(control, &purge, some).await;
    let read = made(control, &["--name", "look", "--role", "read"], some).await;
    let (code, table) = command(control, &["tokens", "list"], some).await;
    assert_eq!(code, 0, "{table}");
    for words in [
        "ops", "admin", "cms", "purge", "site", "look", "read", "loopback",
    ] {
        assert!(table.contains(words), "{words}: {table}");
    }
    for token in [&admin, &purge, &read] {
        let secret = token.rsplit('_').next().unwrap();
        assert!(!table.contains(secret));
    }

    // From here, too.
    let before = jobs(control, None).await;
    let refused = warm(None).await;
    assert_eq!(refused.status, 401, "{}", refused.text());
    assert_eq!(
        refused.field("www-authenticate"),
        Some(r#"Bearer realm="control-plane""#)
    );
    assert_eq!(field(&refused), "authorization");
    let unknown = admin.replace(id(&admin), "000000000000");
    let half = &admin[..admin.len() - 1];
    for wrong in [&*unknown, half, "", "x"] {
        let refused = warm(Some(wrong)).await;
        assert_eq!(refused.status, 401, "{wrong}");
        let challenge = refused.field("www-authenticate").unwrap();
        assert!(challenge.contains("invalid_token"), "{challenge}");
    }
    for (token, name) in [(&purge, "cms"), (&read, "look")] {
        let refused = warm(Some(token)).await;
        assert_eq!((refused.status, field(&refused)), (403, "role".into()));
        assert!(refused.text().contains(name), "{}", refused.text());
        let tokens = get(control, "/v1/tokens", Some(token)).await;
        assert_eq!(tokens.status, 403);
        let path = format!("/v1/tokens/{}", id(&admin));
        let revoke = call(control, Method::DELETE, &path, Some(token), &Value::Null);
        assert_eq!(revoke.await.status, 403);
    }
    assert_eq!(jobs(control, None).await, before, "nothing was changed");

    // Purges: by whom the site is named to, in whatever way they ask.
    let wish = json!({"site": "site", "urls": ["/a"]});
    let purging = async |token: Option<&str>, wish: &Value| {
        call(control, Method::POST, "/v1/purges", token, wish).await
    };
    let purged = purging(Some(&purge), &wish).await;
    assert_eq!(purged.status, 200, "{}", purged.text());
    let purged = purged.json().unwrap();
    assert_eq!(purged["by"], "cms");
    let receipt = format!("/v1/purges/{}", purged["seq"]);
    assert_eq!(get(control, &receipt, Some(&purge)).await.status, 200);
    assert_eq!(purging(some, &wish).await.status, 200);
    for (token, status) in [(None, 401), (Some(&*read), 403), (Some("x"), 401)] {
        assert_eq!(purging(token, &wish).await.status, status);
    }
    let other = purging(Some(&purge), &json!({"site": "other", "all": true})).await;
    assert_eq!((other.status, field(&other)), (403, "site".into()));
    let fastly = ["/service/site/purge/t", "/service/site/purge_all"];
    for path in fastly {
        let url = control.url(path);
        for (token, status) in [(&*purge, 200), (&*read, 403), ("x", 401)] {
            let fields = [("fastly-key", token)];
            let client = Client::new();
            let sent = client.send(Method::POST, &url, &fields, Bytes::new()).await;
            assert_eq!(sent.unwrap().status, status, "{path}");
        }
    }
    let elsewhere = "/service/other/purge_all";
    let refused = call(control, Method::POST, elsewhere, Some(&purge), &Value::Null).await;
    assert_eq!(refused.status, 403);
    let method = Method::from_bytes(b"PURGE").unwrap();
    for (token, status) in [(None, 401), (Some(&*read), 403), (Some(&*purge), 200)] {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let fields: Vec<_> = [("host", "site.test")]
            .into_iter()
            .chain(bearer.as_deref().map(|bearer| ("authorization", bearer)))
            .collect();
        let url = control.url("/a");
        let client = Client::new();
        let sent = client.send(method.clone(), &url, &fields, Bytes::new());
        assert_eq!(sent.await.unwrap().status, status);
    }
    assert_eq!(warm(some).await.status, 202);
    assert_eq!(jobs(control, None).await, before + 1);
    // As Fastly's clients and as browsers send it.
    let url = control.url("/v1/tokens");
    let basic = "Basic ".to_owned() + &base64(&format!("any:{admin}"));
    for fields in [[("fastly-key", &*admin)], [("authorization", &*basic)]] {
        let answer = Client::new().get_with(&url, &fields).await.unwrap();
        assert_eq!(answer.status, 200, "{fields:?}");
    }
    let log = control.log().matching("asked to change");
    assert!(
        log.iter()
            .any(|l| l.contains("ops") && l.contains("status=202")),
        "{log:?}"
    );
    assert!(log.iter().all(|line| !line.contains("cdn_")));
}

fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for three in text.as_bytes().chunks(3) {
        let bits = (0..3).fold(0, |bits, n| {
            bits << 8 | u32::from(three.get(n).copied().unwrap_or(0))
        });
        for n in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * n)) as usize & 63];
            encoded.push(if n <= three.len() { digit.into() } else { '=' });
        }
    }
    encoded
}

/// Whether a text is in any file below a directory.
fn is_below(dir: &Path, text: &str) -> Result<bool> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let found = match path.is_dir() {
            true => is_below(&path, text)?,
            false => {
                let bytes = fs::read(&path)?;
                bytes.windows(text.len()).any(|w| w == text.as_bytes())
            }
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_replaced_expire_are_revoked_and_outlive_a_restart() {
    let origin = Origin::start().await.unwrap();
    let mut cluster = started(Plan::new(1, &origin.url())).await;
    let control = cluster.control();
    let first = made(control, &["--name", "ops", "--role", "admin"], None).await;
    let file = control.data_dir.with_extension("token");
    fs::write(&file, format!("{first}\n")).unwrap();
    let file = file.to_string_lossy().into_owned();
    let with_file = ["--token-file", &file];

    let status =
        async |control: &Node, token: &str| get(control, "/v1/tokens", Some(token)).await.status;
    let rotate = ["tokens", "rotate", id(&first)];
    let (code, said) = command(control, &[&rotate[..], &with_file].concat(), None).await;
    assert_eq!(code, 0, "{said}");
    let second = shown(&said);
    assert_eq!(status(control, &first).await, 200, "for an hour");
    assert_eq!(status(control, &second).await, 200);
    let at_once = [&rotate[..], &["--grace", "0s"]].concat();
    let (code, said) = command(control, &at_once, Some(&second)).await;
    assert_eq!(code, 0, "{said}");
    let third = shown(&said);
    for (token, expected) in [(&first, 401), (&second, 401), (&third, 200)] {
        assert_eq!(status(control, token).await, expected);
    }
    let (code, said) = command(control, &rotate, Some(&second)).await;
    assert!(code == 1 && said.contains("unknown token"), "{said}");
    let too_long = [&rotate[..], &["--grace", "8d"]].concat();
    let (code, said) = command(control, &too_long, Some(&third)).await;
    assert!(code == 1 && said.contains("grace: at most 7d"), "{said}");

    let short = ["--name", "short", "--role", "admin", "--expires", "2s"];
    let short = made(control, &short, Some(&third)).await;
    assert_eq!(status(control, &short).await, 200);
    eventually("it expires", async || {
        let answer = get(control, "/v1/tokens", Some(&short)).await;
        ensure!(answer.status == 401 && answer.text().contains("expired"));
        Ok(())
    })
    .await
    .unwrap();

    let read = made(control, &["--name", "look", "--role", "read"], Some(&third)).await;
    let log = control.log();
    control.kill9().await.unwrap();
    for token in [&first, &second, &third, &short, &read] {
        let secret = token.rsplit('_').next().unwrap();
        assert!(!is_below(&control.data_dir, secret).unwrap());
        assert!(log.matching(secret).is_empty());
    }
    control.start().await.unwrap();
    assert_eq!(status(control, &third).await, 200);
    assert_eq!(status(control, &first).await, 401);
    assert_eq!(get(control, "/v1/tokens", None).await.status, 401);

    let revoke = |token: &str| {
        let id = id(token).to_owned();
        async move |control: &Node, by: &str| {
            command(control, &["tokens", "revoke", &id], Some(by)).await
        }
    };
    let (code, said) = revoke(&third)(control, &third).await;
    assert!(code == 1 && said.contains("last admin token"), "{said}");
    let (code, said) = revoke(&read)(control, &third).await;
    assert!(code == 0 && said.contains("look"), "{said}");
    assert_eq!(get(control, "/v1/nodes", Some(&read)).await.status, 401);
    let (code, said) = revoke(&read)(control, &third).await;
    assert!(code == 1 && said.contains("no such token"), "{said}");
    assert_eq!(revoke(&short)(control, &third).await.0, 0);
    // With the last one gone, it is as before the first.
    assert_eq!(revoke(&third)(control, &third).await.0, 0);
    assert_eq!(get(control, "/v1/tokens", None).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_reading_takes_a_token_nodes_need_none_and_go_on() {
    let origin = Origin::start().await.unwrap();
    origin.route("/a", Answer::bytes("a").max_age(600));
    let mut plan = Plan::new(2, &origin.url());
    harness::cluster::set(&mut plan.control_settings, "api", "public_read", false);
    let mut cluster = started(plan).await;
    // Its sites came from the control plane.
    cluster.settled().await.unwrap();
    for edge in &cluster.edges {
        let answer = eventually("it has its site", async || {
            let answer = edge.get("/a").await?;
            ensure!(answer.status == 200, "{}", answer.status);
            Ok(answer)
        });
        assert_eq!(answer.await.unwrap().text(), "a");
    }
    let control = cluster.control();
    // Before the first token: whoever is here.
    assert_eq!(get(control, "/v1/sites", None).await.status, 200);
    let elsewhere = [("forwarded", "for=192.0.2.1")];
    let refused = Client::new()
        .get_with(&control.url("/v1/sites"), &elsewhere)
        .await
        .unwrap();
    assert_eq!(refused.status, 403);

    let admin = made(control, &["--name", "ops", "--role", "admin"], None).await;
    let read = ["--name", "look", "--role", "read"];
    let read = made(control, &read, Some(&admin)).await;
    let purge = ["--name", "cms", "--role", "purge", "--site", "site"];
    let purge = made(control, &purge, Some(&admin)).await;
    for path in [
        "/",
        "/v1/nodes",
        "/v1/sites",
        "/v1/sites/site",
        "/v1/warm",
        "/v1/peers?node=edge-1",
        "/v1/edges?client=192.0.2.1",
    ] {
        let nobody = get(control, path, None).await;
        assert_eq!(nobody.status, 401, "{path}");
        assert_eq!(get(control, path, Some(&read)).await.status, 200, "{path}");
        assert_eq!(get(control, path, Some(&admin)).await.status, 200, "{path}");
        assert_eq!(get(control, path, Some(&purge)).await.status, 403, "{path}");
        let challenges = nobody.headers.get_all("www-authenticate").iter().count();
        assert_eq!(challenges, if path == "/" { 2 } else { 1 }, "{path}");
    }
    for path in ["/metrics", "/livez", "/readyz"] {
        assert_eq!(get(control, path, None).await.status, 200, "{path}");
        assert_eq!(get(control, path, Some("x")).await.status, 200, "{path}");
    }
    let (code, said) = command(control, &["nodes"], Some(&read)).await;
    assert!(code == 0 && said.contains("edge-2"), "{said}");

    // The edges still follow: a site that changes reaches them.
    control
        .configure("limits", "drain", "1s")
        .context("configuration")
        .unwrap();
    let mut config = control.read_config().unwrap();
    config["site"][0]["hosts"] = vec!["site.test", "new.test"].into();
    control.write_config(&config).unwrap();
    control.terminate().await.unwrap();
    control.start().await.unwrap();
    for edge in &cluster.edges {
        eventually("it serves the new host", async || {
            let answer = edge.get_with("/a", &[("host", "new.test")]).await?;
            ensure!(answer.status == 200, "{}", answer.status);
            Ok(())
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_lost_the_admins_token_gets_in_by_the_data_directory() {
    let origin = Origin::start().await.unwrap();
    let mut cluster = started(Plan::new(1, &origin.url())).await;
    let control = cluster.control();
    let lost = made(control, &["--name", "ops", "--role", "admin"], None).await;
    let config = control.config.to_string_lossy().into_owned();
    let reset = ["tokens", "reset", "--config", &config];
    let good = async |control: &Node, token: &str| {
        get(control, "/v1/tokens", Some(token)).await.status == 200
    };

    // While it runs.
    let (code, said) = command(control, &reset, None).await;
    assert!(code == 0 && said.contains("has taken it"), "{said}");
    let first = shown(&said);
    assert!(good(control, &first).await && good(control, &lost).await);

    // While it does not; it takes it when it starts, before it answers anybody.
    control.terminate().await.unwrap();
    let alone = [&reset[..], &["--revoke-others", "--name", "new"]].concat();
    let (code, said) = command(control, &alone, None).await;
    assert!(code == 0 && said.contains("next that starts"), "{said}");
    let second = shown(&said);
    control.start().await.unwrap();
    assert!(good(control, &second).await);
    assert!(!good(control, &first).await && !good(control, &lost).await);
    let list = get(control, "/v1/tokens", Some(&second)).await;
    let list = list.json().unwrap();
    assert_eq!(list["tokens"].as_array().unwrap().len(), 1);
    assert_eq!(list["tokens"][0]["name"], "new");

    // What is damaged lets nobody in, and harms nothing.
    fs::write(control.data_dir.join("tokens.reset"), "{\"token\": ").unwrap();
    eventually("it is set aside", async || {
        ensure!(control.data_dir.join("tokens.reset.damaged").exists());
        Ok(())
    })
    .await
    .unwrap();
    tokio::time::sleep(SECOND).await;
    assert!(good(control, &second).await);
    let elsewhere = ["tokens", "reset", "--data-dir", "nowhere", "--name", "x"];
    let (code, said) = command(control, &elsewhere, None).await;
    assert!(
        code == 1 && said.contains("node.data_dir: nowhere"),
        "{said}"
    );
}
