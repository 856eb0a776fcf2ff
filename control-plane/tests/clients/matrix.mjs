// One and the same list of checks for every version of socket.io-client and every way it can travel, on three shards. Who is tested talks
// to others of its own kind, to the newest client, and to a bare WebSocket that sees the text itself.
import {
  admin, any, check, everyShard, like, need, ok, oneOrder, open, run, settled, token, TRANSPORTS, until, visit, within,
} from "./lib.mjs";

const SHARDS = 3;

const inAuth = (token) => ({ auth: { token } });
const VERSIONS = [
  { version: "4.8", library: need("socket.io-client").io, major: 4, credentials: inAuth },
  { version: "3.1", library: need("socket.io-client-3").io, major: 3, credentials: inAuth },
  { version: "2.5", library: need("socket.io-client-2"), major: 2, credentials: (token) => ({ query: { token } }) },
];
const ROWS = VERSIONS.flatMap((version) =>
  TRANSPORTS.map((transports) => ({ ...version, transports, label: `${version.version} by ${transports.join(", then ")}` })),
);

let serial = 0;
const fresh = (name) => `${name}-${++serial}`;
const ends = (guests) => Promise.all(guests.map((guest) => guest.end()));

/** A guest of the row's kind, who may still be upgrading. */
const arrive = (row, user, { namespace = "/", ...options } = {}) =>
  visit(namespace, { library: row.library, transports: row.transports, ...row.credentials(token(user, { name: user })), ...options }, user);
const enter = async (row, user, options) => {
  const guest = await arrive(row, user, options);
  await settled(guest);
  return guest;
};
const observer = (user, transports = ["websocket"]) => enter({ ...VERSIONS[0], transports }, user);
const join = async (guest, roomId) => {
  like(await guest.ask("room:join", { roomId }), { success: true, room: { id: roomId, name: roomId, memberCount: Number.isInteger }, history: Array.isArray }, guest.name);
  return guest;
};
/** Guests of the row's kind, in the room and on every shard. */
async function crowd(row, roomId, count = 8) {
  const guests = [];
  for (;;) {
    guests.push(...await Promise.all(Array.from({ length: count }, () => enter(row, fresh("member")))));
    // By chance, eight connections may all have come to two shards.
    if (await everyShard("rooms", SHARDS).then(() => true, () => false)) break;
    ok(guests.length < 100, "a hundred connections, and one shard has none");
  }
  await Promise.all(guests.map((guest) => join(guest, roomId)));
  return guests;
}

// ---- the checks

async function refusals(row) {
  const message = "Invalid authentication token";
  for (const [bad, told] of [[token("eve", { exp: 1 }), message], ["nonsense", message], [undefined, "Authentication token required"]]) {
    const options = { library: row.library, transports: row.transports, ...(bad === undefined ? {} : row.credentials(bad)) };
    const fault = await visit("/", options, "eve").then(() => { throw new Error("eve was let in"); }, (fault) => fault);
    // Engine.IO 3 has the data alone.
    if (row.major > 2) like({ message: fault.message, data: fault.data }, { message: told, data: { message: told } });
    else like(fault, { message: told });
  }
}

async function namespaces(row) {
  const roomId = fresh("room"), user = fresh("ann");
  const ann = await arrive(row, user);
  const enters = (namespace) => new Promise((resolve, reject) => {
    const socket = ann.socket.io.socket(namespace, row.credentials(token(user)));
    socket.once("connect", () => resolve(socket));
    socket.once("connect_error", reject);
    if (row.major === 2) socket.once("error", reject);
  });
  const chat = await within(enters("/chat"), "/chat");
  ok(row.major === 2 || any.sid(chat.id) && chat.id !== ann.socket.id, `ids ${chat.id} and ${ann.socket.id}`);
  const unknown = await within(enters("/nowhere").then(() => { throw new Error("/nowhere was entered"); }, (fault) => fault), "/nowhere");
  ok((unknown.message ?? unknown) === "Invalid namespace", `told ${unknown.message ?? unknown}`);
  like(await within(new Promise((resolve) => chat.emit("join-room", { room: roomId }, resolve)), "chat"), { success: true, room: roomId, memberCount: 1 });
  await join(ann, roomId);
  // One leaves, the other stays.
  chat.disconnect();
  await join(ann, fresh("room"));
  ok(ann.socket.connected && !chat.connected, "one leaves, the other stays");
  await ann.end();
}

