// Webhooks the engine asks, over real clients of every dialect and a real HTTP server as back end: yes, no, other words, and every way of
// failing. What the back end does with a question is a function that each check puts in place.
import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";
import { any, badTokens, check, http, like, metric, ok, open, PORT, query, refused, run, sleep, token, unwelcome, until, visit, within } from "./lib.mjs";

const SECRET = process.env.URINGCAST_WEBHOOKS_SECRET;
const CACHE_MS = Number(process.env.URINGCAST_WEBHOOKS_CACHE_MS);
const BACK_END = Number(process.env.BACK_END);

// ---- the back end

/** Everything that was asked, in order: `{hook, body}`. */
let asked = [];
const YES = { allow: true };
/** What each hook answers: a value, or a function of the body; a function of the response for what is no answer. */
let answers = {};
/** Questions about whose form or signature something is wrong. */
const faults = [];

function verify(request, text) {
  const [, time, given] = /^t=(\d+),v1=([0-9a-f]{64})$/.exec(request.headers["x-uringcast-signature"] ?? "") ?? [];
  if (!time) return faults.push(`signature ${request.headers["x-uringcast-signature"]}`);
  const expected = createHmac("sha256", SECRET).update(`${time}.${text}`).digest();
  if (!timingSafeEqual(expected, Buffer.from(given, "hex"))) faults.push("a wrong signature");
  if (Math.abs(Date.now() / 1000 - Number(time)) > 60) faults.push(`time ${time}`);
  if (request.method !== "POST" || request.headers["content-type"] !== "application/json") faults.push("not JSON by POST");
}

const backEnd = createServer((request, response) => {
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    const text = Buffer.concat(parts).toString();
    verify(request, text);
    const hook = /^\/(connect|join|publish)\?key=HUSH$/.exec(request.url)?.[1];
    const body = JSON.parse(text);
    asked.push({ hook, body });
    const answer = answers[hook] ?? YES;
    if (answer.raw) return answer.raw(response);
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify(typeof answer === "function" ? answer(body) : answer));
  });
});
await new Promise((resolve) => backEnd.listen(BACK_END, "127.0.0.1", resolve));

/** For the time of a check. */
async function answering(those, body) {
  [answers, asked] = [those, []];
  try { return await body(); } finally { answers = {}; }
}
const questions = (hook) => asked.filter((each) => each.hook === hook).map((each) => each.body);

/** Every way in which a back end fails. */
const FAILURES = {
  "says no": { allow: false },
  "says nothing of it": {},
  "says it in words": { raw: (response) => response.end('{"allow":"yes"}') },
  "answers 500": { raw: (response) => response.writeHead(500).end('{"allow":true}') },
  "redirects": { raw: (response) => response.writeHead(307, { location: `http://127.0.0.1:${BACK_END}/yes` }).end() },
  "answers no JSON": { raw: (response) => response.end("<html>") },
  "breaks off": { raw: (response) => response.destroy() },
  "hangs": { raw: () => {} },
};
const OUTCOMES = ["denied", "bad_answer", "status", "unreachable", "timeout"];

let serial = 0;
const fresh = (name) => `${name}-${++serial}`;
const plain = (user, claims = {}) => query({ token: token(user, claims) });
const sio = (namespace, user, claims = {}) => visit(namespace, { auth: { token: token(user, claims) } }, user);

