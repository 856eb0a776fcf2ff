// How long a message takes from a client of one host to a client of another by way of Redis, and what it costs: two uringcast hosts and two
// Socket.IO servers of Node with the Redis adapter, in turn, in one run on one machine. See benches/README.md.
//
//     CLIENT_MODULES=target/clients node benches/hosts/measure.mjs target/release/uringcast [rounds] [messages a second]
import { execFileSync, spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { connect, createServer } from "node:net";
import { dirname, join, resolve } from "node:path";
import { createInterface } from "node:readline";

const [binary, rounds = "3", rate = "1000"] = process.argv.slice(2);
process.env.CLIENT_MODULES = resolve(process.env.CLIENT_MODULES);
const need = createRequire(join(process.env.CLIENT_MODULES, "/"));
const { io } = need("socket.io-client");

const ROOMS = 10, RECEIVERS = 5, SECONDS = 8, WARMUP = 2;
const TICK_US = 1e6 / Number(execFileSync("getconf", ["CLK_TCK"]));
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const freePort = () => new Promise((done) => { const s = createServer().listen(0, "127.0.0.1", () => { const { port } = s.address(); s.close(() => done(port)); }); });
const children = [];
function start(command, args, env = {}, from = "stdout") {
  const child = spawn(command, args, { env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "pipe"] });
  children.push(child);
  const quiet = from === "stdout" ? child.stderr : child.stdout;
  quiet.resume();
  child.lines = createInterface({ input: child[from] });
  return child;
}
const line = (child, wanted) => new Promise((done) => child.lines.on("line", (text) => { const found = wanted.exec(text); if (found) done(found[1]); }));
process.on("exit", () => children.forEach((child) => child.kill("SIGKILL")));

/** CPU of a process or of its threads of a name, microseconds. */
function cpu(pid, thread) {
  const ticks = (text) => { const words = text.slice(text.lastIndexOf(")") + 2).split(" "); return (Number(words[11]) + Number(words[12])) * TICK_US; };
  if (!thread) return ticks(readFileSync(`/proc/${pid}/stat`, "utf8"));
  return readdirSync(`/proc/${pid}/task`).filter((task) => readFileSync(`/proc/${pid}/task/${task}/comm`, "utf8").trim() === thread)
    .reduce((sum, task) => sum + ticks(readFileSync(`/proc/${pid}/task/${task}/stat`, "utf8")), 0);
}

const redisPort = await freePort();
const redis = start("redis-server", ["--port", String(redisPort), "--save", "", "--bind", "127.0.0.1"]);
const REDIS_URL = `redis://127.0.0.1:${redisPort}`;
await sleep(500);

