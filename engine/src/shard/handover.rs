//! Connections that broke off on one host and come back on another. Where they broke off they stay away as ever (`recovery.rs`); and in the
//! reliable mode all that another host needs is told to the relay: who it was, its rooms, up to where the stream's events have come to it
//! for certain, and the few events around that point one by one. So what its client has to hear elsewhere is known exactly.
//!
//! Who comes with a session that is not here waits while the relay fetches it, which nobody can do twice. Then its connection is made away,
//! enters its rooms, and what is said there is remembered as for others that are away; when everything that it missed before has been found,
//! and has come here by all ways, it is taken up. What cannot be given whole is not given: the client starts anew.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shard;
use super::backlog::{Event, To};
use super::intake::new_conn;
use super::links::{Conn, Link, Opening, Stage, State};
use super::outward::Outward;
use super::parcel::{Announcement, Arrival, Enter, Selection, Target};
use super::recovery::{Comeback, NO_LINK, Verdict, is_entitled};
use crate::auth::AuthFault;
use crate::config::RelayMode;
use crate::dialect::{EnterFault, Profile};
use crate::fault::{CloseReason, RecoveryFault};
use crate::frame::Frame;
use crate::ids::{ConnId, EndpointId, LinkKey, Room, ShardId, Sid};
use crate::json::Value;
use crate::limits::{EARLY_LEAVERS_MAX, LINKS_PER_SHARD_MAX, RESTORE_MS, SESSION_BYTES_MAX, SESSION_EVENTS_MAX, SESSION_SCAN_MAX};
use crate::time::Now;
use crate::wire::sio::{EntryId, Offset};
use crate::wire::ws;

/// A connection that broke off, as hosts tell each other of it.
#[derive(Clone, Debug)]
pub struct Session {
    /// Its endpoint.
    pub endpoint: EndpointId,
    /// Its id.
    pub sid: Sid,
    /// Its secret.
    pub pid: Sid,
    /// Names of the rooms that it was in, its user's and its own among them, everybody's not.
    pub rooms: Vec<Arc<str>>,
    /// When it broke off, milliseconds since 1970; 0 where that is not told.
    pub left_unix_ms: u64,
    /// Where it was with an uringcast host: what another needs of it.
    pub past: Option<Past>,
}

impl Session {
    /// Bytes it holds on to.
    pub(crate) fn bytes(&self) -> usize {
        let of = |told: &Told| size_of::<Told>() + if let ToldKind::Own(frame) = &told.kind { frame.bytes().len() } else { 0 };
        let tail = self.past.as_ref().map_or(0, |past| past.tail.iter().map(of).sum());
        self.rooms.iter().map(|name| name.len() + 16).sum::<usize>() + tail
    }
}

/// See [`Session::past`].
#[derive(Clone, Debug)]
pub struct Past {
    /// Who it was.
    pub profile: Profile,
    /// The stream's events up to here are among what its client has heard, or in the tail.
    pub mark: EntryId,
    /// Its last events, in the order in which they were for it.
    pub tail: Vec<Told>,
}

/// One event of a session's tail.
#[derive(Clone, Debug)]
pub struct Told {
    /// Its offset.
    pub offset: Offset,
    /// What is to be done with it.
    pub kind: ToldKind,
}

/// What is to be done with an event of a session's tail if it comes after the last one that the client has heard.
#[derive(Clone, Debug)]
pub enum ToldKind {
    /// Nothing: it was not for this client, was heard, or was volatile. It is not said again.
    Known,
    /// It is said again, as it stands in the stream.
    Streamed,
    /// It is said again as it stands here, because it was for this client alone.
    Own(Frame),
}

/// A session that was found, and as what it was kept, to be put back.
pub struct Found {
    /// The session.
    pub session: Session,
    /// Its value in Redis.
    pub raw: Box<[u8]>,
}

/// It does not show what was kept.
impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found").field("sid", &self.session.sid).finish_non_exhaustive()
    }
}

/// What the relay has found of a session.
#[derive(Debug)]
pub enum Fetched {
    /// Nobody has it, or it must not be taken up.
    Nothing,
    /// What this host has of it counts, and nobody else can have it any more.
    Local,
    /// Nobody could be asked.
    Unknown,
    /// This.
    Session(Box<Found>),
}

