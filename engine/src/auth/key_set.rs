//! A set of public keys that somebody else publishes and changes while we run (a JWKS, RFC 7517): read from bytes, exchanged in one step that
//! no verifier waits for, and searched by the token's `kid`. Where the bytes come from it does not know; it counts the tokens whose key is not here, so
//! that whoever does know may look for it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{DecodingKey, TokenData, Validation};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::keys::{Algorithm, P256_POINT_BYTES};
use super::{AuthFault, Claims};
use crate::limits::{JWKS_BYTES_MAX, JWKS_KEYS_MAX};

/// Bits of an RSA modulus: shorter ones can be factored, longer ones the library refuses, because they cost whoever verifies too much.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=8_192;

/// Bytes of a coordinate of P-256, and of a public key of Ed25519.
const COORDINATE_BYTES: usize = 32;
const _: () = assert!(P256_POINT_BYTES == 1 + 2 * COORDINATE_BYTES);

/// Keys for one algorithm, exchangeable at any time. While it is empty every token is refused.
pub struct KeySet {
    algorithm: Algorithm,
    keys: ArcSwap<Vec<NamedKey>>,
    unknown_kids: AtomicU64,
}

struct NamedKey {
    kid: Option<String>,
    key: DecodingKey,
}

/// What a set had in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loaded {
    /// Keys that verify tokens from now on; at least one.
    pub usable: usize,
    /// The others: position in the set, from 1, and what is the matter.
    pub unfit: Vec<(usize, UnfitKey)>,
}

/// Why one key of a set is passed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnfitKey {
    /// Not an object with the members that its type needs.
    #[error("malformed")]
    Malformed,
    /// Another type of key, curve or `alg` than the one algorithm has.
    #[error("for another algorithm")]
    OtherAlgorithm,
    /// By its `use` or `key_ops` not for checking signatures.
    #[error("not for signatures")]
    OtherUse,
    /// RSA with fewer bits than 2,048 or more than 8,192.
    #[error("RSA with fewer than 2048 or more than 8192 bits")]
    RsaSize,
    /// With its private part: whoever can read the set could sign.
    #[error("a private key")]
    Private,
}

/// Why a set is refused as a whole.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeySetFault {
    /// More bytes than [`JWKS_BYTES_MAX`].
    #[error("the key set is larger than {JWKS_BYTES_MAX} bytes")]
    Oversize,
    /// Not JSON, or not an object with a list `keys`.
    #[error("not a JSON Web Key Set: an object with the list \"keys\"")]
    NotKeySet,
    /// More keys than [`JWKS_KEYS_MAX`].
    #[error("the key set has more than {JWKS_KEYS_MAX} keys")]
    TooMany,
    /// A set without a single key that can be used; with the reason for the first.
    #[error("the key set has no usable key{}", .0.map(|unfit| format!(": the first is {unfit}")).unwrap_or_default())]
    NoneUsable(Option<UnfitKey>),
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySet({:?}, {} keys)", self.algorithm, self.len())
    }
}

impl KeySet {
    /// An empty set.
    pub fn new(algorithm: Algorithm) -> KeySet {
        KeySet { algorithm, keys: ArcSwap::default(), unknown_kids: AtomicU64::new(0) }
    }

    /// The one algorithm its keys are for.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// How many keys verify tokens now.
    pub fn len(&self) -> usize {
        self.keys.load().len()
    }

    /// True exactly when every token is refused for want of a key.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens so far that named a key which was not in the set.
    pub fn unknown_kids(&self) -> u64 {
        self.unknown_kids.load(Ordering::Relaxed)
    }

    /// Takes the keys of a JSON Web Key Set in place of those it had. A refused set changes nothing.
    pub fn replace(&self, jwks: &[u8]) -> Result<Loaded, KeySetFault> {
        let (keys, unfit) = read(self.algorithm, jwks)?;
        let usable = keys.len();
        if usable == 0 {
            return Err(KeySetFault::NoneUsable(unfit.first().map(|(_, unfit)| *unfit)));
        }
        self.keys.store(Arc::new(keys));
        Ok(Loaded { usable, unfit })
    }

