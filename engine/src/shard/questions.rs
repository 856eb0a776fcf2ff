//! What the control plane asks of a shard and has it do.

use std::collections::BinaryHeap;

use super::Shard;
use super::links::Conn;
use super::parcel::{Answer, ConnectionInfo, Question};
use super::recovery::NO_LINK;
use crate::fault::CloseReason;
use crate::ids::{EndpointId, Room, SidText};
use crate::time::Now;

impl Shard {
    pub(super) fn answer(&mut self, now: Now, ask: u64, question: Question) {
        let answer = match question {
            Question::Connections { endpoint, user, room, after, limit } => {
                let mut page = Page::new(after, limit);
                self.fill(&mut page, endpoint, user.as_deref(), room.as_deref());
                let slots = page.slots();
                Answer::Connections(slots.filter_map(|slot| self.conns.get(slot)).map(|conn| self.info(conn)).collect())
            }
            Question::Connection { id } => {
                let conn = self.find(id).and_then(|slot| self.conns.get(slot)).filter(|conn| conn.is_here());
                Answer::Connections(conn.map(|conn| self.info(conn)).into_iter().collect())
            }
            Question::CloseConnection { id, reason } => {
                self.revoke_elsewhere(None, &[id.text().as_str()]);
                let found = self.find(id);
                // Whoever is away is not disconnected, but will not come back either.
                let is_connected = found.and_then(|slot| self.conns.get(slot)).is_some_and(|conn| conn.link != NO_LINK);
                if let Some(slot) = found {
                    self.disconnect(now, slot, CloseReason::Admin, reason.as_deref());
                }
                Answer::Closed(u64::from(is_connected))
            }
            Question::CloseUser { endpoint, user, reason } => {
                self.revoke_elsewhere(endpoint, &[&Room::user(EndpointId(0), &user).name]);
                Answer::Closed(self.close_user(now, endpoint, &user, reason.as_deref()))
            }
            Question::CloseInactive { endpoint, inactive_ms, limit } => {
                let is_inactive = |conn: &Conn| {
                    conn.is_here() && endpoint.is_none_or(|wanted| wanted == conn.endpoint) && conn.inactive_ms(now) >= inactive_ms
                };
                let slots: Vec<u32> = self.conns.iter().filter(|(_, conn)| is_inactive(conn)).map(|(slot, _)| slot).take(limit).collect();
                for slot in &slots {
                    self.disconnect(now, *slot, CloseReason::Inactive, None);
                }
                Answer::Closed(slots.len() as u64)
            }
            Question::Post(post) => Answer::Posted(self.post_in_room(now, &post)),
            // These are answered when the store of history has.
            Question::Revise(revision) => return self.revise(now, ask, revision),
            Question::Past { room, range } => return self.tell_past(now, ask, room, range),
            // It is answered when it has been delivered here, or acknowledged.
            Question::Emit(emit) => return self.emit(now, ask, &emit),
            Question::Disconnect { from, transport } => {
                self.revoke_selected(&from);
                Answer::Closed(self.disconnect_selected(now, &from, transport))
            }
            // What has to happen first is answered for then.
            Question::Room(call) => match self.room_call(now, ask, &call) {
                Some(answer) => answer,
                None => return,
            },
            // They are answered when the connections are in, or out.
            Question::Grant { endpoint, room, user } => return self.grant(ask, endpoint, &room, &user, true),
            Question::Revoke { endpoint, room, user } => return self.grant(ask, endpoint, &room, &user, false),
        };
        self.answers.push_back((ask, answer));
    }

    /// Puts everybody who fits into the page. A user's or a room's connections are found by the index: to look at all the others would
    /// hold up the clients of a shard that has hundreds of thousands.
    fn fill(&self, page: &mut Page, endpoint: Option<EndpointId>, user: Option<&str>, room: Option<&str>) {
        let of_index = |room: &Room| self.membership.find(room).map_or(&[][..], |slot| self.membership.members(slot));
        match (user, room) {
            (None, None) => {
                for (slot, conn) in self.conns.iter().filter(|(_, conn)| endpoint.is_none_or(|wanted| wanted == conn.endpoint)) {
                    page.consider(slot, conn);
                }
            }
            (Some(user), room) => {
                for member in self.endpoints(endpoint).flat_map(|endpoint| of_index(&Room::user(endpoint, user))) {
                    if let Some(conn) = self.conns.get(member.conn).filter(|conn| room.is_none_or(|room| self.is_in_named(conn, room))) {
                        page.consider(member.conn, conn);
                    }
                }
            }
            (None, Some(room)) => {
                let rooms = self.endpoints(endpoint).map(|endpoint| Room::named(endpoint, room)).filter(Room::is_public);
                for member in rooms.flat_map(|room| of_index(&room)) {
                    if let Some(conn) = self.conns.get(member.conn) {
                        page.consider(member.conn, conn);
                    }
                }
            }
        }
    }

