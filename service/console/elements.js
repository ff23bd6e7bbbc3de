// Elements of the page: found, made, drawn, written into. Text from elsewhere (labels, notes, problems) goes in as text
// alone; the content security policy of this page lets nothing become markup.

export const $ = (id) => document.getElementById(id);

export function say(id, text, kind = "") {
  const element = $(id);
  if (element.textContent !== text) element.textContent = text; // else a screen reader would say it every second
  element.className = element.className.replace(/\b(good|bad)\b/g, "").trim();
  if (kind) element.classList.add(kind);
}

export function showState(id, text, good) {
  set($(id), { "data-state": good ? "good" : "bad" }).querySelector("b").textContent = text;
}

export function make(name, text = "", attributes = {}) {
  const element = document.createElement(name);
  element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

export function draw(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  return set(element, attributes);
}

export function set(element, attributes) {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
