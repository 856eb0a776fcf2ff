// What rooms keep over two hosts that share a Redis. PART says which part of the story is told; what comes and goes between them is the caller's.
import { connect } from "node:net";
import { CONTROL, PORT, any, check, http, like, ok, open, query, run, sleep, token, until, visit } from "./lib.mjs";

const OTHER = Number(process.env.OTHER_PORT);
const OTHER_CONTROL = Number(process.env.OTHER_CONTROL);
const { ADMIN_TOKEN, PART } = process.env;
const COMMUNITY = "/api/community/messages";

const parts = {};
const guest = (name, port, namespace = "/") => visit(namespace, { port, auth: { token: token(name) } }, name);
const ids = (messages) => messages.map(({ id }) => id);

/** A call of the admin API that must be answered so. */
async function call(control, method, path, status = 200, body) {
  const answer = await http(control, method, path, { headers: { authorization: `Bearer ${ADMIN_TOKEN}` }, body: body && JSON.stringify(body) });
  ok(answer.status === status, `${method} ${path}: ${answer.status} ${answer.text}`);
  return answer.text ? JSON.parse(answer.text) : undefined;
}

/** A REST call of community on the public port. */
async function rest(port, method, path, user, body, status = 200) {
  const answer = await http(port, method, path, { headers: { authorization: `Bearer ${token(user)}`, "content-type": "application/json" }, body: body && JSON.stringify(body) });
  ok(answer.status === status, `${method} ${path}: ${answer.status} ${answer.text}`);
  return JSON.parse(answer.text).data;
}