/// What a connection that is being restored has missed.
#[derive(Debug)]
pub struct Wanted {
    /// Who.
    pub conn: ConnId,
    /// Its endpoint.
    pub endpoint: EndpointId,
    /// Names of its rooms, with those that nobody enters.
    pub names: Vec<Arc<str>>,
    /// After this.
    pub since: Since,
    /// These of its tail, in this order.
    pub events: Vec<Offset>,
    /// The last event that its client has heard, if that is not in the tail: it must stand in the stream before that. Else the client has heard
    /// more than who wrote the session knows, or nobody knows what.
    pub heard: Option<Offset>,
}

/// From where on something is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Since {
    /// An entry.
    Entry(EntryId),
    /// The entry of the event with this offset, which must be there.
    Event(Offset),
}

/// What has been found of what a connection has missed. Nothing of it is volatile.
#[derive(Debug)]
pub struct Missed {
    /// What is said after this entry comes as ever.
    pub until: EntryId,
    /// Those of [`Wanted::events`].
    pub events: Vec<Arc<Arrival>>,
    /// What stands in the stream after [`Wanted::since`].
    pub others: Vec<Arc<Arrival>>,
}

impl Missed {
    pub(super) fn bytes(&self) -> usize {
        self.events.iter().chain(&self.others).map(|arrival| arrival.bytes()).sum()
    }
}

/// A link whose CONNECT waits for the relay. Its debug form does not show the CONNECT, in which a token may be.
pub(crate) struct Fetching {
    /// Number of the fetch.
    ask: u64,
    offset: Offset,
    packet: Box<str>,
}

impl fmt::Debug for Fetching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetching").finish_non_exhaustive()
    }
}

/// What a connection has that is being restored. Its debug form does not show the CONNECT.
pub(super) struct Restoring {
    link: LinkKey,
    packet: Box<str>,
    offset: Offset,
    session: Session,
    profile: Profile,
    deadline_ms: u64,
    /// True exactly when it must not be restored any more.
    is_over: bool,
    is_asked: bool,
    missed: Option<Box<Missed>>,
}

impl fmt::Debug for Restoring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Restoring").field("link", &self.link).field("deadline_ms", &self.deadline_ms).finish_non_exhaustive()
    }
}

/// A session that was found, and waits until this host has read the stream as far as its client has heard it: what comes here before that must
/// not be taken for news.
#[derive(Debug)]
pub(super) struct Early {
    ask: u64,
    mark: EntryId,
    found: Box<Found>,
    deadline_ms: u64,
}

/// What has become of a wish to restore a session.
#[derive(PartialEq, Eq)]
pub(super) enum Restored {
    /// It is under way, or refused for good.
    Done,
    /// The client starts anew.
    Anew,
}

impl Shard {
    /// True exactly when sessions go to other hosts.
    pub(super) fn shares_sessions(&self) -> bool {
        self.world.config.relay.as_ref().is_some_and(|relay| relay.mode == RelayMode::Streams)
    }

    fn asks_for_sessions(&self) -> bool {
        self.shares_sessions() && self.world.is_relayed.load(Ordering::Relaxed)
    }

    /// The shard on which a session is taken up and a connection lives, whichever host made its id and however many shards there were then.
    pub(super) fn shard_of_past(&self, pid: Sid) -> ShardId {
        self.world.shard_of(pid)
    }

    /// The slot of the connection with this secret.
    pub(super) fn slot_of_past(&self, pid: Sid) -> u32 {
        self.strangers.get(&pid).copied().unwrap_or(pid.slot())
    }

    /// Who is in these rooms and has broken off by now must not be taken up anywhere. Every shard is asked for this, and one tells the relay.
    pub(super) fn revoke_elsewhere(&mut self, endpoint: Option<EndpointId>, rooms: &[&str]) {
        if self.id != ShardId(0) || !self.shares_sessions() {
            return;
        }
        for index in 0..self.world.config.endpoints.len() {
            let own = EndpointId(index as u8);
            if endpoint.is_none_or(|wanted| wanted == own) && self.remembers(own) {
                self.send_out(Outward::Revoke { endpoint: own, rooms: rooms.iter().map(|name| (*name).into()).collect() });
            }
        }
    }

    /// The same for a selection. Whoever is excepted is not known here, so a selection with exceptions is for those only who are connected.
    pub(super) fn revoke_selected(&mut self, selection: &Selection) {
        if !selection.except.is_empty() {
            return;
        }
        let own: Vec<_> =
            selection.targets.iter().map(|target| if let Target::Connection(sid) = target { Some(sid.text()) } else { None }).collect();
        let names = selection.targets.iter().zip(&own).filter_map(|(target, own)| match (target, own) {
            (Target::Room(name), _) => Some(&**name),
            (_, Some(sid)) => Some(sid.as_str()),
            _ => None,
        });
        let names: Vec<&str> = names.collect();
        self.revoke_elsewhere(Some(selection.endpoint), &names);
    }

