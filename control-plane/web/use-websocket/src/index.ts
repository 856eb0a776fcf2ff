// What the package gives.

export { useWebSocket, type UseWebSocketResult } from "./use-websocket.js";
export type { UseWebSocketOptions } from "./options.js";
export type { Off, On } from "./listeners.js";
export { isWebSocketError, MessageType, PresenceStatus, WebSocketErrorCode, WebSocketEvent } from "./protocol.js";
export type {
  Acknowledgement, JoinRoomPayload, JoinRoomResponse, LeaveRoomPayload, LeaveRoomResponse, MessagePayload, Metadata, PingResponse,
  PresencePayload, PresenceUpdate, Refusal, SendMessagePayload, SendMessageResponse, ServerEvents, TypingIndicator, WebSocketError,
} from "./protocol.js";