async function acknowledgements(row) {
  const roomId = fresh("room");
  const ann = await join(await enter(row, fresh("ann")), roomId), bob = await join(await enter(row, fresh("bob")), roomId);
  const message = { id: any.text, roomId, userId: ann.name, username: ann.name, content: "hi", type: "text", timestamp: any.time };
  const answer = like(await ann.ask("message", { roomId, content: "hi" }), { success: true, message });
  like(await bob.hear("message", message), answer.message);
  like(await ann.ask("message", { roomId: fresh("elsewhere"), content: "hi" }), { success: false, error: { message: "Failed to send message" } });
  // Many at once, each with its own answer.
  const contents = Array.from({ length: 50 }, (_, number) => `${number}`);
  const answers = await Promise.all(contents.map((content) => ann.ask("message", { roomId, content })));
  like(answers.map(({ message }) => message.content), contents);
  for (const content of contents) await bob.hear("message", (told) => told.content === content);
  await ends([ann, bob]);
}

async function acknowledgedEmits(row) {
  const user = fresh("ann"), guests = [await enter(row, user), await enter(row, user), await observer(user)];
  for (const { socket } of guests) socket.on("question", (said, answer) => answer({ heard: said }, null));
  const order = { endpoint: "rooms", to: { users: [user] }, event: "question", data: { n: 1e100, text: "é😀" }, ack: { timeoutMs: 10_000 } };
  const { status, json } = await admin("POST", "/v1/emit", { body: order });
  ok(status === 200, `emit: ${status}`);
  like(json, { recipients: 3, acks: 3 });
  for (const guest of guests) await guest.hear("question", order.data);
  await ends(guests);
}

const bytes = (...expected) => (value) => Buffer.isBuffer(value) && value.equals(Buffer.from(expected));
const many = Buffer.from(Array.from({ length: 200_000 }, (_, at) => (at * 31) % 256));
const CHANGES = {
  "some bytes": [Buffer.from([0, 127, 128, 255]), bytes(0, 127, 128, 255)],
  "nothing at all": [Buffer.alloc(0), bytes()],
  "nested": [{ steps: [{ at: 1.5, data: Buffer.from([7]) }, Buffer.alloc(0)], text: "\u2028" }, { steps: [{ at: 1.5, data: bytes(7) }, bytes()], text: "\u2028" }],
  "ten": [Array.from({ length: 10 }, (_, at) => Buffer.from([at])), Array.from({ length: 10 }, (_, at) => bytes(at))],
  "a large one": [many, (value) => Buffer.isBuffer(value) && value.equals(many)],
};

async function binary(row) {
  const roomId = fresh("room");
  const guests = [await enter(row, fresh("ann")), await enter(row, fresh("bob")), await observer(fresh("eve")), await observer(fresh("joe"), ["polling"])];
  for (const guest of guests) await join(guest, roomId);
  for (const from of guests) {
    for (const [name, [changes, pattern]] of Object.entries(CHANGES)) {
      like(await from.ask("document:edit", { roomId, changes }), { success: true }, name);
      for (const to of guests) if (to !== from) await to.hear("document:edit", { userId: from.name, roomId, changes: pattern });
    }
  }
  await ends(guests);
}

