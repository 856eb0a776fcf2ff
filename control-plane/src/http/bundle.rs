//! The Socket.IO client's own files, for pages that load it from the server: read from a folder once, at the start, and served from memory.
//! The names are fixed, so no request can name anything else in the folder or outside it.

use std::fmt;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher as _};
use std::io::{self, Read as _};
use std::path::Path;

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// What `dist` of the package socket.io-client holds and pages ask for.
const NAMES: [&str; 8] = [
    "socket.io.js",
    "socket.io.js.map",
    "socket.io.min.js",
    "socket.io.min.js.map",
    "socket.io.esm.min.js",
    "socket.io.esm.min.js.map",
    "socket.io.msgpack.min.js",
    "socket.io.msgpack.min.js.map",
];

/// Bytes of one file; the largest of socket.io-client 4.8 has half a megabyte.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Why a folder cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum BundleFault {
    /// It cannot be looked into.
    #[error("is no folder that can be read: {0}")]
    Folder(io::Error),
    /// One of its files cannot be read.
    #[error("{0} in it cannot be read: {1}")]
    Unreadable(&'static str, io::Error),
    /// One of its files is something else.
    #[error("{0} in it is longer than {FILE_BYTES_MAX} bytes")]
    TooLarge(&'static str),
    /// None of the files is there.
    #[error("has none of the client's files, such as socket.io.js: give the folder dist of socket.io-client")]
    Empty,
}

/// The files, and below which path they are.
#[derive(Clone)]
pub struct Bundle {
    path: String,
    files: Vec<(&'static str, Bytes, HeaderValue)>,
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle").field("path", &self.path).field("files", &self.files.len()).finish()
    }
}

impl Bundle {
    /// Reads what there is in `folder`, to be served below `path`, which ends with a slash.
    pub fn read(folder: &Path, path: &str) -> Result<Bundle, BundleFault> {
        std::fs::read_dir(folder).map_err(BundleFault::Folder)?;
        let mut files = Vec::new();
        for name in NAMES {
            if let Some(content) = content(folder, name)? {
                let tag = tag(&content);
                files.push((name, Bytes::from(content), tag));
            }
        }
        if files.is_empty() {
            return Err(BundleFault::Empty);
        }
        Ok(Bundle { path: path.to_owned(), files })
    }

    /// The file that a request asks for; `None` when it asks for something else, or for one that is not there.
    pub fn answer(&self, request: &Request) -> Option<Response> {
        let below = request.uri().path().strip_prefix(&self.path)?;
        let wanted = below.rsplit('/').next().unwrap_or_default();
        let (name, content, tag) = self.files.iter().find(|(name, ..)| *name == wanted)?;
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return None;
        }
        let always = [(header::ETAG, tag.clone()), (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=0"))];
        if is_known(request.headers(), tag) {
            return Some((StatusCode::NOT_MODIFIED, always).into_response());
        }
        let kind = if name.ends_with(".map") { "application/json; charset=utf-8" } else { "application/javascript; charset=utf-8" };
        Some((always, [(header::CONTENT_TYPE, kind)], content.clone()).into_response())
    }
}

/// One file of the folder; `None` when it is not there.
fn content(folder: &Path, name: &'static str) -> Result<Option<Vec<u8>>, BundleFault> {
    let file = match File::open(folder.join(name)) {
        Ok(file) => file,
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(fault) => return Err(BundleFault::Unreadable(name, fault)),
    };
    let mut content = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content).map_err(|fault| BundleFault::Unreadable(name, fault))?;
    if content.len() as u64 > FILE_BYTES_MAX {
        return Err(BundleFault::TooLarge(name));
    }
    Ok(Some(content))
}

/// Another content has another tag; nobody but the operator chooses contents, so a plain hash will do.
fn tag(content: &[u8]) -> HeaderValue {
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    HeaderValue::from_str(&format!("\"{:016x}\"", hasher.finish())).unwrap_or(HeaderValue::from_static("\"\""))
}

/// True exactly when the browser has this content already. Its tag may have been made a weak one on the way.
fn is_known(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let lines = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
    let mut tags = lines.flat_map(|line| line.split(',')).map(str::trim);
    tags.any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known).as_bytes() == tag.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::Router;

    use super::super::testing::{FakeHost, call, terms};
    use super::super::{App, Origins, Terms, public};
    use super::*;
    use crate::settings::scratch::Scratch;

    const SCRIPT: &str = "window.io = 'ü';";

    fn router(folder: &Scratch) -> Router {
        std::fs::write(folder.directory().join("socket.io.min.js.map"), "{}").expect("a file");
        let bundle = Some(Bundle::read(folder.directory(), "/socket.io/").expect("two files"));
        let origins = Origins::Listed(vec!["https://app.example".into()]);
        public::router(Arc::new(App::new(Arc::new(FakeHost::new(1)), Arc::default(), Terms { bundle, origins, ..terms() })))
    }

    #[tokio::test]
    async fn files_are_served_with_their_types_and_tags() {
        let folder = Scratch::named("socket.io.js", SCRIPT);
        let router = router(&folder);
        let script = call(&router, Method::GET, "/socket.io/socket.io.js?v=1", &[("origin", "https://app.example")]).await;
        assert_eq!((script.status, script.body.as_str()), (StatusCode::OK, SCRIPT));
        assert_eq!(script.header("content-type"), "application/javascript; charset=utf-8");
        assert_eq!((script.header("cache-control"), script.header("x-content-type-options")), ("public, max-age=0", "nosniff"));
        assert_eq!((script.header("access-control-allow-origin"), script.header("vary")), ("https://app.example", "Origin"));
        let map = call(&router, Method::GET, "/socket.io/deeper/socket.io.min.js.map", &[]).await;
        assert_eq!((map.header("content-type"), map.body.as_str()), ("application/json; charset=utf-8", "{}"));
        let tag = script.header("etag");
        assert!(tag.len() == 18 && tag != map.header("etag"), "{tag}");
        for known in [tag, &format!("\"x\", W/{tag}"), "*"] {
            let unchanged = call(&router, Method::GET, "/socket.io/socket.io.js", &[("if-none-match", known)]).await;
            assert_eq!((unchanged.status, unchanged.body.as_str(), unchanged.header("etag")), (StatusCode::NOT_MODIFIED, "", tag));
        }
        let changed = call(&router, Method::GET, "/socket.io/socket.io.js", &[("if-none-match", "\"4.8.4\"")]).await;
        assert_eq!(changed.status, StatusCode::OK);
    }

    #[tokio::test]
    async fn nothing_else_is_served() {
        let folder = Scratch::named("socket.io.js", SCRIPT);
        std::fs::write(folder.directory().join("secret.txt"), "secret").expect("a file");
        let router = router(&folder);
        for path in [
            "/socket.io/socket.io.esm.min.js",
            "/socket.io/secret.txt",
            "/socket.io/../secret.txt",
            "/socket.io/%2e%2e/secret.txt",
            "/socket.io/",
            "/socket.io/socket.io.js/",
            "/socket.io.js",
            "/other/socket.io.js",
        ] {
            assert_eq!(call(&router, Method::GET, path, &[]).await.status, StatusCode::NOT_FOUND, "{path}");
        }
        let missing = call(&router, Method::GET, "/socket.io/socket.io.esm.min.js", &[]).await;
        assert_eq!(missing.header("cache-control"), "no-store");
        assert_eq!(call(&router, Method::POST, "/socket.io/socket.io.js", &[]).await.status, StatusCode::NOT_FOUND);
    }

    #[test]
    fn a_folder_that_cannot_be_served_says_why() {
        let told = |folder: &Path| Bundle::read(folder, "/socket.io/").expect_err("a fault").to_string();
        let folder = Scratch::named("other.js", "");
        assert!(told(folder.directory()).contains("none of the client's files"));
        assert!(told(folder.path()).contains("no folder"), "a file");
        assert!(told(&folder.directory().join("nothing")).contains("no folder"));
        std::fs::create_dir(folder.directory().join("socket.io.js")).expect("a folder");
        assert!(told(folder.directory()).contains("socket.io.js in it cannot be read"));
        let large = Scratch::named("socket.io.js", vec![b'x'; FILE_BYTES_MAX as usize + 1]);
        assert!(told(large.directory()).contains("longer than"));
    }
}
