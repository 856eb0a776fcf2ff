//! Who somebody is, in as few bytes as it takes: there is one of these for every connection. It knows no token.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::UserId;

/// Who a verified token says someone is. It is made of [`Details`].
///
/// Its debug form does not show the claims: in them may stand whatever the login service and its users write.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `sub`.
    pub user: UserId,
    /// `blocked`: users this user has blocked; sorted, each once, so that every message may search it by halves.
    pub blocked: Box<[String]>,
    expires_unix_ms: Option<NonZeroU64>,
    /// All other texts, each behind its [`Kind`] and its length; of a list's names each behind its length.
    texts: Box<str>,
}

/// The same with everything in a place of its own, to be read from a token or changed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Details {
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
    /// `blocked`, in any order.
    pub blocked: Vec<String>,
    /// `exp` plus the leeway, in milliseconds since 1970; `None` for a token without `exp`.
    pub expires_unix_ms: Option<u64>,
    /// All claims, as the token has them; only from a verifier that keeps them ([`super::Verifier::keeping_claims`]).
    pub claims: Option<Box<str>>,
}

impl fmt::Debug for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Details");
        shown.field("user", &self.user).field("name", &self.name).field("email", &self.email).field("picture", &self.picture);
        shown.field("rooms", &self.rooms).field("groups", &self.groups).field("documents", &self.documents);
        shown.field("blocked", &self.blocked).field("expires_unix_ms", &self.expires_unix_ms).finish_non_exhaustive()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Identity");
        shown.field("user", &self.user).field("name", &self.name()).field("email", &self.email()).field("picture", &self.picture());
        let lists = [("rooms", self.rooms()), ("groups", self.groups()), ("documents", self.documents())];
        for (name, list) in lists {
            shown.field(name, &list.map(|names| names.collect::<Vec<&str>>()));
        }
        shown.field("blocked", &self.blocked).field("expires_unix_ms", &self.expires_unix_ms()).finish_non_exhaustive()
    }
}

/// What a text of an identity is.
#[derive(Clone, Copy)]
enum Kind {
    Name = b'n' as isize,
    Email = b'e' as isize,
    Picture = b'p' as isize,
    Rooms = b'r' as isize,
    Groups = b'g' as isize,
    Documents = b'd' as isize,
    Claims = b'c' as isize,
}

impl From<Details> for Identity {
    fn from(details: Details) -> Identity {
        let Details { user, name, email, picture, rooms, groups, documents, mut blocked, expires_unix_ms, claims } = details;
        blocked.sort_unstable();
        blocked.dedup();
        let mut texts = String::new();
        let mut put = |kind: Kind, text: &str| {
            texts.push(kind as u8 as char);
            push_text(&mut texts, text);
        };
        // The names first: they are looked at with every message.
        for (kind, text) in [(Kind::Name, &name), (Kind::Email, &email), (Kind::Picture, &picture)] {
            text.iter().for_each(|text| put(kind, text));
        }
        for (kind, names) in [(Kind::Rooms, &rooms), (Kind::Groups, &groups), (Kind::Documents, &documents)] {
            if let Some(names) = names {
                let mut list = String::new();
                names.iter().for_each(|name| push_text(&mut list, name));
                put(kind, &list);
            }
        }
        claims.iter().for_each(|claims| put(Kind::Claims, claims));
        // What ended with 1970 has ended in its first millisecond.
        let expires_unix_ms = expires_unix_ms.map(|at| NonZeroU64::new(at).unwrap_or(NonZeroU64::MIN));
        Identity { user, blocked: blocked.into(), expires_unix_ms, texts: texts.into() }
    }
}

impl Identity {
    /// Of this user nothing else is known.
    pub fn of_user(user: UserId) -> Identity {
        Identity { user, ..Identity::default() }
    }

    /// `name`.
    pub fn name(&self) -> Option<&str> {
        self.text(Kind::Name)
    }

    /// `email`.
    pub fn email(&self) -> Option<&str> {
        self.text(Kind::Email)
    }

    /// `picture`.
    pub fn picture(&self) -> Option<&str> {
        self.text(Kind::Picture)
    }

