//! Origins over TLS, by real handshakes.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
};

use cluster::net::SystemNet;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use super::*;

/// For `localhost`, made for this test and worth nothing elsewhere:
/// `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500
/// -subj /CN=localhost -addext subjectAltName=DNS:localhost
/// -addext basicConstraints=critical,CA:FALSE`
const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBkzCCATigAwIBAgIUZq6S2gLlyxAk9oG6PdALalB5rJkwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMzIyMDEyOVoYDzIxMjYxMDMw
MjIwMTI5WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAStbUZtUeO6zQVFRxMKhxrDWxN+lzfmtrZPhWf/VfdiEYiPM0iVStd8
C6YZOixEH6H0hOwYCssopkD+45fk9vJRo2YwZDAdBgNVHQ4EFgQU7wq6c1DUYD1M
oA27i9flYpU2Y38wHwYDVR0jBBgwFoAU7wq6c1DUYD1MoA27i9flYpU2Y38wFAYD
VR0RBA0wC4IJbG9jYWxob3N0MAwGA1UdEwEB/wQCMAAwCgYIKoZIzj0EAwIDSQAw
RgIhAP45gGr3CTPR4gAuLlrTp4IZeYbasCT8IfJOVOkN6tRsAiEA5xFIk7nuEFUF
v4ItCV0pXG7BehM4ggCwb9lXNVi3OnQ=
-----END CERTIFICATE-----
";
const PRIVATE_KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgQiei5FmVaA1OZP2J
aIdRRvw/4Lvxt12/PphfeagGpiihRANCAAStbUZtUeO6zQVFRxMKhxrDWxN+lzfm
trZPhWf/VfdiEYiPM0iVStd8C6YZOixEH6H0hOwYCssopkD+45fk9vJR
-----END PRIVATE KEY-----
";

/// A TLS server that answers each of `connections` with the name it was called by.
fn tls_server(connections: usize) -> u16 {
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(PRIVATE_KEY.as_bytes()).unwrap(),
        )
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = Arc::new(config);
    std::thread::spawn(move || {
        for _ in 0..connections {
            let (stream, _) = listener.accept().unwrap();
            let tls = ServerConnection::new(config.clone()).unwrap();
            let mut stream = StreamOwned::new(tls, stream);
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                match stream.read_exact(&mut byte) {
                    Ok(()) => request.extend(byte),
                    Err(_) => break,
                }
            }
            let name = stream.conn.server_name().unwrap_or("none").to_owned();
            let length = name.len();
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{name}"
            );
        }
    });
    port
}

fn trusting(roots: RootCertStore) -> Pool {
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let https = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls);
    let tcp = Tcp(Arc::new(SystemNet));
    let https = https.https_or_http().enable_http1().wrap_connector(tcp);
    Pool::over(https, Arc::new(SystemNet))
}

async fn body_of(pool: &Pool, url: &str) -> Result<Bytes, String> {
    let limit = Duration::from_secs(20);
    let patience = Patience {
        connect: limit,
        head: limit,
    };
    let request = || {
        let mut request = get(url, HeaderMap::new()).unwrap();
        // What the request says of the host is not what the certificate is for.
        request
            .headers_mut()
            .insert("host", "www.example.com".try_into().unwrap());
        Ok::<_, String>(request)
    };
    Ok(pool
        .document(request, patience, 1000, Instant::now() + limit)
        .await?
        .body)
}

#[tokio::test]
async fn an_https_origin_is_called_by_the_name_in_its_url_and_must_prove_it() {
    let port = tls_server(3);
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap())
        .unwrap();
    let pool = trusting(roots);
    let url = format!("https://localhost:{port}/");
    assert_eq!(body_of(&pool, &url).await.unwrap(), "localhost");
    // Another name, and an authority that nobody trusts.
    let other = body_of(&pool, &format!("https://127.0.0.1:{port}/"))
        .await
        .unwrap_err();
    assert!(other.starts_with("fails the TLS handshake"), "{other}");
    let stranger = body_of(&Pool::new(Arc::new(SystemNet)), &url)
        .await
        .unwrap_err();
    assert!(
        stranger.starts_with("fails the TLS handshake"),
        "{stranger}"
    );
}
