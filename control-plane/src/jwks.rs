//! Keeps the key set that tokens are verified with as its owner publishes it: in a file that is looked at every few seconds, or behind a URL that is fetched
//! again and again, sooner when a token names a key that nobody knows. A set that cannot be had or used changes nothing: the keys known so far stay,
//! and that is told and counted. What a key is, the engine knows; this room knows where they come from, and when.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderMap, StatusCode};
use engine::auth::{KeySet, KeySetFault, Loaded, UnfitKey};
use engine::limits::JWKS_BYTES_MAX;
use tokio::time::Instant;

use crate::http::monotonic_ms;
use crate::log;
use crate::outbound::{Bounds, Outbound, OutboundFault, Url};

/// From one look at the file to the next: a new key should verify within seconds, and a look is one system call.
const FILE_EVERY: Duration = Duration::from_secs(2);

/// From one look at the counter of unknown keys to the next, on the same grounds.
const LISTEN_EVERY: Duration = Duration::from_millis(500);

/// What a fetch may cost.
const BOUNDS: Bounds = Bounds { time: Duration::from_secs(10), answer_bytes: JWKS_BYTES_MAX };

/// How long the start waits for the first fetch. Nobody can come in before it; but a server that does not start at all helps less.
const FIRST_TIME: Duration = Duration::from_secs(5);

/// The wait after a first failure; each further one doubles it up to the other.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Where a key set is, and when to look there.
#[derive(Debug)]
pub enum Source {
    /// In a file, which was last seen like this.
    File {
        /// Its path.
        path: PathBuf,
        /// As it was when it was read.
        seen: Mark,
    },
    /// Behind a URL.
    Url {
        /// What is fetched.
        url: Url,
        /// The longest time between two fetches.
        refresh: Duration,
        /// The shortest, but for a first fetch that failed.
        cooldown: Duration,
    },
}

impl Source {
    /// The setting that names it, for messages.
    fn setting(&self) -> &'static str {
        match self {
            Source::File { .. } => "auth.jwks_file",
            Source::Url { .. } => "auth.jwks_url",
        }
    }
}

/// By what a changed file is known, also where another one took its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    device: u64,
    inode: u64,
    bytes: u64,
    changed_ns: (i64, i64),
}

