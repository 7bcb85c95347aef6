//! Purges as they are asked for: over the API, by command, and as plugins ask Fastly or Varnish; with a
//! receipt from every edge, and whoever lacks it named.

mod commands;
mod logs;
mod plugins;
mod receipts;
mod refusals;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, Result, ensure};
use cluster::wire::{PurgePage, PurgeState, PurgeStatus};
use harness::{
    client::Response,
    cluster::{Cluster, Node, Plan},
    origin::{Answer, Origin},
    process::{eventually, run},
};
use http::Method;
use serde_json::{Value, json};

use crate::{admitting::call, started};

/// Pages that the origin has, each with the tags `all` and its own name.
const PAGES: [&str; 4] = ["/a", "/b", "/img/1", "/img/2"];

/// An origin whose pages have versions, and edges with a control plane.
struct Stage {
    origin: Origin,
    version: Arc<AtomicU64>,
    cluster: Cluster,
}

impl Stage {
    async fn new(edges: usize) -> Self {
        Self::with(edges, |plan| plan).await
    }

    async fn with(edges: usize, change: impl FnOnce(Plan) -> Plan) -> Self {
        let origin = Origin::start().await.unwrap();
        let version = Arc::new(AtomicU64::new(1));
        for page in PAGES {
            let version = version.clone();
            let name = page.trim_start_matches('/').replace('/', "-");
            origin.route_by(page, move |seen| {
                let text = format!("{} version {}", seen.target, version.load(Ordering::SeqCst));
                let tags = format!("all {name}");
                let answer = Answer::bytes(text).max_age(600);
                answer.field("surrogate-key", tags).into()
            });
        }
        let plan = change(Plan::new(edges, &origin.url()));
        let stage = Self {
            origin,
            version,
            cluster: started(plan).await,
        };
        stage.cluster.settled().await.unwrap();
        for control in stage.controls() {
            stage.known_to(control).await;
        }
        stage
    }

    fn control(&self) -> &Node {
        self.cluster.control.as_ref().unwrap()
    }

    fn controls(&self) -> impl Iterator<Item = &Node> {
        let (one, other) = (&self.cluster.control, &self.cluster.second);
        one.iter().chain(other)
    }

    /// Waits until a control plane knows every edge, ready.
    async fn known_to(&self, control: &Node) {
        eventually("all edges are known", async || {
            let nodes = control.ask("/v1/nodes").await?.json()?;
            let nodes = nodes["nodes"].as_array().context("no list")?.clone();
            let ready = |node: &&Value| {
                node["role"] == "edge" && node["phase"] == "ready" && node["alive"] == true
            };
            let count = nodes.iter().filter(ready).count();
            ensure!(count == self.cluster.edges.len(), "{nodes:?}");
            Ok(())
        })
        .await
        .unwrap();
    }

    /// Every edge has every page, and the origin has a newer version of all.
    async fn old_everywhere(&self) {
        for edge in &self.cluster.edges {
            for page in PAGES {
                edge.get(page).await.unwrap();
                let now = self.version.load(Ordering::SeqCst);
                assert_eq!(version(edge, page).await, now, "{} {page}", edge.id);
            }
        }
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// Which pages each edge has in their new version, and that all of them say the same.
    async fn gone(&self) -> Vec<&'static str> {
        let now = self.version.load(Ordering::SeqCst);
        let mut told: Option<Vec<&str>> = None;
        for edge in &self.cluster.edges {
            let mut gone = Vec::new();
            for page in PAGES {
                if version(edge, page).await == now {
                    gone.push(page);
                }
            }
            assert_eq!(
                told.get_or_insert_with(|| gone.clone()),
                &gone,
                "{}",
                edge.id
            );
        }
        told.unwrap()
    }

    async fn purge(&self, body: Value) -> PurgeStatus {
        let answer = post(self.control(), &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let status: PurgeStatus = serde_json::from_slice(&answer.body).unwrap();
        let at = format!("/v1/purges/{}", status.seq);
        assert_eq!(answer.field("location"), Some(&*at));
        status
    }

    /// All of the site, acknowledged everywhere: what follows begins with nothing.
    async fn clean(&self) {
        let status = self.purge(json!({"site": "site", "all": true})).await;
        assert!(status.complete, "{status:?}");
    }
}

async fn post(control: &Node, body: &Value) -> Response {
    call(control, Method::POST, "/v1/purges", None, body).await
}

async fn version(edge: &Node, page: &str) -> u64 {
    let answer = edge.get(page).await.unwrap();
    assert_eq!(answer.status, 200, "{page}: {}", answer.text());
    let text = answer.text();
    text.rsplit(' ').next().unwrap().parse().unwrap()
}

async fn log(control: &Node) -> Result<PurgePage> {
    let answer = control.ask("/v1/purges").await?;
    ensure!(answer.status == 200, "{}", answer.text());
    let page: PurgePage = serde_json::from_slice(&answer.body)?;
    ensure!(page.now_ms.is_some(), "it says what time it is");
    // What is compared is the log.
    Ok(PurgePage {
        now_ms: None,
        ..page
    })
}

async fn status(control: &Node, seq: u64) -> Result<PurgeStatus> {
    let answer = control.ask(&format!("/v1/purges/{seq}")).await?;
    ensure!(answer.status == 200, "{}", answer.text());
    Ok(serde_json::from_slice(&answer.body)?)
}

fn state(status: &PurgeStatus, node: &str) -> PurgeState {
    let found = status.nodes.iter().find(|n| n.node.as_str() == node);
    found.unwrap_or_else(|| panic!("{node}: {status:?}")).state
}

/// A command of the operator's: its exit code, and what it said.
async fn command(control: &Node, arguments: &[&str]) -> (i32, String) {
    let api = control.url("");
    let env = [("CONTROL_PLANE_API", api.as_str())];
    let (status, said) = run(&control.binary, arguments, &env).await.unwrap();
    (status.code().unwrap_or(-1), said)
}
