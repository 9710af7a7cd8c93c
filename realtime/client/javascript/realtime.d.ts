/**
 * Tell whether a client that was closed with this code comes back by itself.
 *
 * @param {number} code
 * @returns {boolean}
 */
export function mayReconnect(code: number): boolean;
/**
 * Connect to a server, and again whenever the connection is lost.
 *
 * @param {string | URL} url ws://, wss://, http://, https://, or in a browser a path such as "/realtime"
 * @param {Options} [options]
 * @returns {RealtimeClient}
 * @throws {TypeError} an option that cannot work, by name
 */
export function connect(url: string | URL, options?: Options): RealtimeClient;
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
/** Why a WebSocket was closed: RFC 6455 section 7.4.1, then 4000-4499 "come back", 4500-4999 "do not". */
export const CloseCode: Readonly<{
    NORMAL: 1000;
    GOING_AWAY: 1001;
    PROTOCOL_ERROR: 1002;
    UNSUPPORTED_DATA: 1003;
    NO_STATUS: 1005;
    ABNORMAL: 1006;
    INVALID_DATA: 1007;
    POLICY_VIOLATION: 1008;
    MESSAGE_TOO_BIG: 1009;
    MANDATORY_EXTENSION: 1010;
    INTERNAL_ERROR: 1011;
    SLOW_CONSUMER: 4008;
    HEARTBEAT_TIMEOUT: 4009;
    REPLACED: 4010;
    DRAINING: 4013;
    DISCONNECTED: 4500;
    UNAUTHORIZED: 4501;
    FORBIDDEN: 4503;
}>;
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
    constructor(message: string, code?: string, details?: unknown);
    code: string;
    details: unknown;
}
/** A connection to a server that comes back by itself. Made by `connect`. */
export class RealtimeClient {
    /**
     * @param {string | URL} url
     * @param {Options} [options]
     */
    constructor(url: string | URL, options?: Options);
    /**
     * Who is here, and what this client says of itself.
     *
     * @readonly
     */
    readonly presence: Presence;
    /** The address it connects to. */
    get url(): string;
    /** What the server calls this client; null before the first. Another one after a reconnect that resumed nothing. */
    get id(): string | null;
    /** "open" once the server has welcomed this client; "waiting" until the next attempt; "closed" for good. */
    get state(): StateName;
    /**
     * Resolves when the client is open for the first time; rejects if it is closed for good before. After the end,
     * `reconnect()` makes a new one.
     */
    get ready(): Promise<void>;
    /** The WebSocket; null while there is none. */
    get socket(): Socket | null;
    /** How often the server pings; null if it does not. */
    get heartbeat(): Heartbeat | null;
    /** What the server bounds; null before it has said so. */
    get limits(): ServerLimits | null;
    /**
     * Hear of the client's own state.
     *
     * @overload
     * @param {"client:state"} type
     * @param {(state: State) => unknown} listener
     * @returns {() => void}
     */
    on(type: "client:state", listener: (state: State) => unknown): () => void;
    /**
     * Hear of rooms that let this client in no more after a reconnect.
     *
     * @overload
     * @param {"client:left"} type
     * @param {(left: Left) => unknown} listener
     * @returns {() => void}
     */
    on(type: "client:left", listener: (left: Left) => unknown): () => void;
    /**
     * Hear what became of recoverable rooms that were joined again.
     *
     * @overload
     * @param {"client:recovered"} type
     * @param {(recovered: Recovered) => unknown} listener
     * @returns {() => void}
     */
    on(type: "client:recovered", listener: (recovered: Recovered) => unknown): () => void;
    /**
     * Hear who comes, goes and changes in rooms that were joined with `presence`.
     *
     * @overload
     * @param {"client:presence"} type
     * @param {(change: PresenceChange) => unknown} listener
     * @returns {() => void}
     */
    on(type: "client:presence", listener: (change: PresenceChange) => unknown): () => void;
    /**
     * Hear every message of a type, or with "*" every message at all. Answers to calls are heard by "*" only.
     *
     * @overload
     * @param {string} type
     * @param {Listener} listener gets the payload, and the message around it
     * @returns {() => void} stops it
     */
    on(type: string, listener: Listener): () => void;
    /**
     * Hear no more.
     *
     * @param {string} type
     * @param {(payload: any, message: Message) => unknown} listener
     */
    off(type: string, listener: (payload: any, message: Message) => unknown): void;
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
    send(type: string, payload?: any, destination?: Destination): void;
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
    call<Result = any, Item = any>(type: string, payload?: any, options?: CallOptions): Answer<Result, Item>;
    /**
     * Answer what the server's handlers ask with `call`; with "*" what nothing else answers.
     *
     * @param {string} type
     * @param {Answerer} answerer returns the result or a promise of it; a RealtimeError it throws is told with its code
     * @returns {() => void} stops it
     */
    answer(type: string, answerer: Answerer): () => void;
    /**
     * Join a room that the server opens to clients. After a reconnect it is as if we had been there all the time: of a
     * recoverable room what was missed is told first; if that cannot be, "client:recovered" says so. In a room that was
     * joined before, this waits for that.
     *
     * @param {string} room
     * @param {JoinOptions} [options]
     * @returns {Promise<Joined>} who is in it
     */
    join(room: string, options?: JoinOptions): Promise<Joined>;
    /**
     * How far this client is in a recoverable room: to be kept, and given to `join` by a client that comes later. Forgotten
     * with `leave`.
     *
     * @param {string} room
     * @returns {string | null} null if nothing with a cursor came from that room
     */
    cursor(room: string): string | null;
    /**
     * Ask for what a room keeps that this client is in: the newest `limit` messages (50), or the first after a cursor.
     *
     * @param {string} room
     * @param {{limit?: number, since?: string}} [options]
     * @returns {Promise<History>}
     */
    history(room: string, options?: {
        limit?: number;
        since?: string;
    }): Promise<History>;
    /**
     * @param {string} room
     * @returns {Promise<LeftRoom>}
     */
    leave(room: string): Promise<LeftRoom>;
    /**
     * Make a call: everybody in a room of the server's WebRTCSignalingBridge, connected with everybody else. Nothing
     * happens before `join()`, or an iteration over its peers.
     *
     * @param {string} room
     * @param {WebRTCOptions} [options]
     * @returns {WebRTCCall}
     */
    webrtc(room: string, options?: WebRTCOptions): WebRTCCall;
    /**
     * End the connection, for good. What waits is rejected with "closed".
     *
     * @param {number} [code] 1000, or one of the application's from 3000 to 4999
     * @param {string} [reason] at most 123 bytes
     */
    close(code?: number, reason?: string): void;
    /**
     * Connect anew, now: also while waiting, and after the end. Does nothing while connecting. The session goes on, if
     * there is one.
     */
    reconnect(): void;
    #private;
}
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
    /** @param {PeerLink} link */
    constructor(link: PeerLink);
    /** The id of its client. Another one after its connection to the server was lost and is back. */
    get id(): string;
    /** Whether we are the side of this pair that gives way when both offer at once. */
    get polite(): boolean;
    /** What it joined with. */
    get metadata(): unknown;
    /** For `getStats()` and the like: add and remove tracks through the call, so that everybody gets them. */
    get connection(): RTCPeerConnection;
    get state(): PeerState;
    /**
     * Listen. "track" and "channel" are also told, at once, what came before; a channel may still be opening.
     *
     * @template {keyof PeerEvents} Name
     * @param {Name} name
     * @param {(detail: PeerEvents[Name]) => void} listener
     * @returns {() => void} stops it
     */
    on<Name extends keyof PeerEvents>(name: Name, listener: (detail: PeerEvents[Name]) => void): () => void;
    /**
     * The data channel with this label, the last if there are several, once it is open. Rejects with a RealtimeError
     * "closed" when the peer goes.
     *
     * Messages are not kept for you: set `onmessage` in the "channel" event if the first ones matter and you may be late.
     *
     * @param {string} label
     * @returns {Promise<RTCDataChannel>}
     */
    channel(label: string): Promise<RTCDataChannel>;
    #private;
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
    /**
     * Use `client.webrtc(room, options)`.
     *
     * @param {RealtimeClient} client
     * @param {string} room
     * @param {WebRTCOptions} [options]
     */
    constructor(client: RealtimeClient, room: string, options?: WebRTCOptions);
    /** @type {Map<string, WebRTCPeer>} by id */
    peers: Map<string, WebRTCPeer>;
    /** @readonly */
    readonly room: string;
    /**
     * Enter the call, as soon as there is a connection. Resolves when the peers are known that are there already.
     *
     * Rejects with a RealtimeError: the server's ("forbidden", "room_full", ...), or "closed" when the call has ended.
     *
     * @returns {Promise<void>}
     */
    join(): Promise<void>;
    /**
     * Listen. "peer" is also told, at once, of the peers that are there.
     *
     * @template {keyof CallEvents} Name
     * @param {Name} name
     * @param {(detail: CallEvents[Name]) => void} listener
     * @returns {() => void} stops it
     */
    on<Name extends keyof CallEvents>(name: Name, listener: (detail: CallEvents[Name]) => void): () => void;
    /**
     * Send a track to everybody, now and later.
     *
     * @param {MediaStreamTrack} track
     * @param {...MediaStream} streams it belongs to, for the others' "track" event
     */
    addTrack(track: MediaStreamTrack, ...streams: MediaStream[]): void;
    /**
     * Send all tracks of a stream.
     *
     * @param {MediaStream} stream
     */
    addStream(stream: MediaStream): void;
    /**
     * Send a track no longer.
     *
     * @param {MediaStreamTrack} track
     */
    removeTrack(track: MediaStreamTrack): void;
    /**
     * Send another track of the same kind in the place of one: the camera in the place of a drawing. Nothing is
     * negotiated, the others notice no gap.
     *
     * @param {MediaStreamTrack} track
     * @param {MediaStreamTrack} next
     */
    replaceTrack(track: MediaStreamTrack, next: MediaStreamTrack): Promise<void>;
    /** Leave for good: every connection is closed, iterations end. Resolves when the server knows. */
    leave(): Promise<void>;
    /**
     * Every peer: those that are there, then whoever comes. Ends with the call; throws if that ended by itself.
     *
     * @returns {AsyncGenerator<WebRTCPeer, void, void>}
     */
    [Symbol.asyncIterator](): AsyncGenerator<WebRTCPeer, void, void>;
    #private;
}
export type Settings = ReturnType<typeof settingsFrom>;
/**
 * What a server sends.
 */
