//! The link to Redis: the one file that knows its client library. It owns two connections, one for commands and one for subscriptions,
//! tells what Redis says by itself in order, and whether Redis answers. It knows nothing of rooms, and does not come back by itself when a
//! connection is lost: who uses it hears so and makes a new one.
//!
//! The sockets are opened here and given to the library, which adds the protocol: so what is read can be bounded ([`super::guard`]),
//! TLS uses the configuration that is meant, and no file is read.

use std::fmt;
use std::future::{Future, pending};
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, ConnectionAddr, IntoConnectionInfo, Pipeline, ProtocolVersion, PushInfo, PushKind};
use redis::{RedisConnectionInfo, RedisError, Value};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::cluster::Cluster;
use super::guard::Guard;
use super::request::{Call, Ended, Kind, Lost, Push, Reply, Request, Unheard};
use super::slots::NodeAddress;
use crate::limits::{
    REDIS_BACKOFF_MS, REDIS_CONNECT_MS, REDIS_LOOK_MS, REDIS_LOST_MS, REDIS_PUSH_BYTES, REDIS_PUSHES_BYTES_MAX, REDIS_REQUESTS_BYTES_MAX,
    REDIS_REQUESTS_MAX, REDIS_SENTINEL_LOOK_MS, REDIS_SENTINEL_MS, REDIS_SILENT_LOOKS,
};

/// A text that is shown to nobody.
#[derive(Clone, PartialEq, Eq)]
struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Certificates for `rediss://`, as bytes: who embeds the engine reads the files.
#[derive(Clone, Default)]
pub struct Certificates {
    /// The system's authorities, in DER. They count where `authority_pem` says nothing.
    pub system_der: Vec<Vec<u8>>,
    /// The authorities that sign Redis' certificate, in PEM, instead of the system's.
    pub authority_pem: Option<Vec<u8>>,
    /// A certificate chain and its key, both in PEM, for a Redis that asks for them.
    pub client_pem: Option<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

/// Where Redis is, as an operator writes it. A URL is `redis://[user:password@]host[:port][/database]`, `rediss://` for TLS, or
/// `unix:///path[?db=&user=&pass=]`.
#[derive(Clone, PartialEq, Eq)]
pub enum Servers {
    /// One server.
    Single(String),
    /// Sentinels, who know where the master is.
    Sentinel {
        /// Their URLs, with what they want as user and password.
        sentinels: Vec<String>,
        /// What they call the master.
        master: String,
        /// How to talk to the master: scheme, user, password and database count, the host does not.
        node: String,
    },
    /// Some nodes of a cluster.
    Cluster(Vec<String>),
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Single(_) => "Single(…)",
            Self::Sentinel { .. } => "Sentinel(…)",
            Self::Cluster(_) => "Cluster(…)",
        })
    }
}

/// What is wrong with an address. It never repeats the URL, which may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressFault {
    /// Not a URL of Redis.
    #[error("not a URL of the form redis://[user:password@]host[:port][/database], rediss://… or unix:///path")]
    Url,
    /// Asks not to look at certificates.
    #[error("#insecure is not supported: give the authority's certificate")]
    Insecure,
    /// A list of servers without any.
    #[error("no server is named")]
    Nobody,
    /// A cluster has only one database, and its nodes are on the network.
    #[error("a cluster's node has no database number and no Unix socket")]
    ClusterNode,
    /// A certificate or key that cannot be read.
    #[error("a certificate or key is not readable PEM, or they do not belong together")]
    Certificate,
    /// TLS without anybody to trust.
    #[error("TLS, but no authority is trusted")]
    NoAuthority,
}

/// Where Redis is, checked.
#[derive(Clone, Debug)]
pub struct Address {
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Single(Node),
    Sentinel { sentinels: Vec<Node>, master: String, node: Node },
    Cluster(Vec<Node>),
}

/// One server, and how to talk to it.
#[derive(Clone, Debug)]
pub(super) struct Node {
    at: At,
    tls: Option<Tls>,
    user: Option<String>,
    password: Option<Secret>,
    database: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum At {
    Tcp(String, u16),
    Unix(PathBuf),
}

#[derive(Clone)]
struct Tls(Arc<rustls::ClientConfig>);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Address {
    /// Checks what an operator wrote.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it.
    pub fn new(servers: &Servers, certificates: &Certificates) -> Result<Self, AddressFault> {
        let place = match servers {
            Servers::Single(url) => Place::Single(Node::new(url, certificates)?),
            Servers::Sentinel { sentinels, master, node } => {
                Place::Sentinel { sentinels: nodes(sentinels, certificates)?, master: master.clone(), node: Node::new(node, certificates)? }
            }
            Servers::Cluster(urls) => {
                let nodes = nodes(urls, certificates)?;
                if nodes.iter().any(|node| node.database != 0 || matches!(node.at, At::Unix(_))) {
                    return Err(AddressFault::ClusterNode);
                }
                Place::Cluster(nodes)
            }
        };
        Ok(Self { place })
    }

