//! What tokens are verified with: the secret, the public key or the key set, and how the settings for them go together. Where a secret may be
//! kept, the settings as a whole know.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine::auth::{Algorithm, Key, KeySet, Verifier};

use super::NO_SECRET;
use super::sources::Gathered;
use crate::jwks::{self, Keeper};
use crate::outbound::Url;
use crate::secret::Secret;

/// Settings of public keys, of which one is set.
const PUBLIC_KEYS: [&str; 3] = ["auth.public_key_file", "auth.jwks_file", "auth.jwks_url"];

/// What came of the settings.
pub(super) struct Verification {
    pub(super) verifier: Verifier,
    /// The secret to sign with where it is HS256.
    pub(super) signing: Option<Secret>,
    /// Keeps the key set, where it is one.
    pub(super) keeper: Option<Keeper>,
}

/// Reads keys, and finds what does not fit together.
pub(super) fn verification(gathered: &mut Gathered, secret: Option<Secret>, dev_seed: Option<&Secret>) -> Option<Verification> {
    let leeway_s = gathered.integer("auth.leeway_seconds").unwrap_or(engine::auth::LEEWAY_S);
    let set: Vec<_> = PUBLIC_KEYS.into_iter().filter(|key| gathered.text(key).is_some()).collect();
    let verification = match (algorithm(gathered), set.as_slice()) {
        (None, []) => with_secret(gathered, secret, dev_seed),
        (None, keys) => {
            for key in keys {
                gathered.complain(key, "needs auth.algorithm to be one of RS256, ES256, EdDSA");
            }
            None
        }
        (Some(algorithm), [key]) => with_public_key(gathered, algorithm, key, secret),
        (Some(_), []) => {
            gathered.complain("auth.algorithm", format!("needs one of {}", PUBLIC_KEYS.join(", ")));
            None
        }
        (Some(_), [first, others @ ..]) => {
            for key in others {
                gathered.complain(key, format!("{first} is set too: set one of them"));
            }
            None
        }
    };
    verification.map(|it| Verification { verifier: it.verifier.with_leeway_s(leeway_s), ..it })
}

fn algorithm(gathered: &Gathered) -> Option<Algorithm> {
    match gathered.text("auth.algorithm") {
        Some("RS256") => Some(Algorithm::Rs256),
        Some("ES256") => Some(Algorithm::Es256),
        Some("EdDSA") => Some(Algorithm::EdDsa),
        _ => None,
    }
}

fn with_secret(gathered: &mut Gathered, secret: Option<Secret>, dev_seed: Option<&Secret>) -> Option<Verification> {
    let secret = token_secret_or_complaint(gathered, secret, dev_seed)?;
    let verifier = Verifier::new(Key::Hs256(secret.reveal().to_vec()));
    let verifier = verifier.map_err(|fault| gathered.complain("auth.secret", fault.to_string())).ok()?;
    Some(Verification { verifier, signing: Some(secret), keeper: None })
}

fn token_secret_or_complaint(gathered: &mut Gathered, secret: Option<Secret>, dev_seed: Option<&Secret>) -> Option<Secret> {
    let secret = secret.or_else(|| dev_seed.map(|seed| seed.derived("auth.secret")));
    // Where one was given that cannot be used, that has been said.
    if secret.is_none() && !gathered.problems.iter().any(|problem| problem.key.starts_with("auth.secret")) {
        gathered.complain("auth.secret", NO_SECRET);
    }
    secret
}

/// The secret, where there is one, then only decrypts session cookies.
fn with_public_key(gathered: &mut Gathered, algorithm: Algorithm, setting: &str, secret: Option<Secret>) -> Option<Verification> {
    let path = PathBuf::from(gathered.text(setting).unwrap_or_default());
    let (key, keeper) = match setting {
        "auth.public_key_file" => (pem_key(gathered, algorithm, &path)?, None),
        _ => {
            let keys = Arc::new(KeySet::new(algorithm));
            let keeper = if setting == "auth.jwks_file" { of_file(gathered, path, keys.clone()) } else { of_url(gathered, keys.clone()) };
            (Key::Set(keys), Some(keeper?))
        }
    };
    let verifier = Verifier::new(key).map_err(|fault| gathered.complain(setting, fault.to_string())).ok()?;
    let verifier = match secret {
        None => Ok(verifier),
        Some(secret) => verifier.with_session_secret(secret.reveal()),
    };
    let verifier = verifier.map_err(|fault| gathered.complain("auth.secret", fault.to_string())).ok()?;
    Some(Verification { verifier, signing: None, keeper })
}

fn pem_key(gathered: &mut Gathered, algorithm: Algorithm, file: &Path) -> Option<Key> {
    let read = Secret::read(file).map_err(|fault| gathered.complain("auth.public_key_file", fault.to_string()));
    read.ok().map(|pem| Key::Pem { algorithm, pem: pem.reveal().to_vec() })
}

fn of_file(gathered: &mut Gathered, path: PathBuf, keys: Arc<KeySet>) -> Option<Keeper> {
    match Keeper::of_file(path, keys) {
        Ok((keeper, loaded)) => {
            gathered.warnings.extend(jwks::warnings(&loaded).map(|warning| format!("auth.jwks_file: {warning}")));
            Some(keeper)
        }
        Err(fault) => {
            gathered.complain("auth.jwks_file", fault.to_string());
            None
        }
    }
}

fn of_url(gathered: &mut Gathered, keys: Arc<KeySet>) -> Option<Keeper> {
    // Its kind has been checked.
    let url: Url = gathered.text("auth.jwks_url")?.parse().ok()?;
    if url.is_exposed() {
        gathered
            .warnings
            .push("auth.jwks_url is not https: whoever is on the way to it can forge keys, and with them every token".to_owned());
    }
    let seconds = |key: &str| Duration::from_secs(gathered.integer(key).unwrap_or_default());
    Some(Keeper::of_url(url, seconds("auth.jwks_refresh_seconds"), seconds("auth.jwks_cooldown_seconds"), keys))
}
