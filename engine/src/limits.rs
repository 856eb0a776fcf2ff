//! Every bound of the engine: its value, its unit and its reason. What an operator may change is in [`Limits`]; the constants are
//! relations the code relies on, asserted at compile time where two of them meet.

/// Bytes in a name of a room, group, document or user (contract).
pub const NAME_BYTES_MAX: usize = 255;

/// Links one shard can hold: a [`crate::ids::Sid`] has 24 bits for the slot.
pub const LINKS_PER_SHARD_MAX: usize = 1 << 24;

/// Shards of one process: a `Sid` has 8 bits for the shard.
pub const SHARDS_MAX: usize = 255;

/// Endpoints of one process: [`crate::ids::EndpointId`] has 8 bits, one is kept for what belongs to none.
pub const ENDPOINTS_MAX: usize = 255;

/// Bytes of the buffer a shard receives into. One read of a socket per turn takes at most this, so that a fast sender
/// cannot keep its neighbours waiting.
pub const READ_BUFFER_BYTES: usize = 64 * 1024;

/// Readiness events handled in one turn before output is flushed: with 5 µs of work each, a turn is about a millisecond.
pub const EVENTS_PER_TURN: usize = 256;

/// Handshakes that were made to wait and are let in within one turn: with a token signed with a public key each takes about 0.1 ms.
pub const ADMITTED_PER_TURN: usize = 64;

/// For how long handshakes wait at the most when more come than are let in, in milliseconds: two seconds' worth wait, and as many of clients that
/// go on with what they had. A client that is told to come again needs as long itself.
pub const DOOR_WAIT_MS: u64 = 2_000;

/// What a shard has let in less than it might is made good for the length of a second divided by this: usual bursts pass without waiting, and
/// take no core for longer than a few turns.
pub const DOOR_BURST_PER_SECOND: u64 = 4;

/// Bytes of a Socket.IO CONNECT that may wait: a token as long as may be, and what a client says of itself.
pub const DOOR_PACKET_BYTES_MAX: usize = TOKEN_BYTES_MAX + CONNECTION_METADATA_BYTES_MAX;

/// Milliseconds between two looks at how much connections hold, where that is bounded. So long it can grow by as much as the network brings.
pub const MEMORY_LOOK_MS: u64 = 64;

/// Links for each of which milliseconds more lie between two looks, which go through all of them: 50 ns a link, two hundredths of a core at most.
pub const LINKS_PER_LOOK_MS: u64 = 250;

/// Tenths of what connections may hold that are left when links were ended because it was too much: the next look shall not find the same.
pub const MEMORY_SHED_TENTHS: usize = 9;

/// Frames of a queue that are looked at to know what it holds; more would make a look as long as all queues.
pub const QUEUE_SAMPLES: usize = 16;

/// Bytes that a frame which waits takes besides its own: its record and two counters.
pub const FRAME_OVERHEAD_BYTES: usize = 128;

/// Connections accepted in one turn: a burst of new ones must not delay the messages of those that are there.
pub const ACCEPTS_PER_TURN: usize = 64;

/// How long accepting pauses when the process has no file descriptor left, in milliseconds.
pub const ACCEPT_PAUSE_MS: u64 = 50;

/// Sockets whose copies go into the keeper's queue with one message: the most that the kernel takes (SCM_MAX_FD).
pub const KEPT_PER_MESSAGE: usize = 253;

/// How long a new WebSocket may have no copy in the keeper's queue, in milliseconds: what comes within it goes with one message.
pub const KEEP_EVERY_MS: u64 = 100;

/// The pause between two full messages, in milliseconds: each is about 0.1 ms of work, so thousands of new sockets take a hundredth of a shard.
pub const KEEP_NEXT_MS: u64 = 10;

/// The pause after which copies are offered again that the kernel did not take, in milliseconds.
pub const KEEP_AGAIN_MS: u64 = 1_000;

/// Bytes of kernel memory that are asked for for the queue: a message takes about 800 of them, so the default of most machines (208 KiB, doubled) is
/// enough for 100,000 sockets of one shard.
pub const KEEP_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// Messages that may lie in the queue beyond twice as many as its sockets need. Those of an idle server have few sockets each; every hundred of them are made one.
pub const KEEP_MESSAGES_SPARE: usize = 64;

/// Closed connections whose copies may lie in the queue whatever is open. Each holds a socket of the kernel without its buffers.
pub const KEPT_DEAD_SPARE: usize = 1_024;