    /// True exactly when it is a cluster: an atomic request then concerns one slot only.
    pub fn is_cluster(&self) -> bool {
        matches!(self.place, Place::Cluster(_))
    }
}

fn nodes(urls: &[String], certificates: &Certificates) -> Result<Vec<Node>, AddressFault> {
    if urls.is_empty() {
        return Err(AddressFault::Nobody);
    }
    urls.iter().map(|url| Node::new(url, certificates)).collect()
}

impl Node {
    fn new(url: &str, certificates: &Certificates) -> Result<Self, AddressFault> {
        // TLS is ours and not the library's, which is built without it.
        let (url, is_tls) = match url.strip_prefix("rediss://") {
            Some(rest) => (format!("redis://{rest}"), true),
            None => (url.to_owned(), false),
        };
        if url.ends_with("#insecure") {
            return Err(AddressFault::Insecure);
        }
        let info = url.into_connection_info().map_err(|_| AddressFault::Url)?;
        let at = match info.addr() {
            ConnectionAddr::Tcp(host, port) => At::Tcp(host.clone(), *port),
            ConnectionAddr::Unix(path) => At::Unix(path.clone()),
            _ => return Err(AddressFault::Url),
        };
        let settings = info.redis_settings();
        Ok(Self {
            at,
            tls: is_tls.then(|| tls(certificates)).transpose()?,
            user: settings.username().map(str::to_owned),
            password: settings.password().map(|password| Secret(password.to_owned())),
            database: settings.db(),
        })
    }

    /// Its host and port; a Unix socket has none, but no cluster has one.
    pub(super) fn address(&self) -> NodeAddress {
        match &self.at {
            At::Tcp(host, port) => (host.clone(), *port),
            At::Unix(_) => (String::new(), 0),
        }
    }

    /// Another server that is talked to in the same way.
    pub(super) fn elsewhere(&self, address: &NodeAddress) -> Self {
        Self { at: At::Tcp(address.0.clone(), address.1), ..self.clone() }
    }

    fn settings(&self, protocol: ProtocolVersion) -> RedisConnectionInfo {
        // Redis 7.0 does not know how to be told the library's name, and a narrow user may not tell it.
        let mut settings = RedisConnectionInfo::default().set_protocol(protocol).set_db(self.database).set_skip_set_lib_name();
        if let Some(user) = &self.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &self.password {
            settings = settings.set_password(&password.0);
        }
        settings
    }
}

/// aws-lc is named, so that another provider in an embedding program's tree does not come in here.
fn tls(certificates: &Certificates) -> Result<Tls, AddressFault> {
    let mut roots = rustls::RootCertStore::empty();
    match &certificates.authority_pem {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|_| AddressFault::Certificate)?;
                roots.add(certificate).map_err(|_| AddressFault::Certificate)?;
            }
        }
        // A system may have one that nobody can read any more.
        None => drop(roots.add_parsable_certificates(certificates.system_der.iter().map(|der| CertificateDer::from(der.clone())))),
    }
    if roots.is_empty() {
        return Err(AddressFault::NoAuthority);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| AddressFault::Certificate)?
        .with_root_certificates(roots);
    let config = match &certificates.client_pem {
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>().map_err(|_| AddressFault::Certificate)?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| AddressFault::Certificate)?;
            builder.with_client_auth_cert(chain, key).map_err(|_| AddressFault::Certificate)?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Tls(Arc::new(config)))
}

/// Why there is no link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkFault {
    /// Nobody is there, or TLS fails; what the system or TLS says.
    #[error("Redis cannot be reached: {0}")]
    Unreachable(String),
    /// It took longer than [`REDIS_CONNECT_MS`].
    #[error("Redis took too long to answer")]
    Slow,
    /// User or password are wrong, or it cannot speak RESP3 (Redis before 6); its words.
    #[error("Redis refuses us: {0}")]
    Refused(String),
    /// The sentinels know no master of that name, or the one they name does not say that it is one.
    #[error("no sentinel knows a master")]
    NoMaster,
}

