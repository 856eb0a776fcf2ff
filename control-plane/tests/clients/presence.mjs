// Who is where over several hosts: PORTS are theirs, PIDS their processes, REDIS_PORT that of the Redis between them. The last two hosts are
// ended by the checks at the end.
import { createConnection } from "node:net";
import { any, check, http, like, ok, open, query, run, sleep, token, until, visit } from "./lib.mjs";

const PORTS = process.env.PORTS.split(",").map(Number), PIDS = process.env.PIDS.split(",").map(Number);
const [A, B, C] = [0, 1, 2];
let serial = 0;
const fresh = (name) => `${name}-${++serial}`;

// ---- Redis, as far as it is needed here: arrays of texts, texts, numbers

const socket = createConnection(Number(process.env.REDIS_PORT), "127.0.0.1");
const waiting = [];
let unread = "";
socket.on("data", (data) => {
  unread += data.toString();
  for (let found; (found = reply(0)); unread = unread.slice(found.end)) waiting.shift()(found.value);
});

function reply(from) {
  const line = unread.indexOf("\r\n", from);
  if (line < 0) return null;
  const kind = unread[from], rest = unread.slice(from + 1, line);
  if (kind === "$") {
    const bytes = Number(rest);
    if (bytes < 0) return { value: null, end: line + 2 };
    return unread.length < line + 2 + bytes + 2 ? null : { value: unread.slice(line + 2, line + 2 + bytes), end: line + 4 + bytes };
  }
  if (kind === "*") {
    const value = [];
    let end = line + 2;
    for (let left = Number(rest); left > 0; left -= 1) {
      const part = reply(end);
      if (!part) return null;
      value.push(part.value);
      end = part.end;
    }
    return { value, end };
  }
  return { value: kind === ":" ? Number(rest) : rest, end: line + 2 };
}

const redis = (...words) => new Promise((resolve) => {
  waiting.push(resolve);
  socket.write(`*${words.length}\r\n${words.map((word) => `$${Buffer.byteLength(String(word))}\r\n${word}\r\n`).join("")}`);
});

const members = async (key) => (await redis("SMEMBERS", key)).sort();
const isMember = async (key, member) => (await redis("SISMEMBER", key, member)) === 1;

// ---- community

const hello = (userId) => ({ type: "USER_JOINED", payload: { userId, message: "Connected to WebSocket server" } });

/** Connected, and in the rooms that the token lists. */
async function enter(host, user, claims = {}) {
  const peer = await open("/api/community/ws" + query({ token: token(user, claims) }), { name: user, port: PORTS[host] });
  await peer.expect(hello(user));
  return peer;
}

async function subscribe(peer, roomId, online) {
  peer.say("SUBSCRIBE", { roomId });
  await peer.expect({ type: "SUBSCRIBED", payload: { roomId, online: any.set(...online) } });
  return peer;
}

async function unsubscribe(peer, roomId, online) {
  peer.say("UNSUBSCRIBE", { roomId });
  await peer.expect({ type: "UNSUBSCRIBED", payload: { roomId, online: any.set(...online) } });
}

const joined = (userId, roomId) => ({ type: "USER_JOINED", payload: { userId, userName: userId, roomId } });
const left = (userId, roomId) => ({ type: "USER_LEFT", payload: { userId, roomId } });
const inRoom = (roomId) => ({ rooms: [roomId] });

