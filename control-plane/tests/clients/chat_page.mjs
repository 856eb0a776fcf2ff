// The chat page of the wire contract, line by line, over `socket.io-client`.
import { any, badTokens, bothShards, check, like, ok, run, sleep, token, unwelcome, visit } from "./lib.mjs";

const INVALID = "INVALID_MESSAGE", FORBIDDEN = "AUTHORIZATION_FAILED", NO_ROOM = "INVALID_ROOM";
const fault = (code, more = {}) => ({ code, message: any.text, timestamp: any.time, ...more });
const refusal = (code) => ({ success: false, error: fault(code) });
const noEntry = (room, code) => ({ success: false, room, memberCount: 0, error: fault(code) });
const messageId = (value) => typeof value === "string" && value.startsWith("msg_") && any.uuid7(value.slice(4));

const enter = (user, claims = {}, namespace = "/chat") => visit(namespace, { auth: { token: token(user, claims) } }, user);
const ends = (...guests) => Promise.all(guests.map((guest) => guest.end()));
let serial = 0;
const fresh = (name) => `${name}-${++serial}`;

async function join(guest, room, memberCount = 1) {
  const joined = { success: true, room, memberCount };
  like(await guest.ask("join-room", { room }), joined, `${guest.name} joins`);
  await guest.hear("room-joined", joined);
}

/** Two members of a fresh room, and somebody outside. */
async function company() {
  const room = fresh("room");
  const [ann, bob, eve] = [await enter(fresh("ann")), await enter(fresh("bob")), await enter(fresh("eve"))];
  await join(ann, room);
  await join(bob, room, 2);
  return { room, ann, bob, eve };
}

/** Says it with and without an acknowledgement: both are refused with this code on this event. */
async function refuses(guest, event, args, code, { on = "error", ack = refusal(code) } = {}) {
  const what = `${event} ${JSON.stringify(args).slice(0, 80)}`;
  like(await guest.ask(event, ...args), ack, what);
  await guest.hear(on, fault(code));
  guest.tell(event, ...args);
  await guest.hear(on, fault(code));
}

// ---- connecting

check("connect errors carry the error object, as the message's text and as data", async () => {
  // Whether an empty one is none or a bad one, the page does not say.
  const { "empty": _, ...bad } = badTokens();
  const required = "Authentication token required", invalid = "Invalid authentication token";
  for (const [why, auth, message] of [["no token", {}, required], ...Object.entries(bad).map(([why, token]) => [why, { token, userId: "eve" }, invalid])]) {
    const error = await unwelcome("/chat", { auth }, why);
    const expected = fault("AUTHENTICATION_FAILED", { message });
    like(error.data, expected, `${why}: data`);
    like(JSON.parse(error.message), error.data, `${why}: message`);
  }
});

check("the user is the token's; without tokens the handshake's, else the socket", async () => {
  const ann = await visit("/chat", { auth: { token: token("real-ann"), userId: "claimed", metadata: { device: "mobile" } } }, "ann");
  const bob = await enter(fresh("bob"));
  ann.tell("message", { to: bob.socket.id, content: "who", from: "claimed" });
  await bob.hear("message", { id: messageId, from: "real-ann", to: bob.socket.id, content: "who", type: "text", timestamp: any.time });
  const said = await visit("/lobby", { auth: { userId: "said" } }, "said"), unsaid = await visit("/lobby", {}, "unsaid");
  said.tell("typing-start", {});
  await unsaid.hear("typing-start", { userId: "said", isTyping: true, timestamp: any.time });
  unsaid.tell("typing-start", {});
  await said.hear("typing-start", { userId: unsaid.socket.id, isTyping: true, timestamp: any.time });
  await ends(ann, bob, said, unsaid);
});

// ---- rooms

check("join-room counts connections, leave-room always succeeds, and nobody else hears of it", async () => {
  const { room, ann, bob, eve } = await company();
  const tab = await enter(ann.name);
  await join(tab, room, 3);
  await join(tab, room, 3);
  for (const _ of [1, 2]) {
    like(await tab.ask("leave-room", { room }), { success: true, room });
    await tab.hear("room-left", { success: true, room });
  }
  await bob.end();
  await sleep(200);
  await join(ann, room, 1);
  for (const guest of [ann, eve]) ok(!guest.clear().some(([event]) => event.startsWith("room")), `${guest.name} heard of the others' rooms`);
  await ends(ann, eve, tab);
});

