// What happens on the server, as back ends follow it: server-sent events read with node's http, and the signed webhook.
import { spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer, request } from "node:http";
import { Inbox, CONTROL, PORT, admin, any, check, like, metric, ok, open, query, run, sleep, token, until, visit, within, WebSocket } from "./lib.mjs";

const { ADMIN_TOKEN, BINARY, PID, SECRET } = process.env;

// ---- a stream of server-sent events

/** Each event is `{type, id, data}`; comments and ids alone are no events. */
class Stream extends Inbox {
  lastId = "";
  #rest = "";
  constructor(name, response) {
    super(name);
    this.response = response;
    this.closing = new Promise((resolve) => response.on("close", () => resolve(response.complete)));
    response.setEncoding("utf8");
    response.on("data", (text) => this.#feed(text));
    response.on("error", () => {});
  }
  #feed(text) {
    const blocks = (this.#rest + text).split("\n\n");
    this.#rest = blocks.pop();
    for (const block of blocks) {
      const event = {};
      for (const line of block.split("\n")) {
        const [, field, value] = /^(\w*): ?(.*)$/.exec(line) ?? [];
        ok(field !== undefined, `a stream has the line ${line}`);
        if (field === "id") this.lastId = value;
        if (field === "event") event.type = value;
        if (field === "data") event.data = JSON.parse(value);
      }
      if (event.type) this.push({ id: this.lastId, ...event });
    }
  }
  /** The next `count` events. */
  async take(count) {
    const taken = [];
    while (taken.length < count) taken.push(await this.next(`event ${taken.length + 1} of ${count}`));
    return taken;
  }
  end() {
    this.response.destroy();
    return within(this.closing, `${this.name} ends`);
  }
}

/** Resolves to a stream, or to the answer's status where it is refused. */
function follow({ types, lastId, port = CONTROL, bearer = ADMIN_TOKEN, name = "stream" } = {}) {
  const headers = bearer === null ? {} : { authorization: `Bearer ${bearer}` };
  if (lastId !== undefined) headers["last-event-id"] = lastId;
  const path = `/v1/events${types === undefined ? "" : query({ types })}`;
  return within(new Promise((resolve, reject) => {
    const asked = request({ host: "127.0.0.1", port, path, headers, agent: false }, (response) => {
      if (response.statusCode !== 200) { response.resume(); return resolve(response.statusCode); }
      like(response.headers["content-type"], "text/event-stream");
      resolve(new Stream(name, response));
    });
    asked.on("error", reject);
    asked.end();
  }), `GET ${path}`);
}

const number = (id) => Number(id.split("-")[1]);
const contentOf = (event) => event.data.message.content;

/** A community client that publishes and hears itself; `send` returns when the last of the texts has come back. */
async function talker(user, groupId, port = PORT) {
  const socket = new WebSocket(`ws://127.0.0.1:${port}/talk${query({ token: token(user), groupId })}`);
  const heard = new Inbox(user);
  socket.on("message", (data) => {
    const { type, payload } = JSON.parse(data.toString());
    if (type === "CHAT_MESSAGE") heard.push(payload.content);
  });
  await within(new Promise((resolve, reject) => { socket.once("open", resolve); socket.once("error", reject); }), `${user} connects`);
  const send = async (texts, at_once = 50) => {
    for (let first = 0; first < texts.length; first += at_once) {
      const some = texts.slice(first, first + at_once);
      for (const content of some) socket.send(JSON.stringify({ type: "CHAT_MESSAGE", payload: { groupId, content } }));
      for (const content of some) like(await heard.next(content), content, user);
    }
  };
  return { send, end: () => socket.close() };
}

const numbers = (first, count) => Array.from({ length: count }, (_, at) => String(first + at));

check("a life of a connection is told in order, with ids that count", async () => {
  const stream = await follow();
  const guest = await visit("/", { auth: { token: token("ann") } }, "ann");
  const { id } = guest.socket;
  await guest.ask("room:join", { roomId: "life" });
  const { message } = await guest.ask("message", { roomId: "life", content: "é\n😀", metadata: { a: [1] } });
  await guest.ask("room:leave", { roomId: "life" });
  await guest.ask("authenticate", { token: token("ann") });
  guest.socket.disconnect();
  const told = await stream.take(6);
  const common = { endpoint: "rooms", connection: id, user: "ann", time: any.time };
  const expected = [
    ["connection", {}], ["room:join", { room: "life" }], ["message", { room: "life", message }], ["room:leave", { room: "life" }],
    ["authenticated", {}], ["disconnect", { reason: "client namespace disconnect" }],
  ];
  expected.forEach(([type, adds], at) => like(told[at], { type, id: any.text, data: { ...common, ...adds } }, type));
  told.forEach((event, at) => ok(number(event.id) === number(told[0].id) + at, `ids ${told.map((each) => each.id)}`));
  await stream.end();
});

check("a stream has the types that it asks for, and only who may read it reads it", async () => {
  like(await follow({ bearer: null }), 401);
  like(await follow({ bearer: "wrong" }), 401);
  like(await follow({ types: "message,nonsense" }), 400);
  like((await admin("GET", "/v1/events?unknown=1")).status, 400);
  const stream = await follow({ types: "receipt,authenticated" });
  const bob = await visit("/notify", {}, "bob");
  await bob.ask("authenticate", { token: token("bob") });
  const emitted = await admin("POST", "/v1/emit", { body: {
    endpoint: "notify", to: { users: ["bob"] }, event: "new_message", data: { message: { id: 17 }, receiptTo: "ann" },
  } });
  like(emitted.json, { recipients: 1 });
  await bob.hear("new_message", { message: { id: 17 }, timestamp: any.time });
  await bob.ask("message_read", { messageId: 17, conversationId: "c" });
  const common = { endpoint: "notify", connection: bob.socket.id, user: "bob", time: any.time };
  await stream.expect({ type: "authenticated", id: any.text, data: common });
  await stream.expect({ type: "receipt", id: any.text, data: { ...common, messageId: 17, conversationId: "c", status: "read" } });
  await bob.end();
  await stream.quiet();
  await stream.end();
});

check("a stream that breaks goes on with Last-Event-ID, without loss and without repetition", async () => {
  const peer = await talker("carl", "resume");
  let stream = await follow({ types: "message" });
  const got = [];
  const sending = peer.send(numbers(0, 3_000));
  while (got.length < 3_000) {
    const some = await stream.take(Math.min(1 + Math.floor(Math.random() * 400), 3_000 - got.length));
    got.push(...some.map(contentOf));
    // What came and was not looked at came again to whoever names the last one that was.
    await stream.end();
    stream = await follow({ types: "message", lastId: some.at(-1).id });
  }
  await sending;
  like(got, numbers(0, 3_000));
  await stream.quiet();
  await stream.end();
  peer.end();
});

check("an id of another process is told that more is missing than anybody counted", async () => {
  const peer = await talker("carl", "other");
  const present = await follow({ types: "message" });
  await peer.send(["one"]);
  const [one] = await present.take(1);
  const stream = await follow({ types: "message", lastId: "12345-6" });
  const first = await stream.next();
  like({ type: first.type, uncounted: first.data.uncounted }, { type: "dropped", uncounted: true });
  let event;
  do event = await stream.next(); while (event.id !== one.id);
  like(contentOf(event), "one");
  await Promise.all([stream.end(), present.end()]);
  peer.end();
});

check("a reader that stalls costs the engine nothing, and is told how much it missed", async () => {
  const COUNT = 20_000;
  const residentBytes = () => Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${PID}/status`, "utf8"))[1]) * 1024;
  const peer = await talker("dora", "stall");
  const padding = "x".repeat(2_000);
  const texts = numbers(0, COUNT).map((text) => `${text} ${padding}`);
  // Whatever is kept for long is there already: histories, buffers. And nothing that happened before is told late.
  const first = await follow({ types: "message", name: "first" });
  await peer.send(texts.slice(0, 4_000));
  let event;
  do event = await first.next(); while (event.type === "dropped" || contentOf(event) !== texts[3_999]);
  await first.end();
  const stalled = await follow({ types: "message", name: "stalled" });
  stalled.response.pause();
  const quick = await follow({ types: "message", name: "quick" });
  const missedBefore = await metric("uringcast_events_dropped_total", { reason: "reader" });
  const before = residentBytes();
  const reading = quick.take(COUNT);
  // A stalled server would not send back what is waited for here.
  await peer.send(texts);
  const grown = residentBytes() - before;
  ok(grown < 64 << 20, `the server has grown by ${grown} bytes`);
  like((await reading).map(contentOf), texts);
  ok((await metric("uringcast_event_readers")) === 2, "two readers");
  stalled.response.resume();
  let [received, dropped, gaps] = [0, 0, 0];
  for (let last = -1; last < COUNT - 1;) {
    const event = await stalled.next();
    if (event.type === "dropped") { dropped += event.data.count; gaps += 1; continue; }
    const at = Number(contentOf(event).split(" ")[0]);
    ok(at === received + dropped, `message ${at} after ${received} that came and ${dropped} that did not`);
    [received, last] = [received + 1, at];
  }
  ok(gaps > 0 && received + dropped === COUNT, `${received} came, ${dropped} did not in ${gaps} gaps`);
  ok((await metric("uringcast_events_dropped_total", { reason: "reader" })) - missedBefore === dropped, "and the metric says so");
  await Promise.all([stalled.end(), quick.end()]);
  peer.end();
});

check("there are so many readers and no more, and their places come back", async () => {
  const streams = [];
  let refused;
  while (streams.length < 60 && refused === undefined) {
    const stream = await follow({ types: "receipt" });
    if (stream instanceof Stream) streams.push(stream); else refused = stream;
  }
  like([streams.length, refused], [32, 503]);
  ok((await admin("GET", "/v1/stats")).status === 200, "other calls still find a place");
  await Promise.all(streams.map((stream) => stream.end()));
  await until(async () => (await metric("uringcast_event_readers")) === 0, "all have gone");
  const again = await follow({ types: "receipt" });
  ok(again instanceof Stream, `there is place again: ${again}`);
  await again.end();
});

// ---- the webhook, on servers of our own

const HOOK_SECRET = "a-secret-of-the-webhook-for-tests";

/** A receiver that checks every request, keeps it, and answers as `mode` says: a status, or `hang`. */
class Receiver {
  requests = [];
  mode = 200;
  #hanging = [];
  async listen(port = 0) {
    this.server = createServer((request, response) => {
      const parts = [];
      request.on("data", (part) => parts.push(part));
      request.on("end", () => this.#take(request, Buffer.concat(parts).toString(), response));
    });
    await new Promise((resolve) => this.server.listen(port, "127.0.0.1", resolve));
    this.port = this.server.address().port;
    return this;
  }
  #take(request, body, response) {
    const [, t, v1] = /^t=(\d+),v1=([0-9a-f]{64})$/.exec(request.headers["x-uringcast-signature"]) ?? [];
    const isGood = v1 === createHmac("sha256", HOOK_SECRET).update(`${t}.${body}`).digest("hex") && Math.abs(Date.now() / 1000 - t) < 60;
    const isTaken = this.mode === 200;
    this.requests.push({ isGood, isTaken, body, type: request.headers["content-type"], path: request.url, events: JSON.parse(body).events });
    if (this.mode === "hang") return this.#hanging.push(response);
    response.statusCode = this.mode;
    response.end(isTaken ? "" : "no");
  }
  async down() {
    const closed = new Promise((resolve) => this.server.close(resolve));
    this.server.closeAllConnections();
    await closed;
  }
  /** What was taken, each once: a request whose answer came too late comes again, and is known by its ids. */
  taken() {
    const events = this.requests.filter((each) => each.isTaken).flatMap((each) => each.events);
    return [...new Map(events.map((event) => [`${event.id} ${event.type}`, event])).values()];
  }
  messages() { return this.taken().filter((event) => event.type === "message").map((event) => event.data.message.content); }
}

/** A server of our own that sends its events to a receiver. */
async function serverWith(receiver, variables = {}) {
  const env = {
    PATH: process.env.PATH, JWT_SECRET: SECRET, ADMIN_TOKEN,
    URINGCAST_SERVER_LISTEN: "127.0.0.1:0", URINGCAST_CONTROL_LISTEN: "127.0.0.1:0", URINGCAST_SERVER_SHARDS: "2", URINGCAST_SERVER_DRAIN_SECONDS: "0",
    URINGCAST_EVENTS_WEBHOOK_URL: `http://127.0.0.1:${receiver.port}/hook?key=hush`, URINGCAST_EVENTS_WEBHOOK_SECRET: HOOK_SECRET,
    URINGCAST_ENDPOINT_COMMUNITY_CLIENT_PUBLISH: "true", URINGCAST_LIMITS_RATE_MESSAGES: "1000000", ...variables,
  };
  const child = spawn(BINARY, [], { env, stdio: ["ignore", "ignore", "pipe"] });
  const server = { child, said: "", exited: new Promise((resolve) => child.on("exit", (code) => resolve(code))) };
  const started = new Promise((resolve) => child.stderr.setEncoding("utf8").on("data", (text) => {
    server.said += text;
    const found = /public http:\/\/127\.0\.0\.1:(\d+) control http:\/\/127\.0\.0\.1:(\d+)/.exec(server.said);
    if (found) resolve([Number(found[1]), Number(found[2])]);
  }));
  [server.port, server.control] = await within(started, "a server of our own");
  servers.push(server);
  return server;
}
const servers = [];

/** As [talker], on the built-in endpoints of such a server. */
async function talkerAt(server, user) {
  const peer = await open(`/api/community/ws${query({ token: token(user), groupId: "hook" })}`, { port: server.port, name: user });
  return {
    send: async (texts) => {
      for (const content of texts) peer.say("CHAT_MESSAGE", { groupId: "hook", content });
      for (let heard = 0; heard < texts.length;) heard += (await peer.next("its echo")).type === "CHAT_MESSAGE" ? 1 : 0;
    },
    peer,
  };
}

const ofServer = async (server, name, labels) => {
  const { text } = await within(fetch(`http://127.0.0.1:${server.control}/metrics`).then(async (answer) => ({ text: await answer.text() })), "/metrics");
  return Number(new RegExp(`^uringcast_${name}\\{${labels}\\} (\\d+)$`, "m").exec(text)?.[1]);
};

check("the webhook is signed, batched, in order, and tried again until it is taken", async () => {
  const receiver = await new Receiver().listen();
  const server = await serverWith(receiver, { URINGCAST_EVENTS_WEBHOOK_BATCH_EVENTS: "20", URINGCAST_EVENTS_WEBHOOK_TIMEOUT_MS: "3000" });
  const { send, peer } = await talkerAt(server, "eve");
  await send(numbers(0, 100));
  await until(() => receiver.messages().length === 100, "the first hundred");
  receiver.mode = 500;
  await send(numbers(100, 100));
  await until(() => receiver.requests.filter((each) => !each.isTaken).length >= 3, "three refused tries");
  receiver.mode = "hang";
  const before = receiver.requests.length;
  await until(() => receiver.requests.length > before + 1, "two tries that get no answer", 30_000);
  await receiver.down();
  await send(numbers(200, 100));
  receiver.mode = 200;
  await receiver.listen(receiver.port);
  await until(() => receiver.messages().length >= 300, "all of them", 30_000);
  like(receiver.messages(), numbers(0, 300));
  const ids = receiver.taken().map((event) => number(event.id));
  ids.forEach((id, at) => ok(id === ids[0] + at, `id ${id} at place ${at} after ${ids[at - 1]}`));
  const { requests } = receiver;
  ok(requests.every((each) => each.isGood && each.path === "/hook?key=hush" && each.type === "application/json"), "every request is signed");
  ok(requests.every((each) => each.events.length <= 20) && requests.some((each) => each.events.length > 1), "batches are used and bounded");
  // A batch that was refused comes again as it was, and nothing comes before it.
  requests.forEach((each, at) => ok(each.isTaken || requests[at + 1].body === each.body, `request ${at} was refused and did not come again`));
  like(receiver.taken()[0], { type: "connection", id: any.text, endpoint: "community", connection: any.sid, user: "eve", time: any.time });
  like(receiver.taken().at(-1), {
    type: "message", id: any.text, endpoint: "community", connection: any.sid, user: "eve", room: "group:hook", time: any.time,
    data: { message: { id: any.uuid7, content: "299", groupId: "hook", authorId: "eve", authorName: "eve", isEdited: false, createdAt: any.time } },
  });

  // A stop tells all that happened before it, also to streams, which end as they should.
  const stream = await follow({ port: server.control, types: "disconnect" });
  server.child.kill("SIGTERM");
  await stream.expect({ type: "disconnect", id: any.text, data: { endpoint: "community", connection: any.sid, user: "eve", time: any.time, reason: "server shutting down" } });
  ok(await within(stream.closing, "the stream's end"), "the stream is complete");
  like(await within(server.exited, "the server's end", 30_000), 0);
  like(receiver.taken().slice(-2).map(({ type, room, data }) => ({ type, room, data })), [
    { type: "room:leave", room: "group:hook", data: undefined }, { type: "disconnect", room: undefined, data: { reason: "server shutting down" } },
  ]);
  ok(!server.said.includes(HOOK_SECRET) && !server.said.includes("hush"), "no secret is told");
  ok(/events webhook http:\/\/127\.0\.0\.1:\d+\/hook: answered with 500/.test(server.said), server.said);
  await peer.closed(1001);
  await receiver.down();
});

check("what the webhook did not take in time is counted and told in the next request", async () => {
  const receiver = await new Receiver().listen();
  receiver.mode = 503;
  const server = await serverWith(receiver, { URINGCAST_EVENTS_BUFFER_EVENTS: "100", URINGCAST_EVENTS_WEBHOOK_RETRY_SECONDS: "1", URINGCAST_EVENTS_WEBHOOK_TYPES: "message" });
  const { send, peer } = await talkerAt(server, "eve");
  await send(numbers(0, 500));
  await until(() => ofServer(server, "events_dropped_total", 'reason="webhook"').then((count) => count > 0), "some are given up");
  receiver.mode = 200;
  await send(["last"]);
  await until(() => receiver.messages().includes("last"), "the last one");
  const dropped = receiver.taken().filter((event) => event.type === "dropped");
  dropped.forEach((event) => like(event, { type: "dropped", id: any.text, time: any.time, data: { count: (count) => count > 0 } }));
  const count = dropped.reduce((sum, event) => sum + event.data.count, 0);
  ok(count > 0 && count + receiver.messages().length === 501, `${count} told missing, ${receiver.messages().length} came`);
  like(await ofServer(server, "events_dropped_total", 'reason="webhook"'), count);
  ok((await ofServer(server, "event_webhook_requests_total", 'outcome="failed"')) > 0, "failures are counted");
  await peer.end();
  server.child.kill("SIGTERM");
  like(await within(server.exited, "the server's end", 30_000), 0);
  await receiver.down();
});

await run(async () => {
  servers.forEach(({ child }) => child.kill("SIGKILL"));
  await sleep(0);
});