/** One command for Redis, as another program would give it. */
function redis(...words) {
  return new Promise((resolve, reject) => {
    const socket = connect(Number(process.env.REDIS_PORT), "127.0.0.1");
    socket.on("error", reject);
    socket.once("data", (data) => { socket.destroy(); resolve(data.toString()); });
    socket.write(`*${words.length}\r\n${words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`).join("")}`);
  });
}

/** Whoever comes in while others speak: what was there, and then what he hears. */
async function comeIn(name, port, room) {
  const peer = await guest(name, port);
  const heard = [];
  peer.push = ([event, value]) => { if (event === "message" && value.roomId === room) heard.push(value); };
  const { success, history } = await peer.ask("room:join", { roomId: room });
  ok(success, `${name} joins ${room}`);
  return { peer, history, heard };
}

const messages = (control, room, more = "") => call(control, "GET", `/v1/rooms/${room}/messages?limit=1000${more}`).then((page) => page.messages);

parts.load = () => {
  check("who comes in while others speak on both hosts misses nothing and hears nothing twice", async () => {
    const each = 400;
    const speakers = await Promise.all([["anna", PORT], ["bert", PORT], ["carl", OTHER]].map(async ([name, port]) => ({ name, ...(await comeIn(name, port, "load")) })));
    const watchers = [];
    let isOver = false;
    const speaking = speakers.map(async ({ name, peer }) => {
      for (let number = 0; number < each; number += 1) {
        like((await peer.ask("message", { roomId: "load", content: `${name} ${number}` })).success, true);
        if (number % 4 === 0) await sleep(3);
      }
    });
    const entering = (async () => {
      for (let at = 0; at < 50; at += 1) {
        watchers.push(await comeIn(`watcher${at}`, at % 5 === 4 ? PORT : OTHER, "load"));
        if (isOver) ok(at > 20, "they are to come while somebody speaks");
      }
    })();
    await Promise.all(speaking);
    isOver = true;
    await entering;
    const last = (all, name) => all.some(({ content }) => content === `${name} ${each - 1}`);
    let withHistory = 0;
    for (const { peer, history, heard } of [...speakers, ...watchers]) {
      const all = () => [...history, ...heard];
      await until(() => ["anna", "bert", "carl"].every((name) => last(all(), name)), `${peer.name} hears the end`);
      ok(new Set(ids(all())).size === all().length, `${peer.name} has ${all().length - new Set(ids(all())).size} twice`);
      ok(history.length <= 50, `${history.length} in the history`);
      withHistory += history.length > 0 && heard.length > 0 ? 1 : 0;
      for (const name of ["anna", "bert", "carl"]) {
        const numbers = all().filter(({ userId }) => userId === name).map(({ content }) => Number(content.split(" ")[1]));
        numbers.forEach((number, at) => ok(at === 0 || number === numbers[at - 1] + 1, `${peer.name} hears ${name} say ${number} after ${numbers[at - 1]}`));
      }
    }
    ok(withHistory > 20, `only ${withHistory} came in between`);
    for (const { peer } of [...speakers, ...watchers]) await peer.end();
    const [here, there] = [await messages(CONTROL, "load"), await messages(OTHER_CONTROL, "load")];
    like(ids(there), ids(here), "both hosts say the same of the past");
    ok(here.length === 1000 && new Set(ids(here)).size === 1000, `${here.length} are kept`);
  });
};

parts.rest = () => {
  check("a message is found, changed and taken back on the host that never heard it", async () => {
    const listener = await open(`/api/community/ws?token=${token("lena")}&roomId=far`, { name: "lena" });
    await listener.expect({ type: "USER_JOINED", payload: (value) => value.userId === "lena" });
    // Its answer comes when the channel is listened to.
    listener.say("SUBSCRIBE", { roomId: "far" });
    await listener.expect({ type: "SUBSCRIBED", payload: (value) => value.roomId === "far" });
    const said = await rest(PORT, "POST", COMMUNITY, "ann", { roomId: "far", content: "first" }, 201);
    const later = await rest(OTHER, "POST", COMMUNITY, "ann", { roomId: "far", content: "second" }, 201);
    const list = (port) => rest(port, "GET", `${COMMUNITY}?roomId=far`, "ann");
    for (const port of [PORT, OTHER]) await until(async () => (await list(port)).length === 2, "both are there");
    for (const port of [PORT, OTHER]) like(await list(port), [later, said]);
    like(await rest(OTHER, "GET", `${COMMUNITY}?roomId=far&before=${later.id}`, "ann"), [said]);
    await rest(OTHER, "PATCH", `${COMMUNITY}/${said.id}`, "eve", { content: "mine" }, 403);
    like(await rest(OTHER, "PATCH", `${COMMUNITY}/${said.id}`, "ann", { content: "changed" }), { ...said, content: "changed", isEdited: true });
    for (const port of [PORT, OTHER]) await until(async () => (await list(port))[1]?.content === "changed", "the change is everywhere");
    await listener.expect({ type: "CHAT_MESSAGE", payload: said });
    await listener.expect({ type: "CHAT_MESSAGE", payload: later });
    await listener.expect({ type: "MESSAGE_EDIT", payload: { messageId: said.id, content: "changed", roomId: "far" } });
    await rest(OTHER, "DELETE", `${COMMUNITY}/${said.id}`, "ann");
    await listener.expect({ type: "MESSAGE_DELETE", payload: { messageId: said.id, roomId: "far" } });
    for (const port of [PORT, OTHER]) await until(async () => (await list(port)).length === 1, "it is gone everywhere");
    for (const port of [PORT, OTHER]) like(await list(port), [later]);
    await rest(PORT, "PATCH", `${COMMUNITY}/${said.id}`, "ann", { content: "again" }, 404);
    await rest(OTHER, "PATCH", `${COMMUNITY}/${said.id}`, "ann", { content: "again" }, 404);
    await listener.end();
  });

  check("what another program says is kept once, however many hosts hear it", async () => {
    const hear = async (name, port) => {
      const peer = await open(`/api/community/ws?token=${token(name)}`, { name, port });
      peer.say("SUBSCRIBE", { roomId: "program" });
      await until(() => peer.raw.some((text) => text.includes("SUBSCRIBED")), "subscribed");
      return peer;
    };
    const peers = [await hear("p1", PORT), await hear("p2", OTHER), await hear("p3", OTHER)];
    const id = (number) => `01890000-0000-7000-8000-${String(number).padStart(12, "0")}`;
    for (let number = 0; number < 20; number += 1) {
      const payload = { id: id(number), content: `c${number}`, roomId: "program", authorId: "bot", authorName: "Bot", isEdited: false, createdAt: new Date().toISOString() };
      await redis("PUBLISH", "room:program", JSON.stringify({ type: "CHAT_MESSAGE", payload }));
    }
    await redis("PUBLISH", "room:program", JSON.stringify({ type: "MESSAGE_EDIT", payload: { messageId: id(3), content: "other", roomId: "program" } }));
    await redis("PUBLISH", "room:program", JSON.stringify({ type: "MESSAGE_DELETE", payload: { messageId: id(4), roomId: "program" } }));
    for (const peer of peers) await until(() => peer.raw.some((text) => text.includes("MESSAGE_DELETE")), "heard");
    const expected = Array.from({ length: 20 }, (_, at) => 19 - at).filter((number) => number !== 4).map((number) => (number === 3 ? "other" : `c${number}`));
    for (const port of [PORT, OTHER]) {
      const list = () => rest(port, "GET", `${COMMUNITY}?roomId=program`, "ann").then((all) => all.map(({ content }) => content));
      await until(async () => (await list()).length === 19 && (await list()).includes("other"), "kept once");
      like(await list(), expected);
    }
    for (const peer of peers) await peer.end();
  });

  check("a document's late joiner catches up with both hosts", async () => {
    const join = (client, port) => open(`/ws/fabric${query({ documentId: "doc", clientID: client, token: token(client, { documents: ["doc"] }) })}`, { name: client, port });
    const [one, other] = [await join("c1", PORT), await join("c2", OTHER)];
    await one.expect({ type: "connected", clientID: "c1", documentId: "doc" });
    await other.expect({ type: "connected", clientID: "c2", documentId: "doc" });
    for (let number = 0; number < 10; number += 1) {
      one.send({ type: "update", documentId: "doc", update: number });
      other.send({ type: "update", documentId: "doc", update: 100 + number });
    }
    for (const peer of [one, other]) for (let number = 0; number < 10; number += 1) await peer.next();
    for (const port of [PORT, OTHER]) {
      const late = await join("late", port);
      await late.next();
      late.send({ type: "sync", documentId: "doc" });
      const { type, updates } = await late.next();
      like(type, "synced");
      like(updates.map(({ update }) => update).sort((a, b) => a - b), [...Array(10).keys(), ...[...Array(10).keys()].map((number) => 100 + number)]);
      for (const client of ["c1", "c2"]) like(updates.filter(({ clientID }) => clientID === client).map(({ update }) => update % 100), [...Array(10).keys()]);
      await late.end();
      // What is said of that is over before the next one comes.
      for (const peer of [one, other]) await peer.expect({ type: "awareness", documentId: "doc", clientID: "late", awareness: null });
    }
    await one.end();
    await other.end();
  });

  check("a room that the back end makes is known to hosts that come later", async () => {
    await call(CONTROL, "POST", "/v1/rooms", 201, { endpoint: "fixed", id: "made", name: "Made", namespace: "n", metadata: { a: [1] } });
    await call(CONTROL, "POST", "/v1/rooms", 201, { endpoint: "fixed", id: "brief", name: "Brief" });
    await call(CONTROL, "POST", "/v1/rooms/made/messages", 201, { endpoint: "fixed", userId: "bot", content: "welcome" });
    await call(CONTROL, "DELETE", "/v1/rooms/brief?endpoint=fixed");
  });
};

parts.garbage = () => {
  check("what is no message is passed over", async () => {
    const [here, there] = [await messages(CONTROL, "load"), await messages(OTHER_CONTROL, "load")];
    like(ids(there), ids(here));
    ok(here.length > 900 && here.every(({ content }) => typeof content === "string"), `${here.length} messages`);
    const { history, peer } = await comeIn("curious", OTHER, "load");
    ok(history.length > 40, `${history.length}`);
    await peer.end();
  });
};

parts.restarted = () => {
  check("a host that starts anew finds what was said before", async () => {
    const { history, peer } = await comeIn("late", OTHER, "load");
    // Of the last fifty some are none.
    ok(history.length > 40, `${history.length}`);
    like(ids(history), ids((await messages(CONTROL, "load")).slice(0, history.length).reverse()));
    await peer.end();
  });
  check("and the rooms that the back end has made", async () => {
    const late = await guest("late", OTHER, "/fixed");
    const answer = await late.ask("room:join", { roomId: "made" });
    like(answer, { success: true, room: { id: "made", name: "Made", memberCount: 1 }, history: (list) => list.length === 1 && list[0].content === "welcome" });
    like((await late.ask("room:join", { roomId: "brief" })).success, false);
    like(await call(OTHER_CONTROL, "GET", "/v1/rooms/made?endpoint=fixed"), (room) => room.name === "Made" && room.namespace === "n" && room.metadata.a[0] === 1);
    await late.end();
  });
};

parts.lost = () => {
  check("what Redis has lost the hosts still know", async () => {
    const before = await comeIn("first", PORT, "load");
    ok(before.history.length === 50, `${before.history.length} of before`);
    const said = await before.peer.ask("message", { roomId: "load", content: "after" });
    const after = await comeIn("second", PORT, "load");
    like(ids(after.history), [...ids(before.history).slice(1), said.message.id]);
    const there = await comeIn("third", OTHER, "load");
    ok(ids(there.history).at(-1) === said.message.id, "the other host has it");
    for (const { peer } of [before, after, there]) await peer.end();
  });
};

parts.ended = () => {
  check("a room ends", async () => {
    await call(CONTROL, "DELETE", "/v1/rooms/made?endpoint=fixed");
    await until(async () => (await redis("HEXISTS", "uringcast:rooms:fixed", "made")).startsWith(":0"), "Redis knows");
    await call(CONTROL, "POST", "/v1/rooms", 201, { endpoint: "fixed", id: "new", name: "New" });
  });
};

parts.forgotten = () => {
  check("who was away learns what has ended and what is new", async () => {
    await until(async () => (await call(OTHER_CONTROL, "GET", "/v1/rooms?endpoint=fixed")).rooms.map(({ id }) => id).join() === "new", "the other host's rooms");
    await call(OTHER_CONTROL, "GET", "/v1/rooms/made/messages?endpoint=fixed", 404);
  });
};

parts.down = () => {
  check("without Redis a host answers at once with what it knows", async () => {
    const start = Date.now();
    const { history, peer } = await comeIn("alone", PORT, "load");
    ok(history.length === 50, `${history.length}`);
    ok((await messages(CONTROL, "load")).length > 900, "and the back end");
    ok(Date.now() - start < 2_000, `after ${Date.now() - start} ms`);
    like((await peer.ask("message", { roomId: "load", content: "alone" })).success, true);
    await peer.end();
  });
};

parts.bounds = () => {
  check("number and age are bounded, also of what nobody reads", async () => {
    const { peer } = await comeIn("writer", PORT, "small");
    const far = await comeIn("far", OTHER, "small");
    for (let number = 0; number < 150; number += 1) await (number % 2 ? peer : far.peer).ask("message", { roomId: "small", content: String(number) });
    await until(async () => (await messages(OTHER_CONTROL, "small")).some(({ content }) => content === "149"), "the last");
    const kept = await messages(OTHER_CONTROL, "small");
    like(kept.length, 100);
    like(await call(CONTROL, "GET", "/v1/rooms/small/stats"), (stats) => stats.messageCount === 100 && stats.memberCount >= 1);
    const said = await rest(PORT, "POST", COMMUNITY, "ann", { roomId: "small", content: "x" }, 201);
    await rest(OTHER, "PATCH", `${COMMUNITY}/${said.id}`, "ann", { content: "y" });
    await sleep(2_500);
    const young = (await peer.ask("message", { roomId: "small", content: "young" })).message.id;
    await until(async () => (await messages(OTHER_CONTROL, "small")).length === 1, "only the young one is left");
    like(ids(await messages(OTHER_CONTROL, "small")), [young]);
    for (const one of [peer, far.peer]) await one.end();
  });
};

parts[PART]();
run();