export type Message = {
    type: string;
    payload?: any;
    room?: string | undefined;
    /**
     * an answer is wanted: see `client.answer`
     */
    ack?: string | number | undefined;
    /**
     * milliseconds since the epoch
     */
    timestamp?: number | undefined;
    /**
     * how far a recoverable room is with this message
     */
    cursor?: string | undefined;
};
export type Listener = (payload: any, message: Message) => unknown;
/**
 * gives the result, or a promise of it
 */
export type Answerer = (payload: any, message: Message) => unknown;
/**
 * What `client.call` returns: a promise of the result, and the items of a streamed answer.
 */
export type Answer<Result = any, Item = any> = Promise<Result> & AsyncIterable<Item>;
export type StateName = "connecting" | "open" | "waiting" | "closed";
/**
 * What "client:state" tells.
 */
export type State = {
    name: StateName;
    /**
     * why the last connection ended: a CloseCode, or one of the application's
     */
    code?: number | undefined;
    reason?: string | undefined;
    /**
     * seconds until the next attempt, while waiting; none while the page is out of sight, left
     * for another one and kept for who goes back
     */
    retryIn?: number | undefined;
    /**
     * once open: whether the server goes on where it was, with the same id, rooms and calls
     */
    resumed?: boolean | undefined;
};
/**
 * What "client:left" tells: a room let us in no more after a reconnect.
 */
