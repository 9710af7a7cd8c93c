// Node's ws: rooms kept by hand, as its documentation does for broadcasts.
// REALTIME_BENCH_NODE names the directory in which npm installed ws.

import { createRequire } from "node:module";

const require = createRequire(`${process.env.REALTIME_BENCH_NODE}/`);
const { WebSocket, WebSocketServer } = require("ws");

const rooms = new Map();

function members(room) {
  let found = rooms.get(room);
  if (found === undefined) {
    found = new Set();
    rooms.set(room, found);
  }
  return found;
}

function envelope(type, payload, room) {
  return JSON.stringify({ type, payload, room, timestamp: Date.now() });
}

const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: false });

server.on("connection", (ws) => {
  ws.on("error", () => {});
  ws.on("message", (raw) => {
    const message = JSON.parse(raw);
    if (message.type === "echo") {
      ws.send(envelope("echo", message.payload));
    } else if (message.type === "chat") {
      const text = envelope("chat", message.payload, message.room);
      for (const member of members(message.room)) {
        if (member.readyState === WebSocket.OPEN) member.send(text);
      }
    } else if (message.type === "join") {
      members(message.room).add(ws);
      ws.send(envelope("joined", message.room));
    }
  });
  ws.on("close", () => {
    for (const room of rooms.values()) room.delete(ws);
  });
});

server.on("listening", () => console.log(`listening ${server.address().port}`));
