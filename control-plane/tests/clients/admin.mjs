// The control plane as an operator uses it, beside live `ws` and `socket.io-client` clients.
import { admin, any, check, CONTROL, http, like, metric, metrics, ok, open, query, run, token, until, visit, within } from "./lib.mjs";

const plain = (user, path = "/talk") => open(path + query({ token: token(user, { name: user }), roomId: "lobby" }), { name: user });

check("health and readiness need no token", async () => {
  const health = await admin("GET", "/healthz", { bearer: null });
  ok(health.status === 200, `healthz ${health.status}`);
  like(health.json, { status: "ok" });
  const ready = await admin("GET", "/readyz", { bearer: null });
  ok(ready.status === 200, `readyz ${ready.status}`);
  like(ready.json, { status: "ready", accepting: true, relay: "not_configured", shards: [{ id: 0, responsive: true }, { id: 1, responsive: true }] });
});

check("everything under /v1 needs the admin token; errors are problem documents", async () => {
  for (const [method, path] of [["GET", "/v1/stats"], ["GET", "/v1/connections"], ["GET", "/v1/users/ann"], ["DELETE", "/v1/users/ann"], ["DELETE", "/v1/connections/x"]]) {
    for (const bearer of [null, "", "wrong", `${process.env.ADMIN_TOKEN}x`, process.env.ADMIN_TOKEN.slice(1)]) {
      const answer = await admin(method, path, { bearer });
      ok(answer.status === 401, `${method} ${path} with ${bearer}: ${answer.status}`);
      ok(answer.headers["content-type"].startsWith("application/problem+json"), `content type ${answer.headers["content-type"]}`);
      ok(answer.json.status === 401 && any.text(answer.json.title), `problem ${answer.text}`);
    }
  }
  const unknown = await admin("GET", "/v1/nope");
  ok(unknown.status === 404 && unknown.headers["content-type"].startsWith("application/problem+json"), `unknown path: ${unknown.status} ${unknown.headers["content-type"]}`);
  const missing = await admin("GET", "/v1/connections/AAAAAAAAAAAAAAAAAAAA");
  ok(missing.status === 404, `unknown id: ${missing.status}`);
  const wrong = await admin("GET", "/v1/connections?limit=0");
  ok(wrong.status === 400, `limit=0: ${wrong.status}`);
});

check("connections are listed with what is known of them, filtered and paged", async () => {
  const peers = await Promise.all(Array.from({ length: 7 }, (_, index) => plain(`listed${index % 2}`)));
  const guest = await visit("/", { auth: { token: token("listed0", { name: "Ann", email: "ann@example.com" }) } }, "guest");
  await guest.ask("room:join", { roomId: "salon" });
  const list = async (asked) => {
    const answer = await admin("GET", "/v1/connections" + query(asked));
    ok(answer.status === 200, `${JSON.stringify(asked)}: ${answer.status} ${answer.text}`);
    return answer.json;
  };
  await until(async () => (await list({ endpoint: "talk", user: "listed0" })).connections.length === 4, "four of the user on the endpoint");
  ok((await list({ user: "listed0" })).connections.length === 5, "five of the user");
  ok((await list({ endpoint: "talk", user: "listed1" })).connections.length === 3, "three of the other");
  ok((await list({ endpoint: "rooms", room: "salon" })).connections.length === 1, "one in the salon");
  ok((await list({ user: "nobody" })).connections.length === 0, "none of nobody");
  const unknown = await admin("GET", "/v1/connections?endpoint=nope");
  ok(unknown.status === 404 || unknown.status === 400, `unknown endpoint: ${unknown.status}`);

  const seen = [];
  for (let cursor, page = 0; page < 20; page += 1) {
    const answer = await list({ endpoint: "talk", limit: 2, ...(cursor ? { cursor } : {}) });
    ok(answer.connections.length <= 2, "a page too long");
    seen.push(...answer.connections.map((each) => each.id));
    cursor = answer.cursor;
    if (!cursor) break;
  }
  ok(new Set(seen).size === seen.length && seen.length === 7, `paging saw ${seen.length}, ${new Set(seen).size} different`);

  const id = guest.socket.id;
  const { json } = await admin("GET", `/v1/connections/${id}`);
  ok(json.id === id && json.socketId === id && json.endpoint === "rooms" && json.userId === "listed0" && json.username === "Ann" && json.email === "ann@example.com", JSON.stringify(json));
  ok(any.time(json.connectedAt) && json.rooms.includes("salon"), JSON.stringify(json));

  const user = await admin("GET", "/v1/users/listed0");
  ok(user.json.online === true && user.json.connections.length === 5, user.text);
  const nobody = await admin("GET", "/v1/users/nobody");
  like(nobody.json, { online: false, connections: [] });
  await Promise.all([...peers, guest].map((each) => each.end()));
});

