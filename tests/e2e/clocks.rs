//! A node whose clock is off, and who says so.

use std::{sync::Arc, time::Duration};

use anyhow::ensure;
use cluster::{clock::Clock, net::SystemNet};
use edge_node::{
    config::ConfigFile,
    edge::{Edge, Environment},
};
use harness::{
    cluster::Plan,
    origin::{Answer, Origin},
    process::{eventually, run},
};
use http::Method;
use serde_json::json;

use crate::{admitting::call, started, stored};

/// How far it is off.
const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_an_hour_off_is_named_wherever_one_looks() {
    let origin = Origin::start().await.unwrap();
    // Longer than the hour by which its answers seem to be old.
    origin.route("/a", Answer::bytes("a").max_age(86_400));
    let mut cluster = started(Plan::new(2, &origin.url())).await;
    cluster.settled().await.unwrap();
    // The second goes on in this process, an hour ahead.
    cluster.edges[1].terminate().await.unwrap();
    let config = toml::to_string(&cluster.edges[1].read_config().unwrap()).unwrap();
    let config = toml::from_str::<ConfigFile>(&config).unwrap();
    let environment = Environment {
        net: Arc::new(SystemNet),
        clock: Clock::tokio(Clock::system().now() + HOUR),
    };
    let edge = Edge::build(config.check("edge").unwrap(), environment);
    let edge = tokio::spawn(edge.await.unwrap().run(std::future::pending()));
    let (control, late) = (cluster.control.as_ref().unwrap(), &cluster.edges[1]);

    eventually("it says by how much", async || {
        let ahead_s = late.metric("edge_clock_ahead_seconds", &[]).await?;
        ensure!((3_590.0..=3_600.0).contains(&ahead_s), "{ahead_s}");
        let told = control.ask("/v1/nodes").await?.json()?;
        let off = told["clocks_off"].as_array().cloned().unwrap_or_default();
        ensure!(off.len() == 1 && off[0]["node"] == *late.id, "{told}");
        let ahead_s = off[0]["ahead_s"].as_i64();
        ensure!(
            ahead_s.is_some_and(|s| (3_590..=3_600).contains(&s)),
            "{told}"
        );
        Ok(())
    })
    .await
    .unwrap();
    let api = control.url("");
    let (status, table) = run(&control.binary, &["nodes", "--api", &api], &[])
        .await
        .unwrap();
    assert!(status.success(), "{table}");
    let told = format!("clock: {}'s is 3", late.id);
    assert!(table.contains(&told) && table.contains("ahead"), "{table}");

    // It serves, is not told of purges, and the receipt says why.
    stored(late, "/a").await;
    let wish = json!({"site": "site", "urls": ["/a"]});
    let purged = call(control, Method::POST, "/v1/purges", None, &wish).await;
    let purged = purged.json().unwrap();
    let receipts = purged["nodes"].as_array().unwrap();
    let receipt = receipts
        .iter()
        .find(|node| node["node"] == *late.id)
        .unwrap();
    let reason = receipt["reason"].as_str().unwrap_or_default();
    assert!(reason.starts_with("its clock is 3"), "{purged}");
    assert_eq!(purged["complete"], false, "{purged}");
    edge.abort();
}
