// The page: rooms, chat, who is present, and every frame. The server is the authority on who is in which room.

import { avatar, byId, element, keepAtEnd, memory, minutes, refill, stayAtEnd, toEnd } from "./page.js";

const ENTRIES_KEPT = 500; // a room's, then the oldest go
const FRAMES_KEPT = 200;
const FRAME_SHOWN = 4000; // characters of one frame

const { path } = document.documentElement.dataset; // where the WebSocket is, and the client below it
const { connect } = await import(`${path.replace(/\/$/, "")}/client.js`);
const client = connect(path, { trace: showFrame });

const rooms = new Map(); // those we are in: name -> {members, total, unread, log, last (who spoke last)}
const names = new Map(); // client id -> the name it goes by
let open = []; // every room of the server: {name, members}
let current = null; // the name of the room that is shown
let myId = null; // what the server called us last
let state = { name: "connecting" };
let settled = false; // whether we are in the rooms again that this tab was in before

const guest = (id) => `guest-${id.slice(0, 4)}`;
const nameOf = (id) => names.get(id) ?? guest(id);

const milliseconds = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3, hourCycle: "h23",
});

function alertOf(text = "") {
  byId("alert").textContent = text;
}

keepAtEnd(byId("log"));
keepAtEnd(byId("frames"));

// Connection ----------------------------------------------------------------------------------------------

const AFTERMATH = {
  1006: "Connection lost",
  4008: "Cut off for reading too slowly",
  4009: "The server heard nothing from here",
  4013: "The server is restarting",
  4500: "Disconnected by the server",
  4501: "Not authorized",
  4503: "Not allowed",
};

function describe({ name, code, reason }) {
  if (name === "open") return "Connected";
  if (name === "connecting") return "Connecting";
  const why = AFTERMATH[code] ?? `Closed with ${code}${reason ? `: ${reason}` : ""}`;
  return name === "waiting" ? `${why}, reconnecting` : why;
}

const isOpen = () => client.state === "open";

client.on("client:state", (told) => {
  const before = state;
  state = { ...told, retryAt: performance.now() + told.retryIn * 1000 };
  byId("state").dataset.state = state.name;
  // a failed attempt is not worth an announcement of its own
  if (state.name !== "connecting" || before.name === "connecting") byId("state-text").textContent = describe(state);
  byId("reconnect").hidden = state.name !== "waiting" && state.name !== "closed";
  countDown();
  showControls();
  if (isOpen()) greet();
  else if (before.name === "open") {
    for (const [name, room] of rooms) {
      addNotice(name, describe(state));
      room.members = [];
      room.total = null; // who knows
    }
    names.clear();
    open = [];
    showRooms();
    showPeople();
  }
});

function countDown() {
  const left = state.name === "waiting" ? Math.max(0, Math.ceil((state.retryAt - performance.now()) / 1000)) : null;
  const text = left === null ? "" : `in ${left} s`;
  if (byId("countdown").textContent !== text) byId("countdown").textContent = text;
}
setInterval(countDown, 250);

/** Ask now or never: the server decides who is where, so nothing of this waits for a later connection. */
async function request(type, { payload, room } = {}) {
  if (!isOpen()) throw new Error("not connected");
  return client.call(type, payload, { room });
}

/** Be again who and where we were: all in order, so the answers need not be waited for. */
async function greet() {
  myId = client.id;
  byId("name").placeholder = nameOf(myId);
  showPeople();
  const wanted = rooms.size ? [...rooms.keys()] : memory.read("rooms", ["lobby"]);
  const shown = current ?? memory.read("current", wanted[0]);
  const name = memory.read("name", "");
  if (name) rename(name);
  await Promise.all(wanted.map((room) => join(room, room === shown)));
  if (current === null && rooms.size) show(rooms.keys().next().value); // the one shown before let us in no more
  settled = true;
  request("room:list").then(showOpenRooms, (error) => alertOf(error.message));
}

function showControls() {
  byId("send").disabled = byId("raw-send").disabled = !isOpen();
  byId("send").disabled ||= current === null;
}

// What comes in -------------------------------------------------------------------------------------------

client.on("chat:message", ({ from, body }, { room, timestamp }) => {
  addEntry(room, { id: from, body: typeof body === "string" ? body : JSON.stringify(body, null, 2), timestamp });
});