export type Left = {
    room: string;
    code: string;
    message: string;
};
/**
 * What "client:recovered" tells: a recoverable room was joined again after a reconnect. Unless `recovered`, something
 * is missing between what came before and what comes now, and has to be loaded from elsewhere.
 */
export type Recovered = {
    room: string;
    recovered: boolean;
    /**
     * why not
     */
    reason?: string | undefined;
    /**
     * messages that were missed, and have been told by now
     */
    replayed?: number | undefined;
};
/**
 * What live presence shows of a room: by key, an identity or the id of a client without one, a meta for each client.
 */
export type Presences = Record<string, {
    metas: ({
        id: string;
    } & Record<string, any>)[];
}>;
/**
 * of a crowded room only the number of presences
 */
export type RoomPresence = {
    presences?: Presences;
    total: number;
};
/**
 * `page` asks for the next; the last has none
 */
export type PresencePage = {
    presences: Presences;
    total: number;
    page?: string;
};
/**
 * What "client:presence" tells: what changed in a room that was joined with `presence`. Of a crowded room only `total`.
 */
export type PresenceChange = {
    room: string;
    joins?: Presences | undefined;
    /**
     * as they were
     */
    leaves?: Presences | undefined;
    /**
     * as they are now
     */
    updates?: Presences | undefined;
    total: number;
};
/**
 * seconds
 */
