//! One HTTP/1 connection, whatever it runs over, with a bound on each way in which a peer can take its time: the head, the body, reading
//! the answer, staying.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout, timeout_at};

use super::lingering::{Lingering, Unread};
use super::pause::Pause;

/// Time to send a request head, and on a kept connection to send the next.
const HEAD_TIME: Duration = Duration::from_secs(10);

/// Time that a connection without a request has to begin its first one when everybody is to come to an end.
const FIRST_WORD: Duration = Duration::from_millis(100);

/// Bytes of a request head, and of what is buffered of a body; the engine's own bound for heads is lower.
const BUFFER_BYTES: usize = 64 * 1024;

/// How long a connection may live.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// True exactly when more than one request is answered.
    pub keep_alive: bool,
    /// From the first byte to the beginning of the end.
    pub life: Duration,
    /// For an answer that is being written at the end of `life`.
    pub grace: Duration,
}

/// The public part: one request, ten seconds for all of it.
pub const PUBLIC: Bounds = Bounds { keep_alive: false, life: Duration::from_secs(10), grace: Duration::ZERO };

/// The admin part: a program may keep its connection for many calls, but has to come anew from time to time, so that connections of
/// clients that neither go nor come cannot take all places for good. The grace is the longest wait for an answer (acknowledgements), which
/// may have begun in the last moment, and ten seconds to read it.
pub const ADMIN: Bounds = Bounds { keep_alive: true, life: Duration::from_secs(60), grace: Duration::from_secs(75) };

/// By which the maker of an answer without an end keeps its connection: an extension of each request. Who never uses it has a connection that
/// lives no longer than its [`Bounds`] say.
#[derive(Clone, Default, Debug)]
pub struct Stay(Arc<Mutex<Option<Instant>>>);

impl Stay {
    /// The connection lives at least until then. Whoever calls this has a sign of the peer's life.
    pub fn until(&self, end: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
    }

