// A fleet in the reliable mode: two uringcast hosts and a Socket.IO server of Node with the streams adapter, and clients whose connection breaks
// off on one of them and is taken up on another. Each hears what is said meanwhile on all of them, without a gap and nothing twice.
import { createServer } from "node:http";
import { check, http, like, need, ok, Proxy, run, sleep, token, until, within } from "./lib.mjs";

const { REDIS_URL, ADMIN_TOKEN } = process.env;
const [U1, U2] = process.env.PORTS.split(",").map(Number);
const [CONTROL1, CONTROL2] = process.env.CONTROLS.split(",").map(Number);
const PIDS = process.env.PIDS.split(",").map(Number);

const { io: connect } = need("socket.io-client");
const { Server } = need("socket.io");
const { createAdapter } = need("@socket.io/redis-streams-adapter");
const { createClient } = need("redis");

const redis = createClient({ url: REDIS_URL });
await redis.connect();
const web = createServer();
const io = new Server(web, {
  adapter: createAdapter(redis),
  connectionStateRecovery: { maxDisconnectionDuration: 60_000 },
  pingInterval: 25_000,
});
io.of("/kept").on("connection", (socket) => {
  socket.on("room:join", ({ roomId }, ack) => { socket.join(roomId); ack({ success: true }); });
  socket.on("message", ({ roomId, content }) => socket.nsp.to(roomId).emit("message", { content }));
});
await new Promise((resolve) => web.listen(0, "127.0.0.1", resolve));
const NODE = web.address().port;

let serial = 0;
/** Deliveries that were looked for, each once and in order, and connections that were taken up elsewhere or again. */
let deliveries = 0, recoveries = 0;
const fresh = (stem) => `${stem}-${serial += 1}`;

/** A client by way of a proxy, and what it has heard: the contents of messages, in order. */
class Client {
  heard = [];
  connects = [];
  static async start(port, room, user = fresh("user")) {
    const client = new Client();
    client.proxy = await Proxy.start(port);
    const auth = { token: token(user) };
    client.user = user;
    client.socket = connect(`http://127.0.0.1:${client.proxy.port}/kept`, {
      auth, transports: ["websocket"], forceNew: true, reconnectionDelay: 50, reconnectionDelayMax: 100, timeout: 5_000,
    });
    client.socket.on("connect", () => client.connects.push({ recovered: client.socket.recovered, id: client.socket.id }));
    for (const event of ["message", "told"]) client.socket.on(event, ({ content }) => client.heard.push(content));
    await until(() => client.connects.length === 1, `${user} connects`);
    client.room = room;
    if (room) like((await within(client.socket.emitWithAck("room:join", { roomId: room }), `${user} joins`)).success, true);
    return client;
  }
  /** Breaks off; the next connection goes there. */
  leave(port) {
    this.proxy.cut();
    this.proxy.target = port;
  }
  async back() {
    const before = this.connects.length;
    this.proxy.mend();
    await until(() => this.connects.length > before, `${this.user} comes back`);
    recoveries += this.connects.at(-1).recovered;
    return this.connects.at(-1);
  }
  say(content) { this.socket.emit("message", { roomId: this.room, content }); }
  stop() { this.socket.close(); this.proxy.cut(); this.proxy.server.close(); }
}

/** Somebody on each of the three hosts who stays. */
async function speakers(room) {
  return [await Client.start(U1, room), await Client.start(U2, room), await Client.start(NODE, room)];
}

/** Everybody says something, in turn; what was said. */
async function talk(all, count) {
  const said = [];
  for (let each = 0; each < count; each += 1) {
    for (const one of all) {
      const content = fresh("said");
      one.say(content);
      said.push(content);
    }
  }
  return said;
}

