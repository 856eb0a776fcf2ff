//! What is said of a user whose host has died, or ends: in his dialect's words, by somebody who has never had a connection of his. Little is
//! known of him then, and he is called by the name under which he was present.

use std::cell::RefCell;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::World;
use super::outward::Published;
use crate::dialect::{self, Cx, Profile};
use crate::ids::{Room, ShardId, Sid, UserId};
use crate::time::Now;

impl World {
    /// What others are to hear when nobody of this presence is in a room any more, or on the endpoint where it is the user's own.
    pub(crate) fn farewell(&self, now: Now, room: &Room, presence: &UserId, random: &mut StdRng) -> Option<Published> {
        let endpoint = self.config.endpoints.get(usize::from(room.endpoint.0))?;
        let (dialect, profile) = (dialect::of(endpoint.dialect), Profile::named(presence));
        let sid = Sid::new(ShardId(0), 0, random.random());
        let entropy = RefCell::new(StdRng::from_seed(random.random()));
        let cx = Cx {
            now,
            endpoint_id: room.endpoint,
            endpoint,
            sid,
            profile: &profile,
            inside: &|_| None,
            is_alone_in: &|_| false,
            verifier: None,
            limits: &self.config.limits,
            rate_wait_ms: 0,
            entropy: &entropy,
            attachments: &[],
            wanted: &self.wanted,
            reason: None,
        };
        let (to, frame) = if room.is_public() {
            (room.clone(), dialect.farewell(&cx, &room.name)?)
        } else if room.is_user() {
            let to = if dialect.is_watched() { Room::watchers(room.endpoint, presence) } else { Room::everybody(room.endpoint) };
            (to, dialect.presence(&cx, false)?)
        } else {
            return None;
        };
        Some(Published { room: to, addressee: None, frame, except: None, hidden_from: None, unix_ms: now.unix_ms, record: None })
    }
}
