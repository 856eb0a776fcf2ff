//! The built binary with tokens whose keys somebody else publishes: in a file that changes, and behind a URL of a small server of this test's own.
//! Keys are made here for each run.

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use support::raw::{Raw, upgrade};
use support::{PATIENCE, Server, Setup, token};

/// Seconds between two fetches, at least: short enough for a test, long enough to see that it holds.
const COOLDOWN: Duration = Duration::from_secs(3);

enum Pair {
    Rs256(RsaKeyPair),
    Es256(EcdsaKeyPair),
    EdDsa(Ed25519KeyPair),
}

/// Whoever signs tokens, with one key.
struct Signer {
    kid: &'static str,
    pair: Pair,
}

impl Signer {
    fn new(algorithm: &str, kid: &'static str) -> Signer {
        let pair = match algorithm {
            "RS256" => Pair::Rs256(RsaKeyPair::generate(KeySize::Rsa2048).expect("a key")),
            "ES256" => Pair::Es256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key")),
            _ => Pair::EdDsa(Ed25519KeyPair::generate().expect("a key")),
        };
        Signer { kid, pair }
    }

    /// The public half as it is published.
    fn jwk(&self) -> Value {
        match &self.pair {
            Pair::Rs256(pair) => {
                let key = pair.public_key();
                let number = |number: aws_lc_rs::io::Positive<'_>| part(number.big_endian_without_leading_zero());
                json!({"kty": "RSA", "kid": self.kid, "use": "sig", "n": number(key.modulus()), "e": number(key.exponent())})
            }
            Pair::Es256(pair) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
                json!({"kty": "EC", "crv": "P-256", "kid": self.kid, "x": part(x), "y": part(y)})
            }
            Pair::EdDsa(pair) => json!({"kty": "OKP", "crv": "Ed25519", "kid": self.kid, "x": part(pair.public_key())}),
        }
    }

    /// A token of this user that lasts so many seconds.
    fn token(&self, user: &str, seconds: u64) -> String {
        let algorithm = match self.pair {
            Pair::Rs256(_) => "RS256",
            Pair::Es256(_) => "ES256",
            Pair::EdDsa(_) => "EdDSA",
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let claims = json!({"sub": user, "exp": now + seconds});
        let message = format!("{}.{}", part(json!({"alg": algorithm, "kid": self.kid}).to_string()), part(claims.to_string()));
        let signature = match &self.pair {
            Pair::Rs256(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature).expect("signed");
                signature
            }
            Pair::Es256(pair) => pair.sign(&SystemRandom::new(), message.as_bytes()).expect("signed").as_ref().to_vec(),
            Pair::EdDsa(pair) => pair.sign(message.as_bytes()).as_ref().to_vec(),
        };
        format!("{message}.{}", part(signature))
    }
}