async function roomsAndOrder(row) {
  const roomId = fresh("room"), EACH = 20;
  const members = [...await crowd(row, roomId), await join(await observer(fresh("eve")), roomId)];
  for (const member of members) member.log = [];
  for (const member of members) member.push = ([event, told]) => { if (event === "message") member.log.push(JSON.parse(told.content)); else if (event === "error") throw new Error(told.message); };
  for (let number = 0; number < EACH; number += 1) members.forEach((member, sender) => member.tell("message", { roomId, content: JSON.stringify({ sender, number }) }));
  const total = members.length * EACH;
  await until(() => members.every(({ log }) => log.length >= total), "all messages everywhere");
  oneOrder(members.map(({ log }) => log), members.length, EACH);
  // Who has left hears nothing more, and says nothing.
  const [gone, ann, ...others] = members;
  like(await gone.ask("room:leave", { roomId }), { success: true });
  gone.log = [];
  delete gone.push;
  like(await gone.ask("message", { roomId, content: "{}" }), { success: false, error: { message: "Failed to send message" } });
  await ann.ask("message", { roomId, content: '"after"' });
  await until(() => others.every(({ log }) => log.at(-1) === "after"), "the message after");
  // Whatever was sent to it by mistake would have come before this.
  await join(gone, fresh("room"));
  ok(!gone.clear().some(([event]) => event === "message"), "who has left hears the room");
  await ends(members);
}

async function departures(row) {
  const roomId = fresh("room");
  const ann = await join(await enter(row, fresh("ann")), roomId), bob = await join(await enter(row, fresh("bob")), roomId);
  ann.socket.disconnect();
  ok(await within(ann.ended, "ann's end") === "io client disconnect", "ann leaves by herself");
  await bob.hear("user:left", { userId: ann.name, username: ann.name, roomId, timestamp: any.time });
  const { status } = await admin("DELETE", `/v1/users/${bob.name}`);
  ok(status === 200, `kick: ${status}`);
  const reason = await within(bob.ended, "bob's end");
  ok(reason === "io server disconnect", `bob is told ${reason}`);
  // The client does not come back by itself, but may.
  bob.socket.connect();
  await until(() => bob.socket.connected, "bob's return");
  await join(bob, roomId);
  await bob.end();
}

async function reconnection(row) {
  const ann = await enter(row, fresh("ann"), { reconnection: true, reconnectionDelay: 20, reconnectionDelayMax: 50 });
  const id = ann.socket.id, roomId = fresh("room");
  await join(ann, roomId);
  for (let time = 0; time < 3; time += 1) {
    const before = ann.socket.id;
    ann.socket.io.engine.close();
    await until(() => ann.socket.connected && ann.socket.id !== before, "the reconnection");
    await settled(ann);
  }
  ok(ann.socket.id !== id, "nothing is recovered here");
  like(await ann.ask("message", { roomId, content: "hi" }), { success: false, error: { message: "Failed to send message" } }, "rooms do not come along");
  await join(ann, roomId);
  await ann.end();
}

async function volatility(row) {
  // Version 2 knows it on the server's side only.
  if (row.major === 2) return;
  const ann = await enter(row, fresh("ann"), { reconnection: true, reconnectionDelay: 20, reconnectionDelayMax: 50 });
  const bob = await observer(fresh("bob")), [roomId, kept] = [fresh("room"), fresh("room")];
  await join(ann, roomId);
  await join(bob, roomId);
  // While something is under way it may be dropped; sooner or later one gets through.
  for (let sent = 0, heard = false; !heard; sent += 1) {
    ok(sent < 500, "none of 500 volatile events got through");
    ann.socket.volatile.emit("message", { roomId, content: "now or never" });
    heard = await bob.next("a volatile message", 20).then(([event]) => event === "message", () => false);
  }
  // Until it knows that it is not connected, a client writes into a transport that is closing. What it drops then of what is volatile
  // differs from version to version; what is not volatile waits.
  ann.socket.once("disconnect", () => ann.socket.emit("room:join", { roomId: kept }));
  ann.socket.io.engine.close();
  await within(ann.ended, "the end");
  await until(() => ann.socket.connected, "the reconnection");
  ok((await ann.ask("message", { roomId: kept, content: "hi" })).success === true, "what waited was sent");
  await ends([ann, bob]);
}

