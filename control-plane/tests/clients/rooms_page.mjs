// The rooms page of the wire contract, line by line, over `socket.io-client`; the exact packets over `ws`.
import { any, badTokens, check, io, like, Manager, ok, open, PORT, refused, run, sleep, token, unwelcome, visit, within } from "./lib.mjs";

const refusal = (message) => ({ success: false, error: { message } });
const enter = (user, claims = {}, namespace = "/") => visit(namespace, { auth: { token: token(user, { name: user.toUpperCase(), ...claims }) } }, user);

let serial = 0;
const fresh = (name) => `${name}-${++serial}`;

async function join(guest, roomId, memberCount = 1) {
  const answer = await guest.ask("room:join", { roomId });
  return like(answer, { success: true, room: { id: roomId, name: any.text, memberCount }, history: Array.isArray }, `${guest.name} joins`);
}

/** Two members of a fresh room. */
async function pair() {
  const roomId = fresh("room");
  const [ann, bob] = [await enter(fresh("ann")), await enter(fresh("bob"))];
  await join(ann, roomId);
  await join(bob, roomId, 2);
  await ann.hear("user:joined", { userId: bob.name, username: bob.name.toUpperCase(), roomId, timestamp: any.time });
  return { ann, bob, roomId };
}

const ends = (...guests) => Promise.all(guests.map((guest) => guest.end()));

// ---- connecting

check("connect errors have the page's message and data", async () => {
  // Whether an empty one is none or a bad one, the page does not say.
  const { "empty": _, ...bad } = { ...badTokens(), "far too long": token("eve", { pad: "x".repeat(20_000) }) };
  const required = "Authentication token required", invalid = "Invalid authentication token";
  for (const [why, auth, message] of [["no token", {}, required], ...Object.entries(bad).map(([why, token]) => [why, { token }, invalid])]) {
    const fault = await unwelcome("/", { auth }, why);
    ok(fault.message === message, `${why}: message "${fault.message}"`);
    like(fault.data, { message }, `${why}: data`);
  }
});

check("the token is found in auth, then the header, then the query", async () => {
  const good = token("ann");
  for (const options of [{ auth: { token: good } }, { extraHeaders: { authorization: `Bearer ${good}` } }, { query: { token: good } }]) {
    const guest = await visit("/", options, "ann");
    ok(any.sid(guest.socket.id), `socket id ${guest.socket.id}`);
    ok(guest.socket.id !== guest.socket.io.engine.id, "the socket's id is not the secret one of the session");
    await guest.end();
  }
});

check("an unknown namespace is refused, and the connection is usable after", async () => {
  const manager = new Manager(`http://127.0.0.1:${PORT}`, { transports: ["websocket"], reconnection: false });
  const unknown = manager.socket("/unknown"), known = manager.socket("/", { auth: { token: token("ann") } });
  const fault = await within(new Promise((resolve) => unknown.on("connect_error", resolve)), "the connect error");
  ok(fault.message === "Invalid namespace", `message "${fault.message}"`);
  ok(fault.data === undefined, `data ${JSON.stringify(fault.data)}`);
  if (!known.connected) await within(new Promise((resolve) => known.on("connect", resolve)), "the known namespace");
  const answer = await within(new Promise((resolve) => known.emit("room:join", { roomId: fresh("room") }, resolve)), "an answer");
  ok(answer.success === true, "usable");
  manager._close();
});

check("two namespaces share one connection, with ids of their own", async () => {
  const manager = new Manager(`http://127.0.0.1:${PORT}`, { transports: ["websocket"], reconnection: false });
  const sockets = ["/", "/fixed"].map((namespace) => manager.socket(namespace, { auth: { token: token("ann") } }));
  await Promise.all(sockets.map((socket) => within(new Promise((resolve) => socket.on("connect", resolve)), "a namespace")));
  ok(sockets[0].id !== sockets[1].id, "one id for two sockets");
  const answers = await Promise.all(sockets.map((socket) => within(new Promise((resolve) => socket.emit("room:join", { roomId: "r" }, resolve)), "an answer")));
  ok(answers[0].success === true, "the root creates rooms");
  like(answers[1], refusal("Failed to join room"), "the other does not");
  sockets[1].disconnect();
  const still = await within(new Promise((resolve) => sockets[0].emit("room:leave", { roomId: "r" }, resolve)), "an answer");
  ok(still.success === true, "leaving one namespace keeps the other");
  manager._close();
});

