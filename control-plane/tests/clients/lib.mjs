// What all the scripts share: tokens, one connected client with an inbox, exact comparison with holes, and the list of checks.
// The packages are found in the folder that CLIENT_MODULES names, so that nothing is installed beside the sources.
import { createHmac, randomBytes } from "node:crypto";
import { request } from "node:http";
import { createRequire } from "node:module";
import { connect, createServer } from "node:net";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";

export const need = createRequire(join(process.env.CLIENT_MODULES, "/"));
export const WebSocket = need("ws");
export const PORT = Number(process.env.PORT);
export const CONTROL = Number(process.env.CONTROL);
const { SECRET, ADMIN_TOKEN } = process.env;

// No answer of a local server takes this long, even on a busy machine.
const PATIENCE_MS = 10_000;
// Long enough that something sent by mistake has arrived.
const QUIET_MS = 200;

// ---- tokens

const encoded = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
const nowSeconds = () => Math.floor(Date.now() / 1000);

/** A signed token; `claims` win over the defaults, a claim that is undefined is left out. */
export function token(sub, claims = {}, { secret = SECRET, alg = "HS256" } = {}) {
  const body = `${encoded({ alg, typ: "JWT" })}.${encoded({ sub, iat: nowSeconds(), exp: nowSeconds() + 3600, ...claims })}`;
  const signature = alg === "none" ? "" : createHmac("sha256", secret).update(body).digest("base64url");
  return `${body}.${signature}`;
}

/** Tokens that must be refused everywhere, with the reason. */
export function badTokens() {
  const good = token("eve");
  const [head, , signature] = good.split(".");
  return {
    "not a token": "nonsense",
    "empty": "",
    "expired": token("eve", { exp: nowSeconds() - 60 }),
    "not yet valid": token("eve", { nbf: nowSeconds() + 600 }),
    "another secret": token("eve", {}, { secret: "another-secret-of-the-same-length-0000" }),
    "algorithm none": token("eve", {}, { alg: "none" }),
    "algorithm not the pinned one": token("eve", {}, { alg: "HS512" }),
    "no sub": token(undefined),
    "sub that is not a name": token("a\u0000b"),
    "body exchanged": [head, encoded({ sub: "root", exp: nowSeconds() + 3600 }), signature].join("."),
  };
}

// ---- comparison

/** Holes of a pattern: what is made by the server and only its form is known. */
export const any = {
  text: (value) => typeof value === "string" && value.length > 0,
  time: (value) => typeof value === "string" && /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/.test(value) && Math.abs(Date.now() - Date.parse(value)) < 60_000,
  uuid7: (value) => typeof value === "string" && /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/.test(value),
  sid: (value) => typeof value === "string" && /^[A-Za-z0-9_-]{20}$/.test(value),
  set: (...members) => (value) => Array.isArray(value) && isDeepStrictEqual([...value].sort(), [...members].sort()),
};

/** The way to the first difference, or null. Members of an object are exactly those of the pattern. */
function difference(actual, pattern, way = "") {
  if (typeof pattern === "function") return pattern(actual) ? null : `${way || "value"} is ${show(actual)}`;
  if (pattern === null || typeof pattern !== "object") {
    return Object.is(actual, pattern) ? null : `${way || "value"} is ${show(actual)}, not ${show(pattern)}`;
  }
  if (actual === null || typeof actual !== "object" || Array.isArray(actual) !== Array.isArray(pattern)) return `${way || "value"} is ${show(actual)}`;
  for (const key of new Set([...Object.keys(actual), ...Object.keys(pattern)])) {
    if (!(key in actual)) return `${way}.${key} is missing`;
    if (!(key in pattern)) return `${way}.${key} (${show(actual[key])}) does not belong there`;
    const found = difference(actual[key], pattern[key], `${way}.${key}`);
    if (found) return found;
  }
  return null;
}

const show = (value) => (JSON.stringify(value) ?? String(value)).slice(0, 300);

export function like(actual, pattern, what = "") {
  const found = difference(actual, pattern);
  if (found) throw new Error(`${what ? what + ": " : ""}${found}; got ${show(actual)}`);
  return actual;
}

export function ok(condition, what) {
  if (!condition) throw new Error(what);
}

// ---- time

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export function within(promise, what, ms = PATIENCE_MS) {
  let timer;
  const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error(`${what}: nothing within ${ms} ms`)), ms); });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Asks until the answer is true; for what spreads over cores and has no answer of its own. */
export async function until(condition, what, ms = PATIENCE_MS) {
  const end = Date.now() + ms;
  while (!(await condition())) {
    if (Date.now() > end) throw new Error(`${what}: not within ${ms} ms`);
    await sleep(50);
  }
}

// ---- things that arrive

