//! What rooms keep, in Redis: the keys, the scripts that write and read them, and what their answers say. It decides nothing, sends nothing,
//! and takes what it reads for what it is: bytes that anybody may have put there.
//!
//! | key | is | lives |
//! |---|---|---|
//! | `{prefix}:{<endpoint>/<room>}:history` | stream, an entry a message: `id`, `by`, `at` (ms since 1970), `text` (JSON), `hidden` (JSON list of users, or empty) | as long as the newest |
//! | `{prefix}:{<endpoint>/<room>}:edits` | hash: message id -> `e` and its new text, or `r` where it was taken back | as long as the newest change |
//! | `{prefix}:{<endpoint>/<room>}:kept:<id>` | there exactly when a message that several hosts heard has been kept by one | [`HISTORY_TWICE_MS`] |
//! | `{prefix}:by:<endpoint>:<id>` | the room of a message that can be found by its id | as long as it |
//!
//! A room's keys lie in one slot of a cluster. Age is by Redis' own clock, so that hosts need not agree on the time.

use std::sync::Arc;

use super::request::{Call, Reply};
use crate::auth::Details;
use crate::config::Config;
use crate::ids::{EndpointId, MessageId, Room, checked_name};
use crate::json::{Scratch, quote};
use crate::limits::{HISTORY_SCANNED_MAX, HISTORY_TWICE_MS, Limits, RECALL_BYTES_MAX};
use crate::shard::history::{Kept, Past, ROOM_SHARE, Range, Record, Told};

/// Keeps a message. ARGV: how many are kept, their greatest age, bytes of the room's keys, for how long it is not kept twice, then the fields.
/// The age is counted from the entry's own id, which is Redis' time. Bytes are what Redis says that the stream takes; half of it goes at once,
/// so that this is seldom.
pub(super) const APPEND: &str = "if KEYS[2] and not redis.call('SET',KEYS[2],'1','NX','PX',ARGV[4]) then return 0 end \
local id=redis.call('XADD',KEYS[1],'MAXLEN','=',ARGV[1],'*','id',ARGV[5],'by',ARGV[6],'at',ARGV[7],'text',ARGV[8],'hidden',ARGV[9]) \
local since=tonumber(string.match(id,'^%d+'))-tonumber(ARGV[2]) \
if since>0 then redis.call('XTRIM',KEYS[1],'MINID','=',string.format('%.0f',since)) end \
while redis.call('MEMORY','USAGE',KEYS[1])>tonumber(ARGV[3]) do \
local n=redis.call('XLEN',KEYS[1]) if n<2 then break end \
redis.call('XTRIM',KEYS[1],'MAXLEN','=',math.floor(n/2)) end \
redis.call('PEXPIRE',KEYS[1],ARGV[2]) return 1";

/// Changes a message. ARGV: its id, what becomes of it, the greatest age, how many changes are remembered before those of messages that are
/// gone are looked for, and how many entries are looked at for that. What was taken back stays so, whoever changes it at the same time.
pub(super) const CHANGE: &str = "local id,what=ARGV[1],ARGV[2] \
if redis.call('HGET',KEYS[2],id)=='r' then return 0 end \
redis.call('HSET',KEYS[2],id,what) redis.call('PEXPIRE',KEYS[2],ARGV[3]) \
local full=redis.call('HLEN',KEYS[2])>tonumber(ARGV[4]) \
if what~='r' and not full then return 1 end \
local live,cursor,left={},'+',tonumber(ARGV[5]) \
while left>0 do \
local page=redis.call('XREVRANGE',KEYS[1],cursor,'-','COUNT',64) if #page==0 then break end \
for _,entry in ipairs(page) do left=left-1 cursor='('..entry[1] \
for i=1,#entry[2],2 do if entry[2][i]=='id' then local found=entry[2][i+1] \
if found==id and what=='r' then redis.call('XDEL',KEYS[1],entry[1]) else live[found]=true end end end end end \
if full then for _,known in ipairs(redis.call('HKEYS',KEYS[2])) do if not live[known] then redis.call('HDEL',KEYS[2],known) end end end \
return 1";

