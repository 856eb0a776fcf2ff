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
use crate::auth::Identity;
use crate::config::Config;
use crate::ids::{EndpointId, MessageId, Room, checked_name};
use crate::json::{Scratch, quote};
use crate::limits::{HISTORY_SCANNED_MAX, HISTORY_TWICE_MS, Limits, RECALL_BYTES_MAX};
use crate::shard::history::{Kept, Past, ROOM_SHARE, Range, Record, Told};

/// Keeps a message. ARGV: how many are kept, their greatest age, bytes of the room's keys, for how long it is not kept twice, then the fields.
/// The age is counted from the entry's own id, which is Redis' time. Bytes are what Redis says that the stream takes; half of it goes at once,
/// so that this is seldom.
const APPEND: &str = "if KEYS[2] and not redis.call('SET',KEYS[2],'1','NX','PX',ARGV[4]) then return 0 end \
local id=redis.call('XADD',KEYS[1],'MAXLEN','=',ARGV[1],'*','id',ARGV[5],'by',ARGV[6],'at',ARGV[7],'text',ARGV[8],'hidden',ARGV[9]) \
local since=tonumber(string.match(id,'^%d+'))-tonumber(ARGV[2]) \
if since>0 then redis.call('XTRIM',KEYS[1],'MINID','=',string.format('%.0f',since)) end \
while redis.call('MEMORY','USAGE',KEYS[1])>tonumber(ARGV[3]) do \
local n=redis.call('XLEN',KEYS[1]) if n<2 then break end \
redis.call('XTRIM',KEYS[1],'MAXLEN','=',math.floor(n/2)) end \
redis.call('PEXPIRE',KEYS[1],ARGV[2]) return 1";

/// Changes a message. ARGV: its id, what becomes of it, the greatest age, how many changes are remembered before those of messages that are
/// gone are looked for, and how many entries are looked at for that. What was taken back stays so, whoever changes it at the same time.
const CHANGE: &str = "local id,what=ARGV[1],ARGV[2] \
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
const READ: &str = "redis.call('XTRIM',KEYS[1],'MINID','=',ARGV[1]) \
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
            let mut blocked = users.filter(|_| list.root().is_array())?;
            // It is searched by halves.
            blocked.sort_unstable();
            blocked.dedup();
            Some(Arc::new(Identity { user: author.into(), blocked, ..Identity::default() }))
        }
    };
    Some(Kept { id, author: author.into(), unix_ms, text: text.into(), hidden_from })
}
