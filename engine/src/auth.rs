//! From a token to an identity; the only file that knows `jsonwebtoken`. Tokens are verified and dropped, never stored or logged.
//!
//! The library checks the signature and nothing else: its own checks of `exp` and `nbf` read the system's clock and round, ours take
//! the time as an argument. It knows no room and no dialect: the lists of a token are handed on as they are.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Deserializer};

use crate::ids::{UserId, checked_name};
use crate::limits::TOKEN_BYTES_MAX;

/// How far clocks may differ, in seconds, unless [`Verifier::with_leeway_s`] says otherwise (contract).
pub const LEEWAY_S: u64 = 5;

/// Elements of one list in a token. No check is needed: the bound on the token's bytes is the smaller one, because base64 turns
/// four characters into three bytes and the shortest element, `"",`, has three.
const LIST_ELEMENTS_MAX: usize = 10_000;
const _: () = assert!(TOKEN_BYTES_MAX / 4 <= LIST_ELEMENTS_MAX);

/// Bytes of the DER form of an RSA public key of 2,048 bits: 256 of them are the modulus. Shorter keys can be factored, and the
/// library would refuse every token instead of the key.
const RSA_2048_DER_BYTES: usize = 256;

/// Bytes of an uncompressed point of P-256: a tag and two coordinates of 32.
const P256_POINT_BYTES: usize = 65;

/// Who a verified token says someone is.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Identity {
    /// `sub`.
    pub user: UserId,
    /// `name`.
    pub name: Option<String>,
    /// `email`.
    pub email: Option<String>,
    /// `picture`.
    pub picture: Option<String>,
    /// `rooms`: room ids the user may enter; `None` when the claim is absent.
    pub rooms: Option<Vec<String>>,
    /// `groups`, likewise.
    pub groups: Option<Vec<String>>,
    /// `documents`, likewise.
    pub documents: Option<Vec<String>>,
    /// `blocked`: users this user has blocked; sorted, each once, so that every message may search it by halves.
    pub blocked: Vec<String>,
    /// `exp` plus the leeway, in milliseconds since 1970; `None` for a token without `exp`.
    pub expires_unix_ms: Option<u64>,
    /// All claims, as the token has them; only from a verifier that keeps them ([`Verifier::keeping_claims`]).
    pub claims: Option<Box<str>>,
}

/// What was wrong with a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AuthFault {
    /// None was given, or an empty one.
    #[error("no token")]
    Missing,
    /// Not a token, or one with a wrong signature, algorithm or claim.
    #[error("invalid token")]
    Invalid,
    /// `exp` has passed.
    #[error("token expired")]
    Expired,
}

/// Signature algorithms with a public key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Algorithm {
    /// RSA PKCS#1 1.5 with SHA-256; keys of 2,048 to 8,192 bits.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

/// What signatures are checked with. It pins the algorithm: a token that names another is refused.
pub enum Key {
    /// HMAC with SHA-256: who can verify can also sign.
    Hs256(Vec<u8>),
    /// A public key as PEM text (`BEGIN PUBLIC KEY`, for RSA also `BEGIN RSA PUBLIC KEY`).
    Pem {
        /// The one algorithm it is for.
        algorithm: Algorithm,
        /// The text.
        pem: Vec<u8>,
    },
}

impl fmt::Debug for Key {
    /// Names the kind and never shows the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Hs256(_) => f.write_str("Hs256(..)"),
            Key::Pem { algorithm, .. } => write!(f, "Pem({algorithm:?}, ..)"),
        }
    }
}

/// Why a key is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyFault {
    /// The secret has no bytes: anyone could sign.
    #[error("the secret is empty")]
    Empty,
    /// A PEM text where a secret belongs: public keys are public, so anyone could sign.
    #[error("the secret is a PEM key: give its file as the public key and name its algorithm")]
    PemAsSecret,
    /// Not a public key in PEM form (a private key and a certificate are refused too).
    #[error("not a public key in PEM form")]
    NotPublicKey,
    /// A public key for another algorithm.
    #[error("the public key does not belong to the algorithm")]
    OtherAlgorithm,
    /// RSA with fewer than 2,048 bits.
    #[error("the RSA key is shorter than 2048 bits")]
    ShortRsa,
}

