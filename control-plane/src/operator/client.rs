//! One call of the admin API at a time, over TCP or a Unix socket, each on a connection of its own. Every wait and every answer has a bound.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::http::admin::{HOSTS_MISSING, INCOMPLETE};
use crate::settings::{Access, ControlListen};

/// Time to connect. The server is on this host as a rule, and elsewhere not far.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// Time to answer what waits for nothing: half as much again as the server takes at most.
const ANSWER_TIME: Duration = Duration::from_secs(15);

/// Bytes of an answer. A page of 1,000 connections, each in 100 rooms with names of 255 bytes, has half as many.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("no server reached at {place}: {fault}{hint}")]
    Unreachable { place: String, fault: io::Error, hint: &'static str },
    #[error("{0} does not answer")]
    Silent(String),
    #[error("what answers at {place} is not a uringcast server: {fault}")]
    Strange { place: String, fault: String },
    #[error("{0}")]
    Unauthorized(String),
    #[error("the server refuses: {0}")]
    Refused(String),
    #[error("{0}")]
    Incomplete(String),
    #[error("{0}")]
    Usage(String),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

impl Fault {
    /// See the table of [`super`].
    pub(super) fn exit_status(&self) -> u8 {
        match self {
            Fault::Refused(_) | Fault::Output(_) => 1,
            Fault::Usage(_) => 2,
            Fault::Unreachable { .. } | Fault::Silent(_) | Fault::Strange { .. } => 69,
            Fault::Incomplete(_) => 75,
            Fault::Unauthorized(_) => 77,
        }
    }
}

/// What is asked.
pub(super) struct Call {
    pub(super) method: Method,
    /// Percent-encoded, with its query.
    pub(super) path: String,
    /// JSON.
    pub(super) body: Option<String>,
    /// How long the server itself may wait for something.
    pub(super) wait: Duration,
}

impl Call {
    pub(super) fn new(method: Method, path: String) -> Call {
        Call { method, path, body: None, wait: Duration::ZERO }
    }
}

/// What was answered, with a status that says it went well.
#[derive(Debug)]
pub(super) struct Reply {
    /// JSON.
    pub(super) text: String,
    /// What did not answer in time.
    pub(super) missing: Missing,
}

/// What did not answer in time.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Missing {
    /// Shards of the server that was asked.
    pub(super) shards: u64,
    /// Other servers of its fleet.
    pub(super) hosts: u64,
}

/// Asks one server.
pub(super) struct Client {
    access: Access,
    runtime: Runtime,
}

impl Client {
    pub(super) fn new(access: Access) -> Result<Client, Fault> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Client { access, runtime })
    }

    /// One call, and an answer that says it went well.
    pub(super) fn call(&self, call: Call) -> Result<Reply, Fault> {
        let limit = ANSWER_TIME + call.wait;
        let (status, missing, text) = self.runtime.block_on(async {
            let asked = timeout(limit, self.ask(call)).await;
            asked.unwrap_or_else(|_| Err(Fault::Silent(self.place())))
        })?;
        if status.is_success() {
            return Ok(Reply { text, missing });
        }
        let document = serde_json::from_str::<serde_json::Value>(&text).ok();
        let Some(detail) = document.as_ref().and_then(|it| it["detail"].as_str()) else {
            return Err(self.strange(&format!("it says {status}")));
        };
        Err(match status {
            StatusCode::UNAUTHORIZED => Fault::Unauthorized(self.unauthorized(detail)),
            StatusCode::SERVICE_UNAVAILABLE => Fault::Incomplete(detail.to_owned()),
            _ => Fault::Refused(detail.to_owned()),
        })
    }

    /// What answers is not what was expected.
    pub(super) fn strange(&self, fault: &impl ToString) -> Fault {
        Fault::Strange { place: self.place(), fault: fault.to_string() }
    }

    fn unauthorized(&self, detail: &str) -> String {
        let shown = match &self.access.token_from {
            Some(source) => format!("the one shown is from {source}"),
            None => "none was found: set the variable ADMIN_TOKEN, or control.token_file in the configuration (--config FILE)".to_owned(),
        };
        format!("the server refuses the admin token ({detail}); {shown}")
    }

    fn place(&self) -> String {
        match &self.access.listen {
            ControlListen::Tcp(address) => format!("{} ({})", reachable(*address), self.access.listen_from),
            ControlListen::Unix(path) => format!("unix:{} ({})", path.display(), self.access.listen_from),
        }
    }

    async fn ask(&self, call: Call) -> Result<(StatusCode, Missing, String), Fault> {
        match &self.access.listen {
            ControlListen::Tcp(address) => {
                let stream = self.connected(TcpStream::connect(reachable(*address))).await?;
                self.exchange(stream, call).await
            }
            ControlListen::Unix(path) => {
                let stream = self.connected(UnixStream::connect(path)).await?;
                self.exchange(stream, call).await
            }
        }
    }

    async fn connected<S>(&self, connecting: impl Future<Output = io::Result<S>>) -> Result<S, Fault> {
        let connected = timeout(CONNECT_TIME, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        connected.map_err(|fault| {
            let hint = match fault.kind() {
                io::ErrorKind::PermissionDenied => "; its owner and group may use it",
                _ => "; say where with --control ADDRESS or URINGCAST_CONTROL_LISTEN, or with --config FILE",
            };
            Fault::Unreachable { place: self.place(), fault, hint }
        })
    }

    async fn exchange<S>(&self, stream: S, call: Call) -> Result<(StatusCode, Missing, String), Fault>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|fault| self.strange(&fault))?;
        let request = self.request(call)?;
        let driven = tokio::spawn(connection);
        let answered = sender.send_request(request).await.map_err(|fault| self.strange(&fault))?;
        let number = |name| answered.headers().get(name).and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0);
        let missing = Missing { shards: number(INCOMPLETE), hosts: number(HOSTS_MISSING) };
        let status = answered.status();
        let body = Limited::new(answered.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|fault| self.strange(&fault))?;
        driven.abort();
        let text = String::from_utf8(body.to_bytes().into()).map_err(|fault| self.strange(&fault))?;
        Ok((status, missing, text))
    }

    fn request(&self, call: Call) -> Result<Request<Full<Bytes>>, Fault> {
        let mut request = Request::builder().method(call.method).uri(call.path).header(header::HOST, "uringcast");
        if call.body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(token) = &self.access.token {
            let mut value = HeaderValue::from_bytes(&[b"Bearer ", token.reveal()].concat()).map_err(|fault| self.strange(&fault))?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        request.body(Full::new(call.body.unwrap_or_default().into())).map_err(|fault| self.strange(&fault))
    }
}

/// Where a listener of this host is reached: the unspecified address stands for all there are.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