client.on("room:members", (payload, { room }) => showMembers(room, payload));
client.on("room:list", showOpenRooms);
client.on("system:error", ({ ack, message, code }) => ack === undefined && alertOf(`${message} (${code})`));
client.answer("*", () => new Promise(() => {})); // what the server asks is answered by hand, under raw messages

function showMembers(room, { members, total, change }) {
  const known = roomOf(room);
  const formerly = known.members.find(({ id }) => id === change.id)?.name ?? guest(change.id);
  for (const { id, name } of [...members, change]) {
    if (name) names.set(id, name);
  }
  known.members = members;
  known.total = total;
  const who = change.id === myId ? "You" : nameOf(change.id);
  if (change.did !== "renamed") addNotice(room, `${who} ${change.did}`);
  else if (formerly !== nameOf(change.id)) {
    addNotice(room, `${change.id === myId ? "You are" : `${formerly} is`} now ${nameOf(change.id)}`);
  }
  if (change.did === "disconnected") names.delete(change.id);
  showRooms();
  if (room === current) showPeople();
}

function showOpenRooms({ rooms: listed }) {
  open = listed;
  showRooms();
}

// Rooms ---------------------------------------------------------------------------------------------------

function roomOf(name) {
  if (!rooms.has(name)) {
    rooms.set(name, { members: [], total: 0, unread: 0, log: element("div"), last: null });
  }
  return rooms.get(name);
}

async function join(name, andShow = true) {
  try {
    await request("room:join", { room: name });
  } catch (error) {
    alertOf(`Cannot join ${name}: ${error.message}`);
    return;
  }
  roomOf(name);
  if (andShow) show(name);
  showRooms();
}

function remember() {
  if (!settled) return; // on the way back into them
  memory.write("rooms", [...rooms.keys()]);
  memory.write("current", current);
}

async function leave(name) {
  try {
    await request("room:leave", { room: name });
  } catch (error) {
    alertOf(`Cannot leave ${name}: ${error.message}`);
    return;
  }
  rooms.delete(name);
  if (current === name) show(rooms.keys().next().value ?? null);
  showRooms();
}

/** Bring a room to the middle. */
function show(name) {
  current = name;
  alertOf();
  byId("room-title").textContent = name ?? "No room";
  byId("leave").hidden = name === null;
  const room = rooms.get(name);
  if (room) room.unread = 0;
  byId("log").replaceChildren(...(room ? [room.log] : [element("p", "notice", "Join a room to chat.")]));
  toEnd(byId("log"));
  showRooms();
  showPeople();
  showControls();
}

/** An item with a button for a room. */
function roomItem(name, onclick) {
  const button = element("button", "room", null, element("span", "label", name), element("span"));
  button.type = "button";
  button.onclick = onclick;
  return element("li", "", null, button);
}

/** Say how many members a room has, or how much in it is unread. */
function showSize(item, name, size, unread = 0) {
  const button = item.firstElementChild;
  const count = button.lastElementChild;
  count.className = unread ? "unread" : "size";
  count.textContent = unread || (size ?? "–");
  const members = size === 1 ? "1 member" : `${size ?? "unknown"} members`;
  count.setAttribute("aria-label", unread ? `${unread} unread` : members);
  button.ariaCurrent = name === current ? "true" : null;
}

function showRooms() {
  const others = new Map(open.filter(({ name }) => !rooms.has(name)).map(({ name, members }) => [name, members]));
  const inside = refill(byId("joined"), [...rooms.keys()], (name) => roomItem(name, () => show(name)));
  for (const [name, item] of inside) showSize(item, name, rooms.get(name).total, rooms.get(name).unread);
  const outside = refill(byId("others"), [...others.keys()], (name) => roomItem(name, () => join(name)));
  for (const [name, item] of outside) showSize(item, name, others.get(name));
  byId("others-box").hidden = others.size === 0;
}

function showPeople() {
  const { members, total } = rooms.get(current) ?? { members: [], total: 0 };
  const items = members.map(({ id }) => {
    const item = element("li", "", null, avatar(id, nameOf(id)), element("span", "label", nameOf(id)));
    if (id === myId) item.append(element("span", "you", "you"));
    return item;
  });
  if (current !== null && !isOpen()) items.push(element("li", "unknown", "Unknown while disconnected"));
  if (total > members.length) items.push(element("li", "", `and ${total - members.length} more`));
  byId("people").replaceChildren(...items);
  byId("people-count").textContent = total ?? "–";
}

// Chat ----------------------------------------------------------------------------------------------------