/// How long such a copy may lie there, in milliseconds. A peer that has vanished keeps the unsent bytes of his socket for so long.
pub const KEPT_DEAD_MS: u64 = 10_000;

/// Goodbyes a second after a crash, as many as the handshakes that a shard lets in by default: who hears one comes back at once. Every two seconds they
/// are doubled, so that a million are told within fifteen.
pub const FAREWELLS_PER_SECOND: u64 = 5_000;

/// How long the answer to such a goodbye is waited for, in milliseconds. Closing before it comes would be a reset, by which some clients lose the goodbye.
pub const FAREWELL_ANSWER_MS: u64 = 1_000;

/// When it is looked for first, in milliseconds: most clients are nearer.
pub const FAREWELL_LOOK_MS: u64 = 60;

/// Bytes that such a client may have sent unread, looked at so that the connection ends without a reset.
pub const FAREWELL_UNREAD_BYTES_MAX: usize = 256 * 1024;

/// File descriptors kept back for what is not a client: rings, eventfds, the control plane, logs.
pub const DESCRIPTORS_RESERVED: usize = 256;

/// Connections beyond those the process may hold that are heard first and then told so. They have descriptors too, and may be silent for
/// the time of a handshake: what comes beyond them is closed at once, so that the control plane keeps those that are reserved.
pub const TURNED_AWAY_MAX: usize = DESCRIPTORS_RESERVED / 4;

/// How long a shard may take for one order of a reload, in milliseconds: a turn of the busiest is a tenth of it, and one that hangs must not keep the others from going on.
pub const REST_ROUND_MS: u64 = 5_000;

/// How long a reload waits for Redis to confirm what it was told, in milliseconds, while no client is read. One that lives answers in a few; one that hangs is not waited for: what it has not
/// confirmed is sent again in the reliable mode, and counted in the other.
pub const REST_CONFIRM_MS: u64 = 250;

/// How long shards may take to come to rest once nothing outside is waited for any more, in milliseconds. Parcels need microseconds; a flood that has filled the lanes is
/// worked off in this time.
pub const REST_SURPLUS_MS: u64 = 2_000;

/// Frames at least this long, in bytes, are sent from where they lie; shorter ones queued together are copied into one write.
pub const COALESCE_FRAME_BYTES_MAX: usize = 4 * 1024;

/// Bytes of one coalesced write.
pub const COALESCE_WRITE_BYTES_MAX: usize = 64 * 1024;

/// Sends handed to the kernel at once, about 1.5 ms of work. Four times as many cost as much in all: the kernel's share of them only moves to ksoftirqd.
pub const SENDS_PER_BATCH: usize = 256;

/// Empty queues that a shard keeps for links that get several frames in one turn: one for each write of two batches.
pub const SPARE_QUEUES_MAX: usize = 2 * SENDS_PER_BATCH;

/// Frames that a queue which is kept has places for; what was longer was a slow reader's.
pub const SPARE_QUEUE_FRAMES_MAX: usize = 64;

/// Members on one shard from which on a room's casts may be held: the writes that fewer need cost less than the waiting.
pub const HOLD_MEMBERS_MIN: usize = 64;

/// Casts that are held together at most. A write of sixteen is nearly as cheap per cast as one of more.
pub const HOLD_CASTS_MAX: usize = 16;

/// Nesting of a JSON message. Node's parser takes thousands, but no real message has more than a few, and a receiver's recursive
/// parser dies of them.
pub const JSON_DEPTH_MAX: usize = 128;

/// How long connecting to Redis may take, in milliseconds: name, TCP, TLS and the greeting together.
pub const REDIS_CONNECT_MS: u64 = 3_000;

/// How often the link looks whether Redis still speaks, in milliseconds. What has said nothing from one look to the next is asked (`PING`).
pub const REDIS_LOOK_MS: u64 = 250;

/// Looks without a word after a question until Redis counts as silent: with the one that finds the quiet, 0.75 to 1.25 s. They are counted and not
/// the time, so that a thread which was busy itself does not blame Redis.
pub const REDIS_SILENT_LOOKS: u64 = 3;

/// How long Redis may be silent until the link is given up, in milliseconds. A script or a fork may block it for seconds, and what it was asked
/// before is then still done.
pub const REDIS_LOST_MS: u64 = 10_000;

/// How long a sentinel may take to say who is the master, in milliseconds. All are asked at once, and one that is dead must not hold the others up.
pub const REDIS_SENTINEL_MS: u64 = 1_000;

/// How often the sentinels are asked whether the master is still the same, in milliseconds: so long may be published to one that was cut off.
pub const REDIS_SENTINEL_LOOK_MS: u64 = 5_000;

