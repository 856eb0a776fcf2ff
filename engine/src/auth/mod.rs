//! From a token to an identity; only this folder knows `jsonwebtoken`, and cryptography at all. Tokens are verified and dropped, never
//! stored or logged. Keys come as bytes: it knows no file and no URL.
//!
//! The library checks the signature and nothing else: its own checks of `exp` and `nbf` read the system's clock and round, ours take
//! the time as an argument. It knows no room and no dialect: the lists of a token are handed on as they are.

mod cookie;
mod identity;
mod jwe;
mod key_set;
mod keys;
#[cfg(test)]
mod samples;

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{DecodingKey, EncodingKey, Header, TokenData, Validation};
use serde::{Deserialize, Deserializer, Serialize};

pub use cookie::SessionCookie;
pub use identity::{Details, Identity, Names};
pub use key_set::{KeySet, KeySetFault, Loaded, UnfitKey};
pub use keys::{Algorithm, Key, KeyFault};

use crate::ids::checked_name;
use crate::limits::TOKEN_BYTES_MAX;

/// How far clocks may differ, in seconds, unless [`Verifier::with_leeway_s`] says otherwise (contract).
pub const LEEWAY_S: u64 = 5;

/// Elements of one list in a token. No check is needed: the bound on the token's bytes is the smaller one, because base64 turns
/// four characters into three bytes and the shortest element, `"",`, has three.
const LIST_ELEMENTS_MAX: usize = 10_000;
const _: () = assert!(TOKEN_BYTES_MAX / 4 <= LIST_ELEMENTS_MAX);

/// What was wrong with a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
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

/// Verifies tokens with one pinned algorithm.
pub struct Verifier {
    keys: SigningKeys,
    signature_only: Validation,
    /// What session cookies are decrypted with, in the order of [`SessionCookie::ALL`]; `None` where there is no secret for it.
    sessions: Option<[jwe::ContentKeys; SessionCookie::ALL.len()]>,
    leeway_ms: u64,
    keeps_claims: bool,
}

/// Whose signatures count.
enum SigningKeys {
    One(DecodingKey),
    Set(Arc<KeySet>),
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({:?})", self.signature_only.algorithms)
    }
}

