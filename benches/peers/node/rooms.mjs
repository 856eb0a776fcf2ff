// What both Socket.IO servers of JavaScript do with a connection: the least that satisfies the load generator (benches/src/dialect.rs).
export const serve = (io) =>
  io.on("connection", (socket) => {
    socket.on("room:join", ({ roomId }, answer) => {
      socket.join(roomId);
      answer({ success: true });
    });
    socket.on("message", (message) => io.to(message.roomId).emit("message", message));
    socket.on("typing", (_, answer) => answer({ success: true }));
  });