    /// Checks a token's signature with the key that it names. One that names none is checked only where there is no choice.
    pub(super) fn decode(&self, token: &str, signature_only: &Validation) -> Result<TokenData<Claims>, AuthFault> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| AuthFault::Invalid)?;
        if header.alg != self.algorithm.of_library() {
            return Err(AuthFault::Invalid);
        }
        let keys = self.keys.load();
        let Some(kid) = header.kid else {
            let [only] = keys.as_slice() else { return Err(AuthFault::Invalid) };
            return jsonwebtoken::decode(token, &only.key, signature_only).map_err(|_| AuthFault::Invalid);
        };
        // Names should be unique, but nothing forbids two keys of one name; JWKS_KEYS_MAX bounds the work.
        let mut named = keys.iter().filter(|key| key.kid.as_deref() == Some(&*kid)).peekable();
        if named.peek().is_none() {
            self.unknown_kids.fetch_add(1, Ordering::Relaxed);
        }
        named.find_map(|key| jsonwebtoken::decode(token, &key.key, signature_only).ok()).ok_or(AuthFault::Invalid)
    }
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Value>,
}

/// The members of a key that mean something here.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<IgnoredAny>,
}

type Unfit = Vec<(usize, UnfitKey)>;

fn read(algorithm: Algorithm, jwks: &[u8]) -> Result<(Vec<NamedKey>, Unfit), KeySetFault> {
    if jwks.len() > JWKS_BYTES_MAX {
        return Err(KeySetFault::Oversize);
    }
    let jwks: Jwks = serde_json::from_slice(jwks).map_err(|_| KeySetFault::NotKeySet)?;
    if jwks.keys.len() > JWKS_KEYS_MAX {
        return Err(KeySetFault::TooMany);
    }
    let (mut keys, mut unfit) = (Vec::new(), Vec::new());
    for (index, key) in jwks.keys.into_iter().enumerate() {
        match serde_json::from_value(key).map_err(|_| UnfitKey::Malformed).and_then(|key: Jwk| key.named(algorithm)) {
            Ok(key) => keys.push(key),
            Err(fault) => unfit.push((index + 1, fault)),
        }
    }
    Ok((keys, unfit))
}

impl Jwk {
    fn named(self, algorithm: Algorithm) -> Result<NamedKey, UnfitKey> {
        let (kty, crv, alg) = match algorithm {
            Algorithm::Rs256 => ("RSA", None, "RS256"),
            Algorithm::Es256 => ("EC", Some("P-256"), "ES256"),
            Algorithm::EdDsa => ("OKP", Some("Ed25519"), "EdDSA"),
        };
        if self.kty != kty || crv.is_some() && self.crv.as_deref() != crv || self.alg.as_deref().is_some_and(|own| own != alg) {
            return Err(UnfitKey::OtherAlgorithm);
        }
        let verifies = self.key_ops.as_ref().is_none_or(|operations| operations.iter().any(|operation| operation == "verify"));
        if self.usage.as_deref().is_some_and(|usage| usage != "sig") || !verifies {
            return Err(UnfitKey::OtherUse);
        }
        if self.d.is_some() {
            return Err(UnfitKey::Private);
        }
        let key = match algorithm {
            Algorithm::Rs256 => rsa(&decoded(&self.n)?, &decoded(&self.e)?)?,
            Algorithm::Es256 => p256(&decoded(&self.x)?, &decoded(&self.y)?)?,
            Algorithm::EdDsa => ed25519(&decoded(&self.x)?)?,
        };
        Ok(NamedKey { kid: self.kid, key })
    }
}