/// Verifies tokens with one pinned algorithm and key.
pub struct Verifier {
    key: DecodingKey,
    signature_only: Validation,
    leeway_ms: u64,
    keeps_claims: bool,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({:?})", self.signature_only.algorithms)
    }
}

impl Verifier {
    /// A verifier with the leeway [`LEEWAY_S`].
    pub fn new(key: Key) -> Result<Verifier, KeyFault> {
        let (key, algorithm) = match key {
            Key::Hs256(secret) => (hmac_key(&secret)?, jsonwebtoken::Algorithm::HS256),
            Key::Pem { algorithm, pem } => (public_key(algorithm, &pem)?, library_algorithm(algorithm)),
        };
        Ok(Verifier { key, signature_only: signature_only(algorithm), leeway_ms: LEEWAY_S * 1_000, keeps_claims: false })
    }

    /// The same with another leeway.
    #[must_use]
    pub fn with_leeway_s(self, leeway_s: u64) -> Verifier {
        Verifier { leeway_ms: leeway_s.saturating_mul(1_000), ..self }
    }

    /// The same, with all claims in its identities: for a back end that is asked about them.
    #[must_use]
    pub fn keeping_claims(self, keeps_claims: bool) -> Verifier {
        Verifier { keeps_claims, ..self }
    }

    /// Checks signature, `exp`, `nbf`, `sub`. `now_unix_ms` is the wall clock.
    pub fn verify(&self, token: &str, now_unix_ms: u64) -> Result<Identity, AuthFault> {
        if token.is_empty() {
            return Err(AuthFault::Missing);
        }
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthFault::Invalid);
        }
        let claims = self.keeps_claims.then(|| payload(token)).flatten();
        let token = jsonwebtoken::decode::<Claims>(token, &self.key, &self.signature_only).map_err(|_| AuthFault::Invalid)?;
        // RFC 7515 section 4.1.11: an extension that must be understood, and we understand none.
        if token.header.crit.is_some() {
            return Err(AuthFault::Invalid);
        }
        let identity = token.claims.identity(now_unix_ms, self.leeway_ms)?;
        Ok(Identity { claims, ..identity })
    }
}

/// The claims of a signed token as they stand in it.
fn payload(token: &str) -> Option<Box<str>> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    String::from_utf8(claims).ok().map(Box::from)
}

/// The part of a token's claims that means something here. A claim that is there twice, or of another type, makes the token invalid.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    // RFC 7519 calls both a NumericDate: whole or with a fraction. Null is neither a date nor absence.
    #[serde(default, deserialize_with = "not_null")]
    exp: Option<f64>,
    #[serde(default, deserialize_with = "not_null")]
    nbf: Option<f64>,
    // Session tokens of NextAuth carry null for what a user has not filled in.
    name: Option<String>,
    email: Option<String>,
    picture: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    rooms: Option<Vec<String>>,
    #[serde(default, deserialize_with = "not_null")]
    groups: Option<Vec<String>>,
    #[serde(default, deserialize_with = "not_null")]
    documents: Option<Vec<String>>,
    #[serde(default)]
    blocked: Vec<String>,
}

impl Claims {
    fn identity(mut self, now_unix_ms: u64, leeway_ms: u64) -> Result<Identity, AuthFault> {
        let user = checked_name(&self.sub).map_err(|_| AuthFault::Invalid)?.into();
        let expires_unix_ms = self.exp.map(|at| unix_ms(at).saturating_add(leeway_ms));
        if expires_unix_ms.is_some_and(|at| now_unix_ms >= at) {
            return Err(AuthFault::Expired);
        }
        if self.nbf.is_some_and(|from| now_unix_ms.saturating_add(leeway_ms) < unix_ms(from)) {
            return Err(AuthFault::Invalid);
        }
        self.blocked.sort_unstable();
        self.blocked.dedup();
        Ok(Identity {
            user,
            name: self.name,
            email: self.email,
            picture: self.picture,
            rooms: self.rooms,
            groups: self.groups,
            documents: self.documents,
            blocked: self.blocked,
            expires_unix_ms,
            claims: None,
        })
    }
}

