// One fleet of two uringcast hosts and two Socket.IO servers of Node on one Redis, with clients on each of the four: what is said on one is
// heard on all, once. `ADAPTER` says which of Node's adapters is used: classic, specific (classic, with answers on channels of their own), sharded
// or streams.
import { createServer, request } from "node:http";
import { isDeepStrictEqual } from "node:util";
import { check, http, like, need, ok, run, sleep, token, until, visit, within } from "./lib.mjs";

const { ADAPTER, REDIS_URL, ADMIN_TOKEN } = process.env;
const PORTS = process.env.PORTS.split(",").map(Number);
const CONTROLS = process.env.CONTROLS.split(",").map(Number);
// The streams adapter asks and answers as the sharded one does.
const IS_SHARDED = ADAPTER === "sharded" || ADAPTER === "streams";

const { Server } = need("socket.io");
const { createAdapter, createShardedAdapter } = need("@socket.io/redis-adapter");
const { createAdapter: createStreamsAdapter } = need("@socket.io/redis-streams-adapter");
const { Emitter } = need("@socket.io/redis-emitter");
const { createClient } = need("redis");

// ---- servers

const closing = [];

async function connectRedis() {
  const client = createClient({ url: REDIS_URL });
  client.on("error", () => {});
  await client.connect();
  closing.push(() => client.destroy());
  return client;
}

/** A server of Node. Its clients enter and leave rooms, and talk to others, as they ask. */
async function nodeServer(name, key = "socket.io") {
  const [pub, sub] = [await connectRedis(), await connectRedis()];
  const adapter = ADAPTER === "streams"
    ? createStreamsAdapter(pub, { streamName: key, channelPrefix: key })
    : IS_SHARDED
    ? createShardedAdapter(pub, sub, { channelPrefix: key })
    : createAdapter(pub, sub, { key, publishOnSpecificResponseChannel: ADAPTER === "specific", requestsTimeout: 3_000 });
  const web = createServer();
  const io = new Server(web, { adapter });
  for (const namespace of ["/", "/guests", "/notify"]) {
    io.of(namespace).on("connection", (socket) => {
      socket.data = { of: name };
      socket.on("room:join", ({ roomId }, ack) => { socket.join(roomId); ack({ success: true }); });
      socket.on("room:leave", ({ roomId }, ack) => { socket.leave(roomId); ack({ success: true }); });
    });
  }
  await new Promise((resolve) => web.listen(0, "127.0.0.1", resolve));
  closing.push(() => { io.disconnectSockets(true); web.close(); web.closeAllConnections(); });
  return { name, io, port: web.address().port };
}

const [n1, n2] = [await nodeServer("n1"), await nodeServer("n2")];
const stranger = await nodeServer("stranger", "another");

/** A call of the admin API of one of our hosts. */
async function admin(host, method, path, body) {
  const headers = { authorization: `Bearer ${ADMIN_TOKEN}` };
  const answer = await http(CONTROLS[host], method, path, { headers, body: body && JSON.stringify(body) });
  try { answer.json = JSON.parse(answer.text); } catch { /* no JSON */ }
  return answer;
}
const emit = async (host, body) => {
  const { status, json, text } = await admin(host, "POST", "/v1/emit", { endpoint: "rooms", ...body });
  ok(status === 200, `emit answered ${status} ${text}`);
  return json;
};

// ---- clients

/** A client of one of the four hosts and what it has heard since it was last asked, by the event's name. */
class Client {
  heard = [];
  isMute = false;
  constructor(name, guest) {
    Object.assign(this, { name, guest, socket: guest.socket, ended: guest.ended });
    guest.socket.onAny((event, ...args) => {
      const ack = typeof args.at(-1) === "function" ? args.pop() : undefined;
      this.heard.push([event, ...args]);
      if (ack && !this.isMute) ack(args[0] instanceof Buffer ? Buffer.concat([args[0], Buffer.from(this.name)]) : `${this.name} has ${args[0]}`, "more");
    });
  }
  get id() { return this.socket.id; }
  count(event) { return this.heard.filter(([name]) => name === event).length; }
  async join(...rooms) {
    for (const roomId of rooms) like((await this.guest.ask("room:join", { roomId })).success, true, `${this.name} joins ${roomId}`);
    return this;
  }
}

const everywhere = [PORTS[0], PORTS[1], n1.port, n2.port];
const hosts = ["u1", "u2", "n1", "n2"];