/** A member of a room on each dialect that has some: how it comes, enters, says something, and what others hear. */
const DIALECTS = {
  talk: {
    come: (user) => open(`/talk${plain(user)}`, { name: user, headers: { "user-agent": "check" }, origin: "https://app.example" }),
    welcome: (peer, userId) => peer.expect({ type: "USER_JOINED", payload: { userId, message: any.text } }),
    name: (room) => `room:${room}`,
    async enter(peer, room) {
      peer.say("SUBSCRIBE", { roomId: room });
      for (;;) {
        const heard = await peer.next("an answer to SUBSCRIBE");
        if (heard.type === "SUBSCRIBED") return null;
        if (heard.type === "ERROR") return like(heard.payload, { code: "FORBIDDEN", message: any.text, roomId: room }).message;
      }
    },
    event: "CHAT_MESSAGE",
    data: (room, content) => ({ roomId: room, content }),
    say: (peer, room, content) => peer.say("CHAT_MESSAGE", { roomId: room, content }),
    async hear(peer) {
      for (;;) {
        const heard = await peer.next("CHAT_MESSAGE");
        if (heard.type === "CHAT_MESSAGE") return heard.payload.content;
        if (heard.type === "ERROR") throw new Error(heard.payload.message);
      }
    },
    async refusal(peer) {
      for (;;) {
        const heard = await peer.next("ERROR");
        if (heard.type === "ERROR") return like(heard.payload, { code: "FORBIDDEN", message: any.text, roomId: any.text }).message;
      }
    },
    end: (peer) => peer.end(),
  },
  rooms: {
    come: (user) => sio("/", user),
    welcome: async () => {},
    name: (room) => room,
    enter: async (guest, room) => (await guest.ask("room:join", { roomId: room })).error?.message ?? null,
    event: "message",
    data: (room, content) => ({ roomId: room, content }),
    say: (guest, room, content) => guest.tell("message", { roomId: room, content }),
    hear: async (guest) => { for (;;) { const [event, told] = await guest.next("message"); if (event === "message") return told.content; } },
    refusal: async (guest) => { for (;;) { const [event, told] = await guest.next("error"); if (event === "error") return told.message; } },
    end: (guest) => guest.end(),
  },
  chat: {
    come: (user) => sio("/chat", user),
    welcome: async () => {},
    name: (room) => room,
    enter: async (guest, room) => (await guest.ask("join-room", { room })).error?.message ?? null,
    event: "message",
    data: (room, content) => ({ room, content }),
    say: (guest, room, content) => guest.tell("message", { room, content }),
    hear: async (guest) => { for (;;) { const [event, told] = await guest.next("message"); if (event === "message") return told.content; } },
    refusal: async (guest) => { for (;;) { const [event, told] = await guest.next("error"); if (event === "error") return like(told, { code: "AUTHORIZATION_FAILED", message: any.text, timestamp: any.time }).message; } },
    end: (guest) => guest.end(),
  },
};

// ---- connect

check("connect is asked with what the contract names, and what it says is who somebody is", () => answering({ connect: { allow: true, userId: "renamed", name: "Renamed" } }, async () => {
  const peer = await open(`/talk?extra=1&token=${token("ann", { role: "guest" })}`, { headers: { "user-agent": "check" }, origin: "https://app.example" });
  await DIALECTS.talk.welcome(peer, "renamed");
  like(questions("connect")[0], {
    endpoint: "talk",
    connection: { id: any.sid, address: "127.0.0.1", origin: "https://app.example", query: "extra=1", userAgent: "check" },
    claims: (claims) => claims.sub === "ann" && claims.role === "guest" && claims.exp > 0,
  });
  const room = fresh("room");
  await DIALECTS.talk.enter(peer, room);
  DIALECTS.talk.say(peer, room, "who");
  const heard = await peer.next("its own message");
  ok(heard.payload.authorId === "renamed" && heard.payload.authorName === "Renamed", JSON.stringify(heard));
  await peer.end();
  const guest = await sio("/", "ann");
  const info = JSON.parse((await http(Number(process.env.CONTROL), "GET", "/v1/users/renamed", { headers: { authorization: `Bearer ${process.env.ADMIN_TOKEN}` } })).text);
  ok(info.online && info.connections.some((each) => each.id === guest.socket.id), JSON.stringify(info));
  await guest.end();
}));