/// For a claim that may be absent but not null.
fn not_null<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Seconds since 1970 as whole milliseconds; what is before 1970 or beyond the end of time is moved there.
fn unix_ms(seconds: f64) -> u64 {
    (seconds * 1_000.0) as u64
}

/// Tells the library to check the signature with one algorithm and no claim.
fn signature_only(algorithm: jsonwebtoken::Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}

fn hmac_key(secret: &[u8]) -> Result<DecodingKey, KeyFault> {
    if secret.is_empty() {
        return Err(KeyFault::Empty);
    }
    if contains(secret, b"-----BEGIN ") {
        return Err(KeyFault::PemAsSecret);
    }
    Ok(DecodingKey::from_secret(secret))
}

/// Reads a public key. The label is checked first, because the library also takes a private key or a certificate and then
/// refuses every token.
fn public_key(algorithm: Algorithm, pem: &[u8]) -> Result<DecodingKey, KeyFault> {
    if !contains(pem, b"-----BEGIN PUBLIC KEY-----") && !contains(pem, b"-----BEGIN RSA PUBLIC KEY-----") {
        return Err(KeyFault::NotPublicKey);
    }
    let read = match algorithm {
        Algorithm::Rs256 => DecodingKey::from_rsa_pem,
        Algorithm::Es256 => DecodingKey::from_ec_pem,
        Algorithm::EdDsa => DecodingKey::from_ed_pem,
    };
    let key = read(pem).map_err(|_| KeyFault::OtherAlgorithm)?;
    let bytes = key.try_get_as_bytes().map_err(|_| KeyFault::OtherAlgorithm)?;
    match algorithm {
        Algorithm::Rs256 if bytes.len() < RSA_2048_DER_BYTES => Err(KeyFault::ShortRsa),
        Algorithm::Es256 if bytes.len() != P256_POINT_BYTES => Err(KeyFault::OtherAlgorithm),
        _ => Ok(key),
    }
}