/** A client of a host. On ours its user has its name. */
async function client(host, name, namespace = "/") {
  const auth = namespace === "/guests" ? undefined : { token: token(`user-${name}`, { email: `${name}@example.com`, name: `The ${name}` }) };
  return new Client(name, await visit(namespace, { port: everywhere[hosts.indexOf(host)], auth, query: { of: name } }, name));
}

const [a, a2, b, c, d] = [await client("u1", "a"), await client("u1", "a2"), await client("u2", "b"), await client("n1", "c"), await client("n2", "d")];
const all = [a, a2, b, c, d];

let serial = 0;
/** A name that no other check uses. */
const fresh = (stem) => `${stem}-${serial += 1}`;

/** Waits until what each of the four hosts has said before has arrived everywhere. */
async function fence(listeners = all, namespace = "/") {
  const endpoint = namespace === "/" ? "rooms" : namespace.slice(1);
  const event = fresh("fence");
  n1.io.of(namespace).emit(event);
  n2.io.of(namespace).emit(event);
  for (const host of [0, 1]) await admin(host, "POST", "/v1/emit", { endpoint, to: { all: true }, event });
  for (const one of listeners) await until(() => one.count(event) === 4, `${one.name} hears all of ${event}, not ${one.count(event)}`);
}

/** Fails unless exactly these have heard an event, each once and like this. */
async function heardBy(event, listeners, args, { among = all, namespace } = {}) {
  for (const one of listeners) await until(() => one.count(event) > 0, `${one.name} hears ${event}`);
  await fence(among.filter((one) => one.socket.connected), namespace);
  for (const one of among) {
    const heard = one.heard.filter(([name]) => name === event);
    const wanted = listeners.includes(one) ? [[event, ...args]] : [];
    if (!isDeepStrictEqual(heard, wanted)) throw new Error(`${one.name} has heard ${JSON.stringify(heard).slice(0, 500)}, not ${JSON.stringify(wanted).slice(0, 500)}`);
  }
}

/** Says something by all hosts' ways, one after the other, and wants it heard by the same. */
async function fromNode(stem, listeners, say, args = [1]) {
  for (const server of [n1, n2]) {
    const event = fresh(`${stem}-${server.name}`);
    say(server.io, event, ...args);
    await heardBy(event, listeners, args);
  }
}

async function fromOurs(stem, listeners, body, args = [1]) {
  for (const host of [0, 1]) {
    const event = fresh(`${stem}-u${host + 1}`);
    const { recipients } = await emit(host, { event, args, ...body });
    await heardBy(event, listeners, args);
    ok(recipients === listeners.length, `${event} had ${recipients} recipients, not ${listeners.length}`);
  }
}

check("all hosts are one fleet", async () => {
  await until(async () => (await n1.io.fetchSockets()).length === 5, "five sockets");
  for (const one of all) await one.join("everyone");
  await a.join("r1", "both");
  await b.join("r2", "both");
  await c.join("r1", "both");
  await d.join("r2", "both");
  // In the sharded form a room's channel is listened to from a moment after the first has entered.
  if (IS_SHARDED) await sleep(300);
  await fence();
});

check("Node's broadcasts reach everybody once", async () => {
  await fromNode("all", all, (io, event, ...args) => io.emit(event, ...args), [1, "2", { 3: [true, null, 1.5, -7, 123456789012] }, "\u2028é😀"]);
  await fromNode("nothing", all, (io, event) => io.emit(event), []);
  await fromNode("room", [a, c], (io, event, ...args) => io.to("r1").emit(event, ...args));
  await fromNode("rooms", [a, b, c, d], (io, event, ...args) => io.to(["r1", "r2", "both"]).emit(event, ...args));
  await fromNode("except", [a2, b, d], (io, event, ...args) => io.except("r1").emit(event, ...args));
  await fromNode("room but", [b, d], (io, event, ...args) => io.to("both").except("r1").emit(event, ...args));
  await fromNode("one", [a], (io, event, ...args) => io.to(a.id).emit(event, ...args));
  await fromNode("but one", [a, a2, c, d], (io, event, ...args) => io.except(b.id).emit(event, ...args));
  await fromNode("volatile", all, (io, event, ...args) => io.volatile.emit(event, ...args));
  await fromNode("plain", all, (io, event, ...args) => io.compress(false).emit(event, ...args));
  const local = fresh("local");
  n1.io.local.emit(local, 1);
  await heardBy(local, [c], [1]);
  // What its name looks like as a pattern or a channel.
  for (const room of ["raum ü😀", "a#b", "star*[x]?", "42"]) {
    for (const one of [a, c]) await one.join(room);
    if (IS_SHARDED) await sleep(200);
    await fromNode("named", [a, c], (io, event, ...args) => io.to(room).emit(event, ...args));
    await fromOurs("named", [a, c], { to: { rooms: [room] } });
  }
});