export type Heartbeat = {
    interval: number;
    timeout: number;
};
export type ServerLimits = {
    message_size: number;
    rooms_per_client: number;
    room_name: number;
};
export type Member = {
    id: string;
    metadata: Record<string, any>;
};
/**
 * `total` counts also those that are not listed
 */
export type Members = {
    members: Member[];
    total: number;
};
/**
 * What joining a room gives. `id` is our own. Of a recoverable room also `cursor`; if that was asked for with `since`,
 * also what `Recovered` tells.
 */
export type Joined = Members & {
    room: string;
    id: string;
    cursor?: string;
} & Partial<Recovered>;
/**
 * Messages of a room, the oldest first. `more`: there are newer ones after `cursor`. With `since`, `recovered` tells
 * whether nothing is missing between that and the first of them.
 */
export type History = {
    messages: Message[];
    cursor: string | null;
    more: boolean;
    recovered?: boolean;
    reason?: string;
};
export type JoinOptions = {
    /**
     * a cursor of this room, as `client.cursor(room)` gave it: what came after it is told first
     */
    since?: string | undefined;
    /**
     * be told who is there, and of each change: see `presence.state`. Else as the server likes
     */
    presence?: boolean | undefined;
};
/**
 * `left` is false if we were not in it
 */
export type LeftRoom = {
    room: string;
    left: boolean;
};
/**
 * Where a message goes; the server's handler decides what that means.
 */
export type Destination = {
    room?: string | undefined;
    /**
     * ids of clients
     */
    target?: string | string[] | undefined;
};
/**
 * `timeout` in seconds, without an answer or an item
 */
export type CallOptions = Destination & {
    timeout?: number;
};
/**
 * What this module uses of a WebSocket: the browser's, node's (from 22 on), or npm's ws.
 */
export type Socket = {
    readyState: number;
    bufferedAmount: number;
    onopen: ((event: any) => void) | null;
    onmessage: ((event: any) => void) | null;
    onclose: ((event: any) => void) | null;
    onerror: ((event: any) => void) | null;
    send: (text: string) => void;
    close: (code?: number, reason?: string) => void;
};
export type Options = {
    /**
     * seconds before a reconnect: `min` (1), doubled
     * by every attempt up to `max` (5), give or take a random share of at most `jitter` (0.5)
     */
    backoff?: {
        min?: number;
        max?: number;
        jitter?: number;
    } | undefined;
    /**
     * come back by itself (true)
     */
    reconnect?: boolean | undefined;
    /**
     * seconds a call waits for an answer or an item, and a connection for the welcome (10)
     */
    timeout?: number | undefined;
    /**
     * what may wait to be sent (256 messages, 1 MiB)
     */
    queue?: {
        messages?: number;
        bytes?: number;
    } | undefined;
    /**
     * items of a streamed answer that may wait to be read (1024)
     */
    stream?: number | undefined;
    /**
     * payload of the system:hello that greets the server
     */
    hello?: object | undefined;
    /**
     * ask the server to go on where it was after a reconnect (true)
     */
    session?: boolean | undefined;
    /**
     * the class to use (the global one)
     */
    WebSocket?: (new (url: string) => Socket) | undefined;
    /**
     * sees every frame
     */
    trace?: ((frame: {
        sent: boolean;
        text: string;
    }) => void) | undefined;
};
export type CallCare = {
    /**
     * told before the next message is
     */
    answered?: ((result: any) => void) | undefined;
    /**
     * asked when it could be sent; if it should not be any more, it fails with OVERTAKEN
     */
    mayGo?: (() => boolean) | undefined;
};
export type CallEnds = {
    ended: (call: PendingCall) => void;
    /**
     * nobody wants the answer any more: fail it, or have the server do so
     */
    cancelled: (call: PendingCall) => void;
};
export type CallOwner = CallEnds & CallCare;
/**
 * A room this client joined by itself.
 */