    /// A connection has ended that was made by another host.
    pub(super) fn forget_stranger(&mut self, conn: &Conn) {
        if self.strangers.is_empty() {
            return;
        }
        self.strangers.remove(&conn.sid);
        if let Some(recovery) = &conn.recovery {
            self.strangers.remove(&recovery.pid());
        }
    }

    /// Tells the relay of a connection that is away. Where too much is uncertain, nothing is told, and it can come back here only; what is only not
    /// known yet is told when it is.
    pub(super) fn share_session(&mut self, now: Now, slot: u32) {
        if !self.shares_sessions() {
            return;
        }
        let Some(conn) = self.conns.get(slot) else { return };
        let (id, endpoint) = (self.conn_id(slot, conn), conn.endpoint);
        let done = self.tides.reached().map_or(0, |reached| reached.done);
        let is_early = conn.recovery.as_ref().is_some_and(|recovery| !recovery.has_been_in_since(done));
        if is_early {
            if self.early_leavers.len() < EARLY_LEAVERS_MAX {
                self.early_leavers.push(id);
            }
            return;
        }
        let Some(session) = self.session_of(now, slot) else { return self.counters(endpoint).unshared.add(1) };
        let is_told = self.try_send_out(Outward::Session(Box::new(session)));
        if let Some(recovery) = self.conns.get_mut(slot).and_then(|conn| conn.recovery.as_mut()) {
            recovery.is_shared = is_told;
        }
    }

    /// A tide more has come: whoever left just after he had entered may be told of now.
    pub(super) fn share_early_leavers(&mut self, now: Now) {
        for id in std::mem::take(&mut self.early_leavers) {
            let is_away = self.conns.get_mut_of(id.slot, id.generation).is_some_and(|conn| conn.link == NO_LINK);
            if is_away && !self.is_restoring(id.slot) {
                self.share_session(now, id.slot);
            }
        }
    }

    fn session_of(&mut self, now: Now, slot: u32) -> Option<Session> {
        let conn = self.conns.get(slot)?;
        let (endpoint, id, sid, profile) = (conn.endpoint, self.conn_id(slot, conn), conn.sid, conn.profile.clone());
        let mut rooms: Vec<Arc<str>> = self.rooms_of(slot).into_iter().map(|room| room.name).collect();
        let names: HashSet<&str> = rooms.iter().map(|name| &**name).chain([""]).collect();
        let reached = self.tides.reached()?.clone();
        let certain = reached.position(endpoint);
        let backlog = self.memory.backlog(endpoint)?;
        let conn = self.conns.get(slot)?;
        let recovery = conn.recovery.as_ref()?;
        let (heard, stays) = (recovery.heard(), recovery.stays_by_room());
        let from = heard.min(certain);
        // What is not known from there on is not known exactly.
        if recovery.is_uncertain(heard) || heard < backlog.first() || certain < backlog.first() || backlog.next() - from > SESSION_SCAN_MAX
        {
            return None;
        }
        let anchors = recovery.anchors.iter().flatten().map(|offset| Told { offset: *offset, kind: ToldKind::Known });
        let (mut tail, mut bytes) = (anchors.collect::<Vec<_>>(), 0);
        for (position, event) in backlog.since(from) {
            if position >= heard && recovery.has_brought(event.offset) {
                // A client that has heard nothing here names this one as well.
                return None;
            }
            let is_for_it = is_entitled(&stays, id, conn, position, event);
            let kind = match (&event.frame, &event.to) {
                (Some(frame), To::Conn(_)) if is_for_it && position >= heard => {
                    bytes += frame.bytes().len();
                    ToldKind::Own((**frame).clone())
                }
                (Some(_), _) if is_for_it && position >= heard => ToldKind::Streamed,
                (_, To::Room(room)) if !is_for_it && (position < certain || !names.contains(&**room)) => continue,
                (_, To::Conn(_)) if !is_for_it => continue,
                _ if position < certain && !is_for_it => continue,
                _ => ToldKind::Known,
            };
            tail.push(Told { offset: event.offset, kind });
            if tail.len() > SESSION_EVENTS_MAX || bytes > SESSION_BYTES_MAX {
                return None;
            }
        }
        let pid = recovery.pid();
        rooms.insert(0, sid.text().as_str().into());
        let past = Some(Past { profile, mark: reached.mark, tail });
        Some(Session { endpoint, sid, pid, rooms, left_unix_ms: now.unix_ms, past })
    }