/// Messages and events on their way to who takes them.
pub(super) struct Funnel {
    sender: mpsc::UnboundedSender<Push>,
    backlog: Arc<Backlog>,
}

/// What is in the funnel. Apart from it, so that who takes does not keep open what he waits for.
#[derive(Default)]
struct Backlog {
    /// Of messages that have not been taken.
    bytes: AtomicUsize,
    /// Messages thrown away because there were too many.
    dropped: AtomicU64,
}

impl Funnel {
    /// False when there is no room for it.
    fn message(&self, push: Push) -> bool {
        let bytes = cost(&push);
        if self.backlog.bytes.load(Ordering::Relaxed) + bytes > REDIS_PUSHES_BYTES_MAX {
            self.backlog.dropped.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        self.backlog.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.tell(push);
        true
    }

    pub(super) fn tell(&self, push: Push) {
        // Whoever dropped the receiver wants to hear no more.
        let _ = self.sender.send(push);
    }
}

/// What a push takes from the bound. What is told of the link itself costs nothing: it is little, and must be heard.
fn cost(push: &Push) -> usize {
    match push {
        Push::Message { channel, pattern, payload, .. } => {
            REDIS_PUSH_BYTES + channel.len() + pattern.as_ref().map_or(0, Vec::len) + payload.len()
        }
        _ => 0,
    }
}

/// What Redis says by itself, in its order.
pub struct Pushes {
    receiver: mpsc::UnboundedReceiver<Push>,
    backlog: Arc<Backlog>,
}

impl fmt::Debug for Pushes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pushes").finish_non_exhaustive()
    }
}

impl Pushes {
    /// The next; `None` after [`Push::Gone`] and when the link was dropped. It can be dropped while it waits: nothing is lost.
    pub async fn next(&mut self) -> Option<Push> {
        let push = self.receiver.recv().await?;
        self.backlog.bytes.fetch_sub(cost(&push), Ordering::Relaxed);
        Some(push)
    }

    /// The next, if it is there already.
    pub fn try_next(&mut self) -> Option<Push> {
        let push = self.receiver.try_recv().ok()?;
        self.backlog.bytes.fetch_sub(cost(&push), Ordering::Relaxed);
        Some(push)
    }

    /// Bytes that wait to be taken, and messages that were thrown away since the link was made because there were too many.
    pub fn backlog(&self) -> (usize, u64) {
        (self.backlog.bytes.load(Ordering::Relaxed), self.backlog.dropped.load(Ordering::Relaxed))
    }
}

/// A connection's signs of life, seen by its stream and by who watches it.
#[derive(Debug, Default)]
struct Vital {
    /// How often something was read.
    reads: AtomicU64,
    /// True exactly when it must not be read any more because of a flood.
    is_flooded: AtomicBool,
    /// True exactly when something was read that no Redis says.
    is_misspoken: AtomicBool,
}

