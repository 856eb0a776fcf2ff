"use client";
// The hook: React's life cycle around one `Connection`.

import { useEffect, useLayoutEffect, useMemo, useState, useSyncExternalStore } from "react";
import { Connection, NOWHERE, type Snapshot } from "./connection.js";
import type { UseWebSocketOptions } from "./options.js";

type Calls = Pick<Connection,
  | "connect" | "disconnect" | "authenticate" | "joinRoom" | "leaveRoom" | "sendMessage" | "startTyping" | "stopTyping"
  | "updatePresence" | "ping" | "on" | "off">;

/** The functions are the same ones in every render, and can be called before there is a connection. */
export interface UseWebSocketResult extends Snapshot, Calls {}

// A server renders once and runs no effects; older Reacts complain there about the one that is about layout.
const useCommit = typeof window === "undefined" ? useEffect : useLayoutEffect;

export function useWebSocket(options: UseWebSocketOptions = {}): UseWebSocketResult {
  const [connection] = useState(() => new Connection());
  const snapshot = useSyncExternalStore(connection.watch, connection.snapshot, () => NOWHERE);
  const autoConnect = options.autoConnect ?? true;
  // Before any effect of this commit: who joins a room there means the user whom this render is about.
  useCommit(() => connection.update(options));
  useEffect(() => connection.attach(autoConnect), [connection, autoConnect]);
  return useMemo(() => {
    const { connect, disconnect, joinRoom, leaveRoom, sendMessage, startTyping, stopTyping, updatePresence, ping, authenticate, on, off } = connection;
    return { ...snapshot, connect, disconnect, joinRoom, leaveRoom, sendMessage, startTyping, stopTyping, updatePresence, ping, authenticate, on, off };
  }, [connection, snapshot]);
}
