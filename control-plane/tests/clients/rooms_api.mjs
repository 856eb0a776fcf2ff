// Rooms as a back end makes, fills, hears and ends them over HTTP, beside live `socket.io-client` and `ws` clients.
import { admin, any, check, everyShard, like, metric, ok, open, query, run, token, until, visit } from "./lib.mjs";

const FIXED = "endpoint=fixed";
const call = async (method, path, expected = 200, body = undefined) => {
  const answer = await admin(method, path, body === undefined ? {} : { body });
  ok(answer.status === expected, `${method} ${path} ${JSON.stringify(body) ?? ""}: ${answer.status} ${answer.text}`);
  if (expected >= 400) ok(answer.json.status === expected && any.text(answer.json.detail), `problem ${answer.text}`);
  return answer.json;
};
const enter = (user, namespace = "/fixed", auth = {}) => visit(namespace, { auth: { token: token(user, { name: user }), ...auth } }, user);
/** So many guests, and as many again until there are some on both shards: the kernel spreads connections by chance. */
async function crowd(count) {
  await until(async () => (await metric("uringcast_connections", { endpoint: "fixed" })) === 0, "those of before have gone");
  const guests = [];
  for (;;) {
    guests.push(...await Promise.all(Array.from({ length: count }, (_, at) => enter(`guest${guests.length + at}`))));
    if (await everyShard("fixed", 2).then(() => true, () => false)) return guests;
    ok(guests.length < 100, "a hundred connections, and one shard has none");
  }
}
const part = (guests) => Promise.all(guests.map((guest) => guest.end()));
const joined = async (guest, roomId) => ok((await guest.ask("room:join", { roomId })).success === true, `${guest.name} could not join ${roomId}`);

check("a room is made, exists without members, and is entered by its id", async () => {
  const guest = await enter("ann");
  like(await guest.ask("room:join", { roomId: "made" }), { success: false, error: { message: "Failed to join room" } });
  const order = { endpoint: "fixed", id: "made", name: "The made one", namespace: "shop", createdBy: "boss", metadata: { topic: "x", deep: [1, { y: null }] } };
  const room = { id: "made", name: "The made one", namespace: "shop", memberCount: 0, members: [], metadata: order.metadata, createdAt: any.time, createdBy: "boss" };
  like(await call("POST", "/v1/rooms", 201, order), room);
  await call("POST", "/v1/rooms", 409, order);
  like(await call("GET", `/v1/rooms/made?${FIXED}`), room);
  const answer = await guest.ask("room:join", { roomId: "made" });
  like(answer, { success: true, room: { id: "made", name: "The made one", memberCount: 1 }, history: [] });
  like((await call("GET", `/v1/rooms/made?${FIXED}`)).members, [guest.socket.id]);
  await guest.end();
  await until(async () => (await call("GET", `/v1/rooms/made/stats?${FIXED}`)).memberCount === 0, "the guest has left");
  like(await call("GET", `/v1/rooms/made/stats?${FIXED}`), { roomId: "made", memberCount: 0, messageCount: 0, createdAt: any.time, lastActivity: any.time });
  const nameless = await call("POST", "/v1/rooms", 201, { endpoint: "fixed", name: "n" });
  ok(any.uuid7(nameless.id), `an id of its own: ${nameless.id}`);
  like(nameless, { id: nameless.id, name: "n", namespace: "default", memberCount: 0, members: [], metadata: {}, createdAt: any.time, createdBy: null });
  like(await call("DELETE", `/v1/rooms/made?${FIXED}`), { deleted: true });
  for (const [method, path] of [["GET", ""], ["DELETE", ""], ["GET", "/stats"], ["GET", "/members"], ["GET", "/messages"]]) await call(method, `/v1/rooms/made${path}?${FIXED}`, 404);
});