check("a client without a token is whom the back end names; a bad token is not asked about", () => answering({ connect: ({ connection }) => connection.query.includes("key=k") ? { allow: true, userId: "keyed" } : YES }, async () => {
  const peer = await open("/talk?key=k");
  await DIALECTS.talk.welcome(peer, "keyed");
  like(questions("connect")[0].claims, null);
  await peer.end();
  ok((await refused("/talk")).status === 401, "nobody says who that is");
  asked = [];
  for (const bad of Object.values(badTokens()).filter((bad) => bad !== "")) ok((await refused(`/talk${query({ token: bad })}`)).status === 401, bad);
  like(questions("connect"), []);
}));

for (const [how, failure] of Object.entries(FAILURES)) {
  check(`a back end that ${how} lets nobody in, by every dialect's own words`, () => answering({ connect: failure }, async () => {
    const before = await Promise.all(OUTCOMES.map((outcome) => metric("uringcast_webhook_requests_total", { hook: "connect", outcome })));
    const [talk, fabric, rooms, chat, notify] = await Promise.all([
      refused(`/talk${plain("ann")}`),
      open(`/ws/fabric${query({ documentId: "d", clientID: "c", token: token("ann") })}`).then(async (peer) => [await peer.next(), await peer.closed(4403)]),
      unwelcome("/", { auth: { token: token("ann") } }),
      unwelcome("/chat", { auth: { token: token("ann") } }),
      visit("/notify", { auth: { token: token("ann") } }).then(async (guest) => [await guest.next(), await within(guest.ended, "disconnection")]),
    ]);
    // Its no is told as a bad token is, and in other words that it has none.
    const said = (no) => failure.allow === false ? no : "Temporarily unavailable";
    const [status, code] = failure.allow === false ? [403, "FORBIDDEN"] : [503, "UNAVAILABLE"];
    like([talk.status, JSON.parse(talk.body)], [status, { success: false, error: { code, message: said(any.text) } }]);
    like(fabric[0], { type: "error", message: said("Access denied") });
    const message = said("Invalid authentication token");
    like([rooms.message, rooms.data], [message, { message }]);
    like(chat.data, { code: failure.allow === false ? "AUTHENTICATION_FAILED" : "CONNECTION_ERROR", message, timestamp: any.time });
    like(notify, [["auth_error", { message: said("Invalid token") }], "io server disconnect"]);
    const after = await Promise.all(OUTCOMES.map((outcome) => metric("uringcast_webhook_requests_total", { hook: "connect", outcome })));
    ok(after.reduce((sum, count) => sum + count) - before.reduce((sum, count) => sum + count) === 5, `five more, by outcome: ${before} -> ${after}`);
  }));
}

check("the back end's reason is what clients read", () => answering({ connect: { allow: false, reason: "not today" } }, async () => {
  ok(JSON.parse((await refused(`/talk${plain("ann")}`)).body).error.message === "not today", "community");
  const peer = await open(`/ws/fabric${query({ documentId: "d", clientID: "c", token: token("ann") })}`);
  await peer.expect({ type: "error", message: "not today" });
  await peer.closed(4403);
  ok((await unwelcome("/", { auth: { token: token("ann") } })).message === "not today", "rooms");
  ok((await unwelcome("/chat", { auth: { token: token("ann") } })).data.message === "not today", "chat");
  const guest = await visit("/notify", { auth: { token: token("ann") } });
  await guest.expect(["auth_error", { message: "not today" }]);
}));

// ---- join

