// The notify page of the wire contract, line by line, over `socket.io-client`.
import { admin, any, badTokens, bothShards, check, like, ok, run, sleep, token, until, visit, within } from "./lib.mjs";

const fault = (code) => ({ error: any.text, code, timestamp: any.time });
const refusal = (code) => ({ success: false, error: fault(code) });
const INVALID = "INVALID_MESSAGE", FORBIDDEN = "FORBIDDEN", STRANGER = "UNAUTHENTICATED";
let serial = 0;
const fresh = (name) => `${name}-${++serial}`;
const ends = (...guests) => Promise.all(guests.map((guest) => guest.end()));

/** Connected, and nobody yet. */
const stranger = (options = {}) => visit("/notify", options, fresh("stranger"));

/** Connected, and known. */
async function enter(user = fresh("user"), claims = {}) {
  const guest = await visit("/notify", { auth: { token: token(user, claims) } }, user);
  await guest.hear("authenticated", { userId: user, email: claims.email ?? null });
  return guest;
}

async function goes(guest, message, ms) {
  await guest.hear("auth_error", { message: message ?? any.text }, ms);
  ok(await within(guest.ended, `${guest.name} is disconnected`) === "io server disconnect", "by the server");
}

/** Says it with and without an acknowledgement: both are refused with this code. */
async function refuses(guest, event, args, code) {
  like(await guest.ask(event, ...args), refusal(code), `${event} ${JSON.stringify(args).slice(0, 80)}`);
  await guest.hear("error", fault(code));
  guest.tell(event, ...args);
  await guest.hear("error", fault(code));
}

async function place(method, conversation, user, connections) {
  const { status, json } = await admin(method, `/v1/rooms/conversation:${conversation}/users/${user}?endpoint=notify`);
  ok(status === 200, `${method} answered ${status}`);
  like(json, { connections });
}

/** Two members of a fresh conversation, and somebody outside. */
async function company() {
  const conversationId = fresh("conversation"), [ann, bob, eve] = [await enter(), await enter(), await enter()];
  for (const guest of [ann, bob]) await place("PUT", conversationId, guest.name, 1);
  // What was asked of the back end's side takes effect a moment later; there is no answer to wait for.
  const rooms = async (guest) => (await admin("GET", `/v1/connections/${guest.socket.id}`)).json.rooms;
  for (const guest of [ann, bob]) await until(async () => (await rooms(guest)).includes(`conversation:${conversationId}`), `${guest.name} is in`);
  return { conversationId, ann, bob, eve };
}

// ---- connecting

check("without a token it connects, is nobody, and becomes somebody by authenticate", async () => {
  for (const transports of [["websocket"], ["polling"]]) {
    const user = fresh("ann"), guest = await stranger({ transports });
    for (const event of ["typing", "presence:subscribe", "message_read", "anything"]) await refuses(guest, event, [{}], STRANGER);
    like(await guest.ask("authenticate", { token: token(user) }), { success: true });
    await guest.hear("authenticated", { userId: user, email: null });
    const { json } = await admin("GET", `/v1/connections/${guest.socket.id}`);
    ok(json.userId === user && json.rooms.includes(`user:${user}`), JSON.stringify(json));
    await guest.end();
  }
});

check("a good token in the handshake is enough, the email is the claim's", async () => {
  await (await enter(fresh("ann"), { email: "ann@example.com" })).end();
});

check("bad tokens connect, get auth_error, and are disconnected", async () => {
  // Whether an empty one is none or a bad one, the page does not say.
  const { "empty": _, ...bad } = badTokens();
  for (const value of Object.values(bad)) {
    await goes(await stranger({ auth: { token: value } }));
    const guest = await stranger();
    guest.tell("authenticate", { token: value });
    await goes(guest);
  }
  for (const shape of [undefined, null, 7, {}, { token: 7 }]) {
    const guest = await stranger();
    guest.tell("authenticate", shape);
    await goes(guest);
  }
});

check("who says nothing is sent away after 10 s", async () => {
  const since = Date.now(), guest = await stranger();
  await goes(guest, "Authentication timeout", 30_000);
  ok(Date.now() - since > 9_000, `it ended after ${Date.now() - since} ms`);
});

check("a second authenticate makes the time longer, or changes nothing", async () => {
  const exp = Math.floor(Date.now() / 1000) + 2, user = fresh("ann");
  const [long, short] = [await enter(user, { exp }), await enter(user, { exp })];
  for (const bad of [token("somebody-else"), "nonsense", undefined]) {
    like(await short.ask("authenticate", { token: bad }), { success: false, error: { message: any.text } });
    await short.hear("auth_error", { message: any.text });
  }
  like(await long.ask("authenticate", { token: token(user, { email: "a@b" }) }), { success: true });
  await long.hear("authenticated", { userId: user, email: "a@b" });
  await goes(short, "Token expired");
  await sleep(Math.max(0, exp * 1000 + 1_000 - Date.now()));
  like(await long.ask("presence:subscribe", { userIds: [] }), { success: true });
  await long.end();
});

