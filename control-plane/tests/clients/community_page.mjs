// The community page of the wire contract, line by line, over `ws`. REST, health and Redis have tests of their own.
import { any, badTokens, check, http, like, ok, open, PORT, query, refused, run, sleep, token, WebSocket, within } from "./lib.mjs";

const WS = "/api/community/ws";
const INVALID = { type: "ERROR", payload: { code: "INVALID_MESSAGE", message: "Invalid message format" } };
const error = (code, more = {}) => ({ type: "ERROR", payload: { code, message: any.text, ...more } });
const hello = (userId) => ({ type: "USER_JOINED", payload: { userId, message: "Connected to WebSocket server" } });

// Each check has users and channels of its own, so that none hears another.
let serial = 0;
const fresh = (name) => `${name}-${++serial}`;

async function enter(user, { claims, at = WS, ...asked } = {}) {
  const peer = await open(at + query({ token: token(user, { name: user.toUpperCase(), ...claims }), ...asked }), { name: user });
  await peer.expect(hello(user));
  return peer;
}

async function subscribe(peer, channel, online = any.set(peer.name)) {
  peer.say("SUBSCRIBE", channel);
  await peer.expect({ type: "SUBSCRIBED", payload: { ...channel, online } });
}

/** Two members of one fresh room: the second one's entering is heard by the first. */
async function pair(options) {
  const channel = { roomId: fresh("room") };
  const [ann, bob] = [await enter(fresh("ann"), options), await enter(fresh("bob"), options)];
  await subscribe(ann, channel);
  await subscribe(bob, channel, any.set(ann.name, bob.name));
  await ann.expect({ type: "USER_JOINED", payload: { userId: bob.name, userName: bob.name.toUpperCase(), ...channel } });
  return { ann, bob, channel };
}

async function answersPing(peer) {
  peer.say("PING", {});
  await peer.expect({ type: "PONG", payload: {} });
}

check("no token, a bad or an expired one: 401 with a JSON body before the upgrade, and the socket is closed", async () => {
  for (const [why, bad] of Object.entries({ "no token": undefined, ...badTokens() })) {
    const answer = await refused(WS + (bad === undefined ? "" : query({ token: bad })));
    ok(answer.status === 401, `${why}: ${answer.status}`);
    ok(answer.headers["content-type"]?.startsWith("application/json"), `${why}: content type ${answer.headers["content-type"]}`);
    ok(answer.headers.connection?.toLowerCase() === "close", `${why}: connection ${answer.headers.connection}`);
    like(JSON.parse(answer.body), { success: false, error: { code: "UNAUTHORIZED", message: any.text } }, why);
  }
});

check("the token is found in the header before the query", async () => {
  const carol = fresh("carol");
  const peer = await open(WS + query({ token: "nonsense" }), { name: carol, headers: { authorization: `Bearer ${token(carol)}` } });
  await peer.expect(hello(carol));
  await peer.end();
});

check("first frame", async () => {
  const peer = await enter(fresh("first"));
  ok(peer.raw.length === 1, "exactly one frame");
  await peer.quiet();
  await peer.end();
});

check("the token's rooms and groups are entered at connect; others hear it with name and picture", async () => {
  const [roomId, groupId] = [fresh("room"), fresh("group")];
  const ann = await enter(fresh("ann"), { claims: { rooms: [roomId], groups: [groupId] } });
  const bob = await enter(fresh("bob"), { claims: { rooms: [roomId], groups: [groupId], picture: "https://example.com/bob.png" } });
  const told = (channel) => ({ type: "USER_JOINED", payload: { userId: bob.name, userName: bob.name.toUpperCase(), userImage: "https://example.com/bob.png", ...channel } });
  // The two channels have homes of their own, so either may be first.
  const heard = [await ann.next(), await ann.next()].sort((one) => ("roomId" in one.payload ? -1 : 1));
  like(heard, [told({ roomId }), told({ groupId })]);
  await bob.end();
  const left = [await ann.next(), await ann.next()].sort((one) => ("roomId" in one.payload ? -1 : 1));
  like(left, [{ type: "USER_LEFT", payload: { userId: bob.name, roomId } }, { type: "USER_LEFT", payload: { userId: bob.name, groupId } }]);
  await ann.end();
});