impl Verifier {
    /// A verifier with the leeway [`LEEWAY_S`]. One with a shared secret also decrypts session cookies with it.
    pub fn new(key: Key) -> Result<Verifier, KeyFault> {
        let mut session_secret = None;
        let (keys, algorithm) = match key {
            Key::Hs256(secret) => {
                let key = keys::hmac_key(&secret)?;
                session_secret = Some(secret);
                (SigningKeys::One(key), jsonwebtoken::Algorithm::HS256)
            }
            Key::Pem { algorithm, pem } => (SigningKeys::One(keys::public_key(algorithm, &pem)?), algorithm.of_library()),
            Key::Set(set) => {
                let algorithm = set.algorithm().of_library();
                (SigningKeys::Set(set), algorithm)
            }
        };
        let verifier =
            Verifier { keys, signature_only: signature_only(algorithm), sessions: None, leeway_ms: LEEWAY_S * 1_000, keeps_claims: false };
        match session_secret {
            Some(secret) => verifier.with_session_secret(&secret),
            None => Ok(verifier),
        }
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

    /// The same with this secret for encrypted session cookies. Beside a public key it is for nothing else.
    pub fn with_session_secret(self, secret: &[u8]) -> Result<Verifier, KeyFault> {
        keys::hmac_key(secret)?;
        Ok(Verifier { sessions: Some(SessionCookie::ALL.map(|cookie| cookie.content_keys(secret))), ..self })
    }

    /// Checks signature, `exp`, `nbf`, `sub`. `now_unix_ms` is the wall clock.
    pub fn verify(&self, token: &str, now_unix_ms: u64) -> Result<Identity, AuthFault> {
        bounded(token)?;
        let claims = self.keeps_claims.then(|| payload(token)).flatten();
        let token: TokenData<Claims> = match &self.keys {
            SigningKeys::One(key) => jsonwebtoken::decode(token, key, &self.signature_only).map_err(|_| AuthFault::Invalid)?,
            SigningKeys::Set(set) => set.decode(token, &self.signature_only)?,
        };
        // RFC 7515 section 4.1.11: an extension that must be understood, and we understand none.
        if token.header.crit.is_some() {
            return Err(AuthFault::Invalid);
        }
        let details = token.claims.details(now_unix_ms, self.leeway_ms)?;
        Ok(Details { claims, ..details }.into())
    }

    /// The same for the value of a session cookie, its chunks joined: only there may a token be encrypted instead of signed.
    pub fn verify_cookie(&self, cookie: SessionCookie, value: &str, now_unix_ms: u64) -> Result<Identity, AuthFault> {
        bounded(value)?;
        if !jwe::is_jwe(value) {
            return self.verify(value, now_unix_ms);
        }
        let keys = self.sessions.as_ref().map(|sessions| &sessions[cookie as usize]);
        let content = keys.and_then(|keys| keys.open(value)).ok_or(AuthFault::Invalid)?;
        let claims: Claims = serde_json::from_slice(&content).map_err(|_| AuthFault::Invalid)?;
        let details = claims.details(now_unix_ms, self.leeway_ms)?;
        let claims = self.keeps_claims.then(|| String::from_utf8(content).ok().map(Box::from)).flatten();
        Ok(Details { claims, ..details }.into())
    }
}

/// Refuses what is not worth a look.
fn bounded(token: &str) -> Result<(), AuthFault> {
    match token.len() {
        0 => Err(AuthFault::Missing),
        1..=TOKEN_BYTES_MAX => Ok(()),
        _ => Err(AuthFault::Invalid),
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
    fn details(self, now_unix_ms: u64, leeway_ms: u64) -> Result<Details, AuthFault> {
        let user = checked_name(&self.sub).map_err(|_| AuthFault::Invalid)?.into();
        let expires_unix_ms = self.exp.map(|at| unix_ms(at).saturating_add(leeway_ms));
        if expires_unix_ms.is_some_and(|at| now_unix_ms >= at) {
            return Err(AuthFault::Expired);
        }
        if self.nbf.is_some_and(|from| now_unix_ms.saturating_add(leeway_ms) < unix_ms(from)) {
            return Err(AuthFault::Invalid);
        }
        Ok(Details {
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

#[cfg(test)]
mod tests {
    use super::samples::*;
    use super::*;
    use serde_json::{Value, json};

    const SECRET: &[u8] = samples::SECRET.as_bytes();

    fn hs256() -> Verifier {
        Verifier::new(Key::Hs256(SECRET.to_vec())).expect("a good secret")
    }

    #[test]
    fn claims_are_neither_shown_nor_kept_longer_than_they_are_wanted() {
        let token = mint(SECRET, &json!({"sub": "alice", "salary": "HUSH"})).expect("an object");
        let identity = Arc::new(hs256().keeping_claims(true).verify(&token, NOW_MS).expect("good"));
        assert!(identity.claims().is_some_and(|claims| claims.contains("HUSH")));
        assert!(!format!("{identity:?}").contains("HUSH"));
        let without = identity.clone().without_claims();
        assert_eq!((&*without.user, without.claims()), ("alice", None));
        assert!(Arc::ptr_eq(&without, &without.clone().without_claims()), "copied only where there is something to leave out");
    }

    fn pem(algorithm: Algorithm, pem: &str) -> Result<Verifier, KeyFault> {
        Verifier::new(Key::Pem { algorithm, pem: pem.as_bytes().to_vec() })
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
        let expected = Details {
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
        assert_eq!(verify(&claims), Ok(expected.into()));
        let bare = Identity::of_user("bob".into());
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

    #[test]
    fn cookies_of_the_real_libraries_are_understood_under_their_own_names_only() {
        let cookies = [
            (NEXT_AUTH_COOKIE, &[SessionCookie::NextAuth, SessionCookie::SecureNextAuth][..]),
            (AUTH_JS_COOKIE, &[SessionCookie::AuthJs]),
            (SECURE_AUTH_JS_COOKIE, &[SessionCookie::SecureAuthJs]),
        ];
        let of_another_secret = Verifier::new(Key::Hs256(b"another secret for tests".to_vec())).expect("a good secret");
        for (index, cookie) in SessionCookie::ALL.into_iter().enumerate() {
            assert_eq!(cookie as usize, index, "keys are found by the position");
            for (value, names) in cookies {
                let said = hs256().verify_cookie(cookie, value, NOW_MS);
                if names.contains(&cookie) {
                    let identity = said.expect("a good cookie");
                    assert_eq!((&*identity.user, identity.name(), identity.picture()), ("alice", Some("Alice"), None));
                    assert!(identity.expires_unix_ms().is_some_and(|at| at > 4_900_000_000_000), "exp is in 2126");
                    assert_eq!(hs256().verify_cookie(cookie, value, u64::MAX), Err(AuthFault::Expired), "{cookie:?}");
                } else {
                    assert_eq!(said, Err(AuthFault::Invalid), "{cookie:?} with {value}");
                }
                assert_eq!(of_another_secret.verify_cookie(cookie, value, NOW_MS), Err(AuthFault::Invalid));
                assert_eq!(hs256().verify(value, NOW_MS), Err(AuthFault::Invalid), "encrypted tokens are cookies only");
            }
            let signed = mint(SECRET, &json!({"sub": "bob"})).expect("an object");
            assert_eq!(hs256().verify_cookie(cookie, &signed, NOW_MS).map(|identity| identity.user), Ok("bob".into()));
            assert_eq!(hs256().verify_cookie(cookie, "", NOW_MS), Err(AuthFault::Missing));
        }
    }

    #[test]
    fn claims_are_kept_where_they_are_wanted_of_cookies_too() {
        let verifier = hs256().keeping_claims(true);
        let email_of = |claims: Option<Box<str>>| {
            let claims: Value = serde_json::from_str(&claims.expect("kept")).expect("JSON");
            claims["email"].as_str().map(str::to_owned)
        };
        let signed = mint(SECRET, &json!({"sub": "alice", "email": "a@example.com"})).expect("an object");
        for (cookie, value) in
            [(SessionCookie::AuthJs, AUTH_JS_COOKIE), (SessionCookie::NextAuth, NEXT_AUTH_COOKIE), (SessionCookie::AuthJs, &signed)]
        {
            let identity = verifier.verify_cookie(cookie, value, NOW_MS).expect("a good cookie");
            assert_eq!(email_of(identity.details().claims).as_deref(), Some("a@example.com"));
            assert_eq!(hs256().verify_cookie(cookie, value, NOW_MS).map(|identity| identity.details().claims), Ok(None));
        }
    }

    #[test]
    fn beside_a_public_key_a_secret_is_for_cookies_alone() {
        let keyed = || pem(Algorithm::EdDsa, ED_PEM).expect("a good key");
        let both = keyed().with_session_secret(SECRET).expect("a good secret");
        assert!(both.verify_cookie(SessionCookie::AuthJs, AUTH_JS_COOKIE, NOW_MS).is_ok());
        assert_eq!(keyed().verify_cookie(SessionCookie::AuthJs, AUTH_JS_COOKIE, NOW_MS), Err(AuthFault::Invalid));
        let signed = mint(SECRET, &json!({"sub": "alice"})).expect("an object");
        assert_eq!(both.verify_cookie(SessionCookie::AuthJs, &signed, NOW_MS), Err(AuthFault::Invalid), "the algorithm stays pinned");
        assert_eq!(both.verify(&signed, NOW_MS), Err(AuthFault::Invalid));
        assert_eq!(keyed().with_session_secret(b"").err(), Some(KeyFault::Empty));
        assert_eq!(keyed().with_session_secret(ED_PEM.as_bytes()).err(), Some(KeyFault::PemAsSecret));
    }

    #[test]
    fn every_changed_character_of_a_cookie_is_noticed() {
        for (cookie, good) in [(SessionCookie::NextAuth, NEXT_AUTH_COOKIE), (SessionCookie::AuthJs, AUTH_JS_COOKIE)] {
            let verifier = hs256();
            for at in 0..good.len() {
                for other in ["A", "B", ".", "=", ""] {
                    let bad = [&good[..at], other, &good[at + 1..]].concat();
                    if bad != good {
                        assert_eq!(verifier.verify_cookie(cookie, &bad, NOW_MS), Err(AuthFault::Invalid), "character {at}: {other:?}");
                    }
                }
                assert!(verifier.verify_cookie(cookie, &good[..at], NOW_MS).is_err(), "cut at {at}");
            }
            let long = good.replace("..", &format!("..{}", "A".repeat(TOKEN_BYTES_MAX)));
            assert_eq!(verifier.verify_cookie(cookie, &long, NOW_MS), Err(AuthFault::Invalid));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(text in ".{0,300}", parts in proptest::collection::vec("[A-Za-z0-9_-]{0,40}", 0..7)) {
            let verifier = hs256();
            for value in [text, parts.join("."), format!("{}.{}", NEXT_AUTH_COOKIE.split('.').next().unwrap_or_default(), parts.join("."))] {
                for cookie in SessionCookie::ALL {
                    proptest::prop_assert!(verifier.verify_cookie(cookie, &value, NOW_MS).is_err());
                }
                proptest::prop_assert!(verifier.verify(&value, NOW_MS).is_err());
            }
        }
    }
}