/// A stream whose reading is watched and bounded.
struct Watched<S> {
    stream: S,
    guard: Guard,
    vital: Arc<Vital>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // The library takes this kind for a lost connection, and no other that would fit.
        let over = || Err(io::Error::from(io::ErrorKind::ConnectionReset));
        if this.vital.is_flooded.load(Ordering::Relaxed) {
            return Poll::Ready(over());
        }
        let start = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        let read = &buffer.filled()[start..];
        if !read.is_empty() {
            this.vital.reads.fetch_add(1, Ordering::Relaxed);
        }
        if this.guard.check(read).is_err() {
            this.vital.is_misspoken.store(true, Ordering::Relaxed);
            buffer.set_filled(start);
            return Poll::Ready(over());
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A task that ends with who started it.
pub(super) struct Task<T>(pub(super) JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Commands as the library takes them, and how many answers they have.
pub(super) struct Packed {
    pipeline: Pipeline,
    answers: usize,
}

impl Packed {
    /// Commands, between `MULTI` and `EXEC` where they are atomic.
    pub(super) fn of(calls: &[Call], is_atomic: bool) -> Self {
        let mut pipeline = Pipeline::with_capacity(calls.len() + 2);
        // Not the library's transaction, which makes one error of all when a call is refused.
        if is_atomic {
            pipeline.cmd("MULTI");
        }
        for call in calls {
            let words = call.words();
            let mut command = Cmd::with_capacity(words.len(), call.bytes());
            for word in words {
                command.arg(word);
            }
            pipeline.add_command(command);
        }
        if is_atomic {
            pipeline.cmd("EXEC");
        }
        Self { answers: pipeline.len(), pipeline }
    }

    /// Subscribes or unsubscribes. One command a name, because each is answered by itself, and of several in one the library would count one
    /// answer.
    pub(super) fn subscriptions(kind: Kind, is_wanted: bool, names: &[Vec<u8>]) -> Self {
        let command = match (kind, is_wanted) {
            (Kind::Channel, true) => "SUBSCRIBE",
            (Kind::Channel, false) => "UNSUBSCRIBE",
            (Kind::Pattern, true) => "PSUBSCRIBE",
            (Kind::Pattern, false) => "PUNSUBSCRIBE",
            (Kind::Sharded, true) => "SSUBSCRIBE",
            (Kind::Sharded, false) => "SUNSUBSCRIBE",
        };
        let mut pipeline = Pipeline::with_capacity(names.len());
        for name in names {
            pipeline.cmd(command).arg(name.as_slice());
        }
        Self { answers: names.len(), pipeline }
    }
}

/// A connection's end for who sends.
#[derive(Clone)]
pub(super) struct Wire(MultiplexedConnection);

impl Wire {
    /// Sends at once, in the order of the calls to this; the answers come in that order. It is sent also when nobody waits for them.
    pub(super) fn send(&self, packed: Packed) -> impl Future<Output = Result<Vec<Reply>, Lost>> + Send + use<> {
        // A current-thread runtime runs its tasks first in, first out, and each comes into the library's queue at its first turn.
        let task = tokio::spawn(answered(self.0.clone(), packed));
        async move { task.await.unwrap_or(Err(Lost::Connection)) }
    }

    /// As [`Wire::send`], for who waits elsewhere.
    pub(super) fn deliver(&self, packed: Packed, done: oneshot::Sender<Result<Vec<Reply>, Lost>>) {
        let answers = answered(self.0.clone(), packed);
        // Whoever asked may have gone.
        tokio::spawn(async move { drop(done.send(answers.await)) });
    }
}

async fn answered(mut connection: MultiplexedConnection, packed: Packed) -> Result<Vec<Reply>, Lost> {
    match connection.send_packed_commands(&packed.pipeline, 0, packed.answers).await {
        Ok(values) => Ok(values.into_iter().map(reply).collect()),
        Err(_) => Err(Lost::Connection),
    }
}

/// Where the pushes of a connection for subscriptions go.
pub(super) struct Ear {
    pub(super) funnel: Arc<Funnel>,
    /// Who hears of a sharded channel that is not subscribed any more, instead of the funnel.
    pub(super) unheard: Option<Box<dyn Fn(Vec<u8>) + Send + Sync>>,
}

/// One connection to one server.
pub(super) struct Line {
    wire: Wire,
    vital: Arc<Vital>,
    driver: Task<()>,
}

impl Line {
    /// Connects. With an ear it is one for subscriptions (RESP3, which tells pushes from answers), without for commands (RESP2, whose shapes
    /// are the documented ones).
    pub(super) async fn open(node: &Node, ear: Option<Ear>) -> Result<Self, LinkFault> {
        timeout(Duration::from_millis(REDIS_CONNECT_MS), Self::open_at_leisure(node, ear)).await.unwrap_or(Err(LinkFault::Slow))
    }

    async fn open_at_leisure(node: &Node, ear: Option<Ear>) -> Result<Self, LinkFault> {
        let unreachable = |error: io::Error| LinkFault::Unreachable(error.to_string());
        match &node.at {
            At::Unix(path) => Self::over(node, UnixStream::connect(path).await.map_err(unreachable)?, ear).await,
            At::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(unreachable)?;
                stream.set_nodelay(true).map_err(unreachable)?;
                // A peer that vanished is found by asking; this is for a network that forgets quiet connections.
                let keepalive = socket2::TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
                socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive).map_err(unreachable)?;
                match &node.tls {
                    None => Self::over(node, stream, ear).await,
                    Some(tls) => {
                        let name = ServerName::try_from(host.clone()).map_err(|error| LinkFault::Unreachable(error.to_string()))?;
                        let connector = tokio_rustls::TlsConnector::from(tls.0.clone());
                        Self::over(node, connector.connect(name, stream).await.map_err(unreachable)?, ear).await
                    }
                }
            }
        }
    }

    async fn over<S>(node: &Node, stream: S, ear: Option<Ear>) -> Result<Self, LinkFault>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let vital = Arc::new(Vital::default());
        let stream = Watched { stream, guard: Guard::default(), vital: vital.clone() };
        // The library's own limits of time (500 ms an answer) would give up what Redis still does.
        let mut config = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_connection_timeout(None)
            .set_pipeline_buffer_size(REDIS_REQUESTS_MAX)
            .set_write_backpressure_boundary(64 * 1024);
        let protocol = match ear {
            Some(ear) => {
                let vital = vital.clone();
                config = config.set_push_sender(move |info: PushInfo| {
                    hear(info, &ear, &vital);
                    Ok::<(), ()>(())
                });
                ProtocolVersion::RESP3
            }
            None => ProtocolVersion::RESP2,
        };
        let (connection, driver) =
            MultiplexedConnection::new_with_config(&node.settings(protocol), stream, config).await.map_err(|error| fault(&error, node))?;
        Ok(Self { wire: Wire(connection), vital, driver: Task(tokio::spawn(driver)) })
    }