check("rooms that are none", async () => {
  const [ann, bob] = [await enter(fresh("ann")), await enter(fresh("bob"))];
  for (const room of ["", "x".repeat(256), "a\u007fb", "a\nb", bob.socket.id, ann.socket.id]) {
    await refuses(ann, "join-room", [{ room }], NO_ROOM, { on: "room-error", ack: noEntry(room, NO_ROOM) });
  }
  for (const said of [{}, { room: 7 }, { room: null }, [], "room", 7]) {
    await refuses(ann, "join-room", [said], NO_ROOM, { on: "room-error", ack: noEntry("", NO_ROOM) });
    await refuses(ann, "leave-room", [said], NO_ROOM, { on: "room-error" });
  }
  await ends(ann, bob);
});

// ---- messages

check("message reaches the room's others with the server's id, from and timestamp", async () => {
  const { room, ann, bob, eve } = await company();
  const told = { id: messageId, from: ann.name, room, content: "hi ü 😀", type: "text", timestamp: any.time };
  const ack = await ann.ask("message", { from: "somebody else", room, content: "hi ü 😀", id: "mine", timestamp: 0 });
  like(ack, { success: true, id: messageId, timestamp: any.time });
  like(await bob.hear("message", told), { ...told, id: ack.id, timestamp: ack.timestamp });
  for (const type of ["text", "image", "file", "notification"]) {
    ann.tell("message", { room, content: type, type, metadata: { nested: [1, { x: null }] } });
    await bob.hear("message", { ...told, content: type, type, metadata: { nested: [1, { x: null }] } });
  }
  await ann.deaf("message");
  await eve.deaf("message");
  await ends(ann, bob, eve);
});

check("message to a socket, to a user's sockets, to nobody, to all others", async () => {
  const user = fresh("bob");
  // Enough of them that both cores hold some.
  const tabs = await Promise.all(Array.from({ length: 8 }, () => enter(user)));
  const ann = await enter(fresh("ann"));
  await bothShards("chat");
  for (const tab of tabs) {
    ann.tell("message", { to: tab.socket.id, content: "one" });
    await tab.hear("message", { id: messageId, from: ann.name, to: tab.socket.id, content: "one", type: "text", timestamp: any.time });
  }
  for (const tab of tabs) await tab.deaf("message");
  for (const to of [user, undefined]) {
    ok((await ann.ask("message", { to, content: "several" })).success === true, "sent");
    for (const tab of tabs) await tab.hear("message", (message) => message.content === "several" && message.to === to);
    for (const tab of tabs) await tab.deaf("message", 20);
  }
  like(await ann.ask("message", { to: fresh("nobody"), content: "x" }), { success: true, id: messageId, timestamp: any.time });
  await ann.deaf("message");
  await ends(ann, ...tabs);
});

check("messages refused: outside of the room, wrong shapes, type system", async () => {
  const { room, ann, bob, eve } = await company();
  await refuses(eve, "message", [{ room, content: "x" }], FORBIDDEN);
  const shapes = [{}, null, 7, "x", [], { room }, { room, content: 7 }, { room: "", content: "x" }, { room: 7, content: "x" }, { to: "", content: "x" },
    { to: {}, content: "x" }, { room, content: "x", type: "system" }, { room, content: "x", type: "odd" }, { room, content: "x", type: 7 }];
  for (const shape of shapes) await refuses(ann, "message", [shape], INVALID);
  await bob.deaf("message");
  await ends(ann, bob, eve);
});

check("require_membership = false lets outsiders send to a room", async () => {
  const room = fresh("room"), [ann, bob] = [await visit("/lobby", {}, "ann"), await visit("/lobby", {}, "bob")];
  await join(bob, room);
  ok((await ann.ask("message", { room, content: "from outside" })).success === true, "sent");
  await bob.hear("message", (message) => message.content === "from outside" && message.room === room);
  await refuses(ann, "typing-start", [{ room }], FORBIDDEN);
  await ends(ann, bob);
});

