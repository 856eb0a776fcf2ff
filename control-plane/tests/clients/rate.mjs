// Over the message rate (this server: 20 messages in 500 ms): each message is answered and dropped, three windows in a row end it.
import { check, like, ok, open, query, run, sleep, token, visit, within } from "./lib.mjs";

const BURST = 20, WINDOW_MS = 500;
const flood = async (send, closing) => {
  let open = true;
  closing.then(() => { open = false; });
  while (open) { for (let each = 0; each < BURST * 2 && open; each += 1) send(); await sleep(WINDOW_MS / 5); }
};

check("community: RATE_LIMIT_EXCEEDED, and after the window all is well", async () => {
  const peer = await open("/talk" + query({ token: token("ann") }), { name: "ann" });
  await peer.next("the greeting");
  for (let each = 0; each < BURST + 5; each += 1) peer.say("PING");
  const answers = [];
  for (let each = 0; each < BURST + 5; each += 1) answers.push(await peer.next("an answer"));
  const refusedOnes = answers.filter((answer) => answer.type === "ERROR");
  ok(refusedOnes.length >= 1 && refusedOnes.length <= 5, `${refusedOnes.length} of ${answers.length} were refused`);
  for (const answer of refusedOnes) like(answer, { type: "ERROR", payload: { code: "RATE_LIMIT_EXCEEDED", message: (text) => typeof text === "string" } });
  await sleep(WINDOW_MS * 3);
  peer.say("PING");
  await peer.expect({ type: "PONG", payload: {} });
  await peer.end();
});

check("collab and rooms have errors of their own, and drop the message", async () => {
  const asked = (clientID) => query({ documentId: "d", clientID, token: token("ann", { documents: ["d"] }) });
  const [ann, bob] = [await open("/ws/fabric" + asked("ann"), { name: "ann" }), await open("/ws/fabric" + asked("bob"), { name: "bob" })];
  await ann.next("the greeting");
  await bob.next("the greeting");
  for (let number = 0; number < BURST + 5; number += 1) ann.send({ type: "update", documentId: "d", number });
  like(await ann.next("the refusal"), { type: "error", message: "Rate limit exceeded" });
  await sleep(300);
  const heard = bob.clear().length, refusals = 1 + ann.clear().length;
  ok(heard + refusals === BURST + 5, `${heard} relayed and ${refusals} refused of ${BURST + 5}`);
  const guest = await visit("/", { auth: { token: token("ann") } });
  for (let each = 0; each < BURST + 5; each += 1) guest.tell("user:status", { status: "away" });
  await guest.hear("error", { message: "Rate limit exceeded" });
  await Promise.all([ann.end(), bob.end(), guest.end()]);
});

check("three windows in a row over the rate: 4429, Socket.IO a server disconnect; a neighbour is not touched", async () => {
  const neighbour = await open("/talk" + query({ token: token("neighbour") }), { name: "neighbour" });
  const peer = await open("/talk" + query({ token: token("bob") }), { name: "bob" });
  const guest = await visit("/", { auth: { token: token("bob") } });
  await Promise.all([
    flood(() => peer.socket.readyState === 1 && peer.say("PING"), peer.closing),
    flood(() => guest.tell("user:status", { status: "away" }), guest.ended),
    peer.closed(4429),
    within(guest.ended, "the disconnect").then((reason) => ok(reason === "io server disconnect", `reason ${reason}`)),
  ]);
  await neighbour.next("the greeting");
  neighbour.say("PING");
  await neighbour.expect({ type: "PONG", payload: {} });
  await neighbour.end();
});

await run();