    /// Asks one thing, by whoever makes a link.
    pub(super) async fn ask(&self, call: &Call) -> Result<Reply, LinkFault> {
        let sent = self.wire.send(Packed::of(std::slice::from_ref(call), false));
        let answer = timeout(Duration::from_millis(REDIS_CONNECT_MS), sent).await.map_err(|_| LinkFault::Slow)?;
        let gone = || LinkFault::Unreachable("the connection was closed".to_owned());
        answer.map_err(|_| gone())?.into_iter().next().ok_or_else(gone)
    }

    /// Its end for who sends.
    pub(super) fn wire(&self) -> Wire {
        self.wire.clone()
    }

    /// Watches until the connection ends, and says why. `tell` hears that it is silent (false) or answers again (true).
    pub(super) async fn watch(&mut self, mut tell: impl FnMut(bool)) -> Ended {
        let mut looks = interval(Duration::from_millis(REDIS_LOOK_MS));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut reads, mut asked, mut asked_looks) = (0, None::<Task<_>>, 0);
        loop {
            tokio::select! {
                _ = &mut self.driver.0 => return self.end(),
                _ = looks.tick() => {}
            }
            let now = self.vital.reads.load(Ordering::Relaxed);
            if now != reads {
                if asked_looks >= REDIS_SILENT_LOOKS {
                    tell(true);
                }
                (reads, asked_looks) = (now, 0);
                // A question that waits behind other answers keeps its place.
                asked = asked.filter(|task| !task.0.is_finished());
                continue;
            }
            if asked.as_ref().is_some_and(|task| !task.0.is_finished()) {
                asked_looks += 1;
                if asked_looks == REDIS_SILENT_LOOKS {
                    tell(false);
                }
                if asked_looks * REDIS_LOOK_MS >= REDIS_LOST_MS {
                    return Ended::Silent;
                }
            } else {
                let mut connection = self.wire.0.clone();
                asked = Some(Task(tokio::spawn(async move { connection.send_packed_command(&redis::cmd("PING")).await })));
                asked_looks = 0;
            }
        }
    }

    /// Ends it, and waits until it has ended.
    pub(super) async fn stop(mut self) {
        if !self.driver.0.is_finished() {
            self.driver.0.abort();
            let _ = (&mut self.driver.0).await;
        }
    }

    fn end(&self) -> Ended {
        if self.vital.is_flooded.load(Ordering::Relaxed) {
            Ended::Flooded
        } else if self.vital.is_misspoken.load(Ordering::Relaxed) {
            Ended::Misspoken
        } else {
            Ended::Closed
        }
    }
}

/// Why connecting failed. A Redis without `HELLO` repeats what it was told, the password too.
fn fault(error: &RedisError, node: &Node) -> LinkFault {
    if error.is_io_error() {
        return LinkFault::Unreachable(error.to_string());
    }
    // Redis' own words where there are any.
    let said = match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
    };
    let said = said.split(", with args").next().unwrap_or_default();
    LinkFault::Refused(match &node.password {
        Some(password) if !password.0.is_empty() => said.replace(&password.0, "…"),
        _ => said.to_owned(),
    })
}

