//! A control plane behind something that speaks TLS, and the commands that ask it there.

use std::fs;

use anyhow::ensure;
use harness::{
    cluster::Plan,
    etcd::Pem,
    origin::Origin,
    process::{Process, eventually, free_port, run},
};

use crate::{installed, started};

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_speak_tls_to_what_stands_before_a_control_plane() {
    let (Some(nginx), Some(openssl)) = (installed("nginx"), installed("openssl")) else {
        return;
    };
    let origin = Origin::start().await.unwrap();
    let cluster = started(Plan::new(1, &origin.url())).await;
    cluster.settled().await.unwrap();
    let control = cluster.control.as_ref().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let pem = Pem::make(&openssl, dir.path()).await.unwrap();
    let (root, port) = (dir.path().display(), free_port());
    let config = format!(
        "daemon off;\nmaster_process off;\npid {root}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n\
         access_log off;\nclient_body_temp_path {root}/body;\nproxy_temp_path {root}/proxy;\n\
         fastcgi_temp_path {root}/fastcgi;\nuwsgi_temp_path {root}/uwsgi;\nscgi_temp_path {root}/scgi;\n\
         server {{\nlisten 127.0.0.1:{port} ssl;\nssl_certificate {};\nssl_certificate_key {};\n\
         location / {{ proxy_pass {}; }}\n}}\n}}\n",
        pem.certificate.display(),
        pem.key.display(),
        control.url("").trim_end_matches('/'),
    );
    let file = dir.path().join("nginx.conf");
    fs::write(&file, config).unwrap();
    let args = [
        "-c",
        file.to_str().unwrap(),
        "-p",
        dir.path().to_str().unwrap(),
    ];
    let _nginx = Process::start("nginx", &nginx, &args, &[]).unwrap();
    let (api, ca) = (
        format!("https://127.0.0.1:{port}"),
        pem.ca.to_str().unwrap(),
    );

    let nodes = ["nodes", "--api", &api, "--api-ca", ca];
    let table = eventually("a command is answered", async || {
        let (status, table) = run(&control.binary, &nodes, &[]).await?;
        ensure!(
            status.success() && table.contains(&cluster.edges[0].id),
            "{table}"
        );
        Ok(table)
    })
    .await
    .unwrap();
    assert!(table.contains("NODE"), "{table}");
    // From the environment as well.
    let env = [
        ("CONTROL_PLANE_API", api.as_str()),
        ("CONTROL_PLANE_API_CA", ca),
    ];
    let (status, said) = run(&control.binary, &["healthy"], &env).await.unwrap();
    assert!(status.success(), "{said}");

    let key = pem.key.to_str().unwrap();
    for (more, told) in [
        // Whom nobody vouches for.
        (&[][..], "--api-ca says whose certificates to believe"),
        (&["--api-ca", "/nowhere"], "--api-ca: /nowhere"),
        (&["--api-ca", key], "no certificate in PEM"),
    ] {
        let args = [&["nodes", "--api", &api], more].concat();
        let (status, said) = run(&control.binary, &args, &[]).await.unwrap();
        assert!(!status.success() && said.contains(told), "{args:?}: {said}");
    }
}
