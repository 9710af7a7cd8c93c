// What the pages of the examples have in common.

export const byId = (id) => document.getElementById(id);

// What survives a reload of this tab; another tab is another person.
export const memory = {
  read(key, otherwise) {
    try {
      return JSON.parse(sessionStorage.getItem(key)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  write(key, value) {
    try {
      sessionStorage.setItem(key, JSON.stringify(value));
    } catch {
      // storage is off: then nothing survives, and that is all
    }
  },
};

/** Make an element. Text is only ever set as text, so nothing a stranger sends becomes markup. */
export function element(tag, className = "", text = null, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== null) made.textContent = text;
  made.append(...children);
  return made;
}

export function avatar(id, name) {
  const made = element("span", "avatar", [...name][0].toUpperCase());
  made.setAttribute("aria-hidden", "true");
  made.style.setProperty("--hue", parseInt(id.slice(0, 6), 16) % 360 || 0);
  return made;
}

const listed = new WeakMap(); // list -> its items, by name

/**
 * Let a list have an item for each name, in order; `make(name)` makes those that are new. The others stay where they
 * are: a button that is taken out while it is pressed misses its click. Returns all items, by name.
 */
export function refill(list, names, make) {
  const focused = [...list.children].findIndex((item) => item.contains(document.activeElement));
  const before = listed.get(list);
  const byName = new Map(names.map((name) => [name, before?.get(name) ?? make(name)]));
  const items = [...byName.values()];
  listed.set(list, byName);
  for (const item of [...list.children]) if (!items.includes(item)) item.remove();
  items.forEach((item, place) => {
    if (list.children[place] !== item) list.insertBefore(item, list.children[place] ?? null);
  });
  const lost = focused >= 0 && !list.contains(document.activeElement);
  if (lost) items[Math.min(focused, items.length - 1)]?.querySelector("button")?.focus();
  return byName;
}

export const minutes = new Intl.DateTimeFormat(undefined, { hour: "numeric", minute: "2-digit" });

// Lists that grow at their end stay there, unless the reader scrolled up to read.
const scrolledUp = new WeakSet();

export function toEnd(list) {
  scrolledUp.delete(list);
  list.scrollTop = list.scrollHeight;
}

export function stayAtEnd(list) {
  if (!scrolledUp.has(list)) toEnd(list);
}

/** Let a list stay at its end, also when it is resized. */
export function keepAtEnd(list) {
  let height = 0;
  list.addEventListener("scroll", () => {
    if (list.clientHeight !== height) return; // resized, not scrolled by the reader
    const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    scrolledUp[atEnd ? "delete" : "add"](list);
  });
  new ResizeObserver(() => {
    height = list.clientHeight;
    stayAtEnd(list);
  }).observe(list);
}
