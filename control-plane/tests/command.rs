//! The real binary: what it prints, how it fails, how it ends.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on stops where it is"
)]

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

fn control_plane(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_control-plane"));
    command
        .current_dir(dir)
        .args(arguments)
        .env_remove("RUST_LOG");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CONTROL_PLANE_") {
            command.env_remove(name);
        }
    }
    command
}

fn run(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    told(control_plane(dir, arguments).output().unwrap())
}

fn told(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap_or(-1),
        text(output.stdout),
        text(output.stderr),
    )
}

/// A directory with a secret in it.
fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), cluster::secret::generate()).unwrap();
    dir
}

struct Running {
    child: Child,
    api: String,
}

impl Running {
    /// Starts with flags only; the log tells where it listens.
    fn start(dir: &Path) -> Self {
        let mut child = control_plane(
            dir,
            &[
                "serve",
                "--id",
                "cp-1",
                "--data-dir",
                "data",
                "--secret-file",
                "secret",
                "--http",
                "127.0.0.1:0",
                "--gossip",
                "127.0.0.1:0",
                "--steer",
                "127.0.0.1:0",
                "--site",
                "www.example.com=http://127.0.0.1:1",
            ],
        )
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let serving = log
            .by_ref()
            .map(|line| line.unwrap())
            .find(|line| line.contains("serving"))
            .expect("it serves");
        let at = serving
            .split("http=")
            .nth(1)
            .unwrap()
            .split(' ')
            .next()
            .unwrap();
        let api = format!("http://{at}");
        std::thread::spawn(move || log.for_each(drop));
        Self { child, api }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn commands_ask_a_running_control_plane_which_ends_when_asked() {
    let dir = directory();
    let mut running = Running::start(dir.path());
    let ask = |arguments: &[&str]| run(dir.path(), &[arguments, &["--api", &running.api]].concat());

    // It is ready once it has seen itself, which may be a moment after it serves.
    let ready = (0..100).any(|_| {
        let ready = ask(&["healthy"]).0 == 0;
        if !ready {
            std::thread::park_timeout(Duration::from_millis(100));
        }
        ready
    });
    assert!(ready, "never ready");
    let (code, table, _) = ask(&["nodes"]);
    assert_eq!(code, 0);
    assert!(
        table.starts_with("NODE ROLE    STATE REGION PLACE REQS RATE SITES"),
        "{table}"
    );
    assert!(table.contains("\ncp-1 control ready"), "{table}");
    let (_, json, _) = ask(&["nodes", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["nodes"][0]["id"], "cp-1");
    let (_, table, _) = ask(&["sites", "list"]);
    assert!(
        table.contains("www.example.com www.example.com http://127.0.0.1:1"),
        "{table}"
    );
    let (_, site, _) = ask(&["sites", "show", "www.example.com"]);
    assert!(
        site.contains("origins = [\"http://127.0.0.1:1\"]"),
        "{site}"
    );
    let (_, table, _) = ask(&["edges", "--client", "193.0.6.139"]);
    assert!(
        table.starts_with("193.0.6.139 is in Amsterdam, NL (city)\nEDGE"),
        "{table}"
    );
    assert_eq!(ask(&["peers", "--node", "cp-1"]).0, 0);
    let (code, _, error) = ask(&["peers", "--node", "nobody"]);
    assert_eq!(code, 1);
    assert!(error.contains("no node nobody is alive (404"), "{error}");
    let (code, _, error) = ask(&["edges", "--client", "example.com"]);
    assert_eq!((code, error.contains("--client")), (2, true), "{error}");
    // The environment names the control plane as well.
    let by_env = control_plane(dir.path(), &["nodes"])
        .env("CONTROL_PLANE_API", &running.api)
        .output()
        .unwrap();
    assert_eq!(told(by_env).0, 0);

    // The directory is taken.
    let second = run(
        dir.path(),
        &[
            "serve",
            "--data-dir",
            "data",
            "--secret-file",
            "secret",
            "--id",
            "cp-2",
            "--http",
            "127.0.0.1:0",
            "--gossip",
            "127.0.0.1:0",
            "--steer",
            "127.0.0.1:0",
        ],
    );
    assert_eq!(second.0, 1);
    assert!(
        second
            .2
            .contains("node.data_dir: data directory data: is used by"),
        "{}",
        second.2
    );

    let terminate = Command::new("kill")
        .arg(running.child.id().to_string())
        .status()
        .unwrap();
    assert!(terminate.success());
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
    let (code, _, error) = ask(&["nodes"]);
    assert_eq!(code, 1);
    assert!(
        error.contains(&running.api) && error.contains("cannot be reached"),
        "{error}"
    );
}

#[test]
fn check_prints_what_is_in_effect() {
    let dir = directory();
    let config =
        "[node]\nid = 'cp'\n[cluster]\nsecret_file = 'secret'\n[listen]\nhttp = '127.0.0.1:1'";
    std::fs::write(dir.path().join("cp.toml"), config).unwrap();
    let output = control_plane(
        dir.path(),
        &["check", "--config", "cp.toml", "--steer", "127.0.0.1:2"],
    )
    .env("CONTROL_PLANE_LISTEN__HTTP", "127.0.0.1:3")
    .env("CONTROL_PLANE_CLUSTER__SEEDS", "a:1,b:2")
    .env("CONTROL_PLANE_API", "http://elsewhere")
    .output()
    .unwrap();
    let (code, text, error) = told(output);
    assert_eq!(code, 0, "{error}");
    let table: toml::Table = text.parse().unwrap();
    assert_eq!(table["listen"]["http"].as_str(), Some("127.0.0.1:3"));
    assert_eq!(table["listen"]["steer"].as_str(), Some("127.0.0.1:2"));
    assert_eq!(table["cluster"]["seeds"].as_array().unwrap().len(), 2);
    assert_eq!(table["cluster"]["gossip_interval"].as_str(), Some("300ms"));
}

#[test]
fn bad_input_is_refused_with_the_key_the_value_and_the_reason() {
    let dir = directory();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("typo.toml"), "[node]\nid = 'cp'\n[clutser]\n").unwrap();
    std::fs::write(path("value.toml"), "[listen]\nhttp = 'somewhere'\n").unwrap();
    std::fs::write(path("foreign.mmdb"), "not a database").unwrap();
    std::fs::create_dir(path("newer")).unwrap();
    std::fs::write(path("newer/VERSION"), "99\n").unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let serve = |more: &[&str]| {
        let mut arguments = vec![
            "serve",
            "--id",
            "cp",
            "--secret-file",
            "secret",
            "--gossip",
            "127.0.0.1:0",
        ];
        for (flag, value) in [
            ("--data-dir", "data"),
            ("--http", "127.0.0.1:0"),
            ("--steer", "127.0.0.1:0"),
        ] {
            if !more.contains(&flag) {
                arguments.extend([flag, value]);
            }
        }
        arguments.extend(more);
        run(dir.path(), &arguments)
    };
    for ((code, _, error), told) in [
        (
            serve(&["--config", "typo.toml"]),
            &["typo.toml:3: clutser: unknown field"][..],
        ),
        (
            run(dir.path(), &["check", "--config", "value.toml"]),
            &[
                "value.toml:2: listen.http = \"somewhere\": ",
                "invalid socket address",
            ],
        ),
        (
            serve(&["--config", "none.toml"]),
            &["none.toml: cannot be read: No such file"],
        ),
        (
            serve(&["--geo", "foreign.mmdb"]),
            &["geo.database: ", "foreign.mmdb: not a MaxMind database"],
        ),
        (
            serve(&["--geo", "none.mmdb"]),
            &["none.mmdb: cannot be read"],
        ),
        (
            serve(&["--http", &taken]),
            &["listen.http: cannot listen at 127.0.0.1:", "port in use"],
        ),
        (
            serve(&["--steer", &taken]),
            &["listen.steer: cannot listen at 127.0.0.1:", "port in use"],
        ),
        (
            serve(&["--data-dir", "newer"]),
            &["node.data_dir: ", "newer version (layout 99"],
        ),
        (
            serve(&["--data-dir", "/proc/cdn"]),
            &["node.data_dir: ", "/proc/cdn: cannot be made"],
        ),
        (serve(&["--site", "a b=http://o"]), &["site: ", "a b"]),
        (
            run(dir.path(), &["check", "--id", "cp"]),
            &["cluster.secret_file: missing"],
        ),
    ] {
        assert_eq!(code, 1, "{error}");
        for part in told {
            assert!(error.contains(part), "{error:?} should tell {part:?}");
        }
    }
    let output = control_plane(dir.path(), &["check", "--secret-file", "secret"])
        .env("CONTROL_PLANE_LISTEN__HTPP", "1")
        .output()
        .unwrap();
    let (code, _, error) = told(output);
    assert_eq!(code, 1);
    assert!(
        error.contains("variable CONTROL_PLANE_LISTEN__HTPP: listen.htpp"),
        "{error}"
    );
    assert_eq!(run(dir.path(), &["serve", "--colour", "red"]).0, 2);
}
