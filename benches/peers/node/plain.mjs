// What the plain WebSocket servers answer: the least that satisfies the load generator (benches/src/dialect.rs). A token is not looked at.
export const WELCOME = '{"type":"USER_JOINED","payload":{"message":"welcome"}}';
export const PONG = '{"type":"PONG","payload":{}}';
export const subscribed = (room) => `{"type":"SUBSCRIBED","payload":{"roomId":${JSON.stringify(room)}}}`;
