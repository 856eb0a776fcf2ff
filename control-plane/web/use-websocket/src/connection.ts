// One user's connection to a chat endpoint over socket.io-client: it owns the socket, its token and the rooms to be in. It knows no
// React; whoever watches it reads snapshots.

import { io, type Socket } from "socket.io-client";
import { Calls, unanswered } from "./calls.js";
import { Listeners } from "./listeners.js";
import { address, requestPath, target, type UseWebSocketOptions } from "./options.js";
import {
  asConnectError, asWebSocketError, webSocketError, WebSocketErrorCode, WebSocketEvent,
  type Acknowledgement, type Answer, type JoinRoomPayload, type JoinRoomResponse, type LeaveRoomPayload, type LeaveRoomResponse,
  type PingResponse, type PresencePayload, type PresenceStatus, type SendMessagePayload, type SendMessageResponse, type WebSocketError,
} from "./protocol.js";

const REQUEST_TIMEOUT_MS = 10_000;
/** What a timer can wait at most. */
const REQUEST_TIMEOUT_MAX_MS = 2 ** 31 - 1;

export interface Snapshot {
  readonly isConnected: boolean;
  /** True exactly while there is no connection and another attempt will be made without anybody asking for it. */
  readonly isReconnecting: boolean;
  readonly socketId: string | undefined;
  /** True exactly if the connection is one that had broken off: the rooms were kept, and what was missed has come. */
  readonly recovered: boolean;
  /** The last thing that went wrong since connecting succeeded. */
  readonly lastError: WebSocketError | null;
}

export const NOWHERE: Snapshot = { isConnected: false, isReconnecting: false, socketId: undefined, recovered: false, lastError: null };

export class Connection {
  #options: UseWebSocketOptions = {};
  #snapshot = NOWHERE;
  readonly #watchers = new Set<() => void>();
  readonly #listeners = new Listeners();
  readonly #calls = new Calls(() => this.#socket, (error) => this.#report(error));
  #socket: Socket | undefined;
  /** True exactly while a component is mounted that will close the socket. */
  #isAttached = false;
  /** True exactly if there should be a connection. */
  #isWanted = false;
  /** What the next handshake says. */
  #token: string | null | undefined;
  /** What the last handshake said, or what the server has accepted since. */
  #provenToken: string | null | undefined;
  /** Attempts to come back since the connection was lost. */
  #attempts = 0;
  /** Rooms to be in, with what was said to enter. */
  readonly #rooms = new Map<string, JoinRoomPayload>();
  /** Rooms left without a connection; one that is recovered is still in them. */
  readonly #leftAway = new Set<string>();

  // ---- what the hook does

  readonly watch = (watcher: () => void): (() => void) => {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  };

  readonly snapshot = (): Snapshot => this.#snapshot;