check("a token with lists enters nothing else: FORBIDDEN names the channel", async () => {
  const mine = fresh("room"), foreign = fresh("room");
  const ann = await enter(fresh("ann"), { claims: { rooms: [mine], groups: [] }, roomId: foreign });
  await ann.expect(error("FORBIDDEN", { roomId: foreign }));
  ann.say("SUBSCRIBE", { roomId: foreign });
  await ann.expect(error("FORBIDDEN", { roomId: foreign }));
  ann.say("SUBSCRIBE", { groupId: mine });
  await ann.expect(error("FORBIDDEN", { groupId: mine }));
  await subscribe(ann, { roomId: mine });
  await ann.end();
});

check("query parameters enter channels, repeated ones all of them", async () => {
  const rooms = [fresh("room"), fresh("room")], groupId = fresh("group");
  const ann = await enter(fresh("ann"), { roomId: rooms, groupId });
  for (const channel of [{ roomId: rooms[0] }, { roomId: rooms[1] }, { groupId }]) {
    ann.say("TYPING", { ...channel, isTyping: true });
    await ann.expect({ type: "TYPING", payload: { userId: ann.name, userName: ann.name.toUpperCase(), ...channel, isTyping: true } });
  }
  await ann.end();
});

check("a bad name in the lists or the query is ignored and told", async () => {
  const good = fresh("room");
  const ann = await enter(fresh("ann"), { roomId: ["a\u0001b", good] });
  await ann.expect(error("INVALID_MESSAGE"));
  await subscribe(ann, { roomId: good });
  await ann.end();
  const bob = await enter(fresh("bob"), { claims: { rooms: ["", good] } });
  await bob.expect(error("INVALID_MESSAGE"));
  await subscribe(bob, { roomId: good });
  await bob.end();
});

check("SUBSCRIBE lists every user once; a second one is answered the same and told to nobody", async () => {
  const { ann, bob, channel } = await pair();
  await subscribe(bob, channel, any.set(ann.name, bob.name));
  await ann.quiet();
  await Promise.all([ann.end(), bob.end()]);
});

check("a room and a group of one name are two channels", async () => {
  const name = fresh("same");
  const [ann, bob] = [await enter(fresh("ann")), await enter(fresh("bob"))];
  await subscribe(ann, { roomId: name });
  await subscribe(bob, { groupId: name });
  await ann.quiet();
  await Promise.all([ann.end(), bob.end()]);
});

check("entering and leaving are told once per user, not per device", async () => {
  const { ann, bob, channel } = await pair();
  const second = await enter(bob.name);
  await subscribe(second, channel, any.set(ann.name, bob.name));
  await ann.quiet();
  bob.say("UNSUBSCRIBE", channel);
  await bob.expect({ type: "UNSUBSCRIBED", payload: { ...channel, online: any.set(ann.name, bob.name) } });
  await ann.quiet();
  second.say("UNSUBSCRIBE", channel);
  await second.expect({ type: "UNSUBSCRIBED", payload: { ...channel, online: any.set(ann.name) } });
  await ann.expect({ type: "USER_LEFT", payload: { userId: bob.name, ...channel } });
  await ann.quiet();
  await Promise.all([ann.end(), bob.end(), second.end()]);
});

check("a lost connection leaves its channels as a closed one does", async () => {
  const { ann, bob, channel } = await pair();
  bob.socket.terminate();
  await ann.expect({ type: "USER_LEFT", payload: { userId: bob.name, ...channel } });
  await ann.end();
});

check("PING, with and without payload", async () => {
  const ann = await enter(fresh("ann"));
  await answersPing(ann);
  ann.say("PING");
  await ann.expect({ type: "PONG", payload: {} });
  await ann.end();
});