    /// The endpoint that is wanted, or all of them.
    fn endpoints(&self, wanted: Option<EndpointId>) -> impl Iterator<Item = EndpointId> + use<> {
        let all = (0..self.world.config.endpoints.len()).map(|index| EndpointId(index as u8));
        all.filter(move |id| wanted.is_none_or(|wanted| wanted == *id))
    }

    fn close_user(&mut self, now: Now, endpoint: Option<EndpointId>, user: &str, reason: Option<&str>) -> u64 {
        let mut closed = 0;
        for endpoint in self.endpoints(endpoint) {
            let Some(room) = self.membership.find(&Room::user(endpoint, user)) else { continue };
            let slots: Vec<u32> = self.membership.members(room).iter().map(|member| member.conn).collect();
            for slot in slots {
                // Whoever is away is not disconnected, but will not come back either.
                closed += u64::from(self.conns.get(slot).is_some_and(|conn| conn.link != NO_LINK));
                self.disconnect(now, slot, CloseReason::Admin, reason);
            }
        }
        closed
    }

    fn is_in_named(&self, conn: &Conn, name: &str) -> bool {
        conn.seats.iter().filter_map(|seat| self.membership.room(seat.room)).any(|room| room.is_public() && *room.name == *name)
    }

    /// What is told of a connection.
    pub(super) fn info(&self, conn: &Conn) -> ConnectionInfo {
        let profile = &conn.profile;
        let link = self.links.get(conn.link);
        let mut rooms: Vec<String> = conn
            .seats
            .iter()
            .filter_map(|seat| self.membership.room(seat.room))
            .filter(|room| room.is_public())
            .map(|room| room.name.to_string())
            .collect();
        rooms.sort_unstable();
        ConnectionInfo {
            id: conn.sid,
            endpoint: conn.endpoint,
            user: profile.user.clone(),
            username: profile.username().map(str::to_owned),
            email: profile.email().map(str::to_owned),
            client_id: profile.own.as_ref().filter(|own| own.has_client_id).map(|own| own.presence.to_string()),
            connected_unix_ms: conn.connected_unix_ms,
            rooms,
            metadata: profile.own.as_ref().and_then(|own| own.metadata.as_deref()).map(str::to_owned),
            address: link.map_or_else(|| ([0, 0, 0, 0], 0).into(), |link| link.peer.into()),
            transport: if link.is_some_and(super::links::Link::is_polling) { "polling" } else { "websocket" },
        }
    }
}

/// The first connections beyond a cursor, in the order of the texts of their ids, because a text is what the cursor is. It holds no more
/// than are asked for, however many there are to choose from.
struct Page {
    after: Option<String>,
    limit: usize,
    /// Id and slot; the greatest on top, to make way for a smaller one.
    first: BinaryHeap<(SidText, u32)>,
}

impl Page {
    fn new(after: Option<String>, limit: usize) -> Page {
        Page { after, limit, first: BinaryHeap::new() }
    }

    /// Takes a connection that is let in, if it is among the first.
    fn consider(&mut self, slot: u32, conn: &Conn) {
        if conn.is_here() {
            self.offer(conn.sid.text(), slot);
        }
    }

    fn offer(&mut self, id: SidText, slot: u32) {
        if self.after.as_deref().is_some_and(|after| id.as_str() <= after) {
            return;
        }
        if self.first.len() < self.limit {
            self.first.push((id, slot));
        } else if let Some(mut greatest) = self.first.peek_mut()
            && id < greatest.0
        {
            *greatest = (id, slot);
        }
    }

    /// The slots in order.
    fn slots(self) -> impl Iterator<Item = u32> {
        self.first.into_sorted_vec().into_iter().map(|(_, slot)| slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ShardId, Sid};

    #[test]
    fn pages_follow_each_other_in_the_order_of_texts_and_miss_nobody() {
        // The bytes of these ids are in another order than their texts.
        let sids: Vec<Sid> = (0..200_u8).map(|n| Sid::new(ShardId(n.wrapping_mul(37)), n.into(), [n; 11])).collect();
        let mut texts: Vec<String> = sids.iter().map(Sid::to_string).collect();
        texts.sort_unstable();
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let mut page = Page::new(after.clone(), 7);
            for (slot, sid) in sids.iter().enumerate() {
                page.offer(sid.text(), slot as u32);
                assert!(page.first.len() <= 7, "it holds what is asked for and no more");
            }
            let found: Vec<String> = page.slots().map(|slot| sids[slot as usize].to_string()).collect();
            let Some(last) = found.last() else { break };
            after = Some(last.clone());
            seen.extend(found);
        }
        assert_eq!(seen, texts);
        let mut none = Page::new(None, 0);
        none.offer(sids[0].text(), 0);
        assert_eq!(none.slots().count(), 0);
    }
}
