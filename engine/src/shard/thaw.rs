//! A shard goes on from plain data, in the process that another one became at a reload. Connections live where their ids lead to, so with as many shards as
//! before each takes back its own, in the same places; with more or fewer some change shards. Members of rooms are counted again by the rooms' homes, wherever these are now.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::engine_http::Post;
use super::history::Kept;
use super::lean::Seldom;
use super::links::{Conn, Link, Polling, Probe, SocketIoLink, Stage, State};
use super::membership::Seats;
use super::old_clients::Old;
use super::outbox::Outbox;
use super::receipts::Awaited;
use super::recovery::{NO_LINK, Recovery};
use super::{Shard, World};
use crate::auth::AuthFault;
use crate::config::Endpoint;
use crate::fault::CloseReason;
use crate::frame::Frame;
use crate::ids::{ConnId, EndpointId, LinkKey, Room, ShardId, Sid, UserId};
use crate::limits::{LINKS_PER_SHARD_MAX, RESUME_GRACE_MS};
use crate::shard::frozen::{
    Frozen, FrozenConn, FrozenEndpoint, FrozenLink, FrozenPolling, FrozenRoom, FrozenShard, FrozenSocketIo, FrozenState,
};
use crate::time::Now;
use crate::wire::{sio, ws};

/// What one shard takes over, by the shard that had it.
#[derive(Default)]
pub struct Portion {
    pieces: Vec<Piece>,
}

/// What one shard takes over of what another had, or of its own.
#[derive(Default)]
pub struct Piece {
    /// Links and connections, if any.
    part: Option<FrozenShard>,
    rooms: Vec<(Room, FrozenRoom)>,
    seq_floor: u64,
    ends_untold: Vec<Room>,
    diaries: Vec<(Room, Vec<(Kept, bool)>)>,
    grants: Vec<(Room, Vec<Arc<str>>)>,
    absences: Vec<(Room, u64)>,
    receipts: Vec<(Room, Awaited)>,
    /// What was counted of each endpoint, and last of what reached none.
    counted: Vec<Vec<(String, u64)>>,
    /// Who is in the rooms whose home it is.
    members: Vec<Seated>,
    /// Long-polling sessions whose ids lead here, and where they live.
    moved_away: Vec<(Sid, ShardId)>,
    /// By former index: the endpoint now, and its former path or namespace.
    endpoints: Arc<[(Option<EndpointId>, String)]>,
}

/// A link with a socket, which is to be watched from now on.
#[derive(Clone, Copy, Debug)]
pub struct Thawed {
    /// The link.
    pub link: LinkKey,
    /// Its socket.
    pub socket: RawFd,
    /// True exactly when it is to be told when the socket takes bytes again.
    pub is_blocked: bool,
}

/// A member of a room.
struct Seated {
    room: Room,
    shard: ShardId,
    presence: UserId,
    is_away: bool,
}

/// The endpoint that goes on for a former one: of the same name and dialect.
fn successor(former: &FrozenEndpoint, endpoints: &[Endpoint]) -> Option<EndpointId> {
    let is_it = |endpoint: &Endpoint| endpoint.name == former.name && endpoint.dialect.name() == former.dialect;
    endpoints.iter().position(is_it).map(|index| EndpointId(index as u8))
}

/// By former index: the endpoint now.
pub(crate) fn successors(former: &[FrozenEndpoint], endpoints: &[Endpoint]) -> Vec<Option<EndpointId>> {
    former.iter().map(|former| successor(former, endpoints)).collect()
}

impl Portion {
    /// Whom this shard's rooms have, where other hosts are told of that.
    pub(crate) fn present(&self, world: &World) -> impl Iterator<Item = (Room, UserId)> {
        let members = self.pieces.iter().flat_map(|piece| &piece.members);
        let present = members.filter(|seated| !seated.is_away && world.tells_others_of(&seated.room));
        present.map(|seated| (seated.room.clone(), seated.presence.clone()))
    }
}

/// Texts of which one copy serves all.
#[derive(Default)]
struct Names(HashSet<Arc<str>, RandomState>);