check("TYPING reaches everybody, the sender too, and says who it really was", async () => {
  const { ann, bob, channel } = await pair();
  const told = (isTyping) => ({ type: "TYPING", payload: { userId: ann.name, userName: ann.name.toUpperCase(), ...channel, isTyping } });
  ann.say("TYPING", { ...channel, isTyping: true, userName: "Mallory", userId: "mallory" });
  for (const peer of [ann, bob]) await peer.expect(told(true));
  ann.say("TYPING", { ...channel, isTyping: false });
  for (const peer of [ann, bob]) await peer.expect(told(false));
  await Promise.all([ann.end(), bob.end()]);
});

check("TYPING needs membership", async () => {
  const ann = await enter(fresh("ann")), roomId = fresh("room"), groupId = fresh("group");
  for (const channel of [{ roomId }, { groupId }]) {
    ann.say("TYPING", { ...channel, isTyping: true });
    await ann.expect(error("FORBIDDEN", channel));
  }
  await ann.end();
});

check("a typing state not refreshed for 5 s is ended by the server, once", async () => {
  const { ann, bob, channel } = await pair();
  const told = (isTyping) => ({ type: "TYPING", payload: { userId: ann.name, userName: ann.name.toUpperCase(), ...channel, isTyping } });
  ann.say("TYPING", { ...channel, isTyping: true });
  await bob.expect(told(true));
  await sleep(2_500);
  ann.say("TYPING", { ...channel, isTyping: true });
  await bob.expect(told(true));
  await bob.quiet(3_500);
  await bob.expect(told(false));
  await bob.quiet();
  await Promise.all([ann.end(), bob.end()]);
});

check("typing ends at once when its connection leaves, before the leaving is told", async () => {
  for (const leave of [(peer, channel) => peer.say("UNSUBSCRIBE", channel), (peer) => peer.socket.terminate()]) {
    const { ann, bob, channel } = await pair();
    const told = (isTyping) => ({ type: "TYPING", payload: { userId: bob.name, userName: bob.name.toUpperCase(), ...channel, isTyping } });
    bob.say("TYPING", { ...channel, isTyping: true });
    await ann.expect(told(true));
    leave(bob, channel);
    await ann.expect(told(false), 3_000);
    await ann.expect({ type: "USER_LEFT", payload: { userId: bob.name, ...channel } });
    await ann.quiet();
    bob.socket.terminate();
    await ann.end();
  }
});

check("AUTHENTICATE takes a new token of the same user only", async () => {
  const ann = await enter(fresh("ann"));
  ann.say("AUTHENTICATE", { token: token(ann.name) });
  await ann.expect({ type: "AUTHENTICATED", payload: { userId: ann.name } });
  for (const bad of [token("somebody-else"), "nonsense", token(ann.name, { exp: 1 })]) {
    ann.say("AUTHENTICATE", { token: bad });
    await ann.expect(error("UNAUTHORIZED"));
  }
  await answersPing(ann);
  await ann.end();
});

check("CHAT_MESSAGE is refused where clients may not publish", async () => {
  const { ann, bob, channel } = await pair();
  ann.say("CHAT_MESSAGE", { ...channel, content: "hello" });
  await ann.expect(error("USE_REST"));
  await bob.quiet();
  await Promise.all([ann.end(), bob.end()]);
});

check("CHAT_MESSAGE reaches everybody in the channel where clients may publish", async () => {
  const talk = { at: "/talk", claims: { picture: "https://example.com/p.png" } };
  const channel = { roomId: fresh("room") };
  const [ann, bob, stranger] = [await enter(fresh("ann"), talk), await enter(fresh("bob"), talk), await enter(fresh("stranger"), talk)];
  await subscribe(ann, channel);
  await subscribe(bob, channel, any.set(ann.name, bob.name));
  await ann.next("the joining");
  const content = "Grüße, 世界 🌍 \"quoted\" \\ \u2028 <b>";
  ann.say("CHAT_MESSAGE", { ...channel, content, authorId: "mallory", authorName: "Mallory", isEdited: true, id: "mine" });
  const told = {
    type: "CHAT_MESSAGE",
    payload: { id: any.uuid7, content, ...channel, authorId: ann.name, authorName: ann.name.toUpperCase(), authorImage: "https://example.com/p.png", isEdited: false, createdAt: any.time },
  };
  const [mine, theirs] = [await ann.expect(told), await bob.expect(told)];
  like(theirs, mine, "both got the same");
  await stranger.quiet();
  stranger.say("CHAT_MESSAGE", { ...channel, content: "let me in" });
  await stranger.expect(error("FORBIDDEN", channel));
  await ann.quiet();
  await Promise.all([ann.end(), bob.end(), stranger.end()]);
});