export type Place = {
    joined: boolean;
    entering: Promise<Joined> | null;
    /**
     * how often we asked to be let in: who asked before asks no more
     */
    turn: number;
    /**
     * whether we asked to be told who is there
     */
    presence?: boolean | undefined;
};
/**
 * What was told of one room. No `presences` where only their number is told. It is replaced, and never changed.
 */
export type View = {
    presences: Map<string, Presences[string]> | null;
    total: number;
};
/**
 * How a call is entered. A wrong option throws a TypeError.
 */
export type WebRTCOptions = {
    /**
     * what the others learn of us, such as `{name: "Ada"}`; a few KiB of JSON
     */
    metadata?: unknown;
    /**
     * sent to everybody, now and later; see also `call.addStream`
     */
    stream?: MediaStream | undefined;
    /**
     * data channels with every peer: labels,
     * or objects such as `{label: "moves", ordered: false}`. One side of each pair makes them, both get them.
     */
    channels?: (string | ({
        label: string;
    } & RTCDataChannelInit))[] | undefined;
    /**
     * for each RTCPeerConnection; its `iceServers`, if there are any, are
     * used in place of the server's
     */
    configuration?: RTCConfiguration | undefined;
    /**
     * of the server's WebRTCSignalingBridge; "webrtc" unless told otherwise
     */
    namespace?: string | undefined;
};
/**
 * What the server tells about somebody in the call.
 */
export type PeerInfo = {
    id: string;
    polite: boolean;
    metadata?: unknown;
    replaces?: string;
    formerly?: string[];
};
export type Signal = {
    from?: string | undefined;
    room?: string | undefined;
    description?: RTCSessionDescriptionInit | undefined;
    candidate?: RTCIceCandidateInit | null | undefined;
    negotiation?: string | undefined;
};
/**
 * What a PeerLink needs of its call.
 */
export type CallSide = {
    configuration: () => RTCConfiguration;
    /**
     * whether signals can be sent now
     */
    online: () => boolean;
    send: (kind: string, payload: object) => void;
    /**
     * fetches new credentials for the ICE servers
     */
    refresh: () => Promise<unknown>;
    failed: (error: Error, link: PeerLink) => void;
    /**
     * it did not come back
     */
    lost: (link: PeerLink) => void;
    /**
     * the other side began anew
     */
    renew: (link: PeerLink, offer: Signal | null) => void;
};
/**
 * "reconnecting": it was connected, or its place in the call is kept for a while; "failed": no ICE restart helped,
 * or the other side's answers are of no use.
 */
export type PeerState = "connecting" | "connected" | "reconnecting" | "failed" | "closed";
export type PeerEvents = {
    track: RTCTrackEvent;
    channel: RTCDataChannel;
    state: PeerState;
};
/**
 * What went wrong with one peer, or with the whole call.
 */
