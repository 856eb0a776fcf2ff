// The built binary that the tests talk to: each test file starts its own on free ports, and can stop it and start it again.

import { spawn, type ChildProcess } from "node:child_process";
import { createHmac, randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { connect, createServer, type AddressInfo, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

// Nothing local takes this long, even on a busy machine.
export const PATIENCE_MS = 15_000;

/** `/` is a chat as the old server's, `/kept` gives back connections that broke off, `/lobby` asks for no token. */
const CONFIGURATION = `
[auth]
leeway_seconds = 0

[server]
drain_seconds = 0

[limits]
connections_per_user = 4

[[endpoint]]
name = "chat"
dialect = "chat"
bind = "/"

[[endpoint]]
name = "kept"
dialect = "chat"
bind = "/kept"
recovery_ms = 60000

[[endpoint]]
name = "lobby"
dialect = "chat"
bind = "/lobby"
auth = "none"
`;

export class Server {
  readonly secret = randomBytes(32).toString("hex");
  readonly #adminToken = randomBytes(16).toString("hex");
  readonly #folder = mkdtempSync(join(tmpdir(), "use-websocket-"));
  readonly #variables: Record<string, string>;
  #child: ChildProcess | undefined;
  #said = "";
  /** Where clients connect; the same after another start. */
  url = "";
  #control = "";

  private constructor(variables: Record<string, string>) {
    this.#variables = variables;
    writeFileSync(join(this.#folder, "uringcast.toml"), CONFIGURATION);
  }

  /** `origin`: of the pages that may connect; `path`: of the requests. */
  static async start({ origin = "", path = "" } = {}): Promise<Server> {
    const server = new Server({ ...(origin && { WEBSOCKET_CORS_ORIGIN: origin }), ...(path && { WEBSOCKET_PATH: path }) });
    await server.run();
    return server;
  }

  async run(): Promise<void> {
    const binary = process.env["URINGCAST"];
    if (!binary) throw new Error("URINGCAST must be the path of the built binary");
    const listen = this.url ? new URL(this.url).host : "127.0.0.1:0";
    const child = spawn(binary, ["--shards", "2", "--listen", listen, "--control", "127.0.0.1:0", "--config", join(this.#folder, "uringcast.toml")], {
      env: { JWT_SECRET: this.secret, ADMIN_TOKEN: this.#adminToken, ...this.#variables },
      stdio: ["ignore", "ignore", "pipe"],
    });
    this.#child = child;
    const addresses = new Promise<RegExpExecArray>((resolve, reject) => {
      const lines = createInterface({ input: child.stderr });
      lines.on("line", (line) => {
        this.#said += `${line}\n`;
        const found = /public (http:\S+) control (http:\S+)/.exec(line);
        if (found) resolve(found);
      });
      lines.on("close", () => reject(new Error(`the server did not start:\n${this.#said}`)));
    });
    const [, url, control] = await within(addresses, "the server's start");
    this.url = url!;
    this.#control = control!;
  }

  /** SIGTERM tells clients goodbye, SIGKILL does not. */
  async stop(signal: "SIGTERM" | "SIGKILL"): Promise<void> {
    const child = this.#child!;
    const ended = once(child, "exit");
    child.kill(signal);
    await within(ended, "the server's end");
  }

  /** Fails if it has died meanwhile or has panicked. */
  async end(): Promise<void> {
    const isAlive = this.#child?.exitCode === null && this.#child.signalCode === null;
    if (isAlive) await this.stop("SIGKILL");
    rmSync(this.#folder, { recursive: true });
    if (!isAlive || this.#said.includes("panicked at")) throw new Error(`the server is not well:\n${this.#said}`);
  }

  /** A signed token; a claim that is undefined is left out. */
  token(sub: string, claims: Record<string, unknown> = {}): string {
    const encoded = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");
    const now = Math.floor(Date.now() / 1000);
    // A new token differs from the one before.
    const body = `${encoded({ alg: "HS256", typ: "JWT" })}.${encoded({ sub, iat: now, exp: now + 3600, jti: randomBytes(6).toString("hex"), ...claims })}`;
    return `${body}.${createHmac("sha256", this.secret).update(body).digest("base64url")}`;
  }

  async admin(method: string, path: string): Promise<unknown> {
    const answer = await fetch(this.#control + path, { method, headers: { authorization: `Bearer ${this.#adminToken}` } });
    if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${await answer.text()}`);
    const text = await answer.text();
    return text ? JSON.parse(text) : undefined;
  }

  /** Ids of a user's connections, or of those in a room. */
  async connections(user: string, room?: string): Promise<string[]> {
    const query = new URLSearchParams(room ? { user, room, endpoint: "chat" } : { user });
    const { connections } = (await this.admin("GET", `/v1/connections?${query}`)) as { connections: { id: string }[] };
    return connections.map(({ id }) => id);
  }
}

/** A way to the server that can be cut, and counts who goes it. */
export class Way {
  /** Connections that were made. */
  made = 0;
  isOpen = true;
  readonly #pairs = new Set<Socket>();
  readonly #listener = createServer((near) => this.#join(near));
  readonly #target: URL;

  private constructor(target: string) {
    this.#target = new URL(target);
  }

  static async to(target: string): Promise<Way> {
    const way = new Way(target);
    way.#listener.listen(0, "127.0.0.1");
    await once(way.#listener, "listening");
    return way;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#listener.address() as AddressInfo).port}`;
  }

  /** Breaks every connection off; until it is opened again new ones are broken off too. */
  cut(): void {
    this.isOpen = false;
    for (const socket of this.#pairs) socket.resetAndDestroy();
  }

  end(): void {
    this.cut();
    this.#listener.close();
  }

  #join(near: Socket): void {
    this.made += 1;
    if (!this.isOpen) return void near.resetAndDestroy();
    const far = connect(Number(this.#target.port), this.#target.hostname);
    for (const [socket, other] of [[near, far], [far, near]] as const) {
      this.#pairs.add(socket);
      socket.pipe(other);
      socket.on("error", () => {});
      socket.on("close", () => { this.#pairs.delete(socket); other.destroy(); });
    }
  }
}

export async function within<Value>(promise: Promise<Value>, what: string): Promise<Value> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => { timer = setTimeout(() => reject(new Error(`${what}: not within ${PATIENCE_MS} ms`)), PATIENCE_MS); });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}