check("content has 1 to 4,000 characters", async () => {
  const ann = await enter(fresh("ann"), { at: "/talk" }), channel = { groupId: fresh("group") };
  await subscribe(ann, channel);
  for (const content of ["ü", "ü".repeat(4_000)]) {
    ann.say("CHAT_MESSAGE", { ...channel, content });
    const { payload } = await ann.next("the message");
    like(payload.content, content);
    like(payload.groupId, channel.groupId);
  }
  for (const content of ["", "x".repeat(4_001), 7, null, undefined]) {
    ann.say("CHAT_MESSAGE", { ...channel, content });
    await ann.expect(error("INVALID_MESSAGE"));
  }
  await ann.end();
});

check("a user's messages do not reach those whom the user has blocked", async () => {
  const channel = { roomId: fresh("room") }, blocked = fresh("blocked");
  const ann = await enter(fresh("ann"), { at: "/talk", claims: { blocked: [blocked] } });
  const [bob, victim] = [await enter(fresh("bob"), { at: "/talk" }), await enter(blocked, { at: "/talk" })];
  for (const peer of [ann, bob, victim]) await subscribe(peer, channel, Array.isArray);
  for (const peer of [ann, bob, victim]) { await peer.quiet(50).catch(() => {}); peer.clear(); }
  ann.say("CHAT_MESSAGE", { ...channel, content: "not for all" });
  for (const peer of [ann, bob]) like((await peer.next("the message")).payload.content, "not for all");
  await victim.quiet();
  victim.say("CHAT_MESSAGE", { ...channel, content: "for all" });
  for (const peer of [ann, bob, victim]) like((await peer.next("the answer")).payload.content, "for all");
  await Promise.all([ann.end(), bob.end(), victim.end()]);
});

check("what is not on the page: INVALID_MESSAGE, and the connection stays", async () => {
  const ann = await enter(fresh("ann"));
  const bad = [
    "", " ", "nonsense", "{", "[]", "[1]", "null", "7", '"PING"', "{}", '{"payload":{}}', '{"type":7}', '{"type":null}', '{"type":"NOPE","payload":{}}',
    '{"type":"ping"}', '{"type":"PING","payload":{}} trailing', '{"type":"SUBSCRIBE"}', '{"type":"SUBSCRIBE","payload":[]}', '{"type":"SUBSCRIBE","payload":"r"}',
    '{"type":"SUBSCRIBE","payload":null}', '{"type":"SUBSCRIBE","payload":{"roomId":7}}', '{"type":"SUBSCRIBE","payload":{"roomId":""}}', '{"type":"SUBSCRIBE","payload":{"roomId":null}}',
    '{"type":"SUBSCRIBE","payload":{"roomId":["r"]}}', '{"type":"SUBSCRIBE","payload":{"roomId":"a","groupId":"b"}}', '{"type":"UNSUBSCRIBE","payload":{"roomId":"a","groupId":"b"}}',
    '{"type":"SUBSCRIBE","payload":{"roomId":"a\\u0000b"}}', '{"type":"SUBSCRIBE","payload":{"roomId":"a\\u0085b"}}', '{"type":"SUBSCRIBE","payload":{"roomId":"a\\nb"}}',
    '{"type":"SUBSCRIBE","payload":{"roomId":"\\ud800"}}', '{"type":"TYPING","payload":{"isTyping":true}}', '{"type":"AUTHENTICATE","payload":{}}', '{"type":"AUTHENTICATE","payload":{"token":7}}',
    JSON.stringify({ type: "SUBSCRIBE", payload: { roomId: "x".repeat(256) } }), JSON.stringify({ type: "SUBSCRIBE", payload: { groupId: "ü".repeat(128) } }),
  ];
  for (const text of bad) {
    ann.send(text);
    await ann.expect(INVALID).catch((fault) => { throw new Error(`${text.slice(0, 80)}: ${fault.message}`); });
  }
  ann.send(Buffer.from("{}"));
  await ann.expect(INVALID);
  await answersPing(ann);
  await subscribe(ann, { roomId: "x".repeat(255) });
  await ann.end();
});