export type CallError = {
    error: Error;
    peer?: WebRTCPeer | undefined;
};
export type CallEvents = {
    peer: WebRTCPeer;
    "peer-left": WebRTCPeer;
    error: CallError;
    /**
     * why the call ended; null after `leave()`
     */
    closed: Error | null;
};
/** Who is here, and what this client says of itself. */
declare class Presence {
    /**
     * @param {RealtimeClient} client
     * @param {{state: (room: string) => RoomPresence | null}} views
     */
    constructor(client: RealtimeClient, views: {
        state: (room: string) => RoomPresence | null;
    });
    /**
     * Who is in a room that was joined with `presence`, as far as it was told: it changes by itself, and "client:presence"
     * tells of each change, also of those that were missed before the room was joined again after a reconnect. Of a
     * crowded room there is only `total`: `page` tells more.
     *
     * @param {string} room
     * @returns {RoomPresence | null} null if nothing was told
     */
    state(room: string): RoomPresence | null;
    /**
     * Ask for a part of who is in a room that this client is in, as `state` shows it.
     *
     * @param {string} room
     * @param {string | null} [after] what the part before had as `page`
     * @returns {Promise<PresencePage>}
     */
    page(room: string, after?: string | null): Promise<PresencePage>;
    /**
     * Ask who is in a room that this client is in.
     *
     * @param {string} room
     * @returns {Promise<Members>}
     */
    list(room: string): Promise<Members>;
    /**
     * Merge something into what others see of this client. After a reconnect it is as it was.
     *
     * @param {Record<string, any>} metadata
     * @returns {Promise<Member>} the own entry
     */
    update(metadata: Record<string, any>): Promise<Member>;
    /** On a connection that is not the continuation of the one before: say it again. */
    repeat(): void;
    #private;
}
/**
 * One pair: perfect negotiation as in W3C webrtc-pc 10.7, with its operations one after the other.
 *
 * Because they are chained, the signaling state alone says whether offers collided. Whatever the connection gathered
 * so far is part of every description, so candidates of an earlier negotiation need not be kept.
 */
declare class PeerLink {
    /**
     * @param {CallSide} call
     * @param {PeerInfo} info
     */
    constructor(call: CallSide, info: PeerInfo);
    /** @type {PeerState} */
    state: PeerState;
    /** @type {RTCPeerConnection} */
    connection: RTCPeerConnection;
    /** @type {WebRTCPeer} */
    peer: WebRTCPeer;
    away: boolean;
    id: string;
    polite: boolean;
    metadata: unknown;
    /**
     * Begin: what is added here makes the connection ask for its first negotiation.
     *
     * @param {Map<MediaStreamTrack, MediaStream[]>} tracks
     * @param {({label: string} & RTCDataChannelInit)[]} channels
     */
    begin(tracks: Map<MediaStreamTrack, MediaStream[]>, channels: ({
        label: string;
    } & RTCDataChannelInit)[]): void;
    /**
     * @param {string} name
     * @param {(detail: any) => void} listener
     */
    on(name: string, listener: (detail: any) => void): () => void;
    /**
     * @param {string} label
     * @returns {Promise<RTCDataChannel>}
     */
    channel(label: string): Promise<RTCDataChannel>;
    /**
     * Take an offer, answer or candidate of the other side.
     *
     * @param {string} kind
     * @param {Signal} signal
     */
    receive(kind: string, signal: Signal): void;
    /**
     * The other side lost its connection to the server, or we did not hear of it when we came back.
     *
     * @param {number} seconds it may take to return
     */
    absent(seconds: number): void;
    /**
     * Both sides have a connection to the server again. Offers, answers and candidates may have been lost.
     *
     * @param {PeerInfo} info
     */
    present({ id, polite, metadata }: PeerInfo): void;
    /** End it. The promises of channels that did not open are rejected. */
    close(): void;
    #private;
}
/**
 * @param {Options} options
 */
declare function settingsFrom(options: Options): {
    backoff: {
        min: number;
        max: number;
        jitter: number;
    };
    queue: {
        messages: number;
        bytes: number;
    };
    hello: object | undefined;
    session: boolean;
    WebSocket: new (url: string) => Socket;
    reconnect: boolean;
    timeout: number;
    stream: number;
    trace: ((frame: {
        sent: boolean;
        text: string;
    }) => void) | undefined;
};
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
declare class PendingCall {
    /**
     * @param {number} timeout seconds without an answer or an item
     * @param {number} capacity items that may wait to be read
     * @param {CallOwner} owner
     */
    constructor(timeout: number, capacity: number, owner: CallOwner);
    /** Whether the server may have it: then it is never sent again. */
    wasSent: boolean;
    /** @type {Answer} */
    answer: Answer;
    /** Tell whether the question, which could be sent now, still should be. */
    mayGo(): boolean;
    /** @param {any} item */
    item(item: any): void;
    /** @param {any} result */
    succeed(result: any): void;
    /** @param {RealtimeError} error */
    fail(error: RealtimeError): void;
    #private;
}
export {};
