//! How a command asks a running control plane.

use std::{io::Read, path::PathBuf, time::Duration};

use anyhow::{Context, anyhow, bail};
use axum::http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use bytes::Bytes;
use clap::Args;
use cluster::wire::{ErrorAnswer, PEERS, PURGES, SITES};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::de::DeserializeOwned;

use super::print;
use crate::{
    config::{API_CA_VARIABLE, API_VARIABLE, TOKEN_FILE_VARIABLE, TOKEN_VARIABLE},
    tls::{self, Tls, UnusableTls},
    tokens::Secret,
};

/// How long a control plane may take to answer a command.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer a command reads: ten thousand generous sites.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Most bytes of a token's file that are read: a token is shorter.
const TOKEN_FILE_BYTES_MAX: u64 = 1024;
/// Most bytes of a file with certificates that are read: some hundred authorities.
const CA_BYTES_MAX: u64 = 1 << 20;
/// What else it may be over TLS.
const TLS_HINT: &str =
    "; --api-ca says whose certificates to believe, if not the public authorities'";

#[derive(Debug, Args)]
pub(super) struct Asking {
    /// Where the control plane is.
    #[arg(
        long,
        env = API_VARIABLE,
        default_value = "http://127.0.0.1:7900"
    )]
    pub(super) api: String,
    /// A file with certificates (PEM) to believe over https://, in place of the public authorities.
    #[arg(long, env = API_CA_VARIABLE, value_name = "FILE")]
    api_ca: Option<PathBuf>,
    /// The token to ask with; in the environment it is seen by nobody else.
    #[arg(long, env = TOKEN_VARIABLE, hide = true, hide_env_values = true)]
    token: Option<Secret>,
    /// A file with the token to ask with, in place of CONTROL_PLANE_TOKEN.
    #[arg(long, env = TOKEN_FILE_VARIABLE, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The answer as JSON, for scripts.
    #[arg(long)]
    pub(super) json: bool,
}

impl Asking {
    /// Asks for `path` and prints the answer: as it is, or as `table` tells it.
    pub(super) fn tell<T: DeserializeOwned>(
        &self,
        path: &str,
        table: impl FnOnce(T) -> String,
    ) -> anyhow::Result<()> {
        print(&self.told(path, table)?)
    }

    /// What [`Asking::tell`] prints.
    pub(super) fn told<T: DeserializeOwned>(
        &self,
        path: &str,
        table: impl FnOnce(T) -> String,
    ) -> anyhow::Result<String> {
        let body = self.ask(path)?;
        if self.json {
            let mut text = String::from_utf8(body.to_vec()).context("the answer is not text")?;
            text.push('\n');
            return Ok(text);
        }
        let answer = serde_json::from_slice(&body)
            .with_context(|| format!("{} did not answer as a control plane does", self.api))?;
        Ok(table(answer))
    }

    pub(super) fn ask(&self, path: &str) -> anyhow::Result<Bytes> {
        self.send(Method::GET, path, Bytes::new())
    }

    /// The token to ask with; the file is closer to the command than the environment.
    fn token(&self) -> anyhow::Result<Option<Secret>> {
        let Some(path) = &self.token_file else {
            return Ok(self.token.clone());
        };
        let token = std::fs::File::open(path).and_then(|file| {
            let mut text = String::new();
            file.take(TOKEN_FILE_BYTES_MAX).read_to_string(&mut text)?;
            Ok(Secret::from(text.trim().to_owned()))
        });
        let token = token.with_context(|| format!("--token-file: {}", path.display()))?;
        Ok(Some(token))
    }

