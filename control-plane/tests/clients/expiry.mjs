// A connection lives as long as its token (the leeway of this server is 0), and longer with a new one: on every dialect and transport, wherever
// the token came from.
import { any, check, like, ok, open, query, run, sleep, token, TRANSPORTS, visit, within } from "./lib.mjs";
import { AUTH_JS, NEXT_AUTH, session } from "./sessions.mjs";

const ORIGIN = "https://app.example";
const nowSeconds = () => Math.floor(Date.now() / 1000);
const soon = () => nowSeconds() + 4;
// exp has whole seconds; the contract gives 2 s after it, the rest is for a busy machine.
const LATEST_MS = 4_000 + 2_000 + 4_000;
let serial = 0;
const fresh = (name) => `${name}-${++serial}`;

/** How somebody says who he is: by a token in the query or in `auth`, or by a cookie of either library. */
const PROOFS = {
  token: async (user, exp) => ({ asked: { token: token(user, { exp, documents: ["d"] }) }, headers: {} }),
  "cookie of next-auth": async (user, exp) => cookie(NEXT_AUTH, user, exp),
  "cookie of Auth.js": async (user, exp) => cookie(`__Secure-${AUTH_JS}`, user, exp),
};

async function cookie(name, user, exp) {
  const value = await session(name, { sub: user, documents: ["d"] }, { maxAge: exp - nowSeconds() });
  return { asked: {}, headers: { cookie: `${name}=${value}`, origin: ORIGIN } };
}

/** Each dialect: how one enters, shows a new token and hears whether it counts, is alive, and goes when the time is over. */
const DIALECTS = {
  community: {
    async enter(user, { asked, headers }) {
      const peer = await open("/talk" + query(asked), { name: user, headers });
      await peer.expect({ type: "USER_JOINED", payload: { userId: user, message: any.text } });
      return peer;
    },
    async renew(peer, fresh, user) {
      peer.say("AUTHENTICATE", { token: fresh });
      const answer = await peer.next("the answer");
      if (user) like(answer, { type: "AUTHENTICATED", payload: { userId: user } });
      else like(answer, { type: "ERROR", payload: { code: "UNAUTHORIZED", message: any.text } });
    },
    async lives(peer) {
      peer.say("PING");
      await peer.expect({ type: "PONG", payload: {} });
    },
    goes: (peer) => peer.closed(4401, "Token expired", LATEST_MS),
  },
  collab: {
    async enter(user, { asked, headers }) {
      const peer = await open("/ws/fabric" + query({ documentId: "d", clientID: user, ...asked }), { name: user, headers });
      await peer.expect({ type: "connected", clientID: user, documentId: "d" });
      return peer;
    },
    async renew(peer, fresh, user) {
      peer.send({ type: "authenticate", token: fresh });
      // Others of the document come and go meanwhile.
      let answer;
      do answer = await peer.next("the answer"); while (answer.type === "awareness");
      like(answer, user ? { type: "authenticated" } : { type: "error", message: "Unauthorized" });
    },
    async lives(peer) {
      peer.send({ type: "sync", documentId: "d" });
      let answer;
      do answer = await peer.next("synced"); while (answer.type === "awareness");
      ok(answer.type !== "error", JSON.stringify(answer));
    },
    goes: (peer) => peer.closed(4401, "Token expired", LATEST_MS),
  },
};

async function disconnected(guest) {
  ok(await within(guest.ended, `${guest.name}'s disconnect`, LATEST_MS) === "io server disconnect", "by the server");
}

const refusals = {
  rooms: { message: "Invalid authentication token" },
  chat: { code: "AUTHENTICATION_FAILED", message: any.text, timestamp: any.time },
  notify: { message: any.text },
};
const alive = {
  rooms: async (guest) => ok((await guest.ask("room:join", { roomId: "r" })).success, "it may join"),
  chat: async (guest) => { guest.tell("ping"); for (;;) if ((await guest.next("pong"))[0] === "pong") return; },
  notify: async (guest) => ok((await guest.ask("presence:subscribe", { userIds: [guest.name] })).success, "it may subscribe"),
};
for (const [dialect, namespace] of [["rooms", "/"], ["chat", "/chat"], ["notify", "/notify"]]) {
  for (const transports of TRANSPORTS) {
    DIALECTS[`${dialect} over ${transports.join(", then ")}`] = {
      async enter(user, { asked, headers }) {
        const guest = await visit(namespace, { transports, auth: asked, extraHeaders: headers }, user);
        if (dialect === "notify") await guest.hear("authenticated", { userId: user, email: null });
        return guest;
      },
      async renew(guest, fresh, user) {
        const answer = await guest.ask("authenticate", { token: fresh });
        like(answer, user ? { success: true } : { success: false, error: refusals[dialect] });
        if (user) await guest.hear("authenticated", (told) => told.userId === user);
        else await guest.hear(dialect === "notify" ? "auth_error" : "error", refusals[dialect]);
      },
      lives: alive[dialect],
      async goes(guest) {
        if (dialect === "notify") await guest.hear("auth_error", { message: "Token expired" }, LATEST_MS);
        await disconnected(guest);
      },
    };
  }
}

/** Does it for every dialect and proof at once, because most of it is waiting. */
function everywhere(name, body) {
  check(name, async () => {
    const all = Object.entries(DIALECTS).flatMap(([way, dialect]) => Object.entries(PROOFS).map(async ([what, proof]) => {
      await body(dialect, proof, fresh("user")).catch((fault) => { throw new Error(`${way}, ${what}: ${fault.message}`); });
    }));
    const failed = (await Promise.allSettled(all)).filter((outcome) => outcome.status === "rejected");
    ok(failed.length === 0, failed.map((outcome) => outcome.reason.message).join("\n     "));
  });
}

everywhere("when the token expires the connection is closed, not before and within 2 s", async ({ enter, goes }, proof, user) => {
  const exp = soon();
  const visitor = await enter(user, await proof(user, exp));
  await goes(visitor);
  ok(Date.now() >= exp * 1000 - 50, `closed ${exp * 1000 - Date.now()} ms before the token expired`);
});

everywhere("a fresh token in time keeps the connection", async ({ enter, renew, lives }, proof, user) => {
  const exp = soon();
  const visitor = await enter(user, await proof(user, exp));
  await renew(visitor, token(user, { documents: ["d"] }), user);
  await sleep(exp * 1000 - Date.now() + 3_000);
  await lives(visitor);
  await visitor.end();
});

everywhere("a refused new token changes nothing: the old one's end comes", async ({ enter, renew, goes }, proof, user) => {
  const visitor = await enter(user, await proof(user, soon()));
  for (const bad of [token("somebody-else", { documents: ["d"] }), token(user, { exp: nowSeconds() - 60 }), "nonsense"]) await renew(visitor, bad, null);
  await goes(visitor);
});

everywhere("a new token may also end sooner", async ({ enter, renew, goes }, proof, user) => {
  const visitor = await enter(user, await proof(user, nowSeconds() + 600));
  const exp = soon();
  await renew(visitor, token(user, { exp, documents: ["d"] }), user);
  await goes(visitor);
  ok(Date.now() >= exp * 1000 - 50, `closed ${exp * 1000 - Date.now()} ms before the token expired`);
});

check("an encrypted cookie's content is no new token", async () => {
  const { enter, renew } = DIALECTS.community;
  const visitor = await enter("ann", await PROOFS["cookie of Auth.js"]("ann", nowSeconds() + 600));
  await renew(visitor, await session(AUTH_JS, { sub: "ann" }), null);
  await visitor.end();
});

await run();