/** All of these have been heard, each once, and what one speaker said in the order in which he said it. */
async function complete(client, said, speakers, what) {
  const missing = () => said.filter((content) => !client.heard.includes(content));
  await until(() => missing().length === 0, `${what}: everything comes`).catch((fault) => { throw new Error(`${fault.message}; missing: ${missing()}`); });
  await sleep(200);
  deliveries += said.length;
  like(client.heard.filter((content) => said.includes(content)).length, said.length, `${what}: nothing twice`);
  speakers.forEach((_, at) => {
    const own = said.filter((_, index) => index % speakers.length === at);
    like(client.heard.filter((content) => own.includes(content)), own, `${what}: in order`);
  });
}

async function emit(content, to) {
  const body = JSON.stringify({ endpoint: "kept", to, event: "told", data: { content } });
  const { status, text } = await http(CONTROL1, "POST", "/v1/emit", { headers: { authorization: `Bearer ${ADMIN_TOKEN}` }, body });
  ok(status === 200, text);
}

/** Goes from one host to another while everybody talks. */
async function moves(from, to, what, last) {
  const room = fresh("room");
  const all = await speakers(room);
  const client = await Client.start(from, room);
  const said = await talk(all, 5);
  await complete(client, said, all, `${what}: before`);
  if (last) await last(client, all, said);
  const { id } = client.socket;
  client.leave(to);
  const missed = await talk(all, 10);
  await sleep(700);
  const late = await talk(all, 3);
  const back = await client.back();
  like(back, { recovered: true, id }, `${what} is recovered and keeps its id`);
  await complete(client, [...said, ...missed, ...late], all, `${what}: missed`);
  const after = await talk(all, 5);
  await complete(client, after, all, `${what}: after`);
  return { client, all, room, said: [...said, ...missed, ...late, ...after] };
}

check("from one host to the other", async () => {
  const { client, all } = await moves(U1, U2, "u1 to u2");
  // And on, and back to where it came from.
  for (const port of [U1, U1, U2]) {
    const { id } = client.socket;
    client.leave(port);
    const missed = await talk(all, 4);
    await sleep(300);
    like(await client.back(), { recovered: true, id });
    await complete(client, missed, all, "and on");
  }
  // It is still somebody to whom others can talk, and who talks.
  const content = fresh("said");
  client.say(content);
  for (const one of all) await until(() => one.heard.includes(content), "the others hear it");
  for (const one of [client, ...all]) one.stop();
});

check("from a server of Node to a host", async () => {
  // Such a server tells its own words at once, and those of others that stand before them in the stream afterwards. What was heard last is
  // where its client's session goes on, so the last word is said when all else has been heard.
  const { client, all } = await moves(NODE, U1, "n to u1", async (client, all) => {
    const content = fresh("said");
    all[0].say(content);
    await until(() => client.heard.includes(content), "the last word");
  });
  for (const one of [client, ...all]) one.stop();
});

check("from a host to a server of Node, where the last word was Node's", async () => {
  const { client, all } = await moves(U2, NODE, "u2 to n", async (client, all, said) => {
    const content = fresh("said");
    io.of("/kept").to(client.room).emit("message", { content });
    await until(() => client.heard.includes(content), "the last word");
  });
  for (const one of [client, ...all]) one.stop();
});

check("what the back end says meanwhile is not missed", async () => {
  const room = fresh("room");
  const client = await Client.start(U1, room);
  await emit(fresh("first"), { rooms: [room] });
  await until(() => client.heard.length === 1, "it hears the back end");
  client.leave(U2);
  await sleep(500);
  const said = [];
  for (const to of [{ rooms: [room] }, { users: [client.user] }, { all: true }]) {
    said.push(fresh("told"));
    await emit(said.at(-1), to);
  }
  await sleep(300);
  like((await client.back()).recovered, true);
  await until(() => said.every((content) => client.heard.includes(content)), "all of it");
  await sleep(200);
  like(client.heard.slice(1), said);
  client.stop();
});

