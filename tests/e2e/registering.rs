//! Sites that come, change and go over the API while edges serve: what edges do at once, what is refused and
//! changes nothing, what is remembered.

use anyhow::{Result, ensure};
use bytes::Bytes;
use cluster::wire::{SiteAction, SiteChanged, SiteHistory};
use harness::{
    client::{Client, Response},
    cluster::{Cluster, Node, Plan, set},
    origin::{Answer, Origin},
    process::{eventually, run},
};
use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{SECOND, started};

const JSON: (&str, &str) = ("content-type", "application/json");
pub(crate) const HOST: &str = "api.test";

/// Edges and a control plane that takes sites with origins on this machine; the file's own is `site`.
pub(crate) async fn cluster(edges: usize, origin: &Origin) -> Cluster {
    let mut plan = Plan::new(edges, &origin.url());
    set(
        &mut plan.control_settings,
        "origins",
        "allow_private",
        vec!["127.0.0.0/8"],
    );
    let cluster = started(plan).await;
    cluster.settled().await.unwrap();
    let control = cluster.control.as_ref().unwrap();
    eventually("the control plane knows all edges", async || {
        let nodes = control.ask("/v1/nodes").await?.text();
        ensure!(
            nodes.matches(r#""phase":"ready""#).count() > edges,
            "{nodes}"
        );
        Ok(())
    })
    .await
    .unwrap();
    cluster
}

async fn call(
    control: &Node,
    method: Method,
    path: &str,
    fields: &[(&str, &str)],
    body: &Value,
) -> Response {
    let body = Bytes::from(body.to_string());
    let fields = [fields, &[JSON]].concat();
    let url = control.url(path);
    Client::new()
        .send(method, &url, &fields, body)
        .await
        .unwrap()
}

pub(crate) async fn put(control: &Node, name: &str, site: &Value) -> SiteChanged {
    let answer = call(
        control,
        Method::PUT,
        &format!("/v1/sites/{name}"),
        &[],
        site,
    )
    .await;
    assert!(matches!(answer.status, 200 | 201), "{}", answer.text());
    serde_json::from_slice(&answer.body).unwrap()
}

pub(crate) fn site(origin: &Origin) -> Value {
    json!({"hosts": [HOST], "origins": [origin.url()], "default_ttl": "1h"})
}

pub(crate) async fn get(edge: &Node, path: &str) -> Response {
    edge.get_with(path, &[("host", HOST)]).await.unwrap()
}

/// Waits until all edges answer `path` with `status`, and says how long that took at most.
pub(crate) async fn all_answer(cluster: &Cluster, path: &str, status: u16) -> std::time::Duration {
    let begun = Instant::now();
    loop {
        let mut others = 0;
        for edge in &cluster.edges {
            others += usize::from(get(edge, path).await.status != status);
        }
        if others == 0 {
            return begun.elapsed();
        }
        assert!(
            begun.elapsed() < SECOND * 20,
            "{others} edges do not answer {status}"
        );
        tokio::time::sleep(SECOND / 100).await;
    }
}

pub(crate) fn told(what: &str, took: std::time::Duration) {
    println!("{what}: {} ms", took.as_millis());
    // On an idle machine it is a fifth of a second; what this sees is that nobody waits for a timer.
    assert!(took < SECOND * 5, "{what}: {took:?}");
}

/// A site is served a moment after it was put, on every edge, without a restart; and so is each change,
/// the return to a former version, and the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_site_is_served_everywhere_within_a_second_of_being_put() {
    let (old, new) = (
        Origin::start().await.unwrap(),
        Origin::start().await.unwrap(),
    );
    for (origin, body) in [(&old, "old"), (&new, "new")] {
        for n in 0..4 {
            origin.route(&format!("/{n}"), Answer::bytes(body).max_age(600));
        }
    }
    let mut cluster = cluster(2, &old).await;
    let control = cluster.control.as_ref().unwrap();
    for edge in &cluster.edges {
        assert_eq!(get(edge, "/0").await.status, 421);
    }
    let first = put(control, "api", &site(&old)).await;
    told("served", all_answer(&cluster, "/0", 200).await);
    // Many changes in a row, and the last one counts.
    for seconds in 1..10 {
        let mut changed = site(&new);
        changed["default_ttl"] = format!("{seconds}s").into();
        put(control, "api", &changed).await;
    }
    let last = put(control, "api", &site(&new)).await;
    let begun = Instant::now();
    let follows = async |edge: &Node| -> Result<()> {
        let version = edge.metric("edge_sites_version", &[]).await?;
        ensure!((version - last.set_version as f64).abs() < 0.5, "{version}");
        Ok(())
    };
    for edge in &cluster.edges {
        eventually("the edge follows", async || follows(edge).await)
            .await
            .unwrap();
    }
    told("changed", begun.elapsed());
    for edge in &cluster.edges {
        assert_eq!(get(edge, "/1").await.text(), "new");
    }
    let back = json!({"version": first.version});
    let answer = call(control, Method::POST, "/v1/sites/api/rollback", &[], &back).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let now: SiteChanged = serde_json::from_slice(&answer.body).unwrap();
    eventually("the old origin is asked again", async || {
        for edge in &cluster.edges {
            let version = edge.metric("edge_sites_version", &[]).await?;
            ensure!((version - now.set_version as f64).abs() < 0.5, "{version}");
        }
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(get(&cluster.edges[0], "/2").await.text(), "old");

    // It survives the restart of everybody, by the sites that edges keep and by the store.
    cluster.control().kill9().await.unwrap();
    cluster.edges[1].kill9().await.unwrap();
    cluster.edges[1].start().await.unwrap();
    assert_eq!(get(&cluster.edges[1], "/0").await.status, 200);
    cluster.control().start().await.unwrap();
    let control = cluster.control.as_ref().unwrap();
    let shown = control.ask("/v1/sites/api").await.unwrap();
    assert_eq!(shown.field("etag"), Some(&*format!("\"{}\"", now.version)));
    assert_eq!(shown.json().unwrap()["origins"], json!([old.url()]));
    let history = control.ask("/v1/sites/api/history").await.unwrap();
    let history: SiteHistory = serde_json::from_slice(&history.body).unwrap();
    assert_eq!(history.versions.len(), 12);
    let to = first.version;
    assert_eq!(history.versions[0].action, SiteAction::Rollback { to });
    assert!(history.versions[0].current);
    eventually("the edges know the control plane again", async || {
        let nodes = control.ask("/v1/nodes").await?.text();
        ensure!(nodes.matches(r#""phase":"ready""#).count() > 2, "{nodes}");
        Ok(())
    })
    .await
    .unwrap();
    let answer = call(control, Method::DELETE, "/v1/sites/api", &[], &json!(null)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    told("gone", all_answer(&cluster, "/0", 421).await);
    assert_eq!(control.ask("/v1/sites/api").await.unwrap().status, 404);
    // The file's own has been served all the time.
    assert!(control.ask("/v1/sites/site").await.unwrap().status == 200);
}

/// What cannot be meant is refused with the right status and the field; nothing changes by it, for nobody.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_changes_nothing() {
    let origin = Origin::start().await.unwrap();
    origin.route("/0", Answer::bytes("x").max_age(600));
    let cluster = cluster(1, &origin).await;
    let (control, edge) = (cluster.control.as_ref().unwrap(), &cluster.edges[0]);
    let known = put(control, "api", &site(&origin)).await;
    all_answer(&cluster, "/0", 200).await;
    let with = |field: &str, value: Value| {
        let mut site = site(&origin);
        site[field] = value;
        site
    };
    let edge_port = edge.http.port();
    let version = format!("\"{}\"", known.version);
    for (name, fields, site, status, field, words) in [
        (
            "b",
            &[][..],
            json!({"hosts": []}),
            422,
            "origins",
            "missing field",
        ),
        (
            "b",
            &[],
            with("hosts", json!(["a..b"])),
            422,
            "hosts",
            "two dots",
        ),
        (
            "b",
            &[],
            with("hosts", json!(["*."])),
            422,
            "hosts",
            "below",
        ),
        (
            "b",
            &[],
            with("hosts", json!(["b.test:80"])),
            422,
            "hosts",
            "port",
        ),
        (
            "b",
            &[],
            with("hosts", json!(["b test"])),
            422,
            "hosts",
            "space",
        ),
        (
            "b",
            &[],
            site(&origin),
            422,
            "hosts",
            "also claimed by \"api\"",
        ),
        (
            "b",
            &[],
            with("origins", json!(["http://10.0.0.1"])),
            422,
            "origins",
            "private address",
        ),
        (
            "b",
            &[],
            with("origins", json!(["http://redis:6379"])),
            422,
            "origins",
            "local network",
        ),
        (
            "api",
            &[],
            with("origins", json!([format!("http://{HOST}:{edge_port}")])),
            422,
            "origins",
            "leads back to the edges",
        ),
        (
            "b",
            &[],
            with("ttl", json!("1h")),
            422,
            "ttl",
            "unknown field",
        ),
        (
            "b",
            &[],
            with("name", json!("c")),
            422,
            "name",
            "in the path",
        ),
        (
            "B",
            &[],
            with("hosts", json!(["b.test"])),
            422,
            "name",
            "1 to 64",
        ),
        (
            "api",
            &[("if-none-match", "*")],
            site(&origin),
            412,
            "",
            "is at version",
        ),
        (
            "api",
            &[("if-match", "\"7\"")],
            site(&origin),
            412,
            "",
            "is at version",
        ),
        // What is of another kind than is expected was told without its field.
        (
            "b",
            &[],
            with("hosts", json!("b.test")),
            422,
            "hosts",
            "expected a sequence",
        ),
        (
            "b",
            &[],
            with("default_ttl", json!("5 parsecs")),
            422,
            "default_ttl",
            "not a duration",
        ),
        (
            "b",
            &[],
            with("shield", json!("planet")),
            422,
            "shield",
            "unknown variant",
        ),
        (
            "b",
            &[],
            with("takedown", json!([{"url": "/x", "by": "me"}])),
            422,
            "takedown[0].reason",
            "missing field",
        ),
        // This port was taken for 80.
        (
            "b",
            &[],
            with("origins", json!(["http://o.example.com:70000"])),
            422,
            "origins",
            "1 to 65535",
        ),
        ("b", &[("if-match", "*")], site(&origin), 404, "", "no site"),
        (
            "b",
            &[("if-match", "7")],
            site(&origin),
            400,
            "if-match",
            "ETag",
        ),
        (
            "site",
            &[],
            with("hosts", json!(["b.test"])),
            409,
            "",
            "configuration file of control",
        ),
        (
            "api",
            &[("x-forwarded-for", "192.0.2.1")],
            site(&origin),
            403,
            "",
            "only from the machine on which the control plane runs",
        ),
    ] {
        let answer = call(
            control,
            Method::PUT,
            &format!("/v1/sites/{name}"),
            fields,
            &site,
        )
        .await;
        let told = answer.text();
        assert_eq!(answer.status, status, "{name} {site}: {told}");
        let answer = answer.json().unwrap();
        assert_eq!(
            answer["field"].as_str().unwrap_or_default(),
            field,
            "{told}"
        );
        assert!(
            answer["error"].as_str().unwrap().contains(words),
            "{words}: {told}"
        );
    }
    for (method, path, status) in [
        (Method::DELETE, "/v1/sites/site", 409),
        (Method::DELETE, "/v1/sites/none", 404),
        (Method::GET, "/v1/sites/none/history", 404),
        (Method::GET, "/v1/sites/api?version=7", 404),
        (Method::GET, "/v1/sites/api?versio=7", 400),
        (Method::PUT, "/v1/sites", 405),
    ] {
        let answer = call(control, method.clone(), path, &[], &json!(null)).await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
    }
    let (unknown, client) = (json!({"version": 7}), Client::new());
    let back = call(
        control,
        Method::POST,
        "/v1/sites/api/rollback",
        &[],
        &unknown,
    )
    .await;
    assert_eq!(back.status, 404);
    let origins = json!(["http://192.0.2.1"]);
    let good = json!({"name": "good", "hosts": ["good.test"], "origins": origins});
    let mut bad = good.clone();
    bad["hosts"] = json!([1]);
    let several = json!({"sites": [good, bad]});
    let several = call(control, Method::POST, "/v1/sites", &[], &several).await;
    assert_eq!(several.status, 422, "{}", several.text());
    assert_eq!(several.json().unwrap()["field"], "sites[1].hosts[0]");
    let url = control.url("/v1/sites/b");
    let text = [("content-type", "text/plain")];
    let text = client.send(Method::PUT, &url, &text, "x".into()).await;
    assert_eq!(text.unwrap().status, 415);
    let large = Bytes::from(vec![b' '; 3 << 20]);
    let large = client.send(Method::PUT, &url, &[JSON], large).await;
    // What no handler sees is told in JSON all the same.
    let large = large.unwrap();
    assert_eq!(large.status, 413);
    let nameless = call(control, Method::GET, "/v1/sites/%ff", &[], &json!(null)).await;
    assert_eq!(nameless.status, 404);
    for answer in [large, nameless] {
        assert!(answer.json().unwrap()["error"].is_string());
    }
    // A check says the same and changes nothing either.
    let path = "/v1/sites/api/check";
    let checked = call(
        control,
        Method::POST,
        path,
        &[],
        &with("default_ttl", json!("2h")),
    )
    .await;
    let checked: SiteChanged = serde_json::from_slice(&checked.body).unwrap();
    assert_eq!((checked.version, checked.changed), (known.version, true));
    assert_eq!(checked.diff[0].field, "default_ttl");
    let checked = call(control, Method::POST, path, &[], &with("hosts", json!([]))).await;
    assert_eq!(
        (checked.status, checked.json().unwrap()["field"].clone()),
        (422, json!("hosts"))
    );

    let now = control.ask("/v1/sites/api").await.unwrap();
    assert_eq!(now.field("etag"), Some(&*version));
    let all = control.ask("/v1/sites").await.unwrap().json().unwrap();
    assert_eq!(all["version"], known.set_version);
    let served = edge.metric("edge_sites_version", &[]).await.unwrap();
    assert!((served - known.set_version as f64).abs() < 0.5, "{served}");
    // Of many who looked at the same version, one changes it.
    let changing = (1..=8).map(|n| {
        let (site, version) = (with("default_ttl", json!(format!("{n}m"))), version.clone());
        async move {
            let fields = [("if-match", version.as_str())];
            call(control, Method::PUT, "/v1/sites/api", &fields, &site)
                .await
                .status
        }
    });
    let mut statuses = Vec::new();
    for status in futures_util::future::join_all(changing).await {
        statuses.push(status);
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 412, 412, 412, 412, 412, 412, 412]);
}

/// The operator's commands: a file of sites, what it changes, and how all of that ends.
#[tokio::test(flavor = "multi_thread")]
async fn the_commands_apply_compare_and_roll_back() {
    let origin = Origin::start().await.unwrap();
    let cluster = cluster(1, &origin).await;
    let control = cluster.control.as_ref().unwrap();
    let sites = async |args: &[&str]| {
        let api = control.url("");
        let env = [("USER", "alice")];
        let args = [&["sites"], args, &["--api", &api]].concat();
        let (status, output) = run(&control.binary, &args, &env).await.unwrap();
        (status.code().unwrap(), output)
    };
    let file = cluster.root.join("sites.toml");
    let path = file.to_string_lossy();
    let url = origin.url();
    let write = |ttl: &str| {
        let sites: String = (0..30)
            .map(|n| {
                format!(
                    "[[site]]\nname = 's{n}'\nhosts = ['s{n}.test']\norigins = ['{url}']\ndefault_ttl = '{ttl}'\n"
                )
            })
            .collect();
        std::fs::write(&file, sites).unwrap();
    };
    write("1s");
    let (code, output) = sites(&["apply", "-f", &path, "--dry-run"]).await;
    assert_eq!(
        (code, output.contains("30 of 30 sites differ")),
        (3, true),
        "{output}"
    );
    assert!(!sites(&["list"]).await.1.contains("s29"));
    let (code, output) = sites(&["apply", "-f", &path]).await;
    assert_eq!(code, 0, "{output}");
    assert!(output.contains("30 of 30 sites applied"), "{output}");
    assert!(
        output.contains("30 of 30 sites changed; the sites are at version "),
        "{output}"
    );
    assert!(output.contains(", by 1 commit"), "{output}");
    assert!(sites(&["list"]).await.1.contains("s29"));
    let (code, output) = sites(&["diff", "-f", &path]).await;
    assert_eq!(
        (code, output.contains("0 of 30 sites differ")),
        (0, true),
        "{output}"
    );
    let one = cluster.root.join("one.toml");
    let one_path = one.to_string_lossy();
    std::fs::write(
        &one,
        format!("name = 's1'\nhosts = ['s1.test', 's1.example']\norigins = ['{url}']\ndefault_ttl = '1s'\n"),
    )
    .unwrap();
    let (code, output) = sites(&["apply", "-f", &one_path]).await;
    assert_eq!(
        (code, output.contains("  + hosts: \"s1.example\"")),
        (0, true),
        "{output}"
    );
    let (code, output) = sites(&["history", "s1"]).await;
    assert_eq!(code, 0, "{output}");
    assert!(output.contains("alice on this machine served"), "{output}");
    let first = output.lines().nth(2).unwrap().split(' ').next().unwrap();
    let (code, shown) = sites(&["show", "s1", "--version", first]).await;
    assert!(code == 0 && !shown.contains("s1.example"), "{shown}");
    let (code, output) = sites(&["rollback", "s1", "--version", first]).await;
    assert_eq!(
        (code, output.contains("  - hosts: \"s1.example\"")),
        (0, true),
        "{output}"
    );
    let (code, output) = sites(&["rollback", "s1", "--version", first, "--json"]).await;
    let json: Value = serde_json::from_str(&output).unwrap();
    assert_eq!((code, &json["changed"]), (0, &json!(false)));
    let (code, output) = sites(&["delete", "s1"]).await;
    assert_eq!(
        (code, output.contains("site s1 is at version ")),
        (0, true),
        "{output}"
    );
    for (args, words) in [
        (&["delete", "s1"][..], "GET /v1/sites lists them"),
        (&["delete", "site"], "change it there and restart it"),
        (&["show", "s1"], "no site \"s1\""),
        (
            &["rollback", "s2", "--version", "7"],
            "/v1/sites/s2/history lists them",
        ),
        (&["apply", "-f", "/none"], "/none: No such file"),
    ] {
        let (code, output) = sites(args).await;
        assert_eq!(
            (code, output.contains(words)),
            (1, true),
            "{args:?}: {output}"
        );
    }
    std::fs::write(
        &one,
        "name = 's1'\nhosts = ['s1.test:80']\norigins = ['http://o.example']\n",
    )
    .unwrap();
    let (code, output) = sites(&["apply", "-f", &one_path]).await;
    assert!(
        code == 1 && output.contains("nothing was changed") && output.contains("has a port"),
        "{output}"
    );
    assert!(!sites(&["list"]).await.1.contains("s1.test"));
}

/// Hosts change places between sites: one by one, each of them would have a host that is another's.
#[tokio::test(flavor = "multi_thread")]
async fn sites_of_a_file_change_together_or_not_at_all() {
    let origin = Origin::start().await.unwrap();
    let cluster = cluster(1, &origin).await;
    let control = cluster.control.as_ref().unwrap();
    let file = cluster.root.join("sites.toml");
    let path = file.to_string_lossy();
    let apply = async |sites: &[(String, String)]| {
        let site = |(name, host): &(String, String)| {
            format!(
                "[[site]]\nname = '{name}'\nhosts = ['{host}']\norigins = ['{}']\n",
                origin.url()
            )
        };
        std::fs::write(&file, sites.iter().map(site).collect::<String>()).unwrap();
        let args = ["sites", "apply", "-f", &path, "--api", &control.url("")];
        let (status, output) = run(&control.binary, &args, &[]).await.unwrap();
        (status.code().unwrap(), output)
    };
    let set_version = async || {
        let sites = control.ask("/v1/sites").await.unwrap().json().unwrap();
        sites["version"].as_u64().unwrap()
    };
    let named = |n: usize, host: usize| (format!("s{n}"), format!("h{host}.test"));
    let sites: Vec<_> = (0..90).map(|n| named(n, n)).collect();
    let (code, output) = apply(&sites).await;
    assert_eq!(code, 0, "{output}");
    assert!(output.contains("90 of 90 sites applied"), "{output}");
    assert!(
        output.contains("90 of 90 sites changed; ") && output.contains(", by 3 commits"),
        "{output}"
    );

    let before = set_version().await;
    let (code, output) = apply(&[named(0, 1), named(1, 0)]).await;
    assert_eq!(code, 0, "{output}");
    assert!(
        output.contains("2 of 2 sites changed; ") && output.contains(", by 1 commit"),
        "{output}"
    );
    assert!(set_version().await > before);
    let shown = control.ask("/v1/sites/s0").await.unwrap().json().unwrap();
    assert_eq!(shown["hosts"], json!(["h1.test"]));

    let before = set_version().await;
    let (code, output) = apply(&[named(0, 100), named(1, 101), named(2, 3)]).await;
    assert!(
        code == 1 && output.contains("nothing was changed"),
        "{output}"
    );
    assert_eq!(set_version().await, before);
}
