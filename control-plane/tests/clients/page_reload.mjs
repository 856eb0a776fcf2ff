// The process is replaced again and again while unmodified clients talk: ws, socket.io-client over WebSocket and over long-polling, and one in a browser. Each is in a room of ten,
// whose first member numbers what he says; everybody must hear every number once and in order, and nobody's connection may end.
//
// CLIENTS, RELOADS, WORKERS (processes that share the clients) and EVERY_MS (between two messages of one room) make it larger: benches/README.md has the run with 15,000.
// WORKER is set for the processes that this one starts.
import { fork } from "node:child_process";
import { request } from "node:http";
import { need, PORT, CONTROL, token, WebSocket } from "./lib.mjs";

const number = (name, otherwise) => Number(process.env[name] ?? otherwise);
const CLIENTS = number("CLIENTS", 300);
const RELOADS = number("RELOADS", 6);
const WORKERS = number("WORKERS", 1);
const EVERY_MS = number("EVERY_MS", 200);
const PID = number("PID");
const ROOM = 10;
const PLAIN = process.env.PLAIN ?? "/talk";
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

// ---- the clients of one process

async function work(worker) {
  const { io } = need("socket.io-client");
  const count = Math.floor(CLIENTS / WORKERS);
  const rooms = [], faults = [];
  let ended = 0, heard = 0, slowest = 0;
  const slow = [];
  const fault = (text) => { if (faults.length < 20) faults.push(text); };

  function member(room, name) {
    const own = { last: 0, name };
    room.members.push(own);
    return {
      hear(content) {
        const [said, at] = content.split(" ").map(Number);
        if (said !== own.last + 1) fault(`${name} heard ${said} after ${own.last}`);
        own.last = said;
        heard++;
        const took = Date.now() - at;
        if (took > slowest) slowest = took;
        if (took > 20) slow.push(took);
      },
      lost(reason) { ended++; fault(`${name} lost its connection: ${reason}`); },
    };
  }

  async function plain(room, name) {
    const { hear, lost } = member(room, name);
    const socket = new WebSocket(`ws://127.0.0.1:${PORT}${PLAIN}?token=${token(name, { rooms: [room.id] })}`);
    await new Promise((done, failed) => { socket.on("open", done); socket.on("error", failed); });
    socket.on("close", (code) => lost(`close ${code}`));
    socket.on("error", (error) => lost(error));
    let joined;
    const isIn = new Promise((done) => (joined = done));
    socket.on("message", (data) => {
      const { type, payload } = JSON.parse(data);
      if (type === "CHAT_MESSAGE") hear(payload.content);
      if (type === "ERROR") fault(`${name}: ${data}`);
      if (type === "SUBSCRIBED") joined();
    });
    socket.send(JSON.stringify({ type: "SUBSCRIBE", payload: { roomId: room.id } }));
    await isIn;
    return (content) => socket.send(JSON.stringify({ type: "CHAT_MESSAGE", payload: { roomId: room.id, content } }));
  }

  async function socketIo(room, name, transport) {
    const { hear, lost } = member(room, name);
    const socket = io(`http://127.0.0.1:${PORT}/`, { transports: [transport], auth: { token: token(name, { rooms: [room.id] }) }, reconnection: false, forceNew: true });
    await new Promise((done, failed) => { socket.on("connect", done); socket.on("connect_error", failed); });
    socket.on("disconnect", lost);
    socket.on("message", (said) => hear(said.content));
    const answer = await socket.timeout(30_000).emitWithAck("room:join", { roomId: room.id });
    if (!answer.success) fault(`${name}: ${JSON.stringify(answer)}`);
    let unanswered = 0;
    room.unanswered = () => unanswered;
    return (content) => {
      unanswered++;
      socket.emit("message", { roomId: room.id, content }, (answer) => { unanswered--; if (!answer.success) fault(`${name}: ${JSON.stringify(answer)}`); });
    };
  }

  const makers = Array.from({ length: Math.floor(count / ROOM) }, (_, index) => async () => {
    const kind = index % 10 < 5 ? "plain" : index % 10 < 8 ? "websocket" : "polling";
    const room = { id: `${kind}-${worker}-${index}`, members: [], said: 0 };
    rooms.push(room);
    for (let place = 0; place < ROOM; place++) {
      const name = `${room.id}-${place}`;
      const say = kind === "plain" ? await plain(room, name) : await socketIo(room, name, kind);
      room.say ??= say;
    }
  });
  // A few at a time: it is not the crowd at the door that is looked at here.
  await Promise.all(Array.from({ length: 8 }, async () => { for (let make; (make = makers.pop()); ) await make(); }));
  process.send({ ready: rooms.length * ROOM });

  let going = true;
  const talking = rooms.map(async (room) => {
    await pause(Math.random() * EVERY_MS);
    while (going) {
      room.say(`${++room.said} ${Date.now()}`);
      await pause(EVERY_MS);
    }
  });
  process.on("message", async () => {
    going = false;
    await Promise.all(talking);
    const until = Date.now() + 20_000;
    const isComplete = (room) => room.members.every((member) => member.last === room.said) && !room.unanswered?.();
    while (!rooms.every(isComplete) && Date.now() < until) await pause(50);
    let missing = 0;
    for (const room of rooms) {
      for (const member of room.members.filter((member) => member.last !== room.said)) {
        missing += room.said - member.last;
        fault(`${member.name} heard ${member.last} of ${room.said}`);
      }
      if (room.unanswered?.()) fault(`${room.id}: ${room.unanswered()} acknowledgements are missing`);
    }
    slow.sort((a, b) => a - b);
    process.send({ done: { ended, heard, missing, slowest, slow: slow.length, p99: slow[Math.floor(slow.length * 0.99)] ?? 0, faults } }, () => process.exit(0));
  });
}