/// How often a command goes after a slot that moves or has nobody, and how long it waits in between, in milliseconds, times the attempt: 1.5 s
/// together, which is longer than anything waits for the answer.
pub const REDIS_REDIRECTS_MAX: u64 = 5;
/// See [`REDIS_REDIRECTS_MAX`].
pub const REDIS_REDIRECT_MS: u64 = 100;

/// How often a cluster is asked who has its slots, in milliseconds, when nothing says that they have moved.
pub const REDIS_SLOTS_LOOK_MS: u64 = 10_000;

/// Bytes of commands that wait for answers. Twice what the relay keeps back while Redis is away, so that all of that can go out at once.
pub const REDIS_REQUESTS_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Requests that wait for answers, whatever their size: each has a task of about 1 kB.
pub const REDIS_REQUESTS_MAX: usize = 64 * 1024;

/// Bytes of pushes that the relay has not yet taken. Redis itself drops a subscriber that has 32 MB unread; the same is enough here.
pub const REDIS_PUSHES_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Bytes that a push costs besides its texts.
pub const REDIS_PUSH_BYTES: usize = 128;

/// Bytes of one answer of Redis, all its parts together. The largest that is asked for is a room's history.
pub const REDIS_REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Parts of one answer: members of a large set, fields of a large hash.
pub const REDIS_PARTS_MAX: u64 = 4 * 1024 * 1024;

/// Nesting of an answer. Streams come to 5; the parser behind takes 100.
pub const REDIS_DEPTH_MAX: usize = 16;

/// Bytes of a status, an error or a number.
pub const REDIS_LINE_BYTES_MAX: usize = 64 * 1024;

/// Delay before Redis is called again, in milliseconds: the first, doubled with each failure up to the longest.
pub const REDIS_BACKOFF_MS: (u64, u64) = (100, 5_000);

/// Nesting of a message between hosts: a client's message, and what the adapters put around it, which is an object in an object in an
/// object where it is most.
pub const RELAY_DEPTH_MAX: usize = JSON_DEPTH_MAX + 3;

/// Bytes of one message between hosts that is still read. Redis drops a subscriber for whom more than this waits (its default for
/// `client-output-buffer-limit pubsub`), so nobody can rely on greater ones.
pub const RELAY_MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Header fields of one request. CVE-2024-37890 is what happens without this.
pub const HEADERS_MAX: usize = 100;

/// Bytes of a token. Verifying costs time linear in this; the largest real ones (group claims) are about 10 kB.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// Bytes of a JSON Web Key Set. An RSA key with its certificate chain has about 6 kB; real sets have two to ten keys.
pub const JWKS_BYTES_MAX: usize = 256 * 1024;

/// Keys of a JSON Web Key Set, those counted that are passed over. So many signatures a token can cost at most, where all keys have one name.
pub const JWKS_KEYS_MAX: usize = 32;

/// Fragments of one WebSocket message: a million empty ones are no message.
pub const FRAGMENTS_MAX: u32 = 16 * 1024;

/// Batches of parcels waiting on one lane between two shards.
pub const LANE_BATCHES_MAX: usize = 1024;

/// Bytes of frames waiting on one lane; beyond it the sending shard stops reading its clients until the lane has drained.
pub const LANE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes of what one shard keeps for the relay while its lane is full: the relay takes what there is at once, whether Redis answers or not,
/// so that only one that has ended lets it come to this.
pub const OUTWARD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Rooms that one shard tells of in one go when hosts compare which there are: some 100 kB of records.
pub const ROLL_ROOMS: usize = 256;

/// Ends of rooms that one shard remembers until Redis has been told. A back end that ends more while Redis is away finds the first of them there again.
pub const ENDS_UNTOLD_MAX: usize = 4 * 1024;

/// How long it is known of a message that several hosts have heard, and that one of them is to keep, that one has: milliseconds. They hear it within
/// one; what is behind by more than the relay keeps messages back is behind for good.
pub const HISTORY_TWICE_MS: u64 = 60_000;

/// Entries of a room's history that Redis looks at for one question: some milliseconds in which it does nothing else. Only a stream that
/// somebody else has filled has so many.
pub const HISTORY_SCANNED_MAX: u64 = 20_000;

/// Connections that one shard tells another Socket.IO server of in one answer: some 10 ms of its time, and 5 MB.
pub const PEER_SOCKETS_MAX: usize = 10_000;