check("without authentication the handshake's query gives the name, the socket its id", async () => {
  const guests = [];
  for (const username of ["Ann", "Bob"]) guests.push(await visit("/guests", { query: { username, email: `${username}@example.com` } }, username));
  const [ann, bob] = guests, roomId = fresh("room");
  await join(ann, roomId);
  await join(bob, roomId, 2);
  await ann.hear("user:joined", { userId: bob.socket.id, username: "Bob", roomId, timestamp: any.time });
  await ends(ann, bob);
});

check("with a token the name is its claim, else the query's", async () => {
  const roomId = fresh("room"), watcher = await enter(fresh("watcher"));
  await join(watcher, roomId);
  for (const [claims, username] of [[{ name: "Claimed" }, "Claimed"], [{}, "Asked"]]) {
    const guest = await visit("/", { auth: { token: token(fresh("ann"), claims) }, query: { username: "Asked" } }, "ann");
    await join(guest, roomId, 2);
    const told = await watcher.hear("user:joined", (value) => typeof value === "object");
    ok(told.username === username, `username ${told.username}`);
    await guest.end();
    await watcher.hear("user:left", (value) => value.username === username);
  }
  await watcher.end();
});

check("coming online and going offline is told to all others once per user", async () => {
  const watcher = await enter(fresh("watcher")), user = fresh("ann");
  const about = async () => {
    for (;;) {
      const [event, told] = await watcher.next("a status");
      if (event === "user:status" && told.userId === user) return told;
    }
  };
  const quietAbout = async () => { await sleep(200); ok(!watcher.clear().some(([, told]) => told?.userId === user), "told once too often"); };
  const first = await enter(user);
  like(await about(), { userId: user, status: "online" });
  const second = await enter(user);
  await quietAbout();
  await first.end();
  await quietAbout();
  await second.end();
  like(await about(), { userId: user, status: "offline" });
  await quietAbout();
  await watcher.end();
});

// ---- rooms

check("room:join: the others hear it once per user, the acknowledgement has room and history", async () => {
  const { ann, bob, roomId } = await pair();
  const tab = await enter(bob.name);
  await join(tab, roomId, (count) => count === 2 || count === 3);
  await ann.deaf("user:joined");
  await bob.deaf("user:joined");
  const left = await bob.ask("room:leave", { roomId });
  like(left, { success: true }, "leaving");
  await ann.deaf("user:left");
  await tab.end();
  await ann.hear("user:left", { userId: bob.name, username: bob.name.toUpperCase(), roomId, timestamp: any.time });
  await ann.deaf("user:left");
  await ends(ann, bob);
});

check("joining works without an acknowledgement and twice", async () => {
  const { ann, bob, roomId } = await pair();
  bob.tell("room:join", { roomId });
  await ann.deaf("user:joined");
  const answer = await bob.ask("room:join", { roomId });
  ok(answer.success === true, JSON.stringify(answer));
  await ends(ann, bob);
});

check("a room that does not exist is refused where rooms are not made by joining", async () => {
  const guest = await enter(fresh("ann"), {}, "/fixed");
  like(await guest.ask("room:join", { roomId: "nowhere" }), refusal("Failed to join room"));
  await guest.hear("error", { message: "Failed to join room" });
  await guest.end();
});

check("at most 100 rooms", async () => {
  const guest = await enter(fresh("ann"));
  for (let number = 0; number < 100; number += 1) ok((await guest.ask("room:join", { roomId: `${guest.name}-${number}` })).success, `room ${number}`);
  like(await guest.ask("room:join", { roomId: `${guest.name}-100` }), refusal("Failed to join room"));
  await guest.end();
});

check("at most 100 connections of a user", async () => {
  const user = fresh("many");
  const guests = await Promise.all(Array.from({ length: 100 }, () => enter(user)));
  const fault = await unwelcome("/", { auth: { token: token(user) } }, user);
  like({ message: fault.message, data: fault.data }, { message: "Maximum connection limit reached", data: { message: "Maximum connection limit reached" } });
  await ends(...guests);
});

// ---- messages

