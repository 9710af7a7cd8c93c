// A video call: the client finds the others and keeps the connections to them, this shows them.

import { connect } from "/realtime/client.js";
import { avatar, byId, element, keepAtEnd, memory, minutes, stayAtEnd, toEnd } from "./page.js";
import { drawnStream, openDevices } from "./webrtc_media.js";

const NAME_LENGTH = 40;
const TEXT_LENGTH = 4000;
const ENTRIES_KEPT = 500; // of the chat, then the oldest go
const LAGGING = 1024 * 1024; // bytes that wait for one of the others: no more is written to it
const PATIENCE = 20; // seconds a text waits for somebody's channel to open
const TEXTS_WAITING = 50; // for one of the others

const client = connect("/realtime");
const tiles = new Map(); // peer -> its <figure>
const channels = new Map(); // peer -> its "chat"
const outbox = new Map(); // peer -> texts for it until that is open: a set of {text, entry, timer}
let call = null;
let me = null; // {name, drawn, stream, camera, microphone}: what we send; the last two are tracks or null
let lastWriter = null; // in the chat: a peer, or `me`

// The entrance --------------------------------------------------------------------------------------------

byId("room").value = new URLSearchParams(location.search).get("room") ?? memory.read("room", "lobby");
byId("name").value = memory.read("name", "");
byId(byId("name").value ? "enter" : "name").focus();

byId("enter-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  byId("enter").disabled = true;
  byId("entrance-alert").textContent = "";
  try {
    await enter(byId("name").value.trim() || "Somebody", byId("room").value.trim() || "lobby");
  } catch (error) {
    leave(`Not entered: ${error.message}`);
  }
  byId("enter").disabled = false;
});

async function enter(name, room) {
  memory.write("name", name);
  memory.write("room", room);
  history.replaceState(null, "", `?${new URLSearchParams({ room })}`);
  me = await prepare(name);
  call = client.webrtc(room, { metadata: { name }, channels: ["chat"], stream: me.stream });
  call.on("peer", meet);
  call.on("peer-left", part);
  call.on("error", ({ error, peer }) => alertOf(`${peer ? nameOf(peer) : "The call"}: ${error.message}`));
  call.on("closed", (error) => error && leave(`The call has ended: ${error.message}`));
  if (client.state === "closed") client.reconnect();
  await call.join();
  showCall(room);
}

/** Open what is to be sent. */
async function prepare(name) {
  const devices = byId("use-camera").checked ? await openDevices({ video: true, audio: true }) : null;
  const [camera = null] = devices?.getVideoTracks() ?? [];
  const [microphone = null] = devices?.getAudioTracks() ?? [];
  const drawn = drawnStream(name, hueOf(name));
  const stream = new MediaStream([camera ?? drawn.stream.getVideoTracks()[0]]);
  if (microphone) stream.addTrack(microphone);
  camera?.addEventListener("ended", cameraOff); // unplugged
  return { name, drawn, stream, camera, microphone };
}

function showCall(room) {
  document.title = `${room} – realtime call`;
  byId("title").textContent = room;
  byId("entrance").hidden = true;
  byId("call").hidden = false;
  byId("share").hidden = !navigator.clipboard;
  const own = makeTile(`${me.name} (you)`);
  own.classList.add("own");
  own.querySelector("video").muted = true;
  own.dataset.state = "connected";
  byId("tiles").prepend(own);
  countTiles();
  showControls();
  const others = [...call.peers.values()].map(nameOf).join(", ");
  addNotice(others ? `You are in the call with ${others}` : "You are alone: share the link, or open it in another tab");
  if (getComputedStyle(byId("chat-open")).display === "none") byId("text").focus();
}

function leave(why = "") {
  call?.leave();
  for (const track of [me?.camera, me?.microphone]) track?.stop();
  me?.drawn.stop();
  call = me = lastWriter = null;
  for (const waiting of outbox.values()) for (const { timer } of waiting) clearTimeout(timer);
  for (const one of [tiles, channels, outbox]) one.clear();
  byId("tiles").replaceChildren();
  byId("log").replaceChildren();
  alertOf();
  showChat(false);
  document.title = byId("title").textContent = "realtime call";
  byId("call").hidden = byId("share").hidden = true;
  byId("entrance").hidden = false;
  byId("entrance-alert").textContent = why;
  byId("enter").disabled = false;
  byId("enter").focus();
}

// The others ----------------------------------------------------------------------------------------------

const STATES = { connecting: "Connecting …", reconnecting: "Reconnecting …", failed: "No connection" };