/// Reads a part of a room's past, newest first, each message as it stands. ARGV: since when, in ms; how many are passed over; how many are
/// wanted; bytes of their texts; the message that all came before, or nothing; how many entries are looked at. Answers: how many there are; 1 if
/// nothing has ever gone of them; when the oldest was said; how many entries were no messages; then the messages.
pub(super) const READ: &str = "redis.call('XTRIM',KEYS[1],'MINID','=',ARGV[1]) \
local skip,limit,bytes,before,left=tonumber(ARGV[2]),tonumber(ARGV[3]),tonumber(ARGV[4]),ARGV[5],tonumber(ARGV[6]) \
local out={redis.call('XLEN',KEYS[1]),0,'',0} \
if redis.call('EXISTS',KEYS[1])==0 then out[2]=1 return out end \
local info=redis.call('XINFO','STREAM',KEYS[1]) \
for i=1,#info,2 do if info[i]=='entries-added' and info[i+1]==out[1] then out[2]=1 end end \
local function fields(entry) local f={} for i=1,#entry[2],2 do f[entry[2][i]]=entry[2][i+1] end return f end \
local oldest=redis.call('XRANGE',KEYS[1],'-','+','COUNT',1)[1] if oldest then out[3]=fields(oldest)['at'] or '' end \
local cursor,found='+',before=='' \
local seen,at=0,'+' \
while not found and seen<left do \
local page=redis.call('XREVRANGE',KEYS[1],at,'-','COUNT',64) if #page==0 then break end \
for _,entry in ipairs(page) do seen=seen+1 at='('..entry[1] \
if fields(entry)['id']==before then found=true cursor=at break end end end \
local changed=redis.call('EXISTS',KEYS[2])==1 \
while limit>0 and left>0 do \
local page=redis.call('XREVRANGE',KEYS[1],cursor,'-','COUNT',64) if #page==0 then break end \
for _,entry in ipairs(page) do left=left-1 cursor='('..entry[1] \
local f=fields(entry) \
if not(f['id'] and f['by'] and f['at'] and f['text']) then out[4]=out[4]+1 \
else local change=changed and f['id']~='' and redis.call('HGET',KEYS[2],f['id']) \
if change=='r' or (not found and f['id']>=before) then \
elseif skip>0 then skip=skip-1 \
else local text=change and string.sub(change,2) or f['text'] bytes=bytes-#text \
if bytes<0 then limit=0 break end \
out[#out+1]={f['id'],f['by'],f['at'],text,f['hidden'] or ''} limit=limit-1 \
if limit==0 then break end end end end end \
return out";

/// Finds one message of a room. ARGV: since when, its id, how many entries are looked at. Answers as [`READ`].
const FIND: &str = "local cursor,left='+',tonumber(ARGV[3]) \
while left>0 do \
local page=redis.call('XREVRANGE',KEYS[1],cursor,ARGV[1],'COUNT',64) if #page==0 then break end \
for _,entry in ipairs(page) do left=left-1 cursor='('..entry[1] \
local f={} for i=1,#entry[2],2 do f[entry[2][i]]=entry[2][i+1] end \
if f['id']==ARGV[2] then \
local change=redis.call('HGET',KEYS[2],ARGV[2]) if change=='r' then return {0,0,'',0} end \
return {1,0,'',0,{f['id'],f['by'] or '',f['at'] or '',change and string.sub(change,2) or f['text'] or '',f['hidden'] or ''}} end end end \
return {0,0,'',0}";

/// The keys of all rooms' histories, and the bounds of what they hold.
pub(crate) struct Store {
    prefix: String,
    /// By the endpoint.
    names: Vec<String>,
    messages_max: usize,
    age_ms: u64,
    room_bytes_max: usize,
    scratch: Scratch,
}

/// What a read's answer said.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Reading {
    /// `None` where Redis refused.
    pub(crate) told: Option<Told>,
    /// Entries that were no messages.
    pub(crate) malformed: u64,
}