/// One push of a subscriber's connection.
fn hear(info: PushInfo, ear: &Ear, vital: &Vital) {
    let PushInfo { kind, data } = info;
    let mut texts = data.into_iter().map(|value| match value {
        Value::BulkString(bytes) => bytes,
        _ => Vec::new(),
    });
    let mut text = || texts.next().unwrap_or_default();
    let push = match kind {
        PushKind::Message => Push::Message { kind: Kind::Channel, channel: text(), pattern: None, payload: text() },
        PushKind::SMessage => Push::Message { kind: Kind::Sharded, channel: text(), pattern: None, payload: text() },
        PushKind::PMessage => {
            let pattern = Some(text());
            Push::Message { kind: Kind::Pattern, channel: text(), pattern, payload: text() }
        }
        PushKind::Subscribe => Push::Subscribed { kind: Kind::Channel, name: text() },
        PushKind::PSubscribe => Push::Subscribed { kind: Kind::Pattern, name: text() },
        PushKind::SSubscribe => Push::Subscribed { kind: Kind::Sharded, name: text() },
        PushKind::Unsubscribe => Push::Unsubscribed { kind: Kind::Channel, name: text() },
        PushKind::PUnsubscribe => Push::Unsubscribed { kind: Kind::Pattern, name: text() },
        PushKind::SUnsubscribe => match &ear.unheard {
            Some(unheard) => return unheard(text()),
            None => Push::Unsubscribed { kind: Kind::Sharded, name: text() },
        },
        // That the connection is lost is told by who watches it.
        _ => return,
    };
    if !vital.is_flooded.load(Ordering::Relaxed) && !ear.funnel.message(push) {
        vital.is_flooded.store(true, Ordering::Relaxed);
    }
}

/// What Redis answered, in RESP2's shapes also where it was RESP3. The nesting is bounded by the guard.
fn reply(value: Value) -> Reply {
    let list = |values: Vec<Value>| Reply::List(values.into_iter().map(reply).collect());
    match value {
        Value::Nil => Reply::Nil,
        Value::Int(value) => Reply::Int(value),
        Value::BulkString(bytes) => Reply::Bytes(bytes),
        Value::Array(values) | Value::Set(values) | Value::Push { data: values, .. } => list(values),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Reply::Text(text),
        Value::Okay => Reply::Text("OK".to_owned()),
        Value::Map(pairs) => list(pairs.into_iter().flat_map(|(key, value)| [key, value]).collect()),
        Value::Attribute { data, .. } => reply(*data),
        Value::Double(value) => Reply::Text(value.to_string()),
        Value::Boolean(value) => Reply::Int(i64::from(value)),
        Value::BigNumber(digits) => Reply::Bytes(digits),
        Value::ServerError(error) => Reply::Error(match error.details() {
            Some(details) => format!("{} {details}", error.code()),
            None => error.code().to_owned(),
        }),
        _ => Reply::Nil,
    }
}