check("message: to all with the sender, acknowledged with what was sent", async () => {
  const { ann, bob, roomId } = await pair();
  const base = { id: any.uuid7, roomId, userId: ann.name, username: ann.name.toUpperCase(), timestamp: any.time };
  const cases = [
    [{ content: "Grüße 🌍 \u2028 \"x\"" }, { content: "Grüße 🌍 \u2028 \"x\"", type: "text" }],
    [{ content: "a.png", type: "image", metadata: { width: 10, tags: ["a", null] } }, { content: "a.png", type: "image", metadata: { width: 10, tags: ["a", null] } }],
    [{ content: "a.zip", type: "file" }, { content: "a.zip", type: "file" }],
    [{ content: "mine", userId: "mallory", username: "Mallory", id: "1", timestamp: "then" }, { content: "mine", type: "text" }],
  ];
  for (const [said, told] of cases) {
    const answer = await ann.ask("message", { roomId, ...said });
    like(answer, { success: true, message: { ...base, ...told } });
    for (const guest of [ann, bob]) like(await guest.hear("message", { ...base, ...told }), answer.message, "the event is the acknowledged message");
  }
  await ends(ann, bob);
});

check("message refused: not in the room, no such room, bad shapes, type system", async () => {
  const { ann, bob, roomId } = await pair(), stranger = await enter(fresh("stranger"));
  const message = "Failed to send message";
  like(await stranger.ask("message", { roomId, content: "x" }), refusal(message));
  await stranger.hear("error", { message });
  const bad = [
    [{ roomId: "nowhere", content: "x" }], [{ roomId, content: "x", type: "system" }], [{ roomId, content: "x", type: "video" }], [{ roomId, content: 7 }], [{ roomId }], [{ content: "x" }],
    [{ roomId: "a\u0000", content: "x" }], [{ roomId: "x".repeat(256), content: "x" }], [{ roomId: 7, content: "x" }], ["text"], [null], [[]], [],
  ];
  for (const args of bad) {
    like(await ann.ask("message", ...args), refusal(message), JSON.stringify(args).slice(0, 80));
    await ann.hear("error", { message });
  }
  ann.tell("message", { roomId, type: "system", content: "no acknowledgement wanted" });
  await ann.hear("error", { message });
  await bob.deaf("message");
  await ends(ann, bob, stranger);
});

check("the acknowledgement of a join brings the last 50 messages, oldest first", async () => {
  const { ann, bob, roomId } = await pair(), sent = [];
  for (let number = 0; number < 60; number += 1) sent.push((await ann.ask("message", { roomId, content: `number ${number}` })).message);
  const late = await enter(fresh("late"));
  const { history } = await join(late, roomId, 3);
  like(history, sent.slice(-50), "history");
  await ends(ann, bob, late);
});

// ---- typing, documents, status

check("typing reaches the others, is ended after 5 s without refreshing, and at once by leaving", async () => {
  const { ann, bob, roomId } = await pair();
  const told = (isTyping) => ({ userId: ann.name, username: ann.name.toUpperCase(), roomId, isTyping, timestamp: any.time });
  like(await ann.ask("typing", { roomId, isTyping: true }), { success: true });
  await bob.hear("typing", told(true));
  await ann.ask("typing", { roomId, isTyping: false });
  await bob.hear("typing", told(false));
  await ann.deaf("typing");

  ann.tell("typing", { roomId, isTyping: true });
  await bob.hear("typing", told(true));
  const since = Date.now();
  await bob.hear("typing", told(false));
  ok(Date.now() - since > 4_000, `ended after ${Date.now() - since} ms already`);
  await bob.deaf("typing");

  ann.tell("typing", { roomId, isTyping: true });
  await bob.hear("typing", told(true));
  bob.clear();
  ann.tell("room:leave", { roomId });
  like(await bob.next(), ["typing", told(false)]);
  like(await bob.next(), ["user:left", { userId: ann.name, username: ann.name.toUpperCase(), roomId, timestamp: any.time }]);
  await ends(ann, bob);
});

check("typing refused: not in the room, bad shapes", async () => {
  const { ann, bob, roomId } = await pair(), message = "Failed to set typing";
  for (const said of [{ roomId: "nowhere", isTyping: true }, { roomId }, { roomId, isTyping: "yes" }, { isTyping: true }, null]) {
    like(await ann.ask("typing", said), refusal(message), JSON.stringify(said));
    await ann.hear("error", { message });
  }
  await bob.deaf("typing");
  await ends(ann, bob);
});

