// Messages of community over HTTP, as callers send them and `ws` clients on both shards hear them.
import { any, badTokens, bothShards, check, http, like, metric, ok, open, PORT, query, run, token, until } from "./lib.mjs";

const MESSAGES = "/api/community/messages";

const call = async (method, path, { user = "ann", claims = {}, bearer = token(user, { name: user.toUpperCase(), ...claims }), body, headers = {} } = {}) => {
  const text = body === undefined || typeof body === "string" ? body : JSON.stringify(body);
  const authorization = bearer === null ? {} : { authorization: `Bearer ${bearer}` };
  const answer = await http(PORT, method, path, { headers: { "content-type": "application/json", ...authorization, ...headers }, body: text });
  try { answer.json = JSON.parse(answer.text); } catch { answer.json = undefined; }
  return answer;
};

const done = async (status, ...args) => {
  const answer = await call(...args);
  ok(answer.status === status, `${args[0]} ${args[1]}: ${answer.status} ${answer.text.slice(0, 300)}`);
  ok(answer.headers.connection === "close" || answer.status === 204, `connection: ${answer.headers.connection}`);
  if (status < 400) ok(answer.json.success === true, answer.text);
  else like(answer.json, { success: false, error: { code: any.text, message: any.text } });
  return answer.json;
};

const post = async (body, options) => (await done(201, "POST", MESSAGES, { ...options, body })).data;
const list = async (asked, options) => (await done(200, "GET", MESSAGES + query(asked), options)).data;

const enter = async (user, channel, claims = {}, path = "/api/community/ws") => {
  const peer = await open(path + query({ token: token(user, { name: user.toUpperCase(), ...claims }) }), { name: user });
  peer.say("SUBSCRIBE", channel);
  while ((await peer.next("SUBSCRIBED")).type !== "SUBSCRIBED");
  return peer;
};

// What others tell of coming is no part of a check.
const hear = async (peer, pattern) => {
  let frame;
  do frame = await peer.next(JSON.stringify(pattern)); while (["USER_JOINED", "USER_LEFT"].includes(frame.type));
  return like(frame, pattern, peer.name);
};

check("what is posted, changed and taken back is heard on both shards, by all but whom the author has blocked", async () => {
  const peers = await Promise.all(Array.from({ length: 8 }, (_, at) => enter(at % 4 ? `user${at}` : "eve", { roomId: "den" })));
  await bothShards("community");
  const friends = peers.filter((_, at) => at % 4), foes = peers.filter((_, at) => at % 4 === 0);
  const claims = { blocked: ["eve"], picture: "https://pic.example/a" };
  const message = await post({ roomId: "den", content: "Grüß Gott 😀" }, { claims });
  const pattern = { id: any.uuid7, content: "Grüß Gott 😀", roomId: "den", authorId: "ann", authorName: "ANN", authorImage: "https://pic.example/a", isEdited: false, createdAt: any.time };
  like(message, pattern);
  for (const peer of friends) like((await hear(peer, { type: "CHAT_MESSAGE", payload: pattern })).payload, message);
  const edited = (await done(200, "PATCH", `${MESSAGES}/${message.id}`, { claims, body: { content: "Servus" } })).data;
  like(edited, { ...message, content: "Servus", isEdited: true });
  for (const peer of friends) await hear(peer, { type: "MESSAGE_EDIT", payload: { messageId: message.id, content: "Servus", roomId: "den" } });
  like(await list({ roomId: "den" }), [edited]);
  like(await list({ roomId: "den" }, { user: "eve" }), [], "who is blocked does not find it either");
  like(await done(200, "DELETE", `${MESSAGES}/${message.id}`, { claims }), { success: true });
  for (const peer of friends) await hear(peer, { type: "MESSAGE_DELETE", payload: { messageId: message.id, roomId: "den" } });
  like(await list({ roomId: "den" }), []);
  for (const peer of foes) {
    peer.clear();
    peer.say("PING");
    await peer.expect({ type: "PONG", payload: {} });
  }
  await Promise.all(peers.map((peer) => peer.end()));
});