    /// A connection that was away is back, and nobody else has it.
    pub(super) fn unshare_session(&mut self, slot: u32) {
        if let Some(recovery) = self.conns.get_mut(slot).and_then(|conn| conn.recovery.as_mut()) {
            recovery.is_shared = false;
        }
    }

    /// Has the relay fetch a session; the link waits. `None` when nobody can be asked. `is_away`: it is here, too.
    pub(super) fn fetch_session(
        &mut self,
        link: u32,
        endpoint: EndpointId,
        comeback: &Comeback,
        is_away: bool,
        packet: &str,
    ) -> Option<Verdict> {
        let pid = comeback.pid;
        // Of what is here, too, the relay knows whether another host can have it, also while Redis is away.
        if !self.asks_for_sessions() && !is_away {
            return None;
        }
        self.fetches += 1;
        let ask = self.fetches;
        if !self.try_send_out(Outward::Fetch { ask, endpoint, pid, is_away }) {
            return None;
        }
        let found = self.links.get_mut(link)?;
        let State::SocketIo(socket) = &mut found.state else { return None };
        socket.rare_mut().fetching = Some(Box::new(Fetching { ask, offset: comeback.offset, packet: packet.into() }));
        found.waiting += 1;
        self.fetching.insert(ask, LinkKey { slot: link, generation: found.generation });
        Some(Verdict::Wait)
    }

    /// The relay has answered.
    pub(super) fn fetched(&mut self, now: Now, ask: u64, fetched: Fetched) {
        let Some(key) = self.fetching.get(&ask).copied() else { return self.put_back(fetched) };
        let fetched = match fetched {
            Fetched::Session(found) => match self.heard_elsewhere(key, &found.session) {
                Some(mark) if self.tides.mark().is_some_and(|reached| reached >= mark) => Fetched::Session(found),
                Some(mark) => return self.early.push(Early { ask, mark, found, deadline_ms: now.ms() + RESTORE_MS }),
                None => Fetched::Nothing,
            },
            fetched => fetched,
        };
        self.fetching.remove(&ask);
        let link = self.links.get_mut_of(key.slot, key.generation);
        let socket = link.and_then(|link| if let State::SocketIo(socket) = &mut link.state { Some(socket) } else { None });
        let Some((socket, fetching)) =
            socket.and_then(|socket| socket.rare_mut().fetching.take_if(|fetching| fetching.ask == ask).map(|it| (socket, it)))
        else {
            // Whoever wanted it has gone, and may come for it again.
            return self.put_back(fetched);
        };
        socket.rare_mut().fetched = Some(fetched);
        self.take_packet(now, key.slot, &fetching.packet);
        if let Some(Link { state: State::SocketIo(socket), .. }) = self.links.get_mut_of(key.slot, key.generation)
            && let Some(unused) = socket.rare_mut().fetched.take()
        {
            self.put_back(unused);
        }
        self.unwait(key.slot, 1);
    }

    /// Up to where the client of a session has heard the stream; `None` where that cannot be said.
    fn heard_elsewhere(&self, link: LinkKey, session: &Session) -> Option<EntryId> {
        if let Some(past) = &session.past {
            return Some(past.mark);
        }
        let link = self.links.get(link.slot).filter(|found| found.generation == link.generation)?;
        let State::SocketIo(socket) = &link.state else { return None };
        match socket.rare().fetching.as_ref()?.offset {
            Offset::Entry(id) => Some(id),
            Offset::Own(_) => None,
        }
    }

    /// Goes on with sessions for which this host has read the stream far enough, and gives up those that wait too long.
    fn go_on_with_early(&mut self, now: Now) {
        let mark = self.tides.mark().unwrap_or_default();
        let ready: Vec<Early> = self.early.extract_if(.., |early| early.mark <= mark || early.deadline_ms <= now.ms()).collect();
        for Early { ask, mark: wanted, found, .. } in ready {
            if wanted <= mark {
                self.fetched(now, ask, Fetched::Session(found));
            } else {
                self.put_back(Fetched::Session(found));
                self.fetched(now, ask, Fetched::Nothing);
            }
        }
    }

    /// A WebSocket has taken the place of a session: what that waits for goes here.
    pub(super) fn take_waits_over(&mut self, slot: u32) {
        let Some(Link { state: State::SocketIo(socket), generation, .. }) = self.links.get(slot) else { return };
        let link = LinkKey { slot, generation: *generation };
        if let Some(fetching) = &socket.rare().fetching {
            self.fetching.insert(fetching.ask, link);
        }
        let conn = socket.rare().restored.and_then(|id| self.conns.get_mut_of(id.slot, id.generation));
        if let Some(restoring) = conn.and_then(|conn| conn.recovery.as_mut()?.restoring.as_mut()) {
            restoring.link = link;
        }
    }