// ---- a browser

async function browse() {
  const { chromium } = need("playwright-core");
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--disable-dev-shm-usage"] });
  const page = await browser.newPage();
  await page.goto(`http://127.0.0.1:${PORT}/health`);
  await page.evaluate(([url]) => new Promise((done, failed) => {
    window.heard = []; window.ended = null; window.said = 0;
    const socket = new WebSocket(url);
    socket.onclose = (event) => { window.ended = event.code; failed(new Error(`closed ${event.code}`)); };
    socket.onmessage = (event) => {
      const { type, payload } = JSON.parse(event.data);
      if (type === "SUBSCRIBED") { window.talk = setInterval(() => socket.send(JSON.stringify({ type: "CHAT_MESSAGE", payload: { roomId: "browser", content: String(++window.said) } })), 100); done(); }
      if (type === "CHAT_MESSAGE") window.heard.push(Number(payload.content));
    };
    socket.onopen = () => socket.send(JSON.stringify({ type: "SUBSCRIBE", payload: { roomId: "browser" } }));
  }), [`ws://127.0.0.1:${PORT}${PLAIN}?token=${token("chromium", { rooms: ["browser"] })}`]);
  return async () => {
    await page.evaluate(() => clearInterval(window.talk));
    const look = () => page.evaluate(() => ({ heard: window.heard, ended: window.ended, said: window.said }));
    let seen = await look();
    for (let tries = 0; tries < 200 && seen.heard.length < seen.said; tries++) { await pause(100); seen = await look(); }
    const { heard, ended, said } = seen;
    await browser.close();
    const inOrder = heard.length === said && heard.every((number, index) => number === index + 1);
    return ended === null && inOrder && said > 0 ? [] : [`the browser said ${said} and heard ${heard.length}, ended ${ended}`];
  };
}

// ---- all of it

/** Reloads done and refused, and the last pause in milliseconds. */
function reloads() {
  return new Promise((done, failed) => {
    const asked = request({ port: CONTROL, path: "/metrics", agent: false }, (answer) => {
      let text = "";
      answer.on("data", (data) => (text += data));
      answer.on("end", () => {
        const value = (name) => Number(text.split("\n").find((line) => line.startsWith(`uringcast_${name} `))?.split(" ").pop());
        done({ done: value('reloads_total{outcome="done"}'), refused: value('reloads_total{outcome="refused"}'), pauseMs: value("reload_pause_seconds") * 1_000 });
      });
    });
    asked.on("error", failed);
    asked.end();
  });
}

async function reload() {
  const before = await reloads();
  process.kill(PID, "SIGHUP");
  for (let tries = 0; tries < 600; tries++) {
    await pause(50);
    // While the process is replaced nobody answers.
    const now = await reloads().catch(() => before);
    if (now.refused > before.refused) throw new Error("a reload was refused");
    if (now.done > before.done) return now.pauseMs;
  }
  throw new Error("a reload has not come to its end");
}

async function lead() {
  const workers = Array.from({ length: WORKERS }, (_, index) => fork(process.argv[1], { env: { ...process.env, WORKER: String(index) } }));
  const told = (key) => Promise.all(workers.map((worker) => new Promise((done, failed) => {
    worker.on("message", (message) => key in message && done(message[key]));
    worker.on("exit", (code) => code && failed(new Error(`a worker ended with ${code}`)));
  })));
  const ready = told("ready"), done = told("done");
  const stopBrowsing = await browse();
  const clients = (await ready).reduce((sum, count) => sum + count, 0);
  await pause(1_000);
  const pauses = [];
  for (let count = 0; count < RELOADS; count++) {
    pauses.push(await reload());
    await pause(number("BETWEEN_MS", 500));
  }
  workers.forEach((worker) => worker.send("stop"));
  const outcomes = await done;
  const sum = (key) => outcomes.reduce((sum, outcome) => sum + outcome[key], 0);
  const faults = [...outcomes.flatMap((outcome) => outcome.faults), ...(await stopBrowsing())];
  pauses.sort((a, b) => a - b);
  console.log(JSON.stringify({
    clients: clients + 1, reloads: RELOADS, heard: sum("heard"), ended: sum("ended"), missing: sum("missing"),
    pauseMs: { median: pauses[Math.floor(pauses.length / 2)], longest: pauses.at(-1) },
    deliveryMs: { over20: sum("slow"), slowest: Math.max(...outcomes.map((outcome) => outcome.slowest)) },
  }));
  faults.slice(0, 20).forEach((text) => console.log(text));
  if (faults.length || sum("ended") || sum("missing") || !sum("heard")) process.exit(1);
  process.exit(0);
}

if (process.env.WORKER) await work(Number(process.env.WORKER));
else await lead();