/// What waits for answers.
#[derive(Default)]
struct Load {
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

/// A request's part of it.
struct Share {
    load: Arc<Load>,
    bytes: usize,
}

impl Load {
    fn share(load: &Arc<Self>, bytes: usize) -> Result<Share, Lost> {
        let is_full = load.requests.load(Ordering::Relaxed) >= REDIS_REQUESTS_MAX
            || load.bytes.load(Ordering::Relaxed) + bytes > REDIS_REQUESTS_BYTES_MAX;
        if is_full {
            return Err(Lost::Full);
        }
        load.requests.fetch_add(1, Ordering::Relaxed);
        load.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(Share { load: load.clone(), bytes })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.load.requests.fetch_sub(1, Ordering::Relaxed);
        self.load.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A connected Redis. Everything asked of it is lost when it is dropped.
pub struct Link {
    way: Way,
    load: Arc<Load>,
    _keeper: Task<()>,
}

/// Where what is asked goes.
enum Way {
    Node { commands: Wire, subscriber: Wire },
    Cluster(Cluster),
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Link {
    /// Connects, within [`REDIS_CONNECT_MS`] for each connection. It must be called on a current-thread runtime, on whose order of
    /// tasks the order of requests relies, with I/O and time enabled.
    ///
    /// Commands that block (`XREAD BLOCK`) belong on a link of their own, because everything behind them waits: there [`Push::Silent`] says
    /// only that it blocks, and each must come back before [`REDIS_LOST_MS`].
    ///
    /// # Errors
    ///
    /// When there is no Redis, or it does not want us.
    pub async fn connect(address: &Address) -> Result<(Self, Pushes), LinkFault> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let backlog = Arc::<Backlog>::default();
        let funnel = Arc::new(Funnel { sender, backlog: backlog.clone() });
        let ear = || Some(Ear { funnel: funnel.clone(), unheard: None });
        let (way, keeper) = match &address.place {
            Place::Single(node) => {
                let (commands, subscriber) = tokio::try_join!(Line::open(node, None), Line::open(node, ear()))?;
                kept(commands, subscriber, pending(), &funnel)
            }
            Place::Sentinel { sentinels, master, node } => {
                let (node, commands) = master_of(sentinels, master, node).await?;
                let subscriber = Line::open(&node, ear()).await?;
                kept(commands, subscriber, moved(sentinels.clone(), master.clone(), node.at), &funnel)
            }
            Place::Cluster(seeds) => {
                let (cluster, keeper) = Cluster::connect(seeds, &funnel).await?;
                (Way::Cluster(cluster), keeper)
            }
        };
        let link = Self { way, load: Arc::default(), _keeper: keeper };
        Ok((link, Pushes { receiver, backlog }))
    }

    /// Sends at once, in the order of the calls to this, whether somebody waits for the answers or not; they come in that order, one for each
    /// call, and a refusal is one of them. When `MULTI` as a whole was refused, each of its calls is.
    ///
    /// In a cluster the order is that of each node, and a transaction goes to the node of its first key. `PUBLISH` goes to one node all the
    /// time; `PUBSUB` and `SCRIPT` go to all, and their answers are put together.
    pub fn send(&self, request: &Request) -> impl Future<Output = Result<Vec<Reply>, Lost>> + Send + use<> {
        let share = Load::share(&self.load, request.bytes());
        let sent = (share.is_ok() && !request.calls.is_empty()).then(|| self.sent(request));
        async move {
            let _share = share?;
            match sent {
                Some(sent) => sent.await,
                None => Ok(Vec::new()),
            }
        }
    }

    fn sent(&self, request: &Request) -> Pin<Box<dyn Future<Output = Result<Vec<Reply>, Lost>> + Send>> {
        match &self.way {
            Way::Cluster(cluster) => Box::pin(cluster.send(request)),
            Way::Node { commands, .. } => {
                let (calls, is_atomic) = (request.calls.len(), request.is_atomic);
                let sent = commands.send(Packed::of(&request.calls, is_atomic));
                Box::pin(async move { if is_atomic { executed(sent.await?, calls) } else { sent.await } })
            }
        }
    }

    /// Requests that wait for answers, and the bytes of their words.
    pub fn load(&self) -> (usize, usize) {
        (self.load.requests.load(Ordering::Relaxed), self.load.bytes.load(Ordering::Relaxed))
    }

    /// Subscribes at once, and says when Redis has confirmed all. Each name is also told in its place among the pushes
    /// ([`Push::Subscribed`]), so that of several which were asked for together those are known that were not refused.
    pub fn subscribe(&self, kind: Kind, names: &[Vec<u8>]) -> impl Future<Output = Result<(), Unheard>> + Send + use<> {
        self.confirmed(kind, true, names)
    }

    /// Ends subscriptions at once, and says when Redis has confirmed all.
    pub fn unsubscribe(&self, kind: Kind, names: &[Vec<u8>]) -> impl Future<Output = Result<(), Unheard>> + Send + use<> {
        self.confirmed(kind, false, names)
    }

    fn confirmed(&self, kind: Kind, is_wanted: bool, names: &[Vec<u8>]) -> Pin<Box<dyn Future<Output = Result<(), Unheard>> + Send>> {
        match &self.way {
            _ if names.is_empty() => Box::pin(async { Ok(()) }),
            Way::Cluster(cluster) if is_wanted => Box::pin(cluster.subscribe(kind, names.to_vec())),
            Way::Cluster(cluster) => Box::pin(cluster.unsubscribe(kind, names.to_vec())),
            Way::Node { subscriber, .. } => {
                let sent = subscriber.send(Packed::subscriptions(kind, is_wanted, names));
                Box::pin(async move {
                    let replies = sent.await.map_err(|_| Unheard::Lost)?;
                    let refused = replies.iter().find_map(Reply::error);
                    refused.map_or(Ok(()), |text| Err(Unheard::Refused(text.to_owned())))
                })
            }
        }
    }
}

/// Starts what watches both connections.
fn kept(commands: Line, subscriber: Line, moved: impl Future<Output = ()> + Send + 'static, funnel: &Arc<Funnel>) -> (Way, Task<()>) {
    let way = Way::Node { commands: commands.wire(), subscriber: subscriber.wire() };
    (way, Task(tokio::spawn(keep(commands, subscriber, moved, funnel.clone()))))
}

/// What a transaction's calls were answered, of the answers to `MULTI`, to each call and to `EXEC`.
pub(super) fn executed(mut replies: Vec<Reply>, calls: usize) -> Result<Vec<Reply>, Lost> {
    match replies.pop() {
        Some(Reply::List(executed)) if executed.len() == calls => Ok(executed),
        Some(Reply::Error(text)) => {
            let queued = replies.into_iter().skip(1);
            Ok(queued.map(|reply| if let Reply::Error(_) = reply { reply } else { Reply::Error(text.clone()) }).collect())
        }
        _ => Err(Lost::Connection),
    }
}

/// Watches both connections until one ends, and tells what happens to them.
async fn keep(mut commands: Line, mut subscriber: Line, moved: impl Future<Output = ()>, funnel: Arc<Funnel>) {
    let silent = AtomicUsize::new(0);
    let tell = |is_answering: bool| {
        if is_answering && silent.fetch_sub(1, Ordering::Relaxed) == 1 {
            funnel.tell(Push::Answering);
        } else if !is_answering && silent.fetch_add(1, Ordering::Relaxed) == 0 {
            funnel.tell(Push::Silent);
        }
    };
    let ended = tokio::select! {
        ended = commands.watch(tell) => ended,
        ended = subscriber.watch(tell) => ended,
        () = moved => Ended::Moved,
    };
    drop(commands);
    // The last word is the last: the driver, which passes the messages on, must have stopped.
    subscriber.stop().await;
    funnel.tell(Push::Gone(ended));
}

/// Whom most of the sentinels that answer call the master, the most often named first.
async fn masters(sentinels: &[Node], master: &str) -> Vec<(String, u16)> {
    let mut asked = tokio::task::JoinSet::new();
    for sentinel in sentinels {
        let (sentinel, call) = (sentinel.clone(), Call::new("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(master));
        asked.spawn(async move {
            let ask = async { Line::open(&sentinel, None).await.ok()?.ask(&call).await.ok() };
            let Reply::List(parts) = timeout(Duration::from_millis(REDIS_SENTINEL_MS), ask).await.ok()?? else { return None };
            let [host, port] = parts.as_slice() else { return None };
            Some((host.text()?.to_owned(), u16::try_from(port.int()?).ok()?))
        });
    }
    let mut named: Vec<((String, u16), usize)> = Vec::new();
    for answer in asked.join_all().await.into_iter().flatten() {
        match named.iter_mut().find(|(address, _)| *address == answer) {
            Some((_, votes)) => *votes += 1,
            None => named.push((answer, 1)),
        }
    }
    named.sort_by_key(|(_, votes)| std::cmp::Reverse(*votes));
    named.into_iter().map(|(address, _)| address).collect()
}

/// The master, connected for commands: one that the sentinels name and that says itself that it is one.
async fn master_of(sentinels: &[Node], master: &str, node: &Node) -> Result<(Node, Line), LinkFault> {
    let mut fault = LinkFault::NoMaster;
    for (host, port) in masters(sentinels, master).await {
        let node = node.elsewhere(&(host, port));
        match Line::open(&node, None).await {
            Ok(line) => {
                let role = line.ask(&Call::new("ROLE")).await?;
                // Who may not ask believes the sentinels.
                if role.is_error("NOPERM") || role.list().first().and_then(Reply::text) == Some("master") {
                    return Ok((node, line));
                }
            }
            Err(error) => fault = error,
        }
    }
    Err(fault)
}

/// Ends when most sentinels call another one the master: one that was cut off from them does not know it itself.
async fn moved(sentinels: Vec<Node>, master: String, at: At) {
    loop {
        sleep(Duration::from_millis(REDIS_SENTINEL_LOOK_MS)).await;
        if masters(&sentinels, &master).await.into_iter().next().is_some_and(|(host, port)| At::Tcp(host, port) != at) {
            return;
        }
    }
}

/// When to call Redis again: after [`REDIS_BACKOFF_MS`], doubled each time.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    delay_ms: u64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { delay_ms: REDIS_BACKOFF_MS.0 }
    }
}

impl Backoff {
    /// The next delay, of which half is by chance, so that the hosts do not all come at once. `random` is any number.
    pub fn next_ms(&mut self, random: u64) -> u64 {
        let half = self.delay_ms / 2;
        self.delay_ms = (self.delay_ms * 2).min(REDIS_BACKOFF_MS.1);
        half + random % (half + 1)
    }

    /// It is there again.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}
