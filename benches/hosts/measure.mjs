// How long a message takes from a client of one host to a client of another by way of Redis, and what it costs: two uringcast hosts and two
// Socket.IO servers of Node with the Redis adapter, in turn, in one run on one machine. See benches/README.md.
//
//     CLIENT_MODULES=target/clients node benches/hosts/measure.mjs target/release/uringcast [rounds] [messages a second]
import { execFileSync, spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createServer } from "node:net";
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
start("redis-server", ["--port", String(redisPort), "--save", "", "--bind", "127.0.0.1"]);
const REDIS_URL = `redis://127.0.0.1:${redisPort}`;
await sleep(500);

async function uringcast() {
  const child = start(resolve(binary), ["--dev", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--shards", "1", "--redis", REDIS_URL], { URINGCAST_LIMITS_RATE_MESSAGES: "1000000" }, "stderr");
  return { pid: child.pid, port: Number(await line(child, /public http:\/\/127\.0\.0\.1:(\d+)/)), child };
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

for (let round = 0; round < Number(rounds); round += 1) {
  await measure("uringcast", uringcast);
  await measure("node", node);
}
process.exit(0);