/** Append to a room's log. */
function append(name, node) {
  const { log } = roomOf(name);
  log.append(node);
  if (log.childElementCount > ENTRIES_KEPT) log.firstElementChild.remove();
  if (name === current) stayAtEnd(byId("log"));
}

function addNotice(name, text) {
  roomOf(name).last = null;
  append(name, element("p", "notice", text));
}

function addEntry(name, { id, body, timestamp = Date.now() }) {
  const room = roomOf(name);
  const mine = id === myId;
  const first = room.last !== id;
  room.last = id;
  const entry = element("div", `entry${mine ? " mine" : ""}${first ? " first" : ""}`);
  if (first) {
    const when = element("time", "", minutes.format(timestamp));
    when.dateTime = new Date(timestamp).toISOString();
    const who = element("div", "who", null, element("span", "", mine ? "You" : nameOf(id)), when);
    entry.append(avatar(id, nameOf(id)), who);
  }
  entry.append(element("div", "body", body));
  if (name !== current) {
    room.unread += 1;
    showRooms();
  }
  append(name, entry);
  return entry;
}

async function say(name, body) {
  const entry = addEntry(name, { id: myId, body });
  entry.classList.add("pending");
  toEnd(byId("log"));
  try {
    await request("chat:message", { room: name, payload: body });
  } catch (error) {
    entry.append(element("div", "fate", `Not delivered: ${error.message}`));
  }
  entry.classList.remove("pending");
}

async function rename(name) {
  memory.write("name", name);
  byId("name").value = name;
  try {
    await request("presence:update", { payload: { name } });
    alertOf();
  } catch (error) {
    alertOf(`Not renamed: ${error.message}`);
  }
}

// Raw messages --------------------------------------------------------------------------------------------

let frames = 0;

function showFrame({ sent, text }) {
  const list = byId("frames");
  list.append(frameItem(sent, text));
  if (list.childElementCount > FRAMES_KEPT) list.firstElementChild.remove();
  stayAtEnd(list);
  byId("frame-count").textContent = ++frames;
}

/** Send a text as it is, JSON or not. */
function sendRaw(text) {
  if (!isOpen()) return alertOf("not connected");
  client.socket.send(text);
  showFrame({ sent: true, text });
}

function frameItem(sent, text) {
  let message = null;
  try {
    message = JSON.parse(text);
  } catch {
    // sent as it is, and no JSON: shown as it is
  }
  const pretty = message === null ? text : JSON.stringify(message, null, 2);
  const meta = element("div", "meta", null, element("span", "way", sent ? "↑ sent" : "↓ received"));
  meta.append(element("time", "", milliseconds.format(Date.now())), element("span", "type", message?.type ?? ""));
  meta.append(element("span", "", `${new TextEncoder().encode(text).length} B`));
  if (!sent && message?.ack !== undefined) meta.append(answerButton(message.ack));
  const shown = pretty.length > FRAME_SHOWN ? `${pretty.slice(0, FRAME_SHOWN)}\n… ${pretty.length - FRAME_SHOWN} more` : pretty;
  return element("li", `frame${sent ? " sent" : ""}`, null, meta, element("pre", "", shown));
}

/** The server asks something: put the form of an answer where it can be sent. */
function answerButton(ack) {
  const button = element("button", "small", "Answer");
  button.type = "button";
  button.onclick = () => {
    byId("raw-text").value = JSON.stringify({ type: "system:ack", payload: { ack, result: "" } });
    byId("raw-text").focus();
  };
  return button;
}

// What the user does --------------------------------------------------------------------------------------

function onSubmit(form, action) {
  byId(form).addEventListener("submit", (event) => {
    event.preventDefault();
    action();
  });
}

onSubmit("composer", () => {
  const text = byId("text").value;
  if (!text.trim() || current === null || !isOpen()) return;
  byId("text").value = "";
  say(current, text);
});

onSubmit("join-form", () => {
  const name = byId("join-name").value.trim();
  if (!name) return;
  byId("join-name").value = "";
  if (rooms.has(name)) show(name);
  else join(name);
});

onSubmit("name-form", () => {
  const name = byId("name").value.trim();
  if (name) rename(name);
});

onSubmit("raw-form", () => sendRaw(byId("raw-text").value));

byId("leave").addEventListener("click", () => leave(current));
addEventListener("pagehide", remember);
byId("reconnect").addEventListener("click", () => client.reconnect());
byId("clear").addEventListener("click", () => byId("frames").replaceChildren());

show(null);