/** A stranger chose it: any text, or none. */
function nameOf(peer) {
  const name = peer.metadata?.name;
  return (typeof name === "string" && name.trim().slice(0, NAME_LENGTH)) || "Somebody";
}

/** A colour for a name, the same for everybody. The golden angle keeps neighbours apart. */
const hueOf = (name) => ([...name].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 9973, 7) * 137.5) % 360;

function meet(peer) {
  const tile = makeTile(nameOf(peer));
  tiles.set(peer, tile);
  byId("tiles").append(tile);
  countTiles();
  const show = (state) => {
    tile.dataset.state = state;
    tile.querySelector(".what").textContent = STATES[state] ?? "";
  };
  show(peer.state);
  peer.on("state", show);
  peer.on("track", ({ track, streams }) => {
    tile.querySelector("video").srcObject = streams[0] ?? new MediaStream([track]);
  });
  peer.on("channel", (channel) => {
    if (channel.label !== "chat") return;
    channels.set(peer, channel);
    channel.onmessage = ({ data }) => heard(peer, data);
    channel.addEventListener("open", () => opened(peer, channel));
    if (channel.readyState === "open") opened(peer, channel);
  });
  if (!byId("call").hidden) addNotice(`${nameOf(peer)} is here`);
}

function part(peer) {
  tiles.get(peer)?.remove();
  for (const text of outbox.get(peer) ?? []) undelivered(peer, text);
  for (const one of [tiles, channels, outbox]) one.delete(peer);
  countTiles();
  addNotice(`${nameOf(peer)} left`);
}

function makeTile(name) {
  const video = element("video");
  video.autoplay = video.playsInline = true;
  video.setAttribute("aria-label", `Picture of ${name}`);
  const muted = element("span", "muted", "muted");
  const caption = element("figcaption", "", null, element("span", "label", name), muted);
  return element("figure", "tile", null, video, element("p", "what"), caption);
}

function countTiles() {
  byId("tiles").dataset.count = Math.min(byId("tiles").childElementCount, 10);
}

// Chat ----------------------------------------------------------------------------------------------------

/** Write to somebody; false if that cannot be done now. */
function tell(peer, content) {
  const channel = channels.get(peer);
  if (channel?.readyState !== "open" || channel.bufferedAmount >= LAGGING) return false;
  channel.send(JSON.stringify(content));
  return true;
}

/** Say whether we are muted; who is not reached learns it when the channel opens. */
function tellMuted(peer) {
  tell(peer, { muted: !me?.microphone?.enabled });
}

/** Send a text, or keep it until the channel is open. */
function deliver(peer, text, entry) {
  if (tell(peer, { text })) return;
  const waiting = outbox.get(peer) ?? new Set();
  outbox.set(peer, waiting);
  const late = { text, entry, timer: 0 };
  if (waiting.size >= TEXTS_WAITING || channels.get(peer)?.readyState === "open") return undelivered(peer, late);
  late.timer = setTimeout(() => undelivered(peer, late), PATIENCE * 1000);
  waiting.add(late);
}

function opened(peer, channel) {
  if (channels.get(peer) !== channel) return;
  tellMuted(peer);
  const waiting = outbox.get(peer) ?? [];
  outbox.delete(peer);
  for (const { text, entry, timer } of waiting) {
    clearTimeout(timer);
    deliver(peer, text, entry);
  }
}

/** Write below a text of ours whom it did not reach. */
function undelivered(peer, late) {
  clearTimeout(late.timer);
  outbox.get(peer)?.delete(late);
  const fate = late.entry.querySelector(".fate");
  if (fate) fate.textContent += `, ${nameOf(peer)}`;
  else late.entry.append(element("div", "fate", `Not delivered to ${nameOf(peer)}`));
  stayAtEnd(byId("log"));
}

function heard(peer, data) {
  let content = null;
  try {
    content = JSON.parse(data);
  } catch {
    // not of this page: nothing to show
  }
  if (typeof content?.text === "string") addEntry(peer, content.text.slice(0, TEXT_LENGTH));
  if (typeof content?.muted === "boolean") tiles.get(peer)?.classList.toggle("is-muted", content.muted);
}

function append(node) {
  byId("log").append(node);
  if (byId("log").childElementCount > ENTRIES_KEPT) byId("log").firstElementChild.remove();
  stayAtEnd(byId("log"));
}

function addNotice(text) {
  lastWriter = null;
  append(element("p", "notice", text));
}