/// Why there is no new key set. None shows the URL or what came from it.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The file cannot be read.
    #[error("the file cannot be read: {0}")]
    Unreadable(io::Error),
    /// A folder, a device or the like.
    #[error("not a file")]
    NotFile,
    /// The URL gives nothing.
    #[error(transparent)]
    Outbound(#[from] OutboundFault),
    /// It gives something else than 200.
    #[error("the answer has the status {0}")]
    Status(StatusCode),
    /// What came is no set of keys that can be used.
    #[error(transparent)]
    Keys(#[from] KeySetFault),
}

/// How the key set does, for whoever watches.
#[derive(Debug)]
pub struct Watch {
    keys: Arc<KeySet>,
    /// When the source was last found in order, by [`monotonic_ms`].
    found_ms: AtomicU64,
    failures: AtomicU64,
}

impl Watch {
    /// Keys that verify tokens now.
    pub fn keys(&self) -> u64 {
        self.keys.len() as u64
    }

    /// Seconds since the source was last found in order; since the start where it never was.
    pub fn age_s(&self) -> u64 {
        monotonic_ms().saturating_sub(self.found_ms.load(Relaxed)) / 1_000
    }

    /// Times that it was not in order.
    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    /// Tokens that named a key which was not in the set.
    pub fn unknown_kids(&self) -> u64 {
        self.keys.unknown_kids()
    }

    fn found(&self) {
        self.found_ms.store(monotonic_ms(), Relaxed);
    }
}

/// Whoever keeps a set up to date.
#[derive(Debug)]
pub struct Keeper {
    source: Source,
    watch: Arc<Watch>,
    /// What was read last, so that what stays the same is neither taken nor told again.
    content: Vec<u8>,
    failures_in_row: u32,
}

impl Keeper {
    /// Reads a set from a file, which must be there and good.
    pub fn of_file(path: PathBuf, keys: Arc<KeySet>) -> Result<(Keeper, Loaded), Fault> {
        let (seen, content) = read(&path, None)?.ok_or(Fault::NotFile)?;
        let loaded = keys.replace(&content)?;
        Ok((Keeper::new(Source::File { path, seen }, keys, content), loaded))
    }

    /// Will fetch a set from a URL.
    pub fn of_url(url: Url, refresh: Duration, cooldown: Duration, keys: Arc<KeySet>) -> Keeper {
        Keeper::new(Source::Url { url, refresh, cooldown }, keys, Vec::new())
    }

    fn new(source: Source, keys: Arc<KeySet>, content: Vec<u8>) -> Keeper {
        let watch = Watch { keys, found_ms: AtomicU64::new(monotonic_ms()), failures: AtomicU64::new(0) };
        Keeper { source, watch: Arc::new(watch), content, failures_in_row: 0 }
    }

    /// How it does.
    pub fn watch(&self) -> Arc<Watch> {
        self.watch.clone()
    }

    /// Fetches the set a first time, so that the first clients find keys. Without an answer in a few seconds the process starts all the same.
    pub async fn begin(&mut self) {
        if let Source::Url { url, .. } = &self.source {
            let url = url.clone();
            let fetched =
                tokio::time::timeout(FIRST_TIME, fetch(&Outbound::new(), &url)).await.unwrap_or(Err(OutboundFault::Timeout.into()));
            let _ = self.take(fetched.map(|(content, _)| content));
        }
    }

    /// Keeps the set up to date for as long as the process runs.
    pub async fn keep(mut self) {
        match &self.source {
            Source::File { path, seen } => {
                let (path, seen) = (path.clone(), *seen);
                self.keep_file(path, seen).await;
            }
            Source::Url { url, refresh, cooldown } => {
                let (url, refresh, cooldown) = (url.clone(), *refresh, *cooldown);
                self.keep_url(&url, refresh, cooldown).await;
            }
        }
    }

    async fn keep_file(&mut self, path: PathBuf, seen: Mark) {
        let mut seen = Some(seen);
        loop {
            tokio::time::sleep(FILE_EVERY).await;
            // A file system may hang; the thread that serves HTTP does not.
            let path = path.clone();
            let looked = tokio::task::spawn_blocking(move || read(&path, seen)).await;
            match looked.unwrap_or_else(|fault| Err(Fault::Unreadable(io::Error::other(fault)))) {
                Ok(None) if self.failures_in_row == 0 => self.watch.found(),
                // As bad as it was; that has been told.
                Ok(None) => {}
                Ok(Some((mark, content))) => {
                    seen = Some(mark);
                    let _ = self.take(Ok(content));
                }
                Err(fault) => {
                    seen = None;
                    let _ = self.take(Err(fault));
                }
            }
        }
    }

    async fn keep_url(&mut self, url: &Url, refresh: Duration, cooldown: Duration) {
        let outbound = Outbound::new();
        let mut heard = self.watch.unknown_kids();
        let mut pause = if self.failures_in_row == 0 { refresh } else { retry_after(self.failures_in_row) };
        loop {
            wait(&self.watch.keys, heard, cooldown, pause).await;
            // Before the fetch: who asks while it runs may mean a key that it does not bring.
            heard = self.watch.unknown_kids();
            pause = match fetch(&outbound, url).await {
                Ok((content, max_age)) => match self.take(Ok(content)) {
                    Ok(()) => max_age.unwrap_or(refresh).max(cooldown).min(refresh),
                    Err(failures) => retry_after(failures),
                },
                Err(fault) => self.take(Err(fault)).map_or_else(retry_after, |()| refresh),
            };
        }
    }

    /// Makes the best of what came, and tells it. The error is the number of failures in a row.
    fn take(&mut self, content: Result<Vec<u8>, Fault>) -> Result<(), u32> {
        let setting = self.source.setting();
        let loaded = content.and_then(|content| {
            // After a failure the same set is worth a word.
            let is_news = self.failures_in_row > 0 || content != self.content;
            let loaded = is_news.then(|| self.watch.keys.replace(&content)).transpose()?;
            self.content = content;
            Ok(loaded)
        });
        match loaded {
            Ok(loaded) => {
                self.failures_in_row = 0;
                self.watch.found();
                if let Some(loaded) = loaded {
                    log::info(format_args!("{setting}: {}", Told(&loaded)));
                }
                Ok(())
            }
            Err(fault) => {
                self.failures_in_row = self.failures_in_row.saturating_add(1);
                self.watch.failures.fetch_add(1, Relaxed);
                // A file that is gone is looked for every 2 s, which is told once.
                let is_told = self.failures_in_row > 1 && matches!(fault, Fault::Unreadable(_) | Fault::NotFile);
                if !is_told {
                    let rest = if self.watch.keys.is_empty() { "no token can be verified" } else { "the keys known so far stay" };
                    log::warning(format_args!("{setting}: {fault}; {rest}"));
                }
                Err(self.failures_in_row)
            }
        }
    }
}

/// A set in a log line.
struct Told<'a>(&'a Loaded);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tokens are verified with {} {}", self.0.usable, if self.0.usable == 1 { "key" } else { "keys" })?;
        self.0.unfit.iter().try_for_each(|(position, unfit)| write!(f, "; key {position} is not used: {unfit}"))
    }
}