impl Names {
    fn unite(&mut self, name: &mut Arc<str>) {
        match self.0.get(name) {
            Some(known) => *name = known.clone(),
            None => self.learn(name),
        }
    }

    fn learn(&mut self, name: &Arc<str>) {
        self.0.insert(name.clone());
    }
}

/// Where a link is to live: with its connections, and those with the link or connection that they wait for. `conns` are its shard's.
fn destination(link: &FrozenLink, part: &FrozenShard, conns: &HashMap<u32, Sid, RandomState>, world: &World) -> ShardId {
    let of = |sid: &Sid| world.shard_of(*sid);
    let of_conn = |slot: &u32| conns.get(slot).map(of);
    let own = match &link.state {
        FrozenState::Plain { conn } => of_conn(conn),
        FrozenState::SocketIo(socket) => socket.conns.first().or(socket.challenged.as_ref()).and_then(of_conn),
        FrozenState::Probe { session, .. } => {
            part.links.iter().find(|other| other.slot == *session).map(|other| destination(other, part, conns, world))
        }
        _ => None,
    };
    let of_session = link.polling.as_ref().map(|polling| of(&polling.sid));
    own.or(of_session).unwrap_or(ShardId((usize::from(part.shard) % world.config.shards.len()) as u8))
}

/// Gives every shard its portion: of what each former shard had, the piece that [`pieces`] has made for it.
pub fn portions(by_former: impl IntoIterator<Item = Vec<Piece>>) -> Vec<Portion> {
    let mut portions: Vec<Portion> = Vec::new();
    for pieces in by_former {
        portions.resize_with(pieces.len(), Portion::default);
        portions.iter_mut().zip(pieces).for_each(|(portion, piece)| portion.pieces.push(piece));
    }
    portions
}

/// Divides what a shard of the former process had among those of this one: a piece for each. It knows nothing of the other parts, so that they can be divided at the same time.
pub fn pieces(frozen: &Frozen, mut part: FrozenShard, world: &World) -> Vec<Piece> {
    let shards = world.config.shards.len();
    let successors: Vec<_> =
        frozen.endpoints.iter().map(|former| (successor(former, &world.config.endpoints), former.bind.clone())).collect();
    let endpoints: Arc<[_]> = successors.into();
    let blank = |_| Piece { endpoints: endpoints.clone(), seq_floor: part.seq_floor, ..Piece::default() };
    let mut pieces: Vec<Piece> = (0..shards).map(blank).collect();
    let room_of = |endpoint: u8, name: Arc<str>| {
        let endpoint = endpoints.get(usize::from(endpoint))?.0?;
        Some(Room { endpoint, name })
    };
    let home = |room: &Room| usize::from(world.home_of(room).0);
    let mut names = Names::default();
    part.conns.iter_mut().for_each(|conn| unite(conn, &mut names));
    let sids: HashMap<u32, Sid, RandomState> = part.conns.iter().map(|conn| (conn.slot, conn.sid)).collect();
    let links_to: Vec<ShardId> = part.links.iter().map(|link| destination(link, &part, &sids, world)).collect();
    let by_slot: HashMap<u32, ShardId, RandomState> = part.links.iter().zip(&links_to).map(|(link, to)| (link.slot, *to)).collect();
    let with_link = |conn: &FrozenConn| conn.link.and_then(|link| by_slot.get(&link).copied());
    let conns_to: Vec<ShardId> = part.conns.iter().map(|conn| with_link(conn).unwrap_or(world.shard_of(conn.sid))).collect();
    for (link, to) in part.links.iter().zip(&links_to) {
        for sid in link.polling.iter().map(|polling| polling.sid).chain(link.guest) {
            if world.shard_of(sid) != *to {
                pieces[usize::from(world.shard_of(sid).0)].moved_away.push((sid, *to));
            }
        }
    }
    for (conn, shard) in part.conns.iter().zip(&conns_to) {
        let (shard, is_away) = (*shard, conn.link.is_none());
        for room in conn.rooms.iter().filter(|name| !name.is_empty()).filter_map(|name| room_of(conn.endpoint, name.clone())) {
            let presence = if room.is_user() { &conn.profile.user } else { conn.profile.presence() }.clone();
            pieces[home(&room)].members.push(Seated { room, shard, presence, is_away });
        }
    }
    for frozen in std::mem::take(&mut part.rooms) {
        let Some(room) = room_of(frozen.endpoint, frozen.name.clone()) else { continue };
        pieces[home(&room)].rooms.push((room, frozen));
    }
    for (endpoint, name) in std::mem::take(&mut part.ends_untold) {
        let Some(room) = room_of(endpoint, name) else { continue };
        pieces[home(&room)].ends_untold.push(room);
    }
    for diary in std::mem::take(&mut part.diaries) {
        let Some(room) = room_of(diary.endpoint, diary.room) else { continue };
        pieces[home(&room)].diaries.push((room, diary.kept));
    }
    for (endpoint, user, rooms) in std::mem::take(&mut part.grants) {
        let Some(user) = room_of(endpoint, user) else { continue };
        pieces[home(&user)].grants.push((user, rooms));
    }
    for (endpoint, user, unix_ms) in std::mem::take(&mut part.absences) {
        let Some(user) = room_of(endpoint, user) else { continue };
        pieces[home(&user)].absences.push((user, unix_ms));
    }
    for (endpoint, message, awaited) in std::mem::take(&mut part.receipts) {
        let Some(message) = room_of(endpoint, message) else { continue };
        pieces[home(&message)].receipts.push((message, awaited));
    }
    pieces[usize::from(part.shard) % shards].counted = std::mem::take(&mut part.counted);
    for (piece, part) in pieces.iter_mut().zip(divide(part, &links_to, &conns_to, shards)) {
        piece.part = part;
    }
    pieces
}

