// Serves the built page, and a token to whoever says a name: for trying out, not for a world of strangers.
//
//     JWT_SECRET=... WEBSOCKET_URL=http://127.0.0.1:3000/chat node page/serve.mjs
//
// The server must let this origin in: WEBSOCKET_CORS_ORIGIN=http://127.0.0.1:5173

import { createHmac } from "node:crypto";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const TYPES = /** @type {Record<string, string>} */ ({ ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css" });
const EXPIRES_IN_SECONDS = 900;

/**
 * @param {string} folder the built page
 * @param {(user: string) => { token: string, url: string, expiresIn: number }} pass what is given to a name
 * @param {number} port 0 for any
 */
export async function serve(folder, pass, port = 0) {
  const root = resolve(folder);
  const server = createServer(async (request, response) => {
    const { pathname, searchParams } = new URL(request.url ?? "/", "http://localhost");
    if (pathname === "/pass") {
      response.setHeader("content-type", "application/json").setHeader("cache-control", "no-store");
      return response.end(JSON.stringify(pass(searchParams.get("user") ?? "")));
    }
    const file = resolve(root, `.${pathname === "/" ? "/index.html" : pathname}`);
    const content = file.startsWith(`${root}/`) ? await readFile(file).catch(() => undefined) : undefined;
    response.writeHead(content ? 200 : 404, { "content-type": TYPES[extname(file)] ?? "application/octet-stream" }).end(content);
  });
  server.listen(port, "127.0.0.1");
  await once(server, "listening");
  const address = /** @type {import("node:net").AddressInfo} */ (server.address());
  return { origin: `http://127.0.0.1:${address.port}`, close: () => { server.closeAllConnections(); server.close(); } };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { JWT_SECRET, WEBSOCKET_URL = "http://127.0.0.1:3000/chat", PORT = "5173" } = process.env;
  if (!JWT_SECRET) throw new Error("JWT_SECRET must be the server's");
  const encoded = (/** @type {unknown} */ value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const { origin } = await serve(fileURLToPath(new URL("../generated/page", import.meta.url)), (user) => {
    const body = `${encoded({ alg: "HS256", typ: "JWT" })}.${encoded({ sub: user, exp: Math.floor(Date.now() / 1000) + EXPIRES_IN_SECONDS })}`;
    return { token: `${body}.${createHmac("sha256", JWT_SECRET).update(body).digest("base64url")}`, url: WEBSOCKET_URL, expiresIn: EXPIRES_IN_SECONDS };
  }, Number(PORT));
  console.log(`the page is on ${origin}`);
}
