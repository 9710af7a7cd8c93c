// One connection to the server that comes back by itself: a plain browser WebSocket, and what one adds to it.

const FINAL_CODES = new Set([1000, 1002, 1003, 1007, 1008, 1009, 1010]); // the same bytes would fail again
const FIRST_DELAY = 500; // milliseconds
const LONGEST_DELAY = 30_000;
const STEADY_AFTER = 10_000; // a connection that lived so long starts the backoff anew
const ANSWER_TIMEOUT = 10_000;

/** Tell whether a client that was closed with this code may come back by itself: 4500 to 4999 may not. */
export function mayReconnect(code) {
  return !FINAL_CODES.has(code) && !(code >= 4500 && code <= 4999);
}

/** The milliseconds in the reason of a 4013 (draining), such as "retry_after=2.5"; null without. */
export function retryHint(code, reason) {
  const found = code === 4013 ? /(?:^|\W)retry_after=(\d+(?:\.\d+)?)/.exec(reason) : null;
  return found ? Math.min(Number(found[1]) * 1000, LONGEST_DELAY) : null;
}

/** Exponential backoff with jitter, so that a thousand pages do not come back in the same moment. */
function backoff(attempt) {
  const ceiling = Math.min(FIRST_DELAY * 2 ** attempt, LONGEST_DELAY);
  return ceiling / 2 + Math.random() * (ceiling / 2);
}

/** What a server said no with: code and message of its system:error, or ours where none came. */
export class Refused extends Error {
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

/**
 * Events, each with a `detail`:
 *   state    {name: "connecting" | "open" | "waiting" | "closed", code?, reason?, retryAt?}
 *   message  the object the server sent
 *   frame    {sent: boolean, text: string}: everything, for those who want to watch
 */
export class Connection extends EventTarget {
  #url;
  #socket = null;
  #attempt = 0;
  #timer = 0;
  #asked = new Map(); // ack id -> how to settle its promise
  #lastAck = 0;

  constructor(url) {
    super();
    this.#url = url;
    addEventListener("online", () => this.#timer && this.open());
  }

  get isOpen() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  /** Connect now. Does nothing while connecting or connected. */
  open() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    if (this.#socket) return;
    this.#tell("state", { name: "connecting" });
    const socket = (this.#socket = new WebSocket(this.#url));
    let openedAt = 0;
    socket.onopen = () => {
      openedAt = performance.now();
      this.#tell("state", { name: "open" });
    };
    socket.onmessage = (event) => this.#received(event.data);
    socket.onclose = (event) => {
      if (openedAt && performance.now() - openedAt > STEADY_AFTER) this.#attempt = 0;
      this.#closed(event.code, event.reason);
    };
  }

  #closed(code, reason) {
    this.#socket = null;
    for (const { reject } of this.#asked.values()) reject(new Refused("the connection was lost", "closed"));
    this.#asked.clear();
    if (!mayReconnect(code)) {
      this.#tell("state", { name: "closed", code, reason });
      return;
    }
    const delay = retryHint(code, reason) ?? backoff(this.#attempt++);
    this.#timer = setTimeout(() => this.open(), delay);
    this.#tell("state", { name: "waiting", code, reason, retryAt: performance.now() + delay });
  }

  #received(text) {
    this.#tell("frame", { sent: false, text });
    const message = JSON.parse(text);
    const settle = message.type.startsWith("system:") && this.#asked.get(message.payload?.ack);
    if (settle && message.type === "system:ack") settle.resolve(message.payload.result);
    else if (settle && message.type === "system:error") {
      settle.reject(new Refused(message.payload.message, message.payload.code));
    } else this.#tell("message", message);
  }

  /** Send a text as it is, JSON or not. Throws Refused while not connected. */
  sendText(text) {
    if (!this.isOpen) throw new Refused("not connected", "closed");
    this.#socket.send(text);
    this.#tell("frame", { sent: true, text });
  }

  /** Send a message and return a promise of its acknowledgement's result; rejects with Refused. */
  request(message) {
    const ack = `page-${++this.#lastAck}`;
    let timer = 0;
    const promise = new Promise((resolve, reject) => {
      this.sendText(JSON.stringify({ ...message, ack })); // what it throws rejects
      this.#asked.set(ack, { resolve, reject });
      timer = setTimeout(() => reject(new Refused("no answer from the server", "timeout")), ANSWER_TIMEOUT);
    });
    return promise.finally(() => {
      clearTimeout(timer);
      this.#asked.delete(ack);
    });
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