check("coming and going are told once over all hosts, and lists are of all hosts", async () => {
  const roomId = fresh("room"), listed = (host, user) => enter(host, user, inRoom(roomId));
  const ann = await listed(A, "ann");
  await subscribe(ann, roomId, ["ann"]);
  const dan = await listed(B, "dan");
  await subscribe(dan, roomId, ["ann", "dan"]);
  await ann.expect(joined("dan", roomId));
  const bob = [await listed(A, "bob")];
  await subscribe(bob[0], roomId, ["ann", "bob", "dan"]);
  for (const peer of [ann, dan]) await peer.expect(joined("bob", roomId));
  for (const host of [B, C, A]) {
    const more = await listed(host, "bob");
    await subscribe(more, roomId, ["ann", "bob", "dan"]);
    bob.push(more);
  }
  ok(await isMember("users:online", "bob"), "bob is online");
  like(await members(`room:${roomId}:online`), ["ann", "bob", "dan"]);
  await unsubscribe(bob[0], roomId, ["ann", "bob", "dan"]);
  for (const peer of [bob[0], bob[1], bob[3]]) await peer.end();
  for (const peer of [ann, dan]) await peer.quiet();
  await unsubscribe(bob[2], roomId, ["ann", "dan"]);
  for (const peer of [ann, dan]) await peer.expect(left("bob", roomId));
  like(await members(`room:${roomId}:online`), ["ann", "dan"]);
  await subscribe(bob[2], roomId, ["ann", "bob", "dan"]);
  for (const peer of [ann, dan]) await peer.expect(joined("bob", roomId));
  bob[2].socket.terminate();
  for (const peer of [ann, dan]) await peer.expect(left("bob", roomId));
  await until(async () => !(await isMember("users:online", "bob")), "bob is offline");
  await ann.end();
  await dan.expect(left("ann", roomId));
  await dan.end();
  await until(async () => (await redis("EXISTS", `room:${roomId}:online`)) === 0, "nobody is left");
});

check("a room's channel is heard from before the answer to SUBSCRIBE on, and no longer than somebody is in", async () => {
  const roomId = fresh("room"), said = { type: "NEWS", payload: { text: "hello" } };
  const eve = await enter(B, "eve", inRoom(roomId));
  await subscribe(eve, roomId, ["eve"]);
  for (let n = 0; n < 20; n += 1) {
    await redis("PUBLISH", `room:${roomId}`, JSON.stringify(said));
    await eve.expect(said);
    await unsubscribe(eve, roomId, []);
    await until(async () => (await redis("PUBSUB", "NUMSUB", `room:${roomId}`))[1] === 0, "nobody listens");
    await subscribe(eve, roomId, ["eve"]);
  }
  await eve.end();
});

check("who types is in a hash for as long as he does", async () => {
  const roomId = fresh("room"), key = `room:${roomId}:typing`;
  const ann = await enter(A, "ann", inRoom(roomId));
  await subscribe(ann, roomId, ["ann"]);
  ann.say("TYPING", { roomId, isTyping: true });
  await until(async () => Math.abs(Number(await redis("HGET", key, "ann")) - Date.now()) < 10_000, "ann types");
  const left = await redis("PTTL", key);
  ok(left > 0 && left <= 5_000, `lives ${left} ms`);
  ann.say("TYPING", { roomId, isTyping: false });
  await until(async () => (await redis("EXISTS", key)) === 0, "she does no longer");
  await ann.end();
});

check("rooms: user:joined, user:left and online, offline once over all hosts", async () => {
  const roomId = fresh("room"), on = (host, user) => visit("/", { port: PORTS[host], auth: { token: token(user) } }, user);
  const ann = await on(A, "ann");
  like((await ann.ask("room:join", { roomId })).success, true);
  const carl = await on(B, "carl");
  await ann.hearOf("carl", "user:status", { status: "online" });
  like((await carl.ask("room:join", { roomId })).success, true);
  await ann.hearOf("carl", "user:joined", { roomId, username: "carl", timestamp: any.time });
  const again = await on(C, "carl");
  like((await again.ask("room:join", { roomId })).success, true);
  await ann.deafOf("carl", "user:joined");
  await carl.end();
  await ann.deafOf("carl", "user:left");
  ann.clear();
  await again.end();
  // Two homes tell of it, in one order or the other.
  const heard = [await ann.next("one"), await ann.next("the other")].sort();
  like(heard, [["user:left", { userId: "carl", roomId, username: "carl", timestamp: any.time }], ["user:status", { userId: "carl", status: "offline" }]]);
  await ann.deafOf("carl", "user:left");
  await ann.end();
});