impl Store {
    pub(crate) fn new(config: &Config, prefix: &str) -> Store {
        let names = config.endpoints.iter().map(|endpoint| endpoint.name.clone()).collect();
        let Limits { history_messages, history_age_ms, history_bytes, .. } = config.limits;
        Store {
            prefix: prefix.to_owned(),
            names,
            messages_max: history_messages,
            age_ms: history_age_ms.max(1),
            room_bytes_max: (history_bytes / ROOM_SHARE).clamp(1, RECALL_BYTES_MAX),
            scratch: Scratch::default(),
        }
    }

    fn name(&self, endpoint: EndpointId) -> &str {
        self.names.get(usize::from(endpoint.0)).map_or("", String::as_str)
    }

    fn key(&self, room: &Room, of: &str) -> String {
        format!("{}:{{{}/{}}}:{of}", self.prefix, self.name(room.endpoint), room.name)
    }

    fn index(&self, endpoint: EndpointId, id: MessageId) -> String {
        format!("{}:by:{}:{id}", self.prefix, self.name(endpoint))
    }

    /// What Redis is told of a change of a room's past. Nothing where none of it is kept.
    pub(crate) fn record(&self, room: &Room, record: &Record) -> Vec<Call> {
        let stream = self.key(room, "history");
        let change = |id: &MessageId, what: &str| {
            let call = Call::new("EVAL").arg(CHANGE).number(2).arg(&stream).arg(self.key(room, "edits")).arg(id.to_string()).arg(what);
            let remembered = i128::try_from(2 * self.messages_max).unwrap_or(i128::MAX);
            vec![call.number(self.age_ms).number(remembered).number(self.scanned_max())]
        };
        match record {
            Record::Edit { id, text } => change(id, &format!("e{text}")),
            Record::Remove { id } => change(id, "r"),
            Record::Append { kept, by_id, messages_max, is_shared } => {
                let messages_max = (*messages_max).min(self.messages_max);
                if messages_max == 0 {
                    return Vec::new();
                }
                let id = kept.id.map(|id| id.to_string()).unwrap_or_default();
                let call = Call::new("EVAL").arg(APPEND).number(if *is_shared { 2 } else { 1 }).arg(&stream);
                let call = if *is_shared { call.arg(self.key(room, &format!("kept:{id}"))) } else { call };
                let call =
                    call.arg(messages_max.to_string()).number(self.age_ms).arg(self.room_bytes_max.to_string()).number(HISTORY_TWICE_MS);
                let call = call.arg(&id).arg(&*kept.author).number(kept.unix_ms).arg(&*kept.text).arg(hidden_text(kept));
                let index = kept
                    .id
                    .filter(|_| *by_id)
                    .map(|id| Call::new("SET").arg(self.index(room.endpoint, id)).arg(&*room.name).arg("PX").number(self.age_ms));
                std::iter::once(call).chain(index).collect()
            }
        }
    }

    /// Forgets all of a room.
    pub(crate) fn forget(&self, room: &Room) -> Call {
        Call::new("DEL").arg(self.key(room, "history")).arg(self.key(room, "edits"))
    }

    /// Asks for a part of a room's past; [`Self::told`] reads the answer.
    pub(crate) fn read(&self, room: &Room, range: Range, unix_ms: u64) -> Call {
        let (skip, limit, bytes_max, before) = match range {
            Range::Newest { skip, limit, bytes_max } => (skip, limit, bytes_max, String::new()),
            Range::Before { id, limit } => (0, limit, RECALL_BYTES_MAX / 16, id.to_string()),
        };
        let bounded = |count: usize| count.min(1 << 40).to_string();
        let call = Call::new("EVAL").arg(READ).number(2).arg(self.key(room, "history")).arg(self.key(room, "edits"));
        let call = call.number(self.oldest(unix_ms)).arg(bounded(skip)).arg(bounded(limit.min(self.messages_max)));
        // More than this no answer may have, whoever asks.
        call.arg(bytes_max.min(RECALL_BYTES_MAX).to_string()).arg(before).number(self.scanned_max())
    }