for (const [endpoint, dialect] of Object.entries(DIALECTS)) {
  check(`${endpoint}: rooms are entered by the back end's will, and it is asked once in a while`, () => answering({ join: ({ room }) => room.includes("shut") ? { allow: false, reason: "shut" } : YES }, async () => {
    const [user, room, shut] = [fresh("ann"), fresh("room"), fresh("shut")];
    const first = await dialect.come(user), second = await dialect.come(user);
    await dialect.welcome(first, user);
    await dialect.welcome(second, user);
    like(await dialect.enter(first, room), null);
    like(questions("join"), [{ endpoint, userId: user, connectionId: any.sid, room: dialect.name(room) }]);
    like(await dialect.enter(second, room), null, "the answer is known");
    like(await dialect.enter(first, shut), endpoint === "rooms" ? "Failed to join room" : "shut");
    like(await dialect.enter(second, shut), endpoint === "rooms" ? "Failed to join room" : "shut");
    ok(questions("join").length === 2, `asked ${questions("join").length} times`);
    // One dialect is enough: what is remembered knows none.
    if (endpoint === "chat") {
      await sleep(CACHE_MS + 100);
      await dialect.enter(second, shut);
      ok(questions("join").length === 3, `asked ${questions("join").length} times after it was forgotten`);
    }
    await dialect.end(first);
    await dialect.end(second);
  }));

  check(`${endpoint}: no failure of the back end lets anybody in`, async () => {
    for (const failure of Object.values(FAILURES)) {
      await answering({ join: failure }, async () => {
        const user = fresh("ann");
        const member = await dialect.come(user);
        await dialect.welcome(member, user);
        ok((await dialect.enter(member, fresh("room"))) !== null, "it was refused");
        await dialect.end(member);
      });
    }
  });
}

check("collab: a document is a room, and who may not enter it is sent away", () => answering({ join: ({ room }) => ({ allow: room === "open" }) }, async () => {
  const path = (documentId) => `/ws/fabric${query({ documentId, clientID: "c", token: token(fresh("ann")) })}`;
  const peer = await open(path("open"));
  await peer.expect({ type: "connected", clientID: "c", documentId: "open" });
  await peer.end();
  const other = await open(path("shut"));
  await other.expect({ type: "error", message: "Access denied" });
  await other.closed(4403);
}));

check("notify: whose presence may be watched the back end says", () => answering({ join: ({ room }) => ({ allow: room !== "user:secret", reason: "private" }) }, async () => {
  const user = fresh("ann");
  const guest = await visit("/notify", { auth: { token: token(user) } });
  await guest.hear("authenticated", { userId: user, email: null });
  like(await guest.ask("presence:subscribe", { userIds: ["bob", "carol"] }), { success: true });
  const refusal = await guest.ask("presence:subscribe", { userIds: ["bob", "secret"] });
  like(refusal.error, { error: "private", code: "FORBIDDEN", timestamp: any.time });
  await guest.end();
}));

// ---- publish

for (const [endpoint, dialect] of Object.entries(DIALECTS)) {
  check(`${endpoint}: messages are said as the back end has them, in their order, or not at all`, async () => {
    const [user, other, room] = [fresh("ann"), fresh("bob"), fresh("room")];
    const sender = await dialect.come(user), receiver = await dialect.come(other);
    await dialect.welcome(sender, user);
    await dialect.welcome(receiver, other);
    await dialect.enter(sender, room);
    await dialect.enter(receiver, room);
    const publish = ({ data }) => {
      if (data.content.includes("bad")) return { allow: false, reason: "mind your words" };
      return data.content.includes("damn") ? { allow: true, data: { ...data, content: data.content.replace("damn", "****") } } : YES;
    };
    await answering({ publish }, async () => {
      for (let number = 0; number < 20; number += 1) dialect.say(sender, room, `${number} ${["good", "damn", "bad"][number % 3]}`);
      for (let number = 0; number < 20; number += 1) {
        if (number % 3 !== 2) like(await dialect.hear(receiver), `${number} ${number % 3 ? "****" : "good"}`);
      }
      like(questions("publish")[0], { endpoint, userId: user, connectionId: any.sid, room: dialect.name(room), event: dialect.event, data: dialect.data(room, "0 good") });
      for (let number = 2; number < 20; number += 3) like(await dialect.refusal(sender), endpoint === "rooms" ? "Failed to send message" : "mind your words");
    });
    for (const failure of [...Object.values(FAILURES), { allow: true, data: { nonsense: 1 } }, { allow: true, data: dialect.data("elsewhere", "x") }]) {
      await answering({ publish: failure }, async () => {
        dialect.say(sender, room, "never heard");
        await dialect.refusal(sender);
      });
    }
    dialect.say(sender, room, "the end");
    like(await dialect.hear(receiver), "the end", "nothing else came before it");
    await dialect.end(sender);
    await dialect.end(receiver);
  });
}