  /** Takes the options of the latest render. */
  update(options: UseWebSocketOptions): void {
    const before = this.#options;
    this.#options = options;
    const isNewToken = options.token !== before.token;
    if (isNewToken) this.#token = options.token;
    if (target(options) !== target(before)) {
      if (this.#socket) this.#drop();
      this.#openSoon();
    } else if (isNewToken) {
      this.#renew();
    }
  }

  /** A component is there; gives back what takes it away. */
  attach(autoConnect: boolean): () => void {
    this.#isAttached = true;
    if (autoConnect) this.connect();
    return () => {
      this.#isAttached = false;
      this.#isWanted = false;
      this.#drop();
    };
  }

  // ---- what the application does

  readonly connect = (): void => {
    this.#isWanted = true;
    this.#openSoon();
  };

  /** The rooms are entered again after the next `connect`. */
  readonly disconnect = (): void => {
    this.#isWanted = false;
    this.#attempts = 0;
    this.#socket?.disconnect();
    this.#set({ isReconnecting: false });
  };

  /** The room is to be entered now or with the next connection, and again with each one after it, until it is left or the server refuses. */
  readonly joinRoom = async (payload: JoinRoomPayload): Promise<JoinRoomResponse> => {
    const { room } = payload, entry = { ...payload };
    this.#rooms.set(room, entry);
    return { room, memberCount: 0, ...(await this.#enter(entry)) } as JoinRoomResponse;
  };

  /** Without a connection it takes effect at once: who is not connected is in no room. */
  readonly leaveRoom = async (payload: LeaveRoomPayload): Promise<LeaveRoomResponse> => {
    const { room } = payload, wasIn = this.#rooms.delete(room);
    const leftAway = (): LeaveRoomResponse => {
      if (wasIn) this.#leftAway.add(room);
      return { success: true, room };
    };
    this.#calls.cancel("The room was left before it was entered", joins(room));
    if (!this.#socket?.connected) return leftAway();
    const answer = await this.#ask(WebSocketEvent.LEAVE_ROOM, payload);
    return answer.success || this.#socket?.connected ? ({ room, ...answer } as LeaveRoomResponse) : leftAway();
  };

  readonly sendMessage = async (payload: SendMessagePayload): Promise<SendMessageResponse> =>
    (await this.#ask(WebSocketEvent.MESSAGE, payload)) as SendMessageResponse;

  /** Without a connection it says nothing. The server ends the typing after 5 seconds unless it is said again. */
  readonly startTyping = (where?: string | { room?: string }): void => this.#tellTyping(WebSocketEvent.TYPING_START, where);

  readonly stopTyping = (where?: string | { room?: string }): void => this.#tellTyping(WebSocketEvent.TYPING_STOP, where);

  readonly updatePresence = (presence: PresenceStatus | PresencePayload): Promise<Acknowledgement> =>
    this.#ask(WebSocketEvent.PRESENCE_UPDATE, presence);

  /** Measures the way there and back; without a connection there is nothing to measure. */
  readonly ping = async (): Promise<PingResponse> => {
    if (!this.#socket?.connected) return unanswered("Not connected");
    const start = performance.now(), answer = await this.#ask(WebSocketEvent.PING);
    return answer.success ? { success: true, latency: performance.now() - start } : answer;
  };

  /** Tells the server a new token of the same user, as a new `token` option does. One that is refused changes nothing. */
  readonly authenticate = async (token: string): Promise<Acknowledgement> => {
    const before = this.#token;
    this.#token = token;
    this.#openSoon();
    const answer = await this.#prove(token);
    if (!answer.success && this.#token === token) this.#token = before;
    return answer;
  };

  readonly on = this.#listeners.on;
  readonly off = this.#listeners.off;

  // ---- the socket

  /** Not at once: React's strict mode mounts, unmounts and mounts in one go, and only what stays shall connect. */
  #openSoon(): void {
    queueMicrotask(() => {
      const isAllowed = Boolean(this.#token) || this.#options.tokenRequired === false;
      if (!this.#isAttached || !this.#isWanted || !isAllowed) return;
      this.#socket ??= this.#create();
      this.#retry();
    });
  }

  #create(): Socket {
    const socket = io(address(this.#options), {
      ...this.#options.socketOptions,
      reconnection: this.#options.reconnection ?? true,
      reconnectionAttempts: this.#options.reconnectionAttempts ?? Infinity,
      reconnectionDelay: this.#options.reconnectionDelay ?? 1_000,
      path: requestPath(this.#options),
      autoConnect: false,
      // Two components have two connections, and each closes its own.
      forceNew: true,
      auth: (say) => {
        const { userId, metadata } = this.#options;
        this.#provenToken = this.#token;
        say({ token: this.#token ?? undefined, userId, metadata });
      },
    });
    socket.on("connect", () => this.#connected(socket));
    socket.on("disconnect", (reason) => this.#disconnected(socket, reason));
    socket.on("connect_error", (error) => {
      this.#set({ isReconnecting: this.#comesBack(socket) });
      this.#rest(socket);
      this.#report(asConnectError(error));
      this.#listeners.tell("connect_error", error);
    });
    socket.io.on("reconnect_attempt", (attempt) => {
      this.#attempts = attempt;
      this.#set({ isReconnecting: true });
    });
    socket.io.on("reconnect_failed", () => {
      const attempts = this.#attempts;
      this.#attempts = 0;
      this.#set({ isReconnecting: false });
      socket.disconnect();
      this.#report(webSocketError(WebSocketErrorCode.CONNECTION_ERROR, `No connection after ${attempts} attempts`));
    });
    socket.onAny((event: string, ...told: unknown[]) => {
      if (event === WebSocketEvent.ERROR || event === WebSocketEvent.ROOM_ERROR) this.#report(asWebSocketError(told[0]));
      this.#listeners.tell(event, ...told);
    });
    return socket;
  }

  #connected(socket: Socket): void {
    const attempts = this.#attempts;
    this.#attempts = 0;
    this.#set({ isConnected: true, isReconnecting: false, socketId: socket.id, recovered: Boolean(socket.recovered), lastError: null });
    // Rooms first: what waits may be for their members only.
    if (socket.recovered) {
      for (const room of this.#leftAway) socket.emit(WebSocketEvent.LEAVE_ROOM, { room });
    } else {
      for (const [room, entry] of this.#rooms) if (!this.#calls.waits(joins(room))) void this.#enter(entry);
    }
    this.#leftAway.clear();
    this.#calls.flush(socket);
    this.#renew();
    this.#options.onConnect?.();
    if (attempts > 0) this.#options.onReconnect?.(attempts);
    this.#listeners.tell("connect");
  }

  #disconnected(socket: Socket, reason: string): void {
    this.#set({ isConnected: false, isReconnecting: this.#comesBack(socket), socketId: undefined, recovered: false });
    this.#rest(socket);
    // The old token's end has overtaken the new one.
    if (this.#token !== this.#provenToken) this.#retry();
    this.#options.onDisconnect?.(reason);
    this.#listeners.tell("disconnect", reason);
  }

  #comesBack(socket: Socket): boolean {
    return socket.active && socket.io.reconnection();
  }

  /** One that does not come back by itself still takes itself for active, and would not hear that it shall connect. */
  #rest(socket: Socket): void {
    if (!this.#comesBack(socket)) socket.disconnect();
  }

  /** Forgets the connection and all that was its user's. */
  #drop(): void {
    const socket = this.#socket;
    this.#socket = undefined;
    if (socket) {
      socket.off().offAny();
      socket.disconnect();
      socket.io.off();
    }
    this.#attempts = 0;
    this.#rooms.clear();
    this.#leftAway.clear();
    this.#calls.cancel("The connection was given up");
    this.#set(NOWHERE);
  }

  // ---- the token

  /** The token has changed since the handshake: the server hears of it on the connection that is there, or in another attempt. */
  #renew(): void {
    if (!this.#token || this.#token === this.#provenToken) return;
    if (this.#socket?.connected) void this.#prove(this.#token);
    else this.#retry();
  }

  async #prove(token: string): Promise<Answer> {
    const answer = await this.#ask(WebSocketEvent.AUTHENTICATE, { token });
    if (answer.success) this.#provenToken = token;
    return answer;
  }

  /** Refused, or sent away by the server: what socket.io-client does not come back from by itself. */
  #retry(): void {
    if (this.#isWanted && this.#socket && !this.#socket.active) this.#socket.connect();
  }

  // ---- what is said

  #ask(event: string, ...said: unknown[]): Promise<Answer> {
    return this.#calls.ask(Math.min(this.#options.requestTimeout ?? REQUEST_TIMEOUT_MS, REQUEST_TIMEOUT_MAX_MS), event, ...said);
  }

  async #enter(entry: JoinRoomPayload): Promise<Answer> {
    const answer = await this.#ask(WebSocketEvent.JOIN_ROOM, entry);
    // What only the connection has denied is asked for again on the next one.
    const isRefused = !answer.success && answer.error.code !== WebSocketErrorCode.CONNECTION_ERROR;
    if (isRefused && this.#rooms.get(entry.room) === entry) this.#rooms.delete(entry.room);
    return answer;
  }

  #tellTyping(event: string, where: string | { room?: string } = {}): void {
    if (this.#socket?.connected) this.#socket.emit(event, typeof where === "string" ? { room: where } : where);
  }

  #report(error: WebSocketError): void {
    this.#set({ lastError: error });
    if (this.#isAttached) this.#options.onError?.(error);
  }

  #set(change: Partial<Snapshot>): void {
    this.#snapshot = { ...this.#snapshot, ...change };
    for (const watcher of this.#watchers) watcher();
  }
}

const joins = (room: string) => (event: string, said: unknown): boolean =>
  event === WebSocketEvent.JOIN_ROOM && (said as JoinRoomPayload).room === room;