    fn end(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers the requests of one connection. How it ends is the peer's affair and is not reported.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, router: Router, bounds: Bounds, pause: &Arc<Pause>) {
    let open = pause.open();
    let stay = Stay::default();
    let service = TowerToHyperService::new(router);
    let own = stay.clone();
    let has_begun = Arc::new(AtomicBool::new(false));
    let begins = has_begun.clone();
    let unread = Unread::default();
    let bodies = unread.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        begins.store(true, Relaxed);
        let mut request = request.map(|body| bodies.watch(body));
        request.extensions_mut().insert(own.clone());
        service.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(BUFFER_BYTES)
        .keep_alive(bounds.keep_alive)
        .serve_connection(TokioIo::new(Lingering::new(stream, unread)), service);
    let mut connection = std::pin::pin!(connection);
    let mut end = Instant::now() + bounds.life;
    loop {
        tokio::select! {
            ended = timeout_at(end, connection.as_mut()) => if ended.is_ok() {
                return;
            },
            () = pause.begun() => {
                // Who reads an answer without an end reads on in another connection.
                if stay.end().is_none() {
                    // What has just been let in has a request on its way.
                    if !has_begun.load(Relaxed) && timeout(FIRST_WORD, connection.as_mut()).await.is_ok() {
                        return;
                    }
                    if bounds.keep_alive {
                        connection.as_mut().graceful_shutdown();
                    }
                    let _ = timeout(bounds.life.max(bounds.grace), connection.as_mut()).await;
                }
                drop(open);
                return;
            }
        }
        if let Some(later) = stay.end().filter(|later| *later > end) {
            end = later;
            continue;
        }
        if bounds.grace.is_zero() {
            return;
        }
        connection.as_mut().graceful_shutdown();
        let _ = timeout(bounds.grace, connection.as_mut()).await;
        return;
    }
}

#[cfg(test)]
mod tests {
    use axum::Extension;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn serve_alone(stream: tokio::io::DuplexStream, router: Router, bounds: Bounds) {
        serve(stream, router, bounds, &Arc::default()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_ends_what_is_kept_and_answers_what_has_begun() {
        for (bounds, waits, answers) in [(ADMIN, true, 2), (ADMIN, false, 1), (PUBLIC, false, 1)] {
            let pause = Arc::<Pause>::default();
            let (mut peer, stream) = tokio::io::duplex(4096);
            let own = pause.clone();
            let slow = Router::new().route(
                "/",
                get(|| async {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    "hi"
                }),
            );
            let served = tokio::spawn(async move { serve(stream, slow, bounds, &own).await });
            peer.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("open");
            if waits {
                tokio::time::sleep(Duration::from_millis(700)).await;
                peer.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("open");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            // The connection is looked at for the first time.
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(!pause.is_quiet());
            pause.begin();
            let mut heard = String::new();
            peer.read_to_string(&mut heard).await.expect("text");
            assert_eq!(heard.matches("HTTP/1.1 200 OK").count(), answers, "{heard}");
            served.await.expect("no panic");
            assert!(pause.is_quiet());
        }
    }

    fn router() -> Router {
        Router::new().route("/", get(|| async { "hi" }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_public_connection_answers_once_and_closes() {
        let (mut peer, stream) = tokio::io::duplex(4096);
        let served = tokio::spawn(serve_alone(stream, router(), PUBLIC));
        peer.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("open");
        let mut heard = String::new();
        peer.read_to_string(&mut heard).await.expect("text");
        assert_eq!(heard.matches("HTTP/1.1 200 OK").count(), 1, "{heard}");
        assert!(heard.contains("connection: close") && heard.ends_with("hi"), "{heard}");
        served.await.expect("no panic");
    }

    /// What a peer hears over a real socket that sends a head and then so many bytes of a body, by small writes, and reads at the end; `Err` is a
    /// connection that was reset before.
    async fn heard_by_who_sends(head: &str, body_bytes: usize) -> std::io::Result<String> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let mut peer = tokio::net::TcpStream::connect(listener.local_addr()?).await?;
        let (stream, _) = listener.accept().await?;
        let refuse = Router::new().route("/", axum::routing::post(|| async { (axum::http::StatusCode::UNAUTHORIZED, "no") }));
        let served = tokio::spawn(serve_alone_on(stream, refuse));
        peer.write_all(head.as_bytes()).await?;
        let piece = [b'x'; 4096];
        let mut left = body_bytes;
        while left > 0 {
            let written = peer.write(&piece[..left.min(piece.len())]).await?;
            left -= written;
            tokio::task::yield_now().await;
        }
        let mut heard = String::new();
        peer.read_to_string(&mut heard).await?;
        drop(peer);
        served.await.expect("no panic");
        Ok(heard)
    }

    async fn serve_alone_on(stream: tokio::net::TcpStream, router: Router) {
        serve(stream, router, ADMIN, &Arc::default()).await;
    }

    #[tokio::test]
    async fn who_is_answered_before_the_end_of_its_body_hears_the_answer() {
        const BODY_BYTES: usize = 3 << 20;
        let head = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {BODY_BYTES}\r\n\r\n");
        for _ in 0..5 {
            let heard = heard_by_who_sends(&head, BODY_BYTES).await.expect("no reset");
            assert!(heard.starts_with("HTTP/1.1 401 ") && heard.ends_with("no"), "{heard}");
        }
        // A flood is not listened to for ever.
        let endless = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 1_usize << 40);
        assert!(heard_by_who_sends(&endless, 64 << 20).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn who_stops_in_the_midst_of_its_body_is_heard_out_for_two_seconds() {
        let refuse = Router::new().route("/", axum::routing::post(|| async { "no" }));
        let (mut peer, stream) = tokio::io::duplex(1024);
        let before = Instant::now();
        let served = tokio::spawn(serve_alone(stream, refuse, ADMIN));
        peer.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 99999\r\n\r\n").await.expect("open");
        served.await.expect("no panic");
        assert_eq!(before.elapsed().as_secs(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_peers_are_cut() {
        for (bounds, sent, at_most) in [
            (PUBLIC, "GET / HT", 10),
            (PUBLIC, "GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n", 10),
            (ADMIN, "", 10),
            (ADMIN, "GET / HTTP/1.1\r\nhost: x\r\n\r\n", 10),
        ] {
            let (mut peer, stream) = tokio::io::duplex(4096);
            let before = Instant::now();
            let served = tokio::spawn(serve_alone(stream, router(), bounds));
            peer.write_all(sent.as_bytes()).await.expect("open");
            served.await.expect("no panic");
            assert!(before.elapsed() <= Duration::from_secs(at_most + 1), "{sent:?}: {:?}", before.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_without_end_keeps_its_connection_as_long_as_its_maker_says() {
        const PATIENCE: Duration = Duration::from_secs(90);
        let maker = |Extension(stay): Extension<Stay>| async move {
            stay.until(Instant::now() + PATIENCE);
            tokio::time::sleep(Duration::from_secs(80)).await;
            stay.until(Instant::now() + PATIENCE);
            std::future::pending::<()>().await;
        };
        let (mut peer, stream) = tokio::io::duplex(1024);
        let before = Instant::now();
        let served = tokio::spawn(serve_alone(stream, Router::new().route("/", get(maker)), ADMIN));
        peer.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("open");
        served.await.expect("no panic");
        let lived = before.elapsed();
        // That it ends is seen; how soon after that depends on how the paused clock jumps.
        assert!(lived >= Duration::from_secs(170), "{lived:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_nobody_reads_ends_with_the_connections_life() {
        let large = Router::new().route("/", get(|| async { "x".repeat(1 << 20) }));
        let (mut peer, stream) = tokio::io::duplex(1024);
        let before = Instant::now();
        let served = tokio::spawn(serve_alone(stream, large, ADMIN));
        peer.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("open");
        served.await.expect("no panic");
        assert!(before.elapsed() <= ADMIN.life + ADMIN.grace + Duration::from_secs(1));
    }
}
