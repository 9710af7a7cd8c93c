// Jobs, the board and notices: three ways in which a server tells a page something.

import { connect } from "/realtime/client.js";
import { byId, element, minutes } from "/page.js";

const STATES = { connecting: "Connecting", open: "Connected", waiting: "Connection lost, reconnecting", closed: "Disconnected" };
const LISTED = 20; // jobs, and notices

const client = connect("/realtime");
const number = new Intl.NumberFormat();

client.on("client:state", ({ name }) => {
  byId("state").dataset.state = name;
  byId("state-text").textContent = STATES[name];
});

client.on("board", (board) => {
  for (const [name, value] of Object.entries(board)) byId(name).textContent = number.format(value);
});

client.on("notice", ({ text, time }) => {
  prepend(byId("notices"), element("li", "", null, element("time", "", minutes.format(time * 1000)), element("span", "", text)));
});

byId("job-form").addEventListener("submit", (event) => {
  event.preventDefault();
  run(byId("below").valueAsNumber);
});

/** Start a job and show what it yields. Cancel ends the loop, and with it the job. */
async function run(below) {
  const bar = element("progress");
  const what = element("div", "what", "Waiting for the server");
  const cancel = element("button", "small", "Cancel");
  const job = element("li", "job", null, element("div", "title", `Primes below ${number.format(below)}`), cancel, bar, what);
  const end = (state, text) => {
    job.dataset.state = state;
    what.textContent = text;
    bar.value ||= 0; // no longer "some time"
  };
  bar.setAttribute("aria-label", `Progress of primes below ${number.format(below)}`);
  job.dataset.state = "running";
  prepend(byId("jobs"), job);
  const call = client.call("job:primes", below);
  let cancelled = false;
  cancel.addEventListener("click", () => (cancelled = true));
  try {
    for await (const { done, found } of call) {
      if (cancelled) break;
      bar.value = done;
      what.textContent = `${Math.round(done * 100)} %: ${number.format(found)} found`;
    }
    const { found, seconds } = await call;
    end("finished", `${number.format(found)} found in ${seconds} s`);
  } catch (error) {
    if (error.code === "cancelled") end("cancelled", "Cancelled");
    else end("failed", `Not counted: ${error.message}`);
  }
}

byId("notice-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.currentTarget;
  const body = new FormData(form);
  form.reset(); // now, and not with the answer: something else may be in it by then
  const answer = await fetch(form.action, { method: "POST", body }).catch(() => null);
  if (!answer?.ok) byId("text").value ||= body.get("text");
});

function prepend(list, entry) {
  list.prepend(entry);
  if (list.childElementCount > LISTED) list.lastElementChild.remove();
}