fn library_algorithm(algorithm: Algorithm) -> jsonwebtoken::Algorithm {
    match algorithm {
        Algorithm::Rs256 => jsonwebtoken::Algorithm::RS256,
        Algorithm::Es256 => jsonwebtoken::Algorithm::ES256,
        Algorithm::EdDsa => jsonwebtoken::Algorithm::EdDSA,
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Claims that could not be signed: they are no JSON object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the claims of a token are a JSON object")]
pub struct MintFault;

/// Signs `claims` with HS256, for trying out (`uringcast token`, `--dev`) and for tests.
pub fn mint(secret: &[u8], claims: &serde_json::Value) -> Result<String, MintFault> {
    if !claims.is_object() {
        return Err(MintFault);
    }
    jsonwebtoken::encode(&Header::default(), claims, &EncodingKey::from_secret(secret)).map_err(|_| MintFault)
}

/// Cookies in which NextAuth 4 and Auth.js 5 keep a session, in the order they are looked for. Only signed tokens are understood
/// in them so far, not encrypted ones.
pub fn session_cookie_names() -> [&'static str; 4] {
    ["next-auth.session-token", "__Secure-next-auth.session-token", "authjs.session-token", "__Secure-authjs.session-token"]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    // Public keys made for these tests with openssl; their private halves signed the one token below each and were thrown away.
    const RSA_PEM: &str = "\
-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAuwkUwOx7L3ga1jfkuq6t
tE5RChbU2Q4p+pdy5aOCZ52qmA1JZgNAU7wkS9uDU5JinuCpeIYARcx4ye5Qhd5A
Swrt8dy1apNc0UQ79SMm9b6m699Kr/NroUm3t6quIJ3RvZxwJqocMAuro3NsI0xv
qr1Obp3va8Rx+6B38DQuHvaKBz6JIsGkUClrwVb13mDGhJ0jiHkQgAG4WupeqEY+
1tl9JwQIjrWPVrhBGqGnFaMcZDqCyXKRosVX75UlGYqMTFarYdstBPW2zOujLETQ
K+uPX66JJlbhq5uj9cTXUG05c3bY2k5SZdkDNlWJ8GHHY1Z0KqzfW1n48Q2VRrGH
fQIDAQAB
-----END PUBLIC KEY-----
";
    const EC_PEM: &str = "\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEHxQcpKkmI7ykF0MwNzjXZdIfN4rO
cc9C2uX9z7DkYPpNLXOzymkhU2xigSt7i80lPkrmTL6oeAh0kGRdyCAczw==
-----END PUBLIC KEY-----
";
    const ED_PEM: &str = "\
-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEA+EVaXurCmrtpcr8g2nc2O6NA0nk3jjQBciS2ugOe6XQ=
-----END PUBLIC KEY-----
";
    const RSA_1024_PEM: &str = "\
-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDOn/VY/7jGjXi3SOjWZOAfHXlg
YpKdGDKcUI1cEaBZFw0jcO/mISPvpl5jG+yXOMj6iaAOj5QVqiv3hzv2gtEL9tdc
R5hbXClnrKMG3Ui8Np2m2/wkwB34oegUBoy6LXttjWtUX7vEsiRfot+QvkAekpqZ
XyJswCiTxVprLj1lNwIDAQAB
-----END PUBLIC KEY-----
";
    const EC_P384_PEM: &str = "\
-----BEGIN PUBLIC KEY-----
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAE7GE5AsNMdZrZGAtW5n6jjPRcbRdxqcn0
u9CkpLa/8H9GXG6p00G3010f45PePr6hLLe6XR1QCUSPjqZLobtkONNtcb813MBb
P+GDRQW+fAUm5YUiZ46cX5uDcPbm0nCN
-----END PUBLIC KEY-----
";
    const RSA_SIGNATURE: &str = "B7RuPoFh_MmzrT2WT90AQ4QgIG7dskEVTm0BkIjiiLEhQumMcLwhViBElRMRTcDd8QlHrGu16Ez9ieVCt1Jg3E0KWFiHhE9OUW5BGAm5JphkpI8hIpbOapLsqq-iK-m-ZI5z24aMLmkqToFvZl2s_eYqSR73PPgmTlCL1e3y-KHhp2kZu7dbZpO4ZwY6Hd4AISWAU2AqOiqzIaOmhf3io_jcI2s8IrithrhQ9k3Vxh_My5yUbNRUMFqw062dNiP4vj-dcxS5JovK-L6MpcXOgApLOP9y8isW74qovl1CoH9m7DJcXnFuCnRhdYwPRYCEoIR7fY620dWRcjg4e1SPgw";
    const EC_SIGNATURE: &str = "bAvXxvJPJhD6XokuiQQx9O0ZAOAmgzLtfryUWyFjucdQ6Q1lmy4ov67QpDMpLtYUCLhDc3BZompUJ4fJMqCnDw";
    const ED_SIGNATURE: &str = "dSUCYS9iTC_6YZtmH_qveAzZfVJ7wT-UQKwQyBkG-TZjVErqtIqe36QVJvsrz9qXmrQZtbVB36NHDgVyGV4QAg";
    /// What the three signed: `{"alg":..,"typ":"JWT"}` and `{"sub":"alice","exp":2000000000}`.
    const SIGNED_CLAIMS: &str = r#"{"sub":"alice","exp":2000000000}"#;
    const SECRET: &[u8] = b"a secret for tests only";
    const NOW_S: u64 = 1_700_000_000;
    const NOW_MS: u64 = NOW_S * 1_000;

    fn hs256() -> Verifier {
        Verifier::new(Key::Hs256(SECRET.to_vec())).expect("a good secret")
    }

    fn pem(algorithm: Algorithm, pem: &str) -> Result<Verifier, KeyFault> {
        Verifier::new(Key::Pem { algorithm, pem: pem.as_bytes().to_vec() })
    }

    fn part(json: &str) -> String {
        URL_SAFE_NO_PAD.encode(json)
    }

    /// A correctly signed HS256 token of any header and claims, objects or not.
    fn signed(secret: &[u8], header: &str, claims: &str) -> String {
        let message = format!("{}.{}", part(header), part(claims));
        let key = EncodingKey::from_secret(secret);
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, jsonwebtoken::Algorithm::HS256).expect("hmac");
        format!("{message}.{signature}")
    }

    fn verify(claims: &Value) -> Result<Identity, AuthFault> {
        hs256().verify(&mint(SECRET, claims).expect("an object"), NOW_MS)
    }

    #[test]
    fn a_good_token_gives_the_whole_identity() {
        let claims = json!({"sub": "alice", "name": "Alice", "email": "a@example.com", "picture": "https://x/a.png", "rooms": ["r1", "r2"],
            "groups": [], "documents": ["d"], "blocked": ["eve", "bob", "eve"], "exp": NOW_S + 60, "nbf": NOW_S, "iat": NOW_S, "aud": "x", "deep": {"a": [1]}});
        let expected = Identity {
            user: "alice".into(),
            name: Some("Alice".into()),
            email: Some("a@example.com".into()),
            picture: Some("https://x/a.png".into()),
            rooms: Some(vec!["r1".into(), "r2".into()]),
            groups: Some(vec![]),
            documents: Some(vec!["d".into()]),
            blocked: vec!["bob".into(), "eve".into()],
            expires_unix_ms: Some((NOW_S + 65) * 1_000),
            claims: None,
        };
        assert_eq!(verify(&claims), Ok(expected));
        let bare = Identity { user: "bob".into(), ..Identity::default() };
        assert_eq!(verify(&json!({"sub": "bob"})), Ok(bare.clone()), "without exp it never expires");
        assert_eq!(verify(&json!({"sub": "bob", "name": null, "email": null, "picture": null})), Ok(bare));
    }

    #[test]
    fn times_are_checked_against_the_argument_with_the_leeway() {
        let (ok, expired, early) = (None, Some(AuthFault::Expired), Some(AuthFault::Invalid));
        let cases = [
            (json!({"exp": NOW_S + 1}), 5, ok),
            (json!({"exp": NOW_S - 4}), 5, ok),
            (json!({"exp": NOW_S - 5}), 5, expired),
            (json!({"exp": NOW_S as f64 - 4.999}), 5, ok),
            (json!({"exp": NOW_S}), 0, expired),
            (json!({"exp": NOW_S as f64 + 0.001}), 0, ok),
            (json!({"exp": 0}), 5, expired),
            (json!({"exp": -1}), 5, expired),
            (json!({"exp": 1e300}), 5, ok),
            (json!({"nbf": NOW_S}), 0, ok),
            (json!({"nbf": NOW_S + 5}), 5, ok),
            (json!({"nbf": NOW_S as f64 + 5.001}), 5, early),
            (json!({"nbf": 1e300}), 5, early),
            (json!({"nbf": -7.5}), 0, ok),
            (json!({"nbf": 1e300, "exp": 0}), 5, expired),
        ];
        for (mut claims, leeway_s, fault) in cases {
            claims["sub"] = json!("alice");
            let token = mint(SECRET, &claims).expect("an object");
            let verdict = hs256().with_leeway_s(leeway_s).verify(&token, NOW_MS).err();
            assert_eq!(verdict, fault, "{claims} with leeway {leeway_s}");
        }
        let token = mint(SECRET, &json!({"sub": "a", "exp": NOW_S})).expect("an object");
        assert!(hs256().with_leeway_s(u64::MAX).verify(&token, NOW_MS).is_ok(), "a leeway without end overflows nothing");
        assert!(hs256().verify(&token, 0).is_ok() && hs256().verify(&token, u64::MAX).is_err());
    }

    #[test]
    fn claims_of_wrong_types_are_refused() {
        let cases = [
            r#"{}"#,
            r#"{"sub":null}"#,
            r#"{"sub":7}"#,
            r#"{"sub":""}"#,
            r#"{"sub":"a\nb"}"#,
            r#"{"sub":"\u0001u:alice"}"#,
            r#"{"sub":["alice"]}"#,
            r#"{"sub":"alice","sub":"bob"}"#,
            r#"{"sub":"a","exp":"2000000000"}"#,
            r#"{"sub":"a","exp":null}"#,
            r#"{"sub":"a","exp":1e400}"#,
            r#"{"sub":"a","exp":true}"#,
            r#"{"sub":"a","exp":2000000000,"exp":2000000001}"#,
            r#"{"sub":"a","nbf":[]}"#,
            r#"{"sub":"a","name":7}"#,
            r#"{"sub":"a","email":{}}"#,
            r#"{"sub":"a","rooms":"r1"}"#,
            r#"{"sub":"a","rooms":null}"#,
            r#"{"sub":"a","rooms":[1]}"#,
            r#"{"sub":"a","groups":{"0":"g"}}"#,
            r#"{"sub":"a","documents":[null]}"#,
            r#"{"sub":"a","blocked":[["b"]]}"#,
            r#"{"sub":"a""#,
            r#"["sub","a"]"#,
            r#""alice""#,
            "null",
            "",
        ];
        for claims in cases {
            let token = signed(SECRET, r#"{"alg":"HS256","typ":"JWT"}"#, claims);
            assert_eq!(hs256().verify(&token, NOW_MS), Err(AuthFault::Invalid), "{claims}");
        }
        let long = json!({"sub": "x".repeat(256)});
        assert_eq!(verify(&long), Err(AuthFault::Invalid));
        let deep = format!(r#"{{"sub":"a","x":{}{}}}"#, "[".repeat(5_000), "]".repeat(5_000));
        let token = signed(SECRET, r#"{"alg":"HS256"}"#, &deep);
        assert!(token.len() < TOKEN_BYTES_MAX);
        // Either verdict is right for a claim that nobody reads; the point is that it costs no stack.
        let _ = hs256().verify(&token, NOW_MS);
    }

    #[test]
    fn forged_tokens_are_refused() {
        let good = mint(SECRET, &json!({"sub": "alice"})).expect("an object");
        let (message, signature) = good.rsplit_once('.').expect("three parts");
        let (header, claims) = message.split_once('.').expect("three parts");
        let mallory = part(r#"{"sub":"mallory"}"#);
        let none = part(r#"{"alg":"none","typ":"JWT"}"#);
        let cases = [
            ("another secret", mint(b"another secret", &json!({"sub": "alice"})).expect("an object")),
            ("alg none, no signature", format!("{none}.{claims}.")),
            ("alg none, old signature", format!("{none}.{claims}.{signature}")),
            ("alg None", format!("{}.{claims}.", part(r#"{"alg":"None"}"#))),
            ("no alg", signed(SECRET, r#"{"typ":"JWT"}"#, r#"{"sub":"a"}"#)),
            ("alg of the same family", signed(SECRET, r#"{"alg":"HS512"}"#, r#"{"sub":"a"}"#)),
            ("two algs", signed(SECRET, r#"{"alg":"none","alg":"HS256"}"#, r#"{"sub":"a"}"#)),
            ("crit", signed(SECRET, r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, r#"{"sub":"a"}"#)),
            ("other claims", format!("{header}.{mallory}.{signature}")),
            ("no signature", format!("{message}.")),
            ("a short signature", format!("{message}.{}", &signature[..signature.len() - 4])),
            ("a padded signature", format!("{good}=")),
            ("two parts", message.to_owned()),
            ("one part", header.to_owned()),
            ("four parts", format!("{good}.{signature}")),
            ("five parts, as an encrypted one has", format!("{header}..{claims}.{claims}.{signature}")),
            ("a space before", format!(" {good}")),
            ("a newline after", format!("{good}\n")),
            ("not ASCII", "ä.ö.ü".to_owned()),
            ("dots", "..".to_owned()),
        ];
        for (name, token) in cases {
            assert_eq!(hs256().verify(&token, NOW_MS), Err(AuthFault::Invalid), "{name}");
        }
        assert!(hs256().verify(&good, NOW_MS).is_ok());
        assert_eq!(hs256().verify("", NOW_MS), Err(AuthFault::Missing));
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let good = mint(SECRET, &json!({"sub": "alice"})).expect("an object");
        for at in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let bad = String::from_utf8(bytes).expect("ASCII");
            assert_eq!(hs256().verify(&bad, NOW_MS), Err(AuthFault::Invalid), "character {at}");
        }
    }

    #[test]
    fn a_huge_token_is_refused_without_work() {
        let huge = "A".repeat(24 << 20);
        let begun = std::time::Instant::now();
        assert_eq!(hs256().verify(&huge, NOW_MS), Err(AuthFault::Invalid));
        assert!(begun.elapsed() < std::time::Duration::from_millis(50), "{:?}", begun.elapsed());
        let largest = |name_bytes: usize| mint(SECRET, &json!({"sub": "a", "name": "x".repeat(name_bytes)})).expect("an object");
        assert!(hs256().verify(&largest(12_000), NOW_MS).is_ok());
        assert_eq!(hs256().verify(&largest(13_000), NOW_MS), Err(AuthFault::Invalid));
    }

    #[test]
    fn public_keys_verify_what_their_private_half_signed() {
        let cases = [
            (Algorithm::Rs256, "RS256", RSA_PEM, RSA_SIGNATURE),
            (Algorithm::Es256, "ES256", EC_PEM, EC_SIGNATURE),
            (Algorithm::EdDsa, "EdDSA", ED_PEM, ED_SIGNATURE),
        ];
        for (algorithm, name, key, signature) in cases {
            let verifier = pem(algorithm, key).expect("a good key");
            let header = format!(r#"{{"alg":"{name}","typ":"JWT"}}"#);
            let token = format!("{}.{}.{signature}", part(&header), part(SIGNED_CLAIMS));
            assert_eq!(verifier.verify(&token, NOW_MS).map(|identity| identity.user), Ok("alice".into()), "{name}");
            assert_eq!(verifier.verify(&token, 2_000_000_005_000), Err(AuthFault::Expired), "{name}");
            let other = format!("{}.{}.{signature}", part(&header), part(r#"{"sub":"mallory","exp":2000000000}"#));
            assert_eq!(verifier.verify(&other, NOW_MS), Err(AuthFault::Invalid), "{name} tampered");
            let confused = signed(key.as_bytes(), r#"{"alg":"HS256","typ":"JWT"}"#, SIGNED_CLAIMS);
            assert_eq!(verifier.verify(&confused, NOW_MS), Err(AuthFault::Invalid), "{name}: HS256 with the public key as secret");
            assert_eq!(hs256().verify(&token, NOW_MS), Err(AuthFault::Invalid), "{name} where HS256 is pinned");
            for (wrong, ..) in cases.iter().filter(|case| case.0 != algorithm) {
                assert_eq!(pem(*wrong, key).err(), Some(KeyFault::OtherAlgorithm), "{name} key for {wrong:?}");
            }
        }
    }

    #[test]
    fn unfit_keys_are_refused_at_the_start() {
        assert_eq!(Verifier::new(Key::Hs256(vec![])).err(), Some(KeyFault::Empty));
        assert_eq!(Verifier::new(Key::Hs256(RSA_PEM.into())).err(), Some(KeyFault::PemAsSecret));
        assert_eq!(pem(Algorithm::Rs256, RSA_1024_PEM).err(), Some(KeyFault::ShortRsa));
        assert_eq!(pem(Algorithm::Es256, EC_P384_PEM).err(), Some(KeyFault::OtherAlgorithm));
        for text in
            ["", "hello", "-----BEGIN CERTIFICATE-----\n", "-----BEGIN RSA PRIVATE KEY-----\n", &RSA_PEM.replace("PUBLIC", "PRIVATE")]
        {
            assert_eq!(pem(Algorithm::Rs256, text).err(), Some(KeyFault::NotPublicKey), "{text}");
        }
        assert_eq!(
            pem(Algorithm::Rs256, "-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----\n").err(),
            Some(KeyFault::OtherAlgorithm)
        );
    }

    #[test]
    fn debug_shows_no_key() {
        let text = format!(
            "{:?} {:?} {:?}",
            hs256(),
            Key::Hs256(b"hunter2".to_vec()),
            Key::Pem { algorithm: Algorithm::EdDsa, pem: b"hunter2".to_vec() }
        );
        assert!(!text.contains("hunter2") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn only_objects_are_minted() {
        assert_eq!(mint(SECRET, &json!(["sub"])), Err(MintFault));
    }
}
