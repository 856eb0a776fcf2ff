//! The cookies in which NextAuth 4 and Auth.js 5 keep a session: their names, and the keys that encrypt them. What is in a cookie, a signed
//! token or an encrypted one, is the verifier's business; who may send one, the shard's.

use super::jwe::ContentKeys;

/// One of those cookies, by its name without a chunk's number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionCookie {
    /// NextAuth 4 over https.
    SecureNextAuth,
    /// Auth.js 5 over https.
    SecureAuthJs,
    /// NextAuth 4.
    NextAuth,
    /// Auth.js 5.
    AuthJs,
}

impl SessionCookie {
    /// In the order in which they are looked at. The `__Secure-` ones come first, because what answers plain http for the same host can set only the
    /// others.
    pub const ALL: [SessionCookie; 4] =
        [SessionCookie::SecureNextAuth, SessionCookie::SecureAuthJs, SessionCookie::NextAuth, SessionCookie::AuthJs];

    /// The cookie's name; chunks have `.0`, `.1`... behind it.
    pub fn name(self) -> &'static str {
        match self {
            SessionCookie::SecureNextAuth => "__Secure-next-auth.session-token",
            SessionCookie::SecureAuthJs => "__Secure-authjs.session-token",
            SessionCookie::NextAuth => "next-auth.session-token",
            SessionCookie::AuthJs => "authjs.session-token",
        }
    }

    /// The keys of what is encrypted in this cookie. NextAuth 4 has the same for both its names, Auth.js 5 another for each.
    pub(super) fn content_keys(self, secret: &[u8]) -> ContentKeys {
        match self {
            SessionCookie::SecureNextAuth | SessionCookie::NextAuth => {
                ContentKeys::derive(secret, "", "NextAuth.js Generated Encryption Key")
            }
            SessionCookie::SecureAuthJs | SessionCookie::AuthJs => {
                let salt = self.name();
                ContentKeys::derive(secret, salt, &format!("Auth.js Generated Encryption Key ({salt})"))
            }
        }
    }
}