    fn put_back(&mut self, fetched: Fetched) {
        if let Fetched::Session(found) = fetched {
            self.send_out(Outward::PutBack(found));
        }
    }

    /// Makes the connection of a session that was elsewhere, and lets it enter its rooms; the link waits until it is taken up.
    #[expect(clippy::too_many_arguments, reason = "they are what a CONNECT is")]
    pub(super) fn restore(
        &mut self,
        now: Now,
        link: u32,
        endpoint: EndpointId,
        auth: Option<Value<'_>>,
        comeback: &Comeback,
        found: Box<Found>,
        packet: &str,
    ) -> Restored {
        let sid = found.session.sid;
        let (token, query) = self.presented(now, link, endpoint, auth);
        let old = found.session.past.as_ref().map(|past| &past.profile);
        // Whom the back end lets in it is asked about again.
        let is_asked = self.world.config.endpoints[usize::from(endpoint.0)].connect_hook;
        let profile = match self.admit(now, endpoint, sid, &query, auth, token) {
            Err(refused) => {
                self.put_back(Fetched::Session(found));
                self.refuse(now, link, endpoint, refused, None);
                return Restored::Done;
            }
            // Where clients prove who they are after connecting, one that brings nothing new is who he was, for as long as that counts.
            Ok(profile) if profile.unproven == Some(Err(AuthFault::Missing)) => old.filter(|old| !old.has_expired(now)).cloned(),
            Ok(profile) if matches!(profile.unproven, Some(Err(_))) => None,
            Ok(profile) if old.is_none_or(|old| old.user == profile.user) => Some(Profile { unproven: None, ..profile }),
            Ok(_) => None,
        };
        let Some(profile) = profile.filter(|_| !is_asked) else {
            self.put_back(Fetched::Session(found));
            self.refuse_comeback(endpoint, RecoveryFault::OtherUser);
            return Restored::Anew;
        };
        match self.begin_restoring(now, link, comeback, found.session, profile, packet) {
            Some(()) => Restored::Done,
            None => {
                self.refuse_comeback(endpoint, RecoveryFault::Forgotten);
                Restored::Anew
            }
        }
    }

    fn begin_restoring(
        &mut self,
        now: Now,
        link: u32,
        comeback: &Comeback,
        session: Session,
        profile: Profile,
        packet: &str,
    ) -> Option<()> {
        let Session { endpoint, sid, pid, .. } = session;
        let rooms_max = 2 * self.world.config.limits.rooms_per_connection + 8;
        if self.find(sid).is_some() || session.rooms.len() > rooms_max || !self.remembers(endpoint) || self.is_full_of(endpoint) {
            return None;
        }
        let key = LinkKey { slot: link, generation: self.links.get(link)?.generation };
        let opening = Opening { response: None, query: String::new(), asking: None };
        let make = |_, generation| new_conn(generation, NO_LINK, endpoint, sid, profile.clone(), opening, now);
        let (slot, _) = self.conns.insert(LINKS_PER_SHARD_MAX, make)?;
        let mut recovery = self.new_recovery(endpoint, slot)?;
        let user = Room::user(endpoint, &profile.user);
        let own = sid.text();
        let mut rooms: Vec<Room> = session.rooms.iter().map(|name| Room { endpoint, name: name.clone() }).collect();
        rooms.sort_unstable();
        rooms.dedup();
        rooms.retain(|room| !room.name.is_empty() && *room.name != *own.as_str() && *room != user && !room.is_user());
        let restoring = Restoring {
            link: key,
            packet: packet.into(),
            offset: comeback.offset,
            session,
            profile,
            deadline_ms: now.ms() + RESTORE_MS,
            is_over: false,
            is_asked: false,
            missed: None,
        };
        recovery.begin_restoring(pid, Box::new(restoring));
        let conn = self.conns.get_mut(slot)?;
        (conn.opening, conn.stage, conn.recovery) = (None, Stage::Known, Some(recovery));
        self.forget_claims(slot);
        self.strangers.insert(sid, slot);
        self.strangers.insert(pid, slot);
        self.restoring.push(slot);
        self.one_more_away(endpoint);
        // It takes a place among those that are away, whoever else has to make way for it.
        self.give_up_surplus(endpoint);
        let id = ConnId { shard: self.id, slot, generation: self.conns.generation(slot) };
        self.wait_for_restored(link, id);
        let everybody = Room::everybody(endpoint);
        if let Some(conn) = self.conns.get_mut(slot) {
            self.membership.join(&everybody, slot, NO_LINK, &mut conn.seats);
            self.note_stay(slot, &everybody);
        }
        // He is online before he is in a room.
        self.ask_user_home(now, slot, None);
        for room in rooms {
            self.enter_again(now, slot, room);
        }
        Some(())
    }

