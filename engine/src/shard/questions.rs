//! What the control plane asks of a shard and has it do.

use super::Shard;
use super::links::Conn;
use super::parcel::{Answer, ConnectionInfo, Question};
use crate::fault::CloseReason;
use crate::ids::{EndpointId, Room};
use crate::time::Now;

impl Shard {
    pub(super) fn answer(&mut self, now: Now, ask: u64, question: Question) {
        let answer = match question {
            Question::Connections { endpoint, user, room, after, limit } => {
                let is_it = |conn: &Conn| {
                    endpoint.is_none_or(|endpoint| endpoint == conn.endpoint)
                        && user.as_ref().is_none_or(|user| **user == *conn.profile.user)
                        && room.as_ref().is_none_or(|room| self.is_in_named(conn, room))
                };
                let mut found: Vec<_> = self.conns.iter().filter(|(_, conn)| conn.opening.is_none() && is_it(conn)).collect();
                // Ids are compared as texts, because that is what the cursor is.
                found.sort_by_cached_key(|(_, conn)| conn.sid.to_string());
                let beyond = |conn: &Conn| after.as_ref().is_none_or(|after| conn.sid.to_string() > *after);
                let page = found.into_iter().filter(|(_, conn)| beyond(conn)).take(limit);
                Answer::Connections(page.map(|(_, conn)| self.info(conn)).collect())
            }
            Question::Connection { id } => {
                let conn = self.find(id).and_then(|slot| self.conns.get(slot)).filter(|conn| conn.opening.is_none());
                Answer::Connections(conn.map(|conn| self.info(conn)).into_iter().collect())
            }
            Question::CloseConnection { id, reason } => {
                let found = self.find(id);
                if let Some(slot) = found {
                    self.disconnect(now, slot, CloseReason::Admin, reason.as_deref());
                }
                Answer::Closed(u64::from(found.is_some()))
            }
            Question::CloseUser { endpoint, user, reason } => Answer::Closed(self.close_user(now, endpoint, &user, reason.as_deref())),
            Question::Emit { id, event, args } => {
                if self.emit_with_ack(now, id, &event, &args, ask) {
                    // The client's acknowledgement, or its end, answers.
                    return;
                }
                Answer::Acknowledged(None)
            }
        };
        self.answers.push_back((ask, answer));
    }

    fn close_user(&mut self, now: Now, endpoint: Option<EndpointId>, user: &str, reason: Option<&str>) -> u64 {
        let all = (0..self.world.config.endpoints.len()).map(|index| EndpointId(index as u8));
        let mut closed = 0;
        for endpoint in all.filter(|id| endpoint.is_none_or(|wanted| wanted == *id)) {
            let Some(room) = self.membership.find(&Room::user(endpoint, user)) else { continue };
            let slots: Vec<u32> = self.membership.members(room).iter().map(|member| member.conn).collect();
            for slot in slots {
                self.disconnect(now, slot, CloseReason::Admin, reason);
                closed += 1;
            }
        }
        closed
    }

    fn is_in_named(&self, conn: &Conn, name: &str) -> bool {
        conn.seats.iter().filter_map(|seat| self.membership.room(seat.room)).any(|room| room.is_public() && *room.name == *name)
    }

    fn info(&self, conn: &Conn) -> ConnectionInfo {
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
            username: profile.username.as_deref().map(str::to_owned),
            email: profile.email.as_deref().map(str::to_owned),
            client_id: profile.has_client_id.then(|| profile.presence.to_string()),
            connected_unix_ms: conn.connected_unix_ms,
            rooms,
            metadata: None,
            address: link.map_or_else(|| ([0, 0, 0, 0], 0).into(), |link| link.peer),
            transport: if link.is_some_and(|link| link.polling.is_some()) { "polling" } else { "websocket" },
        }
    }
}