/// Bytes of names of rooms that one shard tells another Socket.IO server of in one answer.
pub const PEER_NAMES_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Connections times rooms that one shard moves for one request of another Socket.IO server: some 100 ms of its time.
pub const PEER_MOVES_MAX: usize = 100_000;

/// Bytes of one answer to another Socket.IO server. Redis gives up a subscriber for whom 32 MB wait, and several hosts answer at once.
pub const PEER_ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Requests of other Socket.IO servers under way; an idle one answers each within a millisecond, but acknowledgements are waited for.
pub const PEER_ERRANDS_MAX: usize = 4_096;

/// Questions to other Socket.IO servers under way: those of calls of the admin API.
pub const PEER_ASKS_MAX: usize = 4_096;

/// Milliseconds until a request of another Socket.IO server is answered with what there is. Node's servers wait for five seconds.
pub const PEER_ANSWER_MS: u64 = 1_000;

/// Milliseconds until a question to other Socket.IO servers is answered with what has come: less than whoever calls the admin API waits.
pub const PEER_ASK_MS: u64 = 900;

/// Milliseconds for which acknowledgements are passed on to a server that does not say how long it waits, and to any at most.
pub const PEER_ACK_MS: (u64, u64) = (10_000, 600_000);

/// Bytes of acknowledgements that are kept for whoever asked, or that are held back until it is known how many clients were asked.
pub const PEER_ACK_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of messages of one namespace that are held back while connections enter and leave rooms by another server's will. Beyond, they are
/// delivered at once: an order that is lost then is better than a message.
pub const PEER_HELD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Milliseconds for which a room's home waits for what is beyond this host: a hundred round trips, and no client minds it. After that it goes on with what this host knows.
pub const CONSULT_MS: u64 = 1_000;

/// Such questions under way on one shard; what comes beyond goes on at once with what this host knows. At 1 ms an answer ten times what a
/// shard can be asked in a second.
pub const CONSULTS_WAITING_MAX: usize = 64 * 1024;

/// Questions in one transaction: some hundred microseconds in which Redis does nothing else.
pub const CONSULTS_PER_REQUEST_MAX: usize = 64;

/// Transactions with questions that Redis has not answered. More than a round trip's worth of them would only wait there instead of here.
pub const CONSULT_REQUESTS_MAX: usize = 32;

/// Bytes of messages in one read of a room's history, and of all reads that Redis has not answered: it builds an answer in one go, and a link takes
/// no more than [`REDIS_REPLY_BYTES_MAX`] at once.
pub const RECALL_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes of what other hosts say that is held back while the answer of a question is awaited that has its place before it. They come by two
/// connections, a moment apart; beyond this the question is given up.
pub const HELD_BACK_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Channels that are asked for in one breath: a new connection may have to ask for as many as there are rooms.
pub const LISTENED_AT_ONCE_MAX: usize = 512;

/// Presences that are told, or taken back, in one request when everything is told anew: a few milliseconds of Redis' time.
pub const PRESENCES_PER_REQUEST_MAX: usize = 128;

/// Milliseconds that a host which ends waits for Redis to take its leave of the others. What it does not take, the others find out.
pub const GOODBYE_MS: u64 = 1_000;

/// Milliseconds for which it is not looked up again whom a user has blocked.
pub const BLOCKLIST_MS: u64 = 1_000;

/// Users of whom a shard, or the relay, remembers that: as many as say something in that time; the oldest are forgotten first.
pub const BLOCKLISTS_MAX: usize = 16 * 1024;

/// What shards say, by the end of a batch, and messages of Redis that the relay handles in one turn before it sends what follows from them.
pub const RELAY_OUTWARDS_PER_TURN: usize = 1_024;
/// See [`RELAY_OUTWARDS_PER_TURN`].
pub const RELAY_PUSHES_PER_TURN: usize = 1_024;

/// Batches, one a shard and turn, that wait for the relay.
pub const OUTWARD_BATCHES_MAX: usize = 4 * 1024;

/// Bytes of messages in one request to Redis: about as much as a socket takes at once, and a millisecond of Redis' time.
pub const RELAY_BATCH_BYTES_MAX: usize = 256 * 1024;

/// Milliseconds between two tellings that Redis is reached or is not: whoever keeps a log of them needs no more lines.
pub const RELAY_STATES_EVERY_MS: u64 = 1_000;

/// Reasons of one outage that are told, and different refusals in [`RELAY_REFUSAL_AGAIN_MS`].
pub const RELAY_REASONS_MAX: usize = 8;