fn unite(conn: &mut FrozenConn, names: &mut Names) {
    conn.rooms.iter_mut().for_each(|name| names.unite(name));
    names.unite(&mut conn.profile.user);
    if let Some(own) = &mut conn.profile.own {
        names.unite(&mut own.presence);
    }
    if let Some(identity) = conn.profile.identity.as_mut().and_then(Arc::get_mut) {
        names.unite(&mut identity.user);
    }
    for (room, _, _) in conn.recovery.iter_mut().flat_map(|recovery| &mut recovery.stays) {
        names.unite(room);
    }
}

/// Divides what a shard had among those to which it goes: by shard, nothing or a piece. One that goes nowhere else stays as it is.
fn divide(part: FrozenShard, links_to: &[ShardId], conns_to: &[ShardId], shards: usize) -> Vec<Option<FrozenShard>> {
    let mut pieces: Vec<Option<FrozenShard>> = (0..shards).map(|_| None).collect();
    let own = usize::from(part.shard);
    if links_to.iter().chain(conns_to).all(|to| usize::from(to.0) == own) && own < shards {
        pieces[own] = Some(part);
        return pieces;
    }
    let FrozenShard { shard, link_generation, conn_generation, frames, links, conns, upgraded, requests, at_door, backlogs, .. } = part;
    let mut all: Vec<FrozenShard> =
        (0..shards).map(|_| FrozenShard { shard, link_generation, conn_generation, requests, ..FrozenShard::default() }).collect();
    let to_of_slot: HashMap<u32, usize, RandomState> =
        links.iter().zip(links_to).map(|(link, to)| (link.slot, usize::from(to.0))).collect();
    links.into_iter().zip(links_to).for_each(|(link, to)| all[usize::from(to.0)].links.push(link));
    conns.into_iter().zip(conns_to).for_each(|(conn, to)| all[usize::from(to.0)].conns.push(conn));
    for (sid, slot) in upgraded {
        if let Some(to) = to_of_slot.get(&slot) {
            all[*to].upgraded.push((sid, slot));
        }
    }
    for waiting in at_door {
        if let Some(to) = to_of_slot.get(&waiting.1) {
            all[*to].at_door.push(waiting);
        }
    }
    for (index, piece) in all.iter_mut().enumerate().filter(|(index, _)| *index != own) {
        debug_assert!(piece.frames.is_empty() && index != own);
        let mut indices: HashMap<u32, u32, RandomState> = HashMap::default();
        for frame in piece.links.iter_mut().flat_map(|link| &mut link.outbox) {
            *frame = *indices.entry(*frame).or_insert_with(|| {
                piece.frames.extend(frames.get(*frame as usize).cloned());
                piece.frames.len() as u32 - 1
            });
        }
    }
    if let Some(piece) = all.get_mut(own) {
        // Those who stay are still known by their positions in what is remembered here.
        (piece.frames, piece.backlogs) = (frames, backlogs);
    }
    all.into_iter().map(Some).collect()
}