    /// Whom to believe over TLS.
    fn tls(&self) -> anyhow::Result<Tls> {
        let Some(path) = &self.api_ca else {
            return Ok(Tls::default());
        };
        let told = || format!("--api-ca: {}", path.display());
        let mut pem = Vec::new();
        let file = std::fs::File::open(path).with_context(told)?;
        file.take(CA_BYTES_MAX)
            .read_to_end(&mut pem)
            .with_context(told)?;
        let tls = Tls {
            ca: Some(pem),
            identity: None,
        };
        match tls.check() {
            Ok(()) => Ok(tls),
            Err(UnusableTls::Ca(reason)) => Err(anyhow!(reason)).with_context(told),
            Err(UnusableTls::Certificate(_) | UnusableTls::Key(_)) => {
                unreachable!("there is neither")
            }
        }
    }

    /// Sends a request, with a body of JSON if it has one, and gives the body of a good answer.
    pub(super) fn send(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Bytes> {
        self.send_with(method, path, &[], body)
    }

    /// The same with more fields.
    pub(super) fn send_with(
        &self,
        method: Method,
        path: &str,
        fields: &[(HeaderName, String)],
        body: Bytes,
    ) -> anyhow::Result<Bytes> {
        let given = self.api.trim_end_matches('/');
        // `host:port` can mean one thing only.
        let api = match given.contains("://") {
            true => given.to_owned(),
            false => format!("http://{given}"),
        };
        let uri: Uri = format!("{api}{path}")
            .parse()
            .with_context(|| format!("{api:?} is not a URL"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            bail!(
                "{api:?} must begin with http://, which is what a control plane speaks, or with https:// where \
                 something before it speaks TLS"
            );
        }
        let tls = self.tls()?;
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::CONTENT_TYPE, "application/json");
        for (name, value) in fields {
            request = request.header(name, value);
        }
        if let Some(token) = self.token()? {
            let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.reveal()))
                .map_err(|_| anyhow!("the token is not one: it holds strange characters"))?;
            bearer.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, bearer);
        }
        let request = request.body(Full::new(body))?;
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(async {
                tokio::time::timeout(ANSWER_TIMEOUT, fetch(request, &tls))
                    .await
                    .map_err(|_| anyhow!("no answer within {ANSWER_TIMEOUT:?}"))?
            })
            .with_context(|| format!("control plane at {api}"))
    }
}

async fn fetch(request: Request<Full<Bytes>>, tls: &Tls) -> anyhow::Result<Bytes> {
    let mut plain = HttpConnector::new();
    plain.enforce_http(false);
    let client = Client::builder(TokioExecutor::new()).build(tls::over(plain, Some(tls)));
    let path = request.uri().path().to_owned();
    let is_https = request.uri().scheme_str() == Some("https");
    let answer = client
        .request(request)
        .await
        .map_err(|error| match is_https {
            true => innermost(&error, TLS_HINT),
            false => innermost(&error, ""),
        })?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| anyhow!("the answer broke off: {error}"))?
        .to_bytes();
    if status.is_success() {
        return Ok(body);
    }
    match serde_json::from_slice::<ErrorAnswer>(&body) {
        Ok(answer) => bail!("{} ({status}){}", answer.error, next_step(status, &path)),
        Err(_) => bail!("answered {status}; --api says where a control plane is: is that one?"),
    }
}

/// What to do about a refusal that does not say it itself.
fn next_step(status: StatusCode, path: &str) -> &'static str {
    match status {
        StatusCode::NOT_FOUND if path.starts_with(PEERS) => "; `control-plane nodes` lists them",
        StatusCode::NOT_FOUND if path.starts_with(PURGES) => {
            "; `control-plane purges list` and `control-plane sites list` say what there is"
        }
        StatusCode::NOT_FOUND if path.starts_with(SITES) => {
            "; `control-plane sites list` lists them"
        }
        StatusCode::METHOD_NOT_ALLOWED => "; is the control plane older than this command?",
        _ => "",
    }
}

/// What really happened is at the end of a chain of "error trying to …".
fn innermost(error: &(dyn std::error::Error + 'static), hint: &str) -> anyhow::Error {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    anyhow!(
        "cannot be reached: {cause}; does it run? --api or {API_VARIABLE} says where it is{hint}"
    )
}