/** A queue that a listener fills and a check empties, in order. */
export class Inbox {
  #items = [];
  #waiting = [];
  /** How it ended, for the message of a check that waits in vain. */
  fate = "";
  constructor(name) { this.name = name; }
  push(item) {
    const waiter = this.#waiting.shift();
    if (waiter) waiter(item); else this.#items.push(item);
  }
  /** The next one, whatever it is. */
  async next(what = "a message", ms = PATIENCE_MS) {
    if (this.#items.length) return this.#items.shift();
    let waiter;
    const arrived = new Promise((resolve) => { waiter = resolve; this.#waiting.push(resolve); });
    return within(arrived, `${this.name} waits for ${what}`, ms).catch((fault) => {
      this.#waiting = this.#waiting.filter((each) => each !== waiter);
      fault.message += this.fate;
      throw fault;
    });
  }
  async expect(pattern, ms) {
    return like(await this.next(show(pattern), ms), pattern, this.name);
  }
  async quiet(ms = QUIET_MS) {
    await sleep(ms);
    ok(this.#items.length === 0, `${this.name} should have heard nothing, but got ${show(this.#items)}`);
  }
  clear() { return this.#items.splice(0); }
}

/** A plain WebSocket client that keeps every frame: parsed in the inbox (unless `packets`), its text in `raw`. */
export class Peer extends Inbox {
  raw = [];
  constructor(name, socket, packets) {
    super(name);
    this.socket = socket;
    this.closing = new Promise((resolve) => socket.on("close", (code, reason) => resolve({ code, reason: reason.toString() })));
    this.closing.then(({ code, reason }) => { this.fate = ` (closed with ${code} "${reason}")`; });
    socket.on("message", (data, binary) => {
      this.raw.push(data.toString());
      this.push(binary ? { binary: data.length } : packets ? data.toString() : JSON.parse(data.toString()));
    });
    socket.on("error", () => {});
  }
  say(type, payload) { this.send(payload === undefined ? { type } : { type, payload }); }
  send(value) { this.socket.send(typeof value === "string" || Buffer.isBuffer(value) ? value : JSON.stringify(value)); }
  async closed(code, reason, ms) {
    const end = await within(this.closing, `${this.name} waits for close ${code}`, ms);
    ok(end.code === code, `${this.name} was closed with ${end.code} "${end.reason}", not ${code}`);
    if (reason !== undefined) ok(end.reason === reason, `${this.name}: close reason is "${end.reason}", not "${reason}"`);
    return end;
  }
  async end() {
    this.socket.close(1000);
    await within(this.closing, `${this.name} closes`);
  }
}

/** Opens a plain WebSocket; a refusal before the upgrade rejects with `status`, `headers` and `body`. */
export function open(path, { name = path, headers, origin, perMessageDeflate = false, packets = false, port = PORT } = {}) {
  const socket = new WebSocket(`ws://127.0.0.1:${port}${path}`, { headers, origin, perMessageDeflate });
  const peer = new Peer(name, socket, packets);
  const opened = new Promise((resolve, reject) => {
    socket.once("open", () => resolve(peer));
    socket.once("error", reject);
    socket.once("unexpected-response", (_, response) => {
      const parts = [];
      response.on("data", (part) => parts.push(part));
      response.on("end", () => {
        socket.terminate();
        reject(Object.assign(new Error(`HTTP ${response.statusCode}`), { status: response.statusCode, headers: response.headers, body: Buffer.concat(parts).toString() }));
      });
    });
  });
  return within(opened, `opening ${path.slice(0, 100)}`);
}

/** The refusal of an upgrade that must be refused. */
export async function refused(path, options) {
  const peer = await open(path, options).catch((fault) => fault);
  if (peer instanceof Peer) { peer.socket.terminate(); throw new Error(`${path.slice(0, 100)} was accepted`); }
  if (peer.status === undefined) throw peer;
  return peer;
}

export const query = (values) => "?" + Object.entries(values).flatMap(([key, value]) => [value].flat().map((each) => `${key}=${encodeURIComponent(each)}`)).join("&");

// ---- Socket.IO

const { io, Manager } = need("socket.io-client");
export { io, Manager };

/** The three ways in which a client may travel. */
export const TRANSPORTS = [["polling"], ["websocket"], ["polling", "websocket"]];
export const transport = (guest) => guest.socket.io.engine.transport.name;
/** Waits until a client uses the best transport it may use. */
export const settled = (guest) => until(() => transport(guest) === guest.socket.io.opts.transports.at(-1), `${guest.name}'s upgrade`);

/** A socket of its own connection, with every event in the inbox as `[name, ...arguments]`. */
export class Guest extends Inbox {
  constructor(name, socket) {
    super(name);
    this.socket = socket;
    this.ended = new Promise((resolve) => socket.on("disconnect", (reason) => resolve(reason)));
    if (socket.onAny) {
      socket.onAny((...event) => this.push(event));
    } else {
      // Version 2 has no listener for everything.
      const { onevent } = socket;
      socket.onevent = (packet) => { this.push(packet.data); onevent.call(socket, packet); };
    }
  }
  ask(event, ...args) {
    return within(new Promise((resolve) => this.socket.emit(event, ...args, resolve)), `${this.name} waits for the answer of ${event}`);
  }
  tell(event, ...args) { this.socket.emit(event, ...args); }
  /** Passes over events that do not belong to the check, presence above all. */
  async hear(name, pattern, ms) {
    for (;;) {
      const [event, ...args] = await this.next(`event ${name}`, ms);
      if (event === name) return like(args[0], pattern, `${this.name} hears ${name}`);
    }
  }
  /** The same of one user: that somebody of an earlier check has gone may be told late, on a busy machine. */
  async hearOf(userId, name, pattern) {
    for (;;) {
      const [event, told] = await this.next(`event ${name} of ${userId}`);
      if (event === name && told?.userId === userId) return like(told, { userId, ...pattern }, `${this.name} hears ${name}`);
    }
  }
  /** The same of silence. */
  async deafOf(userId, name, ms = QUIET_MS) {
    await sleep(ms);
    const heard = this.clear().filter(([event, told]) => event === name && told?.userId === userId);
    ok(heard.length === 0, `${this.name} should not have heard ${show(heard)}`);
  }
  async deaf(name, ms = QUIET_MS) {
    await sleep(ms);
    const heard = this.clear().filter(([event]) => event === name);
    ok(heard.length === 0, `${this.name} should not have heard ${show(heard)}`);
  }
  async end() {
    this.socket.disconnect();
    this.socket.io.engine?.close();
  }
}

/** A guest of a namespace; `library` is another version's `io`, `port` that of a proxy. */
export function visit(namespace, { library = io, port = PORT, ...options } = {}, name = "guest") {
  const socket = library(`http://127.0.0.1:${port}${namespace}`, { transports: ["websocket"], forceNew: true, reconnection: false, ...options });
  const guest = new Guest(name, socket);
  const entered = new Promise((resolve, reject) => {
    socket.once("connect", () => resolve(guest));
    socket.once("connect_error", reject);
    // Version 2 calls a refusal so; as a name it is an event like any other since.
    if (!socket.onAny) socket.once("error", reject);
  });
  return within(entered, `${name} connects to ${namespace}`).catch((fault) => { if (!socket.connected) socket.io.engine?.close(); throw fault; });
}

/** The connect error of a namespace that must be refused. */
export async function unwelcome(namespace, options, name) {
  const outcome = await visit(namespace, options, name).catch((fault) => fault);
  if (outcome instanceof Guest) { await outcome.end(); throw new Error(`${name ?? "guest"} was let into ${namespace}`); }
  return outcome;
}

// ---- a network that fails

/** A TCP proxy before the public port, on a port of its own, whose connections can be cut or left half open. */
export class Proxy {
  #pairs = new Set();
  #isDown = false;
  /** The port it leads to; another from the next connection on, when it is set. */
  target = PORT;
  static async start(target = PORT) {
    const proxy = new Proxy();
    proxy.target = target;
    proxy.server = createServer((near) => proxy.#join(near));
    await new Promise((resolve) => proxy.server.listen(0, "127.0.0.1", resolve));
    proxy.port = proxy.server.address().port;
    return proxy;
  }
  #join(near) {
    near.on("error", () => {});
    if (this.#isDown) return near.destroy();
    const far = connect(this.target, "127.0.0.1");
    far.on("error", () => {});
    const pair = { near, far };
    this.#pairs.add(pair);
    // No pipe: what is half open must not be closed with its other half.
    near.on("data", (bytes) => far.write(bytes));
    far.on("data", (bytes) => near.write(bytes));
    near.on("close", () => this.#part(pair));
    far.on("close", () => this.#part(pair));
  }
  #part(pair) {
    if (this.#pairs.delete(pair)) { pair.near.destroy(); pair.far.destroy(); }
  }
  /** Both sides lose every connection, and nobody gets a new one. */
  cut() {
    this.#isDown = true;
    for (const pair of this.#pairs) this.#part(pair);
  }
  mend() { this.#isDown = false; }
  /** Clients lose every connection while the server hears nothing of it, and nobody gets a new one. */
  halve() {
    this.#isDown = true;
    for (const pair of this.#pairs) {
      this.#pairs.delete(pair);
      pair.near.destroy();
      pair.far.removeAllListeners("data").resume();
    }
  }
}

// ---- plain HTTP

/** One request on a connection of its own. */
export function http(port, method, path, { headers = {}, body } = {}) {
  const answered = new Promise((resolve, reject) => {
    const asked = request({ host: "127.0.0.1", port, method, path, headers: { connection: "close", ...headers }, agent: false }, (response) => {
      const parts = [];
      response.on("data", (part) => parts.push(part));
      response.on("end", () => resolve({ status: response.statusCode, headers: response.headers, text: Buffer.concat(parts).toString() }));
      response.on("error", reject);
    });
    asked.on("error", reject);
    asked.end(body);
  });
  return within(answered, `${method} ${path}`);
}

export async function admin(method, path, { bearer = ADMIN_TOKEN, body } = {}) {
  const text = body === undefined || typeof body === "string" ? body : JSON.stringify(body);
  const answer = await http(CONTROL, method, path, { headers: bearer === null ? {} : { authorization: `Bearer ${bearer}` }, body: text });
  try { answer.json = JSON.parse(answer.text); } catch { answer.json = undefined; }
  return answer;
}

/** The samples of `/metrics`: `[{name, labels, value}]`; a line of another form is a failure. */
export async function metrics() {
  const { status, text } = await http(CONTROL, "GET", "/metrics");
  ok(status === 200, `/metrics answered ${status}`);
  return text.split("\n").filter((line) => line && !line.startsWith("#")).map((line) => {
    const [, name, inner, value] = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$/.exec(line) ?? [];
    ok(name !== undefined && (value === "+Inf" || !Number.isNaN(Number(value))), `/metrics has the line ${line}`);
    return { name, labels: Object.fromEntries([...(inner ?? "").matchAll(/([a-z_]+)="((?:[^"\\]|\\.)*)"/g)].map(([, key, text]) => [key, text])), value: Number(value) };
  });
}

/** Sum of a metric over the samples that carry these labels. */
export async function metric(name, labels = {}) {
  const fits = (sample) => sample.name === name && Object.entries(labels).every(([key, value]) => sample.labels[key] === value);
  return (await metrics()).filter(fits).reduce((sum, sample) => sum + sample.value, 0);
}

/** Fails unless every one of these shards holds connections of the endpoint. */
export async function everyShard(endpoint, shards) {
  const held = await Promise.all(Array.from({ length: shards }, (_, shard) => metric("uringcast_connections", { endpoint, shard: String(shard) })));
  ok(held.every((count) => count > 0), `connections of ${endpoint} by shard: ${held}`);
}

/** Fails unless both shards hold connections of the endpoint. */
export async function bothShards(endpoint) {
  const [first, second] = [await metric("uringcast_connections", { endpoint, shard: "0" }), await metric("uringcast_connections", { endpoint, shard: "1" })];
  ok(first > 0 && second > 0, `connections of ${endpoint}: ${first} on shard 0, ${second} on shard 1; both should hold some`);
  return [first, second];
}

// ---- the oracle of the order scripts

/**
 * `logs` holds what each receiver got, as `{sender, number}`. Every one must hold each message once, all must agree on one order,
 * and each sender's own numbers must rise.
 */
export function oneOrder(logs, senders, each) {
  const first = logs[0].map(({ sender, number }) => `${sender}:${number}`);
  logs.forEach((log, receiver) => {
    const keys = log.map(({ sender, number }) => `${sender}:${number}`);
    const distinct = new Set(keys);
    ok(distinct.size === keys.length, `receiver ${receiver} got ${keys.length - distinct.size} messages twice`);
    ok(distinct.size === senders * each, `receiver ${receiver} lost ${senders * each - distinct.size} messages`);
    const at = keys.findIndex((key, index) => key !== first[index]);
    ok(at < 0, `receiver ${receiver} has ${keys[at]} at place ${at} where receiver 0 has ${first[at]}`);
  });
  const next = new Map();
  for (const { sender, number } of logs[0]) {
    ok(number === (next.get(sender) ?? 0), `sender ${sender}: ${number} arrived where ${next.get(sender) ?? 0} was due`);
    next.set(sender, number + 1);
  }
}

// ---- the list of checks

const checks = [];
export const check = (name, body) => checks.push({ name, body });

/** Runs all checks one after another, cleans up, says what failed, and ends the process. */
export async function run(cleanUp = () => {}) {
  const only = process.argv[2];
  let failed = 0;
  for (const { name, body } of checks) {
    if (only && !name.includes(only)) continue;
    try {
      await body();
      console.log(`ok   ${name}`);
    } catch (fault) {
      failed += 1;
      console.log(`FAIL ${name}\n     ${fault?.stack?.split("\n").slice(0, 4).join("\n     ") ?? fault}`);
    }
  }
  await cleanUp();
  console.log(failed ? `${failed} of ${checks.length} checks failed` : `${checks.length} checks passed`);
  process.exit(failed ? 1 : 0);
}

process.on("unhandledRejection", (fault) => { console.log(`FAIL outside a check: ${fault?.stack ?? fault}`); process.exit(1); });
