// The poll's page: the server tells it of every vote.

import { connect } from "/realtime/client.js";
import { byId, element, refill } from "/page.js";

const STATES = { connecting: "Connecting", open: "Connected", waiting: "Connection lost, reconnecting", closed: "Disconnected" };
const LOGGED_OUT = 4501; // on some page: this one leaves, too

const list = byId("dishes");
let mine = list.dataset.mine;
let dishes = [...list.children].map(({ dataset }) => ({ name: dataset.name, votes: Number(dataset.votes) }));
const client = connect("/realtime");
byId("logout").addEventListener("submit", () => client.close()); // the answer takes this page elsewhere

client.on("client:state", async ({ name, code }) => {
  byId("state").dataset.state = name;
  byId("state-text").textContent = STATES[name];
  if (name === "closed" && code === LOGGED_OUT) location.assign("/login");
  if (name === "open") await attempt(catchUp);
});

client.on("poll:changed", (changed) => {
  dishes = changed.dishes;
  byId("news").textContent = `Last: ${changed.by}`;
  show();
});

client.on("poll:mine", (name) => {
  mine = name;
  show();
});

async function catchUp() {
  ({ dishes, mine } = await client.call("poll:now"));
  show();
}

function show() {
  const all = dishes.reduce((sum, { votes }) => sum + votes, 0) || 1;
  const items = refill(list, dishes.map(({ name }) => name), (name) => element("li", "", null, button(name)));
  for (const { name, votes } of dishes) {
    const shown = items.get(name).firstElementChild;
    shown.querySelector(".votes").textContent = votes;
    shown.style.setProperty("--share", (100 * votes) / all);
    shown.setAttribute("aria-pressed", name === mine);
  }
}

function button(name) {
  const made = element("button", "dish", null, element("span", "bar-of"), element("span", "label", name), element("span", "votes"));
  made.dataset.name = name;
  made.addEventListener("click", () => attempt(() => client.call("poll:vote", name)));
  return made;
}

byId("add").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.currentTarget;
  const body = new FormData(form);
  form.reset(); // now, and not with the answer: something else may be in it by then
  attempt(async () => {
    try {
      const answer = await fetch(form.action, { method: "POST", body });
      if (!answer.ok) throw new Error(await answer.text());
    } catch (error) {
      byId("dish").value ||= body.get("name");
      throw error;
    }
  });
});

/** Do it, and say why not. */
async function attempt(action) {
  byId("alert").textContent = "";
  try {
    await action();
  } catch (error) {
    if (error.code !== "closed") byId("alert").textContent = error.message;
  }
}

show();
