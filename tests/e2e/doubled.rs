//! Two control planes on one etcd: whichever is asked, and whichever is killed, nothing that was
//! acknowledged is lost, the other goes on, and the edges follow.

use std::path::PathBuf;

use anyhow::ensure;
use harness::{
    client::Client,
    cluster::{Cluster, Node, Plan, set},
    etcd::Etcd,
    origin::{Answer, Origin},
    process::eventually,
};
use http::Method;
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    SECOND,
    admitting::{call, made},
    installed, started, stored,
};

/// What each of two writers writes.
const WRITES: usize = 150;

/// How often a member of etcd is stopped, each in turn; and purges at each control plane meanwhile.
const STOPS: usize = 6;
const PURGES_EACH: usize = 5;

/// Two control planes on a real etcd of `members`, and `edges` edges.
struct Stage {
    etcd: Etcd,
    origin: Origin,
    cluster: Cluster,
    /// An administrator's token.
    token: String,
}

impl Stage {
    async fn new(binary: PathBuf, members: usize, edges: usize) -> Self {
        let etcd = Etcd::start(&binary, members).await.unwrap();
        let origin = Origin::start().await.unwrap();
        let mut plan = Plan::new(edges, &origin.url());
        plan.doubled = true;
        plan.control_settings
            .insert("store".into(), etcd.url().into());
        set(&mut plan.control_settings, "origins", "allow_private", true);
        let cluster = started(plan).await;
        let control = cluster.control.as_ref().unwrap();
        let token = made(control, &["--name", "ops", "--role", "admin"], None).await;
        let stage = Self {
            etcd,
            origin,
            cluster,
            token,
        };
        stage.known_everywhere(&stage.token).await;
        stage
    }

    fn controls(&self) -> [&Node; 2] {
        let (control, second) = (&self.cluster.control, &self.cluster.second);
        [control.as_ref().unwrap(), second.as_ref().unwrap()]
    }

    fn control(&mut self, index: usize) -> &mut Node {
        let (control, second) = (&mut self.cluster.control, &mut self.cluster.second);
        [control, second][index].as_mut().unwrap()
    }