async function oversize(row) {
  const roomId = fresh("room"), large = "x".repeat(990_000);
  const [ann, bob] = [await join(await enter(row, fresh("ann")), roomId), await join(await observer(fresh("bob")), roomId)];
  like(await ann.ask("document:edit", { roomId, changes: large }), { success: true });
  await bob.hear("document:edit", { userId: ann.name, roomId, changes: large });
  ann.tell("document:edit", { roomId, changes: "x".repeat(1_000_001) });
  const reason = await within(ann.ended, "the end");
  // 413 is an error to the client, and 1009 an end. By polling it hears of both: the answer to what it sent, and of the poll that waits.
  ok(reason === "transport close" || !row.transports.includes("websocket") && reason === "transport error", `ended by ${reason}`);
  await bob.hear("user:left", (told) => told.userId === ann.name, 40_000);
  ok(!bob.clear().some(([event]) => event === "document:edit"), "it was relayed all the same");
  like(await bob.ask("message", { roomId, content: "still here" }), (answer) => answer.success === true);
  await bob.end();
}

// What others write and a JSON library changes when it reads and writes again.
const TEXTS = ["12345678901234567890", "-0", "1e100", "1E+2", "0.10", "1.0", '"\\u00e9\\/"', '"\\ud83d\\ude00 é😀\u2028"', '{"a":1,"a":2}', '{"":[{}],"__proto__":null}', '"\\ud800"'];
const VALUES = [1e21, 1e100, 2 ** 53 + 2, 5e-324, -1.5, "\u0000\u001e\u007f\ufeff\u2028\u2029", "é😀\ud800", '"\\', "2probe", "42[\"message\"]", [[], {}, [null]], { 1: 1, constructor: 2 }];

async function texts(row) {
  const roomId = fresh("room"), ann = await join(await enter(row, fresh("ann")), roomId);
  const bare = await open(`/socket.io/?EIO=4&transport=websocket`, { name: "bare", packets: true });
  const says = async (start) => { for (;;) { const packet = await bare.next(start); if (packet.startsWith(start)) return packet; } };
  bare.send(`40${JSON.stringify({ token: token("bare") })}`);
  await says("40");
  bare.send(`420["room:join",${JSON.stringify({ roomId })}]`);
  await says("430");
  for (const text of TEXTS) {
    bare.send(`42["document:edit",{"roomId":"${roomId}","changes":${text}}]`);
    await ann.hear("document:edit", { userId: "bare", roomId, changes: JSON.parse(text) });
  }
  for (const value of VALUES) {
    like(await ann.ask("document:edit", { roomId, changes: value }), { success: true });
    const expected = `42["document:edit",{"userId":"${ann.name}","roomId":"${roomId}","changes":${JSON.stringify(value)}}]`;
    const packet = await says('42["document:edit"');
    ok(packet === expected, `${packet}, not ${expected}`);
  }
  // From bare to bare, the text itself.
  const other = await open(`/socket.io/?EIO=4&transport=websocket`, { name: "other", packets: true });
  other.send(`40${JSON.stringify({ token: token("other") })}`);
  other.send(`420["room:join",${JSON.stringify({ roomId })}]`);
  while (!(await other.next("430")).startsWith("430"));
  for (const text of TEXTS) {
    other.send(`42["document:edit",{"roomId":"${roomId}","changes":${text}}]`);
    const packet = await says('42["document:edit"');
    ok(packet.includes(`"changes":${text}}`), `${packet} lacks ${text}`);
  }
  await ends([ann, bare, other]);
}

const CHECKS = { refusals, namespaces, acknowledgements, acknowledgedEmits, binary, roomsAndOrder, departures, reconnection, volatility, oversize, texts };
const words = (name) => name.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
for (const row of ROWS) for (const [name, body] of Object.entries(CHECKS)) check(`${row.label}: ${words(name)}`, () => body(row));

await run();
