// @ts-check
/**
 * realtime, the client: one ES module for browsers, node and bundlers. No dependency, no build step.
 *
 *     import { connect } from "/realtime/client.js";
 *
 *     const client = connect("/realtime");
 *     client.on("chat:message", ({ from, body }) => console.log(from, body));
 *     client.send("chat:message", "hello", { room: "lobby" });
 *     const sum = await client.call("add", [1, 2]); // what the handler returned
 *     for await (const line of client.call("log:tail")) console.log(line); // what it yielded
 *
 * The connection comes back by itself, and a server of ours then goes on as if nothing had been: what was sent either
 * way is not lost, and not sent twice. What is sent meanwhile waits, in order, within bounds. Durations are seconds,
 * sizes bytes.
 *
 * @module
 */

// Codes ----------------------------------------------------------------------------------------------------

/** Why a WebSocket was closed: RFC 6455 section 7.4.1, then 4000-4499 "come back", 4500-4999 "do not". */
export const CloseCode = Object.freeze({
  NORMAL: 1000,
  GOING_AWAY: 1001,
  PROTOCOL_ERROR: 1002,
  UNSUPPORTED_DATA: 1003,
  NO_STATUS: 1005, // never sent: the close frame carried no code
  ABNORMAL: 1006, // never sent: the connection ended without a close frame
  INVALID_DATA: 1007,
  POLICY_VIOLATION: 1008,
  MESSAGE_TOO_BIG: 1009,
  MANDATORY_EXTENSION: 1010,
  INTERNAL_ERROR: 1011,
  SLOW_CONSUMER: 4008,
  HEARTBEAT_TIMEOUT: 4009,
  REPLACED: 4010, // another connection resumed its session; or its rooms' messages were lost between nodes
  DRAINING: 4013,
  DISCONNECTED: 4500,
  UNAUTHORIZED: 4501,
  FORBIDDEN: 4503,
});

const FINAL_CODES = new Set([1000, 1002, 1003, 1007, 1008, 1009, 1010]); // the same bytes would fail again
/** @type {Set<number>} */
const UNCLEAN_CODES = new Set([CloseCode.ABNORMAL, CloseCode.HEARTBEAT_TIMEOUT]); // the server waits for us then
const LONGEST_RETRY_AFTER = 3600;

/**
 * Tell whether a client that was closed with this code comes back by itself.
 *
 * @param {number} code
 * @returns {boolean}
 */
export function mayReconnect(code) {
  return !FINAL_CODES.has(code) && !(code >= 4500 && code <= 4999);
}

/**
 * The seconds that a draining server asks to wait, as in "retry_after=2.5"; null if it does not.
 *
 * @param {number} code
 * @param {string} reason
 */
function retryAfter(code, reason) {
  const found = code === CloseCode.DRAINING ? /(?:^|\W)retry_after=(\d+(?:\.\d+)?)/.exec(reason) : null;
  return found ? Math.min(Number(found[1]), LONGEST_RETRY_AFTER) : null;
}

/**
 * What a server, or this client, says no with. `code` is for programs: the server's own, such as "rejected" or
 * "unknown_type", or one of this client's: "timeout", "closed", "cancelled", "queue_full", "overflow",
 * "message_too_big".
 */
export class RealtimeError extends Error {
  /**
   * @param {string} message for people
   * @param {string} [code]
   * @param {unknown} [details] what a server in debug mode adds
   */
  constructor(message, code = "rejected", details) {
    super(message);
    this.name = "RealtimeError";
    this.code = code;
    this.details = details;
  }
}

// Types ----------------------------------------------------------------------------------------------------

/**
 * What a server sends.
 * @typedef {object} Message
 * @property {string} type
 * @property {any} [payload]
 * @property {string} [room]
 * @property {string | number} [ack] an answer is wanted: see `client.answer`
 * @property {number} [timestamp] milliseconds since the epoch
 * @property {string} [cursor] how far a recoverable room is with this message
 */

/** @typedef {(payload: any, message: Message) => unknown} Listener */
/** @typedef {(payload: any, message: Message) => unknown} Answerer gives the result, or a promise of it */

/**
 * What `client.call` returns: a promise of the result, and the items of a streamed answer.
 * @template [Result=any]
 * @template [Item=any]
 * @typedef {Promise<Result> & AsyncIterable<Item>} Answer
 */

/** @typedef {"connecting" | "open" | "waiting" | "closed"} StateName */

/**
 * What "client:state" tells.
 * @typedef {object} State
 * @property {StateName} name
 * @property {number} [code] why the last connection ended: a CloseCode, or one of the application's
 * @property {string} [reason]
 * @property {number} [retryIn] seconds until the next attempt, while waiting; none while the page is out of sight, left
 *   for another one and kept for who goes back
 * @property {boolean} [resumed] once open: whether the server goes on where it was, with the same id, rooms and calls
 */

/**
 * What "client:left" tells: a room let us in no more after a reconnect.
 * @typedef {object} Left
 * @property {string} room
 * @property {string} code
 * @property {string} message
 */

/**
 * What "client:recovered" tells: a recoverable room was joined again after a reconnect. Unless `recovered`, something
 * is missing between what came before and what comes now, and has to be loaded from elsewhere.
 * @typedef {object} Recovered
 * @property {string} room
 * @property {boolean} recovered
 * @property {string} [reason] why not
 * @property {number} [replayed] messages that were missed, and have been told by now
 */

/**
 * What live presence shows of a room: by key, an identity or the id of a client without one, a meta for each client.
 * @typedef {Record<string, {metas: ({id: string} & Record<string, any>)[]}>} Presences
 */

/** @typedef {{presences?: Presences, total: number}} RoomPresence of a crowded room only the number of presences */

/** @typedef {{presences: Presences, total: number, page?: string}} PresencePage `page` asks for the next; the last has none */

/**
 * What "client:presence" tells: what changed in a room that was joined with `presence`. Of a crowded room only `total`.
 * @typedef {object} PresenceChange
 * @property {string} room
 * @property {Presences} [joins]
 * @property {Presences} [leaves] as they were
 * @property {Presences} [updates] as they are now
 * @property {number} total
 */

/** @typedef {{interval: number, timeout: number}} Heartbeat seconds */
/** @typedef {{message_size: number, rooms_per_client: number, room_name: number}} ServerLimits */
/** @typedef {{id: string, metadata: Record<string, any>}} Member */
/** @typedef {{members: Member[], total: number}} Members `total` counts also those that are not listed */

/**
 * What joining a room gives. `id` is our own. Of a recoverable room also `cursor`; if that was asked for with `since`,
 * also what `Recovered` tells.
 * @typedef {Members & {room: string, id: string, cursor?: string} & Partial<Recovered>} Joined
 */

/**
 * Messages of a room, the oldest first. `more`: there are newer ones after `cursor`. With `since`, `recovered` tells
 * whether nothing is missing between that and the first of them.
 * @typedef {{messages: Message[], cursor: string | null, more: boolean, recovered?: boolean, reason?: string}} History
 */

/**
 * @typedef {object} JoinOptions
 * @property {string} [since] a cursor of this room, as `client.cursor(room)` gave it: what came after it is told first
 * @property {boolean} [presence] be told who is there, and of each change: see `presence.state`. Else as the server likes
 */

/** @typedef {{room: string, left: boolean}} LeftRoom `left` is false if we were not in it */

/**
 * Where a message goes; the server's handler decides what that means.
 * @typedef {object} Destination
 * @property {string} [room]
 * @property {string | string[]} [target] ids of clients
 */

/** @typedef {Destination & {timeout?: number}} CallOptions `timeout` in seconds, without an answer or an item */

/**
 * What this module uses of a WebSocket: the browser's, node's (from 22 on), or npm's ws.
 * @typedef {object} Socket
 * @property {number} readyState
 * @property {number} bufferedAmount
 * @property {((event: any) => void) | null} onopen
 * @property {((event: any) => void) | null} onmessage
 * @property {((event: any) => void) | null} onclose
 * @property {((event: any) => void) | null} onerror
 * @property {(text: string) => void} send
 * @property {(code?: number, reason?: string) => void} close
 */

/**
 * @typedef {object} Options
 * @property {{min?: number, max?: number, jitter?: number}} [backoff] seconds before a reconnect: `min` (1), doubled
 *   by every attempt up to `max` (5), give or take a random share of at most `jitter` (0.5)
 * @property {boolean} [reconnect] come back by itself (true)
 * @property {number} [timeout] seconds a call waits for an answer or an item, and a connection for the welcome (10)
 * @property {{messages?: number, bytes?: number}} [queue] what may wait to be sent (256 messages, 1 MiB)
 * @property {number} [stream] items of a streamed answer that may wait to be read (1024)
 * @property {object} [hello] payload of the system:hello that greets the server
 * @property {boolean} [session] ask the server to go on where it was after a reconnect (true)
 * @property {new (url: string) => Socket} [WebSocket] the class to use (the global one)
 * @property {(frame: {sent: boolean, text: string}) => void} [trace] sees every frame
 */

// Checks ---------------------------------------------------------------------------------------------------

const LONGEST_TIMER = 2_147_483; // seconds that setTimeout can count

/**
 * @param {boolean} holds
 * @param {string} name
 * @param {unknown} value
 * @param {string} allowed
 */
function check(holds, name, value, allowed) {
  if (!holds) throw new TypeError(`${name}: must be ${allowed}, not ${typeof value === "string" ? `"${value}"` : value}`);
}

/**
 * @param {string} where
 * @param {unknown} options
 * @param {string[]} allowed
 */
function checkKeys(where, options, allowed) {
  check(typeof options === "object" && options !== null, where, options, "an object");
  for (const key of Object.keys(/** @type {object} */ (options))) {
    if (!allowed.includes(key)) throw new TypeError(`${where}: there is no "${key}", only ${allowed.join(", ")}`);
  }
}

/** @type {(name: string, value: unknown) => void} */
const checkSeconds = (name, value) =>
  check(typeof value === "number" && value > 0 && value <= LONGEST_TIMER, name, value, "a number of seconds above 0");

/** @type {(name: string, value: unknown) => void} */
const checkCount = (name, value) =>
  check(Number.isSafeInteger(value) && Number(value) > 0, name, value, "a whole number above 0");

/** @type {(name: string, value: unknown) => void} */
const checkFunction = (name, value) => check(typeof value === "function", name, value, "a function");

/** @type {(name: string, value: unknown) => void} */
const checkName = (name, value) => check(typeof value === "string" && value !== "", name, value, "a string, not empty");

/**
 * @param {Options} options
 */
function settingsFrom(options) {
  checkKeys("options", options, ["backoff", "reconnect", "timeout", "queue", "stream", "hello", "session", "WebSocket", "trace"]);
  const { backoff = {}, reconnect = true, timeout = 10, queue = {}, stream = 1024, hello, session = true, trace } = options;
  /** @type {new (url: string) => Socket} */
  const Class = options.WebSocket ?? globalThis.WebSocket;
  checkKeys("options.backoff", backoff, ["min", "max", "jitter"]);
  checkKeys("options.queue", queue, ["messages", "bytes"]);
  const { min = 1, max = Math.max(5, min), jitter = 0.5 } = backoff;
  const { messages = 256, bytes = 1024 * 1024 } = queue;
  checkSeconds("options.backoff.min", min);
  checkSeconds("options.backoff.max", max);
  check(max >= min, "options.backoff.max", max, `at least backoff.min, ${min}`);
  check(typeof jitter === "number" && jitter >= 0 && jitter <= 1, "options.backoff.jitter", jitter, "from 0 to 1");
  check(typeof reconnect === "boolean", "options.reconnect", reconnect, "true or false");
  checkSeconds("options.timeout", timeout);
  checkCount("options.queue.messages", messages);
  checkCount("options.queue.bytes", bytes);
  checkCount("options.stream", stream);
  check(hello === undefined || (typeof hello === "object" && hello !== null), "options.hello", hello, "an object");
  check(typeof session === "boolean", "options.session", session, "true or false");
  check(trace === undefined || typeof trace === "function", "options.trace", trace, "a function");
  check(typeof Class === "function", "options.WebSocket", Class, "a class, such as npm's ws where there is none built in");
  return {
    backoff: { min, max, jitter },
    queue: { messages, bytes },
    hello,
    session,
    WebSocket: Class,
    reconnect,
    timeout,
    stream,
    trace,
  };
}

/** @typedef {ReturnType<typeof settingsFrom>} Settings */

/**
 * The address for a WebSocket: "/realtime" is of this page's server.
 *
 * @param {string | URL} url
 */