check("notify: how a watched user is, wherever he is", async () => {
  const on = async (host, user) => {
    const guest = await visit("/notify", { port: PORTS[host], auth: { token: token(user) } }, user);
    await guest.hear("authenticated", { userId: user, email: null });
    return guest;
  };
  const user = fresh("frank"), ann = await on(A, "ann");
  like(await ann.ask("presence:subscribe", { userIds: [user] }), { success: true });
  await ann.hear("presence", { userId: user, status: "offline", lastSeen: null });
  const frank = await on(B, user);
  await ann.hear("presence", { userId: user, status: "online", lastSeen: any.time });
  const carl = await on(C, "carl");
  like(await carl.ask("presence:subscribe", { userIds: [user] }), { success: true });
  await carl.hear("presence", { userId: user, status: "online", lastSeen: any.time });
  const too = await on(A, user);
  await frank.end();
  await ann.deafOf(user, "presence");
  await too.end();
  for (const guest of [ann, carl]) await guest.hear("presence", { userId: user, status: "offline", lastSeen: any.time });
  const dan = await on(B, "dan");
  like(await dan.ask("presence:subscribe", { userIds: [user] }), { success: true });
  await dan.hear("presence", { userId: user, status: "offline", lastSeen: any.time });
  for (const guest of [ann, carl, dan]) await guest.end();
});

check("collab: that a clientID has gone is told when its last connection on any host has", async () => {
  const documentId = fresh("document"), bearer = (user) => token(user, { documents: [documentId] });
  const at = (host, user, clientID) => open("/ws/fabric" + query({ token: bearer(user), documentId, clientID }), { name: user, port: PORTS[host] });
  const ann = await at(A, "ann", "one");
  const bob = [await at(B, "bob", "two"), await at(C, "bob", "two")];
  await sleep(200);
  ann.clear();
  await bob[0].end();
  await ann.quiet();
  await bob[1].end();
  await ann.expect({ type: "awareness", documentId, clientID: "two", awareness: null });
  await ann.end();
});

const post = (host, user, body, claims) => http(PORTS[host], "POST", "/api/community/messages", {
  headers: { authorization: `Bearer ${token(user, claims)}`, "content-type": "application/json" },
  body: JSON.stringify(body),
});

check("who may enter stands in a set, where the token has no lists or the endpoint says so", async () => {
  const roomId = fresh("room"), refusal = (roomId) => ({ type: "ERROR", payload: { code: "FORBIDDEN", message: any.text, roomId } });
  const ann = await enter(A, "ann"), bob = await enter(B, "bob");
  await redis("SADD", `room:${roomId}:members`, "ann");
  await subscribe(ann, roomId, ["ann"]);
  bob.say("SUBSCRIBE", { roomId });
  await bob.expect(refusal(roomId));
  ok((await post(B, "bob", { roomId, content: "no" })).status === 403, "nor may he write");
  ok((await post(B, "ann", { roomId, content: "yes" })).status === 201, "she may, on any host");
  await ann.expect({ type: "CHAT_MESSAGE", payload: (payload) => payload.content === "yes" });
  await redis("SADD", `room:${roomId}:members`, "bob");
  await subscribe(bob, roomId, ["ann", "bob"]);
  await ann.expect(joined("bob", roomId));
  const carl = await visit("/chat", { port: PORTS[A], auth: { token: token("carl") } }, "carl");
  ok((await carl.ask("join-room", { room: roomId })).success === false, "chat: not a member");
  await redis("SADD", `${roomId}:members`, "carl");
  ok((await carl.ask("join-room", { room: roomId })).success === true, "chat: a member");
  const at = () => open("/ws/agent" + query({ token: token("dan", { documents: [] }), documentId: roomId, clientID: "one" }), { name: "dan", port: PORTS[B] });
  const dan = await at();
  await dan.closed(4403);
  await redis("SADD", `${roomId}:members`, "dan");
  const again = await at();
  again.send({ type: "sync", documentId: roomId });
  await again.next("an answer");
  for (const peer of [ann, bob, carl, again]) await peer.end();
});

