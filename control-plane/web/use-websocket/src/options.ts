// What a hook is told, and what becomes of it where nothing is said.

import type { ManagerOptions, SocketOptions } from "socket.io-client";
import type { Metadata, WebSocketError } from "./protocol.js";

export interface UseWebSocketOptions {
  /** Signed token; its `sub` is the user. While there is none nothing is connected, see `tokenRequired`. A new token of the same user
   * is told to the server on the connection that is there, one of another user makes a new connection. */
  token?: string | null | undefined;
  /** Counts only where the server asks for no token. */
  userId?: string | undefined;
  /** About this device, for the handshake. */
  metadata?: Metadata | undefined;
  /** False: connects without a token too (an endpoint with `auth = "none"`, or a session cookie). */
  tokenRequired?: boolean | undefined;
  /** Connects as soon as there is a token; else `connect()` does. True if it is not said. */
  autoConnect?: boolean | undefined;
  /** Comes back by itself when the network or the server has gone. True if it is not said. */
  reconnection?: boolean | undefined;
  /** Without end if it is not said. */
  reconnectionAttempts?: number | undefined;
  /** Milliseconds before the first attempt; it grows with each, to 5 seconds. 1000 if it is not said. */
  reconnectionDelay?: number | undefined;
  /** Milliseconds that a call waits for a connection and an answer. 10000 if it is not said. */
  requestTimeout?: number | undefined;
  /** `NEXT_PUBLIC_WEBSOCKET_URL` where the bundler knows it, else the page's own origin. */
  url?: string | undefined;
  /** `NEXT_PUBLIC_WEBSOCKET_PATH` where the bundler knows it, else `/socket.io`. */
  path?: string | undefined;
  /** What the endpoint is bound to, such as `/chat`; that in the URL if it is not said, else `/`. */
  namespace?: string | undefined;
  /** Anything else that socket.io-client understands. Looked at when a connection is made for a user, not later. */
  socketOptions?: Partial<ManagerOptions & SocketOptions> | undefined;
  /** On each connection, the first and those after. */
  onConnect?: (() => void) | undefined;
  onDisconnect?: ((reason: string) => void) | undefined;
  /** Everything that went wrong: connecting, events of the server, calls that had no answer in time. */
  onError?: ((error: WebSocketError) => void) | undefined;
  /** After `onConnect`, if it took this many attempts. */
  onReconnect?: ((attempt: number) => void) | undefined;
}

// Bundlers put a text where this stands, word by word; where none does, there may be no `process` at all.
declare const process: { env: { NEXT_PUBLIC_WEBSOCKET_URL?: string; NEXT_PUBLIC_WEBSOCKET_PATH?: string } };

function fromBundler(read: () => string | undefined): string | undefined {
  try {
    return read() || undefined;
  } catch {
    return undefined;
  }
}

/** What `io()` is called with. */
export function address({ url, namespace }: UseWebSocketOptions): string {
  const server = url ?? fromBundler(() => process.env.NEXT_PUBLIC_WEBSOCKET_URL) ?? "";
  return namespace === undefined ? server || "/" : `${server.replace(/\/+$/, "")}/${namespace.replace(/^\/+/, "")}`;
}

export function requestPath({ path }: UseWebSocketOptions): string {
  return path ?? fromBundler(() => process.env.NEXT_PUBLIC_WEBSOCKET_PATH) ?? "/socket.io";
}

/** What a connection is made for. When it changes, another one is made. */
export function target(options: UseWebSocketOptions): string {
  const { token, tokenRequired } = options;
  return JSON.stringify([address(options), requestPath(options), user(options), Boolean(token), tokenRequired ?? true]);
}

/** Whom the server will take this client for, as far as can be told from here; only to see whether it is somebody else than before. */
function user({ token, userId }: UseWebSocketOptions): unknown {
  try {
    // Not as UTF-8: one text has one form all the same.
    const claims: unknown = JSON.parse(atob((token ?? "").split(".")[1]!.replace(/-/g, "+").replace(/_/g, "/")));
    return (claims as { sub: unknown }).sub;
  } catch {
    return userId;
  }
}