check("a room of a number is its text elsewhere", async () => {
  await b.join("7");
  n2.io.sockets.sockets.get(d.id).join(7);
  if (IS_SHARDED) await sleep(200);
  const [first, second] = [fresh("number"), fresh("number")];
  n1.io.to(7).emit(first, 1);
  await heardBy(first, [b, d], [1]);
  if (!IS_SHARDED) {
    // Node's own rooms of numbers are no rooms of texts, so that d hears it from its server alone by the number.
    n1.io.to("7").emit(second, 1);
    await heardBy(second, [b], [1]);
  }
});

check("what a client of Node says to others is heard", async () => {
  const socket = n1.io.sockets.sockets.get(c.id);
  const [broadcast, to, own] = [fresh("broadcast"), fresh("to"), fresh("own")];
  socket.broadcast.emit(broadcast, 1);
  await heardBy(broadcast, [a, a2, b, d], [1]);
  socket.to("both").emit(to, 1);
  await heardBy(to, [a, b, d], [1]);
  socket.emit(own, 1);
  await heardBy(own, [c], [1]);
});

check("what a client of ours says to others is heard", async () => {
  const said = fresh("said");
  const { message } = await a.guest.ask("message", { roomId: "everyone", content: said });
  const wanted = (heard) => heard.filter(([event, it]) => event === "message" && it.content === said);
  for (const one of all) await until(() => wanted(one.heard).length > 0, `${one.name} hears the message`);
  await fence();
  for (const one of all) like(wanted(one.heard), [["message", message]], one.name);
  for (const one of all) one.heard = [];
  const data = Buffer.from([0, 127, 128, 255]);
  await b.guest.ask("document:edit", { roomId: "everyone", changes: { list: [data, "x"] }, cursor: { at: Buffer.alloc(0) } });
  for (const one of all) {
    if (one !== b) await until(() => one.count("document:edit") > 0, `${one.name} hears of the edit`);
  }
  await fence();
  for (const one of all) {
    const [edit, more] = one.heard.filter(([event]) => event === "document:edit");
    ok(!more && (one === b) === !edit, `${one.name} hears of the edit once, and not its author`);
    if (edit) ok(edit[1].changes.list[0].equals(data) && edit[1].cursor.at.length === 0, `${one.name} has the bytes`);
  }
});

check("binary data passes", async () => {
  const args = [Buffer.from([1, 2, 255]), { inside: [Buffer.alloc(0), { more: Buffer.from("é") }], text: "x" }];
  await fromNode("binary", all, (io, event) => io.emit(event, ...args), args);
  await fromNode("binary room", [a, c], (io, event) => io.to("r1").emit(event, ...args), args);
  const large = [Buffer.alloc(700_000, 7)];
  await fromNode("large", all, (io, event) => io.emit(event, ...large), large);
});

check("Node's broadcasts are acknowledged by everybody", async () => {
  const answers = (list, what) => list.map((one) => `${one.name} has ${what}`).sort();
  for (const { io } of [n1, n2]) {
    like((await io.timeout(5_000).emitWithAck(fresh("ask"), 1)).sort(), answers(all, 1));
    like((await io.to("r1").timeout(5_000).emitWithAck(fresh("ask"), 2)).sort(), answers([a, c], 2));
    like((await io.to(b.id).timeout(5_000).emitWithAck(fresh("ask"), 3)).sort(), answers([b], 3));
    like(await io.to("nobody").timeout(5_000).emitWithAck(fresh("ask"), 4), []);
    const binary = await io.to("r2").timeout(5_000).emitWithAck(fresh("ask"), Buffer.from([0, 255]));
    like(binary.map((data) => data.subarray(2).toString()).sort(), ["b", "d"]);
    ok(binary.every((data) => Buffer.isBuffer(data) && data[1] === 255), "bytes");
    a2.isMute = c.isMute = true;
    const partial = await new Promise((resolve) => io.timeout(700).emit(fresh("ask"), 5, (fault, some) => resolve({ fault, some })));
    a2.isMute = c.isMute = false;
    ok(partial.fault instanceof Error, "not all have answered");
    like(partial.some.sort(), answers([a, b, d], 5));
  }
});

