// What a back end does beside emitting: steps to documents, cleaning up, numbers of an endpoint; as `ws` and `socket.io-client` clients
// on both shards see it.
import { admin, any, bothShards, check, like, ok, open, query, run, sleep, token, until, visit, within } from "./lib.mjs";

const edit = async (documentId, clientID, path = "/ws/fabric") => {
  const peer = await open(path + query({ token: token("ann", { documents: [documentId] }), documentId, clientID }), { name: clientID });
  await peer.expect({ type: "connected", clientID, documentId });
  return peer;
};

const post = async (path, body, status = 200) => {
  const answer = await admin("POST", path, { body });
  ok(answer.status === status, `${path} ${JSON.stringify(body)}: ${answer.status} ${answer.text}`);
  return answer.json;
};

const steps = (documentId, body, status, endpoint = "fabric") => post(`/v1/endpoints/${endpoint}/documents/${encodeURIComponent(documentId)}/steps`, body, status);

check("steps reach all of a document, on both shards, in one order and word by word; late joiners get them too", async () => {
  const peers = await Promise.all(Array.from({ length: 8 }, (_, at) => edit("d 1", `c${at % 4}`)));
  await bothShards("fabric");
  const other = await edit("d 2", "c0");
  like(await steps("d 1", `{"steps":[{"n":1e100},-0 ],"changeId":"a"}`), { recipients: 8 });
  const text = `{"type":"steps","steps":[{"n":1e100},-0 ],"clientIDs":["agent","agent"],"changeId":"a"}`;
  for (const peer of peers) {
    await peer.next("the steps");
    ok(peer.raw.at(-1) === text, peer.raw.at(-1));
  }
  const waiting = [];
  for (let number = 0; number < 30; number += 1) {
    waiting.push(steps("d 1", { steps: [number], changeId: number }));
    peers[number % 8].send({ type: "steps", documentId: "d 1", steps: [100 + number] });
  }
  await Promise.all(waiting);
  const late = await edit("d 1", "late");
  late.send({ type: "sync", documentId: "d 1" });
  const { updates } = await late.next("what is kept");
  const numbers = updates.slice(1).map(({ steps: [number] }) => number);
  ok(updates.length === 61 && JSON.stringify(updates[0]) === JSON.stringify(JSON.parse(text)), `${updates.length} are kept`);
  for (const [at, peer] of peers.entries()) {
    const own = (number) => number >= 100 && (number - 100) % 8 === at;
    const heard = [];
    for (const _ of numbers.filter((number) => !own(number))) heard.push((await peer.next("steps")).steps[0]);
    like(heard, numbers.filter((number) => !own(number)), `the order of ${peer.name}`);
  }
  await other.quiet();
  await Promise.all([...peers, late, other].map((peer) => peer.end()));
});

check("steps to one client reach its connections and nobody else, now or later", async () => {
  const peers = await Promise.all(Array.from({ length: 4 }, (_, at) => edit("d 3", at % 2 ? "bob" : "eve")));
  like(await steps("d 3", { steps: [1], changeId: "x", clientID: "bob" }), { recipients: 2 });
  for (const [at, peer] of peers.entries()) {
    if (at % 2) await peer.expect({ type: "steps", steps: [1], clientIDs: ["agent"], changeId: "x" });
    else await peer.quiet(50);
  }
  like(await steps("d 3", { steps: [1], changeId: "x", clientID: "nobody" }), { recipients: 0 });
  peers[0].send({ type: "sync", documentId: "d 3" });
  await peers[0].expect({ type: "synced", documentId: "d 3", updates: [] });
  await Promise.all(peers.map((peer) => peer.end()));
});

check("steps for a document that nobody has open wait for the first who opens it, where something is retained", async () => {
  like(await steps("d 4", { steps: [7], changeId: "x" }), { recipients: 0 });
  const first = await edit("d 4", "first");
  first.send({ type: "sync", documentId: "d 4" });
  await first.expect({ type: "synced", documentId: "d 4", updates: [{ type: "steps", steps: [7], clientIDs: ["agent"], changeId: "x" }] });
  await first.end();
  like(await steps("d 4", { steps: [7], changeId: "x" }, 200, "agent"), { recipients: 0 });
});

check("wrong steps are told, and reach nobody", async () => {
  const peer = await edit("d 5", "c");
  const good = { steps: [1], changeId: "x" };
  await steps("d 5", good, 404, "nope");
  await steps("d 5", good, 400, "rooms");
  await steps("a\nb", good, 400);
  for (const wrong of [{ ...good, steps: "1" }, { steps: [1] }, { changeId: "x" }, { ...good, clientID: 1 }, { ...good, colour: "red" }, [], "nonsense"]) await steps("d 5", wrong, 400);
  await steps("d 5", { ...good, steps: ["x".repeat(1_000_000)] }, 413);
  const unsigned = await admin("POST", "/v1/endpoints/fabric/documents/d%205/steps", { bearer: null, body: good });
  ok(unsigned.status === 401, `${unsigned.status}`);
  await peer.quiet();
  await peer.end();
});