/// Milliseconds after which the same refusal of Redis is told again: a user without a permission is refused with every message.
pub const RELAY_REFUSAL_AGAIN_MS: u64 = 10 * 60 * 1_000;

/// Characters of what Redis said that are told: a line of a log. Its errors quote names that others have chosen.
pub const RELAY_REASON_CHARS_MAX: usize = 240;

/// Requests with messages that Redis has not confirmed: what is lost with a connection is unknown, so it is kept small.
pub const RELAY_IN_FLIGHT_MAX: usize = 4;

/// How long Redis may take with a session, in milliseconds: nobody waits for it longer.
pub const FETCH_MS: u64 = 1_000;

/// When a session that is not there is looked for once more, in milliseconds: its old host may not have noticed yet that it has broken off.
pub const FETCH_AGAIN_MS: u64 = 300;

/// Bytes of sessions that wait to be written; the oldest goes first.
pub const SESSIONS_PENDING_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Commands about sessions that wait for Redis; the oldest goes first.
pub const SESSIONS_LATER_MAX: usize = 16 * 1024;

/// How often shards are told how far the stream has been read, in milliseconds, where that has changed.
pub const TIDE_MS: u64 = 250;

/// Entries one behind the other, and not confirmed by Redis, that say of what found no place in the stream: another is made only where the last may have come
/// there over a connection that broke off, some 200 bytes each.
pub const RELAY_GAPS_MAX: usize = 64;

/// How long a session of another host takes at most to be taken up, in milliseconds, once it has been found.
pub const RESTORE_MS: u64 = 2_500;

/// Connections that broke off just after they had entered a room, of which other hosts are told a moment later.
pub const EARLY_LEAVERS_MAX: usize = 64 * 1024;

/// Events of a session's tail that other hosts are told of, and how many are looked through for them: what a lively room says in a heartbeat.
pub const SESSION_EVENTS_MAX: usize = 4_096;
/// See [`SESSION_EVENTS_MAX`].
pub const SESSION_SCAN_MAX: u64 = 16_384;
/// Bytes of those that stand in no stream.
pub const SESSION_BYTES_MAX: usize = 64 * 1024;

/// Entries of a stream in one request to Redis, which does nothing else meanwhile: about three milliseconds.
pub const RELAY_BATCH_ENTRIES_MAX: usize = 512;

/// How long a stream's entries are kept after Redis has confirmed them, in milliseconds: longer than a replica lags behind that takes over.
pub const RELAY_KEPT_MS: u64 = 10_000;
/// Bytes of those, at most.
pub const RELAY_KEPT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// When Redis is asked again for what it has refused, in milliseconds.
pub const RELAY_RETRY_MS: u64 = 250;

/// Entries of a stream that are read at once; less where they are large. More would make those of several hosts wait for each other.
pub const RELAY_READ_ENTRIES_MAX: usize = 500;

/// How long Redis waits for new entries before it answers that there are none, in milliseconds: less than after which it counts as silent.
pub const RELAY_BLOCK_MS: u64 = 400;

/// The last entries read of a stream by whose ids it is known what was read before, after Redis has gone back.
pub const RELAY_READ_IDS: usize = 4_096;

/// Hosts whose last numbers are remembered.
pub const RELAY_HOSTS_MAX: usize = 1_024;

/// Bytes of the stream's last entries that a host keeps in memory for clients that come back to it.
pub const RELAY_JOURNAL_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes of those that go on over a reload: about 5,000 short events, which are written and read again in some 20 milliseconds, and nobody is served meanwhile. Who comes
/// back from another host and has missed more begins anew.
pub const RELAY_JOURNAL_CARRIED_BYTES_MAX: usize = 2 * 1024 * 1024;

/// How long what shards say waits after a reload for the first connection to Redis, in milliseconds: until then nobody could say whether somebody who comes is on another host.
/// It takes a few milliseconds where Redis is there.
pub const RELAY_RETURN_MS: u64 = 1_000;

/// Other hosts whose beats are counted, and adapters of each: a fleet has fewer.
pub const BEATING_HOSTS_MAX: usize = 1_024;

/// Answers and handed-over connections waiting for the control plane.
pub const NOTICES_MAX: usize = 16 * 1024;

/// Events that wait on one shard for whoever takes them, the newest being dropped beyond it. They leave with every turn, and one call of the
/// back end can make one for each member of a room in a single turn (its deletion), so that it is as many as a large room has members on
/// one shard; with 112 bytes each 7 MiB at most.
pub const EVENTS_WAITING_MAX: usize = 64 * 1024;