check("sockets are found from everywhere", async () => {
  for (const { io, name } of [n1, n2]) {
    const sockets = await io.fetchSockets();
    like(sockets.map((socket) => socket.id).sort(), all.map((one) => one.id).sort(), name);
    const found = sockets.find((socket) => socket.id === a.id);
    like(found.data, { userId: "user-a", username: "The a", email: "a@example.com" });
    ok([a.id, "everyone", "r1", "both", "\u0001u:user-a"].every((room) => found.rooms.has(room)), `rooms ${[...found.rooms]}`);
    const { handshake } = found;
    like(handshake.query, { of: "a", EIO: "4", transport: "websocket" });
    ok(handshake.address === "127.0.0.1" && Math.abs(Date.now() - handshake.issued) < 300_000, "address and time");
    ok(new Date(handshake.time).getTime() === Math.floor(handshake.issued / 1000) * 1000, `time ${handshake.time}`);
    like([handshake.headers, handshake.auth, handshake.url], [{}, {}, "/socket.io/?of=a&EIO=4&transport=websocket"]);
    ok(!JSON.stringify(sockets.filter(({ id }) => id === a.id || id === b.id).map((socket) => socket.handshake)).includes("eyJ"), "no token");
    const of = async (operator) => (await operator.fetchSockets()).map((socket) => socket.id).sort();
    like(await of(io.in("r1")), [a.id, c.id].sort());
    like(await of(io.in("both").except("r1")), [b.id, d.id].sort());
    like(await of(io.in(b.id)), [b.id]);
    like(await of(io.in("nobody")), []);
  }
});

if (!IS_SHARDED) {
  check("the rooms of all hosts are found", async () => {
    const rooms = await n1.io.of("/").adapter.allRooms();
    for (const room of ["everyone", "r1", "r2", "both", "7", "\u0001u:user-a", ...all.map((one) => one.id)]) ok(rooms.has(room), room);
    ok(!rooms.has(""), "and no others");
  });
}

check("Node's servers move sockets of all hosts", async () => {
  for (const { io, port } of [n1, n2]) {
    const [room, event, later] = [fresh("moved"), fresh("to moved"), fresh("to moved")];
    io.in("r1").socketsJoin(room);
    io.in(b.id).socketsJoin(room);
    if (IS_SHARDED) {
      // There a room's channel may be listened to only a moment later, as between servers of Node.
      await until(async () => (await io.in(room).fetchSockets()).length === 3, "three moved");
      await sleep(200);
    }
    io.to(room).emit(event, 1);
    // A server of Node moves its own sockets when its own request comes back to it, so that they miss what it says at once.
    const others = all.filter((one) => IS_SHARDED || one.socket.io.opts.port !== String(port));
    await heardBy(event, [a, b, c].filter((one) => others.includes(one)), [1], { among: others });
    like((await io.in(room).fetchSockets()).map((socket) => socket.id).sort(), [a.id, b.id, c.id].sort());
    io.in("r1").except("r2").socketsLeave(room);
    await until(async () => (await io.in(room).fetchSockets()).length === 1, "two left");
    io.to(room).emit(later, 1);
    await heardBy(later, [b], [1]);
    const [first] = await io.in(b.id).fetchSockets();
    first.leave(room);
    await until(async () => (await io.in(room).fetchSockets()).length === 0, "all left");
    const mine = fresh("mine");
    first.emit(mine, 1);
    await heardBy(mine, [b], [1]);
  }
});

/** Follows one of our hosts' `server:event`s. */
async function follow(host) {
  const events = [];
  const path = "/v1/events?types=server:event";
  const asked = request({ host: "127.0.0.1", port: CONTROLS[host], path, headers: { authorization: `Bearer ${ADMIN_TOKEN}` } });
  const response = await within(new Promise((resolve, reject) => { asked.on("response", resolve); asked.on("error", reject); asked.end(); }), "the stream");
  let rest = "";
  response.setEncoding("utf8").on("error", () => {}).on("data", (text) => {
    const blocks = (rest + text).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = /^data: (.*)$/m.exec(block);
      if (data) events.push(JSON.parse(data[1]));
    }
  });
  return { events, end: () => response.destroy() };
}