check("document:edit reaches the others with the sender's real name", async () => {
  const { ann, bob, roomId } = await pair();
  const changes = [{ insert: "text", at: 3 }, { delete: 1 }], cursor = { line: 1, column: 2 };
  like(await ann.ask("document:edit", { roomId, changes, cursor, userId: "mallory" }), { success: true });
  await bob.hear("document:edit", { userId: ann.name, roomId, changes, cursor });
  ann.tell("document:edit", { roomId, changes });
  await bob.hear("document:edit", { userId: ann.name, roomId, changes });
  await ann.deaf("document:edit");
  for (const said of [{ roomId: "nowhere", changes }, { roomId }, { changes }]) {
    like(await ann.ask("document:edit", said), refusal("Failed to edit document"), JSON.stringify(said));
  }
  await ends(ann, bob);
});

check("user:status reaches the others; another word is refused", async () => {
  const { ann, bob } = await pair();
  for (const status of ["away", "offline", "online"]) {
    like(await ann.ask("user:status", { status }), { success: true });
    await bob.hearOf(ann.name, "user:status", { status });
  }
  ann.clear();
  for (const said of [{ status: "busy" }, { status: 7 }, {}, null]) {
    like(await ann.ask("user:status", said), refusal("Invalid status"), JSON.stringify(said));
    await ann.hear("error", { message: "Invalid status" });
  }
  await ends(ann, bob);
});

check("authenticate takes a new token of the same user only", async () => {
  const ann = await enter("ann", { email: "ann@example.com" });
  const answer = await ann.ask("authenticate", { token: token("ann", { email: "ann@example.com" }) });
  ok(answer.success === true, JSON.stringify(answer));
  await ann.hear("authenticated", { userId: "ann", email: "ann@example.com" });
  for (const bad of [token("bob"), "nonsense", token("ann", { exp: 1 }), 7]) {
    like(await ann.ask("authenticate", { token: bad }), refusal("Invalid authentication token"));
    await ann.hear("error", { message: "Invalid authentication token" });
  }
  await ann.end();
});

check("room:leave refused where one is not", async () => {
  const ann = await enter(fresh("ann"));
  for (const said of [{ roomId: "nowhere" }, {}, { roomId: "" }, null, 7]) {
    like(await ann.ask("room:leave", said), refusal("Failed to leave room"), JSON.stringify(said));
    await ann.hear("error", { message: "Failed to leave room" });
  }
  for (const said of [{}, { roomId: "" }, { roomId: "a\u007fb" }, { roomId: "x".repeat(256) }, { roomId: {} }]) {
    like(await ann.ask("room:join", said), refusal("Failed to join room"), JSON.stringify(said).slice(0, 60));
  }
  await ann.end();
});

check("nobody joins a room whose name is the id of a live connection", async () => {
  const [ann, eve] = [await enter(fresh("ann")), await enter(fresh("eve"))];
  like(await eve.ask("room:join", { roomId: ann.socket.id }), refusal("Failed to join room"));
  await ends(ann, eve);
});

// ---- the packets themselves

const ENGINE = "/socket.io/?EIO=4&transport=websocket";

/** A bare Engine.IO session whose open packet has been read. */
async function session() {
  const peer = await open(ENGINE, { name: "session", packets: true });
  like(JSON.parse((await peer.next("open")).slice(1)), { sid: any.sid, upgrades: [], pingInterval: 25000, pingTimeout: 60000, maxPayload: 1000000 }, "open packet");
  return peer;
}

