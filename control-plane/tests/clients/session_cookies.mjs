// Who has nothing but a session cookie comes in as the user that it names: on every dialect that looks at cookies, from listed origins.
import { admin, any, check, http, like, ok, open, query, refused, run, TRANSPORTS, unwelcome, until, visit } from "./lib.mjs";
import { AUTH_JS, NAMES, NEXT_AUTH, chunked, header, otherMethod, session } from "./sessions.mjs";

const LISTED = "https://app.example", UNLISTED = "https://evil.example";
let serial = 0;
const fresh = (name) => `${name}-${++serial}`;

/** How each dialect is entered with nothing but this cookie: it gives what ends the visit. `turnedAway` fails if it is let in. */
const WAYS = {
  community: {
    async enter(cookie, origin, user) {
      const peer = await open("/talk", { origin, headers: { cookie } });
      await peer.expect({ type: "USER_JOINED", payload: { userId: user, message: any.text } });
      return () => peer.end();
    },
    turnedAway: async (cookie, origin) => ok((await refused("/talk", { origin, headers: { cookie } })).status === 401, "the status is 401"),
  },
  collab: {
    async enter(cookie, origin, user) {
      const peer = await open("/ws/fabric" + query({ documentId: "d", clientID: user }), { origin, headers: { cookie } });
      await peer.expect({ type: "connected", clientID: user, documentId: "d" });
      return () => peer.end();
    },
    async turnedAway(cookie, origin) {
      const peer = await open("/ws/fabric" + query({ documentId: "d", clientID: "c" }), { origin, headers: { cookie } });
      await peer.closed(4401, "Unauthorized");
    },
  },
};
for (const [dialect, namespace] of [["rooms", "/"], ["chat", "/chat"]]) {
  for (const transports of TRANSPORTS) {
    const options = (cookie, origin) => ({ transports, extraHeaders: { cookie, ...(origin && { origin }) } });
    WAYS[`${dialect} over ${transports.join(", then ")}`] = {
      async enter(cookie, origin) {
        const guest = await visit(namespace, options(cookie, origin));
        return () => guest.end();
      },
      turnedAway: (cookie, origin) => unwelcome(namespace, options(cookie, origin)),
    };
  }
}

async function isOnline(user) {
  const { status, json } = await admin("GET", `/v1/users/${user}`);
  return status === 200 && json.online;
}

/** Enters on every way, and asks the server who came. */
async function comesIn(makeCookie, what) {
  for (const [way, { enter }] of Object.entries(WAYS)) {
    const user = fresh("user");
    const end = await enter(await makeCookie(user), LISTED, user).catch((fault) => { throw new Error(`${what} on ${way}: ${fault.message}`); });
    await until(() => isOnline(user), `${what} on ${way}: ${user} is online`);
    await end();
  }
}

async function staysOut(cookie, origin, what) {
  for (const [way, { turnedAway }] of Object.entries(WAYS)) {
    await turnedAway(cookie, origin).catch((fault) => { throw new Error(`${what} on ${way}: ${fault.message}`); });
  }
}

const claims = (user, more = {}) => ({ sub: user, name: "A User", email: "user@example.com", picture: null, documents: ["d"], ...more });

for (const name of NAMES) {
  check(`${name} is understood, whole`, () => comesIn(async (user) => {
    const pairs = chunked(name, await session(name, claims(user)));
    ok(pairs.length === 1, `${pairs.length} cookies`);
    return header(...pairs);
  }, name));

  check(`${name} is understood in chunks`, () => comesIn(async (user) => {
    const value = await session(name, claims(user, { accessToken: "x".repeat(6_000), padding: "y".repeat(serial % 16) }));
    const pairs = chunked(name, value);
    ok(pairs.length >= 2 && pairs[0].startsWith(`${name}.0=`) && pairs.every((pair) => pair.length < 4_096), `${pairs.length} cookies`);
    // Browsers promise no order.
    return header(...pairs.reverse());
  }, name));

  check(`${name} is understood under the method that its library only reads`, () => comesIn(async (user) => header(`${name}=${await otherMethod(name, claims(user))}`), name));
}

check("a site that has moved from one library to the other leaves cookies behind", async () => {
  for (const [left, good] of [[NEXT_AUTH, AUTH_JS], [`__Secure-${NEXT_AUTH}`, AUTH_JS], [AUTH_JS, NEXT_AUTH], [`__Secure-${AUTH_JS}`, NEXT_AUTH]]) {
    const old = await session(left, claims("somebody-of-old"), { maxAge: -60 });
    await comesIn(async (user) => header(`${left}=${old}`, `${good}=${await session(good, claims(user))}`), `${good} beside ${left}`);
  }
});