// ---- typing

check("typing goes to the conversation's others, and ends by itself after 5 s", async () => {
  const { conversationId, ann, bob, eve } = await company();
  const told = { userId: ann.name, conversationId, timestamp: any.time };
  for (const isTyping of [true, false, true]) {
    like(await ann.ask("typing", { conversationId, isTyping, userId: "claimed" }), { success: true });
    await bob.hear("typing", { ...told, isTyping });
  }
  const since = Date.now();
  await bob.hear("typing", { ...told, isTyping: false });
  ok(Date.now() - since > 4_000, `it ended after ${Date.now() - since} ms`);
  await refuses(eve, "typing", [{ conversationId, isTyping: true }], FORBIDDEN);
  for (const shape of [undefined, null, 7, {}, { conversationId }, { conversationId, isTyping: 1 }, { conversationId: "", isTyping: true }]) {
    await refuses(ann, "typing", [shape], INVALID);
  }
  await ann.quiet();
  await eve.quiet();
  await ends(ann, bob, eve);
});

check("later connections enter the conversations too, until they are taken out", async () => {
  const { conversationId, ann, bob, eve } = await company();
  // Enough of them that both cores hold some.
  const tabs = await Promise.all(Array.from({ length: 8 }, () => enter(bob.name)));
  await bothShards("notify");
  like(await tabs[0].ask("typing", { conversationId, isTyping: true }), { success: true });
  for (const guest of [ann, bob, ...tabs.slice(1)]) await guest.hear("typing", { userId: bob.name, conversationId, isTyping: true, timestamp: any.time });
  await place("DELETE", conversationId, bob.name, 9);
  await ann.hear("typing", { userId: bob.name, conversationId, isTyping: false, timestamp: any.time });
  const late = await enter(bob.name);
  for (const guest of [bob, ...tabs, late]) await refuses(guest, "typing", [{ conversationId, isTyping: true }], FORBIDDEN);
  for (const path of ["/v1/rooms/a%0ab/users/x?endpoint=notify", "/v1/rooms/r/users/%0a?endpoint=notify", "/v1/rooms/r/users/x?odd=1"]) {
    ok((await admin("PUT", path)).status === 400, path);
  }
  ok((await admin("PUT", "/v1/rooms/r/users/x?endpoint=nothing")).status === 404, "unknown endpoint");
  await ends(ann, bob, eve, late, ...tabs);
});

// ---- presence

check("presence is told now and at each change, once per user, to who asked for it", async () => {
  const watcher = await enter(), other = await enter(), user = fresh("ann");
  like(await watcher.ask("presence:subscribe", { userIds: [user, watcher.name] }), { success: true });
  const heard = [await watcher.next("presence"), await watcher.next("presence")].map(([, told]) => told);
  like(heard.find((told) => told.userId === user), { userId: user, status: "offline", lastSeen: null });
  like(heard.find((told) => told.userId !== user), { userId: watcher.name, status: "online", lastSeen: any.time });
  const [first, second] = [await enter(user), await enter(user)];
  await watcher.hear("presence", { userId: user, status: "online", lastSeen: any.time });
  await first.end();
  await watcher.quiet();
  await second.end();
  const gone = await watcher.hear("presence", { userId: user, status: "offline", lastSeen: any.time });
  like(await other.ask("presence:subscribe", { userIds: [user] }), { success: true });
  await other.hear("presence", gone);
  for (const shape of [undefined, null, {}, { userIds: user }, { userIds: [7] }, { userIds: [""] }, []]) await refuses(other, "presence:subscribe", [shape], INVALID);
  await refuses(other, "presence:subscribe", [{ userIds: Array.from({ length: 101 }, (_, index) => `u${index}`) }], INVALID);
  await ends(watcher, other);
});

// ---- receipts and the rest

check("receipts for what was never sent are refused", async () => {
  const guest = await enter();
  for (const event of ["message_delivered", "message_read"]) {
    await refuses(guest, event, [{ messageId: "m", conversationId: "c" }], FORBIDDEN);
    for (const shape of [undefined, {}, { messageId: "m" }, { conversationId: "c" }, { messageId: {}, conversationId: "c" }]) await refuses(guest, event, [shape], INVALID);
  }
  await guest.end();
});

check("clients enter no rooms, and over the rate they are told so", async () => {
  const guest = await enter();
  for (const event of ["join-room", "room:join", "join"]) guest.tell(event, { room: "user:somebody", roomId: "user:somebody" });
  like(await guest.ask("presence:subscribe", { userIds: [] }), { success: true });
  const { json } = await admin("GET", `/v1/connections/${guest.socket.id}`);
  like(json.rooms, [`user:${guest.name}`]);
  await guest.quiet();
  // A burst that outruns the refill of a token each 10 ms on the slowest machine.
  for (let i = 0; i < 3_000; i += 1) guest.tell("nobody:listens");
  await guest.hear("error", fault("RATE_LIMIT_EXCEEDED"));
  await guest.end();
});

await run();