    /// Asks in which room the message of an id is.
    pub(crate) fn room_of(&self, endpoint: EndpointId, id: MessageId) -> Call {
        Call::new("GET").arg(self.index(endpoint, id))
    }

    /// Asks for one message of a room; [`Self::told`] reads the answer.
    pub(crate) fn find(&self, room: &Room, id: MessageId, unix_ms: u64) -> Call {
        let call = Call::new("EVAL").arg(FIND).number(2).arg(self.key(room, "history")).arg(self.key(room, "edits"));
        call.number(self.oldest(unix_ms)).arg(id.to_string()).number(self.scanned_max())
    }

    /// What was found.
    pub(crate) fn told(&mut self, reply: &Reply, unix_ms: u64) -> Reading {
        let [Reply::Int(total), is_whole, since, Reply::Int(bad), entries @ ..] = reply.list() else {
            return Reading { told: None, malformed: 0 };
        };
        let oldest = self.oldest(unix_ms);
        let mut malformed = u64::try_from(*bad).unwrap_or(0);
        let mut kept = Vec::with_capacity(entries.len());
        for entry in entries {
            match message(entry, &mut self.scratch) {
                Some(message) if message.unix_ms >= oldest => kept.push(message),
                Some(_) => {}
                None => malformed += 1,
            }
        }
        kept.reverse();
        let total = usize::try_from(*total).unwrap_or(0);
        let whole_since = (is_whole.int() == Some(1)).then(|| since.int().and_then(|since| u64::try_from(since).ok()).unwrap_or(u64::MAX));
        Reading { told: Some(Told { past: Past { kept, total }, whole_since }), malformed }
    }

    fn oldest(&self, unix_ms: u64) -> u64 {
        unix_ms.saturating_sub(self.age_ms)
    }

    fn scanned_max(&self) -> u64 {
        (2 * self.messages_max as u64).clamp(64, HISTORY_SCANNED_MAX)
    }
}

/// The list of those who do not see a message.
fn hidden_text(kept: &Kept) -> String {
    let Some(author) = kept.hidden_from.as_ref().filter(|author| !author.blocked.is_empty()) else { return String::new() };
    let mut list = String::from("[");
    for (at, user) in author.blocked.iter().enumerate() {
        if at > 0 {
            list.push(',');
        }
        quote(&mut list, user);
    }
    list.push(']');
    list
}