async function uringcast(mode = "pubsub") {
  const settings = { URINGCAST_LIMITS_RATE_MESSAGES: "1000000", URINGCAST_RELAY_MODE: mode };
  const child = start(resolve(binary), ["--dev", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--shards", "1", "--redis", REDIS_URL], settings, "stderr");
  const ports = await line(child, /public http:\/\/127\.0\.0\.1:(\d+ control http:\/\/127\.0\.0\.1:\d+)/);
  return { pid: child.pid, port: Number(ports.split(" ")[0]), control: Number(ports.split(":").at(-1)), child };
}
async function node() {
  const child = start(process.execPath, [join(dirname(new URL(import.meta.url).pathname), "node-host.mjs")], { REDIS_URL });
  return { pid: child.pid, port: Number(await line(child, /^(\d+)$/)), child };
}

async function visit(port, room) {
  const socket = io(`http://127.0.0.1:${port}/`, { transports: ["websocket"], forceNew: true, reconnection: false });
  await new Promise((done, fail) => socket.on("connect", done).on("connect_error", fail));
  await socket.timeout(10_000).emitWithAck("room:join", { roomId: room });
  return socket;
}

async function measure(name, make) {
  const [here, there] = [await make(), await make()];
  await sleep(1_500);
  const latencies = [];
  let [heard, counts] = [0, false];
  const senders = [];
  for (let room = 0; room < ROOMS; room += 1) {
    senders.push(await visit(here.port, `r${room}`));
    for (let index = 0; index < RECEIVERS; index += 1) {
      const socket = await visit(there.port, `r${room}`);
      socket.on("message", ({ content }) => {
        if (!counts) return;
        heard += 1;
        latencies.push(Number(process.hrtime.bigint() - BigInt(content.split(" ")[0])) / 1e3);
      });
    }
  }
  let [sent, sentCounted] = [0, 0];
  const began = Date.now();
  const padding = "x".repeat(100);
  let before;
  while (Date.now() - began < (WARMUP + SECONDS) * 1_000) {
    if (!counts && Date.now() - began >= WARMUP * 1_000) {
      counts = true;
      before = { here: cpu(here.pid), there: cpu(there.pid), relayHere: cpu(here.pid, "relay"), relayThere: cpu(there.pid, "relay") };
    }
    const due = Math.floor((Date.now() - began) * Number(rate) / 1_000);
    while (sent < due) {
      senders[sent % ROOMS].emit("message", { roomId: `r${sent % ROOMS}`, content: `${process.hrtime.bigint()} ${padding}` });
      sent += 1;
      if (counts) sentCounted += 1;
    }
    await sleep(1);
  }
  const after = { here: cpu(here.pid), there: cpu(there.pid), relayHere: cpu(here.pid, "relay"), relayThere: cpu(there.pid, "relay") };
  await sleep(500);
  latencies.sort((a, b) => a - b);
  const at = (share) => Math.round(latencies[Math.min(latencies.length - 1, Math.floor(latencies.length * share))]);
  const per = (key) => Math.round((after[key] - before[key]) / sentCounted * 10) / 10;
  const result = { name, sent: sentCounted, deliveries: heard, lost: Math.max(0, sentCounted * RECEIVERS - heard), p50_us: at(0.5), p99_us: at(0.99),
    cpu_us_per_message: { sender: per("here"), receiver: per("there"), relay_sender: per("relayHere"), relay_receiver: per("relayThere") } };
  console.log(JSON.stringify(result));
  for (const host of [here, there]) host.child.kill("SIGKILL");
  return result;
}

/** The sum of a metric of a host over its labels. */
async function metric(host, name) {
  const text = await (await fetch(`http://127.0.0.1:${host.control}/metrics`)).text();
  return text.split("\n").filter((row) => row.startsWith(name)).reduce((sum, row) => sum + Number(row.split(" ").at(-1)), 0);
}

/** A client frame of a text; its mask is all zeros. */
function frame(text) {
  const payload = Buffer.from(text);
  const size = payload.length < 126 ? [0x80 | payload.length] : [0x80 | 126, payload.length >> 8, payload.length & 255];
  return Buffer.concat([Buffer.from([0x81, ...size, 0, 0, 0, 0]), payload]);
}

/** A client that says the same in its room as fast as it can, and reads what it is told. Resolves with how it stops. */
async function flood(port, room) {
  const socket = connect(port, "127.0.0.1");
  const heard = (wanted) => new Promise((done) => { const look = (bytes) => { if (bytes.includes(wanted)) { socket.off("data", look); done(); } }; socket.on("data", look); });
  const ask = async (bytes, wanted) => { const answer = heard(wanted); socket.write(bytes); await answer; };
  await ask("GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", "pingInterval");
  await ask(frame("40"), "40{");
  await ask(frame(`420["room:join",{"roomId":"${room}"}]`), "430[");
  socket.resume();
  const many = Buffer.concat(Array(100).fill(frame(`42["message",{"roomId":"${room}","content":"${"x".repeat(100)}"}]`)));
  let goes = true;
  const push = () => { while (goes && socket.write(many)); };
  socket.on("drain", push);
  push();
  return () => { goes = false; };
}

/** As many messages as one relay carries: four clients of one host speak without a pause, the other host hears all of it. */
async function saturate(mode) {
  const [here, there] = [await uringcast(mode), await uringcast(mode)];
  await sleep(1_500);
  await visit(there.port, "flood0");
  const stops = await Promise.all([0, 1, 2, 3].map((number) => flood(here.port, `flood${number}`)));
  await sleep(WARMUP * 1_000);
  const look = async () => ({ at: performance.now(), published: await metric(here, "uringcast_relay_published_total"), received: await metric(there, "uringcast_relay_received_total"),
    read: await metric(there, "uringcast_relay_stream_read_total"), relayHere: cpu(here.pid, "relay"), relayThere: cpu(there.pid, "relay"), redis: cpu(redis.pid), here: cpu(here.pid), there: cpu(there.pid) });
  const before = await look();
  await sleep(SECONDS * 1_000);
  const after = await look();
  stops.forEach((stop) => stop());
  await sleep(2_000);
  const of = (key) => after[key] - before[key];
  const took = of("at") / 1e3;
  const per = (key, count) => Math.round(of(key) / count * 100) / 100;
  const share = (key) => Math.round(of(key) / took / 1e4) / 100;
  const dropped = (await metric(here, "uringcast_relay_dropped_total")) + (await metric(there, "uringcast_relay_dropped_total"));
  console.log(JSON.stringify({ name: `saturated, ${mode}`, published_per_second: Math.round(of("published") / took), received_per_second: Math.round(of("received") / took),
    read_per_second: Math.round(of("read") / took), dropped_in_all: dropped,
    cpu_us_per_message: { relay_sender: per("relayHere", of("published")), relay_receiver: per("relayThere", of("published")), redis: per("redis", of("published")) },
    cores: { sender: share("here"), receiver: share("there"), relay_sender: share("relayHere"), relay_receiver: share("relayThere"), redis: share("redis") } }));
  for (const host of [here, there]) host.child.kill("SIGKILL");
}

for (let round = 0; round < Number(rounds); round += 1) {
  await measure("uringcast, pubsub", () => uringcast("pubsub"));
  await measure("uringcast, streams", () => uringcast("streams"));
  await measure("node", node);
}
for (const mode of ["pubsub", "streams"]) await saturate(mode);
process.exit(0);