    /// `rooms`: room ids the user may enter; `None` when the claim is absent.
    pub fn rooms(&self) -> Option<Names<'_>> {
        self.text(Kind::Rooms).map(Names)
    }

    /// `groups`, likewise.
    pub fn groups(&self) -> Option<Names<'_>> {
        self.text(Kind::Groups).map(Names)
    }

    /// `documents`, likewise.
    pub fn documents(&self) -> Option<Names<'_>> {
        self.text(Kind::Documents).map(Names)
    }

    /// All claims, as the token has them; only from a verifier that keeps them ([`super::Verifier::keeping_claims`]).
    pub fn claims(&self) -> Option<&str> {
        self.text(Kind::Claims)
    }

    /// `exp` plus the leeway, in milliseconds since 1970; `None` for a token without `exp`.
    pub fn expires_unix_ms(&self) -> Option<u64> {
        self.expires_unix_ms.map(NonZeroU64::get)
    }

    /// Everything, to be changed.
    pub fn details(&self) -> Details {
        let owned = |names: Names<'_>| names.map(str::to_owned).collect();
        Details {
            user: self.user.clone(),
            name: self.name().map(str::to_owned),
            email: self.email().map(str::to_owned),
            picture: self.picture().map(str::to_owned),
            rooms: self.rooms().map(owned),
            groups: self.groups().map(owned),
            documents: self.documents().map(owned),
            blocked: self.blocked.to_vec(),
            expires_unix_ms: self.expires_unix_ms(),
            claims: self.claims().map(Box::from),
        }
    }

    /// True exactly when this user has blocked that one.
    pub fn has_blocked(&self, user: &str) -> bool {
        self.blocked.binary_search_by(|blocked| (**blocked).cmp(user)).is_ok()
    }

    /// Bytes of it and of what it holds on to.
    pub(crate) fn bytes(&self) -> usize {
        let blocked: usize = self.blocked.iter().map(|text| size_of::<String>() + text.len()).sum();
        size_of::<Identity>() + self.user.len() + blocked + self.texts.len()
    }

    /// Without the claims.
    pub(crate) fn without_claims(self: Arc<Identity>) -> Arc<Identity> {
        if self.claims().is_none() { self } else { Arc::new(Details { claims: None, ..self.details() }.into()) }
    }

    fn text(&self, kind: Kind) -> Option<&str> {
        let mut rest = &*self.texts;
        while let Some(found) = rest.bytes().next() {
            let text = take_text(&mut rest, 1)?;
            if found == kind as u8 {
                return Some(text);
            }
        }
        None
    }
}

/// The names of a list.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a>(&'a str);

impl<'a> Iterator for Names<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        take_text(&mut self.0, 0)
    }
}

/// Its length, a colon, the text.
fn push_text(texts: &mut String, text: &str) {
    texts.push_str(&text.len().to_string());
    texts.push(':');
    texts.push_str(text);
}

/// Takes off the text that begins after so many bytes.
fn take_text<'a>(texts: &mut &'a str, after: usize) -> Option<&'a str> {
    let (mut at, mut len) = (after, 0_usize);
    while let Some(digit @ b'0'..=b'9') = texts.as_bytes().get(at) {
        len = len.checked_mul(10)?.checked_add(usize::from(digit - b'0'))?;
        at += 1;
    }
    let (text, rest) = texts.get(at..)?.strip_prefix(':')?.split_at_checked(len)?;
    *texts = rest;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let some = |texts: &[&str]| Some(texts.iter().map(|text| (*text).to_owned()).collect::<Vec<String>>());
        let full = Details {
            user: "alice".into(),
            name: Some("Ali:ce 😀".into()),
            email: Some(String::new()),
            picture: Some("12:34".into()),
            rooms: some(&["r", "", "3:räume"]),
            groups: some(&[]),
            documents: None,
            blocked: vec!["a".into(), "b".into()],
            expires_unix_ms: Some(7),
            claims: Some(r#"{"a":"1:b"}"#.into()),
        };
        for details in [full.clone(), Details { documents: some(&["d"]), rooms: None, claims: None, ..full }, Details::default()] {
            assert_eq!(Identity::from(details.clone()).details(), details);
        }
        let unordered = Identity::from(Details { blocked: vec!["b".into(), "a".into(), "b".into()], ..Details::default() });
        assert!(unordered.blocked.len() == 2 && unordered.has_blocked("b") && !unordered.has_blocked("c"));
        assert_eq!(Identity::from(Details { expires_unix_ms: Some(0), ..Details::default() }).expires_unix_ms(), Some(1));
    }
}