check("only the author changes a message; what is not there is not found", async () => {
  const message = await post({ groupId: "g", content: "mine" });
  const one = `${MESSAGES}/${message.id}`;
  await done(403, "PATCH", one, { user: "bob", body: { content: "yours" } });
  await done(403, "DELETE", one, { user: "bob" });
  like(await list({ groupId: "g" }), [message]);
  for (const id of ["0190163d-8694-739b-aea5-966c26f8ad91", "x", message.id.toUpperCase(), `${message.id}/x`]) {
    await done(404, "PATCH", `${MESSAGES}/${id}`, { body: { content: "x" } });
    await done(404, "DELETE", `${MESSAGES}/${id}`);
  }
  await done(200, "DELETE", one);
  await done(404, "DELETE", one);
});

check("a channel that nobody is in keeps what is posted; the list is paged, newest first", async () => {
  const sent = [];
  for (let number = 0; number < 7; number += 1) sent.unshift(await post({ roomId: "empty", content: `${number}` }));
  like(await list({ roomId: "empty" }), sent);
  const seen = [];
  for (let before; ;) {
    const page = await list({ roomId: "empty", limit: 3, ...(before ? { before } : {}) });
    if (!page.length) break;
    seen.push(...page);
    before = page.at(-1).id;
  }
  like(seen, sent);
  like(await list({ roomId: "nothing at all" }), []);
  like(await list({ groupId: "empty" }), [], "a group is no room");
});

check("who may enter may write and read", async () => {
  const claims = { rooms: ["one"], groups: ["two"] };
  await post({ roomId: "one", content: "x" }, { claims });
  await post({ groupId: "two", content: "x" }, { claims });
  for (const channel of [{ roomId: "two" }, { groupId: "one" }]) {
    await done(403, "POST", MESSAGES, { claims, body: { ...channel, content: "x" } });
    await done(403, "GET", MESSAGES + query(channel), { claims });
  }
});

check("a token counts in its header only", async () => {
  const body = { roomId: "r", content: "x" };
  for (const [what, bearer] of Object.entries(badTokens())) {
    const answer = await call("POST", MESSAGES, { bearer, body });
    ok(answer.status === 401 && answer.json.error.code === "UNAUTHORIZED", `${what}: ${answer.status}`);
  }
  await done(401, "POST", MESSAGES, { bearer: null, body });
  await done(401, "POST", MESSAGES + query({ token: token("ann") }), { bearer: null, body });
  await done(401, "POST", MESSAGES, { bearer: null, body, headers: { cookie: `next-auth.session-token=${token("ann")}`, origin: "https://app.example" } });
  like(await list({ roomId: "r" }), []);
});

check("wrong calls are told, and nothing is kept or heard", async () => {
  const peer = await enter("bob", { roomId: "quiet" });
  const wrong = [{}, [], "nonsense", { roomId: "quiet" }, { content: "x" }, { roomId: "quiet", content: "" }, { roomId: "quiet", content: 7 }, { roomId: "quiet", groupId: "quiet", content: "x" },
    { roomId: "", content: "x" }, { roomId: "a\nb", content: "x" }, { roomId: ["quiet"], content: "x" }, { roomId: "quiet", content: "x", authorId: "eve" }, { roomId: "quiet", content: "é".repeat(4001) }];
  for (const body of wrong) await done(400, "POST", MESSAGES, { body });
  await done(413, "POST", MESSAGES, { body: { roomId: "quiet", content: "x".repeat(70_000) } });
  for (const asked of [{}, { roomId: "quiet", groupId: "quiet" }, { roomId: "quiet", limit: 0 }, { roomId: "quiet", limit: 101 }, { roomId: "quiet", before: "x" }, { roomId: "quiet", colour: "red" }]) {
    await done(400, "GET", MESSAGES + query(asked));
  }
  for (const method of ["PUT", "PATCH", "DELETE"]) await done(405, method, MESSAGES, { body: { content: "x" } });
  await peer.quiet();
  like(await list({ roomId: "quiet" }), []);
  const longest = "é".repeat(4000);
  like((await post({ roomId: "quiet", content: longest })).content, longest);
  await hear(peer, { type: "CHAT_MESSAGE", payload: (payload) => payload.content === longest });
  await peer.end();
});