check("kicking a user: plain clients see 4403 with the reason, Socket.IO clients a server disconnect, others nothing", async () => {
  const [one, two, neighbour] = [await plain("kicked"), await plain("kicked"), await plain("neighbour")];
  const guest = await visit("/", { auth: { token: token("kicked") } }, "guest");
  const answer = await admin("DELETE", "/v1/users/kicked" + query({ reason: "Be nice, küss die Hand" }));
  ok(answer.status === 200, `kick: ${answer.status} ${answer.text}`);
  await one.closed(4403, "Be nice, küss die Hand");
  await two.closed(4403, "Be nice, küss die Hand");
  const reason = await within(guest.ended, "the disconnect");
  ok(reason === "io server disconnect", `reason ${reason}`);
  await until(async () => (await admin("GET", "/v1/users/kicked")).json.online === false, "the user is offline");
  neighbour.clear();
  neighbour.say("PING");
  await neighbour.expect({ type: "PONG", payload: {} });
  await neighbour.end();
});

check("the default reason, and a reason longer than a close frame holds", async () => {
  const one = await plain("kicked-plainly");
  await admin("DELETE", "/v1/users/kicked-plainly");
  await one.closed(4403, "Disconnected by administrator");
  const two = await plain("kicked-at-length");
  await admin("DELETE", "/v1/users/kicked-at-length" + query({ reason: "ü".repeat(100) }));
  await two.closed(4403, "ü".repeat(61));
});

check("kicking one connection leaves the user's other one", async () => {
  const [one, two] = [await plain("double"), await plain("double")];
  const [first, second] = (await admin("GET", "/v1/users/double")).json.connections.map((each) => each.id);
  const answer = await admin("DELETE", `/v1/connections/${first}` + query({ reason: "this one" }));
  ok(answer.status === 200, `kick: ${answer.status}`);
  await Promise.race([one.closed(4403, "this one"), two.closed(4403, "this one")]);
  await until(async () => (await admin("GET", "/v1/users/double")).json.connections.length === 1, "one left");
  like((await admin("GET", "/v1/users/double")).json.connections[0].id, second);
  const again = await admin("DELETE", `/v1/connections/${first}`);
  ok(again.status === 404, `a second kick: ${again.status}`);
  one.socket.terminate();
  two.socket.terminate();
});

check("metrics have the contract's names, parse, and carry no user or room", async () => {
  const secretRoom = "room-nobody-may-see", user = "user-nobody-may-see";
  const before = await metric("uringcast_messages_received_total", { endpoint: "talk" });
  const peer = await plain(user);
  peer.say("SUBSCRIBE", { roomId: secretRoom });
  await until(async () => (await metric("uringcast_messages_received_total", { endpoint: "talk" })) > before, "the counter rises");
  const samples = await metrics();
  const names = new Set(samples.map((sample) => sample.name));
  for (const name of ["connections", "connections_accepted_total", "messages_received_total", "messages_delivered_total", "rooms", "outbox_bytes", "mesh_parcels_total",
    "shard_loop_seconds_bucket", "shard_loop_seconds_count", "delivery_seconds_bucket", "delivery_seconds_sum", "build_info"]) {
    ok(names.has(`uringcast_${name}`), `no uringcast_${name}`);
  }
  ok(names.has("process_resident_memory_bytes") && names.has("process_open_fds"), "the usual process collector");
  const labels = JSON.stringify(samples.map((sample) => sample.labels));
  ok(!labels.includes(secretRoom) && !labels.includes(user), "a label carries a user or room");
  ok((await metric("uringcast_connections", { endpoint: "talk" })) >= 1, "one connection is counted");
  const { headers } = await http(CONTROL, "GET", "/metrics");
  ok(headers["content-type"].startsWith("text/plain"), `content type ${headers["content-type"]}`);
  await peer.end();
  await until(async () => (await metric("uringcast_connections", { endpoint: "talk" })) === 0, "and gone again");
});

check("stats add up", async () => {
  const peers = await Promise.all([plain("counted1"), plain("counted2")]);
  const { status, json } = await admin("GET", "/v1/stats");
  ok(status === 200, `stats ${status}`);
  for (const key of ["totalConnections", "activeConnections", "totalRooms", "messagesPerMinute", "bytesPerMinute", "avgLatency"]) ok(typeof json[key] === "number", `${key} is ${json[key]}`);
  ok(json.activeConnections >= 2 && json.totalConnections >= json.activeConnections, JSON.stringify(json));
  await Promise.all(peers.map((each) => each.end()));
});

await run();