    /// Waits until both control planes take a token.
    async fn known_everywhere(&self, token: &str) {
        for control in self.controls() {
            eventually("the token is known", async || {
                let path = "/v1/tokens";
                let answer = call(control, Method::GET, path, Some(token), &Value::Null).await;
                ensure!(answer.status == 200, "{}", answer.text());
                Ok(())
            })
            .await
            .unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_one_makes_the_other_takes_and_etcds_absence_is_said() {
    let Some(binary) = installed("etcd") else {
        return;
    };
    let mut stage = Stage::new(binary, 1, 1).await;
    stage.origin.route("/a", Answer::bytes("a").max_age(600));
    let token = stage.token.clone();
    let [first, second] = stage.controls();
    // Nobody may change anything at the second without one, either.
    let body = json!({"name": "b", "role": "admin"});
    let refused = call(second, Method::POST, "/v1/tokens", None, &body).await;
    assert_eq!(refused.status, 401);
    let made_there = made(second, &["--name", "two", "--role", "admin"], Some(&token)).await;
    stage.known_everywhere(&made_there).await;
    let same = json!({"name": "two", "role": "read"});
    let same = call(first, Method::POST, "/v1/tokens", Some(&token), &same).await;
    assert_eq!(same.status, 409, "{}", same.text());

    stage.control(0).kill9().await.unwrap();
    let [_, second] = stage.controls();
    let three = ["--name", "three", "--role", "read"];
    let three = made(second, &three, Some(&token)).await;
    stage.control(0).start().await.unwrap();
    stage.known_everywhere(&token).await;
    let [first, _] = stage.controls();
    let nodes = call(first, Method::GET, "/v1/nodes", Some(&three), &Value::Null).await;
    assert_eq!(nodes.status, 200);

    // What is known goes on, what would change something says whose fault it is.
    stage.etcd.kill9(0).await.unwrap();
    for control in stage.controls() {
        let list = call(
            control,
            Method::GET,
            "/v1/tokens",
            Some(&token),
            &Value::Null,
        )
        .await;
        assert_eq!(list.status, 200);
        let body = json!({"name": "four", "role": "read"});
        let refused = call(control, Method::POST, "/v1/tokens", Some(&token), &body).await;
        let told = refused.text();
        assert_eq!(refused.status, 503, "{told}");
        assert!(told.contains("etcd: 127.0.0.1:"), "{told}");
        assert_eq!(control.ask("/readyz").await.unwrap().status, 200);
    }
    let edge = &stage.cluster.edges[0];
    assert_eq!(edge.get("/a").await.unwrap().text(), "a");
    stage.etcd.restart(0).await.unwrap();
    let [first, _] = stage.controls();
    let four = made(first, &["--name", "four", "--role", "read"], Some(&token)).await;
    let revoke = format!("/v1/tokens/{}", four.split('_').nth(1).unwrap());
    let revoked = call(first, Method::DELETE, &revoke, Some(&token), &Value::Null).await;
    assert_eq!(revoked.status, 200);
    let [_, second] = stage.controls();
    eventually("it is revoked at the other as well", async || {
        let answer = call(second, Method::GET, "/v1/nodes", Some(&four), &Value::Null).await;
        ensure!(answer.status == 401, "{}", answer.status);
        Ok(())
    })
    .await
    .unwrap();
}

/// Puts things at `url` with a token, one after the other, and tells which were acknowledged.
fn writing(
    method: Method,
    url: impl Fn(&str) -> String + Send + 'static,
    body: impl Fn(&str) -> Value + Send + 'static,
    name: &'static str,
    token: &str,
) -> JoinHandle<Vec<String>> {
    let bearer = format!("Bearer {token}");
    tokio::spawn(async move {
        let fields = [
            ("authorization", &*bearer),
            ("content-type", "application/json"),
        ];
        let mut acknowledged = Vec::new();
        for n in 0..WRITES {
            let name = format!("{name}-{n}");
            let (url, body) = (url(&name), body(&name).to_string());
            let client = Client::new();
            let sent = client
                .send(method.clone(), &url, &fields, body.into())
                .await;
            if let Ok(answer) = sent
                && (200..300).contains(&answer.status)
            {
                acknowledged.push(name);
            }
            tokio::time::sleep(SECOND / 25).await;
        }
        acknowledged
    })
}

/// Kills one control plane after the other, starts each again, and waits for the writers.
async fn killing(stage: &mut Stage, writers: [JoinHandle<Vec<String>>; 2]) -> Vec<String> {
    for index in [0, 1] {
        tokio::time::sleep(SECOND).await;
        stage.control(index).kill9().await.unwrap();
        tokio::time::sleep(SECOND).await;
        stage.control(index).start().await.unwrap();
    }
    let mut acknowledged = Vec::new();
    for writer in writers {
        let written = writer.await.unwrap();
        assert!(written.len() > 50, "only {} of {WRITES}", written.len());
        acknowledged.extend(written);
    }
    acknowledged
}

/// Waits until both list what was acknowledged, under `list` of the answer at `path`.
async fn nothing_lost(stage: &Stage, path: &str, list: &str, acknowledged: &[String]) {
    for control in stage.controls() {
        eventually("it knows what both acknowledged", async || {
            let answer = call(control, Method::GET, path, Some(&stage.token), &Value::Null);
            let answer = answer.await.json()?;
            let items = answer[list].as_array().unwrap();
            let names: Vec<_> = items.iter().filter_map(|i| i["name"].as_str()).collect();
            let lost: Vec<_> = (acknowledged.iter())
                .filter(|name| !names.contains(&name.as_str()))
                .collect();
            ensure!(lost.is_empty(), "{lost:?}");
            Ok(())
        })
        .await
        .unwrap();
    }
}

/// Each of them is killed and started again while both are written to.
#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_token_is_lost_when_either_is_killed_during_writes() {
    let Some(binary) = installed("etcd") else {
        return;
    };
    let mut stage = Stage::new(binary, 1, 1).await;
    let writers = stage.controls().map(|control| {
        let url = control.url("/v1/tokens");
        let name = if control.id == "control" {
            "first"
        } else {
            "second"
        };
        let body = |name: &str| json!({"name": name, "role": "read"});
        writing(Method::POST, move |_| url.clone(), body, name, &stage.token)
    });
    let acknowledged = killing(&mut stage, writers).await;
    nothing_lost(&stage, "/v1/tokens", "tokens", &acknowledged).await;
}

/// The same with purges: each that was acknowledged is in the one log that both have, and the edges have
/// applied all of it.
#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_purge_is_lost_and_the_edges_follow() {
    let Some(binary) = installed("etcd") else {
        return;
    };
    let mut stage = Stage::new(binary, 1, 2).await;
    stage.origin.route("/a", Answer::bytes("old").max_age(600));
    for edge in &stage.cluster.edges {
        stored(edge, "/a").await;
    }
    let writers = stage.controls().map(|control| {
        let url = control.url("/v1/purges");
        let name = match control.id == "control" {
            true => "first",
            false => "second",
        };
        let body = |name: &str| json!({"site": "site", "tags": [name], "wait": "none"});
        writing(Method::POST, move |_| url.clone(), body, name, &stage.token)
    });
    let acknowledged = killing(&mut stage, writers).await;
    let mut logs = Vec::new();
    for control in stage.controls() {
        let log = eventually("it has the whole log", async || {
            let path = "/v1/purges?after=0";
            let page = call(control, Method::GET, path, Some(&stage.token), &Value::Null);
            let page = page.await.json()?;
            let records = page["records"].as_array().cloned().unwrap_or_default();
            let tags: Vec<_> = (records.iter())
                .filter_map(|record| record["purge"]["scopes"][0]["tag"].as_str())
                .collect();
            let lost: Vec<_> = (acknowledged.iter())
                .filter(|name| !tags.contains(&name.as_str()))
                .collect();
            ensure!(lost.is_empty(), "{lost:?}");
            Ok((page["head"].clone(), records))
        });
        logs.push(log.await.unwrap());
    }
    assert_eq!(logs[0], logs[1], "one log");

    // What is purged through one is gone everywhere while the other is away.
    stage.origin.route("/a", Answer::bytes("new").max_age(600));
    stage.control(0).kill9().await.unwrap();
    let [_, second] = stage.controls();
    let wish = json!({"site": "site", "urls": ["/a"]});
    let purged = call(
        second,
        Method::POST,
        "/v1/purges",
        Some(&stage.token),
        &wish,
    )
    .await;
    let purged = purged.json().unwrap();
    assert_eq!(purged["complete"], true, "{purged}");
    let head = purged["seq"].as_u64().unwrap();
    for edge in &stage.cluster.edges {
        assert_eq!(edge.get("/a").await.unwrap().text(), "new");
        eventually("it has applied the whole log", async || {
            let applied = edge.metric("edge_purge_seq_applied", &[]).await?;
            ensure!(applied == head as f64, "{applied} of {head}");
            Ok(())
        })
        .await
        .unwrap();
    }
}

/// The same with sites, and a member of etcd is killed as well; the edges serve what was acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_site_is_lost_and_the_edges_serve_them_all() {
    let Some(binary) = installed("etcd") else {
        return;
    };
    let mut stage = Stage::new(binary, 3, 2).await;
    stage.origin.route("/a", Answer::bytes("a").max_age(600));
    let origin = stage.origin.url();
    let writers = stage.controls().map(|control| {
        let url = control.url("/v1/sites/");
        let name = if control.id == "control" {
            "first"
        } else {
            "second"
        };
        let origin = origin.clone();
        let body =
            move |name: &str| json!({"hosts": [format!("{name}.test")], "origins": [origin]});
        let url = move |name: &str| format!("{url}{name}");
        writing(Method::PUT, url, body, name, &stage.token)
    });
    stage.etcd.kill9(0).await.unwrap();
    let acknowledged = killing(&mut stage, writers).await;
    nothing_lost(&stage, "/v1/sites", "sites", &acknowledged).await;
    for edge in &stage.cluster.edges {
        for name in &acknowledged {
            let host = format!("{name}.test");
            eventually("the edge serves it", async || {
                let answer = edge.get_with("/a", &[("host", &host)]).await?;
                ensure!(answer.status == 200, "{host}: {}", answer.status);
                Ok(())
            })
            .await
            .unwrap();
        }
    }
}