check("what clients say themselves is in the same history and can be changed; callers and clients have one order", async () => {
  const messages = "/talk/messages";
  const peers = await Promise.all(Array.from({ length: 6 }, (_, at) => enter(`user${at}`, { roomId: "mixed" }, {}, "/talk")));
  const waiting = [];
  for (let number = 0; number < 25; number += 1) {
    waiting.push(done(201, "POST", messages, { body: { roomId: "mixed", content: `call ${number}` } }));
    peers[number % 6].say("CHAT_MESSAGE", { roomId: "mixed", content: `client ${number}` });
    if (number % 5 === 0) await Promise.all(waiting);
  }
  await Promise.all(waiting);
  const logs = await Promise.all(peers.map(async (peer) => {
    const log = [];
    while (log.length < 50) { const { type, payload } = await peer.next("50 messages"); if (type === "CHAT_MESSAGE") log.push(payload); }
    return log;
  }));
  for (const log of logs) like(log, logs[0], "one order");
  like((await done(200, "GET", messages + query({ roomId: "mixed", limit: 100 }))).data, [...logs[0]].reverse(), "what is kept is what was heard");
  const said = logs[0].find((message) => message.authorId === "user1");
  await done(200, "PATCH", `${messages}/${said.id}`, { user: "user1", body: { content: "corrected" } });
  for (const peer of peers) await hear(peer, { type: "MESSAGE_EDIT", payload: { messageId: said.id, content: "corrected", roomId: "mixed" } });
  like(await list({ roomId: "mixed" }), [], "endpoints never mix");
  await done(404, "PATCH", `${MESSAGES}/${said.id}`, { user: "user1", body: { content: "x" } });
  await Promise.all(peers.map((peer) => peer.end()));
});

check("pages of allowed origins may call", async () => {
  const asked = { "access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type" };
  const allowed = await call("OPTIONS", MESSAGES, { bearer: null, headers: { origin: "https://app.example", ...asked } });
  ok(allowed.status === 204 && allowed.headers["access-control-allow-origin"] === "https://app.example", `${allowed.status} ${JSON.stringify(allowed.headers)}`);
  ok(/authorization/.test(allowed.headers["access-control-allow-headers"]) && /POST/.test(allowed.headers["access-control-allow-methods"]), JSON.stringify(allowed.headers));
  const other = await call("OPTIONS", MESSAGES, { bearer: null, headers: { origin: "https://evil.example", ...asked } });
  ok(other.headers["access-control-allow-origin"] === undefined, JSON.stringify(other.headers));
});

check("each user has his rate", async () => {
  const before = await metric("uringcast_rate_limited_total", { endpoint: "community" });
  let refused;
  for (let calls = 0; calls < 1500 && !refused; calls += 50) {
    const answers = await Promise.all(Array.from({ length: 50 }, () => call("GET", MESSAGES + query({ roomId: "r" }), { user: "hasty" })));
    refused = answers.find((answer) => answer.status === 429);
    ok(answers.every((answer) => answer.status === 200 || answer.status === 429), `${answers.map((answer) => answer.status)}`);
  }
  ok(refused, "nobody was refused");
  like(refused.json, { success: false, error: { code: "RATE_LIMIT_EXCEEDED", message: any.text } });
  ok(Number(refused.headers["retry-after"]) >= 1, `retry-after ${refused.headers["retry-after"]}`);
  await list({ roomId: "r" });
  await until(async () => (await metric("uringcast_rate_limited_total", { endpoint: "community" })) > before, "it is counted");
});

await run();
