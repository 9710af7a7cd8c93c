// The chat's page. What was said before is in it already; what is said from now on comes by WebSocket.

import { connect } from "/realtime/client.js";
import { avatar, byId, element, keepAtEnd, minutes, stayAtEnd, toEnd } from "/page.js";

const STATES = { connecting: "Connecting", open: "Connected", waiting: "Connection lost, reconnecting", closed: "Disconnected" };
const LOGGED_OUT = 4501; // on some page: this one leaves, too

const { room, person: me } = byId("main").dataset;
const log = byId("log");
if (!log.querySelector(".entry")) log.replaceChildren(); // not even blanks, so that CSS sees that it is empty
for (const time of log.querySelectorAll("time")) tellTime(time, Number(time.dataset.seconds));
keepAtEnd(log);

const client = connect("/realtime");
byId("logout").addEventListener("submit", () => client.close()); // the answer takes this page elsewhere

client.on("client:state", async ({ name, code }) => {
  byId("state").dataset.state = name;
  byId("state-text").textContent = STATES[name];
  if (name === "closed" && code === LOGGED_OUT) location.assign("/login");
  if (name === "open") await enter();
});

client.on("chat:message", add);

client.on("room:people", (people) => {
  byId("people-count").textContent = people.length;
  byId("people").replaceChildren(
    ...people.map(({ person, name }) => {
      const entry = element("li", "", null, avatar(person, name), element("span", "label", name));
      if (person === me) entry.append(element("span", "you", "you"));
      return entry;
    }),
  );
});

/** Enter the room, anew after each reconnect, and catch up on what was said since. */
async function enter() {
  const seen = Number(log.lastElementChild?.dataset.number ?? 0);
  try {
    const { missed } = await client.call("room:enter", seen, { room });
    missed.forEach(add);
  } catch (error) {
    if (error.code !== "closed") byId("alert").textContent = `Not entered: ${error.message}`;
  }
}

function add({ number, person, name, text, time }) {
  const last = log.lastElementChild?.dataset;
  if (number <= Number(last?.number ?? 0)) return; // both missed and heard
  const first = last?.person !== person;
  const entry = element("div", `entry${person === me ? " mine" : ""}${first ? " first" : ""}`);
  Object.assign(entry.dataset, { person, number });
  if (first) {
    const when = tellTime(element("time"), time);
    entry.append(avatar(person, name), element("div", "who", null, element("span", "", person === me ? "You" : name), when));
  }
  entry.append(element("div", "body", text));
  log.append(entry);
  stayAtEnd(log);
}

function tellTime(shown, seconds) {
  shown.dateTime = new Date(seconds * 1000).toISOString();
  shown.textContent = minutes.format(seconds * 1000);
  return shown;
}

byId("composer").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = byId("text").value.trim();
  if (!text) return;
  byId("text").value = "";
  byId("alert").textContent = "";
  toEnd(log);
  try {
    await client.call("chat:message", text, { room });
  } catch (error) {
    byId("text").value ||= text;
    byId("alert").textContent = `Not sent: ${error.message}`;
  }
});