check("connections and users are moved, and the others hear it as if they had come and gone by themselves", async () => {
  await call("POST", "/v1/rooms", 201, { endpoint: "fixed", id: "yard", name: "Yard" });
  const [watcher, ...guests] = await crowd(6);
  await joined(watcher, "yard");
  for (const [at, guest] of guests.entries()) {
    const way = at % 2 ? `/v1/rooms/yard/users/${guest.name}?${FIXED}` : `/v1/rooms/yard/members/${guest.socket.id}?${FIXED}`;
    like(await call("PUT", way), { connections: 1 });
    await watcher.hearOf(guest.name, "user:joined", { username: guest.name, roomId: "yard", timestamp: any.time });
    await call("PUT", way);
  }
  await watcher.deaf("user:joined");
  const inside = [watcher, ...guests].map((guest) => guest.socket.id).sort();
  like((await call("GET", `/v1/rooms/yard?${FIXED}`)).members, inside);
  let [page, seen] = [await call("GET", `/v1/rooms/yard/members?${FIXED}&limit=4`), []];
  for (;;) {
    seen.push(...page.members);
    if (page.cursor === undefined) break;
    page = await call("GET", `/v1/rooms/yard/members?${FIXED}&limit=4&cursor=${page.cursor}`);
  }
  like(seen.map((member) => member.id), inside);
  const member = seen.find(({ id }) => id === watcher.socket.id);
  like(member, { id: member.id, socketId: member.id, endpoint: "fixed", userId: "guest0", username: "guest0", connectedAt: any.time, rooms: ["yard"], metadata: {} });
  for (const guest of guests) {
    const way = `/v1/rooms/yard/members/${guest.socket.id}?${FIXED}`;
    await call("DELETE", way);
    await watcher.hearOf(guest.name, "user:left", { username: guest.name, roomId: "yard", timestamp: any.time });
    await call("DELETE", way);
    like(await guest.ask("message", { roomId: "yard", content: "still here?" }), { success: false, error: { message: "Failed to send message" } });
  }
  await watcher.deaf("user:left");
  like((await call("GET", `/v1/rooms/yard?${FIXED}`)).members, [watcher.socket.id]);
  for (const guest of guests) await guest.deafOf(guest.name, "user:left", 0);
  for (const method of ["PUT", "DELETE"]) {
    await call(method, `/v1/rooms/nowhere/members/${watcher.socket.id}?${FIXED}`, 404);
    await call(method, `/v1/rooms/nowhere/users/guest0?${FIXED}`, 404);
    await call(method, `/v1/rooms/yard/members/AAAAAAAAAAAAAAAAAAAA?${FIXED}`, 404);
    await call(method, `/v1/rooms/yard/members/${watcher.socket.id}?endpoint=rooms`, 404);
  }
  await call("PUT", `/v1/rooms/${watcher.socket.id}/members/${guests[0].socket.id}?${FIXED}`, 409);
  await call("GET", `/v1/rooms/nowhere?${FIXED}`, 404);
  await part([watcher, ...guests]);
});