check("what a server says to the servers is heard by programs, once a host", async () => {
  const followers = [await follow(0), await follow(1)];
  const heard = [];
  n2.io.on("hello", (...args) => heard.push(args));
  n1.io.serverSideEmit("hello", 1, { a: "b" });
  for (const one of followers) {
    await until(() => one.events.length > 0, "the event");
    const { endpoint, connection, user, event, args } = one.events[0];
    like({ endpoint, connection, user, event, args }, { endpoint: "rooms", connection: null, user: null, event: "hello", args: [1, { a: "b" }] });
  }
  n2.io.on("question", (value, ack) => ack(value + 1));
  like((await n1.io.serverSideEmitWithAck("question", 7)).sort(), [8, null, null]);
  n1.io.of("/guests").serverSideEmit("elsewhere", Buffer.from([1]));
  for (const one of followers) await until(() => one.events.length === 3, "three events");
  for (const one of followers) {
    like(one.events.map((it) => [it.endpoint, it.event, it.args]), [["rooms", "hello", [1, { a: "b" }]], ["rooms", "question", [7]], ["guests", "elsewhere", [{ type: "Buffer", data: [1] }]]]);
    one.end();
  }
  like(heard, [[1, { a: "b" }]]);
});

if (!IS_SHARDED) {
  check("an emitter reaches everybody", async () => {
    const emitter = new Emitter(await connectRedis());
    const by = async (stem, listeners, say, args = [1]) => {
      const event = fresh(stem);
      say(event, ...args);
      await heardBy(event, listeners, args);
    };
    await by("emitter", all, (event, ...args) => emitter.emit(event, ...args), [1, { b: Buffer.from([1, 2]) }]);
    await by("emitter room", [a, c], (event, ...args) => emitter.to("r1").emit(event, ...args));
    await by("emitter rooms", [a, b, c, d], (event, ...args) => emitter.to(["r1", "r2"]).emit(event, ...args));
    await by("emitter except", [a2, b, d], (event, ...args) => emitter.except("r1").emit(event, ...args));
    await by("emitter one", [b], (event, ...args) => emitter.to(b.id).volatile.emit(event, ...args));
    const room = fresh("moved");
    emitter.in("both").socketsJoin(room);
    await by("emitter moved", [a, b, c, d], (event, ...args) => emitter.to(room).emit(event, ...args));
    emitter.in("r1").socketsLeave(room);
    await by("emitter moved", [b, d], (event, ...args) => emitter.to(room).emit(event, ...args));
    const follower = await follow(1);
    emitter.serverSideEmit("from the emitter", 5);
    await until(() => follower.events.length > 0, "the event");
    like([follower.events[0].event, follower.events[0].args], ["from the emitter", [5]]);
    follower.end();
    const short = await client("u2", "short");
    emitter.in(short.id).disconnectSockets(true);
    like(await within(short.ended, "the end"), "io server disconnect");
  });
}

check("our back end's emits reach everybody, and are counted", async () => {
  await fromOurs("http all", all, { to: { all: true } }, [1, "2", { 3: [true] }]);
  await fromOurs("http room", [a, c], { to: { rooms: ["r1"] } });
  await fromOurs("http rooms", [a, b, c, d], { to: { rooms: ["r1", "r2", "both"] } });
  await fromOurs("http except", [b, d], { to: { rooms: ["both"] }, except: [a.id, c.id] });
  await fromOurs("http all but", [a, b, d], { to: { all: true }, except: [a2.id, c.id] });
  await fromOurs("http ones", [b, d], { to: { connections: [b.id, d.id] } });
  await fromOurs("http user", [a2], { to: { users: ["user-a2"] } });
  await fromOurs("http volatile", all, { to: { all: true }, volatile: true });
  await fromOurs("http nobody", [], { to: { rooms: ["nobody"] } });
  await fromOurs("http none", [], { to: { connections: [] } });
  // On Node's servers a user is whoever is in his room.
  await n2.io.sockets.sockets.get(d.id).join("\u0001u:user-a2");
  if (IS_SHARDED) await sleep(200);
  await fromOurs("http user", [a2, d], { to: { users: ["user-a2"] } });
  n2.io.sockets.sockets.get(d.id).leave("\u0001u:user-a2");
});

check("our back end's emits are acknowledged by everybody", async () => {
  for (const host of [0, 1]) {
    const ack = { timeoutMs: 5_000 };
    like(await emit(host, { to: { all: true }, event: fresh("ask"), data: 1, ack }), { recipients: 5, acks: 5 });
    like(await emit(host, { to: { rooms: ["r2"] }, event: fresh("ask"), data: 1, ack }), { recipients: 2, acks: 2 });
    a.isMute = d.isMute = true;
    like(await emit(host, { to: { all: true }, event: fresh("ask"), data: 1, ack: { timeoutMs: 700 } }), { recipients: 5, acks: 3 });
    a.isMute = d.isMute = false;
  }
});