/// What is wrong with keys of a set that shall be used as a whole; that some are for other purposes is as it should be.
pub fn warnings(loaded: &Loaded) -> impl Iterator<Item = String> {
    let is_usual = |unfit: UnfitKey| matches!(unfit, UnfitKey::OtherAlgorithm | UnfitKey::OtherUse);
    loaded.unfit.iter().filter(move |(_, unfit)| !is_usual(*unfit)).map(|(position, unfit)| format!("key {position} is not used: {unfit}"))
}

/// A file's content unless it is as it was `seen`.
fn read(path: &Path, seen: Option<Mark>) -> Result<Option<(Mark, Vec<u8>)>, Fault> {
    let about = std::fs::metadata(path).map_err(Fault::Unreadable)?;
    if !about.is_file() {
        return Err(Fault::NotFile);
    }
    // Taken before the content: whoever writes in between is seen the next time.
    let mark = Mark { device: about.dev(), inode: about.ino(), bytes: about.len(), changed_ns: (about.ctime(), about.ctime_nsec()) };
    if seen == Some(mark) {
        return Ok(None);
    }
    let mut content = Vec::new();
    // One byte more than is allowed, which the set then says.
    let bounded = File::open(path).map(|file| file.take(JWKS_BYTES_MAX as u64 + 1));
    bounded.and_then(|mut file| file.read_to_end(&mut content)).map_err(Fault::Unreadable)?;
    Ok(Some((mark, content)))
}

/// What the URL gives, and for how long it may be kept where it says so.
async fn fetch(outbound: &Outbound, url: &Url) -> Result<(Vec<u8>, Option<Duration>), Fault> {
    let reply = outbound.get(url, &[], BOUNDS).await?;
    if reply.status != StatusCode::OK {
        return Err(Fault::Status(reply.status));
    }
    Ok((reply.body.to_vec(), max_age(&reply.headers)))
}

/// `max-age` of `Cache-Control`.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let lines = headers.get_all(CACHE_CONTROL).into_iter().filter_map(|line| line.to_str().ok());
    let mut words = lines.flat_map(|line| line.split(',')).filter_map(|word| word.trim().split_once('='));
    let (_, seconds) = words.find(|(name, _)| name.eq_ignore_ascii_case("max-age"))?;
    seconds.trim_matches('"').parse().ok().map(Duration::from_secs)
}

fn retry_after(failures_in_row: u32) -> Duration {
    let doublings = failures_in_row.saturating_sub(1).min(RETRY_MAX.as_secs().ilog2() + 1);
    (RETRY_FIRST * 2_u32.pow(doublings)).min(RETRY_MAX)
}

