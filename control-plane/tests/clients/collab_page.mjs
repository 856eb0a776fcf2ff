// The collab page of the wire contract, line by line, over `ws`. Back end and Redis have tests of their own.
import { check, like, ok, open, query, run, sleep, token } from "./lib.mjs";

// /ws/fabric keeps updates, /ws/agent does not, /ws/open lets anybody in.
const [FABRIC, AGENT, OPEN] = ["/ws/fabric", "/ws/agent", "/ws/open"];
const error = (message) => ({ type: "error", message });

let serial = 0;
const fresh = (name) => `${name}-${++serial}`;

async function enter(documentId, clientID, { at = FABRIC, user = `user-of-${clientID}`, claims } = {}) {
  const auth = at === OPEN ? {} : { token: token(user, { documents: [documentId], ...claims }) };
  const peer = await open(at + query({ documentId, clientID, ...auth }), { name: clientID });
  await peer.expect({ type: "connected", clientID, documentId });
  return peer;
}

check("documentId and clientID are required and good names: else 1003", async () => {
  const auth = { token: token("ann", { documents: ["d"] }) };
  for (const asked of [{}, { documentId: "d" }, { clientID: "c" }, { documentId: "", clientID: "c" }, { documentId: "d", clientID: "" }, { documentId: "a\u0001", clientID: "c" }, { documentId: "d", clientID: "x".repeat(256) }]) {
    const peer = await open(FABRIC + query({ ...auth, ...asked }), { name: JSON.stringify(asked) });
    await peer.closed(1003, "Missing documentId or clientID");
    ok(peer.raw.length === 0, "nothing was sent before");
  }
});

check("no token or a bad one: 4401 after the upgrade", async () => {
  for (const auth of [{}, { token: "nonsense" }, { token: token("ann", { documents: ["d"], exp: 1 }) }]) {
    const peer = await open(FABRIC + query({ documentId: "d", clientID: "c", ...auth }), { name: JSON.stringify(auth) });
    await peer.closed(4401, "Unauthorized");
  }
});

check("a document that the token does not list: error, then 4403", async () => {
  for (const claims of [{}, { documents: [] }, { documents: ["other"] }]) {
    const peer = await open(FABRIC + query({ documentId: "d", clientID: "c", token: token("ann", claims) }), { name: JSON.stringify(claims) });
    await peer.expect(error("Access denied"));
    await peer.closed(4403);
  }
});

check("a session cookie counts with a listed origin only", async () => {
  const documentId = fresh("d"), path = FABRIC + query({ documentId, clientID: "c" });
  const session = token("ann", { documents: [documentId] });
  for (const name of ["next-auth.session-token", "__Secure-next-auth.session-token", "authjs.session-token"]) {
    const cookie = { cookie: `theme=dark; ${name}=${session}` };
    const peer = await open(path, { origin: "https://app.example", headers: cookie });
    await peer.expect({ type: "connected", clientID: "c", documentId });
    await peer.end();
    for (const origin of [undefined, "https://evil.example", "https://app.example.evil.example"]) {
      await (await open(path, { origin, headers: cookie })).closed(4401, "Unauthorized");
    }
  }
});

check("a session cookie in chunks is joined by their numbers", async () => {
  const documentId = fresh("d"), session = token("ann", { documents: [documentId] });
  const half = Math.floor(session.length / 2);
  const chunks = `next-auth.session-token.1=${session.slice(half)}; next-auth.session-token.0=${session.slice(0, half)}`;
  const peer = await open(FABRIC + query({ documentId, clientID: "c" }), { origin: "https://app.example", headers: { cookie: chunks } });
  await peer.expect({ type: "connected", clientID: "c", documentId });
  await peer.end();
});

check("an endpoint without authentication lets anybody in", async () => {
  const [ann, bob] = [await enter("open-doc", "ann", { at: OPEN }), await enter("open-doc", "bob", { at: OPEN })];
  ann.send({ type: "update", documentId: "open-doc", data: 1 });
  await bob.expect({ type: "update", documentId: "open-doc", data: 1, clientID: "ann" });
  await Promise.all([ann.end(), bob.end()]);
});

check("update, awareness, selection and steps reach the others, not the sender", async () => {
  const documentId = fresh("d");
  const [ann, bob, second] = [await enter(documentId, "ann"), await enter(documentId, "bob"), await enter(documentId, "ann")];
  for (const type of ["update", "awareness", "selection", "steps"]) {
    const said = { type, documentId, data: { nested: [1, "zwei", null, true] }, update: "u", awareness: { x: 1 }, selection: [0, 1], steps: [{ a: 1 }], version: 7 };
    ann.send(said);
    // The second connection of the same clientID is one of the others.
    for (const peer of [bob, second]) await peer.expect({ ...said, clientID: "ann" });
  }
  await ann.quiet();
  await Promise.all([ann.end(), bob.end(), second.end()]);
});