/** Show a text of a peer, or of ours: `writer` is `me` then. */
function addEntry(writer, text) {
  const mine = writer === me;
  const first = lastWriter !== writer; // names may be the same
  lastWriter = writer;
  const name = mine ? me.name : nameOf(writer);
  const entry = element("div", `entry${mine ? " mine" : ""}${first ? " first" : ""}`);
  if (first) {
    const when = element("time", "", minutes.format(Date.now()));
    when.dateTime = new Date().toISOString();
    const picture = avatar("", name);
    picture.style.setProperty("--hue", hueOf(name));
    entry.append(picture, element("div", "who", null, element("span", "", mine ? "You" : name), when));
  }
  entry.append(element("div", "body", text));
  append(entry);
  if (!mine && !chatIsSeen()) unread(Number(byId("unread").textContent) + 1);
  return entry;
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("text").value;
  if (!text.trim()) return;
  byId("text").value = "";
  const entry = addEntry(me, text);
  toEnd(byId("log"));
  for (const peer of call.peers.values()) deliver(peer, text, entry);
});

const chatIsSeen = () => getComputedStyle(byId("chat")).visibility === "visible";

function unread(count) {
  byId("unread").textContent = count || "";
  byId("unread").hidden = !count;
  byId("unread").setAttribute("aria-label", `${count} unread`);
}

/** On a phone the chat lies over the pictures. */
function showChat(open) {
  byId("call").classList.toggle("chatting", open);
  byId("chat-open").setAttribute("aria-expanded", String(open));
  if (open) {
    unread(0);
    byId("text").focus();
  }
}

// Controls ------------------------------------------------------------------------------------------------

function alertOf(text = "") {
  byId("alert").textContent = text;
}

function showControls() {
  byId("microphone").setAttribute("aria-pressed", String(Boolean(me.microphone?.enabled)));
  byId("camera").setAttribute("aria-pressed", String(Boolean(me.camera)));
  const own = document.querySelector(".own");
  own.classList.toggle("mirrored", Boolean(me.camera));
  own.classList.toggle("is-muted", !me.microphone?.enabled);
  own.querySelector("video").srcObject = me.stream;
}

/** Send another picture in the place of ours; nobody's connection notices. */
async function show(track) {
  const [before] = me.stream.getVideoTracks();
  await call.replaceTrack(before, track);
  me.stream.removeTrack(before);
  me.stream.addTrack(track);
}

async function cameraOff() {
  const { camera } = me;
  me.camera = null;
  await show(me.drawn.stream.getVideoTracks()[0]);
  camera.stop(); // and its light goes out
  showControls();
}

async function cameraOn() {
  const devices = await openDevices({ video: true });
  if (!devices || !me) return alertOf("There is no camera, or the browser may not use it.");
  [me.camera] = devices.getVideoTracks();
  me.camera.addEventListener("ended", cameraOff);
  await show(me.camera);
  showControls();
}

async function switchMicrophone() {
  if (me.microphone) me.microphone.enabled = !me.microphone.enabled;
  else {
    const devices = await openDevices({ audio: true });
    if (!devices || !me) return alertOf("There is no microphone, or the browser may not use it.");
    [me.microphone] = devices.getAudioTracks();
    me.stream.addTrack(me.microphone);
    call.addTrack(me.microphone, me.stream); // every connection negotiates again by itself
  }
  showControls();
  for (const peer of call.peers.values()) tellMuted(peer);
}

/** Let a button do one thing at a time, and say what went wrong. */
function onClick(id, action) {
  byId(id).addEventListener("click", async () => {
    alertOf();
    byId(id).ariaDisabled = "true";
    try {
      await action();
    } catch (error) {
      alertOf(error.message);
    }
    byId(id).ariaDisabled = null;
  });
}

onClick("microphone", switchMicrophone);
onClick("camera", () => (me.camera ? cameraOff() : cameraOn()));
onClick("leave", () => leave());
onClick("chat-open", () => showChat(byId("chat-open").ariaExpanded !== "true"));
onClick("chat-close", () => {
  showChat(false);
  byId("chat-open").focus();
});
onClick("share", async () => {
  await navigator.clipboard.writeText(location.href);
  byId("share").textContent = "Link copied";
  setTimeout(() => (byId("share").textContent = "Copy link"), 2000);
});
addEventListener("keydown", ({ key }) => key === "Escape" && showChat(false));
addEventListener("pageshow", ({ persisted }) => persisted && leave()); // the call ended when the page was left
keepAtEnd(byId("log"));

const CONNECTION = { connecting: "Connecting", open: "Connected", waiting: "Connection lost, reconnecting", closed: "Disconnected" };

client.on("client:state", ({ name }) => {
  byId("state").dataset.state = name;
  byId("state-text").textContent = CONNECTION[name];
});