/// Bytes of the messages they tell of, some of which histories hold on to as well. One event always has place.
pub const EVENT_BYTES_WAITING_MAX: usize = 4 * 1024 * 1024;

/// Batches of events that a shard has given and nobody has taken yet, on the average of all shards: one that is told while the next is made.
pub const EVENT_BATCHES_PER_SHARD_MAX: usize = 2;

/// Width of a clock tick in milliseconds, finer only where heartbeats are very short: deadlines are met at most this much late.
pub const TICK_MS: u64 = 64;

/// How long a typing state lives without being refreshed, in milliseconds (contract).
pub const TYPING_MS: u64 = 5_000;

/// A connection is closed after this many windows over the rate in a row (contract).
pub const RATE_WINDOWS_OVER_MAX: u32 = 3;

/// Bytes of the reason in a close frame: a control frame carries 125, two of them are the code (RFC 6455 section 5.5).
pub const CLOSE_REASON_BYTES_MAX: usize = 123;

/// Namespaces one Socket.IO connection may join.
pub const NAMESPACES_PER_LINK_MAX: usize = 16;

/// Milliseconds a WebSocket has to take over a long-polling session (Node's `upgradeTimeout`).
pub const UPGRADE_MS: u64 = 10_000;

/// Milliseconds a closed long-polling session waits for the poll that is told so.
pub const POLLING_GRACE_MS: u64 = 30_000;

/// Milliseconds an HTTP connection may be silent between two requests. Longer than the 60 s after which proxies give up idle connections
/// by default: whoever may still send must not find the connection just closed.
pub const KEEP_ALIVE_MS: u64 = 75_000;

/// Bytes kept of requests that come before the answer to an earlier one; with more the socket is not read until that is given. No
/// browser and no usual proxy sends ahead, so one head is plenty.
pub const PIPELINED_BYTES_MAX: usize = 16 * 1024;

/// Bytes of unfinished request bodies one shard holds: their senders have shown nothing but a session's name, which may be made up. At
/// least one message is always held.
pub const BODIES_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes from which on a long-polling answer is compressed, as in Node: below it gzip saves no packet.
pub const GZIP_BYTES_MIN: usize = 1_024;

/// Acknowledgements the server waits for on one connection.
pub const PENDING_ACKS_MAX: usize = 256;

/// Rooms that a recoverable connection has left and that are still remembered: enough for a client that changes rooms every second.
pub const PAST_STAYS_MAX: usize = 128;

/// Milliseconds a connection has to answer a ping when somebody comes to take it up: a round trip over a bad mobile network.
pub const TAKEOVER_MS: u64 = 1_500;
/// Emits of the back end that wait for acknowledgements on one shard: more than a few HTTP requests bring, whose clients may have hung up.
/// Beyond it the one that would end first ends at once.
pub const EMITS_WAITING_MAX: usize = 4096;

/// Bytes of acknowledgements that are kept of one emit on one shard; what comes after that is counted only. One message must fit.
pub const ACK_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of acknowledgements that are kept of all emits under way on one shard; what comes beyond is counted only. Every client that is
/// asked decides how long its answer is, and how long an emit waits its slowest one.
pub const ACK_BYTES_PER_SHARD_MAX: usize = 64 * 1024 * 1024;

/// Milliseconds in which a connection that was let in unknown has to say who it is (contract).
pub const IDENTIFY_MS: u64 = 10_000;

/// Milliseconds for which it is known over all hosts when a watched user was last there: a week, after which nobody asks.
pub const SEEN_MS: u64 = 7 * 24 * 60 * 60 * 1_000;

/// Rooms into which the back end may put one user. All of them are entered before the user hears that he is connected, so it bounds the
/// work of one connection; ten times what a client may enter itself.
pub const GRANTS_PER_USER_MAX: usize = 1_000;

/// Such places of all users whose home is one shard: at about 200 bytes each 200 MB.
pub const GRANTS_PER_SHARD_MAX: usize = 1_000_000;

/// Users who went offline of whom a shard remembers when: at about 150 bytes each 40 MB. The longest gone are forgotten first.
pub const ABSENCES_PER_SHARD_MAX: usize = 256 * 1024;

/// Bytes of what the back end says of one room when it makes it: a name, who made it, and a page of metadata.
pub const ROOM_METADATA_BYTES_MAX: usize = 16 * 1024;

/// Bytes of all that on one shard: some 600,000 rooms of a name and a little metadata. With more no room is made.
pub const ROOM_RECORDS_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Rooms that a shard looks at for one page of the list of rooms: two milliseconds of work. A page may be short of that, and be followed by more.
pub const ROOMS_LOOKED_AT_MAX: usize = 10_000;