/// Where links and connections are now, by the slots they had.
#[derive(Default)]
struct Places {
    links: HashMap<u32, LinkKey, RandomState>,
    conns: HashMap<u32, ConnId, RandomState>,
}

impl Places {
    fn link(&self, slot: u32) -> Option<LinkKey> {
        self.links.get(&slot).copied()
    }

    fn conn(&self, slot: u32) -> Option<u32> {
        self.conns.get(&slot).map(|id| id.slot)
    }
}

impl Shard {
    /// Takes over its portion of what the former process had, for an empty shard. Its links that have a socket.
    pub fn thaw(&mut self, now: Now, mut portion: Portion) -> Vec<Thawed> {
        let pieces = &mut portion.pieces;
        pieces.iter().for_each(|piece| self.homes.restore_floor(piece.seq_floor));
        pieces.iter().for_each(|piece| self.count_on(&piece.counted, &piece.endpoints));
        let mut names = Names::default();
        pieces.iter().flat_map(|piece| &piece.members).for_each(|seated| names.learn(&seated.room.name));
        let mut rooms: Vec<_> = pieces.iter_mut().flat_map(|piece| std::mem::take(&mut piece.rooms)).collect();
        // Longest ago first, whichever shard they come from.
        rooms.sort_by_key(|(_, frozen)| frozen.emptied);
        let mut restored = Vec::with_capacity(rooms.len());
        for (mut room, frozen) in rooms {
            names.unite(&mut room.name);
            self.homes.restore(&room, frozen, &self.stats);
            restored.push(room);
        }
        let mut absences: Vec<_> = pieces.iter_mut().flat_map(|piece| std::mem::take(&mut piece.absences)).collect();
        absences.sort_by_key(|(_, unix_ms)| *unix_ms);
        absences.iter().for_each(|(user, unix_ms)| self.absences.begin(user, *unix_ms));
        let mut parts = Vec::with_capacity(pieces.len());
        for piece in portion.pieces {
            let Piece { part, ends_untold, diaries, grants, receipts, members, moved_away, endpoints, .. } = piece;
            ends_untold.iter().for_each(|room| self.homes.remember_end(room));
            diaries.into_iter().for_each(|(room, kept)| self.homes.history().restore(&room, kept, &self.stats));
            grants.iter().for_each(|(user, rooms)| self.grants.restore(user, rooms));
            receipts.into_iter().for_each(|(message, awaited)| self.receipts.restore(message, awaited));
            for Seated { room, shard, presence, is_away } in members {
                self.homes.seat(&room, shard, &presence, is_away, &self.stats);
            }
            self.moved_away.extend(moved_away);
            parts.extend(part.map(|part| (part, endpoints)));
        }
        // Whose members have all gone with an endpoint, or were none before.
        restored.iter().for_each(|room| self.homes.tidy(room, &self.stats));
        // Those that stay first: they keep their places.
        parts.sort_by_key(|(part, _)| part.shard != self.id.0);
        parts.into_iter().flat_map(|(part, endpoints)| self.thaw_part(now, part, &endpoints)).collect()
    }

    fn count_on(&self, counted: &[Vec<(String, u64)>], endpoints: &[(Option<EndpointId>, String)]) {
        for (index, counted) in counted.iter().enumerate() {
            match endpoints.get(index) {
                Some((Some(endpoint), _)) => self.counters(*endpoint).thaw(counted),
                Some((None, _)) => {}
                None => self.stats.unrouted().thaw(counted),
            }
        }
    }

