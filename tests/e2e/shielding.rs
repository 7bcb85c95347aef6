//! Homes that are silent, busy or gone: whoever asks them goes on, and the origin is spared all the same.

use std::time::Duration;

use anyhow::ensure;
use cluster::site::rules::Shield;
use harness::{
    client::Client,
    cluster::{Cluster, HOST, Plan},
    origin::{Answer, Origin},
    process::eventually,
    region::REGIONS,
};
use tokio::time::Instant;

use crate::{
    SECOND,
    homing::{path_at, settled},
};

fn one_region(edges: usize, origin: &str) -> Plan {
    let mut plan = Plan::new(edges, origin).site(|site| site.shield = Some(Shield::Region));
    plan.regions = vec![REGIONS[0]; edges];
    plan
}

/// A connection is kept to the home, and it is known how long it takes to answer.
async fn acquainted(cluster: &Cluster, origin: &Origin, edge: usize) {
    for n in 0..10 {
        let path = path_at(&cluster.edges[0], &format!("before-{n}")).await;
        origin.route(&path, Answer::bytes("before").max_age(600));
        let answer = cluster.edges[edge].get(&path).await.unwrap();
        assert_eq!(answer.text(), "before");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_falls_silent_is_overtaken() {
    let origin = Origin::start().await.unwrap();
    let mut cluster = settled(one_region(3, &origin.url())).await;
    acquainted(&cluster, &origin, 1).await;
    // One that waits for the origin is not silent, however long that takes.
    let slow = path_at(&cluster.edges[0], "slow").await;
    origin.route(
        &slow,
        Answer::bytes("slow").max_age(600).head_after(SECOND * 3),
    );
    let answer = cluster.edges[1].get(&slow).await.unwrap();
    assert_eq!(answer.text(), "slow");
    assert_eq!(origin.seen(&slow).len(), 1);

    let mut paths = Vec::new();
    for n in 0..5 {
        let path = path_at(&cluster.edges[0], &format!("silent-{n}")).await;
        origin.route(&path, Answer::bytes("there").max_age(600));
        paths.push(path);
    }
    cluster.edges[0].process().freeze();
    let mut took = Vec::new();
    for path in &paths {
        let url = cluster.edges[1].url(path);
        let begun = Instant::now();
        let answer = Client::new().digest(&url, &[("host", HOST)]).await.unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(origin.seen(path).len(), 1, "{path}");
        took.push(answer.first_byte - begun);
    }
    println!("first bytes beside a silent home: {took:.0?}");
    // Two seconds is how long a peer may take for the head of an answer: nobody has waited for that.
    assert!(took[0] < SECOND, "{took:?}");
    // And who is known to be silent is not waited for again at once.
    let waited = |took: &&Duration| **took > Duration::from_millis(200);
    assert!(took.iter().filter(waited).count() <= 2, "{took:?}");
    cluster.edges[0].process().thaw();
    let mut asked = 0;
    eventually("the home is asked again", async || {
        asked += 1;
        let path = path_at(&cluster.edges[0], &format!("after-{asked}")).await;
        origin.route(&path, Answer::bytes("after").max_age(600));
        let answer = cluster.edges[1].get(&path).await?;
        let detail = answer.cache_status().detail;
        let home = format!("home:{}", cluster.edges[0].id);
        ensure!(detail.as_deref() == Some(&home), "{detail:?}");
        Ok(())
    })
    .await
    .unwrap();
}