/// Bytes of what is said of rooms in one shard's part of a page of the list, and one room more: what it may copy between two turns.
pub const ROOMS_LISTED_BYTES_MAX: usize = 1024 * 1024;

/// Members of one room that are named where the room is shown, on one shard; the list of members has them all, page by page.
pub const ROOM_MEMBERS_SHOWN_MAX: usize = 10_000;

/// Members named in one page of the list of rooms, on one shard: as much text as a message may have.
pub const LIST_MEMBERS_SHOWN_MAX: usize = 40_000;

/// Bytes of messages in one answer to the back end, at least one message: a room's history may be large, and is made of other people's messages.
pub const MESSAGES_SHOWN_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes of what a client may say of itself when it connects, which the back end can read. What is longer is as if it were not said.
pub const CONNECTION_METADATA_BYTES_MAX: usize = 4 * 1024;

/// How long it is remembered who got a message of which receipts are wanted, in milliseconds (contract).
pub const RECEIPTS_MS: u64 = 24 * 60 * 60 * 1_000;

/// Such messages of one shard. The bytes below are reached first, but for messages to users whose names are short.
pub const RECEIPTS_PER_SHARD_MAX: usize = 1_000_000;

/// Bytes of what is remembered of them: half a million messages to one user each. The oldest are forgotten first, and counted.
pub const RECEIPT_BYTES_PER_SHARD_MAX: usize = 128 * 1024 * 1024;

/// Milliseconds for which a link whose messages are held (a webhook that hangs, a busy home) may owe the answer to a heartbeat: it may lie behind
/// them. Several minutes of such messages; a peer that is gone is cut then at the latest, and usually when the kernel's retries end.
pub const HELD_SILENCE_MS: u64 = 600_000;

/// Milliseconds between two looks of a shard at the time, after which it has not run itself (the process was stopped, the machine stood still); it
/// sleeps for one second at most.
pub const STALL_MS: u64 = 3_000;

/// Milliseconds in which what was sent to a link while it was held is read, when it is heard again; and to all links while the shard did not run.
pub const RESUME_GRACE_MS: u64 = 1_000;

/// Questions of one kind (connect, join, publish) to the back end (webhooks) that are under way for one endpoint on one shard; what comes
/// beyond is refused unasked. Apart, so that one back end that hangs takes no place of another. At 2 s an answer, the longest that is waited for, 500 joins or messages a second; a back end that needs 20 ms lets 50,000 pass.
pub const INQUIRIES_PER_HOOK_MAX: usize = 1_024;

/// Bytes that wait for such answers on one shard: messages, tokens' claims, heads of requests. Each kind of each endpoint that asks has an
/// equal share of them, of which its first question may be more.
pub const INQUIRY_BYTES_PER_SHARD_MAX: usize = 64 * 1024 * 1024;

/// Milliseconds in which another host answers, beyond what its shards have to wait for (contract).
pub const FLEET_ANSWER_MS: u64 = 1_000;

/// Milliseconds before the end of that in which another host sends what it has, complete or not: the way of the answer.
pub const FLEET_MARGIN_MS: u64 = 150;

/// Orders of this host's program that wait for the relay: as many as calls of the API are served at once, and a batch's emits with ids. What
/// finds no place is not asked of other hosts, and counted.
pub const FLEET_ORDERS_MAX: usize = 4_096;

/// Questions of this host that others have not answered yet; each is over after its deadline. Beyond it the others are not asked.
pub const FLEET_ASKS_MAX: usize = 4_096;

/// Questions of other hosts that the shards here have not answered yet: a few hosts' worth of those. What comes beyond is refused at once.
pub const FLEET_ERRANDS_MAX: usize = 16 * 1_024;

/// Bytes of one question between hosts. The largest is an emit of a megabyte, whose names and quotation marks grow when they are written as JSON
/// in JSON.
pub const FLEET_ASK_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Bytes of one shard's answer that go to another host. Redis cuts a subscriber for whom 32 MB wait (its default), so that an answer
/// must be far less; a page of 1,000 connections in 20 rooms each has about 2 MiB. A larger one is not sent, and the host is missing in the sum.
pub const FLEET_ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Bytes of the messages of a room in an answer to another host, at least one message; the page is short then.
pub const FLEET_MESSAGES_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Bytes after which the answers of a host's shards go on in another message, so that one is no burden to Redis and its other subscribers.
pub const FLEET_PART_BYTES: usize = 1024 * 1024;