check("without a listed origin no cookie counts", async () => {
  for (const name of [NEXT_AUTH, `__Secure-${AUTH_JS}`]) {
    const cookie = header(...chunked(name, await session(name, claims("eve"))));
    await staysOut(cookie, undefined, "no origin");
    await staysOut(cookie, UNLISTED, "an unlisted origin");
    await staysOut(cookie, `${LISTED}.evil.example`, "an origin that begins like a listed one");
  }
  ok(!(await isOnline("eve")), "nobody came in");
});

check("bad cookies count for nothing", async () => {
  const bad = {};
  for (const name of NAMES) {
    bad[`${name}: another secret`] = header(`${name}=${await session(name, claims("eve"), { secret: "another-secret-of-the-same-length-0000000" })}`);
    bad[`${name}: expired`] = header(`${name}=${await session(name, claims("eve"), { maxAge: -60 })}`);
    bad[`${name}: no sub`] = header(`${name}=${await session(name, { name: "eve" })}`);
    for (const keyOf of NAMES.filter((each) => each !== name && (each.endsWith(AUTH_JS) || name.endsWith(AUTH_JS)))) {
      bad[`${name}: the key of ${keyOf}`] = header(`${name}=${await session(name, claims("eve"), { keyOf })}`);
    }
    const pairs = chunked(name, await session(name, claims("eve", { padding: "x".repeat(6_000) })));
    bad[`${name}: a chunk is missing`] = header(...pairs.slice(1));
    bad[`${name}: the last chunk is missing`] = header(...pairs.slice(0, -1));
  }
  for (const [what, cookie] of Object.entries(bad)) await staysOut(cookie, LISTED, what);
  ok(!(await isOnline("eve")), "nobody came in");
});

check("a byte changed anywhere in a cookie is noticed", async () => {
  for (const name of [NEXT_AUTH, AUTH_JS]) {
    const parts = (await session(name, claims("eve"))).split(".");
    ok(parts.length === 5 && parts[1] === "", `${parts.length} parts`);
    for (const [index, part] of parts.entries()) {
      for (const at of new Set([0, part.length >> 1, part.length - 2])) {
        const changed = part === "" ? "AAAA" : part.slice(0, at) + (part[at] === "A" ? "B" : "A") + part.slice(at + 1);
        const cookie = header(`${name}=${parts.with(index, changed).join(".")}`);
        ok((await refused("/talk", { origin: LISTED, headers: { cookie } })).status === 401, `part ${index} at ${at}`);
      }
    }
  }
});

check("what is encrypted is a cookie's content, never a token that somebody shows", async () => {
  for (const name of NAMES) {
    const value = await session(name, claims("eve"));
    for (const [path, headers] of [["/talk" + query({ token: value }), {}], ["/talk", { authorization: `Bearer ${value}` }]]) {
      ok((await refused(path, { origin: LISTED, headers })).status === 401, `${name}: ${path.slice(0, 20)}`);
    }
    await unwelcome("/", { auth: { token: value } });
  }
});

check("notify does not look at cookies unless it is told to", async () => {
  const cookie = header(`${AUTH_JS}=${await session(AUTH_JS, claims("ann"))}`);
  const guest = await visit("/notify", { extraHeaders: { cookie, origin: LISTED } });
  like(await guest.ask("presence:subscribe", {}), { success: false, error: { error: any.text, code: "UNAUTHENTICATED", timestamp: any.time } });
  await guest.end();
});

check("what is refused says nothing of the reason but that a session is over", async () => {
  const said = async (cookie) => (await refused("/talk", { origin: LISTED, headers: { cookie } })).body;
  const good = await session(AUTH_JS, claims("eve"));
  const wrong = [`${good.slice(0, -2)}AA`, good.replace("..", ".AAAA."), "a.b.c.d.e", "....", "x", await session(AUTH_JS, claims("eve"), { secret: "another" })];
  const answers = new Set(await Promise.all(wrong.map((value) => said(header(`${AUTH_JS}=${value}`)))));
  ok(answers.size === 1, [...answers].join(" "));
  const late = await said(header(`${AUTH_JS}=${await session(AUTH_JS, claims("eve"), { maxAge: -60 })}`));
  ok(late.includes("expired"), late);
  ok((await http(Number(process.env.PORT), "GET", "/api/community/ws/health")).status === 200, "all is well");
});

await run();
