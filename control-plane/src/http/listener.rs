//! Where the admin part listens: a TCP address or a Unix socket. Bound before anything else starts, so that a wrong address stops the
//! start instead of leaving a server that nobody can ask.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::sync::Semaphore;

use super::connection::{self, ADMIN};
use super::pause::Pause;
use crate::log;
use crate::settings::ControlListen;

/// Connections served at once. Admin clients and scrapers are few; each connection also lives a bounded time.
const CONNECTIONS_MAX: usize = 64;

/// Who may connect to the Unix socket: owner and group.
const UNIX_MODE: u32 = 0o660;

/// Wait after a failed accept, which is for want of descriptors or memory; at once would be a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A bound listener.
#[derive(Debug)]
pub enum Listener {
    /// On an address.
    Tcp(std::net::TcpListener),
    /// On a path, which goes when the listener does.
    Unix(std::os::unix::net::UnixListener, OwnedPath),
}

/// A socket's path; dropping it removes the file.
#[derive(Debug)]
pub struct OwnedPath(PathBuf);

impl Drop for OwnedPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Binds. A socket file left by a dead process is replaced; that of a living one, or any other file, is not.
    pub fn bind(listen: &ControlListen) -> io::Result<Listener> {
        match listen {
            ControlListen::Tcp(address) => {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(Listener::Tcp(listener))
            }
            ControlListen::Unix(path) => {
                remove_stale(path)?;
                let listener = std::os::unix::net::UnixListener::bind(path)?;
                let path = OwnedPath(path.clone());
                std::fs::set_permissions(&path.0, std::fs::Permissions::from_mode(UNIX_MODE))?;
                listener.set_nonblocking(true)?;
                Ok(Listener::Unix(listener, path))
            }
        }
    }

    /// Goes on with a socket that a former process has bound for the same place.
    pub fn adopt(listen: &ControlListen, socket: OwnedFd) -> io::Result<Listener> {
        match listen {
            ControlListen::Tcp(_) => Ok(Listener::Tcp(socket.into())),
            ControlListen::Unix(path) => Ok(Listener::Unix(socket.into(), OwnedPath(path.clone()))),
        }
    }

    /// A descriptor of its own of the socket.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        match self {
            Listener::Tcp(listener) => Ok(listener.try_clone()?.into()),
            Listener::Unix(listener, _) => Ok(listener.try_clone()?.into()),
        }
    }

    /// Accepts and serves until dropped.
    pub async fn serve(self, router: Router, pause: Arc<Pause>) -> io::Result<()> {
        match self {
            Listener::Tcp(listener) => {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                accept(router, &pause, || async { listener.accept().await.map(|(stream, _)| stream) }).await
            }
            Listener::Unix(listener, _path) => {
                let listener = tokio::net::UnixListener::from_std(listener)?;
                accept(router, &pause, || async { listener.accept().await.map(|(stream, _)| stream) }).await
            }
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listener::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "http://{address}"),
                Err(fault) => write!(f, "an unknown address ({fault})"),
            },
            Listener::Unix(_, path) => write!(f, "unix:{}", path.0.display()),
        }
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if !is_socket {
        return Ok(());
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
    }
    std::fs::remove_file(path)
}

/// Serves as many as may be served at once; the others wait in the kernel's backlog.
async fn accept<S, F>(router: Router, pause: &Arc<Pause>, next: impl Fn() -> F) -> io::Result<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = io::Result<S>>,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
        pause.over().await;
        let accepted = tokio::select! {
            accepted = next() => accepted,
            () = pause.begun() => continue,
        };
        match accepted {
            Ok(stream) => {
                let (router, pause) = (router.clone(), pause.clone());
                tokio::spawn(async move {
                    connection::serve(stream, router, ADMIN, &pause).await;
                    drop(place);
                });
            }
            Err(fault) => {
                log::warning(format_args!("control listener: {fault}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_unix_socket_replaces_a_dead_one_and_refuses_a_living_one() {
        let path = std::env::temp_dir().join(format!("uringcast-control-test-{}", std::process::id()));
        let listen = ControlListen::Unix(path.clone());
        // Dropping the standard listener leaves its file behind, as a killed process does.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a free path"));
        let listener = Listener::bind(&listen).expect("the dead one is replaced");
        assert_eq!(std::fs::metadata(&path).expect("bound").permissions().mode() & 0o777, UNIX_MODE);
        assert_eq!(Listener::bind(&listen).expect_err("it lives").kind(), io::ErrorKind::AddrInUse);

        let router = Router::new().route("/", axum::routing::get(|| async { "hi" }));
        let server = tokio::spawn(listener.serve(router, Arc::default()));
        let mut client = tokio::net::UnixStream::connect(&path).await.expect("it listens");
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("open");
        let mut heard = String::new();
        client.read_to_string(&mut heard).await.expect("text");
        assert!(heard.ends_with("hi"), "{heard}");
        server.abort();
        let _ = server.await;
        assert!(!path.exists(), "the file goes with the listener");
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let path = std::env::temp_dir().join(format!("uringcast-control-file-{}", std::process::id()));
        std::fs::write(&path, "precious").expect("writable");
        assert!(Listener::bind(&ControlListen::Unix(path.clone())).is_err());
        assert_eq!(std::fs::read_to_string(&path).expect("still there"), "precious");
        std::fs::remove_file(&path).expect("ours");
    }
}