/// Bytes of all answers to one question that are kept, over all hosts: ten times what a page of connections takes with 255 shards. What comes
/// beyond is dropped, and the host is missing in the sum.
pub const FLEET_ANSWERS_BYTES_MAX: usize = 64 * 1024 * 1024;

const _: () = assert!(FLEET_MARGIN_MS < FLEET_ANSWER_MS);
const _: () = assert!(FLEET_MESSAGES_BYTES_MAX < FLEET_ANSWER_BYTES_MAX && FLEET_PART_BYTES < FLEET_ANSWER_BYTES_MAX);
const _: () = assert!(FLEET_ANSWER_BYTES_MAX + FLEET_PART_BYTES < 32_000_000);
const _: () = assert!(ACK_BYTES_MAX <= ACK_BYTES_PER_SHARD_MAX);
const _: () = assert!(GRANTS_PER_USER_MAX < GRANTS_PER_SHARD_MAX);
const _: () = assert!(ROOM_METADATA_BYTES_MAX + 4 * NAME_BYTES_MAX < ROOM_RECORDS_BYTES_MAX);
const _: () = assert!(COALESCE_FRAME_BYTES_MAX <= COALESCE_WRITE_BYTES_MAX);
const _: () = assert!(NAME_BYTES_MAX < READ_BUFFER_BYTES);

/// The bounds an operator may set. Defaults are the contract's.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of one message, inclusive.
    pub message_bytes: usize,
    /// Bytes waiting for one connection whose socket takes no more.
    pub outbox_bytes: usize,
    /// Messages per connection in one window; also the burst.
    pub rate_messages: u32,
    /// That window, in milliseconds.
    pub rate_window_ms: u64,
    /// Rooms one connection may be in.
    pub rooms_per_connection: usize,
    /// Connections one user may have on an endpoint.
    pub connections_per_user: u32,
    /// Connections from one address.
    pub connections_per_address: u32,
    /// Handshakes from one address in 10 s.
    pub handshakes_per_address: u32,
    /// Handshakes that one shard lets in per second; 0: all at once. What comes faster waits, for two seconds at most, and the rest is told to come
    /// again. 5,000 of them with a signed token are about half of a core, so that those who are connected have the other half.
    pub handshakes_per_second: u32,
    /// Bytes that connections may hold together, in all shards; 0: no bound but those of each of them.
    pub memory: usize,
    /// Connections of the process; `None`: as many as there are file descriptors.
    pub connections: Option<usize>,
    /// Bytes of a request head.
    pub head_bytes: usize,
    /// Milliseconds from accepting to the end of the handshake.
    pub handshake_ms: u64,
    /// Milliseconds from our close frame to the reset of a peer that does not answer it.
    pub close_ms: u64,
    /// Messages kept per room.
    pub history_messages: usize,
    /// Their greatest age, in milliseconds.
    pub history_age_ms: u64,
    /// Bytes of history per process; the rooms that have been empty longest lose theirs first.
    pub history_bytes: usize,
    /// Rooms per process, with or without members.
    pub rooms: usize,
    /// Connections per process that broke off and can be recovered; the one that has been away longest goes first.
    pub recovery_sessions: usize,
    /// Events per process that are remembered for them.
    pub recovery_events: usize,
    /// Bytes of those.
    pub recovery_bytes: usize,
    /// Milliseconds for which casts of a busy room may wait for further ones, to leave in one write; 0: never.
    pub hold_ms: u64,
    /// Milliseconds after which an answer of the back end (webhooks) is not waited for any more: whoever asks it should have given up by
    /// then, so this is what holds when the asker himself fails.
    pub inquiry_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            message_bytes: 1_000_000,
            outbox_bytes: 1_000_000,
            rate_messages: 1_000,
            rate_window_ms: 10_000,
            rooms_per_connection: 100,
            connections_per_user: 100,
            connections_per_address: 10_000,
            handshakes_per_address: 1_000,
            handshakes_per_second: 5_000,
            memory: 0,
            connections: None,
            head_bytes: 16 * 1024,
            handshake_ms: 10_000,
            close_ms: 3_000,
            history_messages: 1_000,
            history_age_ms: 24 * 60 * 60 * 1_000,
            history_bytes: 512 * 1024 * 1024,
            rooms: 1_000_000,
            recovery_sessions: 100_000,
            recovery_events: 1_000_000,
            recovery_bytes: 256 * 1024 * 1024,
            hold_ms: 2,
            inquiry_ms: 2_500,
        }
    }
}
