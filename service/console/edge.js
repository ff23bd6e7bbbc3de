// The edge: how it is asked, what it last told of itself, and since when it does not answer.

import { $, say, showState } from "./elements.js";
import { clock } from "./words.js";

const STATE_TIMEOUT_MS = 3000;
const ADMIN_TIMEOUT_MS = 15000;

export let state = null; // the last answer of /console/state
export let lostSince = null;
let stateNumber = 0; // of the last question, and of the one whose answer is shown: an older answer is dropped
let shownNumber = 0;
let show = () => {}; // what a new state means for the page, given the state before

export class Lost extends Error {} // nothing answered
export class Refused extends Error { // the edge said no
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export async function ask(path, { method = "GET", body, headers = {}, timeoutMs = ADMIN_TIMEOUT_MS } = {}) {
  let response;
  try {
    response = await fetch(path, { method, body, headers, cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(timeoutMs) });
  } catch (error) {
    throw new Lost(error.message);
  }
  const document_ = await response.json().catch(() => null);
  if (response.ok && document_ !== null) return document_;
  throw new Refused(response.status, document_?.detail || `the answer was ${response.status}`);
}

export function whenTold(listener) {
  show = listener;
}

export async function refresh() {
  const number = ++stateNumber;
  const answer = await ask("console/state", { timeoutMs: STATE_TIMEOUT_MS });
  if (number < shownNumber) return;
  shownNumber = number;
  const before = state;
  state = answer;
  show(before);
}

export function lose(error) {
  lostSince ??= new Date();
  const why = error instanceof Lost ? "does not answer" : `answers with ${error.status}`;
  say("lost", `The edge ${why} since ${clock(lostSince)}. The numbers below are old; this page goes on trying.`);
  $("lost").hidden = false;
  showState("state-edge", "no answer", false);
}

export function regain() {
  lostSince = null;
  $("lost").hidden = true;
}