    fn thaw_part(&mut self, now: Now, part: FrozenShard, endpoints: &[(Option<EndpointId>, String)]) -> Vec<Thawed> {
        let stays = part.shard == self.id.0;
        let endpoint_of = |index: u8| endpoints.get(usize::from(index)).and_then(|(endpoint, _)| *endpoint);
        let FrozenShard { link_generation, conn_generation, frames, links, mut conns, upgraded, requests, at_door, backlogs, .. } = part;
        self.requests = self.requests.max(requests);
        let frames: Vec<Rc<Frame>> = frames
            .into_iter()
            .map(|frozen| {
                let endpoint = frozen.endpoint.and_then(endpoint_of);
                Rc::new(Frame::thaw(frozen, endpoint))
            })
            .collect();
        for backlog in backlogs {
            if let Some(endpoint) = endpoint_of(backlog.endpoint) {
                self.memory.thaw(endpoint, backlog, &frames);
            }
        }
        // Whose endpoint is served no longer is told so by his link.
        let lost: Vec<FrozenConn> = conns.extract_if(.., |conn| endpoint_of(conn.endpoint).is_none()).collect();
        let places = self.places(now, stays, link_generation, conn_generation, &links, &conns);
        for conn in conns {
            if let Some(endpoint) = endpoint_of(conn.endpoint) {
                self.thaw_conn(endpoint, conn, &places, stays);
            }
        }
        let mut sockets = Vec::with_capacity(links.len());
        for link in links {
            let Some(key) = places.link(link.slot) else { continue };
            sockets.extend(link.socket.map(|socket| Thawed { link: key, socket, is_blocked: link.blocked }));
            self.thaw_link(now, key, link, &places, &frames);
        }
        for (sid, slot) in upgraded {
            if let Some(link) = places.link(slot) {
                self.upgraded.add(sid, link);
            }
        }
        for (resumes, slot, packet) in at_door {
            if let Some(link) = places.link(slot) {
                self.door.thaw(resumes, link, packet);
            }
        }
        for conn in lost {
            if let Some(link) = conn.link.and_then(|slot| places.link(slot)) {
                self.lose_endpoint(now, link.slot, endpoints.get(usize::from(conn.endpoint)).map_or("", |(_, bind)| bind));
            }
        }
        sockets
    }

    /// Puts records into the tables that stand for what is to come there: in the same places, or in free ones.
    fn places(
        &mut self,
        now: Now,
        stays: bool,
        link_generation: u32,
        conn_generation: u32,
        links: &[FrozenLink],
        conns: &[FrozenConn],
    ) -> Places {
        let shard = self.id;
        let blank_link = |generation: u32, link: &FrozenLink| {
            let link = Link::new(generation, link.peer, link.rate);
            Link { state: State::Closing { deadline_ms: now.ms(), peer_done: false, impatient: false }, ..link }
        };
        let mut places = Places::default();
        if stays {
            let records = links.iter().map(|link| (link.slot, blank_link(link.generation, link))).collect();
            self.links.restore(records, link_generation);
            let records = conns.iter().map(|conn| (conn.slot, blank_conn(conn.generation, conn))).collect();
            self.conns.restore(records, conn_generation);
            places.links = links.iter().map(|link| (link.slot, LinkKey { slot: link.slot, generation: link.generation })).collect();
            places.conns = conns.iter().map(|conn| (conn.slot, ConnId { shard, slot: conn.slot, generation: conn.generation })).collect();
            return places;
        }
        for link in links {
            if let Some((slot, generation)) = self.links.insert(LINKS_PER_SHARD_MAX, |_, generation| blank_link(generation, link)) {
                places.links.insert(link.slot, LinkKey { slot, generation });
            }
        }
        for conn in conns {
            if let Some((slot, generation)) = self.conns.insert(LINKS_PER_SHARD_MAX, |_, generation| blank_conn(generation, conn)) {
                places.conns.insert(conn.slot, ConnId { shard, slot, generation });
            }
        }
        places
    }

