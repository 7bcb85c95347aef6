//! A directory as a site.

use std::{
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use super::{
    Seen,
    answer::{Answer, not_found},
};

/// A directory as a site: files with ETag, Last-Modified and types, `index.html` for a directory.
#[derive(Clone, Debug)]
pub struct Directory {
    /// The root; nothing above it is served.
    pub root: PathBuf,
    /// `Cache-Control` of a file, by the path in the request.
    pub cache_control: fn(&str) -> Option<&'static str>,
}

impl Directory {
    pub(super) async fn find(&self, seen: &Seen) -> Answer {
        if !matches!(seen.method.as_str(), "GET" | "HEAD") {
            return Answer::status(405).field("allow", "GET, HEAD");
        }
        let Some(relative) = relative_path(seen.path()) else {
            return not_found();
        };
        let mut file = self.root.join(relative);
        if seen.path().ends_with('/') {
            file.push("index.html");
        }
        let Ok(meta) = tokio::fs::metadata(&file).await else {
            return not_found();
        };
        if meta.is_dir() {
            return Answer::status(301).field("location", format!("{}/", seen.path()));
        }
        let modified = meta.modified().unwrap_or(UNIX_EPOCH);
        let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut answer = Answer::file(file.clone(), meta.len())
            .field("content-type", content_type(&file))
            .field(
                "etag",
                format!("\"{:x}-{:x}\"", since.as_millis(), meta.len()),
            )
            .field("last-modified", httpdate::fmt_http_date(modified))
            .field("accept-ranges", "bytes");
        if let Some(value) = (self.cache_control)(seen.path()) {
            answer = answer.field("cache-control", value);
        }
        answer
    }
}

/// The file below a root that a request's path names; `None` for what would leave the root.
fn relative_path(path: &str) -> Option<PathBuf> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let pair = [rest.next()?, rest.next()?];
            let text = std::str::from_utf8(&pair).ok()?;
            bytes.push(u8::from_str_radix(text, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    let text = String::from_utf8(bytes).ok()?;
    let mut relative = PathBuf::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => return None,
            _ if part.contains('\0') => return None,
            _ => relative.push(part),
        }
    }
    Some(relative)
}

fn content_type(file: &Path) -> &'static str {
    match file
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default()
    {
        "html" => "text/html; charset=utf-8",
        "css" => "text/css",
        "js" => "text/javascript",
        "json" => "application/json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "txt" | "md" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{
        client::{Client, raw},
        origin::Origin,
    };

    #[tokio::test]
    async fn a_directory_is_served_with_validators_ranges_and_404() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a b")).unwrap();
        std::fs::write(dir.path().join("a b/index.html"), "<p>hello</p>").unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        let directory = Directory {
            root: dir.path().join("a b"),
            cache_control: |_| Some("max-age=60"),
        };
        let at = (Ipv4Addr::LOCALHOST, 0).into();
        let origin = Origin::start_at(at, Some(directory)).await.unwrap();
        let client = Client::new();
        let page = client.get(&format!("{}/", origin.url())).await.unwrap();
        assert_eq!((page.status, &page.body[..]), (200, &b"<p>hello</p>"[..]));
        assert_eq!(page.field("content-type"), Some("text/html; charset=utf-8"));
        let tag = page.field("etag").unwrap();
        let url = format!("{}/index.html", origin.url());
        let again = client
            .get_with(&url, &[("if-none-match", tag)])
            .await
            .unwrap();
        assert_eq!((again.status, again.body.len()), (304, 0));
        let part = client
            .get_with(&url, &[("range", "bytes=3-7")])
            .await
            .unwrap();
        assert_eq!((part.status, &part.body[..]), (206, &b"hello"[..]));
        for missing in ["/none", "/%2e%2e/secret", "/../secret"] {
            let answer = raw(
                origin.address(),
                format!("GET {missing} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
                    .as_bytes(),
            )
            .await
            .unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 404 "), "{missing}");
        }
        assert_eq!(origin.seen("/index.html").len(), 2);
    }
}