check("the sender's text is kept, numbers and all; only clientID is the server's word", async () => {
  const documentId = fresh("d");
  const [ann, bob] = [await enter(documentId, "ann"), await enter(documentId, "bob")];
  const numbers = '[1e+100,-0,1.0,123456789012345678901234567890,0.10,"\\u00fc\\/"]';
  const texts = [
    `{"type":"update","documentId":"${documentId}","data":${numbers}}`,
    `{"type":"update","documentId":"${documentId}","clientID":"evil","data":${numbers}}`,
    `{"type":"update","clientID":"evil","documentId":"${documentId}","data":${numbers},"client\\u0049D":"worse","clientID":["worst"]}`,
    `{ "clientID" : {"deep":[1]} , "type" : "update" , "documentId" : "${documentId}" , "data" : ${numbers} }`,
  ];
  for (const text of texts) {
    ann.send(text);
    const relayed = await bob.next(text), raw = bob.raw.at(-1);
    like(relayed.clientID, "ann", text);
    ok(raw.includes(numbers), `the numbers became ${raw}`);
    ok(raw.match(/"client(I|\\u0049)D"/g).length === 1, `clientID is there more than once: ${raw}`);
    ok(!/evil|worse|worst|deep/.test(raw), `a claimed clientID was let through: ${raw}`);
  }
  // A member of that name deeper down is the feature's own.
  ann.send({ type: "update", documentId, data: { clientID: "inner" } });
  await bob.expect({ type: "update", documentId, data: { clientID: "inner" }, clientID: "ann" });
  await Promise.all([ann.end(), bob.end()]);
});

check("sync answers synced; only an endpoint that retains adds the kept updates, in order", async () => {
  const documentId = fresh("d");
  const [ann, other] = [await enter(documentId, "ann"), await enter(documentId, "bob", { at: AGENT })];
  ann.send({ type: "sync", documentId });
  const empty = await ann.next("synced");
  like(empty.updates ?? [], []);
  const said = [
    { type: "update", documentId, data: 1 },
    { type: "steps", documentId, steps: [1], version: 1 },
    { type: "update", documentId, data: 2 },
  ];
  ann.send(said[0]);
  ann.send({ type: "awareness", documentId, awareness: {} });
  ann.send(said[1]);
  ann.send({ type: "selection", documentId, selection: [] });
  ann.send(said[2]);
  ann.send({ type: "sync", documentId });
  await ann.next("synced");
  const late = await enter(documentId, "late");
  late.send({ type: "sync", documentId });
  await late.expect({ type: "synced", documentId, updates: said.map((each) => ({ ...each, clientID: "ann" })) });
  other.send({ type: "update", documentId, data: 1 });
  other.send({ type: "sync", documentId });
  await other.expect({ type: "synced", documentId });
  await Promise.all([ann.end(), other.end(), late.end()]);
});

check("documents do not mix, neither do endpoints", async () => {
  const [one, two] = [fresh("d"), fresh("d")];
  const ann = await enter(one, "ann");
  const [otherDocument, otherEndpoint] = [await enter(two, "bob"), await enter(one, "bob", { at: AGENT })];
  ann.send({ type: "update", documentId: one, data: 1 });
  await otherDocument.quiet();
  await otherEndpoint.quiet();
  await Promise.all([ann.end(), otherDocument.end(), otherEndpoint.end()]);
});

check("authenticate takes a new token of the same user only", async () => {
  const documentId = fresh("d"), ann = await enter(documentId, "ann", { user: "ann" });
  ann.send({ type: "authenticate", token: token("ann", { documents: [documentId] }) });
  await ann.expect({ type: "authenticated" });
  for (const bad of [token("bob"), "nonsense", 7, undefined]) {
    ann.send({ type: "authenticate", token: bad });
    await ann.expect(error("Unauthorized"));
  }
  await ann.end();
});

check("errors, in the order of the page; the connection stays", async () => {
  const documentId = fresh("d");
  const [ann, bob] = [await enter(documentId, "ann"), await enter(documentId, "bob")];
  const cases = [
    ["nonsense", "Invalid message format"], ["", "Invalid message format"], ["[]", "Invalid message format"], ["null", "Invalid message format"], ['"update"', "Invalid message format"],
    [{ type: "update", documentId, o: "host" }, "Invalid message format"], [{ type: "update", documentId, toClientID: "bob" }, "Invalid message format"],
    [{ type: "nope", o: 1 }, "Invalid message format"],
    [{ type: "nope" }, "Unknown message type"], [{}, "Unknown message type"], [{ type: 7, documentId }, "Unknown message type"], [{ type: "connected", documentId }, "Unknown message type"],
    [{ type: "update" }, "Document ID mismatch"], [{ type: "update", documentId: "other" }, "Document ID mismatch"], [{ type: "sync", documentId: 7 }, "Document ID mismatch"],
  ];
  for (const [said, message] of cases) {
    ann.send(said);
    await ann.expect(error(message)).catch((fault) => { throw new Error(`${JSON.stringify(said)}: ${fault.message}`); });
  }
  ann.send({ type: "update", documentId, data: "still here" });
  await bob.expect({ type: "update", documentId, data: "still here", clientID: "ann" });
  await bob.quiet();
  await Promise.all([ann.end(), bob.end()]);
});

check("when the last connection of a clientID leaves, its cursor does", async () => {
  const documentId = fresh("d");
  const [ann, bob, second] = [await enter(documentId, "ann"), await enter(documentId, "bob"), await enter(documentId, "bob")];
  await bob.end();
  await ann.quiet();
  second.socket.terminate();
  await ann.expect({ type: "awareness", documentId, clientID: "bob", awareness: null });
  await ann.quiet();
  await ann.end();
});

check("at most 100 connections of a user: one too many is closed with 4429", async () => {
  const documentId = fresh("d"), user = fresh("many");
  const peers = await Promise.all(Array.from({ length: 100 }, (_, index) => enter(documentId, `c${index}`, { user })));
  const extra = await open(FABRIC + query({ documentId, clientID: "extra", token: token(user, { documents: [documentId] }) }), { name: "extra" });
  await extra.closed(4429, "Maximum connection limit reached");
  await Promise.all(peers.map((peer) => peer.end()));
  await sleep(0);
});

await run();
