//! The one HTTP client of the control plane: what it asks of others (webhooks, key sets) goes out here, over TLS where the URL says so.
//! It knows nothing of what is asked. Every call has a bound on its time and on the bytes of its answer; redirects are answers like any
//! other, because a signed body belongs to the URL it was meant for.

use std::error::Error;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use axum::body::Bytes;
use axum::http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use axum::http::uri::Scheme;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};

use crate::secret::Secret;

/// The header that carries what [`sign`] makes.
pub const SIGNATURE: HeaderName = HeaderName::from_static("x-uringcast-signature");

/// Connections kept for the next call, per host; more than this many at once are rare, and opening one is a matter of milliseconds.
const IDLE_PER_HOST_MAX: usize = 16;

/// How long one is kept. Below the 5 s after which Node's server closes it, because a POST that meets the closing cannot be repeated.
const IDLE_TIME: Duration = Duration::from_secs(4);

/// Bytes of an answer's head, and of what is read ahead of a body.
const BUFFER_BYTES: usize = 64 * 1024;

/// An `http` or `https` URL with a host and without a user or password. Its shown form has no query, which may hold a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Url(Uri);

impl Url {
    /// True exactly when what is said there passes over a network in the clear, where it can be read and changed on the way.
    pub fn is_exposed(&self) -> bool {
        let host = self.0.host().unwrap_or_default();
        let is_here =
            host == "localhost" || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        self.0.scheme() != Some(&Scheme::HTTPS) && !is_here
    }
}

/// What is wrong with a URL.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UrlFault {
    /// Not a URL at all, or one without a host.
    #[error("must be a URL such as https://example.org/path")]
    Malformed,
    /// Another scheme, or none.
    #[error("must begin with http:// or https://")]
    Scheme,
    /// A user or a password before the host.
    #[error("must not contain a user or a password")]
    Credentials,
}

impl FromStr for Url {
    type Err = UrlFault;

    fn from_str(text: &str) -> Result<Url, UrlFault> {
        let uri = Uri::from_str(text).map_err(|_| UrlFault::Malformed)?;
        if ![&Scheme::HTTP, &Scheme::HTTPS].into_iter().any(|known| uri.scheme() == Some(known)) {
            return Err(UrlFault::Scheme);
        }
        match uri.authority() {
            Some(authority) if authority.as_str().contains('@') => Err(UrlFault::Credentials),
            Some(authority) if !authority.host().is_empty() => Ok(Url(uri)),
            _ => Err(UrlFault::Malformed),
        }
    }
}

impl Url {
    /// True exactly when it has a query, which its shown form lacks.
    pub fn has_query(&self) -> bool {
        self.0.query().is_some()
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, authority) = (self.0.scheme_str().unwrap_or_default(), self.0.authority().map_or("", |authority| authority.as_str()));
        write!(f, "{scheme}://{authority}{}", self.0.path())
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// What a call may cost.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// From the call to the last byte of the answer, connecting included.
    pub time: Duration,
    /// Bytes of the answer's body.
    pub answer_bytes: usize,
}

/// An answer, whatever its status.
#[derive(Clone, Debug)]
pub struct Reply {
    /// 200 and so on.
    pub status: StatusCode,
    /// As they came.
    pub headers: HeaderMap,
    /// All of it.
    pub body: Bytes,
}

/// Why there is no answer, by whose fault. None shows the URL or what was sent.
#[derive(Debug, thiserror::Error)]
pub enum OutboundFault {
    /// Nobody there, or no such name.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The other side is not whom the URL names, or nobody we trust says so.
    #[error("TLS: {0}")]
    Tls(String),
    /// The time was over.
    #[error("no answer in time")]
    Timeout,
    /// The body went on beyond the bound.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// The connection ended early, or what came is not HTTP.
    #[error("the answer broke off or is not HTTP")]
    Broken,
}

