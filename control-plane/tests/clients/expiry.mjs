// A connection lives as long as its token (the leeway of this server is 0), and longer with a new one.
import { check, open, ok, query, run, sleep, token, visit, within } from "./lib.mjs";

const soon = () => Math.floor(Date.now() / 1000) + 2;
// exp has whole seconds; the contract gives 2 s after it, the rest is for a busy machine.
const LATEST_MS = 2_000 + 2_000 + 2_000;

check("an expired token closes with 4401, Socket.IO with a server disconnect", async () => {
  const exp = soon(), started = Date.now();
  const peer = await open("/talk" + query({ token: token("ann", { exp }) }), { name: "community" });
  const collab = await open("/ws/fabric" + query({ documentId: "d", clientID: "c", token: token("ann", { exp, documents: ["d"] }) }), { name: "collab" });
  const guest = await visit("/", { auth: { token: token("ann", { exp }) } });
  await Promise.all([
    peer.closed(4401, "Token expired", LATEST_MS),
    collab.closed(4401, "Token expired", LATEST_MS),
    within(guest.ended, "the disconnect", LATEST_MS).then((reason) => ok(reason === "io server disconnect", `reason ${reason}`)),
  ]);
  ok(Date.now() >= exp * 1000 - 50, `closed ${exp * 1000 - Date.now()} ms before the token expired, ${Date.now() - started} ms after connecting`);
});

check("a fresh token in time keeps the connection", async () => {
  const exp = soon();
  const peer = await open("/talk" + query({ token: token("bob", { exp }) }), { name: "community" });
  const collab = await open("/ws/fabric" + query({ documentId: "d", clientID: "c", token: token("bob", { exp, documents: ["d"] }) }), { name: "collab" });
  const guest = await visit("/", { auth: { token: token("bob", { exp }) } });
  const fresh = token("bob", { documents: ["d"] });
  peer.say("AUTHENTICATE", { token: fresh });
  collab.send({ type: "authenticate", token: fresh });
  guest.tell("authenticate", { token: fresh });
  await peer.next("the greeting");
  await peer.expect({ type: "AUTHENTICATED", payload: { userId: "bob" } });
  await collab.next("the greeting");
  await collab.expect({ type: "authenticated" });
  await guest.hear("authenticated", (told) => told.userId === "bob");
  await sleep(exp * 1000 - Date.now() + 3_000);
  peer.say("PING");
  await peer.expect({ type: "PONG", payload: {} });
  collab.send({ type: "sync", documentId: "d" });
  await collab.next("synced");
  ok((await guest.ask("room:join", { roomId: "r" })).success, "Socket.IO is alive");
  await Promise.all([peer.end(), collab.end(), guest.end()]);
});

check("a refused new token changes nothing: the old one's end comes", async () => {
  const exp = soon();
  const peer = await open("/talk" + query({ token: token("carol", { exp }) }), { name: "community" });
  await peer.next("the greeting");
  peer.say("AUTHENTICATE", { token: token("somebody-else") });
  like(await peer.next("the refusal"));
  await peer.closed(4401, "Token expired", LATEST_MS);
});

function like(frame) {
  ok(frame.type === "ERROR" && frame.payload.code === "UNAUTHORIZED", JSON.stringify(frame));
}

await run();
