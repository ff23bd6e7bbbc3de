// The versions of the policy: applying a draft makes one, rolling back brings one again, the history lists them.

import { draft, forgetDraft, forgetSent, previewed, schedulePreview, setBusy, showButtons, showFields, upToDate } from "./draft.js";
import { lose, Lost, refresh, state } from "./edge.js";
import { $, make, say } from "./elements.js";
import { asAdmin, refused, trusted, whenForgotten } from "./token.js";
import { short } from "./words.js";

const HISTORY_AGAIN_MS = 10000; // after a failure
const HISTORY_SHORT = 50;
const HISTORY_LONG = 1000;

let historyNumber = 0;
let historyVersion = null;
let historyFailedAt = 0;
let historyLimit = HISTORY_SHORT;

export async function apply(event) {
  event.preventDefault();
  if (!upToDate()) return;
  say("history-message", "");
  const sent = { ...draft };
  const note = $("note").value;
  const changes = { ...sent, note, gate_digest: state.gate_digest };
  await write("change-message", async () => {
    const policy = await asAdmin("policy", "PATCH", changes, { "if-match": `"${previewed.version}"` });
    forgetSent(sent);
    if ($("note").value === note) $("note").value = "";
    return `Version ${policy.version} is in force: threshold ${short(policy.threshold)}, deferral ${policy.deferral}.`;
  });
}

async function rollBack(version) {
  say("change-message", "");
  await write("history-message", async () => {
    const policy = await asAdmin("policy/rollback", "POST", { version });
    forgetDraft();
    return `Version ${version} is back, as version ${policy.version}: threshold ${short(policy.threshold)}, deferral ${policy.deferral}.`;
  });
  if (document.activeElement === document.body) $("history-message").focus(); // its button is gone
}

async function write(where, work) {
  setBusy(true);
  try {
    const done = await work();
    await refresh().catch((error) => lose(error));
    showFields();
    if (trusted) await showHistory();
    say(where, done, "good");
  } catch (error) {
    refused(where, error, true);
  }
  setBusy(false);
  schedulePreview();
}

export async function showHistory() {
  const number = ++historyNumber;
  historyVersion = state?.policy.version ?? null;
  try {
    const { versions } = await asAdmin(`policy/history?limit=${historyLimit}`, "GET");
    if (number !== historyNumber || !trusted) return;
    const focused = document.activeElement?.dataset?.version;
    $("history").querySelector("tbody").replaceChildren(...versions.map(historyRow));
    $("history").hidden = false;
    $("older").hidden = historyLimit === HISTORY_LONG || versions.length < HISTORY_SHORT;
    if (focused) $("history").querySelector(`[data-version="${Number(focused)}"]`)?.focus();
    if (!$("history-message").classList.contains("good")) say("history-message", "");
  } catch (error) {
    if (number !== historyNumber) return;
    historyVersion = null;
    historyFailedAt = Date.now();
    if (!(error instanceof Lost)) refused("history-message", error);
  }
  showButtons();
}

export function showOlder() {
  historyLimit = HISTORY_LONG;
  showHistory();
}

export function followHistory() {
  if (trusted && historyVersion !== state.policy.version && Date.now() - historyFailedAt > HISTORY_AGAIN_MS) showHistory();
}

export function forgetHistory() {
  historyVersion = null;
  $("history").querySelector("tbody").replaceChildren();
}

function hideHistory() {
  forgetHistory();
  $("history").hidden = true;
  $("older").hidden = true;
  say("history-message", "Enter the admin token to see it.");
}

function historyRow(policy) {
  const row = make("tr");
  const otherwise = [`deferral ${policy.deferral}`, policy.on_remote_failure, `${policy.remote_timeout_s}\u00a0s`].join(", ");
  const moment = new Date(policy.updated_at);
  for (const text of [`${policy.version}`, `${moment.toLocaleString()}, ${policy.updated_by}`, short(policy.threshold), otherwise, policy.note])
    row.append(make("td", text));
  const cell = make("td");
  if (policy.version === state?.policy.version) row.setAttribute("aria-current", "true");
  else {
    const button = make("button", `Roll back to ${policy.version}`, { type: "button", "data-version": policy.version });
    button.addEventListener("click", () => rollBack(policy.version));
    cell.append(button);
  }
  row.append(cell);
  return row;
}

whenForgotten(hideHistory);
