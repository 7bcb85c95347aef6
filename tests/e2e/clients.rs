//! Programs that people use, in front of origins that people use: downloads that are resumed,
//! players that seek, WebSockets, and what only some clients understand.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use harness::{
    client::{Client, digest, raw},
    cluster::{HOST, Plan},
    origin::{Answer, Script},
    pattern::Pattern,
    process::{Process, eventually, free_port, run},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{SECOND, alone, installed, started, stored};

/// nginx with a directory of its own, and the log of what it was asked.
struct Nginx {
    dir: tempfile::TempDir,
    port: u16,
    _process: Process,
}

impl Nginx {
    /// Slow below `/slow/`: 4 MiB a second after the first one. `None` where it is not installed.
    async fn start() -> Result<Option<Self>> {
        let Some(binary) = installed("nginx") else {
            return Ok(None);
        };
        let dir = tempfile::tempdir()?;
        let (root, port) = (dir.path().display(), free_port());
        fs::create_dir_all(dir.path().join("www/slow"))?;
        let config = format!(
            "daemon off; master_process off; pid {root}/pid; error_log stderr;
             events {{ worker_connections 256; }}
             http {{
               log_format asked '$request_method $uri $status range=$http_range';
               access_log {root}/log asked;
               client_body_temp_path {root}/a; proxy_temp_path {root}/b; fastcgi_temp_path {root}/c;
               uwsgi_temp_path {root}/d; scgi_temp_path {root}/e;
               server {{
                 listen 127.0.0.1:{port};
                 root {root}/www;
                 add_header cache-control max-age=3600;
                 location /slow/ {{ limit_rate_after 1m; limit_rate 4m; }}
               }}
             }}"
        );
        let file = dir.path().join("nginx.conf");
        fs::write(&file, config)?;
        let args = ["-p", path(dir.path()), "-c", path(&file)];
        let mut process = Process::start("nginx", &binary, &args, &[])?;
        eventually("nginx listens", async || {
            ensure!(process.ended()?.is_none(), "{:?}", process.log().tail(5));
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
            Ok(())
        })
        .await?;
        Ok(Some(Self {
            dir,
            port,
            _process: process,
        }))
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn put(&self, name: &str, body: &Pattern) -> Result<()> {
        let file = self.dir.path().join("www").join(name);
        Ok(fs::write(file, body.bytes())?)
    }

    /// The lines of its log that speak of `name`.
    fn asked(&self, name: &str) -> Result<Vec<String>> {
        let log = fs::read_to_string(self.dir.path().join("log"))?;
        let lines = log.lines().filter(|line| line.contains(name));
        Ok(lines.map(str::to_owned).collect())
    }
}

/// A program that resumes a download.
#[derive(Clone)]
struct Resumer {
    name: &'static str,
    binary: PathBuf,
}

impl Resumer {
    /// Those that are installed.
    fn all() -> Vec<Self> {
        ["curl", "wget"]
            .into_iter()
            .filter_map(|name| Some((name, installed(name)?)))
            .map(|(name, binary)| Self { name, binary })
            .collect()
    }

    /// Starts it on `url`, to go on with `file`.
    fn start(&self, url: &str, file: &Path) -> Result<Process> {
        let host = format!("Host: {HOST}");
        let args: &[&str] = match self.name {
            "curl" => &["-sSf", "-H", &host, "-C", "-", "-o", path(file), url],
            _ => &["-nv", "-t1", "--header", &host, "-c", "-O", path(file), url],
        };
        Process::start(self.name, &self.binary, args, &[])
    }