fn decoded(member: &Option<String>) -> Result<Vec<u8>, UnfitKey> {
    let text = member.as_ref().ok_or(UnfitKey::Malformed)?;
    URL_SAFE_NO_PAD.decode(text).map_err(|_| UnfitKey::Malformed)
}

// Each is parsed once here as well, so that what could verify nothing is said when it comes and not by every token.

fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<DecodingKey, UnfitKey> {
    // Some write a sign's byte in front, which the library takes for a fault.
    let plain = |number: &[u8]| number[number.iter().take_while(|byte| **byte == 0).count()..].to_vec();
    let (n, e) = (plain(modulus), plain(exponent));
    let bits = n.len() * 8 - n.first().map_or(0, |first| first.leading_zeros() as usize);
    if !RSA_BITS.contains(&bits) {
        return Err(UnfitKey::RsaSize);
    }
    let components = RsaPublicKeyComponents { n: &n, e: &e };
    components.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256).map_err(|_| UnfitKey::Malformed)?;
    Ok(DecodingKey::from_rsa_raw_components(&n, &e))
}

fn p256(x: &[u8], y: &[u8]) -> Result<DecodingKey, UnfitKey> {
    if x.len() != COORDINATE_BYTES || y.len() != COORDINATE_BYTES {
        return Err(UnfitKey::Malformed);
    }
    let point = [&[4], x, y].concat();
    ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &point).map_err(|_| UnfitKey::Malformed)?;
    Ok(DecodingKey::from_ec_der(&point))
}

fn ed25519(x: &[u8]) -> Result<DecodingKey, UnfitKey> {
    if x.len() != COORDINATE_BYTES {
        return Err(UnfitKey::Malformed);
    }
    ParsedPublicKey::new(&ED25519, x).map_err(|_| UnfitKey::Malformed)?;
    Ok(DecodingKey::from_ed_der(x))
}

#[cfg(test)]
mod tests {
    use super::super::samples::*;
    use super::super::{Key, Verifier};
    use super::*;

