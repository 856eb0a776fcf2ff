// POST /v1/drain: as SIGTERM does, over its own time; the server leaves with status 0 (the harness looks).
import { admin, check, like, ok, open, query, refused, run, token, visit, within } from "./lib.mjs";

check("everybody is told goodbye, nobody new is let in, and a second call changes nothing", async () => {
  const peers = await Promise.all(Array.from({ length: 40 }, (_, index) => open("/talk" + query({ token: token(`plain${index}`) }), { name: `plain${index}` })));
  const guests = await Promise.all(Array.from({ length: 20 }, (_, index) => visit("/", { auth: { token: token(`guest${index}`) } }, `guest${index}`)));
  for (const wrong of [{ seconds: -1 }, { seconds: "1" }, { second: 1 }, { seconds: 4000 }]) {
    const answer = await admin("POST", "/v1/drain", { body: wrong });
    ok(answer.status === 400, `${JSON.stringify(wrong)}: ${answer.status}`);
  }
  ok((await admin("POST", "/v1/drain", { bearer: null, body: {} })).status === 401, "only with the token");
  ok((await admin("POST", "/v1/drain")).status === 400, "not without a body");
  ok((await admin("GET", "/readyz", { bearer: null })).status === 200, "nothing has happened");
  const answer = await admin("POST", "/v1/drain", { body: { seconds: 5 } });
  ok(answer.status === 202, `drain: ${answer.status} ${answer.text}`);
  like(answer.json, { seconds: 5 });
  const unready = await admin("GET", "/readyz", { bearer: null });
  ok(unready.status === 503 && unready.json.accepting === false, `readiness ${unready.status}`);
  const late = await refused("/talk" + query({ token: token("late") })).catch((fault) => fault);
  ok(late.status === undefined || late.status === 503, `a newcomer: ${late.status}`);
  const again = await admin("POST", "/v1/drain", { body: { seconds: 0 } });
  ok(again.status === 409, `again: ${again.status}`);
  ok(peers.some((peer) => peer.socket.readyState === 1), "it is spread over the time");
  await Promise.all([
    ...peers.map((peer) => peer.closed(1001, undefined, 30_000)),
    ...guests.map((guest) => within(guest.ended, "a goodbye", 30_000).then((reason) => ok(reason === "transport close", `reason ${reason}`))),
  ]);
});

await run();
