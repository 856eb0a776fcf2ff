//! What the conformance suites of Socket.IO talk to: the arguments come back. Nothing but the hidden `--test-profile` binds it; no
//! configuration can name it.
//!
//! | client says | we do | others hear |
//! |---|---|---|
//! | connects | `auth` with what it gave as `auth`, `{}` for nothing | |
//! | `message` | `message-back` with the same arguments | |
//! | `message-with-ack` | the acknowledgement has the same arguments | |

use std::sync::Arc;

use super::{Act, Cx, Dialect, EnterFault, Hello, Profile, Refused, RoomView, Said, acknowledge, event};
use crate::fault::{CloseReason, DropReason};
use crate::frame::Frame;
use crate::json::{Scratch, Value};
use crate::time::Now;

pub(super) struct Echo;

impl Dialect for Echo {
    fn admit(&self, hello: &Hello<'_>) -> Result<Profile, Refused> {
        let user: Arc<str> = hello.sid.text().as_str().into();
        Ok(Profile {
            unproven: None,
            presence: user.clone(),
            user,
            // All that is known of a client here, kept for the greeting.
            username: hello.auth.map(|auth| auth.raw().into()),
            email: None,
            has_client_id: false,
            identity: None,
        })
    }

    fn too_many(&self, _now: Now) -> Refused {
        // Nobody has a second connection: every connection is a user of its own.
        Refused::Close { first: None, reason: CloseReason::UserLimit }
    }

    fn opened(&self, cx: &Cx<'_>, _query: &str, acts: &mut Vec<Act>) {
        acts.push(Act::Send(event(cx, "auth", cx.profile.username.as_deref().unwrap_or("{}"))));
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

    fn over_rate(&self, _cx: &Cx<'_>, _said: Said<'_>, _acts: &mut Vec<Act>) {}

    fn entered(&self, _cx: &Cx<'_>, _room: &str, _outcome: Result<&RoomView, EnterFault>, _note: Option<&str>, _acts: &mut Vec<Act>) {}

    fn left(&self, _cx: &Cx<'_>, _room: &str, _view: &RoomView, _note: &str, _acts: &mut Vec<Act>) {}

    fn farewell(&self, _cx: &Cx<'_>, _room: &str) -> Option<Frame> {
        None
    }

    fn typing_stopped(&self, _cx: &Cx<'_>, _room: &str) -> Option<(Frame, bool)> {
        None
    }
}
