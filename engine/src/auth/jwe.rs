//! Encrypted tokens in their compact form (RFC 7516) with a key that both sides have (`alg` dir) and A256GCM or A256CBC-HS512 (RFC 7518).
//! It gives bytes that nobody changed and only who has the key could make, or nothing; it does not know what they mean, and does not
//! say what was wrong, because that would help whoever tries.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{hkdf, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::not_null;

/// Bytes of the key of A256GCM.
const GCM_KEY_BYTES: usize = 32;

/// Bytes of the key of A256CBC-HS512: the first half authenticates, the second encrypts (RFC 7518 section 5.2.2.1).
const CBC_KEY_BYTES: usize = 64;

/// Bytes that remain of the HMAC as the tag of A256CBC-HS512.
const CBC_TAG_BYTES: usize = 32;

/// What a token of one origin is decrypted with, under either of the two methods.
pub(super) struct ContentKeys {
    gcm: LessSafeKey,
    cbc: PaddedBlockDecryptingKey,
    mac: hmac::Key,
}

/// What a token's protected header must say. A word that is there twice makes it invalid, and so does an extension or a compression.
#[derive(Deserialize)]
struct Header {
    #[serde(rename = "alg")]
    _algorithm: KeyManagement,
    enc: Method,
    #[serde(default, deserialize_with = "not_null")]
    zip: Option<IgnoredAny>,
    #[serde(default, deserialize_with = "not_null")]
    crit: Option<IgnoredAny>,
}

#[derive(Deserialize)]
enum KeyManagement {
    #[serde(rename = "dir")]
    Direct,
}

#[derive(Deserialize)]
enum Method {
    #[serde(rename = "A256GCM")]
    Gcm,
    #[serde(rename = "A256CBC-HS512")]
    CbcHs512,
}

/// A length that keys are made in.
struct Bytes(usize);

impl hkdf::KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

/// True exactly when a text has the form of an encrypted token, whatever is in it.
pub(super) fn is_jwe(text: &str) -> bool {
    text.split('.').count() == 5
}

impl ContentKeys {
    /// By HKDF with SHA-256. The key of the one method is the beginning of the other's, as HKDF makes it.
    pub(super) fn derive(secret: &[u8], salt: &str, info: &str) -> ContentKeys {
        let mut key = [0; CBC_KEY_BYTES];
        let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, salt.as_bytes()).extract(secret);
        extracted
            .expand(&[info.as_bytes()], Bytes(CBC_KEY_BYTES))
            .and_then(|expanded| expanded.fill(&mut key))
            .expect("64 bytes are what is filled, and less than the 8,160 that HKDF can make");
        let (authenticates, encrypts) = key.split_at(CBC_KEY_BYTES / 2);
        let fits = "both halves have the 32 bytes of AES-256";
        ContentKeys {
            gcm: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key[..GCM_KEY_BYTES]).expect(fits)),
            cbc: PaddedBlockDecryptingKey::cbc_pkcs7(UnboundCipherKey::new(&AES_256, encrypts).expect(fits))
                .expect("AES has blocks that can be chained"),
            mac: hmac::Key::new(hmac::HMAC_SHA512, authenticates),
        }
    }

    /// The content of a compact token; `None` for everything that is not whole, in form and unchanged.
    pub(super) fn open(&self, jwe: &str) -> Option<Vec<u8>> {
        let mut parts = jwe.split('.');
        let (header_text, key) = (parts.next()?, parts.next()?);
        let [iv, mut content, tag] = [decoded(parts.next()?)?, decoded(parts.next()?)?, decoded(parts.next()?)?];
        if parts.next().is_some() || !key.is_empty() {
            return None;
        }
        let header: Header = serde_json::from_slice(&decoded(header_text)?).ok()?;
        if header.zip.is_some() || header.crit.is_some() {
            return None;
        }
        let length = match header.enc {
            Method::Gcm => self.open_gcm(header_text, &iv, &mut content, &tag)?,
            Method::CbcHs512 => self.open_cbc(header_text, &iv, &mut content, &tag)?,
        };
        content.truncate(length);
        Some(content)
    }

    /// Decrypts in place and says how long the result is.
    fn open_gcm(&self, header: &str, iv: &[u8], content: &mut [u8], tag: &[u8]) -> Option<usize> {
        let nonce = Nonce::try_assume_unique_for_key(iv).ok()?;
        let plain = self.gcm.open_in_place_separate_tag(nonce, Aad::from(header.as_bytes()), tag, content).ok()?;
        Some(plain.len())
    }

    /// The same. Nothing is decrypted before the tag has been found right: the padding of what anybody may have written is never looked at.
    fn open_cbc(&self, header: &str, iv: &[u8], content: &mut [u8], tag: &[u8]) -> Option<usize> {
        let mut mac = hmac::Context::with_key(&self.mac);
        let header_bits = header.len() as u64 * 8;
        for part in [header.as_bytes(), iv, content, &header_bits.to_be_bytes()] {
            mac.update(part);
        }
        verify_slices_are_equal(&mac.sign().as_ref()[..CBC_TAG_BYTES], tag).ok()?;
        let iv: FixedLength<16> = iv.try_into().ok()?;
        let plain = self.cbc.decrypt(content, DecryptionContext::Iv128(iv)).ok()?;
        Some(plain.len())
    }
}

