//! The purge log, when a control plane is killed, loses it, or is asked for more of it than a line carries.

use std::{fs, path::Path};

use anyhow::{Context, ensure};
use cluster::wire::{PurgePage, PurgeStatus};
use harness::{
    cluster::{Lines, Node},
    process::eventually,
    proxy::{Conditions, Proxy},
};
use http::Method;
use serde_json::json;

use super::{Stage, log, post, status};
use crate::SECOND;

/// Purges one after the other, each of a tag of its own, until the control plane is gone. Gives those
/// that were acknowledged.
async fn purge_until_killed(control: &Node, from: u64) -> Vec<u64> {
    let mut taken = Vec::new();
    for n in from.. {
        let body = json!({"site": "site", "tags": [format!("n{n}")], "wait": "none"}).to_string();
        let client = harness::client::Client::new();
        let url = control.url("/v1/purges");
        let sent = client.send(Method::POST, &url, &[], body.into());
        match sent.await {
            Ok(answer) if answer.status == 200 => {
                let status: PurgeStatus = serde_json::from_slice(&answer.body).unwrap();
                taken.push(status.seq);
            }
            _ => break,
        }
    }
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_is_killed_loses_nothing_that_it_took() {
    let mut stage = Stage::new(2).await;
    let mut all = Vec::new();
    for round in 0..3 {
        let identity = stage.cluster.control().process().id().unwrap();
        let control = stage.control();
        let killed = async {
            tokio::time::sleep(SECOND / 2).await;
            kill(identity);
        };
        let (taken, ()) = tokio::join!(purge_until_killed(control, round * 100_000), killed);
        assert!(taken.len() > 10, "{taken:?}");
        all.extend(taken);
        stage.cluster.control().kill9().await.unwrap();
        stage.cluster.control().start().await.unwrap();
    }
    let control = stage.control();
    let mut known = Vec::new();
    loop {
        let after = known.last().copied().unwrap_or(0);
        let page = control
            .ask(&format!("/v1/purges?after={after}"))
            .await
            .unwrap();
        let page: PurgePage = serde_json::from_slice(&page.body).unwrap();
        known.extend(page.records.iter().map(|record| record.at.seq));
        if page.through == page.head {
            break;
        }
    }
    let lost: Vec<_> = all.iter().filter(|seq| !known.contains(seq)).collect();
    assert!(lost.is_empty(), "{lost:?}");
    assert!(known.is_sorted());
    stage.known_to(control).await;
    eventually("both edges have all of it", async || {
        let last = status(control, *known.last().context("none")?).await?;
        ensure!(last.complete && last.nodes.len() == 2, "{last:?}");
        Ok(())
    })
    .await
    .unwrap();
}

fn kill(process: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(process).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_lost_is_begun_anew_and_nothing_of_it_is_taken_for_old() {
    let mut stage = Stage::new(2).await;
    for n in 0..20 {
        let told = stage
            .purge(json!({"site": "site", "tags": [format!("n{n}")]}))
            .await;
        assert!(told.complete, "{told:?}");
    }
    let before = log(stage.control()).await.unwrap();
    // A copy from before, as a backup is put back; then all of it is lost.
    let (saved, store) = {
        let data = &stage.control().data_dir;
        (data.join("saved"), data.join("store"))
    };
    stage.cluster.control().kill9().await.unwrap();
    copy(&store, &saved).unwrap();
    stage.cluster.control().start().await.unwrap();
    stage.known_to(stage.control()).await;
    for n in 20..40 {
        stage
            .purge(json!({"site": "site", "tags": [format!("n{n}")]}))
            .await;
    }
    for lost in [false, true] {
        stage.cluster.control().kill9().await.unwrap();
        fs::remove_dir_all(&store).unwrap();
        if !lost {
            copy(&saved, &store).unwrap();
        }
        stage.cluster.control().start().await.unwrap();
        let control = stage.control();
        stage.known_to(control).await;
        eventually("there is another log", async || {
            let now = log(control).await?;
            ensure!(now.log > before.log, "{now:?}");
            Ok(())
        })
        .await
        .unwrap();
        stage.clean().await;
        stage.old_everywhere().await;
        let told = stage.purge(json!({"site": "site", "urls": ["/a"]})).await;
        assert!(told.complete && told.nodes.len() == 2, "{told:?}");
        let gone = stage.gone().await;
        assert!(gone.contains(&"/a"), "{gone:?}");
    }
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &target)?,
            false => drop(fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}

/// The line is so slow that it takes longer for a page than a pull of several took before it began anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_learnt_over_a_line_that_takes_seconds_for_it() {
    learnt_over_a_line(9, 1 << 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_larger_than_a_page_is_learnt_over_a_slow_line() {
    learnt_over_a_line(48, 5 << 20).await;
}

/// An edge comes back when there are so many purges of 0.5 MB, of which a page has 4 MB; nobody can push.
async fn learnt_over_a_line(purges: usize, bytes_per_s: u64) {
    let mut stage = Stage::with(1, |plan| plan.lines(Lines::Uplinks)).await;
    stage.old_everywhere().await;
    let at = stage.control().http.to_string();
    let line = Proxy::start(&at, Conditions::default()).await.unwrap();
    let edge = &mut stage.cluster.edges[0];
    edge.terminate().await.unwrap();
    let url = toml::Value::from(format!("http://{}", line.address()));
    edge.configure("cluster", "control_plane", vec![url])
        .unwrap();
    stage.cluster.uplink(0).set(Conditions {
        cut: true,
        ..Conditions::default()
    });
    let long = "x".repeat(1_900);
    for n in 0..purges {
        let urls: Vec<_> = (0..250).map(|m| format!("/{n}/{m}/{long}")).collect();
        let wish = json!({"site": "site", "urls": urls, "wait": "none"});
        assert_eq!(post(stage.control(), &wish).await.status, 200);
    }
    let last = json!({"site": "site", "tags": ["a"], "wait": "none"});
    assert_eq!(post(stage.control(), &last).await.status, 200);
    let head = log(stage.control()).await.unwrap().head;
    line.set(Conditions {
        bytes_per_s: Some(bytes_per_s),
        ..Conditions::default()
    });
    stage.cluster.edges[0].launch().unwrap();
    eventually("it has everything", async || {
        let applied = stage.cluster.edges[0].metric("edge_purge_seq_applied", &[]);
        let applied = applied.await?;
        ensure!(applied == head as f64, "{applied} of {head}");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(stage.gone().await, ["/a"]);
    // Nothing that had come came again, but the pages that broke off.
    println!("{} bytes came over the line", line.carried());
    assert!(line.carried() < 80 << 20, "{}", line.carried());
}
