//! Two control planes on one etcd: whichever is asked, and whichever is killed, nothing that was
//! acknowledged is lost, the other goes on, and the edges follow.

use std::path::PathBuf;

use anyhow::ensure;
use harness::{
    cluster::{Cluster, Node, Plan},
    etcd::Etcd,
    origin::{Answer, Origin},
    process::eventually,
};
use http::Method;
use serde_json::{Value, json};

use crate::{
    SECOND,
    admitting::{call, made},
    installed, started,
};

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

/// Each of them is killed and started again while both are written to.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_acknowledged_is_lost_when_either_is_killed_during_writes() {
    let Some(binary) = installed("etcd") else {
        return;
    };
    let mut stage = Stage::new(binary, 1, 1).await;
    let token = stage.token.clone();
    let writing = |url: String, name: &'static str| {
        let token = token.clone();
        tokio::spawn(async move {
            let bearer = format!("Bearer {token}");
            let fields = [
                ("authorization", &*bearer),
                ("content-type", "application/json"),
            ];
            let mut acknowledged = Vec::new();
            for n in 0..150 {
                let name = format!("{name}-{n}");
                let body = json!({"name": name, "role": "read"}).to_string();
                let client = harness::client::Client::new();
                let sent = client.send(Method::POST, &url, &fields, body.into()).await;
                if let Ok(answer) = sent
                    && answer.status == 201
                {
                    acknowledged.push(name);
                }
                tokio::time::sleep(SECOND / 25).await;
            }
            acknowledged
        })
    };
    let [first, second] = stage.controls();
    let writers = [
        writing(first.url("/v1/tokens"), "first"),
        writing(second.url("/v1/tokens"), "second"),
    ];
    for index in [0, 1] {
        tokio::time::sleep(SECOND).await;
        stage.control(index).kill9().await.unwrap();
        tokio::time::sleep(SECOND).await;
        stage.control(index).start().await.unwrap();
    }
    let mut acknowledged = Vec::new();
    for writer in writers {
        let written = writer.await.unwrap();
        assert!(written.len() > 50, "only {} of 150", written.len());
        acknowledged.extend(written);
    }
    for control in stage.controls() {
        eventually("it knows what both acknowledged", async || {
            let list = call(
                control,
                Method::GET,
                "/v1/tokens",
                Some(&token),
                &Value::Null,
            );
            let list = list.await.json()?;
            let tokens = list["tokens"].as_array().unwrap();
            let names: Vec<_> = tokens.iter().filter_map(|t| t["name"].as_str()).collect();
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