/// One member after the other is stopped while purges are made: each is acknowledged by the edge within the time
/// that etcd may take to have a leader again, and none is in the log twice, also when the member goes on that was
/// asked for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_member_of_etcd_holds_no_purge_up_and_makes_none_twice() {
    let Some(binary) = installed("etcd") else {
        return;
    };
    let stage = Stage::new(binary, 3, 1).await;
    let purge = async |control: &Node, tag: &str| {
        let began = Instant::now();
        let wish = json!({"site": "site", "tags": [tag]});
        let path = "/v1/purges";
        let answer = call(control, Method::POST, path, Some(&stage.token), &wish).await;
        let took = began.elapsed();
        let told = answer.json().unwrap();
        assert_eq!(answer.status, 200, "{told}");
        assert_eq!(told["complete"], true, "{told}");
        (took, told["seq"].as_u64().unwrap())
    };
    let (mut seqs, mut first, mut later) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..STOPS {
        stage.etcd.freeze(round % 3);
        for (n, control) in stage.controls().into_iter().enumerate() {
            for again in 0..PURGES_EACH {
                let (took, seq) = purge(control, &format!("{round}-{n}-{again}")).await;
                seqs.push(seq);
                let times = if again == 0 { &mut first } else { &mut later };
                times.push(took);
            }
        }
        stage.etcd.thaw(round % 3);
        // What the member had waiting comes late now, and it catches up before the next is stopped.
        tokio::time::sleep(SECOND).await;
    }
    first.sort();
    later.sort();
    println!("first purges after a stop {first:?}, later ones {later:?}");
    for control in stage.controls() {
        let path = "/v1/purges?after=0";
        let page = call(control, Method::GET, path, Some(&stage.token), &Value::Null).await;
        let page = page.json().unwrap();
        let records = page["records"].as_array().unwrap();
        let in_log: Vec<_> = (records.iter())
            .map(|record| record["at"]["seq"].as_u64().unwrap())
            .collect();
        assert_eq!(
            in_log, seqs,
            "each is there once, under the number that was told"
        );
    }
    // With all of them stopped, that is said while the asker waits.
    for member in 0..3 {
        stage.etcd.freeze(member);
    }
    let wish = json!({"site": "site", "tags": ["x"]});
    let [control, _] = stage.controls();
    let path = "/v1/purges";
    let refused = call(control, Method::POST, path, Some(&stage.token), &wish).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    for member in 0..3 {
        stage.etcd.thaw(member);
    }
}