check("what somebody says is not for those whom he has blocked, by token or in Redis, on any host and from any program", async () => {
  const roomId = fresh("room"), claims = inRoom(roomId), author = fresh("ann");
  const members = [];
  for (const [host, user] of [[A, "bob"], [B, "bob"], [A, "eve"], [B, "eve"]]) members.push(await subscribe(await enter(host, user, claims), roomId, user === "eve" ? ["bob", "eve"] : ["bob"]));
  const [bobA, bobB, eveA, eveB] = members, bobs = [bobA, bobB], eves = [eveA, eveB];
  for (const bob of bobs) await bob.expect(joined("eve", roomId));
  const hears = async (content) => {
    for (const peer of bobs) await peer.expect({ type: "CHAT_MESSAGE", payload: (payload) => payload.content === content });
    for (const peer of eves) await peer.quiet();
  };
  await post(A, author, { roomId, content: "by token" }, { ...claims, blocked: ["eve"] });
  await hears("by token");
  await redis("SADD", `user:${author}:blocked`, "eve", "dan");
  ok((await post(A, author, { roomId, content: "in Redis" }, claims)).status === 201, "posted");
  await hears("in Redis");
  const said = (content) => ({ type: "CHAT_MESSAGE", payload: { id: "1", content, roomId, authorId: author, b: ["x"] }, b: 1, more: [2] });
  for (const content of ["foreign", "more"]) {
    await redis("PUBLISH", `room:${roomId}`, JSON.stringify(said(content)));
    await redis("PUBLISH", `room:${roomId}`, JSON.stringify({ type: "NEWS", payload: { after: content } }));
    for (const peer of bobs) { peer.clear(); }
    for (const peer of [...bobs, ...eves]) await until(async () => peer.raw.some((text) => text.includes(`"after":"${content}"`)), "what came after it");
    for (const peer of bobs) ok(peer.raw.some((text) => text === JSON.stringify(said(content))), "as it was said");
    for (const peer of eves) ok(!peer.raw.some((text) => text.includes(`"content":"${content}"`)), "not for eve");
  }
  await sleep(200);
  for (const peer of members) peer.clear();
  const talker = await open("/talk" + query({ token: token(author, claims), roomId }), { name: author, port: PORTS[A] });
  const talk = { bob: [], eve: [] };
  for (const [host, user] of [[A, "bob"], [B, "bob"], [A, "eve"], [B, "eve"]]) talk[user].push(await open("/talk" + query({ token: token(user, claims), roomId }), { name: user, port: PORTS[host] }));
  const all = [...talk.bob, ...talk.eve, talker];
  for (const peer of all) { peer.say("SUBSCRIBE", { roomId }); await until(async () => peer.raw.some((text) => text.includes("SUBSCRIBED")), "in"); }
  talker.say("CHAT_MESSAGE", { roomId, content: "over the socket" });
  talker.say("CHAT_MESSAGE", { roomId, content: "and again" });
  for (const peer of [...talk.bob, talker]) await until(async () => peer.raw.filter((text) => text.includes("over the socket") || text.includes("and again")).length === 2, "heard");
  await sleep(200);
  for (const peer of talk.eve) ok(!peer.raw.some((text) => text.includes("over the socket") || text.includes("and again")), "not for eve");
  for (const peer of members) await peer.quiet();
  for (const peer of [...all, ...members]) await peer.end();
});

check("no room has the name of a connection that lives on another host", async () => {
  const on = (host, user) => visit("/", { port: PORTS[host], auth: { token: token(user) } }, user);
  const ann = await on(A, "ann"), bob = await on(B, "bob"), roomId = bob.socket.id;
  like((await ann.ask("room:join", { roomId })).success, false);
  const other = [...roomId].reverse().join("");
  like((await ann.ask("room:join", { roomId: other })).success, true);
  await bob.end();
  await until(async () => (await ann.ask("room:join", { roomId })).success, "its name is free");
  await ann.end();
});