// ---- typing and presence

check("typing goes to the room's others or to all others, and ends by itself after 5 s", async () => {
  const { room, ann, bob, eve } = await company();
  for (const [where, hears] of [[{ room }, [bob]], [{}, [bob, eve]]]) {
    const told = { userId: ann.name, ...where, timestamp: any.time };
    for (const [event, isTyping] of [["typing-start", true], ["typing-stop", false], ["typing-start", true]]) {
      like(await ann.ask(event, where), { success: true });
      for (const guest of hears) await guest.hear(event, { ...told, isTyping });
    }
    const since = Date.now();
    for (const guest of hears) await guest.hear("typing-stop", { ...told, isTyping: false });
    ok(Date.now() - since > 4_000, `it ended after ${Date.now() - since} ms`);
  }
  ok(!eve.clear().some(([event, told]) => event.startsWith("typing") && told.room), "the room's typing stays in the room");
  await refuses(eve, "typing-start", [{ room }], FORBIDDEN);
  await refuses(eve, "typing-stop", [{ room }], FORBIDDEN);
  for (const said of [null, 7, { room: 7 }, { room: "" }]) await refuses(ann, "typing-start", [said], INVALID);
  await ends(ann, bob, eve);
});

check("presence-update goes to all others, and the last disconnect says offline", async () => {
  const watcher = await enter(fresh("watcher")), user = fresh("ann");
  const [first, second] = [await enter(user), await enter(user)];
  const about = (more) => watcher.hearOf(user, "presence-update", { timestamp: any.time, ...more });
  for (const status of ["online", "away", "busy", "offline"]) {
    like(await first.ask("presence-update", status), { success: true });
    await about({ status });
    await second.hearOf(user, "presence-update", { status, timestamp: any.time });
  }
  first.tell("presence-update", { status: "busy", metadata: { until: "noon" } });
  await about({ status: "busy", metadata: { until: "noon" } });
  for (const said of ["asleep", 7, null, {}, { status: 7 }, []]) await refuses(first, "presence-update", [said], INVALID);
  await first.end();
  await watcher.deafOf(user, "presence-update");
  second.tell("typing-start", {});
  await watcher.hear("typing-start", { userId: user, isTyping: true, timestamp: any.time });
  await second.end();
  // The typing ends before the leaving is told.
  await watcher.hear("typing-stop", { userId: user, isTyping: false, timestamp: any.time });
  await about({ status: "offline" });
  await watcher.end();
});

// ---- the rest

check("ping is answered by pong, and an event nobody knows by nothing", async () => {
  const ann = await enter(fresh("ann"));
  ann.tell("ping");
  like(await ann.next("pong"), ["pong"]);
  ann.tell("no:such:event", { x: 1 });
  like(await ann.ask("ping"), { success: true });
  like(await ann.next("pong"), ["pong"]);
  await ann.quiet();
  await ann.end();
});

check("authenticate takes a new token of the same user only", async () => {
  const ann = await enter(fresh("ann"));
  like(await ann.ask("authenticate", { token: token(ann.name, { email: "ann@example.com" }) }), { success: true });
  await ann.hear("authenticated", { userId: ann.name, email: "ann@example.com" });
  for (const bad of [token("somebody-else"), "nonsense", token(ann.name, { exp: 1 })]) await refuses(ann, "authenticate", [{ token: bad }], "AUTHENTICATION_FAILED");
  for (const shape of [{}, null, "token", { token: 7 }]) await refuses(ann, "authenticate", [shape], INVALID);
  await ann.end();
});

check("over the rate: the error tells limit, window and when to come again", async () => {
  const ann = await enter(fresh("ann"));
  // A burst that outruns the refill of a token each 10 ms on the slowest machine.
  for (let i = 0; i < 3_000; i += 1) ann.tell("ping");
  const details = { limit: 1000, windowMs: 10000, retryAfterMs: (value) => Number.isInteger(value) && value >= 1 && value <= 10 };
  await ann.hear("error", fault("RATE_LIMIT_EXCEEDED", { details }));
  await ann.end();
});

await run();
