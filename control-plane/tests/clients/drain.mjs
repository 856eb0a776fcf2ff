// SIGTERM: plain clients see 1001, Socket.IO clients the transport's end; the server leaves with status 0 (the harness looks).
import { admin, check, ok, open, query, run, token, until, visit, within } from "./lib.mjs";

// The default drain is 10 s, the contract's longest 30 s.
const LATEST_MS = 30_000;

check("everybody is told goodbye, nobody new is let in", async () => {
  const peers = await Promise.all(Array.from({ length: 40 }, (_, index) => open("/talk" + query({ token: token(`plain${index}`) }), { name: `plain${index}` })));
  const guests = await Promise.all(Array.from({ length: 20 }, (_, index) => visit("/", { auth: { token: token(`guest${index}`) } }, `guest${index}`)));
  process.kill(Number(process.env.PID), "SIGTERM");
  const refusing = until(async () => {
    const newcomer = await open("/talk" + query({ token: token("late") }), { name: "late" }).catch((fault) => fault);
    if (newcomer.socket) { newcomer.socket.terminate(); return false; }
    return true;
  }, "no new connections");
  const unready = until(async () => (await admin("GET", "/readyz", { bearer: null }).catch(() => ({ status: 503 }))).status === 503, "readiness 503");
  await Promise.all([
    ...peers.map((peer) => peer.closed(1001, undefined, LATEST_MS)),
    ...guests.map((guest) => within(guest.ended, "a goodbye", LATEST_MS).then((reason) => ok(reason === "transport close", `reason ${reason}`))),
    refusing,
    unready,
  ]);
});

await run();