function socketUrl(url) {
  const base = globalThis.location?.href;
  try {
    const resolved = new URL(url, base);
    if (/^(ws|http)s?:$/.test(resolved.protocol)) {
      resolved.protocol = resolved.protocol.replace("http", "ws");
      resolved.hash = ""; // a WebSocket refuses it
      return resolved.href;
    }
  } catch {
    // no address at all: said below
  }
  const path = base ? ', or a path such as "/realtime"' : "";
  throw new TypeError(`url: must be a ws://, wss://, http:// or https:// address${path}, not "${url}"`);
}

// Helpers --------------------------------------------------------------------------------------------------

const utf8 = new TextEncoder();

/**
 * Tell of an error that no caller can catch, as a browser does with those of its own listeners.
 *
 * @param {unknown} error
 */
function report(error) {
  if (typeof globalThis.reportError === "function") globalThis.reportError(error);
  else console.error(error);
}

class Timer {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #id;

  /**
   * @param {number} seconds
   * @param {() => void} action
   */
  start(seconds, action) {
    this.stop();
    this.#id = setTimeout(action, Math.min(seconds, LONGEST_TIMER) * 1000); // more would be none at all
  }

  stop() {
    clearTimeout(this.#id);
  }
}

/** Exponential, with jitter, so that a thousand pages do not come back in the same moment. */
class Backoff {
  #attempt = 0;
  #range;

  /** @param {Settings["backoff"]} range */
  constructor(range) {
    this.#range = range;
  }

  /** @returns {number} seconds until the next attempt */
  next() {
    const { min, max, jitter } = this.#range;
    const delay = Math.min(min * 2 ** this.#attempt++, max);
    return delay * (1 + jitter * (2 * Math.random() - 1));
  }

  reset() {
    this.#attempt = 0;
  }
}

/** Functions by the type of message they want. */
class Listeners {
  /** @type {Map<string, Set<Listener>>} */
  #byType = new Map();

  /**
   * @param {string} type
   * @param {Listener} listener
   */
  add(type, listener) {
    const listeners = this.#byType.get(type) ?? new Set();
    this.#byType.set(type, listeners.add(listener));
  }

  /**
   * @param {string} type
   * @param {Listener} listener
   */
  remove(type, listener) {
    const listeners = this.#byType.get(type);
    listeners?.delete(listener);
    if (listeners?.size === 0) this.#byType.delete(type);
  }

  /** @param {string} type */
  has(type) {
    return this.#byType.has(type);
  }

