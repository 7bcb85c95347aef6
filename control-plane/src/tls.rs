//! TLS to etcd, and of the commands to a control plane: whose certificates are believed, and with which one we
//! come. The only place in this crate that names rustls.

use std::{fmt, sync::Arc};

use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

/// What TLS is made with, as PEM.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Whose certificates are believed; absent: those of the public authorities.
    pub ca: Option<Vec<u8>>,
    /// The certificate with which we come, and its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

/// Why it cannot be made: in which file, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnusableTls {
    /// With the certificates that are believed.
    Ca(String),
    /// With our own.
    Certificate(String),
    /// With its key.
    Key(String),
}

impl Tls {
    /// Whether it can be made.
    ///
    /// # Errors
    ///
    /// It cannot.
    pub fn check(&self) -> Result<(), UnusableTls> {
        self.client().map(drop)
    }

    fn client(&self) -> Result<ClientConfig, UnusableTls> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| UnusableTls::Ca(error.to_string()))?;
        let builder = match &self.ca {
            None => builder.with_webpki_roots(),
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(pem).map_err(UnusableTls::Ca)? {
                    let added = roots.add(certificate);
                    added.map_err(|error| UnusableTls::Ca(error.to_string()))?;
                }
                builder.with_root_certificates(roots)
            }
        };
        let Some((chain, key)) = &self.identity else {
            return Ok(builder.with_no_client_auth());
        };
        let chain = certificates(chain).map_err(UnusableTls::Certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key);
        let key = key.map_err(|error| UnusableTls::Key(format!("no key in PEM: {error}")))?;
        builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| UnusableTls::Key(error.to_string()))
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err("no certificate in PEM".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("no certificate in PEM: {error}")),
    }
}

/// Has a connector speak TLS where a URL says `https`. Without `tls`, the public
/// authorities are believed.
pub(crate) fn over<C>(connector: C, tls: Option<&Tls>) -> HttpsConnector<C> {
    let public = Tls::default();
    let client = tls.unwrap_or(&public).client();
    let client = client.expect("it was checked before");
    HttpsConnectorBuilder::new()
        .with_tls_config(client)
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector)
}