    fn thaw_conn(&mut self, endpoint: EndpointId, frozen: FrozenConn, places: &Places, stays: bool) {
        let Some(slot) = places.conn(frozen.slot) else { return };
        let FrozenConn { link, sid, rooms, is_polling, waiting, typing, ruled, recovery, .. } = frozen;
        let link = link.and_then(|link| places.link(link)).map_or(NO_LINK, |key| key.slot);
        let next = self.memory.backlog(endpoint).map_or(0, |backlog| backlog.next());
        let recovery = recovery.filter(|_| self.remembers(endpoint)).map(|frozen| {
            let mut recovery = Recovery::thaw(frozen, |slot| places.link(slot));
            if !stays {
                recovery.begin_anew(next);
            }
            Box::new(recovery)
        });
        let pid = recovery.as_ref().map(|recovery| recovery.pid());
        for id in [Some(sid), pid].into_iter().flatten() {
            // Found by its slot is only what has the one that its id says.
            if id.slot() != slot || id.shard() != self.id {
                self.strangers.insert(id, slot);
            }
        }
        let Some(conn) = self.conns.get_mut(slot) else { return };
        (conn.link, conn.endpoint, conn.is_polling, conn.waiting) = (link, endpoint, is_polling, waiting);
        (conn.ruled, conn.recovery) = (ruled, recovery);
        conn.typing = typing.into_iter().map(|(room, until_ms)| super::links::Typing { room, until_ms }).collect::<Vec<_>>().into();
        for name in rooms {
            self.membership.join(&Room { endpoint, name }, slot, link, &mut conn.seats);
        }
        let (is_authenticated, can_return) = (conn.is_authenticated(), conn.recovery.is_some());
        let until_ms = conn.recovery.as_ref().map_or(0, |recovery| recovery.away_until_ms());
        let id = ConnId { shard: self.id, slot, generation: conn.generation };
        let counters = self.counters(endpoint);
        if link == NO_LINK {
            counters.recoverable.add(1);
            self.memory.keep_away(endpoint, (!stays).then_some((until_ms, id)));
            if !can_return {
                // Its endpoint remembers nobody any more.
                self.give_up(slot);
            }
            return;
        }
        counters.connections.add(1);
        counters.authenticated.add(u64::from(is_authenticated));
        counters.polling.add(u64::from(is_polling));
    }

    fn thaw_link(&mut self, now: Now, key: LinkKey, frozen: FrozenLink, places: &Places, frames: &[Rc<Frame>]) {
        let FrozenLink {
            peer,
            is_counted,
            outbox,
            written,
            blocked,
            partial,
            decoder,
            waiting,
            corked,
            mut heartbeat,
            polling,
            guest,
            state,
            ..
        } = frozen;
        let _ = self.world.addresses.enter();
        if heartbeat.awaiting {
            // Its answer may have come during the pause, and is still to be read.
            heartbeat.at_ms = heartbeat.at_ms.max(now.ms() + RESUME_GRACE_MS);
        }
        let frames: VecDeque<Rc<Frame>> = outbox.iter().filter_map(|index| frames.get(*index as usize).cloned()).collect();
        let mut outbox = Outbox::of(frames, written as usize);
        outbox.blocked = blocked;
        self.stats.outbox_bytes.add(outbox.bytes() as u64);
        let polling = polling.map(|polling| Box::new(thaw_polling(polling, places)));
        let session = polling.as_ref().filter(|polling| !polling.is_over).map(|polling| polling.sid);
        let is_elsewhere = |sid: &Sid| self.shard_of_past(*sid) != self.id || sid.slot() != key.slot;
        let guest = guest.or(session.filter(is_elsewhere));
        if let Some(sid) = guest {
            self.guests.insert(sid, key.slot);
        }
        let ticket = is_counted.then(|| self.world.addresses.reopen(peer.ip()));
        let bodies = self.bodies.clone();
        let Some(link) = self.links.get_mut(key.slot) else { return };
        link.state = match state {
            FrozenState::Head { deadline_ms, idle, welcome } => State::Head { deadline_ms, idle, welcome },
            FrozenState::Plain { conn } => match places.conn(conn) {
                Some(conn) => State::Plain { conn },
                // See `lose_endpoint`.
                None => State::Head { deadline_ms: now.ms(), idle: false, welcome: true },
            },
            FrozenState::SocketIo(socket) => State::SocketIo(Box::new(thaw_socket_io(*socket, places))),
            FrozenState::Body { sid, reply, body, is_binary, deadline_ms } => {
                State::Body(Box::new(Post::thaw(sid, reply, body, is_binary, deadline_ms, &bodies)))
            }
            FrozenState::Probe { session, deadline_ms } => match places.link(session) {
                Some(session) => State::Probe(Box::new(Probe { session, deadline_ms })),
                None => State::Closing { deadline_ms, peer_done: false, impatient: false },
            },
            FrozenState::Closing { deadline_ms, peer_done, impatient } => State::Closing { deadline_ms, peer_done, impatient },
        };
        (link.ticket, link.outbox, link.partial, link.decoder) = (ticket, outbox, partial.into(), decoder);
        (link.waiting, link.corked, link.heartbeat) = (waiting, corked, heartbeat);
        (link.polling, link.guest) = (polling, guest.map(Box::new));
        if !link.outbox.is_empty() && !blocked {
            self.mark_dirty(key.slot);
        }
        self.arm_next(now, key.slot);
    }