check("TYPING whose isTyping is no boolean is a bad shape", async () => {
  const { ann, bob, channel } = await pair();
  for (const isTyping of [undefined, null, "true", 1]) {
    ann.say("TYPING", { ...channel, isTyping });
    await ann.expect(INVALID);
  }
  await bob.quiet();
  await Promise.all([ann.end(), bob.end()]);
});

check("at most 100 channels: one too many is FORBIDDEN", async () => {
  const ann = await enter(fresh("ann"));
  for (let number = 0; number < 100; number += 1) await subscribe(ann, { roomId: `${ann.name}-${number}` });
  ann.say("SUBSCRIBE", { roomId: `${ann.name}-100` });
  await ann.expect(error("FORBIDDEN", { roomId: `${ann.name}-100` }));
  ann.say("UNSUBSCRIBE", { roomId: `${ann.name}-0` });
  await ann.expect({ type: "UNSUBSCRIBED", payload: { roomId: `${ann.name}-0`, online: [] } });
  await subscribe(ann, { roomId: `${ann.name}-100` });
  await ann.end();
});

check("at most 100 connections of a user: one too many is 429", async () => {
  const user = fresh("many");
  const peers = await Promise.all(Array.from({ length: 100 }, () => enter(user)));
  const answer = await refused(WS + query({ token: token(user) }));
  ok(answer.status === 429, `answered ${answer.status}`);
  ok(answer.body.includes("Maximum connection limit reached"), `body ${answer.body}`);
  await peers.pop().end();
  await within((async () => {
    for (;;) {
      const again = await enter(user).catch(() => sleep(50));
      if (again) return again.end();
    }
  })(), "a place that became free");
  await Promise.all(peers.map((peer) => peer.end()));
});

check("a message of 1,000,000 bytes is answered, one byte more closes with 1009", async () => {
  const ann = await enter(fresh("ann"));
  const text = (bytes) => { const head = '{"type":"PING","payload":{"pad":"'; return head + "x".repeat(bytes - head.length - 3) + '"}}'; };
  ann.send(text(1_000_000));
  await ann.expect({ type: "PONG", payload: {} });
  ann.send(text(1_000_001));
  await ann.closed(1009);
});

check("fragments make one message, and control frames may stand between them", async () => {
  const ann = await enter(fresh("ann"));
  ann.socket.send('{"type":"PI', { fin: false });
  ann.socket.ping("between");
  like((await within(new Promise((resolve) => ann.socket.once("pong", resolve)), "a pong")).toString(), "between");
  ann.socket.send("", { fin: false });
  ann.socket.send('NG"}', { fin: true });
  await ann.expect({ type: "PONG", payload: {} });
  await ann.end();
});

check("a client's close is answered with its own code", async () => {
  const ann = await enter(fresh("ann"));
  ann.socket.close(4000, "bye");
  const { code } = await within(ann.closing, "the closing handshake");
  ok(code === 4000 || code === 1000, `closed with ${code}`);
});

check("a compression offer is declined", async () => {
  const user = fresh("ann");
  const peer = await open(WS + query({ token: token(user) }), { name: user, perMessageDeflate: true });
  ok(peer.socket.extensions === "", `extensions ${peer.socket.extensions}`);
  ok(peer.socket.readyState === WebSocket.OPEN, "open");
  await peer.expect(hello(user));
  await peer.end();
});

check("GET of the path is 426, of an unknown one 404", async () => {
  for (const [path, status] of [[WS, 426], ["/talk", 426], ["/api/community/nope", 404]]) {
    const answer = await http(PORT, "GET", path);
    ok(answer.status === status, `${path}: ${answer.status}`);
  }
  const unknown = await refused("/api/community/nope");
  ok(unknown.status === 404, `upgrade of an unknown path: ${unknown.status}`);
});

await run();