    /// True exactly when all that may be away are being restored.
    fn is_full_of(&self, endpoint: EndpointId) -> bool {
        let of_it = |slot: &&u32| self.conns.get(**slot).is_some_and(|conn| conn.endpoint == endpoint);
        let max = self.memory.sessions_max(endpoint);
        self.restoring.len() >= max && self.restoring.iter().filter(of_it).count() >= max
    }

    /// The link's CONNECT waits until the connection is taken up.
    fn wait_for_restored(&mut self, link: u32, id: ConnId) {
        let Some(link) = self.links.get_mut(link) else { return };
        if let State::SocketIo(socket) = &mut link.state {
            socket.rare_mut().restored = Some(id);
            link.waiting += 1;
        }
    }

    fn enter_again(&mut self, now: Now, slot: u32, room: Room) {
        let Some(conn) = self.conns.get(slot) else { return };
        let cx = self.context(now, conn);
        let frame = if room.is_public() { self.dialect(conn.endpoint).welcome(&cx, &room.name) } else { None };
        let announce = frame.map(|frame| Announcement { to: room.clone(), frame });
        let (conn, presence) = (self.conn_id(slot, conn), conn.profile.presence().clone());
        let enter = Enter {
            conn,
            room,
            presence,
            again: false,
            create: true,
            members_max: u32::MAX,
            announce,
            history: 0,
            online: false,
            note: None,
        };
        self.ask_home(slot, enter, false);
    }

    /// True exactly when the connection is being restored.
    pub(super) fn is_restoring(&self, slot: u32) -> bool {
        self.conns.get(slot).and_then(|conn| conn.recovery.as_ref()).is_some_and(|recovery| recovery.restoring.is_some())
    }

    /// A room has answered a connection that is being restored.
    pub(super) fn entered_again(&mut self, now: Now, slot: u32, outcome: Result<(), EnterFault>) {
        let Some(conn) = self.conns.get_mut(slot) else { return };
        let (id, endpoint, is_in) = (ConnId { shard: self.id, slot, generation: conn.generation }, conn.endpoint, conn.entering.is_empty());
        let user = Room::user(endpoint, &conn.profile.user).name;
        let Some(restoring) = conn.recovery.as_mut().and_then(|recovery| recovery.restoring.as_mut()) else { return };
        if outcome.is_err() {
            restoring.is_over = true;
        }
        if !is_in || restoring.is_asked {
            return;
        }
        if restoring.is_over {
            return self.abandon(now, slot, RecoveryFault::Forgotten);
        }
        restoring.is_asked = true;
        let session = &restoring.session;
        let names = session.rooms.iter().cloned().chain([user, "".into()]).collect();
        let (since, events, heard) = match &session.past {
            None => (Since::Event(restoring.offset), Vec::new(), None),
            Some(past) => {
                let heard = Some(restoring.offset).filter(|heard| past.tail.iter().all(|told| told.offset != *heard));
                let again = restoring.again(past);
                let streamed = again.iter().filter(|told| matches!(told.kind, ToldKind::Streamed));
                (Since::Entry(past.mark), streamed.map(|told| told.offset).collect(), heard)
            }
        };
        if !self.try_send_out(Outward::Wanted(Box::new(Wanted { conn: id, endpoint, names, since, events, heard }))) {
            self.abandon(now, slot, RecoveryFault::Forgotten);
        }
    }

    /// The relay has looked for what a connection has missed.
    pub(super) fn take_missed(&mut self, now: Now, id: ConnId, missed: Option<Box<Missed>>) {
        let conn = self.conns.get_mut_of(id.slot, id.generation);
        let Some(restoring) = conn.and_then(|conn| conn.recovery.as_mut()?.restoring.as_mut()) else { return };
        if missed.is_none() {
            return self.abandon(now, id.slot, RecoveryFault::Forgotten);
        }
        restoring.missed = missed;
        self.go_on_restoring(now);
    }