/// One message, if that is what it is.
fn message(entry: &Reply, scratch: &mut Scratch) -> Option<Kept> {
    let [id, author, unix_ms, text, hidden] = entry.list() else { return None };
    let id = match id.text()? {
        "" => None,
        id => Some(MessageId::try_parse(id).ok()?),
    };
    let author = match author.text()? {
        // The back end is no user.
        "" => "",
        author => checked_name(author).ok()?,
    };
    let unix_ms = u64::try_from(unix_ms.int()?).ok()?;
    let text = text.text()?;
    // It is put into other JSON as it is.
    if !scratch.parse(text).ok()?.root().is_object() {
        return None;
    }
    let hidden_from = match hidden.text()? {
        "" => None,
        hidden => {
            let list = scratch.parse(hidden).ok()?;
            let users: Option<Vec<String>> = list.root().items().map(|user| user.as_exact_str().map(str::to_owned)).collect();
            let blocked = users.filter(|_| list.root().is_array())?;
            Some(Arc::new(Details { user: author.into(), blocked, ..Details::default() }.into()))
        }
    };
    Some(Kept { id, author: author.into(), unix_ms, text: text.into(), hidden_from })
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::super::link::{Address, Certificates, Link, Servers};
    use super::super::request::Request;
    use super::*;
    use crate::config::{DialectKind, Endpoint};
    use crate::dialect::Keep;
    use crate::shard::history::{Bounds, History, Memory, Reading as Answer};
    use crate::stats::ShardStats;

    /// A Redis of its own on a Unix socket, and a link to it.
    struct Bed {
        runtime: tokio::runtime::Runtime,
        link: Link,
        child: Child,
        folder: std::path::PathBuf,
    }

    impl Bed {
        fn new(name: &str) -> Bed {
            let folder = std::env::temp_dir().join(format!("uringcast-history-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&folder).expect("the temporary folder is writable");
            let socket = folder.join("socket");
            let program = std::env::var_os("URINGCAST_REDIS_SERVER").unwrap_or_else(|| "redis-server".into());
            let mut command = Command::new(program);
            command.args(["--port", "0", "--save", "", "--unixsocket"]).arg(&socket).arg("--dir").arg(&folder);
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("these tests need the package redis-server");
            let servers = Servers::Single(format!("unix://{}", socket.display()));
            let address = Address::new(&servers, &Certificates::default()).expect("a good address");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let connect = async {
                for _ in 0..1_000 {
                    if let Ok((link, _)) = Link::connect(&address).await {
                        return link;
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
                panic!("no Redis")
            };
            let link = runtime.block_on(connect);
            Bed { runtime, link, child, folder }
        }

        fn ask(&self, calls: Vec<Call>) -> Vec<Reply> {
            let request = Request::atomic(calls);
            self.runtime.block_on(async { self.link.send(&request).await }).expect("Redis answers")
        }

        fn record(&self, store: &Store, record: &Record) {
            let replies = self.ask(store.record(&room(), record));
            assert!(replies.iter().all(|reply| reply.error().is_none()), "{replies:?}");
        }

        fn told(&self, store: &mut Store, range: Range, unix_ms: u64) -> (Told, u64) {
            let replies = self.ask(vec![store.read(&room(), range, unix_ms)]);
            let Reading { told, malformed } = store.told(&replies[0], unix_ms);
            (told.unwrap_or_else(|| panic!("{replies:?}")), malformed)
        }
    }

    impl Drop for Bed {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }

    fn store(messages: usize, bytes: usize, age_ms: u64) -> Store {
        let mut config = Config::new(([127, 0, 0, 1], 0), 1, vec![Endpoint::new("talk", DialectKind::Community, "/")]);
        (config.limits.history_messages, config.limits.history_bytes, config.limits.history_age_ms) =
            (messages, bytes * ROOM_SHARE, age_ms);
        Store::new(&config, "u")
    }

    fn room() -> Room {
        Room::named(EndpointId(0), "room:a}b{c")
    }

    fn id(number: u64) -> MessageId {
        MessageId::from_u64_pair(number + 1, 7)
    }

    fn keep(number: u64, text: &str) -> Keep {
        Keep { id: Some(id(number)), by_id: true, author: "ann".into(), text: text.into(), hidden_from: None, messages_max: usize::MAX }
    }

    fn now_ms() -> u64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        u64::try_from(since.expect("after 1970").as_millis()).expect("not that long after")
    }

    const DAY_MS: u64 = 86_400_000;

    #[test]
    fn it_says_what_memory_says() {
        let bed = Bed::new("model");
        let (mut store, stats, now) = (store(20, 1 << 20, DAY_MS), ShardStats::new(1), now_ms());
        let mut memory = Memory::new(Bounds { bytes: 1 << 30, messages: 20, age_ms: DAY_MS });
        let mut random = StdRng::seed_from_u64(5);
        let hidden: Arc<crate::auth::Identity> =
            Arc::new(Details { user: "ann".into(), blocked: vec!["bob\"".into(), "eve".into()], ..Details::default() }.into());
        bed.record(&store, &Record::append(&keep(0, "{}"), now, false));
        memory.append(&room(), keep(0, "{}"), now, &stats);
        let mut said = 1;
        for _ in 0..1_500 {
            // Whatever is changed has been said.
            let some = id(random.random_range(said.max(30) - 30..said.max(1)));
            match random.random_range(0..10) {
                0..4 => {
                    let hidden_from = random.random_bool(0.3).then(|| hidden.clone());
                    let keep = Keep {
                        hidden_from,
                        ..keep(said, &format!("{{\"n\":{said},\"x\":\"{}\"}}", "é".repeat(random.random_range(0..30))))
                    };
                    bed.record(&store, &Record::append(&keep, now + said, random.random()));
                    memory.append(&room(), keep, now + said, &stats);
                    said += 1;
                }
                4 => {
                    let text: Arc<str> = format!("{{\"changed\":{}}}", random.random::<u32>()).into();
                    // What memory does not have it does not change; here that is forgotten when there is much of it.
                    bed.record(&store, &Record::Edit { id: some, text: text.clone() });
                    memory.edit(&room(), some, text, &stats);
                }
                5 => {
                    bed.record(&store, &Record::Remove { id: some });
                    memory.remove(&room(), some, &stats);
                }
                6 => {
                    let reply = bed.ask(vec![store.find(&room(), some, now)]);
                    let found = store.told(&reply[0], now).told.expect("an answer").past.kept.pop();
                    let Answer::Now(known) = memory.find(EndpointId(0), some, now) else { panic!("at hand") };
                    assert_eq!(found.map(plain), known.map(|found| plain(found.kept)));
                }
                _ => {
                    let limit = *[0, 1, 5, 30].get(random.random_range(0..4)).expect("one of four");
                    let skip = random.random_range(0..25);
                    let range = match random.random_range(0..4) {
                        0 => Range::ALL,
                        1 => Range::Before { id: some, limit },
                        2 => Range::Newest { skip, limit, bytes_max: usize::MAX },
                        _ => Range::Newest { skip, limit, bytes_max: random.random_range(0..600) },
                    };
                    let (told, malformed) = bed.told(&mut store, range, now);
                    let known = memory.at_hand(&room(), range, now);
                    let texts = |past: &Past| past.kept.iter().cloned().map(plain).collect::<Vec<_>>();
                    assert_eq!((texts(&told.past), told.past.total, malformed), (texts(&known), known.total, 0), "{range:?}");
                }
            }
        }
        let remembered = bed.ask(vec![Call::new("HLEN").arg("u:{talk/room:a}b{c}:edits")])[0].int();
        assert!(remembered.is_some_and(|count| count <= 41), "{remembered:?} changes of 20 messages");
        bed.ask(vec![store.forget(&room())]);
        assert_eq!(bed.told(&mut store, Range::ALL, now).0, Told { past: Past::default(), whole_since: Some(u64::MAX) });
    }

    /// A message for comparison; who an author is besides what he has blocked is not kept.
    fn plain(kept: Kept) -> (Option<MessageId>, String, u64, String, Vec<String>) {
        let blocked = kept.hidden_from.map(|author| author.blocked.to_vec()).unwrap_or_default();
        (kept.id, kept.author.to_string(), kept.unix_ms, kept.text.to_string(), blocked)
    }

    #[test]
    fn a_message_that_several_hosts_hear_is_kept_once_and_found_by_its_id() {
        let bed = Bed::new("once");
        let (mut store, now) = (store(9, 1 << 20, DAY_MS), now_ms());
        for _ in 0..3 {
            bed.record(&store, &Record::append(&keep(1, "{}"), now, true));
        }
        assert_eq!(bed.told(&mut store, Range::ALL, now).0.past.total, 1);
        assert_eq!(bed.ask(vec![store.room_of(EndpointId(0), id(1))])[0].text(), Some(&*room().name));
        assert_eq!(bed.ask(vec![store.room_of(EndpointId(0), id(2))])[0], Reply::Nil);
        bed.record(&store, &Record::Remove { id: id(1) });
        bed.record(&store, &Record::Edit { id: id(1), text: "{}".into() });
        let (told, _) = bed.told(&mut store, Range::ALL, now);
        assert_eq!((told.past.total, told.whole_since), (0, None), "something has gone of it");
    }

    #[test]
    fn bytes_and_age_are_bounded_and_the_last_goes_with_its_keys() {
        let bed = Bed::new("bounds");
        let (mut store, now) = (store(1_000, 200_000, DAY_MS), now_ms());
        for number in 0..100 {
            bed.record(
                &store,
                &Record::append(
                    &keep(number, &format!("\"{}\"", "x".repeat(10_000)).replacen('"', "{\"t\":\"", 1).replace("x\"", "x\"}")),
                    now,
                    false,
                ),
            );
        }
        let (told, malformed) = bed.told(&mut store, Range::ALL, now);
        assert!((5..=20).contains(&told.past.total) && malformed == 0, "{} of 10 kB", told.past.total);
        assert_eq!(told.past.kept.last().and_then(|kept| kept.id), Some(id(99)));
        let mut short = self::store(1_000, 200_000, 400);
        bed.record(&short, &Record::append(&keep(100, "{}"), now, false));
        bed.record(&short, &Record::Edit { id: id(100), text: "{}".into() });
        let keys = |what: &str| bed.ask(vec![Call::new("KEYS").arg(what)])[0].list().len();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while keys("*:history") + keys("*:edits") + keys("*:by:*0065-*") > 0 {
            assert!(std::time::Instant::now() < deadline, "they live on");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!(bed.told(&mut short, Range::ALL, now_ms()).0.past, Past::default());
    }

    #[test]
    fn what_others_have_put_there_is_counted_and_passed_over() {
        let bed = Bed::new("hostile");
        let (mut store, now) = (store(5_000, 1 << 22, DAY_MS), now_ms());
        bed.record(&store, &Record::append(&keep(1, "{\"good\":1}"), now, false));
        let key = store.key(&room(), "history");
        let put = |fields: &[&str]| {
            let call = fields.iter().fold(Call::new("XADD").arg(&key).arg("*"), |call, field| call.arg(field));
            bed.ask(vec![call]);
        };
        let at = now.to_string();
        let long = "n".repeat(300);
        for (id, by, at, text, hidden) in [
            ("no id", "a", &*at, "{}", ""),
            ("", &*long, &*at, "{}", ""),
            ("", "a\n", &*at, "{}", ""),
            ("", "a", "soon", "{}", ""),
            ("", "a", "-1", "{}", ""),
            ("", "a", &*at, "[1]", ""),
            ("", "a", &*at, "{}}", ""),
            ("", "a", &*at, "{}", "\"a\""),
            ("", "a", &*at, "{}", "[1]"),
        ] {
            put(&["id", id, "by", by, "at", at, "text", text, "hidden", hidden]);
        }
        put(&["by", "a"]);
        put(&["id", "", "by", "a", "at", &at, "text", "{\"good\":2}", "more", "x"]);
        let (told, malformed) = bed.told(&mut store, Range::ALL, now);
        let texts: Vec<_> = told.past.kept.iter().map(|kept| &*kept.text).collect();
        assert_eq!((texts, malformed), (vec!["{\"good\":1}", "{\"good\":2}"], 10));
        bed.ask(vec![
            Call::new("XADD").arg(&key).arg("*").arg("id").arg("").arg("by").arg("a").arg("at").arg(&at).arg("text").arg([0xff, 0xfe]),
        ]);
        assert_eq!(bed.told(&mut store, Range::ALL, now).1, 11);
        // Much of it: it is looked at for a while and no longer.
        let flood = "for i=1,200000 do redis.call('XADD',KEYS[1],'*','x','y') end";
        bed.ask(vec![Call::new("EVAL").arg(flood).arg("1").arg(&key)]);
        let (told, malformed) = bed.told(&mut store, Range::ALL, now);
        assert_eq!((told.past.kept.len(), malformed <= HISTORY_SCANNED_MAX + 64), (0, true), "{malformed}");
        // Not a stream at all.
        bed.ask(vec![Call::new("SET").arg(&key).arg("x")]);
        let replies = bed.ask(vec![store.read(&room(), Range::ALL, now)]);
        assert_eq!(store.told(&replies[0], now), Reading { told: None, malformed: 0 });
        for reply in [Reply::Nil, Reply::Int(3), Reply::List(vec![Reply::Int(-3), Reply::Int(1), Reply::Nil, Reply::Int(-9), Reply::Nil])] {
            let _ = store.told(&reply, now);
        }
    }
}
