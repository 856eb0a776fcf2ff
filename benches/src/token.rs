//! Mints the HS256 tokens with which the connections identify themselves. It verifies nothing: that is the server's part.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Long enough for any run, short enough that a leaked command line is soon worth nothing.
const LIFETIME_SECONDS: u64 = 24 * 3600;

/// A token of `subject`, valid from `now` (seconds since 1970), that may enter `room` where membership is by claims.
pub(crate) fn mint(secret: &[u8], subject: &str, room: &str, now: u64) -> String {
    let claims = serde_json::json!({ "sub": subject, "name": subject, "iat": now, "exp": now + LIFETIME_SECONDS, "rooms": [room] });
    let mut token = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(claims.to_string(), &mut token);
    let signature = sign(secret, token.as_bytes());
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    token
}

fn sign(secret: &[u8], text: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
    mac.update(text);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_matches_rfc_7515_appendix_a1() {
        let key = URL_SAFE_NO_PAD
            .decode("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow")
            .expect("the key of the RFC");
        let text = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.\
                    eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        assert_eq!(URL_SAFE_NO_PAD.encode(sign(&key, text.as_bytes())), "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
    }

    #[test]
    fn claims_carry_subject_room_and_expiry() {
        let token = mint(b"secret", "user-1", "room-1", 1_000);
        let body = token.split('.').nth(1).expect("three parts");
        let claims: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).expect("base64")).expect("JSON");
        assert_eq!((claims["sub"].as_str(), claims["rooms"][0].as_str()), (Some("user-1"), Some("room-1")));
        assert_eq!(claims["exp"].as_u64(), Some(1_000 + LIFETIME_SECONDS));
    }
}