    /// Takes up whoever has everything now, and gives up whom it took too long.
    pub(super) fn go_on_restoring(&mut self, now: Now) {
        self.go_on_with_early(now);
        let Some(mark) = self.tides.mark() else { return };
        for slot in self.restoring.clone() {
            let restoring = self.conns.get(slot).and_then(|conn| conn.recovery.as_ref()?.restoring.as_ref());
            let Some(restoring) = restoring else {
                self.restoring.retain(|other| *other != slot);
                continue;
            };
            let has_everything = restoring.missed.as_ref().is_some_and(|missed| missed.until <= mark);
            if restoring.is_over {
                self.abandon(now, slot, RecoveryFault::Unknown);
            } else if has_everything {
                self.end_restoring(now, slot);
            }
        }
    }

    /// Gives up whom it took too long.
    pub(super) fn sweep_restoring(&mut self, now: Now) {
        self.go_on_with_early(now);
        for slot in self.restoring.clone() {
            let restoring = self.conns.get(slot).and_then(|conn| conn.recovery.as_ref()?.restoring.as_ref());
            match restoring {
                None => self.restoring.retain(|other| *other != slot),
                Some(restoring) if restoring.is_over || restoring.deadline_ms <= now.ms() => {
                    self.abandon(now, slot, RecoveryFault::Forgotten);
                }
                Some(_) => {}
            }
        }
    }

    /// Whoever waits for the relay, or for what the stream still brings, starts anew.
    pub(super) fn end_fetching(&mut self, now: Now) {
        for Early { ask, found, .. } in std::mem::take(&mut self.early) {
            self.put_back(Fetched::Session(found));
            self.fetched(now, ask, Fetched::Nothing);
        }
        let asked: Vec<u64> = self.fetching.keys().copied().collect();
        for ask in asked {
            self.fetched(now, ask, Fetched::Unknown);
        }
        for slot in self.restoring.clone() {
            self.abandon(now, slot, RecoveryFault::Forgotten);
        }
    }

    /// The client may not come back any more.
    pub(super) fn spoil(&mut self, slot: u32) {
        if let Some(restoring) = self.conns.get_mut(slot).and_then(|conn| conn.recovery.as_mut()?.restoring.as_mut()) {
            restoring.is_over = true;
        }
    }

    /// The client starts anew.
    fn abandon(&mut self, now: Now, slot: u32, fault: RecoveryFault) {
        self.restoring.retain(|other| *other != slot);
        let Some(conn) = self.conns.get_mut(slot) else { return };
        let endpoint = conn.endpoint;
        let Some(restoring) = conn.recovery.as_mut().and_then(|recovery| recovery.restoring.take()) else { return };
        self.no_longer_away(endpoint);
        self.remove_conn(now, slot);
        self.refuse_comeback(endpoint, fault);
        let Restoring { link, packet, .. } = *restoring;
        let Some(Link { state: State::SocketIo(socket), .. }) = self.links.get_mut_of(link.slot, link.generation) else { return };
        (socket.may_recover, socket.rare_mut().restored) = (false, None);
        self.take_packet(now, link.slot, &packet);
        self.unwait(link.slot, 1);
    }

    fn end_restoring(&mut self, now: Now, slot: u32) {
        let Some(frames) = self.all_missed(slot) else { return self.abandon(now, slot, RecoveryFault::TooMuch) };
        self.restoring.retain(|other| *other != slot);
        let Some(conn) = self.conns.get(slot) else { return };
        let (endpoint, id) = (conn.endpoint, self.conn_id(slot, conn));
        let tide = self.tides.begun();
        let Some(restoring) = self.conns.get_mut(slot).and_then(|conn| conn.recovery.as_mut()?.restoring.take()) else { return };
        // From here on they are events of its own, so that it can come back for them once more.
        let Some(backlog) = self.memory.backlog_mut(endpoint) else { return };
        let (floor, mut replayed) = (backlog.next(), HashMap::default());
        let past = restoring.session.past.as_ref().map_or(&[][..], |past| restoring.again(past));
        let own = past.iter().rev().find(|told| matches!(told.kind, ToldKind::Own(_))).map(|told| told.offset);
        for frame in &frames {
            if let Some(event) = Event::new(now.ms(), To::Conn(id), frame) {
                replayed.insert(event.offset, backlog.push_again(event));
            }
        }
        let next = backlog.next();
        if let Some(recovery) = self.conns.get_mut(slot).and_then(|conn| conn.recovery.as_mut()) {
            recovery.has_been_restored(floor, next, replayed, tide);
            recovery.anchors = [own, Some(restoring.offset)];
        }
        let LinkKey { slot: link, generation } = restoring.link;
        let is_there = match self.links.get_mut_of(link, generation).map(|link| &mut link.state) {
            Some(State::SocketIo(socket)) => {
                socket.rare_mut().restored = None;
                true
            }
            _ => false,
        };
        if is_there {
            self.stats.endpoints[usize::from(endpoint.0)].restored.add(1);
            self.take_up_with(now, link, slot, floor, restoring.profile, frames, true);
            self.unwait(link, 1);
        } else {
            self.stay_away(now, slot);
        }
    }