check("collab: updates and steps are asked about, where a cursor is not", async () => {
  const [first, second] = await Promise.all(["c1", "c2"].map((clientID) => open(`/ws/fabric${query({ documentId: "shared", clientID, token: token(clientID) })}`)));
  for (const peer of [first, second]) await peer.next("connected");
  await answering({ publish: ({ data }) => data.type === "steps" ? { allow: false, reason: "read only" } : { allow: true, data: { ...data, checked: true } } }, async () => {
    first.send({ type: "awareness", documentId: "shared", awareness: 1 });
    first.send({ type: "update", documentId: "shared", update: [1] });
    first.send({ type: "steps", documentId: "shared", steps: [] });
    await second.expect({ type: "awareness", documentId: "shared", awareness: 1, clientID: "c1" });
    await second.expect({ type: "update", documentId: "shared", update: [1], checked: true, clientID: "c1" });
    await first.expect({ type: "error", message: "read only" });
    like(questions("publish").map(({ event, room }) => [event, room]), [["update", "shared"], ["steps", "shared"]]);
    second.send({ type: "sync", documentId: "shared" });
    const synced = await second.next("synced");
    like(synced.updates, [{ type: "update", documentId: "shared", update: [1], checked: true, clientID: "c1" }], "what is kept");
  });
  await first.end();
  await second.end();
});

check("community over HTTP is asked about the same", async () => {
  const user = fresh("ann"), room = fresh("room"), shut = fresh("shut");
  const call = async (method, path, body) => {
    const answer = await http(PORT, method, `/talk/messages${path}`, { headers: { authorization: `Bearer ${token(user)}` }, body: body && JSON.stringify(body) });
    return { status: answer.status, json: JSON.parse(answer.text) };
  };
  const join = ({ room }) => ({ allow: !room.includes("shut"), reason: "shut" });
  const publish = ({ data }) => data.content.includes("bad") ? { allow: false, reason: "mind your words" } : { allow: true, data: { ...data, content: data.content.replace("damn", "****") } };
  await answering({ connect: YES, join, publish }, async () => {
    const posted = await call("POST", "", { roomId: room, content: "damn" });
    like([posted.status, posted.json.data.content], [201, "****"]);
    like(questions("join"), [{ endpoint: "talk", userId: user, connectionId: null, room: `room:${room}` }]);
    like(questions("publish"), [{ endpoint: "talk", userId: user, connectionId: null, room: `room:${room}`, event: "CHAT_MESSAGE", data: { roomId: room, content: "damn" } }]);
    const denied = (message) => ({ status: 403, json: { success: false, error: { code: "FORBIDDEN", message } } });
    like(await call("POST", "", { roomId: room, content: "bad" }), denied("mind your words"));
    like(await call("POST", "", { roomId: shut, content: "good" }), denied("shut"));
    like(await call("GET", `?roomId=${shut}`), denied("shut"));
    like((await call("PATCH", `/${posted.json.data.id}`, { content: "damn again" })).json.data.content, "**** again");
    like(await call("PATCH", `/${posted.json.data.id}`, { content: "bad" }), denied("mind your words"));
    like(questions("publish").at(-1).room, `room:${room}`);
    like((await call("GET", `?roomId=${room}`)).json.data.map(({ content }) => content), ["**** again"]);
  });
  await answering({ connect: { allow: false, reason: "not today" } }, async () => {
    like(await call("POST", "", { roomId: fresh("room"), content: "x" }), { status: 403, json: { success: false, error: { code: "FORBIDDEN", message: "not today" } } });
    ok((await call("GET", `?roomId=${room}`)).status === 403, "reading neither");
    const { id, address, query: asks } = questions("connect")[0].connection;
    like([id, address, asks], [null, null, ""]);
    like(questions("connect")[0].claims.sub, user);
  });
  await answering({ connect: { allow: true, userId: "renamed", name: "Renamed" }, join: YES, publish: YES }, async () => {
    const { authorId, authorName } = (await call("POST", "", { roomId: fresh("room"), content: "x" })).json.data;
    like([authorId, authorName], ["renamed", "Renamed"]);
  });
  for (const failure of Object.values(FAILURES)) {
    const status = failure.allow === false ? 403 : 503;
    await answering({ connect: YES, publish: failure }, async () => ok((await call("POST", "", { roomId: room, content: "never" })).status === status, "refused"));
  }
});

