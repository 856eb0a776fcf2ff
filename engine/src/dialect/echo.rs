//! What the conformance suites of Socket.IO talk to: the arguments come back. Nothing but the hidden `--test-profile` binds it; no
//! configuration can name it.
//!
//! | client says | we do | others hear |
//! |---|---|---|
//! | connects | `auth` with what it gave as `auth`, `{}` for nothing | |
//! | `message` | `message-back` with the same arguments | |
//! | `message-with-ack` | the acknowledgement has the same arguments | |

use super::{Act, Cx, Dialect, Hello, Profile, Refused, Said, acknowledge, event};
use crate::fault::DropReason;
use crate::json::{Scratch, Value};

pub(super) struct Echo;

impl Dialect for Echo {
    fn tells_of_rooms(&self) -> bool {
        false
    }

    fn tells_of_users(&self) -> bool {
        false
    }

    fn admit(&self, hello: &Hello<'_>) -> Result<Profile, Refused> {
        // All that is known of a client here, kept for the greeting.
        let username = hello.auth.map(|auth| auth.raw());
        Ok(Profile::named(hello.sid.text().as_str()).with_username(username))
    }

    fn opened(&self, cx: &Cx<'_>, _query: &str, acts: &mut Vec<Act>) {
        acts.push(Act::Send(event(cx, "auth", cx.profile.username().unwrap_or("{}"))));
    }

    fn message(&self, cx: &Cx<'_>, said: Said<'_>, _scratch: &mut Scratch, acts: &mut Vec<Act>) {
        let Said::Event { name, args, ack } = said else { return };
        let arguments = args.items().skip(1).map(Value::raw).collect::<Vec<_>>().join(",");
        match (name, ack) {
            ("message", _) => acts.push(Act::Send(event(cx, "message-back", &arguments))),
            ("message-with-ack", Some(ack)) => acts.push(acknowledge(cx, ack, &arguments)),
            _ => acts.push(Act::Drop(DropReason::Invalid)),
        }
    }
}