fn decoded(part: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(part).ok()
}

#[cfg(test)]
mod tests {
    use super::super::samples::*;
    use super::*;
    use aws_lc_rs::cipher::{EncryptionContext, PaddedBlockEncryptingKey};

    const PLAIN: &[u8] = br#"{"sub":"alice"}"#;
    const GCM: &str = r#"{"alg":"dir","enc":"A256GCM"}"#;
    const CBC: &str = r#"{"alg":"dir","enc":"A256CBC-HS512"}"#;

    fn keys() -> ContentKeys {
        ContentKeys::derive(SECRET.as_bytes(), "salt", "info")
    }

    /// A token that is right in all but what its header may say.
    fn sealed_gcm(header: &str, key: &str) -> String {
        let (header, mut content) = (part(header), PLAIN.to_vec());
        let nonce = Nonce::assume_unique_for_key([7; 12]);
        let tag = keys().gcm.seal_in_place_separate_tag(nonce, Aad::from(header.as_bytes()), &mut content).expect("sealed");
        format!("{header}.{key}.{}.{}.{}", part([7; 12]), part(content), part(tag))
    }

    /// The same by the other method; `padded` is what is encrypted as it stands.
    fn sealed_cbc(header: &str, padded: Option<&[u8]>) -> String {
        let mut key = [0; CBC_KEY_BYTES];
        let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, b"salt").extract(SECRET.as_bytes());
        extracted.expand(&[b"info"], Bytes(CBC_KEY_BYTES)).and_then(|it| it.fill(&mut key)).expect("64 bytes");
        let cipher_key = || UnboundCipherKey::new(&AES_256, &key[32..]).expect("32 bytes");
        let iv = || EncryptionContext::Iv128(FixedLength::from([9; 16]));
        let (header, mut content) = (part(header), padded.unwrap_or(PLAIN).to_vec());
        if padded.is_some() {
            aws_lc_rs::cipher::EncryptingKey::cbc(cipher_key())
                .and_then(|it| it.less_safe_encrypt(&mut content, iv()))
                .expect("whole blocks");
        } else {
            PaddedBlockEncryptingKey::cbc_pkcs7(cipher_key()).and_then(|it| it.less_safe_encrypt(&mut content, iv())).expect("encrypted");
        }
        let bits = (header.len() as u64 * 8).to_be_bytes();
        let tag = hmac::sign(&keys().mac, &[header.as_bytes(), &[9; 16], &content, &bits].concat());
        format!("{header}..{}.{}.{}", part([9; 16]), part(content), part(&tag.as_ref()[..CBC_TAG_BYTES]))
    }

    #[test]
    fn the_example_of_rfc_7518_opens() {
        // Appendix B.3, whose text is no token: the key's two halves, the text that is authenticated, and the rest as they stand there.
        let key: Vec<u8> = (0..64).collect();
        let keys = ContentKeys {
            cbc: PaddedBlockDecryptingKey::cbc_pkcs7(UnboundCipherKey::new(&AES_256, &key[32..]).expect("32 bytes")).expect("CBC"),
            mac: hmac::Key::new(hmac::HMAC_SHA512, &key[..32]),
            ..keys()
        };
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hexadecimal")).collect()
        };
        let iv = hex("1af38c2dc2b96ffdd86694092341bc04");
        let mut content = hex(concat!(
            "4affaaadb78c31c5da4b1b590d10ffbd3dd8d5d302423526912da037ecbcc7bd",
            "822c301dd67c373bccb584ad3e9279c2e6d12a1374b77f077553df829410446b",
            "36ebd97066296ae6427ea75c2e0846a11a09ccf5370dc80bfecbad28c73f09b3",
            "a3b75e662a2594410ae496b2e2e6609e31e6e02cc837f053d21f37ff4f51950b",
            "be2638d09dd7a4930930806d0703b1f6",
        ));
        let tag = hex("4dd3b4c088a7f45c216839645b2012bf2e6269a8c56a816dbc1b267761955bc5");
        let length = keys.open_cbc("The second principle of Auguste Kerckhoffs", &iv, &mut content, &tag).expect("it is right");
        assert!(content[..length].starts_with(b"A cipher system must not be required to be secret"), "{content:?}");
    }

    #[test]
    fn only_what_is_meant_opens() {
        assert_eq!(keys().open(&sealed_gcm(GCM, "")).as_deref(), Some(PLAIN));
        assert_eq!(keys().open(&sealed_cbc(CBC, None)).as_deref(), Some(PLAIN));
        assert_eq!(keys().open(&sealed_gcm(r#"{"enc":"A256GCM","kid":"x","typ":"JWT","alg":"dir"}"#, "")).as_deref(), Some(PLAIN));
        for header in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"alg":"dir"}"#,
            r#"{"enc":"A256GCM"}"#,
            r#"{"alg":"A256KW","enc":"A256GCM"}"#,
            r#"{"alg":"none","enc":"A256GCM"}"#,
            r#"{"alg":"DIR","enc":"A256GCM"}"#,
            r#"{"alg":"dir","enc":"A128GCM"}"#,
            r#"{"alg":"dir","enc":"A256CBC-HS512"}"#,
            r#"{"alg":"dir","enc":"A256GCM","enc":"A256GCM"}"#,
            r#"{"alg":"dir","alg":"dir","enc":"A256GCM"}"#,
            r#"{"alg":"dir","enc":"A256GCM","zip":"DEF"}"#,
            r#"{"alg":"dir","enc":"A256GCM","zip":null}"#,
            r#"{"alg":"dir","enc":"A256GCM","crit":["exp"],"exp":1}"#,
            r#"{"alg":"dir","enc":"A256GCM","crit":[]}"#,
            r#"{"alg":["dir"],"enc":"A256GCM"}"#,
            r#"{"alg":"dir","enc":"A256GCM"} x"#,
        ] {
            assert_eq!(keys().open(&sealed_gcm(header, "")), None, "{header}");
        }
        assert_eq!(keys().open(&sealed_gcm(GCM, "AAAA")), None, "dir has no encrypted key");
        assert_eq!(keys().open(&sealed_cbc(GCM, None)), None, "one method's content under the other's name");
    }

    #[test]
    fn padding_is_looked_at_although_the_tag_is_right() {
        for (last, is_good) in [(1, true), (16, true), (0, false), (17, false), (2, false)] {
            let mut block = [last; 16];
            if last == 2 {
                block[14] = 1;
            }
            assert_eq!(keys().open(&sealed_cbc(CBC, Some(&block))).is_some(), is_good, "{last}");
        }
        assert_eq!(keys().open(&sealed_cbc(CBC, Some(&[]))), None, "not one block");
    }

    #[test]
    fn parts_of_other_lengths_are_refused() {
        for token in [sealed_gcm(GCM, ""), sealed_cbc(CBC, None)] {
            let parts: Vec<&str> = token.split('.').collect();
            for position in 2..5 {
                let bytes = decoded(parts[position]).expect("ours");
                for changed in [&[][..], &bytes[..bytes.len() - 1], &bytes[..bytes.len() / 2], &[&bytes[..], b"x"].concat()] {
                    let changed = part(changed);
                    let mut parts = parts.clone();
                    parts[position] = &changed;
                    assert_eq!(keys().open(&parts.join(".")), None, "part {position}");
                }
            }
            assert_eq!(keys().open(&format!("{token}.")), None);
            assert_eq!(keys().open(token.rsplit_once('.').expect("five parts").0), None);
            assert_eq!(keys().open(&format!("{token}=")), None, "padded base64");
        }
    }
}