    async fn resume(&self, url: &str, file: &Path) -> Result<()> {
        let mut process = self.start(url, file)?;
        let status = process.wait().await?;
        let words = process.log().tail(5);
        ensure!(status.success(), "{}: {status}: {words:?}", self.name);
        Ok(())
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a temporary directory's name is text")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_is_resumed_at_any_byte() {
    let Some(nginx) = Nginx::start().await.unwrap() else {
        return;
    };
    let cluster = started(Plan::alone(&nginx.url())).await;
    let edge = &cluster.edges[0];
    let body = Pattern::new(1, 5 << 20 | 12_345);
    nginx.put("disk.img", &body).unwrap();
    stored(edge, "/disk.img").await;
    let bytes = body.bytes();
    let url = edge.url("/disk.img");
    let mut offsets = vec![1, 1 << 20, (1 << 20) - 1, bytes.len() - 1];
    offsets.extend((0..4).map(|_| rand::random_range(0..bytes.len())));
    for resumer in Resumer::all() {
        for offset in &offsets {
            let file = nginx.dir.path().join(resumer.name);
            fs::write(&file, &bytes[..*offset]).unwrap();
            resumer.resume(&url, &file).await.unwrap();
            let whole = blake3::hash(&fs::read(&file).unwrap());
            assert_eq!(whole, body.hash(), "{} from byte {offset}", resumer.name);
        }
    }
    assert_eq!(nginx.asked("disk.img").unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_is_killed_during_the_fill_is_resumed_during_the_fill() {
    let Some(nginx) = Nginx::start().await.unwrap() else {
        return;
    };
    let cluster = started(Plan::alone(&nginx.url())).await;
    // Six seconds.
    let body = Pattern::new(2, 24 << 20 | 321);
    nginx.put("slow/disk.img", &body).unwrap();
    let url = cluster.edges[0].url("/slow/disk.img");
    let downloads: Vec<_> = (Resumer::all().into_iter())
        .map(|resumer| (nginx.dir.path().join(resumer.name), resumer))
        .collect();
    for (file, resumer) in &downloads {
        let mut process = resumer.start(&url, file).unwrap();
        eventually("a part is there", async || {
            let part = fs::metadata(file)?.len();
            ensure!(part > 200_000, "{part}");
            Ok(())
        })
        .await
        .unwrap();
        process.kill9().await.unwrap();
        let part = fs::metadata(file).unwrap().len();
        assert!(part < body.length(), "{} was too fast", resumer.name);
    }
    for (file, resumer) in &downloads {
        resumer.resume(&url, file).await.unwrap();
        let whole = blake3::hash(&fs::read(file).unwrap());
        assert_eq!(whole, body.hash(), "{}", resumer.name);
    }
    // Neither the death of the one who began nor the ranges made the origin send it again.
    let asked = nginx.asked("slow/disk.img").unwrap();
    assert!(asked.len() <= 1, "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_download_of_what_has_changed_is_not_glued_together() {
    let Some(nginx) = Nginx::start().await.unwrap() else {
        return;
    };
    let cluster = started(Plan::alone(&nginx.url())).await;
    let edge = &cluster.edges[0];
    let (old, new) = (Pattern::new(3, 300_000), Pattern::new(4, 300_001));
    nginx.put("page", &old).unwrap();
    stored(edge, "/page").await;
    let tag = edge.get("/page").await.unwrap();
    let tag = tag.field("etag").expect("nginx has tags").to_owned();
    nginx.put("page", &new).unwrap();
    let reload = [("cache-control", "no-cache")];
    let reloaded = edge.get_with("/page", &reload).await.unwrap();
    assert_eq!(blake3::hash(&reloaded.body), new.hash());
    eventually("the new one is stored", async || {
        ensure!(edge.get("/page").await?.body == new.bytes());
        Ok(())
    })
    .await
    .unwrap();
    let rest = [("range", "bytes=1000-"), ("if-range", tag.as_str())];
    let answer = edge.get_with("/page", &rest).await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(blake3::hash(&answer.body), new.hash());
}

/// What a player asks for: the beginning, the index at the end, then what comes next, and jumps.
#[tokio::test(flavor = "multi_thread")]
async fn a_player_seeks_in_what_has_not_all_arrived() {
    let Some(curl) = installed("curl") else {
        return;
    };
    let (origin, cluster) = alone().await;
    let url = cluster.edges[0].url("/video.mp4");
    const MIB: u64 = 1 << 20;
    // Eight seconds.
    let body = Pattern::new(5, 32 * MIB);
    let slow = Answer::pattern(&body).slowly(64 << 10, SECOND / 64);
    let slow = slow
        .field("etag", "\"v1\"")
        .field("content-type", "video/mp4");
    origin.route("/video.mp4", slow.max_age(60));

    let host = [("host", HOST)];
    let (parts, whole) = Client::new().begin_get(&url, &host).await.unwrap();
    assert_eq!(parts.status, 200);
    for (start, end) in [
        (0, 1_000),
        (32 * MIB - 100_000, 32 * MIB),
        (1_000, 300_000),
        (MIB - 1, MIB + 1),
        (20 * MIB, 20 * MIB + 100_000),
        (3 * MIB, 3 * MIB + 100_000),
        (28 * MIB + 1, 28 * MIB + 2),
        (4 * MIB, 4 * MIB + 100_000),
    ] {
        let range = format!("{start}-{}", end - 1);
        let file = tempfile::NamedTempFile::new().unwrap();
        let field = format!("Host: {HOST}");
        let said = [
            "-sSf",
            "-D",
            "-",
            "-H",
            &field,
            "-r",
            &range,
            "-o",
            path(file.path()),
            &url,
        ];
        let (status, head) = run(&curl, &said, &[]).await.unwrap();
        assert!(
            status.success() && head.starts_with("HTTP/1.1 206"),
            "{range}: {head}"
        );
        let part = fs::read(file.path()).unwrap();
        assert_eq!(part.len() as u64, end - start, "{range}");
        assert_eq!(blake3::hash(&part), body.hash_of(start, end), "{range}");
        // Had anybody waited for the whole, the origin would have sent it.
        assert!(origin.body_bytes() < body.length(), "{range} came too late");
    }
    let whole = digest(parts, whole).await.unwrap();
    assert_eq!(whole.hash, body.hash());
    let wholes = origin.seen("/video.mp4");
    let wholes = wholes.iter().filter(|seen| seen.field("range").is_none());
    assert_eq!(wholes.count(), 1);
}

/// RFC 6455: the handshake of §1.3 and the frames of §5.7, to a server that answers each in kind.
#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_speaks_through_the_edge() {
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
    let origin = Scripted::start(|mut stream: TcpStream| async move {
        let head = read_head(&mut stream).await?;
        let key = format!("sec-websocket-key: {}", KEY.to_lowercase());
        ensure!(head.contains(&key), "{head}");
        ensure!(head.contains("sec-websocket-protocol: chat"), "{head}");
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
             sec-websocket-accept: {ACCEPT}\r\nsec-websocket-protocol: chat\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).await?;
        loop {
            let frame = Frame::read(&mut stream).await?;
            let answer = Frame {
                opcode: if frame.opcode == PING {
                    PONG
                } else {
                    frame.opcode
                },
                mask: None,
                ..frame
            };
            answer.write(&mut stream).await?;
            if answer.opcode == CLOSE {
                return Ok(());
            }
        }
    })
    .await;
    let cluster = started(Plan::alone(&origin.url())).await;
    let mut stream = TcpStream::connect(cluster.edges[0].http).await.unwrap();
    let request = format!(
        "GET /chat HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Protocol: chat\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await.unwrap();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    for field in ["upgrade: websocket", "sec-websocket-protocol: chat"] {
        assert!(head.contains(field), "{head}");
    }
    let accept = format!("sec-websocket-accept: {}", ACCEPT.to_lowercase());
    assert!(head.contains(&accept), "{head}");
    for (opcode, length, answered) in [
        (TEXT, 5, TEXT),
        (PING, 5, PONG),
        (BINARY, 256, BINARY),
        (BINARY, 65_536, BINARY),
        (BINARY, 3 << 20, BINARY),
        (TEXT, 0, TEXT),
        (CLOSE, 2, CLOSE),
    ] {
        let payload = Pattern::new(6, length).bytes().to_vec();
        let frame = Frame {
            opcode,
            mask: Some([0x37, 0xfa, 0x21, 0x3d]),
            payload: payload.clone(),
        };
        // A long frame comes back while it is still being sent.
        let (mut reader, mut writer) = stream.split();
        let (sent, answer) = tokio::join!(frame.write(&mut writer), Frame::read(&mut reader));
        sent.unwrap();
        let answer = answer.unwrap();
        assert_eq!((answer.opcode, answer.mask), (answered, None));
        assert_eq!(answer.payload, payload, "{length} bytes");
    }
    // Who closes first is closed (RFC 6455 §7.1.1).
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
}

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// Longest payload that a frame here has.
const PAYLOAD_BYTES_MAX: u64 = 16 << 20;

/// A frame that is a message by itself (RFC 6455 §5.2).
struct Frame {
    opcode: u8,
    mask: Option<[u8; 4]>,
    payload: Vec<u8>,
}

impl Frame {
    async fn read(stream: &mut (impl AsyncReadExt + Unpin)) -> Result<Self> {
        let [first, second] = [stream.read_u8().await?, stream.read_u8().await?];
        ensure!(first & 0xf0 == 0x80, "not one whole message");
        let length = match second & 0x7f {
            126 => stream.read_u16().await?.into(),
            127 => stream.read_u64().await?,
            short => short.into(),
        };
        ensure!(length <= PAYLOAD_BYTES_MAX, "{length} bytes");
        let mask = if second & 0x80 == 0 {
            None
        } else {
            Some(stream.read_u32().await?.to_be_bytes())
        };
        let mut payload = vec![0; usize::try_from(length)?];
        stream.read_exact(&mut payload).await?;
        let opcode = first & 0x0f;
        Ok(Self {
            opcode,
            mask,
            payload: masked(payload, mask),
        })
    }

    async fn write(&self, stream: &mut (impl AsyncWriteExt + Unpin)) -> Result<()> {
        let mut bytes = vec![0x80 | self.opcode];
        let masks = u8::from(self.mask.is_some()) << 7;
        match self.payload.len() {
            short @ ..126 => bytes.push(masks | u8::try_from(short)?),
            middle @ ..65_536 => {
                bytes.push(masks | 126);
                bytes.extend(u16::try_from(middle)?.to_be_bytes());
            }
            long => {
                bytes.push(masks | 127);
                bytes.extend(u64::try_from(long)?.to_be_bytes());
            }
        }
        bytes.extend(self.mask.iter().flatten());
        bytes.extend(masked(self.payload.clone(), self.mask));
        Ok(stream.write_all(&bytes).await?)
    }
}

fn masked(mut payload: Vec<u8>, mask: Option<[u8; 4]>) -> Vec<u8> {
    if let Some(mask) = mask {
        (payload.iter_mut().zip(mask.iter().cycle())).for_each(|(byte, key)| *byte ^= key);
    }
    payload
}

/// RFC 8297: a hint is worth something only before the answer.
#[tokio::test(flavor = "multi_thread")]
async fn an_early_hint_is_early() {
    let Some(curl) = installed("curl") else {
        return;
    };
    let (release, mut released) = tokio::sync::watch::channel(false);
    released.mark_unchanged();
    let origin = Scripted::start(move |mut stream: TcpStream| {
        let mut released = released.clone();
        async move {
            read_head(&mut stream).await?;
            let hint =
                "HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload; as=style\r\n\r\n";
            stream.write_all(hint.as_bytes()).await?;
            released.wait_for(|released| *released).await?;
            let answer =
                "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 4\r\n\r\npage";
            Ok(stream.write_all(answer.as_bytes()).await?)
        }
    })
    .await;
    let cluster = started(Plan::alone(&origin.url())).await;
    let edge = &cluster.edges[0];
    let mut stream = TcpStream::connect(edge.http).await.unwrap();
    let request = format!("GET /page HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let hint = read_head(&mut stream).await.unwrap();
    assert!(hint.starts_with("http/1.1 103 "), "{hint}");
    assert!(
        hint.contains("link: </style.css>; rel=preload; as=style"),
        "{hint}"
    );
    release.send_replace(true);
    let answer = read_head(&mut stream).await.unwrap();
    assert!(answer.starts_with("http/1.1 200 "), "{answer}");
    // Who understands no interim answers is spared them (RFC 9110 §15.2).
    let old = format!("GET /other HTTP/1.0\r\nhost: {HOST}\r\n\r\n");
    let old = raw(edge.http, old.as_bytes()).await.unwrap();
    assert!(
        !old.windows(4).any(|w| w == b" 103"),
        "{}",
        String::from_utf8_lossy(&old)
    );

    let field = format!("Host: {HOST}");
    let url = edge.url("/by-curl");
    let said = ["-sv", "-H", &field, &url];
    let (_, words) = run(&curl, &said, &[]).await.unwrap();
    let hinted = words.find("< HTTP/1.1 103").expect("curl shows the hint");
    assert!(
        hinted < words.find("< HTTP/1.1 200").expect("and the answer"),
        "{words}"
    );
}

/// RFC 9110 §6.5: trailers of what is streamed through, for those who say that they want them.
#[tokio::test(flavor = "multi_thread")]
async fn trailers_reach_who_asks_for_them() {
    let Some(curl) = installed("curl") else {
        return;
    };
    let (origin, cluster) = alone().await;
    let answer = "HTTP/1.1 200 OK\r\ncache-control: no-store\r\ntrailer: x-sum\r\n\
                  transfer-encoding: chunked\r\nconnection: close\r\n\r\n\
                  5\r\nhello\r\n0\r\nx-sum: 42\r\n\r\n";
    origin.route("/sum", Script::Raw(answer.into()));
    let field = format!("Host: {HOST}");
    let url = cluster.edges[0].url("/sum");
    let said = ["-sS", "-D", "-", "-H", &field, "-H", "TE: trailers", &url];
    let (status, words) = run(&curl, &said, &[]).await.unwrap();
    assert!(status.success() && words.contains("hello"), "{words}");
    assert!(words.to_lowercase().contains("x-sum: 42"), "{words}");
}

/// An origin of bytes: does the same with every connection.
struct Scripted {
    address: SocketAddr,
    _accepting: JoinSet<()>,
}

impl Scripted {
    async fn start<F>(with: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(with(stream));
                while let Some(ended) = connections.try_join_next() {
                    if let Ok(Err(error)) = ended {
                        println!("scripted origin: {error:#}");
                    }
                }
            }
        });
        Self {
            address,
            _accepting: accepting,
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Longest head that is read.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// The head of a message, names and values in lower case.
async fn read_head(stream: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < HEAD_BYTES_MAX, "a head without end");
        head.push(stream.read_u8().await.context("a head that ends early")?);
    }
    Ok(String::from_utf8(head)?.to_lowercase())
}