  /**
   * Call the listeners of a type, each whatever the others do.
   *
   * @param {string} type
   * @param {Message} message
   */
  tell(type, message) {
    for (const listener of [...(this.#byType.get(type) ?? [])]) {
      try {
        listener(message.payload, message);
      } catch (error) {
        report(error);
      }
    }
  }
}

// Calls ----------------------------------------------------------------------------------------------------

/** One reading of a streamed answer: `for await (const item of client.call(...))`. */
class ItemReader {
  /** @type {any[]} */
  #items = [];
  #capacity;
  #ended = false;
  #left = false;
  /** @type {RealtimeError | null} */
  #error = null;
  #wake = () => {};
  #onLeave;

  /**
   * @param {number} capacity items that may wait; with one more the reading fails
   * @param {(reader: ItemReader) => void} onLeave when it wants no more
   */
  constructor(capacity, onLeave) {
    this.#capacity = capacity;
    this.#onLeave = onLeave;
  }

  /** @param {any} item */
  push(item) {
    if (this.#ended) return;
    if (this.#items.length < this.#capacity) this.#items.push(item);
    else this.end(new RealtimeError(`more than ${this.#capacity} items waited to be read`, "overflow"));
    this.#wake();
  }

  /** @param {RealtimeError | null} error thrown once the items before it have been read */
  end(error) {
    if (this.#ended) return;
    this.#ended = true;
    this.#error = error;
    this.#wake();
  }

  /** @returns {AsyncIterableIterator<any, void, void>} */
  read() {
    const items = this.#read();
    const leave = () => {
      this.#leave(); // at once: the generator by itself would end only after the item it waits for
      return items.return();
    };
    return { next: () => items.next(), return: leave, [Symbol.asyncIterator]() { return this; } };
  }

  async *#read() {
    try {
      while (true) {
        while (this.#items.length) yield this.#items.shift();
        if (this.#error) throw this.#error;
        if (this.#ended) return;
        await new Promise((resolve) => (this.#wake = () => resolve(undefined)));
      }
    } finally {
      this.#leave();
    }
  }

  #leave() {
    if (this.#left) return;
    this.#left = this.#ended = true;
    this.#items = [];
    this.#wake();
    this.#onLeave(this);
  }
}

/** The promise of a result. It knows whether somebody waits for that: who only catches errors does not. */
class AnswerPromise extends Promise {
  /** @override */
  static get [Symbol.species]() {
    return Promise;
  }

  isAwaited = false;

  /**
   * @override
   * @param {((value: any) => any) | null} [onResult]
   * @param {((reason: any) => any) | null} [onError]
   */
  then(onResult, onError) {
    if (onResult) this.isAwaited = true;
    return super.then(onResult, onError);
  }
}

/**
 * @typedef {object} CallCare
 * @property {(result: any) => void} [answered] told before the next message is
 * @property {() => boolean} [mayGo] asked when it could be sent; if it should not be any more, it fails with OVERTAKEN
 */

/**
 * @typedef {object} CallEnds
 * @property {(call: PendingCall) => void} ended
 * @property {(call: PendingCall) => void} cancelled nobody wants the answer any more: fail it, or have the server do so
 */

/** @typedef {CallEnds & CallCare} CallOwner */

/** A call whose answer has not come. */
class PendingCall {
  /** Whether the server may have it: then it is never sent again. */
  wasSent = false;
  #timer = new Timer();
  /** @type {Set<ItemReader>} */
  #readers = new Set();
  /** @type {ItemReader | null} for whoever reads first: keeps what comes before that */
  #first;
  #promise;
  #cancelled = false;
  #resolve = (/** @type {any} */ _result) => {};
  #reject = (/** @type {Error} */ _error) => {};
  /** @type {{error: RealtimeError | null} | null} */
  #end = null;
  #owner;
  #timeout;

  /**
   * @param {number} timeout seconds without an answer or an item
   * @param {number} capacity items that may wait to be read
   * @param {CallOwner} owner
   */
  constructor(timeout, capacity, owner) {
    this.#timeout = timeout;
    this.#owner = owner;
    const promise = (this.#promise = new AnswerPromise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    }));
    this.#first = this.#newReader(capacity);
    const iterate = () => {
      promise.catch(() => {}); // whoever reads the items gets the error there
      const reader = this.#first ?? this.#newReader(capacity);
      this.#first = null;
      return reader.read();
    };
    /** @type {Answer} */
    this.answer = Object.assign(promise, { [Symbol.asyncIterator]: iterate });
    this.#startTimer();
  }

  /** @param {number} capacity */
  #newReader(capacity) {
    const reader = new ItemReader(capacity, (left) => this.#readerLeft(left));
    if (this.#end) reader.end(this.#end.error);
    else this.#readers.add(reader);
    return reader;
  }

  /** @param {ItemReader} reader */
  #readerLeft(reader) {
    this.#readers.delete(reader);
    if (this.#readers.size || this.#promise.isAwaited || this.#end || this.#cancelled) return;
    this.#cancelled = true;
    this.#owner.cancelled(this);
  }

  #startTimer() {
    const text = `no answer within ${this.#timeout} s`;
    this.#timer.start(this.#timeout, () => this.fail(new RealtimeError(text, "timeout")));
  }

  /** Tell whether the question, which could be sent now, still should be. */
  mayGo() {
    return this.#owner.mayGo?.() ?? true;
  }

  /** @param {any} item */
  item(item) {
    if (this.#cancelled) return; // sent before the server knew
    this.#startTimer();
    for (const reader of this.#readers) reader.push(item);
  }

  /** @param {any} result */
  succeed(result) {
    this.#owner.answered?.(result);
    this.#finish(null);
    this.#resolve(result);
  }

  /** @param {RealtimeError} error */
  fail(error) {
    this.#finish(error);
    this.#reject(error);
  }

  /** @param {RealtimeError | null} error */
  #finish(error) {
    this.#end = { error };
    this.#timer.stop();
    this.#owner.ended(this);
    for (const reader of this.#readers) reader.end(error);
  }
}

/** The calls that wait, by the id in their answers. */
class Calls {
  /** @type {Map<unknown, PendingCall>} */
  #pending = new Map();
  #last = 0;

  /** @returns {string} an id no other call of this client has */
  newId() {
    return `c${++this.#last}`;
  }

  /**
   * @param {string} id
   * @param {number} timeout
   * @param {number} capacity
   * @param {CallOwner} owner
   */
  open(id, timeout, capacity, owner) {
    const ended = (/** @type {PendingCall} */ call) => {
      this.#pending.delete(id);
      owner.ended(call);
    };
    const call = new PendingCall(timeout, capacity, { ...owner, ended });
    this.#pending.set(id, call);
    return call;
  }

  /**
   * Settle the call that a message answers.
   *
   * @param {Message} message
   * @returns {boolean} false if it answers none that waits
   */
  take({ type, payload }) {
    if (!type.startsWith("system:")) return false;
    const call = this.#pending.get(payload?.ack);
    if (!call) return false;
    if (type === "system:stream") call.item(payload.item);
    else if (type === "system:ack") call.succeed(payload.result);
    else if (type === "system:error") {
      call.fail(new RealtimeError(String(payload.message), String(payload.code), payload.details));
    } else return false;
    return true;
  }

  /**
   * @param {RealtimeError} error
   * @param {boolean} alsoUnsent
   */
  failAll(error, alsoUnsent) {
    for (const call of [...this.#pending.values()]) {
      if (alsoUnsent || call.wasSent) call.fail(error);
    }
  }
}

// Queue ----------------------------------------------------------------------------------------------------

/** What is sent while there is no connection: in order, and bounded. */
class SendQueue {
  /** @type {Set<{text: string, bytes: number, call: PendingCall | null}>} */
  #entries = new Set();
  #bytes = 0;
  #bounds;

  /** @param {Settings["queue"]} bounds */
  constructor(bounds) {
    this.#bounds = bounds;
  }

  /**
   * @param {string} text
   * @param {PendingCall | null} call whose question it is
   */
  put(text, call) {
    const bytes = utf8.encode(text).length;
    const { messages, bytes: most } = this.#bounds;
    if (this.#entries.size >= messages || this.#bytes + bytes > most) {
      const waiting = `${this.#entries.size} messages of ${this.#bytes} bytes`;
      throw new RealtimeError(`not connected, and ${waiting} wait already: no room for ${bytes} more`, "queue_full");
    }
    this.#entries.add({ text, bytes, call });
    this.#bytes += bytes;
  }

  /** Take what was put first; undefined once there is nothing. */
  take() {
    const [first] = this.#entries;
    if (first) this.#remove(first);
    return first;
  }

  /** @param {PendingCall} call one that was given up */
  withdraw(call) {
    for (const entry of this.#entries) {
      if (entry.call === call) this.#remove(entry);
    }
  }

  clear() {
    this.#entries.clear();
    this.#bytes = 0;
  }

  /** @param {{text: string, bytes: number, call: PendingCall | null}} entry */
  #remove(entry) {
    this.#entries.delete(entry);
    this.#bytes -= entry.bytes;
  }
}

// Session --------------------------------------------------------------------------------------------------

const UNCOUNTED = new Set(["system:hello", "system:welcome", "system:received"]); // of a connection, not of a session
const SENT_KEPT = { messages: 1000, length: 1024 * 1024 }; // of what the server has not confirmed
const CONFIRM = { messages: 64, length: 64 * 1024 }; // so much comes until the server is told that it did
const EARLY_KEPT = { messages: 1000, length: 8 * 1024 * 1024 }; // before the welcome that says whom it is for
const TOKEN_LENGTH = 1024; // what a server of ours takes; a longer token resumes nothing

/**
 * What outlives a connection. Both sides count what they get, and keep what they sent until it is confirmed; on the
 * next connection each goes on after what the other one has.
 */
class Session {
  token = "";
  /** Seconds the server waits for us. */
  grace = 30;
  /** Messages of the server so far. */
  received = 0;
  #confirmed = 0;
  #unconfirmedLength = 0;
  /** @type {string[]} */
  #sent = [];
  #sentBefore = 0; // messages that are not kept: confirmed, or too many
  #sentLength = 0;

  /** @param {{token: string, grace?: number}} about what the welcome says */
  constructor(about) {
    this.renew(about);
  }

  /** @param {{token: string, grace?: number}} about */
  renew({ token, grace }) {
    this.token = token;
    if (Number(grace) > 0) this.grace = Math.min(Number(grace), LONGEST_TIMER);
  }

  /** @param {string} text */
  sending(text) {
    this.#sent.push(text);
    this.#sentLength += text.length;
    while (this.#sent.length > SENT_KEPT.messages || this.#sentLength > SENT_KEPT.length) this.#forget(1);
  }

  /**
   * The server has so many messages.
   *
   * @param {unknown} count
   * @returns {boolean} false if it needs some that are not kept, or never were
   */
  confirmed(count) {
    if (!Number.isSafeInteger(count)) return false;
    const arrived = Number(count) - this.#sentBefore;
    if (arrived > this.#sent.length) return false;
    this.#forget(Math.max(arrived, 0));
    return arrived >= 0;
  }

  /** @param {number} count */
  #forget(count) {
    for (const text of this.#sent.splice(0, count)) this.#sentLength -= text.length;
    this.#sentBefore += count;
  }

  /** What the server has not confirmed, in order. */
  get unconfirmed() {
    return [...this.#sent];
  }

  /**
   * A message came.
   *
   * @param {number} length
   * @returns {boolean} whether it is time to confirm it
   */
  receiving(length) {
    this.received++;
    this.#unconfirmedLength += length;
    return this.received - this.#confirmed >= CONFIRM.messages || this.#unconfirmedLength >= CONFIRM.length;
  }

  /** The message that confirms what came. */
  confirmation() {
    this.#confirmed = this.received;
    this.#unconfirmedLength = 0;
    return JSON.stringify({ type: "system:received", payload: { count: this.received } });
  }
}

// Connection -----------------------------------------------------------------------------------------------

const OPEN = 1; // WebSocket.OPEN

/** One WebSocket, until it ends or is dropped; nothing is heard of it afterwards. */
class Link {
  /** @type {Socket} */
  #socket;
  #trace;

  /**
   * @param {Settings} settings
   * @param {string} url
   * @param {{opened: () => void, received: (data: unknown) => void, ended: (code: number, reason: string) => void}} owner
   */
  constructor(settings, url, owner) {
    const socket = (this.#socket = new settings.WebSocket(url));
    this.#trace = settings.trace;
    socket.onopen = () => owner.opened();
    socket.onmessage = ({ data }) => {
      this.#show(false, data);
      owner.received(data);
    };
    socket.onclose = ({ code, reason }) => owner.ended(code, reason);
    socket.onerror = () => {}; // says nothing that the close event after it does not
  }

  get socket() {
    return this.#socket;
  }

  get isWritable() {
    return this.#socket.readyState === OPEN;
  }

  /** @param {string} text */
  send(text) {
    this.#socket.send(text);
    this.#show(true, text);
  }

  /**
   * @param {number} code
   * @param {string} reason
   */
  drop(code, reason) {
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close(code, reason);
  }

  /**
   * @param {boolean} sent
   * @param {unknown} data
   */
  #show(sent, data) {
    try {
      this.#trace?.({ sent, text: String(data) });
    } catch (error) {
      report(error);
    }
  }
}

/**
 * Notices a connection over which nothing comes any more: the network went away without a word. A browser shows
 * no pings, so after a silence longer than theirs the server is asked for a sign of life.
 */
class Watchdog {
  #timer = new Timer();
  #silence = Infinity;
  #patience = 0;
  #heardAt = 0;
  #heardSinceProbe = false;
  #owner;

  /** @param {{probe: () => void, giveUp: () => void}} owner */
  constructor(owner) {
    this.#owner = owner;
  }

  /**
   * @param {Heartbeat | null} heartbeat the server's; without one a probe is sent only when asked for
   * @param {number} patience seconds to wait for a sign of life where there is no heartbeat
   */
  start(heartbeat, patience) {
    this.#silence = heartbeat ? heartbeat.interval + heartbeat.timeout : Infinity;
    this.#patience = heartbeat ? heartbeat.timeout : patience;
    this.heard();
    this.#watch();
  }

  heard() {
    this.#heardAt = performance.now();
    this.#heardSinceProbe = true;
  }

  /** Ask for a sign of life now. */
  probe() {
    this.#heardSinceProbe = false;
    this.#owner.probe();
    this.#timer.start(this.#patience, () => (this.#heardSinceProbe ? this.#watch() : this.#owner.giveUp()));
  }

  stop() {
    this.#timer.stop();
  }

  #watch() {
    if (this.#silence === Infinity) return;
    const left = this.#silence - (performance.now() - this.#heardAt) / 1000;
    if (left > 0) this.#timer.start(left, () => this.#watch());
    else this.probe();
  }
}

// Rooms and presence ---------------------------------------------------------------------------------------

const CURSORS_KEPT = 10_000; // rooms whose place is remembered
const OVERTAKEN = "overtaken"; // the code of a request that was not sent, to be made again: never told to anybody

/**
 * A room this client joined by itself.
 *
 * @typedef {object} Place
 * @property {boolean} joined
 * @property {Promise<Joined> | null} entering
 * @property {number} turn how often we asked to be let in: who asked before asks no more
 * @property {boolean} [presence] whether we asked to be told who is there
 */

/** The rooms this client joined by itself, and joins again after a reconnect; and how far it is in recoverable ones. */
class Rooms {
  /** @type {Map<string, Place>} */
  #places = new Map();
  /** @type {Map<string, {cursor: string, messages: number}>} by room; also of rooms that a handler put us in */
  #reach = new Map();
  #client;
  #owner;

  /**
   * @param {RealtimeClient} client
   * @param {object} owner
   * @param {(room: string, payload: object | undefined, care: CallCare) => Promise<any>} owner.ask
   * @param {(left: Left) => void} owner.left
   * @param {(recovered: Recovered) => void} owner.recovered
   * @param {(room: string) => void} owner.forgotten we do not come back to it
   */
  constructor(client, owner) {
    this.#client = client;
    this.#owner = owner;
  }

  /** @param {string} room */
  has(room) {
    return this.#places.has(room);
  }

  /** @param {string} room */
  cursor(room) {
    return this.#reach.get(room)?.cursor ?? null;
  }

  /**
   * A message came: we have everything of a room up to here.
   *
   * @param {string} room
   * @param {string} cursor
   */
  came(room, cursor) {
    this.#reached(room, cursor).messages++;
  }

  /**
   * @param {string} room
   * @param {string} cursor
   */
  #reached(room, cursor) {
    let reach = this.#reach.get(room);
    if (!reach) {
      if (this.#reach.size >= CURSORS_KEPT) this.#forgetCursor();
      this.#reach.set(room, (reach = { cursor, messages: 0 }));
    }
    reach.cursor = cursor;
    return reach;
  }

  /** @param {string} room */
  #came(room) {
    return this.#reach.get(room)?.messages ?? 0;
  }

  #forgetCursor() {
    const forgotten = [...this.#reach.keys()].find((room) => !this.#places.has(room));
    if (forgotten !== undefined) this.#reach.delete(forgotten);
  }

  /**
   * @param {string} room
   * @param {JoinOptions} wish
   * @returns {Promise<Joined>}
   */
  async join(room, wish) {
    for (;;) {
      try {
        return await this.#joinInTurn(room, wish);
      } catch (error) {
        if (/** @type {RealtimeError} */ (error).code !== OVERTAKEN) throw error;
      }
    }
  }

  /**
   * Not while we are let in again: a request of somebody else would pass over what was missed.
   *
   * @param {string} room
   * @param {JoinOptions} wish
   * @returns {Promise<Joined>}
   */
  async #joinInTurn(room, wish) {
    for (let under; (under = this.#places.get(room)?.entering); ) {
      if (wish.since === undefined && wish.presence === undefined) return under;
      await under.catch(() => {}); // told to whoever began it
    }
    const place = this.#places.get(room) ?? { joined: false, entering: null, turn: 0 };
    this.#places.set(room, place);
    try {
      const joined = await this.#enter(room, place, wish);
      place.presence = wish.presence ?? place.presence;
      return joined;
    } catch (error) {
      if (!place.joined) this.#forget(room, place);
      throw error;
    }
  }

  /**
   * @param {string} room
   * @param {Place} place
   * @param {JoinOptions} wish
   * @param {(recovered: Recovered) => void} [recovered] told before the next message is
   * @returns {Promise<Joined>}
   */
  #enter(room, place, wish, recovered) {
    const turn = ++place.turn;
    const entering = (place.entering = this.#ask(room, wish, () => place.turn === turn, recovered));
    const done = () => {
      if (place.entering === entering) place.entering = null;
    };
    entering.then(() => (place.joined = true)).then(done, done);
    return entering;
  }

  /**
   * Ask to be in a room, as often as there is more that was missed.
   *
   * @param {string} room
   * @param {JoinOptions} wish
   * @param {() => boolean} mayGo
   * @param {(recovered: Recovered) => void} [recovered]
   * @returns {Promise<Joined>}
   */
  async #ask(room, { since, presence }, mayGo, recovered) {
    let replayed = 0;
    for (;;) {
      const payload = since === undefined && presence === undefined ? undefined : { since, presence };
      const before = this.#came(room);
      const answered = (/** @type {any} */ answer) => {
        // unless it was overtaken: by messages that it did not replay, which say better where we are
        const isLast = this.#came(room) - before <= (answer?.replayed ?? 0);
        if (typeof answer?.cursor === "string" && isLast) this.#reached(room, answer.cursor);
        if (since === undefined || answer?.recovered === undefined) return;
        replayed += answer.replayed ?? 0;
        if (!answer.more) recovered?.({ room, recovered: answer.recovered, reason: answer.reason, replayed });
      };
      const joined = await this.#owner.ask(room, payload, { answered, mayGo });
      if (since === undefined || joined?.recovered === undefined) return joined;
      const { more, ...rest } = joined;
      if (!more) return { ...rest, replayed };
      since = joined.cursor ?? since; // wherever else an answer has said meanwhile that we are
    }
  }

  /**
   * @param {string} room
   * @returns {Promise<LeftRoom>}
   */
  async leave(room) {
    this.#places.delete(room); // also if this request is lost: nobody comes back to a room that was left
    try {
      return await this.#client.call("system:leave", undefined, { room });
    } finally {
      if (!this.#places.has(room)) {
        this.#reach.delete(room);
        this.#owner.forgotten(room);
      }
    }
  }

  /** On a connection that is not the continuation of the one before. */
  rejoin() {
    for (const [room, place] of this.#places) {
      if (place.joined) this.#rejoin(room, place); // else its request still waits in the queue
    }
  }

  /**
   * @param {string} room
   * @param {Place} place
   * @returns {Promise<void>}
   */
  async #rejoin(room, place) {
    try {
      const wish = { since: this.cursor(room) ?? undefined, presence: place.presence };
      await this.#enter(room, place, wish, (recovered) => {
        if (this.#places.get(room) === place) this.#owner.recovered(recovered);
      });
    } catch (error) {
      const { code, message } = /** @type {RealtimeError} */ (error);
      if (code === "closed" || code === OVERTAKEN || this.#places.get(room) !== place) return; // another tries again
      if (code === "timeout") return this.#rejoin(room, place);
      this.#forget(room, place);
      this.#owner.left({ room, code, message });
    }
  }

  /**
   * @param {string} room
   * @param {Place} place
   */
  #forget(room, place) {
    if (this.#places.get(room) !== place) return;
    this.#places.delete(room);
    this.#reach.delete(room);
    this.#owner.forgotten(room);
  }
}

/** @param {unknown} value */
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/**
 * Tell whether two values are the same as JSON, in whatever order their keys are.
 *
 * @param {any} one
 * @param {any} other
 * @returns {boolean}
 */
function alike(one, other) {
  if (typeof one !== "object" || typeof other !== "object" || one === null || other === null) return one === other;
  const keys = Object.keys(one);
  if (Array.isArray(one) !== Array.isArray(other) || keys.length !== Object.keys(other).length) return false;
  return keys.every((key) => Object.hasOwn(other, key) && alike(one[key], other[key]));
}

/**
 * What was told of one room. No `presences` where only their number is told. It is replaced, and never changed.
 *
 * @typedef {{presences: Map<string, Presences[string]> | null, total: number}} View
 */

/** Who is in the rooms of which we are told: what presence:state and presence:diff make of it. */
class Views {
  /** @type {Map<string, View>} */
  #views = new Map();

  /**
   * @param {string} room
   * @returns {RoomPresence | null}
   */
  state(room) {
    const view = this.#views.get(room);
    if (!view) return null;
    const { presences, total } = view;
    return presences ? { presences: Object.fromEntries(presences), total } : { total };
  }

  /** @param {string} room one that we are not in any more */
  forget(room) {
    this.#views.delete(room);
  }

  /** @param {(room: string) => boolean} isKept whether we come back to a room; of the others nothing more is told */
  forgetUnless(isKept) {
    for (const room of this.#views.keys()) if (!isKept(room)) this.forget(room);
  }

  /**
   * A message came.
   *
   * @param {Message} message
   * @returns {PresenceChange | null} what has changed; null if it tells no such thing
   */
  take({ type, room, payload }) {
    if (!room || !Number.isInteger(payload?.total)) return null;
    const before = this.#views.get(room);
    /** @type {View} */
    let after;
    if (type === "presence:state") after = { presences: asPresences(payload.presences), total: payload.total };
    else if (type === "presence:diff" && before) after = changed(before, payload);
    else return null;
    this.#views.set(room, after);
    return { room, ...difference(before?.presences ?? new Map(), after.presences), total: after.total };
  }
}

/**
 * @param {any} told
 * @returns {View["presences"]} a Map, as a key may be "__proto__"
 */
function asPresences(told) {
  return isObject(told) ? new Map(Object.entries(told)) : null;
}

/**
 * @param {View} view
 * @param {any} diff
 * @returns {View}
 */
function changed({ presences }, { joins, leaves, updates, total }) {
  if (!presences) return { presences, total };
  const left = asPresences(leaves);
  const staying = [...presences].filter(([key]) => !left?.has(key));
  return { presences: new Map([...staying, ...(asPresences(joins) ?? []), ...(asPresences(updates) ?? [])]), total };
}

/**
 * What changed from one view to the other; nothing where only a number is known.
 *
 * @param {Map<string, Presences[string]>} before
 * @param {View["presences"]} after
 */
function difference(before, after) {
  if (!after) return {};
  const now = [...after];
  return {
    joins: Object.fromEntries(now.filter(([key]) => !before.has(key))),
    leaves: Object.fromEntries([...before].filter(([key]) => !after.has(key))),
    updates: Object.fromEntries(now.filter(([key, shown]) => before.has(key) && !alike(before.get(key), shown))),
  };
}

/** Who is here, and what this client says of itself. */
class Presence {
  /** @type {Record<string, any> | null} */
  #own = null;
  #client;
  #views;

  /**
   * @param {RealtimeClient} client
   * @param {{state: (room: string) => RoomPresence | null}} views
   */
  constructor(client, views) {
    this.#client = client;
    this.#views = views;
  }

  /**
   * Who is in a room that was joined with `presence`, as far as it was told: it changes by itself, and "client:presence"
   * tells of each change, also of those that were missed before the room was joined again after a reconnect. Of a
   * crowded room there is only `total`: `page` tells more.
   *
   * @param {string} room
   * @returns {RoomPresence | null} null if nothing was told
   */
  state(room) {
    checkName("presence.state(room)", room);
    return this.#views.state(room);
  }

  /**
   * Ask for a part of who is in a room that this client is in, as `state` shows it.
   *
   * @param {string} room
   * @param {string | null} [after] what the part before had as `page`
   * @returns {Promise<PresencePage>}
   */
  page(room, after = null) {
    checkName("presence.page(room)", room);
    if (after !== null) checkName(`presence.page("${room}", after)`, after);
    return this.#client.call("system:presence", { page: after }, { room });
  }

  /**
   * Ask who is in a room that this client is in.
   *
   * @param {string} room
   * @returns {Promise<Members>}
   */
  list(room) {
    checkName("presence.list(room)", room);
    return this.#client.call("system:presence", undefined, { room });
  }

  /**
   * Merge something into what others see of this client. After a reconnect it is as it was.
   *
   * @param {Record<string, any>} metadata
   * @returns {Promise<Member>} the own entry
   */
  async update(metadata) {
    check(typeof metadata === "object" && metadata !== null, "presence.update(metadata)", metadata, "an object");
    const entry = await this.#client.call("system:presence", { metadata });
    this.#own = { ...this.#own, ...metadata };
    return entry;
  }

  /** On a connection that is not the continuation of the one before: say it again. */
  repeat() {
    if (!this.#own) return;
    this.update(this.#own).catch((error) => {
      if (error.code !== "closed") console.warn(`realtime: the presence is not as it was: ${error.message}`);
    });
  }
}

// Client ---------------------------------------------------------------------------------------------------

const STEADY_AFTER = 10; // a connection that lived so many seconds starts the backoff anew

/** A connection to a server that comes back by itself. Made by `connect`. */
export class RealtimeClient {
  #settings;
  #url;
  #listeners = new Listeners();
  /** @type {Map<string, Answerer>} */
  #answerers = new Map();
  #calls = new Calls();
  #queue;
  #backoff;
  #watchdog;
  #rooms;
  #views = new Views();
  /** @type {Link | null} */
  #link = null;
  /** @type {Session | null} */
  #session = null;
  #graceTimer = new Timer(); // while the server waits for us
  /** @type {unknown[]} what came before the welcome, which says whether it is for us */
  #early = [];
  #earlyLength = 0;
  /** @type {StateName} */
  #state = "closed";
  /** @type {string | null} */
  #id = null;
  /** @type {Heartbeat | null} */
  #heartbeat = null;
  /** @type {ServerLimits | null} */
  #limits = null;
  #openedAt = 0;
  #timer = new Timer(); // until the next attempt, or for the welcome
  #hasWarned = false;
  /** @type {Promise<void>} */
  #ready = Promise.resolve();
  #settleReady = { resolve: () => {}, reject: (/** @type {Error} */ _error) => {} };
  #wasRefused = true; // the promise `ready` has been rejected: the next attempt gets a new one

  /**
   * Who is here, and what this client says of itself.
   *
   * @readonly
   */
  presence = new Presence(this, this.#views);

  /**
   * @param {string | URL} url
   * @param {Options} [options]
   */
  constructor(url, options = {}) {
    this.#settings = settingsFrom(options);
    this.#url = socketUrl(url);
    this.#queue = new SendQueue(this.#settings.queue);
    this.#backoff = new Backoff(this.#settings.backoff);
    this.#rooms = new Rooms(this, {
      ask: (room, payload, care) => this.#ask("system:join", payload, { room }, care),
      left: (left) => this.#tell("client:left", left),
      recovered: (recovered) => this.#tell("client:recovered", recovered),
      forgotten: (room) => this.#views.forget(room),
    });
    this.#watchdog = new Watchdog({
      probe: () => this.#link?.isWritable && this.#link.send(this.#greeting(false)),
      giveUp: () => this.#giveUp("nothing was heard from the server"),
    });
    this.#connect();
  }

  /** The address it connects to. */
  get url() {
    return this.#url;
  }

  /** What the server calls this client; null before the first. Another one after a reconnect that resumed nothing. */
  get id() {
    return this.#id;
  }

  /** "open" once the server has welcomed this client; "waiting" until the next attempt; "closed" for good. */
  get state() {
    return this.#state;
  }

  /**
   * Resolves when the client is open for the first time; rejects if it is closed for good before. After the end,
   * `reconnect()` makes a new one.
   */
  get ready() {
    return this.#ready;
  }

  /** The WebSocket; null while there is none. */
  get socket() {
    return this.#link?.socket ?? null;
  }

  /** How often the server pings; null if it does not. */
  get heartbeat() {
    return this.#heartbeat;
  }

  /** What the server bounds; null before it has said so. */
  get limits() {
    return this.#limits;
  }

  // Messages ---------------------------------------------------------------------------------------------

  /**
   * Hear of the client's own state.
   *
   * @overload
   * @param {"client:state"} type
   * @param {(state: State) => unknown} listener
   * @returns {() => void}
   */
  /**
   * Hear of rooms that let this client in no more after a reconnect.
   *
   * @overload
   * @param {"client:left"} type
   * @param {(left: Left) => unknown} listener
   * @returns {() => void}
   */
  /**
   * Hear what became of recoverable rooms that were joined again.
   *
   * @overload
   * @param {"client:recovered"} type
   * @param {(recovered: Recovered) => unknown} listener
   * @returns {() => void}
   */
  /**
   * Hear who comes, goes and changes in rooms that were joined with `presence`.
   *
   * @overload
   * @param {"client:presence"} type
   * @param {(change: PresenceChange) => unknown} listener
   * @returns {() => void}
   */
  /**
   * Hear every message of a type, or with "*" every message at all. Answers to calls are heard by "*" only.
   *
   * @overload
   * @param {string} type
   * @param {Listener} listener gets the payload, and the message around it
   * @returns {() => void} stops it
   */
  /**
   * @param {string} type
   * @param {(payload: any, message: Message) => unknown} listener
   */
  on(type, listener) {
    checkName("on(type)", type);
    checkFunction(`on("${type}", listener)`, listener);
    this.#listeners.add(type, listener);
    return () => this.off(type, listener);
  }

  /**
   * Hear no more.
   *
   * @param {string} type
   * @param {(payload: any, message: Message) => unknown} listener
   */
  off(type, listener) {
    this.#listeners.remove(type, listener);
  }

  /**
   * Send a message. Without a connection it waits for the next one, in order. What was on its way when a connection was
   * lost is sent again if the server resumes the session, once; else it may be lost.
   *
   * @param {string} type
   * @param {any} [payload] anything JSON can carry
   * @param {Destination} [destination]
   * @returns {void}
   * @throws {RealtimeError} "queue_full", "closed" or "message_too_big"
   */
  send(type, payload, destination = {}) {
    checkKeys("send(type, payload, destination)", destination, ["room", "target"]);
    this.#transmit(encoded("send", type, payload, destination), null);
  }

  /**
   * Send a message and get what its handler returns, or with `for await` what it yields.
   *
   * A call goes on after a reconnect that resumed the session. Rejects with a RealtimeError: the server's, or
   * "timeout", or "closed" if the session is lost before the answer came: then nobody knows whether it was handled, so
   * it is not sent again.
   *
   * Items wait for the first reader. Leaving the loop early ends the stream at the server, too, unless somebody waits
   * for the result; who asks for it later gets "cancelled".
   *
   * @template [Result=any]
   * @template [Item=any]
   * @param {string} type
   * @param {any} [payload]
   * @param {CallOptions} [options]
   * @returns {Answer<Result, Item>}
   */
  call(type, payload, options = {}) {
    checkKeys("call(type, payload, options)", options, ["timeout", "room", "target"]);
    const { timeout = this.#settings.timeout, ...destination } = options;
    checkSeconds(`call("${type}", ..., {timeout})`, timeout);
    return this.#ask(type, payload, { timeout, ...destination });
  }

  /**
   * @param {string} type
   * @param {any} payload
   * @param {CallOptions} options
   * @param {CallCare} [care]
   * @returns {Answer}
   */
  #ask(type, payload, { timeout = this.#settings.timeout, ...destination }, care) {
    const id = this.#calls.newId();
    const text = encoded("call", type, payload, destination, id);
    const call = this.#calls.open(id, timeout, this.#settings.stream, {
      ended: (call) => this.#queue.withdraw(call),
      cancelled: (call) => this.#cancel(id, call),
      ...care,
    });
    try {
      this.#transmit(text, call);
    } catch (error) {
      call.fail(/** @type {RealtimeError} */ (error));
    }
    return call.answer;
  }

  /**
   * Answer what the server's handlers ask with `call`; with "*" what nothing else answers.
   *
   * @param {string} type
   * @param {Answerer} answerer returns the result or a promise of it; a RealtimeError it throws is told with its code
   * @returns {() => void} stops it
   */
  answer(type, answerer) {
    checkName("answer(type)", type);
    checkFunction(`answer("${type}", answerer)`, answerer);
    if (this.#answerers.has(type)) throw new TypeError(`answer("${type}"): a question has one answer, this one has it`);
    this.#answerers.set(type, answerer);
    return () => void (this.#answerers.get(type) === answerer && this.#answerers.delete(type));
  }

  // Rooms ------------------------------------------------------------------------------------------------

  /**
   * Join a room that the server opens to clients. After a reconnect it is as if we had been there all the time: of a
   * recoverable room what was missed is told first; if that cannot be, "client:recovered" says so. In a room that was
   * joined before, this waits for that.
   *
   * @param {string} room
   * @param {JoinOptions} [options]
   * @returns {Promise<Joined>} who is in it
   */
  join(room, options = {}) {
    checkName("join(room)", room);
    checkKeys("join(room, options)", options, ["since", "presence"]);
    const { since, presence } = options;
    if (since !== undefined) checkName(`join("${room}", {since})`, since);
    const isChoice = presence === undefined || typeof presence === "boolean";
    check(isChoice, `join("${room}", {presence})`, presence, "true or false");
    return this.#rooms.join(room, options);
  }

  /**
   * How far this client is in a recoverable room: to be kept, and given to `join` by a client that comes later. Forgotten
   * with `leave`.
   *
   * @param {string} room
   * @returns {string | null} null if nothing with a cursor came from that room
   */
  cursor(room) {
    checkName("cursor(room)", room);
    return this.#rooms.cursor(room);
  }

  /**
   * Ask for what a room keeps that this client is in: the newest `limit` messages (50), or the first after a cursor.
   *
   * @param {string} room
   * @param {{limit?: number, since?: string}} [options]
   * @returns {Promise<History>}
   */
  history(room, options = {}) {
    checkName("history(room)", room);
    checkKeys("history(room, options)", options, ["limit", "since"]);
    return this.call("system:history", options, { room });
  }

  /**
   * @param {string} room
   * @returns {Promise<LeftRoom>}
   */
  leave(room) {
    checkName("leave(room)", room);
    return this.#rooms.leave(room);
  }

  /**
   * Make a call: everybody in a room of the server's WebRTCSignalingBridge, connected with everybody else. Nothing
   * happens before `join()`, or an iteration over its peers.
   *
   * @param {string} room
   * @param {WebRTCOptions} [options]
   * @returns {WebRTCCall}
   */
  webrtc(room, options) {
    return new WebRTCCall(this, room, options);
  }

  // Coming and going -------------------------------------------------------------------------------------

  /**
   * End the connection, for good. What waits is rejected with "closed".
   *
   * @param {number} [code] 1000, or one of the application's from 3000 to 4999
   * @param {string} [reason] at most 123 bytes
   */
  close(code = CloseCode.NORMAL, reason = "") {
    const isAllowed = Number.isInteger(code) && (code === 1000 || (code >= 3000 && code <= 4999));
    check(isAllowed, "close(code)", code, "1000 or from 3000 to 4999");
    const fits = typeof reason === "string" && utf8.encode(reason).length <= 123;
    check(fits, "close(code, reason)", reason, "a string of at most 123 bytes");
    if (this.#state === "closed") return;
    this.#link?.drop(code, reason);
    this.#unlink(false);
    this.#endForGood(code, reason);
  }

  /**
   * Connect anew, now: also while waiting, and after the end. Does nothing while connecting. The session goes on, if
   * there is one.
   */
  reconnect() {
    if (this.#state === "connecting") return;
    this.#link?.drop(CloseCode.HEARTBEAT_TIMEOUT, "reconnecting"); // a code that says: this one comes back
    this.#unlink(true);
    this.#backoff.reset();
    this.#connect();
  }

  #connect() {
    if (this.#wasRefused) this.#makeReady();
    /** @type {Link} */
    const link = new Link(this.#settings, this.#url, {
      opened: () => link.send(this.#greeting(true)),
      received: (data) => this.#received(data),
      ended: (code, reason) => this.#ended(code, reason),
    });
    this.#link = link;
    this.#early = [];
    this.#earlyLength = 0;
    this.#timer.start(this.#settings.timeout, () => this.#giveUp("the server did not welcome us in time"));
    globalThis.addEventListener?.("online", this.#online);
    globalThis.addEventListener?.("pagehide", this.#hidden);
    globalThis.addEventListener?.("pageshow", this.#shown);
    this.#enter({ name: "connecting" });
  }

  #makeReady() {
    this.#wasRefused = false;
    this.#ready = new Promise((resolve, reject) => (this.#settleReady = { resolve, reject }));
    this.#ready.catch(() => {}); // not everybody asks
  }

  /**
   * The page is left: say goodbye, or the server would wait for us to come back to the session. Also where the browser
   * keeps the page for who goes back to it: it may never be shown again, and Chromium (156) keeps the connection as well.
   */
  #hidden = () => {
    if (!this.#settings.reconnect) return this.close();
    const reason = "the page was left";
    this.#link?.drop(CloseCode.NORMAL, reason);
    this.#unlink(this.#state !== "open");
    this.#enter({ name: "waiting", code: CloseCode.NORMAL, reason });
  };

  /** @param {{persisted?: boolean}} event */
  #shown = ({ persisted }) => {
    if (!persisted || this.#state !== "waiting") return;
    this.#backoff.reset();
    this.#connect();
  };

  /** The network is back: a browser knows before any timer does. */
  #online = () => {
    if (this.#state === "waiting") this.#connect();
    else if (this.#state === "open") this.#watchdog.probe();
  };

  /** @param {boolean} isFirst on its connection: then it says which session we want */
  #greeting(isFirst) {
    const { hello, session } = this.#settings;
    const wish = this.#session ? { token: this.#session.token, received: this.#session.received } : true;
    const payload = isFirst && session ? { ...hello, session: wish } : hello;
    return JSON.stringify({ type: "system:hello", payload });
  }

  /** @param {any} payload of system:welcome */
  #welcomed(payload) {
    const link = this.#link;
    const about = this.#settings.session ? sessionIn(payload) : null;
    const resumed = about?.resumed === true;
    if (resumed && !this.#session?.confirmed(about.received)) return this.#beginAnew();
    this.#graceTimer.stop();
    this.#id = payload?.id ?? null;
    this.#limits = payload?.limits ?? null;
    this.#heartbeat = isHeartbeat(payload?.heartbeat) ? payload.heartbeat : null;
    this.#timer.stop();
    this.#watchdog.start(this.#heartbeat, this.#settings.timeout);
    this.#openedAt = performance.now();
    if (resumed) this.#resumed(about);
    else this.#begun(about);
    if (this.#link !== link) return; // a listener has closed it
    this.#flush();
    this.#settleReady.resolve();
    this.#enter({ name: "open", resumed });
  }

  /**
   * The server goes on where it was.
   *
   * @param {{token: string}} about
   */
  #resumed(about) {
    this.#early = []; // they were for whom the server took us for; what was for us comes now
    this.#state = "open";
    this.#session?.renew(about);
    if (this.#session) this.#link?.send(this.#session.confirmation());
    for (const text of this.#session?.unconfirmed ?? []) this.#link?.send(text);
  }

  /**
   * We are somebody new for the server.
   *
   * @param {{token: string} | null} about
   */
  #begun(about) {
    this.#loseSession();
    this.#session = about ? new Session(about) : null;
    this.#state = "open";
    const link = this.#link;
    for (const data of this.#early.splice(0)) {
      this.#take(decoded(data), data);
      if (this.#link !== link) return;
    }
    this.#rooms.rejoin();
    this.presence.repeat();
  }

  /** The server resumes what we cannot: more was sent than we keep, or it took too long, or it cannot count. */
  #beginAnew() {
    const reason = "too much was sent, or it took too long";
    this.#link?.drop(CloseCode.REPLACED, reason); // no code it would wait after
    this.#loseSession();
    this.#ended(CloseCode.REPLACED, reason); // after a pause, lest a server that says so always has us run in circles
  }

  /** Nobody goes on where we were: what was asked is not answered any more. */
  #loseSession() {
    this.#graceTimer.stop();
    this.#session = null;
    this.#views.forgetUnless((room) => this.#rooms.has(room));
    this.#calls.failAll(new RealtimeError("the connection was lost before the answer came", "closed"), false);
  }

  /**
   * The connection is over, by itself.
   *
   * @param {number} code
   * @param {string} reason
   */
  #ended(code, reason) {
    const isSteady = this.#state === "open" && performance.now() - this.#openedAt >= STEADY_AFTER * 1000;
    if (isSteady) this.#backoff.reset();
    // before the welcome it was another connection that the session hangs on
    this.#unlink(this.#state === "connecting" || UNCLEAN_CODES.has(code));
    if (!this.#settings.reconnect || !mayReconnect(code)) return this.#endForGood(code, reason);
    const retryIn = retryAfter(code, reason) ?? this.#backoff.next();
    this.#timer.start(retryIn, () => this.#connect());
    this.#enter({ name: "waiting", code, reason, retryIn });
  }

  /** @param {string} reason why this connection is of no use */
  #giveUp(reason) {
    this.#link?.drop(CloseCode.HEARTBEAT_TIMEOUT, reason);
    this.#ended(CloseCode.HEARTBEAT_TIMEOUT, reason);
  }

  /**
   * Let go of the socket, if there is one.
   *
   * @param {boolean} isUnclean the server waits for us to come back
   */
  #unlink(isUnclean) {
    this.#timer.stop();
    this.#watchdog.stop();
    this.#link = null;
    if (!isUnclean || !this.#session) this.#loseSession();
    else if (this.#state === "open") this.#graceTimer.start(this.#session.grace, () => this.#loseSession());
  }

  /**
   * @param {number} code
   * @param {string} reason
   */
  #endForGood(code, reason) {
    globalThis.removeEventListener?.("online", this.#online);
    globalThis.removeEventListener?.("pagehide", this.#hidden);
    globalThis.removeEventListener?.("pageshow", this.#shown);
    const error = new RealtimeError(`the connection is closed: ${code}${reason && ` ${reason}`}`, "closed");
    this.#state = "closed";
    this.#queue.clear();
    this.#loseSession();
    this.#calls.failAll(error, true);
    this.#wasRefused = true;
    this.#settleReady.reject(error);
    this.#enter({ name: "closed", code, reason });
  }

  /** @param {State} state */
  #enter(state) {
    this.#state = state.name;
    this.#tell("client:state", state);
  }

  /**
   * @param {string} type
   * @param {any} payload
   */
  #tell(type, payload) {
    this.#listeners.tell(type, { type, payload });
  }

  // Going out --------------------------------------------------------------------------------------------

  /**
   * @param {string} text
   * @param {PendingCall | null} call
   */
  #transmit(text, call) {
    if (this.#state === "closed") throw new RealtimeError("the connection is closed", "closed");
    if (this.#state !== "open" || !this.#link?.isWritable) return this.#queue.put(text, call);
    const { bufferedAmount } = this.#link.socket;
    if (bufferedAmount > this.#settings.queue.bytes) {
      throw new RealtimeError(`${bufferedAmount} bytes wait for the network already`, "queue_full");
    }
    this.#sendNow(this.#link, text, call);
  }

  /**
   * @param {Link} link
   * @param {string} text
   * @param {PendingCall | null} call
   */
  #sendNow(link, text, call) {
    if (call?.mayGo() === false) return call.fail(new RealtimeError("something else was asked for first", OVERTAKEN));
    this.#checkSize(text);
    if (call) call.wasSent = true;
    this.#session?.sending(text);
    link.send(text);
  }

  /**
   * Send what nobody but the one asked for: now, or as soon as the session goes on.
   *
   * @param {string} text
   */
  #sendOrKeep(text) {
    this.#session?.sending(text);
    if ((this.#state === "open" || !this.#session) && this.#link?.isWritable) this.#link.send(text);
  }

  /**
   * A server ends the connection, for good, over a message that is too large for it.
   *
   * @param {string} text
   */
  #checkSize(text) {
    const most = this.#limits?.message_size ?? Infinity;
    if (text.length * 3 <= most) return; // UTF-8 takes at most 3 bytes for each
    const size = utf8.encode(text).length;
    if (size > most) throw new RealtimeError(`the server takes ${most} bytes, not ${size}`, "message_too_big");
  }

  /**
   * Nobody wants the answer any more. It counts as pending until the server's last word on it.
   *
   * @param {string} id
   * @param {PendingCall} call
   */
  #cancel(id, call) {
    if (!call.wasSent) call.fail(new RealtimeError("cancelled before it was sent", "cancelled"));
    else this.#sendOrKeep(JSON.stringify({ type: "system:cancel", payload: { ack: id } }));
  }

  /** Send what was queued. */
  #flush() {
    while (this.#link?.isWritable) {
      const entry = this.#queue.take();
      if (!entry) return;
      try {
        this.#sendNow(this.#link, entry.text, entry.call);
      } catch (error) {
        if (entry.call) entry.call.fail(/** @type {RealtimeError} */ (error));
        else report(error);
      }
    }
  }

  // Coming in --------------------------------------------------------------------------------------------

  /** @param {unknown} data */
  #received(data) {
    this.#watchdog.heard();
    const message = decoded(data);
    if (this.#state === "connecting" && this.#settings.session && message?.type !== "system:welcome") {
      this.#keepEarly(data);
      return;
    }
    if (!UNCOUNTED.has(message?.type ?? "")) this.#count(data);
    this.#take(message, data);
  }

  /** @param {unknown} data */
  #keepEarly(data) {
    this.#earlyLength += String(data).length;
    const fits = this.#early.push(data) <= EARLY_KEPT.messages && this.#earlyLength <= EARLY_KEPT.length;
    if (!fits) this.#giveUp("too much came before the welcome");
  }

  /**
   * @param {Message | null} message
   * @param {unknown} data
   */
  #take(message, data) {
    if (!message) return this.#warnOnce(data);
    if (message.type.startsWith("client:")) return; // those are told by this client
    if (message.type === "system:welcome" && this.#state === "connecting") this.#welcomed(message.payload);
    if (message.type === "system:received") return this.#session?.confirmed(message.payload?.count);
    if (typeof message.room === "string" && typeof message.cursor === "string") this.#rooms.came(message.room, message.cursor);
    if (!this.#calls.take(message)) {
      const change = this.#views.take(message);
      if (change) this.#tell("client:presence", change);
      this.#listeners.tell(message.type, message);
      if (message.ack !== undefined) this.#reply(message);
    }
    this.#listeners.tell("*", message);
  }

  /** @param {unknown} data */
  #count(data) {
    const session = this.#session;
    if (session?.receiving(String(data).length) && this.#link?.isWritable) this.#link.send(session.confirmation());
  }

  /** @param {unknown} data */
  #warnOnce(data) {
    if (this.#hasWarned) return;
    this.#hasWarned = true;
    console.warn(`realtime: the server sends what is no message: ${String(data).slice(0, 200)}`);
  }

  /**
   * Answer a question, in the session it came by, or where there is none on that connection; on no other.
   *
   * @param {Message} question
   */
  async #reply(question) {
    const asker = this.#session ?? this.#link;
    const text = await this.#answerTo(question);
    if (asker && asker === (this.#session ?? this.#link)) this.#sendOrKeep(text);
  }

  /** @param {Message} question */
  async #answerTo({ type, payload, ack, ...rest }) {
    const answerer = this.#answerers.get(type) ?? this.#answerers.get("*");
    try {
      if (!answerer) throw new RealtimeError(`nobody answers "${type}" here`, "unknown_type");
      const result = await answerer(payload, { type, payload, ack, ...rest });
      const text = JSON.stringify({ type: "system:ack", payload: { ack, result } });
      this.#checkSize(text);
      return text;
    } catch (error) {
      const known = error instanceof RealtimeError;
      if (!known) report(error);
      const message = error instanceof Error ? error.message : String(error);
      return JSON.stringify({ type: "system:error", payload: { ack, code: known ? error.code : "rejected", message } });
    }
  }
}

/**
 * The text of a message.
 *
 * @param {string} where
 * @param {string} type
 * @param {any} payload
 * @param {Destination} destination
 * @param {string} [ack]
 */
function encoded(where, type, payload, { room, target }, ack) {
  checkName(`${where}(type)`, type);
  if (room !== undefined) checkName(`${where}("${type}", ..., {room})`, room);
  const targets = target === undefined ? [] : [target].flat();
  for (const id of targets) checkName(`${where}("${type}", ..., {target})`, id);
  return JSON.stringify({ type, payload, room, target, ack });
}

/**
 * The message in what a server sent; null if there is none.
 *
 * @param {unknown} data
 * @returns {Message | null}
 */
function decoded(data) {
  try {
    const message = JSON.parse(String(data));
    return typeof message?.type === "string" ? message : null;
  } catch {
    return null;
  }
}

/**
 * What a welcome says of a session; null if it gives none.
 *
 * @param {any} payload
 * @returns {{token: string, grace?: number, resumed?: unknown, received?: unknown} | null}
 */
function sessionIn(payload) {
  const token = payload?.session?.token;
  return typeof token === "string" && token.length <= TOKEN_LENGTH ? payload.session : null;
}

/**
 * @param {any} value
 * @returns {boolean}
 */
const isHeartbeat = (value) => [value?.interval, value?.timeout].every((seconds) => typeof seconds === "number" && seconds > 0);

/**
 * Connect to a server, and again whenever the connection is lost.
 *
 * @param {string | URL} url ws://, wss://, http://, https://, or in a browser a path such as "/realtime"
 * @param {Options} [options]
 * @returns {RealtimeClient}
 * @throws {TypeError} an option that cannot work, by name
 */
export function connect(url, options) {
  return new RealtimeClient(url, options);
}

// WebRTC ---------------------------------------------------------------------------------------------------

const SIGNALS_WAITING = 256; // of one peer, while its connection works on those before
const CHANNELS_KEPT = 64; // data channels one peer may have open; further ones are closed
const RESTART_WAITS = [5, 10, 20, 20, 20]; // seconds each ICE restart in a row has to connect; then a peer has failed
const STEADY_PEER = 10; // a peer that was connected for so many seconds starts the count of restarts anew
const FIRST_OFFER = 0.5; // seconds the polite side leaves the first offer to the other, rather than take its own back
const NETWORK_PAUSE = 0.25; // seconds until a signal is tried again that the network had no room for
const ANSWERS_REFUSED = 3; // in a row, that could not be used; then a peer has failed
const RETURN_GRACE = 30; // seconds an absent peer is kept where the server did not say how long

/** @type {WeakMap<object, Set<string>>} the calls each client is in, by namespace and room */
const callsOf = new WeakMap();

/**
 * How a call is entered. A wrong option throws a TypeError.
 *
 * @typedef {object} WebRTCOptions
 * @property {unknown} [metadata] what the others learn of us, such as `{name: "Ada"}`; a few KiB of JSON
 * @property {MediaStream} [stream] sent to everybody, now and later; see also `call.addStream`
 * @property {(string | ({label: string} & RTCDataChannelInit))[]} [channels] data channels with every peer: labels,
 *   or objects such as `{label: "moves", ordered: false}`. One side of each pair makes them, both get them.
 * @property {RTCConfiguration} [configuration] for each RTCPeerConnection; its `iceServers`, if there are any, are
 *   used in place of the server's
 * @property {string} [namespace] of the server's WebRTCSignalingBridge; "webrtc" unless told otherwise
 */

/**
 * What the server tells about somebody in the call.
 *
 * @typedef {{id: string, polite: boolean, metadata?: unknown, replaces?: string, formerly?: string[]}} PeerInfo
 */

/**
 * @typedef {object} Signal
 * @property {string} [from]
 * @property {string} [room]
 * @property {RTCSessionDescriptionInit} [description]
 * @property {RTCIceCandidateInit | null} [candidate]
 * @property {string} [negotiation]
 */

/**
 * What a PeerLink needs of its call.
 *
 * @typedef {object} CallSide
 * @property {() => RTCConfiguration} configuration
 * @property {() => boolean} online whether signals can be sent now
 * @property {(kind: string, payload: object) => void} send
 * @property {() => Promise<unknown>} refresh fetches new credentials for the ICE servers
 * @property {(error: Error, link: PeerLink) => void} failed
 * @property {(link: PeerLink) => void} lost it did not come back
 * @property {(link: PeerLink, offer: Signal | null) => void} renew the other side began anew
 */

/**
 * "reconnecting": it was connected, or its place in the call is kept for a while; "failed": no ICE restart helped,
 * or the other side's answers are of no use.
 *
 * @typedef {"connecting" | "connected" | "reconnecting" | "failed" | "closed"} PeerState
 */

/**
 * @typedef {object} PeerEvents
 * @property {RTCTrackEvent} track
 * @property {RTCDataChannel} channel
 * @property {PeerState} state
 */

/**
 * What went wrong with one peer, or with the whole call.
 *
 * @typedef {object} CallError
 * @property {Error} error
 * @property {WebRTCPeer} [peer]
 */

/**
 * @typedef {object} CallEvents
 * @property {WebRTCPeer} peer
 * @property {WebRTCPeer} peer-left
 * @property {CallError} error
 * @property {Error | null} closed why the call ended; null after `leave()`
 */

/**
 * Somebody else in the call: one RTCPeerConnection, which negotiates by itself.
 *
 * It lives through lost connections of either side to the server; whoever comes back in another way, after a
 * reload or a restart of the server, is a new peer.
 */
export class WebRTCPeer {
  #link;

  /** @param {PeerLink} link */
  constructor(link) {
    this.#link = link;
  }

  /** The id of its client. Another one after its connection to the server was lost and is back. */
  get id() {
    return this.#link.id;
  }

  /** Whether we are the side of this pair that gives way when both offer at once. */
  get polite() {
    return this.#link.polite;
  }

  /** What it joined with. */
  get metadata() {
    return this.#link.metadata;
  }

  /** For `getStats()` and the like: add and remove tracks through the call, so that everybody gets them. */
  get connection() {
    return this.#link.connection;
  }

  get state() {
    return this.#link.state;
  }

  /**
   * Listen. "track" and "channel" are also told, at once, what came before; a channel may still be opening.
   *
   * @template {keyof PeerEvents} Name
   * @param {Name} name
   * @param {(detail: PeerEvents[Name]) => void} listener
   * @returns {() => void} stops it
   */
  on(name, listener) {
    return this.#link.on(name, listener);
  }

  /**
   * The data channel with this label, the last if there are several, once it is open. Rejects with a RealtimeError
   * "closed" when the peer goes.
   *
   * Messages are not kept for you: set `onmessage` in the "channel" event if the first ones matter and you may be late.
   *
   * @param {string} label
   * @returns {Promise<RTCDataChannel>}
   */
  channel(label) {
    return this.#link.channel(label);
  }
}

/**
 * One pair: perfect negotiation as in W3C webrtc-pc 10.7, with its operations one after the other.
 *
 * Because they are chained, the signaling state alone says whether offers collided. Whatever the connection gathered
 * so far is part of every description, so candidates of an earlier negotiation need not be kept.
 */
class PeerLink {
  /** @type {PeerState} */
  state = "connecting";
  /** @type {RTCPeerConnection} */
  connection;
  /** @type {WebRTCPeer} */
  peer;
  #call;
  #listeners = new Listeners();
  /** @type {Set<RTCDataChannel>} that are not closed */
  #channels = new Set();
  /** @type {RTCTrackEvent[]} */
  #tracks = [];
  /** @type {Set<(error: Error | null) => void>} told about every change of channels, and of the end */
  #watchers = new Set();
  /** @type {Promise<void>} */
  #tail = Promise.resolve();
  #waiting = 0;
  #wanted = false; // the connection needs a negotiation that has not begun
  /** @type {string | undefined} the negotiation whose answer and candidates count */
  #negotiation;
  /** @type {string | undefined} the fingerprint of the other side's connection, as it was sent */
  #theirs;
  away = false; // from the server; its place in the call is kept
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #absence;
  #met = false; // it was connected once
  #connectedAt = 0; // while it is
  #restarts = 0;
  #refused = 0; // answers in a row that could not be used
  /** @type {ReturnType<typeof setTimeout> | undefined} while an ICE restart may still connect */
  #retry;

  /**
   * @param {CallSide} call
   * @param {PeerInfo} info
   */
  constructor(call, info) {
    this.#call = call;
    this.id = info.id;
    this.polite = info.polite;
    this.metadata = info.metadata;
    this.peer = new WebRTCPeer(this);
    const connection = (this.connection = new RTCPeerConnection(call.configuration()));
    connection.addEventListener("negotiationneeded", () => {
      this.#wanted = true;
      const begin = () => this.#run(() => this.#offer());
      const isFirst = !connection.localDescription && !connection.remoteDescription;
      if (this.polite && isFirst) setTimeout(begin, FIRST_OFFER * 1000);
      else begin();
    });
    connection.addEventListener("icecandidate", ({ candidate }) => {
      if (candidate) this.#run(() => this.#sendCandidate(candidate));
    });
    connection.addEventListener("track", (event) => {
      this.#tracks = this.#tracks.filter(({ transceiver }) => transceiver !== event.transceiver);
      this.#tracks.push(event);
      this.#tell("track", event);
    });
    connection.addEventListener("datachannel", ({ channel }) => this.#addChannel(channel));
    connection.addEventListener("connectionstatechange", () => this.#connectionChanged());
  }

  /**
   * Begin: what is added here makes the connection ask for its first negotiation.
   *
   * @param {Map<MediaStreamTrack, MediaStream[]>} tracks
   * @param {({label: string} & RTCDataChannelInit)[]} channels
   */
  begin(tracks, channels) {
    for (const [track, streams] of tracks) this.connection.addTrack(track, ...streams);
    if (this.polite) return;
    for (const { label, ...init } of channels) this.#addChannel(this.connection.createDataChannel(label, init));
  }

  // Events -------------------------------------------------------------------------------------------------

  /**
   * @param {string} name
   * @param {(detail: any) => void} listener
   */
  on(name, listener) {
    checkFunction(`on("${name}", listener)`, listener);
    this.#listeners.add(name, listener);
    if (name === "track") for (const event of this.#tracks) told(listener, event);
    if (name === "channel") for (const channel of this.#channels) told(listener, channel);
    return () => this.#listeners.remove(name, listener);
  }

  /**
   * @param {string} name
   * @param {unknown} detail
   */
  #tell(name, detail) {
    this.#listeners.tell(name, { type: name, payload: detail });
  }

  /** @param {RTCDataChannel} channel */
  #addChannel(channel) {
    if (this.#channels.size >= CHANNELS_KEPT) {
      channel.close();
      this.#call.failed(new RealtimeError(`more than ${CHANNELS_KEPT} data channels`, "overflow"), this);
      return;
    }
    this.#channels.add(channel);
    channel.addEventListener("open", () => this.#changed(null));
    channel.addEventListener("close", () => this.#channels.delete(channel));
    this.#tell("channel", channel);
    this.#changed(null);
  }

  /** @param {Error | null} error */
  #changed(error) {
    for (const watcher of [...this.#watchers]) watcher(error);
  }

  /**
   * @param {string} label
   * @returns {Promise<RTCDataChannel>}
   */
  channel(label) {
    return new Promise((resolve, reject) => {
      /** @param {Error | null} error */
      const look = (error) => {
        const channel = [...this.#channels].filter((one) => one.label === label).pop();
        if (error) reject(error);
        else if (channel?.readyState === "open") resolve(channel);
        else return;
        this.#watchers.delete(look);
      };
      this.#watchers.add(look);
      look(this.state === "closed" ? gone() : null);
    });
  }

  // Negotiation --------------------------------------------------------------------------------------------

  /**
   * Do something after all that waits already. Returns false if too much does.
   *
   * @param {() => unknown} operation
   */
  #run(operation) {
    if (this.#waiting >= SIGNALS_WAITING) return false;
    this.#waiting++;
    this.#tail = this.#tail.then(async () => {
      try {
        if (this.state !== "closed") await operation();
      } catch (error) {
        if (this.connection.signalingState !== "closed") this.#call.failed(asError(error), this);
      } finally {
        this.#waiting--;
      }
    });
    return true;
  }

  async #offer() {
    if (!this.#wanted || !this.#reachable || this.connection.signalingState !== "stable") return;
    if (this.#refused >= ANSWERS_REFUSED) return; // the connection asks again after each offer that was taken back
    this.#wanted = false;
    await this.connection.setLocalDescription();
    await this.#describe(freshNegotiation());
  }

  /** @param {string | undefined} negotiation */
  async #describe(negotiation) {
    const description = this.connection.localDescription;
    if (!description) return;
    this.#negotiation = negotiation;
    await this.#send(description.type, { description, negotiation });
  }

  /** @param {RTCIceCandidate} candidate */
  async #sendCandidate(candidate) {
    const ours = this.connection.localDescription?.sdp ?? "";
    if (candidate.usernameFragment && !ours.includes(`a=ice-ufrag:${candidate.usernameFragment}`)) return; // rolled back
    await this.#send("candidate", { candidate, negotiation: this.#negotiation });
  }

  /**
   * Send, as soon as the network takes it. What comes after it waits meanwhile. What cannot be sent to somebody who
   * is away is lost: whoever comes back describes anew, with every candidate there is.
   *
   * @param {string} kind
   * @param {object} content
   */
  async #send(kind, content) {
    await patiently(
      () => this.#call.send(kind, { target: this.id, ...content }),
      () => this.#reachable,
    );
  }

  get #reachable() {
    return this.state !== "closed" && !this.away && this.#call.online();
  }

  /**
   * Take an offer, answer or candidate of the other side.
   *
   * @param {string} kind
   * @param {Signal} signal
   */
  receive(kind, signal) {
    const taken = this.#run(() => (kind === "candidate" ? this.#takeCandidate(signal) : this.#takeDescription(signal)));
    if (!taken) this.#call.failed(new RealtimeError(`more than ${SIGNALS_WAITING} signals wait`, "overflow"), this);
  }

  /** @param {Signal} signal */
  async #takeDescription({ description, negotiation }) {
    const { connection } = this;
    const stable = connection.signalingState === "stable";
    if (description?.type === "offer") {
      if (!stable && !this.polite) return; // both offered: the other side takes its offer back
    } else if (description?.type !== "answer" || stable || (negotiation ?? this.#negotiation) !== this.#negotiation) {
      return; // of an earlier negotiation
    }
    const theirs = fingerprint(description);
    if (this.#theirs && this.#theirs !== theirs) {
      this.#call.renew(this, description.type === "offer" ? { description, negotiation } : null);
      return;
    }
    if (description.type === "answer") {
      await this.#takeAnswer(description);
      this.#theirs = theirs;
      return;
    }
    if (!stable) await gatheringBegun(connection);
    await connection.setRemoteDescription(description); // takes our own offer back if there is one
    this.#theirs = theirs;
    this.#refused = 0;
    this.#update();
    this.#wanted = false; // what we need beside it, the connection asks for again
    await connection.setLocalDescription();
    await this.#describe(negotiation);
  }

  /**
   * Take an answer, or take our offer back and make another one. After a few of no use in a row the other side has to
   * offer, or to come back.
   *
   * @param {RTCSessionDescriptionInit} description
   */
  async #takeAnswer(description) {
    const { connection } = this;
    try {
      await connection.setRemoteDescription(description);
      this.#refused = 0;
    } catch (error) {
      await gatheringBegun(connection);
      await connection.setLocalDescription({ type: "rollback" });
      this.#wanted = true;
      if (++this.#refused < ANSWERS_REFUSED) this.#run(() => this.#offer());
      throw error;
    } finally {
      this.#update();
    }
  }

  /** @param {Signal} signal */
  async #takeCandidate({ candidate, negotiation }) {
    if (negotiation !== undefined && negotiation !== this.#negotiation) return;
    try {
      await this.connection.addIceCandidate(candidate ?? undefined);
    } catch (error) {
      if (negotiation !== undefined) throw error; // else it may belong to an offer that was passed over
    }
  }

  // Coming and going ---------------------------------------------------------------------------------------

  /**
   * The other side lost its connection to the server, or we did not hear of it when we came back.
   *
   * @param {number} seconds it may take to return
   */
  absent(seconds) {
    this.away = true;
    clearTimeout(this.#absence);
    this.#absence = setTimeout(() => this.#call.lost(this), seconds * 1000);
    this.#update();
  }

  /**
   * Both sides have a connection to the server again. Offers, answers and candidates may have been lost.
   *
   * @param {PeerInfo} info
   */
  present({ id, polite, metadata }) {
    clearTimeout(this.#absence);
    this.away = false;
    this.id = id;
    this.polite = polite;
    if (metadata !== undefined) this.metadata = metadata;
    this.#run(() => {
      if (this.connection.signalingState === "have-local-offer") return this.#describe(freshNegotiation());
      return this.#offer();
    });
    this.#restarts = this.#refused = 0;
    this.#stopRestarting();
    if (this.connection.connectionState !== "connected") this.#restart();
    this.#update();
  }

  /** End it. The promises of channels that did not open are rejected. */
  close() {
    if (this.state === "closed") return;
    clearTimeout(this.#absence);
    this.#stopRestarting();
    this.connection.close();
    this.#update("closed");
    this.#changed(gone());
  }

  #connectionChanged() {
    const { connectionState } = this.connection;
    if (connectionState === "connected") {
      this.#met = true;
      this.#connectedAt = performance.now();
      this.#stopRestarting();
    } else if (this.#connectedAt) {
      if (performance.now() - this.#connectedAt > STEADY_PEER * 1000) this.#restarts = 0;
      this.#connectedAt = 0;
    }
    if (connectionState === "failed" && this.#retry === undefined) this.#restart();
    this.#update();
  }

  /** Restart ICE with fresh credentials, again a while later if that did not connect, but not for ever. */
  async #restart() {
    if (!this.#reachable || this.#restarts >= RESTART_WAITS.length) return this.#stopRestarting();
    const wait = RESTART_WAITS[this.#restarts++] ?? 0;
    this.#retry = setTimeout(() => this.#restart(), wait * 1000);
    await this.#call.refresh();
    if (this.#retry === undefined || this.state === "closed") return; // connected meanwhile
    this.connection.setConfiguration(this.#call.configuration());
    this.connection.restartIce();
  }

  #stopRestarting() {
    clearTimeout(this.#retry);
    this.#retry = undefined;
    this.#update();
  }

  /** @param {PeerState} [end] */
  #update(end) {
    if (this.state === "closed") return;
    const before = this.state;
    const { connectionState } = this.connection;
    const unconnected = this.#restarts >= RESTART_WAITS.length && this.#retry === undefined;
    const givenUp = unconnected || this.#refused >= ANSWERS_REFUSED;
    if (end) this.state = end;
    else if (this.away) this.state = "reconnecting";
    else if (connectionState === "connected") this.state = "connected";
    else if (givenUp) this.state = "failed";
    else this.state = this.#met ? "reconnecting" : "connecting";
    if (this.state !== before) this.#tell("state", this.state);
  }
}

/**
 * Everybody in one room of the server's WebRTCSignalingBridge, each with an RTCPeerConnection.
 *
 *     const call = client.webrtc("lobby", { metadata: { name: "Ada" }, channels: ["chat"], stream });
 *     call.on("peer", (peer) => {
 *       peer.on("track", ({ streams }) => show(peer, streams[0]));
 *       peer.on("channel", (channel) => (channel.onmessage = ({ data }) => write(peer, data)));
 *     });
 *     call.on("peer-left", (peer) => hide(peer));
 *     await call.join();
 *
 * It comes back by itself when the connection to the server was lost; until then, and after, the RTCPeerConnections
 * live on. It ends with `leave()`, when the page is left, and when the server or the client ends it for good.
 */
export class WebRTCCall {
  /** @type {Map<string, WebRTCPeer>} by id */
  peers = new Map();
  #client;
  #namespace;
  #metadata;
  #rtc;
  /** @type {({label: string} & RTCDataChannelInit)[]} */
  #channels;
  /** @type {Map<MediaStreamTrack, MediaStream[]>} */
  #tracks = new Map();
  /** @type {Map<string, PeerLink>} by id */
  #links = new Map();
  #listeners = new Listeners();
  /** @type {(() => void)[]} what ends with the call */
  #undo = [];
  /** @type {RTCIceServer[]} */
  #iceServers = [];
  /** @type {string | undefined} with which we get our place in the call again */
  #resume;
  /** @type {"new" | "outside" | "entering" | "inside" | "closed"} */
  #state = "new";
  /** @type {Promise<void>} */
  #joined;
  /** @type {() => void} */
  #entered = () => {};
  /** @type {(error: Error) => void} */
  #refused = () => {};
  /** @type {"entering" | "inside" | null} where we were when the connection was lost, and are if the session goes on */
  #suspended = null;
  /** @type {Error | null} why it ended */
  #cause = null;
  /** @type {Promise<unknown> | null} */
  #refreshing = null;
  /** @type {CallSide} */
  #side = {
    configuration: () => ({ iceServers: this.#iceServers, ...this.#rtc }),
    online: () => this.#state === "inside",
    send: (kind, payload) => this.#client.send(`${this.#namespace}:${kind}`, { room: this.room, ...payload }),
    refresh: () => this.#refresh(),
    failed: (error, { peer }) => this.#fail({ error, peer }),
    lost: (link) => this.#part(link),
    renew: (link, offer) => {
      this.#part(link);
      const made = this.#meet(link);
      if (offer) made.receive("offer", offer);
    },
  };

  /**
   * Use `client.webrtc(room, options)`.
   *
   * @param {RealtimeClient} client
   * @param {string} room
   * @param {WebRTCOptions} [options]
   */
  constructor(client, room, options = {}) {
    if (typeof RTCPeerConnection === "undefined") throw new TypeError("webrtc() needs a browser: no RTCPeerConnection");
    const { namespace = "webrtc", metadata, stream, channels = [], configuration = {} } = checkCall(room, options);
    this.#client = client;
    /** @readonly */
    this.room = room;
    this.#namespace = namespace;
    this.#metadata = metadata;
    this.#rtc = configuration;
    this.#channels = channels.map((channel) => (typeof channel === "string" ? { label: channel } : channel));
    this.#joined = new Promise((resolve, reject) => {
      this.#entered = resolve;
      this.#refused = reject;
    });
    this.#joined.catch(() => {}); // told by "closed", too
    if (stream) this.addStream(stream);
  }

  /**
   * Enter the call, as soon as there is a connection. Resolves when the peers are known that are there already.
   *
   * Rejects with a RealtimeError: the server's ("forbidden", "room_full", ...), or "closed" when the call has ended.
   *
   * @returns {Promise<void>}
   */
  join() {
    if (this.#state === "new") this.#begin();
    return this.#joined;
  }

  /**
   * Every peer: those that are there, then whoever comes. Ends with the call; throws if that ended by itself.
   *
   * @returns {AsyncGenerator<WebRTCPeer, void, void>}
   */
  async *[Symbol.asyncIterator]() {
    /** @type {Set<WebRTCPeer>} */
    const fresh = new Set();
    let wake = () => {};
    const undo = [
      this.on("peer", (peer) => {
        fresh.add(peer);
        wake();
      }),
      this.on("peer-left", (peer) => fresh.delete(peer)),
      this.on("closed", () => wake()),
    ];
    try {
      if (this.#state !== "closed") await this.join();
      for (;;) {
        for (const peer of fresh) {
          fresh.delete(peer);
          yield peer;
        }
        if (this.#state === "closed") break;
        await new Promise((resolve) => (wake = () => resolve(null)));
      }
      if (this.#cause) throw this.#cause;
    } finally {
      for (const off of undo) off();
    }
  }

  /**
   * Listen. "peer" is also told, at once, of the peers that are there.
   *
   * @template {keyof CallEvents} Name
   * @param {Name} name
   * @param {(detail: CallEvents[Name]) => void} listener
   * @returns {() => void} stops it
   */
  on(name, listener) {
    checkFunction(`on("${name}", listener)`, listener);
    this.#listeners.add(name, listener);
    if (name === "peer") for (const { peer } of this.#links.values()) told(listener, peer);
    return () => this.#listeners.remove(name, listener);
  }

  /**
   * Send a track to everybody, now and later.
   *
   * @param {MediaStreamTrack} track
   * @param {...MediaStream} streams it belongs to, for the others' "track" event
   */
  addTrack(track, ...streams) {
    if (this.#tracks.has(track)) return;
    this.#tracks.set(track, streams);
    for (const { connection } of this.#links.values()) connection.addTrack(track, ...streams);
  }

  /**
   * Send all tracks of a stream.
   *
   * @param {MediaStream} stream
   */
  addStream(stream) {
    for (const track of stream.getTracks()) this.addTrack(track, stream);
  }

  /**
   * Send a track no longer.
   *
   * @param {MediaStreamTrack} track
   */
  removeTrack(track) {
    if (!this.#tracks.delete(track)) return;
    for (const { connection } of this.#links.values()) {
      const sender = senderOf(connection, track);
      if (sender) connection.removeTrack(sender);
    }
  }

  /**
   * Send another track of the same kind in the place of one: the camera in the place of a drawing. Nothing is
   * negotiated, the others notice no gap.
   *
   * @param {MediaStreamTrack} track
   * @param {MediaStreamTrack} next
   */
  async replaceTrack(track, next) {
    if (!this.#tracks.has(track)) throw new TypeError("replaceTrack(): the first track is not sent in this call");
    if (track.kind !== next.kind) throw new TypeError(`replaceTrack(): ${next.kind} cannot replace ${track.kind}`);
    this.#tracks = new Map([...this.#tracks].map(([one, streams]) => [one === track ? next : one, streams]));
    const connections = [...this.#links.values()].map(({ connection }) => connection);
    await Promise.all(connections.map((connection) => senderOf(connection, track)?.replaceTrack(next)));
  }

  /** Leave for good: every connection is closed, iterations end. Resolves when the server knows. */
  async leave() {
    const known = this.#state === "inside" || this.#state === "entering" || this.#suspended !== null;
    const { id } = this.#client;
    const told = patiently(
      () => this.#client.call(`${this.#namespace}:leave`, { room: this.room }),
      () => known && this.#client.state !== "closed" && this.#client.id === id,
    );
    this.#end(null);
    await told.catch(() => {}); // the connection is gone, and we with it
  }

  // Inside -------------------------------------------------------------------------------------------------

  #begin() {
    this.#state = "outside";
    const calls = callsOf.get(this.#client) ?? new Set();
    const key = `${this.#namespace}:${this.room}`;
    if (calls.has(key)) return this.#end(new RealtimeError(`this client is in the call ${this.room} already`));
    callsOf.set(this.#client, calls.add(key));
    /** @param {string} name @param {(payload: any) => void} listener */
    const hear = (name, listener) =>
      this.#client.on(`${this.#namespace}:${name}`, (payload) => {
        if (payload?.room === undefined || payload.room === this.room) listener(payload ?? {});
      });
    const leave = () => void this.leave();
    globalThis.addEventListener?.("pagehide", leave);
    this.#undo = [
      () => calls.delete(key),
      () => globalThis.removeEventListener?.("pagehide", leave),
      this.#client.on("client:state", (state) => this.#connectionChanged(state)),
      hear("peers", (payload) => this.#listed(payload)),
      hear("peer-joined", (payload) => this.#came(payload)),
      hear("bye", (payload) => this.#went(payload)),
      hear("error", (payload) => this.#signalRefused(payload)),
      ...["offer", "answer", "candidate"].map((kind) =>
        hear(kind, (signal) => this.#links.get(signal.from)?.receive(kind, signal)),
      ),
    ];
    this.#connectionChanged({ name: this.#client.state });
  }

  /** @param {{name: string, code?: number, reason?: string, resumed?: boolean}} state */
  #connectionChanged({ name, code, reason, resumed }) {
    if (name === "open") {
      if (resumed && this.#suspended) this.#goOn(this.#suspended);
      else this.#enter();
      this.#suspended = null;
    } else if (name !== "closed") {
      if (this.#state === "inside" || this.#state === "entering") this.#suspended = this.#state;
      this.#state = "outside";
    } else this.#end(new RealtimeError(`the connection is closed: ${code ?? ""} ${reason ?? ""}`.trim(), "closed"));
  }

  /**
   * The session goes on, and our place in the call with it. What we would have sent meanwhile is sent now.
   *
   * @param {"entering" | "inside"} state
   */
  #goOn(state) {
    this.#state = state;
    for (const link of this.#links.values()) if (!link.away) link.present(link);
  }

  #enter() {
    this.#state = "entering";
    const request = { room: this.room, metadata: this.#metadata, resume: this.#resume };
    const { id } = this.#client;
    const entering = () => this.#state === "entering" && this.#client.id === id; // else the next connection's turn
    patiently(() => this.#client.call(`${this.#namespace}:join`, request), entering).catch((error) => {
      if (!entering() || error.code === "closed") return;
      if (error.code === "timeout") this.#enter();
      else this.#end(error);
    });
  }

  /**
   * The list of those who are there: the answer to our joining, or one we asked for or the server thought better of.
   *
   * @param {{peers: PeerInfo[], ice_servers?: RTCIceServer[], resume?: string, resumed?: boolean}} list
   */
  #listed({ peers, ice_servers, resume, resumed }) {
    if (ice_servers) this.#iceServers = ice_servers;
    if (resume) this.#resume = resume;
    const before = this.#state === "entering" ? [...this.#links.values()] : [];
    if (this.#state === "entering") this.#state = "inside";
    for (const link of before) {
      // to the others we are the one we were only if we resumed: else they begin anew, and so do we
      if (resumed) link.away = true;
      else this.#part(link);
    }
    for (const info of peers) this.#came(info);
    for (const link of before) if (resumed && link.away) link.absent(RETURN_GRACE);
    this.#entered();
  }

  /** @param {PeerInfo} info */
  #came(info) {
    if (this.#state !== "inside") return;
    const names = [info.id, info.replaces ?? "", ...(info.formerly ?? [])]; // it may have come back more than once
    const known = names.map((name) => this.#links.get(name)).find(Boolean);
    if (!known) this.#meet(info);
    else if (known.away || known.id !== info.id) this.#rekey(known, info);
  }

  /** @param {{from: string, returns_within?: number}} bye */
  #went({ from, returns_within }) {
    const link = this.#links.get(from);
    if (!link) return;
    if (returns_within) link.absent(returns_within + 1); // the server's clock counts, ours only tidies up
    else this.#part(link);
  }

  /** @param {{reason?: string, message?: string, event?: string, target?: string}} refusal */
  #signalRefused({ reason, message, event, target }) {
    const link = this.#links.get(target ?? "");
    // EXPIRED: of an earlier negotiation. UNKNOWN_TARGET: it just went, which we are told.
    if (!link || reason === "EXPIRED" || reason === "UNKNOWN_TARGET") return;
    this.#fail({ error: new RealtimeError(`${event}: ${message}`, String(reason).toLowerCase()), peer: link.peer });
  }

  /**
   * @param {PeerLink} link
   * @param {PeerInfo} info
   */
  #rekey(link, info) {
    this.#links.delete(link.id);
    this.peers.delete(link.id);
    this.#links.set(info.id, link);
    this.peers.set(info.id, link.peer);
    link.present(info);
  }

  /** @param {PeerInfo} info */
  #meet(info) {
    const link = new PeerLink(this.#side, info);
    this.#links.set(link.id, link);
    this.peers.set(link.id, link.peer);
    this.#tell("peer", link.peer);
    link.begin(this.#tracks, this.#channels);
    return link;
  }

  /** @param {PeerLink} link */
  #part(link) {
    if (this.#links.get(link.id) !== link) return;
    this.#links.delete(link.id);
    this.peers.delete(link.id);
    link.close();
    this.#tell("peer-left", link.peer);
  }

  #refresh() {
    // an ICE restart is worth a try with the credentials we have, too
    this.#refreshing ??= this.#client
      .call(`${this.#namespace}:peers`, { room: this.room })
      .catch(() => {})
      .finally(() => (this.#refreshing = null));
    return this.#refreshing;
  }

  /** @param {Error | null} cause */
  #end(cause) {
    if (this.#state === "closed") return;
    this.#state = "closed";
    this.#cause = cause;
    for (const undo of this.#undo) undo();
    for (const link of [...this.#links.values()]) this.#part(link);
    this.#refused(cause ?? new RealtimeError("the call was left", "closed"));
    this.#tell("closed", cause);
  }

  /** @param {CallError} failure */
  #fail(failure) {
    if (this.#listeners.has("error")) this.#tell("error", failure);
    else console.warn(`realtime: the call ${this.room}:`, failure.error);
  }

  /**
   * @param {string} name
   * @param {unknown} detail
   */
  #tell(name, detail) {
    this.#listeners.tell(name, { type: name, payload: detail });
  }
}

/**
 * Tell a listener what came before it.
 *
 * @param {(detail: any) => void} listener
 * @param {unknown} detail
 */
function told(listener, detail) {
  try {
    listener(detail);
  } catch (error) {
    report(error);
  }
}

/**
 * Do something, and again a while later as long as the network has no room for it.
 *
 * @param {() => unknown} action throws "queue_full", or gives a promise that rejects with it
 * @param {() => boolean} isWanted asked before each time
 */
async function patiently(action, isWanted) {
  while (isWanted()) {
    try {
      await action();
      return;
    } catch (error) {
      if (!(error instanceof RealtimeError && error.code === "queue_full")) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, NETWORK_PAUSE * 1000));
  }
}

const gone = () => new RealtimeError("the peer is gone", "closed");

/** An id for one offer and what belongs to it; it need not be a secret. */
const freshNegotiation = () => `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`;

/**
 * What tells an RTCPeerConnection from another: its certificate's.
 *
 * @param {RTCSessionDescriptionInit} description
 */
const fingerprint = (description) => /^a=fingerprint:\S+ \S+/m.exec(description.sdp ?? "")?.[0];

/**
 * Wait until a connection gathers candidates, a second at most. Chromium (156) never gathers any for one whose first
 * offer is taken back before that.
 *
 * @param {RTCPeerConnection} connection
 */
async function gatheringBegun(connection) {
  if (connection.iceGatheringState !== "new") return;
  await new Promise((resolve) => {
    const timer = setTimeout(resolve, 1000);
    connection.addEventListener("icegatheringstatechange", () => (clearTimeout(timer), resolve(null)), { once: true });
  });
}

/**
 * @param {RTCPeerConnection} connection
 * @param {MediaStreamTrack} track
 */
const senderOf = (connection, track) => connection.getSenders().find((sender) => sender.track === track);

/** @param {unknown} error */
const asError = (error) => (error instanceof Error ? error : new Error(String(error)));

/**
 * Check what a call is to be made of.
 *
 * @param {unknown} room
 * @param {WebRTCOptions} options
 */
function checkCall(room, options) {
  checkName("webrtc(room)", room);
  checkKeys("webrtc(room, options)", options, ["metadata", "stream", "channels", "configuration", "namespace"]);
  const { channels = [], namespace = "webrtc" } = options;
  const labels = Array.isArray(channels) ? channels.map((one) => (typeof one === "string" ? one : one?.label)) : [null];
  const different = labels.every((label) => typeof label === "string") && new Set(labels).size === labels.length;
  check(different, "webrtc(room, {channels})", channels, 'different labels such as ["chat"], or objects with a "label"');
  checkName("webrtc(room, {namespace})", namespace);
  return options;
}