check("the back end's messages are in the room's one order, and kept with the clients'", async () => {
  await call("POST", "/v1/rooms", 201, { endpoint: "fixed", id: "order", name: "Order" });
  const guests = await crowd(6);
  for (const guest of guests) await joined(guest, "order");
  const logs = guests.map((guest) => { const log = []; guest.push = ([event, value]) => { if (event === "message") log.push(value); }; return log; });
  const waiting = [];
  for (let number = 0; number < 40; number += 1) {
    waiting.push(call("POST", "/v1/rooms/order/messages", 201, { endpoint: "fixed", userId: "bot", content: `b${number}`, type: "system", metadata: { number } }));
    waiting.push(guests[number % guests.length].ask("message", { roomId: "order", content: `c${number}` }));
    if (number % 5 === 0) await Promise.all(waiting);
  }
  const answers = await Promise.all(waiting);
  await until(() => logs.every((log) => log.length === 80), "eighty messages everywhere");
  for (const log of logs) like(log, logs[0], "one order");
  const first = answers[0];
  like(first, { id: any.uuid7, roomId: "order", userId: "bot", username: "bot", content: "b0", type: "system", metadata: { number: 0 }, timestamp: any.time });
  like(logs[0].find(({ id }) => id === first.id), first);
  const newest = [...logs[0]].reverse();
  like((await call("GET", `/v1/rooms/order/messages?${FIXED}`)).messages, newest.slice(0, 50));
  like((await call("GET", `/v1/rooms/order/messages?${FIXED}&limit=7&offset=70`)).messages, newest.slice(70, 77));
  like((await call("GET", `/v1/rooms/order/messages?${FIXED}&limit=1000&offset=79`)).messages, newest.slice(79));
  like((await call("GET", `/v1/rooms/order/messages?${FIXED}&offset=80`)).messages, []);
  const stats = await call("GET", `/v1/rooms/order/stats?${FIXED}`);
  like(stats, { roomId: "order", memberCount: guests.length, messageCount: 80, createdAt: any.time, lastActivity: any.time });
  const late = await enter("late");
  like((await late.ask("room:join", { roomId: "order" })).history, logs[0].slice(-50), "who comes later hears the same");
  await call("POST", "/v1/rooms/nowhere/messages", 404, { endpoint: "fixed", userId: "bot", content: "x" });
  for (const guest of guests) delete guest.push;
  await call("DELETE", `/v1/rooms/order?${FIXED}`);
  like(await late.ask("message", { roomId: "order", content: "anybody?" }), { success: false, error: { message: "Failed to send message" } });
  await late.deaf("user:left");
  await part([late, ...guests]);
});

check("rooms of chat and channels of community are rooms too, in their own words", async () => {
  const guest = await enter("carl", "/chat", { metadata: { device: "mobile", n: 1e21 } });
  like(await guest.ask("join-room", { room: "pub" }), { success: true, room: "pub", memberCount: 1 });
  const { id } = guest.socket;
  like(await call("GET", "/v1/rooms/pub?endpoint=chat"), { name: "pub", memberCount: 1, members: [id], createdAt: any.time });
  const told = await call("GET", `/v1/connections/${id}`);
  like(told, { id, socketId: id, endpoint: "chat", userId: "carl", username: "carl", connectedAt: any.time, rooms: ["pub"], metadata: { device: "mobile", n: 1e21 } });
  const said = await call("POST", "/v1/rooms/pub/messages", 201, { endpoint: "chat", userId: "bot", content: "hi", type: "notification" });
  like(said, { id: (text) => text.startsWith("msg_") && any.uuid7(text.slice(4)), from: "bot", room: "pub", content: "hi", type: "notification", timestamp: any.time });
  await guest.hear("message", said);
  like((await call("GET", "/v1/rooms/pub/messages?endpoint=chat")).messages, [said]);
  const other = await enter("cleo", "/chat", { metadata: { long: "x".repeat(5_000) } });
  like((await call("GET", `/v1/connections/${other.socket.id}`)).metadata, {}, "too long to be kept");
  await call("PUT", `/v1/rooms/new/members/${other.socket.id}?endpoint=chat`);
  like((await call("GET", "/v1/rooms/new?endpoint=chat")).memberCount, 1);
  await part([guest, other]);

  const peer = await open("/talk" + query({ token: token("pia", { name: "Pia" }), roomId: "hall" }), { name: "pia" });
  await peer.expect({ type: "USER_JOINED", payload: { userId: "pia", message: any.text } });
  await until(async () => (await admin("GET", "/v1/rooms/room:hall?endpoint=talk")).status === 200, "pia is in");
  const message = await call("POST", "/v1/rooms/room:hall/messages", 201, { endpoint: "talk", userId: "bot", content: "hello" });
  like(message, { id: any.uuid7, content: "hello", roomId: "hall", authorId: "bot", authorName: "bot", isEdited: false, createdAt: any.time });
  await peer.expect({ type: "CHAT_MESSAGE", payload: message });
  await call("POST", "/v1/rooms", 400, { endpoint: "talk", name: "n", id: "hall" });
  await call("GET", "/v1/rooms/hall?endpoint=talk", 404);
  await peer.end();
});