fn part(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn jwks(signers: &[&Signer]) -> String {
    json!({"keys": signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>()}).to_string()
}

/// A server with these variables, which live as long as the test.
fn start(variables: &[(&'static str, &str)]) -> Server {
    let variables: Vec<(&'static str, &'static str)> =
        variables.iter().map(|(name, value)| (*name, &*Box::leak((*value).to_owned().into_boxed_str()))).collect();
    // More handshakes than one address usually has.
    Server::start(&Setup { limits: "handshakes_per_address = 1000000\n", variables: variables.leak(), ..Setup::default() })
}

/// True exactly when this token lets somebody in.
fn is_let_in(server: &Server, token: &str) -> bool {
    let mut raw = Raw::connect(server.public);
    raw.send(upgrade(&format!("/talk?token={token}")).as_bytes());
    match raw.status() {
        Some(101) => true,
        Some(401) => false,
        other => panic!("an upgrade is answered {other:?}"),
    }
}

fn until(what: &str, mut wanted: impl FnMut() -> bool) {
    let end = Instant::now() + 2 * PATIENCE;
    while !wanted() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn a_file_rotates(algorithm: &str) {
    let [old, new] = [Signer::new(algorithm, "old"), Signer::new(algorithm, "new")];
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("keys-{algorithm}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    let (file, next) = (folder.join("jwks.json"), folder.join("next"));
    // In one step, as it should be done.
    let publish = |content: &str| {
        std::fs::write(&next, content).expect("ours");
        std::fs::rename(&next, &file).expect("ours");
    };
    publish(&jwks(&[&old]));
    let path = file.to_str().expect("UTF-8");
    let mut server = start(&[("URINGCAST_AUTH_ALGORITHM", algorithm), ("URINGCAST_AUTH_JWKS_FILE", path)]);
    let [by_old, by_new] = [old.token("alice", 3_600), new.token("alice", 3_600)];
    assert!(is_let_in(&server, &by_old) && !is_let_in(&server, &by_new));
    assert!(!is_let_in(&server, &token("alice")), "the shared secret signs nothing here");
    assert!(!is_let_in(&server, &Signer::new(algorithm, "old").token("alice", 3_600)), "another key of the same name");

    publish(&jwks(&[&old, &new]));
    until("the new key is known", || is_let_in(&server, &by_new));
    assert!(is_let_in(&server, &by_old), "both count");
    // Whoever came with the old key stays, and goes on with the new one.
    let mut raw = Raw::open(&server, &format!("/talk?token={}", old.token("bob", 5)));
    assert!(raw.text().contains("USER_JOINED"), "the greeting");
    publish(&jwks(&[&new]));
    until("the old key is gone", || !is_let_in(&server, &by_old));
    raw.say(&format!(r#"{{"type":"AUTHENTICATE","payload":{{"token":"{}"}}}}"#, old.token("bob", 3_600)));
    assert!(raw.text().contains("UNAUTHORIZED"), "by the old key");
    raw.say(&format!(r#"{{"type":"AUTHENTICATE","payload":{{"token":"{}"}}}}"#, new.token("bob", 6)));
    assert!(raw.text().contains("AUTHENTICATED"), "by the new key");
    assert_eq!(raw.close_code(), Some(4401), "and its end comes too");

    publish("{}");
    server.until_metric("uringcast_jwks_failures_total", &[], |failures| failures >= 1.0);
    assert!(is_let_in(&server, &by_new), "a bad file changes nothing");
    assert!(server.said().contains("auth.jwks_file: not a JSON Web Key Set"), "{}", server.said());
    assert_eq!(server.metric("uringcast_jwks_keys", &[]), 1.0);
    server.assert_well();
    let _ = std::fs::remove_dir_all(&folder);
}

#[test]
fn a_file_rotates_with_rs256() {
    a_file_rotates("RS256");
}

#[test]
fn a_file_rotates_with_es256() {
    a_file_rotates("ES256");
}

#[test]
fn a_file_rotates_with_eddsa() {
    a_file_rotates("EdDSA");
}

/// A server of key sets: it answers every request with what is published, and counts.
struct Publisher {
    address: SocketAddr,
    answer: Arc<Mutex<(&'static str, String)>>,
    asked: Arc<AtomicUsize>,
}

impl Publisher {
    fn new(status: &'static str, body: &str) -> Publisher {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let publisher = Publisher {
            address: listener.local_addr().expect("bound"),
            answer: Arc::new(Mutex::new((status, body.to_owned()))),
            asked: Arc::default(),
        };
        let (answer, asked) = (publisher.answer.clone(), publisher.asked.clone());
        // Ends with the process.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let head = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
                assert!(head.count() > 0, "a request");
                asked.fetch_add(1, Ordering::SeqCst);
                let (status, body) = answer.lock().expect("nobody panics").clone();
                let length = body.len();
                // Whoever has gone needs no answer.
                let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
            }
        });
        publisher
    }

    fn publish(&self, status: &'static str, body: &str) {
        *self.answer.lock().expect("nobody panics") = (status, body.to_owned());
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn start(&self) -> Server {
        let url = format!("http://{}/keys?hush", self.address);
        let cooldown = COOLDOWN.as_secs().to_string();
        start(&[
            ("URINGCAST_AUTH_ALGORITHM", "EdDSA"),
            ("URINGCAST_AUTH_JWKS_URL", &url),
            ("URINGCAST_AUTH_JWKS_COOLDOWN_SECONDS", &cooldown),
        ])
    }
}

#[test]
fn a_url_is_asked_for_unknown_keys_and_never_hammered() {
    let [old, new, stranger] = ["old", "new", "stranger"].map(|kid| Signer::new("EdDSA", kid));
    let publisher = Publisher::new("200 OK", &jwks(&[&old]));
    let begun = Instant::now();
    let mut server = publisher.start();
    assert_eq!(publisher.asked(), 1, "before the first client");
    assert!(is_let_in(&server, &old.token("alice", 3_600)) && publisher.asked() == 1, "who is known costs nothing");
    publisher.publish("200 OK", &jwks(&[&old, &new]));
    until("the new key is fetched because it is shown", || is_let_in(&server, &new.token("alice", 3_600)));
    // Now somebody shows keys that nobody will ever know.
    let flooded = Instant::now();
    let mut shown = 0;
    while flooded.elapsed() < 2 * COOLDOWN {
        assert!(!is_let_in(&server, &stranger.token("eve", 3_600)));
        shown += 1;
    }
    // The first was free, and each further one waited.
    let most = 2 + begun.elapsed().as_secs() as usize / COOLDOWN.as_secs() as usize;
    assert!(publisher.asked() <= most, "{} fetches in {:?} for {shown} tokens", publisher.asked(), begun.elapsed());
    assert!(server.metric("uringcast_jwks_unknown_kids_total", &[]) >= f64::from(shown));

    for (status, body, word) in [("500 Oops", String::new(), "status 500"), ("200 OK", "{}".to_owned(), "not a JSON Web Key Set")] {
        publisher.publish(status, &body);
        until(word, || {
            let _ = is_let_in(&server, &stranger.token("eve", 3_600));
            server.said().contains(word)
        });
        assert!(is_let_in(&server, &new.token("alice", 3_600)), "the keys known so far stay");
    }
    assert!(!server.said().contains("hush"), "{}", server.said());
    publisher.publish("200 OK", &jwks(&[&new]));
    until("all is well again, and the old key gone", || !is_let_in(&server, &old.token("alice", 3_600)));
    server.assert_well();
}

#[test]
fn a_url_that_gives_nothing_lets_nobody_in_until_it_does() {
    let signer = Signer::new("EdDSA", "k");
    let publisher = Publisher::new("503 Later", "");
    let mut server = publisher.start();
    assert!(!is_let_in(&server, &signer.token("alice", 3_600)));
    assert!(server.said().contains("no token can be verified"), "{}", server.said());
    assert_eq!(server.metric("uringcast_jwks_keys", &[]), 0.0);
    publisher.publish("200 OK", &jwks(&[&signer]));
    until("it is asked again by itself", || is_let_in(&server, &signer.token("alice", 3_600)));
    server.assert_well();
}
