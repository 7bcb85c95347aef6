//! Purges by the operator's commands.

use cluster::wire::PurgeStatus;

use super::{Stage, command};

#[tokio::test(flavor = "multi_thread")]
async fn commands_purge_list_and_show() {
    let stage = Stage::new(2).await;
    stage.old_everywhere().await;
    let control = stage.control();
    let purge = [
        "purge", "--site", "site", "--url", "/a", "--url", "/b", "--tag", "img-1",
    ];
    let (code, said) = command(control, &purge).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("acknowledged by 2 of 2 edges"), "{said}");
    assert_eq!(stage.gone().await, ["/a", "/b", "/img/1"]);
    let soft = [
        "purge", "--site", "site", "--all", "--soft", "--wait", "none", "--json",
    ];
    let (code, said) = command(control, &soft).await;
    assert_eq!(code, 0, "{said}");
    let told: PurgeStatus = serde_json::from_str(said.trim()).unwrap();
    assert!(told.soft, "{told:?}");
    let (code, said) = command(control, &["purges", "list"]).await;
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("tag img-1") && said.contains("all of it"),
        "{said}"
    );
    assert!(
        said.lines().all(|line| line.chars().count() <= 80),
        "{said}"
    );
    // Where the control plane is may be said without `http://`.
    let at = control.http.to_string();
    let (code, said) = command(control, &["purges", "list", "--api", &at]).await;
    assert_eq!(code, 0, "{said}");
    // The list began at the oldest, and what was purged last was not on it where there were many.
    let (code, said) = command(control, &["purges", "list", "--limit", "1"]).await;
    assert!(
        code == 0 && said.contains("all of it") && !said.contains("img-1"),
        "{said}"
    );
    let seq = told.seq.to_string();
    let (code, said) = command(control, &["purges", "show", &seq]).await;
    assert!(code == 0 && said.contains("soft purge"), "{said}");
    for (arguments, words) in [
        (&["purge", "--site", "none", "--all"][..], "no site"),
        (&["purge", "--site", "site", "--url", "nowhere"], "urls[0]"),
        (&["purges", "show", "9999999"], "is kept"),
    ] {
        let (code, said) = command(control, arguments).await;
        assert!(code == 1 && said.contains(words), "{code} {said}");
    }
    let (code, said) = command(control, &["purge", "--site", "site"]).await;
    assert!(code == 2 && said.contains("--url"), "{said}");
}