check("all rooms are listed, each once, and by namespace", async () => {
  for (let number = 0; number < 25; number += 1) {
    await call("POST", "/v1/rooms", 201, { endpoint: "guests", id: `l${number}`, name: "n", namespace: number % 4 ? "many" : "few" });
  }
  const list = async (asked) => {
    const ids = [];
    for (let cursor; ;) {
      const page = await call("GET", "/v1/rooms" + query({ endpoint: "guests", limit: 4, ...asked, ...(cursor ? { cursor } : {}) }));
      ok(page.rooms.length <= 4, "no more than asked for");
      ids.push(...page.rooms.map((room) => room.id));
      if (page.cursor === undefined) return ids;
      cursor = page.cursor;
    }
  };
  const all = Array.from({ length: 25 }, (_, number) => `l${number}`).sort();
  like(await list({}), all);
  like(await list({ namespace: "few" }), all.filter((id) => Number(id.slice(1)) % 4 === 0));
  like(await list({ namespace: "none" }), []);
});

check("a wrong call changes nothing", async () => {
  const guest = await enter("vera");
  await call("POST", "/v1/rooms", 201, { endpoint: "fixed", id: "calm", name: "Calm" });
  await joined(guest, "calm");
  const before = await call("GET", `/v1/rooms/calm/stats?${FIXED}`);
  const listed = await call("GET", `/v1/rooms?${FIXED}`);
  const rooms = { endpoint: "fixed", name: "n" };
  for (const body of [{}, { ...rooms, name: 7 }, { ...rooms, id: "" }, { ...rooms, id: "a\u0001" }, { ...rooms, metadata: [] }, { ...rooms, colour: "red" }, { ...rooms, metadata: { long: "x".repeat(17_000) } }]) await call("POST", "/v1/rooms", 400, body);
  await call("POST", "/v1/rooms", 404, { ...rooms, endpoint: "nothing" });
  await call("POST", "/v1/rooms", 409, { ...rooms, id: guest.socket.id });
  await call("POST", "/v1/rooms", 413, { ...rooms, metadata: { long: "x".repeat(70_000) } });
  const words = { endpoint: "fixed", userId: "bot", content: "c" };
  for (const body of [{}, { ...words, userId: "" }, { ...words, content: 1 }, { ...words, type: "shout" }, { ...words, metadata: 1 }, { ...words, to: "x" }]) await call("POST", "/v1/rooms/calm/messages", 400, body);
  await call("POST", "/v1/rooms/calm/messages", 413, { ...words, content: "x".repeat(1_000_001) });
  await call("POST", "/v1/rooms/calm/messages", 400, { ...words, endpoint: "notify" });
  for (const path of ["?limit=0", "?cursor=x", "?x=1"]) await call("GET", `/v1/rooms/calm/members${path}&${FIXED}`, 400);
  for (const path of ["?limit=0", "?limit=1001", "?offset=-1"]) await call("GET", `/v1/rooms/calm/messages${path}&${FIXED}`, 400);
  for (const [method, path] of [["POST", "/v1/rooms"], ["GET", "/v1/rooms/calm"], ["PUT", `/v1/rooms/calm/members/${guest.socket.id}`]]) {
    const answer = await admin(method, path, { bearer: "wrong" });
    ok(answer.status === 401, `${method} ${path}: ${answer.status}`);
  }
  like(await call("GET", `/v1/rooms/calm/stats?${FIXED}`), before);
  like(await call("GET", `/v1/rooms?${FIXED}`), listed);
  await guest.deaf("message");
  await guest.end();
});

await run();