check("our back end moves and disconnects sockets of all hosts", async () => {
  const room = fresh("put");
  const short = [await client("u2", "short1"), await client("n1", "short2")];
  await a.join(room);
  for (const one of short) {
    const { status, text } = await admin(0, "PUT", `/v1/rooms/${room}/members/${one.id}`);
    ok(status === 200, `put into the room: ${status} ${text}`);
  }
  await until(async () => (await n2.io.in(room).fetchSockets()).length === 3, "three in the room");
  const event = fresh("to put");
  if (IS_SHARDED) await sleep(200);
  const { recipients } = await emit(0, { to: { rooms: [room] }, event, data: 1 });
  like(recipients, 3);
  for (const one of short) await until(() => one.count(event) === 1, `${one.name} hears it`);
  ok((await admin(1, "DELETE", `/v1/rooms/${room}/members/${short[1].id}`)).status === 200, "taken out");
  await until(async () => (await n2.io.in(room).fetchSockets()).length === 2, "two in the room");
  for (const one of short) {
    const { status, text } = await admin(0, "DELETE", `/v1/connections/${one.id}`);
    ok(status === 200, `closed: ${status} ${text}`);
    like(await within(one.ended, `${one.name} ends`), "io server disconnect");
  }
  const third = await client("n2", "short3");
  n2.io.sockets.sockets.get(third.id).join("\u0001u:user-short3");
  if (IS_SHARDED) await sleep(200);
  ok((await admin(1, "DELETE", "/v1/users/user-short3")).status === 200, "the user is closed");
  like(await within(third.ended, "the third ends"), "io server disconnect");
});

check("Node's servers disconnect sockets of all hosts", async () => {
  for (const { io } of [n1, n2]) {
    const room = fresh("short");
    const short = [await client("u1", "s1"), await client("u2", "s2"), await client("n1", "s3"), await client("n2", "s4")];
    for (const one of short) await one.join(room);
    await until(async () => (await io.in(room).fetchSockets()).length === 4, "four in the room");
    io.in(room).except(short[1].id).disconnectSockets();
    for (const one of short) {
      if (one !== short[1]) like(await within(one.ended, `${one.name} ends`), "io server disconnect");
    }
    await until(async () => (await io.in(room).fetchSockets()).length === 1, "one left");
    const [last] = await io.in(room).fetchSockets();
    const engine = short[1].socket.io.engine;
    last.disconnect(true);
    like(await within(short[1].ended, "the last ends"), "io server disconnect");
    await until(() => engine.readyState === "closed", "its transport is closed too");
  }
});

check("another namespace is another world", async () => {
  const guests = [await client("u1", "g1", "/guests"), await client("u2", "g2", "/guests"), await client("n1", "g3", "/guests")];
  for (const one of guests) await one.join("r1");
  if (IS_SHARDED) await sleep(200);
  const [wide, narrow, ours] = [fresh("guests"), fresh("guests"), fresh("guests")];
  n2.io.of("/guests").emit(wide, 1);
  await heardBy(wide, guests, [1], { among: guests, namespace: "/guests" });
  n1.io.of("/guests").to("r1").emit(narrow, Buffer.from([5]));
  await heardBy(narrow, guests, [Buffer.from([5])], { among: guests, namespace: "/guests" });
  like(await emit(1, { endpoint: "guests", to: { rooms: ["r1"] }, event: ours, data: 1 }), { recipients: 3 });
  await heardBy(ours, guests, [1], { among: guests, namespace: "/guests" });
  for (const one of all) ok([wide, narrow, ours].every((event) => one.count(event) === 0), `${one.name} is in another namespace`);
  like((await n2.io.of("/guests").fetchSockets()).length, 3);
  for (const one of guests) await one.guest.end();
});

check("fleets of other names do not mix", async () => {
  const lonely = new Client("lonely", await visit("/", { port: stranger.port }, "lonely"));
  const [theirs, ours] = [fresh("theirs"), fresh("ours")];
  stranger.io.emit(theirs, 1);
  n1.io.emit(ours, 1);
  await heardBy(ours, all, [1]);
  await until(() => lonely.count(theirs) === 1, "the lonely one hears its own");
  ok(all.every((one) => one.count(theirs) === 0) && lonely.count(ours) === 0, "and nobody else");
  like((await stranger.io.fetchSockets()).length, 1);
  await lonely.guest.end();
});

await run(async () => {
  for (const one of all) await one.guest.end();
  for (const close of closing) await close();
});
