//! Connections that are let in before anybody knows who they are: they are in no room until they have said so and the user's home has let
//! them in. It knows nothing of tokens; the dialect does.

use super::Shard;
use super::links::Stage;
use super::parcel::Parcel;
use crate::dialect::{EnterFault, Profile, RoomView};
use crate::event::What;
use crate::ids::Room;
use crate::time::Now;

impl Shard {
    /// Opens a connection of nobody. There is no home to ask; the answer comes the way in which those of homes come.
    pub(super) fn let_in_unknown(&mut self, slot: u32) {
        let Some(conn) = self.conns.get(slot) else { return };
        let (conn, room) = (self.conn_id(slot, conn), Room::everybody(conn.endpoint));
        self.hold(slot);
        self.post(Parcel::Entered { conn, room, again: false, outcome: Ok(RoomView::default()), note: None });
    }

    /// It has said who it is: the user's home is asked.
    pub(super) fn identify(&mut self, now: Now, slot: u32, profile: Profile, note: Box<str>) {
        let Some(conn) = self.conns.get_mut(slot).filter(|conn| matches!(conn.stage, Stage::Unknown { .. })) else { return };
        conn.profile = Profile { unproven: None, ..profile };
        conn.stage = Stage::Asked;
        self.forget_claims(slot);
        let Some(conn) = self.conns.get(slot) else { return };
        if self.world.config.endpoints[usize::from(conn.endpoint.0)].connect_hook {
            return self.inquire_identity(now, slot, note);
        }
        self.ask_user_home(now, slot, Some(note));
    }

    /// The user's home has answered. A connection that was let in goes into the rooms that are the user's before it is told so: what is
    /// said to them after that, it hears.
    pub(super) fn identified(&mut self, now: Now, slot: u32, outcome: Result<&RoomView, EnterFault>, note: &str) {
        let Some(conn) = self.conns.get_mut(slot) else { return };
        let view = match outcome {
            Ok(view) => view,
            Err(fault) => return self.consult(now, slot, |dialect, cx, _, acts| dialect.identified(cx, Err(fault), note, acts)),
        };
        conn.stage = Stage::Arriving { note: Box::new(note.into()) };
        let (endpoint, link, user) = (conn.endpoint, conn.link, conn.profile.user.clone());
        let everybody = Room::everybody(endpoint);
        self.membership.join(&everybody, slot, link, &mut conn.seats);
        self.note_stay(slot, &everybody);
        let own = self.dialect(endpoint).own_room(&user);
        self.counters(endpoint).authenticated.add(1);
        self.tell(now, slot, None, What::Authenticated);
        let granted = view.of_user.as_ref().map_or(&[][..], |of_user| &of_user.granted);
        for name in own.as_deref().into_iter().chain(granted.iter().map(|name| &**name)) {
            self.enter_granted(now, slot, &Room::named(endpoint, name));
        }
        self.arm_next(now, link);
        self.arrive(now, slot);
    }

    /// Tells a connection that it is in, when the last of the user's rooms has answered.
    pub(super) fn arrive(&mut self, now: Now, slot: u32) {
        let Some(conn) = self.conns.get_mut(slot).filter(|conn| conn.entering.is_empty()) else { return };
        let Stage::Arriving { note } = &mut conn.stage else { return };
        let note = std::mem::take(note);
        conn.stage = Stage::Known;
        self.consult(now, slot, |dialect, cx, _, acts| dialect.identified(cx, Ok(()), &note, acts));
    }
}