    fn jwks(keys: &[&str]) -> String {
        format!(r#"{{"keys":[{}]}}"#, keys.join(","))
    }

    /// A set and whoever verifies with it.
    fn verifier(algorithm: Algorithm) -> (Arc<KeySet>, Verifier) {
        let set = Arc::new(KeySet::new(algorithm));
        let verifier = Verifier::new(Key::Set(set.clone())).expect("an empty set is allowed");
        (set, verifier)
    }

    fn unfit(algorithm: Algorithm, key: &str) -> Option<UnfitKey> {
        match KeySet::new(algorithm).replace(jwks(&[key]).as_bytes()) {
            Err(KeySetFault::NoneUsable(unfit)) => unfit,
            other => panic!("{key} gives {other:?}"),
        }
    }

    #[test]
    fn keys_come_and_go_while_tokens_are_verified() {
        let (set, verifier) = verifier(Algorithm::EdDsa);
        let is_good = |token| verifier.verify(token, NOW_MS).is_ok();
        assert_eq!([A_TOKEN, B_TOKEN, A_TOKEN_NAMELESS].map(is_good), [false; 3], "nothing is known yet");
        assert_eq!(set.unknown_kids(), 2);
        assert_eq!(set.replace(jwks(&[A_JWK]).as_bytes()), Ok(Loaded { usable: 1, unfit: vec![] }));
        assert_eq!([A_TOKEN, B_TOKEN, A_TOKEN_NAMELESS].map(is_good), [true, false, true]);
        assert_eq!(set.replace(jwks(&[A_JWK, B_JWK]).as_bytes()).map(|loaded| loaded.usable), Ok(2));
        assert_eq!([A_TOKEN, B_TOKEN, A_TOKEN_NAMELESS].map(is_good), [true, true, false], "without a name there is a choice");
        assert_eq!(set.replace(jwks(&[B_JWK]).as_bytes()).map(|loaded| loaded.usable), Ok(1));
        assert_eq!([A_TOKEN, B_TOKEN, A_TOKEN_NAMELESS].map(is_good), [false, true, false], "the wrong one is the only one");
        for refused in ["", "{}", "[]", r#"{"keys":{}}"#, r#"{"keys":[]}"#, &jwks(&[RSA_JWK])] {
            assert!(set.replace(refused.as_bytes()).is_err(), "{refused}");
        }
        assert!(is_good(B_TOKEN) && set.len() == 1, "what is refused changes nothing");
        assert_eq!(set.unknown_kids(), 4);
    }

    #[test]
    fn only_tokens_of_the_algorithm_ask_for_new_keys() {
        let (set, verifier) = verifier(Algorithm::EdDsa);
        let header = |header: &str| [&part(header), &A_TOKEN[A_TOKEN.find('.').expect("three parts")..]].concat();
        for token in ["x.y.z", &header(r#"{"alg":"HS256","kid":"new"}"#), &header(r#"{"alg":"EdDSA"}"#), &header(r#"{"kid":"new"}"#)] {
            assert_eq!(verifier.verify(token, NOW_MS), Err(AuthFault::Invalid));
        }
        assert_eq!(set.unknown_kids(), 0);
        assert_eq!(verifier.verify(&header(r#"{"alg":"EdDSA","kid":"new"}"#), NOW_MS), Err(AuthFault::Invalid));
        assert_eq!(set.unknown_kids(), 1);
    }

    #[test]
    fn each_algorithm_has_its_keys() {
        let cases = [
            (Algorithm::Rs256, "RS256", RSA_JWK, RSA_SIGNATURE),
            (Algorithm::Es256, "ES256", EC_JWK, EC_SIGNATURE),
            (Algorithm::EdDsa, "EdDSA", ED_JWK, ED_SIGNATURE),
        ];
        for (algorithm, name, key, signature) in cases {
            let (set, verifier) = verifier(algorithm);
            // Those of the others are passed over and told.
            let loaded = set.replace(jwks(&[RSA_JWK, EC_JWK, ED_JWK, RSA_1024_JWK, EC_P384_JWK]).as_bytes()).expect("one fits");
            assert_eq!((loaded.usable, loaded.unfit.len()), (1, 4), "{name}");
            let token = format!("{}.{}.{signature}", part(format!(r#"{{"alg":"{name}","typ":"JWT"}}"#)), part(SIGNED_CLAIMS));
            assert!(verifier.verify(&token, NOW_MS).is_ok(), "{name}");
            let named = key.replace(r#"{"kty""#, r#"{"kid":"k","kty""#);
            // A key's name does not keep it from tokens without one, where it is the only key.
            assert!(set.replace(jwks(&[&named]).as_bytes()).is_ok() && verifier.verify(&token, NOW_MS).is_ok(), "{name}");
            let confused = super::super::mint(key.as_bytes(), &serde_json::json!({"sub": "alice"})).expect("an object");
            assert_eq!(verifier.verify(&confused, NOW_MS), Err(AuthFault::Invalid), "{name}: HS256 with the public key as secret");
        }
    }

    #[test]
    fn two_keys_of_one_name_are_both_tried() {
        let (set, verifier) = verifier(Algorithm::EdDsa);
        set.replace(jwks(&[&B_JWK.replace(r#""b""#, r#""a""#), A_JWK]).as_bytes()).expect("two keys");
        assert!(verifier.verify(A_TOKEN, NOW_MS).is_ok());
    }

    #[test]
    fn unfit_keys_are_told_apart() {
        let with = |key: &str, member: &str| key.replace(r#"{"kty""#, &format!(r#"{{{member},"kty""#));
        let cases = [
            (Algorithm::Rs256, RSA_1024_JWK.to_owned(), UnfitKey::RsaSize),
            (Algorithm::Rs256, with(RSA_JWK, r#""alg":"RS512""#), UnfitKey::OtherAlgorithm),
            (Algorithm::Rs256, with(RSA_JWK, r#""use":"enc""#), UnfitKey::OtherUse),
            (Algorithm::Rs256, with(RSA_JWK, r#""key_ops":["sign","encrypt"]"#), UnfitKey::OtherUse),
            (Algorithm::Rs256, with(RSA_JWK, r#""d":"AQAB""#), UnfitKey::Private),
            (Algorithm::Rs256, with(RSA_JWK, r#""kid":7"#), UnfitKey::Malformed),
            (Algorithm::Rs256, RSA_JWK.replace("AQAB", ""), UnfitKey::Malformed),
            (Algorithm::Rs256, RSA_JWK.replace("AQAB", "AA"), UnfitKey::Malformed),
            (Algorithm::Rs256, RSA_JWK.replace(r#","e":"AQAB""#, ""), UnfitKey::Malformed),
            (Algorithm::Rs256, ED_JWK.to_owned(), UnfitKey::OtherAlgorithm),
            (Algorithm::Es256, EC_P384_JWK.to_owned(), UnfitKey::OtherAlgorithm),
            (Algorithm::Es256, EC_JWK.replace("HxQc", "HxQd"), UnfitKey::Malformed),
            (Algorithm::Es256, EC_JWK.replace("HxQc", ""), UnfitKey::Malformed),
            (Algorithm::EdDsa, ED_JWK.replace("Ed25519", "X25519"), UnfitKey::OtherAlgorithm),
            (Algorithm::EdDsa, ED_JWK.replace("-EVa", ""), UnfitKey::Malformed),
            (Algorithm::EdDsa, ED_JWK.replace("-EVa", "+EVa"), UnfitKey::Malformed),
            (Algorithm::EdDsa, r#"{"kty":"oct","k":"AAAA"}"#.to_owned(), UnfitKey::OtherAlgorithm),
            (Algorithm::EdDsa, "7".to_owned(), UnfitKey::Malformed),
            (Algorithm::EdDsa, "{}".to_owned(), UnfitKey::Malformed),
        ];
        for (algorithm, key, fault) in cases {
            assert_eq!(unfit(algorithm, &key), Some(fault), "{key}");
        }
        for fine in [with(ED_JWK, r#""use":"sig","key_ops":["verify"],"alg":"EdDSA","x5c":["AAAA"]"#), with(ED_JWK, r#""use":null"#)] {
            assert!(KeySet::new(Algorithm::EdDsa).replace(jwks(&[&fine]).as_bytes()).is_ok(), "{fine}");
        }
        let signed = RSA_JWK.replace(r#""n":""#, r#""n":"AAAA"#);
        assert!(KeySet::new(Algorithm::Rs256).replace(jwks(&[&signed]).as_bytes()).is_ok(), "zeros in front");
    }

    #[test]
    fn sets_have_bounds() {
        let set = KeySet::new(Algorithm::EdDsa);
        assert!(set.replace(jwks(&vec![ED_JWK; JWKS_KEYS_MAX]).as_bytes()).is_ok());
        assert_eq!(set.replace(jwks(&vec![ED_JWK; JWKS_KEYS_MAX + 1]).as_bytes()), Err(KeySetFault::TooMany));
        let padded = |bytes: usize| {
            let set = jwks(&[ED_JWK]);
            " ".repeat(bytes - set.len()) + &set
        };
        assert!(set.replace(padded(JWKS_BYTES_MAX).as_bytes()).is_ok());
        assert_eq!(set.replace(padded(JWKS_BYTES_MAX + 1).as_bytes()), Err(KeySetFault::Oversize));
    }

    proptest::proptest! {
        #[test]
        fn no_set_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), members in "[a-zA-Z0-9\":,{}_-]{0,120}") {
            for algorithm in [Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa] {
                proptest::prop_assert!(KeySet::new(algorithm).replace(&bytes).is_err());
                let _ = KeySet::new(algorithm).replace(jwks(&[&members]).as_bytes());
            }
        }
    }
}
