// The words of a chat endpoint: its events, and what they carry. It knows no socket and no React. The names are those that the front
// ends of the old server import from its package of types; a constant is an object and a type of the same name, so that both
// `MessageType.TEXT` and `"text"` are one.

export const WebSocketEvent = {
  JOIN_ROOM: "join-room",
  LEAVE_ROOM: "leave-room",
  ROOM_JOINED: "room-joined",
  ROOM_LEFT: "room-left",
  ROOM_ERROR: "room-error",
  MESSAGE: "message",
  TYPING_START: "typing-start",
  TYPING_STOP: "typing-stop",
  PRESENCE_UPDATE: "presence-update",
  BROADCAST: "broadcast",
  NOTIFICATION: "notification",
  ERROR: "error",
  PING: "ping",
  PONG: "pong",
  AUTHENTICATE: "authenticate",
  AUTHENTICATED: "authenticated",
} as const;
export type WebSocketEvent = (typeof WebSocketEvent)[keyof typeof WebSocketEvent];

export const MessageType = {
  TEXT: "text",
  IMAGE: "image",
  FILE: "file",
  /** The server's own; clients may not send it. */
  SYSTEM: "system",
  NOTIFICATION: "notification",
} as const;
export type MessageType = (typeof MessageType)[keyof typeof MessageType];

export const PresenceStatus = {
  ONLINE: "online",
  AWAY: "away",
  BUSY: "busy",
  OFFLINE: "offline",
} as const;
export type PresenceStatus = (typeof PresenceStatus)[keyof typeof PresenceStatus];

export const WebSocketErrorCode = {
  AUTHENTICATION_FAILED: "AUTHENTICATION_FAILED",
  AUTHORIZATION_FAILED: "AUTHORIZATION_FAILED",
  RATE_LIMIT_EXCEEDED: "RATE_LIMIT_EXCEEDED",
  INVALID_ROOM: "INVALID_ROOM",
  INVALID_MESSAGE: "INVALID_MESSAGE",
  /** No connection, or none in time; made here, never sent by the server. */
  CONNECTION_ERROR: "CONNECTION_ERROR",
  UNKNOWN_ERROR: "UNKNOWN_ERROR",
} as const;
export type WebSocketErrorCode = (typeof WebSocketErrorCode)[keyof typeof WebSocketErrorCode];

export type Metadata = Record<string, unknown>;

export interface WebSocketError {
  code: WebSocketErrorCode;
  message: string;
  /** With RATE_LIMIT_EXCEEDED: `limit`, `windowMs`, `retryAfterMs`. */
  details?: Metadata;
  /** RFC 3339, UTC. */
  timestamp: string;
}

// ---- what a client says

export interface JoinRoomPayload {
  room: string;
  metadata?: Metadata;
}

export interface LeaveRoomPayload {
  room: string;
}

export interface SendMessagePayload {
  /** The server puts the sender's user id in its place. */
  from?: string;
  room?: string;
  /** A socket id or else a user id; it goes before `room`. With neither, everybody else of the endpoint gets the message. */
  to?: string;
  content: string;
  type?: Exclude<MessageType, "system">;
  metadata?: Metadata;
}

export interface PresencePayload {
  status: PresenceStatus;
  metadata?: Metadata;
}

// ---- what it is answered; a promise of these never rejects

export interface Refusal {
  success: false;
  error: WebSocketError;
}
export type Acknowledgement = { success: true; error?: undefined } | Refusal;
export type JoinRoomResponse = { success: true; room: string; memberCount: number; error?: undefined } | (Refusal & { room: string; memberCount: number });
export type LeaveRoomResponse = { success: true; room: string; error?: undefined } | (Refusal & { room: string });
export type SendMessageResponse = { success: true; id: string; timestamp: string; error?: undefined } | Refusal;
/** `latency`: milliseconds from the question to the answer. */
export type PingResponse = { success: true; latency: number; error?: undefined } | Refusal;

/** Any of them, before it is known what was asked. */
export type Answer = { success: true; error?: undefined } | Refusal;

// ---- what it hears

export interface MessagePayload {
  id: string;
  from: string;
  room?: string;
  to?: string;
  content: string;
  type: MessageType;
  metadata?: Metadata;
  timestamp: string;
}

export interface TypingIndicator {
  userId: string;
  room?: string;
  isTyping: boolean;
  timestamp: string;
}

export interface PresenceUpdate {
  userId: string;
  status: PresenceStatus;
  metadata?: Metadata;
  timestamp: string;
}

/** Arguments of the listeners, by event. */
export interface ServerEvents {
  connect: [];
  disconnect: [reason: string];
  connect_error: [error: Error];
  "room-joined": [response: JoinRoomResponse];
  "room-left": [response: LeaveRoomResponse];
  "room-error": [error: WebSocketError];
  message: [message: MessagePayload];
  "typing-start": [indicator: TypingIndicator];
  "typing-stop": [indicator: TypingIndicator];
  "presence-update": [presence: PresenceUpdate];
  error: [error: WebSocketError];
  pong: [];
  authenticated: [user: { userId: string; email: string | null }];
}

const isRecord = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null;
const codes: ReadonlySet<unknown> = new Set(Object.values(WebSocketErrorCode));

export function isWebSocketError(value: unknown): value is WebSocketError {
  return isRecord(value) && codes.has(value["code"]) && typeof value["message"] === "string" && typeof value["timestamp"] === "string";
}

/** An error of this side, with the time of now. */
export function webSocketError(code: WebSocketErrorCode, message: string): WebSocketError {
  return { code, message, timestamp: new Date().toISOString() };
}

/** What came as an error: the server's object, or words around whatever else it was. */
export function asWebSocketError(value: unknown): WebSocketError {
  return isWebSocketError(value) ? value : webSocketError(WebSocketErrorCode.UNKNOWN_ERROR, "The server sent an error of an unknown form");
}

/** Why connecting failed: the refusal's object travels as the data of the error; an error without is the network's. */
export function asConnectError(error: Error & { data?: unknown }): WebSocketError {
  return isWebSocketError(error.data) ? error.data : webSocketError(WebSocketErrorCode.CONNECTION_ERROR, error.message);
}

/** The answer to a call; one without `success` is no answer of a chat endpoint. */
export function asAnswer(value: unknown): Answer {
  if (!isRecord(value) || typeof value["success"] !== "boolean") {
    return { success: false, error: webSocketError(WebSocketErrorCode.UNKNOWN_ERROR, "The server sent an answer of an unknown form") };
  }
  return value["success"] ? (value as { success: true }) : { ...value, success: false, error: asWebSocketError(value["error"]) };
}