/// The client. Cheap to clone; all clones share their connections.
#[derive(Clone)]
pub struct Outbound {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Outbound {
    /// One that trusts the system's certificate authorities, or those of the file `SSL_CERT_FILE` or the folder `SSL_CERT_DIR`. Where there are
    /// none, calls over TLS fail and the others work.
    pub fn new() -> Outbound {
        let mut roots = RootCertStore::empty();
        let _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Outbound::trusting(roots)
    }

    fn trusting(roots: RootCertStore) -> Outbound {
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider's own suites are of both versions that are built in")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        // The schemes are the TLS connector's to check.
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIME)
            .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
            .http1_max_buf_size(BUFFER_BYTES)
            .build(connector);
        Outbound { client }
    }

    /// Sends a JSON text.
    pub async fn post_json(
        &self,
        url: &Url,
        body: impl Into<Bytes>,
        headers: &[(HeaderName, HeaderValue)],
        bounds: Bounds,
    ) -> Result<Reply, OutboundFault> {
        let mut request = request(Method::POST, url, body.into(), headers);
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.call(request, bounds).await
    }

    /// Fetches what is there.
    pub async fn get(&self, url: &Url, headers: &[(HeaderName, HeaderValue)], bounds: Bounds) -> Result<Reply, OutboundFault> {
        self.call(request(Method::GET, url, Bytes::new(), headers), bounds).await
    }

    async fn call(&self, request: Request<Full<Bytes>>, bounds: Bounds) -> Result<Reply, OutboundFault> {
        let whole = async {
            let (head, body) = self.client.request(request).await.map_err(|fault| fault_of(&fault))?.into_parts();
            let body = Limited::new(body, bounds.answer_bytes).collect().await.map_err(|fault| match fault.is::<LengthLimitError>() {
                true => OutboundFault::TooLarge(bounds.answer_bytes),
                false => OutboundFault::Broken,
            })?;
            Ok(Reply { status: head.status, headers: head.headers, body: body.to_bytes() })
        };
        tokio::time::timeout(bounds.time, whole).await.unwrap_or(Err(OutboundFault::Timeout))
    }
}

impl Default for Outbound {
    fn default() -> Outbound {
        Outbound::new()
    }
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound").finish_non_exhaustive()
    }
}

fn request(method: Method, url: &Url, body: Bytes, headers: &[(HeaderName, HeaderValue)]) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = url.0.clone();
    let own = [
        (USER_AGENT, HeaderValue::from_static(concat!("uringcast/", env!("CARGO_PKG_VERSION")))),
        (ACCEPT, HeaderValue::from_static("application/json")),
    ];
    request.headers_mut().extend(own.into_iter().chain(headers.iter().cloned()));
    request
}

/// Whose fault it was, which the deepest cause tells.
fn fault_of(fault: &legacy::Error) -> OutboundFault {
    let mut deepest: &(dyn Error + 'static) = fault;
    while let Some(cause) = cause_of(deepest) {
        deepest = cause;
    }
    match deepest.downcast_ref::<rustls::Error>() {
        Some(tls) => OutboundFault::Tls(tls.to_string()),
        None if fault.is_connect() => OutboundFault::Connect(deepest.to_string()),
        None => OutboundFault::Broken,
    }
}

/// An I/O error's `source` is that of what it wraps, and so passes over the very error that says what was wrong.
fn cause_of<'a>(fault: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match fault.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => fault.source(),
    }
}

/// The value of [`SIGNATURE`] for a body sent now: `t=UNIXSECONDS,v1=HEX`, HEX being HMAC-SHA256 of `t.body`. The receiver who has the secret
/// knows by it who sent the body, and when.
pub fn sign(secret: &Secret, unix_s: u64, body: &[u8]) -> HeaderValue {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret.reveal()));
    context.update(format!("{unix_s}.").as_bytes());
    context.update(body);
    let mut value = format!("t={unix_s},v1=");
    for byte in context.sign().as_ref() {
        value.push_str(&format!("{byte:02x}"));
    }
    HeaderValue::from_str(&value).expect("digits and letters make a header")
}

#[cfg(test)]
mod tests;