/// Waits until the pause is over; but no longer than the cooldown once a token has named a key that is not in the set.
async fn wait(keys: &KeySet, heard: u64, cooldown: Duration, pause: Duration) {
    let begun = Instant::now();
    loop {
        let left = pause.saturating_sub(begun.elapsed());
        if left.is_zero() || (begun.elapsed() >= cooldown && keys.unknown_kids() != heard) {
            return;
        }
        tokio::time::sleep(left.min(LISTEN_EVERY)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::scratch::Scratch;
    use engine::auth::{Algorithm, AuthFault, Key, Verifier};

    const KEY: &str = r#"{"kty":"OKP","crv":"Ed25519","x":"aJCchsS7-Ct3Hp9tVrmTINPlFmgb4Dw8j7kpqoHJbag","kid":"a"}"#;
    const OTHER_KEY: &str = r#"{"kty":"OKP","crv":"Ed25519","x":"7jIWknkinYPHXnA4HpVx8kMxs4BcP2gR1adnBwT7eZ4","kid":"b"}"#;

    fn jwks(keys: &[&str]) -> String {
        format!(r#"{{"keys":[{}]}}"#, keys.join(","))
    }

    fn keys() -> Arc<KeySet> {
        Arc::new(KeySet::new(Algorithm::EdDsa))
    }

    /// Shows a token whose key nobody knows.
    fn show_unknown(keys: &Arc<KeySet>) {
        let verifier = Verifier::new(Key::Set(keys.clone())).expect("any set will do");
        // {"alg":"EdDSA","kid":"z"}
        assert_eq!(verifier.verify("eyJhbGciOiJFZERTQSIsImtpZCI6InoifQ.e30.AAAA", 0), Err(AuthFault::Invalid));
    }

    #[test]
    fn retries_back_off_and_end_at_a_minute() {
        let waits: Vec<u64> = [1, 2, 3, 6, 7, 8, 100, u32::MAX].map(|failures| retry_after(failures).as_secs()).into();
        assert_eq!(waits, [1, 2, 4, 32, 60, 60, 60, 60]);
    }

    #[test]
    fn the_age_that_is_allowed_is_found() {
        let cases = [
            ("max-age=60", Some(60)),
            ("public, max-age=600, must-revalidate", Some(600)),
            ("Max-Age=\"7\"", Some(7)),
            ("s-maxage=5", None),
            ("no-store", None),
            ("max-age=-1", None),
            ("max-age", None),
        ];
        for (line, seconds) in cases {
            let headers = HeaderMap::from_iter([(CACHE_CONTROL, line.parse().expect("a header"))]);
            assert_eq!(max_age(&headers), seconds.map(Duration::from_secs), "{line}");
        }
        assert_eq!(max_age(&HeaderMap::new()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_key_shortens_the_pause_down_to_the_cooldown() {
        let (cooldown, pause) = (Duration::from_secs(30), Duration::from_secs(600));
        let waited = async |keys: &Arc<KeySet>, heard, pause| {
            let begun = Instant::now();
            wait(keys, heard, cooldown, pause).await;
            begun.elapsed().as_secs()
        };
        let keys = keys();
        assert_eq!(waited(&keys, 0, pause).await, 600);
        show_unknown(&keys);
        assert_eq!(waited(&keys, 0, pause).await, 30, "it was shown before, and not looked for since");
        assert_eq!(waited(&keys, 1, pause).await, 600, "it has been looked for");
        assert_eq!(waited(&keys, 0, Duration::from_secs(1)).await, 1, "a pause below the cooldown stays");
        let later = keys.clone();
        let shown = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(100)).await;
            show_unknown(&later);
        });
        assert_eq!(waited(&keys, 1, pause).await, 100);
        shown.await.expect("it ends");
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_is_read_again_when_it_changes() {
        let file = Scratch::file(jwks(&[KEY]));
        let keys = keys();
        let (keeper, loaded) = Keeper::of_file(file.path().to_owned(), keys.clone()).expect("a good file");
        assert_eq!((loaded.usable, keys.len()), (1, 1));
        let watch = keeper.watch();
        let kept = tokio::spawn(keeper.keep());
        let until = async |wanted: &dyn Fn() -> bool, what: &str| {
            for _ in 0..1_000 {
                if wanted() {
                    return;
                }
                tokio::time::sleep(FILE_EVERY / 4).await;
            }
            panic!("{what}");
        };
        // In one step, as it should be done: a half of it would be one more failure.
        let put = |content: &str| {
            let other = file.directory().join("other");
            std::fs::write(&other, content).expect("ours");
            std::fs::rename(&other, file.path()).expect("ours");
        };
        put(&jwks(&[KEY, OTHER_KEY]));
        until(&|| keys.len() == 2, "one more key").await;
        put(&jwks(&[OTHER_KEY]));
        until(&|| keys.len() == 1, "one less").await;
        for (content, failures) in [(r#"{"keys":["#, 1), (r#"{"keys":[]}"#, 2)] {
            put(content);
            until(&|| watch.failures() == failures, content).await;
        }
        std::fs::remove_file(file.path()).expect("ours");
        until(&|| watch.failures() > 2, "no file").await;
        assert_eq!(keys.len(), 1, "the keys known so far stay");
        put(&jwks(&[KEY, OTHER_KEY]));
        until(&|| keys.len() == 2, "all is well again").await;
        kept.abort();
    }

    #[test]
    fn a_file_must_be_a_file_and_good() {
        let file = Scratch::file(jwks(&[]));
        let said = |path: &Path| Keeper::of_file(path.to_owned(), keys()).err().map(|fault| fault.to_string()).unwrap_or_default();
        assert!(said(file.path()).contains("no usable key"), "{}", said(file.path()));
        assert_eq!(said(file.directory()), "not a file");
        assert_eq!(said(Path::new("/dev/zero")), "not a file");
        assert!(said(Path::new("/nonexistent")).contains("cannot be read"));
        let large = Scratch::file(" ".repeat(JWKS_BYTES_MAX + 1));
        assert!(said(large.path()).contains("larger than"));
    }
}