    /// Everything that the connection has missed, in order; `None` when it is too much.
    fn all_missed(&mut self, slot: u32) -> Option<Vec<Rc<Frame>>> {
        let conn = self.conns.get_mut(slot)?;
        let id = ConnId { shard: self.id, slot, generation: conn.generation };
        let endpoint = conn.endpoint;
        let restoring = conn.recovery.as_mut()?.restoring.as_mut()?;
        let missed = restoring.missed.take()?;
        let (mut events, mut known) = (missed.events.into_iter(), HashSet::new());
        let (mut before, mut own) = (Vec::new(), Vec::new());
        if let Some(past) = &restoring.session.past {
            known.extend(past.tail.iter().map(|told| told.offset));
            for told in restoring.again(past) {
                match &told.kind {
                    ToldKind::Known => {}
                    ToldKind::Own(frame) => before.push(Err(Rc::new(frame.clone()))),
                    ToldKind::Streamed => before.push(Ok(events.next()?)),
                }
            }
        }
        before.extend(missed.others.into_iter().filter(|arrival| known.insert(arrival.emit.offset)).map(Ok));
        let (conn, backlog) = (self.conns.get(slot)?, self.memory.backlog(endpoint)?);
        let recovery = conn.recovery.as_ref()?;
        let (stays, user) = (recovery.stays_by_room(), conn.profile.user.clone());
        for (position, event) in backlog.since(recovery.heard()) {
            if let Some(frame) = event.frame.as_ref().filter(|_| is_entitled(&stays, id, conn, position, event))
                && known.insert(event.offset)
            {
                own.push(frame.clone());
            }
        }
        let bytes_max = self.world.config.limits.outbox_bytes / 2;
        let (mut frames, mut bytes) = (Vec::new(), 0);
        for event in before {
            let frame = match event {
                Ok(arrival) if arrival.hidden_from.as_ref().is_some_and(|author| author.has_blocked(&user)) => continue,
                Ok(arrival) => Rc::new(self.frame_of_arrival(&arrival)?),
                Err(frame) => frame,
            };
            bytes += frame.bytes().len();
            frames.push(frame);
            if bytes > bytes_max {
                return None;
            }
        }
        bytes += own.iter().map(|frame| frame.bytes().len()).sum::<usize>();
        frames.extend(own);
        (bytes <= bytes_max).then_some(frames)
    }

    /// The client that is being restored breaks off once more and comes again: the new link waits instead.
    pub(super) fn come_again(&mut self, now: Now, slot: u32, link: u32, comeback: &Comeback, packet: &str) -> Verdict {
        let Some(newcomer) = self.links.get(link) else { return Verdict::Refused };
        let key = LinkKey { slot: link, generation: newcomer.generation };
        let id = ConnId { shard: self.id, slot, generation: self.conns.generation(slot) };
        let Some(restoring) = self.conns.get_mut(slot).and_then(|conn| conn.recovery.as_mut()?.restoring.as_mut()) else {
            return Verdict::Refused;
        };
        // Only for where it is; what it has heard since it broke off elsewhere is nothing.
        if restoring.offset != comeback.offset {
            return Verdict::Refused;
        }
        let old = std::mem::replace(&mut restoring.link, key);
        restoring.packet = packet.into();
        self.wait_for_restored(link, id);
        if let Some(Link { state: State::SocketIo(socket), .. }) = self.links.get_mut_of(old.slot, old.generation) {
            socket.rare_mut().restored = None;
            self.unwait(old.slot, 1);
            // Whoever that was has nothing to wait for; the session is the newcomer's.
            self.close_link(now, old.slot, CloseReason::Transport, Some(ws::empty_close_frame()));
        }
        Verdict::Wait
    }
}

impl Restoring {
    /// The part of the tail that comes after the last event that the client has heard.
    fn again<'p>(&self, past: &'p Past) -> &'p [Told] {
        let heard = past.tail.iter().rposition(|told| told.offset == self.offset).map_or(0, |at| at + 1);
        &past.tail[heard..]
    }
}
