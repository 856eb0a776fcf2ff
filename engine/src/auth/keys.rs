//! Keys that do not change while the server runs: a shared secret, or one public key in PEM form. What is wrong with one is said when it is
//! given, not when the first token comes.

use std::fmt;
use std::sync::Arc;

use jsonwebtoken::DecodingKey;

use super::key_set::KeySet;

/// Bytes of the DER form of an RSA public key of 2,048 bits: 256 of them are the modulus. Shorter keys can be factored, and the
/// library would refuse every token instead of the key.
const RSA_2048_DER_BYTES: usize = 256;

/// Bytes of an uncompressed point of P-256: a tag and two coordinates of 32.
pub(super) const P256_POINT_BYTES: usize = 65;

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

impl Algorithm {
    pub(super) fn of_library(self) -> jsonwebtoken::Algorithm {
        match self {
            Algorithm::Rs256 => jsonwebtoken::Algorithm::RS256,
            Algorithm::Es256 => jsonwebtoken::Algorithm::ES256,
            Algorithm::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }
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
    /// Public keys that somebody else publishes and changes; whoever keeps the other reference brings in what is new.
    Set(Arc<KeySet>),
}

impl fmt::Debug for Key {
    /// Names the kind and never shows the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Hs256(_) => f.write_str("Hs256(..)"),
            Key::Pem { algorithm, .. } => write!(f, "Pem({algorithm:?}, ..)"),
            Key::Set(set) => write!(f, "Set({:?}, ..)", set.algorithm()),
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

pub(super) fn hmac_key(secret: &[u8]) -> Result<DecodingKey, KeyFault> {
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
pub(super) fn public_key(algorithm: Algorithm, pem: &[u8]) -> Result<DecodingKey, KeyFault> {
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

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::super::Verifier;
    use super::super::samples::*;
    use super::*;

    fn pem(algorithm: Algorithm, pem: &str) -> Result<Verifier, KeyFault> {
        Verifier::new(Key::Pem { algorithm, pem: pem.as_bytes().to_vec() })
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
}