check("cleaning up closes who has said nothing but heartbeats, on every transport", async () => {
  const rooms = await Promise.all([["polling"], ["websocket"], ["polling", "websocket"]].map((transports) => visit("/", { transports, auth: { token: token("idle") } }, `${transports}`)));
  const plain = await Promise.all(Array.from({ length: 6 }, (_, at) => open("/talk" + query({ token: token("idle") }), { name: `plain${at}` })));
  const kept = await edit("d 6", "c");
  await sleep(1_500);
  for (const peer of plain) peer.say("PING");
  plain[0].say("SUBSCRIBE", { roomId: "r" });
  rooms[1].tell("typing", { roomId: "nowhere", isTyping: true });
  for (const peer of plain) while ((await peer.next("PONG")).type !== "PONG");
  await sleep(200);
  const seconds = (seconds) => ({ inactiveMinutes: seconds / 60 });
  like(await post("/v1/cleanup", { ...seconds(3_600), endpoint: "talk" }), { closed: 0 });
  like(await post("/v1/cleanup", { ...seconds(1.2), endpoint: "talk" }), { closed: 5 });
  await Promise.all(plain.slice(1).map((peer) => peer.closed(4410, "Inactive")));
  like(await post("/v1/cleanup", { ...seconds(1.2), endpoint: "rooms" }), { closed: 2 });
  for (const guest of [rooms[0], rooms[2]]) ok((await within(guest.ended, "the disconnect")) === "io server disconnect", "the server disconnects");
  ok(rooms[1].socket.connected && kept.socket.readyState === 1, "others stay");
  like(await post("/v1/cleanup", {}), { closed: 0 });
  like(await post("/v1/cleanup", { inactiveMinutes: 0 }), { closed: 3 });
  await plain[0].closed(4410, "Inactive");
  await kept.closed(4410, "Inactive");
  for (const wrong of [{ inactiveMinutes: -1 }, { inactiveMinutes: "1" }, { minutes: 1 }]) await post("/v1/cleanup", wrong, 400);
  await post("/v1/cleanup", { endpoint: "nope" }, 404);
});

check("each endpoint tells its numbers as its dialect's page has them", async () => {
  const numbers = async (name, what = "stats") => {
    const answer = await admin("GET", `/v1/endpoints/${name}/${what}`);
    ok(answer.status === 200, `${name}: ${answer.status} ${answer.text}`);
    return answer.json;
  };
  const number = (value) => typeof value === "number" && value >= 0;
  const peers = [await open("/api/community/ws" + query({ token: token("ann") })), await open("/api/community/ws" + query({ token: token("ann") }))];
  peers.push(await open("/api/community/ws" + query({ token: token("bob") })), await edit("d 7", "c"));
  const guests = [await visit("/chat", { auth: { token: token("ann") } }), await visit("/notify", { auth: { token: token("ann") } })];
  await guests[0].ask("join-room", { room: "r" });
  await until(async () => (await numbers("community")).totalConnections === 3, "three are in");
  like(await numbers("community"), { totalConnections: 3, uniqueUsers: 2, averageConnectionsPerUser: 1.5 });
  like(await numbers("fabric"), { totalConnections: (value) => value > 10, activeConnections: 1, totalRooms: number });
  like(await numbers("chat"), { totalConnections: 1, activeConnections: 1, totalRooms: 1 });
  like(await numbers("rooms"), { totalConnections: number, activeConnections: 0, totalRooms: number, messagesPerMinute: number, bytesPerMinute: number, avgLatency: number });
  await until(async () => (await numbers("notify")).authenticatedUsers === 1, "the user is known");
  like(await numbers("notify"), { totalConnections: 1, authenticatedUsers: 1, averageConnectionsPerUser: 1 });
  guests[0].tell("message", { content: 7 });
  const shape = { totalConnections: 1, activeConnections: 1, totalRooms: 1, messagesPerSecond: number, averageLatency: number, errorRate: (value) => value === 0.5, timestamp: any.time };
  await until(async () => (await numbers("chat", "metrics")).errorRate === 0.5, "one of two is refused");
  like(await numbers("chat", "metrics"), shape);
  ok((await admin("GET", "/v1/endpoints/nope/stats")).status === 404, "unknown");
  await Promise.all([...peers, ...guests].map((each) => each.end()));
});

await run();
