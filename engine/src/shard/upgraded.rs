//! Long-polling sessions that a WebSocket has taken over: their ids name a slot that is somebody else's now, but requests that still come for
//! them must hear that the session lives.

use std::collections::HashMap;

use crate::ids::{LinkKey, Sid};

/// Which WebSocket link a session's id stands for.
#[derive(Default, Debug)]
pub(super) struct Upgraded {
    links: HashMap<Sid, LinkKey>,
    sids: HashMap<u32, Sid>,
}

impl Upgraded {
    /// The link has taken the session over.
    pub(super) fn add(&mut self, sid: Sid, link: LinkKey) {
        self.links.insert(sid, link);
        self.sids.insert(link.slot, sid);
    }

    /// The link that has taken the session over.
    pub(super) fn get(&self, sid: Sid) -> Option<LinkKey> {
        self.links.get(&sid).copied()
    }

    /// All of them: sessions and slots of links.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Sid, u32)> {
        self.links.iter().map(|(sid, link)| (*sid, link.slot))
    }

    /// The link is gone.
    pub(super) fn forget(&mut self, link: LinkKey) {
        // Usually nothing was ever upgraded, and no hash needs to be made.
        if !self.sids.is_empty()
            && let Some(sid) = self.sids.remove(&link.slot)
        {
            self.links.remove(&sid);
        }
    }
}