check("what was said to it alone is not missed", async () => {
  const room = fresh("room");
  const client = await Client.start(U1, room), other = await Client.start(U2, room);
  const first = fresh("said");
  other.say(first);
  await until(() => client.heard.includes(first), "it hears");
  const { id } = client.socket;
  client.leave(U2);
  await sleep(500);
  const content = fresh("alone");
  io.of("/kept").to(id).emit("message", { content });
  await sleep(300);
  like(await client.back(), { recovered: true, id });
  await until(() => client.heard.includes(content), "it was for its id");
  const again = fresh("alone");
  io.of("/kept").to(id).emit("message", { content: again });
  await until(() => client.heard.includes(again), "and is still");
  for (const one of [client, other]) one.stop();
});

check("nobody takes up a session twice, or another's", async () => {
  const room = fresh("room");
  const client = await Client.start(U1, room), other = await Client.start(U2, room);
  const content = fresh("said");
  other.say(content);
  await until(() => client.heard.includes(content), "it hears");
  const { _pid: pid, _lastOffset: offset, id } = client.socket;
  client.leave(U2);
  await sleep(500);
  const thief = connect(`http://127.0.0.1:${U2}/kept`, { auth: { token: token("thief") }, transports: ["websocket"], forceNew: true, reconnection: false });
  Object.assign(thief, { _pid: pid, _lastOffset: offset });
  await within(new Promise((resolve) => thief.on("connect", resolve)), "the thief connects");
  ok(!thief.recovered && thief.id !== id, "as somebody new");
  thief.close();
  like(await client.back(), { recovered: true, id }, "whose it is still has it");
  const copy = connect(`http://127.0.0.1:${U1}/kept`, { auth: { token: token(client.user) }, transports: ["websocket"], forceNew: true, reconnection: false });
  Object.assign(copy, { _pid: pid, _lastOffset: offset });
  await within(new Promise((resolve) => copy.on("connect", resolve)), "the copy connects");
  ok(!copy.recovered, "anew");
  copy.close();
  for (const one of [client, other]) one.stop();
});

check("who was disconnected by the back end does not come back elsewhere", async () => {
  const room = fresh("room");
  const client = await Client.start(U1, room), other = await Client.start(U2, room);
  const content = fresh("said");
  other.say(content);
  await until(() => client.heard.includes(content), "it hears");
  client.leave(U2);
  await sleep(600);
  const { status } = await http(CONTROL2, "DELETE", `/v1/users/${client.user}`, { headers: { authorization: `Bearer ${ADMIN_TOKEN}` } });
  ok(status === 200 || status === 204, `${status}`);
  await sleep(100);
  like((await client.back()).recovered, false);
  for (const one of [client, other]) one.stop();
});

check("a host that is stopped in good order leaves its clients to the others", async () => {
  const room = fresh("room");
  const clients = [], stays = await Client.start(U2, room);
  for (let each = 0; each < 20; each += 1) clients.push(await Client.start(U1, room));
  const said = await talk([stays, ...clients.slice(0, 3)], 3);
  for (const client of clients) await until(() => said.every((content) => client.heard.includes(content)), "all hear");
  for (const client of clients) client.proxy.target = U2;
  process.kill(PIDS[0], "SIGTERM");
  const missed = [];
  for (let each = 0; each < 20; each += 1) {
    missed.push(fresh("said"));
    stays.say(missed.at(-1));
    await sleep(50);
  }
  for (const client of clients) await until(() => client.connects.length === 2 && client.socket.connected, "all come back");
  like(clients.map((client) => client.connects[1].recovered), clients.map(() => true), "recovered");
  for (const client of clients) await until(() => missed.every((content) => client.heard.includes(content)), "all hear what was said");
  await sleep(200);
  for (const client of clients) like(client.heard.filter((content) => missed.includes(content)), missed, "each once, in order");
  deliveries += clients.length * missed.length;
  recoveries += clients.length;
  for (const one of [stays, ...clients]) one.stop();
});

await run(() => {
  console.log(`figures: ${recoveries} connections recovered on another host or again, ${deliveries} deliveries to them checked`);
  io.close();
  redis.destroy();
});