check("open and CONNECT are answered with exactly the packets of the protocol", async () => {
  const peer = await session();
  peer.send("40/nope,");
  like(await peer.next("connect error"), '44/nope,{"message":"Invalid namespace"}');
  peer.send("40");
  like(await peer.next("connect error"), '44{"message":"Authentication token required","data":{"message":"Authentication token required"}}');
  peer.send("40" + JSON.stringify({ token: token(fresh("ann")) }));
  like(await peer.next("connect"), (text) => /^40\{"sid":"[A-Za-z0-9_-]{20}"\}$/.test(text));
  peer.send('421["room:join",{"roomId":"packets"}]');
  like(await peer.next("acknowledgement"), (text) => text.startsWith('431[{"success":true,"room":{"id":"packets",'));
  peer.send('40/fixed,' + JSON.stringify({ token: token(fresh("ann")) }));
  like(await peer.next("connect"), (text) => /^40\/fixed,\{"sid":"[A-Za-z0-9_-]{20}"\}$/.test(text));
  peer.send('42/fixed,7["room:join",{"roomId":"nowhere"}]');
  const pair = [await peer.next("error"), await peer.next("acknowledgement")].sort();
  like(pair, ['42/fixed,["error",{"message":"Failed to join room"}]', '43/fixed,7[{"success":false,"error":{"message":"Failed to join room"}}]']);
  peer.send("41/fixed,");
  peer.send("41");
  peer.socket.terminate();
});

check("packets that the protocol forbids end the connection", async () => {
  const connected = "40" + JSON.stringify({ token: token("ann") });
  const bad = [
    ['42["x"]'], ["41"], [connected, connected], ["44{}"], ["40[]"], ['40"x"'], ["47"], ["4"], ["9"], ["hello"],
    [connected, "42{}"], [connected, "42[]"], [connected, "42[null]"], [connected, '42[{"a":1}]'], [connected, '42["connect"]'], [connected, '42["disconnect"]'], [connected, '42["newListener"]'],
    [connected, "45[\"x\"]"], [connected, '451-["x",{"_placeholder":true,"num":0}]', '42["x"]'], [connected, '4599-["x"]'],
  ];
  const outcomes = await Promise.all(bad.map(async (packets) => {
    const peer = await session();
    for (const [place, packet] of packets.entries()) {
      peer.send(packet);
      // What follows shall find the namespace joined.
      if (packet === connected && place + 1 < packets.length) await peer.next("connect");
    }
    const left = await within(peer.closing, "the end").catch(() => peer.socket.terminate() ?? "open");
    return left === "open" ? packets.map((packet) => packet.slice(0, 40)).join(" then ") : null;
  }));
  const open = outcomes.filter((each) => each !== null);
  ok(open.length === 0, `the connection stays open after: ${open.join(" | ")}`);
});

check("an acknowledgement nobody asked for and an event nobody knows are tolerated", async () => {
  const ann = await enter(fresh("ann"));
  ann.socket.io.engine.write('377["stray"]');
  ann.tell("no:such:event", { x: 1 });
  ann.tell("no:such:event", Buffer.from([1, 2, 3]), Buffer.alloc(0));
  ok((await ann.ask("room:join", { roomId: fresh("room") })).success, "still there");
  await ann.end();
});

check("handshakes that are none: 400", async () => {
  for (const path of ["/socket.io/?EIO=4&transport=odd", "/socket.io/?EIO=4", "/socket.io/?transport=websocket", "/socket.io/?EIO=3&transport=websocket", "/socket.io/?EIO=4&transport=websocket&sid=AAAAAAAAAAAAAAAAAAAA"]) {
    const answer = await refused(path);
    ok(answer.status === 400, `${path}: ${answer.status}`);
  }
});

check("reconnecting gives a new socket that works", async () => {
  const socket = io(`http://127.0.0.1:${PORT}/`, { transports: ["websocket"], forceNew: true, reconnectionDelay: 50, auth: { token: token("ann") } });
  await within(new Promise((resolve) => socket.once("connect", resolve)), "connect");
  const first = socket.id;
  socket.io.engine.close();
  await within(new Promise((resolve) => socket.once("connect", resolve)), "reconnect");
  ok(socket.id !== first, "a new id");
  const answer = await within(new Promise((resolve) => socket.emit("room:join", { roomId: "again" }, resolve)), "an answer");
  ok(answer.success === true, "works");
  socket.disconnect();
});

check("the query's token is not shown to others", async () => {
  const { ann, bob, roomId } = await pair();
  const secret = token(fresh("carol"));
  const carol = await visit("/", { query: { token: secret } }, "carol");
  await join(carol, roomId, 3);
  await sleep(100);
  ok(![...ann.clear(), ...bob.clear()].some((event) => JSON.stringify(event).includes(secret)), "a token was relayed");
  await ends(ann, bob, carol);
});

await run();