// ---- bounds

check("a back end that hangs holds up nobody but who waits for it", () => answering({ join: FAILURES.hangs, connect: YES }, async () => {
  const waiting = await Promise.all(Array.from({ length: 8 }, () => sio("/", fresh("ann"))));
  const others = await Promise.all(Array.from({ length: 4 }, () => visit("/guests")));
  await Promise.all(others.map((guest) => guest.ask("room:join", { roomId: "busy" })));
  let served = 0, isOver = false;
  const refusals = Promise.all(waiting.map((guest) => guest.ask("room:join", { roomId: fresh("room") }))).then((all) => { isOver = true; return all; });
  // Round trips on both shards for as long as the others wait.
  await Promise.all(others.map(async (guest) => {
    while (!isOver) {
      await guest.ask("message", { roomId: "busy", content: "x" });
      served += 1;
      guest.clear();
    }
  }));
  ok((await refusals).every((refusal) => refusal.success === false), "who waited was refused");
  ok(served > 40, `${served} round trips of the others meanwhile`);
  await Promise.all([...waiting, ...others].map((guest) => guest.end()));
}));

check("a flood of wishes for one room is one question", () => answering({ join: { raw: (response) => setTimeout(() => response.end('{"allow":true}'), 300) } }, async () => {
  const user = fresh("ann"), room = fresh("room");
  const devices = await Promise.all(Array.from({ length: 30 }, () => sio("/chat", user)));
  const joined = await Promise.all(devices.map((guest) => guest.ask("join-room", { room })));
  ok(joined.every((answer) => answer.success), JSON.stringify(joined.find((answer) => !answer.success)));
  ok(questions("join").length === 1, `asked ${questions("join").length} times`);
  await Promise.all(devices.map((guest) => guest.end()));
}));

check("a back end that is gone refuses, and one that is back is asked again", async () => {
  const guest = await sio("/", fresh("ann"));
  backEnd.closeAllConnections();
  await new Promise((resolve) => backEnd.close(resolve));
  const before = await metric("uringcast_webhook_requests_total", { endpoint: "rooms", hook: "join", outcome: "unreachable" });
  like((await guest.ask("room:join", { roomId: "again" })).success, false);
  ok(await metric("uringcast_webhook_requests_total", { endpoint: "rooms", hook: "join", outcome: "unreachable" }) === before + 1, "it is counted");
  await new Promise((resolve) => backEnd.listen(BACK_END, "127.0.0.1", resolve));
  await until(async () => (await guest.ask("room:join", { roomId: "again" })).success, "the back end is back");
  await guest.end();
});

check("every question was signed and of the contract's form", async () => {
  like(faults, []);
  ok(await metric("uringcast_webhook_seconds_count", { hook: "join" }) > 0, "answers were timed");
  ok(PORT !== BACK_END, "they are two");
});

await run(() => { backEnd.closeAllConnections(); backEnd.close(); });
