//! Tokens for trying out: the claims that the command line names, signed with the server's own secret.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::auth::{MintFault, mint};
use serde_json::{Map, Value, json};

use crate::secret::Secret;

/// What a token shall say.
#[derive(Clone, Default, Debug)]
pub struct Claims {
    /// `sub`.
    pub sub: String,
    /// `name`.
    pub name: Option<String>,
    /// `email`.
    pub email: Option<String>,
    /// `rooms`; `None` leaves the claim out.
    pub rooms: Option<Vec<String>>,
    /// `groups`, likewise.
    pub groups: Option<Vec<String>>,
    /// `documents`, likewise.
    pub documents: Option<Vec<String>>,
}

impl Claims {
    /// Claims of a user by that id and name, for `--dev`.
    pub fn of_user(sub: &str, name: &str) -> Claims {
        Claims { sub: sub.to_owned(), name: Some(name.to_owned()), ..Claims::default() }
    }

    /// The signed token, valid from now for `lifetime`.
    pub fn sign(&self, secret: &Secret, lifetime: Duration) -> Result<String, MintFault> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        mint(secret.reveal(), &self.json(now.as_secs(), lifetime))
    }

    fn json(&self, now_unix_s: u64, lifetime: Duration) -> Value {
        let mut claims = Map::new();
        claims.insert("sub".into(), json!(self.sub));
        claims.insert("iat".into(), json!(now_unix_s));
        claims.insert("exp".into(), json!(now_unix_s.saturating_add(lifetime.as_secs())));
        let optional = [
            ("name", self.name.as_ref().map(|name| json!(name))),
            ("email", self.email.as_ref().map(|email| json!(email))),
            ("rooms", self.rooms.as_ref().map(|rooms| json!(rooms))),
            ("groups", self.groups.as_ref().map(|groups| json!(groups))),
            ("documents", self.documents.as_ref().map(|documents| json!(documents))),
        ];
        claims.extend(optional.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        Value::Object(claims)
    }
}

/// Reads `90s`, `30m`, `12h` or `7d`.
pub fn lifetime(text: &str) -> Result<Duration, String> {
    let allowed = || "must be a whole number and s, m, h or d, such as 90s or 12h".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(allowed)?;
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(allowed()),
    };
    let number: u32 = number.parse().map_err(|_| allowed())?;
    Ok(Duration::from_secs(seconds * u64::from(number)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::auth::{Key, Verifier};

    #[test]
    fn a_minted_token_is_accepted_by_a_server_with_the_secret() {
        let secret = Secret::generated();
        let claims = Claims { rooms: Some(vec!["a".into(), "b".into()]), ..Claims::of_user("alice", "Alice") };
        let token = claims.sign(&secret, Duration::from_secs(60)).expect("an object");
        let verifier = Verifier::new(Key::Hs256(secret.reveal().to_vec())).expect("a secret");
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64;
        let identity = verifier.verify(&token, now_ms).expect("a good token").details();
        assert_eq!((&*identity.user, identity.name.as_deref(), identity.groups), ("alice", Some("Alice"), None));
        assert_eq!(identity.rooms, Some(vec!["a".into(), "b".into()]));
        assert!(verifier.verify(&token, now_ms + 70_000).is_err());
    }

    #[test]
    fn lifetimes_are_numbers_with_a_unit() {
        for (text, seconds) in [("90s", 90), ("30m", 1_800), ("1h", 3_600), ("7d", 604_800), ("4294967295d", 371_085_174_288_000)] {
            assert_eq!(lifetime(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "h", "1", "1.5h", "-1h", "1 h", "1w", "4294967296s", "1ä"] {
            assert!(lifetime(bad).is_err(), "{bad}");
        }
    }
}
