// Session cookies as `next-auth` 4 and `@auth/core` make, encrypt and cut them. Their own code does it, so that nobody here can be wrong
// in the same way twice.
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { need } from "./lib.mjs";

const { SECRET, CLIENT_MODULES } = process.env;
const inside = (file) => join(CLIENT_MODULES, "node_modules", file);
const nextAuth = need("next-auth/jwt");
const nextAuthCookies = need(inside("next-auth/core/lib/cookie.js"));
const authJs = await import(pathToFileURL(inside("@auth/core/jwt.js")));
const authJsCookies = await import(pathToFileURL(inside("@auth/core/lib/utils/cookie.js")));
const { EncryptJWT } = await import(pathToFileURL(need.resolve("jose")));
const { hkdf } = await import(pathToFileURL(need.resolve("@panva/hkdf")));

export const NEXT_AUTH = "next-auth.session-token", AUTH_JS = "authjs.session-token";
export const NAMES = [NEXT_AUTH, `__Secure-${NEXT_AUTH}`, AUTH_JS, `__Secure-${AUTH_JS}`];
const isAuthJs = (name) => name.endsWith(AUTH_JS);

/** The value of a session cookie, made by its library; `keyOf` is the cookie whose key is used. */
export function session(name, claims, { secret = SECRET, maxAge = 3600, keyOf = name } = {}) {
  return isAuthJs(keyOf)
    ? authJs.encode({ token: claims, secret, maxAge, salt: keyOf })
    : nextAuth.encode({ token: claims, secret, maxAge });
}

/** The same with a method that its library understands but does not use itself. */
export async function otherMethod(name, claims) {
  const [enc, bytes] = isAuthJs(name) ? ["A256GCM", 32] : ["A256CBC-HS512", 64];
  const info = isAuthJs(name) ? `Auth.js Generated Encryption Key (${name})` : "NextAuth.js Generated Encryption Key";
  const key = await hkdf("sha256", SECRET, isAuthJs(name) ? name : "", info, bytes);
  return new EncryptJWT(claims).setProtectedHeader({ alg: "dir", enc }).setIssuedAt().setExpirationTime("1h").encrypt(key);
}

/** The cookies that a browser gets for this value, as pairs: one, or chunks. */
export function chunked(name, value) {
  const quiet = { debug() {}, warn() {}, error() {} };
  const { SessionStore } = isAuthJs(name) ? authJsCookies : nextAuthCookies;
  const store = isAuthJs(name)
    ? new SessionStore({ name, options: {} }, {}, quiet)
    : new SessionStore({ name, options: {} }, { cookies: {}, headers: {} }, quiet);
  return store.chunk(value, {}).map((cookie) => `${cookie.name}=${cookie.value}`);
}

/** The header of a browser that has them, among others. */
export const header = (...pairs) => ["theme=dark", ...pairs, "lang=en"].join("; ");