    /// A link's connection was one of an endpoint that is served no longer; `bind` was its path or namespace.
    fn lose_endpoint(&mut self, now: Now, slot: u32, bind: &str) {
        match self.links.get(slot).map(|link| &link.state) {
            Some(State::SocketIo(socket)) => {
                let is_last = socket.conns.is_empty();
                self.push(now, slot, Frame::control_text(&sio::disconnect(bind)));
                if is_last {
                    self.close_link(now, slot, CloseReason::Shutdown, Some(ws::empty_close_frame()));
                }
            }
            Some(State::Head { .. }) => {
                let goodbye = CloseReason::Shutdown.close_frame().map(|(code, text)| ws::close_frame(code, text));
                self.say_goodbye(now, slot, goodbye, false);
            }
            _ => {}
        }
    }
}

/// What [`Shard::thaw_conn`] completes.
fn blank_conn(generation: u32, frozen: &FrozenConn) -> Conn {
    Conn {
        generation,
        link: NO_LINK,
        endpoint: EndpointId::UNKNOWN,
        sid: frozen.sid,
        profile: frozen.profile.clone(),
        connected_unix_ms: frozen.connected_unix_ms,
        heard_tenths: frozen.heard_tenths,
        seats: Seats::new(),
        is_polling: false,
        waiting: 0,
        stage: frozen.unknown_until_ms.map_or(Stage::Known, |until_ms| Stage::Unknown { until_ms }),
        entering: Seldom::new(),
        leaving: None,
        opening: None,
        typing: Seldom::new(),
        acks: Seldom::new(),
        asked_rooms: 0,
        ruled: None,
        recovery: None,
    }
}

fn thaw_polling(frozen: FrozenPolling, places: &Places) -> Polling {
    let FrozenPolling { sid, inbox, probe, probers, held, is_over } = frozen;
    let probe = probe.and_then(|slot| places.link(slot));
    Polling { sid, poll: None, answered: None, inbox, probe, probers, held, is_over }
}

fn thaw_socket_io(frozen: FrozenSocketIo, places: &Places) -> SocketIoLink {
    let FrozenSocketIo {
        conns,
        connect_deadline_ms,
        has_tried,
        has_entered,
        assembly,
        has_moved,
        may_recover,
        query,
        old,
        challenged,
        token,
        cookie,
        visitor,
    } = frozen;
    let mut socket = SocketIoLink::new(query);
    conns.into_iter().filter_map(|conn| places.conn(conn)).for_each(|conn| socket.conns.push(conn));
    (socket.connect_deadline_ms, socket.has_tried, socket.has_entered) = (connect_deadline_ms, has_tried, has_entered);
    (socket.has_moved, socket.may_recover) = (has_moved, may_recover);
    socket.assembly = assembly.map(Box::new);
    let challenged = challenged.and_then(|conn| places.conns.get(&conn).copied());
    let missing = Err(AuthFault::Missing);
    if old.is_some() || challenged.is_some() || visitor.is_some() || token != missing || cookie != missing {
        let rare = socket.rare_mut();
        (rare.old, rare.challenged) = (old.map(Old::promised), challenged);
        (rare.token, rare.cookie, rare.visitor) = (token, cookie, visitor.map(Box::new));
    }
    socket
}