check("what Redis has lost is there again within ten seconds", async () => {
  const roomId = fresh("room");
  const ann = await enter(A, "ann", inRoom(roomId));
  await subscribe(ann, roomId, ["ann"]);
  const bob = await enter(B, "bob", inRoom(roomId));
  await subscribe(bob, roomId, ["ann", "bob"]);
  await ann.expect(joined("bob", roomId));
  await redis("FLUSHALL");
  const began = Date.now();
  await until(async () => (await members(`room:${roomId}:online`)).join() === "ann,bob" && (await members("users:online")).join() === "ann,bob", "written again");
  ok(Date.now() - began < 10_000, "within ten seconds");
  for (const peer of [ann, bob]) await peer.quiet();
  const carl = await enter(C, "carl", inRoom(roomId));
  await subscribe(carl, roomId, ["ann", "bob", "carl"]);
  await bob.expect(joined("carl", roomId));
  await bob.end();
  await ann.expect(joined("carl", roomId));
  await ann.expect(left("bob", roomId));
  for (const peer of [ann, carl]) await peer.end();
});

check("a host that stops in good order leaves nothing behind", async () => {
  const roomId = fresh("room");
  const ann = await enter(A, "ann", inRoom(roomId));
  await subscribe(ann, roomId, ["ann"]);
  const gus = await enter(B, "gus", inRoom(roomId));
  await subscribe(gus, roomId, ["ann", "gus"]);
  await ann.expect(joined("gus", roomId));
  const hosts = (await redis("SMEMBERS", "uringcast:hosts")).length;
  ok(hosts === 3, `${hosts} hosts`);
  process.kill(PIDS[B], "SIGTERM");
  await ann.expect(left("gus", roomId), 20_000);
  await until(async () => (await redis("SMEMBERS", "uringcast:hosts")).length === 2, "it has taken its leave", 20_000);
  ok(!(await isMember("users:online", "gus")), "gus is gone");
  ok((await redis("KEYS", "uringcast:host:*")).length === 2, "two leases");
  ok((await redis("KEYS", "uringcast:reap:*")).length === 0, "nobody had to find out");
  await ann.end();
});

check("a host that dies leaves nobody behind, and the others are told once", async () => {
  const roomId = fresh("room"), user = fresh("hank");
  const ann = await enter(A, "ann", inRoom(roomId));
  await subscribe(ann, roomId, ["ann"]);
  const hank = await enter(C, "hank", inRoom(roomId)), iris = [await enter(C, "iris", inRoom(roomId)), await enter(A, "iris", inRoom(roomId))];
  for (const peer of [hank, ...iris]) { peer.say("SUBSCRIBE", { roomId }); await peer.next("an answer"); }
  await ann.expect(joined("hank", roomId));
  await ann.expect(joined("iris", roomId));
  const watcher = await visit("/notify", { port: PORTS[A], auth: { token: token("ann") } }, "ann");
  const watched = await visit("/notify", { port: PORTS[C], auth: { token: token(user) } }, user);
  await watched.hear("authenticated", { userId: user, email: null });
  like(await watcher.ask("presence:subscribe", { userIds: [user] }), { success: true });
  await watcher.hear("presence", { userId: user, status: "online", lastSeen: any.time });
  process.kill(PIDS[C], "SIGKILL");
  await ann.expect(left("hank", roomId), 30_000);
  await watcher.hear("presence", { userId: user, status: "offline", lastSeen: any.time }, 30_000);
  await until(async () => (await redis("SMEMBERS", "uringcast:hosts")).length === 1, "it is forgotten", 20_000);
  like(await members(`room:${roomId}:online`), ["ann", "iris"]);
  like(await members("users:online"), ["ann", "iris"]);
  ok((await redis("KEYS", "uringcast:at:*")).length === 1, "one index");
  await ann.quiet();
  for (const peer of [ann, iris[1]]) await peer.end();
  await watcher.end();
});

await run(() => socket.destroy());
